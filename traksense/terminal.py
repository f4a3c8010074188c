"""What commands say to people: nothing that others named acts on the terminal that shows it."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Final, Literal, TextIO

import attrs

from traksense import cells
from traksense.errors import TraksenseError
from traksense.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PLAIN: Final = {"…": "...", "–": "-", "→": "->", "×": "x", "·": ".", "▸": ">", "≤": "<=", "≥": ">=", "µ": "u"}
"""What our own texts have beyond ASCII, for streams that lack it."""


NO_TERMINAL: Final = (None, "", "dumb")
"""Values of TERM without which, or with which, nothing can be rewritten."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = error.object[error.start]
    return PLAIN.get(first) or first.encode("ascii", "backslashreplace").decode(), error.start + 1


codecs.register_error("traksense.plainly", _plainly)


def say(
    text: str = "", *, to: TextIO | None = None, end: str = "\n", flush: bool = False, hanging: int | None = None
) -> None:
    """Print lines to stdout, or to another stream.

    Control and format characters are escaped, but for line breaks and tabs; so is what the stream's encoding lacks.
    Every command prints through this; a test looks for those that do not. What stderr does not take is dropped: the
    work that a remark is about goes on, and the exit status says how it ended.

    Args:
        text: One line or more.
        to: The stream.
        end: Comes after it.
        flush: Whether it has to be seen at once.
        hanging: On a terminal, lines that are too long are broken at spaces, and go on indented by so much. None: they
            are left to the terminal, so that what is copied from it stays in one line.

    Raises:
        BrokenPipeError: Nobody reads stdout any more.
        TraksenseError: It cannot be written to stdout.
    """
    stream = sys.stdout if to is None else to
    screen = Screen.of(stream)
    shown = "".join(part if part in ("\n", "\t") else screen.shown(part) for part in re.split("([\n\t])", text))
    if hanging is not None and screen.columns is not None:
        lines = (line for long in shown.split("\n") for line in cells.wrapped(long, screen.columns, hanging))
        shown = "\n".join(lines)
    try:
        print(shown, end=end, file=stream, flush=flush)
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


@attrs.frozen
class Screen:
    """What a stream can show.

    Attributes:
        columns: Cells on a line of the terminal; None if it is none, so that nothing has to be cut.
        encoding: Its encoding.
    """

    columns: int | None = None
    encoding: str = "utf-8"

    @classmethod
    def of(cls, stream: TextIO | None = None) -> Screen:
        """As it is now: a terminal can be resized."""
        stream = sys.stdout if stream is None else stream
        encoding = getattr(stream, "encoding", None) or "ascii"
        try:
            columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
        except (AttributeError, OSError, ValueError):
            return cls(None, encoding)
        if columns == 0:  # a serial line does not know its width
            columns = shutil.get_terminal_size().columns
        return cls(columns, encoding)

    @property
    def draws(self) -> bool:
        """Whether it is a terminal that a page can be drawn on, with lines and bars."""
        drawn = "╭▁●✓"
        return self.columns is not None and self.shown(drawn) == drawn and os.environ.get("TERM") not in NO_TERMINAL

    def shown(self, text: str) -> str:
        """One line as it can be shown: what would act on the terminal is escaped, and so is what cannot be encoded."""
        text = printable(text)
        return text if text.isascii() else text.encode(self.encoding, "traksense.plainly").decode(self.encoding)

    def table(
        self, columns: Sequence[cells.Column], rows: Sequence[Sequence[str]], *, dispensable: Sequence[str] = ()
    ) -> Iterator[str]:
        """A line for each row: cut so that none is longer than the terminal is wide, else whole. See `cells.table`."""
        shown = [tuple(map(self.shown, row)) for row in rows]
        return cells.table(columns, shown, self.columns, mark=self.shown("…"), dispensable=dispensable)


WHOLE: Final = Screen()
"""No terminal: nothing is cut."""


def counted(number: int, name: str) -> str:
    """A number of things, in words: `1 row`, `2 rows`."""
    return f"{number} {name}{'' if number == 1 else 's'}"
