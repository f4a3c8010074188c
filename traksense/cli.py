"""The commands. Exit status: 0 done, 1 failed, 2 bad configuration or arguments."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

from traksense import __version__, config, log, signals
from traksense.errors import ConfigError, StoreUnavailableError, TraksenseError, leaves
from traksense.files import read_text
from traksense.names import printable
from traksense.terminal import replace_closed, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _typeshed import SupportsWrite

DONE: Final = 0
FAILED: Final = 1
MISUSED: Final = 2

COMMANDS: Final = {
    "run": "run the service until SIGTERM or SIGINT, then drain and exit (the default)",
    "check-config": "report every configuration error, or print the effective configuration; starts nothing",
    "migrate": "create the database schema, or bring it up to date",
    "demo": "run the whole stack on this machine with a simulated fleet; nothing else has to be installed",
    "validate": "check a running stack end to end, using a tenant of its own",
    "simulate": "publish as a realistic fleet would, and count what the broker confirmed",
    "decode": "show what would be stored from a payload, without broker or database",
    "dlq": "list, count, show, replay and purge dead letters",
    "lifecycle": "plan, apply and show data retention and compression",
    "maintain": "run one round of maintenance, for cron",
    "shards": "for several replicas: show which shard has which tenants, find tenants without one, retire a session",
    "uninstall": "remove everything that migrate created, including the data",
    "prove": "kill service, broker and database under load, and prove that nothing is lost or duplicated",
    "bench": "measure throughput, latency and memory, compared with what the database alone can do",
}
"""Each is a module of that name in `traksense.commands`, `_` for `-`, with `add_arguments(parser)` and
`main(arguments) -> int`."""

WITH_DATABASE: Final = ("migrate", "dlq", "lifecycle", "maintain", "shards", "uninstall")
"""Those that end if there is no database where DATABASE_URL says. (The service waits, and validate has a report.)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    replace_closed("stderr")
    try:
        arguments = _parser(list(sys.argv[1:] if argv is None else argv))
    except SystemExit:
        # --help, which is an answer, too.
        if not _flush():
            return FAILED
        raise
    except BrokenPipeError:
        # As in `_run`.
        return FAILED
    except TraksenseError as error:
        status = report(error)
        _flush()
        return status
    command = arguments.command or "run"
    if command != "run":
        # The service says that its log has no place to go.
        replace_closed("stdout")
    try:
        status = _run(command, arguments)
        if not _flush() and command != "run":
            status = FAILED
    finally:
        signals.ignore()
    return status


def _run(command: str, arguments: argparse.Namespace) -> int:
    try:
        if command != "run":
            # The service keeps its signals to its end, the others take what they need. A Ctrl-C from before comes now.
            signals.release()
        if arguments.env_file is not None:
            load_env_file(arguments.env_file)
        status: int = _module(command).main(arguments)
    except BaseException as error:
        errors = list(leaves(error))
        if not all(map(_is_expected, errors)):
            raise
        return max(_ended(error, command) for error in errors)
    return status


def _is_expected(error: BaseException) -> bool:
    """Whether it is nobody's mistake in the code; a full disk is met in a file or in our own output."""
    scarce = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
    return scarce or isinstance(error, TraksenseError | BrokenPipeError | KeyboardInterrupt)


def _ended(error: BaseException, command: str) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has seen enough (`| head`).
        return FAILED
    if isinstance(error, OSError):
        descriptors = error.errno in (errno.EMFILE, errno.ENFILE)
        where = "raise the limit (ulimit -n)" if descriptors else error.filename or "standard output"
        say(f"traksense: {error.strerror}: {where}", to=sys.stderr)
        return FAILED
    return report(error, command)


def _flush() -> bool:
    """Send off what was printed; whether stdout took it. What stays would be tried again at the end, which then has
    exit status 120.
    """
    _sent(sys.stderr)
    return _sent(sys.stdout)


def _sent(stream: TextIO | None) -> bool:
    if stream is None:
        return True
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def report(error: BaseException, command: str = "") -> int:
    """Tell the user, one line a fault; returns the exit status."""
    faults = error.faults if isinstance(error, ConfigError) else (str(error),)
    note = config.note_of_default_database(os.environ) if command in WITH_DATABASE and _cannot_enter(error) else ""
    for fault in faults:
        say(f"traksense: {printable(fault)}{note}", to=sys.stderr)
    return MISUSED if isinstance(error, ConfigError) else FAILED


def _cannot_enter(error: BaseException) -> bool:
    """Whether there is no database server, or it has no such user, password or database."""
    # `store.connecting` makes a fault of the configuration of the latter, and of what the driver raised.
    refused = error.__cause__ if isinstance(error, ConfigError) else error
    sqlstate: str | None = getattr(refused, "sqlstate", None)
    if sqlstate is None:
        return isinstance(refused, StoreUnavailableError)
    return sqlstate[:2] in ("08", "28", "3D")


def load_settings(read: Callable[[Mapping[str, str]], config.Settings] = config.load) -> config.Settings:
    """The settings from the environment, with logging configured accordingly."""
    settings = read(os.environ)
    log.configure(settings.log_level, settings.log_format)
    return settings


def load_env_file(path: Path) -> None:
    """Put the lines `NAME=value` of a file into the environment; what is set already wins. Of several lines with one
    name the last counts, as for systemd and Compose.

    Raises:
        ConfigError: The file cannot be read; or a line is not of that form, with all faults of the configuration.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise ConfigError([f"{path}: cannot read it: {error}"]) from None
    faults = []
    own = set(os.environ)
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("export "):
            faults.append(f"{path}:{number}: begins with export: leave that out, systemd ignores such lines")
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip().isidentifier() or "\x00" in value:
            faults.append(f"{path}:{number}: not NAME=value")
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if name.strip() in own:
            continue
        try:
            os.environ[name.strip()] = value
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            faults.append(f"{path}:{number}: has a character that {encoding} lacks: set LC_ALL=C.UTF-8")
    if faults:
        # Whoever fixes these lines should not have to come back for the variables.
        from traksense.tools.check_config import check

        try:
            check(os.environ)
        except ConfigError as error:
            faults.extend(error.faults)
        raise ConfigError(faults)


def _module(command: str) -> Any:
    return import_module(f"traksense.commands.{command.replace('-', '_')}")


class _Help(argparse.HelpFormatter):
    """Leaves names with hyphens whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """Takes `--env-file` before a command, after it and after its action, escapes what it quotes of the arguments, and
    tells when its answer cannot be written.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)
        # Without a default: one of a command's would take the place of what stands before the command.
        self.add_argument(
            "--env-file",
            type=Path,
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="read variables from this .env file; those already set win",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Nobody takes what a command does not know: here the usage is the command's, not that of the program."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Usage, the line, exit 2."""
        super().error(printable(message))

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # Since Python 3.11.4 argparse hides every error of writing (python/cpython#101802), before it hid none.
        if file is not None and file is sys.stdout:
            say(message, end="")
        else:
            with contextlib.suppress(OSError):
                super()._print_message(message, file)


def _parser(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="traksense",
        description="Telemetry from MQTT into PostgreSQL/TimescaleDB: acknowledged after the commit, stored once.",
    )
    parser.add_argument("--version", action="version", version=f"traksense {__version__}")
    parser.set_defaults(env_file=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        _module(name).add_arguments(sub)
    return parser.parse_args([*argv[1:], "--help"] if argv[:1] == ["help"] else argv)
