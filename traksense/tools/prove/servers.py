"""The database servers of a session: a primary and, in runs that want one, a synchronous standby that can take over."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import trio

from traksense.tools.prove.database import Database
from traksense.tools.stack import StandbyProcess, free_port
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from traksense.tools.stack import PostgresProcess

_STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


class Servers:
    """See the module. Their two ports stay the same; which of them is the primary's does not.

    Attributes:
        primary: The one that takes writes.
        standby: The one that follows it, if there is one.
        ports: Of the two, the first primary's first.
    """

    def __init__(self, primary: PostgresProcess, directory: Path) -> None:
        self.primary = primary
        self.standby: StandbyProcess | None = None
        self.ports = (primary.port, free_port())
        self._directory = directory
        self._standbys = 0

    async def follow(self) -> None:
        """Have a standby, without which from now on nothing is committed. Does nothing if there is one.

        Raises:
            StackError: It could not be made.
        """
        if self.standby is not None:
            return
        self._standbys += 1
        (port,) = {*self.ports} - {self.primary.port}
        standby = StandbyProcess(self._directory / f"standby-{self._standbys}", self.primary, port=port)
        await standby.start()
        self.standby = standby
        server = self._server()
        while (await server.execute_at_last(_STREAMING))[0][0] < 1:
            await trio.sleep(POLL_SECONDS)
        # Not before: a server that waits for a standby that it does not have would not even let us make one.
        await server.execute_at_last("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")

    async def fail_over(self, seconds: float, on_standby_lost: Callable[[], None]) -> None:
        """Have the standby away for so long, kill the primary, and promote the standby as it is. There is none then."""
        standby = self.standby
        assert standby is not None
        standby.kill()
        on_standby_lost()
        await trio.sleep(seconds)
        self.primary.kill()
        self._remove(self.primary)
        # From here on there is one server: whoever heals starts that one.
        self.primary, self.standby = standby, None
        await standby.start()
        await standby.promote()

    async def heal(self) -> None:
        """Have them run, all of them."""
        await self.primary.start()
        if self.standby is not None:
            await self.standby.start()

    async def part(self) -> None:
        """Have no standby. Does nothing if there is none."""
        if self.standby is None:
            return
        await self._server().execute_at_last("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        await self.standby.stop()
        self._remove(self.standby)
        self.standby = None

    async def stop(self) -> None:
        """End those that the session's own `open_postgres` does not know, politely: a killed one leaves children that
        take a moment to notice.
        """
        for server in (self.standby, self.primary):
            if isinstance(server, StandbyProcess):
                await server.stop()

    def _server(self) -> Database:
        return Database(self.primary.dsn)

    @staticmethod
    def _remove(server: PostgresProcess) -> None:
        """Its data; the log is of use after a failure."""
        shutil.rmtree(server.directory / "cluster", ignore_errors=True)
