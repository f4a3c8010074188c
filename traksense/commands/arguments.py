"""Types of command-line arguments: text to a checked value, or one line that says what it must be."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from traksense.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST: Final = 1_000_000_000

FLEET_MAX: Final = 100_000
"""Devices of a simulated fleet, of all tenants together."""


_DECIMAL: Final = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+", re.ASCII)
"""Python reads more than people write: digits of every script, `1_000`, and `1e-400`, which is zero."""

SECONDS_MAX: Final = 3600.0


def count(text: str) -> int:
    """A whole number, 1-`LARGEST`."""
    return int(_number(text, 1, LARGEST, f"a whole number, 1-{LARGEST}", int))


def window(text: str) -> int:
    """Messages under way: 1 up to as many as there are packet identifiers, less one."""
    return int(_number(text, 1, 65_534, "a whole number, 1-65534", int))


def port(text: str) -> int:
    """A TCP port, 1-65535."""
    return int(_number(text, 1, 65_535, "a port, 1-65535", int))


def rate(text: str) -> float:
    """A number, 0-`LARGEST`."""
    return _number(text, 0, LARGEST, f"a number, 0-{LARGEST}")


def positive(text: str) -> float:
    """A number, 0.001-`LARGEST`."""
    return _number(text, 1e-3, LARGEST, f"a number, 0.001-{LARGEST}")


def seconds(text: str) -> float:
    """A time to wait, 0-`SECONDS_MAX`, in seconds."""
    return _number(text, 0, SECONDS_MAX, f"seconds, 0-{SECONDS_MAX:.0f}")


def patience(text: str) -> float:
    """How long to wait for something, 0.001-`SECONDS_MAX`, in seconds."""
    return _number(text, 1e-3, SECONDS_MAX, f"seconds, 0.001-{SECONDS_MAX:.0f}")


def seed(text: str) -> int:
    """Where a random sequence begins, 0-`LARGEST`."""
    return int(_number(text, 0, LARGEST, f"a whole number, 0-{LARGEST}", int))


def percent(text: str) -> float:
    """A percentage, 0-100."""
    return _number(text, 0, 100, "a percentage, 0-100")


def hour(text: str) -> float:
    """An hour of the day, 0-24."""
    return _number(text, 0, 24, "an hour, 0-24")


def points(text: str) -> int:
    """Points of a message, 1 up to ten times what the service takes by default."""
    return int(_number(text, 1, 100_000, "a whole number, 1-100000", int))


def path(text: str) -> Path:
    """A file or directory; the empty text, such as of a variable that is not set, would be the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def topic_level(text: str) -> str:
    """The beginning of a topic level."""
    if set(text) & set("/+#") or len(text) > 100 or not text.isprintable():
        raise argparse.ArgumentTypeError(f"must be at most 100 characters that show, without / + #, not {text!r}")
    return text


def client_id(text: str) -> str:
    """What names a session at the broker. Source: MQTT 5.0 §1.5.4, but for names that nobody chooses."""
    try:
        fits = 1 <= len(text.encode()) <= 65_535
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"must have 1-65535 bytes of UTF-8, not {text[:40]!r}")
    return text


def need_small_fleet(tenants: int, devices: int) -> None:
    """Refuse a fleet that takes minutes and gigabytes to make: some 4 kB and 0.1 ms a device.

    Raises:
        ConfigError: It has more than `FLEET_MAX` devices.
    """
    if tenants * devices > FLEET_MAX:
        raise ConfigError([f"--tenants, --devices: {tenants} x {devices} devices are more than {FLEET_MAX}"])


def _number(text: str, low: float, high: float, what: str, cast: Callable[[str], float] = float) -> float:
    try:
        value = cast(text) if _DECIMAL.fullmatch(text) else float("nan")
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {what}, not {text[:40]!r}")
    return value
