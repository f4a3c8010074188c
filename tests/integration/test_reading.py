"""The ten queries of ops/reading.md, as they stand there, on data for which a simpler query would be wrong.

What they ask about now is asked at `NOW`: schema `clock` has a function now() that the sessions here find first. Berlin
set its clocks back that morning, so its day began at 22:00 UTC and has 25 hours. Each question has a tenant of its own,
and `bravo` has data under the same names as all of them.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from reading_data import BAD, NOW, acknowledge, aggregate, ago, at, letter, measure

from tests.manuals import blocks_of

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

QUERIES: Final = [block.text for block in blocks_of("reading.md SELECT", "reading.md WITH")]

ZONES: Final = ("UTC", "Europe/Berlin", "Asia/Tokyo", "America/Sao_Paulo")


def in_utc(value: Any) -> Any:
    """An instant as UTC has it: two zones never agree on one within an hour that comes twice."""
    return value.astimezone(UTC) if isinstance(value, datetime) else value


@pytest.fixture(scope="module")
def database(schema_server_module: Database) -> Database:
    """With a clock that can be read by everybody, and partitions for what is measured here."""
    database = schema_server_module
    database.run(
        f"SELECT traksense.ensure_partitions('{ago(days=70)}', '{NOW}')",
        "CREATE SCHEMA clock",
        "GRANT USAGE ON SCHEMA clock TO PUBLIC",
        f"CREATE FUNCTION clock.now() RETURNS timestamptz STABLE LANGUAGE sql AS $$ SELECT timestamptz '{NOW}' $$",
    )
    measure(database, "bravo", "pump-1", "temperature", [(ago(minutes=1), 99.0)], unit="°C")
    measure(database, "bravo", "pump-1", "energy", [(ago(hours=30), 1.0), (ago(hours=1), 5.0)], unit="kWh")
    measure(database, "bravo", "pump-1", "status", [(ago(hours=3), "A"), (ago(hours=2), "B")])
    database.run(
        "INSERT INTO device_event (tenant_id, site_id, device_id, event_type, ts)"
        f" VALUES ('bravo', 'factory', 'pump-1', 'bravo', '{ago(minutes=1)}')"
    )
    acknowledge(database, "bravo", "factory", "pump-1", "restart-17", ts_exec=ago(minutes=1))
    letter(database, "bravo", b"x", "parse_error", ago(minutes=1))
    return database


@pytest.fixture(scope="module")
def reader(database: Database) -> str:
    return database.create_member("traksense_readonly")


def ask(database: Database, reader: str, number: int, tenant: str) -> list[Any]:
    """What is answered to one of the ten."""
    return put(database, reader, QUERIES[number - 1], tenant)


def put(database: Database, reader: str, query: str, tenant: str) -> list[Any]:
    """What a query answers, whatever the time zone of the session."""
    answers = []
    for zone in ZONES:
        with psycopg.connect(reader, autocommit=True) as session:
            session.execute("SET search_path = clock, pg_catalog, public")
            session.execute(
                "SELECT set_config('TimeZone', %s, false), set_config('app.tenant_id', %s, false)", (zone, tenant)
            )
            answers.append([tuple(map(in_utc, row)) for row in session.execute(query)])
    first, *others = answers
    assert [first] * len(others) == others, "the answer depends on the session's time zone"
    return first


def test_there_are_ten() -> None:
    """The manual has the ten questions that it promises."""
    assert 10 == len(QUERIES)


@pytest.mark.parametrize("number", range(1, 11))
def test_question_of_nobody(database: Database, reader: str, number: int) -> None:
    """A tenant that has nothing, and a session that names none, are told nothing; `bravo`, whose data are there, is."""
    aggregate(database)

    assert [] == ask(database, reader, number, "nobody")
    assert [] == ask(database, reader, number, "")
    if number != 4:  # whom nobody has heard is silent: a question of its own below
        assert ask(database, reader, number, "bravo")


def test_question_1(database: Database, reader: str) -> None:
    """The newest of each point, of this site's pump and not of the other's, with the digits that no double holds."""
    exact = Decimal(9007199254740993)
    measure(database, "one", "pump-1", "temperature", [(ago(minutes=9), 1.0), (ago(minutes=8), 2.0, BAD)], unit="°C")
    measure(database, "one", "pump-1", "pulses", [(ago(minutes=7), exact)])
    measure(database, "one", "pump-1", "status", [(ago(minutes=6), "RUN")])
    measure(database, "one", "pump-1", "on", [(ago(minutes=5), True)])
    measure(database, "one", "pump-1", "temperature", [(ago(minutes=1), 7.0)], unit="°C", site="yard")
    measure(database, "one", "pump-2", "temperature", [(ago(minutes=1), 8.0)], unit="°C")

    assert ask(database, reader, 1, "one") == [
        ("on", None, True, None, None, 0, ago(minutes=5)),
        ("pulses", 9007199254740992.0, None, str(exact), None, 0, ago(minutes=7)),
        ("status", None, None, "RUN", None, 0, ago(minutes=6)),
        ("temperature", 2.0, None, None, "°C", 2, ago(minutes=8)),
    ]


def test_question_2(database: Database, reader: str) -> None:
    """From midnight in Berlin, which is 22 hours ago by its clocks' hands, and 22 by all others' yesterday."""
    readings = [
        (at("2025-10-25 21:59"), 1.0),  # 23:59 of yesterday there
        (at("2025-10-25 22:00"), 2.0),
        (at("2025-10-26 00:30"), 3.0),  # 2:30 for the first time
        (at("2025-10-26 01:30"), 4.0, BAD),  # 2:30 for the second time
        (at("2025-10-26 02:00"), "sensor broken"),
    ]
    measure(database, "two", "pump-1", "temperature", readings, unit="°C")
    measure(database, "two", "pump-1", "temperature", [(at("2025-10-26 00:30"), 37.4)], unit="°F")
    measure(database, "two", "pump-1", "temperature", [(at("2025-10-26 03:00"), 7.0)], unit="°C", site="yard")

    assert ask(database, reader, 2, "two") == [
        (at("2025-10-25 22:00"), 2.0, "°C", 0),
        (at("2025-10-26 00:30"), 3.0, "°C", 0),
        (at("2025-10-26 00:30"), 37.4, "°F", 0),
        (at("2025-10-26 01:30"), 4.0, "°C", 2),
    ]


def test_question_3(database: Database, reader: str) -> None:
    """A row for each five minutes with a reading, and each unit; none for a gap, the other site, or last week."""
    readings = [
        (ago(days=8), 9.0),
        (at("2025-10-19 20:00"), 1.0),
        (at("2025-10-26 10:01"), 1.0),
        (at("2025-10-26 10:04:59"), 4.0),
    ]
    measure(database, "three", "pump-1", "temperature", readings, unit="°C")
    measure(database, "three", "pump-1", "temperature", [(at("2025-10-26 10:02"), 50.0)], unit="°F")
    measure(database, "three", "pump-1", "temperature", [(at("2025-10-26 10:03"), 70.0)], unit="°C", site="yard")
    aggregate(database)

    assert ask(database, reader, 3, "three") == [
        (at("2025-10-19 20:00"), "°C", 1.0, 1.0, 1.0),
        (at("2025-10-26 10:00"), "°C", 2.5, 1.0, 4.0),
        (at("2025-10-26 10:00"), "°F", 50.0, 50.0, 50.0),
    ]


def test_question_4(database: Database, reader: str) -> None:
    """Those that were not heard for five minutes by our clock; first those that never were."""
    for device in ("online", "silent", "never", "gone"):
        database.add_series("four", device, "p", site="factory")
    heard = (
        "UPDATE traksense.device SET last_seen_at = {} WHERE tenant_id = 'four' AND device_id = '{}'"
        " RETURNING last_seen_at"
    )
    database.run(heard.format("now() - interval '1 min'", "online"))
    silent = database.value(heard.format("now() - interval '6 min'", "silent"))
    gone = database.value(heard.format("now() - interval '40 days'", "gone"))

    assert ask(database, reader, 4, "four") == [
        ("factory", "never", None),
        ("factory", "gone", gone),
        ("factory", "silent", silent),
    ]


def test_question_5(database: Database, reader: str) -> None:
    """Too hot now: not a month ago, not in °F, not where the device doubts it, and not before the newest reading."""
    for device, unit, *reading in (
        ("hot", "°C", ago(minutes=2), 80.5),
        ("hotter", "°C", ago(minutes=14), 99.0),
        ("at the limit", "°C", ago(minutes=1), 80.0),
        ("a month ago", "°C", ago(days=30), 90.0),
        ("fahrenheit", "°F", ago(minutes=1), 81.0),
        ("broken", "°C", ago(minutes=1), 850.0, BAD),
    ):
        measure(database, "five", device, "temperature", [tuple(reading)], unit=str(unit))
    measure(database, "five", "cooled", "temperature", [(ago(minutes=3), 90.0), (ago(minutes=1), 20.0)], unit="°C")
    measure(database, "five", "hot", "pressure", [(ago(minutes=1), 99.0)], unit="°C")

    assert ask(database, reader, 5, "five") == [
        ("factory", "hotter", 99.0, ago(minutes=14)),
        ("factory", "hot", 80.5, ago(minutes=2)),
    ]


def test_question_6(database: Database, reader: str) -> None:
    """Of today's readings there, each counting once, of each site and unit; yesterday's last hour is not among them."""
    readings = [
        (at("2025-10-25 21:30"), 1000.0),  # yesterday there, today in Tokyo
        (at("2025-10-25 22:30"), 10.0),  # today there, yesterday in UTC
        (at("2025-10-26 00:30"), 20.0),
        (at("2025-10-26 01:30"), 20.0),
        (at("2025-10-26 10:10"), 30.0),
    ]
    measure(database, "six", "pump-1", "temperature", readings, unit="°C")
    measure(database, "six", "pump-2", "temperature", [(at("2025-10-26 10:20"), 70.0)], unit="°C")
    measure(database, "six", "pump-3", "temperature", [(at("2025-10-26 10:20"), 50.0)], unit="°F")
    measure(database, "six", "pump-1", "temperature", [(at("2025-10-26 10:20"), 5.0)], unit="°C", site="yard")
    aggregate(database)

    assert ask(database, reader, 6, "six") == [("factory", "°C", 30.0), ("factory", "°F", 50.0), ("yard", "°C", 5.0)]


def test_question_6_in_a_zone_of_half_hours(database: Database, reader: str) -> None:
    """In Kolkata the day has begun at 18:30: the aggregates of five minutes can tell, those of an hour cannot."""
    readings = [(at("2025-10-26 18:10"), 100.0), (at("2025-10-26 18:40"), 10.0), (at("2025-10-26 19:10"), 20.0)]
    measure(database, "kolkata", "pump-1", "temperature", readings, unit="°C")
    aggregate(database)
    there = QUERIES[5].replace("Europe/Berlin", "Asia/Kolkata")

    assert [("factory", "°C", 20.0)] == put(database, reader, there, "kolkata")
    assert [("factory", "°C", 15.0)] == put(database, reader, there.replace("_1h", "_5m"), "kolkata")


def test_question_7(database: Database, reader: str) -> None:
    """All that was counted is in some day: across midnight, a restart, the repeated hour, and the window's edge."""
    readings = [
        (at("2025-09-20 10:00"), 100.0),
        (at("2025-09-26 10:00"), 101.0),  # the last before the first day
        (at("2025-09-27 22:30"), 103.0),  # the 28th there
        (at("2025-10-24 21:30"), 110.0),
        (at("2025-10-25 10:00"), 120.1),
        (at("2025-10-25 21:00"), 0.0, BAD),
        (at("2025-10-25 21:30"), "n/a"),
        (at("2025-10-26 00:30"), 125.3),
        (at("2025-10-26 01:30"), 4.0),  # it was replaced
        (at("2025-10-26 19:00"), 6.0),
    ]
    measure(database, "seven", "pump-1", "energy", readings, unit="kWh")
    measure(database, "seven", "pump-1", "energy", [(ago(hours=20), 9e5), (ago(hours=2), 9.5e5)], unit="Wh")
    pulses = [(ago(hours=9), Decimal(9007199254740993)), (ago(hours=1), 9007199254740994.0)]
    measure(database, "seven", "pump-1", "energy", pulses, unit="pulses")
    measure(database, "seven", "pump-1", "energy", [(ago(hours=9), 0.0), (ago(hours=1), 50.0)], unit="kWh", site="yard")

    assert ask(database, reader, 7, "seven") == [
        (date(2025, 9, 28), "kWh", 2),
        (date(2025, 10, 24), "kWh", 7),
        (date(2025, 10, 25), "kWh", Decimal("10.1")),
        (date(2025, 10, 26), "Wh", 50000),
        (date(2025, 10, 26), "kWh", Decimal("11.2")),
        (date(2025, 10, 26), "pulses", 1),
    ]


def test_question_8(database: Database, reader: str) -> None:
    """What is as it was before the window is no change; what differs from it is, and so are true and 2."""
    kept = [(ago(days=3), "RUN"), (ago(hours=25), "RUN"), (ago(hours=23), "RUN")]
    changed = [(ago(hours=20), "STOP"), (ago(hours=19), "STOP"), (ago(hours=10), "ERR", BAD), (ago(hours=5), "RUN")]
    measure(database, "eight", "pump-1", "status", [*kept, *changed])
    measure(database, "eight", "pump-1", "status", [(ago(hours=1), "other site")], site="yard")
    measure(database, "eight-a", "pump-1", "status", [(ago(days=20), "STOP"), (ago(hours=2), "RUN")])
    measure(database, "eight-b", "pump-1", "status", [(ago(hours=9), True), (ago(hours=8), 1.0), (ago(hours=7), 2.0)])

    assert ask(database, reader, 8, "eight") == [
        (ago(hours=20), "RUN", "STOP"),
        (ago(hours=5), "STOP", "RUN"),
    ]
    assert ask(database, reader, 8, "eight-a") == [(ago(hours=2), "STOP", "RUN")]
    assert ask(database, reader, 8, "eight-b") == [
        (ago(hours=9), None, "true"),
        (ago(hours=8), "true", "1"),
        (ago(hours=7), "1", "2"),
    ]


def test_question_9(database: Database, reader: str) -> None:
    """One command, that it failed, and what happened on that device an hour around; else when it was first heard of."""
    failed = {"ok": False, "err": "no power", "ts_exec": ago(hours=3)}
    acknowledge(database, "nine", "factory", "pump-1", "restart-17", **failed, updated_at=ago(hours=1))
    acknowledge(database, "nine", "factory", "pump-1", "restart-18", ts_exec=ago(hours=3))
    acknowledge(database, "nine", "factory", "pump-2", "restart-17", ts_exec=ago(hours=3))
    untimed = {"created_at": ago(hours=3), "updated_at": ago(minutes=1)}
    acknowledge(database, "nine-a", "factory", "pump-1", "restart-17", **untimed)
    event = (
        "INSERT INTO device_event (tenant_id, site_id, device_id, event_type, ts, data)"
        " VALUES ('{}', '{}', '{}', '{}', '{}', {})"
    )
    for tenant in ("nine", "nine-a"):
        for site, device, name, hours, data in (
            ("factory", "pump-1", "too early", 4.1, "NULL"),
            ("factory", "pump-1", "door", 3.5, """'{"open": true}'"""),
            ("factory", "pump-1", "boot", 2.5, "NULL"),
            ("factory", "pump-1", "too late", 1.9, "NULL"),
            ("yard", "pump-1", "elsewhere", 3.0, "NULL"),
            ("factory", "pump-2", "not it", 3.0, "NULL"),
        ):
            database.run(event.format(tenant, site, device, name, ago(hours=hours), data))

    around = (ago(hours=3.5), "event", "door", None, '{"open": true}'), (ago(hours=2.5), "event", "boot", None, None)
    for tenant, ok, err in (("nine", False, "no power"), ("nine-a", True, None)):
        command = (ago(hours=3), "command", "restart-17", ok, err)
        assert ask(database, reader, 9, tenant) == [around[0], command, around[1]]


def test_question_10(database: Database, reader: str) -> None:
    """A letter of last month that came again today is lately; one that did not is not; each is counted as it came."""
    letter(database, "ten", b"a", "parse_error", ago(days=30), last_ts=ago(hours=1), repeats=2147483647)
    letter(database, "ten", b"b", "parse_error", ago(days=2), replayed_at=ago(days=1))
    letter(database, "ten", b"c", "parse_error", ago(days=30), last_ts=ago(days=8), repeats=3)
    letter(database, "ten", b"d", "invalid_topic", ago(days=6), last_ts=ago(days=5), repeats=1)
    letter(database, "ten", b"e", "invalid_field", ago(days=8))

    assert ask(database, reader, 10, "ten") == [
        ("parse_error", 2, 1, 2147483649, ago(hours=1)),
        ("invalid_topic", 1, 1, 2, ago(days=5)),
    ]
