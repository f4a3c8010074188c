"""What commands say to people: nothing that others named acts on the terminal that shows it."""

from __future__ import annotations

import os
import re
import sys
from typing import Literal, TextIO

from traksense.errors import TraksenseError
from traksense.names import printable


def say(text: str = "", *, to: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print lines to stdout, or to another stream.

    Control and format characters are escaped, but for line breaks and tabs; so is what the stream's encoding lacks.
    Every command prints through this; a test looks for those that do not. What stderr does not take is dropped: the
    work that a remark is about goes on, and the exit status says how it ended.

    Raises:
        BrokenPipeError: Nobody reads stdout any more.
        TraksenseError: It cannot be written to stdout.
    """
    stream = sys.stdout if to is None else to
    shown = "".join(map(printable_but_breaks, re.split("([\n\t])", text)))
    encoding = getattr(stream, "encoding", None) or "ascii"
    try:
        print(shown.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=flush)
    except OSError as error:
        if stream is sys.stderr:
            return
        if isinstance(error, BrokenPipeError):
            raise
        raise TraksenseError(f"cannot write the output: {error.strerror or error}") from error


def replace_closed(name: Literal["stdout", "stderr"]) -> None:
    """Let a stream that was closed by whoever started us (`>&-`) lead to /dev/null.

    Otherwise it is None in Python, and the first file or socket to be opened takes its number: what a library writes
    to standard error would go to the database.
    """
    if getattr(sys, name) is None:
        number = {"stdout": 1, "stderr": 2}[name]
        descriptor = os.open(os.devnull, os.O_WRONLY)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def printable_but_breaks(part: str) -> str:
    """As `printable`; a line break or a tab alone stays."""
    return part if part in ("\n", "\t") else printable(part)
