"""Telemetry as SenML in JSON (RFC 8428), with the profile of Khomp's LoRaWAN gateways.

Source: PAYLOADS, `telem`, SenML, and RFC 8428. A base field applies to its record and all that follow, until
it comes again (§4). From the records in order:

* Name = base name + name (§4.5.1), but see below. Unit = unit, else base unit (§4.5.2).
* Time = base time + time, a missing one is zero; below 2**28 it is relative to "now" (§4.5.3). The device's
  own clock is the truth, never the server's, so one measurement with such a time makes the message
  MISSING_TIMESTAMP.
* Value = base value + `v`, sum = base sum + `s`; of each pair a missing one is zero, and without both there
  is none (§4.5.4). At most one of `v`, `vs`, `vb`, `vd`; none only beside a sum or a base value (§4.2). The
  base value is numeric and does not touch `vs`, `vb` and `vd`.
* A version above 10, or a label that ends in `_` and thus must be understood: UNKNOWN_SCHEMA; other labels
  that are not the RFC's are ignored, and one pack has one version (§4.4).

How that becomes points:

* `v` is `num`, `vb` is `bool`, `vs` and `vd` are `text`, `vd` as the base64url text that came. A sum is a
  point of the same name whose unit is that of the value times second (§4.2): `W` becomes `W.s`, and no unit
  becomes `s`.
* One name may have several units: these are points of the same name with another `u`.
* One `Telemetry` for each distinct time, in order of time. `ut` (§4.2: when to expect the next value) is not
  stored.
* A record of base fields alone is no measurement.
* Khomp: a text without unit of its own whose name is one of `METADATA` (in whatever case) is metadata of the
  whole pack: a member of `meta` with the value as it came, or the list of its values if they differ.
* Names: where all measurements have the same base name, it names the device; the topic knows the device
  already, so a point is called by its own `n`, and `meta` keeps the base name as `bn`. With several base
  names in a pack, or where short names would make two points one, each point has its full name, and so has a
  measurement without `n`.
* The RFC's alphabet for names (§4.5.1) is not enforced: a value is worth more than a neat name.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Final

import attrs
import msgspec

from traksense.adapters.fields import checked_name, checked_unit
from traksense.adapters.json_checks import decode_json
from traksense.adapters.timestamps import from_unix_seconds
from traksense.errors import DecodeError
from traksense.model import Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from traksense.adapters.base import Context
    from traksense.model import Item, Value, ValueType

METADATA: Final = frozenset(
    {"model", "gateway", "manufacturer", "serial", "version", "firmware", "fw", "hardware", "hw"}
)
"""What Khomp devices say of themselves. The first two are in PAYLOADS; the rest was chosen by guess, and a
capture of their other models would settle it: until then a name too few is a text point, which loses
nothing."""

VERSION: Final = 10
FIRST_ABSOLUTE_TIME: Final = 2**28


class _Record(msgspec.Struct):
    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    bv: float | None = None
    bs: float | None = None
    bver: Annotated[int, msgspec.Meta(ge=1)] | None = None
    n: str | None = None
    u: str | None = None
    v: float | None = None
    vs: str | None = None
    vb: bool | None = None
    vd: str | None = None
    s: float | None = None
    t: float | None = None
    ut: float | None = None


_LABELLED: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_RECORDS: Final = msgspec.json.Decoder(list[_Record])
_BASE_FIELDS: Final = ("bn", "bt", "bu", "bv", "bs", "bver")
_REGULAR_FIELDS: Final = ("n", "u", "v", "vs", "vb", "vd", "s", "t", "ut")
_STARTS_LIKE_A_PACK: Final = re.compile(
    rb'\s*\[\s*\{[^{}]*"(?:%s)"\s*:' % "|".join(_BASE_FIELDS + _REGULAR_FIELDS).encode()
)


@attrs.frozen
class _Measurement:
    """A record with the base fields that apply to it."""

    where: str
    base: _Record
    record: _Record

    @property
    def prefix(self) -> str:
        return self.base.bn or ""

    @property
    def suffix(self) -> str:
        return self.record.n or ""

    def is_metadata(self) -> bool:
        record = self.record
        return record.vs is not None and record.u is None and self.suffix.casefold() in METADATA


class SenML:
    """Telemetry as SenML, resolved as RFC 8428 says, Khomp's profile included."""

    name = "senml"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:
        """Whether it starts like an array of records."""
        return members is None and _STARTS_LIKE_A_PACK.match(payload) is not None

    def decode(self, payload: bytes, context: Context) -> list[Item]:  # noqa: ARG002 (the interface)
        """Turn the pack into one `Telemetry` for each distinct time.

        Raises:
            DecodeError: PARSE_ERROR, UNKNOWN_SCHEMA, INVALID_FIELD, MISSING_TIMESTAMP, NUL_CHARACTER,
                NUMBER_OUT_OF_RANGE, NESTED_TOO_DEEP.
        """
        _refuse_other_versions(decode_json(_LABELLED, payload))
        resolved = list(_with_base(decode_json(_RECORDS, payload)))
        measurements = [entry for entry in resolved if not entry.is_metadata()]
        device = _device_name(measurements)
        points: dict[datetime, list[Point]] = {}
        for entry in measurements:
            points.setdefault(_time(entry), []).extend(_points(entry, short=device is not None))
        if not points:
            raise DecodeError(Reason.INVALID_FIELD, "no record with a measurement")
        meta = _meta(device, [entry for entry in resolved if entry.is_metadata()])
        return [Telemetry(ts, points[ts], meta) for ts in sorted(points)]


def _refuse_other_versions(pack: list[dict[str, msgspec.Raw]]) -> None:
    for index, record in enumerate(pack):
        for label in record:
            if label.endswith("_"):
                detail = f"label {label[:40]!r} must be understood and is not - at `$[{index}]`"
                raise DecodeError(Reason.UNKNOWN_SCHEMA, detail)
    versions = {bytes(record["bver"]) for record in pack if "bver" in record}
    for version in versions:
        if version.isdigit() and int(version[:9]) > VERSION:
            raise DecodeError(Reason.UNKNOWN_SCHEMA, f"bver is {version[:9].decode()}, not {VERSION} or less")
    if len(versions) > 1:
        raise DecodeError(Reason.INVALID_FIELD, "bver is not the same in all records")


def _with_base(records: list[_Record]) -> Iterator[_Measurement]:
    base = _Record()
    for index, record in enumerate(records):
        news = {name: value for name in _BASE_FIELDS if (value := getattr(record, name)) is not None}
        if news:
            base = msgspec.structs.replace(base, **news)
        if any(getattr(record, name) is not None for name in _REGULAR_FIELDS):
            yield _Measurement(f"$[{index}]", base, record)


def _device_name(measurements: list[_Measurement]) -> str | None:
    prefixes = {entry.prefix for entry in measurements}
    if len(prefixes) != 1:
        return None
    device = prefixes.pop()
    suffixes = {entry.suffix for entry in measurements}
    # A measurement without a name of its own is called like the device: another must not be.
    if not device or {"", device} <= suffixes:
        return None
    return device


def _time(entry: _Measurement) -> datetime:
    seconds = (entry.base.bt or 0.0) + (entry.record.t or 0.0)
    if seconds < FIRST_ABSOLUTE_TIME:
        detail = f"time {seconds!r} is relative to when the device sent it - at `{entry.where}`"
        raise DecodeError(Reason.MISSING_TIMESTAMP, detail)
    return from_unix_seconds(seconds, entry.where)


def _points(entry: _Measurement, *, short: bool) -> Iterator[Point]:
    base, record, where = entry.base, entry.record, entry.where
    full = entry.prefix + entry.suffix
    name = checked_name(entry.suffix if short and entry.suffix else full, f"{where}.n")
    unit = base.bu if record.u is None else record.u
    value, declared = _value(entry)
    total = _sum(base.bs, record.s, f"{where}.s")
    if value is None and total is None:
        raise DecodeError(Reason.INVALID_FIELD, f"neither a value nor a sum - at `{where}`")
    if value is not None:
        yield Point(name, value, declared, checked_unit(unit, f"{where}.u"))
    if total is not None:
        yield Point(name, total, "num", checked_unit(f"{unit}.s" if unit else "s", f"{where}.u"))


def _value(entry: _Measurement) -> tuple[Value | None, ValueType]:
    record = entry.record
    texts = [text for text in (record.vs, record.vd) if text is not None]
    if len(texts) + (record.v is not None) + (record.vb is not None) > 1:
        raise DecodeError(Reason.INVALID_FIELD, f"more than one of v, vs, vb and vd - at `{entry.where}`")
    if texts:
        return texts[0], "text"
    if record.vb is not None:
        return record.vb, "bool"
    return _sum(entry.base.bv, record.v, f"{entry.where}.v"), "num"


def _sum(base: float | None, own: float | None, where: str) -> float | None:
    if base is None or own is None:
        return base if own is None else own
    total = base + own
    if math.isinf(total):
        raise DecodeError(Reason.NUMBER_OUT_OF_RANGE, f"the sum with the base value - at `{where}`")
    return total


def _meta(device: str | None, entries: list[_Measurement]) -> bytes | None:
    described: dict[str, list[str]] = {} if device is None else {"bn": [device]}
    for entry in entries:
        known = described.setdefault(entry.suffix if device is not None else entry.prefix + entry.suffix, [])
        if entry.record.vs is not None and entry.record.vs not in known:
            known.append(entry.record.vs)
    if not described:
        return None
    return msgspec.json.encode(
        {name: known[0] if len(known) == 1 else known for name, known in described.items()}
    )
