"""Says on a terminal how far long work has got; a log or a pipe is told the end only."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Self, TextIO

from traksense import terminal
from traksense.cells import cut
from traksense.errors import TraksenseError
from traksense.terminal import NO_TERMINAL, Screen

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

AFTER_SECONDS: Final = 1.0
"""Work that is done sooner says nothing but its end. Chosen by guess."""

EVERY_SECONDS: Final = 0.5
"""Between two looks. The seconds go on while a single statement takes long: a sign of life."""

ERASE: Final = "\r\x1b[K"


class Progress:
    """A line at the bottom of the terminal that stderr is, rewritten in place, as a context manager.

    What else is said meanwhile goes through `say`, above it. At the end it is gone.

    Resource handling: a thread of its own, since the work may be Trio's, asyncio's or blocking; it ends with the
    context.
    """

    def __init__(self, *, after: float = AFTER_SECONDS, every: float = EVERY_SECONDS) -> None:
        self._text: Callable[[], str] = str
        self._shown = False
        self._after, self._every = after, every
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def at(self, text: str | Callable[[], str]) -> None:
        """So far it has got, in a few words, or what says that at each look from another thread."""
        self._text = text if callable(text) else lambda: text

    def say(self, line: str, *, to: TextIO | None = None) -> None:
        """Print a line that stays, to stdout or to another stream."""
        with self._lock:
            self._erase()
            terminal.say(line, to=to, flush=True, hanging=2)

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in NO_TERMINAL:
            self._thread = threading.Thread(target=self._run, args=(time.monotonic(),), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self._erase()

    def _run(self, began: float) -> None:
        wait = self._after
        try:
            while not self._done.wait(wait):
                wait = self._every
                if text := self._text():
                    self._draw(f"{text} ({int(time.monotonic() - began)} s)")
        except Exception:  # noqa: BLE001  (the terminal is gone; the work goes on)
            return

    def _draw(self, text: str) -> None:
        screen = Screen.of(sys.stderr)
        line = screen.shown(text)
        with self._lock:
            # The last cell stays free: some terminals go on to the next line there.
            print(
                ERASE,
                cut(line, (screen.columns or 80) - 1, screen.shown("…")),
                sep="",
                end="",
                file=sys.stderr,
                flush=True,
            )
            self._shown = True

    def _erase(self) -> None:
        if self._shown:
            self._shown = False
            with contextlib.suppress(OSError):  # the terminal is gone; the work goes on
                print(ERASE, end="", file=sys.stderr, flush=True)


class BesideProgress(logging.Handler):
    """Shows log lines above the line of a `Progress`, on stdout or another stream."""

    def __init__(self, progress: Progress, formatter: logging.Formatter, *, to: TextIO | None = None) -> None:
        super().__init__()
        self._progress = progress
        self._to = to
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """One line; that it cannot be shown ends nothing."""
        with contextlib.suppress(OSError, TraksenseError):
            self._progress.say(self.format(record), to=self._to)


def log_to_people(progress: Progress, formatter: logging.Formatter) -> None:
    """If stdout is a terminal, log there in words for people, whatever LOG_FORMAT says; else leave the log alone."""
    if sys.stdout is not None and sys.stdout.isatty():
        logging.getLogger().handlers[:] = [BesideProgress(progress, formatter)]
