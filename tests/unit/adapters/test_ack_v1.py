"""Acknowledgements of commands, ack v1."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from traksense.adapters.ack_v1 import AckV1
from traksense.model import CommandAck, Reason

if TYPE_CHECKING:
    from .conftest import Decode, Refuse

EXAMPLE = (
    b'{"schema": "v1", "cmd_id": "01HQZC5K3M8YBQWER7TXZ9V2P3", "ok": true, "ts_exec": "2025-10-07T15:30:05Z",'
    b' "err": null}\n'
)


def ack(**members: Any) -> dict[str, Any]:
    return {"schema": "v1", "cmd_id": "c-1", "ok": True} | members


def test_ack_example(decode: Decode) -> None:
    """The example of the specification decodes to one acknowledgement that keeps the whole payload."""
    ts_exec = datetime(2025, 10, 7, 15, 30, 5, tzinfo=UTC)

    assert [CommandAck("01HQZC5K3M8YBQWER7TXZ9V2P3", True, EXAMPLE, ts_exec, None)] == decode(AckV1(), EXAMPLE)


def test_ack_minimal(decode: Decode) -> None:
    """The time of execution and the error are optional."""
    payload = json.dumps(ack(ok=False)).encode()

    assert [CommandAck("c-1", False, payload)] == decode(AckV1(), payload)


def test_ack_error_and_more(decode: Decode) -> None:
    """A failure has its error text, and members that nobody knows stay in the payload."""
    payload = json.dumps(ack(ok=False, err="válvula presa", valve=3)).encode()

    assert [CommandAck("c-1", False, payload, err="válvula presa")] == decode(AckV1(), payload)


@pytest.mark.parametrize("cmd_id", ["1", "018bcfe5-687b-7fff-8000-0123456789ab", "á" * 128])
def test_ack_command_identifier(decode: Decode, cmd_id: str) -> None:
    """A command identifier is any text of 1 to 128 characters."""
    payload = json.dumps(ack(cmd_id=cmd_id)).encode()

    assert [CommandAck(cmd_id, True, payload)] == decode(AckV1(), payload)


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"schema": "v1", "ok": True}, "`cmd_id`"),
        ({"schema": "v1", "cmd_id": "c-1"}, "`ok`"),
        ({"cmd_id": "c-1", "ok": True}, "`schema`"),
        (ack(cmd_id=""), "$.cmd_id"),
        (ack(cmd_id="a" * 129), "$.cmd_id"),
        (ack(cmd_id=7), "$.cmd_id"),
        (ack(ok=1), "$.ok"),
        (ack(ok="true"), "$.ok"),
        (ack(ok=None), "$.ok"),
        (ack(ts_exec="today"), "$.ts_exec"),
        (ack(ts_exec=1759851000), "$.ts_exec"),
        (ack(err=404), "$.err"),
    ],
)
def test_ack_invalid_field(refuse: Refuse, payload: object, where: str) -> None:
    """A field that is missing, of a wrong type or too long is an invalid field, and the detail says where."""
    reason, detail = refuse(AckV1(), payload)

    assert Reason.INVALID_FIELD == reason
    assert where in detail


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"ok", Reason.PARSE_ERROR),
        (ack(schema="v2"), Reason.UNKNOWN_SCHEMA),
        ({"schema": 2}, Reason.UNKNOWN_SCHEMA),
        (ack(cmd_id="\0"), Reason.NUL_CHARACTER),
        (ack(err="\0"), Reason.NUL_CHARACTER),
        (ack(extra=["\0"]), Reason.NUL_CHARACTER),
        (json.dumps(ack(extra=0)).replace("0}", "1e999}"), Reason.NUMBER_OUT_OF_RANGE),
        (json.dumps(ack(extra=0)).replace("0}", "[" * 600 + "]" * 600 + "}"), Reason.NESTED_TOO_DEEP),
        (json.dumps(ack(extra=0)).replace("0}", r'"\ud800"}'), Reason.PARSE_ERROR),
    ],
)
def test_ack_refused(refuse: Refuse, payload: object, expected: Reason) -> None:
    """The whole payload is stored as JSON, so a fault anywhere in it refuses it with its own reason."""
    reason, _ = refuse(AckV1(), payload)

    assert expected == reason


def test_ack_claims() -> None:
    """It claims what has a schema."""
    adapter = AckV1()

    assert adapter.claims(b"", frozenset({"schema"}))
    assert not adapter.claims(b"", frozenset({"cmd_id"}))
    assert not adapter.claims(b"", None)
