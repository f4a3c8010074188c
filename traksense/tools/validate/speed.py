"""Checks of throughput, latency and backpressure, against the targets of the system that this one replaces."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.model import Kind
from traksense.tools.validate import payloads
from traksense.tools.validate.target import BUSY, POLL_SECONDS, CheckFailedError, Target, in_flight, utc_now

if TYPE_CHECKING:
    from traksense.tools.validate.report import Result

THROUGHPUT_TARGET: Final = 5_000.0
"""Points a second, at least. Source: the seed's performance targets."""

LATENCY_TARGET_SECONDS: Final = 1.0
"""Median from the device's timestamp to a row that others see, at most. Source: as above."""

POINTS_A_MESSAGE: Final = 10
DEVICES: Final = 20
LATENCY_MESSAGES: Final = 200
LATENCY_EVERY_SECONDS: Final = 0.01
BURST_MESSAGES: Final = 2_000
SCRAPE_EVERY_SECONDS: Final = 0.05
BEHIND: Final = timedelta(milliseconds=250)
"""How old points are that are published as fast as possible. Young, so that the latency which the service measures is
its own (the alert TraksenseLatencyHigh looks at it); not of now, so that clocks may differ a little."""

_SLOW: Final = (
    "ops/tuning.md says what limits it; on a machine that is busy with something else, the figure says little"
)
_COUNT: Final = "SELECT count(*) FROM public.ts_measure WHERE tenant_id = $1 AND starts_with(device_id, $2)"

_ROW: Final = """
SELECT count(*) FROM public.ts_measure WHERE tenant_id = $1 AND device_id = $2 AND point_id = 'p0' AND ts = $3
"""

_SEEN: Final = "SELECT ts FROM public.ts_measure WHERE tenant_id = $1 AND device_id = 'latency' AND point_id = 'p'"


async def throughput(target: Target, result: Result) -> None:
    """So many points as fast as the broker takes them; timed until the last one can be read."""
    total = target.points
    messages = -(-total // POINTS_A_MESSAGE)
    base = utc_now() - BEHIND
    started = trio.current_time()
    for number in range(messages):
        points = min(POINTS_A_MESSAGE, total - number * POINTS_A_MESSAGE)
        values = {f"p{place}": 20.0 + number % 100 / 10 for place in range(points)}
        payload = payloads.numbers(base + timedelta(microseconds=number), values)
        await target.publish(Kind.TELEM, payload, device=f"throughput-{number % DEVICES}")
    target.stored += total
    stored = 0
    # Even at a tenth of the target the figure is worth having.
    with trio.move_on_after(target.patience + 10 * total / THROUGHPUT_TARGET):
        await _wait_for(target, f"throughput-{(messages - 1) % DEVICES}", base + timedelta(microseconds=messages - 1))
        while True:
            stored = await target.count(_COUNT, target.tenant, "throughput-")
            if stored >= total:
                break
            await trio.sleep(POLL_SECONDS)
    seconds = trio.current_time() - started
    rate = stored / seconds
    faults = []
    if stored != total:
        faults.append(f"{stored} of {total} points are stored")
    if rate < THROUGHPUT_TARGET:
        faults.append(f"less than {THROUGHPUT_TARGET:.0f} p/s")
    figure = f"{stored} points in {seconds:.2f} s = {rate:.0f} p/s (target >= {THROUGHPUT_TARGET:.0f})"
    values = {"points": stored, "seconds": seconds, "points_per_second": rate}
    result.judge("Points stored", figure, faults=faults, next_step=_SLOW, **values)


async def _wait_for(target: Target, device: str, ts: datetime) -> None:
    """Wait for a row, by a question that costs the database next to nothing: counting would slow down what is timed."""
    while True:
        if await target.count(_ROW, target.tenant, device, ts):
            return
        await trio.sleep(POLL_SECONDS)


async def latency(target: Target, result: Result) -> None:
    """From a message's timestamp to its row, as seen by a reader of the database who looks all the time."""
    latencies: dict[datetime, float] = {}

    async def look() -> None:
        while len(latencies) < LATENCY_MESSAGES:
            rows = await target.database.fetch(_SEEN, target.tenant)
            now = utc_now()
            for (ts,) in rows:
                latencies.setdefault(ts, (now - ts).total_seconds())
            await trio.sleep(POLL_SECONDS / 2)

    with trio.move_on_after(LATENCY_MESSAGES * LATENCY_EVERY_SECONDS + target.patience):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for number in range(LATENCY_MESSAGES):
                await target.publish(Kind.TELEM, payloads.numbers(utc_now(), {"p": float(number)}), device="latency")
                target.stored += 1
                await trio.sleep(LATENCY_EVERY_SECONDS)
    if len(latencies) < LATENCY_MESSAGES:
        raise CheckFailedError(f"{len(latencies)} of {LATENCY_MESSAGES} points within {target.patience:g} s", _SLOW)
    ranked = sorted(latencies.values())
    p50, p99 = percentile(ranked, 0.50), percentile(ranked, 0.99)
    figure = f"{p50:.3f} s (target <= {LATENCY_TARGET_SECONDS:.1f} s), p99 {p99:.3f} s, {len(ranked)} messages"
    slow = [f"more than {LATENCY_TARGET_SECONDS:.1f} s"] if p50 > LATENCY_TARGET_SECONDS else []
    result.judge("p50 ingest latency", figure, faults=slow, next_step=_SLOW, p50_seconds=p50, p99_seconds=p99)


@attrs.define
class _Peak:
    queue: float = 0.0
    in_flight: float = 0.0
    queue_max: float = 0.0


async def backpressure(target: Target, result: Result) -> None:
    """A burst of single points fills the queue within its limit, and the pipeline is empty again afterwards."""
    peak = _Peak()

    async def watch() -> None:
        while True:
            samples = await target.endpoint.scrape()
            peak.queue = max(peak.queue, samples.value("ingest_queue_size"))
            peak.in_flight = max(peak.in_flight, samples.value("ingest_in_flight_messages"))
            peak.queue_max = samples.value("ingest_queue_max")
            await trio.sleep(SCRAPE_EVERY_SECONDS)

    base = utc_now() - BEHIND
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for number in range(BURST_MESSAGES):
            payload = payloads.numbers(base + timedelta(microseconds=number), {"p": float(number)})
            await target.publish(Kind.TELEM, payload, device="burst")
        await target.confirm()
        target.stored += BURST_MESSAGES
        stored, _ = await target.until(
            lambda: target.count(_COUNT, target.tenant, "burst"), lambda count: count >= BURST_MESSAGES
        )
        nursery.cancel_scope.cancel()
    drained, samples, seconds = await target.drain()
    faults = []
    if stored != BURST_MESSAGES:
        faults.append(f"{stored} of {BURST_MESSAGES} messages are stored")
    if not drained:
        faults.append(f"not empty after {target.patience:g} s")
    if peak.queue > peak.queue_max:
        faults.append(f"the queue held more than its limit of {peak.queue_max:.0f}")
    result.judge(
        f"Empty again after {BURST_MESSAGES} messages",
        f"{in_flight(samples)}; at most {peak.queue:.0f} queued (limit {peak.queue_max:.0f}) "
        f"and {peak.in_flight:.0f} in flight",
        faults=faults,
        next_step=f"{BUSY}; {_SLOW}",
        messages=stored,
        peak_queue=peak.queue,
        peak_in_flight=peak.in_flight,
        queue_max=peak.queue_max,
        seconds=seconds,
    )


def percentile(ranked: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank)."""
    place = -(-len(ranked) * share // 1)
    return ranked[max(0, int(place) - 1)]
