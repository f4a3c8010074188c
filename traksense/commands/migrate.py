"""`traksense migrate`: the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: the database is named by the environment."""
    parser.epilog = "Safe to run twice, and from several replicas at once. Needs DATABASE_URL with the right to create schemas."


def main(_arguments: argparse.Namespace) -> int:
    """Apply what is missing."""
    import asyncio
    import logging

    from traksense.cli import DONE, load_settings
    from traksense.store.migrate import migrate

    settings = load_settings()
    report = asyncio.run(migrate(settings.database.dsn.reveal(), log=logging.getLogger(__name__)))
    if report.applied:
        print(f"schema {report.from_version or 0} -> {report.to_version} ({report.engine}): applied {', '.join(report.applied)}")
    else:
        print(f"schema {report.to_version} ({report.engine}): nothing to do")
    return DONE
