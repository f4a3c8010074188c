"""Whether the database would take a write now, asked by writing. asyncio-flavored.

A server that answers may still be read-only, full, locked, without a right of ours, or waiting for its standby. So the
probe runs the very statements that a batch runs, with a message of each kind that nobody will see, takes them back, and
commits: a COMMIT that waits is part of the answer.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from traksense.errors import StoreUnavailableError
from traksense.store.dictionary import hold_statement
from traksense.store.durability import COMMIT_RECORD, WAITING_FOR_STANDBY
from traksense.store.meta_numbers import INSERT_META, SELECT_META
from traksense.store.packing import PackedRows
from traksense.store.registration import INSERT_DEVICES, INSERT_SERIES, INSERT_TENANTS, SELECT_DEVICES, SELECT_SERIES
from traksense.store.rollup import mark_statement
from traksense.store.transaction import INSERT_ERRORS, INSERT_EVENTS, UPSERT_ACKS

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

PROBE_SECONDS: Final = 5.0
"""How long each of the two steps may take. Chosen by guess: no small write that goes well takes so long."""

LOCK_SECONDS: Final = 2.0
"""How long the probe waits for a lock. Chosen by guess: longer than any writer of ours holds one against another."""

_INSERT_MEASURE: Final = "INSERT INTO traksense.measure (series_id, ts, v_num) SELECT 0, unnest($1::timestamptz[]), 0"


async def probe(connection: PoolConnectionProxy, token: str, *, strict: bool, marking: bool) -> None:
    """Write, and take it back.

    Args:
        connection: Where.
        token: What the dictionary is called.
        strict: Devices are provisioned by hand.
        marking: A batch marks what it changes in the aggregates (plain PostgreSQL).

    Raises:
        StoreUnavailableError: COMMIT waits for the synchronous standby.
        TimeoutError: The server is too slow.
        asyncpg.PostgresError, OSError: It would not take a write.
    """
    session: Any = connection  # a ServiceConnection
    session.take_unreplicated()
    try:
        text = _write(session.marker, hold_statement(connection, token), strict=strict, marking=marking)
        await connection.execute(text, timeout=PROBE_SECONDS)
        try:
            await connection.execute("COMMIT", timeout=PROBE_SECONDS)
        except TimeoutError:
            # The driver has cancelled it. What came of that is known when the connection is free again.
            await connection.execute("SELECT 1", timeout=PROBE_SECONDS)
            if session.take_unreplicated():
                raise StoreUnavailableError(WAITING_FOR_STANDBY) from None
            raise
        if session.take_unreplicated():
            # Somebody else has cancelled it.
            raise StoreUnavailableError(WAITING_FOR_STANDBY)
    except BaseException:
        # In the middle of a transaction, so a pooler does not keep the session for others either.
        with suppress(asyncpg.InterfaceError):  # it has ended
            session.terminate()
        raise


def _write(marker: str, hold: str, *, strict: bool, marking: bool) -> str:
    """All of it in one message."""
    # A name for each session, so that the probes of replicas do not wait for each other's unique keys.
    name = f"traksense-probe-{marker}"
    now, digest, document = str(datetime.now(UTC)), f"\\\\x{0:032x}", "{}"
    device = (name, "s", "d")
    series, meta = (*device, "p", "u"), (name, digest)
    if strict:
        # Devices are provisioned by hand, so nothing can be registered for this one: of no rows, tables and rights are
        # asked for all the same.
        register = [
            with_values(SELECT_DEVICES, *device),
            with_values(SELECT_SERIES, *series),
            with_values(INSERT_SERIES),
            with_values(INSERT_META),
        ]
    else:
        register = [
            with_values(INSERT_TENANTS, name),
            with_values(INSERT_DEVICES, *device),
            with_values(SELECT_SERIES, *series),
            # Of no rows: the numbers of series and meta objects are four bytes, and each probe would use one up.
            with_values(INSERT_SERIES),
            with_values(INSERT_META),
        ]
    statements = [
        "BEGIN",
        f"SET LOCAL lock_timeout = '{LOCK_SECONDS * 1000:.0f}ms'",
        hold,
        f"SELECT set_config('app.tenant_ids', '{name}', true)",
        "SAVEPOINT probe",
        *register,
        with_values(SELECT_META, *meta),
        *([mark_statement([PackedRows(b"", 0, 0, datetime.now(UTC), 0)])] if marking else []),
        with_values(_INSERT_MEASURE, now),
        with_values(UPSERT_ACKS, *device, "c", "true", now, "e", document, now),
        with_values(INSERT_EVENTS, *device, "e", "t", now, document),
        with_values(INSERT_ERRORS, name, "t", document, "probe", "d", now, digest),
        "ROLLBACK TO SAVEPOINT probe",
        COMMIT_RECORD,
    ]
    return ";\n".join(statements)


def with_values(statement: str, *values: str) -> str:
    """A statement whose parameters are arrays, with an array of one value in the place of each; of none without values.

    A message of the simple query protocol has no parameters, but takes many statements in one round trip.
    """

    def literal(found: re.Match[str]) -> str:
        return f"""'{{"{values[int(found[1]) - 1]}"}}'""" if values else "'{}'"

    return re.sub(r"\$(\d+)", literal, statement)
