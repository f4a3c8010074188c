"""`traksense dlq`: dead letters, for operators."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from traksense.tools.dlq.selection import add_filters, add_ids, dead_letter_id

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from traksense.config import Settings
    from traksense.store.connection import DatabaseConnection

LIST_LIMIT: Final = 100
APPLICATION: Final = "traksense dlq"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their options."""
    parser.epilog = "Needs DATABASE_URL, and for replay MQTT_URL, as the service has them."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("--json", action="store_true", help="for machines")
        return sub

    listing = action("list", f"list dead letters, those that came last first; {LIST_LIMIT} unless --limit is given")
    add_filters(listing)
    show = action("show", "show one dead letter with its payload")
    show.add_argument("id", type=dead_letter_id, metavar="ID")
    show.add_argument("--raw", action="store_true", help="write the payload's exact bytes to stdout, and nothing else")
    replay = action("replay", "publish dead letters to their topics again, with their exact bytes")
    add_ids(replay)
    add_filters(replay)
    replay.add_argument("--dry-run", action="store_true", help="only say what would be published")
    purge = action("purge", "delete dead letters for good")
    add_ids(purge)
    add_filters(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask")


def main(arguments: argparse.Namespace) -> int:
    """Do the action."""
    import os

    import trio

    from traksense import config
    from traksense.cli import DONE, FAILED
    from traksense.errors import BrokerRefusedError, ConfigError
    from traksense.tools.interrupt import INTERRUPTED, run_interruptible

    # Not `cli.load_settings`: the log would go to stdout, where the answer goes.
    settings = config.load(os.environ)
    done = False

    async def act(database: DatabaseConnection) -> None:
        nonlocal done
        done = await _ACTIONS[arguments.action](arguments, settings, database)

    try:
        interrupted = trio.run(run_interruptible, lambda: _with_database(settings, act))
    except BrokerRefusedError as error:
        raise ConfigError([f"{error} @ MQTT_URL"]) from error
    except BrokenPipeError:
        # `dlq list | head`. Python would complain again when it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if interrupted:
        return INTERRUPTED
    return DONE if done else FAILED


async def _with_database(settings: Settings, act: Callable[[DatabaseConnection], Awaitable[None]]) -> None:
    from traksense.store import dead_letters
    from traksense.store.connection import open_connection

    async with open_connection(settings.database, application=APPLICATION) as database:
        await database.call(dead_letters.check_operator)
        await act(database)
    sys.stdout.flush()


async def _list(arguments: argparse.Namespace, _settings: Settings, database: DatabaseConnection) -> bool:
    from traksense.store import dead_letters
    from traksense.tools.dlq import text
    from traksense.tools.dlq.selection import selection

    wanted = selection(arguments, limit=LIST_LIMIT)
    found = await database.call(dead_letters.select, wanted)
    if arguments.json:
        text.print_json([text.as_json(summary) for summary in found])
        return True
    if found:
        for line in text.table(found, width=text.terminal_width()):
            print(line)
    if len(found) == wanted.limit:
        count = await database.call(dead_letters.count, wanted)
        _say(f"{len(found)} of {count.total} dead letters; --limit shows more")
    else:
        _say(f"{_letters(len(found))}{'' if arguments.state == 'all' else ' (open ones; --all: replayed ones too)'}")
    return True


async def _show(arguments: argparse.Namespace, _settings: Settings, database: DatabaseConnection) -> bool:
    from traksense.store import dead_letters
    from traksense.tools.dlq import text

    letter = await database.call(dead_letters.fetch, arguments.id)
    if letter is None:
        _say(f"there is no dead letter {arguments.id}")
        return False
    if arguments.raw:
        sys.stdout.buffer.write(letter.payload)
    elif arguments.json:
        text.print_json(text.letter_as_json(letter))
    else:
        for line in text.description(letter):
            print(line)
    return True


async def _replay(arguments: argparse.Namespace, settings: Settings, database: DatabaseConnection) -> bool:
    import attrs

    from traksense.tools.dlq import text
    from traksense.tools.dlq.replay import Replay
    from traksense.tools.dlq.selection import need_choice, selection

    need_choice(arguments)
    replay = Replay(settings, database, selection(arguments), say=_say)
    try:
        await replay.run(dry=arguments.dry_run)
    finally:
        counts = attrs.asdict(replay.counts)
        if arguments.json:
            text.print_json({"dry_run": arguments.dry_run, **counts})
        else:
            published = counts.pop("published")
            rest = ", ".join(f"{value} {name}" for name, value in counts.items() if value and name != "selected")
            verb = "would publish" if arguments.dry_run else "published"
            print(f"{verb} {published} of {_letters(replay.counts.selected)}{f' ({rest})' if rest else ''}")
    return replay.counts.complete


async def _purge(arguments: argparse.Namespace, _settings: Settings, database: DatabaseConnection) -> bool:
    from traksense.errors import ConfigError
    from traksense.store import dead_letters
    from traksense.tools.dlq import text
    from traksense.tools.dlq.selection import need_choice, selection

    need_choice(arguments)
    wanted = selection(arguments)
    count = await database.call(dead_letters.count, wanted)
    total = count.total if wanted.limit is None else min(count.total, wanted.limit)
    if total and not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError([f"would delete {_letters(total)}: confirm with --yes @ dlq purge"])
        answer = input(f"Delete {_letters(total)}, {count.open} of them not replayed? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            _say("nothing was deleted")
            return False
    deleted = await database.call(dead_letters.purge, wanted, newest=count.newest) if total else 0
    if arguments.json:
        text.print_json({"deleted": deleted})
    else:
        print(f"deleted {_letters(deleted)}")
    return True


def _letters(number: int) -> str:
    return f"{number} dead letter{'' if number == 1 else 's'}"


def _say(line: str) -> None:
    """To stderr, where it does not mix with the answer."""
    print(f"traksense: {line}", file=sys.stderr)


_ACTIONS: Final[dict[str, Any]] = {"list": _list, "show": _show, "replay": _replay, "purge": _purge}
