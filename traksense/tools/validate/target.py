"""The stack under test, and what every check does with it: publish, wait for what comes of it, count."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import trio

from traksense.errors import TraksenseError
from traksense.model import Kind
from traksense.shards import covers
from traksense.tools.outbox import NOT_AUTHORIZED, in_words
from traksense.tools.validate import payloads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from traksense.config import Settings
    from traksense.store.connection import DatabaseConnection
    from traksense.tools.publisher import Publisher
    from traksense.tools.stack import Samples
    from traksense.tools.validate.endpoint import Endpoint

T = TypeVar("T")

POLL_SECONDS: Final = 0.01
SITE: Final = "site"

OPERATORS_USER: Final = (
    "MQTT_USERNAME of `validate` must be an operators' user, who may publish to traksense/+/+/+/telem, ack and event: "
    "ops/mosquitto.acl has one (traksense-operator); that of the service may only read"
)
BROKER_AWAY: Final = (
    "is the broker running? Its log says why it ended, or takes nobody; once GET /readyz says 200, run `validate` again"
)
BUSY: Final = (
    "GET /readyz and the service's log say whether it can write; where it only works off a backlog, wait for that, or "
    "give a larger --patience"
)
BUG: Final = "this is a bug of traksense, or somebody has altered the schema (compare with ops/schema.sql): report it"

FENCES: Final = {
    Kind.TELEM: "SELECT count(*) FROM public.ts_measure WHERE tenant_id = $1 AND device_id = $2 AND point_id = $3",
    Kind.ACK: "SELECT count(*) FROM public.cmd_ack WHERE tenant_id = $1 AND device_id = $2 AND cmd_id = $3",
    Kind.EVENT: "SELECT count(*) FROM public.device_event WHERE tenant_id = $1 AND device_id = $2 AND event_id = $3",
}


class CheckFailedError(TraksenseError):
    """What the check needs did not happen; the text is the finding, and `next_step` what an operator can do."""

    def __init__(self, finding: str, next_step: str = "") -> None:
        self.next_step = next_step
        super().__init__(finding)


class CheckSkippedError(CheckFailedError):
    """The check cannot be made here; the text says why, and `next_step` how it can be made."""


@attrs.define(eq=False)
class Target:
    """The stack under test.

    Attributes:
        settings: What the environment says of it.
        tenant: Ours, unlike any other.
        neighbour: A second tenant of ours.
        patience: How long the service may take for anything, in seconds.
        points: How many points the throughput test publishes.
        sent: Messages published so far, by kind.
        dead: Those of them that had to become dead letters.
        untyped: Those of them whose topic is of no kind.
        stored: Points that had to be stored, each once.
        miswired: Whether the first message did not come where it should.
        out_of_reach: What may be stored of ours where we cannot remove it; empty if nothing is.
    """

    settings: Settings
    endpoint: Endpoint
    database: DatabaseConnection
    publisher: Publisher
    tenant: str
    patience: float
    points: int
    refusals: list[int] = attrs.field(factory=list)
    sent: Counter[Kind] = attrs.field(factory=Counter)
    dead: int = 0
    untyped: int = 0
    stored: int = 0
    miswired: bool = False
    out_of_reach: str = ""
    _fences: int = 0

    @property
    def neighbour(self) -> str:
        """The other tenant."""
        return f"{self.tenant}-b"

    @property
    def tenants(self) -> list[str]:
        """Both of ours."""
        return [self.tenant, self.neighbour]

    def topic(self, kind: Kind, device: str = "device", *, tenant: str | None = None) -> str:
        """A topic of ours."""
        return f"traksense/{tenant or self.tenant}/{SITE}/{device}/{kind}"

    def subscribed(self, kind: Kind) -> bool:
        """Whether MQTT_TOPICS, or some shard's part of it, covers our topics of this kind."""
        layout = self.settings.layout
        topics = self.settings.mqtt_topics if layout is None else layout.overlapping(self.topic(kind))
        return any(covers(topic_filter, self.topic(kind)) for topic_filter in topics)

    def need(self, kind: Kind) -> None:
        """Make sure that the service subscribes to this kind.

        Raises:
            CheckSkippedError: MQTT_TOPICS does not cover it.
        """
        if not self.subscribed(kind):
            raise CheckSkippedError(
                f"MQTT_TOPICS does not subscribe to {self.topic(kind)}",
                f"if such messages should be stored, add traksense/+/+/+/{kind} to MQTT_TOPICS, of the service as well",
            )

    async def publish(self, kind: Kind, payload: bytes, *, device: str = "device", tenant: str | None = None) -> None:
        """Publish at QoS 1; `confirm` waits for the PUBACK.

        Raises:
            CheckFailedError: Too many messages are unconfirmed, and that does not change.
        """
        with trio.move_on_after(self.patience) as scope:
            await self.publisher.publish(self.topic(kind, device, tenant=tenant), payload)
        if scope.cancelled_caught:
            raise self._unconfirmed()
        self.sent[kind] += 1

    async def confirm(self) -> None:
        """Wait until the broker has confirmed everything.

        Raises:
            CheckFailedError: It does not, or it refuses.
        """
        with trio.move_on_after(self.patience) as scope:
            await self.publisher.drain()
        if scope.cancelled_caught:
            raise self._unconfirmed()
        if self.refusals:
            reasons = sorted(set(self.refusals))
            self.refusals.clear()  # the next check may publish what this user may
            said = ", ".join(map(in_words, reasons))
            raise CheckFailedError(
                f"the broker refuses what this user publishes to traksense/{self.tenant}/...: reason code {said}",
                OPERATORS_USER if NOT_AUTHORIZED in reasons else "the limits and the log of the broker say why",
            )

    def _unconfirmed(self) -> CheckFailedError:
        why = self.publisher.fault or "no PUBACK"
        said = f"the broker did not confirm within {self.patience:g} s: {why}"
        if self.publisher.away:
            return CheckFailedError(said, BROKER_AWAY)
        return CheckFailedError(
            said,
            f"some brokers end the connection of a user who may not publish: {OPERATORS_USER}"
            if self.publisher.fault
            else "see the broker's log and load; if it is slow by nature, give a larger --patience",
        )

    async def until(self, ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool]) -> tuple[T, float]:
        """Ask until the answer is enough or patience ends: the last answer, and after how many seconds."""
        started = trio.current_time()
        while True:
            asked = trio.current_time()
            answer = await ask()
            answered = trio.current_time()
            if enough(answer) or answered - started > self.patience:
                return answer, answered - started
            # What is costly to answer is asked less often.
            await trio.sleep(max(POLL_SECONDS, answered - asked))

    async def count(self, sql: str, *arguments: object) -> int:
        """The first column of the first row."""
        rows = await self.database.fetch(sql, *arguments)
        return int(rows[0][0])

    async def settle(self, kind: Kind = Kind.TELEM, device: str = "device") -> None:
        """Wait until everything that was published to this topic so far has ended, whatever came of it.

        A message behind it is published to the same topic, whose order the broker keeps. When that is stored, all
        before it were received; when nothing that the service received until then is in flight, all of it has ended.

        Raises:
            CheckFailedError: That takes too long.
        """
        self._fences += 1
        name = f"fence-{self._fences}"
        now = utc_now()
        payload = {
            Kind.TELEM: payloads.numbers(now, {name: 0.0}),
            Kind.ACK: payloads.ack(name, ok=True, ts_exec=now),
            Kind.EVENT: payloads.event("fence", now, event_id=name),
        }[kind]
        self.stored += kind is Kind.TELEM
        await self.publish(kind, payload, device=device)
        await self.confirm()
        stored, _ = await self.until(lambda: self.count(FENCES[kind], self.tenant, device, name), bool)
        if not stored:
            raise CheckFailedError(
                f"what was published to {self.topic(kind, device)} last is not stored within {self.patience:g} s", BUSY
            )
        drained, samples, _ = await self.drain()
        if not drained:
            raise CheckFailedError(
                f"messages are in flight for more than {self.patience:g} s: {in_flight(samples)}", BUSY
            )

    async def drain(self) -> tuple[bool, Samples, float]:
        """Wait until nothing is in flight that the service had received when this was called.

        Returns:
            Whether that was so before patience ended, the last scrape, and after how many seconds.
        """
        started = trio.current_time()

        async def look() -> tuple[bool, Samples]:
            asked = trio.current_time()
            samples = await self.endpoint.scrape()
            age = samples.value("ingest_oldest_unacknowledged_seconds")
            return samples.value("ingest_in_flight_messages") == 0 or age < asked - started, samples

        (drained, samples), seconds = await self.until(look, lambda answer: answer[0])
        return drained, samples, seconds

    def rows(self, sql: str, *arguments: object) -> Callable[[], Awaitable[list[tuple[Any, ...]]]]:
        """A question for `until`."""
        return lambda: self.database.fetch(sql, *arguments)


def in_flight(samples: Samples) -> str:
    """The gauges, for people."""
    return (
        f"queue {samples.value('ingest_queue_size'):.0f}, in flight {samples.value('ingest_in_flight_messages'):.0f}, "
        f"the oldest for {samples.value('ingest_oldest_unacknowledged_seconds'):.1f} s"
    )


def utc_now() -> datetime:
    """Now, aware."""
    return datetime.now(UTC)
