"""Dead letters as text. What devices sent is shown so that it cannot steer the terminal that shows it."""

from __future__ import annotations

import base64
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

from traksense.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from traksense.store.dead_letters import Group, Letter, Summary

SHOWN_BYTES: Final = 16 * 1024
"""Of a payload on a screen; `--raw` has all of it."""

CELL_MAX: Final = 64
"""Characters of a topic or a tenant in a table on a terminal."""

_DETAIL_MIN: Final = 20


def table(summaries: Sequence[Summary], *, width: int | None) -> Iterator[str]:
    """A line for each, below a line of headings.

    Args:
        summaries: What to show.
        width: Characters on a line, or None for as many as it takes.
    """
    headings = ("ID", "TS", "LAST_TS", "REPLAYED_AT", "TENANT", "REASON", "REPEATS", "BYTES", "TOPIC", "DETAIL")
    rows = [headings, *(_cells(summary) for summary in summaries)]
    if width is not None:
        rows = [(*(_cut(cell, CELL_MAX) for cell in row[:-1]), row[-1]) for row in rows]
    if all(summary.replayed_at is None for summary in summaries):
        rows = [(*row[:3], *row[4:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        # Detail comes last: it is cut, the rest is padded.
        line = "  ".join(cell.ljust(size) for cell, size in zip(row[:-1], widths, strict=False))
        room = len(row[-1]) if width is None else max(_DETAIL_MIN, width - len(line) - 2)
        yield f"{line}  {_cut(row[-1], room)}".rstrip()


def group_table(groups: Sequence[Group]) -> Iterator[str]:
    """A line for each, below a line of headings."""
    rows = [("LETTERS", "MESSAGES", "FIRST_TS", "LAST_TS", "REASON", "TENANT")]
    rows += [
        (
            str(group.letters),
            str(group.messages),
            _time(group.first),
            _time(group.last),
            group.reason,
            _printable(group.tenant_id),
        )
        for group in groups
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(size) if number and place < 2 else cell.ljust(size)
            for place, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def group_as_json(group: Group) -> dict[str, Any]:
    """What machines get of a group."""
    return {
        "tenant_id": group.tenant_id,
        "reason": group.reason,
        "letters": group.letters,
        "messages": group.messages,
        "first_ts": group.first.isoformat(),
        "last_ts": group.last.isoformat(),
    }


def description(letter: Letter) -> Iterator[str]:
    """Every field, then the payload: as text if it is printable, else as a hexdump."""
    summary = letter.summary
    fields = {
        "id": str(summary.id),
        "tenant_id": _printable(summary.tenant_id),
        "topic": _printable(summary.topic),
        "reason": summary.reason,
        "detail": _printable(summary.detail),
        "ts": _time(summary.ts),
        "repeats": str(summary.repeats),
        "last_ts": _time(summary.last_ts),
        "replayed_at": _time(summary.replayed_at),
        "payload": f"{summary.size} bytes",
    }
    for name, value in fields.items():
        yield f"{name:<12} {value}"
    yield ""
    shown = letter.payload[:SHOWN_BYTES]
    text = printable_text(letter.payload)
    yield from hexdump(shown) if text is None else text[:SHOWN_BYTES].splitlines()
    if len(shown) < len(letter.payload):
        yield f"... cut here; `traksense dlq show {summary.id} --raw` writes all {summary.size} bytes"


def printable_text(payload: bytes) -> str | None:
    """The payload as text, if it is UTF-8 and nothing in it acts on a terminal; else None."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\n\t" for c in text) else None


def hexdump(payload: bytes) -> Iterator[str]:
    """Offset, 16 bytes in hexadecimal, and what of them is printable ASCII."""
    for offset in range(0, len(payload), 16):
        chunk = payload[offset : offset + 16]
        digits = f"{chunk[:8].hex(' ')}  {chunk[8:].hex(' ')}"
        yield f"{offset:08x}  {digits:<48}  |{''.join(chr(b) if 32 <= b < 127 else '.' for b in chunk)}|"


def as_json(summary: Summary) -> dict[str, Any]:
    """What machines get of a dead letter, under the names of its columns."""
    return {
        "id": summary.id,
        "ts": summary.ts.isoformat(),
        "last_ts": summary.last_ts.isoformat() if summary.last_ts else None,
        "replayed_at": summary.replayed_at.isoformat() if summary.replayed_at else None,
        "tenant_id": summary.tenant_id,
        "reason": summary.reason,
        "detail": summary.detail,
        "repeats": summary.repeats,
        "topic": summary.topic,
        "bytes": summary.size,
    }


def letter_as_json(letter: Letter) -> dict[str, Any]:
    """As `as_json`, with the payload in base64, and as text too if it is UTF-8."""
    try:
        text: str | None = letter.payload.decode()
    except UnicodeDecodeError:
        text = None
    return {
        **as_json(letter.summary),
        "payload_base64": base64.b64encode(letter.payload).decode(),
        "payload_text": text,
    }


def terminal_width() -> int | None:
    """The width of stdout if it is a terminal, else None."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _cells(summary: Summary) -> tuple[str, ...]:
    return (
        str(summary.id),
        _time(summary.ts),
        _time(summary.last_ts),
        _time(summary.replayed_at),
        _printable(summary.tenant_id),
        summary.reason,
        str(summary.repeats),
        str(summary.size),
        _printable(summary.topic),
        _printable(summary.detail),
    )


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 3]}..."


def _time(instant: datetime | None) -> str:
    return "-" if instant is None else instant.isoformat(timespec="seconds").replace("+00:00", "Z")


def _printable(text: str | None) -> str:
    return "-" if text is None else printable(text)
