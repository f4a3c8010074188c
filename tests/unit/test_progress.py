"""Long work says on a terminal how far it has got, and leaves nothing of that behind."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.patience import HANG_SECONDS
from tests.terminals import left, open_terminal
from traksense.tools.progress import ERASE, BesideProgress, Progress, log_to_people

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READ_BYTES = 65_536


@contextmanager
def terminal(name: str = "xterm") -> Iterator[int]:
    """Stdout and stderr are a terminal of 40 columns; this is the end that a person sees.

    No fixture: between it and the test, pytest sets up its own capture anew.
    """
    with (
        open_terminal(40) as (seen, written),
        os.fdopen(os.dup(written), "w", encoding="utf-8") as stream,
        redirect_stdout(stream),
        redirect_stderr(stream),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TERM", name)
        yield seen


def read_until(seen: int, what: str) -> str:
    """All that is shown until this is."""
    text = ""
    while what not in text:
        text += os.read(seen, READ_BYTES).decode()
    return text


def test_a_line_is_rewritten_and_goes_at_the_end() -> None:
    """It says how far it has got, cut at the width of the terminal; remarks stay above it."""
    with terminal() as seen:
        with Progress(after=0.0, every=0.001) as progress:
            progress.at("deleted 10 of 30")
            text = read_until(seen, "deleted 10 of 30 (0 s)")
            progress.say("traksense: 7: left alone")
            progress.at("圧力" * 20)
            text += read_until(seen, f"{ERASE}{'圧力' * 9}圧…")
        print("deleted 30", flush=True)
        text += read_until(seen, "deleted 30\r\n")

    assert ["traksense: 7: left alone", "deleted 30"] == left(text)


def test_work_that_is_soon_over_says_nothing() -> None:
    """What is done within a second would only flicker."""
    with terminal() as seen:
        with Progress() as progress:
            progress.at("deleted 10 of 30")
        print("end", flush=True)

        assert "end\r\n" == read_until(seen, "end\r\n")


@pytest.mark.parametrize("name", ["dumb", ""])
def test_a_terminal_that_cannot_erase_is_left_alone(name: str) -> None:
    """There would be one line after the other, full of codes."""
    with terminal(name), Progress(after=0.0, every=0.0) as progress:
        assert progress._thread is None


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither text nor codes, and the log stays as it was set up."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(sys, "stdout", out)
    handlers = list(logging.getLogger().handlers)
    with Progress(after=0.0, every=0.0) as progress:
        log_to_people(progress, logging.Formatter())
        progress.at("deleted 10 of 30")
        assert progress._thread is None

    assert "" == out.getvalue()
    assert handlers == logging.getLogger().handlers


def test_log_lines_stay_above_it() -> None:
    """A log line is not glued to the line that is rewritten."""
    logger = logging.getLogger("beside-progress")
    logger.propagate = False
    with terminal() as seen, Progress(after=0.0, every=0.001) as progress:
        progress.at("waiting")
        text = read_until(seen, "waiting")
        logger.addHandler(BesideProgress(progress, logging.Formatter("%(message)s")))
        logger.warning("a\x1b[2J")
        text += read_until(seen, "2J\r\n")

    assert left(text)[0] == "a\\x1b[2J"


def test_log_lines_may_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """As those of `simulate`, whose stdout is the answer."""
    record = logging.LogRecord("x", logging.INFO, "", 1, "happened", None, None)
    BesideProgress(Progress(), logging.Formatter(), to=sys.stderr).emit(record)

    assert ("", "happened\n") == capsys.readouterr()


class Vanishing(io.StringIO):
    """A terminal that somebody closes."""

    gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(text)


def test_work_goes_on_without_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a remark nor a log line nor the end says that nobody sees it any more."""
    stream = Vanishing()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    record = logging.LogRecord("x", logging.INFO, "", 1, "happened", None, None)
    with Progress(after=HANG_SECONDS) as progress:
        acts: tuple[Callable[[], object], ...] = (
            partial(progress.say, "left alone", to=stream),
            partial(BesideProgress(progress, logging.Formatter()).emit, record),
            lambda: None,
        )
        for act in acts:
            stream.gone = False
            progress._draw("waiting")
            stream.gone = True
            act()
