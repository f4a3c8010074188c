"""The policy: said in the environment, written into the database, carried out there."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from test_rollup import check

from tests.contract.test_store import delivery, open_postgres_store
from traksense.commands import lifecycle, maintain
from traksense.commands.lifecycle import _status_text
from traksense.errors import ConfigError, DeliveriesRefusedError, StoreMisconfiguredError
from traksense.model import Point, Reason, Telemetry
from traksense.store import maintenance
from traksense.store.policy import Policy, in_years, load, read_duration, settings, variables, write_duration

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

DAY = timedelta(days=1)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dsn: str, *arguments: str, **variables: str
) -> str:
    """What a command prints."""
    module = maintain if arguments[0] == "maintain" else lifecycle
    parser = ArgumentParser()
    module.add_arguments(parser)
    with monkeypatch.context() as patch:
        patch.setenv("DATABASE_URL", dsn)
        for name, value in variables.items():
            patch.setenv(f"LIFECYCLE_{name}", value)
        assert 0 == module.main(parser.parse_args(list(arguments[1:])))
    return capsys.readouterr().out


def midnight(days: int) -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + days * DAY


def fill(database: Database) -> None:
    """Points, acks, events and dead letters of the last 30 days, of two tenants, one an hour."""
    database.run("SELECT traksense.ensure_partitions(now() - interval '30 days', now())")
    for tenant in ("acme", "bravo"):
        series = database.add_series(tenant, "device", "point")
        hours = "generate_series(now() - interval '30 days', now(), interval '1 hour') WITH ORDINALITY AS g (t, n)"
        database.run(
            f"INSERT INTO traksense.measure (series_id, ts, v_num) SELECT {series}, t, n FROM {hours}",
            "INSERT INTO cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, payload, updated_at)"
            f" SELECT '{tenant}', 's', 'd', n, true, '{{}}', t FROM {hours}",
            "INSERT INTO device_event (tenant_id, site_id, device_id, event_type, ts)"
            f" SELECT '{tenant}', 's', 'd', 'e', t FROM {hours}",
            "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, ts, digest)"
            f" SELECT '{tenant}', 't', 'x', 'r', t, decode(md5(n::text), 'hex') FROM {hours}",
        )
    database.run("SELECT traksense.mark_dirty(now() - interval '31 days', now())")


def days_of(database: Database, tenant: str, relation: str, column: str) -> int:
    """How far back a tenant's rows go, in whole days."""
    return int(
        database.value(f"SELECT extract(day FROM now() - min({column})) FROM {relation} WHERE tenant_id = %s", tenant)
    )


@pytest.mark.parametrize("action", ["plan", "apply", "status"])
def test_service_is_no_operator(migrated: Database, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """It is told which role it takes, and not to migrate."""
    monkeypatch.setenv("DATABASE_URL", migrated.create_member("traksense_ingest"))
    parser = ArgumentParser()
    lifecycle.add_arguments(parser)

    with pytest.raises(StoreMisconfiguredError, match="this role is not an operator"):
        lifecycle.main(parser.parse_args([action]))


def test_plan_apply_and_maintain(
    migrated: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan changes nothing; apply writes it; maintenance carries it out; then there is no drift."""
    fill(migrated)
    policy = {
        "RETAIN_RAW": "10 days",
        "RETAIN_1M": "20 days",
        "RETAIN_5M": "20 days",
        "RETAIN_1H": "1 year",
        "RETAIN_EVENTS": "20 days, bravo=5 days",
        "RETAIN_ACKS": "forever, acme=3d",
        "ONLINE_WITHIN": "10 min",
    }

    plan = json.loads(run(monkeypatch, capsys, migrated.dsn, "lifecycle", "plan", "--json", **policy))
    settings = {"retain_raw", "retain_1m", "retain_5m", "retain_1h", "retain_events", "online_within"}
    assert settings | {"retain_events of bravo", "retain_acks of acme"} == {
        change["what"] for change in plan["changes"]
    }
    expired = {part["relation"]: part["parts"] for part in plan["expired"]}
    assert 17 <= expired["measure"] <= 21
    assert {"device_event", "cmd_ack", "ingest_errors"} == {purge["relation"] for purge in plan["purge"]}
    assert "" == migrated.value("SELECT value FROM traksense.setting WHERE name = 'retain_raw'")

    for_people = run(monkeypatch, capsys, migrated.dsn, "lifecycle", "plan", **policy).splitlines()
    assert [
        "policy LIFECYCLE_RETAIN_RAW=10 days",
        "policy LIFECYCLE_RETAIN_1M=20 days",
        "policy LIFECYCLE_RETAIN_5M=20 days",
        "policy LIFECYCLE_RETAIN_1H=1 year",
        "policy LIFECYCLE_RETAIN_EVENTS=20 days, bravo=5 days",
        "policy LIFECYCLE_RETAIN_ACKS=forever, acme=3d",
        "policy LIFECYCLE_RETAIN_ERRORS=14 days (default)",
        "policy LIFECYCLE_COMPRESS_AFTER=7 days (default)",
        "policy LIFECYCLE_COMPRESS_AGGREGATES_AFTER=7 days (default)",
        "policy LIFECYCLE_CHUNK_INTERVAL=1 day (default)",
        "policy LIFECYCLE_ONLINE_WITHIN=10 min",
    ] == for_people[:11]
    assert "change retain_1h: forever -> 1 year" in for_people[11:]
    (drop,) = (part for part in plan["expired"] if part["relation"] == "measure")
    begin, end = (datetime.fromisoformat(drop[name]).astimezone(UTC) for name in ("oldest", "newest"))
    assert timedelta(days=drop["parts"]) == end - begin
    (line,) = (line for line in for_people if line.startswith("drop ") and " of measure, " in line)
    assert line.endswith(f" {begin:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}")
    assert {"value": "10 days", "default": False} == plan["policy"]["LIFECYCLE_RETAIN_RAW"]
    assert {"value": "7 days", "default": True} == plan["policy"]["LIFECYCLE_COMPRESS_AFTER"]
    (wanted,) = (change["wanted"] for change in plan["changes"] if change["what"] == "retain_1h")
    assert "365 days" == wanted

    assert "changed retain_raw: forever -> 10 days" in run(
        monkeypatch, capsys, migrated.dsn, "lifecycle", "apply", **policy
    )
    assert "nothing to change\n" == run(monkeypatch, capsys, migrated.dsn, "lifecycle", "apply", **policy)
    said: list[str] = []
    maintenance.run_once(
        migrated.dsn, "test", lambda c: maintenance.maintain(c, maintenance.Report(), jobs=True, at=said.append)
    )

    if migrated.server.timescaledb:
        assert ["job 1 of 2", "job 2 of 2"] == [text[:10] for text in said]
    else:
        steps = [text.partition(":")[0] for text in said]
        tables = ("", "_1m", "_5m", "_1h")
        assert list(dict.fromkeys(steps)) == [
            "aggregate",
            "partitions ahead",
            *(f"drop what has expired of ts_measure{table}" for table in tables),
            "purge events, acks and dead letters",
        ]
        assert said[-1].endswith(" rows so far")
    assert days_of(migrated, "acme", "ts_measure", "ts") in (11, 12)
    assert days_of(migrated, "acme", "ts_measure_1h", "bucket") in (29, 30)
    assert (19, 4) == (
        days_of(migrated, "acme", "device_event", "ts"),
        days_of(migrated, "bravo", "device_event", "ts"),
    )
    assert (2, 30) == (
        days_of(migrated, "acme", "cmd_ack", "updated_at"),
        days_of(migrated, "bravo", "cmd_ack", "updated_at"),
    )
    assert 13 == days_of(migrated, "acme", "ingest_errors", "ts")
    status = json.loads(run(monkeypatch, capsys, migrated.dsn, "lifecycle", "status", "--json", **policy))
    assert [] == status["drift"]
    assert {"measure", "rollup_1m", "rollup_5m", "rollup_1h"} == {r["relation"] for r in status["relations"]}
    drift = "drift retain_raw: 10 days in the database, forever in the environment"
    assert drift in run(monkeypatch, capsys, migrated.dsn, "lifecycle", "status")


def test_chunks_are_compressed_and_analyzed(
    migrated: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is older than the policy says goes into the columnstore, raw and aggregated, and again when late points have
    come in; the aggregates stay right.
    """
    if not migrated.server.timescaledb:
        pytest.skip("plain PostgreSQL has no columnstore")
    policy = {"COMPRESS_AFTER": "2 days", "COMPRESS_AGGREGATES_AFTER": "3 days"}
    fill(migrated)
    before = migrated.rows("SELECT * FROM ts_measure ORDER BY tenant_id, ts")
    migrated.aggregate()
    plan = json.loads(run(monkeypatch, capsys, migrated.dsn, "lifecycle", "plan", "--json", **policy))
    due = {part["relation"]: part["parts"] for part in plan["compress"]}
    assert {"measure", "rollup_1m", "rollup_5m", "rollup_1h"} == set(due)
    assert {"compress_after", "compress_aggregates_after"} == {change["what"] for change in plan["changes"]}
    run(monkeypatch, capsys, migrated.dsn, "lifecycle", "apply", **policy)
    run(monkeypatch, capsys, migrated.dsn, "maintain", "--jobs")
    compressed = (
        "SELECT count(*) FILTER (WHERE is_compressed), count(*) FILTER (WHERE NOT is_compressed)"
        " FROM timescaledb_information.chunks WHERE hypertable_name = 'measure'"
    )
    [(done, left)] = migrated.rows(compressed)
    assert done >= 28
    assert left <= 3
    assert before == migrated.rows("SELECT * FROM ts_measure ORDER BY tenant_id, ts")
    check(migrated)
    analyzed = "SELECT count(*) FROM pg_stats WHERE tablename LIKE 'compress%%' AND attname = 'series_id'"
    assert migrated.value(analyzed) == sum(due.values())

    series = migrated.value("SELECT min(series_id) FROM traksense.series")
    # Old enough to be in a compressed chunk of the aggregates, too, which have ten days each.
    migrated.run(
        f"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES ({series}, now() - interval '20.5 days', 7)"
    )
    partly = "SELECT count(*) FROM _timescaledb_catalog.chunk WHERE status & 8 <> 0"
    assert 1 == migrated.value(partly)
    migrated.aggregate()
    check(migrated)
    assert 4 == migrated.value(partly)
    plan = json.loads(run(monkeypatch, capsys, migrated.dsn, "lifecycle", "plan", "--json", **policy))
    assert {1} == {part["parts"] for part in plan["compress"]}
    run(monkeypatch, capsys, migrated.dsn, "maintain", "--jobs")
    assert 0 == migrated.value(partly)
    check(migrated)
    status = json.loads(run(monkeypatch, capsys, migrated.dsn, "lifecycle", "status", "--json", **policy))
    assert due == {row["relation"]: row["chunks"] for row in status["compression"]}
    assert [] == status["drift"]
    assert 2 == len(status["jobs"])
    assert "chunks of rollup_1m: " in run(monkeypatch, capsys, migrated.dsn, "lifecycle", "status", **policy)


def test_aggregates_are_not_compressed_if_never_is_said(
    migrated: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two policies are their own: raw points are compressed while aggregates are left as they are."""
    if not migrated.server.timescaledb:
        pytest.skip("plain PostgreSQL has no columnstore")
    fill(migrated)
    migrated.aggregate()
    policy = {"COMPRESS_AGGREGATES_AFTER": "never"}
    plan = json.loads(run(monkeypatch, capsys, migrated.dsn, "lifecycle", "plan", "--json", **policy))
    run(monkeypatch, capsys, migrated.dsn, "lifecycle", "apply", **policy)
    run(monkeypatch, capsys, migrated.dsn, "maintain", "--jobs")

    assert ["measure"] == [part["relation"] for part in plan["compress"]]
    status = json.loads(run(monkeypatch, capsys, migrated.dsn, "lifecycle", "status", "--json", **policy))
    assert ["measure"] == [row["relation"] for row in status["compression"]]


def test_duplicates_among_news_in_a_compressed_chunk(migrated: Database) -> None:
    """[duplicate, new, duplicate, new] into a compressed chunk stores both new rows (TimescaleDB issue 7672)."""
    if not migrated.server.timescaledb:
        pytest.skip("plain PostgreSQL has no columnstore")
    series = migrated.add_series("acme", "device", "point")
    values = [f"({series}, '2026-01-01 00:00:0{n}Z', 1)" for n in range(4)]
    insert = "INSERT INTO traksense.measure (series_id, ts, v_num) VALUES "
    migrated.run(insert + f"{values[0]}, {values[2]}")
    assert migrated.value("SELECT traksense.compress_next()") is not None
    migrated.run(insert + ", ".join(values) + " ON CONFLICT DO NOTHING")

    assert 4 == migrated.value("SELECT count(*) FROM traksense.measure")


async def test_points_older_than_retention_are_refused(migrated: Database) -> None:
    """A point that would be dropped at once is refused, for a dead letter to be made of it; its neighbour is stored."""
    migrated.run("UPDATE traksense.setting SET value = '30 days' WHERE name = 'retain_raw'")
    now = datetime.now(UTC)
    good = delivery(Telemetry(now - 29 * DAY, [Point("a", 1.0)], None))
    late = delivery(Telemetry(now - 31 * DAY, [Point("a", 1.0)], None))
    async with open_postgres_store(migrated.dsn) as store:
        with pytest.raises(DeliveriesRefusedError) as caught:
            await store.write([good, late])
        assert [(1, Reason.TIMESTAMP_OUT_OF_WINDOW)] == [(n, r.reason) for n, r in caught.value.rejections.items()]
        late.reject(caught.value.rejections[1])
        await store.write([good, late])

    assert 1 == migrated.value("SELECT count(*) FROM traksense.measure")
    assert ["timestamp_out_of_window"] == [row[0] for row in migrated.rows("SELECT reason FROM ingest_errors")]


def test_status_says_why_a_job_failed() -> None:
    """The last error stands behind it; of a job that has not run yet there is none."""
    status: dict[str, Any] = {
        "engine": "timescaledb",
        "drift": [],
        "relations": [],
        "tables": [],
        "compression": [],
        "behind": None,
    }
    jobs = [
        {
            "job_id": 1000,
            "name": "a",
            "next_start": datetime(2026, 11, 20, 12, tzinfo=UTC),
            "last_run_status": "Failed",
            "last_error": "disk full",
        },
        {"job_id": 1001, "name": "b", "next_start": None, "last_run_status": None, "last_error": None},
    ]

    told = _status_text(status | {"jobs": jobs})

    assert told[-2:] == [
        "job 1000 a: next run 2026-11-20T12:00:00Z, last run Failed: disk full",
        "job 1001 b: next run never, last run never",
    ]


def test_policy_defaults() -> None:
    """Nothing is dropped unless asked for, but dead letters after 14 days."""
    assert Policy() == load({})
    assert {"retain_errors": 14 * DAY} == {
        name: value for name, value in load({}).items().items() if name.startswith("retain_") and value is not None
    }


def test_policy_faults_are_told_at_once() -> None:
    """Every fault is named with its variable."""
    with pytest.raises(ConfigError) as caught:
        load(
            {
                "LIFECYCLE_RETAIN_RAW": "90 days",
                "LIFECYCLE_RETAIN_1M": "30 days",
                "LIFECYCLE_RETAIN_EVENTS": "soon",
                "LIFECYCLE_RETAIN_1H": "1 year, acme=1 day",
                "LIFECYCLE_RETAIN_ACKS": "1 hour",
                "LIFECYCLE_CHUNK_INTERVAL": "90 min",
                "LIFECYCLE_RETAIN_RAWW": "1 day",
            }
        )

    assert {
        "LIFECYCLE_RETAIN_1M", "LIFECYCLE_RETAIN_EVENTS", "LIFECYCLE_RETAIN_1H", "LIFECYCLE_RETAIN_ACKS",
        "LIFECYCLE_CHUNK_INTERVAL", "LIFECYCLE_RETAIN_RAWW",
    } == {fault.partition(": ")[0] for fault in caught.value.faults}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1 year acme=30 days", "a comma is missing in '1 year acme=30 days'"),
        ("1 year; acme=30 days", "a comma is missing in '1 year; acme=30 days'"),
        ("acme=30 days beta=1 year", "a comma is missing in 'acme=30 days beta=1 year'"),
        ("forever acme=1d", "a comma is missing in 'forever acme=1d'"),
        ("acme=30 days, acme=1 year", "acme is named twice"),
        ("30 days, 60 days", "only one duration can be for all tenants: '30 days, 60 days'"),
        (
            "30 days, acme",
            "'acme' is neither a duration, like 90 days, 12h or forever, nor that of a tenant, like acme=30 days",
        ),
        ("30 days,", "has a comma with nothing before or after it"),
        ("30 days, =1 day", "no tenant before the = in '=1 day'"),
        ("30 days, acme=1 hour", "must be at least 1 day for acme too"),
    ],
)
def test_policy_of_a_tenant_is_not_guessed(text: str, fault: str) -> None:
    """What is wrong with a list is said of the part that is wrong; nothing makes a tenant of a strange name, and nobody
    is kept for ever by mistake.
    """
    with pytest.raises(ConfigError) as caught:
        load({"LIFECYCLE_RETAIN_EVENTS": text})

    assert (f"LIFECYCLE_RETAIN_EVENTS: {fault}",) == caught.value.faults


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90 days", 90 * DAY),
        ("90d", 90 * DAY),
        ("1 year", 365 * DAY),
        ("12h", DAY / 2),
        ("2 weeks", 14 * DAY),
        ("never", None),
    ],
)
def test_duration(text: str, value: timedelta | None) -> None:
    """Durations are read as people write them, and written so that they can be read again."""
    assert value == read_duration(text)
    assert value == read_duration(write_duration(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (365 * DAY, "1 year"),
        (5 * 365 * DAY, "5 years"),
        (366 * DAY, "366 days"),
        (DAY, "1 day"),
        (timedelta(hours=365), "365 hours"),
        (None, "forever"),
    ],
)
def test_years_are_said_as_years(value: timedelta | None, expected: str) -> None:
    """The database has days; it reads what is shown as the same."""
    assert expected == in_years(write_duration(value))
    assert value == read_duration(expected)


def test_policy_in_the_words_of_the_operator() -> None:
    """As it was set; a default holds too where only tenants are named, and what is said is the same policy."""
    environ = {"LIFECYCLE_RETAIN_RAW": " 1 year ", "LIFECYCLE_RETAIN_ERRORS": "acme=1w", "LIFECYCLE_RETAIN_ACKS": "30d"}
    said = {str(setting) for setting in settings(environ)}

    assert len(variables()) == len(said)
    assert {
        "LIFECYCLE_RETAIN_RAW=1 year",
        "LIFECYCLE_RETAIN_ERRORS=acme=1w, 14 days (default)",
        "LIFECYCLE_RETAIN_ACKS=30d",
        "LIFECYCLE_RETAIN_EVENTS=forever (default)",
    } <= said
    assert load(environ) == load({setting.variable: setting.value for setting in settings(environ)})
