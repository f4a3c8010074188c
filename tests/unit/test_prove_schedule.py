"""The schedule of faults: a function of the seed that leaves nothing out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.commands.prove import REVEALING
from traksense.tools.prove.inject import ACTIONS
from traksense.tools.prove.schedule import (
    CATALOGUE,
    FAILOVER,
    POOLER_KILL,
    WARM_UP_SECONDS,
    make_schedule,
    missing_programs,
    suited,
)

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, seconds=st.floats(2, 120))
def test_same_seed_same_schedule(seed: int, seconds: float) -> None:
    """A failure can be repeated by its seed."""
    assert make_schedule(seed, seconds) == make_schedule(seed, seconds)


@given(seed=SEEDS, seconds=st.floats(5, 120), kinds=st.sets(st.sampled_from(sorted(CATALOGUE)), min_size=1))
def test_faults_come_in_time_and_none_is_left_out(seed: int, seconds: float, kinds: set[str]) -> None:
    """Sorted, inside the time, of the kinds asked for, each lasting as long as it may, and no kind twice more often
    than another.
    """
    schedule = make_schedule(seed, seconds, kinds)

    assert sorted(schedule, key=lambda i: i.at) == list(schedule)
    assert all(WARM_UP_SECONDS <= i.at <= seconds for i in schedule)
    assert all(CATALOGUE[i.fault].seconds[0] <= i.seconds <= CATALOGUE[i.fault].seconds[1] for i in schedule)
    count = Counter(i.fault for i in schedule)
    assert kinds >= set(count)
    counts = [count[kind] for kind in kinds]
    assert max(counts) - min(counts) <= 1


@given(seed=SEEDS)
def test_a_usual_run_meets_every_kind(seed: int) -> None:
    """In the default time each kind has its turn."""
    assert set(CATALOGUE) == {i.fault for i in make_schedule(seed, 60)}


def test_seeds_differ() -> None:
    """Another seed, another schedule."""
    assert make_schedule(1, 30) != make_schedule(2, 30)


def test_no_faults_no_schedule() -> None:
    """`--faults ''` is a run in peace."""
    assert () == make_schedule(1, 30, [])


def test_unknown_kind_is_refused() -> None:
    """A misspelt name does not pass for a fault."""
    with pytest.raises(KeyError):
        make_schedule(1, 30, ["meteorite"])


def test_every_kind_is_done_and_every_control_has_its_faults() -> None:
    """The catalogue, the actions and the controls name the same things."""
    assert set(CATALOGUE) == set(ACTIONS)
    assert all(set(kinds) <= set(CATALOGUE) for kinds in REVEALING.values())


def test_a_run_has_a_standby_or_a_pooler() -> None:
    """Where both are wanted, two runs have both between them; one alone is always had."""
    left_out = [set(CATALOGUE) - set(suited(seed, CATALOGUE)) for seed in (4, 5)]

    assert [{POOLER_KILL}, {FAILOVER}] == left_out
    assert (POOLER_KILL,) == suited(4, [POOLER_KILL])
    assert (FAILOVER,) == suited(5, [FAILOVER])


def test_faults_whose_programs_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they lack; the others need none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TRAKSENSE_PGBOUNCER", raising=False)
    monkeypatch.setattr("traksense.tools.stack.pooler._PLACES", ())
    missing = missing_programs(CATALOGUE, tmp_path)

    assert {FAILOVER, POOLER_KILL, "operator-restore"} == set(missing)
    assert "pg_basebackup" in missing[FAILOVER]
    assert "apt-get install pgbouncer" in missing[POOLER_KILL]
    for program in ("pg_basebackup", "pg_dump", "psql"):
        (tmp_path / program).touch()
    assert {POOLER_KILL} == set(missing_programs(CATALOGUE, tmp_path))
