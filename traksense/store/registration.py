"""The statements that look names up, and register them, many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


def columns_of(rows: Iterable[tuple[object, ...]], width: int) -> list[list[object]]:
    """The columns of rows."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(width)]


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

# One after the other, by LATERAL and LIMIT: by a join the planner, who knows nothing of names (migration 14), may
# compare each name with each point that its device has. Two branches, since no index serves IS NOT DISTINCT FROM.
SELECT_SERIES: Final = """
SELECT s.series_id, k.tenant_id, k.site_id, k.device_id, k.point_id, k.unit
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS k (tenant_id, site_id, device_id, point_id, unit)
CROSS JOIN LATERAL (
    SELECT series_id FROM traksense.series s
    WHERE (s.tenant_id, s.site_id, s.device_id, s.point_id) = (k.tenant_id, k.site_id, k.device_id, k.point_id)
        AND s.unit = k.unit
    UNION ALL
    SELECT series_id FROM traksense.series s
    WHERE (s.tenant_id, s.site_id, s.device_id, s.point_id) = (k.tenant_id, k.site_id, k.device_id, k.point_id)
        AND s.unit IS NULL AND k.unit IS NULL
    LIMIT 1
) s
"""

INSERT_SERIES: Final = """
INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id, unit)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
ON CONFLICT DO NOTHING
RETURNING series_id, tenant_id, site_id, device_id, point_id, unit
"""
