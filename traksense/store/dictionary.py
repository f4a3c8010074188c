"""Names to numbers: which series a point belongs to, which stored `meta` a message carries.

A row of measurements names its series by a number; names are stored once (ops/decisions has the figures). The numbers
are cached here, in bounded dictionaries; what is not in the cache is looked up, and what is not in the database is
registered, in bulk, in a transaction of its own: an entry without measurements harms nobody, and other batches do not
wait for this one.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import WeakValueDictionary

import attrs

from traksense.store.packing import HEAD_BYTES, pack_head
from traksense.store.roles import name_tenants

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from traksense.model import Route

PointKey: TypeAlias = str | tuple[str, str]
"""A point within its device: its name or, if it has a unit, name and unit."""

DEVICES_MAX: Final = 200_000
"""How many devices are remembered. About 300 bytes each with ten points, if it shares them with others (measured with
tracemalloc), so 60 MB when full."""

DEVICE_POINTS_MAX: Final = 30_000
"""How many points of one device are remembered. Three times what a message may have by default; a device that makes up
names (a time in them, say) starts over here, since each new name costs a new list of all."""

META_MAX: Final = 20_000
"""How many `meta` objects are remembered."""

META_LENGTH_MAX: Final = 4096
"""A longer `meta`, in bytes, is stored with its row instead of in the dictionary."""

NOVEL_META_MAX: Final = 64
"""How many new `meta` objects one device may add to the dictionary. A device whose meta never repeats (a counter, an
uptime) would otherwise add one for each message; beyond this its meta is stored with its rows."""


@attrs.frozen(eq=False)
class Layout:
    """Which points a device has, and where in its `heads`. Devices with the same points share one: a fleet of 100,000
    devices would otherwise keep as many dictionaries, and look into each of them once, when it is in no cache.
    """

    places: dict[PointKey, int] = attrs.field(factory=dict)


_NO_POINTS: Final = Layout()


@attrs.define(eq=False)
class Device:
    """What is cached of one device.

    Attributes:
        layout: Its points.
        heads: How the rows of each of its series begin (`packing.pack_head`), one behind the other.
        novel_meta: How many new `meta` objects it has added to the dictionary.
        used: Whether a batch has asked for it since room was last made.
    """

    layout: Layout = _NO_POINTS
    heads: bytes = b""
    novel_meta: int = 0
    used: bool = True


@attrs.define
class Missing:
    """What a batch needs and the cache does not have."""

    devices: dict[str, Route] = attrs.field(factory=dict)
    series: dict[tuple[str, PointKey], Route] = attrs.field(factory=dict)
    meta: dict[tuple[str, bytes], Device] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.devices or self.series or self.meta)


class Dictionary:
    """The cache and its registrations. One for the process."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._devices: dict[str, Device] = {}
        self._meta: dict[tuple[str, bytes], int] = {}
        self._layouts: WeakValueDictionary[tuple[PointKey, ...], Layout] = WeakValueDictionary()
        self._outgrown: set[Device] = set()
        self._registering = asyncio.Lock()

    def device(self, route: Route) -> Device | None:
        """The device, if it is known to be registered."""
        device = self._devices.get(route.path)
        if device is not None:
            device.used = True
        return device

    def meta(self, tenant: str, document: bytes) -> int | None:
        """The number of a `meta` object, if it is known."""
        return self._meta.get((tenant, document))

    async def register(self, connection: PoolConnectionProxy, missing: Missing) -> set[str]:
        """Look up, then register what the database does not have either. asyncio-flavored.

        With strict provisioning, devices are only looked up; returns the paths of those that the database does not
        have, for the caller to refuse.
        """
        unknown: set[str] = set()
        # One at a time in this process: two batches of the same new fleet would only wait for each other's unique keys.
        async with self._registering:
            if missing.devices:
                unknown = await self._register_devices(connection, missing.devices)
            if missing.series:
                await self._register_series(connection, missing.series)
            if missing.meta:
                await self._register_meta(connection, missing.meta)
        return unknown

    def make_room(self) -> None:
        """When there are too many devices, forget some that have not been used since this was last needed; they are
        looked up again by need.

        Between batches, not while one is looked up: what is forgotten might be of it.
        """
        while self._outgrown:
            device = self._outgrown.pop()
            device.layout, device.heads = _NO_POINTS, b""
        if len(self._devices) <= DEVICES_MAX:
            return
        excess = len(self._devices) - DEVICES_MAX + DEVICES_MAX // 10
        for path in [*self._devices, *self._devices]:
            known = self._devices.pop(path, None)
            if known is not None and known.used:
                known.used = False
                self._devices[path] = known
            elif known is not None:
                excess -= 1
                if not excess:
                    return

    def forget(self) -> None:
        """Trust nothing: the database was restored or replaced under us."""
        self._devices.clear()
        self._meta.clear()

    async def _register_devices(self, connection: PoolConnectionProxy, routes: dict[str, Route]) -> set[str]:
        wanted = [(r.tenant, r.site, r.device) for r in routes.values() if r.path not in self._devices]
        columns = _columns(sorted(wanted), 3)
        if not self._strict:
            tenants = {tenant for tenant, _, _ in wanted}
            async with connection.transaction():
                await name_tenants(connection, tenants)
                await connection.execute(_INSERT_TENANTS, sorted(tenants))
                await connection.execute(_INSERT_DEVICES, *columns)
            found: Iterable[tuple[str, str, str]] = wanted
        else:
            rows = await _fetch(connection, {tenant for tenant, _, _ in wanted}, _SELECT_DEVICES, *columns)
            found = [tuple(row) for row in rows]
        paths = {"/".join(names) for names in found}
        for path in paths:
            self._devices.setdefault(path, Device())
        return {"/".join(names) for names in wanted} - paths

    async def _register_series(
        self, connection: PoolConnectionProxy, series: dict[tuple[str, PointKey], Route]
    ) -> None:
        wanted: dict[tuple[str, str, str, str, str | None], tuple[Device, PointKey]] = {}
        for (path, key), route in series.items():
            device = self._devices.get(path)
            if device is None or key in device.layout.places:
                continue
            name, unit = key if isinstance(key, tuple) else (key, None)
            wanted[(route.tenant, route.site, route.device, name, unit)] = (device, key)
        found: dict[Device, dict[PointKey, int]] = {}
        for statement in (_SELECT_SERIES, _INSERT_SERIES, _SELECT_SERIES):
            if not wanted:
                break
            # Sorted, so that two replicas that register the same fleet cannot deadlock.
            columns = _columns(sorted(wanted, key=lambda names: (*names[:4], names[4] or "")), 5)
            for row in await _fetch(connection, {names[0] for names in wanted}, statement, *columns):
                device, key = wanted.pop(tuple(row)[1:])
                found.setdefault(device, {})[key] = row[0]
        for device, ids in found.items():
            self._add_series(device, ids)

    def _add_series(self, device: Device, ids: dict[PointKey, int]) -> None:
        # In one order, so that devices with the same points come to the same layout.
        added = sorted(ids, key=lambda key: key if isinstance(key, tuple) else (key, ""))
        keys = (*device.layout.places, *added)
        layout = self._layouts.get(keys)
        if layout is None:
            layout = self._layouts[keys] = Layout({key: n * HEAD_BYTES for n, key in enumerate(keys)})
        device.layout = layout
        if len(keys) > DEVICE_POINTS_MAX:
            self._outgrown.add(device)
        device.heads += b"".join([pack_head(ids[key]) for key in added])

    async def _register_meta(self, connection: PoolConnectionProxy, meta: dict[tuple[str, bytes], Device]) -> None:
        wanted = {
            (tenant, digest(document)): (tenant, document)
            for tenant, document in meta
            if (tenant, document) not in self._meta
        }
        if len(self._meta) + len(wanted) > META_MAX:
            self._meta.clear()
        for statement in (_SELECT_META, _INSERT_META, _SELECT_META):
            if not wanted:
                return
            keys = sorted(wanted)
            columns: list[list[object]] = [[tenant for tenant, _ in keys], [d for _, d in keys]]
            if statement is _INSERT_META:
                columns.append([wanted[key][1].decode() for key in keys])
            for row in await _fetch(connection, {tenant for tenant, _ in keys}, statement, *columns):
                known = wanted.pop((row[1], row[2]))
                self._meta[known] = row[0]
                meta[known].novel_meta += statement is _INSERT_META


async def _fetch(
    connection: PoolConnectionProxy, tenants: Iterable[str], statement: str, *columns: list[object]
) -> list[asyncpg.Record]:
    """Run one statement for these tenants, in a transaction of its own: committed when its rows go into the cache."""
    async with connection.transaction():
        await name_tenants(connection, tenants)
        return await connection.fetch(statement, *columns)


def digest(*parts: bytes) -> bytes:
    """A 16-byte key for content; parts cannot run into each other."""
    hasher = blake2b(digest_size=16)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.digest()


def _columns(rows: Iterable[tuple[object, ...]], width: int) -> list[list[object]]:
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


_INSERT_TENANTS: Final = """
INSERT INTO traksense.tenant (tenant_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING
"""

_INSERT_DEVICES: Final = """
INSERT INTO traksense.device (tenant_id, site_id, device_id)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING
"""

_SELECT_DEVICES: Final = """
SELECT d.tenant_id, d.site_id, d.device_id
FROM unnest($1::text[], $2::text[], $3::text[]) AS k (tenant_id, site_id, device_id)
JOIN traksense.device d USING (tenant_id, site_id, device_id)
"""

_SELECT_SERIES: Final = """
SELECT s.series_id, s.tenant_id, s.site_id, s.device_id, s.point_id, s.unit
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS k (tenant_id, site_id, device_id, point_id, unit)
JOIN traksense.series s
    ON (s.tenant_id, s.site_id, s.device_id, s.point_id) = (k.tenant_id, k.site_id, k.device_id, k.point_id)
    AND s.unit IS NOT DISTINCT FROM k.unit
"""

_INSERT_SERIES: Final = """
INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id, unit)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
ON CONFLICT DO NOTHING
RETURNING series_id, tenant_id, site_id, device_id, point_id, unit
"""

_SELECT_META: Final = """
SELECT m.meta_id, m.tenant_id, m.digest
FROM unnest($1::text[], $2::bytea[]) AS k (tenant_id, digest) JOIN traksense.meta m USING (tenant_id, digest)
"""

_INSERT_META: Final = """
INSERT INTO traksense.meta (tenant_id, digest, doc)
SELECT tenant_id, digest, doc::jsonb FROM unnest($1::text[], $2::bytea[], $3::text[]) AS k (tenant_id, digest, doc)
ON CONFLICT DO NOTHING
RETURNING meta_id, tenant_id, digest
"""
