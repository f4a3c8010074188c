"""Messages that nobody should accept, of every kind that the payload specification names.

Each is unlike any other (it holds a number and the time), so that each becomes a dead letter of its own.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from traksense.config import MIB, Settings
from traksense.model import Kind, Reason
from traksense.tools.fleet.formats import timestamp

if TYPE_CHECKING:
    from random import Random

OVERSIZE_BYTES: Final = 1 * MIB + 1
"""One byte more than the default of INGEST_PAYLOAD_MAX_BYTES."""
TOO_MANY_POINTS: Final = Settings().points_max + 1
NESTING: Final = 20_000
FAR_FUTURE_SECONDS: Final = 400 * 86400.0


class Fault(enum.StrEnum):
    """What is wrong."""

    TRUNCATED = "truncated"
    NOT_JSON = "not_json"
    INVALID_UTF8 = "invalid_utf8"
    NUL_BYTE = "nul_byte"
    UNKNOWN_SCHEMA = "unknown_schema"
    UNKNOWN_FORMAT = "unknown_format"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NUL_TEXT = "nul_text"
    HUGE_NUMBER = "huge_number"
    FAR_FUTURE = "far_future"
    NO_TIMESTAMP = "no_timestamp"
    BAD_TOPIC = "bad_topic"
    BAD_KIND = "bad_kind"
    DEEP_NESTING = "deep_nesting"
    OVERSIZE = "oversize"
    MANY_POINTS = "many_points"


REASONS: Final = {
    Fault.TRUNCATED: Reason.PARSE_ERROR,
    Fault.NOT_JSON: Reason.PARSE_ERROR,
    Fault.INVALID_UTF8: Reason.PARSE_ERROR,
    Fault.NUL_BYTE: Reason.PARSE_ERROR,
    Fault.UNKNOWN_SCHEMA: Reason.UNKNOWN_SCHEMA,
    Fault.UNKNOWN_FORMAT: Reason.UNKNOWN_FORMAT,
    Fault.MISSING_FIELD: Reason.INVALID_FIELD,
    Fault.WRONG_TYPE: Reason.TYPE_MISMATCH,
    Fault.NUL_TEXT: Reason.NUL_CHARACTER,
    Fault.HUGE_NUMBER: Reason.NUMBER_OUT_OF_RANGE,
    Fault.FAR_FUTURE: Reason.TIMESTAMP_OUT_OF_WINDOW,
    Fault.NO_TIMESTAMP: Reason.MISSING_TIMESTAMP,
    Fault.BAD_TOPIC: Reason.INVALID_TOPIC,
    Fault.BAD_KIND: Reason.INVALID_TOPIC,
    Fault.DEEP_NESTING: Reason.NESTED_TOO_DEEP,
    Fault.OVERSIZE: Reason.PAYLOAD_TOO_LARGE,
    Fault.MANY_POINTS: Reason.TOO_MANY_POINTS,
}
"""What the service says of each, under its default limits."""

BEYOND_DEFAULT_TOPICS: Final = frozenset({Fault.BAD_KIND})
"""Only a subscription such as `traksense/#` receives these."""

HEAVY: Final = frozenset({Fault.DEEP_NESTING, Fault.OVERSIZE, Fault.MANY_POINTS})
"""Large ones, made seldom."""

_WEIGHTS: Final = [0.1 if fault in HEAVY else 1.0 for fault in Fault]


def choose(random: Random) -> Fault:
    """Any fault; large ones ten times less often than others."""
    return random.choices(tuple(Fault), _WEIGHTS)[0]


def make(fault: Fault, path: str, number: int, ts: float) -> tuple[str, bytes]:
    """A topic and a payload with this fault.

    Args:
        fault: What shall be wrong.
        path: "tenant/site/device".
        number: Makes it unique within a run.
        ts: Unix seconds; makes it unique between runs.
    """
    when = timestamp(ts + FAR_FUTURE_SECONDS if fault is Fault.FAR_FUTURE else ts)
    tenant, site, device = path.split("/")
    topics = {
        Fault.BAD_TOPIC: f"traksense/{tenant}//{device}/{Kind.TELEM}",
        Fault.BAD_KIND: f"traksense/{tenant}/{site}/{device}/telemetry",
    }
    return topics.get(fault, f"traksense/{path}/{Kind.TELEM}"), _payload(fault, number, when)


def _payload(fault: Fault, number: int, when: str) -> bytes:
    good = _envelope(when, f'{{"name":"sequence","t":"int","v":{number}}}')
    text = good
    match fault:
        case Fault.TRUNCATED:
            text = good[:-3]  # the number is still there
        case Fault.NOT_JSON:
            text = f"temp={number / 10};unit=C;at={when}"
        case Fault.INVALID_UTF8:
            return good.encode().replace(b"sequence", b"temp\xff\xfeatura")
        case Fault.NUL_BYTE:
            return good.encode().replace(b",", b"\x00,", 1)  # behind the text, it would be read
        case Fault.UNKNOWN_SCHEMA:
            text = good.replace('"v1"', '"v9"')
        case Fault.UNKNOWN_FORMAT:
            text = f'{{"sequence":{number},"temperature":23.5,"at":"{when}"}}'
        case Fault.MISSING_FIELD:
            text = f'{{"schema":"v1","ts":"{when}","meta":{{"sequence":{number}}}}}'
        case Fault.WRONG_TYPE:
            text = _envelope(when, f'{{"name":"temp","t":"float","v":"{number} °C"}}')
        case Fault.NUL_TEXT:
            text = _envelope(when, f'{{"name":"state","t":"text","v":"RUN\\u0000{number}"}}')
        case Fault.HUGE_NUMBER:
            text = _envelope(when, f'{{"name":"energy","t":"num","v":{number + 1}e999}}')
        case Fault.NO_TIMESTAMP:
            text = f'{{"di1":1,"di2":0,"rssi":-61,"fw":"0.9.{number}","booted":"{when}"}}'
        case Fault.DEEP_NESTING:
            text = f'{{"schema":"v1","ts":"{when}","sequence":{number},"points":{"[" * NESTING}{"]" * NESTING}}}'
        case Fault.OVERSIZE:
            text = good.ljust(OVERSIZE_BYTES)
        case Fault.MANY_POINTS:
            text = _envelope(when, ",".join([f'{{"name":"p","v":{number}}}'] * TOO_MANY_POINTS))
        case _:
            pass  # the topic or the time is at fault
    return text.encode()


def _envelope(when: str, points: str) -> str:
    return f'{{"schema":"v1","ts":"{when}","points":[{points}]}}'
