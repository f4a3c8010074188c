"""One run: publish, break things, heal them, drain, judge."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import trio

from traksense.config import Broker
from traksense.tools.prove import audit, oracle
from traksense.tools.prove.acts import explains
from traksense.tools.prove.inject import heal, inject
from traksense.tools.prove.keeper import NOT_REPLACED
from traksense.tools.prove.messages import PARTIAL, UNTIMED, Traffic, tenant_count
from traksense.tools.prove.operators import count_nameless
from traksense.tools.prove.publishing import Publishing
from traksense.tools.prove.resume import PATIENCE_SECONDS as RESUME_SECONDS
from traksense.tools.prove.resume import ResumeWatch
from traksense.tools.prove.schedule import PARTIAL_MESSAGES, UNTIMED_MESSAGES, make_schedule, suited
from traksense.tools.prove.stage import open_stage, save_sessions
from traksense.tools.prove.watch import Ledgers, PromiseWatch
from traksense.tools.prove.witness import Remarks, Witness
from traksense.tools.publisher import open_publisher

if TYPE_CHECKING:
    from pathlib import Path

    from traksense.tools.prove.messages import Sent
    from traksense.tools.prove.schedule import Injection
    from traksense.tools.prove.servers import Servers
    from traksense.tools.prove.stage import Stage
    from traksense.tools.publisher import Publisher

PATIENCE_SECONDS: Final = 60.0
"""So long after the healing, or after the last progress, the draining is given up. The longest waits are the service's
own: 15 s between connections to the broker, 10 s for a pooled connection; chosen by guess beyond them."""

WINDOW: Final = 100

_FURTHER_SORTS: Final = {UNTIMED_MESSAGES: UNTIMED, PARTIAL_MESSAGES: PARTIAL}
"""Whoever wants these faults has such messages all the time, so that they meet the others."""


@attrs.frozen(kw_only=True)
class Options:
    """What was asked for; `seed` is that of the first run."""

    seconds: float
    rate: float
    faults: tuple[str, ...]
    replicas: int = 1
    breakage: str | None = None
    patience: float = RESUME_SECONDS


class Progress(Protocol):
    """Shows how a run goes on."""

    def begin(self, run: Run) -> None:
        """The stage is set."""

    def fault(self, injection: Injection, took_effect: bool | None) -> None:  # noqa: FBT001
        """A fault begins (None), or has ended, with or without effect."""

    def phase(self, text: str) -> None:
        """Something else begins."""


class Run:
    """A run and all that was seen of it.

    Attributes:
        schedule: What goes wrong.
        injected: How often each kind of fault took effect.
        without_effect: How often it did not: its moment did not come.
        judgement: The verdict on every message; None before the end.
        stuck: Why it could not be drained.
        seconds: How long it took.
    """

    def __init__(self, options: Options, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.faults = suited(seed, options.faults)
        self.schedule = make_schedule(seed, options.seconds, self.faults)
        self.injected: dict[str, int] = {}
        self.without_effect: dict[str, int] = {}
        self.judgement: oracle.Judgement | None = None
        self.stuck = Remarks()
        self.seconds = 0.0
        self.nameless = Remarks()
        self.resumed = ResumeWatch(options.patience)
        more = [sort for fault, sort in _FURTHER_SORTS.items() if fault in self.faults]
        tenants = tenant_count(options.replicas)
        self._traffic = Traffic(seed, time.time_ns() // 1000, tenants=tenants, more=more)
        self.publishing = Publishing(self._traffic, options.rate, self.resumed.stored)
        self.witness = Witness(self.publishing.number_of, self._on_acknowledged)
        self.ledger: Ledgers | None = None
        self.promises: PromiseWatch | None = None
        self.publisher: Publisher | None = None
        self.stage: Stage | None = None
        # It is known to be stuck then.
        self._patience = 5.0 if options.breakage == NOT_REPLACED else PATIENCE_SECONDS

    async def run(self, directory: Path, servers: Servers, progress: Progress) -> None:
        """Do all of it.

        Raises:
            StackError: The stage could not be set.

        Trio-flavored.
        """
        started = trio.current_time()
        async with open_stage(
            directory,
            servers,
            self.witness,
            self.publishing,
            seed=self.seed,
            replicas=self.options.replicas,
            faults=self.faults,
            resumed=self.resumed,
            breakage=self.options.breakage,
        ) as stage:
            self.stage = stage
            self.ledger = Ledgers(stage.replicas.keepers)
            self.promises = PromiseWatch(stage.database, self.publishing.messages, self.seed, self._removed)
            # The session must exist before anything is published: a broker queues for nobody.
            await stage.replicas.wait_ready()
            await save_sessions(stage.broker)
            progress.begin(self)
            async with trio.open_nursery() as watchers:
                watchers.start_soon(self.ledger.run)
                watchers.start_soon(self.promises.run)
                watchers.start_soon(self.resumed.run)
                async with open_publisher(
                    _broker(stage),
                    client_id="traksense-prove-publisher",
                    window=WINDOW,
                    keepalive=5,
                    on_confirmed=self.publishing.on_confirmed,
                ) as self.publisher:
                    await self._play(stage, self.publisher, progress)
                    progress.phase("everything is healed; draining")
                    await self._drain(stage, self.publisher)
                watchers.cancel_scope.cancel()
            progress.phase("stopping the service, asking the broker what it still owes, reading the database")
            await stage.replicas.finish()
            await self._judge(stage)
        self.seconds = trio.current_time() - started

    # --- publishing -----------------------------------------------------------------------------------------------

    async def _play(self, stage: Stage, publisher: Publisher, progress: Progress) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.publishing.run, publisher)
            async with trio.open_nursery() as faults:
                started = trio.current_time()
                for injection in self.schedule:
                    await trio.sleep_until(started + injection.at)
                    faults.start_soon(self._inject, stage, injection, progress)
                await trio.sleep_until(started + self.options.seconds)
            nursery.cancel_scope.cancel()

    async def _inject(self, stage: Stage, injection: Injection, progress: Progress) -> None:
        progress.fault(injection, None)
        took_effect = await inject(stage, injection)
        counts = self.injected if took_effect else self.without_effect
        counts[injection.fault] = counts.get(injection.fault, 0) + 1
        progress.fault(injection, took_effect)

    def _on_acknowledged(self, number: int) -> None:
        self.publishing.on_acknowledged(number)
        if self.promises is not None:
            self.promises.acknowledged(number)

    def _removed(self, sent: Sent) -> bool:
        """Whether an operator may be why the first row of a message is not there now."""
        assert self.stage is not None
        fate = self.publishing.fates[sent.number]
        return explains(self.stage.acts, next(iter(sent.rows)), fate.published_at, fate.acknowledged_at)

    # --- the end --------------------------------------------------------------------------------------------------

    async def _drain(self, stage: Stage, publisher: Publisher) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up_without_progress, stage, publisher, nursery.cancel_scope)
            if stage.unhealed:
                await trio.sleep(self.resumed.patience + 1)
            await heal(stage)
            await publisher.drain()
            # Acknowledgements go out in receive order: when the last message is acknowledged, all are. Even the last
            # one may be redelivered behind others after a reconnection, so the ledger has to agree.
            # One for each replica, whose session has an order of its own.
            sentinels = [self._traffic.sentinel(tenant) for tenant in range(self.options.replicas)]
            for sentinel in sentinels:
                await self.publishing.publish(publisher, sentinel)
            await publisher.drain()
            last = {sentinel.number for sentinel in sentinels}
            while not (self.witness.acknowledged.issuperset(last) and await self._idle()):
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    async def _give_up_without_progress(self, stage: Stage, publisher: Publisher, scope: trio.CancelScope) -> None:
        progress: tuple[int, ...] = ()
        while progress != (now := (len(self.witness.acknowledged), publisher.unconfirmed)):
            progress = now
            await trio.sleep(self._patience)
        self.stuck.add(f"no progress in {self._patience:.0f} s: {await _why_stuck(stage, publisher)}")
        scope.cancel()

    async def _idle(self) -> bool:
        assert self.ledger is not None
        return await self.ledger.scrape()

    async def _judge(self, stage: Stage) -> None:
        publishing = self.publishing
        still: set[int | None] = set()
        for client_id in stage.replicas.client_ids:
            owed = await audit.owed(_broker(stage), client_id, version=stage.environment["MQTT_VERSION"])
            still.update(map(publishing.number_of, owed))
        for number, fate in publishing.fates.items():
            fate.delivered = self.witness.delivered[number]
            fate.owed = number in still
        if count := await count_nameless(stage):
            self.nameless.add(f"{count} rows of measurements whose series is gone")
        self.judgement = oracle.judge(
            publishing.messages.values(),
            publishing.fates,
            await stage.database.rows(),
            broker_kills=stage.broker_kills,
            acts=stage.acts,
        )

    # --- the verdict ----------------------------------------------------------------------------------------------

    @property
    def findings(self) -> dict[str, Remarks]:
        """Everything that must be zero, by name."""
        assert self.stage is not None
        assert self.judgement is not None
        assert self.ledger is not None
        assert self.promises is not None
        return {
            **self.judgement.faults,
            "acknowledged early": self.promises.early,
            "out of order": self.witness.disorder,
            "ledger mismatches": self.ledger.mismatches,
            "misbehaved": self.stage.replicas.misbehaved,
            "nameless": self.nameless,
            "slow to resume": self.resumed.late,
            "stuck": self.stuck,
            "sessions wiped": self._sessions_wiped(),
            "false conflicts": self._false_conflicts(),
        }

    def _sessions_wiped(self) -> Remarks:
        """The session is the durable buffer: nobody but a broker that was killed may forget it."""
        assert self.stage is not None
        remarks = Remarks()
        for _ in range(self.witness.clean_starts):
            remarks.add("the service asked the broker to forget its session (Clean Start)")
        for _ in range(0 if self.stage.broker_kills else self.witness.sessions_lost):
            remarks.add("the broker had forgotten the session, though it was not killed")
        return remarks

    def _false_conflicts(self) -> Remarks:
        """No two messages share a key, so the service can have met none with another value."""
        assert self.ledger is not None
        remarks = Remarks()
        if count := self.ledger.totals()["points conflicting"]:
            remarks.add(f"the service counted {count} points that conflict with stored ones; there are none")
        return remarks


def _broker(stage: Stage) -> Broker:
    return Broker(host=stage.broker.host, port=stage.broker.port, tls=False)


async def _why_stuck(stage: Stage, publisher: Publisher) -> str:
    answers: list[Any] = []
    for keeper in stage.replicas.keepers:
        process = keeper.process
        there = process is not None and process.status is None
        answers.append(await process.readiness() if process is not None and there else "no service")
    return f"{publisher.unconfirmed} messages unconfirmed; /readyz: {'; '.join(map(str, answers))}"
