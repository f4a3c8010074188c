r"""Reading JSON so that whatever passes can be stored: what every adapter does before it looks any closer.

msgspec checks the grammar (RFC 8259), escapes and types; this module adds what PostgreSQL asks for beyond
that and turns each fault into the reason of its dead letter:

* The whole payload is UTF-8, also in members that nobody reads. (msgspec checks only the text that it
  decodes.)
* No text contains U+0000. Source: PostgreSQL 18 §8.14: "jsonb [...] also rejects \u0000 (because that cannot
  be represented in PostgreSQL's text type)"; the same holds of text columns.
* Surrogate escapes come in pairs (ibid.: jsonb "insists that any use of Unicode surrogate pairs [...] be
  correct").
* JSON that is stored as it came nests at most `MAX_DEPTH` levels, and its numbers fit into a double.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from traksense.adapters.timestamps import TIME_FORM
from traksense.errors import DecodeError
from traksense.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

MAX_DEPTH: Final = 512
"""Levels of arrays and objects in stored JSON. Well inside Python's default recursion limit of 1000, which
msgspec obeys on 3.11, so that a payload meets the same fate on every version; far beyond any sensible
device."""

MAX_NUMERIC_SCALE: Final = 16383
"""Digits after the decimal point that jsonb takes. Source: PostgreSQL 18 §8.1.2, table 8.2 (numeric)."""

WRITTEN_OUT_MAX: Final = 2**20
"""Places that the exponents of a document's numbers may add to it. jsonb writes numbers out: 110,000 times 1e-16383, in
a megabyte, are 1.8 GB of text, which no client can read and pg_dump cannot dump. Chosen by guess."""

_REMEMBERED_BYTES: Final = 256
"""A JSON object up to this length is not checked again if it was good lately."""

ABSENT: Final = msgspec.Raw(b"null")
"""Default of an optional member that is kept as it came: null and absent mean the same."""

# An odd run of backslashes: after an even one, u0000 is ordinary text.
_NUL_ESCAPE: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_ESCAPES: Final = re.compile(
    rb"""\\ (?: u[dD][89abAB][0-9a-fA-F]{2} \\u[dD][c-fC-F][0-9a-fA-F]{2}  # a pair
           | (?P<lone> u[dD][89a-fA-F][0-9a-fA-F]{2} )
           | . )""",
    re.DOTALL | re.VERBOSE,
)
_NO_LATIN_1: Final = re.compile(rb"[^\t\n\r\x20-\x7e\xa0-\xff]")
"""Control characters: a text has none, what is compressed, encrypted or in UTF-16 has."""
JSON_FAULTS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What is raised for a payload that is not the JSON that was expected."""

_OUT_OF_RANGE: Final = re.compile(r"(?:Number|Integer value) out of range")

# What the formats call a time in text. Without any, null included, a message has another reason.
_NO_TEXT_FOR_A_TIME: Final = re.compile(
    r"Expected `str(?: \| null)?`, (?P<got>got `(?!null`)\w+` - at `\$\.(?:ts|ts_exec|timestamp)`)"
)

_SYNTAX: Final = msgspec.json.Decoder(msgspec.Raw)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_json(decoder: msgspec.json.Decoder[T], payload: bytes, *, allow_nul: bool = False) -> T:
    """Decode the payload; what is returned has no NUL and no lone surrogate in any text.

    Args:
        decoder: Into what.
        payload: The bytes.
        allow_nul: NUL is looked for later, in each part (`refuse_nul`).

    Raises:
        DecodeError: PARSE_ERROR, NESTED_TOO_DEEP, NUMBER_OUT_OF_RANGE, NUL_CHARACTER, or INVALID_FIELD with
            the path of the field as msgspec writes it.
    """
    try:
        if not payload.isascii():
            payload.decode()
        decoded = decoder.decode(payload)
    except JSON_FAULTS as exc:
        raise fault(payload, exc) from exc
    # Almost no payload has a backslash, and looking for one byte takes a tenth of looking for six.
    if b"\\" in payload and not allow_nul:
        refuse_nul(payload)
    return decoded


def fault(payload: bytes, error: Exception) -> DecodeError:
    """What is wrong with a payload, from what checking and decoding it raised (`JSON_FAULTS`)."""
    if isinstance(error, msgspec.ValidationError):
        return _shape_fault(payload, str(error))
    if isinstance(error, msgspec.DecodeError):
        return _syntax_fault(payload, error)
    if isinstance(error, UnicodeDecodeError):
        at = f"0x{payload[error.start]:02x} (byte {error.start})"
        what = "not UTF-8" if _NO_LATIN_1.search(payload) else "not UTF-8 but perhaps Latin-1"
        return DecodeError(Reason.PARSE_ERROR, f"{what}: {error.reason} {at}")
    return DecodeError(Reason.NESTED_TOO_DEEP, "nested deeper than the decoder goes")


def refuse_nul(raw: bytes) -> None:
    """Make sure that no text in this JSON has U+0000.

    Raises:
        DecodeError: NUL_CHARACTER.
    """
    if b"\\u0000" in raw and _NUL_ESCAPE.search(raw):
        raise DecodeError(Reason.NUL_CHARACTER, "U+0000 in a text (an escape \\u0000)")


def check_json(raw: bytes, where: str) -> None:
    """Check that a JSON value, taken over as it came from a decoded payload, can be stored as jsonb.

    Raises:
        DecodeError: NESTED_TOO_DEEP or NUMBER_OUT_OF_RANGE.
    """
    _places.clear()
    try:
        value = _ANYTHING.decode(raw)
    except msgspec.ValidationError as exc:
        raise DecodeError(Reason.NUMBER_OUT_OF_RANGE, f"{exc} in `{where}`") from exc
    except RecursionError as exc:
        raise DecodeError(Reason.NESTED_TOO_DEEP, f"nested deeper than the decoder goes - at `{where}`") from exc
    if sum(_places) > WRITTEN_OUT_MAX:
        places = f"numbers that take more than {WRITTEN_OUT_MAX} digits written out"
        raise DecodeError(Reason.NUMBER_OUT_OF_RANGE, f"{places} in `{where}`")
    # Depth takes two brackets a level: hardly a value is long enough to need the walk.
    if len(raw) > 2 * MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise DecodeError(Reason.NESTED_TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels - at `{where}`")


def json_object(raw: msgspec.Raw, where: str) -> bytes | None:
    """The bytes of a storable JSON object as it came, or None if it is null or absent.

    Raises:
        DecodeError: INVALID_FIELD if it is something else, or as `check_json`.
    """
    value = bytes(raw)
    return _short_object(value, where) if len(value) <= _REMEMBERED_BYTES else _object(value, where)


def _object(value: bytes, where: str) -> bytes | None:
    if value == b"null":
        return None
    if value[0] != ord("{"):
        raise DecodeError(Reason.INVALID_FIELD, f"Expected `object | null` - at `{where}`")
    check_json(value, where)
    return value


_short_object: Final = lru_cache(maxsize=1024)(_object)
"""Devices repeat their meta for ever; and what is the same object is looked up at once in the dictionary."""


def json_value(raw: msgspec.Raw, where: str) -> bytes | None:
    """The bytes of a storable JSON value as it came, or None if it is null or absent.

    Raises:
        DecodeError: As `check_json`.
    """
    value = bytes(raw)
    if value == b"null":
        return None
    check_json(value, where)
    return value


def member_names(payload: bytes) -> frozenset[str] | None:
    """The names of the top-level members if the payload is a JSON object, else None.

    The values are not looked into: some of what has names here is not acceptable.
    """
    try:
        return frozenset(_MEMBERS.decode(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _shape_fault(payload: bytes, detail: str) -> DecodeError:
    # msgspec stops at the first fault that it meets; that the rest is no JSON either weighs more than a wrong
    # field.
    try:
        _SYNTAX.decode(payload)
    except msgspec.DecodeError as exc:
        return _syntax_fault(payload, exc)
    except RecursionError:
        return DecodeError(Reason.NESTED_TOO_DEEP, "nested deeper than the decoder goes")
    reason = Reason.NUMBER_OUT_OF_RANGE if _OUT_OF_RANGE.match(detail) else Reason.INVALID_FIELD
    if no_text := _NO_TEXT_FOR_A_TIME.fullmatch(detail):
        detail = f"Expected {TIME_FORM}, {no_text['got']}"
    return DecodeError(reason, detail)


def _syntax_fault(payload: bytes, exc: msgspec.DecodeError) -> DecodeError:
    # For a lone surrogate msgspec may say no more than that the input is too short.
    if any(escape["lone"] for escape in _ESCAPES.finditer(payload)):
        return DecodeError(Reason.PARSE_ERROR, f"a lone surrogate escape (half of a \\ud83d\\ude00 pair): {exc}")
    return DecodeError(Reason.PARSE_ERROR, str(exc))


def _storable_number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"Number out of range: {text[:40]}")
    # A double rounds 1e-20000 to zero, but jsonb keeps all the digits or refuses them. The first digit of what is not
    # zero comes at most 324 places after the point, so the last one is near enough unless there are very many.
    if number == 0.0 or len(text) > MAX_NUMERIC_SCALE - 324:
        try:
            scale = -int(Decimal(text).as_tuple().exponent)
        except InvalidOperation:
            scale = MAX_NUMERIC_SCALE + 1
        if scale > MAX_NUMERIC_SCALE:
            raise ValueError(f"Number with too many digits after the point: {text[:40]}")
    _, _, exponent = text.lower().partition("e")
    if exponent:
        # Leading zeros may be many, and Python reads 4,300 digits at most.
        _places.append(min(int(exponent.lstrip("+-").lstrip("0")[:6] or "0"), MAX_NUMERIC_SCALE))
    return number


_places: Final[list[int]] = []
"""Of the numbers with an exponent in the document that is being checked."""

_ANYTHING: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(float_hook=_storable_number)


def _depth(value: object) -> int:
    depth = 0
    level: list[object] = [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [child for item in level for child in _children(item)]
        depth += 1
    return depth


def _children(container: object) -> Iterable[object]:
    if isinstance(container, dict):
        return container.values()
    return container if isinstance(container, list) else ()
