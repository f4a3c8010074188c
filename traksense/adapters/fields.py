"""The limits that every point, acknowledgement and event keeps, whatever format it came in.

Source: PAYLOADS, envelope v1 (`name`: 1-128 characters) and ack v1 (`cmd_id`: 1-128 characters). That a unit
has at most 64 characters and that event names share the limit of `cmd_id` was chosen here; lengths count
Unicode code points, as PostgreSQL's `char_length` does.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from traksense.adapters.json_checks import decode_json
from traksense.errors import DecodeError
from traksense.model import Reason, Value, ValueType

MAX_NAME: Final = 128
MAX_UNIT: Final = 64

CLASS_OF: Final[dict[ValueType, type[Value]]] = {
    "float": float,
    "num": float,
    "int": float,
    "bool": bool,
    "enum": str,
    "text": str,
}
"""The class of a value that agrees with its type: exactly that class, for a bool is an int and no number."""

Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Unit: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_UNIT)]
_BIT: Final = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0, le=1)])


def read_bit(raw: bytes) -> bool:
    """A digital input or output as devices write it: 0 or 1 (true and false are not numbers).

    Raises:
        DecodeError: INVALID_FIELD.
    """
    bit: int = decode_json(_BIT, raw)
    return bit == 1


def checked_name(name: str, where: str) -> str:
    """The name, if it is 1-128 characters long.

    Raises:
        DecodeError: INVALID_FIELD.
    """
    return joined_name("", name, where)


def joined_name(one: str, other: str, where: str) -> str:
    """The name that two parts make, if it is 1-128 characters long; a longer one is not made.

    Raises:
        DecodeError: INVALID_FIELD.
    """
    if not 0 < (length := len(one) + len(other)) <= MAX_NAME:
        raise DecodeError(Reason.INVALID_FIELD, f"a name of {length} characters, not 1-{MAX_NAME} - at `{where}`")
    return one + other


def checked_unit(unit: str | None, where: str) -> str | None:
    """The unit, if it is at most 64 characters long.

    Raises:
        DecodeError: INVALID_FIELD.
    """
    if unit is not None and len(unit) > MAX_UNIT:
        raise DecodeError(Reason.INVALID_FIELD, f"a unit of {len(unit)} characters, not 0-{MAX_UNIT} - at `{where}`")
    return unit
