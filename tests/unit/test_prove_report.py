"""The verdict: figures added up, failures named, the bound stated."""

from __future__ import annotations

import json

import pytest

from traksense.terminal import Screen
from traksense.tools.prove.report import FIGURES, FINDINGS, table, verdict
from traksense.tools.prove.results import Result, Total


def result(seed: int = 1, **found: int) -> Result:
    return Result(
        seed=seed,
        seconds=20.0,
        settings={"MQTT_VERSION": "5"},
        schedule=[{"at": 1.0, "fault": "broker-kill", "seconds": 0.1, "draw": 3}],
        figures=dict.fromkeys((*FIGURES, "lost_by_broker"), 1000),
        injected={"broker-kill": 1},
        without_effect={},
        resumed={},
        findings={
            name: {"count": found.get(name, 0), "cases": [f"case {i}" for i in range(found.get(name, 0))]}
            for name in FINDINGS
        },
        lost_by_broker=[],
    )


def test_clean_runs_pass_and_state_the_bound() -> None:
    """Sixty runs without a failure: with 95 % confidence fewer than 1 in 20 fail, 3/n."""
    total = Total([result(seed) for seed in range(60)])

    text = table(total)

    assert "PASSED: 60 runs" in text
    assert "4.9%" in text
    assert "60,000" in text
    assert abs(3 / 60 - total.upper_bound) < 0.002


@pytest.mark.parametrize("name", FINDINGS)
def test_any_finding_fails_and_is_told(name: str) -> None:
    """Whatever is found, the run fails, the table has the count and the first cases, and no bound is stated."""
    total = Total([result(1), result(2, **{name: 5})])

    text = table(total)

    assert "FAILED: 1 of 2 runs" in text
    assert f"seed 2, {name}: case 0" in text
    assert f"seed 2, {name}: … 5 in all" in text
    assert "95 %" not in text
    assert f"FAILED: {name} 5" == verdict(total.results[1])
    assert 1 == total.failed


def test_table_fits_a_terminal() -> None:
    """Of 80 columns; in a file, the figures of all lines stand below each other."""
    total = Total([result()])

    assert all(len(line) <= 80 for line in table(total, Screen(80)).splitlines()[:-1])
    whole = table(total)
    figures, _, _ = whole.partition("Faults by kind")
    assert len({len(line) for line in figures.splitlines() if line}) == 1
    assert "…" not in whole


def test_json_has_the_schedule_and_the_verdict() -> None:
    """For machines: all that is needed to repeat the run."""
    document = json.loads(json.dumps(Total([result(7, lost=1)]).as_dict()))

    assert "failed" == document["verdict"]
    assert 7 == document["runs"][0]["seed"]
    assert "broker-kill" == document["runs"][0]["schedule"][0]["fault"]
    assert {"lost": 1} == {name: count for name, count in document["findings"].items() if count}
