"""Words instead of a page: where stdout is no terminal, and at the start and the end everywhere. In ASCII."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from traksense.tools.demo.place import Place
    from traksense.tools.demo.state import State
    from traksense.tools.demo.verdict import Verdict
    from traksense.tools.stack import ServiceProcess

LINE_SECONDS: Final = 5.0
REASONS_SHOWN: Final = 2


def status_line(state: State) -> str:
    """Everything that matters, in one line."""
    scrape = state.scrape
    clock = f"{int(state.elapsed) // 60:02}:{int(state.elapsed) % 60:02}"
    if scrape is None:
        return f"{clock}  waiting for the service"
    samples = scrape.samples
    often = sorted(scrape.dead_reasons, key=lambda item: -item[1])[:REASONS_SHOWN]
    dead = f", mostly {' and '.join(reason for reason, _ in often)}" if often else ""
    parts = [
        f"{clock}  {state.rate:,.0f} points/s",
        f"p50 {_milliseconds(state.latency(0.5))} p99 {_milliseconds(state.latency(0.99))}",
        f"queue {samples.value('ingest_queue_size'):.0f}",
        f"unacknowledged {samples.value('ingest_unacknowledged_messages'):.0f}",
        ledger_line(state),
        f"rows {state.rows:,} ({state.database_bytes / 1e6:.0f} MB)",
        f"dead letters {scrape.ended('dead'):,}{dead}",
        "ready" if state.ready else f"not ready: {state.not_ready}",
    ]
    if state.publisher_fault:
        parts.append(f"fleet: no connection: {state.publisher_fault}")
    return "; ".join(parts)


def ledger_line(state: State) -> str:
    """The ledger's identity, and whether it holds."""
    scrape = state.scrape
    if scrape is None:
        return "no figures yet"
    holds = "adds up" if scrape.balanced else "DOES NOT ADD UP"
    return (
        f"received {scrape.received:,} = stored {scrape.ended('stored'):,} + duplicate {scrape.ended('duplicate'):,} "
        f"+ dead {scrape.ended('dead'):,} + in flight {scrape.in_flight:,} ({holds})"
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def ending(place: Place, state: State, verdict: Verdict, status: int, service: ServiceProcess, database: Path) -> str:
    """The last words: what happened, whether it adds up, and how to go on.

    Args:
        place: Where the demo was.
        state: What it knew at last.
        verdict: Whether it adds up.
        status: The service's exit status.
        service: The service.
        database: The directory of the database, which may be elsewhere.
    """
    seconds = int(state.elapsed)
    elsewhere = "" if database == place.directory else f" (the database: {database})"
    lines = [
        "",
        f"Ended after {seconds // 60} min {seconds % 60} s: the service drained, and exited with status {status}.",
        *([f"  That is not 0: see {service.log_path}"] if status else []),
        verdict.text(),
        "",
        f"The data stay in {place.directory}{elsewhere}: {state.rows:,} rows so far.",
        "Look at them as the superuser, who sees every tenant (this starts the database alone, and psql):",
        f"  {place.command('--psql')}",
        "Start it again with them:",
        f"  {place.command()}",
    ]
    return "\n".join(lines)
