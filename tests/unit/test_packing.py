"""Packed rows say what they were made of, in the format of a binary COPY."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from traksense.model import Exact
from traksense.store.packing import (
    COPY_CHUNK_BYTES,
    PACKED_COLUMNS,
    POINTS_A_CALL,
    PackedRows,
    in_order,
    key,
    numbered,
    pack_head,
    pack_meta,
    pack_middle,
    pack_numbers,
    pack_row,
    series,
    value,
)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

ids = st.integers(1, 2**31 - 1)
instants = st.integers(-(10**15), 2 * 10**17).map(lambda us: EPOCH + timedelta(microseconds=us))
values = st.one_of(st.floats(allow_nan=False), st.booleans(), st.text(st.characters(exclude_categories=["Cs"])))


def fields(row: bytes) -> dict[str, bytes | None]:
    """The columns of a row, read independently."""
    (count,) = struct.unpack_from(">h", row)
    found: list[bytes | None] = []
    at = 2
    while at < len(row):
        (length,) = struct.unpack_from(">i", row, at)
        at += 4
        found.append(None if length < 0 else row[at : at + length])
        at += max(0, length)
    assert count == len(found)
    return dict(zip(PACKED_COLUMNS, found, strict=True))


@given(ids, instants, values, st.sampled_from([None, 1, 2]), st.sampled_from([None, '{"a":"é"}']), st.none() | ids)
def test_row_says_what_it_was_made_of(
    series: int, ts: datetime, v: float | bool | str, quality: int | None, meta: str | None, meta_id: int | None
) -> None:
    """Each column holds its value in PostgreSQL's binary format, and exactly one of the three value columns has one."""
    packed = pack_row(pack_head(series), ts, v, quality, meta_id)
    rows = PackedRows(packed, 1, len(packed), ts, 0, None if meta is None else pack_meta(meta.encode()))

    row = fields(b"".join(in_order([rows])))

    assert struct.pack(">i", series) == row["series_id"]
    assert struct.pack(">q", (ts - EPOCH) // timedelta(microseconds=1)) == row["ts"]
    assert (None if quality is None else struct.pack(">h", quality)) == row["qual"]
    assert (None if meta is None else b"\x01" + meta.encode()) == row["meta"]
    assert (None if meta_id is None else struct.pack(">i", meta_id)) == row["meta_id"]
    expected: dict[type, tuple[bytes | None, ...]] = {
        bool: (bytes([v is True]), None, None),
        str: (None, str(v).encode(), None),
        float: (None, None, struct.pack(">d", v) if isinstance(v, float) else None),
    }
    assert expected[type(v)] == (row["v_bool"], row["v_text"], row["v_num"])


@given(
    st.lists(st.tuples(ids, st.floats(allow_nan=False)), min_size=1, max_size=3 * POINTS_A_CALL),
    instants,
    st.none() | ids,
)
def test_numbers_are_the_same_rows(points: list[tuple[int, float]], ts: datetime, meta_id: int | None) -> None:
    """The fast way and the general way agree to the byte, however many points a message has."""
    middle = pack_middle(ts, meta_id)
    parts = [part for s, number in points for part in (pack_head(s), middle, number)]

    packed = pack_numbers(parts, len(middle))

    size = len(packed) // len(points)
    rows = PackedRows(packed, len(points), size, ts, 0)
    assert [pack_row(pack_head(s), ts, number, None, meta_id) for s, number in points] == list(rows.rows())
    assert {s for s, _ in points} == set(series([rows]))


@given(st.lists(st.tuples(ids, values, st.sampled_from([None, 1])), max_size=8), instants)
def test_rows_of_any_size_are_split(points: list[tuple[int, float | bool | str, int | None]], ts: datetime) -> None:
    """Rows that differ in size come apart where they were put together."""
    made = [pack_row(pack_head(s), ts, v, quality, None) for s, v, quality in points]

    packed = PackedRows(b"".join(made), len(made), 0, ts, 0)

    assert made == list(packed.rows())
    assert {s for s, _, _ in points} == set(series([packed]))


@given(ids, ids, instants, instants, values, values)
def test_key_and_value(one: int, other: int, ts: datetime, later: datetime, v: float, w: float) -> None:
    """Two rows have the same key if series and time are the same, whatever they say and carry."""
    first = pack_row(pack_head(one), ts, v, 1, None)
    second = pack_row(pack_head(other), later, w, None, 7)

    assert ((one, ts) == (other, later)) == (key(first) == key(second))
    assert key(first) == key(pack_row(pack_head(one), ts, w, None, 3))
    assert value(first) == value(pack_row(pack_head(other), later, v, None, 3))


def test_exact_number_has_both_columns() -> None:
    """The double and the digits; another number with the same double is another value, as is the double alone."""
    one, other = (
        pack_row(pack_head(1), NOON, Exact(digits), 1, None) for digits in ("9007199254740993", "9007199254740992.5")
    )
    double = pack_row(pack_head(1), NOON, 9007199254740992.0, 1, None)

    assert (None, b"9007199254740993", struct.pack(">d", 2.0**53)) == tuple(
        fields(one)[name] for name in ("v_bool", "v_text", "v_num")
    )
    assert (2.0**53, None, "9007199254740993") == value(one)
    assert 3 == len({value(one), value(other), value(double)})


def test_zero_has_no_sign() -> None:
    """Minus zero is no other value than zero, as PostgreSQL sees it; one and true are."""
    zero, minus, one, true = (value(pack_row(pack_head(1), NOON, v, None, None)) for v in (0.0, -0.0, 1.0, True))

    assert zero == minus
    assert one != true


def test_numbered_row_has_one_more_field() -> None:
    """The number is the last field, and the count of fields says so."""
    row = pack_row(pack_head(1), NOON, 1.0, None, None)
    meta = pack_meta(b"{}")

    longer = b"".join(numbered(row, None, 77))
    described = b"".join(numbered(row, meta, 77))

    assert len(PACKED_COLUMNS) + 1 == struct.unpack_from(">h", longer)[0] == struct.unpack_from(">h", described)[0]
    assert row[2:] + struct.pack(">ii", 4, 77) == longer[2:]
    (with_meta,) = [b"".join(in_order([PackedRows(row, 1, len(row), NOON, 0, meta)]))]
    assert with_meta[2:] + struct.pack(">ii", 4, 77) == described[2:]


def test_meta_is_not_multiplied() -> None:
    """A large meta of many rows exists once until it is sent."""
    meta = pack_meta(b"{" + bytes(COPY_CHUNK_BYTES) + b"}")
    row = pack_row(pack_head(1), NOON, 1.0, None, None)

    pieces = list(in_order([PackedRows(row * 5, 5, len(row), NOON, 0, meta)]))

    assert 5 == sum(piece is meta for piece in pieces)
    assert 5 * (len(row) - 4 + len(meta)) == sum(map(len, pieces))


def test_sorted_rows_are_in_the_order_of_their_keys() -> None:
    """What is sorted as bytes is sorted by series, then by time: writers meet keys in one order."""
    keys = [(series, NOON + timedelta(seconds=n)) for series in (1, 255, 256, 70_000) for n in range(3)]

    rows = [pack_row(pack_head(series), ts, 1.0, None, 1) for series, ts in keys]

    assert rows == sorted(set(rows))


def test_writers_meet_keys_in_one_order() -> None:
    """Whatever order messages came in, COPY gets them sorted by key; those with a meta of their own come last."""
    rows = [pack_row(pack_head(series), NOON, 1.0, None, 1) for series in (3, 1, 2)]
    meta = pack_meta(b"{}")

    plain = list(in_order([PackedRows(row, 1, len(row), NOON, n) for n, row in enumerate(rows)]))
    described = list(in_order([PackedRows(row, 1, len(row), NOON, n, meta) for n, row in enumerate(rows)]))

    assert sorted(rows) == plain
    assert [row[:22] for row in sorted(rows)] == described[::3]


def test_message_that_names_a_point_twice() -> None:
    """It is known by its series, and others are not taken for one."""
    heads = [pack_row(pack_head(series), NOON, float(series), None, None) for series in (1, 2, 1)]

    assert PackedRows(b"".join(heads), 3, len(heads[0]), NOON, 0).repeats_itself
    assert not PackedRows(b"".join(heads[:2]), 2, len(heads[0]), NOON, 0).repeats_itself
