"""Device timestamps: every way in which a device writes a time becomes an aware datetime in UTC.

Source: PAYLOADS, envelope v1: "ISO 8601 with offset or Z, to the microsecond; without an offset it is UTC".
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final

from traksense.errors import DecodeError
from traksense.model import Reason

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

TIME_FORM: Final = "text in ISO 8601, such as 2026-11-28T12:00:00Z"
"""What a device should write, for people."""

_LONGEST_DATE: Final = len("2025-10-07")

_PLAUSIBLE_END: Final = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
"""Seconds before which a device's time may lie. Chosen by guess; it only decides what a fault suggests."""


def parse_timestamp(text: str, where: str) -> datetime:
    """The UTC time that the text gives.

    It may be whatever `datetime.fromisoformat` takes for a date and a time, or RFC 3339. Digits beyond the
    microsecond are cut off. (msgspec could decode times itself, no faster: but it rounds those digits, and
    takes fewer notations.)

    Args:
        text: What the device wrote.
        where: The path of the field, for the detail.

    Raises:
        DecodeError: INVALID_FIELD: no time, only a date, or a year outside 1-9999 once it is UTC.
    """
    try:
        # RFC 3339 §5.6 allows lower case; fromisoformat takes any separator, but not this.
        moment = datetime.fromisoformat(text if text[-1:] != "z" else text[:-1] + "Z")
        if moment.tzinfo is UTC:
            return moment
        if len(text) <= _LONGEST_DATE and _is_date(text):
            detail = f"a date without a time of day: {text!r}; give {TIME_FORM} - at `{where}`"
            raise DecodeError(Reason.INVALID_FIELD, detail)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except ValueError as exc:
        detail = f"no time: {text[:40]!r}; give {TIME_FORM} - at `{where}`"
        raise DecodeError(Reason.INVALID_FIELD, detail) from exc
    except OverflowError as exc:
        raise DecodeError(Reason.INVALID_FIELD, f"in UTC not in the years 1-9999: {text!r} - at `{where}`") from exc


def from_unix_seconds(seconds: float, where: str) -> datetime:
    """The UTC time so many seconds after 1970-01-01T00:00Z, to the microsecond.

    Raises:
        DecodeError: INVALID_FIELD: outside the years 1-9999.
    """
    try:
        return EPOCH + timedelta(seconds=seconds)
    except OverflowError as exc:
        milliseconds = ": milliseconds?" if 1 <= seconds / 1000 < _PLAUSIBLE_END else ""
        detail = f"{seconds!r} is no Unix time in seconds{milliseconds} - at `{where}`"
        raise DecodeError(Reason.INVALID_FIELD, detail) from exc


def from_unix_milliseconds(milliseconds: float, where: str) -> datetime:
    """The UTC time so many milliseconds after 1970-01-01T00:00Z, to the microsecond.

    Raises:
        DecodeError: INVALID_FIELD: outside the years 1-9999.
    """
    try:
        return EPOCH + timedelta(seconds=milliseconds / 1000)
    except OverflowError as exc:
        detail = f"{milliseconds!r} is no Unix time in milliseconds - at `{where}`"
        raise DecodeError(Reason.INVALID_FIELD, detail) from exc


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
