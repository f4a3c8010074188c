"""A store in memory, for tests of the pipeline; it passes the same contract suite as the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from traksense.errors import DataRefusedError, DeliveriesRefusedError
from traksense.ingest.ports import WriteResult
from traksense.model import CommandAck, Event, Reason, Rejection, Telemetry
from traksense.names import canonical_point, canonical_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from traksense.model import Delivery, Route

POISON = "poison"
"""A point with this text is refused by the store, as a real database refuses what it cannot store."""

CONFLICT = Rejection(Reason.CONFLICTING_VALUE, "")
"""Without the words of the real one."""


class MemoryStore:
    """Keeps rows in dictionaries by the keys that the schema makes unique.

    Attributes:
        fault: Called with each batch before anything is stored; may raise what a test wants the store to raise.
        devices: If set, only these `tenant/site/device` are known (strict provisioning).
        writes: How many transactions were tried.
    """

    def __init__(self) -> None:
        self.measures: dict[tuple[Any, ...], Any] = {}
        self.acks: dict[tuple[str, str, str], CommandAck] = {}
        self.events: dict[tuple[Any, ...], Event] = {}
        self.errors: dict[tuple[str, bytes], Rejection] = {}
        self.fault: Callable[[Sequence[Delivery]], None] = lambda _batch: None
        self.probe_fault: Callable[[], None] = lambda: None
        self.devices: set[str] | None = None
        self.writes = 0

    async def probe(self) -> None:
        """See ports.Store.probe."""
        await trio.lowlevel.checkpoint()
        self.probe_fault()

    async def write(self, batch: Sequence[Delivery]) -> WriteResult:
        """See ports.Store.write."""
        await trio.lowlevel.checkpoint()
        self.writes += 1
        self.fault(batch)
        self._refuse(batch)
        stored = duplicate = conflicting = 0
        duplicates = set()
        rejected = {}
        for index, delivery in enumerate(batch):
            if delivery.rejection is not None:
                self.errors[(delivery.message.topic, delivery.message.payload)] = delivery.rejection
            fresh = differing = 0
            for item in delivery.items:
                assert delivery.message.route is not None
                if isinstance(item, Telemetry):
                    new, same = self._measure(item, delivery.message.route)
                    fresh += new
                    stored += new
                    duplicate += same
                    differing += len(item.points) - new - same
                elif isinstance(item, CommandAck):
                    fresh += self._ack(item, delivery.message.route)
                else:
                    new_event, same_event = self._event(item, delivery.message.route)
                    fresh += new_event
                    if not same_event:
                        rejected[index] = CONFLICT
            conflicting += differing
            if differing:
                rejected[index] = CONFLICT
            if delivery.items and not fresh:
                duplicates.add(index)
        return WriteResult(stored, duplicate, conflicting, frozenset(duplicates), rejected)

    def _refuse(self, batch: Sequence[Delivery]) -> None:
        unknown = {
            index: Rejection(Reason.UNKNOWN_DEVICE, "not registered")
            for index, d in enumerate(batch)
            if self.devices is not None and d.items and d.message.route and d.message.route.path not in self.devices
        }
        if unknown:
            raise DeliveriesRefusedError(unknown)
        for delivery in batch:
            for item in delivery.items:
                if isinstance(item, Telemetry) and any(point.v == POISON for point in item.points):
                    raise DataRefusedError("refused", "22021")

    def _measure(self, item: Telemetry, route: Route) -> tuple[int, int]:
        new = same = 0
        for point in item.points:
            key = (route.path, canonical_point(point.name), canonical_unit(point.u), item.ts)
            if key not in self.measures:
                self.measures[key] = point.v
                new += 1
            else:
                same += self.measures[key] == point.v
        return new, same

    def _ack(self, ack: CommandAck, route: Route) -> bool:
        key = (route.tenant, route.device, ack.cmd_id)
        old = self.acks.get(key)
        if old is None or old.ts_exec is None or (ack.ts_exec is not None and ack.ts_exec >= old.ts_exec):
            self.acks[key] = ack
        return old is None

    def _event(self, event: Event, route: Route) -> tuple[bool, bool]:
        identity = (event.event_id,) if event.event_id is not None else (event.event_type, event.ts)
        key = (route.path, *identity)
        new = key not in self.events
        return new, self.events.setdefault(key, event) == event or event.id_of_content
