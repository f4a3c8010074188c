"""The simulated fleet: it repeats with its seed, and every message is what it claims to be."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from traksense.adapters import Registry
from traksense.config import Settings
from traksense.ingest.decode import Decoder, read_topic
from traksense.model import CommandAck, Event, Kind, Message, Telemetry
from traksense.tools.fleet import Fault, Fleet, FleetOptions, Format, Limits, Tally, play
from traksense.tools.fleet.faults import BEYOND_DEFAULT_TOPICS, REASONS, make
from traksense.tools.fleet.formats import timestamp
from traksense.tools.fleet.machines import Chiller, ColdRoom, SolarInverter
from traksense.tools.fleet.signals import DAY, HOUR, Thermostat, sunlight

if TYPE_CHECKING:
    from trio.testing import MockClock

    from traksense.model import Delivery
    from traksense.tools.fleet import Publication

EPOCH = 1_760_000_000.0
DECODER = Decoder(Settings(), Registry(), now=lambda: datetime.fromtimestamp(EPOCH + DAY, UTC))

options = st.builds(
    FleetOptions,
    tenants=st.integers(1, 3),
    devices=st.integers(1, 12),
    points=st.integers(1, 25),
    rate=st.sampled_from([0.0, 5.0, 300.0, 20_000.0]),
    format=st.sampled_from([None, *Format]),
    bad=st.sampled_from([0.0, 0.1, 1.0]),
    duplicates=st.sampled_from([0.0, 0.2]),
    disorder=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**32),
    start_hour=st.floats(0, 24),
    speed=st.sampled_from([1.0, 60.0]),
)


def publications(
    fleet_options: FleetOptions, turns: int, *, epoch: float = EPOCH, step: float = 0.01
) -> list[Publication]:
    """What comes of so many turns; without a rate, `step` seconds lie between two of them."""
    fleet = Fleet(fleet_options)
    made = (fleet.next(epoch + (fleet.due if fleet_options.rate else step * turn)) for turn in range(turns))
    return [publication for publication in made if publication is not None]


def decode(publication: Publication) -> Delivery:
    """What the service makes of it."""
    now = datetime.fromtimestamp(EPOCH, UTC)
    route = read_topic(publication.topic)
    return DECODER.decode(Message(publication.topic, publication.payload, 1, 1, 1, False, now, route))


@given(options=options)
@settings(max_examples=60, deadline=None)
def test_fleet_repeats_with_its_seed(options: FleetOptions) -> None:
    """The same options and times give the same messages, byte for byte."""
    first, second = publications(options, 80), publications(options, 80)

    assert [(p.topic, p.payload) for p in first] == [(p.topic, p.payload) for p in second]


@given(options=options)
@settings(max_examples=40, deadline=None)
def test_fleet_at_another_time_differs_by_timestamps_only(options: FleetOptions) -> None:
    """Values, order, faults and topics follow from the seed; only times, and identifiers that hold one, do not."""
    first, second = publications(options, 60), publications(options, 60, epoch=EPOCH + 86_461)

    assert [(p.topic, timeless(p.payload)) for p in first] == [(p.topic, timeless(p.payload)) for p in second]


def timeless(payload: bytes) -> bytes:
    """The payload without what holds a time: ISO times, Unix times and the first ten characters of a ULID."""
    payload = re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z", b"T", payload)
    payload = re.sub(rb'("(?:TS|BOOT_TS|bt)":)[\d.]+', rb"\1T", payload)
    return re.sub(rb'("(?:event_id|cmd_id)":")[0-9A-Z]{10}', rb"\1", payload)


@given(options=options)
@settings(max_examples=60, deadline=None)
def test_fleet_messages_are_what_they_claim(options: FleetOptions) -> None:
    """The service makes of each message the kind and number of points that it claims, or refuses it as it should."""
    classes = {Kind.TELEM: Telemetry, Kind.EVENT: Event, Kind.ACK: CommandAck}
    for publication in publications(options, 60):
        delivery = decode(publication)
        if publication.fault is not None:
            assert delivery.rejection is not None
            assert REASONS[publication.fault] == delivery.rejection.reason
        else:
            assert delivery.rejection is None
            assert all(isinstance(item, classes[publication.kind]) for item in delivery.items)
            assert publication.points == delivery.points


@given(options=options)
@settings(max_examples=60, deadline=None)
def test_fleet_never_says_the_same_twice_by_accident(options: FleetOptions) -> None:
    """A point has one value at one time, bad messages differ, identifiers are used once: all can be counted."""
    seen: Counter[object] = Counter()
    for publication in publications(options, 120, step=0.0):
        if publication.repeat:
            continue
        delivery = decode(publication)
        if publication.fault is not None:
            seen[publication.topic, publication.payload] += 1
        for item in delivery.items:
            device = delivery.message.route and delivery.message.route.path
            if isinstance(item, Telemetry):
                seen.update((device, point.name, point.u, item.ts) for point in item.points)
            else:
                seen[device, item.cmd_id if isinstance(item, CommandAck) else item.event_id] += 1

    assert {} == {what: count for what, count in seen.items() if count > 1}


@pytest.mark.parametrize("fault", Fault)
def test_fault_has_its_reason(fault: Fault) -> None:
    """Every fault is refused for its own reason, and a second one of its kind is another message."""
    first, second = (make(fault, "tenant/site/device", number, EPOCH) for number in (1, 2))
    delivery = DECODER.decode(Message(*first, 1, 1, 1, False, datetime.fromtimestamp(EPOCH, UTC), read_topic(first[0])))

    assert delivery.rejection is not None
    assert REASONS[fault] == delivery.rejection.reason
    assert first != second


@pytest.mark.parametrize("rate", [50.0, 600.0, 30_000.0])
def test_fleet_keeps_its_rate(rate: float) -> None:
    """What is due within some seconds is as many points as were asked for."""
    fleet = Fleet(FleetOptions(rate=rate))
    seconds = max(5.0, 4000 / rate)
    points = 0
    while fleet.due < seconds:
        publication = fleet.next(EPOCH + fleet.due)
        points += publication.points if publication else 0

    assert pytest.approx(rate * seconds, rel=0.12) == points


def test_fleet_je02_knows_whole_seconds_only() -> None:
    """With a rate, a JE02 writes TS as an integer and never the same twice, however fast the rest of the fleet is."""
    fleet = Fleet(FleetOptions(tenants=1, devices=10, rate=5000.0))
    stamps: list[int] = []
    while fleet.due < 10.0:
        publication = fleet.next(EPOCH + fleet.due)
        if publication and publication.format is Format.JE02:
            stamps.append(json.loads(publication.payload)["DATA"]["TS"])

    assert [int(EPOCH) + second for second in range(10)] == stamps


def test_fleet_late_messages_come_after_later_ones() -> None:
    """A message that is held back goes after a newer one of its device, unless that is held back too."""
    newest: dict[str, datetime] = {}
    late: list[bool] = []
    for publication in publications(FleetOptions(disorder=0.1, rate=600.0), 3000):
        if publication.format is None:
            continue
        item = decode(publication).items[0]
        assert isinstance(item, Telemetry)
        if publication.late:
            late.append(item.ts < newest.get(publication.topic, item.ts))
        newest[publication.topic] = max(item.ts, newest.get(publication.topic, item.ts))

    assert len(late) > 100
    assert sum(late) > 0.85 * len(late)


def test_fleet_repeats_are_exact_and_come_later() -> None:
    """A duplicate is the same topic and bytes as a message before it."""
    seen: set[tuple[str, bytes]] = set()
    repeats = 0
    for publication in publications(FleetOptions(duplicates=0.1), 2000):
        assert publication.repeat == ((publication.topic, publication.payload) in seen)
        repeats += publication.repeat
        seen.add((publication.topic, publication.payload))

    assert repeats > 100


@pytest.mark.parametrize("share", ["bad", "duplicates", "disorder"])
def test_fleet_share_out_of_range_is_refused(share: str) -> None:
    """A share is between 0 and 1."""
    with pytest.raises(ValueError, match=share):
        FleetOptions(**{share: 1.5})  # type: ignore[arg-type]


async def test_play_ends_in_time_when_the_broker_is_away(autojump_clock: MockClock) -> None:
    """Whether its publisher waits for room or not; there may be nobody who interrupts it."""

    async def publish(*_: object, **_options: object) -> None:
        await trio.sleep_forever()

    waiting: Any = SimpleNamespace(publish=publish)
    with trio.fail_after(10):
        await play(Fleet(FleetOptions()), waiting, tally := Tally(), limits=Limits(seconds=4))

    assert 0 == tally.published


def test_tally_counts_in_the_terms_of_a_database() -> None:
    """Rows, events, acknowledgements and dead letters to expect are what the decoder makes of what was confirmed."""
    tally = Tally()
    expected: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for publication in publications(FleetOptions(bad=0.1, duplicates=0.05, disorder=0.05), 4000):
        tally.publish(publication)
        tally.confirm(publication)
        delivery = decode(publication)
        if delivery.rejection:
            reasons[delivery.rejection.reason] += 1
        elif not publication.repeat:
            expected[type(delivery.items[0]).__name__] += max(1, delivery.points)

    assert expected == {"Telemetry": tally.points, "Event": tally.events, "CommandAck": tally.acknowledgements}
    assert reasons == tally.dead(all_topics=True)
    outside = sum(tally.bad[fault] for fault in BEYOND_DEFAULT_TOPICS)
    assert tally.dead(all_topics=True).total() - outside == tally.dead(all_topics=False).total()
    assert 0 == tally.unconfirmed


def test_tally_knows_what_is_missing() -> None:
    """What is neither confirmed nor refused is unconfirmed."""
    tally = Tally()
    first, second, third, *_ = publications(FleetOptions(), 5)
    for publication in (first, second, third):
        tally.publish(publication)
    tally.confirm(first)
    tally.refuse(second, 0x97)

    assert (1, 1, 1) == (tally.confirmed, tally.refused.total(), tally.unconfirmed)
    assert {"published": 3, "confirmed": 1, "refused": 1, "unconfirmed": 1} == tally.as_dict()["messages"]


# --- believable -------------------------------------------------------------------------------------------------------


def test_sunlight_is_a_bell_by_day() -> None:
    """No sun at night, most at noon, rising before and falling after."""
    hours = [sunlight(hour * HOUR) for hour in range(24)]

    assert [0.0] * 6 == hours[:6]
    assert 12 == hours.index(max(hours))
    assert sorted(hours[6:13]) == hours[6:13]
    assert sorted(hours[13:19], reverse=True) == hours[13:19]


def test_thermostat_has_hysteresis() -> None:
    """Between its two thresholds it stays as it was."""
    thermostat = Thermostat(setpoint=7.0, band=0.5)

    assert [False, False, True, True, False, False] == [thermostat.step(t) for t in (7.0, 7.4, 7.6, 6.6, 6.4, 7.4)]


@given(seed=st.integers(0, 200), step=st.sampled_from([1.0, 10.0, 60.0]))
@settings(max_examples=20, deadline=None)
def test_chiller_cycles_and_keeps_the_water_cold(seed: int, step: float) -> None:
    """Over a day the compressor switches often, the water stays near its setpoint, and power follows."""
    chiller = Chiller(Random(seed), 0.0)
    samples = [
        {s.name: s.value for s in chiller.sample(at * step)} for at in range(1, int(DAY / step), max(1, int(20 / step)))
    ]
    on = [bool(s["compressor_1_on"]) for s in samples]
    water = sorted(float(s["temp_agua"]) for s in samples)

    assert sum(before != after for before, after in pairwise(on)) > 20
    assert 6.0 < water[len(water) // 2] < 8.5
    running = [float(s["power"]) for s, is_on in zip(samples, on, strict=True) if is_on]
    idle = [float(s["power"]) for s in samples if s["state"] == "IDLE"]
    assert min(running) > max(idle)


@given(seed=st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_coldroom_stays_cold(seed: int) -> None:
    """Over a day with doors and defrosts, the room is within its thermostat's band most of the time."""
    room = ColdRoom(Random(seed), 0.0)
    samples = [{s.name: s.value for s in room.sample(at * 30.0)} for at in range(1, 2880)]
    off = sorted(abs(float(s["temp_room"]) - float(s["setpoint"])) for s in samples)

    assert off[len(off) // 2] < 1.5
    assert {True, False} == {s["compressor_1_on"] for s in samples}
    assert {True, False} == {s["door_open"] for s in samples}


def test_solar_inverter_sleeps_at_night() -> None:
    """No power in the dark, some at noon, and the day's energy starts again at midnight."""
    inverter = SolarInverter(Random(1), 0.0)
    by_hour = {hour: {s.name: s.value for s in inverter.sample(hour * HOUR)} for hour in range(1, 30)}

    night = [by_hour[hour] for hour in (1, 3, 5, 20, 23, 26)]
    assert [0.0] * 6 == [sample["ac_power"] for sample in night]
    assert "MPPT" not in {sample["state"] for sample in night}
    assert max(float(by_hour[hour]["ac_power"]) for hour in (11, 12, 13)) > 5.0
    assert float(by_hour[20]["energy_today"]) > 20.0
    assert 0.0 == by_hour[25]["energy_today"]


def test_timestamp_is_iso_with_microseconds() -> None:
    """A time is written with Z and to the microsecond, also when that is zero."""
    assert "2025-10-09T08:53:20.000000Z" == timestamp(EPOCH)
