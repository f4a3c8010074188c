"""For people: how a run goes on, and the table at the end."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

import trio

from traksense.cells import Column
from traksense.names import printable
from traksense.terminal import WHOLE, Screen, say
from traksense.tools.prove.schedule import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.tools.prove.results import Result, Total
    from traksense.tools.prove.run import Run
    from traksense.tools.prove.schedule import Injection

STATUS_SECONDS: Final = 5.0
"""Between two status lines where lines cannot be overwritten."""
REFRESH_SECONDS: Final = 0.25
CASES_SHOWN: Final = 3

FIGURES: Final = {
    "published": "messages published",
    "confirmed": "confirmed to the publisher by the broker",
    "stored": "stored",
    "dead_lettered": "bad ones among them, kept as dead letters",
    "removed": "removed by operators",
    "repeated": "rows too many of messages without a time (allowed)",
    "redelivered": "delivered again after a fault",
    "duplicates_refused": "duplicates refused by the database (at least)",
    "service_kills": "service killed",
    "faults_injected": "faults injected in all",
    "promises_checked": "acknowledgements checked against the database",
    "ledgers_checked": "ledgers checked",
}
FINDINGS: Final = {
    "lost": "lost",
    "doubled": "stored more than once",
    "altered": "stored with another value",
    "phantom": "stored though nobody sent it",
    "misfiled": "good ones dead-lettered, or bad ones stored",
    "undelivered": "still at the broker when the time was up",
    "acknowledged early": "acknowledged before they were stored",
    "out of order": "acknowledged out of order",
    "ledger mismatches": "ledgers that do not add up",
    "misbehaved": "crashes and wrong exits of the service",
    "misnamed": "stored under a name that is not theirs any more",
    "nameless": "runs with rows that nobody can read",
    "slow to resume": "stops that lasted longer than their fault",
    "stuck": "runs that could not be drained",
    "sessions wiped": "sessions at the broker wiped",
    "false conflicts": "conflicts counted where there are none",
}


FAULTS: Final = (
    Column("Faults by kind", least=20, pad=100),
    Column("times", right=True),
    Column("stop at most", right=True),
)


class Lines:
    """Progress as plain lines."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._run: Run | None = None
        self._began = 0.0
        self._active: dict[str, int] = {}

    def begin(self, run: Run) -> None:
        """The stage is set."""
        self._run, self._began = run, trio.current_time()
        self._active.clear()
        self._say(f"seed {run.seed}: {len(run.schedule)} faults in {run.options.seconds:g} s")

    def fault(self, injection: Injection, took_effect: bool | None) -> None:  # noqa: FBT001
        """A fault begins, or has ended."""
        name = injection.fault
        if took_effect is None:
            self._active[name] = self._active.get(name, 0) + 1
            self._say(f"{name}: {CATALOGUE[name].summary}")
        else:
            self._active[name] -= 1
            if not took_effect:
                self._say(f"{name}: its moment did not come")

    def phase(self, text: str) -> None:
        """Something else begins."""
        self._say(text)

    def end(self, result: Result) -> None:
        """The run has been judged."""
        self._say(f"seed {result.seed}: {verdict(result)} ({result.seconds:.0f} s)")

    async def run(self) -> None:
        """Tell how it goes, until cancelled."""
        while True:
            await trio.sleep(STATUS_SECONDS)
            if self._run is not None:
                self._say(self.status())

    def status(self) -> str:
        """One line."""
        run = self._run
        if run is None or run.publisher is None or run.stage is None:
            return "setting the stage"
        counters = run.publisher.counters
        text = (
            f"published {counters.published}, confirmed {counters.confirmed}, "
            f"acknowledged {len(run.witness.acknowledged)}, kills {run.stage.replicas.kills}"
        )
        active = ", ".join(name for name, count in self._active.items() if count)
        return f"{text}; now: {active}" if active else text

    def _say(self, text: str) -> None:
        say(f"{trio.current_time() - self._began if self._run else 0:6.1f} s  {text}", to=self._out, flush=True)


class Live(Lines):
    """Progress on a terminal: the status stays at the bottom."""

    def __init__(self, live: Any) -> None:
        super().__init__()
        self._live = live

    async def run(self) -> None:
        """Refresh until cancelled."""
        from rich.text import Text

        while True:
            self._live.update(Text(printable(f"  ▸ {self.status()}"), style="bold", overflow="ellipsis", no_wrap=True))
            await trio.sleep(REFRESH_SECONDS)

    def _say(self, text: str) -> None:
        from rich.table import Table
        from rich.text import Text

        seconds = trio.current_time() - self._began if self._run else 0.0
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(Text(f"{seconds:6.1f} s", "dim", no_wrap=True), Text(printable(text)))
        self._live.console.print(line)


@contextmanager
def open_progress() -> Iterator[Lines]:
    """Live on a terminal that can, lines elsewhere; on standard error, beside the result."""
    if not Screen.of(sys.stderr).draws or importlib.util.find_spec("rich") is None:
        yield Lines()
        return
    import rich.console
    import rich.live

    with rich.live.Live(console=rich.console.Console(stderr=True), transient=True, auto_refresh=True) as live:
        yield Live(live)


def verdict(result: Result) -> str:
    """A run in a few words."""
    if result.passed:
        return "passed"
    return "FAILED: " + ", ".join(f"{name} {f['count']}" for name, f in result.findings.items() if f["count"])


def table(total: Total, screen: Screen = WHOLE) -> str:
    """What a manager reads."""
    figures, findings = total.figures(), total.findings()
    rows = [(text, f"{figures[name]:,}") for name, text in FIGURES.items()]
    rows += [("", ""), *((text, f"{findings[name]:,}") for name, text in FINDINGS.items())]
    rows += [("", ""), ("lost by the broker itself when it was killed (not ours)", f"{figures['lost_by_broker']:,}")]
    faults = [
        (f"  {fault.part}: {fault.summary}", str(total.faults().get(name, 0)), _seconds(total, name))
        for name, fault in CATALOGUE.items()
        if name in total.planned()
    ]
    lines = screen.table((Column(), Column(least=20, pad=100), Column(right=True)), [("", *row) for row in rows])
    return "\n".join(["", *lines, "", *screen.table(FAULTS, faults), "", *_closing(total)])


def _seconds(total: Total, fault: str) -> str:
    """The longest time from the fault's end to the next message that was stored."""
    seconds = total.resumed().get(fault)
    return "" if seconds is None else f"{seconds:.1f} s"


def _closing(total: Total) -> list[str]:
    runs = len(total.results)
    lines = []
    for result in total.results:
        for name, finding in result.findings.items():
            lines += [f"  seed {result.seed}, {name}: {case}" for case in finding["cases"][:CASES_SHOWN]]
            if finding["count"] > CASES_SHOWN:
                lines.append(f"  seed {result.seed}, {name}: … {finding['count']} in all")
    if total.failed:
        return [*lines, "", f"FAILED: {total.failed} of {runs} run{'s' if runs > 1 else ''}"]
    return [
        f"PASSED: {runs} run{'s' if runs > 1 else ''}, nothing lost, nothing duplicated.",
        f"With 95 % confidence, fewer than {total.upper_bound:.1%} of such runs fail (none in {runs} did: about 3/n).",
    ]
