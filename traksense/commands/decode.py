"""`traksense decode`: what would be stored from a payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

TOPIC: Final = "traksense/tenant/site/device/telem"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The payload and its topic."""
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="file with the payload (default: standard input)"
    )
    parser.add_argument("--topic", default=TOPIC, help="topic that it was published to (default: %(default)s)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each row, with the columns of the table"
    )
    parser.epilog = (
        "Needs neither broker nor database, so it cannot tell whether the device is registered "
        "(INGEST_PROVISIONING=strict) or whether a different value is already stored. The limits are those of the "
        "environment (INGEST_*). Exit status: 0 if everything would be stored, 1 if there would be a dead letter."
    )


def main(arguments: argparse.Namespace) -> int:
    """Say it."""
    import os

    from traksense import config
    from traksense.adapters import load_registry
    from traksense.cli import DONE, FAILED
    from traksense.terminal import Screen, say
    from traksense.tools.decode import as_json, as_text, decode, read_payload

    settings = config.load(os.environ)
    delivery = decode(settings, load_registry(), arguments.topic, read_payload(arguments.file))
    for line in as_json(delivery) if arguments.json else as_text(delivery, Screen.of()):
        say(line, hanging=4)
    return DONE if delivery.rejection is None else FAILED
