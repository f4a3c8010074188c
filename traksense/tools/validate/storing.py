"""Checks of what is stored, and of what is not: persistence, dead letters, order."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from traksense.model import Kind, Reason
from traksense.tools.validate import payloads
from traksense.tools.validate.target import BUG, BUSY, SITE, Target, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable

    from traksense.tools.validate.report import Result

OUT_OF_ORDER_POINTS: Final = 40

_MEASURES: Final = """
SELECT site_id, device_id, point_id, ts, v_num, v_bool, v_text, unit, qual, meta::text
FROM public.ts_measure WHERE tenant_id = $1 AND device_id = $2 AND ts = $3 ORDER BY point_id
"""

_DEAD: Final = "SELECT topic, payload, reason, tenant_id, detail FROM public.ingest_errors WHERE starts_with(topic, $1)"

_SERIES: Final = "SELECT ts, v_num FROM public.ts_measure WHERE tenant_id = $1 AND device_id = $2 AND point_id = $3"

_STORED_AGGREGATES: Final = """
SELECT to_regproc('traksense.roll_up') IS NOT NULL,
    EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = to_regclass('traksense.rollup_1m') AND relkind = 'v')
"""

_MINUTES: Final = """
SELECT bucket, v_avg, v_min, v_max, v_count FROM public.ts_measure_1m
WHERE tenant_id = $1 AND site_id = $2 AND device_id = $3 AND point_id = $4 ORDER BY bucket
"""


async def persistence(target: Target, result: Result) -> None:
    """An envelope v1 with every type of value appears with every column right."""
    ts = utc_now()
    meta = {"fw": "1.2.3", "src": "validate"}
    points: list[dict[str, Any]] = [
        {"name": "temp_agua", "t": "float", "v": 7.3, "u": "°C"},
        {"name": "compressor_1_on", "t": "bool", "v": True},
        {"name": "cycles", "t": "int", "v": 42, "q": 1},
        {"name": "status", "t": "enum", "v": "RUN", "q": 2},
        {"name": "note", "t": "text", "v": "válvula ☃"},
    ]
    await target.publish(Kind.TELEM, payloads.envelope(ts, points, meta), device="persistence")
    await target.confirm()
    target.stored += len(points)
    ask = target.rows(_MEASURES, target.tenant, "persistence", ts)
    rows, seconds = await target.until(ask, lambda found: len(found) >= len(points))
    expected = sorted((_row(point, ts) for point in points), key=lambda row: row[2])
    found = [(*row[:-1], json.loads(row[-1] or "null")) for row in rows]
    faults = []
    if len(found) != len(expected):
        faults.append(f"{len(found)} of {len(expected)} rows within {target.patience:g} s")
    faults.extend(
        f"{want[2]}: stored as {got}, not {want}"
        for want, got in zip(expected, [(*row[:-1], row[-1] == meta) for row in found], strict=False)
        if want != got
    )
    result.judge(
        "Inserted telemetry rows",
        f"{len(found)} rows with all columns right after {seconds * 1000:.0f} ms" if not faults else "",
        faults=faults,
        next_step=BUSY if len(found) < len(expected) else BUG,
        rows=len(found),
        seconds=seconds,
    )


async def dead_letters(target: Target, result: Result) -> None:
    """Every kind of bad payload is kept byte for byte, with its reason, and harms no neighbour."""
    now = utc_now()
    bad = payloads.bad_payloads(now)
    expected = {f"bad-{number}": one for number, one in enumerate(bad)}
    expected[payloads.NAME_TOO_LONG] = payloads.Bad(
        "invalid topic", payloads.numbers(now, {"p": 1.0}), Reason.INVALID_TOPIC
    )
    for number, (device, one) in enumerate(expected.items()):
        await target.publish(Kind.TELEM, one.payload, device=device)
        await target.publish(Kind.TELEM, payloads.numbers(now, {f"p{number}": 1.0}), device="good")
    await target.confirm()
    target.dead += len(expected)
    target.untyped += 1
    target.stored += len(expected)
    prefix = f"traksense/{target.tenant}/"
    rows, seconds = await target.until(target.rows(_DEAD, prefix), lambda found: len(found) >= len(expected))
    kept = {row[0]: row for row in rows}
    faults = [
        f"{one.name}: {fault}"
        for device, one in expected.items()
        if (fault := _dead_letter_fault(target, one, kept.get(target.topic(Kind.TELEM, device)))) is not None
    ]
    if len(rows) > len(expected):
        faults.append(f"{len(rows) - len(expected)} dead letters too many")
    reasons = sorted({row[2] for row in rows})
    figure = f"{len(rows)} errors, byte for byte, reasons {', '.join(reasons)}, after {seconds * 1000:.0f} ms"
    step = BUSY if len(rows) < len(expected) else BUG
    result.judge(
        "DLQ captured invalid payloads", figure, faults=faults, next_step=step, errors=len(rows), seconds=seconds
    )
    neighbours = "SELECT count(*) FROM public.ts_measure WHERE tenant_id = $1 AND device_id = 'good'"
    stored, _ = await target.until(lambda: target.count(neighbours, target.tenant), lambda n: n >= len(expected))
    missing = [] if stored == len(expected) else ["some are lost"]
    figure = f"{stored} of {len(expected)}"
    result.judge("Their good neighbours are stored", figure, faults=missing, next_step=BUSY, stored=stored)


async def out_of_order(target: Target, result: Result) -> None:
    """Points in any order of their timestamps are stored, and the aggregates by the minute are right."""
    shuffled = random.Random(target.tenant)  # noqa: S311  (an order, not a secret)
    first = utc_now().replace(second=0, microsecond=0) - timedelta(minutes=30)
    points = {
        first + timedelta(seconds=7.25 * number): round(shuffled.uniform(-50, 50), 3)
        for number in range(OUT_OF_ORDER_POINTS)
    }
    order = list(points)
    shuffled.shuffle(order)
    for ts in order:
        await target.publish(Kind.TELEM, payloads.numbers(ts, {"p": points[ts]}), device="disorder")
    await target.confirm()
    target.stored += len(points)
    ask = target.rows(_SERIES, target.tenant, "disorder", "p")
    rows, seconds = await target.until(ask, lambda found: len(found) >= len(points))
    stored = dict(rows)
    late = sum(ts < max(order[:place]) for place, ts in enumerate(order) if place)
    figure = f"{len(rows)} of {len(points)} points, {late} of them older than one before, after {seconds * 1000:.0f} ms"
    faults = [] if stored == points and len(rows) == len(points) else ["what is stored is not what was sent"]
    step = BUSY if len(rows) < len(points) else BUG
    result.judge("Out-of-order timestamps stored", figure, faults=faults, next_step=step, points=len(rows), late=late)

    wanted = _by_minute(points.items())

    async def ask_minutes() -> list[tuple[Any, ...]]:
        await _bring_up_to_date(target)
        return await target.database.fetch(_MINUTES, target.tenant, SITE, "disorder", "p")

    minutes, _ = await target.until(ask_minutes, lambda found: _same(found, wanted))
    faults = [] if _same(minutes, wanted) else [_difference(minutes, wanted)]
    figure = f"{len(minutes)} minutes, average, minimum, maximum and count as computed from the points"
    step = f"`traksense lifecycle status` and ops/operations.md#condition-maintenance; if they are in order, {BUG}"
    figure = figure if not faults else ""
    result.judge("Aggregates in ts_measure_1m", figure, faults=faults, next_step=step, minutes=len(minutes))


async def _bring_up_to_date(target: Target) -> None:
    """Where aggregates are stored they follow within a minute or so; we need not wait for that.

    The schema's own way: nothing for aggregates computed as they are read, else `roll_up` or, with TimescaleDB, the
    procedure that its scheduler runs.
    """
    ((rolls_up, refreshes),) = await target.database.fetch(_STORED_AGGREGATES)
    if refreshes:
        await target.database.fetch("CALL traksense.refresh_aggregates()")
    elif rolls_up:
        await target.database.fetch("SELECT traksense.roll_up()")


def _row(point: dict[str, Any], ts: datetime) -> tuple[Any, ...]:
    """What the point must be in ts_measure; the last column is whether meta is the message's."""
    value = point["v"]
    number = float(value) if point["t"] in ("float", "int") else None
    boolean = value if point["t"] == "bool" else None
    text = value if point["t"] in ("enum", "text") else None
    return (SITE, "persistence", point["name"], ts, number, boolean, text, point.get("u"), point.get("q", 0), True)


def _dead_letter_fault(target: Target, bad: payloads.Bad, row: tuple[Any, ...] | None) -> str | None:
    if row is None:
        return f"no dead letter within {target.patience:g} s"
    _, payload, reason, tenant, detail = row
    if payload != bad.payload:
        return f"kept as {payload[:40]!r}, not {bad.payload[:40]!r}"
    if reason != bad.reason or not detail:
        return f"reason {reason} ({detail}), not {bad.reason}"
    if tenant != (None if bad.reason is Reason.INVALID_TOPIC else target.tenant):
        return f"tenant {tenant}"
    return None


def _by_minute(points: Iterable[tuple[datetime, float]]) -> list[tuple[Any, ...]]:
    minutes: dict[datetime, list[float]] = defaultdict(list)
    for ts, value in points:
        minutes[ts.replace(second=0, microsecond=0)].append(value)
    return [
        (bucket, math.fsum(values) / len(values), min(values), max(values), len(values))
        for bucket, values in sorted(minutes.items())
    ]


def _difference(found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]]) -> str:
    """The first minute that is not as it must be."""
    if len(found) != len(wanted):
        return f"{len(found)} minutes, not {len(wanted)}"
    got, want = next(pair for pair in zip(found, wanted, strict=True) if not _same([pair[0]], [pair[1]]))
    return f"{want[0]:%H:%M}: (average, minimum, maximum, count) is {got[1:]}, not {want[1:]}"


def _same(found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]]) -> bool:
    """Equal but for the order in which the average was summed."""
    return len(found) == len(wanted) and all(
        (a[0], *a[2:]) == (b[0], *b[2:]) and math.isclose(a[1], b[1], rel_tol=1e-12, abs_tol=1e-12)
        for a, b in zip(found, wanted, strict=True)
    )
