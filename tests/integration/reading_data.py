"""Measurements, acknowledgements, events and dead letters for the tests of what readers ask: all around `NOW`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schema_servers import Database

NOW: Final = datetime(2025, 10, 26, 20, 0, tzinfo=UTC)
BAD: Final = 2


def at(text: str) -> datetime:
    """An instant, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


def measure(
    database: Database,
    tenant: str,
    device: str,
    point: str,
    readings: Sequence[tuple[Any, ...]],
    *,
    unit: str | None = None,
    site: str = "factory",
) -> None:
    """Store what a device measured: time, value and quality; of an exact number its digits and the nearest double."""
    series = database.add_series(tenant, device, point, unit, site)
    with database.connect() as connection:
        for ts, value, *qual in readings:
            columns: dict[str, Any] = {"v_num": None, "v_bool": None, "v_text": None}
            if isinstance(value, Decimal):
                columns |= {"v_num": float(value), "v_text": str(value)}
            else:
                columns["v_text" if isinstance(value, str) else "v_bool" if value is True else "v_num"] = value
            connection.execute(
                "INSERT INTO traksense.measure (series_id, ts, v_num, v_bool, v_text, qual)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (series, ts, *columns.values(), *(qual or [None])),
            )


def aggregate(database: Database) -> None:
    database.run(f"SELECT traksense.mark_dirty('{ago(days=70)}', '{NOW}')")
    database.aggregate()


def acknowledge(database: Database, tenant: str, site: str, device: str, command: str, **columns: Any) -> None:
    names = {"ok": True, "payload": "{}", **columns}
    with database.connect() as connection:
        connection.execute(
            f"INSERT INTO cmd_ack (tenant_id, site_id, device_id, cmd_id, {', '.join(names)})"
            f" VALUES (%s, %s, %s, %s{', %s' * len(names)})",
            (tenant, site, device, command, *names.values()),
        )


def letter(database: Database, tenant: str, payload: bytes, reason: str, ts: datetime, **columns: Any) -> None:
    names = {"payload": payload, "reason": reason, "ts": ts, **columns}
    with database.connect() as connection:
        connection.execute(
            f"INSERT INTO ingest_errors (tenant_id, topic, digest, {', '.join(names)})"
            f" VALUES (%s, 'topic', sha256(%s){', %s' * len(names)})",
            (tenant, payload, *names.values()),
        )
