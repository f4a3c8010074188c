"""Who listens for tenants in no shard hears of it when it may not listen."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.errors import BrokerError
from traksense.tools.shards.check import check

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("answer", [b"\x00\x87", None])
async def test_a_subscription_that_was_not_granted_is_no_all_clear(
    answer: bytes | None, database: str, unique: Callable[[str], str]
) -> None:
    """Refused, or not answered at all."""

    async def broker_that_refuses(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(bytes.fromhex("2003000000"))
        subscribe = await stream.receive_some()
        if answer is not None:
            await stream.send_all(b"\x90\x04" + subscribe[2:4] + answer)
        await trio.sleep_forever()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    settings = load(
        {
            "MQTT_URL": f"mqtt://127.0.0.1:{port}",
            "MQTT_TOPICS": "traksense/#",
            "MQTT_TENANTS": "acme",
            "MQTT_SHARD_COUNT": "2",
            "DATABASE_URL": database,
        }
    )
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, broker_that_refuses, listeners))
            with pytest.raises(BrokerError, match="refuses" if answer else "did not answer"):
                await check(settings, 0.5)
            nursery.cancel_scope.cancel()
