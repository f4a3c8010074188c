"""`traksense decode`: what it says of a payload, and its exit status."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.command_line import run_command
from traksense import config
from traksense.adapters import Registry
from traksense.terminal import say
from traksense.tools.decode import as_json, as_text, decode

if TYPE_CHECKING:
    from pathlib import Path

TELEM = "traksense/acme/factory/press-1/telem"
GOOD = b"""{"schema": "v1", "ts": "2025-10-07T15:30:00-03:00", "points": [
    {"name": "temp", "t": "float", "v": 7.3, "u": "\xc2\xb0C"}, {"name": "n", "t": "int", "v": 9007199254740993},
    {"name": "on", "t": "bool", "v": true, "q": 1}], "meta": {"fw": "1.2"}}"""


def rows(payload: bytes, topic: str = TELEM) -> list[dict[str, object]]:
    return [json.loads(line) for line in as_json(decode(config.load({}), Registry(), topic, payload))]


def test_rows_are_those_of_the_tables() -> None:
    """Each has the columns that a reader of the table finds; the time is UTC."""
    names = {"tenant_id": "acme", "site_id": "factory", "device_id": "press-1"}
    same = {"table": "ts_measure", **names, "ts": "2025-10-07T18:30:00Z", "meta": {"fw": "1.2"}}

    assert [
        same | {"point_id": "temp", "v_num": 7.3, "unit": "°C", "qual": 0},
        same | {"point_id": "n", "v_num": 9007199254740992.0, "v_text": "9007199254740993", "qual": 0},
        same | {"point_id": "on", "v_bool": True, "qual": 1},
    ] == rows(GOOD)
    ack = {"schema": "v1", "type": "ack", "cmd_id": "c1", "ok": False, "err": "jammed"}
    event = {"schema": "v1", "event_type": "door_open", "ts": "2025-10-07T15:30:00Z"}
    (stored,) = rows(json.dumps(ack).encode(), TELEM.replace("telem", "ack"))
    assert {"table": "cmd_ack", **names, "cmd_id": "c1", "ok": False, "err": "jammed", "payload": ack} == stored
    (stored,) = rows(json.dumps(event).encode(), TELEM.replace("telem", "event"))
    assert stored["table"] == "device_event"
    assert stored["event_type"] == "door_open"


def test_what_is_bad_is_the_dead_letter_that_it_would_be() -> None:
    """The good points beside it, and the reason."""
    good, dead = rows(GOOD.replace(b'"v": 7.3', b'"v": "abc"'))[-2:]

    assert good["point_id"] == "on"
    assert (dead["table"], dead["reason"], dead["topic"]) == ("ingest_errors", "type_mismatch", TELEM)
    assert [row["reason"] for row in rows(b"{}", "elsewhere")] == ["invalid_topic"]


@pytest.mark.parametrize("width", [10, 100])
def test_columns_are_as_wide_as_what_is_in_them(width: int) -> None:
    """But one long name does not push the others' values out of sight."""
    name = "n" * width
    payload = GOOD.replace(b'"temp"', json.dumps(name).encode())
    _, _, first, second, _ = as_text(decode(config.load({}), Registry(), TELEM, payload))

    assert f"  {name}  7.3" in " ".join(first.split("   "))
    assert len(second) <= 2 + 40 + 2 + len("9007199254740993")


NASTY = "p\n1 row, to ts_measure\x1b[2J\x7f\u00a0\u00ad\U0001f321"


def test_nothing_in_a_payload_acts_on_the_terminal_or_forges_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks and escapes are shown as such; --json stays JSON, in ASCII."""
    point = {"name": NASTY, "v": NASTY, "t": "text", "u": NASTY[:40]}
    payload = json.dumps(
        {"schema": "v1", "ts": "2025-10-07T15:30:00Z", "points": [point], "meta": {NASTY: NASTY}}
    ).encode()
    delivery = decode(config.load({}), Registry(), TELEM, payload)
    for line in as_json(delivery):
        say(line)
    printed = capsys.readouterr().out

    assert len(list(as_text(delivery))) == 3
    assert all(line.isprintable() for line in as_text(delivery))
    assert printed.isascii()
    assert "\x7f" not in printed
    row = json.loads(printed)
    assert (row["point_id"], row["v_text"], row["meta"]) == (NASTY.strip(), NASTY, {NASTY: NASTY})


async def test_the_command_needs_nothing_but_the_payload(tmp_path: Path) -> None:
    """From standard input and from a file, with the limits of the environment."""
    file = tmp_path / "payload"
    file.write_bytes(GOOD)

    piped = await run_command({}, "decode", stdin=GOOD)
    named = await run_command({"INGEST_POINTS_MAX": "2"}, "decode", "--json", str(file))
    missing = await run_command({}, "decode", str(tmp_path / "none"))
    endless = await run_command({}, "decode", "/dev/zero")
    closed = await trio.run_process(
        ["sh", "-c", 'exec "$0" -m traksense decode <&-', sys.executable], capture_stderr=True, check=False
    )

    assert (piped.status, piped.stderr) == (0, "")
    assert piped.text.splitlines()[0] == "3 points at 2025-10-07T18:30:00Z, to ts_measure"
    assert (named.status, json.loads(named.text)["reason"]) == (1, "too_many_points")
    assert (missing.status, missing.stderr) == (
        1,
        f"traksense: cannot read {tmp_path / 'none'}: No such file or directory\n",
    )
    assert (endless.status, endless.stderr) == (
        1,
        "traksense: /dev/zero is longer than 268435455 bytes, and no MQTT message is\n",
    )
    assert (closed.returncode, closed.stderr) == (
        1,
        b"traksense: cannot read the payload: standard input is closed\n",
    )
