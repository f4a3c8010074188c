"""Checks from outside the data: the metrics, and the walls between tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from traksense.model import Kind
from traksense.store import tenant_probe
from traksense.store.roles import READONLY
from traksense.tools.validate import payloads
from traksense.tools.validate.target import BUG, CheckSkippedError, Target, utc_now

if TYPE_CHECKING:
    from traksense.store.tenant_probe import Walls
    from traksense.tools.validate.report import Result

SEED_METRICS: Final = {
    "ingest_messages_total": "type",
    "ingest_points_total": None,
    "ingest_errors_total": "reason",
    "ingest_batch_size_bucket": "le",
    "ingest_batch_size_count": None,
    "ingest_batch_size_sum": None,
    "ingest_latency_seconds_bucket": "le",
    "ingest_latency_seconds_count": None,
    "ingest_latency_seconds_sum": None,
    "ingest_queue_size": None,
}
"""Sample names with their label. Source: the seed's dashboards."""


async def metrics(target: Target, result: Result) -> None:
    """The seed's names are there, they moved by what we sent, and the ledger balanced at every scrape."""
    await target.settle()
    samples = await target.endpoint.scrape()
    there = {(name, label) for name, labels in samples for label in (None, *dict(labels))}
    missing = [name for name, label in SEED_METRICS.items() if (name, label) not in there]
    faults = [f"missing: {', '.join(missing)}"] if missing else []
    result.judge("Names of the seed", f"{len(SEED_METRICS) - len(missing)} present", faults=faults, next_step=BUG)

    endpoint = target.endpoint
    assert endpoint.first is not None  # scraped just now
    least = {
        f"messages of type {kind}": (("ingest_messages_total", {"type": str(kind)}), target.sent[kind]) for kind in Kind
    }
    # A message with an invalid topic is of no type.
    name = f"messages of type {Kind.TELEM}"
    least[name] = (least[name][0], target.sent[Kind.TELEM] - target.untyped)
    least["points"] = (("ingest_points_total", {}), target.stored)
    least["errors"] = (("ingest_errors_total", {}), target.dead)
    faults = []
    for what, ((sample, labels), expected) in least.items():
        moved = samples.total(sample, **labels) - endpoint.first.total(sample, **labels)
        if moved < expected:
            faults.append(f"{what}: {moved:.0f}, at least {expected} expected")
    sent = sum(target.sent.values())
    figure = f"at least {sent} messages, {target.stored} points and {target.dead} errors, as sent"
    result.judge(
        "Counters moved",
        figure if not faults else "",
        faults=faults,
        next_step=f"is {endpoint.url} the only process that stores what is published here, and was it not restarted "
        "meanwhile? Name the right one with METRICS_PORT or --metrics-url",
        messages=sent,
        points=target.stored,
    )

    figure = f"received = stored + duplicate + dead + in flight at {endpoint.scrapes} scrapes"
    result.judge(
        "Ledger",
        figure,
        faults=endpoint.imbalances[:3],
        next_step="keep the service's log and metrics: ops/operations.md#traksenseledgerimbalance",
        scrapes=endpoint.scrapes,
    )


async def isolation(target: Target, result: Result) -> None:
    """The dashboards' role sees the tenant that it names, in every relation, and nothing if it names none."""
    now = utc_now()
    wanted = {
        Kind.TELEM: payloads.numbers(now, {"p": 1.0}),
        Kind.ACK: payloads.ack("walls", ok=True, ts_exec=now),
        Kind.EVENT: payloads.event("walls", now),
    }
    subscribed = [kind for kind in wanted if target.subscribed(kind)]
    for tenant in target.tenants:
        for kind in subscribed:
            await target.publish(kind, wanted[kind], device="walls", tenant=tenant)
        await target.publish(Kind.TELEM, b"walls", device="walls", tenant=tenant)
    target.stored += len(target.tenants)
    target.dead += len(target.tenants)
    for kind in subscribed:
        await target.settle(kind, "walls")
    try:
        walls = await target.database.call(tenant_probe.look, target.tenants)
    except tenant_probe.NoReaderError as error:
        raise CheckSkippedError(
            f"{error}, so nobody has looked through a tenant's eyes",
            f"a superuser runs, in this database: {error.remedy}; then run `validate` again",
        ) from error
    faults = _faults(walls)
    rows = sum(view.own for view in walls.tenant.values())
    figure = (
        f"{rows} rows of its own tenant in {len(walls.relations)} relations, none of another, "
        f"none without app.tenant_id, none in schema traksense"
    )
    result.judge(
        f"As {READONLY}",
        figure if not faults else "",
        faults=faults,
        next_step=f"run `traksense migrate` as the owner, which gives {READONLY} its rights; take away policies and "
        "grants that ops/schema.sql does not have",
        rows=rows,
    )


def _faults(walls: Walls) -> list[str]:
    faults = [f"{relation} cannot be read" for relation in walls.unreadable]
    faults.extend(
        f"{relation} shows {tenant} rows of others" for (tenant, relation), view in walls.tenant.items() if view.others
    )
    faults.extend(
        f"{relation} shows {view.own} of {walls.operator[tenant, relation]} rows of {tenant}"
        for (tenant, relation), view in walls.tenant.items()
        if view.own != walls.operator[tenant, relation]
    )
    faults.extend(f"{relation} shows rows without app.tenant_id" for relation in walls.unnamed)
    faults.extend(f"{relation} can be read" for relation in walls.private)
    if not all(walls.operator[key] for key in walls.operator if key[1] in ("ts_measure", "ingest_errors")):
        faults.append("there is nothing to look at")
    return faults
