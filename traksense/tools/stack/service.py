"""The service as a real child process: `python -m traksense run`, watched through log and HTTP endpoint."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from prometheus_client.parser import text_string_to_metric_families

import traksense
from traksense import config
from traksense.tools.stack.errors import StackError
from traksense.tools.stack.processes import KILL_SECONDS, POLL_SECONDS, Child
from traksense.tools.stack.servers import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

Labels = tuple[tuple[str, str], ...]
"""Label names and values, sorted by name."""

READY_SECONDS: Final = 120.0
"""From the start until `/readyz` says 200. Chosen by guess, as `Server.ready_seconds`."""
_HTTP_SECONDS: Final = 5.0


class Samples(dict[tuple[str, Labels], float]):
    """One scrape: the value of every sample, by name and labels."""

    def value(self, name: str, /, **labels: str) -> float:
        """The sample with exactly these labels; 0 if there is none, as for a counter that never counted."""
        return self.get((name, tuple(sorted(labels.items()))), 0.0)

    def total(self, name: str, /, **labels: str) -> float:
        """The sum over all samples that have at least these labels."""
        wanted = set(labels.items())
        return sum(value for (sample, has), value in self.items() if sample == name and wanted <= set(has))


class ServiceProcess:
    """A running service; see `open_service`."""

    def __init__(
        self, env: Mapping[str, str], directory: Path, *, name: str = "traksense", command: Sequence[str] = ()
    ) -> None:
        self.env = dict(env)
        if self.env.get("METRICS_PORT", "0") == "0":
            self.env["METRICS_PORT"] = str(free_port())
        self.env.setdefault("METRICS_HOST", LOOPBACK)
        self.base_url = f"http://{LOOPBACK}:{self.env['METRICS_PORT']}"
        self.log_path = directory / f"{name}.log"
        self._started_at = time.monotonic()
        deadline = float(self.env.get("INGEST_SHUTDOWN_SECONDS", config.Settings().shutdown_deadline))
        self._child = Child(
            name,
            command or (sys.executable, "-P", "-m", "traksense", "run"),
            log_path=self.log_path,
            env=_environment() | self.env,
            grace_seconds=deadline + KILL_SECONDS,
        )

    @property
    def pid(self) -> int:
        """The process id; it may have ended."""
        return self._child.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._child.status

    @property
    def metrics_url(self) -> str:
        """Where Prometheus would scrape."""
        return f"{self.base_url}/metrics"

    def terminate(self) -> None:
        """SIGTERM: drain and end."""
        self._child.send_signal(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, or do nothing if it has ended."""
        self._child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()

    async def wait(self) -> int:
        """Wait for its end and give the exit status.

        Trio-flavored.
        """
        return await self._child.wait()

    async def stop(self) -> int:
        """SIGTERM, SIGKILL some time after its own shutdown deadline, and the exit status.

        Trio-flavored.
        """
        return await self._child.stop()

    async def wait_ready(self) -> None:
        """Wait until `/readyz` says 200.

        Raises:
            StackError: It ended, or is not ready `READY_SECONDS` after its start; with what it gave as the
            reason.

        Trio-flavored.
        """
        while True:
            self._child.check_running()
            status, body = await self.get("/readyz")
            if status == 200:
                return
            if time.monotonic() > self._started_at + READY_SECONDS:
                why = body.strip().replace("\n", " ") or "no answer"
                raise StackError(
                    f"the service was not ready {READY_SECONDS:.0f} s after its start: {why}; "
                    f"last said: {self._child.last_words()} (log: {self.log_path})"
                )
            await trio.sleep(POLL_SECONDS)

    async def get(self, path: str) -> tuple[int, str]:
        """GET a path of its HTTP endpoint: the status (0 if there was no answer) and the body.

        Trio-flavored.
        """
        return await trio.to_thread.run_sync(_get, f"{self.base_url}{path}", abandon_on_cancel=True)

    async def readiness(self) -> tuple[int, Any]:
        """What `/readyz` says: the status and the JSON body, None if there is none.

        Trio-flavored.
        """
        status, body = await self.get("/readyz")
        try:
            return status, json.loads(body)
        except ValueError:
            return status, None

    async def metrics(self) -> Samples:
        """Scrape it.

        Raises:
            StackError: It did not answer.

        Trio-flavored.
        """
        status, body = await self.get("/metrics")
        if status != 200:
            self._child.check_running()
            raise StackError(
                f"{self.metrics_url} answered {status or 'nothing'}: is the service ready? (log: {self.log_path})"
            )
        return parse_metrics(body)


@contextlib.asynccontextmanager
async def open_service(
    env: Mapping[str, str], directory: Path, *, name: str = "traksense", command: Sequence[str] = ()
) -> AsyncIterator[ServiceProcess]:
    """Start the service; on the way out it is stopped, if it still runs.

    Args:
        env: Its variables. Those of our own environment do not reach it. `METRICS_PORT` 0 or unset takes a
        free one.
        directory: Where its log goes.
        name: For the log and for messages, when there are several.
        command: To run a variant of the service. Default: `python -m traksense run`.

    Cancellation: the service drains all the same, within its shutdown deadline.

    Trio-flavored.
    """
    directory.mkdir(parents=True, exist_ok=True)
    service = ServiceProcess(env, directory, name=name, command=command)
    try:
        await trio.lowlevel.checkpoint()
        yield service
    finally:
        with trio.move_on_after(service._child.grace_seconds + KILL_SECONDS, shield=True):
            await service.stop()


def parse_metrics(text: str) -> Samples:
    """Read Prometheus's text format."""
    return Samples(
        ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def _environment() -> dict[str, str]:
    """Our environment without the variables that would configure the service behind the caller's back."""
    ours = config.variables()
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    source_tree = Path(traksense.__file__).parents[1]
    if source_tree != Path(sysconfig.get_path("purelib")):
        # -P keeps the working directory off the path: a folder named traksense there would hide the package.
        found = (os.fspath(source_tree), environment.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    return environment


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_SECONDS) as answer:  # noqa: S310  (our own http:// URL)
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        # HTTPException: it ended in the middle of its answer.
        return 0, ""
