"""One spelling of names and units, and how they are shown.

What looks alike to people must be alike to the database. So names have Unicode's composed form (NFC) and no white space
around them, and units have one spelling of each sign. A tenant's name is a wall: it is refused rather than rewritten
(ops/decisions/0040).
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Final

NAME_MAX: Final = 128
"""Longest name of a tenant, site, device or point, in characters. With it the index entry of a series stays below the
2,704 bytes that a PostgreSQL btree page can hold (five names of at most four bytes a character)."""

UNIT_MAX: Final = 64
"""Longest unit, in characters."""

_UNSEEN: Final = {
    "Cc": "a control character",
    "Cf": "a format character",
    "Cs": "half of a character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
"""Categories of characters that do not show, or that change how others are shown."""

_SIGNS: Final = str.maketrans(
    {
        "\u03bc": "\u00b5",  # Greek mu: micro, as keyboards and ISO 8859-1 have it
        "\u2103": "\u00b0C",  # degree Celsius in one character
        "\u2109": "\u00b0F",  # degree Fahrenheit in one character
        "\u22c5": "\u00b7",  # dot operator: middle dot
    }
)
"""What NFC leaves apart. NFC itself brings together ohm (U+2126), kelvin (U+212A) and angstrom (U+212B) with their
letters."""

_RING: Final = re.compile("^[\u00ba\u02da]")
"""At the beginning of a unit, the ordinal indicator and the ring stand for the degree sign, which keyboards lack."""


def canonical_name(name: str) -> str:
    """The spelling under which a name of a site, a device or a point is stored; equal for all that look the same."""
    return unicodedata.normalize("NFC", name).strip()


def canonical_point(name: str) -> str:
    """As `canonical_name`; a name that it would leave empty or too long stays as it is."""
    result = canonical_name(name)
    return result if 0 < len(result) <= NAME_MAX else name


def canonical_unit(unit: str | None) -> str | None:
    """The spelling under which a unit is stored, or None for a blank one; one that it would make too long stays as it
    is.
    """
    if unit is None:
        return None
    result = _RING.sub("\u00b0", canonical_name(unit).translate(_SIGNS))
    return (result or None) if len(result) <= UNIT_MAX else unit


def name_fault(name: str) -> str | None:
    """Why this cannot be the name of a tenant, site or device, once it is canonical; or None."""
    if not name:
        return "is empty"
    if len(name) > NAME_MAX:
        return f"has {len(name)} characters, the limit is {NAME_MAX}"
    for character in name:
        if not character.isprintable() and (what := _UNSEEN.get(unicodedata.category(character))):
            return f"has {what}, U+{ord(character):04X}"
    return None


def tenant_fault(name: str) -> str | None:
    """Why this cannot be the name of a tenant, as it is; or None."""
    fault = name_fault(name)
    if fault is None and name != name.strip():
        fault = "has white space around it"
    if fault is None and not unicodedata.is_normalized("NFC", name):
        fault = "is not in Unicode's composed form (NFC)"
    return fault


def printable_json(document: object) -> str:
    """The document as JSON in one line, with everything escaped in its strings that `printable` escapes."""
    text = json.dumps(document, default=str, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if c.isprintable() else json_escape(c) for c in text)


def json_escape(character: str) -> str:
    """A character as JSON has it, escaped: `json.dumps` leaves U+007F as it is, which acts on terminals."""
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def printable(text: str) -> str:
    """The text with everything escaped that acts on a terminal or hides in it: control, format and direction
    characters, and what cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
