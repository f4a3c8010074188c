"""Samples to bytes: one encoder for each device format, in the shape that the field's firmware sends.

A format whose devices have a fixed set of points sends those, whatever number of points was asked for.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from traksense.tools.fleet.machines import Chiller, Climate, ColdRoom, Drive, Extended, SolarInverter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from traksense.tools.fleet.machines import Machine, Sample

ULID_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32. Source: github.com/ulid/spec."""

_SENML_UNITS: Final = {"°C": "Cel", "%": "%RH", "dBm": "dBW"}
"""What the gateways write, right or wrong. Source: the project's payload specification."""
_SENSOR_UNITS: Final = {"°C": "celsius", "%": "percent"}

_encode: Final = msgspec.json.Encoder().encode


class Format(enum.StrEnum):
    """How a device writes its telemetry; the names are those of `simulate --format`."""

    V1 = "v1"
    PARSEC = "parsec"
    JE02 = "je02"
    SENML = "senml"
    SENSORS = "sensors"


FIXED_POINTS: Final = {Format.PARSEC: 3, Format.JE02: 8}
"""Formats whose devices always send so many points."""


def timestamp(ts: float) -> str:
    """ISO 8601 with Z, to the microsecond."""
    return datetime.fromtimestamp(ts, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def ulid(ts: float, random: Random) -> str:
    """An identifier that differs between runs, since it holds the time, and repeats with the seed apart from that."""
    number = (int(ts * 1000) << 80) | random.getrandbits(80)
    return "".join(ULID_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def machine(format_: Format, model: str, points: int, random: Random, at: float) -> Machine:
    """The machine behind a device of this format; `model` chooses among those that envelope v1 serves."""
    if format_ in FIXED_POINTS:
        return Drive(random, at)
    if format_ is not Format.V1:
        return Extended(Climate(random, at), points, random)
    models: dict[str, Callable[[Random, float], Machine]] = {
        "chiller": Chiller,
        "coldroom": ColdRoom,
        "solar": SolarInverter,
    }
    return Extended(models[model](random, at), points, random)


def encode(format_: Format, device: str, ts: float, samples: Sequence[Sample]) -> tuple[bytes, int]:
    """The payload, and how many points it brings.

    Args:
        format_: The device's format.
        device: Its name; some formats repeat it.
        ts: Unix seconds of the samples.
        samples: What it measured.
    """
    return _ENCODERS[format_](device, ts, samples)


def event(ts: float, event_id: str, event_type: str, data: dict[str, Any]) -> bytes:
    """An event, v1."""
    return _encode({"schema": "v1", "event_id": event_id, "event_type": event_type, "ts": timestamp(ts), "data": data})


def acknowledgement(ts: float, cmd_id: str, err: str | None) -> bytes:
    """A command acknowledgement, v1."""
    return _encode({"schema": "v1", "cmd_id": cmd_id, "ok": err is None, "ts_exec": timestamp(ts), "err": err})


def je02_information(device: str, ts: float) -> bytes:
    """What a JE02 says of itself after a boot; it becomes an event, known again by its content."""
    information = {"FW_VERSION": "1.2.3", "HW_VERSION": "v1", "DEVICE_ID": device, "MODEL": "JE02-INVERTER"}
    return _encode({"INFO": {**information, "BOOT_TS": round(ts * 1000)}})


def _v1(device: str, ts: float, samples: Sequence[Sample]) -> tuple[bytes, int]:
    points = [
        {"name": s.name, "t": s.type, "v": s.value}
        if s.unit is None
        else {"name": s.name, "t": s.type, "v": s.value, "u": s.unit}
        for s in samples
    ]
    model = device.partition("-")[0]
    return _encode({"schema": "v1", "ts": timestamp(ts), "points": points, "meta": {"fw": "1.2.3", "src": model}}), len(
        points
    )


def _parsec(_device: str, ts: float, samples: Sequence[Sample]) -> tuple[bytes, int]:
    value = _values(samples)
    reading = {
        "di1": int(value["run"]),
        "di2": int(value["fault"]),
        "rssi": value["rssi"],
        "fw": "1.2.3",
        "ts": timestamp(ts),
    }
    return _encode(reading), FIXED_POINTS[Format.PARSEC]


def _je02(_device: str, ts: float, samples: Sequence[Sample]) -> tuple[bytes, int]:
    value = _values(samples)
    data = {
        "TS": int(ts) if ts == int(ts) else ts,
        "INPUT1": int(value["run"]),
        "INPUT2": int(value["fault"]),
        "VAR0": round(value["temp"] * 10),
        "VAR1": round(value["humidity"] * 10),
        "WRSSI": value["rssi"],
        "RELE": int(value["rele"]),
        "CNTSERR": value["cntserr"],
        "UPTIME": value["uptime"],
    }
    return _encode({"DATA": data}), FIXED_POINTS[Format.JE02]


def _senml(device: str, ts: float, samples: Sequence[Sample]) -> tuple[bytes, int]:
    records: list[dict[str, Any]] = [{"bn": device.rpartition("-")[2], "bt": ts}, {"n": "model", "vs": "nit20l"}]
    records += [
        # One sensor measures both, so both are called A; probes have names of their own.
        {
            "n": "A" if s.name in ("temp", "humidity") else s.name,
            "u": _SENML_UNITS.get(s.unit or "", s.unit),
            "v": s.value,
        }
        for s in samples
    ]
    records.append({"n": "gateway", "vs": "000D6FFFFE642E70"})
    return _encode(records), len(samples)


def _sensors(device: str, ts: float, samples: Sequence[Sample]) -> tuple[bytes, int]:
    sensors: list[dict[str, Any]] = [
        {
            "sensor_id": f"{s.name}-01",
            "value": s.value,
            "unit": _SENSOR_UNITS.get(s.unit or "", s.unit),
            "type": "temperature" if s.name == "temp" else s.name.partition("_")[0],
            "labels": {},
        }
        for s in samples
    ]
    return _encode({"device_id": device, "timestamp": timestamp(ts), "sensors": sensors}), len(sensors)


def _values(samples: Sequence[Sample]) -> dict[str, Any]:
    return {s.name: s.value for s in samples}


_ENCODERS: Final[dict[Format, Callable[[str, float, Sequence[Sample]], tuple[bytes, int]]]] = {
    Format.V1: _v1,
    Format.PARSEC: _parsec,
    Format.JE02: _je02,
    Format.SENML: _senml,
    Format.SENSORS: _sensors,
}
