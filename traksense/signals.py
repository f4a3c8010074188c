"""The service's signals, from the first line of the process to its last.

Python ends a process that a signal meets while it imports, or after the service has put back the handlers that were
there before it. Both are safe, since nothing is acknowledged then; but a supervisor sees a death by signal where the
manual says exit 0. So signals are noted at first, the service takes them while it runs, and the end ignores them.
Imports little: it is the first to run.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""They end the service in order. SIGHUP too: the terminal is gone, and nothing is read again on demand."""

MEANINGLESS: Final = (signal.SIGUSR1, signal.SIGUSR2)
"""Ignored: what rotates logs sends them, and would end the service."""

_noted: list[int] = []
_before: dict[int, object] = {}


def hold() -> None:
    """From now on these signals are only noted."""
    for number in (*wanted(), *MEANINGLESS):
        _before[number] = signal.getsignal(number)
        signal.signal(number, signal.SIG_IGN if number in MEANINGLESS else _note)


def release() -> None:
    """As it was before `hold`, but that a terminal which is closed interrupts as Ctrl-C does; what was noted meanwhile
    happens now.
    """
    held = signal.SIGHUP in _before
    while _before:
        number, handler = _before.popitem()
        signal.signal(number, handler)  # type: ignore[arg-type]  # what `getsignal` gave
    # Where Ctrl-C is ignored, as in what a script starts with &, the terminal ends it as ever.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if held and not ignored and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)
    for number in noted():
        signal.raise_signal(number)


def noted() -> list[int]:
    """What came since `hold`, once."""
    numbers = _noted.copy()
    _noted.clear()
    return numbers


def ignore() -> None:
    """The process ends anyway. Python leaves ignored signals alone when it ends, and takes handlers away."""
    for number in _before:
        signal.signal(number, signal.SIG_IGN)


def wanted() -> tuple[signal.Signals, ...]:
    """The signals that end the service: without SIGHUP if whoever started it has us ignore that (`nohup`)."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in ENDING if number != signal.SIGHUP or not ignored)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Once: of a terminal that is closed, both the shell and the kernel tell.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.append(number)
