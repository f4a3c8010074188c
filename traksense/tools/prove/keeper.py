"""Keeps the service running as an init system would, and ends it when asked to."""

from __future__ import annotations

import math
import signal
import sys
from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.prove.saboteur import BREAKAGES, CLOCK_SUFFIX
from traksense.tools.prove.witness import Remarks
from traksense.tools.stack import ServiceProcess
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RESTART_SECONDS: Final = 0.1
REACH_SECONDS: Final = 4.0
"""How long a kill point may take to be reached; then the service is killed where it is."""

SLACK_SECONDS: Final = 5.0
"""How much longer than its own deadline the service may take to end after SIGTERM, on a busy machine."""

NOT_REPLACED: Final = "not-replaced"
"""For `--break`: what is lost with its host stays away."""

MISUSED: Final = 2
"""How a service ends whose session another client has taken over: its configuration is wrong. A test holds it to
`cli.MISUSED`."""

_SIGKILL: Final = signal.SIGKILL
KILLED: Final = -_SIGKILL


class Keeper:
    """Runs the service, again and again.

    Attributes:
        starts: How often it was started.
        kills: How often it was killed.
        unreached: Kill points that were not reached in time.
        misbehaved: Ends that nobody asked for, and wrong ends of those that somebody asked for.
    """

    def __init__(self, env: Mapping[str, str], directory: Path, *, breakage: str | None = None) -> None:
        self.starts = 0
        self.kills = 0
        self.unreached = 0
        self.misbehaved = Remarks()
        self.process: ServiceProcess | None = None
        self._env = dict(env)
        self._directory = directory
        self._arm_file = directory / "armed"
        self._clock_file = directory / f"armed{CLOCK_SUFFIX}"
        self._command = [sys.executable, "-P", "-m", "traksense.tools.prove.saboteur", str(self._arm_file)]
        if breakage in BREAKAGES:
            self._command += ["--break", breakage]
        self._deadline = float(env["INGEST_SHUTDOWN_SECONDS"]) + SLACK_SECONDS
        self._replaces = breakage != NOT_REPLACED
        self._absence = RESTART_SECONDS
        self._expected: tuple[int, ...] = ()
        self._finishing = False
        self._ended = trio.Event()
        self._watching = trio.CancelScope()

    async def run(self) -> None:
        """Start it, and start it again whenever it ends, until `finish` or cancelled.

        Cancellation: the service is killed, which takes a moment only.
        """
        try:
            while not self._finishing:
                self.process = ServiceProcess(self._env, self._directory, command=self._command)
                self.starts += 1
                with trio.CancelScope() as self._watching:
                    self._note_end(await self.process.wait())
                    if not self._finishing:
                        await trio.sleep(self._absence)
                    self._absence = RESTART_SECONDS
        finally:
            if self.process is not None:
                self.process.kill()

    def configure(self, **variables: str) -> None:
        """From the next start on."""
        self._env |= variables

    def set_clock(self, off_seconds: float) -> None:
        """From now on, its clock is off by so much."""
        if off_seconds:
            self._clock_file.write_text(str(off_seconds), encoding="ascii")
        else:
            self._clock_file.unlink(missing_ok=True)

    def _note_end(self, status: int) -> None:
        if status not in self._expected:
            asked = " or ".join(map(str, self._expected)) or "none at all"
            self.misbehaved.add(f"the service ended with status {status}, expected was {asked}")
        self._expected = ()
        self._ended.set()
        self._ended = trio.Event()

    async def kill(self) -> None:
        """SIGKILL, now."""
        process = self._running()
        if process is None:
            # It has just ended and starts again in a moment: that is a kill's effect already.
            await trio.sleep(RESTART_SECONDS)
            return
        self._expected = (KILLED,)
        self.kills += 1
        ended = self._ended
        process.send_signal(_SIGKILL)
        await ended.wait()

    async def lose(self, seconds: float) -> bool:
        """SIGKILL, as if its host had died; another is in its place later. Says whether there was one to lose."""
        if self._running() is None:
            return False
        self._absence = seconds if self._replaces else math.inf
        await self.kill()
        await trio.sleep(seconds)
        return True

    async def take_over(self, seconds: float) -> bool:
        """Start another with the same client identifier while this one lives and works, and end this one later.

        That is an orchestrator that starts before it stops. A broker that says so (0x8E) ends the first at once; with
        Mosquitto 2.0.11, which does not, the two take the session from each other. Says whether there was a service.
        """
        process = self._running()
        if process is None:
            return False
        starting = (await process.get("/healthz"))[0] == 0
        # The first one is no longer looked after by `run`, which starts the second.
        self._watching.cancel()
        try:
            await trio.sleep(seconds)
            process.terminate()
            with trio.move_on_after(self._deadline) as scope:
                status = await process.wait()
                if status not in (0, MISUSED, -signal.SIGTERM if starting else 0):
                    self.misbehaved.add(f"the service whose session was taken over ended with status {status}")
            if scope.cancelled_caught:
                self.misbehaved.add(f"the service had not ended {self._deadline:.0f} s after SIGTERM")
        finally:
            process.kill()
        return True

    async def kill_at(self, point: str, passage: int) -> bool:
        """SIGKILL at the passage-th time that a point of `saboteur` is reached; says whether it was, in time."""
        self._arm_file.write_text(f"{point} {passage}", encoding="ascii")
        self._expected = (KILLED,)
        ended = self._ended
        with trio.move_on_after(REACH_SECONDS):
            await ended.wait()
        try:
            self._arm_file.unlink()
        except FileNotFoundError:
            self.kills += 1
            return True
        self.unreached += 1
        await self.kill()
        return False

    async def freeze(self, seconds: float) -> bool:
        """SIGSTOP, and SIGCONT later; says whether there was a service to freeze."""
        process = self._running()
        if process is None:
            return False
        process.send_signal(signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            process.send_signal(signal.SIGCONT)
        return True

    async def replace(self, seconds: float, overlap_seconds: float) -> bool:
        """Freeze it, start another in its place, and let the first wake up later, for a moment, before it is killed.

        That is what an orchestrator does with a node that it cannot reach. Says whether there was a service to replace.
        """
        process = self._running()
        if process is None:
            return False
        process.send_signal(signal.SIGSTOP)
        self._watching.cancel()
        try:
            await trio.sleep(seconds)
            process.send_signal(signal.SIGCONT)
            await trio.sleep(overlap_seconds)
        finally:
            process.kill()
            self.kills += 1
        return True

    async def restart(self) -> None:
        """SIGTERM, wait for its end; it is started again."""
        process = self._running()
        if process is None:
            await trio.sleep(RESTART_SECONDS)
            return
        # Before it listens it may not have installed its signal handler: then SIGTERM just ends it, which is as safe.
        starting = (await process.get("/healthz"))[0] == 0
        self._expected = (0, -signal.SIGTERM) if starting else (0,)
        ended = self._ended
        process.terminate()
        with trio.move_on_after(self._deadline) as scope:
            await ended.wait()
        if scope.cancelled_caught:
            self.misbehaved.add(f"the service had not ended {self._deadline:.0f} s after SIGTERM")
            await self.kill()

    async def finish(self) -> None:
        """SIGTERM for the last time."""
        self._finishing = True
        await self.restart()

    async def wait_ready(self) -> None:
        """Wait until the service is ready for the first time.

        Raises:
            StackError: It ended, or was not ready in time.
        """
        while self.process is None:
            await trio.sleep(POLL_SECONDS)
        await self.process.wait_ready()

    async def ready(self) -> bool:
        """Whether `/readyz` says so."""
        process = self._running()
        return process is not None and (await process.get("/readyz"))[0] == 200

    def _running(self) -> ServiceProcess | None:
        return self.process if self.process is not None and self.process.status is None else None
