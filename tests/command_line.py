"""Commands as a user gives them: `python -m traksense …` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import attrs
import trio

from traksense import config

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen
class Outcome:
    """How a command ended, and what it said."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """What it wrote to stdout."""
        return self.stdout.decode()


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Our environment, but of the service's variables only those given."""
    ours = config.variables()
    return {name: value for name, value in os.environ.items() if name not in ours} | dict(env)


def argv(*arguments: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "traksense", *arguments]


async def run_command(env: Mapping[str, str], *arguments: str, stdin: bytes = b"") -> Outcome:
    """Run a command to its end."""
    done = await trio.run_process(
        argv(*arguments), env=environment(env), stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
    )
    assert isinstance(done, subprocess.CompletedProcess)
    return Outcome(done.returncode, done.stdout, done.stderr.decode())
