"""`traksense shards`: several replicas, each with its part of the tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from traksense.commands.arguments import client_id, seconds
from traksense.terminal import say

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions."""
    parser.epilog = (
        "MQTT_TENANTS and MQTT_SHARD_COUNT define the shards; ops/scale-out.md explains how to grow, shrink and "
        "replace them."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="show which shard has which tenants",
        description="Show which shard has which tenants. Connects to nothing.",
    )
    show.add_argument("--json", action="store_true", help="print JSON, with client ids and topic filters")
    check = actions.add_parser(
        "check",
        help="find tenants without a shard",
        description="Find tenants without a shard. Exit status 1 if the database or (--listen) the broker has any.",
    )
    check.add_argument(
        "--listen",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="also subscribe to all topics for this long, at QoS 0: the only way to find new tenants",
    )
    retire = actions.add_parser(
        "retire",
        help="store what a session still holds, then end it",
        description=(
            "Waits until other replicas read everything that the session is subscribed to, stores what it has queued, "
            "and ends it at the broker. Can be interrupted and repeated at any time."
        ),
    )
    retire.add_argument(
        "--unread",
        action="store_true",
        help="do not wait for other replicas: nothing needs to read its topics any more",
    )
    retire.add_argument(
        "client_id", type=client_id, metavar="CLIENT_ID", help="client id of a replica that has been stopped for good"
    )


def main(arguments: argparse.Namespace) -> int:
    """Do the action."""
    import json
    import os
    import sys
    from functools import partial

    import trio

    from traksense import config
    from traksense.cli import DONE, FAILED, load_settings
    from traksense.log import TextFormatter
    from traksense.tools.broker_faults import told
    from traksense.tools.json_text import ascii_json
    from traksense.tools.progress import Progress, log_to_people
    from traksense.tools.shards import layout
    from traksense.tools.shards.check import check
    from traksense.tools.shards.retire import retire

    if arguments.action == "show":
        settings = config.load(os.environ)
        if arguments.json:
            say(ascii_json(json.dumps(layout.as_json(settings))))
        else:
            lines, hanging = layout.as_text(settings)
            say("\n".join(lines), hanging=hanging)
        return DONE
    if arguments.action == "check":
        settings = config.load(os.environ)
        with told(settings.broker):
            unread = trio.run(check, settings, arguments.listen)
        for name, where in sorted(unread.seen.items()):
            say(f"in no shard: {name} ({where})", hanging=2)
        return FAILED if unread.seen else DONE
    settings, progress = load_settings(), Progress()
    log_to_people(progress, TextFormatter())
    with progress, told(settings.broker):
        ended = trio.run(partial(retire, settings, arguments.client_id, progress=progress, unread=arguments.unread))
    say("session ended" if ended else "interrupted: the session still exists; what was read has been stored")
    sys.stdout.flush()
    return DONE if ended else FAILED
