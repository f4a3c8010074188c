-- traksense, migration 5: the last value of each point, and whether each device is there.

INSERT INTO traksense.setting (name, value) VALUES ('online_within', '5 minutes');

-- Read from the measurements through their key, newest first, so that late points never overwrite a newer one, and nothing is
-- written twice.
CREATE VIEW public.latest WITH (security_barrier) AS
    SELECT
        s.tenant_id,
        s.site_id,
        s.device_id,
        s.point_id,
        m.ts,
        traksense.opaque(m.v_num) AS v_num,
        traksense.opaque(m.v_bool) AS v_bool,
        traksense.opaque(m.v_text) AS v_text,
        s.unit,
        traksense.opaque(coalesce(m.qual, 0::smallint)) AS qual,
        coalesce(m.meta, d.doc) AS meta
    FROM traksense.series s
    CROSS JOIN LATERAL (
        SELECT l.* FROM traksense.measure l WHERE l.series_id = s.series_id ORDER BY l.ts DESC LIMIT 1
    ) AS m
    LEFT JOIN traksense.meta d ON d.meta_id = m.meta_id AND d.tenant_id = s.tenant_id
    WHERE s.tenant_id >= traksense.tenant_low() COLLATE "C" AND s.tenant_id <= traksense.tenant_high() COLLATE "C";
COMMENT ON VIEW public.latest IS 'The newest value of each point and unit, by the device''s time.';
COMMENT ON COLUMN public.latest.ts IS 'The device''s time.';

CREATE VIEW public.device_status WITH (security_barrier) AS
    SELECT
        d.tenant_id,
        d.site_id,
        d.device_id,
        d.created_at AS first_seen_at,
        d.last_seen_at,
        coalesce(
            d.last_seen_at > now() - (SELECT value::interval FROM traksense.setting WHERE name = 'online_within'), false
        ) AS online
    FROM traksense.device d
    WHERE d.tenant_id >= traksense.tenant_low() COLLATE "C" AND d.tenant_id <= traksense.tenant_high() COLLATE "C";
COMMENT ON VIEW public.device_status IS 'Each device, when it was last heard, and whether that is recent.';
COMMENT ON COLUMN public.device_status.first_seen_at IS 'When it was registered.';
COMMENT ON COLUMN public.device_status.last_seen_at IS
    'When a message of it was last received, whatever was in it, by our clock; written about every half minute.';
COMMENT ON COLUMN public.device_status.online IS 'Whether last_seen_at is less than five minutes ago (setting online_within).';


INSERT INTO traksense.schema_version (version, name) VALUES (5, 'latest');
