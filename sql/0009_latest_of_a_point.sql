-- traksense, migration 9: one row in `latest` for each point, the newest, whatever its unit.

-- A point that comes in two units has two series, and had a row for each: an old reading in a unit that nobody sends any more
-- stood beside the current one for ever. DISTINCT ON lets conditions on names through, so the rows of a device are still found
-- through the keys; what a value says is decided after the newest one was chosen.
CREATE OR REPLACE VIEW public.latest WITH (security_barrier) AS
    SELECT
        n.tenant_id,
        n.site_id,
        n.device_id,
        n.point_id,
        n.ts,
        traksense.opaque(n.v_num) AS v_num,
        traksense.opaque(n.v_bool) AS v_bool,
        traksense.opaque(n.v_text) AS v_text,
        n.unit,
        traksense.opaque(coalesce(n.qual, 0::smallint)) AS qual,
        coalesce(n.meta, d.doc) AS meta
    FROM (
        SELECT DISTINCT ON (s.tenant_id, s.site_id, s.device_id, s.point_id)
            s.tenant_id, s.site_id, s.device_id, s.point_id, s.unit,
            m.ts, m.v_num, m.v_bool, m.v_text, m.qual, m.meta, m.meta_id
        FROM traksense.series s
        CROSS JOIN LATERAL (
            SELECT l.* FROM traksense.measure l WHERE l.series_id = s.series_id ORDER BY l.ts DESC LIMIT 1
        ) AS m
        WHERE s.tenant_id >= traksense.tenant_low() COLLATE "C" AND s.tenant_id <= traksense.tenant_high() COLLATE "C"
        -- Of two at the same time, the one whose unit is newer.
        ORDER BY s.tenant_id, s.site_id, s.device_id, s.point_id, m.ts DESC, s.series_id DESC
    ) AS n
    LEFT JOIN traksense.meta d ON d.meta_id = n.meta_id AND d.tenant_id = n.tenant_id;
COMMENT ON VIEW public.latest IS 'The newest value of each point, by the device''s time, whatever its unit.';


INSERT INTO traksense.schema_version (version, name) VALUES (9, 'latest_of_a_point');
