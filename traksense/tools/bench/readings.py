"""Processor time and memory of processes, from /proc, and samples of them over time."""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MIB: Final = 1024 * 1024
SAMPLE_SECONDS: Final = 0.05
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its children that have ended, so far; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    # The name in parentheses may hold anything; behind it come state (field 3) and the rest. Source: proc(5).
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def children(pid: int) -> list[int]:
    """The children of a process."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process: now, and at most so far (VmRSS, VmHWM); 0 if it is gone."""
    values = {"VmRSS": 0, "VmHWM": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in values:
            values[name] = int(rest.split()[0]) * 1024
    return values["VmRSS"], values["VmHWM"]


@attrs.define
class Sampler:
    """Notes what a clock says, again and again; afterwards it can be asked for any moment between."""

    read: Callable[[], float]
    _moments: list[float] = attrs.field(factory=list)
    _values: list[float] = attrs.field(factory=list)

    async def run(self) -> None:
        """Sample until cancelled. Trio-flavored."""
        while True:
            self.sample()
            await trio.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        """Note it now."""
        self._moments.append(time.time())
        self._values.append(self.read())

    def at(self, moment: float) -> float:
        """What it said at a moment, in Unix seconds: on a straight line between two samples."""
        place = bisect_left(self._moments, moment)
        if place == 0:
            return self._values[0]
        if place == len(self._moments):
            return self._values[-1]
        begin, end = self._moments[place - 1], self._moments[place]
        share = (moment - begin) / (end - begin)
        return self._values[place - 1] + share * (self._values[place] - self._values[place - 1])

    def between(self, begin: float, end: float) -> float:
        """How much it advanced."""
        return self.at(end) - self.at(begin)


def machine() -> dict[str, str | int | float]:
    """What figures depend on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"cpus": os.cpu_count() or 0, "cpu_model": model, "load_average": round(os.getloadavg()[0], 2)}
