"""A TCP proxy that breaks connections on purpose, for `prove` and for tests.

    service ──▶ Proxy ──▶ broker or database
                  │
               Observer: sees every byte of both directions

| verb | what the peers see | what it stands for |
|---|---|---|
| `reset` | RST on both sides of every connection | a peer, a firewall or a load balancer that restarts |
| `black_hole` | silence; what they send is taken and lost; RST at the end | a path that forgot the connections (NAT) |
| `hold` | silence; everything arrives, late, when it ends | a partition that heals: TCP sends again |
| `cut_after` | the next bytes of the server, up to a limit, then RST | a reset in the middle of a packet |
| `cut_at_outcome` | RST instead of the answer to the next commit | the ambiguous commit |
| `latency`, `rate` | each piece comes late, or the bytes slowly | a long or a thin path |

A refused upstream is a reset here, since the proxy has accepted by then.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from traksense.tools.stack import free_port
from traksense.tools.stack.servers import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES: Final = 64 * 1024
THROTTLED_PIECE_BYTES: Final = 256
"""Small pieces make a low rate even, and split packets."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds. Source: POSIX, socket(7): close then discards and sends RST."""


class Observer(Protocol):
    """Sees the bytes of one connection. Must not raise or block."""

    def from_client(self, data: bytes) -> bool:
        """What the client has sent, whether or not it will arrive.

        Returns whether these bytes ask for an outcome that cannot be taken back: a commit.
        """
        ...

    def from_server(self, data: bytes) -> None:
        """What the client is about to receive. Not called again after bytes were lost."""
        ...


class Unobserved:
    """Looks at nothing."""

    def from_client(self, data: bytes) -> bool:
        """False: nothing is known."""
        del data
        return False

    def from_server(self, data: bytes) -> None:
        """Nothing."""


@attrs.define(eq=False)
class _Link:
    """One connection through the proxy.

    Attributes:
        holed: Bytes of it were lost: the only way on is a reset.
        deaf: The answer that comes next is not for the client.
        spent: It has brought the last byte that `cut_after` lets pass.
    """

    client: trio.SocketStream
    server: trio.SocketStream
    observer: Observer
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    holed: bool = False
    deaf: bool = False
    spent: bool = False

    def reset(self) -> None:
        """RST to both sides, at once."""
        for stream in (self.client, self.server):
            if stream.socket.fileno() >= 0:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.scope.cancel()


class Proxy:
    """Listens on the loopback interface while `run` runs, and passes bytes on until told otherwise.

    Attributes:
        port: Where it listens.
        latency: Seconds that each piece waits before it is passed on.
        rate: Bytes a second of each direction of each connection, or None for no limit.
        upstream: Host and port that new connections lead to.
        cuts: How often `cut_after` and `cut_at_outcome` have cut.
    """

    def __init__(
        self, upstream_port: int, *, upstream_host: str = LOOPBACK, observe: Callable[[], Observer] = Unobserved
    ) -> None:
        self.port = free_port()
        self.latency = 0.0
        self.rate: float | None = None
        self.cuts = 0
        self.upstream = (upstream_host, upstream_port)
        self._observe = observe
        self._listeners: list[trio.SocketListener] = []
        self._links: set[_Link] = set()
        self._flowing = trio.Event()
        self._flowing.set()
        self._swallowing = False
        self._budget: int | None = None
        self._cut_at_outcome = False
        self._next_cut = trio.Event()

    # --- the verbs ------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._links)

    async def wait_cut(self) -> None:
        """Wait until `cut_after` or `cut_at_outcome` cuts; not for a cut that was before."""
        await self._next_cut.wait()

    def heal(self) -> None:
        """Pass everything on again. Connections that lost bytes are reset: TCP never goes on without them."""
        self.latency, self.rate = 0.0, None
        self._budget, self._cut_at_outcome = None, False
        self._swallowing = False
        for link in list(self._links):
            if link.holed:
                link.reset()
        self._flowing.set()

    def reset(self) -> int:
        """Reset every connection; returns how many there were."""
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def black_hole(self) -> None:
        """Take what either side sends and lose it, on old and new connections, until `heal`."""
        self._swallowing = True

    def hold(self) -> None:
        """Pass nothing on, lose nothing, until `heal`."""
        if self._flowing.is_set():
            self._flowing = trio.Event()

    def cut_after(self, count: int) -> None:
        """Pass on so many more bytes from the server, on whichever connection they come, then reset that one."""
        self._budget = count

    def cut_at_outcome(self) -> None:
        """Reset the connection that asks for the next outcome (see `Observer.from_client`) when the answer comes.

        The server has done what it was asked to do by then, and the client cannot know.
        """
        self._cut_at_outcome = True

    # --- the task -------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Take the port; connections wait until `run` runs."""
        self._listeners = await trio.open_tcp_listeners(self.port, host=LOOPBACK)

    async def run(self) -> None:
        """Serve until cancelled, after `listen`.

        Error handling: whatever happens to a connection ends that connection only.
        """
        await trio.serve_listeners(self._serve, self._listeners)

    async def _serve(self, client: trio.SocketStream) -> None:
        # Not `open_tcp_stream`: a reset while that connects would leave its socket to the garbage collector.
        link = _Link(client, trio.SocketStream(trio.socket.socket()), self._observe())
        self._links.add(link)
        try:
            with link.scope:
                await self._pass_on(link)
        finally:
            self._links.discard(link)
            for stream in (link.client, link.server):
                # Not `aclose`: when cancelled, that of the first would keep us from the second.
                stream.socket.close()

    async def _pass_on(self, link: _Link) -> None:
        try:
            await link.server.socket.connect(self.upstream)
        except OSError:
            link.reset()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, link, link.client, link.server, self._towards_server)
            nursery.start_soon(self._pump, link, link.server, link.client, self._towards_client)

    async def _pump(
        self,
        link: _Link,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        look: Callable[[_Link, bytes], bytes],
    ) -> None:
        try:
            while data := bytes(await source.receive_some(PIECE_BYTES if self.rate is None else THROTTLED_PIECE_BYTES)):
                if self.latency:
                    await trio.sleep(self.latency)
                await self._flowing.wait()
                if data := look(link, data):
                    await sink.send_all(data)
                if self.rate is not None:
                    await trio.sleep(len(data) / self.rate)
                if link.spent and sink is link.client:
                    self._cut(link)
            await self._wait_passing(link)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # One side was reset: so is the other, as soon as it can hear of it.
            await self._wait_passing(link)
            link.reset()

    async def _wait_passing(self, link: _Link) -> None:
        """Wait until the path is there again; without end if that will be the end of this connection."""
        await self._flowing.wait()
        if self._swallowing or link.holed:
            link.holed = True
            await trio.sleep_forever()

    def _towards_server(self, link: _Link, data: bytes) -> bytes:
        """What of these bytes the server shall get."""
        outcome = link.observer.from_client(data)
        if self._swallowing or link.holed:
            link.holed = True
            return b""
        if outcome and self._cut_at_outcome:
            self._cut_at_outcome = False
            link.deaf = True
        return data

    def _towards_client(self, link: _Link, data: bytes) -> bytes:
        """What of these bytes the client shall get."""
        if link.deaf:
            self._cut(link)
            return b""
        if self._swallowing or link.holed:
            link.holed = True
            return b""
        if self._budget is not None:
            link.spent = len(data) >= self._budget
            data = data[: self._budget]
            # At once: another connection may bring bytes while these are being sent, and would lose some.
            self._budget = None if link.spent else self._budget - len(data)
        link.observer.from_server(data)
        return data

    def _cut(self, link: _Link) -> None:
        self.cuts += 1
        self._next_cut.set()
        self._next_cut = trio.Event()
        link.reset()
