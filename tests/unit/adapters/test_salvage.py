"""What is good in a message is decoded, what is bad is named, and what is no reading is counted: in every format."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from traksense.adapters import ConformanceError, Partial, Registry, check_items
from traksense.adapters.registry import unpadded
from traksense.adapters.salvage import without_nan
from traksense.errors import DecodeError
from traksense.model import CommandAck, Kind, Point, Reason, Rejection, Telemetry

if TYPE_CHECKING:
    from traksense.adapters import Context

TS = datetime(2025, 10, 7, 15, 30, tzinfo=UTC)
GOOD = {"name": "good", "v": 1}


def salvage(payload: str | bytes, context: Context) -> Partial:
    raw = payload.encode(errors="surrogatepass") if isinstance(payload, str) else payload
    partial = Registry().salvage(Kind.TELEM, raw, context)
    assert partial is not None
    check_items(partial)
    return partial


def names(partial: Partial) -> list[str]:
    return [point.name for item in partial if isinstance(item, Telemetry) for point in item.points]


def envelope(*points: Any, **members: Any) -> str:
    return json.dumps({"schema": "v1", "ts": "2025-10-07T15:30:00Z", "points": points} | members)


@pytest.mark.parametrize(
    ("bad", "reason", "path"),
    [
        ({"name": "b", "v": "abc"}, Reason.TYPE_MISMATCH, "$.points[1].v"),
        ({"name": "b", "v": [1]}, Reason.TYPE_MISMATCH, "$.points[1].v"),
        ({"name": "b", "v": 1, "t": "bool"}, Reason.TYPE_MISMATCH, "$.points[1].v"),
        ({"name": "b", "v": "NaN", "t": "bool"}, Reason.TYPE_MISMATCH, "$.points[1].v"),
        ({"name": "b" * 136, "v": 1}, Reason.INVALID_FIELD, "$.points[1].name"),
        ({"name": "", "v": 1}, Reason.INVALID_FIELD, "$.points[1].name"),
        ({"v": 1}, Reason.INVALID_FIELD, "$.points[1]"),
        ({"name": "b"}, Reason.INVALID_FIELD, "$.points[1]"),
        ({"name": "b", "v": 1, "u": "u" * 65}, Reason.INVALID_FIELD, "$.points[1].u"),
        ({"name": "b", "v": 1, "u": 5}, Reason.INVALID_FIELD, "$.points[1].u"),
        ({"name": "b", "v": 1, "q": 7}, Reason.INVALID_FIELD, "$.points[1].q"),
        ({"name": "b", "v": 1, "t": "double"}, Reason.INVALID_FIELD, "$.points[1].t"),
        ({"name": "b\0", "v": 1}, Reason.NUL_CHARACTER, "$.points[1]"),
        ({"name": "b", "v": "\0", "t": "text"}, Reason.NUL_CHARACTER, "$.points[1]"),
        ({"name": "b", "v": 10**400}, Reason.NUMBER_OUT_OF_RANGE, "$.points[1].v"),
        ({"name": "b", "v": float("inf")}, Reason.NUMBER_OUT_OF_RANGE, "$.points[1].v"),
        (7, Reason.INVALID_FIELD, "$.points[1]"),
        (None, Reason.INVALID_FIELD, "$.points[1]"),
    ],
)
def test_envelope_bad_point(bad: object, reason: Reason, path: str, context: Context) -> None:
    """The good points are there, in order; the bad one has its reason and its path."""
    partial = salvage(envelope(GOOD, bad, {"name": "last", "v": "x", "t": "text"}, meta={"fw": "1"}), context)

    assert ["good", "last"] == names(partial)
    assert [reason] == [fault.reason for fault in partial.faults]
    assert partial.faults[0].detail.endswith(f"- at `{path}`")
    assert 0 == partial.absent


@pytest.mark.parametrize("value", ["null", "NaN", "nan", "-nan", '"NaN"', '"nan"', '"-NaN"'])
def test_envelope_no_reading(value: str, context: Context) -> None:
    """Null, and not-a-number however it is written, is no reading: neither a point nor a fault."""
    partial = salvage(envelope(GOOD, {"name": "b", "v": "@"}).replace('"@"', value), context)

    assert (["good"], [], 1) == (names(partial), partial.faults, partial.absent)
    assert [] == list(salvage(envelope({"name": "b", "v": "@"}).replace('"@"', value), context))


def test_texts_are_not_numbers(context: Context) -> None:
    """A text may say NaN, and one inside a text is left as it is, escapes included."""
    odd = r'a "NaN\ NaN, -Infinity'
    partial = salvage(envelope({"name": odd, "t": "text", "v": "NaN"}, {"name": "b", "v": float("nan")}), context)

    (telemetry,) = partial
    assert isinstance(telemetry, Telemetry)
    assert [Point(odd, "NaN", "text")] == telemetry.points
    assert b'{"a":1e999,"inf_":"inf"}' == without_nan(b'{"a":Infinity,"inf_":"inf"}')
    assert b"[null,-1,1e5]" == without_nan(b"[NaN,-1,1e5]")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"schema": "v2"}, Reason.UNKNOWN_SCHEMA),
        ({"ts": None}, Reason.MISSING_TIMESTAMP),
        ({"ts": "now"}, Reason.INVALID_FIELD),
        ({"points": []}, Reason.INVALID_FIELD),
        ({"meta": [1]}, Reason.INVALID_FIELD),
        ({"meta": {"a": "\0"}}, Reason.NUL_CHARACTER),
    ],
)
def test_envelope_fault_of_the_message(members: dict[str, Any], reason: Reason, context: Context) -> None:
    """What all points share is the message's fault, whatever else is wrong."""
    with pytest.raises(DecodeError) as caught:
        salvage(envelope(GOOD, {"name": "b", "v": "abc"}, **members), context)

    assert reason == caught.value.reason


def test_envelope_fault_in_what_nobody_reads(context: Context) -> None:
    """It spoils nothing: the points are good, and all of the bytes need not be kept."""
    partial = salvage(envelope(GOOD, comment="\0"), context)

    assert (["good"], []) == (names(partial), partial.faults)


OTHERS = [
    (
        '{"di1":5,"di2":1,"rssi":null,"ts":"2025-10-07T15:30:00Z"}',
        ["fault"],
        [(Reason.INVALID_FIELD, "$.di1")],
        1,
    ),
    (
        '{"di1":null,"di2":null,"rssi":-68,"ts":"2025-10-07T15:30:00Z"}',
        ["rssi"],
        [],
        2,
    ),
    (
        '{"DATA":{"TS":1759937445,"INPUT1":1,"INPUT2":7,"VAR0":"235","VAR1":NaN,"RELE":1,"UPTIME":1e400},"INFO":{}}',
        ["rele"],
        [
            (Reason.INVALID_FIELD, "$.DATA.INPUT2"),
            (Reason.NUMBER_OUT_OF_RANGE, "$.DATA.UPTIME"),
            (Reason.INVALID_FIELD, "$.DATA.VAR0"),
        ],
        1,
    ),
    (
        (
            '[{"bn":"x","bt":1552594568},{"n":"a","v":1},{"n":"b","v":"1"},{"n":"c","v":null},{"n":"d","v":NaN},'
            '{"n":"e","v":1,"vs":""},{"n":"f","v":1,"t":-1552594568},{"n":"\\u0000","v":1},7,{"n":"g","u":7,"v":1},'
            '{"n":"h","v":2}]'
        ),
        ["a", "h"],
        [
            (Reason.INVALID_FIELD, "$[2].v"),
            (Reason.INVALID_FIELD, "$[5]"),
            (Reason.MISSING_TIMESTAMP, "$[6]"),
            (Reason.NUL_CHARACTER, "$[7]"),
            (Reason.INVALID_FIELD, "$[8]"),
            (Reason.INVALID_FIELD, "$[9].u"),
        ],
        2,
    ),
    (
        (
            '{"timestamp":"2025-10-20T14:30:00Z","sensors":[{"sensor_id":"a","value":1},{"sensor_id":"","value":1},'
            '{"sensor_id":"b","value":null},{"sensor_id":"c","value":NaN},{"sensor_id":"d","value":{}},'
            '{"sensor_id":"e","value":1,"labels":{"x":1e999}},{"sensor_id":"f\\u0000","value":1}]}'
        ),
        ["a"],
        [
            (Reason.INVALID_FIELD, "$.sensors[1].sensor_id"),
            (Reason.INVALID_FIELD, "$.sensors[4].value"),
            (Reason.NUMBER_OUT_OF_RANGE, "$.sensors[5]"),
            (Reason.NUL_CHARACTER, "$.sensors[6]"),
        ],
        2,
    ),
]


@pytest.mark.parametrize(("payload", "good", "faults", "absent"), OTHERS)
def test_other_formats(
    payload: str, good: list[str], faults: list[tuple[Reason, str]], absent: int, context: Context
) -> None:
    """The other formats do likewise, each part by its own path."""
    partial = salvage(payload, context)

    assert good == names(partial)
    assert faults == [(fault.reason, fault.detail.split("`")[-2]) for fault in partial.faults]
    assert absent == partial.absent


@pytest.mark.parametrize("record", ['{"n":"b","v":"1","bt":"x"}', '{"bn":7}', '{"bn":"a\\u0000"}', '{"bver":11}'])
def test_senml_base_field(record: str, context: Context) -> None:
    """A bad base field would make others of what follows: it is the pack's fault."""
    with pytest.raises(DecodeError):
        salvage(f'[{{"n":"a","v":1,"t":1552594568}},{record},{{"n":"c","v":1,"t":1552594568}}]', context)


def test_senml_names_do_not_depend_on_faults(context: Context) -> None:
    """A record that is left out still says that there are two devices, so full names are needed."""
    good, bad = '{"bn":"x/","bt":1552594568,"n":"a","v":1}', '{"bn":"y/","n":"a","v":@}'

    both = salvage(f"[{good},{bad.replace('@', '2')}]", context)
    one = salvage(f"[{good},{bad.replace('@', chr(34) * 2)}]", context)

    assert (["x/a", "y/a"], ["x/a"]) == (names(both), names(one))


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.EVENT])
def test_nothing_to_salvage(kind: Kind, context: Context) -> None:
    """An acknowledgement and an event are good or bad as a whole, and what nobody knows is left alone."""
    assert Registry().salvage(kind, b'{"schema":"v1","cmd_id":7}', context) is None
    assert Registry().salvage(Kind.TELEM, b'{"a":NaN}', context) is None


@pytest.mark.parametrize("pad", [b"\0", b"\0\0\0\0", b"\n", b"\r\n\0", b" \t\0\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Kind.TELEM, envelope(GOOD).encode()),
        (Kind.TELEM, b'[{"n":"a","v":1,"t":1552594568}]'),
        (Kind.TELEM, b'{"di1":1,"ts":"2025-10-07T15:30:00Z"}'),
        (Kind.EVENT, b'{"schema":"v1","event_type":"boot","ts":"2025-10-07T15:00:00Z"}'),
    ],
)
def test_padding_is_not_part_of_a_text(kind: Kind, text: bytes, mark: bytes, pad: bytes, context: Context) -> None:
    """A C string's NULs, an editor's byte order mark and line ends are read over, in every format."""
    registry = Registry()

    assert registry.decode(kind, text, context) == registry.decode(kind, mark + text + pad, context)
    assert text is unpadded(text)
    (ack,) = registry.decode(Kind.ACK, b'\xef\xbb\xbf{"schema":"v1","cmd_id":"c","ok":true}\0', context)
    assert isinstance(ack, CommandAck)
    assert b'{"schema":"v1","cmd_id":"c","ok":true}' == ack.payload


def test_latin_1_is_named(context: Context) -> None:
    """It is not guessed at: which text it would be, nobody knows; but the dead letter says what it looks like."""
    with pytest.raises(DecodeError) as caught:
        Registry().decode(
            Kind.TELEM, envelope({"name": "t", "v": 1, "u": "@C"}).encode().replace(b"@", b"\xb0"), context
        )

    assert Reason.PARSE_ERROR == caught.value.reason
    assert "not UTF-8 but perhaps Latin-1" in caught.value.detail
    assert "0xb0" in caught.value.detail


@pytest.mark.parametrize("payload", [b"\x1f\x8b\x08\x00\xb0", '{"u": "\u00b0C"}'.encode("utf-16"), b'{"u": "\x80"}'])
def test_binary_is_not_called_latin_1(context: Context, payload: bytes) -> None:
    """What is compressed, in UTF-16 or in another code page has characters that no text in Latin-1 has."""
    with pytest.raises(DecodeError) as caught:
        Registry().decode(Kind.TELEM, payload, context)

    assert "not UTF-8: " in caught.value.detail


class ThirdParty:
    """Claims everything; returns what it was given."""

    name = "third_party"
    kind = Kind.TELEM

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.payloads: list[bytes] = []

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:
        return True

    def decode(self, payload: bytes, context: Context) -> Partial:
        self.payloads.append(payload)
        return self.partial


def test_third_party_partial(context: Context) -> None:
    """Another's adapter may name faults beside its items; it gets the bytes as they came, padding and all."""
    fault = Rejection(Reason.INVALID_FIELD, "no\nsuch channel" + "x" * 600)
    adapter = ThirdParty(Partial([Telemetry(TS, [Point("a", 1.0)])], faults=[fault], absent=2))

    partial = Registry([adapter]).decode(Kind.TELEM, b"telegram\0", context)

    assert isinstance(partial, Partial)
    assert (["a"], 2) == (names(partial), partial.absent)
    assert partial.faults[0].detail.startswith("no\\nsuch channel")
    assert 500 == len(partial.faults[0].detail)
    assert [b"telegram\0"] == adapter.payloads


@pytest.mark.parametrize(
    "partial",
    [
        Partial(),
        Partial([Telemetry(TS, [])]),
        Partial(absent=-1),
        Partial(absent=True),
        Partial(faults=["bad"]),  # type: ignore[list-item]  # what third parties return is not under our control
        Partial(faults=[Rejection("bad", "bad")]),  # type: ignore[arg-type]
    ],
)
def test_third_party_partial_broken(partial: Partial, context: Context) -> None:
    """It is held to the contract."""
    with pytest.raises(ConformanceError):
        check_items(partial)
    with pytest.raises(DecodeError) as caught:
        Registry([ThirdParty(partial)]).decode(Kind.TELEM, b"telegram", context)

    assert Reason.ADAPTER_FAILED == caught.value.reason
