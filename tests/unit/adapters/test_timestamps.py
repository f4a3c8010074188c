"""The times that devices write."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.adapters.timestamps import TIME_FORM, from_unix_milliseconds, from_unix_seconds, parse_timestamp
from traksense.errors import DecodeError
from traksense.model import Reason

OFFSETS = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(
    lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]  # parts are year, month, ...


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-10-07T15:30:00Z", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07T15:30:00", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07T15:30:00.123456Z", utc(2025, 10, 7, 15, 30, 0, 123456)),
        ("2025-10-07T12:30:00-03:00", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07T12:30:00-0300", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07T12:30:00-03", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07T15:30:00+00:00", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07t15:30:00z", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07 15:30:00", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07T15:30", utc(2025, 10, 7, 15, 30)),
        ("20251007T153000Z", utc(2025, 10, 7, 15, 30)),
        ("2025-10-07T15:30:00,5Z", utc(2025, 10, 7, 15, 30, 0, 500000)),
        ("2025-W41-2T15:30:00Z", utc(2025, 10, 7, 15, 30)),
        ("2025W41T15", utc(2025, 10, 6, 15)),
        ("9999-12-31T23:59:59.999999Z", utc(9999, 12, 31, 23, 59, 59, 999999)),
    ],
)
def test_parse_timestamp_notation(text: str, expected: datetime) -> None:
    """Each ISO 8601 notation of a date and a time is understood, and what has no offset is UTC."""
    parsed = parse_timestamp(text, "$.ts")

    assert expected == parsed
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [("2025-10-07T15:30:00.1234569Z", 123456), ("2025-10-07T15:30:00.999999999Z", 999999)],
)
def test_parse_timestamp_nanoseconds(text: str, microsecond: int) -> None:
    """Digits beyond the microsecond are cut off, never rounded into another second."""
    assert utc(2025, 10, 7, 15, 30, 0, microsecond) == parse_timestamp(text, "$.ts")


@pytest.mark.parametrize("text", ["2025-10-07", "20251007", "2025-W41-2", "2025W412", "2025W41"])
def test_parse_timestamp_date_only(text: str) -> None:
    """A date is not a time: midnight would be invented."""
    with pytest.raises(DecodeError, match=f"without a time of day: .*; give {TIME_FORM} - at") as caught:
        parse_timestamp(text, "$.ts")

    assert Reason.INVALID_FIELD == caught.value.reason


@pytest.mark.parametrize(
    "text",
    ["", "z", "now", "1759851000", "15:30:00", "2025-13-07T15:30:00Z", "2025-10-07T15:30:60Z", "²025-10-07T15:30Z"],
)
def test_parse_timestamp_nonsense(text: str) -> None:
    """What is not a time is an invalid field, with the field and the text in the detail."""
    with pytest.raises(DecodeError) as caught:
        parse_timestamp(text, "$.ts")

    assert (Reason.INVALID_FIELD, f"no time: {text!r}; give {TIME_FORM} - at `$.ts`") == (
        caught.value.reason,
        caught.value.detail,
    )


def test_the_example_of_a_time_is_one() -> None:
    """What a fault tells people to write is understood."""
    assert utc(2026, 11, 28, 12) == parse_timestamp(TIME_FORM.split()[-1], "$.ts")


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_parse_timestamp_beyond_the_calendar(text: str) -> None:
    """A time that has no year between 1 and 9999 once it is UTC is an invalid field."""
    with pytest.raises(DecodeError, match="years 1-9999") as caught:
        parse_timestamp(text, "$.ts")

    assert Reason.INVALID_FIELD == caught.value.reason


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=OFFSETS), st.sampled_from("T t"))  # noqa: DTZ001
def test_parse_timestamp_any_time(moment: datetime, separator: str) -> None:
    """Whatever the offset, the moment is the same to the microsecond, and it is in UTC."""
    parsed = parse_timestamp(moment.isoformat(separator), "$.ts")

    assert moment == parsed
    assert parsed.tzinfo is UTC


@given(st.text(max_size=40))
def test_parse_timestamp_any_text(text: str) -> None:
    """No text makes it raise anything but a DecodeError."""
    try:
        parsed = parse_timestamp(text, "$.ts")
    except DecodeError:
        return
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1759937445, utc(2025, 10, 8, 15, 30, 45)),
        (1759937445.123456, utc(2025, 10, 8, 15, 30, 45, 123456)),
        (0, utc(1970, 1, 1)),
        (-1, utc(1969, 12, 31, 23, 59, 59)),
    ],
)
def test_from_unix_seconds_moment(seconds: float, expected: datetime) -> None:
    """Unix seconds are counted from 1970 in UTC, fractions to the microsecond."""
    assert expected == from_unix_seconds(seconds, "$.TS")


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        (1759937445000, ": milliseconds?"),
        (4102444799999.0, ": milliseconds?"),
        (4102444800000, ""),
        (1759937445000000, ""),
        (-1e12, ""),
        (1e300, ""),
        (math.inf, ""),
    ],
)
def test_from_unix_seconds_beyond_the_calendar(seconds: float, milliseconds: str) -> None:
    """Seconds beyond the year 9999 are an invalid field; where they would be a time as milliseconds, it is asked."""
    with pytest.raises(DecodeError) as caught:
        from_unix_seconds(seconds, "$.TS")

    assert (Reason.INVALID_FIELD, f"{seconds!r} is no Unix time in seconds{milliseconds} - at `$.TS`") == (
        caught.value.reason,
        caught.value.detail,
    )


def test_from_unix_milliseconds() -> None:
    """Milliseconds to the microsecond; of microseconds by mistake it is not said that they may be milliseconds."""
    assert utc(2025, 10, 8, 15, 30, 45, 123456) == from_unix_milliseconds(1759937445123.456, "$.ts")
    with pytest.raises(DecodeError) as caught:
        from_unix_milliseconds(1759937445123456.0, "$.ts")

    assert "1759937445123456.0 is no Unix time in milliseconds - at `$.ts`" == caught.value.detail
