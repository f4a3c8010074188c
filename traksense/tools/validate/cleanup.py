"""Removes what `validate` made, whatever became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from traksense.errors import TraksenseError
from traksense.store.connection import open_connection
from traksense.tools.validate.target import SITE, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.store.connection import DatabaseConnection
    from traksense.tools.validate.report import Result

SWEEPS: Final = 3
SWEEP_AGAIN_SECONDS: Final = 0.5

REGISTER_TENANTS: Final = "INSERT INTO traksense.tenant (tenant_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
REGISTER_DEVICES: Final = """
INSERT INTO traksense.device (tenant_id, site_id, device_id)
SELECT t, $2, d FROM unnest($1::text[]) AS t, unnest($3::text[]) AS d ON CONFLICT DO NOTHING
"""

_SERIES: Final = "SELECT series_id FROM traksense.series WHERE tenant_id = ANY ($1::text[])"
_BY_SERIES: Final = """
SELECT c.oid::regclass::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'traksense'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND a.attname = 'series_id' AND NOT a.attisdropped AND c.relname <> 'series'
ORDER BY c.relname <> 'measure', c.relname
"""
"""The measurements, and what is computed from them: this release does not know what a later one stores of a series."""

_DEAD: Final = """
WITH gone AS (
    DELETE FROM public.ingest_errors e USING unnest($1::text[]) AS t
    WHERE e.tenant_id = t OR starts_with(e.topic, 'traksense/' || t || '/') RETURNING 1
) SELECT count(*) FROM gone
"""
_OTHERS: Final = (
    "public.cmd_ack",
    "public.device_event",
    "traksense.series",
    "traksense.meta",
    "traksense.device",
    "traksense.tenant",
)
"""In the order that foreign keys ask for."""

# One dead letter has no tenant: its topic is invalid.
_BY_HAND_FIRST: Final = (
    ("public.ingest_errors", "split_part(topic, '/', 2)"),
    ("traksense.device", "tenant_id"),
    ("traksense.tenant", "tenant_id"),
)
"""What can be there of the first message; series and points go with their device."""
_BY_HAND: Final = (
    ("public.cmd_ack", "tenant_id"),
    ("public.device_event", "tenant_id"),
    *_BY_HAND_FIRST[:-1],
    ("traksense.meta", "tenant_id"),
    _BY_HAND_FIRST[-1],
)


_LEFT: Final = """
SELECT tenant_id FROM traksense.tenant WHERE tenant_id ~ '^validate-[0-9a-f]{10}(-b)?$' ORDER BY 1 LIMIT 20
"""


async def register(database: DatabaseConnection, tenants: list[str], devices: list[str]) -> None:
    """Register devices beforehand, for a service that takes no others."""
    await database.fetch(REGISTER_TENANTS, tenants)
    await database.fetch(REGISTER_DEVICES, tenants, SITE, devices)


async def clean_up(target: Target, result: Result) -> None:
    """Delete everything of our tenants.

    What is still under way would come back after the deletion, so that is waited for first; and since a service that
    remembers our series could still store into them, it is swept until nothing is found.
    """
    doubt: str | None = target.out_of_reach or None
    # Another connection: a check that was cancelled may have left the first one in any state, and it may be lost.
    try:
        async with open_connection(target.settings.database, application="traksense validate") as database:
            target.database = database
            if not target.miswired:
                try:
                    await target.settle(device="cleanup")
                except TraksenseError as error:
                    doubt = f"more may come: {error}"
            gone = await _sweep(database, target.tenants)
            left = [tenant for (tenant,) in await database.fetch(_LEFT) if tenant not in target.tenants]
    except TraksenseError as error:
        remains = f"{error}; remains: {' and '.join(target.tenants)}"
        result.add("fail", "Clean-up", remains, next_step=by_hand(target))
        return
    if doubt is not None:
        figure = f"{gone} rows removed, but {doubt}"
        result.add("fail", "Clean-up", figure, next_step=by_hand(target), rows=gone)
    else:
        result.add("ok", "Clean-up", f"{gone} rows removed, tenants included", rows=gone)
    if left:
        figure = f"left by earlier runs, unless they are running now: {', '.join(left)}"
        result.add("skip", "Earlier runs", figure, next_step=_statements(_BY_HAND, left))


def by_hand(target: Target) -> str:
    """How to remove what we could not."""
    return _statements(_BY_HAND_FIRST if target.miswired else _BY_HAND, target.tenants)


def _statements(relations: Sequence[tuple[str, str]], tenants: Sequence[str]) -> str:
    names = ", ".join(f"'{tenant}'" for tenant in tenants)
    # To be read, and the names are ours.
    statements = "; ".join(f"DELETE FROM {relation} WHERE {column} IN ({names})" for relation, column in relations)  # noqa: S608
    return f'as the owner, in the database that has it: psql -1 -c "{statements}"'


async def _sweep(database: DatabaseConnection, tenants: list[str]) -> int:
    series: set[int] = set()
    total = 0
    for sweep in range(SWEEPS):
        if sweep:
            await trio.sleep(SWEEP_AGAIN_SECONDS)
        series.update(row[0] for row in await database.fetch(_SERIES, tenants))
        found = (await database.fetch(_DEAD, tenants))[0][0]
        for (relation,) in await database.fetch(_BY_SERIES):
            found += (await database.fetch(_delete(relation, "series_id = ANY ($1::int[])"), sorted(series)))[0][0]
        for relation in _OTHERS:
            found += (await database.fetch(_delete(relation, "tenant_id = ANY ($1::text[])"), tenants))[0][0]
        total += found
        if not found:
            break
    return total


def _delete(relation: str, condition: str) -> str:
    # Constants, and what the catalog has quoted.
    return f"WITH gone AS (DELETE FROM {relation} WHERE {condition} RETURNING 1) SELECT count(*) FROM gone"  # noqa: S608
