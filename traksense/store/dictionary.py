"""Names to numbers: which series a point belongs to, which stored `meta` a message carries.

A row of measurements names its series by a number; names are stored once (ops/decisions has the figures). The numbers
are cached here, in bounded dictionaries; what is not in the cache is looked up, and what is not in the database is
registered, in bulk, in a transaction of its own: an entry without measurements harms nobody, and other batches do not
wait for this one.

Whoever deletes, renames or restores entries in the database changes its token. What is cached here is of one token;
every transaction that uses it checks that it still holds (`hold`), and keeps it from changing (ops/decisions/0035).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import attrs

from traksense.errors import DictionaryChangedError
from traksense.names import canonical_point, canonical_unit
from traksense.store.devices import NO_POINTS, Device, Layout, device_shares, forget_some
from traksense.store.digests import digest
from traksense.store.meta_numbers import INSERT_META, SELECT_META, MetaNumbers
from traksense.store.packing import pack_head
from traksense.store.registration import (
    INSERT_DEVICES,
    INSERT_SERIES,
    INSERT_TENANTS,
    SELECT_DEVICES,
    SELECT_SERIES,
    columns_of,
)
from traksense.store.roles import name_tenants

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from traksense.model import Route
    from traksense.store.devices import PointKey

DEVICES_MAX: Final = 200_000
"""How many devices are remembered. About 300 bytes each with ten points, if it shares them with others (measured with
tracemalloc), so 60 MB when full."""

DEVICE_POINTS_MAX: Final = 30_000
"""How many points of one device are remembered. Three times what a message may have by default; a device that makes up
names (a time in them, say) starts over here, since each new name costs a new list of all."""

POINTS_MAX: Final = 400_000
"""How many points are remembered in all, counted once for devices that share them. About 400 bytes each (measured by
the growth of the process), so 160 MB when full; of a fleet with more, some are looked up again and again."""


@attrs.define
class Missing:
    """What a batch needs and the cache does not have.

    Attributes:
        forgotten: How often the cache had forgotten everything by then (`Dictionary.forgotten`): what was not missing
            is not there any more once it has done so again.
        meta: By tenant and document, the device that it counts for; None if it is one of those that are passing.
    """

    forgotten: int = 0
    devices: dict[str, Route] = attrs.field(factory=dict)
    series: dict[tuple[str, PointKey], Route] = attrs.field(factory=dict)
    meta: dict[tuple[str, bytes], Device | None] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.devices or self.series or self.meta)


class Dictionary:
    """The cache and its registrations. One for the process.

    Attributes:
        token: What the database called its dictionary before the first entry was looked up; empty if nothing is cached.
        met: How many series were looked up or registered: there are hardly fewer.
        forgotten: How often everything was forgotten.
    """

    def __init__(self, *, strict: bool) -> None:
        self.token = ""
        self.met = 0
        self.forgotten = 0
        self._strict = strict
        self._devices: dict[str, Device] = {}
        self._meta = MetaNumbers()
        self._layouts: WeakValueDictionary[tuple[PointKey, ...], Layout] = WeakValueDictionary()
        self._outgrown: set[Device] = set()
        self._points = 0
        self._shares = 0
        self._registering = asyncio.Lock()

    def device(self, route: Route) -> Device | None:
        """The device, if it is known to be registered."""
        device = self._devices.get(route.path)
        if device is not None:
            device.used = True
        return device

    def meta(self, tenant: str, document: bytes) -> int | None:
        """The number of a `meta` object, if it is known."""
        # As `MetaNumbers.get`, which would be a call for each message.
        known = self._meta.kept.get((tenant, document))
        return known if known is not None or not self._meta.passing else self._meta.passing.get((tenant, document))

    def names(self, route: Route) -> dict[int, str]:
        """What the series of a device are called, by their numbers, as far as they are remembered."""
        return self._devices.get(route.path, Device()).names()

    async def begin(self, connection: PoolConnectionProxy) -> None:
        """Ask what the database calls its dictionary, unless that is known. asyncio-flavored.

        Raises:
            DictionaryChangedError: It was forgotten meanwhile: the answer may be another server's.
            asyncpg.PostgresError: See `check_owner`.
        """
        if not self.token:
            forgotten = self.forgotten
            await check_owner(connection)
            token: str = await connection.fetchval("SELECT traksense.dictionary_token()")
            if forgotten != self.forgotten:
                raise DictionaryChangedError("the dictionary was changed while its token was asked for")
            # Another batch may have been quicker, and may have looked something up since.
            self.token = self.token or token

    def forget(self, token: str | None = None) -> None:
        """Trust nothing: entries were changed in the database, or it was restored or replaced under us.

        Args:
            token: What has turned out to be out of date; nothing happens if another batch has noticed that before.
        """
        if token in (None, self.token):
            self.token = ""
            self.forgotten += 1
            self.met = 0
            self._devices.clear()
            self._shares = 0
            self._meta.clear()

    async def register(self, connection: PoolConnectionProxy, missing: Missing) -> set[str]:
        """Look up, then register what the database does not have either. asyncio-flavored.

        With strict provisioning, devices are only looked up; returns the paths of those that the database does not
        have, for the caller to refuse.

        Raises:
            asyncpg.PostgresError: TK001 among others: see `hold`.
            DictionaryChangedError: Another batch has found that it has changed, since this was found to be missing.
        """
        unknown: set[str] = set()
        # One at a time in this process: two batches of the same new fleet would only wait for each other's unique keys.
        async with self._registering:
            self._check(missing)
            if missing.devices:
                unknown = await self._register_devices(connection, missing)
            if missing.series:
                await self._register_series(connection, missing)
            if missing.meta:
                await self._register_meta(connection, missing)
        return unknown

    def make_room(self) -> None:
        """When there are too many devices, forget some that have not been used since this was last needed; when there
        are too many points, those with the most. They are looked up again as needed.

        Between batches, not while one is looked up: what is forgotten might be of it.
        """
        while self._outgrown:
            device = self._outgrown.pop()
            device.layout, device.heads = NO_POINTS, b""
        if self._points > POINTS_MAX:
            # Some of them may be nobody's any more.
            self._points = sum(layout.shares for layout in self._layouts.values())
        devices = _excess(self._shares, DEVICES_MAX)
        points = _excess(self._points, POINTS_MAX)
        if devices or points:
            forget_some(self._devices, devices, points)
            self._shares = sum(map(device_shares, self._devices))

    async def _fetch(
        self,
        connection: PoolConnectionProxy,
        missing: Missing,
        tenants: Iterable[str],
        statement: str,
        *arguments: object,
    ) -> list[asyncpg.Record]:
        """Run one for these tenants, in a transaction of its own: committed when its rows go into the cache, which is
        still of the same token then.
        """
        self._check(missing)
        token = self.token
        async with connection.transaction():
            await hold(connection, token)
            await name_tenants(connection, tenants)
            rows = await connection.fetch(statement, *arguments)
        self._check(missing)
        return rows

    def _check(self, missing: Missing) -> None:
        # Not by the token alone: the old primary's may be the new one's.
        if missing.forgotten != self.forgotten:
            raise DictionaryChangedError("the dictionary was changed while it was looked up")

    async def _register_devices(self, connection: PoolConnectionProxy, missing: Missing) -> set[str]:
        wanted = [(r.tenant, r.site, r.device) for r in missing.devices.values() if r.path not in self._devices]
        columns = columns_of(sorted(wanted), 3)
        if not self._strict:
            tenants = {tenant for tenant, _, _ in wanted}
            await self._fetch(connection, missing, tenants, INSERT_TENANTS, sorted(tenants))
            await self._fetch(connection, missing, tenants, INSERT_DEVICES, *columns)
            found: Iterable[tuple[str, str, str]] = wanted
        else:
            rows = await self._fetch(connection, missing, {tenant for tenant, _, _ in wanted}, SELECT_DEVICES, *columns)
            found = [tuple(row) for row in rows]
        paths = {"/".join(names) for names in found}
        for path in paths:
            if path not in self._devices:
                self._devices[path] = Device()
                self._shares += device_shares(path)
        return {"/".join(names) for names in wanted} - paths

    async def _register_series(self, connection: PoolConnectionProxy, missing: Missing) -> None:
        # What a device calls a point or a unit in several ways is one series (ops/decisions/0040). The cache knows each
        # way, so that nothing has to be normalized for a point that is known.
        wanted: dict[tuple[str, str, str, str, str | None], list[tuple[Device, PointKey]]] = {}
        for (path, key), route in missing.series.items():
            device = self._devices.get(path)
            if device is None or device.layout.has(key):
                continue
            name, unit = key
            names = (route.tenant, route.site, route.device, canonical_point(name), canonical_unit(unit))
            wanted.setdefault(names, []).append((device, key))
        found: dict[Device, dict[PointKey, int]] = {}
        for statement in (SELECT_SERIES, INSERT_SERIES, SELECT_SERIES):
            if not wanted:
                break
            # Sorted, so that two replicas that register the same fleet cannot deadlock.
            columns = columns_of(sorted(wanted, key=lambda names: (*names[:4], names[4] or "")), 5)
            for row in await self._fetch(connection, missing, {names[0] for names in wanted}, statement, *columns):
                for device, key in wanted.pop(tuple(row)[1:]):
                    found.setdefault(device, {})[key] = row[0]
        for device, ids in found.items():
            self.met += len(ids)
            self._add_series(device, ids)

    def _add_series(self, device: Device, ids: dict[PointKey, int]) -> None:
        # In one order, so that devices with the same points come to the same layout.
        added = sorted(ids, key=lambda key: (key[0], key[1] or ""))
        keys = (*device.layout.keys, *added)
        layout = self._layouts.get(keys)
        if layout is None:
            layout = self._layouts[keys] = Layout(keys)
            self._points += layout.shares
        device.layout = layout
        if layout.shares > DEVICE_POINTS_MAX:
            self._outgrown.add(device)
        device.heads += b"".join([pack_head(ids[key]) for key in added])

    async def _register_meta(self, connection: PoolConnectionProxy, missing: Missing) -> None:
        wanted = {
            (tenant, digest(document)): (tenant, document)
            for tenant, document in missing.meta
            if self._meta.get((tenant, document)) is None
        }
        self._meta.make_room(sum(missing.meta[known] is not None for known in wanted.values()))
        for statement in (SELECT_META, INSERT_META, SELECT_META):
            if not wanted:
                return
            keys = sorted(wanted)
            columns: list[list[object]] = [[tenant for tenant, _ in keys], [d for _, d in keys]]
            if statement is INSERT_META:
                columns.append([wanted[key][1].decode() for key in keys])
            for row in await self._fetch(connection, missing, {tenant for tenant, _ in keys}, statement, *columns):
                known = wanted.pop((row[1], row[2]))
                device = missing.meta[known]
                self._meta.add(known, row[0], for_long=device is not None)
                if device is not None:
                    device.novel_meta += statement is INSERT_META


async def check_owner(connection: PoolConnectionProxy) -> None:
    """See that the functions of the schema see what they work on. asyncio-flavored.

    Raises:
        asyncpg.PostgresError: The schema was restored as another role, or given to one, and not migrated since.
    """
    await connection.execute("SELECT traksense.count_series(1)")


async def hold(connection: PoolConnectionProxy, token: str) -> None:
    """Keep the database's dictionary as it is until the end of the transaction. asyncio-flavored.

    Raises:
        asyncpg.PostgresError: TK001 if it is not the one of the token, TK002 if the session is not ours.
    """
    await connection.execute(hold_statement(connection, token))


def hold_statement(connection: PoolConnectionProxy, token: str) -> str:
    """What `hold` executes, with its values inside, so that it can be part of a longer message."""
    marker: str = connection.marker  # type: ignore[attr-defined]  # a ServiceConnection's, through the pool's proxy
    return f"CALL traksense.hold_dictionary('{token}', '{marker}')"


def _excess(count: int, most: int) -> int:
    """How many to forget, so that the next time is some way off."""
    return count - most + most // 10 if count > most else 0
