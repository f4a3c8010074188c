"""Telemetry, envelope v1: each line of its specification, and each way to break it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pytest

from traksense.adapters.envelope_v1 import EnvelopeV1
from traksense.errors import DecodeError
from traksense.model import Point, Reason, Telemetry

if TYPE_CHECKING:
    from traksense.adapters import Context
    from traksense.model import Item

    from .conftest import Decode, Refuse

TS = datetime(2025, 10, 7, 15, 30, tzinfo=UTC)
EXAMPLE = b"""{"schema": "v1", "ts": "2025-10-07T15:30:00Z",
 "points": [{"name": "temp_agua", "t": "float", "v": 7.3, "u": "\xc2\xb0C"},
            {"name": "compressor_1_on", "t": "bool", "v": true}],
 "meta": {"fw": "1.2.3", "src": "test"}}
"""


def envelope(**members: Any) -> dict[str, Any]:
    return {"schema": "v1", "ts": "2025-10-07T15:30:00Z", "points": [{"name": "a", "v": 1}]} | members


def one_point(**members: Any) -> dict[str, Any]:
    return envelope(points=[{"name": "a", "v": 1} | members])


def without(member: str) -> dict[str, Any]:
    complete = envelope()
    del complete[member]
    return complete


def telemetry(items: list[Item]) -> Telemetry:
    (item,) = items
    assert isinstance(item, Telemetry)
    return item


def test_envelope_example(decode: Decode) -> None:
    """The example of the specification decodes to its two points, its time and its meta as it came."""
    assert [
        Telemetry(
            TS,
            [Point("temp_agua", 7.3, "float", "°C"), Point("compressor_1_on", True, "bool")],
            b'{"fw": "1.2.3", "src": "test"}',
        )
    ] == decode(EnvelopeV1(), EXAMPLE)


def test_envelope_defaults(decode: Decode) -> None:
    """Without `t`, `u`, `q` and `meta`, a point is a good number without unit and the message has no meta."""
    assert [Telemetry(TS, [Point("a", 1.0, "num", None, 0)], None)] == decode(EnvelopeV1(), envelope())


@pytest.mark.parametrize(
    ("t", "v", "expected"),
    [
        ("float", 7.3, 7.3),
        ("float", 7, 7.0),
        ("num", -0.5, -0.5),
        ("int", 7, 7.0),
        ("int", 7.5, 7.5),
        ("bool", False, False),
        ("enum", "AUTO", "AUTO"),
        ("text", "", ""),
        ("num", 2**53, 2.0**53),
        ("num", 1e290, 1e290),
        ("num", 1e-400, 0.0),
    ],
)
def test_envelope_value_agrees(decode: Decode, t: str, v: object, expected: object) -> None:
    """Numbers of every numeric type become doubles, and bools and texts stay what they are."""
    (point,) = telemetry(decode(EnvelopeV1(), one_point(t=t, v=v))).points

    assert (expected, type(expected)) == (point.v, type(point.v))
    assert t == point.t


@pytest.mark.parametrize(
    ("t", "v"),
    [
        ("float", True),
        ("num", False),
        ("int", "7"),
        ("float", "7.3"),
        ("bool", 1),
        ("bool", "true"),
        ("enum", 1),
        ("text", True),
        ("num", None),
        ("text", None),
        ("num", [1]),
        ("text", {"a": 1}),
    ],
)
def test_envelope_value_disagrees(refuse: Refuse, t: str, v: object) -> None:
    """A value that disagrees with its type is a type mismatch; a bool is not a number, and null is nothing."""
    reason, detail = refuse(EnvelopeV1(), one_point(t=t, v=v))

    assert Reason.TYPE_MISMATCH == reason
    assert "$.points[0].v" in detail


def test_envelope_type_mismatch_without_type(refuse: Refuse) -> None:
    """A point without `t` is a number, so a text in it is a type mismatch."""
    assert (
        Reason.TYPE_MISMATCH,
        "`t` is num, its default, but the value is a text, which needs `t`: enum, text - at `$.points[0].v`",
    ) == refuse(EnvelopeV1(), one_point(v="7.3"))


@pytest.mark.parametrize("q", [0, 1, 2])
def test_envelope_quality(decode: Decode, q: Literal[0, 1, 2]) -> None:
    """Quality is 0, 1 or 2."""
    assert [Point("a", 1.0, q=q)] == telemetry(decode(EnvelopeV1(), one_point(q=q))).points


@pytest.mark.parametrize("length", [1, 128])
def test_envelope_name_length(decode: Decode, length: int) -> None:
    """A name has 1 to 128 characters, not bytes."""
    (point,) = telemetry(decode(EnvelopeV1(), one_point(name="á" * length))).points

    assert "á" * length == point.name


@pytest.mark.parametrize("length", [0, 64])
def test_envelope_unit_length(decode: Decode, length: int) -> None:
    """A unit has at most 64 characters."""
    assert [Point("a", 1.0, u="²" * length)] == telemetry(decode(EnvelopeV1(), one_point(u="²" * length))).points


@pytest.mark.parametrize("text", [r"\\u0000", "°C", r"\ud83d\ude00", r"\n", "\x7f"])
def test_envelope_odd_texts(decode: Decode, text: str) -> None:
    """Texts may hold any character but U+0000, also what merely looks like its escape."""
    payload = json.dumps(one_point(t="text", v="@", u="@", name="@")).replace("@", text)
    (point,) = telemetry(decode(EnvelopeV1(), payload)).points

    assert [json.loads(f'"{text}"')] * 3 == [point.name, point.v, point.u]


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (without("schema"), "`schema`"),
        (without("points"), "`points`"),
        (envelope(points=[{"v": 1}]), "`name` - at `$.points[0]`"),
        (envelope(points=[{"name": "a"}]), "`v` - at `$.points[0]`"),
        (envelope(points=[]), "$.points"),
        (envelope(points={}), "$.points"),
        (envelope(points=[1]), "$.points[0]"),
        (envelope(ts=1759851000), "$.ts"),
        (envelope(ts="2025-10-07"), "$.ts"),
        (envelope(ts="yesterday"), "$.ts"),
        (envelope(ts="0001-01-01T00:00:00+14:00"), "$.ts"),
        (envelope(meta=[1]), "$.meta"),
        (envelope(meta="fw"), "$.meta"),
        (one_point(name=""), "$.points[0].name"),
        (one_point(name="a" * 129), "$.points[0].name"),
        (one_point(name=1), "$.points[0].name"),
        (one_point(t="double"), "$.points[0].t"),
        (one_point(t=None), "$.points[0].t"),
        (one_point(u="x" * 65), "$.points[0].u"),
        (one_point(u=1), "$.points[0].u"),
        (one_point(q=3), "$.points[0].q"),
        (one_point(q=-1), "$.points[0].q"),
        (one_point(q="good"), "$.points[0].q"),
        (one_point(q=None), "$.points[0].q"),
        (one_point(q=0.5), "$.points[0].q"),
        ([1], "Expected `object`, got `array`"),
        ("1", "Expected `object`, got `int`"),
    ],
)
def test_envelope_invalid_field(refuse: Refuse, payload: object, where: str) -> None:
    """A field that is missing, of a wrong type or too long is an invalid field, and the detail says where."""
    reason, detail = refuse(EnvelopeV1(), payload)

    assert Reason.INVALID_FIELD == reason
    assert where in detail


@pytest.mark.parametrize(
    "payload", [without("ts"), envelope(ts=None), without("ts") | {"points": [{"name": "a", "v": None}]}]
)
def test_envelope_missing_timestamp(payload: dict[str, Any], context: Context) -> None:
    """Without a time of its own, nothing of a message can be stored, whatever else is wrong with it."""
    with pytest.raises(DecodeError) as caught:
        EnvelopeV1().salvage(json.dumps(payload).encode(), context)

    assert Reason.MISSING_TIMESTAMP == caught.value.reason


def test_envelope_fault_in_a_later_point(refuse: Refuse) -> None:
    """The detail names the point that is at fault, however many are before it."""
    points: list[dict[str, Any]] = [{"name": f"p{index}", "v": index} for index in range(20)]
    points[0] |= {"q": 2, "u": "x" * 64, "name": "n" * 128}
    points[17]["name"] = ""

    reason, detail = refuse(EnvelopeV1(), envelope(points=points))

    assert Reason.INVALID_FIELD == reason
    assert detail.endswith("at `$.points[17].name`")


@pytest.mark.parametrize("schema", ["v2", "V1", "", 1, None, {"v": 1}])
def test_envelope_unknown_schema(refuse: Refuse, schema: object) -> None:
    """Exactly `v1` is understood."""
    reason, _ = refuse(EnvelopeV1(), envelope(schema=schema))

    assert Reason.UNKNOWN_SCHEMA == reason


@pytest.mark.parametrize("other", [{"points": 1}, {"points": [{"name": "a", "v": None}]}, {"ts": None}])
def test_envelope_unknown_schema_other_fields(refuse: Refuse, other: dict[str, object]) -> None:
    """Another version may have other fields: that it is another version is what is reported."""
    assert (Reason.UNKNOWN_SCHEMA, 'schema is "v2", not "v1"') == refuse(EnvelopeV1(), other | {"schema": "v2"})


@pytest.mark.parametrize(
    "payload",
    [
        one_point(name="a\0"),
        one_point(t="text", v="\0"),
        one_point(u="\0"),
        envelope(meta={"a": ["\0"]}),
        envelope(meta={"\0": 1}),
    ],
)
def test_envelope_nul(refuse: Refuse, payload: object) -> None:
    """U+0000 in any text of the message is refused."""
    reason, _ = refuse(EnvelopeV1(), payload)

    assert Reason.NUL_CHARACTER == reason


@pytest.mark.parametrize("v", ["1e400", "-1e309", "9" * 400])
def test_envelope_number_out_of_range(refuse: Refuse, v: str) -> None:
    """A value beyond a double is refused, be it written with an exponent or with all its digits."""
    assert (Reason.NUMBER_OUT_OF_RANGE, "Number out of range - at `$.points[0].v`") == refuse(
        EnvelopeV1(), json.dumps(one_point(v=0)).replace('"v": 0', f'"v": {v}')
    )


def test_envelope_number_out_of_range_in_meta(refuse: Refuse) -> None:
    """The limit on numbers holds in meta, too."""
    reason, detail = refuse(EnvelopeV1(), json.dumps(envelope(meta={"a": 0})).replace('"a": 0', '"a": 1e400'))

    assert Reason.NUMBER_OUT_OF_RANGE == reason
    assert "`$.meta`" in detail


@pytest.mark.parametrize("payload", [b"", b"{", b"temp=7.3", EXAMPLE[:-5], EXAMPLE.replace(b"7.3", b"NaN")])
def test_envelope_parse_error(refuse: Refuse, payload: bytes) -> None:
    """What is not JSON is a parse error."""
    reason, _ = refuse(EnvelopeV1(), payload)

    assert Reason.PARSE_ERROR == reason


@pytest.mark.parametrize(
    "payload",
    [EXAMPLE.replace(b"test", b"\xff"), EXAMPLE.replace(b"test", rb"\ud800"), EXAMPLE.replace(b"meta", b"m\xe9ta")],
)
def test_envelope_bad_text(refuse: Refuse, payload: bytes) -> None:
    """Invalid UTF-8 and lone surrogates are parse errors, also where the text is only kept or ignored."""
    reason, _ = refuse(EnvelopeV1(), payload)

    assert Reason.PARSE_ERROR == reason


@pytest.mark.parametrize("member", ["meta", "points", "ignored"])
def test_envelope_nested_too_deep(refuse: Refuse, member: str) -> None:
    """Nesting that would exhaust the stack is refused wherever it is."""
    deep = "[" * 1_000_000 + "]" * 1_000_000
    reason, _ = refuse(EnvelopeV1(), json.dumps(envelope(**{member: "@"})).replace('"@"', deep))

    assert Reason.NESTED_TOO_DEEP == reason


def test_envelope_meta_as_it_came(decode: Decode) -> None:
    """Meta keeps its bytes: white space, order, notation of numbers, repeated members."""
    meta = '{ "b":1.0,  "a":[1e2, "\\u00b0"], "b":2 }'
    payload = json.dumps(envelope(meta="@")).replace('"@"', meta)

    assert meta.encode() == telemetry(decode(EnvelopeV1(), payload)).meta


@pytest.mark.parametrize("member", ["meta", "u"])
def test_envelope_null_is_absent(decode: Decode, member: str) -> None:
    """For meta and the unit, null means absent."""
    payload = envelope(meta=None) if member == "meta" else one_point(u=None)

    assert [Telemetry(TS, [Point("a", 1.0)])] == decode(EnvelopeV1(), payload)


def test_envelope_other_members(decode: Decode) -> None:
    """Members that the specification does not name are ignored, in the envelope as in its points."""
    payload = envelope(site="x", points=[{"name": "a", "v": 1, "color": "red"}])

    assert [Telemetry(TS, [Point("a", 1.0)])] == decode(EnvelopeV1(), payload)


def test_envelope_repeated_point(decode: Decode) -> None:
    """The same point twice stays twice: the store keeps the first and counts the other as a duplicate."""
    payload = envelope(points=[{"name": "a", "v": 1}, {"name": "a", "v": 2}])

    assert [Point("a", 1.0), Point("a", 2.0)] == telemetry(decode(EnvelopeV1(), payload)).points


def test_envelope_claims() -> None:
    """It claims what has a schema."""
    adapter = EnvelopeV1()

    assert adapter.claims(b"", frozenset({"schema", "x"}))
    assert not adapter.claims(b"", frozenset({"x"}))
    assert not adapter.claims(b"", None)


@pytest.mark.parametrize(
    ("point", "reason", "said"),
    [
        ('"t":"str","v":"x"', Reason.INVALID_FIELD, "`t` is 'str', not one of float, num, int, bool, enum, text"),
        ('"q":3,"v":1', Reason.INVALID_FIELD, "`q` is 3, not one of 0, 1, 2"),
        (
            '"t":"bool","v":1',
            Reason.TYPE_MISMATCH,
            "`t` is bool but the value is a number, which needs `t`: float, num, int",
        ),
    ],
)
@pytest.mark.parametrize("beside", ["", ',{"name":"good","v":1}'])
def test_envelope_says_what_would_be_right(refuse: Refuse, point: str, reason: Reason, said: str, beside: str) -> None:
    """Of a field that may be one of a few things; alone and beside good points."""
    points = f'[{{"name":"p",{point}}}{beside}]'
    refused, detail = refuse(EnvelopeV1(), f'{{"schema":"v1","ts":"2026-01-01T00:00:00Z","points":{points}}}'.encode())

    assert (reason, True) == (refused, said in detail)
