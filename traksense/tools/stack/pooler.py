"""A real connection pooler as a child process: pgbouncer, with its defaults, between the service and a PostgreSQL."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.postgres import SUPERUSER
from traksense.tools.stack.processes import Child
from traksense.tools.stack.servers import Server, listens
from traksense.tools.stack.unprivileged import unprivileged, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from traksense.tools.stack.postgres import PostgresProcess

_PLACES: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")


class PoolerProcess(Server):
    """pgbouncer in front of a PostgreSQL, for its superuser and any database; state and log are in `directory`.

    Session mode and every default, apart from where it listens and who may come in. It refuses to run as root, as
    PostgreSQL does, and then runs as the same user; as it changes to that user by itself, it outlives us if we are
    killed (Linux forgets whose death it shall share).
    """

    def __init__(
        self, directory: Path, postgres: PostgresProcess, *, port: int = 0, settings: Mapping[str, str] | None = None
    ) -> None:
        """Start nothing yet.

        Args:
            directory: For state and log.
            postgres: The server behind it.
            port: Where it listens; 0 takes a free one.
            settings: As in pgbouncer.ini, besides or instead of ours.
        """
        program = find_pgbouncer()
        if program is None:
            raise StackError(
                "pgbouncer is missing: install it (Debian: apt-get install pgbouncer), or name it in "
                "TRAKSENSE_PGBOUNCER"
            )
        super().__init__("pgbouncer", directory.absolute(), port)
        self._program = program
        self._postgres = postgres
        self._settings = {"pool_mode": "session", **(settings or {})}
        self._identity = unprivileged() if os.geteuid() == 0 else None

    def _prepare(self) -> None:
        self.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        users = self.directory / "users"
        write_private(users, f'"{SUPERUSER}" "{self._postgres.password}"\n')
        config = self.directory / "pgbouncer.ini"
        write_private(
            config,
            "; Written by traksense at each start; changes are lost.\n"
            f"[databases]\n* = host={self._postgres.host} port={self._postgres.port}\n"
            f"[pgbouncer]\nlisten_addr = {self.host}\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_file = {users}\n" + "".join(f"{name} = {value}\n" for name, value in self._settings.items()),
        )
        for path in (users, config):
            if self._identity:
                os.chown(path, self._identity.uid, self._identity.gid)

    def _launch(self) -> Child:
        argv: list[str | Path] = [self._program, self.directory / "pgbouncer.ini"]
        if self._identity:
            # It steps down by itself, once it is loaded: what it is loaded from may be root's alone.
            argv[1:1] = ["-u", self._identity.name]
        return Child(self.name, argv, log_path=self.log_path, cwd=self.directory)

    def _answers(self) -> bool:
        return listens(self.host, self.port)


def find_pgbouncer() -> str | None:
    """The pgbouncer to run: `TRAKSENSE_PGBOUNCER`, else the one on the path or in the usual places."""
    named = os.environ.get("TRAKSENSE_PGBOUNCER")
    if named:
        return named
    return shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_PLACES)))
