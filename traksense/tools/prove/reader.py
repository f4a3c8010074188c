"""A tenant's reader who locks whatever a reader may, keeps an old snapshot, and goes for lunch in a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from traksense.config import DatabaseUrl, Secret
from traksense.errors import StoreError
from traksense.store.connection import open_connection
from traksense.tools.prove.messages import NEW_DAY

if TYPE_CHECKING:
    from traksense.tools.prove.schedule import Injection
    from traksense.tools.prove.stage import Stage

ROLE: Final = "prove_reader"
PASSWORD: Final = "prove"  # noqa: S105  (on the loopback interface, for as long as a run)

PREPARE: Final = f"""
DO $$
BEGIN
    IF to_regrole('{ROLE}') IS NULL THEN
        CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}' IN ROLE traksense_readonly;
    END IF;
END
$$
"""

_KEYS: Final = range(1, 17)
"""Second keys of the advisory locks that began with 1953653099, "trak"; 1 to 3 were in use."""

_READABLE: Final = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v') AND has_table_privilege(c.oid, 'SELECT')
"""

LATE_MESSAGES: Final = 5


async def lock_everything(stage: Stage, injection: Injection) -> bool:
    """Hold all that, and have messages stored that need partitions; until they are, or for as long as it may last."""
    host, port = stage.servers.primary.host, stage.servers.primary.port
    url = DatabaseUrl(Secret(f"postgresql://{ROLE}:{PASSWORD}@{host}:{port}/{stage.database_name}"))
    try:
        async with open_connection(url, application=ROLE, schema=False) as connection:
            await connection.fetch("SET app.tenant_id = 'tenant-0'")
            await connection.fetch("BEGIN ISOLATION LEVEL REPEATABLE READ")
            for (relation,) in await connection.fetch(_READABLE):
                await connection.fetch(f"LOCK TABLE {relation} IN ACCESS SHARE MODE")
                await connection.fetch(f"SELECT count(*) FROM {relation}")  # noqa: S608
            for key in _KEYS:
                await connection.fetch("SELECT pg_advisory_lock(1953653099, $1)", key)
            # From here on, it is to stop nothing.
            stage.resumed.expects(injection.fault)
            numbers = await stage.publishing.send(NEW_DAY, LATE_MESSAGES)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, injection.seconds)
                with trio.move_on_after(stage.resumed.patience + 1):
                    await stage.publishing.wait_acknowledged(numbers)
            await connection.fetch("ROLLBACK")
    except StoreError:
        # The server went away under it: so did the locks.
        return False
    return True
