"""Text in the cells of a terminal, where a wide character takes two and a combining mark none: cuts, lines, tables."""

from __future__ import annotations

import unicodedata
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GAP: Final = "  "
"""Between two columns."""

PAD_MAX: Final = 40
"""For names that others chose: one long one does not widen the table. Chosen by guess."""

LEAST: Final = 8
"""A cell is cut to no fewer cells than this."""


@attrs.frozen
class Column:
    """One column of a table.

    Attributes:
        heading: Its name; empty in a table without headings.
        least: To how many cells it may be cut before others are left out; None: it is shown whole.
        right: Whether its cells stand to the right, as numbers do.
        ends: Whether the ends of its cells say more than their middles, as with topics.
        pad: Where nothing is cut, a cell that is longer sticks out of its column rather than widen it, if it is one
            that may be cut.
    """

    heading: str = ""
    least: int | None = None
    right: bool = False
    ends: bool = False
    pad: int = PAD_MAX


def width(text: str) -> int:
    """How many cells it takes. Source: Unicode Standard Annex 11; what is ambiguous there is narrow."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me") or "\u1160" <= character <= "\u11ff":
        return 0  # of a Hangul syllable in pieces, the first takes the cells of all
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def cut(text: str, room: int, mark: str = "…", *, ends: bool = False) -> str:
    """As much of it as there is room for: its beginning, or with `ends` less of that and more of its end. A mark stands
    for what is left out.

    Args:
        text: One line.
        room: Cells.
        mark: Stands for what is missing.
        ends: Leave out the middle.
    """
    if width(text) <= room:
        return text
    room = max(0, room - width(mark))
    tail = _end(text, room * 2 // 3) if ends else ""
    return f"{_beginning(text, room - width(tail))}{mark}{tail}"


def _beginning(text: str, room: int) -> str:
    taken = 0
    for index, character in enumerate(text):
        taken += _cells(character)
        if taken > room:
            return text[:index]
    return text


def _end(text: str, room: int) -> str:
    first, taken = len(text), 0
    for index in range(len(text) - 1, -1, -1):
        taken += _cells(text[index])
        if taken > room:
            break
        if _cells(text[index]):  # a mark stays with the character before it
            first = index
    return text[first:]


def wrapped(line: str, room: int, hanging: int = 0) -> Iterator[str]:
    """It in lines of so many cells, broken at spaces; all but the first are indented.

    A word that is longer than a line stays whole.
    """
    begin = 0
    while width(line) > room:
        ends = list(accumulate(map(_cells, line)))
        spaces = [index for index, c in enumerate(line) if c == " " and line[begin:index].strip()]
        at = max((index for index in spaces if ends[index] - 1 <= room), default=min(spaces, default=None))
        if at is None:
            break
        yield line[:at].rstrip()
        line = " " * hanging + line[at:].lstrip()
        begin = hanging
    yield line


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    room: int | None,
    *,
    mark: str = "…",
    dispensable: Sequence[str] = (),
) -> Iterator[str]:
    """A line for each row, below one of the headings if there are any.

    Args:
        columns: What is in them.
        rows: A cell for each column.
        room: Cells on a line, or None: then all is shown, however long.
        mark: Stands for what is cut.
        dispensable: Headings of columns to leave out, in this order, as long as a line is too long.
    """
    if any(column.heading for column in columns):
        rows = [tuple(column.heading for column in columns), *rows]
    natural = [max(map(width, cells)) for cells in zip(*rows, strict=True)]
    if room is None:
        kept = list(range(len(columns)))
        widths = [size if c.least is None else min(size, c.pad) for c, size in zip(columns, natural, strict=True)]
    else:
        kept, widths = _fitted(columns, natural, room, dispensable)
    for number, row in enumerate(rows):
        cells = []
        for place, size in zip(kept, widths, strict=True):
            column = columns[place]
            text = row[place] if room is None else cut(row[place], size, mark, ends=column.ends)
            pad = " " * (size - width(text))
            cells.append(pad + text if column.right and (number or not column.heading) else text + pad)
        line = GAP.join(cells).rstrip()
        # Where not even the least fits, the columns to the right are cut off: a wrapped table is none.
        yield line if room is None else cut(line, room, mark)


def _fitted(
    columns: Sequence[Column], natural: Sequence[int], room: int, dispensable: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Which columns are shown, and how wide: the widest are cut first."""
    kept = list(range(len(columns)))
    for leave_out in (*dispensable, None):
        leasts = [natural[place] if (least := columns[place].least) is None else least for place in kept]
        widths = _narrowed([natural[place] for place in kept], leasts, room)
        if leave_out is None or sum(widths) + len(GAP) * (len(kept) - 1) <= room:
            break
        kept = [place for place in kept if columns[place].heading != leave_out]
    if sum(widths) + len(GAP) * (len(kept) - 1) > room:
        leasts = [size if columns[place].least is None else LEAST for place, size in zip(kept, widths, strict=True)]
        widths = _narrowed(widths, leasts, room)
    return kept, widths


def _narrowed(widths: list[int], leasts: Sequence[int], room: int) -> list[int]:
    widths = [min(size, max(room, least)) for size, least in zip(widths, leasts, strict=True)]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - room
    for _ in range(excess):
        size, place = max((s, p) if s > leasts[p] else (0, p) for p, s in enumerate(widths))
        if not size:
            break
        widths[place] -= 1
    return widths
