"""Runs the checks, one after the other, against the stack that the settings name."""

from __future__ import annotations

import os
import secrets
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

from traksense import __version__
from traksense.config import note_of_default_database
from traksense.errors import BrokerRefusedError, TraksenseError
from traksense.model import Kind
from traksense.mqtt.stream import tls_context
from traksense.store.connection import open_connection
from traksense.store.schema_version import newer
from traksense.store.sql_files import LATEST
from traksense.tools.publisher import open_publisher
from traksense.tools.validate import cleanup, next_steps, repeating, speed, storing, watching, wiring
from traksense.tools.validate.endpoint import Endpoint, EndpointError
from traksense.tools.validate.report import Printer, Report, Result
from traksense.tools.validate.target import BROKER_AWAY, CheckSkippedError, Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from traksense.config import Settings
    from traksense.store.connection import DatabaseConnection
    from traksense.tools.interrupt import Interruption
    from traksense.tools.publisher import Publisher

    Check: TypeAlias = Callable[[Target, Result], Awaitable[None]]

READY_SECONDS: Final = 10.0
"""How long a service that answers may take to become ready: it may have been started a moment ago."""

CLEANUP_SECONDS: Final = 120.0
"""However long the patience: then somebody else must clean up. Chosen by guess."""

WINDOW: Final = 1_000
"""Unconfirmed messages; the broker's Receive Maximum may be less."""

CHECKS: Final[tuple[tuple[str, str, Check], ...]] = (
    ("wiring", "Wiring", wiring.wiring),
    ("persistence", "Persistence", storing.persistence),
    ("dlq", "Dead Letter Queue", storing.dead_letters),
    ("throughput", "Throughput Smoke Test", speed.throughput),
    ("latency", "Latency", speed.latency),
    ("ack_idempotence", "Ack Idempotence", repeating.acks),
    ("events", "Events", repeating.events),
    ("out_of_order", "Out-of-order Timestamps", storing.out_of_order),
    ("duplicates", "Redelivery and Duplicates", repeating.duplicates),
    ("backpressure", "Backpressure", speed.backpressure),
    ("tenant_isolation", "Tenant Isolation", watching.isolation),
    ("metrics", "Prometheus Metrics", watching.metrics),
)

DEVICES: Final = (
    wiring.DEVICE,
    *("persistence", "good", "latency", "acks", "events", "disorder", "twice", "burst", "walls", "device", "cleanup"),
    *(f"throughput-{number}" for number in range(speed.DEVICES)),
)
"""Whom a service with strict provisioning must know."""


@attrs.frozen(kw_only=True)
class Options:
    """What can be said beside the environment.

    Attributes:
        url: The service's endpoint, without a path.
        points: For the throughput test.
        patience: How long the service may take for anything, in seconds.
        keep: Leave everything in the database.
    """

    url: str
    points: int = 10_000
    patience: float = 10.0
    keep: bool = False


async def validate(
    settings: Settings, options: Options, report: Report, printer: Printer, interruption: Interruption
) -> None:
    """Make the checks and clean up, also if interrupted; what was found is in the report.

    Trio-flavored.
    """
    started = trio.current_time()
    run = _Run(settings, options, report, printer, interruption)
    printer.begin(report.subject)
    try:
        await run.all()
    finally:
        report.seconds = trio.current_time() - started


_DATABASE: Final = """
SELECT max(version), traksense.is_operator(), current_setting('transaction_read_only')::bool
FROM traksense.schema_version
"""


def new_report(settings: Settings, options: Options) -> Report:
    """An empty report, with a tenant that nobody else has."""
    return Report(
        {
            "version": __version__,
            "broker": str(settings.broker),
            "database": str(settings.database),
            "service": options.url,
            # Among shards only a tenant that is listed is read by anybody.
            "tenant": "validate" if settings.layout else f"validate-{secrets.token_hex(5)}",
        }
    )


@attrs.define(eq=False)
class _Run:
    settings: Settings
    options: Options
    report: Report
    printer: Printer
    interruption: Interruption

    async def all(self) -> None:
        """Connect, check, clean up."""
        async with AsyncExitStack() as stack:
            target = await self._connect(stack)
            if target is None:
                self._not_run("see connectivity")
                return
            left = " and ".join(target.tenants)
            self.interruption.remains = f"not cleaned up; remains: {left}: {cleanup.by_hand(target)}"
            try:
                with self.interruption.guard():
                    if self.settings.provisioning == "strict":
                        await cleanup.register(target.database, target.tenants, list(DEVICES))
                    for name, title, check in CHECKS:
                        lost = await self._check(name, title, check, target)
                        if target.miswired or lost:
                            # Nothing else could be found; if miswired, it would be left behind for good as well.
                            self._not_run(f"see {title.lower()}")
                            break
            finally:
                self._not_run("interrupted")
                result = self._begin("cleanup", "Clean-up", check=False)
                if self.options.keep:
                    kept = f"kept: {' and '.join(target.tenants)}"
                    if target.out_of_reach:
                        kept += f"; {target.out_of_reach}"
                    result.add("skip", "Clean-up", kept, next_step=cleanup.by_hand(target))
                else:
                    with trio.move_on_after(CLEANUP_SECONDS, shield=True) as scope:
                        await cleanup.clean_up(target, result)
                    if scope.cancelled_caught:
                        late = f"not done within {CLEANUP_SECONDS:.0f} s; remains: {left}"
                        result.add("fail", "Clean-up", late, next_step=cleanup.by_hand(target))
                # From here on a second signal leaves nothing that the report does not name.
                self.interruption.remains = ""

    async def _check(self, name: str, title: str, check: Check, target: Target) -> bool:
        """Make one; whether it failed over our connection to the database, or the broker's being away."""
        result = self._begin(name, title)
        started = trio.current_time()
        lost = False
        try:
            await check(target, result)
        except trio.Cancelled:
            result.add("not run", title, "interrupted")
            raise
        except CheckSkippedError as error:
            result.add("skip", title, str(error), next_step=error.next_step)
        except TraksenseError as error:
            lost = _fail(result, error)
        except BaseExceptionGroup as group:
            expected, rest = group.split(TraksenseError)
            if expected is None or rest is not None:
                raise
            lost = _fail(result, _first(expected))
        finally:
            target.miswired = name == "wiring" and result.status == "fail" and not lost
            lost = lost or _broker_is_away(result, target.publisher)
            result.seconds = trio.current_time() - started
        return lost

    def _begin(self, name: str, title: str, *, check: bool = True) -> Result:
        self.printer.heading(title, check=check)
        result = Result(name, title, self.printer.finding)
        self.report.results.append(result)
        return result

    def _not_run(self, why: str) -> None:
        begun = {result.name for result in self.report.results}
        for name, title, _ in CHECKS:
            if name not in begun:
                self._begin(name, title).add("not run", title, why)

    # --- connectivity -------------------------------------------------------------------------------------------------

    async def _connect(self, stack: AsyncExitStack) -> Target | None:
        """Connect to everything and say how that went; None if anything of it failed."""
        result = self._begin("connectivity", "Connectivity")
        started = trio.current_time()
        endpoint = Endpoint(self.options.url)
        refusals: list[int] = []
        publisher = await self._connect_broker(stack, result, refusals)
        database = await self._connect_database(stack, result)
        ready = await self._look_at_health(endpoint, result)
        result.seconds = trio.current_time() - started
        if publisher is None or database is None or not ready:
            return None
        target = Target(
            settings=self.settings,
            endpoint=endpoint,
            database=database,
            publisher=publisher,
            tenant=self.report.subject["tenant"],
            patience=self.options.patience,
            points=self.options.points,
            refusals=refusals,
        )
        if not target.subscribed(Kind.TELEM):
            topic = target.topic(Kind.TELEM)
            step = next_steps.NO_TENANT[bool(self.settings.layout)]
            result.add("fail", "MQTT_TOPICS", f"does not subscribe to {topic}", next_step=step)
            return None
        return target

    async def _connect_broker(self, stack: AsyncExitStack, result: Result, refusals: list[int]) -> Publisher | None:
        broker = self.settings.broker
        started = trio.current_time()
        try:
            publisher = await stack.enter_async_context(
                open_publisher(
                    broker,
                    client_id=f"traksense-{self.report.subject['tenant']}",
                    window=WINDOW,
                    version=self.settings.mqtt_version,
                    username=self.settings.username,
                    password=self.settings.password,
                    tls=tls_context(self.settings),
                    on_refused=lambda _tag, reason: refusals.append(reason),
                )
            )
        except TraksenseError as error:
            said = f"{error.variable}: {error}" if isinstance(error, BrokerRefusedError) else str(error)
            result.add("fail", "MQTT connect", f"{broker}: {said}", next_step=next_steps.of_broker(error))
            return None
        milliseconds = (trio.current_time() - started) * 1000
        result.add("ok", "MQTT connect", f"{broker} in {milliseconds:.0f} ms", milliseconds=milliseconds)
        return publisher

    async def _connect_database(self, stack: AsyncExitStack, result: Result) -> DatabaseConnection | None:
        started = trio.current_time()
        try:
            database = await stack.enter_async_context(
                open_connection(self.settings.database, application="traksense validate")
            )
            rows = await database.fetch(_DATABASE)
        except TraksenseError as error:
            step = next_steps.of_database(error)
            result.add("fail", "Database", f"{error}{note_of_default_database(os.environ)}", next_step=step)
            return None
        version, operator, read_only = rows[0]
        milliseconds = (trio.current_time() - started) * 1000
        faults = [newer(version)] if version > LATEST else []
        if not operator:
            faults.append("not an operator: DATABASE_URL must be that of whoever ran `traksense migrate`")
        if read_only:
            # Replication would show what is published, and nothing of it could be removed.
            faults.append("read-only, such as a standby: DATABASE_URL must name the server that the service writes to")
        figure = f"PostgreSQL {database.server_version}, schema version {version}, in {milliseconds:.0f} ms"
        result.judge(
            "Database",
            figure,
            faults=faults,
            next_step=next_steps.OWNERS_DATABASE if read_only or not operator else next_steps.NEWER_RELEASE,
            milliseconds=milliseconds,
            schema_version=version,
        )
        return None if faults else database

    async def _look_at_health(self, endpoint: Endpoint, result: Result) -> bool:
        try:
            status, _ = await endpoint.get("/healthz")
            faults = [] if status == 200 else ["not 200"]
            result.judge("GET /healthz", str(status), faults=faults, next_step=next_steps.ENDPOINT)
            answer = await endpoint.get("/readyz")
            with trio.move_on_after(READY_SECONDS):
                while True:
                    answer = await endpoint.get("/readyz")
                    if answer[0] != 503:
                        break
                    await trio.sleep(0.2)
            faults = [] if answer[0] == 200 else [" ".join(answer[1].split())]
            result.judge("GET /readyz", str(answer[0]), faults=faults, next_step=next_steps.HEALTH)
            samples = await endpoint.scrape()
            result.add("ok", "GET /metrics", f"{len(samples)} samples", samples=len(samples))
        except EndpointError as error:
            result.add("fail", "Service", str(error), next_step=next_steps.ENDPOINT)
            return False
        return status == 200 and answer[0] == 200


def _fail(result: Result, error: BaseException) -> bool:
    """Note it; whether our connection to the database has ended."""
    result.add("fail", result.title, str(error), next_step=next_steps.of_check(error))
    return next_steps.has_lost_session(error)


def _broker_is_away(result: Result, publisher: Publisher) -> bool:
    """Whether what failed did so without a broker; that is noted, whatever else was found."""
    if result.status != "fail" or not publisher.away:
        return False
    if result.findings[-1].next_step != BROKER_AWAY:
        result.add("fail", "MQTT connect", f"the broker is away: {publisher.fault}", next_step=BROKER_AWAY)
    return True


def _first(group: BaseExceptionGroup[TraksenseError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
