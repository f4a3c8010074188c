"""Asks the service and the database how they are, and writes the answers into the state."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
import trio
import trio_asyncio

from traksense.errors import StoreError
from traksense.tools.demo.state import DeadLetter, LatestValue, Scrape
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.tools.demo.state import State
    from traksense.tools.publisher import Publisher
    from traksense.tools.stack import BrokerProcess, PostgresProcess, ServiceProcess

POLL_SECONDS: Final = 0.1
SCRAPE_SECONDS: Final = 0.5
QUERY_SECONDS: Final = 1.0
COUNT_SECONDS: Final = 2.0
COUNT_SHARE: Final = 0.02
"""Counting all rows may take at most this share of the time: on a large database it is done less often."""
SQL_TIMEOUT_SECONDS: Final = 30.0
VALUES_WITHIN: Final = "5 minutes"

Watched: TypeAlias = tuple[str, str, str, str]
"""Tenant, site, device and point."""
Servers: TypeAlias = "tuple[BrokerProcess | PostgresProcess, ...]"

SHOWN: Final = {
    "chiller": ("temp_agua", "compressor_1_on", "power"),
    "coldroom": ("temp_room", "state", "door_open"),
    "solar": ("ac_power", "state"),
    "parsec": ("status",),
    "khomp": ("A",),
    "je02": ("var0",),
    "gateway": ("temp-01",),
}
"""The points worth looking at, by what the name of their device begins with."""

LATEST: Final = f"""
SELECT w.tenant_id, w.site_id, w.device_id, w.point_id, m.v_num, m.v_bool, m.v_text, m.unit, m.ts
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
    AS w (tenant_id, site_id, device_id, point_id, place)
CROSS JOIN LATERAL (
    SELECT v_num, v_bool, v_text, unit, ts FROM ts_measure t
    WHERE t.tenant_id = w.tenant_id AND t.site_id = w.site_id AND t.device_id = w.device_id AND t.point_id = w.point_id
        AND t.ts > now() - interval '{VALUES_WITHIN}'
    ORDER BY t.ts DESC, t.unit DESC LIMIT 1
) m
ORDER BY w.place
"""  # noqa: S608  (constants)

NEWEST_DEAD: Final = """
SELECT reason, detail, topic, octet_length(payload) AS size, ts FROM ingest_errors ORDER BY id DESC LIMIT 1
"""

SIZE: Final = "SELECT pg_database_size(current_database()) AS bytes, (SELECT count(*) FROM traksense.series) AS series"
ROWS: Final = "SELECT count(*) FROM traksense.measure"


class Database:
    """One connection for everything that the demo asks; one question at a time.

    Trio-flavored: asyncpg runs in trio-asyncio's loop.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection[Any] | None = None
        self._turn = trio.Lock()

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of a query.

        Raises:
            StoreError: The database does not answer, or does not like the question.
        """
        async with self._turn:
            try:
                rows: list[asyncpg.Record] = await trio_asyncio.aio_as_trio(self._fetch)(query, arguments)
                return rows
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                raise StoreError(f"the database does not answer: {error or type(error).__name__}") from error

    async def fetch_value(self, query: str, *arguments: Any) -> Any:
        """The first value of the first row.

        Raises:
            StoreError: As `fetch`.
        """
        return (await self.fetch(query, *arguments))[0][0]

    def terminate(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.terminate()

    async def _fetch(self, query: str, arguments: Sequence[Any]) -> list[asyncpg.Record]:
        """asyncio-flavored."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(
                self._dsn, timeout=SQL_TIMEOUT_SECONDS, command_timeout=SQL_TIMEOUT_SECONDS
            )
        return await self._connection.fetch(query, *arguments)


def watched_points(paths: Sequence[str]) -> list[Watched]:
    """Points of the fleet that are worth looking at, the most interesting first: of every kind, and of every tenant.

    Args:
        paths: "tenant/site/device" of each device.
    """
    devices: dict[str, list[tuple[str, str, str]]] = {}
    for path in paths:
        tenant, site, device = path.split("/")
        devices.setdefault(device.partition("-")[0], []).append((tenant, site, device))
    watched = []
    for rank in range(max(map(len, SHOWN.values()))):
        for place, (kind, points) in enumerate(SHOWN.items()):
            if rank < len(points) and kind in devices:
                # Devices are listed tenant by tenant within one index, so the next kind shows the next tenant.
                watched.append((*devices[kind][place % len(devices[kind])], points[rank]))
    return watched


async def watch_metrics(state: State, service: ServiceProcess) -> None:
    """Scrape until cancelled. What does not answer is shown as not ready; its end is for others to see."""
    while True:
        try:
            state.add(Scrape(trio.current_time(), await service.metrics()))
            status, body = await service.readiness()
            state.ready, state.not_ready = status == 200, _reasons(body)
        except StackError as error:
            state.ready, state.not_ready = False, str(error)
        await trio.sleep(SCRAPE_SECONDS)


async def watch_database(state: State, database: Database, watched: Sequence[Watched]) -> None:
    """Query until cancelled; what does not answer keeps its last value."""
    columns = [list(column) for column in zip(*watched, strict=True)]
    counted_at, counting = float("-inf"), 0.0
    while True:
        try:
            rows = await database.fetch(LATEST, *columns)
            state.values = [_latest(row) for row in rows]
            state.newest_dead = _dead_letter(await database.fetch(NEWEST_DEAD))
            if trio.current_time() > counted_at + max(COUNT_SECONDS, counting / COUNT_SHARE):
                begun = time.monotonic()
                state.rows = await database.fetch_value(ROWS)
                counting, counted_at = time.monotonic() - begun, trio.current_time()
                size = (await database.fetch(SIZE))[0]
                state.database_bytes, state.series = size["bytes"], size["series"]
        except StoreError:
            pass
        await trio.sleep(QUERY_SECONDS)


async def watch_clock(state: State, publisher: Publisher) -> None:
    """Keep the times, and what the publisher says of its connection, until cancelled."""
    while True:
        state.now, state.wall = trio.current_time(), datetime.now(UTC)
        state.publisher_fault = publisher.fault
        await trio.sleep(POLL_SECONDS)


async def watch_processes(service: ServiceProcess, servers: Servers) -> None:
    """Until cancelled, see that all of them run.

    Raises:
        StackError: One of them ended by itself.
    """
    while True:
        if service.status is not None:
            # It answers no more, and this says why.
            await service.metrics()
        for server in servers:
            if not server.running:
                raise StackError(f"{server.name} ended by itself (log: {server.log_path})")
        await trio.sleep(POLL_SECONDS)


async def wait_idle(service: ServiceProcess, at_most: float) -> None:
    """Wait until what an earlier run left at the broker is stored: two readings alike, nothing in flight.

    Args:
        service: Which one.
        at_most: Seconds to wait.
    """
    last = -1
    with trio.move_on_after(at_most):
        while True:
            scrape = Scrape(trio.current_time(), await service.metrics())
            if scrape.received == last and not scrape.in_flight:
                return
            last = scrape.received
            await trio.sleep(2 * POLL_SECONDS)


async def wait_received(service: ServiceProcess, count: int) -> None:
    """Wait until the service has received so many messages, and none of them is in flight."""
    while True:
        scrape = Scrape(trio.current_time(), await service.metrics())
        if scrape.received >= count and not scrape.in_flight:
            return
        await trio.sleep(POLL_SECONDS)


def _latest(row: asyncpg.Record) -> LatestValue:
    value = next((row[name] for name in ("v_num", "v_bool", "v_text") if row[name] is not None), "")
    return LatestValue(
        tenant=_visible(row["tenant_id"]),
        site=_visible(row["site_id"]),
        device=_visible(row["device_id"]),
        point=_visible(row["point_id"]),
        value=_visible(value) if isinstance(value, str) else value,
        unit=_visible(row["unit"] or ""),
        ts=row["ts"].astimezone(UTC),
    )


def _dead_letter(rows: Sequence[asyncpg.Record]) -> DeadLetter | None:
    if not rows:
        return None
    row = rows[0]
    ts: datetime = row["ts"].astimezone(UTC)
    return DeadLetter(row["reason"], _visible(row["detail"] or ""), _visible(row["topic"]), row["size"], ts)


def _visible(text: str) -> str:
    """What devices send must not drive the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def _reasons(body: Any) -> str:
    """Why /readyz says no, in one line."""
    conditions = body.get("conditions", {}) if isinstance(body, dict) else {}
    faults = [f"{name}: {c.get('reason', '')}" for name, c in conditions.items() if not c.get("ok")]
    return "; ".join(faults)
