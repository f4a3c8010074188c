"""Numbers as they were sent, to the last digit.

Nearly every number is a double and nothing else; the rest becomes `Exact`, the double and the digits. A double alone
will do if the number can be read out of it again (`decimal_of`, and ops/reading.md does the same in SQL):

* a whole one that a bigint can hold is the double's value (`v_num::bigint`);
* any other is what the double's shortest notation says (`v_num::text::numeric`): 0.1 is, though no double is exactly
  that. PostgreSQL's notation, that is: of the double nearest to 1e23, which lies half-way between two, it says
  9.999999999999999e+22, where Python says 1e+23.

So 9007199254740993, 2**64 - 1, 1e23, 0.10000000000000000001 and 1e-400 are `Exact`. What is beyond `LARGEST`, or has
more digits after the point than PostgreSQL's numeric, is out of range (ops/decisions/0038).
"""

from __future__ import annotations

import math
import re
from decimal import Context, Decimal, InvalidOperation
from typing import Final

from traksense.adapters.json_checks import MAX_NUMERIC_SCALE
from traksense.errors import DecodeError
from traksense.model import Exact, Reason

SAFE_DIGITS: Final = 15
"""Decimal digits that a double always keeps (IEEE 754: DBL_DIG), short of its smallest numbers."""

COUNTABLE: Final = 2.0**53
"""Below this, a double can have each whole number."""

BIGINT: Final = range(-(2**63), 2**63)

LARGEST: Final = 1e290
"""The largest number that is stored. Doubles go on to 1.8e308, but the aggregates keep sums: where two such numbers
made one overflow, no tenant's aggregates were computed any more. 1e18 of these do not."""

SUM_DIGITS_MAX: Final = 1000
"""Digits of a sum. Any two doubles need fewer (1e290 and 5e-324 make 615); a base value with more would give them to
every record of its pack."""

# For looking: what may be a number becomes zeros and exponents.
_SHAPES: Final = bytes(
    ord("0") if chr(byte) in "0123456789." else ord("e") if chr(byte) in "eE" else ord(" ") for byte in range(256)
)
_LONG: Final = b"0" * (SAFE_DIGITS + 1)
_EXPONENT: Final = b"0e"

_NUMBER: Final = re.compile(rb"[0-9.]+(?:[eE][+-]?[0-9]+)?")
_WITH_EXPONENT: Final = re.compile(rb"(?<![0-9.])[0-9.]++[eE][+-]?[0-9]+")

# Wide enough for the largest double and all digits after the point, so nothing is rounded.
_EXACTLY: Final = Context(prec=MAX_NUMERIC_SCALE + 2 * 310)


def may_round(payload: bytes) -> bool:
    """Whether there may be a number in this JSON that is not just its double.

    A look at the shape costs about a microsecond and nearly always says no. Where it does not, the long numbers and
    those with an exponent are read, those in texts too.
    """
    shapes = payload.translate(_SHAPES)
    if _EXPONENT in shapes and not all(
        _is_double(found.group().decode()) for found in _WITH_EXPONENT.finditer(payload)
    ):
        return True
    begin = shapes.find(_LONG)
    while begin >= 0:
        found = _NUMBER.match(payload, begin)
        if found is None or not _is_double(found.group().decode()):
            return True
        begin = shapes.find(_LONG, found.end())
    return False


def _is_double(text: str) -> bool:
    try:
        return type(number(text)) is float
    except (DecodeError, ValueError):
        return False


def number(text: str) -> float:
    """The number that this JSON says, as a float, an `Exact` where need be.

    Raises:
        DecodeError: NUMBER_OUT_OF_RANGE, without a path.
    """
    double = float(text)
    # Most are short, or the shortest notation of a double: both are that double, if it can count.
    if -COUNTABLE < double < COUNTABLE and (
        (len(text) <= SAFE_DIGITS and text.lstrip("-").isdigit()) or repr(double) == text
    ):
        return double
    _check_range(double)
    try:
        decimal = Decimal(text)
    except InvalidOperation:  # an exponent beyond what Decimal holds
        if not text.lower().partition("e")[0].strip("-0."):
            return double
        raise DecodeError(Reason.NUMBER_OUT_OF_RANGE, "Number with too many digits after the point") from None
    return _number(double, decimal)


def added(one: float, other: float) -> float:
    """The sum, in decimal: 0.1 and 0.2 make 0.3.

    Raises:
        DecodeError: NUMBER_OUT_OF_RANGE, without a path.
    """
    long = any(isinstance(part, Exact) and len(part.digits) > SUM_DIGITS_MAX for part in (one, other))
    parts = () if long else (decimal_of(one), decimal_of(other))
    if long or max(part.adjusted() for part in parts) - min(_last_place(part) for part in parts) >= SUM_DIGITS_MAX:
        raise DecodeError(Reason.NUMBER_OUT_OF_RANGE, f"Number with more than {SUM_DIGITS_MAX} digits")
    total = _EXACTLY.add(*parts)
    double = float(total)
    _check_range(double)
    return _number(double, total)


def _last_place(decimal: Decimal) -> int:
    exponent = decimal.as_tuple().exponent
    assert isinstance(exponent, int)  # it is finite
    return exponent


def tenth(value: float) -> float:
    """A tenth of it, in decimal."""
    decimal = decimal_of(value).scaleb(-1, _EXACTLY)
    return _number(float(decimal), decimal)


def decimal_of(value: float) -> Decimal:
    """The number that a float stands for: its digits, or its shortest notation, or its value if it is an integer."""
    if isinstance(value, Exact):
        return Decimal(value.digits)
    return Decimal(int(value)) if value.is_integer() and int(value) in BIGINT else _shortest(value)


def _shortest(value: float) -> Decimal:
    """The shortest notation of a double as PostgreSQL writes it: of what is nearer to it than to any other. Python, and
    everybody who rounds half to even, takes what is just as near to its neighbour, too. Source: PostgreSQL's
    src/common/d2s.c, acceptBounds.
    """
    written = Decimal(repr(value))
    if abs(value) < COUNTABLE:  # half-way between two such, there are more digits than in any shortest notation
        return written
    exact = Decimal(value)
    for digits in (15, 16):
        neighbour = Decimal(math.nextafter(value, math.inf if written > exact else -math.inf))
        if abs(_EXACTLY.subtract(written, exact)) < abs(_EXACTLY.subtract(neighbour, written)):
            break
        written = Decimal(f"{value:.{digits}e}")
    return written


def _check_range(double: float) -> None:
    """Raises:
    DecodeError: NUMBER_OUT_OF_RANGE.
    """
    if not -LARGEST <= double <= LARGEST:
        raise DecodeError(Reason.NUMBER_OUT_OF_RANGE, f"Number out of range: it is beyond {LARGEST:g}")


def _number(double: float, decimal: Decimal) -> float:
    # The first is for minus zero, and for zeros with more digits than Decimal compares.
    return double if not decimal or decimal_of(double) == decimal else _exact(decimal)


def _exact(decimal: Decimal) -> Exact:
    sign, digits, _ = decimal.as_tuple()
    exponent = _last_place(decimal)
    # Not normalize(): it would round to the context's precision.
    kept = len(digits)
    while digits[kept - 1] == 0:
        kept -= 1
    exponent += len(digits) - kept
    if -exponent > MAX_NUMERIC_SCALE:
        raise DecodeError(Reason.NUMBER_OUT_OF_RANGE, "Number with too many digits after the point")
    shortest = Decimal((sign, digits[:kept], exponent))
    return Exact(format(shortest, "f") if exponent >= 0 else str(shortest).lower())
