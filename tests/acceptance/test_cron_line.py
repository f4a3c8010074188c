"""Commands of the manuals, run in a shell: the line for cron, and the end of an uninstallation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.patience import HANG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[2]
OPS: Final = ROOT / "ops"
INSTALL: Final = (OPS / "install-debian.md").read_text(encoding="utf-8")


@pytest.fixture
def letters(database: str) -> str:
    """The owner's DSN of a database with two dead letters of now, and one of last month."""
    with psycopg.connect(database) as connection:
        for number, reason, ago in ((4711, "parse_error", "1 h"), (4712, "unknown_device", "1 h"), (1, "old", "30 d")):
            connection.execute(
                "INSERT INTO ingest_errors (id, tenant_id, topic, payload, reason, ts, digest) OVERRIDING SYSTEM VALUE"
                " VALUES (%s, 'acme', 'traksense/acme/site/device/telem', '{}', %s, now() - %s::interval, sha256(%s))",
                (number, reason, ago, reason.encode()),
            )
    return database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has the program in it, and nothing else."""
    program = tmp_path / "bin" / "traksense"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={quote(str(ROOT))} exec {quote(sys.executable)} -m traksense "$@"\n')
    program.chmod(0o755)
    return program.parent


def run(command: str, environment: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Exit status and output of a line, in the shell that cron and everybody has."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    return done.returncode, done.stdout


def cron_line() -> tuple[str, str, str]:
    """User, command and PATH of the line for cron on the installation page."""
    (crontab,) = re.findall(r"^cat >/etc/cron\.d/traksense <<'END'\n(.*?)^END$", INSTALL, re.MULTILINE | re.DOTALL)
    path, line = crontab.splitlines()
    *times, user, command = line.split(None, 6)
    assert all(re.fullmatch(r"\*|\d+", time) for time in times)
    assert "%" not in command, "cron takes it for a new line"
    return user, command, path.removeprefix("PATH=")


@pytest.fixture
def installed(folder: Path, tmp_path: Path) -> Callable[[str, str], tuple[int, str]]:
    """Runs the line as cron would, with this DATABASE_URL in the operators' file."""
    (link,) = re.findall(r"^ln -sf \S+ (\S+)/traksense$", INSTALL, re.MULTILINE)
    (written,) = re.findall(
        r"/dev/stdin (\S+operator\.env) <<END\n(?:.*\n)*?DATABASE_URL=postgresql://traksense_owner:", INSTALL
    )

    def run_line(command: str, dsn: str) -> tuple[int, str]:
        user, _, path = cron_line()
        assert "root" == user, "who alone can read the file"
        assert written in command
        file = tmp_path / "operator.env"
        file.write_text(f"DATABASE_URL={dsn}\n")
        path = ":".join(str(folder) if part == link else part for part in path.split(":"))
        environment = {"PATH": path, "HOME": "/", "SHELL": "/bin/sh", "LOGNAME": user}
        return run(command.replace(written, str(file)), environment, Path("/"))

    return run_line


def test_cron_line(letters: str, installed: Callable[[str, str], tuple[int, str]]) -> None:
    """It prints what came since the day before, and would fail with the service's login."""
    _, command, _ = cron_line()
    status, said = installed(command, letters)

    assert 0 == status, said
    assert "parse_error" in said
    assert "unknown_device" in said
    assert "old" not in said
    name = f"service_{os.getpid()}"
    with psycopg.connect(letters, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'p'")
        connection.execute(f"GRANT traksense_ingest TO {name}")
        parts = urlsplit(letters)
        try:
            service = urlunsplit(parts._replace(netloc=f"{name}:p@{parts.netloc.rpartition('@')[2]}"))
            status, said = installed(command, service)
        finally:
            connection.execute(f"DROP ROLE {name}")
    assert 1 == status
    assert "not an operator" in said


@pytest.mark.parametrize("refused", ["dropdb", "dropuser", None])
def test_removing(tmp_path: Path, refused: str | None) -> None:
    """The passwords stay as long as the database or a role does."""
    (command,) = re.findall(
        r"^```sh\n([^`]+? dropdb [^`]+)^```$", (OPS / "uninstall.md").read_text("utf-8"), re.MULTILINE
    )
    programs, done = tmp_path / "bin", tmp_path / "done"
    programs.mkdir()
    for name in ("env", "rm", "systemctl"):
        refuses = f'case "$*" in *" {refused} "*) exit 1 ;; esac' if name == "env" else ""
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{done}\n{refuses}\n')
        (programs / name).chmod(0o755)

    status, _ = run(command, {"PATH": f"{programs}:/usr/bin:/bin"}, tmp_path)

    assert (status == 0, "/etc/traksense" in done.read_text()) == (refused is None, refused is None)
