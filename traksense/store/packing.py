"""Measurements as binary COPY takes them: what nearly every byte that the service writes goes through.

A message's points share their time and their meta, a point's series never changes, and nearly every value is a number
of good quality. So a row of 58 bytes is put together from three parts: the head, which the dictionary keeps for each
series; the middle, made once a message; and the value. One `struct` call packs the rows of a message. The driver's own
encoder takes a tuple of Python objects for each row and asks for the codec of each field: five times the time
(ops/decisions/0034).

Source: PostgreSQL documentation, COPY, "Binary Format"; fields are in network byte order, and a length of -1 is NULL.
The formats of the types are those of their `recv` functions: timestamptz is microseconds since 2000-01-01, jsonb is a
version number, 1, and its text.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from traksense.model import Exact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence

    from asyncpg.pool import PoolConnectionProxy

    from traksense.model import Value

PACKED_COLUMNS: Final = ("series_id", "ts", "meta", "qual", "meta_id", "v_bool", "v_text", "v_num")
"""The order of the fields: the unique key and then the meta, at places that are the same in every row; the number
last."""

COPY_CHUNK_BYTES: Final = 64 * 1024
"""How much is put together and sent at a time. Measured: less costs calls, more costs memory and gains nothing."""

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"

_NULL: Final = b"\xff\xff\xff\xff"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

SERIES: Final = slice(6, 10)
_TS: Final = slice(14, 22)
_META_BEGIN: Final = 22
_META_END: Final = 26
"""Where the NULL ends that stands for the meta."""

_FIELDS_BEGIN: Final = 2

_pack_head: Final = Struct(">hii").pack
_pack_middle: Final = Struct(">iq8sii8si").pack
_pack_middle_without_meta: Final = Struct(">iq8si8si").pack
_pack_field_count: Final = Struct(">h").pack
_pack_length: Final = Struct(">i").pack
_pack_double_field: Final = Struct(">id").pack
_pack_smallint_field: Final = Struct(">ih").pack
_pack_int_field: Final = Struct(">ii").pack
_unpack_length: Final = Struct(">i").unpack_from
_unpack_double: Final = Struct(">d").unpack

HEAD_BYTES: Final = 10
_VALUE_BYTES: Final = 8
POINTS_A_CALL: Final = 64
"""So many rows are packed by one call at most: a `Struct` is kept for each number of rows that occurs."""


class PackedRows(msgspec.Struct, gc=False):
    """Rows of measurements that one message brought.

    Attributes:
        packed: The rows, one behind the other, without header and trailer.
        count: How many.
        row_bytes: The size of each, or 0 if they differ.
        ts: The time that they share.
        delivery: The index of their delivery in the batch.
        meta: The field of the column of that name (`pack_meta`), or None. It comes in only when the rows are sent: a
            large one, in each of a thousand rows, would take a gigabyte.
    """

    packed: bytes
    count: int
    row_bytes: int
    ts: datetime
    delivery: int
    meta: bytes | None = None

    def rows(self) -> Iterator[bytes]:
        """Each row alone."""
        if self.row_bytes:
            size = self.row_bytes
            return (self.packed[at : at + size] for at in range(0, len(self.packed), size))
        return _split(self.packed)

    @property
    def first_series(self) -> int:
        """The series of the first row."""
        return series_of(self.packed)

    @property
    def repeats_itself(self) -> bool:
        """Whether a series occurs twice, and so a key."""
        return len({row[SERIES] for row in self.rows()}) < self.count


def series(measures: Iterable[PackedRows]) -> Collection[int]:
    """The series of all these rows, each once.

    (A dictionary rather than a set: with some thousands of them, the set would be a block that is mapped and unmapped
    for each batch, see `traksense.memory`.)
    """
    packed: dict[int, list[bytes]] = {}
    for rows in measures:
        packed.setdefault(rows.row_bytes, []).append(rows.packed)
    unequal = chain.from_iterable(map(_split, packed.pop(0, ())))
    found = dict.fromkeys(map(series_of, unequal))
    for row_bytes, pieces in packed.items():
        found.update(dict.fromkeys(chain.from_iterable(_series_reader(row_bytes).iter_unpack(b"".join(pieces)))))
    return found.keys()


def pack_head(series_id: int) -> bytes:
    """How each row of a series begins: the number of fields, and the series."""
    return _pack_head(len(PACKED_COLUMNS), 4, series_id)


def pack_middle(ts: datetime, meta_id: int | None) -> bytes:
    """What the rows of a message have in common, if they are numbers of good quality: all but head and value."""
    microseconds = (ts - _EPOCH) // _MICROSECOND
    if meta_id is None:
        return _pack_middle_without_meta(8, microseconds, _NULL + _NULL, -1, _NULL + _NULL, _VALUE_BYTES)
    return _pack_middle(8, microseconds, _NULL + _NULL, 4, meta_id, _NULL + _NULL, _VALUE_BYTES)


def pack_numbers(parts: Sequence[bytes | float], middle_bytes: int) -> bytes:
    """The rows whose parts these are: head, middle and value of the first, then those of the second, and so on.

    Args:
        parts: Three for each row; not empty.
        middle_bytes: The length of the middle.
    """
    most = 3 * POINTS_A_CALL
    if len(parts) <= most:
        return _packer(len(parts) // 3, middle_bytes)(*parts)
    pieces = [parts[at : at + most] for at in range(0, len(parts), most)]
    return b"".join([_packer(len(piece) // 3, middle_bytes)(*piece) for piece in pieces])


def pack_row(head: bytes, ts: datetime, value: Value, quality: int | None, meta_id: int | None) -> bytes:
    """One row of any kind. A number that its double does not say has its digits in `v_text`."""
    text = value.digits if isinstance(value, Exact) else value
    fields = [
        head,
        _pack_length(8),
        ((ts - _EPOCH) // _MICROSECOND).to_bytes(8, "big", signed=True),
        _NULL,
        _pack_smallint_field(2, quality) if quality is not None else _NULL,
        _pack_int_field(4, meta_id) if meta_id is not None else _NULL,
        _bytes_field(b"\x01" if value else b"\x00") if isinstance(value, bool) else _NULL,
        _bytes_field(text.encode()) if isinstance(text, str) else _NULL,
        _pack_double_field(8, value) if isinstance(value, float) else _NULL,
    ]
    return b"".join(fields)


def pack_meta(document: bytes) -> bytes:
    """The field of a jsonb."""
    return _bytes_field(b"\x01" + document)


def in_order(measures: Iterable[PackedRows]) -> Iterable[bytes]:
    """The bytes of these rows for COPY, sorted by their keys, so that concurrent writers lock them in one order."""
    plain, described = [], []
    for rows in measures:
        if rows.meta is None:
            plain.append(rows.packed)
        else:
            described.append(rows)
    plain.sort()
    if not described:
        return plain
    described.sort(key=attrgetter("packed"))
    return chain(plain, *(_described(row, rows.meta) for rows in described if rows.meta for row in rows.rows()))


def key(row: bytes) -> bytes:
    """The unique key of a row."""
    return row[SERIES] + row[_TS]


def series_of(row: bytes) -> int:
    """The series of a row."""
    return int.from_bytes(row[SERIES], "big")


def value(row: bytes) -> tuple[float | None, bool | None, str | None]:
    """What a row says: v_num, v_bool, v_text."""
    *_, truth, text, number = _fields(row)
    return (
        None if number is None else _unpack_double(number)[0],
        None if truth is None else truth != b"\x00",
        None if text is None else text.decode(),
    )


def numbered(row: bytes, meta: bytes | None, number: int) -> Sequence[bytes]:
    """The bytes of the row for COPY, with its meta, and with one more field behind the others, an int."""
    count, end = _pack_field_count(len(PACKED_COLUMNS) + 1), _pack_int_field(4, number)
    if meta is None:
        return (count + row[_FIELDS_BEGIN:] + end,)
    begin, field, others = _described(row, meta)
    return (count + begin[_FIELDS_BEGIN:], field, others + end)


async def copy_packed(
    connection: PoolConnectionProxy, table: str, columns: Sequence[str], packed: Iterable[bytes], *, first: str = ""
) -> None:
    """COPY packed rows, in pieces of any size, into a table. asyncio-flavored.

    Args:
        connection: Where.
        table: As it is written in SQL.
        columns: Of the table, in the order of the fields.
        packed: The rows.
        first: A statement to run before, in the same transaction.

    A COPY alone is a transaction of its own, and a statement before it shares that, since both are one message: BEGIN,
    the statement and COMMIT would be three more round trips, half of what storing a few points takes. asyncpg has no
    public method that takes such a text; `_copy_in` is what `copy_to_table` calls. setup.cfg pins asyncpg to 0.32, and
    tests/contract/test_store.py holds the behaviour.
    """
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN WITH (FORMAT binary)"
    copy_in: Any = connection._copy_in  # type: ignore[attr-defined]  # private
    await copy_in(f"{first}; {statement}" if first else statement, _chunks(packed), None)


async def _chunks(packed: Iterable[bytes]) -> AsyncIterator[bytes]:
    waiting, size = [COPY_HEADER], 0
    for piece in packed:
        waiting.append(piece)
        size += len(piece)
        if size >= COPY_CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    waiting.append(COPY_TRAILER)
    yield b"".join(waiting)


def _described(row: bytes, meta: bytes) -> tuple[bytes, bytes, bytes]:
    """The row in three pieces; the meta is not copied."""
    return row[:_META_BEGIN], meta, row[_META_END:]


def _bytes_field(data: bytes) -> bytes:
    return _pack_length(len(data)) + data


def _fields(row: bytes) -> Iterator[bytes | None]:
    at = _FIELDS_BEGIN
    while at < len(row):
        end = _field_end(row, at)
        yield row[at + 4 : end] if row[at : at + 4] != _NULL else None
        at = end


def _split(packed: bytes) -> Iterator[bytes]:
    begin = 0
    while begin < len(packed):
        end = begin + _FIELDS_BEGIN
        for _ in PACKED_COLUMNS:
            end = _field_end(packed, end)
        yield packed[begin:end]
        begin = end


def _field_end(packed: bytes, at: int) -> int:
    length: int = _unpack_length(packed, at)[0]
    return at + 4 + max(0, length)


@lru_cache(maxsize=16)
def _series_reader(row_bytes: int) -> Struct:
    """Unpacks the series of a row of this size, and nothing else."""
    return Struct(f">{SERIES.start}xi{row_bytes - SERIES.stop}x")


@lru_cache(maxsize=2 * POINTS_A_CALL)
def _packer(rows: int, middle_bytes: int) -> Callable[..., bytes]:
    return Struct(">" + f"{HEAD_BYTES}s{middle_bytes}sd" * rows).pack
