"""The demo's directory: what is where, which ports it had the last time, and how to look at the data.

cluster, postgres.log, password   PostgreSQL (elsewhere if its user cannot reach the directory; it says so)
broker/                           the broker's state and log
traksense.log                     the service's log
ports.json                        the ports of the last run, taken again so that addresses stay
pg_service.conf                   connects psql without a password on the command line, as the superuser or as a reader
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from traksense.errors import ConfigError, TraksenseError
from traksense.tools.places import absolute, make_directory
from traksense.tools.stack import embedded_bindir, free_port
from traksense.urls import PORT_MAX

if TYPE_CHECKING:
    from traksense.tools.stack import PostgresProcess

DATABASE: Final = "traksense"
SERVICE_NAME: Final = "traksense"
READER_NAME: Final = "reader"
PORTS: Final = ("mqtt", "postgres", "metrics")
PORTS_FILE: Final = "ports.json"


class Place:
    """See the module.

    Args:
        directory: Made if missing.
        make: Whether it may be made; otherwise a demo must have been here.

    Raises:
        TraksenseError: It cannot be made, or is missing.
    """

    def __init__(self, directory: Path, *, make: bool = True) -> None:
        self.directory = absolute(directory)
        if not str(self.directory).isprintable():
            # Brokers and databases read it from their configuration, in lines of UTF-8.
            raise TraksenseError(f"{str(self.directory)!r} has characters that do not show: take another --directory")
        self._ports: dict[str, int] | None = None
        if not make and not self._ports_file.exists():
            raise TraksenseError(
                f"no demo has been in {self.directory}: run `traksense demo` first, or name its --directory"
            )
        make_directory(self.directory)

    @property
    def broker(self) -> Path:
        """For the broker."""
        return self.directory / "broker"

    @property
    def _ports_file(self) -> Path:
        return self.directory / PORTS_FILE

    @property
    def service_file(self) -> Path:
        """For psql, by PGSERVICEFILE."""
        return self.directory / "pg_service.conf"

    def ports(self, wanted: dict[str, int | None]) -> dict[str, int]:
        """A port for each of `PORTS`: the one wanted, else that of the last run if it is free, else any."""
        if self._ports is not None:
            return self._ports
        known = self._known_ports()
        given = {name: port for name in PORTS if (port := wanted.get(name))}
        if len(set(given.values())) < len(given):
            raise ConfigError([f"{', '.join(f'--port-{name}' for name in given)}: each needs a port of its own"])
        ports: dict[str, int] = {}
        for name in PORTS:
            last = known.get(name)
            taken = {*given.values(), *ports.values()}
            ports[name] = given.get(name) or (last if last and last not in taken and _is_free(last) else free_port())
        self._ports = ports
        return ports

    def _known_ports(self) -> dict[str, int]:
        """Those of the last run, as far as the file is what we wrote."""
        known: object = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            known = json.loads(self._ports_file.read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            return {}
        return {name: port for name in PORTS if type(port := known.get(name)) is int and 0 < port <= PORT_MAX}

    def remember_ports(self) -> None:
        """Keep the ports for the next run; to be called when the servers run, since another demo may own the place."""
        self._ports_file.write_text(json.dumps(self._ports, indent=2) + "\n", encoding="utf-8")

    def write_service_file(self, dsn: str) -> None:
        """Let psql connect to this database: above the walls between tenants, and as a dashboard does."""
        parts = urlsplit(dsn)
        login = [
            f"host={parts.hostname}",
            f"port={parts.port}",
            f"user={parts.username}",
            f"password={parts.password}",
            f"dbname={parts.path.lstrip('/')}",
        ]
        reader = "options=-c role=traksense_readonly"
        lines = [f"[{SERVICE_NAME}]", *login, f"[{READER_NAME}]", *login, reader]
        self.service_file.unlink(missing_ok=True)
        descriptor = os.open(self.service_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def database_runs(self) -> bool:
        """Whether something listens where the database of the last run was."""
        with (
            contextlib.suppress(OSError, KeyError),
            socket.create_connection(("127.0.0.1", self._known_ports()["postgres"]), 1.0),
        ):
            return True
        return False

    def psql_line(self, postgres: PostgresProcess | None, tenant: str) -> str | None:
        """What to paste into a shell to see a tenant's newest values while the database runs; None without psql."""
        psql = find_psql(postgres)
        if psql is None:
            return None
        program = "psql" if shutil.which("psql") == str(psql) else shlex.quote(str(psql))
        query = f"SET app.tenant_id = '{tenant}'; SELECT * FROM latest"  # noqa: S608  (our own tenant, for people to read)
        return f'PGSERVICEFILE={shlex.quote(str(self.service_file))} {program} service={READER_NAME} -c "{query}"'

    def command(self, *arguments: str) -> str:
        """The line that runs the demo in this directory, from whatever folder."""
        return " ".join([_program(), "demo", "--directory", shlex.quote(str(self.directory)), *arguments])


def find_psql(postgres: PostgresProcess | None = None) -> Path | None:
    """A psql that works here: the one of the server, of the embedded programs, or on the path."""
    bindirs = [postgres.bindir] if postgres else []
    embedded = embedded_bindir()
    candidates = [bindir / "psql" for bindir in (*bindirs, *([embedded] if embedded else []))]
    if on_path := shutil.which("psql"):
        # What everybody knows how to call comes first.
        candidates.insert(0, Path(on_path))
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def _program() -> str:
    """How we were called, in a form that works in the same shell, from whatever folder."""
    script = Path(sys.argv[0])
    if script.name == "traksense":
        return called(script)
    # -P: or a folder named traksense there, such as a clone, would hide the package.
    return f"{called(Path(sys.executable))} -P -m traksense"


def called(program: Path) -> str:
    """Its name if the shell finds it by that, else its place."""
    found = shutil.which(program.name)
    same = found is not None and Path(found).absolute() == program.absolute()
    return program.name if same else shlex.quote(str(program.absolute()))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
