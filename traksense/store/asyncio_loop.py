"""The asyncio loop that asyncpg lives in, on Trio."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import trio_asyncio

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

logger = logging.getLogger(__name__)

_RESETTING: Final = "Resetting connection with an active transaction"
_ENDED: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@asynccontextmanager
async def open_asyncio_loop() -> AsyncIterator[None]:
    """A loop for the duration; a complaint of asyncio's is logged, and ends nothing.

    trio-asyncio 0.16 makes every call of the loop's exception handler the end of the loop and of everything around it
    (`default_exception_handler`). asyncio and asyncpg use that handler to complain, though, beside the error that the
    caller gets anyway: when a database dies in the middle of a transaction, asyncpg 0.32 says "Resetting connection
    with an active transaction" (`Connection._reset`) and asyncio "Future exception was never retrieved". Found by
    `traksense prove`: SIGKILL of the postmaster ended the service.

    Trio-flavored.
    """
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_log)
        yield


def _log(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    message = str(context.get("message", "")).split("\n", 1)[0]
    # What comes of a connection that has ended is no news: whoever used it has an error, and health says it in words.
    expected = message.startswith(_RESETTING) if error is None else isinstance(error, _ENDED)
    logger.log(
        logging.DEBUG if expected else logging.WARNING,
        "asyncio_complained",
        extra={
            "traksense_message": message,
            "traksense_reason": "" if error is None else f"{type(error).__name__}: {error}",
        },
    )
