"""`traksense migrate`: the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from traksense.terminal import say

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether roles are made; the database is named by the environment."""
    parser.add_argument(
        "--no-roles", action="store_true", help="neither create the roles traksense_* nor grant them their privileges"
    )
    parser.epilog = (
        "Safe to run twice, and from several replicas at once. The role in DATABASE_URL becomes the owner of the "
        "schema: it needs CREATE on the database and on the schema public."
    )


def main(arguments: argparse.Namespace) -> int:
    """Apply what is missing."""
    import asyncio
    import logging

    from traksense.cli import DONE, load_settings
    from traksense.store.migrate import migrate

    settings = load_settings()
    report = asyncio.run(
        migrate(settings.database.dsn.reveal(), log=logging.getLogger(__name__), roles=not arguments.no_roles)
    )
    if report.applied:
        applied = ", ".join(report.applied)
        say(f"schema {report.from_version or 0} -> {report.to_version} ({report.engine}): applied {applied}")
    else:
        rights = "" if arguments.no_roles or report.roles_missing else "; the roles traksense_* have their privileges"
        say(f"schema {report.to_version} ({report.engine}): up to date{rights}")
    if report.roles_missing:
        say(
            f"missing: {', '.join(report.roles_missing)}; this role may not create roles. "
            "Create them (NOLOGIN) and run `traksense migrate` again, or use --no-roles"
        )
    return DONE
