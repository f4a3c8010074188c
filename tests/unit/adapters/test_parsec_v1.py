"""Telemetry of Parsec v1 inverters."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from traksense.adapters.parsec_v1 import ParsecV1
from traksense.model import Point, Reason, Telemetry

if TYPE_CHECKING:
    from .conftest import Decode, Refuse

TS = datetime(2025, 10, 7, 15, 30, tzinfo=UTC)
META = b'{"src":"parsec_v1"}'


def reading(**members: Any) -> dict[str, Any]:
    return {"ts": "2025-10-07T15:30:00Z"} | members


def test_parsec_example(decode: Decode) -> None:
    """The example of the specification decodes to its three points, the firmware and the source in meta."""
    payload = b'{"di1": 1, "di2": 0, "rssi": -68, "fw": "1.2.3", "ts": "2025-10-07T15:30:00Z"}'

    assert [
        Telemetry(
            TS,
            [Point("status", "RUN", "enum"), Point("fault", False, "bool"), Point("rssi", -68.0, u="dBm")],
            b'{"fw":"1.2.3","src":"parsec_v1"}',
        )
    ] == decode(ParsecV1(), payload)


@pytest.mark.parametrize(
    ("inputs", "points"),
    [
        ({"di1": 1}, [Point("status", "RUN", "enum")]),
        ({"di1": 0}, [Point("status", "STOP", "enum")]),
        ({"di2": 1}, [Point("fault", True, "bool")]),
        ({"di2": 0, "di1": None}, [Point("fault", False, "bool")]),
        ({"di1": 0, "di2": 1}, [Point("status", "STOP", "enum"), Point("fault", True, "bool")]),
    ],
)
def test_parsec_inputs(decode: Decode, inputs: dict[str, object], points: list[Point]) -> None:
    """Each digital input that is there makes its point."""
    assert [Telemetry(TS, points, META)] == decode(ParsecV1(), reading(**inputs))


@pytest.mark.parametrize("fw", [" 2", 1.5, {"major": 1, "minor": "é"}])
def test_parsec_firmware(decode: Decode, fw: object) -> None:
    """The firmware is kept as it came, whatever JSON it is."""
    meta = b'{"fw":%s,"src":"parsec_v1"}' % json.dumps(fw).encode()

    assert [Telemetry(TS, [Point("fault", True, "bool")], meta)] == decode(ParsecV1(), reading(di2=1, fw=fw))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"di1": 1}, Reason.MISSING_TIMESTAMP),
        ({"di1": 1, "ts": None}, Reason.MISSING_TIMESTAMP),
        (reading(rssi=-68), Reason.INVALID_FIELD),
        (reading(di1=None, di2=None), Reason.INVALID_FIELD),
        (reading(di1=2), Reason.INVALID_FIELD),
        (reading(di1=-1), Reason.INVALID_FIELD),
        (reading(di1=True), Reason.INVALID_FIELD),
        (reading(di2="1"), Reason.INVALID_FIELD),
        (reading(di2=1, rssi="-68"), Reason.INVALID_FIELD),
        (reading(di2=1, ts="now"), Reason.INVALID_FIELD),
        (reading(di2=1, fw="\0"), Reason.NUL_CHARACTER),
        (json.dumps(reading(di2=1, rssi=0)).replace("0}", "-1e999}"), Reason.NUMBER_OUT_OF_RANGE),
        (json.dumps(reading(di2=1, fw=0)).replace("0}", "1e999}"), Reason.NUMBER_OUT_OF_RANGE),
        (json.dumps(reading(di2=1, fw=0)).replace("0}", "[" * 600 + "]" * 600 + "}"), Reason.NESTED_TOO_DEEP),
        (b'{"di1": 1', Reason.PARSE_ERROR),
    ],
)
def test_parsec_refused(refuse: Refuse, payload: object, expected: Reason) -> None:
    """Each fault has its own reason."""
    reason, _ = refuse(ParsecV1(), payload)

    assert expected == reason


def test_parsec_claims() -> None:
    """It claims objects with a digital input, unless they say that they are of some schema."""
    adapter = ParsecV1()

    assert adapter.claims(b"", frozenset({"di1"}))
    assert adapter.claims(b"", frozenset({"di2", "x"}))
    assert not adapter.claims(b"", frozenset({"di1", "schema"}))
    assert not adapter.claims(b"", frozenset({"rssi"}))
    assert not adapter.claims(b"", None)
