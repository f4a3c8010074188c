"""What `traksense dlq` does once it is connected. Answers go to stdout, remarks to stderr."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from traksense.store import dead_letters
from traksense.terminal import Screen, counted
from traksense.terminal import say as tell
from traksense.tools.dlq import text
from traksense.tools.dlq.replay import Replay
from traksense.tools.dlq.selection import selection
from traksense.tools.json_text import print_json
from traksense.tools.progress import Progress

if TYPE_CHECKING:
    import argparse

    from traksense.config import Settings
    from traksense.store.connection import DatabaseConnection
    from traksense.store.dead_letters import Count
    from traksense.tools.dlq.replay import Counts

LIST_LIMIT: Final = 100
"""Rows of a list, unless `--limit` is given."""

MARGIN: Final = timedelta(minutes=1)
"""How far the service's clock, by which dead letters come, may be behind ours."""


@attrs.frozen
class Context:
    """What an action needs. Each returns whether all was done that was asked for."""

    arguments: argparse.Namespace
    settings: Settings
    database: DatabaseConnection


async def list_letters(context: Context) -> bool:
    """Those that came last first. Trio-flavored."""
    arguments = context.arguments
    wanted = selection(arguments, limit=LIST_LIMIT)
    found = await context.database.call(dead_letters.select, wanted)
    if arguments.json:
        print_json([text.as_json(summary) for summary in found])
        return True
    if found:
        for line in text.table(found, Screen.of()):
            tell(line)
    if len(found) == wanted.limit:
        count = await context.database.call(dead_letters.count, wanted)
        say(f"{len(found)} of {letters(count.total)}; --limit shows more")
    else:
        say(f"{letters(len(found))}{'' if arguments.state == 'all' else ' (open ones; --all: replayed ones too)'}")
    return True


async def show(context: Context) -> bool:
    """One, with its payload. Trio-flavored."""
    arguments = context.arguments
    letter = await context.database.call(dead_letters.fetch, arguments.id)
    if letter is None:
        say(f"there is no dead letter {arguments.id}")
        return False
    if arguments.raw:
        sys.stdout.buffer.write(letter.payload)
    elif arguments.json:
        for piece in text.letter_as_json(letter):
            tell(piece, end="")
    else:
        for line in text.description(letter):
            tell(line)
    return True


async def replay(context: Context) -> bool:
    """Publish them again; what was done until then is also said after a failure. Trio-flavored."""
    arguments = context.arguments
    began = datetime.now(UTC)
    progress = Progress()
    told = partial(say, progress=progress)
    run = Replay(context.settings, context.database, selection(arguments), say=told, note=progress.at)
    try:
        with progress:
            await run.run(dry=arguments.dry_run)
    except BaseException:
        if run.counts.selected:
            _tell(run.counts, arguments, began)
            say("stopped before the end: repeat the command for the rest")
        raise
    _tell(run.counts, arguments, began)
    return run.counts.complete


def _tell(counts: Counts, arguments: argparse.Namespace, began: datetime) -> None:
    values: dict[str, int] = attrs.asdict(counts)
    if arguments.json:
        print_json({"dry_run": arguments.dry_run, **values})
        return
    rest = [f"{value} {name}" for name, value in values.items() if value and name not in ("published", "selected")]
    told = f" ({', '.join(rest)})" if rest else ""
    verb = "would publish" if arguments.dry_run else "published"
    tell(f"{verb} {counts.published} of {letters(counts.selected)}{told}")
    if counts.published and not arguments.dry_run:
        # What is stored leaves no trace in a dead letter, so there is nothing to wait for.
        command = text.listing(arguments, since=began - MARGIN)
        say(f"what the service still cannot store is open again: `{command}` lists it, with what else has come since")


async def summary(context: Context) -> bool:
    """How many of each tenant and reason, the most frequent first. Trio-flavored."""
    groups = await context.database.call(dead_letters.groups, selection(context.arguments))
    if context.arguments.json:
        print_json([text.group_as_json(group) for group in groups])
        return True
    for line in text.group_table(groups, Screen.of()) if groups else ():
        tell(line)
    shown = f"the first {len(groups)} groups: " if len(groups) == context.arguments.limit else ""
    beside = "" if context.arguments.state == "all" else " (open ones; --all: replayed ones too)"
    say(f"{shown}{letters(sum(group.letters for group in groups))}{beside}")
    return True


async def count(context: Context) -> Count:
    """How many a purge would delete. Trio-flavored."""
    wanted = selection(context.arguments)
    found = await context.database.call(dead_letters.count, wanted)
    return found if wanted.limit is None else attrs.evolve(found, total=min(found.total, wanted.limit))


async def purge(context: Context, counted: Count) -> bool:
    """Delete those that were counted; what was deleted until then is also said after a failure. Trio-flavored."""
    wanted = selection(context.arguments)
    deleted = 0
    with Progress() as progress:

        def note(so_far: int) -> None:
            nonlocal deleted
            deleted = so_far
            progress.at(f"deleted {deleted:,} of {counted.total:,}")

        try:
            deleted = await context.database.call(dead_letters.purge, wanted, newest=counted.newest, note=note)
        except BaseException:
            if deleted:
                say(
                    f"deleted {letters(deleted)}; stopped before the end: repeat the command for the rest",
                    progress=progress,
                )
            raise
    missing = len(set(wanted.ids or ())) - deleted if wanted.ids and wanted.limit is None else 0
    if context.arguments.json:
        print_json({"deleted": deleted, "missing": missing})
    else:
        rest = f" ({missing} not there, or excluded by the other options)" if missing else ""
        tell(f"deleted {letters(deleted)}{rest}")
    return not missing


def letters(number: int) -> str:
    """A number of dead letters, in words."""
    return counted(number, "dead letter")


def say(line: str, *, progress: Progress | None = None) -> None:
    """To stderr, where it does not mix with the answer; above the line that says how far it has got."""
    if progress is None:
        tell(f"traksense: {line}", to=sys.stderr, hanging=2)
    else:
        progress.say(f"traksense: {line}", to=sys.stderr)
