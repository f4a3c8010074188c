"""The records of a SenML pack (RFC 8428), read but not resolved.

Source: RFC 8428, §4.1-§4.3 for the labels, §4.4 for versions and for labels that must be understood.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from traksense.adapters.json_checks import decode_json, refuse_nul
from traksense.adapters.salvage import at, check_count, is_absent, read_number, read_text
from traksense.errors import DecodeError
from traksense.model import Reason

VERSION: Final = 10


class BaseFields(msgspec.Struct):
    """What a record says of itself and of those that follow."""

    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    bv: float | None = None
    bs: float | None = None
    bver: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Record(BaseFields):
    """A record as it came."""

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
_RECORDS: Final = msgspec.json.Decoder(list[Record])
_RECORD: Final = msgspec.json.Decoder(Record)
_BASE_FIELDS: Final = msgspec.json.Decoder(BaseFields)
_PARTS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NUMBERS: Final = ("bv", "bs", "v", "s")
_READINGS: Final = ("v", "vs", "vb", "vd", "s")


def read_records(payload: bytes) -> list[Record]:
    """The records of a pack, none of which is at fault.

    Raises:
        DecodeError: UNKNOWN_SCHEMA, or as `decode_json`.
    """
    # Hardly a pack has such labels, and looking for bytes spares decoding it twice. (An escape can hide them.)
    if b'_"' in payload or b"bver" in payload or b"\\" in payload:
        _refuse_other_versions(decode_json(_LABELLED, payload))
    return decode_json(_RECORDS, payload)


def salvage_records(payload: bytes, most: int) -> tuple[list[Record], dict[int, DecodeError | None]]:
    """The records of a pack one by one, their numbers to the last digit.

    Args:
        payload: The pack.
        most: How many records there may be.

    Returns:
        All of them, and those by index that are at fault, or None if they have no reading. Such a record has its base
        fields and its name only: what it says of others.

    Raises:
        DecodeError: TOO_MANY_POINTS; or as `read_records`, but for what is wrong with a record besides its base fields.
    """
    labelled: list[dict[str, msgspec.Raw]] = []
    records: list[Record] = []
    out: dict[int, DecodeError | None] = {}
    parts: list[msgspec.Raw] = decode_json(_PARTS, payload, allow_nul=True)
    check_count(len(parts), most)
    for index, part in enumerate(parts):
        where, raw = f"$[{index}]", bytes(part)
        try:
            members = decode_json(_MEMBERS, raw, allow_nul=True)
        except DecodeError as error:
            members, out[index] = {}, at(error, where)
        labelled.append(members)
        try:
            record = _with_base(raw if members else b"{}")
        except DecodeError as error:
            raise at(error, where) from error
        records.append(record)
        absent = {label for label in _READINGS if label in members and is_absent(bytes(members[label]))}
        if absent and not any(label in members for label in _READINGS if label not in absent):
            out[index] = None
        elif index not in out:
            try:
                records[index] = _exactly(decode_json(_RECORD, raw), members)
            except DecodeError as error:
                out[index] = at(error, where)
    _refuse_other_versions(labelled)
    return records, out


def _with_base(raw: bytes) -> Record:
    """A record of its base fields, and of its name if it has a good one: what it says of others.

    Raises:
        DecodeError: One of the base fields is at fault.
    """
    fields = decode_json(_BASE_FIELDS, raw, allow_nul=True)
    members = _MEMBERS.decode(raw)
    refuse_nul(b"".join(bytes(members[label]) for label in ("bn", "bu") if label in members))
    record = _exactly(Record(**msgspec.structs.asdict(fields)), members)
    try:
        record.n = read_text(bytes(members["n"])) if "n" in members else None
    except DecodeError:
        record.n = None
    return record


def _exactly(record: Record, members: dict[str, msgspec.Raw]) -> Record:
    """The same record with its numbers to the last digit."""
    for label in _NUMBERS:
        if getattr(record, label) is not None:
            setattr(record, label, read_number(bytes(members[label])))
    return record


def _refuse_other_versions(pack: list[dict[str, msgspec.Raw]]) -> None:
    for index, record in enumerate(pack):
        for label in record:
            if label.endswith("_"):
                detail = f"label {label!r} must be understood and is not - at `$[{index}]`"
                raise DecodeError(Reason.UNKNOWN_SCHEMA, detail)
    versions = {bytes(record["bver"]) for record in pack if "bver" in record}
    for version in versions:
        # A number of three digits or more is a later version, too, and need not be read to the end.
        if version.isdigit() and int(version[:3]) > VERSION:
            raise DecodeError(Reason.UNKNOWN_SCHEMA, f"bver is {version.decode()}, not {VERSION} or less")
    if len(versions) > 1:
        raise DecodeError(Reason.INVALID_FIELD, "bver is not the same in all records")
