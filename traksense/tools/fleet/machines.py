"""The machines of the fleet: model time in, samples out.

Each is a small state machine with physics from `signals`. The order of its samples is the order of importance: a device
that sends fewer points sends the first ones; one that sends more has auxiliary analog inputs at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from traksense.tools.fleet.signals import DAY, HOUR, Episode, Thermostat, Wander, approach, daily, sunlight

if TYPE_CHECKING:
    from random import Random

    from traksense.model import Value, ValueType

MINUTE: Final = 60.0


class Sample(NamedTuple):
    """One value of one point, as the device means it."""

    name: str
    type: ValueType
    value: Value
    unit: str | None = None


class Machine(Protocol):
    """What a device measures.

    Attributes:
        alarms: Names of the boolean points that make an event when they become true.
    """

    alarms: frozenset[str]

    def sample(self, at: float) -> list[Sample]:
        """The values at this model time, in seconds; times must not go backwards."""
        ...


class _Clocked:
    def __init__(self, random: Random, at: float) -> None:
        self._random = random
        self._at = at

    def _elapsed(self, at: float) -> float:
        elapsed, self._at = max(at - self._at, 0.001), at
        return elapsed

    def _noisy(self, value: float, deviation: float, digits: int = 2) -> float:
        return round(value + self._random.gauss(0.0, deviation), digits)


class Chiller(_Clocked):
    """A water chiller: two compressors hold the water at 7 °C against a load that follows the day."""

    alarms = frozenset({"alarm_high_temp"})

    def __init__(self, random: Random, at: float) -> None:
        super().__init__(random, at)
        self._size = random.uniform(0.8, 1.3)
        self._water = random.uniform(6.2, 7.8)
        self._stages = (Thermostat(7.0, 0.6, random.random() < 0.5), Thermostat(7.9, 0.6))
        self._load = Wander(0.12, 20 * MINUTE)
        self._trip = Episode(7 * HOUR, 15 * MINUTE)
        self._hours = random.uniform(500, 20_000)

    def sample(self, at: float) -> list[Sample]:
        """See the module."""
        elapsed = self._elapsed(at)
        ambient = daily(at, 23.0, 6.0)
        load = max(0.2, 0.55 + 0.03 * (ambient - 23.0) + self._load.step(elapsed, self._random))
        tripped = self._trip.step(at, elapsed, self._random)
        running = [stage.step(self._water) and not tripped for stage in self._stages]
        cooling = sum(running)
        self._water = approach(self._water, 9.5 + 3.0 * load - 5.0 * cooling, elapsed, 12 * MINUTE)
        self._hours += running[0] * elapsed / HOUR
        power = self._noisy(self._size * (1.2 + 18.0 * cooling * (1 + 0.01 * (ambient - 23.0))), 0.15)
        return [
            Sample("temp_agua", "float", self._noisy(self._water, 0.04), "°C"),
            Sample("compressor_1_on", "bool", running[0]),
            Sample("power", "num", power, "kW"),
            Sample("state", "enum", "TRIPPED" if tripped else ("IDLE", "COOLING", "FULL")[cooling]),
            Sample("temp_return", "float", self._noisy(self._water + 5.0 * load, 0.06), "°C"),
            Sample("compressor_2_on", "bool", running[1]),
            Sample("current", "num", round(power * 1.72, 2), "A"),
            Sample("alarm_high_temp", "bool", self._water > 9.6),
            Sample("pressure_high", "float", self._noisy(11.0 + 0.18 * ambient + 2.2 * cooling, 0.08), "bar"),
            Sample("temp_ambient", "float", self._noisy(ambient, 0.1), "°C"),
            Sample("flow", "float", self._noisy(self._size * 12.5, 0.12), "m³/h"),
            Sample("run_hours", "int", int(self._hours), "h"),
        ]


class ColdRoom(_Clocked):
    """A cold room: a compressor that cycles, a door that people open, a defrost every few hours."""

    alarms = frozenset({"door_alarm"})

    def __init__(self, random: Random, at: float) -> None:
        super().__init__(random, at)
        setpoint = random.choice((-20.0, -18.0, 2.0, 4.0))
        self._room = setpoint + random.uniform(-0.8, 0.8)
        self._thermostat = Thermostat(setpoint, 0.9, random.random() < 0.5)
        self._door = Episode(25 * MINUTE, 2 * MINUTE)
        self._defrost = Episode(6 * HOUR, 15 * MINUTE)

    def sample(self, at: float) -> list[Sample]:
        """See the module."""
        elapsed = self._elapsed(at)
        setpoint = self._thermostat.setpoint
        ambient = daily(at, 22.0, 4.0)
        door = self._door.step(at, elapsed, self._random)
        defrost = self._defrost.step(at, elapsed, self._random)
        running = self._thermostat.step(self._room) and not defrost
        # Through the walls it would drift to 12 K above its setpoint, with an open door far higher.
        target = setpoint + (26.0 if door else 12.0) - (22.0 if running else 0.0)
        self._room = approach(self._room, target, elapsed, 55 * MINUTE)
        power = self._noisy((4.4 if running else 0.25) + (2.8 if defrost else 0.0), 0.05)
        evaporator = self._room - 7.5 if running else self._room + (6.0 if defrost else -0.8)
        return [
            Sample("temp_room", "float", self._noisy(self._room, 0.05), "°C"),
            Sample("compressor_1_on", "bool", running),
            Sample("door_open", "bool", door),
            Sample("state", "enum", "DEFROST" if defrost else "COOLING" if running else "IDLE"),
            Sample("power", "num", max(0.0, power), "kW"),
            Sample("temp_evaporator", "float", self._noisy(evaporator, 0.12), "°C"),
            Sample("door_alarm", "bool", self._door.duration(at) > 3 * MINUTE),
            Sample("humidity", "float", self._noisy(82.0 + 8.0 * door - 4.0 * running, 0.4, 1), "%"),
            Sample("temp_ambient", "float", self._noisy(ambient, 0.1), "°C"),
            Sample("setpoint", "num", setpoint, "°C"),
        ]


class SolarInverter(_Clocked):
    """A photovoltaic inverter: power in a bell over the day, with clouds, and nothing at night."""

    alarms = frozenset({"alarm_grid"})

    def __init__(self, random: Random, at: float) -> None:
        super().__init__(random, at)
        self._rated = random.choice((20.0, 50.0, 60.0))
        self._clouds = Wander(0.35, 8 * MINUTE)
        self._grid = Episode(9 * HOUR, 4 * MINUTE)
        self._module = daily(at, 21.0, 7.0)
        self._energy = 0.0
        self._day = int(at // DAY)

    def sample(self, at: float) -> list[Sample]:
        """See the module."""
        elapsed = self._elapsed(at)
        clear = sunlight(at)
        light = clear * (1 - 0.75 * min(1.0, abs(self._clouds.step(elapsed, self._random))))
        fault = self._grid.step(at, elapsed, self._random)
        working = light > 0.01 and not fault
        power = (
            min(self._rated, max(0.0, self._noisy(self._rated * 0.97 * light, 0.004 * self._rated))) if working else 0.0
        )
        if int(at // DAY) != self._day:
            self._day, self._energy = int(at // DAY), 0.0
        self._energy += power * elapsed / HOUR
        self._module = approach(self._module, daily(at, 21.0, 7.0) + 28.0 * light, elapsed, 10 * MINUTE)
        voltage = self._noisy(590.0 + 45.0 * light, 1.5, 1) if light > 0.01 else 0.0
        return [
            Sample("ac_power", "float", power, "kW"),
            Sample("state", "enum", "FAULT" if fault else "MPPT" if working else "SLEEP"),
            Sample("energy_today", "num", round(self._energy, 3), "kWh"),
            Sample("irradiance", "float", max(0.0, self._noisy(1020.0 * light, 3.0, 1)), "W/m²"),
            Sample("temp_module", "float", self._noisy(self._module, 0.15), "°C"),
            Sample("dc_voltage", "float", voltage, "V"),
            Sample("dc_current", "float", round(power * 1030 / voltage, 2) if voltage else 0.0, "A"),
            Sample("alarm_grid", "bool", fault),
            Sample("grid_frequency", "float", self._noisy(60.0, 0.012, 3), "Hz"),
            Sample("grid_voltage", "float", self._noisy(382.0, 0.9, 1), "V"),
        ]


class Drive(_Clocked):
    """A motor inverter seen through two digital inputs: it runs, it has a fault."""

    alarms: frozenset[str] = frozenset()

    def __init__(self, random: Random, at: float) -> None:
        super().__init__(random, at)
        self._run = Episode(12 * MINUTE, 35 * MINUTE, active=random.random() < 0.7)
        self._fault = Episode(8 * HOUR, 3 * MINUTE)
        self._signal = Wander(4.0, 30 * MINUTE)
        self._booted_at = at
        self._errors = 0

    def sample(self, at: float) -> list[Sample]:
        """See the module."""
        elapsed = self._elapsed(at)
        fault = self._fault.step(at, elapsed, self._random)
        run = self._run.step(at, elapsed, self._random) and not fault
        self._errors += fault
        ambient = daily(at, 24.0, 5.0)
        return [
            Sample("run", "bool", run),
            Sample("fault", "bool", fault),
            Sample("rssi", "int", round(-66 + self._signal.step(elapsed, self._random)), "dBm"),
            Sample("temp", "float", self._noisy(ambient + 14.0 * run, 0.3, 1), "°C"),
            Sample("humidity", "float", self._noisy(55.0 - 0.8 * (ambient - 24.0), 0.5, 1), "%"),
            Sample("rele", "bool", run),
            Sample("cntserr", "int", self._errors),
            Sample("uptime", "int", int(at - self._booted_at), "s"),
        ]


class Climate(_Clocked):
    """A radio sensor with probes: air temperature and humidity, then further temperatures nearby."""

    alarms: frozenset[str] = frozenset()

    def __init__(self, random: Random, at: float) -> None:
        super().__init__(random, at)
        self._offset = random.uniform(-1.5, 1.5)
        self._signal = Wander(5.0, 30 * MINUTE)
        self._weather = Wander(1.2, 2 * HOUR)

    def sample(self, at: float) -> list[Sample]:
        """See the module."""
        elapsed = self._elapsed(at)
        air = daily(at, 22.5, 5.5) + self._offset + self._weather.step(elapsed, self._random)
        return [
            Sample("rssi", "int", round(-72 + self._signal.step(elapsed, self._random)), "dBm"),
            Sample("temp", "float", self._noisy(air, 0.06), "°C"),
            Sample("humidity", "float", self._noisy(min(98.0, 62.0 - 2.1 * (air - 22.5)), 0.4, 1), "%"),
        ]


class Extended:
    """A machine with exactly so many points: the first ones of another, or all of them and analog inputs."""

    def __init__(self, machine: Machine, points: int, random: Random) -> None:
        self.alarms = machine.alarms
        self._machine = machine
        self._points = points
        self._random = random
        self._inputs: list[tuple[str, float, Wander]] = []
        self._at: float | None = None

    def sample(self, at: float) -> list[Sample]:
        """See the module."""
        samples = self._machine.sample(at)
        missing = self._points - len(samples)
        if missing <= 0:
            return samples[: self._points]
        while len(self._inputs) < missing:
            name = f"input_{len(self._inputs) + 1:02}"
            self._inputs.append((name, self._random.uniform(4.0, 20.0), Wander(0.8, HOUR)))
        elapsed = at - self._at if self._at is not None else MINUTE
        self._at = at
        samples += [
            Sample(name, "num", round(centre + wander.step(elapsed, self._random), 3), "mA")
            for name, centre, wander in self._inputs
        ]
        return samples
