"""The oracle: whatever is wrong with the rows, it says so, and says whose fault it is."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traksense.tools.prove.messages import Key, Sent, Traffic
from traksense.tools.prove.oracle import UNSAVED_SECONDS, Fate, Judgement, judge

EPOCH = 1_790_000_000_000_000
MESSAGES = list(islice(Traffic(7, EPOCH), 300))
GOOD = next(m for m in MESSAGES if not m.poison and len(m.rows) > 2)
POISON = next(m for m in MESSAGES if m.poison)


def all_rows(messages: list[Sent] = MESSAGES) -> list[tuple[Key, str]]:
    return [row for sent in messages for row in sent.rows.items()]


def rows_without(*gone: Sent) -> list[tuple[Key, str]]:
    return all_rows([sent for sent in MESSAGES if sent not in gone])


def confirmed(**of_good: object) -> dict[int, Fate]:
    fates = {m.number: Fate(published_at=10.0, confirmed_at=10.5, acknowledged=True, delivered=1) for m in MESSAGES}
    for name, value in of_good.items():
        setattr(fates[GOOD.number], name, value)
    return fates


def counts(judgement: Judgement) -> dict[str, int]:
    found = {name: remarks.count for name, remarks in judgement.faults.items() if remarks.count}
    if judgement.lost_by_broker.count:
        found["lost by broker"] = judgement.lost_by_broker.count
    return found


def test_everything_in_its_place_is_no_fault() -> None:
    """All rows of all confirmed messages, each once."""
    judgement = judge(MESSAGES, confirmed(), all_rows())

    assert {} == counts(judgement)
    assert len(MESSAGES) == judgement.confirmed == judgement.stored + judgement.dead
    assert sum(m.poison for m in MESSAGES) == judgement.dead > 0


@settings(max_examples=200)
@given(st.data())
def test_exactly_the_rows_that_were_tampered_with_are_found(data: st.DataObject) -> None:
    """Take messages out, double rows, change values, invent rows: each shows, and nothing else does."""
    indices = st.sets(st.integers(0, len(MESSAGES) - 1), max_size=5)
    gone = {MESSAGES[i].number for i in data.draw(indices)}
    rest = [m for m in MESSAGES if m.number not in gone]
    good = [m for m in rest if not m.poison]
    twice = {rest[i % len(rest)].number for i in data.draw(indices)}
    changed = {good[i % len(good)].number for i in data.draw(indices)}
    invented = data.draw(st.integers(0, 3))
    rows: list[tuple[Key, str]] = [(("event", "t", "d", "boot", "1", f"no-{i}"), "x") for i in range(invented)]
    for sent in rest:
        for place, (key, value) in enumerate(sent.rows.items()):
            written = "changed" if sent.number in changed and not place else value
            rows += [(key, written)] * (2 if sent.number in twice and not place else 1)

    judgement = judge(MESSAGES, confirmed(), rows)

    expected = {"lost": len(gone), "doubled": len(twice), "altered": len(changed), "phantom": invented}
    assert {name: count for name, count in expected.items() if count} == counts(judgement)


def test_acknowledged_and_nowhere_is_ours_whatever_the_broker_did() -> None:
    """The service promised; a broker that was killed is no excuse."""
    judgement = judge(MESSAGES, confirmed(), rows_without(GOOD), broker_kills=[11.0])

    assert {"lost": 1} == counts(judgement)
    assert f"message {GOOD.number} " in judgement.lost.texts[0]


@pytest.mark.parametrize(
    ("kills", "expected"),
    [
        ([11.0], {"lost by broker": 1}),
        ([], {"lost": 1}),
        # Killed before the message existed: that explains nothing.
        ([9.9], {"lost": 1}),
        # Killed when it had long saved the message.
        ([10.5 + UNSAVED_SECONDS + 0.1], {"lost": 1}),
        ([9.0, 10.6, 99.0], {"lost by broker": 1}),
    ],
)
def test_never_acknowledged_and_nowhere_depends_on_the_broker(kills: list[float], expected: dict[str, int]) -> None:
    """Only a broker that was killed after it had the message may have lost it."""
    fates = confirmed(acknowledged=False)

    assert expected == counts(judge(MESSAGES, fates, rows_without(GOOD), broker_kills=kills))


def test_what_the_broker_still_has_is_not_lost() -> None:
    """It was asked at the end, and still owes the message: the run did not drain."""
    fates = confirmed(acknowledged=False, owed=True)

    assert {"undelivered": 1} == counts(judge(MESSAGES, fates, rows_without(GOOD), broker_kills=[11.0]))


def test_never_confirmed_and_nowhere_is_nobodys_fault() -> None:
    """The publisher still has it."""
    fates = confirmed(acknowledged=False, confirmed_at=None)

    judgement = judge(MESSAGES, fates, rows_without(GOOD))

    assert {} == counts(judgement)
    assert len(MESSAGES) - 1 == judgement.confirmed


def test_half_a_message_is_lost_even_if_unconfirmed() -> None:
    """A message is stored by one transaction: a part of it proves that one was torn."""
    torn = dict(islice(GOOD.rows.items(), 1))
    fates = confirmed(acknowledged=False, confirmed_at=None)

    assert {"lost": 1} == counts(judge(MESSAGES, fates, [*rows_without(GOOD), *torn.items()]))


def test_good_message_among_the_dead_letters_is_misfiled_not_lost() -> None:
    """Its bytes are safe, but it belongs elsewhere; if it is stored as well, it is misfiled all the same."""
    letter = (("dead", GOOD.topic, GOOD.payload.hex()), "parse_error")

    assert {"misfiled": 1} == counts(judge(MESSAGES, confirmed(), [*rows_without(GOOD), letter]))
    assert {"misfiled": 1} == counts(judge(MESSAGES, confirmed(), [*all_rows(), letter]))


def test_dead_letter_with_another_reason_is_misfiled() -> None:
    """The reason belongs to the promise."""
    letter = [(key, "adapter_failed") for key in POISON.rows]

    assert {"misfiled": 1} == counts(judge(MESSAGES, confirmed(), [*rows_without(POISON), *letter]))
