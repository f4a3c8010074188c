"""The composition root: what runs, in which order it starts, and in which order it stops.

    start   signals ▸ asyncio loop ▸ endpoint ▸ store ▸ writers ▸ batcher ▸ reader
    drain   reader stops reading ▸ batcher flushes ▸ writers commit ▸ PUBACKs go out ▸ reader disconnects ▸ the rest is
    cancelled

Draining needs no flags: each stage closes the channel to the next when it has passed everything on, and ends when the
channel before it is closed. The deadline and a second signal cancel everything at once, which is as safe: what was not
acknowledged is still the broker's.
"""

from __future__ import annotations

import logging
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense import __version__, signals
from traksense.adapters import load_registry
from traksense.errors import BrokerRefusedError, ConfigError, SessionTakenOverError
from traksense.ingest.ack import Acknowledger
from traksense.ingest.batch import Batcher
from traksense.ingest.clock import ClockWatch
from traksense.ingest.decode import Decoder, Router
from traksense.ingest.handover import Handover
from traksense.ingest.health import Health, watch_progress
from traksense.ingest.intake import Intake
from traksense.ingest.ledger import Ledger
from traksense.ingest.session import SessionWatch
from traksense.ingest.write import Writer
from traksense.metrics import Metrics, ServiceCollector, make_registry
from traksense.model import Delivery, Message
from traksense.mqtt.reader import Reader
from traksense.signal_receiver import SignalReceiver
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.postgres import open_store
from traksense.web.endpoint import listen, serve

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from traksense.config import Settings
    from traksense.store.postgres import PostgresStore
    from traksense.store.upkeep import Upkeep

logger = logging.getLogger(__name__)

CONDITIONS: Final = ("broker", "subscription", "database", "clock", "progress")
"""What must hold for the service to be ready."""

INFORMING: Final = ("maintenance",)
"""What somebody has to look at, although messages are taken and stored: no reason to take the service away."""


LEAVE_SECONDS: Final = 1.0
"""For so long the end waits until the database knows that we have left, and when devices were last heard. Chosen by
guess."""


async def run(
    settings: Settings,
    *,
    retire: Callable[[Pipeline], Awaitable[None]] | None = None,
) -> None:
    """Run the service until SIGTERM, SIGINT or SIGHUP, then drain.

    Args:
        settings: All that can be configured.
        retire: Want no topics any more; this runs beside it, and drains it when there is nothing left to read.

    Raises:
        ConfigError: The configuration can never work: seen at the start, or when another client uses our client id;
            what was in memory has been stored then.
    """
    if retire is None and settings.layout is not None and settings.mqtt_shard is None:
        raise ConfigError([f"MQTT_SHARD: there are {settings.mqtt_shard_count} shards; which of them is this?"])
    listener = listen(settings.metrics_host, settings.metrics_port)
    health = Health(CONDITIONS, INFORMING)
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        received = stack.enter_context(SignalReceiver(signals.wanted(), noted=signals.noted))
        await stack.enter_async_context(open_asyncio_loop())
        clock = ClockWatch(health)
        store = await stack.enter_async_context(open_store(settings, health, clock))
        pipeline = Pipeline.build(settings, store, health, clock, retiring=retire is not None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, make_registry(pipeline.collector()), health)
            nursery.start_soon(store.run)
            nursery.start_soon(pipeline.session_watch.run)
            nursery.start_soon(pipeline.handover.run)
            if retire is not None:
                nursery.start_soon(retire, pipeline)
            nursery.start_soon(watch_progress, health, pipeline.ledger, pipeline.acknowledger)
            nursery.start_soon(_drain_on_signal, received, pipeline, store, settings.shutdown_deadline)
            _log_start(settings, listener)
            await pipeline.run()
            if pipeline.failure is None:
                await _leave(nursery, pipeline, store)
            # A Trio deadline around asyncpg is soft; with its connections gone, nothing under way can hold us up.
            store.terminate()
            nursery.cancel_scope.cancel()
    logger.info(
        "stopped",
        extra={
            "traksense_received": pipeline.ledger.received_total,
            "traksense_stored": pipeline.ledger.stored,
            "traksense_duplicate": pipeline.ledger.duplicate,
            "traksense_dead": pipeline.ledger.dead,
            "traksense_left_to_broker": pipeline.ledger.in_flight,
        },
    )
    if pipeline.failure is not None:
        raise pipeline.failure


@attrs.define(eq=False)
class Pipeline:
    """The stages and what they share, connected."""

    reader: Reader
    batcher: Batcher
    writers: list[Writer]
    ledger: Ledger
    acknowledger: Acknowledger
    session_watch: SessionWatch
    handover: Handover
    health: Health
    metrics: Metrics
    messages: trio.MemoryReceiveChannel[Message]
    max_bytes: int
    upkeep: Upkeep
    failure: ConfigError | None = None
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @classmethod
    def build(
        cls, settings: Settings, store: PostgresStore, health: Health, clock: ClockWatch, *, retiring: bool = False
    ) -> Pipeline:
        """Connect the stages; nothing runs yet."""
        ledger, acknowledger, metrics = Ledger(), Acknowledger(), Metrics(_now)
        messages_send, messages_receive = trio.open_memory_channel[Message](settings.queue_max)
        batches_send, batches_receive = trio.open_memory_channel[list[Delivery]](0)
        intake = Intake(
            messages_send, router=Router(), ledger=ledger, acknowledger=acknowledger, max_bytes=settings.queue_max_bytes
        )
        batcher = Batcher(
            messages_receive,
            batches_send,
            decode=Decoder(settings, load_registry(), clock=clock, ledger=ledger).decode,
            clock=clock,
            size_max=settings.batch_size,
            wait_max=settings.batch_wait,
            on_flush=metrics.flushed,
        )
        writers = [
            Writer(
                batches_receive.clone(),
                store=store,
                batcher=batcher,
                ledger=ledger,
                acknowledger=acknowledger,
                health=health,
                on_committed=metrics.committed,
                name=f"writer {number}",
            )
            for number in range(1, writer_count(settings) + 1)
        ]
        batches_receive.close()
        topics = () if retiring else settings.topics
        watch = SessionWatch(
            store.sessions,
            health,
            client_id=settings.client_id,
            broker=str(settings.broker),
            now=_now,
            on_connected=lambda session_present: handover.connected(session_present),  # noqa: PLW0108  (made below)
        )
        reader = Reader(
            settings,
            intake=intake,
            acknowledger=acknowledger,
            health=health,
            watch=watch,
            topics=topics,
        )
        handover = Handover(
            store.sessions,
            reader,
            client_id=settings.client_id,
            broker=str(settings.broker),
            topics=topics,
            layout=settings.layout,
            unsubscribe=settings.mqtt_unsubscribe,
            # A session that is older than the log was subscribed to what MQTT_TOPICS says, as far as we can know.
            assumed=settings.mqtt_topics if retiring else (),
            patience=settings.mqtt_handover,
        )
        return cls(
            reader,
            batcher,
            writers,
            ledger,
            acknowledger,
            watch,
            handover,
            health,
            metrics,
            messages_receive,
            settings.queue_max_bytes,
            store.upkeep,
        )

    async def run(self) -> None:
        """Run until drained, or abandoned. The two nurseries are the drain order: the reader outlives the stages it
        feeds.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                async with trio.open_nursery() as stages:
                    stages.start_soon(self.batcher.run)
                    for writer in self.writers:
                        stages.start_soon(writer.run)
                # Everything that was received is committed, and its PUBACKs are queued.
                self.reader.close()

    def drain(self) -> None:
        """Receive nothing more; `run` returns when what is in memory is stored and acknowledged."""
        self.reader.stop_reading()

    def abandon(self) -> None:
        """Leave what is in memory to the broker, which still has all of it; `run` returns now."""
        self._scope.cancel()

    async def _read(self) -> None:
        try:
            await self.reader.run()
        except BrokerRefusedError as error:
            raise ConfigError([f"{error.variable}: {error}"]) from error
        except SessionTakenOverError as error:
            # What was read has been stored. To exit as misconfigured keeps a supervisor from the tug of war.
            self.failure = ConfigError([f"MQTT_CLIENT_ID: {error}: each replica needs one of its own"])

    def collector(self) -> ServiceCollector:
        """The metrics of this pipeline."""
        return ServiceCollector(
            metrics=self.metrics,
            ledger=self.ledger,
            acknowledger=self.acknowledger,
            reader=self.reader,
            session_watch=self.session_watch,
            health=self.health,
            writers=self.writers,
            messages=self.messages,
            max_bytes=self.max_bytes,
            upkeep=self.upkeep,
            now=_now,
        )


async def _leave(nursery: trio.Nursery, pipeline: Pipeline, store: PostgresStore) -> None:
    """Tell the database what it would not learn otherwise, for `LEAVE_SECONDS` at most. What is not done by then is
    said, and goes on until the connections are terminated.
    """
    waiting: set[str] = set()
    done = trio.Event()

    async def last(event: str, work: Callable[[], Awaitable[None]]) -> None:
        await work()
        waiting.discard(event)
        if not waiting:
            done.set()

    works: dict[str, Callable[[], Awaitable[None]]] = {
        "session_log_failed": pipeline.session_watch.leave,
        "last_seen_failed": partial(pipeline.upkeep.leave, store.call),
    }
    waiting.update(works)
    for event, work in works.items():
        nursery.start_soon(last, event, work)
    with trio.move_on_after(LEAVE_SECONDS):
        await done.wait()
    for event in sorted(waiting):
        reason = f"the database does not answer within {LEAVE_SECONDS:.0f} s"
        logger.warning(event, extra={"traksense_reason": reason})


async def _drain_on_signal(received: SignalReceiver, pipeline: Pipeline, store: PostgresStore, deadline: float) -> None:
    """The first signal drains; a second one, or the deadline in seconds, ends everything at once."""
    number = await received.receive()
    logger.info(
        "draining",
        extra={"traksense_signal": signal.Signals(number).name, "traksense_in_flight": pipeline.ledger.in_flight},
    )
    pipeline.drain()
    why = "deadline"
    with trio.move_on_after(deadline):
        why = signal.Signals(await received.receive()).name
    logger.warning("drain_abandoned", extra={"traksense_reason": why, "traksense_in_flight": pipeline.ledger.in_flight})
    pipeline.abandon()
    # The driver would wait until the server has answered that a statement is cancelled.
    store.terminate()


def writer_count(settings: Settings) -> int:
    """One connection of the pool is left for probes and maintenance, if there is more than one."""
    return max(1, settings.db_pool_max - 1)


def _now() -> datetime:
    return datetime.now(UTC)


def _log_start(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    logger.info(
        "started",
        extra={
            "traksense_version": __version__,
            "traksense_broker": str(settings.broker),
            "traksense_client_id": settings.client_id,
            "traksense_database": str(settings.database),
            "traksense_metrics": f"http://{host}:{port}/metrics",
            "traksense_queue_max": settings.queue_max,
            "traksense_batch_size": settings.batch_size,
            "traksense_batch_ms": round(settings.batch_wait * 1000),
            "traksense_writers": writer_count(settings),
        },
    )
