"""`traksense run`: the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: the service is configured by its environment."""
    parser.epilog = "Configured by environment variables; ops/traksense.env.example explains each."


def main(_arguments: argparse.Namespace) -> int:
    """Run until a signal."""
    import trio

    from traksense import service, signals
    from traksense.cli import DONE, load_settings
    from traksense.memory import collect_rarely, return_large_blocks
    from traksense.tools.check_config import check

    settings = load_settings(check)
    if signals.noted():
        return DONE
    return_large_blocks()
    collect_rarely()
    trio.run(service.run, settings)
    return DONE
