"""Starts everything, shows it, ends everything, in order.

start   PostgreSQL ▸ broker ▸ schema ▸ service (a child process) ▸ fleet
end     fleet stops ▸ its last messages are confirmed, and stored ▸ SIGTERM to the service, exit 0 ▸ compare ▸ the rest
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator  # noqa: TC003  (attrs resolves the annotations)
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import attrs
import trio
import trio_asyncio

from traksense.config import load
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.migrate import migrate
from traksense.terminal import say
from traksense.tools.demo.display import chosen_display, take_screenshot
from traksense.tools.demo.lines import ending
from traksense.tools.demo.observe import (
    ROWS,
    Database,
    Servers,
    wait_idle,
    wait_received,
    watch_clock,
    watch_database,
    watch_metrics,
    watch_processes,
    watched_points,
)
from traksense.tools.demo.place import DATABASE, Place, called
from traksense.tools.demo.state import Addresses, Phase, Scrape, State
from traksense.tools.demo.verdict import LAST_DEAD, compare
from traksense.tools.fleet import Fleet, FleetOptions, Limits, Tally, play
from traksense.tools.interrupt import INTERRUPTED
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import open_broker, open_postgres, open_service

if TYPE_CHECKING:
    from traksense.tools.publisher import Publisher
    from traksense.tools.stack import BrokerProcess, PostgresProcess, ServiceProcess

DRAIN_SECONDS: Final = 30.0
"""How long the broker and the service may take for the last messages before the comparison goes without them."""

# Small enough for a laptop; what a crash can cost is not touched.
POSTGRES_SETTINGS: Final = {"max_wal_size": "256MB", "log_checkpoints": "off"}
CLIENT_ID: Final = "traksense-demo"
TOPICS: Final = "traksense/#"
"""More than the service's default: a message on a topic that is none of ours shall become a dead letter."""

OWN_TENANT: Final = "mine"
OWN_TOPIC: Final = f"traksense/{OWN_TENANT}/here/device-1/telem"
"""A tenant of its own, so that the comparison at the end is not disturbed."""

OWN_MESSAGE: Final = """'{"schema": "v1", "ts": "'$(date -u +%FT%TZ)'", "points": [{"name": "t", "v": 7.3}]}'"""
"""For a shell."""


@attrs.frozen(kw_only=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        directory: Where everything is kept.
        fleet: The simulated devices.
        seconds: When to end by itself; None is never.
        broker: Which one.
        ports: By the names in `place.PORTS`; None is any.
        screenshot: Where the last page goes as SVG.
    """

    directory: Path
    fleet: FleetOptions
    seconds: float | None = None
    broker: Literal["auto", "mosquitto", "iotcore"] = "auto"
    ports: dict[str, int | None] = attrs.field(factory=dict)
    screenshot: Path | None = None


async def demo(options: DemoOptions) -> int:
    """Run until the time is up or a signal; returns the exit status: 0 if everything adds up.

    Raises:
        StackError: Something could not be started, or ended by itself.

    Trio-flavored.
    """
    status = INTERRUPTED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            stop = Stop(nursery.cancel_scope)
            nursery.start_soon(stop.listen, signals)
            status = await Demo(options, stop).run()
            nursery.cancel_scope.cancel()
    if status == INTERRUPTED:
        say("\ntraksense demo: interrupted; everything that was started has been stopped.", to=sys.stderr)
    return status


@attrs.define(eq=False)
class Stop:
    """What signals mean: before everything runs, give up; then, end in order; once more, give up."""

    _everything: trio.CancelScope
    running: bool = False
    requested: trio.Event = attrs.field(factory=trio.Event)

    async def listen(self, signals: AsyncIterator[int]) -> None:
        """Act on signals until cancelled."""
        async for _ in signals:
            if self.running and not self.requested.is_set():
                self.requested.set()
            else:
                self._everything.cancel()


class Demo:
    """One run."""

    def __init__(self, options: DemoOptions, stop: Stop) -> None:
        self._options = options
        self._stop = stop
        self._place = Place(options.directory)
        self._tally = Tally()
        self._show = chosen_display(options.screenshot)

    async def run(self) -> int:
        """Start, show, end; returns the exit status."""
        _log_to(self._place.directory / "demo.log")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(open_asyncio_loop())
            postgres, broker, dsn = await self._start_servers(stack)
            service = await self._start_service(stack, broker, dsn)
            database = Database(dsn)
            stack.callback(database.terminate)
            publisher = await self._open_publisher(stack, broker)
            fleet = Fleet(self._options.fleet)
            state = self._state(broker, postgres, service, fleet)
            last_dead = int(await database.fetch_value(LAST_DEAD))
            since = time.time()
            self._stop.running = True
            await self._show_running(state, fleet, publisher, service, database, (broker, postgres))
            status = await service.stop()
            tenants = {path.partition("/")[0] for path in fleet.paths}
            verdict = await compare(self._tally, database, tenants=tenants, since=since, last_dead=last_dead)
            state.rows = int(await database.fetch_value(ROWS))
            self._say(ending(self._place, state, verdict, status, service, postgres.directory))
        return 0 if verdict.adds_up and status == 0 else 1

    # --- start --------------------------------------------------------------------------------------------------------

    async def _start_servers(self, stack: AsyncExitStack) -> tuple[PostgresProcess, BrokerProcess, str]:
        self._say(f"traksense demo: everything is kept in {self._place.directory}")
        ports = self._place.ports(self._options.ports)
        directory = self._place.directory
        postgres = await stack.enter_async_context(
            open_postgres(directory, port=ports["postgres"], settings=POSTGRES_SETTINGS)
        )
        if postgres.note:
            self._say(f"  {postgres.note}")
        self._say(f"  PostgreSQL {postgres.version} on port {postgres.port}")
        broker = await stack.enter_async_context(
            open_broker(self._place.broker, port=ports["mqtt"], kind=self._options.broker)
        )
        self._say(f"  {broker.kind} on port {broker.port}")
        dsn = await postgres.create_database(DATABASE, exist_ok=True)
        self._place.write_service_file(dsn)
        self._place.remember_ports()
        report = await trio_asyncio.aio_as_trio(migrate)(dsn, log=logging.getLogger(__name__))
        self._say(f"  schema {report.to_version}{' created' if report.from_version is None else ''} ({report.engine})")
        return postgres, broker, dsn

    async def _start_service(self, stack: AsyncExitStack, broker: BrokerProcess, dsn: str) -> ServiceProcess:
        # iotcore forgets sessions when it ends: one of the same name would be reported as lost, rightly.
        suffix = f"-{secrets.token_hex(3)}" if broker.kind == "iotcore" else ""
        env = {
            "MQTT_URL": broker.url,
            "MQTT_TOPICS": TOPICS,
            "MQTT_CLIENT_ID": CLIENT_ID + suffix,
            "DATABASE_URL": dsn,
            "DB_POOL_MAX": "4",
            "INGEST_SHUTDOWN_SECONDS": "10",
            "LOG_FORMAT": "text",
            "METRICS_PORT": str(self._place.ports(self._options.ports)["metrics"]),
        }
        service = await stack.enter_async_context(open_service(env, self._place.directory))
        await service.wait_ready()
        await wait_idle(service, DRAIN_SECONDS)
        self._say(f"  the service, pid {service.pid}: {service.metrics_url}")
        return service

    async def _open_publisher(self, stack: AsyncExitStack, broker: BrokerProcess) -> Publisher:
        settings = load({"MQTT_URL": broker.url})
        return await stack.enter_async_context(
            open_publisher(
                settings.broker,
                client_id=f"traksense-demo-fleet-{secrets.token_hex(3)}",
                on_confirmed=self._tally.confirm,
                on_refused=self._tally.refuse,
            )
        )

    def _state(self, broker: BrokerProcess, postgres: PostgresProcess, service: ServiceProcess, fleet: Fleet) -> State:
        self._say(
            f"  send a message of your own, from another terminal (it prints nothing):\n    {_own_publish(broker)}"
        )
        if psql := self._place.psql_line(postgres, OWN_TENANT):
            self._say(f"  look at the data as a dashboard does, which sees only the tenant that it names:\n    {psql}")
        o = self._options.fleet
        described = f"{o.tenants} tenants, {fleet.devices} devices, {o.rate:,.0f} points/s"
        if o.speed != 1:
            described += f", signals run {o.speed:g}×"
        addresses = Addresses(
            broker.url,
            broker.kind,
            f"postgresql://{postgres.host}:{postgres.port}/{DATABASE}",
            service.metrics_url,
            str(self._place.directory),
        )
        now = trio.current_time()
        return State(addresses, described, self._tally, now, now, datetime.now(UTC), self._options.seconds)

    # --- while it runs ------------------------------------------------------------------------------------------------

    async def _show_running(
        self,
        state: State,
        fleet: Fleet,
        publisher: Publisher,
        service: ServiceProcess,
        database: Database,
        servers: Servers,
    ) -> None:
        before = Scrape(trio.current_time(), await service.metrics()).received
        playing = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_processes, service, servers)
            nursery.start_soon(watch_metrics, state, service)
            nursery.start_soon(watch_database, state, database, watched_points(fleet.paths))
            nursery.start_soon(watch_clock, state, publisher)
            nursery.start_soon(self._show, state)
            nursery.start_soon(_cancel_when, self._stop.requested, playing)
            with playing:
                await play(fleet, publisher, self._tally, limits=Limits(seconds=self._options.seconds))
            self._take_screenshot(state)
            state.phase = Phase.ENDING
            with trio.move_on_after(DRAIN_SECONDS):
                await publisher.drain()
                await wait_received(service, before + self._tally.confirmed)
            state.add(Scrape(trio.current_time(), await service.metrics()))
            state.phase = Phase.ENDED
            nursery.cancel_scope.cancel()

    def _take_screenshot(self, state: State) -> None:
        if self._options.screenshot is not None:
            take_screenshot(state, self._options.screenshot)

    @staticmethod
    def _say(text: str) -> None:
        say(text, flush=True)


def _own_publish(broker: BrokerProcess) -> str:
    """The line that publishes a message of one's own, with what there is on this machine."""
    if shutil.which("mosquitto_pub"):
        # The embedded broker speaks nothing else.
        version = "-V 5 " if broker.kind == "iotcore" else ""
        return f"mosquitto_pub {version}-p {broker.port} -q 1 -t {OWN_TOPIC} -m {OWN_MESSAGE}"
    # What it logs of a connection that it has ended itself looks like a failure, and failures are raised.
    quiet = "import logging, sys; logging.disable(); from paho.mqtt.publish import single"
    code = f"{quiet}; single(*sys.argv[1:], qos=1, port={broker.port}, protocol=5)"
    return f"{called(Path(sys.executable))} -P -c '{code}' {OWN_TOPIC} {OWN_MESSAGE}"


def _log_to(path: Path) -> None:
    """Our own log goes to a file: on the terminal it would tear the page."""
    with contextlib.suppress(OSError):
        logging.basicConfig(
            filename=path, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
        )


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
