"""`traksense uninstall`: removes what `traksense migrate` created."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

APPLICATION: Final = "traksense uninstall"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether it is meant."""
    parser.add_argument("--yes", action="store_true", help="delete everything; this cannot be undone")
    parser.epilog = (
        "Drops the schema traksense, the tables and views that applications read, and TimescaleDB's jobs. Roles and "
        "the database itself remain: ops/uninstall.md has all steps. DATABASE_URL must be the owner's or a "
        "superuser's. What others made there, or of what is there, is named, and nothing is deleted. Without --yes "
        "nothing is deleted either: exit status 2 if there is something to delete."
    )


def main(arguments: argparse.Namespace) -> int:
    """Do it, or say what it would do."""
    import os

    from traksense import config
    from traksense.cli import DONE
    from traksense.errors import ConfigError, TraksenseError
    from traksense.store.maintenance import run_once
    from traksense.store.uninstall import look, uninstall
    from traksense.terminal import say
    from traksense.tools.progress import Progress

    database = config.load(os.environ).database
    dsn = database.dsn.reveal()
    if not arguments.yes:
        if run_once(dsn, APPLICATION, look, schema=False).present:
            raise ConfigError([f"uninstall: would delete all data in {database}: confirm with --yes"])
        say(f"nothing of traksense is in {database}")
        return DONE
    so_far = ""
    try:
        with Progress() as progress:

            def note(text: str) -> None:
                nonlocal so_far
                so_far = text
                progress.at(text)

            def wait(text: str) -> None:
                progress.say(f"traksense: {text}", to=sys.stderr)
                progress.at("waiting")

            dropped = run_once(dsn, APPLICATION, lambda c: uninstall(c, note, wait), schema=False)
    except (KeyboardInterrupt, TraksenseError):
        if so_far:
            say(f"traksense: {so_far}; stopped before the end: repeat the command for the rest", to=sys.stderr)
        raise
    had = f"; it had {dropped}" if dropped else ""
    say(f"nothing of traksense is left in {database}{had}", hanging=2)
    return DONE
