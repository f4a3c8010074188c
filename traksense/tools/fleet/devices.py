"""One device of the fleet: where it is, what it is, and what it has to say beside its telemetry."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs

from traksense.model import Kind
from traksense.tools.fleet import formats
from traksense.tools.fleet.formats import Format

if TYPE_CHECKING:
    from traksense.tools.fleet.machines import Machine, Sample

TENANTS: Final = ("acme", "borealis", "cerrado", "dunas", "estrela", "frigor", "granja", "horizonte")
SITES: Final = ("plant-north", "plant-south", "warehouse")

ROSTER: Final = (
    (Format.V1, "chiller"),
    (Format.V1, "coldroom"),
    (Format.V1, "solar"),
    (Format.PARSEC, "parsec"),
    (Format.V1, "coldroom"),
    (Format.SENML, "khomp"),
    (Format.V1, "chiller"),
    (Format.JE02, "je02"),
    (Format.V1, "solar"),
    (Format.SENSORS, "gateway"),
)
"""The devices of a tenant, in turn, when all formats are mixed."""

MICROSECONDS: Final = 1_000_000
ACKNOWLEDGE_SHARE: Final = 0.003
ERRORS: Final = ("valve stuck", "setpoint out of range", "timeout on the bus")


class Other(NamedTuple):
    """Something that is no telemetry: what it becomes, the kind in its topic, and its payload."""

    kind: Kind
    topic_kind: Kind
    payload: bytes


@attrs.define(eq=False)
class Device:
    """See the module.

    Attributes:
        path: "tenant/site/device".
        format: How it writes telemetry.
    """

    path: str
    format: Format
    _machine: Machine
    _random: Random
    _at: float
    _last_ts: int = 0
    _booted: bool = False
    _alarms: set[str] = attrs.field(factory=set)

    @property
    def name(self) -> str:
        """The device's own name."""
        return self.path.rpartition("/")[2]

    def telemetry(self, ts: float, step: float) -> tuple[bytes, int, list[Other]]:
        """Its next telemetry: the payload, how many points it has, and what else the device publishes now.

        Args:
            ts: Unix seconds; moved ahead by a microsecond if the device had that time before.
            step: Model seconds since its last telemetry.
        """
        # In whole microseconds, what a database keeps; two floats so close could be rounded to the same one.
        self._last_ts = max(round(ts * MICROSECONDS), self._last_ts + 1)
        ts = self._last_ts / MICROSECONDS
        self._at += step
        samples = self._machine.sample(self._at)
        payload, points = formats.encode(self.format, self.name, ts, samples)
        return payload, points, self._others(ts, samples)

    def _others(self, ts: float, samples: list[Sample]) -> list[Other]:
        others: list[Other] = []
        if not self._booted:
            self._booted = True
            if self.format is Format.JE02:
                # It goes where its telemetry goes, but becomes an event.
                others.append(Other(Kind.EVENT, Kind.TELEM, formats.je02_information(self.name, ts)))
            else:
                others.append(self._event(ts, "boot", {"reason": "power_on", "fw": "1.2.3"}))
        active = {s.name for s in samples if s.name in self._machine.alarms and s.value is True}
        others += [self._event(ts, "alarm", {"point": name, "value": True}) for name in sorted(active - self._alarms)]
        self._alarms = active
        if self._random.random() < ACKNOWLEDGE_SHARE:
            err = self._random.choice(ERRORS) if self._random.random() < 0.15 else None
            payload = formats.acknowledgement(ts, formats.ulid(ts, self._random), err)
            others.append(Other(Kind.ACK, Kind.ACK, payload))
        return others

    def _event(self, ts: float, event_type: str, data: dict[str, object]) -> Other:
        return Other(Kind.EVENT, Kind.EVENT, formats.event(ts, formats.ulid(ts, self._random), event_type, data))


def make_device(tenant: str, index: int, *, format_: Format | None, points: int, seed: int, start: float) -> Device:
    """The device with this index among those of its tenant.

    Args:
        tenant: Its tenant.
        index: From 0.
        format_: Its format, or None for the next one of the roster.
        points: How many points it sends, if its format leaves that open.
        seed: Whatever it does follows from this, its tenant and its index.
        start: Model time of the start.
    """
    roster = ROSTER if format_ is None else [entry for entry in ROSTER if entry[0] is format_]
    chosen, model = roster[index % len(roster)]
    path = f"{tenant}/{SITES[index // len(ROSTER) % len(SITES)]}/{model}-{index + 1:02}"
    random = Random(f"{seed}/{path}")  # noqa: S311  (a simulation)
    return Device(path, chosen, formats.machine(chosen, model, points, random, start), random, start)


def tenant_names(count: int, prefix: str) -> list[str]:
    """So many tenants: the prefix and a name."""
    return [f"{prefix}{TENANTS[i] if i < len(TENANTS) else f'tenant-{i + 1}'}" for i in range(count)]
