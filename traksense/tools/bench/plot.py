"""Bars as SVG, without a library: horizontal, labelled in words, with the median as a number at each bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

import attrs

from traksense.tools.bench.report import number
from traksense.tools.bench.results import FIGURES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from traksense.tools.bench.results import Results, Summary

WIDTH: Final = 860
LABEL: Final = 330
ROW: Final = 26
BAR: Final = 16
TOP: Final = 64
BOTTOM: Final = 16
VALUE: Final = 130
COLOURS: Final = {"": "#8a8f98", "paho": "#2f6f9f", "mqtt5": "#c8702a"}
OTHER_COLOUR: Final = "#6b8f3a"

_PLOTS: Final = (
    # file, title, scenarios, figure
    (
        "throughput",
        "Backlog: points stored a second, relative to the ceiling",
        ("ceiling", "backlog"),
        "points_per_second",
    ),
    ("latency-p50", "Steady: device timestamp to commit, median", ("steady",), "p50_ms"),
    ("latency-p99", "Steady: device timestamp to commit, 99 % are below", ("steady",), "p99_ms"),
    ("growth", "Growth: points stored a second", ("growth",), "points_per_second"),
    ("cpu", "Processor time of the service for a million points", ("backlog", "steady"), "cpu_seconds"),
    ("memory", "Memory of the service, peak", ("backlog", "steady", "outage"), "peak_mib"),
)


@attrs.frozen
class Bar:
    """One bar; the line across its end shows the least and the most of the rounds."""

    label: str
    colour: str
    summary: Summary


def write_plots(results: Results, directory: Path, subtitle: str) -> list[Path]:
    """Write the plots for which there are figures; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for file, title, scenarios, name in _PLOTS:
        bars = list(_bars(results, scenarios, name))
        if bars:
            path = directory / f"{file}.svg"
            path.write_text(svg(title, subtitle, bars, FIGURES[name].unit, FIGURES[name].digits), encoding="utf-8")
            written.append(path)
    return written


def svg(title: str, subtitle: str, bars: Sequence[Bar], unit: str, digits: int) -> str:
    """The drawing."""
    height = TOP + ROW * len(bars) + BOTTOM
    scale = (WIDTH - LABEL - VALUE) / (max(bar.summary.maximum for bar in bars) or 1)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="26" font-size="17" font-weight="600" fill="#1c2733">{escape(title)}</text>',
        f'<text x="12" y="46" fill="#5b6673">{escape(subtitle)}</text>',
    ]
    for place, bar in enumerate(bars):
        parts += _draw(bar, TOP + ROW * place, scale, unit, digits)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw(bar: Bar, top: float, scale: float, unit: str, digits: int) -> Iterator[str]:
    middle = top + BAR / 2
    width = bar.summary.median * scale
    low, high = LABEL + bar.summary.minimum * scale, LABEL + bar.summary.maximum * scale
    value = f"{number(bar.summary.median, digits)} {unit}".strip()
    yield f'<text x="{LABEL - 8}" y="{middle + 4.5:.1f}" text-anchor="end" fill="#1c2733">{escape(bar.label)}</text>'
    yield f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="{BAR}" rx="2" fill="{bar.colour}"/>'
    if high - low > 1:
        yield f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#1c2733" stroke-width="1.5"/>'
    yield f'<text x="{max(LABEL + width, high) + 6:.1f}" y="{middle + 4.5:.1f}" fill="#1c2733">{escape(value)}</text>'


def _bars(results: Results, scenarios: Sequence[str], name: str) -> Iterator[Bar]:
    for key in results.keys():  # noqa: SIM118  (not a dict)
        if key.scenario not in scenarios:
            continue
        summaries = results.summaries(key)
        summary = summaries.get(name) or (summaries.get("rows_per_second") if key.scenario == "ceiling" else None)
        if summary is not None:
            label = f"{key.case}, {key.contender}" if key.contender else f"ceiling: {key.case}"
            yield Bar(label, COLOURS.get(key.contender, OTHER_COLOUR), summary)
