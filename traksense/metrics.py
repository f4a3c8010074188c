"""What `/metrics` says. The seed's names are kept; new ones have the same prefix and bounded labels.

The hot path counts in plain integers (`ingest.ledger`); a collector reads them when it is scraped. It does so without
awaiting, so a scrape always sees a balanced ledger.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

import attrs
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from traksense import __version__, log
from traksense.model import CommandAck, Kind, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    import trio
    from prometheus_client.metrics_core import Metric

    from traksense.ingest.ack import Acknowledger
    from traksense.ingest.batch import Batch
    from traksense.ingest.health import Health
    from traksense.ingest.ledger import Ledger
    from traksense.ingest.ports import WriteResult
    from traksense.ingest.session import SessionWatch
    from traksense.ingest.write import Writer
    from traksense.model import Delivery, Message
    from traksense.mqtt.reader import Reader
    from traksense.store.upkeep import Upkeep

LATENCY_BUCKETS: Final = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25),
    *(0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0),
)
"""Seconds. So dense up to a second that a quantile read between two bounds is right to within a tenth or so; the end
shows an outage's backlog."""

LATE_SECONDS: Final = 86400.0
"""A device time so long ago is a replayed or wrong one, not a latency; counted as ignored."""

BATCH_BUCKETS: Final = (1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)


@attrs.define
class Histogram:
    """Counts by bucket, cheap enough to feed from the hot path."""

    bounds: tuple[float, ...]
    counts: list[int] = attrs.field(init=False)
    total: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value; a bucket includes its upper bound."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """The histogram as Prometheus sees it, with cumulative buckets."""
        cumulative = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            cumulative += count
            buckets.append((bound, cumulative))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self.total)


class Metrics:
    """The histograms that the pipeline feeds."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.batch_size = Histogram(BATCH_BUCKETS)
        self.latency = Histogram(LATENCY_BUCKETS)
        self.latency_future = 0
        self.latency_late = 0

    def flushed(self, batch: Batch) -> None:
        """A batch goes to a writer."""
        self.batch_size.observe(batch.size)

    def committed(self, deliveries: Sequence[Delivery], result: WriteResult) -> None:
        """A batch was committed: how old is what is new in it, by the devices' clocks?

        One observation a message. A clock that is ahead, or a day behind, says nothing about latency: such messages are
        counted apart instead of bending the figures.
        """
        now = self._now()
        duplicates = result.duplicates
        observe = self.latency.observe
        for index, delivery in enumerate(deliveries):
            items = delivery.items
            if not items or index in duplicates:
                continue
            item = items[0]
            if isinstance(item, CommandAck):
                continue
            seconds = (now - item.ts).total_seconds()
            if seconds < 0:
                self.latency_future += 1
            elif seconds > LATE_SECONDS:
                self.latency_late += 1
            else:
                observe(seconds)


@attrs.define(eq=False)
class ServiceCollector:
    """Reads the state of a running service at each scrape."""

    metrics: Metrics
    ledger: Ledger
    acknowledger: Acknowledger
    reader: Reader
    session_watch: SessionWatch
    health: Health
    writers: Sequence[Writer]
    messages: trio.MemoryReceiveChannel[Message]
    max_bytes: int
    upkeep: Upkeep
    now: Callable[[], datetime]

    def collect(self) -> Iterator[Metric]:
        """All families."""
        ledger = self.ledger
        # Not an "info": that is OpenMetrics, and no type of the text format.
        build = GaugeMetricFamily(
            "traksense_build_info",
            "Always 1; the labels give the versions of traksense and of Python.",
            labels=["version", "python"],
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        yield _counter(
            "ingest_messages",
            "Messages received, by kind.",
            "type",
            {kind: ledger.received[kind] for kind in (*Kind, "other")},
        )
        yield _counter(
            "ingest_errors",
            "Dead letters, by reason.",
            "reason",
            {reason: ledger.dead_reasons[reason] for reason in Reason},
        )
        yield _counter(
            "ingest_messages_ended",
            "Messages by how they ended; with ingest_in_flight_messages they add up to ingest_messages_total.",
            "outcome",
            {"stored": ledger.stored, "duplicate": ledger.duplicate, "dead": ledger.dead},
        )
        yield CounterMetricFamily("ingest_points", "Points stored.", ledger.points_stored)
        yield CounterMetricFamily(
            "ingest_points_duplicate", "Points that were already stored with the same value.", ledger.points_duplicate
        )
        yield CounterMetricFamily(
            "ingest_points_conflicting",
            "Points that were already stored with a different value; INGEST_CONFLICTS decides which value is kept.",
            ledger.points_conflicting,
        )
        yield CounterMetricFamily(
            "ingest_points_absent",
            "Points without a reading (null or not-a-number); they are not stored.",
            ledger.points_absent,
        )
        yield CounterMetricFamily(
            "ingest_messages_empty",
            "Messages with an empty payload, such as those that clear a retained message; counted as stored.",
            ledger.empty,
        )
        yield CounterMetricFamily(
            "ingest_messages_redelivered", "Messages received with the DUP flag.", ledger.redelivered
        )
        yield CounterMetricFamily("ingest_messages_acknowledged", "PUBACKs sent.", self.acknowledger.acknowledged)
        yield CounterMetricFamily(
            "ingest_messages_abandoned",
            "Messages whose connection ended before their PUBACK; the broker redelivers them.",
            self.acknowledger.abandoned,
        )
        yield CounterMetricFamily(
            "ingest_store_retries",
            "Failed attempts to write a batch; each is retried.",
            sum(w.retries for w in self.writers),
        )
        yield CounterMetricFamily("ingest_log_failures", "Log lines dropped: stdout did not take them.", log.failures())
        yield from self._session()
        yield from self._gauges()
        yield from self._maintenance()
        yield self.metrics.batch_size.family(
            "ingest_batch_size", "Points per batch; a message without points counts as one."
        )
        yield self.metrics.latency.family(
            "ingest_latency_seconds", "Seconds from the device's timestamp to the commit; one observation per message."
        )
        yield _counter(
            "ingest_latency_ignored",
            "Messages left out of ingest_latency_seconds: dated ahead of our clock, or more than a day behind it.",
            "reason",
            {"future": self.metrics.latency_future, "late": self.metrics.latency_late},
        )

    def _session(self) -> Iterator[Metric]:
        session = self.reader.statistics
        yield CounterMetricFamily(
            "ingest_broker_connections", "Successful connections to the broker.", session.connections
        )
        yield CounterMetricFamily(
            "ingest_broker_failures",
            "Failed or lost connections to the broker.",
            self.reader.failures.count,
        )
        yield CounterMetricFamily(
            "ingest_broker_mishandled",
            "Connections closed because of an error in handling what the broker sent; each is a bug.",
            self.reader.failures.mishandled,
        )
        yield CounterMetricFamily(
            "ingest_sessions_lost",
            "Times the broker no longer had our session, and so lost its queue.",
            self.session_watch.lost,
        )
        yield GaugeMetricFamily(
            "ingest_session_lost_seconds",
            "Length of the interval whose messages the last lost session put at risk.",
            self.session_watch.lost_seconds,
        )
        yield CounterMetricFamily(
            "ingest_broker_dropped_messages",
            "Messages that the broker reports as dropped, for all its clients, since this session was last alive "
            "before this process (Mosquitto only).",
            self.session_watch.dropped,
        )
        yield CounterMetricFamily(
            "ingest_broker_restarts",
            "Times the broker restarted and still had our session, as it had last saved it (Mosquitto only).",
            self.session_watch.restarts,
        )
        yield CounterMetricFamily(
            "ingest_session_takeovers", "Times another client took over our session.", session.takeovers
        )
        yield CounterMetricFamily(
            "ingest_paused_seconds",
            "Seconds during which the socket was not read because the pipeline was full.",
            session.paused_total(),
        )

    def _gauges(self) -> Iterator[Metric]:
        statistics = self.messages.statistics()
        yield GaugeMetricFamily("ingest_queue_size", "Messages in the queue.", statistics.current_buffer_used)
        yield GaugeMetricFamily(
            "ingest_queue_max",
            "Maximum number of messages in the queue.",
            statistics.max_buffer_size,
        )
        yield GaugeMetricFamily(
            "ingest_in_flight_messages",
            "Messages received that have not ended yet.",
            self.ledger.in_flight,
        )
        yield GaugeMetricFamily(
            "ingest_in_flight_bytes", "Bytes of memory held by messages in flight.", self.ledger.in_flight_bytes
        )
        yield GaugeMetricFamily(
            "ingest_in_flight_max_bytes", "Maximum number of those bytes (INGEST_QUEUE_BYTES).", self.max_bytes
        )
        yield GaugeMetricFamily(
            "ingest_unacknowledged_messages",
            "Messages received on this connection and not yet acknowledged.",
            self.acknowledger.unacknowledged,
        )
        oldest = self.acknowledger.oldest_received_at
        age = (self.now() - oldest).total_seconds() if oldest else 0.0
        yield GaugeMetricFamily(
            "ingest_oldest_unacknowledged_seconds",
            "Age of the oldest unacknowledged message, which holds back all PUBACKs after it.",
            age,
        )
        ready = GaugeMetricFamily("ingest_ready", "1 if the condition of /readyz holds, else 0.", labels=["condition"])
        for name, condition in self.health.report().items():
            ready.add_metric([name], float(bool(condition["ok"])))
        yield ready

    def _maintenance(self) -> Iterator[Metric]:
        upkeep = self.upkeep
        yield _counter(
            "ingest_maintenance_failures",
            "Failed attempts of this process at each step of the background work.",
            "step",
            upkeep.failures,
        )
        done = GaugeMetricFamily(
            "ingest_maintenance_last_success_timestamp_seconds",
            "When each step of the background work last succeeded, in any process.",
            labels=["step"],
        )
        for state in upkeep.states:
            done.add_metric([state.name], state.succeeded_at.timestamp())
            if state.waiting is not None:
                yield GaugeMetricFamily(
                    "ingest_rollup_marks",
                    "Time ranges waiting to be aggregated (plain PostgreSQL), counted up to 100000.",
                    state.waiting,
                )
                since = state.waiting_since
                yield GaugeMetricFamily(
                    "ingest_rollup_lag_seconds",
                    "How long the oldest of these time ranges has been waiting (plain PostgreSQL).",
                    (self.now() - since).total_seconds() if since else 0.0,
                )
        yield done


def make_registry(collector: ServiceCollector) -> CollectorRegistry:
    """A registry with the service's metrics and those of the process."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _counter(name: str, documentation: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples of an exposition by (name, labels): what tools and tests need of another process's metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    families: Iterable[Metric] = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
