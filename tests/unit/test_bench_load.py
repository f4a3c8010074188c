"""The messages of a bench: what is published is what is counted and copied."""

from __future__ import annotations

import struct
from collections import Counter
from datetime import UTC, datetime

import mqtt5
import msgspec
import pytest

from traksense.tools.bench.load import PACKET_IDS, TICK_MICROSECONDS, Fleet, Load

BEGIN = 1_760_000_000_000_000


def published(load: Load) -> list[mqtt5.PublishPacket]:
    """The packets of a load, parsed."""
    packets: list[mqtt5.PublishPacket] = []
    for chunk, count in load.chunks():
        raw, before = memoryview(chunk), len(packets)
        while raw:
            packet, size = mqtt5.read(raw)
            assert isinstance(packet, mqtt5.PublishPacket)
            packets.append(packet)
            raw = raw[size:]
        assert count == len(packets) - before
    return packets


def key(packet: mqtt5.PublishPacket) -> tuple[str, str]:
    """The device and its time: what may come only once."""
    return packet.topic, msgspec.json.decode(packet.payload)["ts"]


@pytest.mark.parametrize("meta", [True, False])
def test_packet_is_an_envelope_at_qos_1(meta: bool) -> None:
    """A message is PUBLISH at QoS 1 on the device's topic, with an envelope v1 of its points."""
    fleet = Fleet(devices=7, points=3, tenants=2, meta=meta)

    packet, _ = mqtt5.read(memoryview(fleet.packet(12, BEGIN + 5, 77)))

    assert isinstance(packet, mqtt5.PublishPacket)
    assert ("traksense/bench-00001/plant-1/device-000005/telem", 77, 1) == (packet.topic, packet.packet_id, packet.qos)
    envelope = msgspec.json.decode(packet.payload)
    assert ("v1", "2025-10-09T08:53:20.000005Z", meta) == (envelope["schema"], envelope["ts"], "meta" in envelope)
    assert [("point-00", "°C"), ("point-01", "%"), ("point-02", "bar")] == [
        (p["name"], p["u"]) for p in envelope["points"]
    ]


@pytest.mark.parametrize("points", [1, 10, 500])
def test_packet_of_any_length(points: int) -> None:
    """The length is right for one, two and three bytes of it."""
    raw = Fleet(devices=1, points=points).packet(0, BEGIN, 1)

    packet, size = mqtt5.read(memoryview(raw))

    assert size == len(raw)
    assert isinstance(packet, mqtt5.PublishPacket)
    assert points == len(msgspec.json.decode(packet.payload)["points"])


@pytest.mark.parametrize("days", [0, 90])
def test_load_has_each_key_once(days: int) -> None:
    """Without duplicates every message is another one, devices in turns, all from `begin` on or in the days before."""
    load = Load(fleet=Fleet(devices=50, points=1), messages=2_000, begin=BEGIN, spread_days=days)
    packets = published(load)

    assert (2_000, 2_000, 2_000) == (len(packets), len(set(map(key, packets))), load.published)
    times = [load.at(number) for number in range(2_000)]
    if days:
        assert BEGIN - days * 86_400_000_000 <= min(times) < BEGIN - (days - 1) * 86_400_000_000
        assert BEGIN - 86_400_000_000 < max(times) <= BEGIN
    else:
        assert BEGIN == min(times) <= max(times) < BEGIN + 40 * TICK_MICROSECONDS
        assert all((time >= BEGIN + TICK_MICROSECONDS) == (number >= 50) for number, time in enumerate(times))


def test_load_duplicates_are_repeats() -> None:
    """A fifth of the messages comes twice, exactly as it was."""
    load = Load(fleet=Fleet(devices=10, points=2), messages=1_000, begin=BEGIN, duplicates=0.2)
    packets = published(load)

    assert (1_200, 1_200, 2_000) == (len(packets), load.published, load.rows)
    counts = Counter((p.topic, p.payload) for p in packets)
    assert 1_000 == len(counts) == len(set(map(key, packets)))


def test_load_packet_identifiers_go_round() -> None:
    """Identifiers are never 0 and never beyond what there is."""
    fleet = Fleet(devices=10, points=1)
    ids = [p.packet_id for p in published(Load(fleet=fleet, messages=PACKET_IDS + 2, begin=BEGIN))]

    assert [*range(1, PACKET_IDS + 1), 1, 2] == ids


@pytest.mark.parametrize("meta_id", [None, 1])
def test_batches_are_the_same_rows(meta_id: int | None) -> None:
    """What the ceiling copies is what the service would store: series, time, value, meta; sorted within a batch."""
    fleet = Fleet(devices=3, points=2)
    load = Load(fleet=fleet, messages=10, begin=BEGIN)
    expected = {
        (packet.topic, point["name"], msgspec.json.decode(packet.payload)["ts"], point["v"])
        for packet in published(load)
        for point in msgspec.json.decode(packet.payload)["points"]
    }

    rows = set()
    sizes = []
    for data, count in load.batches(8, meta_id=meta_id):
        batch = unpacked(data)
        assert batch == sorted(batch)
        assert {meta_id} == {meta for _, _, meta, _ in batch}
        sizes.append((count, len(batch)))
        for series, at, _, value in batch:
            device, point = divmod(series - 1, fleet.points)
            stamp = (
                datetime.fromtimestamp(at // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{at % 1_000_000:06d}Z"
            )
            rows.add((f"traksense/bench-00000/plant-1/device-{device:06d}/telem", f"point-{point:02d}", stamp, value))

    assert expected == rows
    assert [(8, 8), (8, 8), (4, 4)] == sizes


def unpacked(data: bytes) -> list[tuple[int, int, int | None, float]]:
    """Series, Unix microseconds, meta and value of each row of a binary COPY."""
    assert data.startswith(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
    assert data.endswith(b"\xff\xff")
    rows, at = [], 19
    while at < len(data) - 2:
        (count,) = struct.unpack_from(">h", data, at)
        at += 2
        fields: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            fields.append(None if length < 0 else data[at : at + length])
            at += max(0, length)
        series, ts, *rest, value = fields
        meta = rest.pop(2)
        assert [None] * 4 == rest
        assert series is not None
        assert ts is not None
        assert value is not None
        meta_id = None if meta is None else struct.unpack(">i", meta)[0]
        stamp = struct.unpack(">q", ts)[0] + 946_684_800_000_000
        rows.append((struct.unpack(">i", series)[0], stamp, meta_id, struct.unpack(">d", value)[0]))
    return rows
