"""The run's database, seen from outside the service: prepared, disturbed, sampled, and read at the end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from traksense.config import DatabaseUrl, Secret
from traksense.errors import StoreError
from traksense.store.connection import open_connection
from traksense.tools.prove import reader
from traksense.tools.prove.messages import REFUSED_TEXT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from traksense.store.connection import DatabaseConnection
    from traksense.tools.prove.messages import Key, Sent

APPLICATION: Final = "traksense-prove"
SERVICE_APPLICATION: Final = "traksense %"
"""What the service calls itself (`store.postgres`), as a LIKE pattern; it does not match ours."""

AT_LAST_SECONDS: Final = 300.0
"""Longer than any fault of `prove` lasts, and any start of a server. Chosen by guess."""

_FULL: Final = "could not extend file: No space left on device (emulated by traksense prove)"

PREPARE: Final = (
    # Refusals: what passes every decoder and only the database can refuse (23514, the data's fault).
    f"ALTER TABLE traksense.measure ADD CONSTRAINT prove_refuses CHECK (v_text IS DISTINCT FROM '{REFUSED_TEXT}')",
    f"ALTER TABLE public.device_event ADD CONSTRAINT prove_refuses CHECK (event_type <> '{REFUSED_TEXT}')",
    reader.PREPARE,
    # A switch for the full disk, in place from the beginning: triggers made later would wait for the service's locks.
    "CREATE SCHEMA prove",
    "CREATE TABLE prove.switch (is_full boolean NOT NULL)",
    "INSERT INTO prove.switch VALUES (false)",
    f"""
    CREATE FUNCTION prove.insert_or_not() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT is_full FROM prove.switch) THEN
            RAISE EXCEPTION '{_FULL}' USING ERRCODE = '53100';
        END IF;
        RETURN NULL;
    END
    $$
    """,  # noqa: S608  (a constant)
    *(
        f"CREATE TRIGGER prove_full BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION prove.insert_or_not()"
        for table in (
            "traksense.measure", "public.cmd_ack", "public.device_event", "public.ingest_errors",
            "traksense.tenant", "traksense.device", "traksense.series", "traksense.meta",
        )
    ),
)  # fmt: skip

NO_DICTIONARY_CHECK: Final = """
DO $$
DECLARE
    check_ oid;
BEGIN
    FOR check_ IN SELECT oid FROM pg_proc WHERE proname = 'hold_dictionary' LOOP
        EXECUTE format(
            'CREATE OR REPLACE PROCEDURE traksense.hold_dictionary(%s) LANGUAGE plpgsql AS $body$ BEGIN END $body$',
            pg_get_function_arguments(check_)
        );
    END LOOP;
END
$$
"""
"""For `--break no-dictionary-check`."""

LOCKABLE: Final = (
    """
    CREATE FUNCTION prove.share_a_lock() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(1953653099, 2);
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER prove_lock BEFORE INSERT ON traksense.measure
    FOR EACH STATEMENT EXECUTE FUNCTION prove.share_a_lock()
    """,
)
"""For `--break lockable`: writers wait for a lock that a reader may hold."""

DROP_UNIQUE_KEY: Final = "ALTER TABLE traksense.measure DROP CONSTRAINT measure_pkey"
"""For `--break no-unique-key`; on a partitioned table it holds for all partitions."""

_ROWS: Final = {
    "measure": """
        SELECT tenant_id, site_id, device_id, point_id, (extract(epoch FROM ts) * 1000000)::bigint::text,
            coalesce(v_num::text, v_bool::text, v_text)
        FROM public.ts_measure
    """,
    "ack": """
        SELECT tenant_id, device_id, cmd_id,
            concat_ws(' ', CASE WHEN ok THEN 'True' ELSE 'False' END, coalesce(err, 'None'),
                (extract(epoch FROM ts_exec) * 1000000)::bigint)
        FROM public.cmd_ack
    """,
    "event": """
        SELECT tenant_id, device_id, event_type, (extract(epoch FROM ts) * 1000000)::bigint::text,
            coalesce(event_id, ''), data ->> 'number'
        FROM public.device_event
    """,
    "dead": "SELECT topic, encode(payload, 'hex'), reason FROM public.ingest_errors",
}
"""For each relation of a `messages.Key`: its columns, then the value."""

_PRESENT: Final = {
    "measure": """
        SELECT k.n FROM unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
            AS k (n, tenant, site, device, point, ts)
        WHERE EXISTS (
            SELECT FROM public.ts_measure m
            WHERE (m.tenant_id, m.site_id, m.device_id, m.point_id) = (k.tenant, k.site, k.device, k.point)
                AND m.ts = timestamptz 'epoch' + k.ts::bigint * interval '1 microsecond'
        )
    """,
    "untimed": """
        SELECT k.n FROM unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
            AS k (n, tenant, site, device, point, value)
        WHERE EXISTS (
            SELECT FROM public.ts_measure m
            WHERE (m.tenant_id, m.site_id, m.device_id, m.point_id) = (k.tenant, k.site, k.device, k.point)
                AND m.v_num = k.value::float8
        )
    """,
    "ack": """
        SELECT k.n FROM unnest($1::int[], $2::text[], $3::text[], $4::text[]) AS k (n, tenant, device, cmd)
        JOIN public.cmd_ack a ON (a.tenant_id, a.device_id, a.cmd_id) = (k.tenant, k.device, k.cmd)
    """,
    "event": """
        SELECT k.n
        FROM unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
            AS k (n, tenant, device, kind, ts, id)
        JOIN public.device_event e ON (e.tenant_id, e.device_id, e.event_type) = (k.tenant, k.device, k.kind)
            AND e.ts = timestamptz 'epoch' + k.ts::bigint * interval '1 microsecond'
    """,
    "dead": """
        SELECT k.n FROM unnest($1::int[], $2::text[], $3::text[]) AS k (n, topic, payload)
        JOIN public.ingest_errors d ON d.topic = k.topic AND d.payload = decode(k.payload, 'hex')
    """,
}
"""For each relation: which of these messages have a row. Parameters: their numbers, then the columns of the key."""


class Database:
    """The run's database, over the direct way, past the proxy."""

    def __init__(self, dsn: str) -> None:
        self.move(dsn)

    def move(self, dsn: str) -> None:
        """From the next connection on, it is there."""
        self.url = DatabaseUrl(Secret(dsn))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[DatabaseConnection]:
        """A connection for the duration.

        Raises:
            StoreError: There is none to be had.
        """
        async with open_connection(self.url, application=APPLICATION, schema=False) as connection:
            # A read-only default must not bind whoever has to undo it.
            await connection.fetch("SET default_transaction_read_only = off")
            yield connection

    async def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each in a transaction of its own, on a connection of their own; the last one's rows."""
        rows: list[tuple[Any, ...]] = []
        async with self.connected() as connection:
            for statement in statements:
                rows = await connection.fetch(statement)
        return rows

    async def execute_at_last(self, *statements: str) -> list[tuple[Any, ...]]:
        """As `execute`, again and again until it succeeds: the server may be starting.

        Raises:
            StoreError: It has not succeeded within `AT_LAST_SECONDS`.
        """
        deadline = trio.current_time() + AT_LAST_SECONDS
        while True:
            try:
                return await self.execute(*statements)
            except StoreError:
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(0.1)

    async def backends(self) -> list[int]:
        """The process ids of the service's backends."""
        rows = await self.execute_at_last(
            "SELECT pid FROM pg_stat_activity "  # noqa: S608  (a constant)
            f"WHERE datname = current_database() AND application_name LIKE '{SERVICE_APPLICATION}'"
        )
        return [row[0] for row in rows]

    async def rows(self) -> list[tuple[Key, str]]:
        """Everything that is stored, for `oracle.judge`."""
        result: list[tuple[Key, str]] = []
        async with self.connected() as connection:
            for relation, statement in _ROWS.items():
                result += [((relation, *row[:-1]), row[-1]) for row in await connection.fetch(statement)]
        return result


async def stored(connection: DatabaseConnection, messages: Iterable[Sent]) -> set[int]:
    """The numbers of those of these messages of which a row is there now.

    Raises:
        StoreError: It cannot be told now.
    """
    by_relation: dict[str, list[tuple[Any, ...]]] = {}
    for sent in messages:
        key = next(iter(sent.rows))
        by_relation.setdefault(key[0], []).append((sent.number, *key[1:]))
    found: set[int] = set()
    for relation, keys in by_relation.items():
        found.update(row[0] for row in await connection.fetch(_PRESENT[relation], *_columns(keys)))
    return found


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
