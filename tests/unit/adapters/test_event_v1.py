"""Events, v1."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from traksense.adapters.event_v1 import EventV1
from traksense.model import Event, Reason

if TYPE_CHECKING:
    from .conftest import Decode, Refuse

TS = datetime(2025, 10, 7, 15, 0, tzinfo=UTC)
EXAMPLE = (
    b'{"schema": "v1", "event_id": "01HQZC5K3M8YBQWER7TXZ9V2P4", "event_type": "boot",'
    b' "ts": "2025-10-07T15:00:00Z", "data": {"reason": "power_on"}}\n'
)


def event(**members: Any) -> dict[str, Any]:
    return {"schema": "v1", "event_type": "boot", "ts": "2025-10-07T15:00:00Z"} | members


def test_event_example(decode: Decode) -> None:
    """The example of the specification decodes to one event with its data as it came."""
    assert [Event("boot", TS, "01HQZC5K3M8YBQWER7TXZ9V2P4", b'{"reason": "power_on"}')] == decode(EventV1(), EXAMPLE)


def test_event_minimal(decode: Decode) -> None:
    """The identifier and the data are optional; null means absent."""
    assert [Event("boot", TS)] == decode(EventV1(), event())
    assert [Event("boot", TS)] == decode(EventV1(), event(event_id=None, data=None))


@pytest.mark.parametrize("data", [{}, {"a": [1, "°"]}, [1, 2], "text", 7.5, True])
def test_event_data(decode: Decode, data: object) -> None:
    """Data is any JSON value, kept as it came."""
    assert [Event("boot", TS, None, json.dumps(data).encode())] == decode(EventV1(), event(data=data))


@pytest.mark.parametrize("payload", [{"schema": "v1", "event_type": "boot"}, event(ts=None)])
def test_event_missing_timestamp(refuse: Refuse, payload: object) -> None:
    """An event without a time of its own."""
    reason, _ = refuse(EventV1(), payload)

    assert Reason.MISSING_TIMESTAMP == reason


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"schema": "v1", "ts": "2025-10-07T15:00:00Z"}, "`event_type`"),
        (event(event_type=""), "$.event_type"),
        (event(event_type="a" * 129), "$.event_type"),
        (event(event_id=""), "$.event_id"),
        (event(event_id="a" * 129), "$.event_id"),
        (event(event_id=7), "$.event_id"),
        (event(ts="2025-10-07"), "$.ts"),
    ],
)
def test_event_invalid_field(refuse: Refuse, payload: object, where: str) -> None:
    """A field that is missing, of a wrong type or too long is an invalid field, and the detail says where."""
    reason, detail = refuse(EventV1(), payload)

    assert Reason.INVALID_FIELD == reason
    assert where in detail


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"boot", Reason.PARSE_ERROR),
        (event(schema="v2"), Reason.UNKNOWN_SCHEMA),
        (event(event_type="\0"), Reason.NUL_CHARACTER),
        (event(data={"a": "\0"}), Reason.NUL_CHARACTER),
        (json.dumps(event(data=0)).replace("0}", "1e999}"), Reason.NUMBER_OUT_OF_RANGE),
        (json.dumps(event(data=0)).replace("0}", "[" * 600 + "]" * 600 + "}"), Reason.NESTED_TOO_DEEP),
    ],
)
def test_event_refused(refuse: Refuse, payload: object, expected: Reason) -> None:
    """Each other fault has its own reason."""
    reason, _ = refuse(EventV1(), payload)

    assert expected == reason


def test_event_claims() -> None:
    """It claims what has a schema."""
    adapter = EventV1()

    assert adapter.claims(b"", frozenset({"schema"}))
    assert not adapter.claims(b"", frozenset({"event_type"}))
    assert not adapter.claims(b"", None)
