"""The oracle: whatever is wrong with the rows, it says so, and says whose fault it is."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traksense.tools.prove.acts import Act, explains
from traksense.tools.prove.messages import PARTIAL, UNTIMED, Key, Sent, Traffic
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


# --- what operators did -----------------------------------------------------------------------------------------------

DEVICE = next(iter(GOOD.rows))[:4]
"""Where the good message comes from; published at 10.0 like all others, acknowledged when the test says."""


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (Act(ended=11.0, covers=DEVICE), {}),
        (Act(ended=11.0, covers=("measure",)), {}),
        (Act(covers=DEVICE), {}),
        # Published afterwards: the operator has nothing to do with it.
        (Act(ended=9.0, covers=DEVICE), {"lost": 1}),
        (Act(ended=11.0, covers=(*DEVICE[:3], "another")), {"lost": 1}),
        (Act(ended=11.0, covers=("event",)), {"lost": 1}),
        # A dump was restored: what had been acknowledged before it was begun is in it.
        (Act(ended=30.0, saved=15.0), {}),
        (Act(ended=30.0, saved=25.0), {"lost": 1}),
    ],
)
def test_what_an_operator_removed_is_nobodys_loss(act: Act, expected: dict[str, int]) -> None:
    """It excuses what it covers and what was published before its end, and nothing else."""
    judgement = judge(MESSAGES, confirmed(acknowledged_at=20.0), rows_without(GOOD), acts=[act])

    assert expected == counts(judgement)
    assert judgement.removed == (not expected)


def test_a_deletion_that_takes_half_of_a_message_is_no_torn_transaction() -> None:
    """One series was deleted; of the other points one is lost all the same."""
    first, second, *rest = GOOD.rows
    act = Act(ended=11.0, covers=first[:5])
    left = [(key, GOOD.rows[key]) for key in (second, *rest)]

    assert {} == counts(judge(MESSAGES, confirmed(), [*rows_without(GOOD), *left], acts=[act]))
    assert {"lost": 1} == counts(judge(MESSAGES, confirmed(), [*rows_without(GOOD), *left[1:]], acts=[act]))


@pytest.mark.parametrize(("ended", "expected"), [(11.0, {}), (10.0, {"misnamed": 1})])
def test_a_renamed_series_has_the_old_rows_and_no_new_ones(ended: float, expected: dict[str, int]) -> None:
    """A row under the new name is its message's if that was published before; later it belongs under the old one."""
    first, *rest = GOOD.rows
    act = Act(ended=ended, covers=first[:5], renamed=(*first[:4], "renamed"))
    rows = [((*first[:4], "renamed", first[5]), GOOD.rows[first]), *((key, GOOD.rows[key]) for key in rest)]

    assert expected == counts(judge(MESSAGES, confirmed(), [*rows_without(GOOD), *rows], acts=[act]))


def test_a_renamed_row_with_another_value_is_altered() -> None:
    """A renaming changes no values; and what nobody sent stays a phantom under the new name."""
    first = next(iter(GOOD.rows))
    act = Act(ended=11.0, covers=first[:5], renamed=(*first[:4], "renamed"))
    rest = [row for row in all_rows() if row[0] != first]

    altered = [*rest, ((*first[:4], "renamed", first[5]), "another")]
    phantom = [*all_rows(), ((*first[:4], "renamed", "1"), "1")]

    assert {"altered": 1} == counts(judge(MESSAGES, confirmed(), altered, acts=[act]))
    assert {"phantom": 1} == counts(judge(MESSAGES, confirmed(), phantom, acts=[act]))


def test_the_watch_accuses_nobody_of_what_an_operator_did() -> None:
    """Removed or renamed: a row that is not there under its own name has an explanation, unless it came later."""
    first = next(iter(GOOD.rows))
    renaming = Act(ended=11.0, covers=first[:5], renamed=(*first[:4], "renamed"))

    assert explains([renaming], first, 10.0, 10.6)
    assert explains([Act(covers=DEVICE)], first, 10.0, 10.6)
    assert not explains([renaming], first, 12.0, 12.1)
    assert not explains([renaming], (*first[:4], "p9", first[5]), 10.0, 10.6)
    assert not explains([], first, 10.0, 10.6)


# --- messages of other kinds ------------------------------------------------------------------------------------------


def of_sort(sort: str, count: int) -> tuple[list[Sent], dict[int, Fate]]:
    traffic = Traffic(3, EPOCH)
    messages = [traffic.next(sort) for _ in range(count)]
    fates = {m.number: Fate(published_at=10.0, confirmed_at=10.5, acknowledged=True, delivered=1) for m in messages}
    return messages, fates


def test_a_message_without_a_time_is_told_by_its_value() -> None:
    """At whatever instant: one row is right, a second one is a redelivery's and allowed, none is a loss."""
    messages, fates = of_sort(UNTIMED, 3)
    stored = [
        (("measure", *key[1:5], str(EPOCH + n)), value) for n, m in enumerate(messages) for key, value in m.rows.items()
    ]
    again = (("measure", *stored[0][0][1:5], str(EPOCH + 99)), stored[0][1])

    judgement = judge(messages, fates, [*stored, again])

    assert {} == counts(judgement)
    assert (3, 1) == (judgement.stored, judgement.repeated)
    assert {"lost": 2} == counts(judge(messages, fates, stored[:1]))


def test_a_message_with_a_bad_point_is_stored_and_a_dead_letter_once() -> None:
    """Both: the good points without the letter are a loss, and so is the letter without them; any reason will do."""
    (sent,), fates = of_sort(PARTIAL, 1)
    points = [row for row in sent.rows.items() if row[0][0] == "measure"]
    letter = (("dead", sent.topic, sent.payload.hex()), "type_mismatch")

    assert {} == counts(judge([sent], fates, [*points, letter]))
    assert {"doubled": 1} == counts(judge([sent], fates, [*points, letter, letter]))
    for partly in (points, [letter], [points[0], letter]):
        assert {"lost": 1} == counts(judge([sent], fates, partly))
