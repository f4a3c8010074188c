"""What `ops/` ships, checked without a container engine: the files parse, agree with the code and with each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import pytest

from tests.patience import HANG_SECONDS
from traksense import cli, config
from traksense.config import Settings
from traksense.store import policy
from traksense.store.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
OPS: Final = ROOT / "ops"
MIB: Final = 1024 * 1024

EXAMPLE: Final = OPS / "traksense.env.example"

# --- traksense.env.example and compose.env ----------------------------------------------------------------------------


@attrs.frozen
class EnvLine:
    """One `NAME=value` of an environment file; off if it is commented out."""

    name: str
    value: str
    on: bool
    explained: bool


def env_lines(path: Path = EXAMPLE) -> list[EnvLine]:
    found: list[EnvLine] = []
    explained = False
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(#?)([A-Z][A-Z0-9_]*)=(.*)", line)
        if match:
            found.append(EnvLine(match[2], match[3], on=not match[1], explained=explained))
        else:
            explained = line.startswith("# ") and not line.startswith("# ---")
    return found


def env_values(path: Path) -> dict[str, str]:
    """What a file switches on."""
    return {line.name: line.value for line in env_lines(path) if line.on}


def test_env_file_has_every_variable() -> None:
    """Every variable that a command reads is in the file, once, and nothing else is."""
    names = [line.name for line in env_lines()]

    assert sorted([*config.variables(), *policy.variables()]) == sorted(names)


def test_env_file_explains_every_variable() -> None:
    """A comment stands directly above each variable or its group."""
    assert [] == [line.name for line in env_lines() if not line.explained]


def test_env_file_changes_nothing_by_itself() -> None:
    """A copy that nobody has edited is the defaults."""
    assert {} == env_values(EXAMPLE)


def test_env_file_shows_every_default() -> None:
    """What is shown is the default, and a default that can be written is shown."""
    shown = {line.name: line.value for line in env_lines() if line.value}
    others = {line.name for line in env_lines() if not line.value}
    fields = config.variables()

    assert Settings() == config.load({name: text for name, text in shown.items() if name in fields})
    assert Policy() == policy.load({name: text for name, text in shown.items() if name not in fields})
    assert [] == [name for name in others & set(fields) if not name.endswith("_FILE") and fields[name].default]
    assert set() == others - set(fields)


def test_env_file_is_read_by_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--env-file` takes what compose and systemd read, with every line switched on."""
    environ: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environ)
    on = tmp_path / "traksense.env"
    on.write_text(re.sub(r"^#(?=[A-Z_0-9]+=)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE), "utf-8")

    cli.load_env_file(on)

    assert {line.name: line.value for line in env_lines()} == environ


# --- Dockerfile -------------------------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the last stage."""
    text = (OPS / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    instructions = [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]
    last = max(index for index, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[last:]


def healthcheck() -> list[str]:
    (text,) = [rest for word, rest in dockerfile() if word == "HEALTHCHECK"]
    command: list[str] = json.loads(text[text.index("[") :])
    return command


def test_dockerfile_needs_no_shell() -> None:
    """What runs in the container runs by itself, and signals reach it."""
    commands = {word: rest for word, rest in dockerfile() if word in ("ENTRYPOINT", "CMD")}

    assert {"ENTRYPOINT": ["traksense"], "CMD": ["run"]} == {word: json.loads(rest) for word, rest in commands.items()}
    assert ("STOPSIGNAL", "SIGTERM") in dockerfile()
    assert "python" == healthcheck()[0]


def test_dockerfile_runs_as_nobody_special() -> None:
    """The last user is a number other than root's."""
    users = [rest for word, rest in dockerfile() if word == "USER"]

    assert users[-1].isdecimal()
    assert int(users[-1]) > 0


def test_dockerfile_compiles_the_standard_library_once() -> None:
    """The base image has no bytecode of it; without any, each health check would compile what it imports, again."""
    compiles = ("RUN", '["python", "-m", "compileall", "-q", "/usr/local/lib"]')
    user = [word for word, _ in dockerfile()].index("USER")

    assert compiles in dockerfile()[:user], "later nobody may write there"


def test_dockerfile_has_a_supported_python() -> None:
    """Both stages have the same Python, one that the package supports."""
    versions = re.findall(r"^FROM python:(\S+?)-slim\b", (OPS / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)

    assert ["3.13", "3.13"] == versions


@pytest.fixture
def endpoint() -> Iterator[tuple[int, list[int]]]:
    """A port that answers `/healthz` with the status that the list holds."""
    statuses = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0] if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, statuses
        finally:
            server.shutdown()
            thread.join()


def run_healthcheck(port: int) -> int:
    command = [sys.executable, *healthcheck()[1:]]
    proxy = "http://127.0.0.1:9"  # nobody is there
    env = os.environ | {"METRICS_PORT": str(port), "http_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": ""}
    return subprocess.run(command, env=env, capture_output=True, check=False, timeout=HANG_SECONDS).returncode


def test_healthcheck_judges_healthz(endpoint: tuple[int, list[int]]) -> None:
    """It is healthy when `/healthz` says 200, whatever proxy the environment names, and not otherwise."""
    port, statuses = endpoint

    assert 0 == run_healthcheck(port)
    statuses[0] = 503
    assert 1 == run_healthcheck(port)


def test_healthcheck_fails_when_nobody_listens(endpoint: tuple[int, list[int]]) -> None:
    """A process without its endpoint is unhealthy."""
    assert 1 == run_healthcheck(9)


def test_build_context_has_no_secrets() -> None:
    """Only what the wheel is made from is sent to the builder, and it is all there."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}

    assert "*" == rules[0]
    assert {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "MANIFEST.in", "sql", "traksense"} <= let_in
    assert [] == [name for name in let_in if not (ROOT / name).exists()]
    assert [] == [name for name in let_in if name.startswith((".", "ops", "tests"))]


# --- shared with the other modules about ops/ -------------------------------------------------------------------------


def seconds(text: str) -> float:
    """A duration as compose and systemd write it."""
    number, unit = re.fullmatch(r"(\d+)(s|m|min)?", text).groups()  # type: ignore[union-attr]  # a mismatch fails
    return int(number) * {"s": 1, None: 1}.get(unit, 60)


def run(*command: str | Path, cwd: Path) -> str:
    """What a program said, if it succeeded."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=HANG_SECONDS
    )
    assert 0 == done.returncode, done.stdout
    return done.stdout


# --- systemd ----------------------------------------------------------------------------------------------------------


def unit(file: str = "traksense.service") -> dict[str, dict[str, list[str]]]:
    """Sections, names, and all values of each name."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in (OPS / "systemd" / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, value = line.split("=", 1)
            section.setdefault(name, []).append(value)
    return found


def test_unit_stops_and_restarts_as_the_service_expects() -> None:
    """SIGTERM first, patience beyond the service's own deadline, no restart on a configuration that is wrong."""
    service = unit()["Service"]

    assert ["SIGTERM"] == service["KillSignal"]
    assert seconds(service["TimeoutStopSec"][0]) > Settings().shutdown_deadline
    assert ["on-failure"] == service["Restart"]
    assert [str(cli.MISUSED)] == service["RestartPreventExitStatus"]


def test_unit_leaves_process_metrics_alone() -> None:
    """prometheus_client needs /proc/stat for its process_ metrics, which ProcSubset=pid would hide."""
    assert "ProcSubset" not in unit()["Service"]


@pytest.fixture
def installed_unit(tmp_path: Path) -> Path:
    """The unit with a program that is here."""
    path = tmp_path / "traksense.service"
    text = (OPS / "systemd" / "traksense.service").read_text(encoding="utf-8")
    path.write_text(text.replace("/opt/traksense/bin/traksense", sys.executable), encoding="utf-8")
    return path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_accepts_the_unit(installed_unit: Path) -> None:
    """systemd-analyze finds no unknown name and no bad value."""
    assert "" == run("systemd-analyze", "verify", installed_unit, cwd=installed_unit.parent)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_calls_the_unit_safe(installed_unit: Path) -> None:
    """Its exposure is 2 or less on a scale to 10, on which a unit without hardening has 9.6."""
    said = run("systemd-analyze", "security", "--offline=true", "--threshold=20", installed_unit, cwd=ROOT)

    assert "Overall exposure level" in said
