"""A small HTTP/1.1 server that cannot be used up: h11 reads and writes, this bounds who may talk and for how long.

Whatever strangers do at this port, the descriptors that broker and database need are there, and a probe is answered.
So there are few connections, and a newcomer takes the place of the one that has asked for nothing for the longest: a
flood pushes out the flood, while a probe asks as it comes (ops/decisions/0041).
"""

from __future__ import annotations

import errno
import logging
import resource
from typing import TYPE_CHECKING, Final, TypeAlias

import h11
import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

logger = logging.getLogger(__name__)

Answer: TypeAlias = tuple[int, str, bytes]
"""Status, content type, body."""

CONNECTIONS_MAX: Final = 64
"""Scrapers, probes and people at once. Chosen by guess."""

CONNECTIONS_MIN: Final = 8
DESCRIPTORS_SHARE: Final = 8
"""At most one in so many of the descriptors that the process may have (`ulimit -n`) is a connection here."""

HEAD_SECONDS: Final = 5.0
"""From the first byte of a request, or from the beginning of the connection, to the end of the request."""

IDLE_SECONDS: Final = 65.0
"""Between two requests of one connection: longer than a scrape interval of a minute."""

SEND_SECONDS: Final = 5.0
"""For a client to take its answer."""

HEAD_BYTES_MAX: Final = 16 * 1024
READ_BYTES: Final = 4096

CALM_SECONDS: Final = 60.0
"""After so long without a newcomer that found no place, the flood is over."""

RETRY_SECONDS: Final = 0.1
"""After an `accept` that failed."""

OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def connection_limit() -> int:
    """How many connections there may be, by the descriptors of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    share = CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else soft // DESCRIPTORS_SHARE
    return max(CONNECTIONS_MIN, min(CONNECTIONS_MAX, share))


class Server:
    """Answers GET requests, until cancelled."""

    def __init__(self, answer: Callable[[str], Answer], *, limit: int) -> None:
        """Serve what `answer` says to a path; at most so many connections."""
        self._answer = answer
        self._limit = limit
        # In the order of their last requests.
        self._open: dict[trio.SocketStream, None] = {}
        self._full = False
        self._pushed_out_at = 0.0

    async def serve(self, listener: socket.socket) -> None:
        """Accept and answer. Takes the listener over.

        Error handling: what a client does ends its connection. Cancellation: closes all of them.
        """
        async with trio.open_nursery() as nursery:
            with trio.socket.from_stdlib_socket(listener) as accepting:
                while True:
                    client = await self._accept(accepting)
                    if client is None:
                        await trio.sleep(RETRY_SECONDS)
                        continue
                    if len(self._open) >= self._limit:
                        self._push_out(f"{self._limit} connections")
                    elif self._full and trio.current_time() - self._pushed_out_at > CALM_SECONDS:
                        self._full = False
                        logger.info("http_connections_free")
                    stream = trio.SocketStream(client)
                    self._open[stream] = None
                    nursery.start_soon(self._talk, stream)

    async def _accept(self, accepting: trio.socket.SocketType) -> trio.socket.SocketType | None:
        """The next connection, or None if there is none to be had at present."""
        try:
            return (await accepting.accept())[0]
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTSOCK, errno.EINVAL):
                raise
            if error.errno in OUT_OF_DESCRIPTORS:
                # Not by our doing. Whoever waits longest gives a descriptor back, and the next has it.
                self._push_out(error.strerror or "no descriptor")
            # Else it was gone before it was accepted. Source: accept(2), "Error handling".
            return None

    def _push_out(self, why: str) -> None:
        self._pushed_out_at = trio.current_time()
        if not self._full:
            self._full = True
            logger.warning("http_connections_full", extra={"traksense_reason": why})
        if self._open:
            stream = next(iter(self._open))
            del self._open[stream]
            # At once, rather than by cancelling its task: its descriptor is free for the newcomer.
            stream.socket.close()

    async def _talk(self, stream: trio.SocketStream) -> None:
        try:
            await self._answer_requests(stream, h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX))
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            pass
        finally:
            self._open.pop(stream, None)
            stream.socket.close()

    async def _answer_requests(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        wait = HEAD_SECONDS
        while True:
            request = None
            with trio.move_on_after(wait) as patience:
                request = await _read_request(stream, connection, patience)
            if request is None:
                return
            if stream in self._open:
                del self._open[stream]
                self._open[stream] = None
            with trio.move_on_after(SEND_SECONDS) as patience:
                await stream.send_all(self._response(request, connection))
            if patience.cancelled_caught or connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()
            wait = IDLE_SECONDS

    def _response(self, request: h11.Request, connection: h11.Connection) -> bytes:
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        try:
            status, content_type, body = self._answer(path)
        except Exception:
            # The loop turns, and the service works: that these figures cannot be had ends neither.
            logger.exception("http_answer_failed", extra={"traksense_path": path})
            status, content_type, body = 500, "text/plain; charset=utf-8", b"see the log\n"
        headers = [("content-type", content_type), ("content-length", str(len(body)))]
        events: list[h11.Event] = [h11.Response(status_code=status, headers=headers)]
        if request.method != b"HEAD":
            events.append(h11.Data(data=body))
        return b"".join(connection.send(event) or b"" for event in (*events, h11.EndOfMessage()))


async def _read_request(
    stream: trio.SocketStream, connection: h11.Connection, patience: trio.CancelScope
) -> h11.Request | None:
    """The next request, when all of it is there; None if the client is gone."""
    request = None
    begun = False
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(READ_BYTES))
            if not begun:
                begun = True
                patience.deadline = min(patience.deadline, trio.current_time() + HEAD_SECONDS)
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif not isinstance(event, h11.Data):
            return None
