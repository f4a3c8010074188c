r"""What every payload must be before its meaning is looked at: UTF-8, JSON, no \u0000, no lone surrogates."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.adapters.json_checks import (
    ABSENT,
    MAX_DEPTH,
    check_json,
    decode_json,
    json_object,
    json_value,
    member_names,
)
from traksense.errors import DecodeError
from traksense.model import Reason

ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
RAW = msgspec.json.Decoder(msgspec.Raw)
NUMBER = msgspec.json.Decoder(float)
OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda children: st.lists(children) | st.dictionaries(TEXTS, children),
    max_leaves=10,
)


def reason_of(payload: bytes, decoder: msgspec.json.Decoder[Any] = RAW) -> Reason | None:
    try:
        decode_json(decoder, payload)
    except DecodeError as refusal:
        return refusal.reason
    return None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{",
        b'{"a":}',
        b"{'a':1}",
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_decode_json_not_json(payload: bytes) -> None:
    """What RFC 8259 does not call JSON is a parse error, NaN and Infinity included."""
    assert reason_of(payload) is Reason.PARSE_ERROR


@pytest.mark.parametrize("payload", [b'{"a":"\xff"}', b'{"\xff":1}', b'"\xed\xa0\x80"', b'["\xc3\xa9", "\xc3"]'])
def test_decode_json_not_utf8(payload: bytes) -> None:
    """Bytes that are not UTF-8 are a parse error even in a text that nobody reads."""
    assert reason_of(payload) is Reason.PARSE_ERROR


@pytest.mark.parametrize(
    "text", [r"\ud800", r"\udc00", r"\udc00\ud800", r"\ud800\n", r"\\\ud800", r"\ud83d\ude00\uD83D"]
)
def test_decode_json_lone_surrogate(text: str) -> None:
    """Half a surrogate pair is no character, so it is a parse error that says so."""
    with pytest.raises(DecodeError, match="lone surrogate") as caught:
        decode_json(RAW, b'{"a":"%s"}' % text.encode())

    assert Reason.PARSE_ERROR == caught.value.reason


def test_decode_json_surrogate_pair() -> None:
    """A pair of surrogate escapes is one character."""
    assert "😀" == decode_json(ANYTHING, rb'"\ud83d\ude00"')


@pytest.mark.parametrize("text", [r"\u0000", r"a\u0000b", r"\\\u0000", r"\n\u0000"])
def test_decode_json_nul(text: str) -> None:
    """U+0000 in any text, be it a name or a value, is refused before PostgreSQL has to."""
    assert reason_of(b'{"a":"%s"}' % text.encode()) is Reason.NUL_CHARACTER
    assert reason_of(b'{"%s":1}' % text.encode()) is Reason.NUL_CHARACTER


@pytest.mark.parametrize("text", [r"\\u0000", r"\\\\u0000", r"\u0001", r"u0000", r"\\ud800"])
def test_decode_json_looks_like_nul(text: str) -> None:
    """A backslash that is itself escaped starts no escape: the text is legal."""
    assert reason_of(b'{"a":"%s"}' % text.encode()) is None


@pytest.mark.parametrize("payload", [b"1e400", b"-1e309", b"1" * 400])
def test_decode_json_beyond_a_double(payload: bytes) -> None:
    """A number beyond a double is refused rather than stored as infinity."""
    assert reason_of(payload, NUMBER) is Reason.NUMBER_OUT_OF_RANGE


def test_decode_json_wrong_shape() -> None:
    """JSON of another shape is an invalid field, with msgspec's words and path."""
    decoder = msgspec.json.Decoder(dict[str, float])
    with pytest.raises(DecodeError) as caught:
        decode_json(decoder, b'{"a":"x"}')

    assert (Reason.INVALID_FIELD, "Expected `float`, got `str` - at `$[...]`") == (
        caught.value.reason,
        caught.value.detail,
    )


def test_decode_json_wrong_shape_and_not_json() -> None:
    """What is no JSON is a parse error even where another fault comes first."""
    assert reason_of(b'["a", ', NUMBER) is Reason.PARSE_ERROR
    assert reason_of(rb'["\ud800"]', NUMBER) is Reason.PARSE_ERROR


@pytest.mark.parametrize("decoder", [RAW, NUMBER, ANYTHING, OBJECT])
def test_decode_json_nested_too_deep(decoder: msgspec.json.Decoder[Any]) -> None:
    """Nesting that would exhaust the stack is refused, whatever shape is expected."""
    depth = 100 * sys.getrecursionlimit()

    assert reason_of(b'{"a":' * depth + b"1" + b"}" * depth, decoder) is Reason.NESTED_TOO_DEEP


@given(st.binary())
def test_decode_json_any_bytes(payload: bytes) -> None:
    """No bytes make it raise anything but a DecodeError."""
    assert reason_of(payload) in {*Reason, None}


@given(TREES, st.booleans())
def test_decode_json_any_json(tree: object, ensure_ascii: bool) -> None:
    """JSON without U+0000 is accepted with the value that it has, escaped or not."""
    payload = json.dumps(tree, ensure_ascii=ensure_ascii).encode()

    assert tree == decode_json(ANYTHING, payload)


@given(TREES, TEXTS, TEXTS, st.booleans())
def test_decode_json_any_nul(tree: object, before: str, after: str, ensure_ascii: bool) -> None:
    """U+0000 is found whatever is around it, escaped backslashes included."""
    payload = json.dumps([tree, before + "\0" + after], ensure_ascii=ensure_ascii).encode()

    assert reason_of(payload) is Reason.NUL_CHARACTER


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_check_json_depth() -> None:
    """Stored JSON nests up to the limit and not a level deeper, in arrays as in objects."""
    check_json(nested(MAX_DEPTH), "$.meta")
    check_json(nested(MAX_DEPTH).replace(b"[]", b"[0, 1]"), "$.meta")
    with pytest.raises(DecodeError, match=r"deeper than 512 levels - at `\$\.meta`") as caught:
        check_json(nested(MAX_DEPTH + 1), "$.meta")
    assert Reason.NESTED_TOO_DEEP == caught.value.reason
    with pytest.raises(DecodeError, match="deeper than 512"):
        check_json(b'{"a":' * 513 + b"1" + b"}" * 513, "$.meta")


def test_check_json_beyond_the_stack() -> None:
    """A value too deep for the decoder is refused like one too deep for the limit."""
    with pytest.raises(DecodeError) as caught:
        check_json(nested(100 * sys.getrecursionlimit()), "$.meta")

    assert Reason.NESTED_TOO_DEEP == caught.value.reason


def test_check_json_wide() -> None:
    """Many brackets side by side are not deep."""
    check_json(b"[" + b"[],{}," * 10_000 + b'"[[[["]', "$.meta")


@pytest.mark.parametrize(
    "number",
    [
        b"1e400",
        b"-1e400",
        b"9" * 5000,
        b"1e-20000",
        b"1e-16384",
        b"0e-16384",
        b"1e-99999999999999999999",
        b"0." + b"0" * 20_000 + b"1",
        b"0." + b"1" * 16_384,
    ],
)
def test_check_json_number_out_of_range(number: bytes) -> None:
    """A number that jsonb could not take, or a double not hold, is refused with the place where it is."""
    with pytest.raises(DecodeError, match=r"`\$\.meta`") as caught:
        check_json(b'{"a":[%s]}' % number, "$.meta")

    assert Reason.NUMBER_OUT_OF_RANGE == caught.value.reason


@pytest.mark.parametrize(
    "number",
    [
        b"1e308",
        b"-0.0",
        b"1e-300",
        b"5E-324",
        b"123456789012345678901234567890",
        b"1e-9",
        b"1e-16383",
        b"0." + b"1" * 16383,
    ],
)
def test_check_json_number_in_range(number: bytes) -> None:
    """Numbers that a double holds are fine, however they are written."""
    check_json(number, "$.meta")


def test_json_object_as_it_came() -> None:
    """An object is kept byte for byte, white space and the order of members included."""
    raw = b'{ "b" : 1,\n"a":"\\u00b0" }'

    assert raw == json_object(msgspec.Raw(raw), "$.meta")


@pytest.mark.parametrize("raw", [b"1", b'"{}"', b"[{}]", b"true"])
def test_json_object_something_else(raw: bytes) -> None:
    """Anything but an object or null is an invalid field."""
    with pytest.raises(DecodeError, match=r"Expected `object \| null` - at `\$\.meta`") as caught:
        json_object(msgspec.Raw(raw), "$.meta")

    assert Reason.INVALID_FIELD == caught.value.reason


def test_json_value_absent() -> None:
    """Null and absent are both None."""
    assert json_value(ABSENT, "$.data") is None
    assert json_object(ABSENT, "$.meta") is None


@pytest.mark.parametrize("raw", [b"1", b'"{}"', b"[{}]", b"true", b"{}"])
def test_json_value_anything(raw: bytes) -> None:
    """Any other JSON value is kept byte for byte."""
    assert raw == json_value(msgspec.Raw(raw), "$.data")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"a":1,"b":{"c":2}}', frozenset({"a", "b"})),
        (b"{}", frozenset()),
        (b'[{"a":1}]', None),
        (b'"a"', None),
        (b'{"a":1', None),
        (b'{"\xff":1}', None),
        (nested(1_000_000), None),
    ],
)
def test_member_names_of(payload: bytes, expected: frozenset[str] | None) -> None:
    """The top-level names of an object, and None of all else."""
    assert expected == member_names(payload)


def test_check_json_of_numbers_that_are_long_written_out() -> None:
    """A jsonb writes each digit: a document that nobody could read back is refused; an ordinary one is not."""
    check_json(b"[" + b",".join([b"1.5e-9"] * 100_000) + b"]", "$")
    check_json(b"1e-" + b"0" * 5_000 + b"5", "$")
    for number in (b"1e-16383", b"1E-400", b"7e289"):
        with pytest.raises(DecodeError) as caught:
            check_json(b"[" + b",".join([number] * 110_000) + b"]", "$")
        assert Reason.NUMBER_OUT_OF_RANGE == caught.value.reason
