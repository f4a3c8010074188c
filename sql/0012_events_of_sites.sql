-- traksense, migration 12: a device is known by its site, too, and so are its events.
--
-- Two sites of a tenant may have a device of one name. What the one reported was taken for a repeat of what the other
-- had: an event was lost, and counted as a duplicate.

CREATE UNIQUE INDEX device_event_of_site_id_key ON public.device_event (tenant_id, site_id, device_id, event_id)
    WHERE event_id IS NOT NULL;
CREATE UNIQUE INDEX device_event_of_site_ts_key ON public.device_event (tenant_id, site_id, device_id, event_type, ts)
    WHERE event_id IS NULL;
DROP INDEX public.device_event_id_key;
DROP INDEX public.device_event_ts_key;
ALTER INDEX public.device_event_of_site_id_key RENAME TO device_event_id_key;
ALTER INDEX public.device_event_of_site_ts_key RENAME TO device_event_ts_key;

-- Beside the one without sites, which a service of the release before calls until it is replaced.
CREATE FUNCTION traksense.differing_events(
    tenants text[], sites text[], devices text[], ids text[], types text[], instants timestamptz[], contents text[]
) RETURNS SETOF bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.place - 1
    FROM unnest(tenants, sites, devices, ids, types, instants, contents) WITH ORDINALITY
        AS k (tenant_id, site_id, device_id, event_id, event_type, ts, data, place)
    JOIN public.device_event e ON (e.tenant_id, e.site_id, e.device_id) = (k.tenant_id, k.site_id, k.device_id)
        AND CASE
            WHEN k.event_id IS NULL THEN e.event_id IS NULL AND (e.event_type, e.ts) = (k.event_type, k.ts)
            ELSE e.event_id = k.event_id
        END
    WHERE k.tenant_id IN (SELECT traksense.ingest_tenants())
        AND (e.event_type, e.ts, e.data) IS DISTINCT FROM (k.event_type, k.ts, k.data::jsonb)
$$;
COMMENT ON FUNCTION traksense.differing_events(text[], text[], text[], text[], text[], timestamptz[], text[]) IS
    'The places, from 0, of those events that are stored with another type, time or content; of the tenants in app.tenant_ids.';
REVOKE ALL ON FUNCTION traksense.differing_events(text[], text[], text[], text[], text[], timestamptz[], text[]) FROM PUBLIC;

INSERT INTO traksense.schema_version (version, name) VALUES (12, 'events_of_sites');
