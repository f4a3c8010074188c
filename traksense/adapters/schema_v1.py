"""The `schema` member, which the three v1 formats share: it is `v1`, or the message is none of ours.

Source: PAYLOADS, envelope v1: "`schema`: exactly `v1`"; an unknown schema is a dead letter with its own
reason.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from traksense.adapters.json_checks import decode_json
from traksense.errors import DecodeError
from traksense.model import Reason

T = TypeVar("T")


class _Versioned(msgspec.Struct):
    schema: msgspec.Raw


_NO_TIME: Final = re.compile(r"Object missing required field `ts`|Expected `str`, got `null` - at `\$\.ts`")
_VERSIONED: Final = msgspec.json.Decoder(_Versioned)


def decode_v1(decoder: msgspec.json.Decoder[T], payload: bytes, *, allow_nul: bool = False) -> T:
    """Decode a message whose type declares `schema: Literal["v1"]`.

    Raises:
        DecodeError: UNKNOWN_SCHEMA if `schema` is there and something else, whatever else is wrong;
            MISSING_TIMESTAMP if the first thing wrong is that `ts` is not there, or null; or as `decode_json`.
    """
    try:
        return decode_json(decoder, payload, allow_nul=allow_nul)
    except DecodeError as refusal:
        if (said := refusal_v1(payload, refusal)) is refusal:
            raise
        raise said from refusal


def refusal_v1(payload: bytes, refusal: DecodeError) -> DecodeError:
    """What is wrong with a message whose type declares `schema: Literal["v1"]`, from what `decode_json` says."""
    if refusal.reason in {Reason.INVALID_FIELD, Reason.NUMBER_OUT_OF_RANGE}:
        # Another version may have other fields, so its version says more than the first field that v1 misses.
        schema = _schema(payload)
        if schema not in {None, b'"v1"'}:
            said = schema[:40].decode(errors="replace")
            return DecodeError(Reason.UNKNOWN_SCHEMA, f'schema is {said}, not "v1"')
        if _NO_TIME.fullmatch(refusal.detail):
            return DecodeError(Reason.MISSING_TIMESTAMP, refusal.detail)
    return refusal


def _schema(payload: bytes) -> bytes | None:
    try:
        return bytes(_VERSIONED.decode(payload).schema)
    except msgspec.ValidationError:
        return None
