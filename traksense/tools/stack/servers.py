"""A server on the loopback interface that is started, stopped, killed and started again on the same port and directory.

Everything blocking has a plain name that ends in `_sync`, for pytest's session fixtures, which cannot be
asynchronous; the Trio-flavored functions are thin shells around the same steps.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Self

import trio

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.processes import KILL_SECONDS, POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from traksense.tools.stack.processes import Child

LOOPBACK: Final = "127.0.0.1"
PROBE_SECONDS: Final = 1.0
"""How long a server may take to answer a probe."""

_FIRST_PORT: Final = 15_000
_LAST_PORT: Final = 32_000
_SLICE: Final = 50
"""Ports that one process takes at a time, for itself alone."""

_ports_left: list[int] = []
os.register_at_fork(after_in_child=_ports_left.clear)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on and that was not given out before, to this process or
    to another one that still runs: who asked for it may not have bound it yet, or restarts just now.

    It lies below the range from which Linux (32768 and up) and macOS (49152 and up) number outgoing
    connections. A port from that range could be taken by any client while the server that owns it restarts.

    Raises:
        StackError: All are taken.
    """
    slices = _slices()
    while True:
        # Other threads may be here, too: a list's pop and extend are one step each.
        with contextlib.suppress(IndexError):
            while True:
                port = _ports_left.pop()
                with socket.socket() as probe, contextlib.suppress(OSError):
                    probe.bind((LOOPBACK, port))
                    return port
        first = next(slices, None)
        if first is None:
            raise StackError(
                f"no free TCP port between {_FIRST_PORT} and {_LAST_PORT} on {LOOPBACK}: stop what is using them"
            )
        _take(first)


def _take(first: int) -> None:
    """Take a slice of ports if no process has it. The sign is a UDP socket of the same number, which hinders no TCP
    server and goes with the process.
    """
    held = socket.socket(type=socket.SOCK_DGRAM)
    try:
        held.bind((LOOPBACK, first))
    except OSError:
        held.close()
        return
    held.detach()
    _ports_left.extend(random.SystemRandom().sample(range(first, first + _SLICE), _SLICE))


def _slices() -> Iterator[int]:
    """The first ports of all slices, in another order each time."""
    firsts = range(_FIRST_PORT, _LAST_PORT, _SLICE)
    yield from random.SystemRandom().sample(firsts, len(firsts))


class Server(ABC):
    """Something that listens on a port of the loopback interface and keeps its state in a directory.

    Start, stop, kill and start again, as often as wanted: the port, the directory and the credentials stay
    the same.
    """

    ready_seconds: float = 120.0
    """From its start until it answers. Chosen by guess for a machine on which sixteen others want the processors; one
    that ends is noticed at once.
    """

    def __init__(self, name: str, directory: Path, port: int) -> None:
        self.name = name
        self.directory = directory
        self.host = LOOPBACK
        self.port = port or free_port()
        self._child: Child | None = None
        self._deadline = 0.0

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self.directory / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """The process id of the present run."""
        return self._running_child().pid

    @property
    def running(self) -> bool:
        """Whether the process is there; it may not be ready yet."""
        return self._child is not None and self._child.status is None

    @abstractmethod
    def _prepare(self) -> None:
        """Blocking: make what the start needs. Runs in a worker thread, so it starts no child that stays."""

    @abstractmethod
    def _launch(self) -> Child:
        """Start the child; quick."""

    @abstractmethod
    def _answers(self) -> bool:
        """Blocking, for at most a second or so: whether it serves a client now."""

    def start_sync(self) -> None:
        """Start it and wait until it answers. Does nothing if it runs.

        Raises:
            StackError: It ended, or did not answer in time.
        """
        if self.running:
            return
        self._clear_the_way()
        self._begin()
        try:
            while not self._is_ready():
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.kill()
            raise

    async def start(self) -> None:
        """Start it and wait until it answers. Does nothing if it runs.

        Raises:
            StackError: It ended, or did not answer in time.

        Trio-flavored.
        """
        if self.running:
            await trio.lowlevel.checkpoint()
            return
        await trio.to_thread.run_sync(self._clear_the_way)
        self._begin()
        try:
            while not await trio.to_thread.run_sync(self._is_ready):
                await trio.sleep(POLL_SECONDS)
        except BaseException:
            self.kill()
            raise

    def stop_sync(self) -> None:
        """Stop it in its own polite way, by force after the grace period. Does nothing if it does not run."""
        if self._child is not None:
            self._child.stop_sync()

    async def stop(self) -> None:
        """Stop it in its own polite way, by force after the grace period. Does nothing if it does not run.

        Trio-flavored.
        """
        if self._child is not None:
            await self._child.stop()

    def restart_sync(self) -> None:
        """Stop and start."""
        self.stop_sync()
        self.start_sync()

    async def restart(self) -> None:
        """Stop and start.

        Trio-flavored.
        """
        await self.stop()
        await self.start()

    def kill(self) -> None:
        """SIGKILL: what a crash or the OOM killer does. Does nothing if it does not run."""
        if self._child is not None:
            self._child.kill()

    def __enter__(self) -> Self:
        self.start_sync()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_sync()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Start on the way in, stop on the way out.

        Cancellation: it is stopped politely all the same, within its grace period.

        Trio-flavored.
        """
        await self.start()
        try:
            yield self
        finally:
            grace = self._child.grace_seconds if self._child else 0.0
            with trio.move_on_after(grace + KILL_SECONDS, shield=True):
                await self.stop()

    def _clear_the_way(self) -> None:
        """Blocking: all that comes before the child."""
        self._prepare()
        # Whoever listens there would answer before ours has failed, and be taken for it: a broker of somebody's, to
        # which a demo would then publish.
        if listens(self.host, self.port):
            raise StackError(f"{self.name} cannot listen on {self.host}:{self.port}: something else does already")

    def _begin(self) -> None:
        self._child = self._launch()
        self._deadline = time.monotonic() + self.ready_seconds

    def _is_ready(self) -> bool:
        child = self._running_child()
        child.check_running()
        if self._answers():
            # Not somebody else's server on the same port while ours just failed to bind it.
            child.check_running()
            return True
        if time.monotonic() > self._deadline:
            raise StackError(
                f"{self.name} did not answer on {self.host}:{self.port} within {self.ready_seconds:.0f} s: "
                f"{child.last_words()} (log: {self.log_path})"
            )
        return False

    def _running_child(self) -> Child:
        if self._child is None:
            raise StackError(f"{self.name} has not been started: call start() first")
        return self._child


def listens(host: str, port: int) -> bool:
    """Whether somebody takes connections there."""
    try:
        with socket.create_connection((host, port), PROBE_SECONDS):
            return True
    except OSError:
        return False
