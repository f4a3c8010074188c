"""The asyncio loop: complaints of asyncio and asyncpg end nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import trio
from trio_asyncio import aio_as_trio

from tests.patience import HANG_SECONDS
from traksense.store.asyncio_loop import open_asyncio_loop

if TYPE_CHECKING:
    import pytest


async def test_complaint_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What asyncio and asyncpg tell the loop's exception handler is one log line, and the loop goes on; what comes of a
    connection that has ended is no news.
    """

    async def complain() -> str:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "Task exception was never retrieved", "exception": KeyError("gone")}
        )
        asyncio.get_running_loop().call_exception_handler(
            {"message": "Future exception was never retrieved", "exception": ConnectionResetError(104, "reset")}
        )
        asyncio.get_running_loop().call_exception_handler(
            {"message": "Resetting connection with an active transaction <Connection>"}
        )
        await asyncio.sleep(0)
        return "done"

    with caplog.at_level(logging.WARNING), trio.fail_after(HANG_SECONDS):
        async with open_asyncio_loop():
            result = await aio_as_trio(complain)()
            # trio-asyncio's own handler would raise in the loop's nursery at the next checkpoint.
            await trio.sleep(0.01)

    assert "done" == result
    (record,) = [r for r in caplog.records if r.name == "traksense.store.asyncio_loop"]
    assert "asyncio_complained" == record.getMessage()
    assert "KeyError: 'gone'" == vars(record)["traksense_reason"]
