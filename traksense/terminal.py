"""What commands say to people: nothing that others named acts on the terminal that shows it."""

from __future__ import annotations

import re
import sys
from typing import TextIO

from traksense.errors import TraksenseError
from traksense.names import printable


def say(text: str = "", *, to: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print lines to stdout, or to another stream.

    Control and format characters are escaped, but for line breaks and tabs; so is what the stream's encoding lacks.
    Every command prints through this; a test looks for those that do not.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        TraksenseError: It cannot be written.
    """
    stream = sys.stdout if to is None else to
    shown = "".join(map(printable_but_breaks, re.split("([\n\t])", text)))
    encoding = getattr(stream, "encoding", None) or "ascii"
    try:
        print(shown.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=flush)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TraksenseError(f"cannot write the output: {error.strerror or error}") from error


def printable_but_breaks(part: str) -> str:
    """As `printable`; a line break or a tab alone stays."""
    return part if part in ("\n", "\t") else printable(part)
