"""Events, v1.

Source: PAYLOADS, `event`, v1: `event_id` optional (then idempotence is by device, type and ts), `event_type`,
`ts`, `data`.

Where that is silent: `event_id` and `event_type` have 1-128 characters, `data` is optional and any JSON
value, kept as it came, and `null` means absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from traksense.adapters.fields import Name  # noqa: TC001  (msgspec resolves the annotations at run time)
from traksense.adapters.json_checks import ABSENT, json_value
from traksense.adapters.schema_v1 import decode_v1
from traksense.adapters.timestamps import parse_timestamp
from traksense.model import Event, Kind

if TYPE_CHECKING:
    from traksense.adapters.base import Context
    from traksense.model import Item


class _Event(msgspec.Struct, gc=False):
    schema: Literal["v1"]
    event_type: Name
    ts: str
    event_id: Name | None = None
    data: msgspec.Raw = ABSENT


_EVENT: Final = msgspec.json.Decoder(_Event)


class EventV1:
    """Event, v1."""

    name = "event_v1"
    kind = Kind.EVENT

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:  # noqa: ARG002 (the interface)
        """Whether it says that it is of some schema; of which version, `decode` judges."""
        return members is not None and "schema" in members

    def decode(self, payload: bytes, context: Context) -> list[Item]:  # noqa: ARG002 (the interface)
        """Turn the payload into one `Event`.

        Raises:
            DecodeError: PARSE_ERROR, UNKNOWN_SCHEMA, INVALID_FIELD, NUL_CHARACTER, NUMBER_OUT_OF_RANGE (in
                `data`), NESTED_TOO_DEEP.
        """
        event = decode_v1(_EVENT, payload)
        ts = parse_timestamp(event.ts, "$.ts")
        return [Event(event.event_type, ts, event.event_id, json_value(event.data, "$.data"))]
