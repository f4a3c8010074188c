"""What is remembered of a device: which points it has, and how the rows of each of them begin."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Final, TypeAlias

import attrs

from traksense.memory import shares
from traksense.store.packing import HEAD_BYTES, series_of

POINT_BYTES: Final = 400
POINT_NAMES_BYTES: Final = 135
"""What a point takes, head and dictionaries included; and its names, if they are `temperature` and `°C`."""

DEVICE_BYTES: Final = 300
DEVICE_NAMES_BYTES: Final = 80
"""What a device takes that shares its points with others; and its path, of 30 characters."""

PointKey: TypeAlias = tuple[str, str | None]
"""A point within its device, as the device writes it: its name and its unit."""


@attrs.frozen(eq=False)
class Layout:
    """Which points a device has, and where in its `heads`. Devices with the same points share one: a fleet of 100,000
    devices would otherwise keep as many dictionaries, and look into each of them once, when it is in no cache.

    Attributes:
        keys: The points in the order of the heads.
        shares: How many points these count for (`memory.shares`).
        places: Where the head of a point begins, by its unit and its name. (One dictionary in the other: a tuple for
            each point that comes would take a third of what packing it does.)
    """

    keys: tuple[PointKey, ...] = ()
    shares: int = attrs.field(init=False, default=0)
    places: dict[str | None, dict[str, int]] = attrs.field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        points = sum(shares(POINT_BYTES, POINT_NAMES_BYTES, name, unit or "") for name, unit in self.keys)
        object.__setattr__(self, "shares", points)
        for number, (name, unit) in enumerate(self.keys):
            self.places.setdefault(unit, {})[name] = number * HEAD_BYTES

    def has(self, key: PointKey) -> bool:
        """Whether it is one of the points."""
        name, unit = key
        return name in self.places.get(unit, ())


NO_POINTS: Final = Layout()


@attrs.define(eq=False)
class Device:
    """What is cached of one device.

    Attributes:
        layout: Its points.
        heads: How the rows of each of its series begin (`packing.pack_head`), one behind the other.
        novel_meta: How many new `meta` objects it has added to the dictionary.
        used: Whether a batch has asked for it since room was last made.
    """

    layout: Layout = NO_POINTS
    heads: bytes = b""
    novel_meta: int = 0
    used: bool = True

    def names(self) -> dict[int, str]:
        """What its series are called, by their numbers."""
        return {
            series_of(self.heads[place : place + HEAD_BYTES]): name if unit is None else f"{name} ({unit})"
            for place, (name, unit) in zip(count(step=HEAD_BYTES), self.layout.keys, strict=False)
        }


def device_shares(path: str) -> int:
    """How many devices one counts for (`memory.shares`)."""
    return shares(DEVICE_BYTES, DEVICE_NAMES_BYTES, path)


def forget_some(remembered: dict[str, Device], devices: int, points: int) -> None:
    """Forget so many devices, of those that have not been used since this was last needed; or, where there are too many
    points only, devices with so many.

    Args:
        remembered: By their paths.
        devices: How many devices to forget.
        points: How many points; devices that share them count for a part each.
    """
    sharers = Counter(device.layout for device in remembered.values())
    taken = {path: device.layout.shares / sharers[device.layout] for path, device in remembered.items()}
    paths = [*remembered, *remembered]
    if not devices:
        # Those that take the most, used or not: who makes names up does so at nobody else's cost.
        paths = sorted(taken, key=taken.__getitem__, reverse=True)
    left = float(points)
    for path in paths:
        known = remembered.pop(path, None)
        if known is not None and known.used and devices > 0:
            known.used = False
            remembered[path] = known
        elif known is not None:
            devices -= device_shares(path)
            left -= taken[path]
            if devices <= 0 and left <= 0:
                return
