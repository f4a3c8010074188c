"""The state on a terminal: one calm page that changes in place. Pure: the same state gives the same page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from traksense.names import printable
from traksense.tools.demo.state import Phase

if TYPE_CHECKING:
    from datetime import datetime

    from traksense.tools.demo.state import LatestValue, Scrape, State

WIDE: Final = 96
"""From this many columns on there is room for the site and for full addresses."""
BLOCKS: Final = "▁▂▃▄▅▆▇█"
HEADROOM: Final = 1.15
"""A steady rate shall look like a line with some air above it, not like a bar."""
ROOMY_LINES: Final = 12
"""From this many lines for the tables on there is room for the newest dead letter's topic."""
LINES_BESIDE_TABLES: Final = 15
"""Lines of the page without its header and the rows of its two tables."""

DIM: Final = "bright_black"
GOOD: Final = "green"
BAD: Final = "bold red"
WARN: Final = "yellow"
ACCENT: Final = "cyan"
TITLE: Final = "bold"


def page(state: State, width: int, height: int) -> RenderableType:
    """The whole page for a terminal of this size."""
    wide = width >= WIDE
    reasons = len(state.scrape.dead_reasons) if state.scrape else 0
    header = _header(state, width)
    # The last line of a terminal belongs to the cursor.
    spare = height - 1 - LINES_BESIDE_TABLES - len(header)
    roomy = spare >= ROOMY_LINES
    if roomy:
        header.append(Text(""))
        spare -= 1
    dead_rows = max(1, min(-(-reasons // (3 if wide else 2)), spare // 3))
    return Group(
        *header,
        _figures(state, width, wide=wide),
        _ledger(state, width),
        _values(state, rows=max(3, spare - dead_rows - roomy), wide=wide),
        _dead_letters(state, rows=dead_rows, wide=wide, with_topic=roomy),
        _footer(state, wide=wide),
    )


def svg(state: State, title: str, width: int = 100, height: int = 40) -> str:
    """The page as a picture."""
    import io

    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(page(state, width, height))
    return console.export_svg(title=title)


def _header(state: State, width: int) -> list[RenderableType]:
    wide = width >= WIDE
    seconds = int(state.elapsed)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    if state.phase is not Phase.RUNNING:
        status = Text(f"● {state.phase.value}", WARN if state.phase is Phase.ENDING else DIM)
    elif state.ready:
        status = Text("● ready", GOOD)
    else:
        status = Text("● not ready", BAD)
    right = Text.assemble((clock, TITLE), "  ", status)
    fleet = _fitting(printable(state.fleet), width - len("  traksense demo    ") - len(right) - 2)
    top = _grid(ratios=(1, None))
    top.add_row(
        Text.assemble(("traksense demo", "bold"), ("  " + fleet, DIM), no_wrap=True, overflow="ellipsis"), right
    )
    a = state.addresses
    broker = _labelled("broker   ", f"{a.broker} ({a.broker_kind})")
    database, metrics = _labelled("database ", a.database), _labelled("metrics  ", a.metrics)
    lines: list[RenderableType] = [top]
    if wide:
        pairs = ((broker, metrics), (database, _labelled("kept in  ", a.directory)))
        for pair in pairs:
            grid = _grid(ratios=(6, 5), padding=2)
            grid.add_row(*pair)
            lines.append(grid)
    else:
        lines += [broker, database, metrics]
    troubles = [f"fleet: no connection: {state.publisher_fault}"] if state.publisher_fault else []
    if state.phase is Phase.RUNNING and not state.ready:
        troubles.append(f"service: {state.not_ready}")
    lines += [Text(printable(trouble), WARN, no_wrap=True, overflow="ellipsis") for trouble in troubles]
    return [_indented(line) for line in lines]


def _figures(state: State, width: int, *, wide: bool) -> RenderableType:
    figures = _grid(ratios=(5, 4, 4))
    history = list(state.history)
    peak = f", peak {max(history):,.0f}" if history else ""
    figures.add_row(
        _panel(
            "Throughput",
            _big(f"{state.rate:,.0f}", "points/s stored"),
            Text(sparkline(history, width * 5 // 13 - 4), ACCENT, no_wrap=True),
            Text(f"last minute{peak}", DIM, no_wrap=True, overflow="ellipsis"),
        ),
        _panel(
            "Latency, device to COMMIT" if wide else "Latency to COMMIT",
            _row("p50", duration(state.latency(0.50))),
            _row("p99", duration(state.latency(0.99))),
            Text("last 10 seconds", DIM, no_wrap=True, overflow="ellipsis"),
        ),
        _panel("In memory", *_memory(state)),
    )
    return figures


def _memory(state: State) -> list[RenderableType]:
    samples = state.scrape.samples if state.scrape else None
    queue = int(samples.value("ingest_queue_size")) if samples else 0
    return [
        _row("queue", f"{queue:,}"),
        _row("in flight", f"{state.scrape.in_flight if state.scrape else 0:,}"),
        _row("unacknowledged", f"{int(samples.value('ingest_unacknowledged_messages')) if samples else 0:,}"),
    ]


def _ledger(state: State, width: int) -> RenderableType:
    scrape = state.scrape
    if scrape is None:
        return _panel("Ledger", Text("waiting for the first figures", DIM))
    full = _ledger_line(scrape, gap="  ", received="received", duplicate="duplicate")
    line = full if len(full) <= width - 4 else _ledger_line(scrape, gap=" ", received="recv", duplicate="dup")
    told = "every message received, and how it ended" if scrape.balanced else "it does not add up"
    return _panel(f"Ledger: {told}", line)


def _ledger_line(scrape: Scrape, *, gap: str, received: str, duplicate: str) -> Text:
    line = Text("✓ " if scrape.balanced else "✗ ", GOOD if scrape.balanced else BAD, no_wrap=True, overflow="ellipsis")
    terms = [
        (scrape.received, received, f"{gap}={gap}"),
        (scrape.ended("stored"), "stored", f"{gap}+{gap}"),
        (scrape.ended("duplicate"), duplicate, f"{gap}+{gap}"),
        (scrape.ended("dead"), "dead", f"{gap}+{gap}"),
        (scrape.in_flight, "in flight", ""),
    ]
    for count, label, sign in terms:
        line.append(f"{count:,}", f"default {TITLE}").append(f" {label}", DIM).append(sign, "default")
    return line


def _values(state: State, *, rows: int, wide: bool) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False, header_style=DIM)
    table.add_column("tenant", no_wrap=True, ratio=3)
    if wide:
        table.add_column("site", no_wrap=True, ratio=4)
    table.add_column("device", no_wrap=True, ratio=4)
    table.add_column("point", no_wrap=True, ratio=4)
    table.add_column("value", justify="right", no_wrap=True, ratio=3)
    table.add_column("unit", no_wrap=True, ratio=2)
    table.add_column("age", justify="right", no_wrap=True, ratio=2)
    shown = sorted(state.values[:rows], key=lambda v: (v.tenant, v.device))
    for v in shown:
        cells: list[RenderableType] = [
            *map(_named, (v.tenant, *([v.site] if wide else []), v.device, v.point)),
            _value(v),
            _named(v.unit, DIM),
        ]
        table.add_row(*cells, Text(age(v.ts, state.wall), DIM))
    return _panel("Latest values, read from ts_measure", table if shown else Text("waiting for the first rows", DIM))


def _named(name: str, style: str = "default") -> Text:
    """What others named: neither markup nor anything that acts on the terminal."""
    return Text(printable(name), style)


def _value(value: LatestValue) -> Text:
    if isinstance(value.value, bool):
        return Text("true" if value.value else "false", GOOD if value.value else "default")
    if isinstance(value.value, str):
        return _named(value.value, BAD if value.value in ("FAULT", "TRIPPED") else ACCENT)
    return Text(f"{value.value:,.2f}", "default")


def _dead_letters(state: State, *, rows: int, wide: bool, with_topic: bool) -> RenderableType:
    reasons = state.scrape.dead_reasons if state.scrape else []
    if not reasons:
        return _panel("Dead letters", Text("none yet", DIM))
    columns = 3 if wide else 2
    table = _grid(ratios=(1,) * columns, padding=2)
    cells: list[RenderableType] = [_row(reason, f"{count:,}") for reason, count in reasons[: rows * columns]]
    cells += [Text("")] * (-len(cells) % columns)
    for first in range(0, len(cells), columns):
        table.add_row(*cells[first : first + columns])
    return _panel("Dead letters: kept with their exact bytes, and why", table, *_newest(state, with_topic=with_topic))


def _newest(state: State, *, with_topic: bool) -> list[RenderableType]:
    newest = state.newest_dead
    if newest is None:
        return []
    label = Text.assemble(
        ("newest ", DIM), (f"{age(newest.ts, state.wall):>6} ago  ", DIM), no_wrap=True, overflow="ellipsis"
    )
    lines: list[RenderableType] = [label.append(newest.reason, WARN).append(printable(f"  {newest.detail}"))]
    if with_topic:
        lines.append(
            Text(printable(f"{'':19}{newest.topic}, {newest.size:,} bytes"), DIM, no_wrap=True, overflow="ellipsis")
        )
    return lines


def _footer(state: State, *, wide: bool) -> RenderableType:
    line = _grid(ratios=(1, None))
    stored = Text.assemble(
        (f"{state.rows:,}", TITLE),
        (" rows", DIM),
        (f"   {size(state.database_bytes)}", TITLE),
        (" on disk", DIM),
        (f"   {state.series:,}", TITLE),
        (" series", DIM),
    )
    if wide and state.memory_bytes:
        stored.append("   service ", DIM).append(size(state.memory_bytes), TITLE)
    left = "Ctrl-C ends it" if state.seconds is None else f"ends after {state.seconds:g} s"
    words = {Phase.RUNNING: (left, DIM), Phase.ENDING: ("storing the last messages…", WARN), Phase.ENDED: ("", DIM)}
    line.add_row(stored, Text(*words[state.phase]))
    return _indented(line)


# --- small parts ------------------------------------------------------------------------------------------------------


def sparkline(values: list[float], width: int) -> str:
    """The last values as blocks, from zero to a little above the largest, right-aligned."""
    shown = values[-width:]
    top = max(shown, default=0.0) * HEADROOM
    if top <= 0:
        return (BLOCKS[0] * len(shown)).rjust(width)
    # `min`, since the headroom is lost in rounding for the smallest of floats
    highest = len(BLOCKS) - 1
    return "".join(BLOCKS[min(highest, int(8 * max(0.0, value) / top))] for value in shown).rjust(width)


def duration(seconds: float | None) -> str:
    """For people: milliseconds below a second."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def age(ts: datetime, now: datetime) -> str:
    """How long ago."""
    seconds = max(0.0, (now - ts).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _fitting(text: str, room: int) -> str:
    """As many of its parts, which commas separate, as there is room for."""
    parts = text.split(", ")
    while len(", ".join(parts)) > room and len(parts) > 1:
        parts.pop()
    return ", ".join(parts)


def _grid(*, ratios: tuple[int | None, ...], padding: int = 0) -> Table:
    grid = Table.grid(expand=True, padding=(0, padding, 0, 0))
    for ratio in ratios:
        grid.add_column(ratio=ratio, no_wrap=ratio is None)
    return grid


def _indented(line: RenderableType) -> Padding:
    return Padding(line, (0, 2))


def _panel(title: str, *lines: RenderableType) -> Panel:
    return Panel(
        Group(*lines), title=Text(title, TITLE), title_align="left", box=box.ROUNDED, border_style=DIM, padding=(0, 1)
    )


def _row(label: str, value: str) -> Table:
    row = _grid(ratios=(1, None))
    row.add_row(Text(label, DIM, no_wrap=True, overflow="ellipsis"), Text(value, TITLE))
    return row


def _big(value: str, what: str) -> Text:
    return Text.assemble((value, "bold cyan"), (f" {what}", DIM))


def _labelled(label: str, value: str) -> Text:
    return Text.assemble((label + " ", DIM), printable(value), no_wrap=True, overflow="ellipsis")
