"""`traksense demo`: the whole stack on this machine, with nothing else installed."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Final

from traksense.commands.arguments import count, need_small_fleet, path, percent, port, positive

DIRECTORY: Final = Path("traksense-demo")

SCARCE: Final = {
    errno.EMFILE: "raise the limit of files (ulimit -n)",
    errno.ENFILE: "the whole machine has too many open files",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
}
"""What the machine lacks, whatever the directory, and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fleet, the place and the parts."""
    parser.epilog = (
        "Starts PostgreSQL, a broker and the service in one directory, simulates a fleet, and shows what happens. "
        "Ctrl-C stops it in order and compares what the broker confirmed with what is stored; exit status 1 if they "
        "differ. The data is kept, and the next run continues with it."
    )
    parser.add_argument("--seconds", type=positive, metavar="N", help="stop after N seconds (default: at Ctrl-C)")
    parser.add_argument(
        "--directory",
        type=path,
        default=DIRECTORY,
        metavar="DIR",
        help=f"where everything is kept (default: ./{DIRECTORY})",
    )
    parser.add_argument(
        "--broker",
        choices=("auto", "mosquitto", "iotcore"),
        default="auto",
        help="auto: Mosquitto if it is installed, else iotcore (default: auto)",
    )
    parser.add_argument("--screenshot", type=path, metavar="FILE.svg", help="save the last screen as an SVG file")
    parser.add_argument(
        "--psql",
        nargs=argparse.REMAINDER,
        metavar="ARG",
        help="instead of the demo, open psql on its database with these arguments, as the superuser, who sees every "
        "tenant; starts the database if necessary",
    )
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--tenants", type=count, default=3, metavar="N", help="number of tenants (default: 3)")
    fleet.add_argument("--devices", type=count, default=20, metavar="N", help="devices per tenant (default: 20)")
    fleet.add_argument(
        "--rate", type=positive, default=600.0, metavar="N", help="points per second, in total (default: 600)"
    )
    fleet.add_argument(
        "--speed",
        type=positive,
        default=60.0,
        metavar="X",
        help="how many times faster than real time the signals run (default: 60)",
    )
    fleet.add_argument("--bad", type=percent, default=1.0, metavar="%", help="percentage of bad messages (default: 1)")
    ports = parser.add_argument_group("ports (default: those of the last run, or any free ones)")
    for name, what in (("mqtt", "of the broker"), ("postgres", "of the database"), ("metrics", "of the service")):
        ports.add_argument(f"--port-{name}", type=port, metavar="PORT", help=what)


def main(arguments: argparse.Namespace) -> int:
    """Run the demo, or psql on its data."""
    from traksense.errors import TraksenseError

    try:
        return _run(arguments)
    except (OSError, BaseExceptionGroup) as error:
        alone = _alone(error)
        if not isinstance(alone, OSError) or isinstance(alone, ConnectionError | TimeoutError):
            raise
        raise TraksenseError(_said(alone, arguments.directory)) from error


def _run(arguments: argparse.Namespace) -> int:
    import trio

    from traksense.errors import TraksenseError

    try:
        if arguments.psql is not None:
            from traksense.tools.demo.psql import psql

            return psql(arguments.directory, arguments.psql)
        from traksense.tools.demo.run import DemoOptions, demo
        from traksense.tools.fleet import FleetOptions
    except ImportError as error:
        raise TraksenseError(f"the demo needs {error.name}: pip install 'traksense[demo]'") from error

    from datetime import datetime

    need_small_fleet(arguments.tenants, arguments.devices)
    now = datetime.now()  # noqa: DTZ005  (the hour that people here see)
    options = DemoOptions(
        directory=arguments.directory,
        fleet=FleetOptions(
            tenants=arguments.tenants,
            devices=arguments.devices,
            rate=arguments.rate,
            bad=arguments.bad / 100,
            duplicates=0.005,
            disorder=0.002,
            seed=1,
            start_hour=now.hour + now.minute / 60,
            speed=arguments.speed,
            tenant_prefix="",
        ),
        seconds=arguments.seconds,
        broker=arguments.broker,
        ports={name: getattr(arguments, f"port_{name}") for name in ("mqtt", "postgres", "metrics")},
        screenshot=arguments.screenshot,
    )
    return trio.run(demo, options)


def _said(error: OSError, directory: Path) -> str:
    """One line; another directory helps where it is the directory's fault."""
    what = error.strerror or str(error)
    if error.errno in SCARCE:
        return f"the demo cannot go on: {what}: {SCARCE[error.errno]}"
    where = Path(os.fsdecode(error.filename or directory))
    own = where.absolute().is_relative_to(directory.absolute())
    return f"cannot use {where}: {what}" + ("; take another --directory" if own else "")


def _alone(error: BaseException) -> BaseException:
    """What the nurseries have around it is nobody's business, if it is one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
