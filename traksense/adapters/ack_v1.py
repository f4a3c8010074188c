"""Acknowledgements of commands, ack v1.

Source: PAYLOADS, `ack`, v1: `cmd_id`: ULID or UUID or any text of 1-128 characters; `ok`; `ts_exec` and `err`
optional.

The whole object is kept as it came, so members that are not named here are stored too. `null` means absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from traksense.adapters.fields import Name  # noqa: TC001  (msgspec resolves the annotations at run time)
from traksense.adapters.json_checks import check_json
from traksense.adapters.schema_v1 import decode_v1
from traksense.adapters.timestamps import parse_timestamp
from traksense.model import CommandAck, Kind

if TYPE_CHECKING:
    from traksense.adapters.base import Context
    from traksense.model import Item


class _Ack(msgspec.Struct, gc=False):
    schema: Literal["v1"]
    cmd_id: Name
    ok: bool
    ts_exec: str | None = None
    err: str | None = None


_ACK: Final = msgspec.json.Decoder(_Ack)


class AckV1:
    """Acknowledgement of a command, ack v1."""

    name = "ack_v1"
    kind = Kind.ACK

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:  # noqa: ARG002 (the interface)
        """Whether it says that it is of some schema; of which version, `decode` judges."""
        return members is not None and "schema" in members

    def decode(self, payload: bytes, context: Context) -> list[Item]:  # noqa: ARG002 (the interface)
        """Turn the payload into one `CommandAck`.

        Raises:
            DecodeError: PARSE_ERROR, UNKNOWN_SCHEMA, INVALID_FIELD, NUL_CHARACTER, NUMBER_OUT_OF_RANGE (in a
                member that is only kept), NESTED_TOO_DEEP.
        """
        ack = decode_v1(_ACK, payload)
        check_json(payload, "$")
        ts_exec = None if ack.ts_exec is None else parse_timestamp(ack.ts_exec, "$.ts_exec")
        return [CommandAck(ack.cmd_id, ok=ack.ok, payload=payload, ts_exec=ts_exec, err=ack.err)]
