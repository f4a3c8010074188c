"""A standby that takes over and a pooler in between, as the acceptance tests and `prove` have them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import trio

from traksense.tools.stack import PoolerProcess, PostgresProcess, StandbyProcess, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import OwnPostgres


def ask(dsn: str, *statements: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            connection.terminate()

    return asyncio.run(run())


def test_standby_has_what_was_committed_and_takes_over(
    own_postgres: OwnPostgres, stack_directory: Path, unique: Callable[[str], str]
) -> None:
    """It follows the primary, takes no writes until it is promoted, and then stays a primary; one password."""
    primary = own_postgres()
    with StandbyProcess(stack_directory / unique("standby"), primary) as standby:
        wait = "ALTER SYSTEM SET synchronous_standby_names = '*'"
        ask(primary.dsn, wait, "SELECT pg_reload_conf()")
        ask(primary.dsn, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            ask(standby.dsn, "INSERT INTO kept VALUES (8)")

        primary.kill()
        trio.run(standby.promote)
        ask(standby.dsn, "INSERT INTO kept VALUES (9)")
        standby.restart_sync()

        assert 16 == ask(standby.dsn, "SELECT sum(n) FROM kept")
        assert ask(standby.dsn, "SELECT pg_is_in_recovery()") is False


@pytest.mark.skipif(
    find_pgbouncer() is None and os.environ.get("TRAKSENSE_TEST_ALLOW_NO_POOLER") == "1",
    reason="pgbouncer is missing, and TRAKSENSE_TEST_ALLOW_NO_POOLER=1",
)
def test_pooler_stands_between_and_can_be_killed(
    postgres_server: PostgresProcess, empty_database: str, unique: Callable[[str], str]
) -> None:
    """Every database of the server by way of the pooler, in session mode; again after a kill, on the same port."""
    with PoolerProcess(postgres_server.directory / unique("pooler"), postgres_server) as pooler:
        through = empty_database.replace(f":{postgres_server.port}/", f":{pooler.port}/")
        assert through != empty_database
        assert 1 == ask(through, "SELECT 1")

        pooler.kill()
        with pytest.raises(ConnectionRefusedError):
            ask(through, "SELECT 1")
        pooler.start_sync()

        assert 1 == ask(through, "SELECT 1")
