"""The command line: exit statuses, one line a fault, no secret in any of them."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.patience import HANG_SECONDS
from traksense import __version__, cli
from traksense.config import DatabaseUrl, Secret, Settings
from traksense.errors import BrokerError, ConfigError, StoreMisconfiguredError, StoreUnavailableError
from traksense.store import session_settings
from traksense.tools.stack import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "geheim"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Puts a function in the place of all commands: `traksense fake`."""

    def install(body: Callable[[], int]) -> None:
        module = ModuleType("traksense.commands.fake")
        module.add_arguments = lambda _parser: None  # type: ignore[attr-defined]
        module.main = lambda _arguments: body()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "traksense.commands.fake", module)
        monkeypatch.setattr(cli, "COMMANDS", {"fake": "for a test"})

    return install


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours is set, and none stays that a test sets."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MQTT_", "INGEST_", "DB_", "LIFECYCLE_"))
    }
    for name in ("DATABASE_URL", "METRICS_PORT"):
        environ.pop(name, None)
    monkeypatch.setattr(os, "environ", environ)


def raising(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize("status", [cli.DONE, cli.FAILED, cli.MISUSED])
def test_main_returns_the_status_of_the_command(command: Callable[[Callable[[], int]], None], status: int) -> None:
    """What a command returns is the exit status."""
    command(lambda: status)

    assert status == cli.main(["fake"])


def test_help_is_a_command_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """`traksense help dlq list` is `traksense dlq list --help`."""
    texts = []
    for words in (["help", "dlq", "list"], ["dlq", "list", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
        texts.append(capsys.readouterr().out)

    assert texts[0] == texts[1]
    assert texts[0].startswith("usage: traksense dlq list ")


def test_unknown_option_shows_the_usage_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    """And names the option, once."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["dlq", "list", "--newest", "4"])

    told = capsys.readouterr().err
    assert told.startswith("usage: traksense dlq list ")
    assert told.endswith("traksense dlq list: error: unrecognized arguments: --newest 4\n")


def test_main_runs_the_service_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """`traksense` alone is `traksense run`."""
    module = ModuleType("traksense.commands.run")
    module.add_arguments = lambda _parser: None  # type: ignore[attr-defined]
    module.main = lambda _arguments: 42  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "traksense.commands.run", module)

    assert 42 == cli.main([])


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (StoreUnavailableError("the database is away"), 1, ["traksense: the database is away"]),
        (ConfigError(["A: bad", "B: worse"]), 2, ["traksense: A: bad", "traksense: B: worse"]),
        (ExceptionGroup("", [BrokerError("no broker")]), 1, ["traksense: no broker"]),
        (
            ExceptionGroup("", [BrokerError("x"), ExceptionGroup("", [ConfigError(["A: y"])])]),
            2,
            ["traksense: x", "traksense: A: y"],
        ),
        (KeyboardInterrupt(), 130, []),
        (ExceptionGroup("", [ExceptionGroup("", [BrokenPipeError()])]), 1, []),
        (OSError(errno.ENOSPC, "No space left on device"), 1, ["traksense: No space left on device: standard output"]),
        (
            OSError(errno.EMFILE, "Too many open files"),
            1,
            ["traksense: Too many open files: raise the limit (ulimit -n)"],
        ),
        (ExceptionGroup("", [OSError(errno.EDQUOT, "Quota exceeded", "/a")]), 1, ["traksense: Quota exceeded: /a"]),
        (BaseExceptionGroup("", [KeyboardInterrupt(), BrokerError("x")]), 130, ["traksense: x"]),
    ],
)
def test_main_tells_expected_errors_in_lines(
    command: Callable[[Callable[[], int]], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    lines: list[str],
) -> None:
    """Our own errors, alone or in groups, are one line a fault on stderr and the status of the contract."""
    command(raising(error))

    assert status == cli.main(["fake"])
    said = capsys.readouterr()
    assert ("", lines) == (said.out, said.err.splitlines())


DEFAULT_USED = "; DATABASE_URL is not set, in the environment or by --env-file: this is its default"


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize(
    "argv", [["migrate"], ["lifecycle", "plan"], ["dlq", "list"], ["maintain"], ["uninstall"], ["validate"]]
)
def test_database_that_nobody_named_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """If it cannot be reached; one that was named is the user's own."""
    url = f"postgresql://postgres:postgres@127.0.0.1:{free_port()}/traksense"
    defaults = Settings.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "database", DatabaseUrl(Secret(url)))
    cli.main(argv)
    said = capsys.readouterr()
    monkeypatch.setenv("DATABASE_URL", url)
    cli.main(argv)
    named = capsys.readouterr()

    assert f"Connection refused{DEFAULT_USED}\n" in said.out + said.err
    assert "Connection refused\n" in named.out + named.err
    assert DEFAULT_USED not in named.out + named.err


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize(
    ("error", "note"),
    [
        (StoreMisconfiguredError("no such user", "28000"), DEFAULT_USED),
        (StoreMisconfiguredError("no such database", "3D000"), DEFAULT_USED),
        (StoreMisconfiguredError("not an operator"), ""),
        (StoreUnavailableError("locked", "55P03"), ""),
        (ConfigError(["A: bad"]), ""),
    ],
)
def test_database_that_was_entered_is_not_the_question(
    capsys: pytest.CaptureFixture[str], error: Exception, note: str
) -> None:
    """The default is spoken of where nobody was let in, also by a fault of the configuration that came of that."""
    cli.report(error, "dlq")
    cli.report(error, "bench")
    alone, other = capsys.readouterr().err.splitlines()
    try:
        raise ConfigError(["DATABASE_URL: no"]) from error
    except ConfigError as fault:
        cli.report(fault, "dlq")

    assert alone == f"{other}{note}"
    assert f"traksense: DATABASE_URL: no{note}\n" == capsys.readouterr().err


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize("argv", [["migrate"], ["dlq", "list"], ["maintain"]])
def test_database_that_nobody_named_and_that_refuses_the_login_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    """A PostgreSQL of somebody's on this machine knows no user of the default's."""

    async def refuse(*_: object, **__: object) -> None:
        raise asyncpg.InvalidPasswordError("no")

    monkeypatch.setattr(session_settings, "connect", refuse)

    assert cli.MISUSED == cli.main(argv)
    assert capsys.readouterr().err.endswith(f"{DEFAULT_USED}\n")


@pytest.mark.parametrize("error", [ZeroDivisionError(), ExceptionGroup("", [BrokerError("x"), ZeroDivisionError()])])
def test_main_lets_bugs_through(command: Callable[[Callable[[], int]], None], error: Exception) -> None:
    """A programming error is not caught, nor hidden by an expected one beside it."""
    command(raising(error))

    with pytest.raises(type(error)):
        cli.main(["fake"])


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_main_helps(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """Every command explains itself, exit 0."""
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)

    assert 0 == ended.value.code
    assert (__version__ if argv == ["--version"] else "usage: traksense") in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["unknown"],
        ["--unknown"],
        ["dlq"],
        ["dlq", "show"],
        ["dlq", "show", "0"],
        ["dlq", "show", "9223372036854775808"],
        ["dlq", "list", "--since", "yesterday"],
        ["dlq", "list", "--reason", "unknown"],
        ["dlq", "list", "--open", "--all"],
        ["dlq", "list", "--limit", "0"],
        ["dlq", "list", "--tenant", "\udcff"],
        ["shards", "retire", ""],
        ["shards", "retire", "\udcff"],
        ["shards", "retire", "a" * 65_536],
        ["simulate", "--tenant-prefix", "\udcff"],
        ["simulate", "--tenant-prefix", "\x1b[31m"],
        ["simulate", "--points", "100001"],
        ["validate", "--points", "4999"],
        ["validate", "--points", "ten"],
        ["validate", "--patience", "0"],
        ["validate", "--patience", "nan"],
        ["bench", "--directory", ""],
        ["demo", "--directory", ""],
        ["prove", "--directory", ""],
        # What Python alone would read as a number.
        ["simulate", "--devices", "\u0661\u0662"],
        ["simulate", "--devices", "1_000"],
        ["simulate", "--rate", "1e-400"],
        ["simulate", "--seed", "\u0661"],
        ["validate", "--patience", "\u0661"],
        ["shards", "check", "--listen", "1_0"],
    ],
)
def test_main_refuses_bad_arguments(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """Arguments that cannot be are refused before anything is done: usage, one line, exit 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)

    assert 2 == ended.value.code
    assert ": error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["dlq", "show"],
        ["validate", "--points"],
        ["simulate", "--devices"],
        ["prove", "--runs"],
        ["prove", "--replicas"],
    ],
)
def test_main_does_not_repeat_long_arguments(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """Nor does it name a function of ours."""
    with pytest.raises(SystemExit):
        cli.main([*argv, "9" * 5_000])

    error = capsys.readouterr().err.splitlines()[-1]
    assert len(error) < 150
    assert "invalid" not in error


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--devices", "2000000000", "a whole number, 1-1000000000"),
        ("--rate", "1e10", "a number, 0-1000000000"),
        ("--seconds", "0.0001", "a number, 0.001-1000000000"),
    ],
)
def test_main_says_what_a_number_may_be(capsys: pytest.CaptureFixture[str], option: str, text: str, said: str) -> None:
    """Both ends: what is refused is not within what is said."""
    with pytest.raises(SystemExit):
        cli.main(["simulate", option, text])

    assert f"must be {said}, not '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["simulate", "demo"])
@pytest.mark.usefixtures("bare_environment")
def test_fleet_fits_into_memory(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Devices that would take gigabytes are refused before anything is started."""
    assert 2 == cli.main([command, "--tenants", "3", "--devices", "1000000000"])
    assert "traksense: --tenants, --devices: 3 x 1000000000 devices are more than 100000\n" == capsys.readouterr().err


@pytest.mark.parametrize("argv", [["run"], ["migrate"], ["validate"], ["dlq", "list"]])
@pytest.mark.usefixtures("bare_environment")
def test_main_names_every_fault_of_the_configuration(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """A wrong environment: exit 2 before anything is opened, every fault a line, no secret in any."""
    os.environ |= {
        "MQTT_URL": f"mqtt://user:{SECRET}@host:port",
        "DATABASE_URL": f"mysql://user:{SECRET}@host/traksense",
        "MQTT_QOS": "2",
        "INGEST_BATCHSIZE": "10",
    }

    assert 2 == cli.main(argv)
    lines = capsys.readouterr().err.splitlines()
    assert {"MQTT_URL", "DATABASE_URL", "MQTT_QOS", "INGEST_BATCHSIZE"} == {line.split(": ")[1] for line in lines}
    assert all(line.startswith("traksense: ") and SECRET not in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "variable", "where"),
    [
        (["--metrics-url", "ftp://host"], ("METRICS_PORT", "9100"), "--metrics-url"),
        (["--metrics-url", "http://host:port"], ("METRICS_PORT", "9100"), "--metrics-url"),
        ([], ("METRICS_PORT", "0"), "METRICS_PORT"),
        ([], ("MQTT_URL", "mqtt://"), "MQTT_URL"),
    ],
)
@pytest.mark.usefixtures("bare_environment")
def test_validate_refuses_what_can_never_work(
    capsys: pytest.CaptureFixture[str], argv: list[str], variable: tuple[str, str], where: str
) -> None:
    """An endpoint that cannot be: exit 2 and one line, before anything is opened."""
    os.environ |= dict([variable])

    assert 2 == cli.main(["validate", *argv])
    assert capsys.readouterr().err.startswith(f"traksense: {where}: ")


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "status"), [("nonsense", 2), ("dlq purge", 2), ("decode /nowhere", 1), ("decode --help", 0)]
)
def test_status_does_not_depend_on_stderr(arguments: str, status: int, unbuffered: str, stderr: str) -> None:
    """Closed or full: the status stays, and what belongs there does not go to stdout instead."""
    line = f"PYTHONUNBUFFERED={unbuffered} {shlex.quote(sys.executable)} -m traksense {arguments} {stderr}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False, timeout=HANG_SECONDS)

    assert (status, not status) == (done.returncode, bool(done.stdout))


def test_help_is_quick() -> None:
    """Showing help loads neither drivers nor an event loop, and no command's own code."""
    code = (
        "import sys\nfrom traksense import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*{'asyncpg', 'paho', 'trio', 'h11', 'prometheus_client'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "\n" == done.stderr


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_fits_any_terminal(command: str) -> None:
    """Of 80 columns and ASCII: no line is wrapped by the terminal, and nothing fails for want of a letter."""
    done = subprocess.run(
        [sys.executable, "-m", "traksense", command, "--help"],
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "\\u" not in done.stdout
    assert "" == done.stderr


# --- .env files -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bare_environment")
def test_env_file_is_read_and_the_environment_wins(
    command: Callable[[Callable[[], int]], None], tmp_path: Path
) -> None:
    """Lines NAME=value of a file become variables, with or without quotes, the last of a name; what is set
    already stays. A byte order mark is no part of a name.
    """
    file = tmp_path / ".env"
    file.write_text(
        "\ufeffMQTT_VERSION=3.1.1\n"
        "# a comment\n\nMQTT_URL=mqtt://other\nMQTT_URL=mqtt://broker:1883\nMQTT_USERNAME='o''brien'\n"
        ' MQTT_PASSWORD = "a=b c" \nMETRICS_PORT=1\n',
        encoding="utf-8",
    )
    os.environ["METRICS_PORT"] = "9100"
    command(lambda: 0)

    assert 0 == cli.main(["--env-file", str(file), "fake"])
    names = ("MQTT_VERSION", "MQTT_URL", "MQTT_USERNAME", "MQTT_PASSWORD", "METRICS_PORT")
    assert ["3.1.1", "mqtt://broker:1883", "o''brien", "a=b c", "9100"] == [os.environ[name] for name in names]


@pytest.mark.usefixtures("bare_environment")
def test_env_file_faults_are_named_with_their_lines(
    command: Callable[[Callable[[], int]], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Every line that is not NAME=value is named, none of its content; the command does not run."""
    file = tmp_path / ".env"
    file.write_text(f"GOOD=1\n{SECRET}\nnot a name={SECRET}\nexport NAME={SECRET}\n", encoding="utf-8")
    command(raising(AssertionError("it ran")))

    assert 2 == cli.main(["--env-file", str(file), "fake"])
    *others, last = capsys.readouterr().err.splitlines()
    assert [f"traksense: {file}:{line}: not NAME=value" for line in (2, 3)] == others
    assert last.startswith(f"traksense: {file}:4: begins with export: ")
    assert SECRET not in last


@pytest.mark.usefixtures("bare_environment")
def test_env_file_faults_do_not_hide_those_of_the_variables(
    command: Callable[[Callable[[], int]], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The lines, then everything that is wrong with the values and names, of the service and of the policy."""
    file = tmp_path / ".env"
    file.write_text("MQTT_QOS 1\nINGEST_BATCH_SIZE=0\nLIFECYCLE_RETAIN_RAW=soon\nMQTT_TOPIC=a\n", encoding="utf-8")
    command(raising(AssertionError("it ran")))

    assert 2 == cli.main(["--env-file", str(file), "fake"])
    lines = [line.removeprefix("traksense: ") for line in capsys.readouterr().err.splitlines()]
    assert f"{file}:1: not NAME=value" == lines[0]
    assert ["INGEST_BATCH_SIZE", "LIFECYCLE_RETAIN_RAW", "MQTT_TOPIC"] == sorted(
        line.partition(": ")[0] for line in lines[1:]
    )


@pytest.mark.parametrize(
    "argv",
    [*([name] for name in cli.COMMANDS), ["dlq", "list"], ["lifecycle", "plan"], ["shards", "retire", "x"]],
    ids=" ".join,
)
def test_env_file_may_stand_anywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str]) -> None:
    """Before the command, behind it and behind its action: the same file is read."""
    file = str(tmp_path / "none")
    whole = [*argv, *({"dlq": ["list"], "lifecycle": ["plan"], "shards": ["show"]}.get(" ".join(argv), []))]

    places = [[*whole[:n], "--env-file", file, *whole[n:]] for n in range(len(argv) + 1)]

    assert [2] * len(places) == [cli.main(place) for place in places]
    assert [f"traksense: {file}: cannot read it: No such file or directory"] * len(
        places
    ) == capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("bare_environment")
def test_run_finds_what_check_config_finds(capsys: pytest.CaptureFixture[str]) -> None:
    """Also the policy's faults, which the service itself does not read: it is the same file."""
    os.environ |= {"LIFECYCLE_RETAIN_RAWW": "1 day", "MQTT_TOPIC": "a"}

    said = []
    for command in ("check-config", "run"):
        assert 2 == cli.main([command])
        said.append(capsys.readouterr().err)

    assert said[0] == said[1]
    assert 2 == len(said[0].splitlines())


@pytest.mark.parametrize(
    ("name", "said"), [("a\nb", "a\\nb: cannot read it: No such file"), ("/dev/zero", "longer than 1048576 bytes")]
)
def test_env_file_that_is_none_is_said_in_a_line(capsys: pytest.CaptureFixture[str], name: str, said: str) -> None:
    """Whatever its name, and however much there is to read."""
    assert 2 == cli.main(["--env-file", name, "run"])
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_env_file_that_is_missing_is_a_fault(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file that cannot be read: exit 2 and one line."""
    assert 2 == cli.main(["--env-file", str(tmp_path / "none"), "migrate"])
    assert capsys.readouterr().err.startswith(f"traksense: {tmp_path / 'none'}: cannot read it: ")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has UTF-8 under every locale")
def test_env_file_may_have_what_the_locale_lacks(tmp_path: Path) -> None:
    """A character that no variable can have under this locale is a fault of its line, not a traceback."""
    file = tmp_path / ".env"
    file.write_text("MQTT_USERNAME=\u20ac\n", encoding="utf-8")
    line = [sys.executable, "-m", "traksense", "--env-file", str(file), "check-config"]
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)

    said = f"traksense: {file}:1: has a character that {{}} lacks: set LC_ALL=C.UTF-8\n"
    assert (2, said.format("ascii")) == (done.returncode, done.stderr)
