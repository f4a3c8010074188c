"""What the built-in adapters use to tell the bad parts of a message from the good ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from traksense.adapters.json_checks import decode_json
from traksense.adapters.numbers import number
from traksense.errors import DecodeError
from traksense.model import Reason, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.adapters.base import Partial

T = TypeVar("T")

NO_READING: Final = frozenset({"nan", "-nan"})
"""How a device writes, in a text, that a number is none; in whatever case."""

_PATH: Final = re.compile(r"(?P<said>.* - at )`\$(?P<path>[^`]*)`", re.DOTALL)

_FLOAT: Final = msgspec.json.Decoder(float)
_TEXT: Final = msgspec.json.Decoder(str)

# A text that nothing ends goes to the end: else it would be looked for again from each quote inside.
_NOT_A_NUMBER: Final = re.compile(
    rb"""(?P<text> "(?:[^"\\]|\\.)*+ (?: " | \\?\Z ) )
       | (?<![\w.+-]) (?P<nan> -?nan\b ) | (?<![\w.+-]) (?P<infinity> -?inf(?:inity)?\b )""",
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)


def check_count(parts: int, most: int) -> None:
    """Make sure that a message has no more parts than it may have points, before each is looked into: what is at fault
    costs far more than what is good.

    Raises:
        DecodeError: TOO_MANY_POINTS.
    """
    if parts > most:
        raise DecodeError(Reason.TOO_MANY_POINTS, f"{parts} points, the limit is {most}")


def at(error: DecodeError, where: str) -> DecodeError:
    """The same fault, with a path that begins at the top: `where` is that of the part in which it was found."""
    found = _PATH.fullmatch(error.detail)
    said, path = (found["said"], found["path"]) if found else (f"{error.detail} - at ", "")
    return DecodeError(error.reason, f"{said}`{where}{path}`")


def rejection(error: DecodeError) -> Rejection:
    """The fault, to be kept."""
    return Rejection(error.reason, error.detail)


def is_absent(raw: bytes) -> bool:
    """Whether this JSON value, where a number is expected, says that there is no reading."""
    return raw == b"null" or (raw[:1] == b'"' and raw[1:-1].decode(errors="replace").casefold() in NO_READING)


def read_number(raw: bytes) -> float:
    """The number that this JSON value is, exactly.

    Raises:
        DecodeError: INVALID_FIELD or NUMBER_OUT_OF_RANGE.
    """
    decode_json(_FLOAT, raw)
    return number(raw.decode())


def read_text(raw: bytes) -> str:
    """The text that this JSON value is.

    Raises:
        DecodeError: INVALID_FIELD, PARSE_ERROR or NUL_CHARACTER.
    """
    return decode_json(_TEXT, raw)


class Parts:
    """Takes the parts of a message one by one and notes what is wrong with them, or absent, in a `Partial`."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial

    def take(self, read: Callable[[bytes], T], raw: msgspec.Raw | msgspec.UnsetType, where: str) -> T | None:
        """What `read` makes of a part. None if it is missing, at fault, or null or not-a-number, which is counted."""
        if isinstance(raw, msgspec.UnsetType):
            return None
        value = bytes(raw)
        if is_absent(value):
            self._partial.absent += 1
            return None
        try:
            return read(value)
        except DecodeError as error:
            self.fault(error, where)
            return None

    def fault(self, error: DecodeError, where: str) -> None:
        """Note a fault of the part with this path."""
        self._partial.faults.append(rejection(at(error, where)))


def strictly(partial: Partial) -> Partial:
    """The same, if nothing in it is at fault.

    Raises:
        DecodeError: As the first fault.
    """
    if partial.faults:
        raise DecodeError(partial.faults[0].reason, partial.faults[0].detail)
    return partial


def without_nan(payload: bytes) -> bytes:
    """The payload with null for each bare NaN, which is no JSON though many libraries write it, and a number beyond all
    doubles for each infinity. Texts are left alone, and a payload that has neither is returned as it is.
    """

    def replacement(found: re.Match[bytes]) -> bytes:
        if found["text"] is not None:
            return found["text"]
        return b"null" if found["nan"] is not None else b"1e999"

    lowered = payload.lower()
    return _NOT_A_NUMBER.sub(replacement, payload) if b"nan" in lowered or b"inf" in lowered else payload


def members_of(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """Decode a part whose texts are looked into later."""
    return decode_json(decoder, raw, allow_nul=True)
