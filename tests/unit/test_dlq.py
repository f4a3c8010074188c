"""Dead letters as people name and see them."""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import tracemalloc
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.errors import ConfigError
from traksense.store.dead_letters import Letter, Selection, Summary
from traksense.terminal import WHOLE, Screen
from traksense.tools.dlq import text
from traksense.tools.dlq.selection import add_filters, add_ids, point_in_time, selection
from traksense.tools.json_text import ascii_json

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def summary(*, topic: str = "traksense/acme/site/device/telem", detail: str = "why", size: int = 2) -> Summary:
    return Summary(7, NOW, None, None, "acme", "parse_error", detail, 0, topic, size)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("15m", NOW - timedelta(minutes=15)),
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("1w", NOW - timedelta(weeks=1)),
        ("2026-11-19", datetime(2026, 11, 19, tzinfo=UTC)),
        ("2026-11-19T10:00:00", datetime(2026, 11, 19, 10, tzinfo=UTC)),
        ("2026-11-19T10:00:00Z", datetime(2026, 11, 19, 10, tzinfo=UTC)),
        ("2026-11-19T10:00:00-03:00", datetime(2026, 11, 19, 13, tzinfo=UTC)),
    ],
)
def test_point_in_time_reads_ages_and_iso_8601(given_text: str, expected: datetime) -> None:
    """An age counts back from now; ISO 8601 without an offset is UTC."""
    assert expected == point_in_time(given_text, now=NOW)


@pytest.mark.parametrize("nonsense", ["", "2", "h", "-2h", "2 h", "2y", "yesterday", "999999999w", "2026-13-01"])
def test_point_in_time_refuses_the_rest(nonsense: str) -> None:
    """What is neither is refused, also an age beyond the calendar."""
    with pytest.raises(argparse.ArgumentTypeError):
        point_in_time(nonsense, now=NOW)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Selection(open_only=True)),
        (["--all"], Selection(open_only=False)),
        (["3", "4"], Selection(ids=(3, 4), open_only=False)),
        (["3", "--open"], Selection(ids=(3,), open_only=True)),
        (["--tenant", "acme", "--limit", "5"], Selection(tenant="acme", limit=5)),
    ],
)
def test_selection_is_open_unless_named(argv: list[str], expected: Selection) -> None:
    """Filters select open dead letters; those named by id are taken whether they were replayed or not."""
    parser = argparse.ArgumentParser()
    add_ids(parser)
    add_filters(parser)

    assert expected == selection(parser.parse_args(argv))


def test_selection_that_nothing_can_be_in() -> None:
    """Until before since is a slip: an empty list would hide it."""
    parser = argparse.ArgumentParser()
    add_filters(parser)

    with pytest.raises(ConfigError, match="--until must be later than --since"):
        selection(parser.parse_args(["--since", "2h", "--until", "1d"]))


def test_table_escapes_what_would_act_on_a_terminal() -> None:
    """Escape sequences, line breaks and direction marks of a device appear as escapes, each row on one line."""
    lines = list(text.table([summary(topic="traksense/\x1b[2J/\u202e", detail="a\nb\x9b31m")], WHOLE))

    assert 2 == len(lines)
    assert lines[1].endswith("  traksense/\\x1b[2J/\\u202e  a\\nb\\x9b31m")


def test_table_fits_the_terminal() -> None:
    """On a terminal, long topics and details are cut, and on a narrow one columns are left out; the device is seen."""
    letter = summary(topic=f"traksense/{'t' * 500}/d7/telem", detail="d" * 500)
    for columns in (80, 100, 160):
        heading, line = text.table([letter], Screen(columns))

        assert len(line) == columns
        assert line.endswith("d…")
        assert "…" in line.split()[-2]
        assert "/d7/telem  d" in line  # the end of a topic says most
        assert ("TENANT" in heading, " acme " in line) == ((columns > 100,) * 2)
        assert heading.split()[-2:] == ["TOPIC", "DETAIL"]


def test_table_is_whole_in_a_pipe() -> None:
    """Nothing is cut, and a long name widens nobody else's line."""
    _, long, short = text.table([summary(topic="t" * 500), summary()], WHOLE)

    assert f"  {'t' * 500}  why" in long
    assert len(short) < 160


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"a": "\xc2\xb0C"}', '{"a": "°C"}'),
        (b"two\nlines\tand a tab", "two\nlines\tand a tab"),
        (b"", ""),
        (b"\xff", None),
        (b"a\x00b", None),
        (b"\x1b[2J", None),
        ("\u202e".encode(), None),
        (b"a\rb", None),
    ],
)
def test_printable_text_is_text_that_does_nothing(payload: bytes, expected: str | None) -> None:
    """UTF-8 is shown as text unless something in it would act on the terminal."""
    assert expected == text.printable_text(payload)


@given(st.binary(max_size=100))
def test_hexdump_holds_every_byte(payload: bytes) -> None:
    """The bytes can be read back from the dump, and nothing in it acts on a terminal."""
    lines = list(text.hexdump(payload))

    assert payload == b"".join(bytes.fromhex(line[10:58]) for line in lines)
    assert all(line.isascii() and line.isprintable() for line in lines)


@pytest.mark.parametrize("piece", [3, 6, 3000])
@given(payload=st.one_of(st.binary(max_size=30), st.text(max_size=30).map(lambda text: text.encode("utf-8"))))
def test_letter_in_json_is_whole_however_it_is_cut(payload: bytes, piece: int) -> None:
    """A document in pieces of a few bytes is the one that `json` would make, in ASCII, and holds the payload."""
    try:
        read: str | None = payload.decode()
    except UnicodeDecodeError:
        read = None
    letter = Letter(summary(topic="\x1b\x7f", size=len(payload)), payload)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PIECE_BYTES", piece)
        document = "".join(text.letter_as_json(letter))

    whole = {**text.as_json(letter.summary), "payload_base64": base64.b64encode(payload).decode(), "payload_text": read}
    assert ascii_json(json.dumps(whole, indent=2)) + "\n" == document


def test_letter_in_json_takes_little_memory() -> None:
    """Beside the payload itself, a few pieces."""
    letter = Letter(summary(), b'"\x1b' * 5_000_000)
    tracemalloc.start()
    try:
        deque(text.letter_as_json(letter), maxlen=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 5_000_000


def test_description_is_cut_and_says_so() -> None:
    """Of a large payload the beginning is shown, with the command that writes all of it."""
    payload = b"x" * (text.SHOWN_BYTES + 1)
    *_, shown, last = text.description(Letter(summary(size=len(payload)), payload))

    assert "x" * text.SHOWN_BYTES == shown
    assert f"... cut here; `traksense dlq show 7 --raw` writes all {len(payload)} bytes" == last


def test_listing_asks_what_was_asked() -> None:
    """The same database, tenant and reason; the shell takes it as printed."""
    asked = argparse.Namespace(env_file=Path("an operator's.env"), tenant="a b", reason=None)
    command = text.listing(asked, since=datetime(2026, 11, 28, 21, 5, 59, tzinfo=UTC))

    assert shlex.split(command) == [
        *("traksense", "--env-file", "an operator's.env", "dlq", "list"),
        *("--tenant", "a b", "--since", "2026-11-28T21:05Z"),
    ]
