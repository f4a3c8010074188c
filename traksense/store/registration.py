"""The statements that look names up, and register them, many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

SeriesNames: TypeAlias = tuple[str, str, str, str, str | None]
"""Tenant, site, device, point and unit."""

Query: TypeAlias = tuple[str, list[Any]]
"""A statement and its arguments."""

FEW_POINTS: Final = 256
"""So many points of a device are looked up together with those of others. By a join, for which the planner, who knows
nothing of names, may compare each of them with each point that the device has: 17 s for 10,000 with 10,000 (measured,
PostgreSQL 15). More of them are looked up with their device alone, by a list, in a few hundredths of a second."""


def columns_of(rows: Iterable[tuple[object, ...]], width: int) -> list[list[object]]:
    """The columns of rows."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


def looked_up(wanted: Collection[SeriesNames]) -> Iterator[Query]:
    """What finds these series, and perhaps others of the same points."""
    devices: dict[tuple[str, str, str], list[SeriesNames]] = {}
    for names in wanted:
        devices.setdefault(names[:3], []).append(names)
    few = [names for points in devices.values() if len(points) <= FEW_POINTS for names in points]
    if few:
        yield SELECT_SERIES, columns_of(few, 5)
    for device, points in devices.items():
        if len(points) > FEW_POINTS:
            yield SELECT_SERIES_OF_DEVICE, [*device, [names[3] for names in points]]


def inserted(wanted: Collection[SeriesNames]) -> Iterator[Query]:
    """What registers these series, and finds those that it has registered."""
    # Sorted, so that two replicas that register the same fleet cannot deadlock.
    in_order = sorted(wanted, key=lambda names: (*names[:4], names[4] or ""))
    yield INSERT_SERIES, columns_of(in_order, 5)


INSERT_TENANTS: Final = """
INSERT INTO traksense.tenant (tenant_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING
"""

INSERT_DEVICES: Final = """
INSERT INTO traksense.device (tenant_id, site_id, device_id)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING
"""

SELECT_DEVICES: Final = """
SELECT d.tenant_id, d.site_id, d.device_id
FROM unnest($1::text[], $2::text[], $3::text[]) AS k (tenant_id, site_id, device_id)
JOIN traksense.device d USING (tenant_id, site_id, device_id)
"""

SELECT_SERIES: Final = """
SELECT s.series_id, s.tenant_id, s.site_id, s.device_id, s.point_id, s.unit
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS k (tenant_id, site_id, device_id, point_id, unit)
JOIN traksense.series s
    ON (s.tenant_id, s.site_id, s.device_id, s.point_id) = (k.tenant_id, k.site_id, k.device_id, k.point_id)
    AND s.unit IS NOT DISTINCT FROM k.unit
"""

INSERT_SERIES: Final = """
INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id, unit)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
ON CONFLICT DO NOTHING
RETURNING series_id, tenant_id, site_id, device_id, point_id, unit
"""

SELECT_SERIES_OF_DEVICE: Final = """
SELECT series_id, tenant_id, site_id, device_id, point_id, unit FROM traksense.series
WHERE tenant_id = $1 AND site_id = $2 AND device_id = $3 AND point_id = ANY ($4::text[])
"""
