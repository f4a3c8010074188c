"""Nothing stops for longer than its fault: how that is measured."""

from __future__ import annotations

from traksense.tools.prove.resume import ResumeWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watch() -> tuple[ResumeWatch, Clock]:
    clock = Clock()
    return ResumeWatch(10.0, clock=clock), clock


def test_the_time_from_the_end_of_a_fault_counts() -> None:
    """Not the fault's own; the longest of several."""
    resumed, clock = watch()
    for seconds in (2.0, 3.0, 1.0):
        resumed.begins()
        clock.now += 50.0
        resumed.ends("broker-kill")
        clock.now += seconds
        resumed.stored()

    assert {"broker-kill": 3.0} == resumed.longest
    assert 0 == resumed.late.count


def test_beyond_the_bound_it_is_told_once_and_measured_on() -> None:
    """Once for each fault, however often one looks."""
    resumed, clock = watch()
    resumed.begins()
    resumed.ends("broker-kill")
    clock.now += 10.0
    resumed.look()
    assert 0 == resumed.late.count
    clock.now += 0.1
    resumed.look()
    resumed.look()
    clock.now += 5.0
    resumed.stored()

    assert ["broker-kill: nothing new was stored in the 10 s after it"] == resumed.late.texts
    assert 15.0 < resumed.longest["broker-kill"] < 15.2


def test_another_fault_beside_it_is_an_excuse_as_long_as_it_lasts() -> None:
    """The clock of the first starts when the last one is over."""
    resumed, clock = watch()
    resumed.begins()
    resumed.ends("service-kill")
    clock.now += 1.0
    resumed.begins()
    clock.now += 60.0
    resumed.look()
    resumed.ends("database-freeze")
    clock.now += 4.0
    resumed.stored()

    assert {"service-kill": 4.0, "database-freeze": 4.0} == resumed.longest
    assert 0 == resumed.late.count


def test_a_fault_that_may_stop_nothing_is_no_excuse_while_it_lasts() -> None:
    """A reader's locks: what is not stored under them is late."""
    resumed, clock = watch()
    resumed.expects("reader-locks")
    clock.now += 11.0
    resumed.look()

    assert 1 == resumed.late.count
