"""Numbers are what was sent, to the last digit, or refused."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.adapters import ConformanceError, Context, Registry, check_items, number
from traksense.adapters.numbers import added, decimal_of, may_round, tenth
from traksense.errors import DecodeError
from traksense.model import Event, Exact, Kind, Point, Reason, Telemetry

from .conftest import RECEIVED_AT

if TYPE_CHECKING:
    from traksense.model import Value

EXACT = [
    ("9007199254740993", "9007199254740993"),
    ("-9007199254740993", "-9007199254740993"),
    ("9223372036854775807", "9223372036854775807"),
    ("18446744073709551615", "18446744073709551615"),
    ("18446744073709551616", "18446744073709551616"),
    ("123456789012345678901234567890", "123456789012345678901234567890"),
    ("9007199254740993.0", "9007199254740993"),
    ("1.8446744073709551615e19", "18446744073709551615"),
    ("0.10000000000000000001", "0.10000000000000000001"),
    ("1e-400", "1e-400"),
    ("-12.50e-400", "-1.25e-399"),
    ("999999999999999e3", "999999999999999000"),
    # Half-way between two doubles, where PostgreSQL writes another shortest notation than Python.
    ("1e23", "100000000000000000000000"),
    ("-7E+22", "-70000000000000000000000"),
]
PLAIN = ["0", "-0", "0.0", "0e-99999", "7", "7.3", "0.1", "1e290", "1e22", "9007199254740992", "-9223372036854775808"]
PLAIN += ["1152921504606846976", "0.30000000000000004", "5e-324", "-9.999e289", "2.50000000000000000000000"]


@pytest.mark.parametrize(("text", "digits"), EXACT)
def test_number_that_a_double_rounds(text: str, digits: str) -> None:
    """It is the nearest double and has its digits, however it is written, and the payload looks like it."""
    value = number(text)

    assert Exact(digits) == value
    assert float(text) == float(value)
    assert may_round(b'{"v":' + text.encode() + b"}")


@pytest.mark.parametrize("text", PLAIN)
def test_number_that_is_a_double(text: str) -> None:
    """It is that double and nothing else."""
    value = number(text)

    assert (float, float(text)) == (type(value), value)


@pytest.mark.parametrize(
    "text",
    [
        "1e400",
        "-1e309",
        "1.0001e290",
        "-1.7976931348623157e308",
        "9" * 291,
        "9" * 400,
        "9" * 5000,
        "1e-16384",
        "1e-99999999999999999999",
        "1." + "1" * 16384,
    ],
)
def test_number_out_of_range(text: str) -> None:
    """Beyond a double, or with more digits than PostgreSQL's numeric takes, it is refused and not rounded."""
    with pytest.raises(DecodeError) as caught:
        number(text)

    assert Reason.NUMBER_OUT_OF_RANGE == caught.value.reason
    assert may_round(b'{"v":' + text.encode() + b"}")


DIGITS = st.text("0123456789", min_size=1, max_size=25).map(lambda digits: digits.lstrip("0") or "0")
TEXTS = st.tuples(
    st.sampled_from(["", "-"]),
    DIGITS,
    st.sampled_from(["", "."]).flatmap(lambda point: DIGITS.map(lambda d: point + d) if point else st.just("")),
    st.sampled_from(["", "e"]).flatmap(lambda e: st.integers(-400, 230).map(lambda n: f"{e}{n}") if e else st.just("")),
).map("".join)


# As many digits as a double always keeps, and an exponent beyond what it counts.
BARELY = st.tuples(st.integers(10**13, 10**15 - 1), st.integers(0, 9)).map(lambda parts: "{}e{}".format(*parts))


@given(TEXTS | BARELY | st.integers().map(str) | st.floats(-1e290, 1e290).map(repr))
def test_number_can_be_read_back(text: str) -> None:
    """Whatever the notation, the number can be read out of what is stored; and the quick look never misses one that a
    double would round.
    """
    value = number(text)
    if isinstance(value, Exact):
        read = Decimal(value.digits)
        assert may_round(text.encode())
    else:
        read = Decimal(int(value)) if value.is_integer() and abs(value) < 2**63 else decimal_of(value)

    assert Decimal(text) == read
    assert float(text) == float(value)
    assert [value] == values(FORMATS["envelope"].replace("@", text))


def test_sums_and_tenths_are_decimal() -> None:
    """SenML's sums and JE02's tenths are of the numbers that were sent, not of their doubles."""
    assert (0.3, 21.5, 23.5) == (added(0.1, 0.2), added(20.0, 1.5), tenth(235.0))
    assert Exact("9007199254740993") == added(2.0**53, 1.0)
    assert Exact("18446744073709551616") == added(number("18446744073709551615"), 1.0)
    assert Exact("900719925474099.3") == tenth(number("9007199254740993"))
    with pytest.raises(DecodeError):
        added(1e290, 1e290)


def test_look_takes_no_time_for_long_digits() -> None:
    """A mebibyte of digits beside something that looks like a great exponent is looked at once."""
    payload = b'{"e10":' + b"1" * 2**20 + b', "n": "1e10"}'

    assert may_round(payload)


def values(payload: str) -> list[Value]:
    items = Registry().decode(Kind.TELEM, payload.encode(), Context("t", "s", "d", RECEIVED_AT))
    check_items(items)
    return [point.v for item in items if isinstance(item, Telemetry) for point in item.points]


FORMATS = {
    "envelope": '{"schema":"v1","ts":"2026-11-26T10:00:00Z","points":[{"name":"n","t":"int","v":@}]}',
    "senml": '[{"n":"a","v":@,"t":1552594568}]',
    "senml sum": '[{"n":"a","s":@,"t":1552594568}]',
    "senml base": '[{"n":"a","bv":@,"t":1552594568}]',
    "parsec": '{"di1":1,"rssi":@,"ts":"2026-11-26T10:00:00Z"}',
    "je02": '{"DATA":{"TS":1759937445,"UPTIME":@}}',
    "sensors": '{"timestamp":"2026-11-26T10:00:00Z","sensors":[{"sensor_id":"a","value":@}]}',
    "wrapped": r'{"topic":"t","payload":"{\"sensors\":[{\"sensor_id\":\"a\",\"value\":@}]}","ts":1729216200000}',
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("text", "digits"), EXACT)
def test_format_keeps_every_digit(form: str, text: str, digits: str) -> None:
    """In every format, for every number."""
    assert Exact(digits) == values(FORMATS[form].replace("@", text))[-1]


def test_je02_information_that_differs_in_a_late_digit() -> None:
    """It is another event: its identifier is made of what was sent, not of doubles."""
    context = Context("t", "s", "d", RECEIVED_AT)
    ids = set()
    for digits in ("0.10000000000000000001", "0.10000000000000000002", "36893488147419103233", "36893488147419103234"):
        (event,) = Registry().decode(Kind.TELEM, b'{"INFO":{"a":%s}}' % digits.encode(), context)
        assert isinstance(event, Event)
        ids.add(event.event_id)

    assert 4 == len(ids)


@pytest.mark.parametrize("value", [Exact("1"), Exact("0.1"), Exact("1e400"), Exact("1_0"), Exact("nan"), Exact(" 2")])
def test_check_items_exact(value: Exact) -> None:
    """A third-party adapter's exact number is one that `number` makes."""
    item = Telemetry(RECEIVED_AT, [Point("a", value)])
    with pytest.raises(ConformanceError, match=r"items\[0\]\.points\[0\]\.v"):
        check_items([item])
    good: Any = Telemetry(RECEIVED_AT, [Point("a", Exact("9007199254740993"))])
    check_items([good])


def test_exact_is_no_other_number() -> None:
    """It equals its own digits only; it sorts and adds as its double."""
    exact = Exact("9007199254740993")

    assert exact != 9007199254740992.0
    assert exact != Exact("9007199254740992")
    assert 1 == len({exact, Exact("9007199254740993")})
    assert 9007199254740992.0 == exact + 0.0
    assert "Exact('9007199254740993')" == repr(exact)
    assert "9007199254740993" in json.dumps(exact.digits)
