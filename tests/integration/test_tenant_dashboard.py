"""The tenant's dashboard in ops/grafana: its queries as Grafana sends them, by a login of ops/tenant-login.sql."""

from __future__ import annotations

import json
import re
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from reading_data import BAD, NOW, acknowledge, ago, at, letter, measure
from schema_servers import user_of
from test_tenant_login import psql, run_file

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

__all__ = ["psql"]

DASHBOARD: Final = json.loads(
    (Path(__file__).parents[2] / "ops" / "grafana" / "dashboards" / "tenant.json").read_text(encoding="utf-8")
)
PANELS: Final = {panel["title"]: panel["targets"][0]["rawSql"] for panel in DASHBOARD["panels"]}
VARIABLES: Final = {
    variable["name"]: variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"
}
DEVICE: Final = "pump 'A'"
LATELY: Final = (timedelta(hours=24), 60_000)
MONTHS: Final = (timedelta(days=60), 3_600_000)


def as_grafana(query: str, *, point: str = "", span: timedelta = LATELY[0], interval_ms: int = LATELY[1]) -> str:
    """The SQL that reaches the server: variables replaced in the browser, macros by Grafana, for a time up to `NOW`.

    Source: grafana/grafana, pkg/tsdb/grafana-postgresql-datasource/macros.go, and the page on variable syntax.
    """
    start, end = (instant.strftime("'%Y-%m-%dT%H:%M:%SZ'") for instant in (NOW - span, NOW))
    for name, value in (("site", "factory"), ("device", DEVICE), ("point", point)):
        quoted = value.replace("'", "''")
        query = query.replace(f"${{{name}:sqlstring}}", f"'{quoted}'")
    query = query.replace("${__timezone}", "Europe/Berlin").replace("$__interval_ms", str(interval_ms))
    query = query.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    query = re.sub(r"\$__timeFilter\(([^)]*)\)", rf"\1 BETWEEN {start} AND {end}", query)
    assert "$" not in query, query
    return query


@pytest.fixture(scope="module")
def database(schema_server_module: Database) -> Database:
    """A tenant with what each panel shows, and another one with the same names."""
    database = schema_server_module
    database.run(f"SELECT traksense.ensure_partitions('{ago(days=100)}', '{NOW}')")
    for tenant, factor in (("acme", 1), ("bravo", 1000)):
        temperatures: list[tuple[Any, ...]] = [(ago(minutes=90), 1.0), (ago(minutes=89.5), 3.0), (ago(minutes=84), 8.0)]
        energies: list[tuple[Any, ...]] = [
            (ago(days=80), 5.0),
            (ago(days=50), 7.0),
            (at("2025-10-25 20:00"), 9.0),
            (ago(hours=23.5), 12.0),
        ]
        for site in ("factory", "yard"):
            many = factor * (1 if site == "factory" else 10)
            for point, unit, readings in (
                ("temperature", "°C", temperatures),
                ("energy", "kWh", [*energies, (ago(hours=9), 0.0, BAD), (ago(hours=2), 4.0)]),
            ):
                multiplied = [(ts, value * many, *quality) for ts, value, *quality in readings]
                measure(database, tenant, DEVICE, point, multiplied, unit=unit, site=site)
        states = [(ago(hours=30), "RUN"), (ago(hours=20), "RUN"), (ago(hours=5), "STOP")]
        measure(database, tenant, DEVICE, "status", [(ts, f"{state} {tenant}") for ts, state in states])
        measure(database, tenant, DEVICE, "on", [(ago(minutes=1), True)])
        measure(database, tenant, "silent", "p", [])
        database.run("UPDATE traksense.device SET last_seen_at = now() + interval '1 hour' WHERE device_id <> 'silent'")
        for command, when in ((f"early {tenant}", ago(hours=25)), (f"restart {tenant}", ago(hours=3))):
            acknowledge(database, tenant, "factory", DEVICE, command, ok=False, err="no power", ts_exec=when)
        with database.connect() as connection:
            connection.execute(
                "INSERT INTO device_event (tenant_id, site_id, device_id, event_type, ts, data)"
                " VALUES (%s, 'factory', %s, %s, %s, '7')",
                (tenant, DEVICE, f"door {tenant}", ago(hours=2)),
            )
        letter(database, tenant, b"a", "parse_error", ago(days=30), last_ts=ago(hours=1), repeats=4 * factor)
        letter(database, tenant, b"b", "invalid_field", ago(days=30))
    database.run(f"SELECT traksense.mark_dirty('{ago(days=100)}', '{NOW}')")
    database.aggregate()
    return database


@pytest.fixture
def tenant(psql: str, database: Database) -> str:
    """The DSN of acme's login."""
    database.create_member("traksense_readonly")  # the role exists
    login = database.create_role("tenant")
    run_file(psql, database, "tenant-login.sql", login=user_of(login), role="traksense_readonly", tenant="acme")
    return login


def test_variables(database: Database, tenant: str) -> None:
    """What can be chosen is the tenant's own."""
    found = {
        name: [row[0] for row in database.rows(as_grafana(query), dsn=tenant)] for name, query in VARIABLES.items()
    }

    assert found == {
        "site": ["factory", "yard"],
        "device": [DEVICE, "silent"],
        "point": ["energy", "on", "status", "temperature"],
    }


EXPECTED: Final[dict[str, tuple[dict[str, Any], list[Any]]]] = {
    "Devices": ({}, [(1, 1)]),
    "Silent devices": ({}, [("silent", None)]),
    "What the device says now": (
        {},
        [
            ("energy", "4", "kWh", 0, ago(hours=2)),
            ("on", "true", None, 0, ago(minutes=1)),
            ("status", "STOP acme", None, 0, ago(hours=5)),
            ("temperature", "8", "°C", 0, ago(minutes=84)),
        ],
    ),
    "Curve": (
        {"point": "temperature"},
        [
            (at("2025-10-26 18:30"), "°C", 2.0, 1.0, 3.0),
            (at("2025-10-26 18:36"), "°C", 8.0, 8.0, 8.0),
        ],
    ),
    "Counted up, by day": (
        {"point": "energy", "span": MONTHS[0]},
        [("2025-09-06", "kWh", 2.0), ("2025-10-25", "kWh", 5.0), ("2025-10-26", "kWh", 4.0)],
    ),
    "Changes of state": ({"point": "status"}, [(ago(hours=5), "RUN acme", "STOP acme")]),
    "Commands and events": (
        {},
        [
            (ago(hours=2), "event", "door acme", None, "7"),
            (ago(hours=3), "command", "restart acme", False, "no power"),
        ],
    ),
    "Messages that could not be stored": ({}, [("parse_error", 1, 1, 5, ago(hours=1))]),
}


def test_every_panel_is_tested() -> None:
    """Each panel has a row above, and one query."""
    assert list(PANELS) == list(EXPECTED)
    assert [1] * len(EXPECTED) == [len(panel["targets"]) for panel in DASHBOARD["panels"]]


@pytest.mark.parametrize("title", EXPECTED)
def test_panel(database: Database, tenant: str, title: str) -> None:
    """It shows what the tenant's device did in the time shown, and nothing of another site, device or tenant."""
    choice, rows = EXPECTED[title]

    assert rows == database.rows(as_grafana(PANELS[title], **choice), dsn=tenant)


@pytest.mark.parametrize(
    ("interval_ms", "starts"),
    [
        (299_999, ["18:30", "18:36"]),
        (300_000, ["18:30", "18:35"]),
        (3_599_999, ["18:30", "18:35"]),
        (3_600_000, ["18:00"]),
    ],
)
def test_curve_is_as_fine_as_the_time_shown_asks_for(
    database: Database, tenant: str, interval_ms: int, starts: list[str]
) -> None:
    """By minutes, five minutes or hours, and by one of them only."""
    query = as_grafana(PANELS["Curve"], point="temperature", span=MONTHS[0], interval_ms=interval_ms)

    assert starts == [row[0].astimezone(UTC).strftime("%H:%M") for row in database.rows(query, dsn=tenant)]


def test_tenant_in_the_connection_string(database: Database) -> None:
    """Where there is no place for SET, the URL can name the tenant, as reading.md says; the session may change it."""
    manual = (Path(__file__).parents[2] / "ops" / "reading.md").read_text(encoding="utf-8")
    (options,) = re.findall(r"`\?(options=\S+)`", manual)
    reader = database.create_member("traksense_readonly")

    assert [("acme",)] == database.rows("SELECT DISTINCT tenant_id FROM latest", dsn=f"{reader}?{options}")
    assert [] == database.rows("SELECT DISTINCT tenant_id FROM latest", dsn=reader)
    assert [("bravo",)] == database.rows(
        "SELECT DISTINCT tenant_id FROM latest", dsn=f"{reader}?{options}", tenant="bravo"
    )
