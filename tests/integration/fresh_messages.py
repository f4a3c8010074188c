"""A message of each kind that nobody has seen before, and whether a store would take all of them now."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from traksense.errors import StoreError, StoreMisconfiguredError, StoreUnavailableError
from traksense.model import CommandAck, Delivery, Event, Kind, Message, Point, Reason, Rejection, Route, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.ingest.ports import Store

TENANT: Final = "acme"
_numbers = itertools.count(1)


def _delivery(kind: Kind, *items: Telemetry | CommandAck | Event, device: str, bad: bool = False) -> Delivery:
    number = next(_numbers)
    route = Route(TENANT, "site", device, kind)
    topic, payload, now = f"traksense/{route.path}/{kind}", b"%d" % number, datetime.now(UTC)
    message = Message(topic, payload, 1, number, 1, redelivered=False, received_at=now, route=route)
    rejection = Rejection(Reason.PARSE_ERROR, "bad") if bad else None
    return Delivery(message, list(items), sum(isinstance(item, Telemetry) for item in items), rejection)


def known_device() -> Delivery:
    """Telemetry of a device that is in the dictionary, once `prime` was called."""
    return _delivery(Kind.TELEM, Telemetry(datetime.now(UTC), [Point("p", 1.0)]), device="known")


def new_device() -> Delivery:
    """Telemetry with a point, a unit and a meta object that are all new."""
    number = next(_numbers)
    telemetry = Telemetry(datetime.now(UTC), [Point("p", 1.0, u="V")], b'{"n": %d}' % number)
    return _delivery(Kind.TELEM, telemetry, device=f"new-{number}")


def ack() -> Delivery:
    """An acknowledgement of a command."""
    return _delivery(Kind.ACK, CommandAck(str(next(_numbers)), True, b"{}", datetime.now(UTC)), device="known")


def event() -> Delivery:
    """An event."""
    return _delivery(Kind.EVENT, Event("door", datetime.now(UTC), str(next(_numbers))), device="known")


def dead_letter() -> Delivery:
    """A message that nobody could read."""
    return _delivery(Kind.TELEM, device="known", bad=True)


KINDS: Final[tuple[Callable[[], Delivery], ...]] = (known_device, new_device, ack, event, dead_letter)


async def refusal(store: Store) -> str:
    """The first kind of which a message is not stored now, and why; empty if all are. Trio-flavored."""
    for kind in KINDS:
        try:
            await store.write([kind()])
        except (StoreUnavailableError, StoreMisconfiguredError) as error:
            return f"{kind.__name__}: {error}"
        except StoreError as error:
            raise AssertionError(f"{kind.__name__} would become a dead letter") from error
    return ""
