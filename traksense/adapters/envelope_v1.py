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
and an `int` may have a fraction (numbers are doubles anyway).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from traksense.adapters.fields import CLASS_OF
from traksense.adapters.json_checks import ABSENT, json_object
from traksense.adapters.schema_v1 import decode_v1
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


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_NO_VALUE: Final = re.compile(r"Expected .* - at `\$\.points\[\d+\]\.v`")


class EnvelopeV1:
    """Telemetry, envelope v1."""

    name = "envelope_v1"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:  # noqa: ARG002 (the interface)
        """Whether it says that it is an envelope; of which version, `decode` judges."""
        return members is not None and "schema" in members

    def decode(self, payload: bytes, context: Context) -> list[Item]:  # noqa: ARG002 (the interface)
        """Turn the payload into one `Telemetry`.

        Raises:
            DecodeError: Any reason but MISSING_TIMESTAMP, UNKNOWN_FORMAT and ADAPTER_FAILED.
        """
        try:
            envelope = decode_v1(_ENVELOPE, payload)
        except DecodeError as refusal:
            if refusal.reason is Reason.INVALID_FIELD and _NO_VALUE.match(refusal.detail):
                raise DecodeError(Reason.TYPE_MISMATCH, refusal.detail) from refusal
            raise
        points = envelope.points
        _check_points(points)
        ts = parse_timestamp(envelope.ts, "$.ts")
        return [Telemetry(ts, points, json_object(envelope.meta, "$.meta"))]


def _check_points(points: list[Point]) -> None:
    """Check what the annotations of `Point` cannot say: that the value agrees with its declared type."""
    class_of = CLASS_OF
    for point in points:
        if type(point.v) is not class_of[point.t]:
            # Where it is, is worked out only once there is a fault: this loop is half of our own time.
            got = {float: "a number", bool: "a bool", str: "a text"}[type(point.v)]
            where = f"$.points[{points.index(point)}].v"
            raise DecodeError(Reason.TYPE_MISMATCH, f"`t` is {point.t}, but the value is {got} - at `{where}`")
