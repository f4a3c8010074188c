"""What was found, for people and for machines."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs

from traksense.cells import wrapped
from traksense.errors import TraksenseError
from traksense.terminal import Screen, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Status: TypeAlias = Literal["ok", "fail", "skip", "not run"]

WIDTH: Final = 80
_COLOURS: Final[Mapping[Status, str]] = {"ok": "32", "fail": "31;1", "skip": "33", "not run": "33"}


@attrs.frozen
class Finding:
    """One line of the report.

    Attributes:
        status: How it went.
        what: What was looked at.
        figure: What was seen, for people.
        values: The same as numbers, for machines; the names carry the unit.
        next_step: What an operator can do about it; empty if there is nothing to do.
    """

    status: Status
    what: str
    figure: str
    values: Mapping[str, float | str] = attrs.field(factory=dict)
    next_step: str = ""


@attrs.define
class Result:
    """A check and its findings.

    Attributes:
        name: For machines.
        title: For people.
        findings: In the order in which they were made; each goes to `tell` at once.
        seconds: How long the check took.
    """

    name: str
    title: str
    tell: Callable[[Finding], None] = attrs.field(repr=False)
    findings: list[Finding] = attrs.field(factory=list)
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """The worst of the findings; a check that found nothing was not run."""
        found = {finding.status for finding in self.findings}
        order: tuple[Status, ...] = ("fail", "not run", "skip", "ok")
        return next((status for status in order if status in found), "not run")

    def add(self, status: Status, what: str, figure: str, *, next_step: str = "", **values: float | str) -> None:
        """Note a finding."""
        self._note(Finding(status, what, figure, values, next_step))

    def judge(self, what: str, figure: str, *, faults: list[str], next_step: str, **values: float | str) -> None:
        """Note a finding: a failure if there are faults, which are then said before the figure, and the next step."""
        if faults:
            figure = f"{'; '.join(faults)} ({figure})" if figure else "; ".join(faults)
            self._note(Finding("fail", what, figure, values, next_step))
        else:
            self._note(Finding("ok", what, figure, values))

    def _note(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.tell(finding)


@attrs.define
class Report:
    """The whole run.

    Attributes:
        subject: What was validated, by name: version, broker, database, metrics, tenant.
        results: One for each check, and one for the clean-up.
        seconds: How long it took.
        interrupted: Whether a signal ended it.
    """

    subject: dict[str, str]
    results: list[Result] = attrs.field(factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Whether no check failed and none was kept from running; those that were skipped said why."""
        return not self.interrupted and all(result.status in ("ok", "skip") for result in self.results)

    @property
    def not_checked(self) -> list[tuple[Result, Finding]]:
        """What could not be checked here, and why. A clean-up that was not wanted is no check."""
        return [
            (result, finding)
            for result in self.results
            for finding in result.findings
            if finding.status == "skip" and result.name != "cleanup"
        ]

    @property
    def verdict(self) -> str:
        """In a few words, without the reasons."""
        if self.interrupted:
            return "INTERRUPTED"
        missing = len({result.name for result, _ in self.not_checked})
        if not missing:
            return "ALL CHECKS PASSED" if self.passed else "CHECKS FAILED"
        what = "1 CHECK" if missing == 1 else f"{missing} CHECKS"
        return f"{'PASSED, BUT' if self.passed else 'CHECKS FAILED, AND'} {what} COULD NOT BE MADE"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "not_checked": [
                {"name": result.name, "title": result.title, "why": finding.figure, "next_step": finding.next_step}
                for result, finding in self.not_checked
            ],
            "interrupted": self.interrupted,
            **self.subject,
            "seconds": round(self.seconds, 3),
            "checks": [
                {
                    "name": result.name,
                    "title": result.title,
                    "status": result.status.replace(" ", "_"),
                    "seconds": round(result.seconds, 3),
                    "findings": [
                        {**attrs.asdict(finding), "status": finding.status.replace(" ", "_")}
                        for finding in result.findings
                    ],
                }
                for result in self.results
            ],
        }


class Printer:
    """Writes the report as it comes. Plain ASCII but for what others named; colours only on a terminal.

    Attributes:
        fault: Why the rest was not written, if stdout did not take it although somebody may read it.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.fault: TraksenseError | None = None
        self._silent = silent
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._checks = 0

    def begin(self, subject: Mapping[str, str]) -> None:
        """The heading: what is validated.

        Raises:
            TraksenseError: It cannot be written.
        """
        self._line("=" * WIDTH)
        self._line(f"VALIDATION traksense {subject['version']}")
        for name, value in subject.items():
            if name != "version":
                self._line(f"  {name:<9} {value}")
        self._line("=" * WIDTH)
        if self.fault is not None:
            raise self.fault

    def heading(self, title: str, *, check: bool = True) -> None:
        """What comes next."""
        self._checks += check
        self._line()
        self._line(painted=f"CHECK {self._checks}: {title}" if check else title, colour="1")

    def finding(self, finding: Finding) -> None:
        """One line."""
        self._line(
            f" {finding.what}: {finding.figure}",
            painted=f"[{finding.status.upper()}]",
            colour=_COLOURS[finding.status],
        )
        if finding.next_step:
            self._line(f"    next step: {finding.next_step}")

    def end(self, report: Report) -> None:
        """The verdict."""
        # The clean-up is no check, and has no number; it counts if it failed.
        said = _counted(
            [result.status for result in report.results if result.name != "cleanup" or result.status == "fail"]
        )
        missing = report.not_checked
        why = "; ".join(
            f"{result.title}: {finding.figure}" + (f" (next step: {finding.next_step})" if finding.next_step else "")
            for result, finding in missing
        )
        colour = "31;1" if not report.passed else "33;1" if missing else "32;1"
        self._line()
        self._line("=" * WIDTH)
        verdict = f"{report.verdict} ({said}; {report.seconds:.1f} s)"
        self._line(f": {why}" if why else "", painted=verdict, colour=colour)
        self._line("=" * WIDTH)

    def _line(self, text: str = "", *, painted: str = "", colour: str = "") -> None:
        if self._silent:
            return
        begin, end = (f"\x1b[{colour}m", "\x1b[0m") if self._colours and painted else ("", "")
        screen = Screen.of()
        painted = screen.shown(painted)
        first, *rest = wrapped(painted + screen.shown(text), screen.columns or sys.maxsize, hanging=5)
        try:
            if begin:
                print(begin, end="")
            say(first[: len(painted)], end=end)
            say("\n".join([first[len(painted) :], *rest]), flush=True)
        except (OSError, TraksenseError) as error:
            # Nobody reads any more, or the disk is full; what was begun is still to be cleaned up.
            self._silent = True
            self.fault = error if isinstance(error, TraksenseError) else None
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _counted(found: list[Status]) -> str:
    """How many checks ended how, such as `1 check failed, 12 not run`."""
    words: dict[Status, str] = {"fail": "failed", "ok": "ok", "skip": "skipped", "not run": "not run"}
    counts = [(found.count(status), word) for status, word in words.items() if status in found]
    first, *others = counts or [(0, "run")]
    checks = "check" if first[0] == 1 else "checks"
    return ", ".join([f"{first[0]} {checks} {first[1]}", *(f"{count} {word}" for count, word in others)])
