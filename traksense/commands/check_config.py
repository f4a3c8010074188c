"""`traksense check-config`: whether the service would take its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: what is checked is the environment."""
    parser.epilog = (
        "Checks the environment, and the file named by --env-file, as `traksense run` does at startup. Connects to "
        "nothing; `traksense validate` tests broker and database. Exit status: 0 if the configuration is valid; 2 if "
        "it is not, with one line for each error."
    )


def main(_arguments: argparse.Namespace) -> int:
    """Check it, and say what it comes to."""
    import os

    from traksense.cli import DONE
    from traksense.terminal import say
    from traksense.tools.check_config import as_text, check

    settings = check(os.environ)
    for line in as_text(settings, os.environ):
        say(line, hanging=11)
    return DONE
