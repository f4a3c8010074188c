"""A streaming standby of a PostgreSQL that runs here: made with pg_basebackup, promoted when asked to."""

from __future__ import annotations

import functools
import os
import shutil
from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.postgres import SUPERUSER, PostgresProcess
from traksense.tools.stack.postgres_programs import server_environment
from traksense.tools.stack.processes import last_words, run_to_end
from traksense.tools.stack.unprivileged import write_private

if TYPE_CHECKING:
    from pathlib import Path

BASEBACKUP: Final = "pg_basebackup"

PROMOTE_SECONDS: Final = 60
"""How long a promotion may take; pg_promote's own default."""


class StandbyProcess(PostgresProcess):
    """A copy of `primary` that follows it, on a port of its own and with the same passwords.

    Once promoted it is a primary like any other, also after restarts. The primary must run at the first start.
    """

    def __init__(self, directory: Path, primary: PostgresProcess, *, port: int = 0) -> None:
        super().__init__(directory, bindir=primary.bindir, port=port, settings=primary.settings)
        self._primary = primary

    async def promote(self) -> None:
        """Make it take writes, and wait until it does.

        Raises:
            StackError: It did not become a primary in time.

        Trio-flavored.
        """
        await trio.to_thread.run_sync(
            functools.partial(self._ask, lambda db: db.fetchval("SELECT pg_promote(true, $1)", PROMOTE_SECONDS))
        )

    def _initdb(self) -> None:
        """Copy the primary beside the place and move it there when whole."""
        password = self._primary.password
        write_private(self._password_file, password)
        unfinished = self.directory / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._identity:
            os.chown(unfinished, self._identity.uid, self._identity.gid)
        argv: list[str | Path] = [
            *(self.bindir / BASEBACKUP, "-D", unfinished, "-h", self._primary.host, "-p", str(self._primary.port)),
            # -R writes down how to follow the primary, its password included.
            *("-U", SUPERUSER, "-R", "-X", "stream", "-c", "fast"),
        ]
        environment = server_environment() | {"PGPASSWORD": password}
        done = run_to_end(argv, env=environment, cwd=self.directory, identity=self._identity)
        if done.returncode != 0:
            raise StackError(f"{BASEBACKUP} failed in {unfinished}: {last_words(done)}")
        unfinished.rename(self._cluster)
