"""Telemetry, envelope v1: the default format, and the hot path of the whole service.

Source: PAYLOADS, `telem`, envelope v1:

* `schema` is exactly `v1`; `ts` is ISO 8601 with offset or Z, to the microsecond, without an offset it is
  UTC.
* `points`: 1 or more. `name`: 1-128 characters. `t`: `float`, `num`, `int`, `bool`, `enum`, `text`, default
  `num`. `u`: unit, optional. `q`: quality, optional: 0 good, 1 suspect, 2 bad; default 0.
* `v` agrees with `t`: numbers for `float`/`num`/`int` (a bool is not a number), `bool`, and strings for
  `enum`/`text`.
* `meta`: optional object, kept as it came.

Where that is silent: members that it does not name are ignored, `"meta": null` and `"u": null` mean absent,
and an `int` may have a fraction.

`decode` refuses a message for its first fault. `salvage` then takes its points one by one: what is wrong with one is a
fault of that point, and one whose `v` is null, or not-a-number where a number was declared, has no reading.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from traksense.adapters.base import Partial
from traksense.adapters.fields import CLASS_OF
from traksense.adapters.json_checks import ABSENT, JSON_FAULTS, decode_json, fault, json_object, refuse_nul
from traksense.adapters.numbers import may_round
from traksense.adapters.salvage import at, check_count, is_absent, read_number, rejection, strictly
from traksense.adapters.schema_v1 import decode_v1, refusal_v1
from traksense.adapters.timestamps import parse_timestamp
from traksense.errors import DecodeError
from traksense.model import Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from traksense.adapters.base import Context
    from traksense.model import Item


class _Envelope(msgspec.Struct, gc=False):
    schema: Literal["v1"]
    ts: str
    points: Annotated[list[Point], msgspec.Meta(min_length=1)]
    meta: msgspec.Raw = ABSENT


class _Parts(msgspec.Struct, gc=False):
    """An envelope whose points have not been looked into."""

    schema: Literal["v1"]
    ts: str
    points: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
    meta: msgspec.Raw = ABSENT


class _Value(msgspec.Struct, gc=False):
    v: msgspec.Raw
    t: msgspec.Raw = ABSENT


_decode: Final = msgspec.json.Decoder(_Envelope).decode
_PARTS: Final = msgspec.json.Decoder(_Parts)
_POINT: Final = msgspec.json.Decoder(Point)
_VALUE: Final = msgspec.json.Decoder(_Value)
_NOT_NUMERIC: Final = frozenset({b'"bool"', b'"enum"', b'"text"'})
_T_DEFAULT: Final = Point("", 0.0).t

_ONE_OF: Final = {"t": ", ".join(CLASS_OF), "q": "0, 1, 2"}
"""What these fields of a point may be."""

_OTHER: Final = re.compile(r"Invalid enum value (?P<value>.*) - at `(?P<at>\$.*\.(?P<name>[tq]))`", re.DOTALL)
"""What msgspec says of others."""

_NO_VALUE: Final = re.compile(r"Expected .* - at `\$\.points\[\d+\]\.v`")


class EnvelopeV1:
    """Telemetry, envelope v1."""

    name = "envelope_v1"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:  # noqa: ARG002 (the interface)
        """Whether it says that it is an envelope; of which version, `decode` judges."""
        return members is not None and "schema" in members

    def decode(self, payload: bytes, context: Context) -> list[Item]:
        """Turn the payload into one `Telemetry`.

        Raises:
            DecodeError: Any reason but UNKNOWN_FORMAT and ADAPTER_FAILED.
        """
        try:
            # As `decode_v1`, which would be two calls more for each message.
            if not payload.isascii():
                payload.decode()
            envelope = _decode(payload)
        except JSON_FAULTS as exc:
            raise _refusal(payload, fault(payload, exc)) from exc
        if b"\\" in payload:
            refuse_nul(payload)
        if may_round(payload):
            return strictly(self.salvage(payload, context))
        points = envelope.points
        _check_points(points)
        ts = parse_timestamp(envelope.ts, "$.ts")
        return [Telemetry(ts, points, json_object(envelope.meta, "$.meta"))]

    def salvage(self, payload: bytes, context: Context) -> Partial:
        """One `Telemetry` of the good points, if there are any.

        Raises:
            DecodeError: Any reason but UNKNOWN_FORMAT, TYPE_MISMATCH and ADAPTER_FAILED: what is wrong with the message
                besides its points.
        """
        envelope = decode_v1(_PARTS, payload, allow_nul=True)
        check_count(len(envelope.points), context.points_max)
        ts = parse_timestamp(envelope.ts, "$.ts")
        refuse_nul(bytes(envelope.meta))
        meta = json_object(envelope.meta, "$.meta")
        partial = Partial()
        points: list[Point] = []
        for index, raw in enumerate(envelope.points):
            try:
                points.append(_point(bytes(raw)))
            except DecodeError as error:
                if _has_no_reading(bytes(raw)):
                    partial.absent += 1
                else:
                    partial.faults.append(rejection(at(error, f"$.points[{index}]")))
        if points:
            partial.append(Telemetry(ts, points, meta))
        return partial


def _refusal(payload: bytes, refusal: DecodeError) -> DecodeError:
    refusal = _name_choices(refusal_v1(payload, refusal))
    if refusal.reason is Reason.INVALID_FIELD and _NO_VALUE.match(refusal.detail):
        return DecodeError(Reason.TYPE_MISMATCH, refusal.detail)
    return refusal


def _name_choices(refusal: DecodeError) -> DecodeError:
    """The same, with what `t` or `q` may be if it is something else."""
    if (found := _OTHER.fullmatch(refusal.detail)) is None:
        return refusal
    name, value = found["name"], found["value"][:40]
    return DecodeError(refusal.reason, f"`{name}` is {value}, not one of {_ONE_OF[name]} - at `{found['at']}`")


def _point(raw: bytes) -> Point:
    """One point, its number to the last digit.

    Raises:
        DecodeError: With a path that begins at the point.
    """
    try:
        point = decode_json(_POINT, raw)
    except DecodeError as refusal:
        if refusal.reason is Reason.INVALID_FIELD and refusal.detail.endswith("- at `$.v`"):
            raise DecodeError(Reason.TYPE_MISMATCH, refusal.detail) from refusal
        if (said := _name_choices(refusal)) is refusal:
            raise
        raise said from refusal
    _check_type(point, "$.v")
    if type(point.v) is float:
        exact = read_number(bytes(_VALUE.decode(raw).v))
        if type(exact) is not float:
            return Point(point.name, exact, point.t, point.u, point.q)
    return point


def _has_no_reading(raw: bytes) -> bool:
    try:
        value = _VALUE.decode(raw)
    except msgspec.DecodeError:
        return False
    v = bytes(value.v)
    return v == b"null" or (is_absent(v) and bytes(value.t) not in _NOT_NUMERIC)


def _check_points(points: list[Point]) -> None:
    """Check what the annotations of `Point` cannot say: that the value agrees with its declared type."""
    class_of = CLASS_OF
    for point in points:
        if type(point.v) is not class_of[point.t]:
            # Where it is, is worked out only once there is a fault: this loop is half of our own time.
            _check_type(point, f"$.points[{points.index(point)}].v")


def _check_type(point: Point, where: str) -> None:
    if type(point.v) is not CLASS_OF[point.t]:
        got = {float: "a number", bool: "a bool", str: "a text"}[type(point.v)]
        default = ", its default," if point.t == _T_DEFAULT else ""
        fits = ", ".join(name for name, cls in CLASS_OF.items() if cls is type(point.v))
        said = f"`t` is {point.t}{default} but the value is {got}, which needs `t`: {fits} - at `{where}`"
        raise DecodeError(Reason.TYPE_MISMATCH, said)
