"""A command is told of Ctrl-C, SIGTERM and SIGHUP, but not of what whoever started it had ignored."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.tools.interrupt import INTERRUPTED, Interruption, run_interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def nohup() -> Iterator[None]:
    """As `nohup` starts it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("nohup")
async def test_under_nohup_a_closed_terminal_is_nothing() -> None:
    """What was to go on goes on; Ctrl-C still ends it."""
    told: list[bool] = []

    async def body(interruption: Interruption) -> None:
        signal.raise_signal(signal.SIGHUP)
        await trio.testing.wait_all_tasks_blocked()
        told.append(interruption.happened)
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    with trio.fail_after(HANG_SECONDS):
        assert await run_interruptible(body)
    assert [False] == told


async def test_body_that_is_cancelled_has_time_until_a_second_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal that is closed says so twice. What stdout had not taken yet is lost with it, and ends nothing; what is
    not put right is said.
    """

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    ended: list[int] = []
    steps: list[list[int]] = []
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(os, "_exit", ended.append)
    # Otherwise one that nobody waits for ends the tests.
    before = signal.signal(signal.SIGHUP, lambda *_: None)

    async def body(interruption: Interruption) -> None:
        interruption.remains = "remains: something"
        with trio.CancelScope(shield=True):
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGINT):
                signal.raise_signal(number)
                await trio.testing.wait_all_tasks_blocked()
                assert interruption.happened
                steps.append(ended.copy())

    try:
        with trio.fail_after(HANG_SECONDS):
            assert await run_interruptible(body)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [[], [], [INTERRUPTED]] == steps
    assert "traksense: remains: something\n" == capsys.readouterr().err
