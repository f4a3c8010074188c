"""A command is told of Ctrl-C, SIGTERM and SIGHUP, but not of what whoever started it had ignored."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.tools.interrupt import Interruption, run_interruptible

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
