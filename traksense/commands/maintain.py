"""`traksense maintain`: one round of maintenance, for cron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from traksense.terminal import say

if TYPE_CHECKING:
    import argparse

APPLICATION: Final = "traksense maintain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to run TimescaleDB's jobs too."""
    parser.add_argument(
        "--jobs", action="store_true", help="run the jobs of TimescaleDB, for a server whose scheduler is switched off"
    )
    parser.epilog = (
        "What the service does by itself while it runs: brings the aggregates up to date, makes partitions ahead, "
        "drops and deletes what the policy no longer keeps. Safe to run alongside services."
    )


def main(arguments: argparse.Namespace) -> int:
    """Do one round, and say what was done."""
    import os

    from traksense import config
    from traksense.cli import DONE, FAILED
    from traksense.store import maintenance
    from traksense.store.fault_words import describe

    dsn = config.load(os.environ).database.dsn.reveal()
    report = maintenance.run_once(dsn, APPLICATION, lambda c: maintenance.maintain(c, jobs=arguments.jobs))
    say(
        f"aggregated {report.marks} time ranges, dropped {report.dropped} partitions, deleted {report.purged} rows"
        + (f", ran {report.jobs} jobs" if arguments.jobs else "")
    )
    for name, error in report.failed.items():
        say(f"failed: {name}: {describe(error)}")
    return FAILED if report.failed else DONE
