"""Figures of a bench: medians, ratios, quantiles, and how they are told."""

from __future__ import annotations

import json
import math
import os
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from traksense.tools.bench import report
from traksense.tools.bench.hose import Hose
from traksense.tools.bench.plot import write_plots
from traksense.tools.bench.readings import Sampler, children, cpu_seconds, machine, memory_bytes
from traksense.tools.bench.results import Key, Results, Summary, quantile
from traksense.tools.bench.steady import histogram
from traksense.tools.bench.targets import targets
from traksense.tools.stack import Samples, StackError

if TYPE_CHECKING:
    from pathlib import Path

PAHO = Key("backlog", "10-point messages", "paho")
OLD = Key("backlog", "10-point messages", "old paho")
ENVIRONMENT = {
    "version": "1",
    "cpus": 2,
    "cpu_model": "X",
    "python": "3.11",
    "postgres": "18",
    "broker": "Mosquitto",
    "rounds": 3,
    "notes": ["busy"],
}


def results() -> Results:
    """Three rounds."""
    found = Results()
    for ceiling, ours, theirs in ((500, 200, 100), (400, 300, 100), (600, 400, 100)):
        found.add(Key("ceiling", "prepared bytes"), {"rows_per_second": ceiling})
        found.add(PAHO, {"points_per_second": ours * 1000, "cpu_seconds": 3.5, "peak_mib": 100.0})
        found.add(OLD, {"points_per_second": theirs * 1000, "cpu_seconds": 3.5, "peak_mib": 300.0})
    return found


def test_summaries_are_medians() -> None:
    """Each figure has its median, its extremes and its rounds."""
    assert (
        Summary(300_000, 200_000, 400_000, (200_000, 300_000, 400_000))
        == results().summaries(PAHO)["points_per_second"]
    )
    assert (300_000, None, None) == (
        results().median(PAHO, "points_per_second"),
        results().median(PAHO, "p50_ms"),
        results().median(Key("steady", "", ""), "p50_ms"),
    )
    assert 600 == results().latest(Key("ceiling", "prepared bytes"), "rows_per_second")


def test_ratios_are_of_the_same_round() -> None:
    """A change is judged by the ratios of each round, not by the ratio of two medians."""
    ratios = results().ratios(PAHO, OLD)

    assert Summary(3, 2, 4, (2, 3, 4)) == ratios["points_per_second"]
    assert Summary(1, 1, 1, (1, 1, 1)) == ratios["cpu_seconds"]


def test_unknown_figure_is_refused() -> None:
    """A figure that the report cannot explain does not get in."""
    with pytest.raises(ValueError, match="typo"):
        Results().add(PAHO, {"typo": 1.0})


def test_text_says_everything_with_units() -> None:
    """The report has every figure, what the columns mean, targets, ratios, notes and faults."""
    found = results()
    found.faults.append("rows are lost")
    lines = list(report.text(found, ENVIRONMENT, "old"))
    whole = "\n".join(lines)

    assert "busy" in whole
    assert any(line.split()[:4] == ["10-point", "messages,", "paho", "300,000"] for line in lines)
    assert any("points/s" in line and "duplicates" in line for line in lines)
    assert any("met" in line and "300,000 points/s (target ≥ 170,000 points/s)" in line for line in lines)
    assert any(line.split()[:1] == ["3.000"] and "better" in line for line in lines)
    assert any(line.split()[:1] == ["1.000"] and "same" in line for line in lines)
    assert "FAILED: rows are lost" == lines[-1]


def test_json_has_the_rounds() -> None:
    """The same for machines; it can be written as JSON."""
    document = json.loads(json.dumps(report.as_json(results(), ENVIRONMENT, "old")))

    first, second, third = document["results"]
    assert ("ceiling", "backlog", "old paho") == (first["scenario"], second["scenario"], third["contender"])
    assert [200_000, 300_000, 400_000] == second["points_per_second"]["rounds"]
    assert 3 == document["ratios"][0]["points_per_second"]["median"]
    assert "points/s" == document["figures"]["points_per_second"]["unit"]


def test_targets_met_and_missed() -> None:
    """Only our own figures are held against the targets, the larger and the smaller ones the right way round."""
    met = {(t.what.partition(":")[0], t.wanted): t.met for t in targets(results())}

    assert met == {
        ("backlog, 10-point messages, paho", "≥ 170,000 points/s"): True,
        ("backlog, 10-point messages, paho", "≤ 4.0 s per million points"): True,
        ("memory of the service in any state, paho", "≤ 256 MiB"): True,
    }
    slow = Results()
    slow.add(Key("growth", "1,000 series", "paho"), {"points_per_second": 100.0})
    slow.add(Key("growth", "1,000,000 series", "paho"), {"points_per_second": 79.0})
    slow.add(Key("steady", "5,000 points/s", "paho"), {"p50_ms": 21.0, "peak_mib": 257.0})
    assert [False, False, False] == [t.met for t in targets(slow)]


def test_plots_are_well_formed(tmp_path: Path) -> None:
    """Each plot is an SVG with a bar and a label for each case, and only plots with figures are written."""
    paths = write_plots(results(), tmp_path / "new", "2 CPUs & <more>")

    assert {"throughput.svg", "cpu.svg", "memory.svg"} == {path.name for path in paths}
    root = ET.fromstring(paths[0].read_text(encoding="utf-8"))
    said = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "10-point messages, paho" in said
    assert "300,000 points/s" in said
    assert "2 CPUs & <more>" in said


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.5, 0.01), (0.25, 0.005), (0.75, 0.015), (0.9, 0.018), (0.99, 0.02), (1.0, 0.02)],
)
def test_quantile_is_interpolated(share: float, expected: float) -> None:
    """Half of 100 values up to 0.01, 40 up to 0.02, the rest beyond: read on a line, at most the last finite bound."""
    buckets = {0.01: 50.0, 0.02: 90.0 if share > 0.75 else 100.0, math.inf: 100.0}
    if share == 0.9:
        expected = 0.02

    assert expected == pytest.approx(quantile(buckets, share))


def test_quantile_of_nothing() -> None:
    """An empty histogram has none."""
    assert 0 == quantile({}, 0.5) == quantile({0.1: 0.0, math.inf: 0.0}, 0.5)


def test_histogram_is_the_difference_of_two_scrapes() -> None:
    """What was counted before the period does not count."""
    name = "ingest_latency_seconds_bucket"
    before = Samples({(name, (("le", "0.1"),)): 3.0, (name, (("le", "+Inf"),)): 4.0})
    after = Samples({(name, (("le", "0.1"),)): 5.0, (name, (("le", "+Inf"),)): 9.0, ("other", ()): 1.0})

    assert {0.1: 2.0, math.inf: 5.0} == histogram(before, after)


# --- readings ---------------------------------------------------------------------------------------------------------


def test_readings_of_our_own_process() -> None:
    """Time passes in processor seconds, memory is some mebibytes, and what is gone reads as nothing."""
    begin = cpu_seconds(os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    now, peak = memory_bytes(os.getpid())

    assert 0.05 < cpu_seconds(os.getpid()) - begin < 2
    assert 10 * 2**20 < now <= peak
    assert (0.0, (0, 0), []) == (cpu_seconds(2**30), memory_bytes(2**30), children(2**30))
    assert 0 < int(machine()["cpus"])


def test_sampler_reads_between_samples() -> None:
    """A moment between two samples is read on a line; before the first and after the last they hold."""
    sampler = Sampler(lambda: 0.0, [10.0, 20.0], [1.0, 3.0])

    assert [1, 1, 2, 3, 3] == [sampler.at(moment) for moment in (5, 10, 15, 20, 25)]
    assert 0.5 == pytest.approx(sampler.between(12.5, 15))


# --- the publisher's confirmations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100])
def test_hose_counts_confirmations(size: int) -> None:
    """PUBACKs are counted however they are cut, short ones and ones that say more."""
    hose = Hose(None, 10)  # type: ignore[arg-type]  # nothing is sent
    stream = b"\x40\x02\x00\x01" * 5 + b"\x40\x03\x00\x01\x00" + b"\x40\x04\x00\x02\x00\x00" + b"\x40\x02\x00\x03" * 2
    for begin in range(0, len(stream), size):
        hose.take(stream[begin : begin + size])

    assert 9 == hose.confirmed


@pytest.mark.parametrize("raw", ["4003000110", "4003000197", "e0018e"])
def test_hose_refusal_is_an_error(raw: str) -> None:
    """A message that nobody would get, a quota, a goodbye: nothing that a bench could go on with."""
    hose = Hose(None, 10)  # type: ignore[arg-type]  # nothing is sent
    with pytest.raises(StackError):
        hose.take(bytes.fromhex(raw))
