"""Telemetry as SenML in JSON (RFC 8428), with the profile of Khomp's LoRaWAN gateways.

Source: PAYLOADS, `telem`, SenML, and RFC 8428. A base field applies to its record and all that follow, until
it comes again (§4). From the records in order:

* Name = base name + name (§4.5.1), but see below. Unit = unit, else base unit (§4.5.2).
* Time = base time + time, a missing one is zero; below 2**28 it is relative to "now" (§4.5.3). The device's
  own clock is the truth, never the server's, so a measurement with such a time is MISSING_TIMESTAMP.
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
* `decode` refuses a pack for its first fault. `salvage` then leaves out the records that are at fault, and those whose
  value is null: they have no reading. A base field that is at fault is a fault of the pack, since it would make others
  of what follows; and a record that is left out still has its say in how the others are named.
* The RFC's alphabet for names (§4.5.1) is not enforced: a value is worth more than a neat name.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs
import msgspec

from traksense.adapters.base import Partial
from traksense.adapters.fields import checked_unit, joined_name
from traksense.adapters.numbers import added, may_round
from traksense.adapters.salvage import check_count, rejection, strictly
from traksense.adapters.senml_records import BaseFields, Record, read_records, salvage_records
from traksense.adapters.timestamps import from_unix_seconds
from traksense.errors import DecodeError
from traksense.model import Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from traksense.adapters.base import Context
    from traksense.model import Item, Rejection, Value, ValueType

METADATA: Final = frozenset(
    {"model", "gateway", "manufacturer", "serial", "version", "firmware", "fw", "hardware", "hw"}
)
"""What Khomp devices say of themselves. The first two are in PAYLOADS; the rest was chosen by guess, and a
capture of their other models would settle it: until then a name too few is a text point, which loses
nothing."""

FIRST_ABSOLUTE_TIME: Final = 2**28

RECORDS_A_POINT: Final = 2
"""A pack may have twice as many records as a message may have points: some have base fields alone. Chosen by guess."""

_LABELS: Final = "|".join(Record.__struct_fields__)
_STARTS_LIKE_A_PACK: Final = re.compile(rb'\s*\[\s*\{[^{}]*"(?:%s)"\s*:' % _LABELS.encode())


@attrs.define
class _Base:
    """The base fields that apply to a record."""

    name: str = ""
    time: float = 0.0
    unit: str | None = None
    value: float | None = None
    sum: float | None = None

    def update(self, record: BaseFields) -> None:
        """Take over what the record changes."""
        if record.bn is not None:
            self.name = record.bn
        if record.bt is not None:
            self.time = record.bt
        if record.bu is not None:
            self.unit = record.bu
        if record.bv is not None:
            self.value = record.bv
        if record.bs is not None:
            self.sum = record.bs


class _Measurement(NamedTuple):
    """A resolved record, but for its name: which of its two parts count is known only at the end of the pack."""

    base_name: str
    own_name: str
    where: str
    ts: datetime
    values: list[tuple[Value, ValueType, str | None]]


@attrs.define
class _Pack:
    """A pack, resolved.

    Attributes:
        measurements: What can be stored.
        names: Base name and own name of each measurement, also of those that cannot.
        metadata: Base name, own name, value, and where it is.
        faults, absent: As in `Partial`.
    """

    measurements: list[_Measurement] = attrs.field(factory=list)
    names: list[tuple[str, str]] = attrs.field(factory=list)
    metadata: list[tuple[str, str, str, str]] = attrs.field(factory=list)
    faults: list[Rejection] = attrs.field(factory=list)
    absent: int = 0


class SenML:
    """Telemetry as SenML, resolved as RFC 8428 says, Khomp's profile included."""

    name = "senml"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:
        """Whether it starts like an array of records."""
        return members is None and _STARTS_LIKE_A_PACK.match(payload) is not None

    def decode(self, payload: bytes, context: Context) -> list[Item]:
        """Turn the pack into one `Telemetry` for each distinct time; a record without a reading is counted.

        Raises:
            DecodeError: PARSE_ERROR, UNKNOWN_SCHEMA, INVALID_FIELD, MISSING_TIMESTAMP, NUL_CHARACTER,
                NUMBER_OUT_OF_RANGE, NESTED_TOO_DEEP.
        """
        records = read_records(payload)
        check_count(len(records), RECORDS_A_POINT * context.points_max)
        careful = may_round(payload) or b"null" in payload
        partial = strictly(self.salvage(payload, context) if careful else _assembled(_resolved(records)))
        if not partial:
            raise DecodeError(Reason.INVALID_FIELD, "no record with a measurement")
        return partial

    def salvage(self, payload: bytes, context: Context) -> Partial:
        """The same of the records that are good.

        Raises:
            DecodeError: As `decode`, but for what is wrong with a record besides its base fields.
        """
        return _assembled(_resolved(*salvage_records(payload, RECORDS_A_POINT * context.points_max)))


def _assembled(pack: _Pack) -> Partial:
    """One `Telemetry` for each distinct time.

    Raises:
        DecodeError: There is no measurement in it, good or bad.
    """
    partial = Partial(faults=pack.faults, absent=pack.absent)
    device = _device_name(pack.names)
    by_time: dict[datetime, list[Point]] = {}
    for base_name, own_name, where, ts, values in pack.measurements:
        try:
            name = joined_name("" if device and own_name else base_name, own_name, where)
            points = [Point(name, value, declared, checked_unit(unit, where)) for value, declared, unit in values]
        except DecodeError as error:
            partial.faults.append(rejection(error))
        else:
            by_time.setdefault(ts, []).extend(points)
    if not pack.names:
        raise DecodeError(Reason.INVALID_FIELD, "no record with a measurement")
    meta = _meta(device, pack.metadata, partial)
    partial.extend(Telemetry(ts, by_time[ts], meta) for ts in sorted(by_time))
    return partial


def _resolved(records: list[Record], out: Mapping[int, DecodeError | None] = MappingProxyType({})) -> _Pack:
    """The records, resolved.

    Args:
        records: All of them.
        out: Those by index that are at fault, or None if they have no reading: only their base fields and names count.
    """
    base = _Base()
    pack = _Pack()
    for index, record in enumerate(records):
        base.update(record)
        own_name = record.n or ""
        if index in out:
            error = out[index]
            if error is None:
                pack.absent += 1
            else:
                pack.faults.append(rejection(error))
            pack.names.append((base.name, own_name))
        elif record.vs is not None and record.u is None and own_name.casefold() in METADATA:
            pack.metadata.append((base.name, own_name, record.vs, f"$[{index}]"))
        elif _has_regular_field(record):
            where = f"$[{index}]"
            pack.names.append((base.name, own_name))
            try:
                ts, values = _time(base, record, where), _values(base, record, where)
            except DecodeError as error:
                pack.faults.append(rejection(error))
            else:
                pack.measurements.append(_Measurement(base.name, own_name, where, ts, values))
    return pack


def _has_regular_field(record: Record) -> bool:
    # Almost every record that has one has one of the first two.
    if record.n is not None or record.v is not None:
        return True
    others = (record.u, record.vs, record.vb, record.vd, record.s, record.t, record.ut)
    return any(value is not None for value in others)


def _device_name(names: list[tuple[str, str]]) -> str | None:
    base_names = {base_name for base_name, _ in names}
    if len(base_names) != 1:
        return None
    device = base_names.pop()
    own_names = {own_name for _, own_name in names}
    # A measurement without a name of its own is called like the device: another must not be.
    return None if not device or {"", device} <= own_names else device


def _time(base: _Base, record: Record, where: str) -> datetime:
    seconds = base.time + (record.t or 0.0)
    if seconds < FIRST_ABSOLUTE_TIME:
        if base.time or record.t:
            said = f"time {seconds!r} is relative to when the device sent it: give bt or t in seconds since 1970"
        else:
            said = "no time: give bt or t, in seconds since 1970"
        raise DecodeError(Reason.MISSING_TIMESTAMP, f"{said} - at `{where}`")
    return from_unix_seconds(seconds, where)


def _values(base: _Base, record: Record, where: str) -> list[tuple[Value, ValueType, str | None]]:
    if (record.v, record.vs, record.vb, record.vd).count(None) < 3:
        raise DecodeError(Reason.INVALID_FIELD, f"more than one of v, vs, vb and vd - at `{where}`")
    unit = base.unit if record.u is None else record.u
    values: list[tuple[Value, ValueType, str | None]] = []
    if record.vs is not None:
        values.append((record.vs, "text", unit))
    elif record.vd is not None:
        values.append((record.vd, "text", unit))
    elif record.vb is not None:
        values.append((record.vb, "bool", unit))
    elif (value := _added(base.value, record.v, where)) is not None:
        values.append((value, "num", unit))
    if (total := _added(base.sum, record.s, where)) is not None:
        # Checked before it is joined to: the base unit may be long, and so may the pack.
        values.append((total, "num", f"{checked_unit(unit, where)}.s" if unit else "s"))
    if not values:
        raise DecodeError(Reason.INVALID_FIELD, f"neither a value nor a sum - at `{where}`")
    return values


def _added(base: float | None, own: float | None, where: str) -> float | None:
    if base is None or own is None:
        return base if own is None else own
    try:
        return added(base, own)
    except DecodeError as error:
        raise DecodeError(error.reason, f"the sum with the base value - at `{where}`") from error


def _meta(device: str | None, metadata: list[tuple[str, str, str, str]], partial: Partial) -> bytes | None:
    # The inner keys are the distinct values of a name, in order, however many there are.
    described: dict[str, dict[str, None]] = {} if device is None else {"bn": {device: None}}
    for base_name, own_name, value, where in metadata:
        try:
            name = joined_name("" if device else base_name, own_name, where)
        except DecodeError as error:
            partial.faults.append(rejection(error))
        else:
            described.setdefault(name, {})[value] = None
    if not described:
        return None
    return msgspec.json.encode({name: _one_or_all(list(distinct)) for name, distinct in described.items()})


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values
