"""The messages of a run: envelopes v1 of a fleet whose names and values follow from a number."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

import attrs

from traksense.store.packing import COPY_HEADER, COPY_TRAILER, pack_head, pack_row

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK_MICROSECONDS: Final = 100_000
"""Between two messages of a device."""

UNITS: Final = ("°C", "%", "bar", "kW")
VALUES: Final = 97
"""How many sets of values there are; a prime number, so that no device keeps to one."""

PACKET_IDS: Final = 65_535
CHUNK_MESSAGES: Final = 500
META: Final = b'{"fw":"1.2.3","src":"bench"}'

_REPEAT_DISTANCE: Final = 5_000
"""How many messages later a duplicate comes: in another batch than the first one."""

_GOLDEN: Final = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly from the first to the last."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class Fleet:
    """Who publishes. Series are numbered in this order: device by device, point by point, from 1.

    Attributes:
        devices, tenants: How many; device n belongs to tenant n modulo tenants.
        points: In each message.
        meta: Whether messages carry one, the same in all.
    """

    devices: int
    points: int
    tenants: int = 1
    meta: bool = True

    @property
    def series(self) -> int:
        """How many series there are."""
        return self.devices * self.points

    @cached_property
    def point_names(self) -> list[tuple[str, str]]:
        """Name and unit of each point."""
        return [(f"point-{n:02d}", UNITS[n % len(UNITS)]) for n in range(self.points)]

    @cached_property
    def values(self) -> list[list[float]]:
        """The sets of values."""
        return [[round(20 + (v * 31 + n * 7) % 400 / 16, 4) for n in range(self.points)] for v in range(VALUES)]

    @cached_property
    def _topics(self) -> list[bytes]:
        """Each device's topic as PUBLISH has it, with its length."""
        result = []
        for device in range(self.devices):
            topic = f"traksense/bench-{device % self.tenants:05d}/plant-1/device-{device:06d}/telem".encode()
            result.append(struct.pack(">H", len(topic)) + topic)
        return result

    @cached_property
    def _tails(self) -> list[bytes]:
        """The envelope from its points on, for each set of values."""
        end = b',"meta":' + META + b"}" if self.meta else b"}"
        return [
            b'","points":['
            + ",".join(
                f'{{"name":"{name}","t":"float","v":{value},"u":"{unit}"}}'
                for (name, unit), value in zip(self.point_names, values, strict=True)
            ).encode()
            + b"]"
            + end
            for values in self.values
        ]

    def packet(self, number: int, at: int, packet_id: int) -> bytes:
        """PUBLISH at QoS 1: the message of this number, with the timestamp in Unix microseconds."""
        seconds, microseconds = divmod(at, 1_000_000)
        stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        topic = self._topics[number % self.devices]
        head = b'\x00{"schema":"v1","ts":"%s.%06dZ' % (stamp.encode(), microseconds)
        tail = self._tails[number % VALUES]
        size = len(topic) + 2 + len(head) + len(tail)
        return b"\x32" + _length(size) + topic + packet_id.to_bytes(2, "big") + head + tail


@attrs.frozen(kw_only=True)
class Load:
    """The messages of one run.

    Attributes:
        fleet: Who publishes, in turns.
        messages: How many, duplicates not counted.
        begin: The timestamp of the first, Unix microseconds.
        duplicates: Which share of the messages comes twice.
        spread_days: Over how many days before `begin` timestamps are spread; 0 for one after the other from `begin` on.
    """

    fleet: Fleet
    messages: int
    begin: int
    duplicates: float = 0.0
    spread_days: int = 0

    @property
    def rows(self) -> int:
        """How many rows must be stored."""
        return self.messages * self.fleet.points

    @property
    def published(self) -> int:
        """How many messages go out, duplicates included."""
        return self.messages + (self.messages // self._every if self._every else 0)

    @property
    def _every(self) -> int:
        """Each message of so many is followed by a duplicate of an earlier one; 0 for none."""
        return round(1 / self.duplicates) if self.duplicates else 0

    def at(self, number: int) -> int:
        """The timestamp of a message; a device has each only once."""
        turn = number // self.fleet.devices
        if not self.spread_days:
            return self.begin + turn * TICK_MICROSECONDS + number % self.fleet.devices % TICK_MICROSECONDS
        span = self.spread_days * 86_400_000_000
        return self.begin - int(number * _GOLDEN % 1 * span) // 10_000 * 10_000 + turn % 10_000

    def numbers(self) -> Iterator[int]:
        """The messages in the order in which they are published, duplicates among them."""
        every = self._every
        for number in range(self.messages):
            yield number
            if every and number % every == every - 1:
                yield max(0, number - _REPEAT_DISTANCE)

    def chunks(self) -> Iterator[tuple[bytes, int]]:
        """All packets, many at a time, with their number."""
        packets: list[bytes] = []
        packet = self.fleet.packet
        for place, number in enumerate(self.numbers()):
            packets.append(packet(number, self.at(number), place % PACKET_IDS + 1))
            if len(packets) == CHUNK_MESSAGES:
                yield b"".join(packets), len(packets)
                packets.clear()
        if packets:
            yield b"".join(packets), len(packets)

    def batches(self, size: int, *, meta_id: int | None) -> Iterator[tuple[bytes, int]]:
        """The rows as binary COPY wants them, about `size` at a time, each batch sorted by key as the service does."""
        rows: list[tuple[int, int, float]] = []
        fleet = self.fleet
        for number in range(self.messages):
            first, at = number % fleet.devices * fleet.points + 1, self.at(number)
            rows += [(first + n, at, value) for n, value in enumerate(fleet.values[number % VALUES])]
            if len(rows) >= size:
                yield _copy_bytes(sorted(rows), meta_id), len(rows)
                rows = []
        if rows:
            yield _copy_bytes(sorted(rows), meta_id), len(rows)


def _copy_bytes(rows: list[tuple[int, int, float]], meta_id: int | None) -> bytes:
    body = [
        pack_row(pack_head(series), _EPOCH + timedelta(microseconds=at), value, None, meta_id)
        for series, at, value in rows
    ]
    return b"".join([COPY_HEADER, *body, COPY_TRAILER])


def _length(value: int) -> bytes:
    """Source: MQTT 5.0 §1.5.5; up to two million is enough here."""
    if value < 0x80:
        return bytes([value])
    if value < 0x4000:
        return bytes([value & 0x7F | 0x80, value >> 7])
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14])
