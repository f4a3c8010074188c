"""What a message costs to decode is bounded by its size, whatever is in it: no device can stop or exhaust the process.

Each of these, of a megabyte at most, once took from seconds to more than an hour, or a thousand times its size.
"""

from __future__ import annotations

import time
import tracemalloc
from datetime import UTC, datetime
from typing import Final

import pytest

from traksense.adapters.registry import Registry
from traksense.config import load
from traksense.ingest.decode import Decoder, read_topic
from traksense.model import Message

MIB: Final = 2**20
SECONDS: Final = 10.0
"""Of the processor: that the machine is busy does not count, and a tenth of it is normal."""
TIMES: Final = 128
"""So many times the size of the payload. JSON of two bytes a value alone takes 75."""

PACK: Final = b'[{"bt":1795000000,%b]'
ENVELOPE: Final = b'{"schema":"v1","ts":"2026-11-27T10:00:00Z","points":[%b]}'
SENSORS: Final = b'{"device_id":"x","timestamp":"2026-11-27T10:00:00Z","sensors":[%b]}'
LONG: Final = b"x" * (MIB * 3 // 4)


def many(form: bytes, one: bytes, count: int = MIB) -> bytes:
    """So many, or as many as a megabyte holds; `%d` is the number of each."""
    room = MIB - len(form)
    each = b",".join([one % number if b"%" in one else one for number in range(min(count, room // (len(one) + 1)))])
    return form % (each if len(each) <= room else each[: each.rindex(b",", 0, room)])


HOSTILE: Final = {
    "a text that nothing ends": b'nan"' + b'\\"' * (MIB // 2 - 3),
    "backslashes": b'["nan' + b"\\" * (MIB - 10),
    "a long base unit, and sums": many(PACK % (b'"bu":"%b","n":"p","s":1},%%b' % LONG), b'{"n":"p%d","s":1}', 9_000),
    "a long base name": many(PACK % (b'"bn":"%b","n":"p","v":1},{"bn":"y"},%%b' % LONG), b'{"n":"p%d","v":1}', 9_000),
    "a long base name, and metadata": many(
        PACK % (b'"n":"p","v":1},{"bn":"%b","n":"q","v":1},%%b' % LONG), b'{"n":"model","vs":"%d"}', 9_000
    ),
    "a base value far below": many(PACK % b'"bv":1e-16300,"n":"q","v":1e289},%b', b'{"n":"p%d","v":1e289}', 9_990),
    "a base value of many digits": many(
        PACK % (b'"bv":0.%b,"n":"q","v":1},%%b' % (b"1" * 16_000)), b'{"n":"p%d","v":1}', 9_990
    ),
    "records that are none": many(PACK % b'"n":"q","v":1},%b', b"1"),
    "records that are empty": many(PACK % b'"n":"q","v":1},%b', b"{}"),
    "records without names": many(PACK % b'"n":"q","v":1},%b', b'{"v":1}'),
    "points that are none": many(ENVELOPE, b"1"),
    "points that are empty": many(ENVELOPE, b"{}"),
    "sensors that are none": many(SENSORS, b"1"),
    "sensors with labels": many(SENSORS, b'{"sensor_id":"a","value":1,"labels":{"k":%d}}', 9_999),
    "numbers of many digits": many(ENVELOPE, b'{"name":"a%d","v":0.' + b"1" * 16_000 + b"}"),
    "numbers far below": many(ENVELOPE, b'{"name":"a%d","v":1e-16000}', 9_999),
    "members": many(b"{%b}", b'"k%d":1'),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=list(HOSTILE))
def test_cost_of_a_message_is_bounded_by_its_size(payload: bytes) -> None:
    """Time and memory; that it is refused, and for what, is for other tests."""
    topic = "traksense/acme/site/device/telem"
    message = Message(topic, payload, 1, 1, 1, False, datetime.now(UTC), read_topic(topic))
    decoder = Decoder(load({}), Registry())
    assert len(payload) <= MIB
    started = time.process_time()
    decoder.decode(message)
    taken = time.process_time() - started
    tracemalloc.start()
    try:
        decoder.decode(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken < SECONDS
    assert peak < TIMES * len(payload)
