"""Telemetry and information of JE02 v1 inverters."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from traksense.adapters.je02_v1 import Je02V1
from traksense.model import Event, Point, Reason, Telemetry

if TYPE_CHECKING:
    from traksense.adapters import Context
    from traksense.model import Item

    from .conftest import Decode, Refuse

TS = datetime(2025, 10, 8, 15, 30, 45, tzinfo=UTC)
DATA_EXAMPLE = (
    b'{"DATA": {"TS": 1759937445, "INPUT1": 1, "INPUT2": 0, "VAR0": 235, "VAR1": 550, "WRSSI": -65, "RELE": 0,'
    b' "CNTSERR": 0, "UPTIME": 3600}}'
)
INFO_EXAMPLE = b'{"INFO": {"FW_VERSION": "1.2.3", "HW_VERSION": "v1", "DEVICE_ID": "INV-01", "MODEL": "JE02-INVERTER"}}'


def data(**members: Any) -> dict[str, Any]:
    return {"DATA": {"TS": 1759937445} | members}


def event(items: list[Item]) -> Event:
    (item,) = items
    assert isinstance(item, Event)
    return item


def test_je02_data_example(decode: Decode) -> None:
    """The first example of the specification decodes to its eight points."""
    assert [
        Telemetry(
            TS,
            [
                Point("status", "RUN", "enum"),
                Point("fault", False, "bool"),
                Point("rssi", -65.0, u="dBm"),
                Point("uptime", 3600.0, u="s"),
                Point("cntserr", 0.0),
                Point("var0", 23.5, u="°C"),
                Point("var1", 55.0, u="%"),
                Point("rele", False, "bool"),
            ],
        )
    ] == decode(Je02V1(), DATA_EXAMPLE)


def test_je02_info_example(decode: Decode, context: Context) -> None:
    """The second example is an event of type info with no points, named by its content, at the time of receipt."""
    info = {"FW_VERSION": "1.2.3", "HW_VERSION": "v1", "DEVICE_ID": "INV-01", "MODEL": "JE02-INVERTER"}
    canonical = json.dumps(info, sort_keys=True, separators=(",", ":")).encode()
    event_id = f"info-{hashlib.sha256(canonical).hexdigest()[:32]}"

    assert [Event("info", context.received_at, event_id, json.dumps(info).encode())] == decode(Je02V1(), INFO_EXAMPLE)


def test_je02_info_redelivered(decode: Decode) -> None:
    """The same information is the same event, however it is written; other information is another."""
    first = event(decode(Je02V1(), b'{"INFO": {"MODEL": "JE02", "FW_VERSION": "1"}}'))
    again = event(decode(Je02V1(), b'{"INFO":{"FW_VERSION":"1","MODEL":"JE02"}}'))
    other = event(decode(Je02V1(), b'{"INFO": {"MODEL": "JE02", "FW_VERSION": "2"}}'))

    assert first.event_id == again.event_id
    assert first.event_id != other.event_id


def test_je02_both(decode: Decode) -> None:
    """Data and information in one message are telemetry and an event at the same time."""
    telemetry, information = decode(Je02V1(), data(UPTIME=1) | {"INFO": {}})

    assert Telemetry(TS, [Point("uptime", 1.0, u="s")]) == telemetry
    assert isinstance(information, Event)
    assert (TS, b"{}") == (information.ts, information.data)


@pytest.mark.parametrize(
    ("inputs", "points"),
    [
        ({"INPUT1": 1, "INPUT2": 0}, [Point("status", "RUN", "enum"), Point("fault", False, "bool")]),
        ({"INPUT1": 0, "INPUT2": 0}, [Point("status", "STOP", "enum"), Point("fault", False, "bool")]),
        ({"INPUT1": 1, "INPUT2": 1}, [Point("status", "FAULT", "enum"), Point("fault", True, "bool")]),
        ({"INPUT1": 0, "INPUT2": 1}, [Point("status", "FAULT", "enum"), Point("fault", True, "bool")]),
        ({"INPUT2": 1}, [Point("status", "FAULT", "enum"), Point("fault", True, "bool")]),
        ({"INPUT2": 0}, [Point("fault", False, "bool")]),
        ({"INPUT1": 1}, [Point("status", "RUN", "enum")]),
        ({"RELE": 1}, [Point("rele", True, "bool")]),
        ({"VAR0": -105}, [Point("var0", -10.5, u="°C")]),
        ({"UPTIME": 1, "VAR9": 4}, [Point("uptime", 1.0, u="s")]),
    ],
)
def test_je02_points(decode: Decode, inputs: dict[str, object], points: list[Point]) -> None:
    """A fault outweighs running, tenths become units, and what is absent makes no point."""
    assert [Telemetry(TS, points)] == decode(Je02V1(), data(**inputs))


def test_je02_fraction_of_a_second(decode: Decode) -> None:
    """Unix seconds may have a fraction."""
    assert [Telemetry(TS.replace(microsecond=250000), [Point("uptime", 1.0, u="s")])] == decode(
        Je02V1(), data(TS=1759937445.25, UPTIME=1)
    )


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"DATA": {"INPUT1": 1}}, Reason.MISSING_TIMESTAMP),
        ({"DATA": {"INPUT1": 1, "TS": None}}, Reason.MISSING_TIMESTAMP),
        (data(), Reason.INVALID_FIELD),
        (data(VAR9=1), Reason.INVALID_FIELD),
        (data(INPUT1=2), Reason.INVALID_FIELD),
        (data(INPUT2=True), Reason.INVALID_FIELD),
        (data(VAR0="235"), Reason.INVALID_FIELD),
        (data(UPTIME=1, TS="2025-10-08T15:30:45Z"), Reason.INVALID_FIELD),
        (data(UPTIME=1, TS=1759937445000), Reason.INVALID_FIELD),
        ({"DATA": 1}, Reason.INVALID_FIELD),
        ({"INFO": "x"}, Reason.INVALID_FIELD),
        ({"INFO": None, "DATA": None}, Reason.INVALID_FIELD),
        ({"INFO": {"MODEL": "\0"}}, Reason.NUL_CHARACTER),
        ('{"INFO": {"a": 1e999}}', Reason.NUMBER_OUT_OF_RANGE),
        (json.dumps(data(VAR0=0)).replace(" 0}", " 1e999}"), Reason.NUMBER_OUT_OF_RANGE),
        ('{"INFO": {"a": %s}}' % ("[" * 600 + "]" * 600), Reason.NESTED_TOO_DEEP),
        (DATA_EXAMPLE[:-1], Reason.PARSE_ERROR),
    ],
)
def test_je02_refused(refuse: Refuse, payload: object, expected: Reason) -> None:
    """Each fault has its own reason."""
    reason, _ = refuse(Je02V1(), payload)

    assert expected == reason


def test_je02_claims() -> None:
    """It claims objects with DATA or INFO, unless they say that they are of some schema."""
    adapter = Je02V1()

    assert adapter.claims(b"", frozenset({"DATA"}))
    assert adapter.claims(b"", frozenset({"INFO", "x"}))
    assert not adapter.claims(b"", frozenset({"DATA", "schema"}))
    assert not adapter.claims(b"", frozenset({"data"}))
    assert not adapter.claims(b"", None)
