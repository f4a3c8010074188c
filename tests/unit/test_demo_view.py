"""The demo's page fits its terminal, stays calm, and lets nothing that a device sent drive the terminal."""

from __future__ import annotations

import io
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console, ConsoleDimensions

from tests.unit.test_demo_state import ADDRESSES, NOW
from traksense.model import Reason
from traksense.tools.demo.display import show_page
from traksense.tools.demo.lines import ledger_line, status_line
from traksense.tools.demo.observe import _visible
from traksense.tools.demo.state import DeadLetter, LatestValue, Phase, Scrape, State
from traksense.tools.demo.verdict import Line, Verdict
from traksense.tools.demo.view import age, duration, page, size, sparkline, svg
from traksense.tools.fleet import Tally
from traksense.tools.stack import Samples

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = [(80, 24), (80, 40), (100, 30), (100, 50), (160, 60)]


def busy(reasons: Sequence[Reason] = tuple(Reason), values: int = 20) -> State:
    """A state with something everywhere, long names included."""
    demo = State(ADDRESSES, "3 tenants, 60 devices, 600 points/s, signals run 60×", Tally(), 0.0, 83.0, NOW)
    counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("ingest_points_total", ()): 1_234_567.0,
        ("ingest_messages_total", (("type", "telem"),)): 130_000.0,
        ("ingest_in_flight_messages", ()): 70.0,
        ("ingest_messages_ended_total", (("outcome", "stored"),)): 129_000.0,
        ("ingest_messages_ended_total", (("outcome", "duplicate"),)): 300.0,
        ("ingest_messages_ended_total", (("outcome", "dead"),)): 630.0,
    }
    counts |= {("ingest_errors_total", (("reason", reason.value),)): 40.0 for reason in reasons}
    demo.add(Scrape(83.0, Samples(counts)))
    demo.history.extend(float(n) for n in range(60))
    demo.ready = True
    demo.rows, demo.series, demo.database_bytes, demo.memory_bytes = 1_234_567, 546, 123_456_789, 52_000_000
    demo.values = [
        LatestValue("tenant-with-a-long-name", "site", f"device-{n:02}", "a_rather_long_point_name", -12.345, "°C", NOW)
        for n in range(values)
    ]
    demo.newest_dead = DeadLetter(Reason.PARSE_ERROR, "d" * 300, "traksense/" + "t" * 200, 1_048_577, NOW)
    return demo


def drawn(state: State, width: int, height: int) -> list[str]:
    """The lines of the page."""
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(page(state, width, height))
    return captured.get().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("reasons", [(), (Reason.PARSE_ERROR,), tuple(Reason)])
def test_page_fits_its_terminal(width: int, height: int, reasons: Sequence[Reason]) -> None:
    """No line is wider than the terminal, and the page leaves the last line free: nothing scrolls."""
    lines = drawn(busy(reasons), width, height)

    assert len(lines) < height
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_page_keeps_its_height(width: int, height: int) -> None:
    """Further figures change the page in place; it neither grows nor shrinks."""
    demo = busy()
    before = len(drawn(demo, width, height))
    demo.add(Scrape(84.0, Samples({**demo.scrapes[-1].samples, ("ingest_points_total", ()): 2_000_000.0})))
    demo.now += 1

    assert before == len(drawn(demo, width, height))


def test_page_has_everything() -> None:
    """At 100 columns: throughput, latency, what is in memory, the ledger, values, dead letters, rows, readiness."""
    text = "\n".join(drawn(busy(), 100, 50))

    for part in (
        "ready",
        "points/s stored",
        "p99",
        "unacknowledged",
        "130,000 received",
        "✓",
        "-12.35 °C",
        "parse_error",
    ):
        assert part in text
    for address in (ADDRESSES.broker, ADDRESSES.database, ADDRESSES.metrics, ADDRESSES.directory):
        assert address in text
    assert "1,234,567 rows" in text


def test_page_without_figures_says_what_it_waits_for() -> None:
    """The first page, before anything was read, is whole."""
    demo = State(ADDRESSES, "a fleet", Tally(), 0.0, 0.0, NOW)
    text = "\n".join(drawn(demo, 80, 24))

    assert "waiting for the first figures" in text
    assert "not ready" in text


@pytest.mark.parametrize(
    ("width", "fleet"),
    [(80, "3 tenants, 60 devices, 600 points/s"), (100, "3 tenants, 60 devices, 600 points/s, signals run 60×")],
)
def test_title_is_whole_parts(width: int, fleet: str) -> None:
    """What there is no room for is left out, not cut in the middle of a word."""
    assert re.fullmatch(rf"  traksense demo  {fleet} +00:01:23  ● ready +", drawn(busy(), width, 30)[0])


async def test_terminal_that_is_resized_is_cleared(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Nothing of the page for the old size is left; while the size stays, the page changes in place."""
    written = io.StringIO()
    sizes = [ConsoleDimensions(100, 30)]

    class Resized(Console):
        def __init__(self) -> None:
            super().__init__(file=written, force_terminal=True, color_system=None)

        @property  # type: ignore[misc]  # nobody sets it
        def size(self) -> ConsoleDimensions:
            return sizes[-1]

    monkeypatch.setattr("rich.console.Console", Resized)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show_page, busy())
        await trio.sleep(1)
        before = written.getvalue()
        sizes.append(ConsoleDimensions(80, 24))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()

    clear = "\x1b[2J"
    assert (0, 1) == (before.count(clear), written.getvalue().count(clear))


def test_lines_are_ascii() -> None:
    """Pipes and logs may be, and nothing is escaped there."""
    line = Line("points", 10, 9)

    assert (status_line(busy()) + Verdict((line,), 1, 0).text()).isascii()


def test_page_says_what_is_wrong() -> None:
    """A ledger that does not add up, a service that is not ready and a fleet without a broker are each said."""
    demo = busy()
    demo.scrapes[-1].samples["ingest_in_flight_messages", ()] = 71.0
    demo.ready, demo.not_ready, demo.publisher_fault = False, "database: no answer", "connection lost"
    text = "\n".join(drawn(demo, 100, 50))

    assert "✗" in text
    assert "it does not add up" in text
    assert "service: database: no answer" in text
    assert "fleet: no connection: connection lost" in text


@pytest.mark.parametrize(("phase", "words"), [(Phase.ENDING, "storing the last messages"), (Phase.ENDED, "ended")])
def test_page_says_that_it_ends(phase: Phase, words: str) -> None:
    """After Ctrl-C the page tells what goes on."""
    demo = busy()
    demo.phase = phase

    assert words in "\n".join(drawn(demo, 80, 24))


def test_svg_is_a_picture_of_the_page() -> None:
    """The screenshot has the page's words in it."""
    picture = svg(busy(), "traksense demo")

    assert picture.startswith("<svg")
    assert "compressor" not in picture
    assert "parse_error" in picture


@given(st.text())
def test_visible_text_drives_no_terminal(text: str) -> None:
    """Whatever a device sends, what is shown of it is printable and as long as before."""
    assert _visible(text).isprintable()
    assert len(text) == len(_visible(text))


@given(st.lists(st.floats(0, 1e6), max_size=100), st.integers(1, 60))
@example([5e-324], 1)
def test_sparkline_has_its_width(values: list[float], width: int) -> None:
    """The newest values, one block each, padded on the left."""
    assert width == len(sparkline(values, width))


def test_sparkline_is_scaled_from_zero() -> None:
    """A steady rate is a steady line; a stop is seen at once."""
    assert " ▇▇▇▇▁" == sparkline([500.0, 500.0, 500.0, 500.0, 0.0], 6)


def test_figures_for_people() -> None:
    """Milliseconds below a second, sizes with three digits, ages that do not flicker."""
    assert ("12 ms", "1.2 s", "–") == (duration(0.0123), duration(1.234), duration(None))
    assert ("999 B", "12 kB", "1.5 GB") == (size(999), size(12_345), size(1_500_000_000))
    ages = [age(NOW - timedelta(seconds=seconds), NOW) for seconds in (-1, 2.34, 90, 7200)]
    assert ["0.0 s", "2.3 s", "2 min", "2 h"] == ages


def test_status_line_is_one_line_with_everything() -> None:
    """Where there is no terminal, one line has rate, latency, ledger, rows, dead letters and readiness."""
    line = status_line(busy())

    assert "\n" not in line
    for part in ("points/s", "p99", ledger_line(busy()), "rows 1,234,567", "dead letters 630", "ready"):
        assert part in line
