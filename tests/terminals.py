"""A pseudo-terminal: what a command shows there, and what of it stays."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@contextlib.contextmanager
def open_terminal(columns: int = 80) -> Iterator[tuple[int, int]]:
    """Its two ends: the one that a person sees, and the one that a program writes to."""
    seen, written = os.openpty()
    fcntl.ioctl(written, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        yield seen, written
    finally:
        os.close(seen)
        with contextlib.suppress(OSError):
            os.close(written)


def read_all(seen: int) -> str:
    """What was written until nobody has the other end open any more."""
    parts = []
    with contextlib.suppress(OSError):  # EIO: the end
        while part := os.read(seen, 65_536):
            parts.append(part)
    return b"".join(parts).decode()


def run_on_terminal(argv: Sequence[str], env: Mapping[str, str], *, columns: int = 80) -> tuple[int, str]:
    """Run a command on one to its end; its exit status, and all that it wrote."""
    with open_terminal(columns) as (seen, written):
        process = subprocess.Popen(
            argv, env={**env, "TERM": "xterm"}, stdin=subprocess.DEVNULL, stdout=written, stderr=written
        )
        os.close(written)
        text = read_all(seen)
        return process.wait(), text


def left(text: str) -> list[str]:
    """The lines that stay, once what was erased is gone."""
    return [re.sub(r".*\r\x1b\[K", "", line) for line in text.removesuffix("\r\n").split("\r\n")]
