"""Telemetry as SenML: RFC 8428's rules one by one, its examples, and Khomp's profile."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.adapters import Context
from traksense.adapters.senml import SenML
from traksense.model import Point, Reason, Telemetry

if TYPE_CHECKING:
    from .conftest import Decode, Refuse

BT = 1552594568
TS = datetime(2019, 3, 14, 20, 16, 8, tzinfo=UTC)
KHOMP = b"""[{"bn": "4b686f6d70107115", "bt": 1552594568}, {"n": "model", "vs": "nit20l"},
 {"n": "rssi", "u": "dBW", "v": -61},
 {"n": "A", "u": "Cel", "v": 23.35}, {"n": "A", "u": "%RH", "v": 64.0},
 {"n": "283286b20a000036", "u": "Cel", "v": 30.75}, {"n": "gateway", "vs": "000D6FFFFE642E70"}]
"""


def timed(*records: dict[str, Any], **base: Any) -> list[dict[str, Any]]:
    """A pack whose first record has only base fields, an absolute time among them."""
    return [{"bt": BT} | base, *records]


def after(seconds: float) -> datetime:
    return TS + timedelta(seconds=seconds)


def test_senml_khomp_example(decode: Decode) -> None:
    """The example of the specification: one time, the device's; `A` twice; model and gateway in meta."""
    assert [
        Telemetry(
            TS,
            [
                Point("rssi", -61.0, u="dBW"),
                Point("A", 23.35, u="Cel"),
                Point("A", 64.0, u="%RH"),
                Point("283286b20a000036", 30.75, u="Cel"),
            ],
            b'{"bn":"4b686f6d70107115","model":"nit20l","gateway":"000D6FFFFE642E70"}',
        )
    ] == decode(SenML(), KHOMP)


def test_senml_rfc_multiple_data_points(decode: Decode) -> None:
    """RFC 8428 §5.1.2: the base unit holds unless a record has its own, and times count from the base time."""
    pack = [
        {"bn": "urn:dev:ow:10e2073a0108006:", "bt": 1.276020076001e09, "bu": "A", "bver": 5}
        | {"n": "voltage", "u": "V", "v": 120.1},
        *({"n": "current", "t": t, "v": v} for t, v in [(-5, 1.2), (-4, 1.3), (-3, 1.4), (-2, 1.5), (-1, 1.6)]),
        {"n": "current", "v": 1.7},
    ]
    now = datetime(2010, 6, 8, 18, 1, 16, 1000, tzinfo=UTC)
    meta = b'{"bn":"urn:dev:ow:10e2073a0108006:"}'

    assert [
        *(
            Telemetry(now - timedelta(seconds=t), [Point("current", v, u="A")], meta)
            for t, v in [(5, 1.2), (4, 1.3), (3, 1.4), (2, 1.5), (1, 1.6)]
        ),
        Telemetry(now, [Point("voltage", 120.1, u="V"), Point("current", 1.7, u="A")], meta),
    ] == decode(SenML(), pack)


def test_senml_rfc_multiple_measurements(decode: Decode) -> None:
    """RFC 8428 §5.1.3: records without a name are called like the device, one name with several units."""
    name = "urn:dev:ow:10e2073a01080063"
    pack = [
        {"bn": name, "bt": 1.320067464e09, "bu": "%RH", "v": 20},
        {"u": "lon", "v": 24.30621},
        {"u": "lat", "v": 60.07965},
        {"t": 60, "v": 20.3},
    ]
    start = datetime(2011, 10, 31, 13, 24, 24, tzinfo=UTC)
    meta = b'{"bn":"urn:dev:ow:10e2073a01080063"}'

    assert [
        Telemetry(
            start, [Point(name, 20.0, u="%RH"), Point(name, 24.30621, u="lon"), Point(name, 60.07965, u="lat")], meta
        ),
        Telemetry(start + timedelta(seconds=60), [Point(name, 20.3, u="%RH")], meta),
    ] == decode(SenML(), pack)


def test_senml_rfc_multiple_data_types(decode: Decode) -> None:
    """RFC 8428 §5.1.5: numbers, texts, bools and data; data stays the base64url text that it came as."""
    pack = [
        {"bn": "urn:dev:ow:10e2073a01080063:", "bt": BT, "n": "temp", "u": "Cel", "v": 23.1},
        {"n": "label", "vs": "Machine Room"},
        {"n": "open", "vb": False},
        {"n": "nfv-reader", "vd": "aGkgCg"},
    ]

    assert [
        Telemetry(
            TS,
            [
                Point("temp", 23.1, u="Cel"),
                Point("label", "Machine Room", "text"),
                Point("open", False, "bool"),
                Point("nfv-reader", "aGkgCg", "text"),
            ],
            b'{"bn":"urn:dev:ow:10e2073a01080063:"}',
        )
    ] == decode(SenML(), pack)


def test_senml_rfc_collection_of_resources(decode: Decode) -> None:
    """RFC 8428 §5.1.6: with several base names in a pack, points have their full names."""
    pack = [
        {"bn": "2001:db8::2/", "bt": BT, "n": "temperature", "u": "Cel", "v": 25.2},
        {"n": "humidity", "u": "%RH", "v": 30},
        {"bn": "2001:db8::1/", "n": "temperature", "u": "Cel", "v": 12.3},
        {"n": "humidity", "u": "%RH", "v": 67},
    ]

    assert [
        Telemetry(
            TS,
            [
                Point("2001:db8::2/temperature", 25.2, u="Cel"),
                Point("2001:db8::2/humidity", 30.0, u="%RH"),
                Point("2001:db8::1/temperature", 12.3, u="Cel"),
                Point("2001:db8::1/humidity", 67.0, u="%RH"),
            ],
        )
    ] == decode(SenML(), pack)


def test_senml_without_base_name(decode: Decode) -> None:
    """Without a base name, a point has the name that its record has."""
    assert [Telemetry(TS, [Point("urn:dev:ow:1", 1.0)])] == decode(SenML(), timed({"n": "urn:dev:ow:1", "v": 1}))


def test_senml_short_names_would_collide(decode: Decode) -> None:
    """Where a sensor is called like its device, full names keep it apart from the device itself."""
    assert [Telemetry(TS, [Point("x", 1.0), Point("xx", 2.0)])] == decode(
        SenML(), timed({"v": 1}, {"n": "x", "v": 2}, bn="x")
    )


def test_senml_base_fields_change(decode: Decode) -> None:
    """Each base field applies until it comes again, independently of the others."""
    pack = [
        {"bt": BT, "bu": "Cel", "bv": 10, "n": "a", "v": 1},
        {"bu": "K", "n": "b", "v": 2},
        {"bv": 20, "n": "c", "v": 3},
        {"bt": BT + 5, "n": "d", "v": 4},
    ]

    assert [
        Telemetry(TS, [Point("a", 11.0, u="Cel"), Point("b", 12.0, u="K"), Point("c", 23.0, u="K")]),
        Telemetry(after(5), [Point("d", 24.0, u="K")]),
    ] == decode(SenML(), pack)


@pytest.mark.parametrize(
    ("base", "record", "points"),
    [
        ({"bv": 20}, {"v": 1.5}, [Point("a", 21.5)]),
        ({"bv": 20}, {}, [Point("a", 20.0)]),
        ({"bv": 20}, {"vs": "x"}, [Point("a", "x", "text")]),
        ({"bv": 20}, {"vb": True}, [Point("a", True, "bool")]),
        ({}, {"s": 5}, [Point("a", 5.0, u="s")]),
        ({}, {"s": 5, "u": "W"}, [Point("a", 5.0, u="W.s")]),
        ({"bu": "W"}, {"s": 5, "v": 1}, [Point("a", 1.0, u="W"), Point("a", 5.0, u="W.s")]),
        ({"bs": 100}, {"s": 5}, [Point("a", 105.0, u="s")]),
        ({"bs": 100}, {"v": 1}, [Point("a", 1.0), Point("a", 100.0, u="s")]),
        ({"bs": 100}, {"vb": True}, [Point("a", True, "bool"), Point("a", 100.0, u="s")]),
        ({"bv": 20, "bs": 100}, {"s": 5}, [Point("a", 20.0), Point("a", 105.0, u="s")]),
        ({"bu": "W"}, {"v": 1, "u": ""}, [Point("a", 1.0, u="")]),
    ],
)
def test_senml_values_and_sums(
    decode: Decode, base: dict[str, object], record: dict[str, object], points: list[Point]
) -> None:
    """RFC 8428 §4.5.4: a missing value, sum or base is zero; a sum has its own unit and is its own point."""
    assert [Telemetry(TS, points)] == decode(SenML(), timed({"n": "a"} | record, **base))


@pytest.mark.parametrize(
    ("bt", "t", "expected"),
    [
        (BT, None, TS),
        (BT, 1.5, after(1.5)),
        (BT, -1.5, after(-1.5)),
        (None, BT, TS),
        (None, 2**28, datetime(1978, 7, 4, 21, 24, 16, tzinfo=UTC)),
        (2**28 - 1, 1, datetime(1978, 7, 4, 21, 24, 16, tzinfo=UTC)),
    ],
)
def test_senml_absolute_time(decode: Decode, bt: float | None, t: float | None, expected: datetime) -> None:
    """RFC 8428 §4.5.3: base time and time add up, and from 2**28 on they count from 1970."""
    assert [Telemetry(expected, [Point("a", 1.0)])] == decode(SenML(), [{"bt": bt, "n": "a", "v": 1, "t": t}])


@pytest.mark.parametrize(("bt", "t"), [(None, None), (None, 0), (None, -5), (None, 2**28 - 1), (BT, -BT), (0, None)])
def test_senml_relative_time(refuse: Refuse, bt: float | None, t: float | None) -> None:
    """RFC 8428 §4.5.3: below 2**28 a time is relative to a "now" that only the device knew."""
    reason, detail = refuse(SenML(), [{"bt": bt, "n": "a", "v": 1, "t": t}])

    assert Reason.MISSING_TIMESTAMP == reason
    assert detail.endswith(" - at `$[0]`")
    assert "give bt or t" in detail
    assert detail.startswith("time ") == bool(bt or t)


def test_senml_time_in_milliseconds(refuse: Refuse) -> None:
    """A base time that would be right as milliseconds is asked about."""
    assert (Reason.INVALID_FIELD, "1795869600000.0 is no Unix time in seconds: milliseconds? - at `$[0]`") == refuse(
        SenML(), [{"bt": 1795869600000, "n": "a", "v": 1}]
    )


def test_senml_one_relative_time(refuse: Refuse) -> None:
    """One measurement without a time of its own refuses the message: none is stored with the server's."""
    reason, _ = refuse(SenML(), [{"n": "a", "v": 1, "t": BT}, {"n": "b", "v": 1}])

    assert Reason.MISSING_TIMESTAMP == reason


def test_senml_times_in_order(decode: Decode) -> None:
    """Each distinct time makes one Telemetry, in order of time, each with the meta of the pack."""
    records = [{"n": "a", "v": v, "t": t} for t, v in [(2, 1), (0, 2), (2, 3), (1, 4)]]

    assert [
        Telemetry(after(0), [Point("a", 2.0)], b'{"bn":"x"}'),
        Telemetry(after(1), [Point("a", 4.0)], b'{"bn":"x"}'),
        Telemetry(after(2), [Point("a", 1.0), Point("a", 3.0)], b'{"bn":"x"}'),
    ] == decode(SenML(), timed(*records, bn="x"))


@pytest.mark.parametrize(
    ("records", "meta"),
    [
        ([{"n": "model", "vs": "nit21li"}], b'{"bn":"x","model":"nit21li"}'),
        ([{"n": "Model", "vs": "a"}, {"n": "FW", "vs": ""}], b'{"bn":"x","Model":"a","FW":""}'),
        ([{"n": "gateway", "vs": "1"}, {"n": "gateway", "vs": "2"}], b'{"bn":"x","gateway":["1","2"]}'),
        ([{"n": "gateway", "vs": "1"}, {"n": "gateway", "vs": "1"}], b'{"bn":"x","gateway":"1"}'),
        ([], b'{"bn":"x"}'),
    ],
)
def test_senml_metadata(decode: Decode, records: list[dict[str, object]], meta: bytes) -> None:
    """Khomp: what a device says of itself is metadata of the pack, not a point, and none of it is lost."""
    assert [Telemetry(TS, [Point("a", 1.0)], meta)] == decode(SenML(), timed(*records, {"n": "a", "v": 1}, bn="x"))


def test_senml_metadata_has_no_time(decode: Decode) -> None:
    """Metadata needs no time: it may come before the base time."""
    pack = [{"bn": "x"}, {"n": "model", "vs": "nit20l"}, {"bt": BT}, {"n": "a", "v": 1}]

    assert [Telemetry(TS, [Point("a", 1.0)], b'{"bn":"x","model":"nit20l"}')] == decode(SenML(), pack)


def test_senml_metadata_of_several_devices(decode: Decode) -> None:
    """With several base names in a pack, metadata has full names as the points have."""
    pack = timed(
        {"bn": "x/", "n": "model", "vs": "1"},
        {"n": "a", "v": 1},
        {"bn": "y/", "n": "model", "vs": "2"},
        {"n": "a", "v": 2},
    )

    assert [Telemetry(TS, [Point("x/a", 1.0), Point("y/a", 2.0)], b'{"x/model":"1","y/model":"2"}')] == decode(
        SenML(), pack
    )


@pytest.mark.parametrize(
    ("record", "point"),
    [
        ({"n": "model", "vs": "a", "u": "/"}, Point("model", "a", "text", "/")),
        ({"n": "model", "v": 20}, Point("model", 20.0)),
        ({"n": "state", "vs": "on"}, Point("state", "on", "text")),
        ({"n": "model", "vd": "YQ"}, Point("model", "YQ", "text")),
    ],
)
def test_senml_looks_like_metadata(decode: Decode, record: dict[str, object], point: Point) -> None:
    """Only a text without a unit under one of the documented names is metadata; all else is a point."""
    assert [Telemetry(TS, [point])] == decode(SenML(), timed(record))


def test_senml_unknown_labels(decode: Decode) -> None:
    """RFC 8428 §4.4: labels that are not the RFC's are ignored; the update time is known, but not stored."""
    record = {"n": "a", "v": 1, "ut": 60, "color": "red", "_x": {"y": []}}

    assert [Telemetry(TS, [Point("a", 1.0)])] == decode(SenML(), timed(record, bx=1))


@pytest.mark.parametrize(
    ("pack", "detail"),
    [
        (timed({"n": "a", "v": 1, "color_": "red"}), "label 'color_' must be understood and is not - at `$[1]`"),
        (timed({"n": "a", "v": 1}, b_=1), "label 'b_' must be understood and is not - at `$[0]`"),
        (timed({"n": 7, "v_": 1}), "label 'v_' must be understood and is not - at `$[1]`"),
        (timed({"n": "a", "v": 1}, bver=11), "bver is 11, not 10 or less"),
        (timed({"n": ["a"], "w": 1}, bver=11), "bver is 11, not 10 or less"),
        (timed({"n": "a", "v": 1}, bver=100), "bver is 100, not 10 or less"),
        (timed({"n": "a", "v": 1}, bver=10**30), f"bver is {10**30}, not 10 or less"),
    ],
)
def test_senml_unknown_schema(refuse: Refuse, pack: object, detail: str) -> None:
    """RFC 8428 §4.4: a later version, or a label that must be understood, and the pack is not used at all."""
    assert (Reason.UNKNOWN_SCHEMA, detail) == refuse(SenML(), pack)


def test_senml_unknown_schema_by_escape(refuse: Refuse) -> None:
    """A label that must be understood is recognized however its underscore is written."""
    assert (Reason.UNKNOWN_SCHEMA, "label 'color_' must be understood and is not - at `$[0]`") == refuse(
        SenML(), rb'[{"n":"a","color\u005f":1}]'
    )


@pytest.mark.parametrize("bver", [1, 5, 10])
def test_senml_version(decode: Decode, bver: int) -> None:
    """Earlier versions are read like the present one, and a version may be repeated."""
    assert [Telemetry(TS, [Point("a", 1.0)])] == decode(SenML(), timed({"n": "a", "v": 1, "bver": bver}, bver=bver))


@pytest.mark.parametrize(
    "pack",
    [
        [],
        [{}],
        timed(),
        timed({"n": "model", "vs": "nit20l"}),
        timed({"n": "a"}),
        timed({"u": "Cel"}, bn="x"),
        timed({"v": 1}),
        timed({"n": "", "v": 1}),
        timed({"n": "a", "v": 1, "vs": "1"}),
        timed({"n": "a", "vb": True, "vd": "YQ"}),
        timed({"n": "a", "vs": "1", "vd": "YQ"}),
        timed({"n": "a" * 129, "v": 1}),
        timed({"bn": "b" * 100, "n": "a" * 100, "v": 1}, {"bn": "c", "n": "a", "v": 1}),
        timed({"n": "a", "v": 1, "u": "x" * 65}),
        timed({"n": "a", "s": 1, "u": "x" * 63}),
        timed({"n": "a", "v": "1"}),
        timed({"n": "a", "v": True}),
        timed({"n": "a", "vb": 1}),
        timed({"n": "a", "vs": 1}),
        timed({"n": "a", "v": 1, "t": "now"}),
        timed({"n": "a", "v": 1}, bver=0),
        timed({"n": "a", "v": 1}, bver=-1),
        timed({"n": "a", "v": 1}, bver="10"),
        timed({"n": "a", "v": 1, "bver": 5}, bver=10),
        [{"n": "a", "v": 1, "t": 1e12}],
        [{"n": "a", "v": 1, "t": BT}, 1],
        {"n": "a", "v": 1, "t": BT},
    ],
)
def test_senml_invalid_field(refuse: Refuse, pack: object) -> None:
    """What is no pack of RFC 8428, or holds no measurement, is an invalid field."""
    reason, _ = refuse(SenML(), pack)

    assert Reason.INVALID_FIELD == reason


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (KHOMP[:-4], Reason.PARSE_ERROR),
        (KHOMP.replace(b"nit20l", b"\xff"), Reason.PARSE_ERROR),
        (KHOMP.replace(b"nit20l", rb"\u0000"), Reason.NUL_CHARACTER),
        (KHOMP.replace(b"64.0", b"1e999"), Reason.NUMBER_OUT_OF_RANGE),
        (timed({"n": "a", "v": 1e308}, bv=1e308), Reason.NUMBER_OUT_OF_RANGE),
        (timed({"n": "a", "s": -1e308}, bs=-1e308), Reason.NUMBER_OUT_OF_RANGE),
        (b'[{"n":"a","v":1,"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}]", Reason.NESTED_TOO_DEEP),
    ],
)
def test_senml_refused(refuse: Refuse, payload: object, expected: Reason) -> None:
    """Each other fault has its own reason, a sum that leaves the doubles included."""
    reason, _ = refuse(SenML(), payload)

    assert expected == reason


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (KHOMP, True),
        (b' [ { "x": 1, "v" : 1}]', True),
        (b'[{"bver":11', True),
        (b"[]", False),
        (b"[1]", False),
        (b'[{"value": 1}]', False),
        (b'[{"a": {"n": 1}}]', False),
        (b"", False),
    ],
)
def test_senml_claims(payload: bytes, expected: bool) -> None:
    """It claims arrays whose first element has one of the RFC's labels."""
    assert expected is SenML().claims(payload, None)
    assert not SenML().claims(payload, frozenset({"n"}))


NAMES = st.text("abx", max_size=2)
RECORDS = st.fixed_dictionaries(
    {"v": st.integers(0, 9)},
    optional={"bn": NAMES, "n": NAMES, "u": st.sampled_from(["Cel", "W"]), "bu": st.just("V"), "t": st.integers(0, 2)},
)


@given(st.lists(RECORDS, min_size=1, max_size=6))
def test_senml_nothing_merges(records: list[dict[str, Any]]) -> None:
    """Measurements that the RFC keeps apart by name, unit or time are kept apart, and all are there."""
    records[0] = {"bt": BT, "bn": "b"} | records[0]
    records = [record if record.get("bn") or "bn" not in record else record | {"bn": "c"} for record in records]
    context = Context("acme", "plant-1", "dev-7", TS)
    decoded = SenML().decode(json.dumps(records).encode(), context)
    points = [(item.ts, point) for item in decoded if isinstance(item, Telemetry) for point in item.points]

    assert len(records) == len(points)
    assert len(resolved(records)) == len({(ts, point.name, point.u) for ts, point in points})


def resolved(records: list[dict[str, Any]]) -> set[tuple[float, str, str | None]]:
    """Time, name and unit of each record by RFC 8428 §4.6, written down independently of the adapter."""
    base: dict[str, Any] = {}
    found = set()
    for record in records:
        base |= {label: value for label, value in record.items() if label.startswith("b")}
        unit = record.get("u", base.get("bu"))
        found.add((base["bt"] + record.get("t", 0), base["bn"] + record.get("n", ""), unit))
    return found
