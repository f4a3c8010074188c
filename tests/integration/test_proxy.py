"""The proxy that breaks connections, between real sockets."""

from __future__ import annotations

import functools
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.tools.proxy import Proxy
from traksense.tools.stack import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOMENT = 0.2


class Recorder:
    """An observer that remembers; an outcome is a piece with an exclamation mark."""

    def __init__(self) -> None:
        self.sent = b""
        self.received = b""

    def from_client(self, data: bytes) -> bool:
        self.sent += data
        return b"!" in data

    def from_server(self, data: bytes) -> None:
        self.received += data


class Wire:
    """A proxy before a server whose connections the test plays by hand."""

    def __init__(self, proxy: Proxy, accepted: trio.MemoryReceiveChannel[trio.SocketStream]) -> None:
        self.proxy = proxy
        self.accepted = accepted
        self.clients: list[trio.SocketStream] = []

    async def connect(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        client = await trio.open_tcp_stream("127.0.0.1", self.proxy.port)
        self.clients.append(client)
        return client, await self.accepted.receive()


@asynccontextmanager
async def wire(recorder: Recorder | None = None) -> AsyncIterator[Wire]:
    send, receive = trio.open_memory_channel[trio.SocketStream](10)

    async def accept(stream: trio.SocketStream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            port = free_port()
            await nursery.start(functools.partial(trio.serve_tcp, accept, port, host="127.0.0.1"))
            proxy = Proxy(port, observe=lambda: recorder or Recorder())
            await proxy.listen()
            nursery.start_soon(proxy.run)
            played = Wire(proxy, receive)
            yield played
            nursery.cancel_scope.cancel()
    for client in played.clients:
        await trio.aclose_forcefully(client)


async def receive_exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some()
        assert piece, f"the end after {data!r}"
        data += piece
    return data


async def silence(stream: trio.SocketStream) -> bool:
    """Whether nothing comes for a moment."""
    with trio.move_on_after(MOMENT) as scope:
        await stream.receive_some()
    return scope.cancelled_caught


async def was_reset(stream: trio.SocketStream) -> bool:
    try:
        return not await stream.receive_some() and False
    except trio.BrokenResourceError as error:
        return isinstance(error.__cause__, ConnectionResetError)


async def test_bytes_pass_both_ways_and_are_observed() -> None:
    """Without a fault it is a wire; the observer has seen everything; the end of one side is passed on too."""
    recorder = Recorder()
    async with wire(recorder) as w:
        client, server = await w.connect()
        big = bytes(range(256)) * 2000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, big)
            assert big == await receive_exactly(server, len(big))
        await server.send_all(b"answer")
        assert b"answer" == await receive_exactly(client, 6)
        await client.send_eof()
        assert b"" == await server.receive_some()
        await server.send_all(b"last words")
        assert b"last words" == await receive_exactly(client, 10)

    assert big == recorder.sent
    assert b"answerlast words" == recorder.received


async def test_reset_is_seen_by_both_sides() -> None:
    """RST, not an orderly end; a new connection works."""
    async with wire() as w:
        client, server = await w.connect()
        assert 1 == w.proxy.reset()

        assert await was_reset(client)
        assert await was_reset(server)
        client, server = await w.connect()
        await client.send_all(b"x")
        assert b"x" == await receive_exactly(server, 1)


async def test_refused_upstream_is_a_reset() -> None:
    """Nobody behind the proxy: the client learns it at once."""
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            proxy = Proxy(free_port())
            await proxy.listen()
            nursery.start_soon(proxy.run)
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as client:
                assert await was_reset(client)
            nursery.cancel_scope.cancel()


async def test_black_hole_swallows_and_ends_in_a_reset() -> None:
    """Both sides can send and hear nothing; a connection that lost bytes does not survive, an idle one does."""
    recorder = Recorder()
    async with wire(recorder) as w:
        client, server = await w.connect()
        idle_client, idle_server = await w.connect()
        w.proxy.black_hole()
        await client.send_all(b"lost")
        await server.send_all(b"gone")
        assert await silence(client)
        assert await silence(server)
        assert 2 == w.proxy.connections

        w.proxy.heal()

        assert await was_reset(client)
        await idle_client.send_all(b"x")
        assert b"x" == await receive_exactly(idle_server, 1)

    # What the client has sent counts as sent; what it did not get does not count as received.
    assert b"lostx" == recorder.sent
    assert b"" == recorder.received


async def test_black_hole_hides_the_end_of_a_peer() -> None:
    """Nobody is told, until it heals."""
    async with wire() as w:
        client, server = await w.connect()
        w.proxy.black_hole()
        await server.aclose()
        assert await silence(client)

        w.proxy.heal()

        assert await was_reset(client)


async def test_hold_delivers_everything_late() -> None:
    """Nothing is lost, nothing is passed on before it heals; that holds for the end of a peer too."""
    async with wire() as w:
        client, server = await w.connect()
        w.proxy.hold()
        await client.send_all(b"late")
        await server.send_all(b"too")
        await server.send_eof()
        assert await silence(client)
        assert await silence(server)

        w.proxy.heal()

        assert b"late" == await receive_exactly(server, 4)
        assert b"too" == await receive_exactly(client, 3)
        assert b"" == await client.receive_some()


async def test_cut_after_takes_bytes_of_one_connection_only() -> None:
    """Of two that bring bytes at one moment, one is reset, and the other loses none: TCP never goes on without them."""
    async with wire() as w:
        pairs = [await w.connect(), await w.connect()]
        w.proxy.latency = MOMENT
        w.proxy.cut_after(1)
        for _, server in pairs:
            await server.send_all(b"ab")
        await w.proxy.wait_cut()
        w.proxy.latency = 0.0
        outcomes = []
        for client, server in pairs:
            try:
                await server.send_all(b"!")
                outcomes.append(await receive_exactly(client, 3))
            except (trio.BrokenResourceError, AssertionError):
                outcomes.append(b"reset")

    assert {b"reset", b"ab!"} == set(outcomes)


async def test_cut_after_passes_exactly_so_many_bytes() -> None:
    """The client gets a torn packet, then RST."""
    async with wire() as w:
        client, server = await w.connect()
        w.proxy.cut_after(3)
        await server.send_all(b"ab")
        assert b"ab" == await receive_exactly(client, 2)
        assert 0 == w.proxy.cuts
        await server.send_all(b"cdef")
        assert b"c" == await receive_exactly(client, 1)

        assert await was_reset(client)
        assert 1 == w.proxy.cuts


async def test_cut_at_outcome_keeps_the_answer_from_the_client() -> None:
    """The request arrives and is answered; the client gets RST instead, and on that connection only."""
    async with wire() as w:
        other, other_server = await w.connect()
        client, server = await w.connect()
        w.proxy.cut_at_outcome()
        await client.send_all(b"question")
        await server.send_all(b"answer")
        assert b"answer" == await receive_exactly(client, 6)

        await client.send_all(b"commit!")
        assert b"questioncommit!" == await receive_exactly(server, 15)
        await server.send_all(b"done")

        assert await was_reset(client)
        assert 1 == w.proxy.cuts
        await other.send_all(b"commit!")
        await other_server.send_all(b"done")
        assert b"done" == await receive_exactly(other, 4)


@pytest.mark.parametrize(("latency", "rate", "at_least"), [(0.15, None, 0.15), (0.0, 4000.0, 0.15)])
async def test_slow_path_is_slow_and_loses_nothing(latency: float, rate: float | None, at_least: float) -> None:
    """Latency delays each piece, the rate limits the bytes; `heal` makes it fast again."""
    async with wire() as w:
        client, server = await w.connect()
        w.proxy.latency, w.proxy.rate = latency, rate
        # The pump is waiting for its next piece at full size already; this one passes in one.
        await client.send_all(b"x")
        await receive_exactly(server, 1)
        started = time.monotonic()
        await client.send_all(b"y" * 1024)
        assert b"y" * 1024 == await receive_exactly(server, 1024)
        assert time.monotonic() - started >= at_least

        w.proxy.heal()

        assert (0.0, None) == (w.proxy.latency, w.proxy.rate)
