-- traksense: the roles and what they may do.
--
-- Not a migration: `traksense migrate` runs this file every time, after the migrations, unless it is told `--no-roles`. psql
-- can do the same: psql -1 -v ON_ERROR_STOP=1 -f sql/roles.sql. It changes nothing that is already so.
--
--   traksense_ingest    the service: writes, and reads what it must to tell new from old
--   traksense_app       applications: read the public relations of the tenant in app.tenant_id, write nothing
--   traksense_readonly  dashboards: the same; a role of its own, so that it can be limited or taken away on its own
--
-- They have no password and cannot log in. Operators give them to login roles: GRANT traksense_app TO my_application.
-- A role that may not create roles skips those that are missing; somebody else creates them, and migrate is run again.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['traksense_ingest', 'traksense_app', 'traksense_readonly'] LOOP
        IF to_regrole(role) IS NULL AND (
            SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user
        ) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- roles belong to the whole server: a migration of another database has just made it
            END;
        END IF;
    END LOOP;
END
$$;

-- A table's owner sees all of its rows, also where it is not the one that made them: a dump restored as another role, or a
-- table given to one. The functions of the service run as the owner.
DO $$
DECLARE
    policy record;
BEGIN
    FOR policy IN
        SELECT c.oid::regclass AS relation, c.relowner::regrole AS owner
        FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
        WHERE p.polname = 'operator' AND c.relnamespace IN ('public'::regnamespace, 'traksense'::regnamespace)
            AND NOT c.relowner = ANY (p.polroles)
    LOOP
        EXECUTE format('ALTER POLICY operator ON %s TO %s', policy.relation, policy.owner);
    END LOOP;
END
$$;

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['traksense_app', 'traksense_readonly'] LOOP
        CONTINUE WHEN to_regrole(role) IS NULL;
        EXECUTE format(
            'GRANT SELECT ON public.ts_measure, public.ts_measure_1m, public.ts_measure_5m, public.ts_measure_1h, '
            'public.cmd_ack, public.device_event, public.ingest_errors, public.latest, public.device_status TO %I',
            role
        );
    END LOOP;
END
$$;

DO $$
DECLARE
    relation regclass;
    condition text;
BEGIN
    IF to_regrole('traksense_ingest') IS NULL THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA traksense TO traksense_ingest;
    GRANT SELECT ON traksense.schema_version, traksense.setting TO traksense_ingest;
    GRANT SELECT, INSERT, UPDATE, DELETE ON traksense.ingest_session TO traksense_ingest;
    GRANT EXECUTE ON FUNCTION
        traksense.partition_ranges(), traksense.ensure_partitions(timestamptz, timestamptz),
        traksense.ensure_partitions(timestamptz[]), traksense.ingest_tenants(),
        traksense.roll_up(int), traksense.roll_up_until(int, timestamptz), traksense.drop_expired(),
        traksense.drop_expired(text), traksense.purge_expired(int),
        traksense.end_step(text, text), traksense.maintenance_state(), traksense.count_series(bigint), traksense.dictionary_token(),
        traksense.differing_events(text[], text[], text[], text[], timestamptz[], text[]),
        traksense.differing_events(text[], text[], text[], text[], text[], timestamptz[], text[]),
        traksense.replace_points(int[], timestamptz[], double precision[], boolean[], text[], smallint[], int[], jsonb[])
        TO traksense_ingest;
    GRANT EXECUTE ON PROCEDURE traksense.hold_dictionary(text, text) TO traksense_ingest;
    GRANT INSERT ON traksense.dirty TO traksense_ingest;

    -- Of measurements it reads what it must to tell a duplicate from a conflict: not their quality or meta. TimescaleDB 2.28
    -- cannot grant single columns where there is a columnstore: it passes the GRANT on to a table that lacks them.
    GRANT INSERT ON traksense.measure TO traksense_ingest;
    IF traksense.timescaledb_schema() IS NULL THEN
        GRANT SELECT (series_id, ts, v_num, v_bool, v_text) ON traksense.measure TO traksense_ingest;
    ELSE
        GRANT SELECT ON traksense.measure TO traksense_ingest;
    END IF;
    GRANT INSERT, SELECT (tenant_id) ON traksense.tenant TO traksense_ingest;
    GRANT INSERT, SELECT (tenant_id, site_id, device_id, last_seen_at), UPDATE (last_seen_at)
        ON traksense.device TO traksense_ingest;
    GRANT INSERT, SELECT (series_id, tenant_id, site_id, device_id, point_id, unit) ON traksense.series TO traksense_ingest;
    GRANT INSERT, SELECT (meta_id, tenant_id, digest) ON traksense.meta TO traksense_ingest;

    -- Of acks, events and dead letters it reads their keys, and what decides between an older and a newer one. ON CONFLICT
    -- DO UPDATE needs SELECT also of what it takes from `excluded`, the row that it brings itself.
    GRANT INSERT, SELECT (tenant_id, site_id, device_id, cmd_id, ok, ts_exec, err, payload, updated_at, xmax),
        UPDATE (site_id, ok, ts_exec, err, payload, updated_at) ON public.cmd_ack TO traksense_ingest;
    GRANT INSERT, SELECT (tenant_id, site_id, device_id, event_id, event_type, ts) ON public.device_event TO traksense_ingest;
    GRANT INSERT, SELECT (tenant_id, digest, repeats, reason, detail, ts, last_ts), UPDATE (repeats, last_ts, reason, detail, replayed_at)
        ON public.ingest_errors TO traksense_ingest;

    FOREACH relation IN ARRAY ARRAY[
        'traksense.tenant', 'traksense.device', 'traksense.series', 'traksense.meta',
        'public.cmd_ack', 'public.device_event', 'public.ingest_errors'
    ]::regclass[] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_policy WHERE polrelid = relation AND polname = 'ingest');
        condition := 'tenant_id IN (SELECT traksense.ingest_tenants())';
        IF relation = 'public.ingest_errors'::regclass THEN
            condition := condition || ' OR tenant_id IS NULL';  -- a topic that names no tenant
        END IF;
        EXECUTE format(
            'CREATE POLICY ingest ON %s TO traksense_ingest USING (%s) WITH CHECK (%s)', relation, condition, condition
        );
    END LOOP;
END
$$;

-- The service's staging table. A database that was hardened may have taken this from PUBLIC.
DO $$
BEGIN
    IF to_regrole('traksense_ingest') IS NOT NULL AND NOT pg_catalog.has_database_privilege(
        'traksense_ingest', pg_catalog.current_database(), 'TEMPORARY'
    ) THEN
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO traksense_ingest', pg_catalog.current_database());
    END IF;
END
$$;
