"""`traksense validate`: does the stack that the environment names keep its promises?"""

from __future__ import annotations

import argparse
import re

from traksense.commands.arguments import patience

POINTS_MIN = 5_000
"""A second's worth at the target: with fewer, the figure says how long one message takes, not how many go through."""

POINTS_MAX = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the environment does not say."""
    parser.epilog = (
        "Needs the MQTT_URL, MQTT_TOPICS, METRICS_PORT and INGEST_PROVISIONING of the service, an MQTT user that may "
        "publish, and the DATABASE_URL of an operator (the role that owns the schema). Publishes as a tenant of its "
        "own, validate-<random> (with shards: validate, which MQTT_TENANTS must list), and removes all of that "
        "tenant's data at the end, also after Ctrl-C or when the terminal is closed. Exit status: 0 if no check "
        "failed; the last line says whether anything could not be checked."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_argument(
        "--metrics-url",
        metavar="URL",
        help="base URL of the service's HTTP endpoint (default: http://localhost:METRICS_PORT)",
    )
    parser.add_argument(
        "--points",
        type=_points,
        default=10_000,
        metavar="N",
        help="points in the throughput test (default: %(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=patience,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for the service at each step (default: %(default)g)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the test data in the database")


def main(arguments: argparse.Namespace) -> int:
    """Make the checks."""
    import logging
    import os

    import trio

    from traksense import config
    from traksense.cli import DONE, FAILED
    from traksense.mqtt.stream import tls_context
    from traksense.tools.interrupt import INTERRUPTED, run_interruptible
    from traksense.tools.json_text import print_json
    from traksense.tools.validate.endpoint import endpoint_url
    from traksense.tools.validate.report import Printer
    from traksense.tools.validate.run import Options, new_report, validate

    # Not `cli.load_settings`: its log would go to stdout, where the report goes.
    logging.getLogger("traksense").addHandler(logging.NullHandler())
    settings = config.load(os.environ)
    tls_context(settings)
    options = Options(
        url=endpoint_url(settings, arguments.metrics_url),
        points=arguments.points,
        patience=arguments.patience,
        keep=arguments.keep,
    )
    report = new_report(settings, options)
    printer = Printer(silent=arguments.json)
    report.interrupted = trio.run(
        run_interruptible, lambda interruption: validate(settings, options, report, printer, interruption)
    )
    printer.end(report)
    if arguments.json:
        print_json(report.as_json())
    if printer.fault is not None:
        raise printer.fault
    if report.interrupted:
        return INTERRUPTED
    return DONE if report.passed else FAILED


def _points(text: str) -> int:
    if not re.fullmatch("[0-9]{1,8}", text) or not POINTS_MIN <= int(text) <= POINTS_MAX:
        raise argparse.ArgumentTypeError(f"must be a whole number from {POINTS_MIN} to {POINTS_MAX}, not {text[:40]!r}")
    return int(text)
