"""Physics in a few lines: the pieces that make simulated signals believable.

Time is model time, in seconds since midnight of the first day; steps may have any length, so everything decays
exponentially instead of by a fixed amount for each step. Randomness comes only from the generator that is passed in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from random import Random

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR

SUNRISE_HOURS: Final = 6.0
SUNSET_HOURS: Final = 18.5
WARMEST_HOURS: Final = 15.0


def daily(at: float, mean: float, amplitude: float) -> float:
    """A daily curve, such as outdoor temperature: lowest at 3 h, highest at 15 h."""
    return mean + amplitude * math.cos(2 * math.pi * (at / HOUR - WARMEST_HOURS) / 24)


def sunlight(at: float) -> float:
    """The share of a clear day's best sunlight, 0 to 1: a bell between sunrise and sunset."""
    hour = at % DAY / HOUR
    if not SUNRISE_HOURS < hour < SUNSET_HOURS:
        return 0.0
    return math.pow(math.sin(math.pi * (hour - SUNRISE_HOURS) / (SUNSET_HOURS - SUNRISE_HOURS)), 1.3)


def approach(value: float, target: float, elapsed: float, time_constant: float) -> float:
    """Where a first-order system is that moves towards a target; `elapsed` and the constant are in seconds."""
    return target + (value - target) * math.exp(-elapsed / time_constant)


@attrs.define
class Wander:
    """Slow noise around zero (an Ornstein-Uhlenbeck process): clouds, load, drift.

    Attributes:
        deviation: Its standard deviation in the long run.
        time_constant: How long it remembers, in seconds.
    """

    deviation: float
    time_constant: float
    value: float = 0.0

    def step(self, elapsed: float, random: Random) -> float:
        """The next value, so many seconds later."""
        kept = math.exp(-elapsed / self.time_constant)
        self.value = self.value * kept + random.gauss(0.0, self.deviation) * math.sqrt(1 - kept * kept)
        return self.value


@attrs.define
class Thermostat:
    """Switches cooling with hysteresis: on above `setpoint + band`, off below `setpoint - band`."""

    setpoint: float
    band: float
    on: bool = False

    def step(self, temperature: float) -> bool:
        """Whether the compressor runs, now that it is so warm."""
        if temperature > self.setpoint + self.band:
            self.on = True
        elif temperature < self.setpoint - self.band:
            self.on = False
        return self.on


@attrs.define
class Episode:
    """Something that happens now and then and lasts a while: an open door, a fault, a defrost.

    Attributes:
        every: Seconds between two of them, on average.
        lasts: How many seconds one lasts, on average.
    """

    every: float
    lasts: float
    active: bool = False
    since: float = 0.0

    def step(self, at: float, elapsed: float, random: Random) -> bool:
        """Whether it is going on."""
        mean = self.lasts if self.active else self.every
        if random.random() < 1 - math.exp(-elapsed / mean):
            self.active = not self.active
            self.since = at
        return self.active

    def duration(self, at: float) -> float:
        """For how many seconds it has been going on; 0 if it is not."""
        return at - self.since if self.active else 0.0
