"""Checks of idempotence: what comes twice is stored once."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from traksense.model import Kind
from traksense.tools.validate import payloads
from traksense.tools.validate.target import BUG, BUSY, SITE, CheckFailedError, Target, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from traksense.tools.validate.report import Result

CMD_ID: Final = "01HQZC5K3M8YBQWER7TXZ9V2P3"
EVENT_ID: Final = "01HQZC5K3M8YBQWER7TXZ9V2P4"

_ACKS: Final = """
SELECT ok, ts_exec, err, site_id, created_at, updated_at, payload::text
FROM public.cmd_ack WHERE tenant_id = $1 AND device_id = 'acks' AND cmd_id = $2
"""

_EVENTS: Final = """
SELECT site_id, event_id, event_type, ts, data::text
FROM public.device_event WHERE tenant_id = $1 AND device_id = 'events' AND event_type <> 'fence' ORDER BY event_id
"""

_COPIES: Final = "SELECT point_id, ts, v_num FROM public.ts_measure WHERE tenant_id = $1 AND device_id = 'twice'"


async def acks(target: Target, result: Result) -> None:
    """One row for each command: a repeat updates it, an older execution does not."""
    target.need(Kind.ACK)
    ts = utc_now()
    ask = target.rows(_ACKS, target.tenant, CMD_ID)

    async def send(*, ok: bool, ts_exec: datetime, err: str | None = None) -> None:
        await target.publish(Kind.ACK, payloads.ack(CMD_ID, ok=ok, ts_exec=ts_exec, err=err), device="acks")
        await target.confirm()

    await send(ok=False, ts_exec=ts, err="valve stuck")
    first, seconds = await target.until(ask, bool)
    if [row[:4] for row in first] != [(False, ts, "valve stuck", SITE)]:
        if first:
            raise CheckFailedError(_stored_as([row[:4] for row in first], [(False, ts, "valve stuck", SITE)]), BUG)
        raise CheckFailedError(f"not stored within {target.patience:g} s", BUSY)
    result.add("ok", "Command ack stored", f"1 row after {seconds * 1000:.0f} ms", rows=1, seconds=seconds)

    newer = ts + timedelta(seconds=1)
    await send(ok=True, ts_exec=newer)
    faults = []
    second, seconds = await target.until(ask, lambda rows: any(row[0] for row in rows))
    if (found := [row[:4] for row in second]) != [(True, newer, None, SITE)]:
        faults.append(_stored_as(found, [(True, newer, None, SITE)]))
    elif second[0][4] != first[0][4] or second[0][5] <= first[0][5]:
        faults.append("created_at must stay and updated_at must grow")
    elif json.loads(second[0][6])["ok"] is not True:
        faults.append("payload is not the newest")
    figure = f"{len(second)} row, updated after {seconds * 1000:.0f} ms"
    result.judge("Same cmd_id twice", figure, faults=faults, next_step=BUG, rows=len(second), seconds=seconds)

    await send(ok=False, ts_exec=ts - timedelta(seconds=1), err="late")
    await target.settle(Kind.ACK, "acks")
    third = await target.database.fetch(_ACKS, target.tenant, CMD_ID)
    faults = [] if third == second else [_stored_as(third, second)]
    figure = f"{len(third)} row, unchanged"
    result.judge("Older ts_exec does not overwrite", figure, faults=faults, next_step=BUG, rows=len(third))


async def events(target: Target, result: Result) -> None:
    """Events are known again by their id or, without one, by type and time."""
    target.need(Kind.EVENT)
    ts = utc_now()
    data = {"reason": "power_on", "nested": [1, 2.5, None, "°"]}
    named = payloads.event("boot", ts, event_id=EVENT_ID, data=data)
    unnamed = payloads.event("alarm", ts, data=None)
    for payload in (named, unnamed, named, unnamed):
        await target.publish(Kind.EVENT, payload, device="events")
    await target.settle(Kind.EVENT, "events")
    rows = await target.database.fetch(_EVENTS, target.tenant)
    found = [(*row[:-1], json.loads(row[-1]) if row[-1] else None) for row in rows]
    expected: list[tuple[Any, ...]] = [(SITE, EVENT_ID, "boot", ts, data), (SITE, None, "alarm", ts, None)]
    faults = [] if found == expected else [_stored_as(found, expected)]
    figure = f"{len(found)} rows from 4 messages, with and without event_id, all columns right"
    figure = figure if not faults else ""
    result.judge("Events stored once", figure, faults=faults, next_step=BUG, rows=len(found))


def _stored_as(found: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> str:
    """What the rows are, and what they had to be."""

    def text(rows: Sequence[Sequence[Any]]) -> str:
        return ", ".join(json.dumps(row, default=str, ensure_ascii=False) for row in rows) or "nothing"

    return f"stored as {text(found)}; expected {text(expected)}"


async def duplicates(target: Target, result: Result) -> None:
    """The same message twice is one row a point, and is counted as a duplicate. A different value keeps the first, and
    makes a dead letter of its message; with INGEST_CONFLICTS=replace it wins.
    """
    before = await target.endpoint.scrape()
    ts = utc_now()
    payload = payloads.numbers(ts, {"a": 1.0, "b": 2.0})
    for _ in range(3):
        await target.publish(Kind.TELEM, payload, device="twice")
    target.stored += 2
    await target.settle(Kind.TELEM, "twice")
    conflicting = payloads.numbers(ts, {"a": -1.0})
    await target.publish(Kind.TELEM, conflicting, device="twice")
    await target.settle(Kind.TELEM, "twice")
    rows = [row for row in await target.database.fetch(_COPIES, target.tenant) if not row[0].startswith("fence")]
    last = -1.0 if target.settings.conflicts == "replace" else 1.0
    expected = [("a", ts, last), ("b", ts, 2.0)]
    faults = [] if sorted(rows) == expected else [_stored_as(sorted(rows), expected)]
    figure = f"{len(rows)} rows for 2 points"
    step = f"let INGEST_CONFLICTS of `validate` be that of the service; if it is, {BUG}"
    result.judge("Same message three times", figure, faults=faults, next_step=step, rows=len(rows))

    after = await target.endpoint.scrape()
    counted = {
        name: after.value(sample, **labels) - before.value(sample, **labels)
        for name, sample, labels in (
            ("messages", "ingest_messages_ended_total", {"outcome": "duplicate"}),
            ("points", "ingest_points_duplicate_total", {}),
            ("conflicting", "ingest_points_conflicting_total", {}),
        )
    }
    least = {"messages": 2, "points": 4, "conflicting": 1}
    faults = [
        f"{name}: {counted[name]:.0f}, at least {least[name]} expected" for name in least if counted[name] < least[name]
    ]
    figure = (
        "{messages:.0f} messages, {points:.0f} points with the same value, {conflicting:.0f} with another".format_map(
            counted
        )
    )
    step = f"is {target.endpoint.url} the only process that stores what is published here?"
    result.judge("Duplicates are counted", figure, faults=faults, next_step=step, **counted)
