"""What `prove` publishes: unique, repeatable, and exactly what the decoders make of it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from traksense.adapters import load_registry
from traksense.config import Settings
from traksense.ingest.decode import Decoder, Router
from traksense.model import Event, Message, Telemetry
from traksense.tools.prove.messages import NEW_DAY, PARTIAL, SENTINEL, STRANGER, UNTIMED, Sent, Traffic, timestamp

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
EPOCH = int(NOW.timestamp()) * 1_000_000


def traffic(seed: int = 1, count: int = 2000) -> list[Sent]:
    return list(islice(Traffic(seed, EPOCH), count))


def test_every_message_and_every_row_is_unique() -> None:
    """A row or a dead letter names the one message that it came from."""
    messages = traffic()

    assert len(messages) == len({m.payload for m in messages})
    assert 1 == max(Counter(key for m in messages for key in m.rows).values())


@given(st.integers(0, 2**32))
def test_same_seed_same_traffic(seed: int) -> None:
    """A failure can be repeated by its seed."""
    assert traffic(seed, 20) == traffic(seed, 20)


def test_every_sort_is_there() -> None:
    """Telemetry, acknowledgements, events with and without a name, late ones, and four sorts of poison."""
    messages = traffic()
    kinds = Counter(key[0] for m in messages for key in m.rows)
    reasons = Counter(value for m in messages for key, value in m.rows.items() if key[0] == "dead")

    assert {"measure", "ack", "event", "dead"} == set(kinds)
    assert {"parse_error", "unknown_schema", "database_refused"} == set(reasons)
    assert any(key[0] == "event" and not key[-1] for m in messages for key in m.rows)
    assert any(key[0] == "measure" and int(key[-1]) < EPOCH for m in messages for key in m.rows)


def test_the_decoders_agree_with_the_expectation() -> None:
    """Good messages decode to the rows that are expected; poison is refused for the reason that is expected, or only by
    the database.
    """
    decoder = Decoder(Settings(), load_registry(), now=lambda: NOW + timedelta(hours=1))
    router = Router()
    for sent in traffic(count=500):
        message = Message(sent.topic, sent.payload, 1, 1, 1, False, NOW, router.route(sent.topic))
        delivery = decoder.decode(message)
        (expected, *_) = sent.rows.values()
        if delivery.rejection is not None:
            assert sent.poison
            assert expected == delivery.rejection.reason
        elif sent.poison:
            assert "database_refused" == expected
        else:
            (item,) = delivery.items
            if isinstance(item, Telemetry):
                values = {p.name: str(p.v).lower() if isinstance(p.v, bool) else str(p.v) for p in item.points}
                numbers = {name: value.removesuffix(".0") for name, value in values.items()}
                assert numbers == {key[4]: value for key, value in sent.rows.items()}
                assert {str(round(item.ts.timestamp() * 1e6))} == {key[5] for key in sent.rows}
            elif isinstance(item, Event):
                ((_, _, _, kind, ts, name),) = sent.rows
                assert (kind, ts, name) == (item.event_type, str(round(item.ts.timestamp() * 1e6)), item.event_id or "")


def test_the_sentinel_is_an_event_of_its_own() -> None:
    """It comes last, and can be told from the rest."""
    made = Traffic(1, EPOCH)
    last = [made.next(), made.sentinel()][1]

    assert 1 == last.number
    assert [SENTINEL] == [key[3] for key in last.rows]


@given(st.integers(0, 4_000_000_000_000_000))
def test_timestamps_are_exact_to_the_microsecond(microseconds: int) -> None:
    """No float comes between."""
    text = timestamp(microseconds)

    assert timedelta(microseconds=microseconds) == datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)


def test_further_sorts_come_when_they_are_wanted() -> None:
    """Messages without a time and messages with a bad point, among all the others."""
    made = list(islice(Traffic(1, EPOCH, more=[UNTIMED, PARTIAL]), 2000))

    assert {"measure", "ack", "event", "dead", "untimed"} == {key[0] for m in made for key in m.rows}
    assert len(made) == len({m.payload for m in made})
    assert any({"measure", "dead"} == {key[0] for key in m.rows} for m in made)


def test_strangers_and_new_days_never_repeat() -> None:
    """Each stranger is another device; each new day needs a partition that is not there."""
    made = Traffic(1, EPOCH)
    strangers = {next(iter(made.next(STRANGER).rows))[3] for _ in range(50)}
    days = {int(next(iter(made.next(NEW_DAY).rows))[5]) // 86_400_000_000 for _ in range(30)}

    assert 50 == len(strangers)
    assert 30 == len(days)
