"""One careful way to run a child process.

A `Child` is one run of a program: its output goes to a log file, it ends when we end, and it is stopped
politely before it is killed.

Everything blocking has a plain name that ends in `_sync`, for pytest's session fixtures, which cannot be
asynchronous; the Trio-flavored functions are thin shells around the same steps.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.tools.stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

POLL_SECONDS: Final = 0.02
"""Chosen by guess: well below what a person notices, well above what a probe costs."""
KILL_SECONDS: Final = 10.0
"""How long a process may take to vanish after SIGKILL before something is badly wrong."""
_TAIL_BYTES: Final = 4096
_TAIL_LINES: Final = 3


@attrs.frozen
class Identity:
    """An unprivileged user for a program that refuses to run as root."""

    name: str
    uid: int
    gid: int


class Child:
    """One run of a program.

    Resource handling: the child gets a session of its own, so that Ctrl-C reaches only us and we stop things
    in order. On Linux it gets `stop_signal` when we die, however we die. Trap: the kernel counts the death of
    the *thread* that started the child. So a child is started on a thread that lives on (the main thread,
    Trio's thread), and `trio.to_thread`, whose workers go away after ten idle seconds, is refused. Source:
    prctl(2), PR_SET_PDEATHSIG.

    Raises:
        StackError: The program could not be started.
        RuntimeError: Started through `trio.to_thread`.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        identity: Identity | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 10.0,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.grace_seconds = grace_seconds
        self._stop_signal = stop_signal
        if _on_a_worker_thread():
            raise RuntimeError(f"{name} would end with this thread of Trio's: start it on a thread that lives on")
        try:
            with log_path.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(  # noqa: S603  (our own command, no shell)
                    [*_die_with_parent(stop_signal), *map(str, argv)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,
                    user=identity.uid if identity else None,
                    group=identity.gid if identity else None,
                    extra_groups=[] if identity else None,
                )
        except OSError as error:
            raise StackError(f"{name} could not be started from {argv[0]}: {error.strerror or error}") from error

    @property
    def pid(self) -> int:
        """The process id; it may have ended."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, or do nothing if it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait the moment that it takes to be gone."""
        self._process.kill()
        try:
            self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            raise StackError(f"{self.name} (pid {self.pid}) did not end on SIGKILL: its disk may be stuck") from None

    def stop_sync(self) -> int:
        """Ask it to stop, kill it after the grace period, and give the exit status."""
        self.send_signal(self._stop_signal)
        try:
            return self._process.wait(self.grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    async def stop(self) -> int:
        """Ask it to stop, kill it after the grace period, and give the exit status.

        Cancellation: the child is killed at once.

        Trio-flavored.
        """
        self.send_signal(self._stop_signal)
        try:
            with trio.move_on_after(self.grace_seconds):
                return await self.wait()
        finally:
            self.kill()
        return self._process.wait()

    async def wait(self) -> int:
        """Wait for its end and give the exit status.

        Trio-flavored.
        """
        while (status := self.status) is None:
            await trio.sleep(POLL_SECONDS)
        await trio.lowlevel.checkpoint()
        return status

    def check_running(self) -> None:
        """Do nothing while it runs.

        Raises:
            StackError: It has ended; with the last lines of its log.
        """
        if (status := self.status) is not None:
            how = f"exited with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
            raise StackError(f"{self.name} {how}: {self.last_words()} (log: {self.log_path})")

    def last_words(self) -> str:
        """The last lines that this run wrote to the log, on one line."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError as error:
            return f"its log cannot be read ({error.strerror})"
        return _on_one_line(text)


def run_to_end(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    identity: Identity | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself; one that cannot be started has status 127, as in a shell.

    In a session of its own, as a `Child`: what Ctrl-C reaches would look as if it had failed.
    """
    try:
        return subprocess.run(  # noqa: S603  (our own command, no shell)
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            start_new_session=True,
            user=identity.uid if identity else None,
            group=identity.gid if identity else None,
            extra_groups=[] if identity else None,
        )
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The last lines of what a program said, on one line."""
    return _on_one_line(done.stderr or done.stdout)


def _on_one_line(text: str) -> str:
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(said[-_TAIL_LINES:]) or "it said nothing"


@functools.cache
def _setpriv() -> str | None:
    """The program that sets the parent-death signal, if it is here and knows how (BusyBox's does not).

    A preexec function could do the same, but runs Python between fork and exec, which Python calls unsafe
    beside threads.
    """
    path = shutil.which("setpriv")
    if path is None:
        return None
    trial = run_to_end([path, "--pdeathsig", "TERM", "true"])
    return path if trial.returncode == 0 else None


def _on_a_worker_thread() -> bool:
    try:
        trio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    return True


def _die_with_parent(number: signal.Signals) -> list[str]:
    """A command that runs the command after it in its own place, to get this signal when we die."""
    path = _setpriv()
    if path is None:
        return []
    # We may be dead before setpriv has asked for the signal; then the parent is another one by now.
    run_unless_orphaned = 'test "$PPID" = "$0" && exec "$@"'
    name = number.name.removeprefix("SIG")
    return [path, "--pdeathsig", name, "--", "/bin/sh", "-c", run_unless_orphaned, str(os.getpid())]
