"""When somebody has to look at the background work, and when not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from traksense.store.steps import LATE_AFTER, STEPS, StepState, trouble

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("name", STEPS)
def test_step_is_late_when_it_should_have_been_done(name: str) -> None:
    """A step that was done lately is all right, whoever did it; one that nobody does is named, with the time."""
    late = LATE_AFTER[name]

    assert StepState(name, NOW - late).trouble(NOW) is None
    expected = f"{name} has not been done since 2026-11-20T11:59:00+00:00: no such job"
    found = StepState(name, NOW - MINUTE, error="no such job").trouble(NOW + late)
    assert expected == found


def test_step_that_fails_is_named_at_once() -> None:
    """A step whose last attempt failed is in trouble however lately it was done before."""
    state = StepState("drop", NOW, NOW + MINUTE, "canceling statement due to lock timeout")

    expected = "drop has failed since 2026-11-20T12:01:00+00:00: canceling statement due to lock timeout"
    assert expected == state.trouble(NOW + MINUTE)


def test_error_of_a_job_whose_work_is_done_is_no_trouble() -> None:
    """What the scheduler says of a job explains what is missing, and alone it is nothing: the work was committed."""
    assert StepState("aggregate", NOW, error='cannot drop portal ""').trouble(NOW + MINUTE) is None


def test_backlog_of_aggregates() -> None:
    """Aggregates that are computed all the time and do not keep up are behind."""
    state = StepState("aggregate", NOW, waiting=100, waiting_since=NOW - 61 * MINUTE)

    assert "aggregate is more than an hour behind" == state.trouble(NOW)
    assert StepState("aggregate", NOW, waiting=100, waiting_since=NOW - 59 * MINUTE).trouble(NOW) is None


def test_all_troubles_in_one_line() -> None:
    """Each step in trouble is named; none, no reason."""
    fine, bad = StepState("purge", NOW), StepState("drop", NOW, NOW, "x")

    assert trouble([fine, fine], NOW) is None
    assert "drop has failed since 2026-11-20T12:00:00+00:00: x; " * 2 == f"{trouble([bad, fine, bad], NOW)}; "
