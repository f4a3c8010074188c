"""What the adapter tests share: the context of a message, and a way to ask for the refusal of a payload."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import pytest

from traksense.adapters import Context, check_items
from traksense.errors import DecodeError

if TYPE_CHECKING:
    from traksense.adapters import Adapter
    from traksense.model import Item, Reason

RECEIVED_AT = datetime(2025, 10, 7, 15, 30, 9, tzinfo=UTC)


class Decode(Protocol):
    """`decode(adapter, payload)`: the items, which have been found to keep the contract."""

    def __call__(self, adapter: Adapter, payload: object) -> list[Item]: ...


class Refuse(Protocol):
    """`refuse(adapter, payload)`: reason and detail of the refusal."""

    def __call__(self, adapter: Adapter, payload: object) -> tuple[Reason, str]: ...


def as_bytes(payload: object) -> bytes:
    """The payload itself if it is bytes, text as UTF-8, anything else as JSON."""
    if isinstance(payload, bytes):
        return payload
    return payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()


@pytest.fixture
def context() -> Context:
    return Context("acme", "plant-1", "dev-7", RECEIVED_AT)


@pytest.fixture
def decode(context: Context) -> Decode:
    def decode(adapter: Adapter, payload: object) -> list[Item]:
        items = list(adapter.decode(as_bytes(payload), context))
        check_items(items)
        return items

    return decode


@pytest.fixture
def refuse(context: Context) -> Refuse:
    def refuse(adapter: Adapter, payload: object) -> tuple[Reason, str]:
        with pytest.raises(DecodeError) as caught:
            adapter.decode(as_bytes(payload), context)
        return caught.value.reason, caught.value.detail

    return refuse
