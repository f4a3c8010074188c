"""The rounds: every scenario for every contender, one after the other, in turned order each time."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense import __version__
from traksense.config import Settings
from traksense.errors import TraksenseError
from traksense.terminal import say as tell
from traksense.tools.bench import backlog, ceiling, growth, outage, steady, tables
from traksense.tools.bench.load import Fleet, Load
from traksense.tools.bench.readings import machine
from traksense.tools.bench.results import Key, Results
from traksense.tools.bench.stage import Contender, Stage, open_stage, own_checkout
from traksense.tools.bench.targets import ONE, TEN
from traksense.tools.places import make_directory
from traksense.tools.stack import find_mosquitto
from traksense.tools.stack.processes import run_to_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from traksense.tools.interrupt import Interruption

SCENARIOS: Final = ("ceiling", "backlog", "steady", "growth", "outage")
CEILING: Final = Key("ceiling", "prepared bytes")
DRIVER: Final = Key("ceiling", "rows that the driver encodes")
DEVICES: Final = 1_000
POINTS: Final = 10
OUTAGE_RATE: Final = 10_000
BUSY: Final = 0.5
"""A load average above this share of the processors, before we begin, means that others are at work."""


@attrs.frozen(kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        rounds: How often everything is measured.
        quick: Smaller amounts, and no 50 million rows.
        only: Which scenarios.
        readers: Which readers.
        compare: Another checkout to measure beside this one, or None.
        rates: Points a second for `steady`.
        seconds: How long each rate is held and the database is away, or None for the usual time.
        messages: How many 10-point messages a backlog has, or None for the usual number; twice as many 1-point ones.
        writers: Connections that write, or None for the service's default.
        meta: Whether messages carry a `meta`.
        directory: Where to keep everything, or None for a temporary one.
    """

    rounds: int = 3
    quick: bool = False
    only: tuple[str, ...] = SCENARIOS
    readers: tuple[str, ...] = ("paho",)
    compare: Path | None = None
    rates: tuple[int, ...] = (5_000, 50_000)
    seconds: float | None = None
    messages: int | None = None
    writers: int | None = None
    meta: bool = True
    directory: Path | None = None

    @property
    def baseline(self) -> str | None:
        """What the report calls the other checkout."""
        return self.compare.resolve().name if self.compare else None

    @property
    def backlog_messages(self) -> int:
        """10-point messages of a backlog: more than the service can hold, so that all stages work at once."""
        return self.messages or (20_000 if self.quick else 150_000)

    @property
    def growth_messages(self) -> int:
        """The same for `growth`: one message of each device in the largest fleet."""
        return self.messages or (20_000 if self.quick else 100_000)

    @property
    def steady_seconds(self) -> float:
        """How long a rate is held."""
        return self.seconds or (5 if self.quick else 20)

    def contenders(self) -> list[Contender]:
        """Whose services."""
        result = []
        for reader in self.readers:
            result.append(Contender(reader, own_checkout(), reader, self.writers))
            if self.compare is not None:
                result.append(Contender(f"{self.baseline} {reader}", self.compare.resolve(), reader, self.writers))
        return result


class Bench:
    """See `run`."""

    def __init__(self, plan: Plan, stage: Stage, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.stage = stage
        self.results = Results()
        self._say = say
        # An hour ago, to a partition that exists; the same for all rounds, since packets are made once.
        self._begin = time.time_ns() // 1000 - 3_600_000_000

    def load(self, points: int) -> Load:
        """The backlog of messages with so many points."""
        messages = self.plan.backlog_messages * (1 if points > 1 else 2)
        return Load(fleet=self.fleet(points), messages=messages, begin=self._begin)

    def fleet(self, points: int) -> Fleet:
        """Whom backlogs and steady rates come from."""
        return Fleet(devices=DEVICES, points=points, meta=self.plan.meta)

    async def run(self) -> None:
        """All rounds."""
        prepared = {name: backlog.Prepared.of(self.load(points)) for name, points in self._backlogs()}
        batches = list(
            self.load(POINTS).batches(Settings().batch_size, meta_id=tables.META_ID if self.plan.meta else None)
        )
        if "ceiling" not in self.plan.only:
            batches = []
        for number in range(self.plan.rounds):
            self._say(f"round {number + 1} of {self.plan.rounds}")
            contenders = self.plan.contenders()
            if number % 2:
                contenders.reverse()
            if batches:
                await self._ceiling(CEILING, contenders[0], batches)
                await self._ceiling(DRIVER, contenders[0], batches)
            for name, each in prepared.items():
                await self._each("backlog", name, contenders, partial(self._backlog, each))
            if "steady" in self.plan.only:
                for rate in self.plan.rates:
                    await self._each("steady", f"{rate:,} points/s", contenders, partial(self._steady, rate))
            if "growth" in self.plan.only:
                await self._growth(contenders)
            if "outage" in self.plan.only:
                case = f"{OUTAGE_RATE:,} points/s come in all the time"
                await self._each("outage", case, contenders, self._outage)

    def _backlogs(self) -> list[tuple[str, int]]:
        return [(TEN, POINTS), (ONE, 1)] if "backlog" in self.plan.only else []

    async def _ceiling(self, key: Key, contender: Contender, batches: Sequence[tuple[bytes, int]]) -> None:
        self._say(f"  ceiling, {key.case}, {self.stage.writers} connections")
        async with (
            self.stage.database(contender, self.fleet(POINTS)) as dsn,
            self.stage.connection(dsn) as database,
        ):
            copy = partial(ceiling.copy, encode=key == DRIVER)
            seconds, rows = await database.call(copy, dsn, batches, self.stage.writers)
            counts = await database.call(tables.count, 0)
        if counts.rows != rows:
            self.results.faults.append(f"ceiling: {counts.rows} rows are stored and {rows} were copied")
        self.results.add(key, {"rows_per_second": rows / seconds})

    async def _each(
        self,
        scenario: str,
        case: str,
        contenders: Sequence[Contender],
        measure: Callable[[Contender], Awaitable[dict[str, float]]],
    ) -> None:
        """Measure a case for each contender; one that fails is noted, and the others go on."""
        for contender in contenders:
            self._say(f"  {scenario}, {case}, {contender.label}")
            try:
                figures = await measure(contender)
            except (TraksenseError, BaseExceptionGroup) as error:
                for reason in _reasons(error):
                    self.results.faults.append(f"{scenario}, {case}, {contender.label}: {reason}")
                    self._say(f"    FAILED: {reason}")
            else:
                self.results.add(Key(scenario, case, contender.label), figures)

    async def _backlog(self, prepared: backlog.Prepared, contender: Contender) -> dict[str, float]:
        load = prepared.load
        async with self.stage.database(contender, load.fleet) as dsn:
            figures = await backlog.drain(self.stage, contender, load, prepared.chunks, dsn)
        rows_per_second = self.results.latest(CEILING, "rows_per_second")
        if rows_per_second:
            figures["of_ceiling"] = figures["points_per_second"] / rows_per_second
        return figures

    async def _steady(self, rate: float, contender: Contender) -> dict[str, float]:
        return await steady.hold(self.stage, contender, self.fleet(POINTS), rate=rate, seconds=self.plan.steady_seconds)

    async def _growth(self, contenders: Sequence[Contender]) -> None:
        for condition in growth.conditions(quick=self.plan.quick, meta=self.plan.meta):
            measure = partial(growth.measure, self.stage, condition=condition, messages=self.plan.growth_messages)
            await self._each("growth", condition.case, contenders, measure)

    async def _outage(self, contender: Contender) -> dict[str, float]:
        return await outage.outage(
            self.stage,
            contender,
            self.fleet(POINTS),
            rate=OUTAGE_RATE,
            seconds=self.plan.steady_seconds,
            flood=self.plan.growth_messages,
        )


async def run(plan: Plan, say: Callable[[str], None], interruption: Interruption) -> tuple[Results, dict[str, Any]]:
    """Measure; the results and what they depend on. Trio-flavored.

    Args:
        plan: What.
        say: How far it has got.
        interruption: Told what remains if there is no time to clean up.

    Raises:
        StackError: Broker, database or the other checkout do not run here.
    """
    about = machine()
    with _directory(plan.directory) as directory:
        interruption.remains = f"stopped at once; remains: {directory}"
        async with open_stage(directory, writers=plan.writers) as stage:
            environment = about | {
                "version": __version__,
                "python": platform.python_version(),
                "postgres": stage.postgres.version,
                "broker": _mosquitto_version(),
                "rounds": plan.rounds,
                "messages": plan.backlog_messages,
                "writers": stage.writers,
                "notes": _notes(about),
            }
            bench = Bench(plan, stage, say)
            try:
                await bench.run()
            finally:
                if stage.postgres.directory != directory / "postgres" and plan.directory is None:
                    say(f"remove {stage.postgres.directory} by hand: {stage.postgres.note}")
    return bench.results, environment


def _notes(about: dict[str, str | int | float]) -> list[str]:
    load, cpus = float(about["load_average"]), int(about["cpus"])
    if load <= BUSY * cpus:
        return []
    busy = f"the load average was {load} on {cpus} CPUs before this began"
    return [f"{busy}: others use the machine, and only ratios within a round say anything"]


def _reasons(error: BaseException) -> list[str]:
    """What went wrong, in one line each; anything but our own errors is raised: a bug, or a cancellation."""
    if isinstance(error, BaseExceptionGroup):
        expected, rest = error.split(TraksenseError)
        if rest is not None:
            raise error
        return [reason for each in (expected.exceptions if expected else ()) for reason in _reasons(each)]
    return [str(error)]


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """The directory asked for, or a temporary one, passable for the database's user and removed afterwards."""
    if wanted is not None:
        yield make_directory(wanted)
        return
    directory = Path(tempfile.mkdtemp(prefix="traksense-bench-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _mosquitto_version() -> str:
    path = find_mosquitto()
    said = run_to_end([path, "-h"]).stdout if path else ""
    return said.splitlines()[0].capitalize() if said else "Mosquitto"


def say(line: str) -> None:
    """To stderr, where it does not mix with the answer."""
    tell(f"traksense: {line}", to=sys.stderr, flush=True)
