"""Dead letters as text. What devices sent is shown so that it cannot steer the terminal that shows it."""

from __future__ import annotations

import base64
import codecs
import json
import shlex
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from traksense.cells import Column
from traksense.names import printable
from traksense.tools.json_text import ascii_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from traksense.store.dead_letters import Group, Letter, Summary
    from traksense.terminal import Screen

SHOWN_BYTES: Final = 16 * 1024
"""Of a payload on a screen; `--raw` has all of it."""

PIECE_BYTES: Final = 3 * 64 * 1024
"""Of a payload in JSON. A multiple of three, so that base64 of the pieces is base64 of the whole."""

LIST: Final = (
    Column("ID"),
    Column("TS"),
    Column("LAST_TS"),
    Column("REPLAYED_AT"),
    Column("TENANT", least=10),
    Column("REASON"),
    Column("REPEATS"),
    Column("BYTES"),
    Column("TOPIC", least=40, ends=True),
    Column("DETAIL", least=40),
)
LIST_WITHOUT: Final = ("TS", "BYTES", "REPEATS", "TENANT", "REPLAYED_AT")
"""What a narrow terminal leaves out first: the tenant is in the topic, as a rule, and `show` has everything."""

GROUPS: Final = (
    Column("LETTERS", right=True),
    Column("MESSAGES", right=True),
    Column("FIRST_TS"),
    Column("LAST_TS"),
    Column("REASON"),
    Column("TENANT", least=20),
)


def table(summaries: Sequence[Summary], screen: Screen) -> Iterator[str]:
    """A line for each, below a line of headings. On a terminal LAST_TS is when it came, also if it came once."""
    rows: list[tuple[str, ...]] = [
        (
            str(summary.id),
            _time(summary.ts),
            _time(summary.last_ts or (summary.ts if screen.columns else None)),
            _time(summary.replayed_at),
            _or_dash(summary.tenant_id),
            summary.reason,
            str(summary.repeats),
            str(summary.size),
            summary.topic,
            _or_dash(summary.detail),
        )
        for summary in summaries
    ]
    columns: Sequence[Column] = LIST
    if all(summary.replayed_at is None for summary in summaries):
        rows = [(*row[:3], *row[4:]) for row in rows]
        columns = (*LIST[:3], *LIST[4:])
    return screen.table(columns, rows, dispensable=LIST_WITHOUT)


def group_table(groups: Sequence[Group], screen: Screen) -> Iterator[str]:
    """A line for each, below a line of headings."""
    rows = [
        (
            str(group.letters),
            str(group.messages),
            _time(group.first),
            _time(group.last),
            group.reason,
            _or_dash(group.tenant_id),
        )
        for group in groups
    ]
    return screen.table(GROUPS, rows, dispensable=("FIRST_TS",))


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
        "tenant_id": printable(_or_dash(summary.tenant_id)),
        "topic": printable(summary.topic),
        "reason": summary.reason,
        "detail": printable(_or_dash(summary.detail)),
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


def letter_as_json(letter: Letter) -> Iterator[str]:
    """As `as_json`, with the payload in base64, and as text too if it is UTF-8: a document in pieces.

    In one piece each step of a large payload would be whole in memory: encoded, decoded, escaped.
    """
    yield ascii_json(json.dumps(as_json(letter.summary), indent=2)).removesuffix("\n}")
    yield ',\n  "payload_base64": "'
    for piece in _pieces(letter.payload):
        yield base64.b64encode(piece).decode()
    yield '",\n  "payload_text": '
    try:
        deque(_decoded(letter.payload), maxlen=0)
    except UnicodeDecodeError:
        yield "null"
    else:
        yield '"'
        for text in _decoded(letter.payload):
            yield ascii_json(json.dumps(text))[1:-1]
        yield '"'
    yield "\n}\n"


def _pieces(payload: bytes) -> Iterator[memoryview]:
    whole = memoryview(payload)
    return (whole[offset : offset + PIECE_BYTES] for offset in range(0, len(whole), PIECE_BYTES))


def _decoded(payload: bytes) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for piece in _pieces(payload):
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)


def _time(instant: datetime | None) -> str:
    return "-" if instant is None else instant.isoformat(timespec="seconds").replace("+00:00", "Z")


def _or_dash(text: str | None) -> str:
    return "-" if text is None else text


def listing(arguments: argparse.Namespace, *, since: datetime) -> str:
    """The command that lists what has come since then, of the same database, tenant and reason as these arguments."""
    options = {"--tenant": arguments.tenant, "--reason": arguments.reason, "--since": f"{since:%Y-%m-%dT%H:%MZ}"}
    said = [word for name, value in options.items() if value is not None for word in (name, value)]
    where = [] if arguments.env_file is None else ["--env-file", str(arguments.env_file)]
    return shlex.join(["traksense", *where, "dlq", "list", *said])
