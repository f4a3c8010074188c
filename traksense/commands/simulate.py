"""`traksense simulate`: a realistic fleet on the broker that the environment names."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("v1", "parsec", "je02", "senml", "sensors", "mixed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fleet, its rate and its faults."""
    parser.epilog = (
        "Publishes to MQTT_URL until --seconds, --messages or Ctrl-C, waits until the broker has confirmed everything, and "
        "says what it confirmed. Exit status 1 if something was never confirmed."
    )
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--tenants", type=_count, default=3, metavar="N", help="tenants (default: 3)")
    fleet.add_argument("--devices", type=_count, default=20, metavar="N", help="devices of each tenant (default: 20)")
    fleet.add_argument(
        "--points", type=_count, default=10, metavar="N", help="points a message; parsec has 3 and je02 8 (default: 10)"
    )
    fleet.add_argument("--format", choices=FORMATS, default="mixed", help="payload format (default: mixed)")
    fleet.add_argument("--tenant-prefix", type=_name, default="sim-", metavar="TEXT", help="of each tenant (default: sim-)")
    fleet.add_argument("--seed", type=int, metavar="N", help="the same fleet again, apart from timestamps (default: random)")
    fleet.add_argument(
        "--start-hour",
        type=_hour,
        metavar="H",
        help="hour of the day at which the fleet starts, 0-24 (default: now; 10 with --seed)",
    )
    fleet.add_argument(
        "--speed", type=_positive, default=1.0, metavar="X", help="how many times faster than life signals run (default: 1)"
    )
    amount = parser.add_argument_group("rate and amount")
    amount.add_argument(
        "--rate", type=_rate, default=1000.0, metavar="N", help="points a second in total; 0: what is possible (default: 1000)"
    )
    amount.add_argument("--seconds", type=_positive, metavar="N", help="stop after so long")
    amount.add_argument("--messages", type=_count, metavar="N", help="stop after so many messages")
    amount.add_argument("--qos", type=int, choices=(0, 1), default=1, help="0 is never confirmed (default: 1)")
    amount.add_argument("--window", type=_window, default=200, metavar="N", help="unconfirmed messages at most (default: 200)")
    faults = parser.add_argument_group("faults, in percent of the messages")
    faults.add_argument("--duplicates", type=_percent, default=0.0, metavar="%", help="published twice")
    faults.add_argument("--disorder", type=_percent, default=0.0, metavar="%", help="published after later ones of the device")
    faults.add_argument("--bad", type=_percent, default=0.0, metavar="%", help="unacceptable, in every known way")
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Publish, and say what was confirmed."""
    import os

    import trio

    from traksense import config
    from traksense.tools.simulate import simulate

    return trio.run(simulate, arguments, config.load(os.environ))


def _number(text: str, low: float, high: float, what: str, cast: Callable[[str], float] = float) -> float:
    try:
        value = cast(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
    return value


def _count(text: str) -> int:
    return int(_number(text, 1, 1_000_000_000, "a whole number from 1 up", int))


def _window(text: str) -> int:
    return int(_number(text, 1, 65_534, "a whole number, 1-65534", int))


def _rate(text: str) -> float:
    return _number(text, 0, 1e9, "a number, 0 or more")


def _positive(text: str) -> float:
    return _number(text, 1e-3, 1e9, "a number above 0")


def _percent(text: str) -> float:
    return _number(text, 0, 100, "a percentage, 0-100")


def _hour(text: str) -> float:
    return _number(text, 0, 24, "an hour, 0-24")


def _name(text: str) -> str:
    if set(text) & set("/+#\x00") or len(text) > 100:
        raise argparse.ArgumentTypeError(f"must be at most 100 characters without / + #, not {text!r}")
    return text
