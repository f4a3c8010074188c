"""Who publishes when: an endless sequence of publications, all of which follow from one seed.

With a rate, the devices take turns evenly and everything has a time at which it is due, in seconds from the start.
Without one, they take turns as fast as they are asked. Duplicates and delayed messages wait for a number of turns, not
of seconds, so the sequence does not depend on how fast it is taken.
"""

from __future__ import annotations

import heapq
import itertools
from random import Random
from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.model import Kind
from traksense.tools.fleet import faults
from traksense.tools.fleet.devices import make_device, tenant_names
from traksense.tools.fleet.formats import FIXED_POINTS, Format
from traksense.tools.fleet.signals import HOUR

if TYPE_CHECKING:
    from traksense.tools.fleet.devices import Device
    from traksense.tools.fleet.faults import Fault

UNPACED_STEP: Final = 10.0
"""Model time between two samples of a device when there is no rate, in seconds."""


def _share(_instance: Any, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be 0-1, not {value}")


@attrs.frozen(kw_only=True)
class FleetOptions:
    """What the fleet is like.

    Attributes:
        tenants: How many.
        devices: For each tenant.
        points: In each message, for formats that leave that open.
        rate: Points a second of the whole fleet; 0 is as fast as possible.
        format: Of all devices; None mixes them.
        bad: Share (0-1) of the messages that nobody should accept.
        duplicates: Share of the messages that are sent twice.
        disorder: Share of the messages that are sent after later ones of their device.
        seed: Everything but the timestamps follows from it and from `start_hour`.
        start_hour: The hour of the day at which the fleet's day starts.
        speed: Model seconds in a second.
        tenant_prefix: Of all tenants' names.
    """

    tenants: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    devices: int = attrs.field(default=20, validator=attrs.validators.ge(1))
    points: int = attrs.field(default=10, validator=attrs.validators.ge(1))
    rate: float = attrs.field(default=600.0, validator=attrs.validators.ge(0))
    format: Format | None = None
    bad: float = attrs.field(default=0.0, validator=_share)
    duplicates: float = attrs.field(default=0.0, validator=_share)
    disorder: float = attrs.field(default=0.0, validator=_share)
    seed: int = 0
    start_hour: float = 10.0
    speed: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    tenant_prefix: str = "sim-"


@attrs.frozen(eq=False)
class Publication:
    """One message of the fleet.

    Attributes:
        topic, payload: What to publish.
        kind: What the topic says.
        points: How many it brings; 0 if it is no telemetry or has a fault.
        format: The format of telemetry, else None.
        fault: What is wrong with it, or None.
        repeat: It was published before.
        late: It was held back until its device had, as a rule, published again.
    """

    topic: str
    payload: bytes
    kind: Kind
    points: int = 0
    format: Format | None = None
    fault: Fault | None = None
    repeat: bool = False
    late: bool = False


class Fleet:
    """The devices and their turns."""

    def __init__(self, options: FleetOptions) -> None:
        self.options = options
        self.tenants = tenant_names(options.tenants, options.tenant_prefix)
        self._random = Random(options.seed)  # noqa: S311  (a simulation)
        self._number = 0
        self._held: list[tuple[int, int, Publication]] = []
        self._order = itertools.count()
        self._devices = [
            make_device(
                tenant,
                index,
                format_=options.format,
                points=options.points,
                seed=options.seed,
                start=options.start_hour * HOUR,
            )
            for index in range(options.devices)
            for tenant in self.tenants
        ]
        self._intervals = self._make_intervals()
        self._turns = self._first_turns()

    @property
    def devices(self) -> int:
        """How many there are."""
        return len(self._devices)

    @property
    def paths(self) -> list[str]:
        """The "tenant/site/device" of each."""
        return [device.path for device in self._devices]

    @property
    def due(self) -> float:
        """When the next publication is due, in seconds from the start; 0 without a rate."""
        if not self.options.rate or self._is_held_due():
            return 0.0
        return self._turns[0][0]

    def next(self, ts: float) -> Publication | None:
        """The next publication; None if the device's message is held back.

        Args:
            ts: Unix seconds, for its timestamps: when it is due or, without a rate, now.
        """
        if self._is_held_due():
            return heapq.heappop(self._held)[2]
        self._number += 1
        due, index = self._turns[0]
        heapq.heapreplace(self._turns, (due + self._intervals[index], index))
        device = self._devices[index]
        if self._random.random() < self.options.bad:
            return self._bad(device, ts)
        return self._good(
            device, ts, self.options.speed * (self._intervals[index] if self.options.rate else UNPACED_STEP)
        )

    def _bad(self, device: Device, ts: float) -> Publication:
        fault = faults.choose(self._random)
        topic, payload = faults.make(fault, device.path, self._number, ts)
        return Publication(topic, payload, Kind.TELEM, fault=fault)

    def _good(self, device: Device, ts: float, step: float) -> Publication | None:
        payload, points, others = device.telemetry(ts, step)
        telemetry = Publication(f"traksense/{device.path}/{Kind.TELEM}", payload, Kind.TELEM, points, device.format)
        for kind, topic_kind, other in others:
            self._hold(0, Publication(f"traksense/{device.path}/{topic_kind}", other, kind))
        chance = self._random.random()
        if chance < self.options.duplicates:
            self._hold(self._random.randint(1, 2 * self.devices), attrs.evolve(telemetry, repeat=True))
        elif chance < self.options.duplicates + self.options.disorder:
            # Long enough for the device to have published again.
            self._hold(self._random.randint(self.devices + 1, 3 * self.devices), attrs.evolve(telemetry, late=True))
            return None
        return telemetry

    def _hold(self, turns: int, publication: Publication) -> None:
        heapq.heappush(self._held, (self._number + turns, next(self._order), publication))

    def _is_held_due(self) -> bool:
        return bool(self._held) and self._held[0][0] <= self._number

    def _make_intervals(self) -> list[float]:
        """Seconds between two messages of each device; without a rate, anything equal makes them take turns."""
        options = self.options
        points = [FIXED_POINTS.get(device.format, options.points) for device in self._devices]
        usual = sum(points) / options.rate if options.rate else 1.0
        # TS of a JE02 has whole seconds, so it cannot publish twice in one; the others make up for it.
        whole = max(1.0, float(round(usual)))
        whole_points = sum(n for n, device in zip(points, self._devices, strict=True) if device.format is Format.JE02)
        rest = options.rate - whole_points / whole
        if rest > 0 and sum(points) > whole_points:
            usual = (sum(points) - whole_points) / rest
        return [whole if device.format is Format.JE02 else usual for device in self._devices]

    def _first_turns(self) -> list[tuple[float, int]]:
        """Spread evenly over the first interval, but for devices that know only whole seconds."""
        devices = zip(self._devices, self._intervals, strict=True)
        turns = [
            (0.0 if device.format is Format.JE02 else interval * index / self.devices, index)
            for index, (device, interval) in enumerate(devices)
        ]
        heapq.heapify(turns)
        return turns
