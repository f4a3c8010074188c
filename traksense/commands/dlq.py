"""`traksense dlq`: dead letters, for operators."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from traksense.terminal import say
from traksense.tools.dlq.selection import add_filters, add_ids, dead_letter_id, need_choice

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from traksense.tools.dlq.actions import Context
    from traksense.tools.interrupt import Interruption

T = TypeVar("T")


class _InterruptedError(Exception):
    """A signal ended it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their options."""
    parser.epilog = (
        "Needs the DATABASE_URL of an operator (the role that owns the schema); replay also needs the service's "
        "MQTT_URL, with a user that may publish."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    add_filters(action("list", "list dead letters, newest first; at most 100 unless --limit is given"))
    add_filters(action("count", "count dead letters by tenant and reason, the most frequent first"))
    show = action("show", "show one dead letter with its payload")
    show.add_argument("id", type=dead_letter_id, metavar="ID")
    show.add_argument("--raw", action="store_true", help="write only the exact bytes of the payload to stdout")
    replay = action("replay", "publish the exact bytes of dead letters to their topics again")
    add_ids(replay)
    add_filters(replay)
    replay.add_argument("--dry-run", action="store_true", help="only print what would be published")
    purge = action("purge", "delete dead letters permanently")
    add_ids(purge)
    add_filters(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def main(arguments: argparse.Namespace) -> int:
    """Do the action."""
    import os

    from traksense.cli import DONE, FAILED
    from traksense.tools.dlq import actions
    from traksense.tools.interrupt import INTERRUPTED

    try:
        if arguments.action == "purge":
            done = _purge(arguments)
        else:
            if arguments.action == "replay":
                need_choice(arguments)
            act = {
                "list": actions.list_letters,
                "count": actions.summary,
                "show": actions.show,
                "replay": actions.replay,
            }[arguments.action]
            done = _connected(arguments, act)
        sys.stdout.flush()
    except _InterruptedError:
        return INTERRUPTED
    except BrokenPipeError:
        # `dlq list | head`. Python would complain again when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return DONE if done else FAILED


def _purge(arguments: argparse.Namespace) -> bool:
    """Count, ask, delete. What is asked outside Trio, Ctrl-C can answer."""
    from traksense.errors import ConfigError
    from traksense.tools.dlq import actions

    need_choice(arguments)
    count = _connected(arguments, actions.count)
    if count.total and not arguments.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigError([f"dlq purge: would delete {actions.letters(count.total)}: confirm with --yes"])
        say(f"Delete {actions.letters(count.total)}? [y/N] ", end="", to=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            actions.say("nothing was deleted")
            return False
    return _connected(arguments, partial(actions.purge, counted=count))


def _connected(arguments: argparse.Namespace, act: Callable[[Context], Awaitable[T]]) -> T:
    """Run an action on a connection to the database."""
    import logging
    import os

    import trio

    from traksense import config
    from traksense.store.connecting import check_operator
    from traksense.store.connection import open_connection
    from traksense.tools.broker_faults import told
    from traksense.tools.dlq.actions import Context
    from traksense.tools.interrupt import run_interruptible

    # Not `cli.load_settings`: its log would go to stdout, where the answer goes.
    logging.getLogger("traksense").addHandler(logging.NullHandler())
    settings = config.load(os.environ)
    answers: list[T] = []

    async def body(_: Interruption) -> None:
        async with open_connection(settings.database, application="traksense dlq") as database:
            await database.call(check_operator)
            answers.append(await act(Context(arguments, settings, database)))

    with told(settings.broker):
        interrupted = trio.run(run_interruptible, body)
    if interrupted:
        raise _InterruptedError
    return answers[0]
