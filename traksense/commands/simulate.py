"""`traksense simulate`: a realistic fleet on the broker that the environment names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from traksense.commands.arguments import (
    count,
    hour,
    need_small_fleet,
    percent,
    points,
    positive,
    rate,
    seed,
    topic_level,
    window,
)

if TYPE_CHECKING:
    import argparse

FORMATS = ("v1", "parsec", "je02", "senml", "sensors", "mixed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fleet, its rate and its faults."""
    parser.epilog = (
        "Publishes to MQTT_URL until --seconds, --messages or Ctrl-C, waits until the broker has confirmed everything, "
        "for 30 seconds at most, and prints what it confirmed. Exit status: 1 if the broker "
        "refused a message or has not confirmed it; those of --bad that are larger than it takes do not count."
    )
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--tenants", type=count, default=3, metavar="N", help="number of tenants (default: 3)")
    fleet.add_argument("--devices", type=count, default=20, metavar="N", help="devices per tenant (default: 20)")
    fleet.add_argument(
        "--points",
        type=points,
        default=10,
        metavar="N",
        help="points per message; parsec always has 3, je02 8 (default: 10)",
    )
    fleet.add_argument("--format", choices=FORMATS, default="mixed", help="payload format (default: mixed)")
    fleet.add_argument(
        "--tenant-prefix",
        type=topic_level,
        default="sim-",
        metavar="TEXT",
        help="beginning of each tenant's name (default: sim-)",
    )
    fleet.add_argument(
        "--seed",
        type=seed,
        metavar="N",
        help="the same seed gives the same fleet, apart from timestamps (default: random)",
    )
    fleet.add_argument(
        "--start-hour",
        type=hour,
        metavar="H",
        help="hour of the day at which the fleet starts, 0-24 (default: now; 10 with --seed)",
    )
    fleet.add_argument(
        "--speed",
        type=positive,
        default=1.0,
        metavar="X",
        help="how many times faster than real time the signals run (default: 1)",
    )
    amount = parser.add_argument_group("rate and amount")
    amount.add_argument(
        "--rate",
        type=rate,
        default=1000.0,
        metavar="N",
        help="points per second, in total; 0: as fast as possible (default: 1000)",
    )
    amount.add_argument("--seconds", type=positive, metavar="N", help="stop after N seconds")
    amount.add_argument("--messages", type=count, metavar="N", help="stop after N messages")
    amount.add_argument(
        "--qos", type=int, choices=(0, 1), default=1, help="QoS; messages at QoS 0 are never confirmed (default: 1)"
    )
    amount.add_argument(
        "--window", type=window, default=200, metavar="N", help="maximum number of unconfirmed messages (default: 200)"
    )
    faults = parser.add_argument_group("faults, in percent of the messages")
    faults.add_argument("--duplicates", type=percent, default=0.0, metavar="%", help="messages published twice")
    faults.add_argument(
        "--disorder",
        type=percent,
        default=0.0,
        metavar="%",
        help="messages published after later ones of the same device",
    )
    faults.add_argument(
        "--bad", type=percent, default=0.0, metavar="%", help="messages that cannot be stored, of every known kind"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def main(arguments: argparse.Namespace) -> int:
    """Publish, and say what was confirmed."""
    import os

    import trio

    from traksense import config
    from traksense.tools.broker_faults import told
    from traksense.tools.simulate import simulate

    need_small_fleet(arguments.tenants, arguments.devices)
    settings = config.load(os.environ)
    with told(settings.broker):
        return trio.run(simulate, arguments, settings)
