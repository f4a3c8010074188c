"""Watching the service's ledger, over as many processes as it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from traksense.tools.prove.watch import LedgerWatch
from traksense.tools.stack import Samples, StackError, parse_metrics

if TYPE_CHECKING:
    from traksense.tools.prove.keeper import Keeper


class FakeProcess:
    """Answers scrapes with what it is given; None is no answer."""

    def __init__(self, *answers: Samples | None) -> None:
        self.answers = list(answers)

    async def metrics(self) -> Samples:
        answer = self.answers.pop(0)
        if answer is None:
            raise StackError("no answer")
        return answer


class FakeKeeper:
    def __init__(self) -> None:
        self.process: FakeProcess | None = None


def samples(received: int, stored: int, *, duplicate: int = 0, in_flight: int = 0, queue: int = 0) -> Samples:
    return parse_metrics(
        f'ingest_messages_total{{type="telem"}} {received}\n'
        f'ingest_messages_ended_total{{outcome="stored"}} {stored}\n'
        f'ingest_messages_ended_total{{outcome="duplicate"}} {duplicate}\n'
        f"ingest_in_flight_messages {in_flight}\n"
        f"ingest_queue_size {queue}\n"
    )


async def scraped(*processes: FakeProcess | None) -> LedgerWatch:
    keeper = FakeKeeper()
    watch = LedgerWatch(cast("Keeper", keeper))
    for process in processes:
        keeper.process = process
        for _ in range(len(process.answers) if process else 1):
            await watch.scrape()
    return watch


async def test_ledger_that_adds_up_is_no_mismatch() -> None:
    """Received = stored + duplicate + dead + in flight, at each scrape."""
    watch = await scraped(FakeProcess(samples(10, 6, duplicate=1, in_flight=3), samples(10, 9, duplicate=1)))

    assert (2, 0) == (watch.scrapes, watch.mismatches.count)
    assert watch.idle


async def test_ledger_that_does_not_add_up_is_told() -> None:
    """One message missing in one scrape is enough."""
    watch = await scraped(FakeProcess(samples(10, 6, in_flight=3)))

    assert ["received 10, ended 6, in flight 3"] == watch.mismatches.texts


async def test_figures_are_added_up_over_processes() -> None:
    """A killed process counts with its last scrape; no process, or no answer, counts nothing."""
    first, second = FakeProcess(samples(5, 5), samples(8, 7, duplicate=1)), FakeProcess(samples(4, 1, duplicate=3))

    watch = await scraped(None, first, None, second, FakeProcess(None))

    assert (12, 4) == (watch.totals()["received"], watch.totals()["duplicates"])
    assert 3 == watch.scrapes


async def test_idle_only_if_the_service_says_so_now() -> None:
    """In flight, queued, or no answer: not idle."""
    for process in (FakeProcess(samples(3, 2, in_flight=1)), FakeProcess(samples(2, 2, queue=1))):
        assert not (await scraped(process)).idle
    assert not (await scraped(FakeProcess(samples(2, 2), None))).idle
