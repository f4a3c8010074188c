"""The laws of decoding, for whatever a device may send."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.adapters import Context, Registry, check_items
from traksense.adapters.fields import CLASS_OF
from traksense.errors import DecodeError
from traksense.model import Item, Kind, Point, Reason, Telemetry, ValueType

CONTEXT = Context("acme", "plant-1", "dev-7", datetime(2025, 10, 7, 15, 30, 9, tzinfo=UTC))
REGISTRY = Registry()

VALID: list[tuple[Kind, Any]] = [
    (
        Kind.TELEM,
        {
            "schema": "v1",
            "ts": "2025-10-07T15:30:00Z",
            "points": [
                {"name": "temp_agua", "t": "float", "v": 7.3, "u": "°C", "q": 1},
                {"name": "b", "t": "bool", "v": True},
            ],
            "meta": {"fw": "1.2.3", "n": [1, 2.5e3]},
        },
    ),
    (Kind.TELEM, {"di1": 1, "di2": 0, "rssi": -68, "fw": "1.2.3", "ts": "2025-10-07T15:30:00Z"}),
    (Kind.TELEM, {"DATA": {"TS": 1759937445, "INPUT1": 1, "VAR0": 235, "RELE": 0}, "INFO": {"MODEL": "JE02"}}),
    (
        Kind.TELEM,
        [
            {"bn": "x", "bt": 1552594568},
            {"n": "model", "vs": "nit20l"},
            {"n": "A", "u": "Cel", "v": 23.35, "s": 2},
            {"n": "d", "vd": "YQ"},
        ],
    ),
    (
        Kind.TELEM,
        {
            "device_id": "G",
            "timestamp": "2025-10-20T14:30:00Z",
            "sensors": [{"sensor_id": "t", "value": 1, "unit": "c", "type": "x", "labels": {}}],
        },
    ),
    (Kind.TELEM, {"topic": "t", "payload": '{"sensors": [{"sensor_id": "t", "value": 1}]}', "ts": 1729216200000}),
    (Kind.ACK, {"schema": "v1", "cmd_id": "c", "ok": True, "ts_exec": "2025-10-07T15:30:05Z", "err": None}),
    (
        Kind.EVENT,
        {"schema": "v1", "event_id": "e", "event_type": "boot", "ts": "2025-10-07T15:00:00Z", "data": {"a": 1}},
    ),
]
ODD_TEXTS = st.sampled_from(
    ["", "v1", "\0", "\\u0000", "°", "😀", "x" * 129, "2025-10-07", "9999-12-31T23:59:59-12:00", "model"]
)
ODD_NUMBERS = st.sampled_from([0, 1, 2, -1, 2**28, 1552594568, 2**64, 10**400, 1e308, -1e-320, 5e18])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | ODD_NUMBERS
    | st.floats(allow_nan=False, allow_infinity=False)
    | ODD_TEXTS
    | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(ODD_TEXTS | st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)
KINDS = st.sampled_from(Kind)


def outcome(kind: Kind, payload: bytes) -> list[Item] | DecodeError:
    """What becomes of the payload; either way it is such that it can be stored."""
    try:
        items = REGISTRY.decode(kind, payload, CONTEXT)
    except DecodeError as exc:
        refusal = exc
    else:
        check_items(items)
        return items
    assert isinstance(refusal.reason, Reason)
    assert refusal.reason is not Reason.ADAPTER_FAILED
    assert refusal.detail
    assert refusal.detail.isprintable()
    assert len(refusal.detail) <= 500
    return refusal


def places(tree: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path]
    if isinstance(tree, dict):
        found += [place for name, child in tree.items() for place in places(child, (*path, name))]
    if isinstance(tree, list):
        found += [place for index, child in enumerate(tree) for place in places(child, (*path, index))]
    return found


def replaced(tree: Any, path: tuple[str | int, ...], value: object) -> Any:
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


@st.composite
def changed_documents(draw: st.DrawFn) -> tuple[Kind, bytes]:
    """A valid document of any format with up to three values replaced by something else."""
    kind, tree = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 3))):
        tree = replaced(tree, draw(st.sampled_from(places(tree))), draw(JSON))
    return kind, json.dumps(tree, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")


@st.composite
def changed_bytes(draw: st.DrawFn) -> tuple[Kind, bytes]:
    """The bytes of a valid document of any format, cut, or with a few bytes put in the place of others."""
    kind, tree = draw(st.sampled_from(VALID))
    payload = json.dumps(tree, ensure_ascii=False).encode()
    start = draw(st.integers(0, len(payload)))
    end = draw(st.integers(start, min(start + 4, len(payload))))
    middle = draw(
        st.binary(max_size=3) | st.sampled_from([b"\\u0000", b"\\ud800", b"1e400", b"[[", b'{"a":', b'"', b"\\"])
    )
    return kind, payload[:start] + middle + payload[end:]


@given(KINDS, st.binary())
def test_decode_any_bytes(kind: Kind, payload: bytes) -> None:
    """No bytes bring about anything but items that can be stored or a DecodeError that can."""
    assert outcome(kind, payload)


@given(KINDS, JSON)
def test_decode_any_json(kind: Kind, tree: object) -> None:
    """No JSON does."""
    assert outcome(kind, json.dumps(tree).encode())


@given(changed_documents())
def test_decode_changed_document(document: tuple[Kind, bytes]) -> None:
    """No value in the place of another does."""
    assert outcome(*document)


@given(changed_bytes())
def test_decode_changed_bytes(document: tuple[Kind, bytes]) -> None:
    """No damage to the bytes does."""
    assert outcome(*document)


@pytest.mark.parametrize(("kind", "tree"), VALID)
def test_decode_unchanged_document(kind: Kind, tree: object) -> None:
    """The documents that are changed above are valid unchanged."""
    assert isinstance(outcome(kind, json.dumps(tree).encode()), list)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Beyond these, what is written may be another number than its double (test_numbers has those).
SAFE = st.floats(-(2.0**53), 2.0**53)
VALUES: dict[str, st.SearchStrategy[object]] = {
    "float": SAFE,
    "num": SAFE | st.integers(-(2**53), 2**53),
    "int": st.integers(-(2**53), 2**53),
    "bool": st.booleans(),
    "enum": TEXTS,
    "text": TEXTS,
}
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=128)
POINTS = st.sampled_from(sorted(VALUES)).flatmap(
    lambda t: st.fixed_dictionaries(
        {"name": NAMES, "t": st.just(t), "v": VALUES[t]},
        optional={"u": st.none() | NAMES.map(lambda unit: unit[:64]), "q": st.integers(0, 2)},
    )
)


@given(
    st.lists(POINTS, min_size=1, max_size=5),
    st.datetimes(timezones=st.just(UTC)),
    st.dictionaries(TEXTS, TEXTS | FINITE | st.none(), max_size=3),
    st.booleans(),
)
def test_decode_any_envelope(
    points: list[dict[str, Any]], ts: datetime, meta: dict[str, Any], ensure_ascii: bool
) -> None:
    """Every envelope that keeps the specification is decoded to what it says, all of it, in order."""
    tree = {"schema": "v1", "ts": ts.isoformat(), "points": points, "meta": meta}
    payload = json.dumps(tree, ensure_ascii=ensure_ascii).encode()
    expected = [
        Point(**(point | {"v": float(point["v"]) if CLASS_OF[point["t"]] is float else point["v"]})) for point in points
    ]

    (telemetry,) = REGISTRY.decode(Kind.TELEM, payload, CONTEXT)
    assert isinstance(telemetry, Telemetry)
    assert (ts, expected) == (telemetry.ts, telemetry.points)
    assert meta == json.loads(telemetry.meta or b"")


def test_value_types_complete() -> None:
    """Each type that the model knows has the class of its values."""
    assert set(get_args(ValueType)) == set(CLASS_OF)
