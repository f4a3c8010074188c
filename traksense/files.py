"""Reads the small text files that variables and arguments name: bounded in length and in time, whatever they are."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TEXT_MAX_BYTES: Final = 1024 * 1024
"""What is longer is neither a secret nor a file of variables, and may have no end (`/dev/zero`)."""

SILENCE_SECONDS: Final = 30.0
"""How long a pipe may bring nothing. Chosen by guess: its writer may have to ask a server for a secret."""

_PIECE_BYTES: Final = 64 * 1024


def read_text(path: str | Path) -> str:
    """The text of a regular file or of a pipe, as the shell makes them: `<(...)`.

    Raises:
        ValueError: It cannot be read. The text says why, and has neither the path nor what is in the file.
    """
    content = b""
    try:
        # Otherwise the open of a named pipe waits for a writer, for ever.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            while piece := _read(file):
                content += piece
                if len(content) > TEXT_MAX_BYTES:
                    raise ValueError(f"it is longer than {TEXT_MAX_BYTES} bytes")
        finally:
            os.close(file)
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from None
    try:
        # Editors of Windows begin a file with a byte order mark.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def _read(file: int) -> bytes:
    ready = select.poll()
    ready.register(file, select.POLLIN)
    if not ready.poll(SILENCE_SECONDS * 1000):
        raise ValueError(f"nothing came out of it for {SILENCE_SECONDS:.0f} s: its writer is missing or too slow")
    return os.read(file, _PIECE_BYTES)
