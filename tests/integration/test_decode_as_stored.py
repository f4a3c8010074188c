"""`traksense decode` says what a database then holds: rows, names, units, dead letters."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from psycopg.types.json import set_json_loads

from tests.contract.test_store import open_postgres_store
from traksense.adapters import Registry
from traksense.config import load
from traksense.ingest.decode import Decoder, read_topic
from traksense.model import Message
from traksense.tools.decode import as_json, decode
from traksense.tools.payload_examples import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.rows import DictRow

NOW: Final = datetime.now(UTC)

COLUMNS: Final = {
    "ts_measure": "tenant_id, site_id, device_id, point_id, ts, v_num, v_bool, v_text, unit, qual, meta",
    "device_event": "tenant_id, site_id, device_id, event_id, event_type, ts, data",
    "cmd_ack": "tenant_id, site_id, device_id, cmd_id, ok, ts_exec, err, payload",
    "ingest_errors": "tenant_id, topic, reason, detail",
}
TIMES: Final = ("ts", "ts_exec")


def envelope(*points: dict[str, Any], meta: str = "null") -> bytes:
    text = json.dumps({"schema": "v1", "ts": NOW.isoformat(), "points": points}, ensure_ascii=False)
    return f'{text[:-1]}, "meta": {meta}}}'.encode()


def point(name: str, v: object, **more: object) -> dict[str, Any]:
    return {"name": name, "v": v, **more}


PAYLOADS: Final = {
    "one spelling": envelope(point(" cafe\u0301 ", 1.5, u="\u2103"), point("flow", 2, u=" \u03bcV ")),
    "the same twice": envelope(point("a", 1.5), point("a", 1.5, q=1), point("a\u00a0", 1.5)),
    "two values": envelope(point("a", 1.5, u="V"), point("a", 2.5, u="V"), point("b", 1)),
    "a number counts before a text": envelope(point("a", "on", t="text"), point("a", 2.5)),
    "two values in two spellings": envelope(point("\u2126", 1, u="\u00baC"), point("\u03a9", 2, u="\u00b0C")),
    "a bad point beside two values": envelope(point("a", 1), point("a", 2), point("b", "x", t="float")),
    "exact numbers": envelope(
        point("n", 9007199254740993), meta='{"n": 12345678901234567890.123456789, "s": "\u00a0"}'
    ),
    "not JSON": b"{",
    "SenML": (
        b'[{"bn": "", "n": "t", "u": "Cel", "v": 1, "bt": %d}, {"n": "t", "u": "Cel", "v": 2}, {"n": "t", "u": "Cel", '
        b'"v": 3, "t": 1}]'
    )
    % int(NOW.timestamp()),
}


def cases() -> Iterator[tuple[str, bytes]]:
    for number, payload in enumerate(PAYLOADS.values()):
        yield f"traksense/acme/cafe\u0301/device-{number}/telem", payload
    for example in EXAMPLES:
        yield f"traksense/acme/site/{example.title.replace('/', '')}/{example.topic}", example.payload.encode()


@pytest.mark.parametrize("conflicts", ["keep", "replace"])
async def test_what_decode_says_is_what_is_stored(database: str, conflicts: str) -> None:
    """Every column of every row, of every example of the manual and of names and points that meet."""
    settings = load({"INGEST_CONFLICTS": conflicts})
    registry = Registry()
    said: list[str] = []
    async with open_postgres_store(database, INGEST_CONFLICTS=conflicts) as store:
        decoder = Decoder(settings, registry)
        for topic, payload in cases():
            message = Message(topic, payload, 1, 1, 1, redelivered=False, received_at=NOW, route=read_topic(topic))
            await store.write([decoder.decode(message)])
            said += as_json(decode(settings, registry, topic, payload, received_at=NOW))

    with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as connection:
        set_json_loads(functools.partial(json.loads, parse_float=Decimal), connection)
        rows = [
            _comparable({"table": table, **row})
            for table, columns in COLUMNS.items()
            for row in connection.execute(f"SELECT {columns} FROM {table}".encode())
        ]
    expected = [_comparable(json.loads(line, parse_float=Decimal)) for line in said]
    assert sorted(rows) == sorted(expected)
    assert len(rows) > 2 * len(PAYLOADS)


def _comparable(row: DictRow) -> str:
    row = {name: value for name, value in row.items() if value is not None}
    for name in TIMES:
        if isinstance(row.get(name), str):
            row[name] = datetime.fromisoformat(row[name])
    if "v_num" in row:
        row["v_num"] = float(row["v_num"])
    return repr(_plain(row))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted((name, _plain(member)) for name, member in value.items())
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return value
