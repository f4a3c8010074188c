"""`traksense migrate`: the schema."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from traksense.log import TextFormatter, fields
from traksense.terminal import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

WORDS: Final[Mapping[str, str]] = {
    "migration_applied": "{migration}: applied in {seconds:.1f} s",
    "migration_by_psql_adopted": "{migration}: psql has applied it; its checksum is recorded now",
    "migration_lock_waited_for": "another migration of this database is running: waiting for its end",
    "migration_lock_taken": "the other migration has ended, after {waited_seconds:.0f} s",
    "migration_table_waited_for": "{migration}: another transaction uses a table that it changes: trying again",
    "roles_missing": "this role may not create the roles {roles}",
}
"""Events of the log, as a terminal shows them."""


class Words(TextFormatter):
    """Log lines as sentences."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; as a log has it, if there are no words for it."""
        words = WORDS.get(record.getMessage())
        return words.format_map(fields(record)) if words else super().format(record)


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

    from traksense.cli import DONE, load_settings
    from traksense.store.migrate import migrate
    from traksense.tools.progress import Progress, log_to_people

    settings = load_settings()
    progress = Progress()
    log_to_people(progress, Words())
    with progress:
        report = asyncio.run(
            migrate(
                settings.database.dsn.reveal(),
                log=logging.getLogger(__name__),
                roles=not arguments.no_roles,
                at=progress.at,
            )
        )
    if report.applied:
        applied = ", ".join(report.applied)
        say(
            f"schema {report.from_version or 0} -> {report.to_version} ({report.engine}): applied {applied}",
            hanging=2,
        )
    else:
        rights = "" if arguments.no_roles or report.roles_missing else "; the roles traksense_* have their privileges"
        say(f"schema {report.to_version} ({report.engine}): up to date{rights}")
    if report.roles_missing:
        say(
            f"missing: {', '.join(report.roles_missing)}; this role may not create roles. "
            "Create them (NOLOGIN) and run `traksense migrate` again, or use --no-roles",
            hanging=2,
        )
    return DONE
