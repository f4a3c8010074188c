-- traksense: the whole schema, as migrations 1 to 16 and roles.sql make it, with TimescaleDB and without.
--
-- For reading. `traksense migrate` applies the migrations in sql/, which say why things are as they are. On an empty
-- database psql makes the same of this file, and `traksense migrate` goes on from there:
--     psql -v ON_ERROR_STOP=1 -f ops/schema.sql
--
-- Made by `python -m traksense.tools.schema`: do not edit.

-- Functions come before the tables that they read.
SET check_function_bodies = off;

DO $$
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'traksense needs PostgreSQL 15 or newer, this is %', current_setting('server_version')
            USING ERRCODE = '0A000';
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'traksense needs a UTF8 database, this one is %', current_setting('server_encoding')
            USING ERRCODE = '0A000';
    END IF;
END
$$;

CREATE SCHEMA traksense;

COMMENT ON SCHEMA traksense IS 'traksense: private. No application role needs any right in here; they read the relations in schema public.';

CREATE FUNCTION traksense.advance_sequences() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    relation regclass;
    number   name;
    behind   boolean;
BEGIN
    FOR relation, number IN VALUES
        ('traksense.series'::regclass, 'series_id'::name),
        ('traksense.meta', 'meta_id'),
        ('public.ingest_errors', 'id')
    LOOP
        EXECUTE format(
            'SELECT coalesce(max(%I), 0) > coalesce(pg_sequence_last_value(%L::regclass), 0) FROM %s',
            number, pg_get_serial_sequence(relation::text, number), relation
        ) INTO behind;
        IF behind THEN
            EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', relation);
            EXECUTE format(
                'SELECT setval(%1$L, greatest(max(%2$I), pg_sequence_last_value(%1$L::regclass))) FROM %3$s',
                pg_get_serial_sequence(relation::text, number), number, relation
            );
        END IF;
    END LOOP;
END
$_$;

COMMENT ON FUNCTION traksense.advance_sequences() IS 'Sets the sequences of series, meta objects and dead letters behind what is stored.';

CREATE FUNCTION traksense.compress_next() RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    raw_due      interval;
    rollup_due   interval;
    chunk        text;
    analyze_both text;
BEGIN
    SELECT nullif(value, '')::interval INTO raw_due FROM traksense.setting WHERE name = 'compress_after';
    SELECT nullif(value, '')::interval INTO rollup_due FROM traksense.setting WHERE name = 'compress_aggregates_after';
    IF traksense.timescaledb_schema() IS NULL THEN
        RETURN NULL;
    END IF;
    -- Status bit 8 is «partially compressed»: late points came in. Source: TimescaleDB 2.28, src/chunk.h.
    EXECUTE $sql$
        SELECT format('%I.%I', i.chunk_schema, i.chunk_name)
        FROM (
            SELECT 'traksense' AS schema, 'measure' AS name, $1 AS due
            UNION ALL
            SELECT materialization_hypertable_schema, materialization_hypertable_name, $2
            FROM timescaledb_information.continuous_aggregates WHERE view_schema = 'traksense'
        ) AS h
        JOIN timescaledb_information.chunks i ON i.hypertable_schema = h.schema AND i.hypertable_name = h.name
        JOIN _timescaledb_catalog.chunk c ON c.schema_name = i.chunk_schema AND c.table_name = i.chunk_name
        WHERE i.range_end < now() - h.due  -- null: never
            AND (NOT i.is_compressed OR c.status & 8 <> 0)
        ORDER BY i.range_end LIMIT 1
    $sql$ INTO chunk USING raw_due, rollup_due;
    IF chunk IS NOT NULL THEN
        EXECUTE format('SELECT %I.compress_chunk(%L::regclass)', traksense.timescaledb_schema(), chunk);
        -- The table behind the chunk, which has the compressed batches; ANALYZE of the chunk alone leaves it out.
        EXECUTE $sql$
            SELECT format('ANALYZE %s, %I.%I', $1, b.schema_name, b.table_name)
            FROM _timescaledb_catalog.chunk c JOIN _timescaledb_catalog.chunk b ON b.id = c.compressed_chunk_id
            WHERE format('%I.%I', c.schema_name, c.table_name) = $1
        $sql$ INTO STRICT analyze_both USING chunk;
        EXECUTE analyze_both;
    END IF;
    RETURN chunk;
END
$_$;

COMMENT ON FUNCTION traksense.compress_next() IS 'Compresses and analyzes the oldest chunk of measurements or aggregates that is due, and returns its name, or null if none is (TimescaleDB).';

CREATE FUNCTION traksense.count_series(at_most bigint) RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF row_security_active('traksense.series') AND NOT EXISTS (
        SELECT FROM pg_policy p, unnest(p.polroles) AS role
        WHERE p.polrelid = 'traksense.series'::regclass AND p.polname = 'operator' AND pg_has_role(role, 'USAGE')
    ) THEN
        RAISE EXCEPTION 'the owner of the schema traksense, %, does not see the rows of its tables', quote_ident(current_user)
            USING ERRCODE = 'insufficient_privilege', HINT = 'Run `traksense migrate` as this role.';
    END IF;
    RETURN (SELECT count(*) FROM (SELECT FROM traksense.series LIMIT at_most) AS s);
END
$$;

COMMENT ON FUNCTION traksense.count_series(at_most bigint) IS 'How many series there are; so many at most are counted. Fails if the owner of this function does not see them.';

CREATE FUNCTION traksense.current_tenant() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN NULLIF(current_setting('app.tenant_id'::text, true), ''::text);

COMMENT ON FUNCTION traksense.current_tenant() IS 'The tenant that the session named with SET app.tenant_id, or null.';

CREATE FUNCTION traksense.delete_points_of_series() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    DELETE FROM traksense.measure m USING gone WHERE m.series_id = gone.series_id;
    IF traksense.timescaledb_schema() IS NULL THEN
        PERFORM FROM traksense.work WHERE name = 'aggregate' FOR UPDATE;
        DELETE FROM traksense.rollup_1m r USING gone WHERE r.series_id = gone.series_id;
        DELETE FROM traksense.rollup_5m r USING gone WHERE r.series_id = gone.series_id;
        DELETE FROM traksense.rollup_1h r USING gone WHERE r.series_id = gone.series_id;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION traksense.delete_points_of_series() IS 'Deletes the points and aggregates of series that were deleted.';

CREATE FUNCTION traksense.dictionary_changes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    -- A TRUNCATE has its table already, which that roll-up wants to read.
    IF TG_OP <> 'TRUNCATE' AND traksense.timescaledb_schema() IS NULL THEN
        PERFORM FROM traksense.work WHERE name = 'aggregate' FOR UPDATE;
    END IF;
    -- Before any row is touched: nobody who holds the dictionary waits for those rows.
    LOCK TABLE traksense.dictionary_epoch IN EXCLUSIVE MODE;
    UPDATE traksense.dictionary_epoch SET epoch = gen_random_uuid();
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION traksense.dictionary_changes() IS 'Waits for the transactions that hold the dictionary, and ends its epoch.';

CREATE FUNCTION traksense.dictionary_token() RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    -- Named, so that it fails in a table that is being restored and has no key yet.
    IF NOT EXISTS (SELECT FROM traksense.dictionary_epoch) THEN
        INSERT INTO traksense.dictionary_epoch DEFAULT VALUES ON CONFLICT (one) DO NOTHING;
    END IF;
    PERFORM traksense.advance_sequences();
    RETURN (
        SELECT format(
            '%s/%s/%s/%s',
            e.epoch, e.xmin, 'traksense.series'::regclass::oid, pg_relation_filenode('traksense.series'::regclass)
        )
        FROM traksense.dictionary_epoch e
    );
END
$$;

COMMENT ON FUNCTION traksense.dictionary_token() IS 'Stands for the present numbers of series, devices and meta objects: as long as it is the same, so are they.';

CREATE FUNCTION traksense.differing_events(tenants text[], devices text[], ids text[], types text[], instants timestamp with time zone[], contents text[]) RETURNS SETOF bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT k.place - 1
    FROM unnest(tenants, devices, ids, types, instants, contents) WITH ORDINALITY
        AS k (tenant_id, device_id, event_id, event_type, ts, data, place)
    JOIN public.device_event e ON e.tenant_id = k.tenant_id AND e.device_id = k.device_id
        AND CASE
            WHEN k.event_id IS NULL THEN e.event_id IS NULL AND (e.event_type, e.ts) = (k.event_type, k.ts)
            ELSE e.event_id = k.event_id
        END
    WHERE k.tenant_id IN (SELECT traksense.ingest_tenants())
        AND (e.event_type, e.ts, e.data) IS DISTINCT FROM (k.event_type, k.ts, k.data::jsonb)
$$;

COMMENT ON FUNCTION traksense.differing_events(tenants text[], devices text[], ids text[], types text[], instants timestamp with time zone[], contents text[]) IS 'The places, from 0, of those events that are stored with another type, time or content; of the tenants in app.tenant_ids.';

CREATE FUNCTION traksense.differing_events(tenants text[], sites text[], devices text[], ids text[], types text[], instants timestamp with time zone[], contents text[]) RETURNS SETOF bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_seqscan TO 'off'
    AS $$
    WITH k AS (
        SELECT *
        FROM unnest(tenants, sites, devices, ids, types, instants, contents) WITH ORDINALITY
            AS k (tenant_id, site_id, device_id, event_id, event_type, ts, data, place)
        WHERE tenant_id IN (SELECT traksense.ingest_tenants())
    )
    SELECT k.place - 1
    FROM k JOIN public.device_event e USING (tenant_id, site_id, device_id, event_id)
    WHERE (e.event_type, e.ts, e.data) IS DISTINCT FROM (k.event_type, k.ts, k.data::jsonb)
    UNION ALL
    SELECT k.place - 1
    FROM k JOIN public.device_event e USING (tenant_id, site_id, device_id, event_type, ts)
    WHERE k.event_id IS NULL AND e.event_id IS NULL AND e.data IS DISTINCT FROM k.data::jsonb
$$;

COMMENT ON FUNCTION traksense.differing_events(tenants text[], sites text[], devices text[], ids text[], types text[], instants timestamp with time zone[], contents text[]) IS 'The places, from 0, of those events that are stored with another type, time or content; of the tenants in app.tenant_ids.';

CREATE FUNCTION traksense.drop_expired() RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    level text;
BEGIN
    FOREACH level IN ARRAY ARRAY['raw', '1m', '5m', '1h'] LOOP
        BEGIN
            RETURN QUERY SELECT d FROM traksense.drop_expired(level) AS d;
        EXCEPTION WHEN lock_not_available OR object_in_use OR object_not_in_prerequisite_state THEN
            RAISE WARNING 'traksense: what has expired of % is dropped next time: %', level, SQLERRM;
        END;
    END LOOP;
END
$$;

COMMENT ON FUNCTION traksense.drop_expired() IS 'The same for all levels, once: what releases before schema version 10 call.';

CREATE FUNCTION traksense.drop_expired(level text) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    SET lock_timeout TO '3s'
    AS $_$
DECLARE
    parent  constant regclass := CASE level WHEN 'raw' THEN 'traksense.measure' ELSE 'traksense.rollup_' || level END;
    engine  constant name := traksense.timescaledb_schema();
    expired record;
    cut     timestamptz;
    grace   interval;
BEGIN
    PERFORM FROM traksense.work WHERE name = 'drop' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another session is dropping what has expired' USING ERRCODE = 'object_in_use';
    END IF;
    SELECT value::interval INTO STRICT grace FROM traksense.setting WHERE name = 'retain_grace';
    SELECT now() - nullif(value, '')::interval - grace INTO STRICT cut FROM traksense.setting WHERE name = 'retain_' || level;
    IF cut IS NULL THEN
        RETURN;
    END IF;
    IF engine IS NOT NULL THEN
        IF level = 'raw' THEN
            IF (SELECT succeeded_at FROM traksense.step WHERE name = 'aggregate') < now() - grace / 2 THEN
                RAISE EXCEPTION 'raw points that have expired are kept: the aggregates have not been refreshed for %', grace / 2
                    USING ERRCODE = '55000';
            END IF;
            -- Refreshed once more, what has been dropped would be gone from the aggregates as well.
            UPDATE traksense.setting SET value = greatest(value::timestamptz, cut)::text WHERE name = 'raw_dropped_before';
        END IF;
        RETURN QUERY EXECUTE format('SELECT %I.drop_chunks(%L::regclass, older_than => %L::timestamptz)::text', engine, parent, cut);
        RETURN;
    END IF;
    FOR expired IN
        SELECT c.oid::regclass AS partition, substring(bound FROM $re$TO \('([^']+)'\)$re$)::timestamptz AS upper
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
        WHERE i.inhparent = parent AND substring(bound FROM $re$TO \('([^']+)'\)$re$)::timestamptz <= cut
            -- What has not been aggregated yet stays until it is.
            AND (level <> 'raw' OR NOT EXISTS (
                SELECT FROM traksense.dirty d WHERE d.low < substring(bound FROM $re$TO \('([^']+)'\)$re$)::timestamptz
            ))
        ORDER BY 2 LIMIT 16
    LOOP
        IF level = 'raw' THEN
            UPDATE traksense.setting SET value = greatest(value::timestamptz, expired.upper)::text
            WHERE name = 'raw_dropped_before';
        END IF;
        EXECUTE format('DROP TABLE %s', expired.partition);
        RETURN NEXT expired.partition::text;
    END LOOP;
END
$_$;

COMMENT ON FUNCTION traksense.drop_expired(level text) IS 'Drops partitions or chunks of one level (raw, 1m, 5m, 1h) that are older than the policy keeps; returns their names. Call it until it returns none.';

CREATE TABLE traksense.step (
    name text NOT NULL,
    succeeded_at timestamp with time zone DEFAULT now() NOT NULL,
    failing_since timestamp with time zone,
    error text
)
WITH (fillfactor='50');

COMMENT ON TABLE traksense.step IS 'The steps of the background work, and how each ended when it was last tried.';

COMMENT ON COLUMN traksense.step.succeeded_at IS 'When it was last done; at first, when this was recorded first.';

COMMENT ON COLUMN traksense.step.failing_since IS 'Since when each attempt has failed, or null.';

COMMENT ON COLUMN traksense.step.error IS 'What the last attempt failed with, or null.';

CREATE FUNCTION traksense.end_step(step text, failure text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 UPDATE traksense.step s SET succeeded_at =
         CASE
             WHEN (end_step.failure IS NULL) THEN clock_timestamp()
             ELSE s.succeeded_at
         END, failing_since =
         CASE
             WHEN (end_step.failure IS NOT NULL) THEN COALESCE(s.failing_since, clock_timestamp())
             ELSE NULL::timestamp with time zone
         END, error = "left"(end_step.failure, 500)
   WHERE (s.name = end_step.step);
END;

COMMENT ON FUNCTION traksense.end_step(step text, failure text) IS 'Records that a step of the background work was done, or what it failed with.';

CREATE TABLE traksense.work (
    name text NOT NULL,
    holder integer,
    holder_since timestamp with time zone
);

COMMENT ON TABLE traksense.work IS 'What one session does at a time: whoever does it holds the lock of the row. No application role may touch it.';

COMMENT ON COLUMN traksense.work.holder IS 'On TimescaleDB, the process that refreshes the aggregates: that takes several transactions, which no row lock outlives.';

COMMENT ON COLUMN traksense.work.holder_since IS 'When that process started, so that another with its number is not taken for it.';

CREATE FUNCTION traksense.end_turn(what text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 UPDATE traksense.work SET holder = NULL::integer, holder_since = NULL::timestamp with time zone
   WHERE ((work.name = end_turn.what) AND (work.holder = pg_backend_pid()));
END;

COMMENT ON FUNCTION traksense.end_turn(what text) IS 'Lets others have their turn.';

CREATE FUNCTION traksense.ensure_partitions(instants timestamp with time zone[]) RETURNS SETOF tstzrange
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(instants) AS i WHERE i IS NULL OR NOT isfinite(i)) THEN
        RAISE EXCEPTION 'ensure_partitions: not an instant' USING ERRCODE = '22023';
    END IF;
    IF (SELECT relkind FROM pg_class WHERE oid = 'traksense.measure'::regclass) <> 'p' THEN
        RETURN NEXT tstzrange(NULL, NULL);
        RETURN;
    END IF;
    RETURN QUERY SELECT r FROM unnest(traksense.fill_partitions(
        'measure', (SELECT coalesce(range_agg(tstzrange(i, i, '[]')), '{}') FROM unnest(instants) AS i), 'day', 16
    )) AS r;
END
$$;

COMMENT ON FUNCTION traksense.ensure_partitions(instants timestamp with time zone[]) IS 'Makes up to sixteen of the partitions that these instants need; returns everything that is covered then. Call it until all instants are. Safe from several sessions.';

CREATE FUNCTION traksense.ensure_partitions(from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS SETOF tstzrange
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    AS $$
DECLARE
    wanted  tstzrange;
    covered tstzmultirange;
BEGIN
    IF from_ts IS NULL OR to_ts IS NULL OR NOT isfinite(from_ts) OR NOT isfinite(to_ts) OR from_ts > to_ts THEN
        RAISE EXCEPTION 'ensure_partitions: not a finite range: % to %', from_ts, to_ts USING ERRCODE = '22023';
    END IF;
    wanted := tstzrange(from_ts, to_ts, CASE WHEN from_ts = to_ts THEN '[]' ELSE '[)' END);
    IF (SELECT relkind FROM pg_class WHERE oid = 'traksense.measure'::regclass) <> 'p' THEN
        RETURN NEXT tstzrange(NULL, NULL);
        RETURN;
    END IF;
    covered := traksense.fill_partitions('measure', wanted::tstzmultirange, 'day', 1000000);
    RETURN QUERY SELECT r FROM unnest(covered) AS r WHERE r && wanted;
END
$$;

COMMENT ON FUNCTION traksense.ensure_partitions(from_ts timestamp with time zone, to_ts timestamp with time zone) IS 'Makes sure that every instant from from_ts up to to_ts (excluded, unless they are equal) can be stored; returns the unbroken range that is covered around them. Safe to repeat and from several sessions. Its lock is held until the end of the transaction.';

CREATE FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM traksense.fill_partitions('rollup_1m', wanted, 'day', 1000000);
    PERFORM traksense.fill_partitions('rollup_5m', wanted, 'month', 1000000);
    PERFORM traksense.fill_partitions('rollup_1h', wanted, 'month', 1000000);
END
$$;

COMMENT ON FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) IS 'Makes sure that the aggregates of these times can be stored (plain PostgreSQL).';

CREATE FUNCTION traksense.fill_partitions(parent text, wanted tstzmultirange, finest text, most integer) RETURNS tstzmultirange
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    AS $$
DECLARE
    table_ constant regclass := format('traksense.%I', parent)::regclass;
    covered tstzmultirange := traksense.ranges_of(table_);
    missing tstzmultirange := wanted - covered;
    days    interval;
    months  interval;
    instant timestamptz;
    unit    text;
    first   timestamptz;
    whole   tstzrange;
    base    text;
    name    text;
BEGIN
    IF isempty(missing) THEN
        RETURN covered;
    END IF;
    PERFORM FROM traksense.work w WHERE w.name = 'partitions' FOR UPDATE;
    -- Again, since whoever held the lock has made partitions.
    covered := traksense.ranges_of(table_);
    missing := wanted - covered;
    SELECT value::interval INTO STRICT days FROM traksense.setting s WHERE s.name = 'partition_daily_within';
    SELECT value::interval INTO STRICT months FROM traksense.setting s WHERE s.name = 'partition_monthly_within';
    WHILE NOT isempty(missing) AND most > 0 LOOP
        instant := lower(missing);
        unit := CASE
            WHEN finest = 'day' AND instant BETWEEN now() - days AND now() + days THEN 'day'
            WHEN instant BETWEEN now() - months AND now() + months THEN 'month'
            ELSE 'year'
        END;
        first := date_trunc(unit, instant);
        SELECT tstzrange(first, first + ('1 ' || unit)::interval) * gap INTO STRICT whole
            FROM unnest('{(,)}'::tstzmultirange - covered) AS gap WHERE gap @> instant;
        base := parent || to_char(first, CASE unit
            WHEN 'day' THEN '"_y"YYYY"m"MM"d"DD' WHEN 'month' THEN '"_y"YYYY"m"MM' ELSE '"_y"YYYY'
        END);
        name := base;
        -- Two parts of one year, or a table that somebody has detached and kept.
        FOR n IN 2..1000 LOOP
            EXIT WHEN to_regclass(format('traksense.%I', name)) IS NULL;
            name := base || '_' || n;
        END LOOP;
        -- A table of its own, then attached: that takes SHARE UPDATE EXCLUSIVE on the parent, which running INSERTs and COPYs do
        -- not notice (PARTITION OF would take ACCESS EXCLUSIVE and wait for them).
        EXECUTE format('CREATE TABLE traksense.%I (LIKE %s INCLUDING ALL)', name, table_);
        PERFORM traksense.keep_no_statistics(format('traksense.%I', name)::regclass);
        EXECUTE format(
            'ALTER TABLE %s ATTACH PARTITION traksense.%I FOR VALUES FROM (%L) TO (%L)', table_, name, lower(whole), upper(whole)
        );
        covered := covered + whole::tstzmultirange;
        missing := missing - whole::tstzmultirange;
        most := most - 1;
    END LOOP;
    RETURN covered;
END
$$;

COMMENT ON FUNCTION traksense.fill_partitions(parent text, wanted tstzmultirange, finest text, most integer) IS 'Makes partitions for what is wanted, a number at most; returns all that is covered then. The finest is a day or a month.';

CREATE PROCEDURE traksense.hold_dictionary(IN token text, IN session text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF current_setting('traksense.session', true) IS DISTINCT FROM session THEN
        RAISE EXCEPTION 'a connection pooler gives each transaction another server process; set its pool_mode to session'
            USING ERRCODE = 'TK002';
    END IF;
    -- Weak locks of tables: they cost no write, and a role without rights in this schema cannot hold their opposites. In the
    -- order in which TRUNCATE traksense.measure, traksense.series takes them, so that neither waits for the other.
    LOCK TABLE ONLY traksense.measure IN ROW EXCLUSIVE MODE;
    LOCK TABLE traksense.dictionary_epoch IN ROW SHARE MODE;
    IF NOT EXISTS (
        SELECT FROM traksense.dictionary_epoch e
        WHERE token = format(
            '%s/%s/%s/%s',
            e.epoch, e.xmin, 'traksense.series'::regclass::oid, pg_relation_filenode('traksense.series'::regclass)
        )
    ) THEN
        RAISE EXCEPTION 'tenants, devices, series or meta objects were deleted, renamed or restored' USING ERRCODE = 'TK001';
    END IF;
END
$$;

COMMENT ON PROCEDURE traksense.hold_dictionary(IN token text, IN session text) IS 'Keeps the dictionary as it is until the end of the transaction; fails if it is not what the token stands for (TK001) or if the session is not the one that set traksense.session (TK002).';

CREATE FUNCTION traksense.ingest_tenants() RETURNS SETOF text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN unnest(string_to_array(current_setting('app.tenant_ids'::text, true), '/'::text));

COMMENT ON FUNCTION traksense.ingest_tenants() IS 'The tenants that the service writes for in this transaction: SET LOCAL app.tenant_ids, separated by slashes.';

CREATE TABLE traksense.operator_marker (
);

COMMENT ON TABLE traksense.operator_marker IS 'Always empty. Whoever is exempt from its row security is an operator.';

CREATE FUNCTION traksense.is_operator() RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (NOT row_security_active(('traksense.operator_marker'::regclass)::oid));

COMMENT ON FUNCTION traksense.is_operator() IS 'Whether the current role sees every tenant.';

CREATE FUNCTION traksense.keep_no_statistics(relation regclass) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    columns text;
BEGIN
    SELECT string_agg(format('ALTER COLUMN %I SET STATISTICS 0', attname), ', ' ORDER BY attnum) INTO columns
    FROM pg_attribute
    WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
        AND attname NOT IN ('series_id', 'ts', 'bucket', 'updated_at', 'id', 'meta_id', 'last_seen_at');
    IF columns IS NOT NULL THEN
        EXECUTE format('ALTER TABLE %s %s', relation, columns);
    END IF;
    -- What an earlier ANALYZE has left would be used for ever. Only a superuser may remove it; others never had it: this
    -- migration is older than the first release.
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        DELETE FROM pg_statistic s USING pg_attribute a
        WHERE s.starelid = relation AND a.attrelid = s.starelid AND a.attnum = s.staattnum AND a.attstattarget = 0;
    END IF;
END
$$;

COMMENT ON FUNCTION traksense.keep_no_statistics(relation regclass) IS 'Makes ANALYZE leave out all columns of a table but series and times: statistics of names and values can be probed with EXPLAIN.';

CREATE PROCEDURE traksense.lifecycle_job(IN job_id integer, IN config jsonb)
    LANGUAGE plpgsql
    AS $$
DECLARE
    level   text;
    failure text;
BEGIN
    FOREACH level IN ARRAY ARRAY['raw', '1m', '5m', '1h'] LOOP
        BEGIN
            PERFORM traksense.drop_expired(level);
        EXCEPTION WHEN lock_not_available OR object_not_in_prerequisite_state THEN
            failure := pg_catalog.concat(level, ': ', SQLERRM);
        WHEN object_in_use THEN
            NULL;
        END;
        COMMIT;
    END LOOP;
    PERFORM traksense.end_step('drop', failure);
    COMMIT;
    WHILE traksense.purge_expired() OPERATOR(pg_catalog.>) 0 LOOP
        COMMIT;
    END LOOP;
    PERFORM traksense.end_step('purge');
    COMMIT;
    WHILE traksense.compress_next() IS NOT NULL LOOP
        PERFORM traksense.end_step('compress');
        COMMIT;
    END LOOP;
    PERFORM traksense.end_step('compress');
    COMMIT;
END
$$;

COMMENT ON PROCEDURE traksense.lifecycle_job(IN job_id integer, IN config jsonb) IS 'Carries out the policy: compresses, drops and purges (a job of TimescaleDB).';

CREATE FUNCTION traksense.maintenance_state() RETURNS TABLE(step text, succeeded_at timestamp with time zone, failing_since timestamp with time zone, error text, waiting bigint, waiting_since timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    jobs text;
BEGIN
    IF traksense.timescaledb_schema() IS NULL THEN
        RETURN QUERY
            SELECT s.name, s.succeeded_at, s.failing_since, s.error, d.marks, d.oldest
            FROM traksense.step s
            LEFT JOIN (
                -- A look at so many is enough to know that there are many.
                SELECT count(*) AS marks, min(marked_at) AS oldest FROM (SELECT marked_at FROM traksense.dirty LIMIT 100000) AS m
            ) AS d ON s.name = 'aggregate';
        RETURN;
    END IF;
    -- What the scheduler says of the jobs explains why a step is not done; whether it is done they say themselves.
    RETURN QUERY EXECUTE $sql$
        SELECT s.name, s.succeeded_at, s.failing_since, coalesce(s.error, (
            SELECT coalesce(e.err_message, j.job_status || ', next start ' || j.next_start)
            FROM timescaledb_information.job_stats j
            LEFT JOIN LATERAL (
                SELECT err_message FROM timescaledb_information.job_errors e
                WHERE e.job_id = j.job_id AND j.last_run_status = 'Failed' ORDER BY e.finish_time DESC LIMIT 1
            ) AS e ON true
            JOIN timescaledb_information.jobs k ON k.job_id = j.job_id
            WHERE k.proc_schema = 'traksense'
                AND k.proc_name = CASE s.name WHEN 'aggregate' THEN 'refresh_aggregates' ELSE 'lifecycle_job' END
            LIMIT 1
        )), NULL::bigint, NULL::timestamptz
        FROM traksense.step s
    $sql$;
END
$_$;

COMMENT ON FUNCTION traksense.maintenance_state() IS 'The steps of the background work: when each was last done, since when it fails and with what; of the aggregates on plain PostgreSQL how many marks wait (100,000 at most are counted), and since when.';

CREATE TABLE traksense.dirty (
    series_id integer,
    low timestamp with time zone NOT NULL,
    high timestamp with time zone NOT NULL,
    series integer[],
    marked_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY traksense.dirty ALTER COLUMN low SET STATISTICS 0;
ALTER TABLE ONLY traksense.dirty ALTER COLUMN high SET STATISTICS 0;
ALTER TABLE ONLY traksense.dirty ALTER COLUMN series SET STATISTICS 0;
ALTER TABLE ONLY traksense.dirty ALTER COLUMN series SET STORAGE EXTERNAL;
ALTER TABLE ONLY traksense.dirty ALTER COLUMN marked_at SET STATISTICS 0;

COMMENT ON TABLE traksense.dirty IS 'What was written since the last roll-up: times from low to high, both included, of the series named, or of all if none is. Not used on TimescaleDB.';

COMMENT ON COLUMN traksense.dirty.series_id IS 'As releases before schema version 10 name a series.';

COMMENT ON COLUMN traksense.dirty.marked_at IS 'When what is to be computed was written.';

CREATE FUNCTION traksense.mark_dirty(from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS void
    LANGUAGE sql
    BEGIN ATOMIC
 INSERT INTO traksense.dirty (low, high)
   VALUES (mark_dirty.from_ts, mark_dirty.to_ts);
END;

COMMENT ON FUNCTION traksense.mark_dirty(from_ts timestamp with time zone, to_ts timestamp with time zone) IS 'Has the aggregates of all series in a range computed anew: for whoever writes measurements without the service.';

CREATE FUNCTION traksense.opaque(boolean) RETURNS boolean
    LANGUAGE sql PARALLEL SAFE
    RETURN $1;

COMMENT ON FUNCTION traksense.opaque(boolean) IS 'The value itself; conditions on it are not evaluated below a security barrier.';

CREATE FUNCTION traksense.opaque(double precision) RETURNS double precision
    LANGUAGE sql PARALLEL SAFE
    RETURN $1;

COMMENT ON FUNCTION traksense.opaque(double precision) IS 'The value itself; conditions on it are not evaluated below a security barrier.';

CREATE FUNCTION traksense.opaque(smallint) RETURNS smallint
    LANGUAGE sql PARALLEL SAFE
    RETURN $1;

COMMENT ON FUNCTION traksense.opaque(smallint) IS 'The value itself; conditions on it are not evaluated below a security barrier.';

CREATE FUNCTION traksense.opaque(bigint) RETURNS bigint
    LANGUAGE sql PARALLEL SAFE
    RETURN $1;

COMMENT ON FUNCTION traksense.opaque(bigint) IS 'The value itself; conditions on it are not evaluated below a security barrier.';

CREATE FUNCTION traksense.opaque(jsonb) RETURNS jsonb
    LANGUAGE sql PARALLEL SAFE
    RETURN $1;

COMMENT ON FUNCTION traksense.opaque(jsonb) IS 'The value itself; conditions on it are not evaluated below a security barrier.';

CREATE FUNCTION traksense.opaque(text) RETURNS text
    LANGUAGE sql PARALLEL SAFE
    RETURN $1;

COMMENT ON FUNCTION traksense.opaque(text) IS 'The value itself; conditions on it are not evaluated below a security barrier.';

CREATE FUNCTION traksense.opaque(timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql PARALLEL SAFE
    RETURN $1;

COMMENT ON FUNCTION traksense.opaque(timestamp with time zone) IS 'The value itself; conditions on it are not evaluated below a security barrier.';

CREATE FUNCTION traksense.partition_ranges() RETURNS SETOF tstzrange
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    AS $_$
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'traksense.measure'::regclass) <> 'p' THEN
        RETURN NEXT tstzrange(NULL, NULL);
        RETURN;
    END IF;
    RETURN QUERY
        SELECT tstzrange(
            substring(bound FROM $re$FROM \('([^']+)'\)$re$)::timestamptz,  -- null if it is MINVALUE
            substring(bound FROM $re$TO \('([^']+)'\)$re$)::timestamptz
        ) AS partition_range
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
        WHERE i.inhparent = 'traksense.measure'::regclass AND NOT i.inhdetachpending AND bound LIKE 'FOR VALUES FROM %'
        ORDER BY partition_range;
END
$_$;

COMMENT ON FUNCTION traksense.partition_ranges() IS 'The time ranges that traksense.measure can store, one for each partition; (,), without bounds, on TimescaleDB.';

CREATE FUNCTION traksense.purge_expired(rows_max integer DEFAULT 10000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    kind   text;
    purged bigint := 0;
    one    bigint;
BEGIN
    PERFORM FROM traksense.work WHERE name = 'purge' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- In the order in which a batch writes them; a row that one has locked is not so old any more.
    FOREACH kind IN ARRAY ARRAY['acks', 'events', 'errors'] LOOP
        EXECUTE format(
            $sql$
            DELETE FROM public.%1$I WHERE ctid = ANY (ARRAY(
                SELECT e.ctid FROM public.%1$I e
                LEFT JOIN traksense.tenant_retention r ON r.tenant_id = e.tenant_id AND r.kind = %2$L
                WHERE %3$s < now() - CASE
                    WHEN r.kind IS NOT NULL THEN r.keep
                    ELSE (SELECT nullif(value, '')::interval FROM traksense.setting WHERE name = 'retain_' || %2$L)
                END
                LIMIT $1 FOR UPDATE OF e SKIP LOCKED
            ))
            $sql$,
            CASE kind WHEN 'events' THEN 'device_event' WHEN 'acks' THEN 'cmd_ack' ELSE 'ingest_errors' END,
            kind,
            CASE kind WHEN 'events' THEN 'e.ts' WHEN 'acks' THEN 'e.updated_at' ELSE 'coalesce(e.last_ts, e.ts)' END
        ) USING rows_max;
        GET DIAGNOSTICS one = ROW_COUNT;
        purged := purged + one;
    END LOOP;
    RETURN purged;
END
$_$;

COMMENT ON FUNCTION traksense.purge_expired(rows_max integer) IS 'Deletes acks, events and dead letters that are older than the policy keeps, a number at most; returns how many. Call it until it returns 0.';

CREATE FUNCTION traksense.ranges_of(parent regclass) RETURNS tstzmultirange
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    AS $_$
    SELECT coalesce(range_agg(tstzrange(
        substring(bound FROM $re$FROM \('([^']+)'\)$re$)::timestamptz,  -- null if it is MINVALUE
        substring(bound FROM $re$TO \('([^']+)'\)$re$)::timestamptz
    )), '{}')
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
    WHERE i.inhparent = parent AND NOT i.inhdetachpending AND bound LIKE 'FOR VALUES FROM %'
$_$;

COMMENT ON FUNCTION traksense.ranges_of(parent regclass) IS 'The times that a partitioned table can store.';

CREATE TABLE traksense.setting (
    name text NOT NULL,
    value text NOT NULL
);

COMMENT ON TABLE traksense.setting IS 'What the functions of this schema can be told; changed with UPDATE by the owner.';

CREATE FUNCTION traksense.refreshed_from() RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    BEGIN ATOMIC
 SELECT NULLIF(GREATEST(( SELECT ((now() - (NULLIF(setting.value, ''::text))::interval) - ( SELECT ((setting_1.value)::interval / (2)::double precision)
                    FROM traksense.setting setting_1
                   WHERE (setting_1.name = 'retain_grace'::text)))
            FROM traksense.setting
           WHERE (setting.name = 'retain_raw'::text)), ( SELECT (setting.value)::timestamp with time zone AS value
            FROM traksense.setting
           WHERE (setting.name = 'raw_dropped_before'::text))), '-infinity'::timestamp with time zone) AS "nullif";
END;

COMMENT ON FUNCTION traksense.refreshed_from() IS 'The start of what is refreshed, or null if it is everything (TimescaleDB).';

CREATE FUNCTION traksense.refuse_nameless_points() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM traksense.measure) THEN
        RAISE EXCEPTION 'traksense.measure has points that nobody could read without their series'
            USING ERRCODE = '2BP01', HINT = 'Truncate traksense.measure first, or in the same statement.';
    END IF;
    -- With RESTART IDENTITY, the next series have the numbers of those that are gone: they may be another tenant's.
    IF traksense.timescaledb_schema() IS NULL THEN
        TRUNCATE traksense.rollup_1m, traksense.rollup_5m, traksense.rollup_1h;
    ELSE
        TRUNCATE traksense.rollup_1m;
        TRUNCATE traksense.rollup_5m;
        TRUNCATE traksense.rollup_1h;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION traksense.refuse_nameless_points() IS 'Refuses to truncate the series of points that are stored; truncates the aggregates of those that were.';

CREATE FUNCTION traksense.replace_points(series integer[], instants timestamp with time zone[], numbers double precision[], truths boolean[], texts text[], quals smallint[], meta_ids integer[], metas jsonb[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    low  constant timestamptz := (SELECT min(i) FROM unnest(instants) AS i);
    high constant timestamptz := (SELECT max(i) FROM unnest(instants) AS i);
BEGIN
    UPDATE traksense.measure m
    SET v_num = k.v_num, v_bool = k.v_bool, v_text = k.v_text, qual = k.qual, meta_id = k.meta_id, meta = k.meta
    FROM unnest(series, instants, numbers, truths, texts, quals, meta_ids, metas)
        AS k (series_id, ts, v_num, v_bool, v_text, qual, meta_id, meta)
    WHERE m.series_id = k.series_id AND m.ts = k.ts AND m.ts >= low AND m.ts <= high;
END
$$;

COMMENT ON FUNCTION traksense.replace_points(series integer[], instants timestamp with time zone[], numbers double precision[], truths boolean[], texts text[], quals smallint[], meta_ids integer[], metas jsonb[]) IS 'Gives stored points other values: for the service, when the newest value is to win (INGEST_CONFLICTS=replace).';

CREATE FUNCTION traksense.roll_up(marks_max integer DEFAULT 20000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN traksense.roll_up_until(marks_max, 'infinity');
END
$$;

COMMENT ON FUNCTION traksense.roll_up(marks_max integer) IS 'The same of everything that is marked; for releases before schema version 10, and for people.';

CREATE FUNCTION traksense.roll_up_level(level text, series integer[], ranges tstzrange[]) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $_$
DECLARE
    width constant interval := CASE level WHEN '1m' THEN interval '1 minute' WHEN '5m' THEN '5 minutes' ELSE '1 hour' END;
    first timestamptz;
    last  timestamptz;
    buckets bigint;
BEGIN
    SELECT date_bin(width, min(lower(r)), 'epoch'), date_bin(width, max(upper(r)), 'epoch') + width INTO first, last
    FROM unnest(ranges) AS r;
    EXECUTE format(
        $sql$
        INSERT INTO traksense.%1$I AS t (series_id, bucket, v_sum, v_min, v_max, v_count)
        SELECT k.series_id, r.*
        FROM (
            SELECT m.series_id, unnest(m.whole) AS span
            FROM (
                SELECT k.series_id, range_agg(tstzrange(
                    date_bin(%2$L, lower(k.span), 'epoch'),
                    date_bin(%2$L, upper(k.span) - interval '1 microsecond', 'epoch') + %2$L
                )) AS whole
                FROM unnest($1, $2) AS k (series_id, span)
                GROUP BY 1
            ) AS m
        ) AS k
        CROSS JOIN LATERAL (
            SELECT date_bin(%2$L, %3$I, timestamptz 'epoch'), %4$s
            FROM traksense.%5$I AS m
            WHERE m.series_id = k.series_id AND %3$I >= lower(k.span) AND %3$I < upper(k.span)
                AND %3$I >= %7$L AND %3$I < %8$L %6$s
            GROUP BY 1
        ) AS r
        ON CONFLICT (series_id, bucket) DO UPDATE
        SET v_sum = excluded.v_sum, v_min = excluded.v_min, v_max = excluded.v_max, v_count = excluded.v_count
        WHERE (t.v_sum, t.v_min, t.v_max, t.v_count)
            IS DISTINCT FROM (excluded.v_sum, excluded.v_min, excluded.v_max, excluded.v_count)
        $sql$,
        'rollup_' || level,
        width,
        CASE level WHEN '1m' THEN 'ts' ELSE 'bucket' END,
        CASE level
            WHEN '1m' THEN 'sum(m.v_num), min(m.v_num), max(m.v_num), count(*)'
            ELSE 'sum(m.v_sum), min(m.v_min), max(m.v_max), sum(m.v_count)'
        END,
        CASE level WHEN '1m' THEN 'measure' WHEN '5m' THEN 'rollup_1m' ELSE 'rollup_5m' END,
        CASE level WHEN '1m' THEN 'AND m.v_num IS NOT NULL' ELSE '' END,
        first,
        last
    ) USING series, ranges;
    GET DIAGNOSTICS buckets = ROW_COUNT;
    RETURN buckets;
END
$_$;

COMMENT ON FUNCTION traksense.roll_up_level(level text, series integer[], ranges tstzrange[]) IS 'Computes marked buckets of one aggregate from the level below (plain PostgreSQL).';

CREATE FUNCTION traksense.roll_up_until(marks_max integer, until timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET jit TO 'off'
    SET lock_timeout TO '30s'
    AS $$
DECLARE
    reach     constant interval := interval '31 days';
    hour      constant interval := interval '1 hour';
    kept_from timestamptz;
    newest    timestamptz;
    fleet     bigint;
    common    tstzmultirange;
    part      tstzmultirange;
    budget    interval;
    waited    timestamptz;
    series_   int[];
    ranges    tstzrange[];
    marks     bigint;
    level     text;
BEGIN
    -- First, as TRUNCATE traksense.measure, traksense.series does: else each of the two would wait for the other.
    LOCK TABLE ONLY traksense.measure IN ACCESS SHARE MODE;
    PERFORM FROM traksense.work WHERE name = 'aggregate' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN -1;
    END IF;
    SELECT high INTO newest FROM traksense.dirty
    WHERE high <= now() + hour AND NOT (marked_at > until AND marked_at <= now()) ORDER BY high DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT high INTO newest FROM traksense.dirty WHERE NOT (marked_at > until AND marked_at <= now()) ORDER BY high LIMIT 1;
    END IF;
    IF newest IS NULL THEN
        RETURN 0;
    END IF;
    -- Where raw points have been dropped the aggregates stay as they are.
    SELECT value::timestamptz INTO STRICT kept_from FROM traksense.setting WHERE name = 'raw_dropped_before';

    WITH taken AS (
        DELETE FROM traksense.dirty
        WHERE ctid = ANY (ARRAY(
            SELECT ctid
            FROM (
                -- A busy service names the same series again and again: many marks become few entries.
                SELECT d.ctid, sum(d.entries) OVER (ORDER BY d.high DESC, d.ctid) - d.entries AS before
                FROM (
                    SELECT d.ctid, coalesce(cardinality(d.series), 1) AS entries, d.high FROM traksense.dirty d
                    WHERE d.high <= newest AND d.high > newest - reach AND NOT (d.marked_at > until AND d.marked_at <= now())
                    ORDER BY d.high DESC LIMIT marks_max
                ) AS d
            ) AS d
            WHERE before < 200 * marks_max
        ))
        RETURNING series, series_id, low, high, marked_at
    ), entry AS (
        SELECT id, date_trunc('hour', low) AS at, min(low) AS low, max(high) AS high, min(marked_at) AS marked_at,
            row_number() OVER (ORDER BY date_trunc('hour', low) DESC, id) AS place
        FROM taken CROSS JOIN LATERAL unnest(coalesce(series, ARRAY[series_id])) AS id
        WHERE id IS NOT NULL
        GROUP BY 1, 2
    ), rest AS (
        INSERT INTO traksense.dirty (series, low, high, marked_at)
        SELECT array_agg(id), min(low), max(high), min(marked_at)
        FROM entry WHERE place > marks_max GROUP BY at, place / marks_max
    ), chosen AS (
        SELECT id, tstzrange(low, high + interval '1 microsecond') * tstzrange(kept_from, NULL) AS span
        FROM entry WHERE place <= marks_max
    )
    SELECT (SELECT count(*) FROM taken),
        (SELECT array_agg(id) FROM chosen WHERE NOT isempty(span)), (SELECT array_agg(span) FROM chosen WHERE NOT isempty(span)),
        -- By the minute, which is computed as a whole: so the marks of one batch after the other become one range.
        range_agg(tstzrange(date_bin('1 minute', low, 'epoch'), date_bin('1 minute', high, 'epoch') + interval '1 minute')),
        min(marked_at)
    INTO marks, series_, ranges, common, waited
    FROM taken WHERE series IS NULL AND series_id IS NULL;

    IF common IS NOT NULL THEN
        -- Of all series: the newest part now, the rest is marked again.
        SELECT count(*) INTO fleet FROM traksense.series;
        common := common * tstzmultirange(tstzrange(greatest(kept_from, timestamptz 'epoch'), NULL))
            * (SELECT coalesce(range_agg(r), '{}') FROM traksense.partition_ranges() AS r);
        IF NOT isempty(common) AND fleet > 0 THEN
            -- As many of the newest ranges as are so many hours; of a long one the end.
            budget := least(greatest(marks_max / fleet, 1) * hour, reach);
            SELECT range_agg(r * tstzrange(least(upper(r), now() + interval '100 years') - budget, NULL)) INTO STRICT part
            FROM (
                SELECT r, row_number() OVER (ORDER BY r DESC) AS place, max(upper(r)) OVER () AS top,
                    sum(greatest(least(upper(r), now() + interval '100 years') - lower(r), hour)) OVER (ORDER BY r DESC) AS width
                FROM unnest(common) AS r
            ) AS r
            WHERE place = 1 OR (width <= budget AND lower(r) > top - reach);
            IF fleet <= marks_max THEN
                SELECT series_ || array_agg(series_id), ranges || array_agg(r)
                    INTO series_, ranges FROM traksense.series, unnest(part) AS r;
            ELSE
                INSERT INTO traksense.dirty (series, low, high, marked_at)
                SELECT array_agg(series_id), lower(r), upper(r) - interval '1 microsecond', waited
                FROM (SELECT series_id, row_number() OVER () / marks_max AS share FROM traksense.series) AS s, unnest(part) AS r
                GROUP BY share, r;
            END IF;
            INSERT INTO traksense.dirty (low, high, marked_at)
                SELECT lower(r), upper(r) - interval '1 microsecond', waited FROM unnest(common - part) AS r;
        END IF;
    END IF;

    IF series_ IS NOT NULL THEN
        PERFORM traksense.ensure_rollup_partitions((
            SELECT range_agg(tstzrange(date_bin(hour, lower(r), 'epoch'), date_bin(hour, upper(r), 'epoch') + hour))
            FROM unnest(ranges) AS r
        ));
        FOREACH level IN ARRAY ARRAY['1m', '5m', '1h'] LOOP
            PERFORM traksense.roll_up_level(level, series_, ranges);
        END LOOP;
    END IF;
    RETURN marks;
END
$$;

COMMENT ON FUNCTION traksense.roll_up_until(marks_max integer, until timestamp with time zone) IS 'Brings the aggregates up to date with what was written, a piece at a time, the most recent first (plain PostgreSQL); returns how many marks were worked off or split, 0 if there is nothing to do, -1 if another session is at it. Call it until it returns less than 1, each time in a transaction of its own. What was marked since `until` stays.';

CREATE FUNCTION traksense.take_turn(what text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    -- First, so that what follows is decided by what the last holder has committed.
    PERFORM FROM traksense.work w WHERE w.name = what FOR UPDATE;
    -- Who holds it is at it for as long as its process runs a statement. What may not be seen of another role's is null.
    UPDATE traksense.work w
    SET holder = pg_backend_pid(),
        holder_since = (SELECT a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid())
    WHERE w.name = what AND NOT EXISTS (
        SELECT FROM pg_stat_activity a
        WHERE a.pid = w.holder AND a.pid <> pg_backend_pid() AND coalesce(a.state, 'active') = 'active'
            AND coalesce(a.backend_start = w.holder_since, true)
    );
    RETURN FOUND;
END
$$;

COMMENT ON FUNCTION traksense.take_turn(what text) IS 'Whether this session may do now what one does at a time, over several transactions; it is at it from then on.';

CREATE FUNCTION traksense.tenant_high() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN traksense.is_operator() THEN repeat(chr(1114111), 128) ELSE COALESCE(traksense.current_tenant(), ''::text) END;

COMMENT ON FUNCTION traksense.tenant_high() IS 'The last tenant_id, in "C" order, that the current session may see.';

CREATE FUNCTION traksense.tenant_low() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN traksense.is_operator() THEN ''::text ELSE COALESCE(traksense.current_tenant(), chr(1114111)) END;

COMMENT ON FUNCTION traksense.tenant_low() IS 'The first tenant_id, in "C" order, that the current session may see.';

DO $$
DECLARE
    columns constant text := '(
        series_id int NOT NULL,
        meta_id   int NULL,
        ts        timestamptz NOT NULL,
        v_num     double precision NULL,
        v_bool    boolean NULL,
        v_text    text NULL,
        qual      smallint NULL,
        meta      jsonb NULL,
        CONSTRAINT measure_pkey PRIMARY KEY (series_id, ts)
    )';
    timescaledb constant text := (
        SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'timescaledb'
    );
BEGIN
    IF timescaledb IS NULL THEN
        EXECUTE 'CREATE TABLE traksense.measure ' || columns || ' PARTITION BY RANGE (ts)';
    ELSE
        EXECUTE 'CREATE TABLE traksense.measure ' || columns;
        -- The default index on ts alone would cost 20 bytes a row and serve no query that names a series.
        EXECUTE format(
            'SELECT %I.create_hypertable(''traksense.measure'', ''ts'', '
            'chunk_time_interval => interval ''1 day'', create_default_indexes => false)',
            timescaledb
        );
    END IF;
END
$$;

SELECT traksense.keep_no_statistics('traksense.measure');

COMMENT ON TABLE traksense.measure IS 'One row for each measured value, by series and device time. A hypertable on TimescaleDB, else partitioned by ts.';

COMMENT ON COLUMN traksense.measure.meta_id IS 'The message''s meta object in traksense.meta, or null.';

COMMENT ON COLUMN traksense.measure.ts IS 'The device''s time, never ours: redelivery must find the same key.';

COMMENT ON COLUMN traksense.measure.qual IS 'Quality: 1 suspect, 2 bad; null means 0, good (a null costs no space).';

COMMENT ON COLUMN traksense.measure.meta IS 'The message''s meta object itself, for devices whose meta never repeats; it takes precedence over meta_id.';

CREATE FUNCTION traksense.timescaledb_schema() RETURNS name
    LANGUAGE sql STABLE
    BEGIN ATOMIC
 SELECT n.nspname
    FROM (pg_extension e
      JOIN pg_namespace n ON ((n.oid = e.extnamespace)))
   WHERE ((e.extname = 'timescaledb'::name) AND (( SELECT pg_class.relkind
            FROM pg_class
           WHERE (pg_class.oid = ('traksense.measure'::regclass)::oid)) <> 'p'::"char"));
END;

COMMENT ON FUNCTION traksense.timescaledb_schema() IS 'Where the functions of TimescaleDB are if it stores the measurements, else null.';

CREATE TABLE public.cmd_ack (
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    site_id text NOT NULL COLLATE pg_catalog."C",
    device_id text NOT NULL COLLATE pg_catalog."C",
    cmd_id text NOT NULL COLLATE pg_catalog."C",
    ok boolean NOT NULL,
    ts_exec timestamp with time zone,
    err text,
    payload jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT cmd_ack_cmd_id_check CHECK (((char_length(cmd_id) >= 1) AND (char_length(cmd_id) <= 128))),
    CONSTRAINT cmd_ack_device_id_check CHECK (((char_length(device_id) >= 1) AND (char_length(device_id) <= 128))),
    CONSTRAINT cmd_ack_site_id_check CHECK (((char_length(site_id) >= 1) AND (char_length(site_id) <= 128))),
    CONSTRAINT cmd_ack_tenant_id_check CHECK (((char_length(tenant_id) >= 1) AND (char_length(tenant_id) <= 128)))
);
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN site_id SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN device_id SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN cmd_id SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN ok SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN ts_exec SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN err SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN payload SET STATISTICS 0;
ALTER TABLE ONLY public.cmd_ack ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY public.cmd_ack FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE public.cmd_ack IS 'What devices answered to commands: one row for each command; a repeat updates it, an older ts_exec does not.';

COMMENT ON COLUMN public.cmd_ack.ts_exec IS 'When the device executed the command, by its own clock; null if it did not say.';

COMMENT ON COLUMN public.cmd_ack.payload IS 'The whole acknowledgement as the device sent it.';

COMMENT ON COLUMN public.cmd_ack.created_at IS 'When the first acknowledgement of the command was stored.';

COMMENT ON COLUMN public.cmd_ack.updated_at IS 'When the acknowledgement shown was stored.';

CREATE TABLE public.device_event (
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    site_id text NOT NULL COLLATE pg_catalog."C",
    device_id text NOT NULL COLLATE pg_catalog."C",
    event_id text COLLATE pg_catalog."C",
    event_type text NOT NULL COLLATE pg_catalog."C",
    ts timestamp with time zone NOT NULL,
    data jsonb,
    CONSTRAINT device_event_device_id_check CHECK (((char_length(device_id) >= 1) AND (char_length(device_id) <= 128))),
    CONSTRAINT device_event_event_id_check CHECK (((char_length(event_id) >= 1) AND (char_length(event_id) <= 128))),
    CONSTRAINT device_event_event_type_check CHECK (((char_length(event_type) >= 1) AND (char_length(event_type) <= 128))),
    CONSTRAINT device_event_site_id_check CHECK (((char_length(site_id) >= 1) AND (char_length(site_id) <= 128))),
    CONSTRAINT device_event_tenant_id_check CHECK (((char_length(tenant_id) >= 1) AND (char_length(tenant_id) <= 128)))
);
ALTER TABLE ONLY public.device_event ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY public.device_event ALTER COLUMN site_id SET STATISTICS 0;
ALTER TABLE ONLY public.device_event ALTER COLUMN device_id SET STATISTICS 0;
ALTER TABLE ONLY public.device_event ALTER COLUMN event_id SET STATISTICS 0;
ALTER TABLE ONLY public.device_event ALTER COLUMN event_type SET STATISTICS 0;
ALTER TABLE ONLY public.device_event ALTER COLUMN data SET STATISTICS 0;

ALTER TABLE ONLY public.device_event FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE public.device_event IS 'What happened on devices. An event is known again by its event_id or, if it has none, by its type and ts.';

COMMENT ON COLUMN public.device_event.ts IS 'When it happened, by the device''s own clock.';

CREATE TABLE traksense.device (
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    site_id text NOT NULL COLLATE pg_catalog."C",
    device_id text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen_at timestamp with time zone,
    CONSTRAINT device_device_id_check CHECK (((char_length(device_id) >= 1) AND (char_length(device_id) <= 128))),
    CONSTRAINT device_site_id_check CHECK (((char_length(site_id) >= 1) AND (char_length(site_id) <= 128)))
)
WITH (fillfactor='80');
ALTER TABLE ONLY traksense.device ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.device ALTER COLUMN site_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.device ALTER COLUMN device_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.device ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY traksense.device FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE traksense.device IS 'The devices seen or registered. With INGEST_PROVISIONING=strict, only these may publish.';

COMMENT ON COLUMN traksense.device.last_seen_at IS 'When a message of the device was last received (our clock), or null.';

CREATE VIEW public.device_status WITH (security_barrier='true') AS
 SELECT tenant_id,
    site_id,
    device_id,
    created_at AS first_seen_at,
    last_seen_at,
    COALESCE((last_seen_at > (now() - ( SELECT (setting.value)::interval AS value
           FROM traksense.setting
          WHERE (setting.name = 'online_within'::text)))), false) AS online
   FROM traksense.device d
  WHERE ((tenant_id >= (traksense.tenant_low() COLLATE "C")) AND (tenant_id <= (traksense.tenant_high() COLLATE "C")));

COMMENT ON VIEW public.device_status IS 'Each device, when it was last heard, and whether that is recent.';

COMMENT ON COLUMN public.device_status.first_seen_at IS 'When it was registered.';

COMMENT ON COLUMN public.device_status.last_seen_at IS 'When a message of it was last received, whatever was in it, by our clock; written about every half minute.';

COMMENT ON COLUMN public.device_status.online IS 'Whether last_seen_at is less than five minutes ago (setting online_within).';

CREATE TABLE public.ingest_errors (
    id bigint NOT NULL,
    tenant_id text COLLATE pg_catalog."C",
    topic text NOT NULL,
    payload bytea NOT NULL,
    reason text NOT NULL COLLATE pg_catalog."C",
    detail text,
    ts timestamp with time zone DEFAULT now() NOT NULL,
    replayed_at timestamp with time zone,
    digest bytea NOT NULL,
    repeats integer DEFAULT 0 NOT NULL,
    last_ts timestamp with time zone,
    CONSTRAINT ingest_errors_digest_check CHECK (((octet_length(digest) >= 16) AND (octet_length(digest) <= 64))),
    CONSTRAINT ingest_errors_reason_check CHECK (((char_length(reason) >= 1) AND (char_length(reason) <= 64))),
    CONSTRAINT ingest_errors_tenant_id_check CHECK (((char_length(tenant_id) >= 1) AND (char_length(tenant_id) <= 128)))
);
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN topic SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN payload SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN detail SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN replayed_at SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN digest SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN repeats SET STATISTICS 0;
ALTER TABLE ONLY public.ingest_errors ALTER COLUMN last_ts SET STATISTICS 0;

ALTER TABLE ONLY public.ingest_errors FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE public.ingest_errors IS 'Dead letters: the messages that could not be stored as what they claim to be.';

COMMENT ON COLUMN public.ingest_errors.tenant_id IS 'Null if the topic does not name one; only operators see those.';

COMMENT ON COLUMN public.ingest_errors.topic IS 'The topic; bytes that are not UTF-8 appear as backslash escapes.';

COMMENT ON COLUMN public.ingest_errors.payload IS 'The exact bytes.';

COMMENT ON COLUMN public.ingest_errors.reason IS 'A short code of a closed set.';

COMMENT ON COLUMN public.ingest_errors.ts IS 'When it was first received.';

COMMENT ON COLUMN public.ingest_errors.replayed_at IS 'When it was last sent through the pipeline again, or null.';

COMMENT ON COLUMN public.ingest_errors.digest IS 'Computed by the service over topic and payload: the same bytes on the same topic are one dead letter.';

COMMENT ON COLUMN public.ingest_errors.repeats IS 'How often the same message came again.';

COMMENT ON COLUMN public.ingest_errors.last_ts IS 'When it last came again, or null.';

ALTER TABLE public.ingest_errors ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.ingest_errors_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE traksense.meta (
    meta_id integer NOT NULL,
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    digest bytea NOT NULL,
    doc jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT meta_digest_check CHECK ((octet_length(digest) = 16))
);
ALTER TABLE ONLY traksense.meta ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.meta ALTER COLUMN digest SET STATISTICS 0;
ALTER TABLE ONLY traksense.meta ALTER COLUMN doc SET STATISTICS 0;
ALTER TABLE ONLY traksense.meta ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY traksense.meta FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE traksense.meta IS 'The meta objects that messages repeat, each once for its tenant.';

COMMENT ON COLUMN traksense.meta.digest IS 'Computed by the service over the bytes of the object; the database only compares it.';

CREATE TABLE traksense.series (
    series_id integer NOT NULL,
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    site_id text NOT NULL COLLATE pg_catalog."C",
    device_id text NOT NULL COLLATE pg_catalog."C",
    point_id text NOT NULL COLLATE pg_catalog."C",
    unit text COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT series_point_id_check CHECK (((char_length(point_id) >= 1) AND (char_length(point_id) <= 128))),
    CONSTRAINT series_unit_check CHECK ((char_length(unit) <= 64))
);
ALTER TABLE ONLY traksense.series ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.series ALTER COLUMN site_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.series ALTER COLUMN device_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.series ALTER COLUMN point_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.series ALTER COLUMN unit SET STATISTICS 0;
ALTER TABLE ONLY traksense.series ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY traksense.series FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE traksense.series IS 'One row for each point of a device in one unit: the names that traksense.measure does not repeat on every row.';

COMMENT ON COLUMN traksense.series.unit IS 'Null if the device gave none, which is one series like any other unit.';

CREATE VIEW public.latest WITH (security_barrier='true') AS
 SELECT n.tenant_id,
    n.site_id,
    n.device_id,
    n.point_id,
    n.ts,
    traksense.opaque(n.v_num) AS v_num,
    traksense.opaque(n.v_bool) AS v_bool,
    traksense.opaque(n.v_text) AS v_text,
    n.unit,
    traksense.opaque(COALESCE(n.qual, (0)::smallint)) AS qual,
    COALESCE(n.meta, d.doc) AS meta
   FROM (( SELECT DISTINCT ON (s.tenant_id, s.site_id, s.device_id, s.point_id) s.tenant_id,
            s.site_id,
            s.device_id,
            s.point_id,
            s.unit,
            m.ts,
            m.v_num,
            m.v_bool,
            m.v_text,
            m.qual,
            m.meta,
            m.meta_id
           FROM (traksense.series s
             CROSS JOIN LATERAL ( SELECT l.series_id,
                    l.meta_id,
                    l.ts,
                    l.v_num,
                    l.v_bool,
                    l.v_text,
                    l.qual,
                    l.meta
                   FROM traksense.measure l
                  WHERE (l.series_id = s.series_id)
                  ORDER BY l.ts DESC
                 LIMIT 1) m)
          WHERE ((s.tenant_id >= (traksense.tenant_low() COLLATE "C")) AND (s.tenant_id <= (traksense.tenant_high() COLLATE "C")))
          ORDER BY s.tenant_id, s.site_id, s.device_id, s.point_id, m.ts DESC, s.series_id DESC) n
     LEFT JOIN traksense.meta d ON (((d.meta_id = n.meta_id) AND (d.tenant_id = n.tenant_id))));

COMMENT ON VIEW public.latest IS 'The newest value of each point, by the device''s time, whatever its unit.';

COMMENT ON COLUMN public.latest.ts IS 'The device''s time.';

CREATE VIEW public.ts_measure WITH (security_barrier='true') AS
 SELECT s.tenant_id,
    s.site_id,
    s.device_id,
    s.point_id,
    m.ts,
    traksense.opaque(m.v_num) AS v_num,
    traksense.opaque(m.v_bool) AS v_bool,
    traksense.opaque(m.v_text) AS v_text,
    s.unit,
    traksense.opaque(COALESCE(m.qual, (0)::smallint)) AS qual,
    COALESCE(m.meta, d.doc) AS meta
   FROM ((traksense.series s
     JOIN traksense.measure m ON ((m.series_id = s.series_id)))
     LEFT JOIN traksense.meta d ON (((d.meta_id = m.meta_id) AND (d.tenant_id = s.tenant_id))))
  WHERE ((s.tenant_id >= (traksense.tenant_low() COLLATE "C")) AND (s.tenant_id <= (traksense.tenant_high() COLLATE "C")));

COMMENT ON VIEW public.ts_measure IS 'Every measured value of the tenant in app.tenant_id (SET app.tenant_id = ''...''); nothing if unset; all for operators.';

COMMENT ON COLUMN public.ts_measure.ts IS 'The device''s time.';

COMMENT ON COLUMN public.ts_measure.v_num IS 'The value if it is a number, or the double nearest to it; then v_text has its digits, if the double does not say them.';

COMMENT ON COLUMN public.ts_measure.v_bool IS 'The value if it is true or false.';

COMMENT ON COLUMN public.ts_measure.v_text IS 'The value if it is a text or a member of an enumeration.';

COMMENT ON COLUMN public.ts_measure.qual IS 'Quality: 0 good, 1 suspect, 2 bad.';

COMMENT ON COLUMN public.ts_measure.meta IS 'The meta object of the message that brought the value.';

DO $$
DECLARE
    timescaledb constant text := (
        SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'timescaledb'
            AND (SELECT relkind FROM pg_catalog.pg_class WHERE oid = 'traksense.measure'::regclass) <> 'p'
    );
    level  text;
    width  interval;
    source text;
BEGIN
    FOR level, width, source IN VALUES
        ('1m', interval '1 minute', 'measure'), ('5m', interval '5 minutes', 'rollup_1m'), ('1h', interval '1 hour', 'rollup_5m')
    LOOP
        IF timescaledb IS NULL THEN
            EXECUTE format(
                'CREATE TABLE traksense.%I (
                    series_id int NOT NULL,
                    bucket    timestamptz NOT NULL,
                    v_sum     double precision NOT NULL,
                    v_min     double precision NOT NULL,
                    v_max     double precision NOT NULL,
                    v_count   bigint NOT NULL,
                    CONSTRAINT %I PRIMARY KEY (series_id, bucket)
                ) PARTITION BY RANGE (bucket)',
                'rollup_' || level, 'rollup_' || level || '_pkey'
            );
        ELSIF source = 'measure' THEN
            EXECUTE format(
                'CREATE MATERIALIZED VIEW traksense.%I
                WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
                SELECT series_id, %I.time_bucket(interval %L, ts) AS bucket,
                    sum(v_num) AS v_sum, min(v_num) AS v_min, max(v_num) AS v_max, count(v_num) AS v_count
                FROM traksense.measure WHERE v_num IS NOT NULL GROUP BY 1, 2 WITH NO DATA',
                'rollup_' || level, timescaledb, width
            );
        ELSE
            EXECUTE format(
                'CREATE MATERIALIZED VIEW traksense.%I
                WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
                SELECT series_id, %I.time_bucket(interval %L, bucket) AS bucket,
                    sum(v_sum) AS v_sum, min(v_min) AS v_min, max(v_max) AS v_max, sum(v_count)::bigint AS v_count
                FROM traksense.%I GROUP BY 1, 2 WITH NO DATA',
                'rollup_' || level, timescaledb, width, source
            );
        END IF;
        EXECUTE format(
            'COMMENT ON %s traksense.%I IS %L',
            CASE WHEN timescaledb IS NULL THEN 'TABLE' ELSE 'VIEW' END,
            'rollup_' || level,
            format('Sum, minimum, maximum and count of the numbers by series and %s.', width)
        );
        IF timescaledb IS NULL THEN
            PERFORM traksense.keep_no_statistics(format('traksense.%I', 'rollup_' || level)::regclass);
        ELSE
            -- No statistics to switch off: the table behind it takes no such ALTER, and opaque() in the views keeps conditions
            -- on values away from it. The open bucket too, so that both engines show the same. `lifecycle apply` narrows the window to the retention.
            EXECUTE format(
                'SELECT %I.add_continuous_aggregate_policy(%L, start_offset => NULL, end_offset => NULL,
                    schedule_interval => interval ''1 minute'')',
                timescaledb, 'traksense.rollup_' || level
            );
        END IF;
    END LOOP;
END
$$;

CREATE VIEW public.ts_measure_1h WITH (security_barrier='true') AS
 SELECT r.bucket,
    s.tenant_id,
    s.site_id,
    s.device_id,
    s.point_id,
    traksense.opaque((r.v_sum / (r.v_count)::double precision)) AS v_avg,
    traksense.opaque(r.v_min) AS v_min,
    traksense.opaque(r.v_max) AS v_max,
    traksense.opaque(r.v_count) AS v_count,
    s.unit
   FROM (traksense.series s
     JOIN traksense.rollup_1h r ON ((r.series_id = s.series_id)))
  WHERE ((s.tenant_id >= (traksense.tenant_low() COLLATE "C")) AND (s.tenant_id <= (traksense.tenant_high() COLLATE "C")));

COMMENT ON VIEW public.ts_measure_1h IS 'The numbers of public.ts_measure by 1 hour and point; bucket is the start, in device time, UTC.';

COMMENT ON COLUMN public.ts_measure_1h.unit IS 'The unit of the values, or null: a point in two units has two rows for each bucket.';

CREATE VIEW public.ts_measure_1m WITH (security_barrier='true') AS
 SELECT r.bucket,
    s.tenant_id,
    s.site_id,
    s.device_id,
    s.point_id,
    traksense.opaque((r.v_sum / (r.v_count)::double precision)) AS v_avg,
    traksense.opaque(r.v_min) AS v_min,
    traksense.opaque(r.v_max) AS v_max,
    traksense.opaque(r.v_count) AS v_count,
    s.unit
   FROM (traksense.series s
     JOIN traksense.rollup_1m r ON ((r.series_id = s.series_id)))
  WHERE ((s.tenant_id >= (traksense.tenant_low() COLLATE "C")) AND (s.tenant_id <= (traksense.tenant_high() COLLATE "C")));

COMMENT ON VIEW public.ts_measure_1m IS 'The numbers of public.ts_measure by 1 minute and point; bucket is the start, in device time, UTC.';

COMMENT ON COLUMN public.ts_measure_1m.unit IS 'The unit of the values, or null: a point in two units has two rows for each bucket.';

CREATE VIEW public.ts_measure_5m WITH (security_barrier='true') AS
 SELECT r.bucket,
    s.tenant_id,
    s.site_id,
    s.device_id,
    s.point_id,
    traksense.opaque((r.v_sum / (r.v_count)::double precision)) AS v_avg,
    traksense.opaque(r.v_min) AS v_min,
    traksense.opaque(r.v_max) AS v_max,
    traksense.opaque(r.v_count) AS v_count,
    s.unit
   FROM (traksense.series s
     JOIN traksense.rollup_5m r ON ((r.series_id = s.series_id)))
  WHERE ((s.tenant_id >= (traksense.tenant_low() COLLATE "C")) AND (s.tenant_id <= (traksense.tenant_high() COLLATE "C")));

COMMENT ON VIEW public.ts_measure_5m IS 'The numbers of public.ts_measure by 5 minutes and point; bucket is the start, in device time, UTC.';

COMMENT ON COLUMN public.ts_measure_5m.unit IS 'The unit of the values, or null: a point in two units has two rows for each bucket.';

CREATE TABLE traksense.dictionary_epoch (
    one boolean DEFAULT true NOT NULL,
    epoch uuid DEFAULT gen_random_uuid() NOT NULL,
    CONSTRAINT dictionary_epoch_one_check CHECK (one)
);

COMMENT ON TABLE traksense.dictionary_epoch IS 'One row; its epoch changes with every deletion, renaming or truncation of tenants, devices, series and meta objects.';

CREATE TABLE traksense.ingest_session (
    client_id text NOT NULL,
    broker text NOT NULL,
    connected_at timestamp with time zone NOT NULL,
    last_alive_at timestamp with time zone NOT NULL,
    held text[] DEFAULT '{}'::text[] NOT NULL,
    claimed text[] DEFAULT '{}'::text[] NOT NULL,
    left_at timestamp with time zone,
    broker_started_at timestamp with time zone,
    broker_dropped numeric(20,0),
    broker_denies_session boolean DEFAULT false NOT NULL
);

COMMENT ON TABLE traksense.ingest_session IS 'The broker sessions that the service has had: if the broker no longer knows one, its queue is lost, and we can say so.';

COMMENT ON COLUMN traksense.ingest_session.broker IS 'host:port, without credentials.';

COMMENT ON COLUMN traksense.ingest_session.held IS 'Topic filters that the session may have at the broker: those of its configuration, and older ones until UNSUBACK.';

COMMENT ON COLUMN traksense.ingest_session.claimed IS 'Topic filters of its configuration, granted by the broker: others may give these up.';

COMMENT ON COLUMN traksense.ingest_session.left_at IS 'When the service ended its last connection in good order; nobody uses the session if last_alive_at is not later.';

COMMENT ON COLUMN traksense.ingest_session.broker_started_at IS 'When the broker was started, at the latest; NULL if it has never told its uptime.';

COMMENT ON COLUMN traksense.ingest_session.broker_dropped IS 'How many messages the broker had dropped since then, by its own count; NULL if it has never told.';

COMMENT ON COLUMN traksense.ingest_session.broker_denies_session IS 'Whether the broker has said that it had no session for us, and delivered what was queued in it: its word is not taken.';

ALTER TABLE traksense.meta ALTER COLUMN meta_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME traksense.meta_meta_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE traksense.schema_version (
    version integer NOT NULL,
    name text NOT NULL,
    checksum text,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE traksense.schema_version IS 'The migrations that were applied.';

COMMENT ON COLUMN traksense.schema_version.checksum IS 'SHA-256 of the file (hex), written by `traksense migrate`; null if psql ran it, until the next `traksense migrate`.';

ALTER TABLE traksense.series ALTER COLUMN series_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME traksense.series_series_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE traksense.tenant (
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT tenant_tenant_id_check CHECK (((char_length(tenant_id) >= 1) AND (char_length(tenant_id) <= 128)))
);
ALTER TABLE ONLY traksense.tenant ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.tenant ALTER COLUMN created_at SET STATISTICS 0;

ALTER TABLE ONLY traksense.tenant FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE traksense.tenant IS 'The tenants seen or registered.';

CREATE TABLE traksense.tenant_retention (
    tenant_id text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL,
    keep interval,
    CONSTRAINT tenant_retention_kind_check CHECK ((kind = ANY (ARRAY['events'::text, 'acks'::text, 'errors'::text]))),
    CONSTRAINT tenant_retention_tenant_id_check CHECK (((char_length(tenant_id) >= 1) AND (char_length(tenant_id) <= 128)))
);
ALTER TABLE ONLY traksense.tenant_retention ALTER COLUMN tenant_id SET STATISTICS 0;
ALTER TABLE ONLY traksense.tenant_retention ALTER COLUMN kind SET STATISTICS 0;
ALTER TABLE ONLY traksense.tenant_retention ALTER COLUMN keep SET STATISTICS 0;

ALTER TABLE ONLY traksense.tenant_retention FORCE ROW LEVEL SECURITY;

COMMENT ON TABLE traksense.tenant_retention IS 'Tenants whose events, acks or dead letters are kept for another time than the setting says; null is for ever. Measurements are dropped by whole partitions or chunks, which all tenants share.';

ALTER TABLE ONLY public.cmd_ack
    ADD CONSTRAINT cmd_ack_pkey PRIMARY KEY (tenant_id, device_id, cmd_id);

ALTER TABLE ONLY public.ingest_errors
    ADD CONSTRAINT ingest_errors_digest_key UNIQUE NULLS NOT DISTINCT (tenant_id, digest);

ALTER TABLE ONLY public.ingest_errors
    ADD CONSTRAINT ingest_errors_pkey PRIMARY KEY (id);

ALTER TABLE ONLY traksense.device
    ADD CONSTRAINT device_pkey PRIMARY KEY (tenant_id, site_id, device_id);

ALTER TABLE ONLY traksense.dictionary_epoch
    ADD CONSTRAINT dictionary_epoch_pkey PRIMARY KEY (one);

ALTER TABLE ONLY traksense.ingest_session
    ADD CONSTRAINT ingest_session_pkey PRIMARY KEY (client_id);

ALTER TABLE ONLY traksense.meta
    ADD CONSTRAINT meta_pkey PRIMARY KEY (meta_id);

ALTER TABLE ONLY traksense.meta
    ADD CONSTRAINT meta_tenant_id_digest_key UNIQUE (tenant_id, digest);

ALTER TABLE ONLY traksense.schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (version);

ALTER TABLE ONLY traksense.series
    ADD CONSTRAINT series_name_key UNIQUE NULLS NOT DISTINCT (device_id, tenant_id, site_id, point_id, unit);

ALTER TABLE ONLY traksense.series
    ADD CONSTRAINT series_pkey PRIMARY KEY (series_id);

ALTER TABLE ONLY traksense.setting
    ADD CONSTRAINT setting_pkey PRIMARY KEY (name);

ALTER TABLE ONLY traksense.step
    ADD CONSTRAINT step_pkey PRIMARY KEY (name);

ALTER TABLE ONLY traksense.tenant
    ADD CONSTRAINT tenant_pkey PRIMARY KEY (tenant_id);

ALTER TABLE ONLY traksense.tenant_retention
    ADD CONSTRAINT tenant_retention_pkey PRIMARY KEY (tenant_id, kind);

ALTER TABLE ONLY traksense.work
    ADD CONSTRAINT work_pkey PRIMARY KEY (name);

CREATE INDEX cmd_ack_updated_idx ON public.cmd_ack USING btree (tenant_id, updated_at);

CREATE UNIQUE INDEX device_event_id_key ON public.device_event USING btree (tenant_id, site_id, device_id, event_id) WHERE (event_id IS NOT NULL);

CREATE INDEX device_event_ts_idx ON public.device_event USING btree (tenant_id, ts);

CREATE UNIQUE INDEX device_event_ts_key ON public.device_event USING btree (tenant_id, site_id, device_id, event_type, ts) WHERE (event_id IS NULL);

CREATE INDEX ingest_errors_reason_idx ON public.ingest_errors USING btree (tenant_id, reason, ts);

CREATE INDEX ingest_errors_tenant_idx ON public.ingest_errors USING btree (tenant_id, ts);

CREATE INDEX ingest_errors_ts_idx ON public.ingest_errors USING btree (ts);

CREATE INDEX dirty_high_idx ON traksense.dirty USING btree (high);

CREATE INDEX series_tenant_idx ON traksense.series USING btree (tenant_id, device_id, site_id, point_id, unit);

CREATE TRIGGER delete_points AFTER DELETE ON traksense.series REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION traksense.delete_points_of_series();

ALTER TABLE traksense.series ENABLE ALWAYS TRIGGER delete_points;

CREATE TRIGGER dictionary_changes BEFORE DELETE OR UPDATE OF tenant_id, site_id, device_id OR TRUNCATE ON traksense.device FOR EACH STATEMENT EXECUTE FUNCTION traksense.dictionary_changes();

ALTER TABLE traksense.device ENABLE ALWAYS TRIGGER dictionary_changes;

CREATE TRIGGER dictionary_changes BEFORE DELETE OR UPDATE OF tenant_id, digest OR TRUNCATE ON traksense.meta FOR EACH STATEMENT EXECUTE FUNCTION traksense.dictionary_changes();

ALTER TABLE traksense.meta ENABLE ALWAYS TRIGGER dictionary_changes;

CREATE TRIGGER dictionary_changes BEFORE DELETE OR UPDATE OF tenant_id, site_id, device_id, point_id, unit OR TRUNCATE ON traksense.series FOR EACH STATEMENT EXECUTE FUNCTION traksense.dictionary_changes();

ALTER TABLE traksense.series ENABLE ALWAYS TRIGGER dictionary_changes;

CREATE TRIGGER dictionary_changes BEFORE DELETE OR UPDATE OF tenant_id OR TRUNCATE ON traksense.tenant FOR EACH STATEMENT EXECUTE FUNCTION traksense.dictionary_changes();

ALTER TABLE traksense.tenant ENABLE ALWAYS TRIGGER dictionary_changes;

CREATE TRIGGER refuse_nameless_points AFTER TRUNCATE ON traksense.series FOR EACH STATEMENT EXECUTE FUNCTION traksense.refuse_nameless_points();

ALTER TABLE ONLY traksense.device
    ADD CONSTRAINT device_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES traksense.tenant(tenant_id);

ALTER TABLE ONLY traksense.meta
    ADD CONSTRAINT meta_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES traksense.tenant(tenant_id);

ALTER TABLE ONLY traksense.series
    ADD CONSTRAINT series_device_fkey FOREIGN KEY (tenant_id, site_id, device_id) REFERENCES traksense.device(tenant_id, site_id, device_id) ON UPDATE CASCADE ON DELETE CASCADE;

ALTER TABLE public.cmd_ack ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.device_event ENABLE ROW LEVEL SECURITY;

ALTER TABLE public.ingest_errors ENABLE ROW LEVEL SECURITY;

CREATE POLICY operator ON public.cmd_ack TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE POLICY operator ON public.device_event TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE POLICY operator ON public.ingest_errors TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE POLICY tenant ON public.cmd_ack USING ((tenant_id = traksense.current_tenant())) WITH CHECK ((tenant_id = traksense.current_tenant()));

CREATE POLICY tenant ON public.device_event USING ((tenant_id = traksense.current_tenant())) WITH CHECK ((tenant_id = traksense.current_tenant()));

CREATE POLICY tenant ON public.ingest_errors USING ((tenant_id = traksense.current_tenant())) WITH CHECK ((tenant_id = traksense.current_tenant()));

ALTER TABLE traksense.device ENABLE ROW LEVEL SECURITY;

ALTER TABLE traksense.meta ENABLE ROW LEVEL SECURITY;

CREATE POLICY operator ON traksense.device TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE POLICY operator ON traksense.meta TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE POLICY operator ON traksense.series TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE POLICY operator ON traksense.tenant TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE POLICY operator ON traksense.tenant_retention TO CURRENT_USER USING (true) WITH CHECK (true);

ALTER TABLE traksense.operator_marker ENABLE ROW LEVEL SECURITY;

ALTER TABLE traksense.series ENABLE ROW LEVEL SECURITY;

CREATE POLICY tenant ON traksense.device USING ((tenant_id = traksense.current_tenant())) WITH CHECK ((tenant_id = traksense.current_tenant()));

CREATE POLICY tenant ON traksense.meta USING ((tenant_id = traksense.current_tenant())) WITH CHECK ((tenant_id = traksense.current_tenant()));

CREATE POLICY tenant ON traksense.series USING ((tenant_id = traksense.current_tenant())) WITH CHECK ((tenant_id = traksense.current_tenant()));

ALTER TABLE traksense.tenant ENABLE ROW LEVEL SECURITY;

CREATE POLICY tenant ON traksense.tenant USING ((tenant_id = traksense.current_tenant())) WITH CHECK ((tenant_id = traksense.current_tenant()));

ALTER TABLE traksense.tenant_retention ENABLE ROW LEVEL SECURITY;

REVOKE ALL ON FUNCTION traksense.advance_sequences() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.compress_next() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.count_series(at_most bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.delete_points_of_series() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.dictionary_changes() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.dictionary_token() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.differing_events(tenants text[], devices text[], ids text[], types text[], instants timestamp with time zone[], contents text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.differing_events(tenants text[], sites text[], devices text[], ids text[], types text[], instants timestamp with time zone[], contents text[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.drop_expired() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.drop_expired(level text) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.end_step(step text, failure text) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.end_turn(what text) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ensure_partitions(instants timestamp with time zone[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ensure_partitions(from_ts timestamp with time zone, to_ts timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.fill_partitions(parent text, wanted tstzmultirange, finest text, most integer) FROM PUBLIC;

REVOKE ALL ON PROCEDURE traksense.hold_dictionary(IN token text, IN session text) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ingest_tenants() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.keep_no_statistics(relation regclass) FROM PUBLIC;

REVOKE ALL ON PROCEDURE traksense.lifecycle_job(IN job_id integer, IN config jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.maintenance_state() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.mark_dirty(from_ts timestamp with time zone, to_ts timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.partition_ranges() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.purge_expired(rows_max integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ranges_of(parent regclass) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.refreshed_from() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.refuse_nameless_points() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.replace_points(series integer[], instants timestamp with time zone[], numbers double precision[], truths boolean[], texts text[], quals smallint[], meta_ids integer[], metas jsonb[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.roll_up(marks_max integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.roll_up_level(level text, series integer[], ranges tstzrange[]) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.roll_up_until(marks_max integer, until timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.take_turn(what text) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.timescaledb_schema() FROM PUBLIC;

DO $$
BEGIN
    IF traksense.timescaledb_schema() IS NOT NULL THEN
        ALTER TABLE traksense.measure SET (
            timescaledb.compress, timescaledb.compress_segmentby = 'series_id', timescaledb.compress_orderby = 'ts DESC'
        );
        EXECUTE format(
            'SELECT %I.add_job(''traksense.lifecycle_job'', interval ''1 hour'', initial_start => now() + interval ''10 minutes'')',
            traksense.timescaledb_schema()
        );
    END IF;
END
$$;

DO $$
DECLARE
    level text;
BEGIN
    IF traksense.timescaledb_schema() IS NOT NULL THEN
        FOREACH level IN ARRAY ARRAY['1m', '5m', '1h'] LOOP
            EXECUTE format(
                'ALTER MATERIALIZED VIEW traksense.%I SET (
                    timescaledb.compress, timescaledb.compress_segmentby = ''series_id'', timescaledb.compress_orderby = ''bucket DESC''
                )',
                'rollup_' || level
            );
        END LOOP;
    END IF;
END
$$;

DO $$
DECLARE
    timescaledb constant name := traksense.timescaledb_schema();
    level text;
BEGIN
    INSERT INTO traksense.work (name) VALUES ('partitions'), ('aggregate'), ('drop'), ('purge');
    IF timescaledb IS NULL THEN
        INSERT INTO traksense.step (name) VALUES ('aggregate'), ('partitions'), ('drop'), ('purge');
        RETURN;
    END IF;
    INSERT INTO traksense.step (name) VALUES ('aggregate'), ('drop'), ('purge'), ('compress');
    FOREACH level IN ARRAY ARRAY['1m', '5m', '1h'] LOOP
        EXECUTE format(
            'SELECT %I.remove_continuous_aggregate_policy(%L::regclass, if_exists => true)', timescaledb, 'traksense.rollup_' || level
        );
    END LOOP;
    EXECUTE format(
        $sql$
        CREATE PROCEDURE traksense.refresh_aggregates(job_id int DEFAULT NULL, config jsonb DEFAULT NULL)
            LANGUAGE plpgsql
        AS $body$
        DECLARE
            start timestamptz;
        BEGIN
            WHILE NOT traksense.take_turn('aggregate') LOOP
                COMMIT;
                PERFORM pg_catalog.pg_sleep(0.2);
            END LOOP;
            COMMIT;
            start := traksense.refreshed_from();
            -- What a level has changed is known to the next one when it is committed.
            CALL %1$I.refresh_continuous_aggregate('traksense.rollup_1m', start, NULL);
            COMMIT;
            CALL %1$I.refresh_continuous_aggregate('traksense.rollup_5m', start, NULL);
            COMMIT;
            CALL %1$I.refresh_continuous_aggregate('traksense.rollup_1h', start, NULL);
            COMMIT;
            PERFORM traksense.end_step('aggregate');
            PERFORM traksense.end_turn('aggregate');
            COMMIT;
        END
        $body$
        $sql$,
        timescaledb
    );
    COMMENT ON PROCEDURE traksense.refresh_aggregates IS
        'Brings the aggregates up to date, level by level; waits for a session that is at it (a job of TimescaleDB).';
    REVOKE ALL ON PROCEDURE traksense.refresh_aggregates(int, jsonb) FROM PUBLIC;
    -- In fixed slots: a job that fails is then tried again in the next one, not later and later.
    EXECUTE format(
        'SELECT %I.add_job(''traksense.refresh_aggregates'', interval ''1 minute'', fixed_schedule => true, initial_start => now())',
        timescaledb
    );
END
$$;

INSERT INTO traksense.setting (name, value) VALUES ('compress_after', '7 days');
INSERT INTO traksense.setting (name, value) VALUES ('compress_aggregates_after', '7 days');
INSERT INTO traksense.setting (name, value) VALUES ('online_within', '5 minutes');
INSERT INTO traksense.setting (name, value) VALUES ('partition_daily_within', '40 days');
INSERT INTO traksense.setting (name, value) VALUES ('partition_monthly_within', '2 years');
INSERT INTO traksense.setting (name, value) VALUES ('raw_dropped_before', '-infinity');
INSERT INTO traksense.setting (name, value) VALUES ('retain_1h', '');
INSERT INTO traksense.setting (name, value) VALUES ('retain_1m', '');
INSERT INTO traksense.setting (name, value) VALUES ('retain_5m', '');
INSERT INTO traksense.setting (name, value) VALUES ('retain_acks', '');
INSERT INTO traksense.setting (name, value) VALUES ('retain_errors', '14 days');
INSERT INTO traksense.setting (name, value) VALUES ('retain_events', '');
INSERT INTO traksense.setting (name, value) VALUES ('retain_grace', '1 day');
INSERT INTO traksense.setting (name, value) VALUES ('retain_raw', '');
INSERT INTO traksense.schema_version (version, name) VALUES (1, 'first_schema');
INSERT INTO traksense.schema_version (version, name) VALUES (2, 'walls');
INSERT INTO traksense.schema_version (version, name) VALUES (3, 'rollups');
INSERT INTO traksense.schema_version (version, name) VALUES (4, 'lifecycle');
INSERT INTO traksense.schema_version (version, name) VALUES (5, 'latest');
INSERT INTO traksense.schema_version (version, name) VALUES (6, 'compressed_rollups');
INSERT INTO traksense.schema_version (version, name) VALUES (7, 'subscriptions');
INSERT INTO traksense.schema_version (version, name) VALUES (8, 'dictionary_under_change');
INSERT INTO traksense.schema_version (version, name) VALUES (9, 'latest_of_a_point');
INSERT INTO traksense.schema_version (version, name) VALUES (10, 'bounded_background_work');
INSERT INTO traksense.schema_version (version, name) VALUES (11, 'names_deleted_and_restored');
INSERT INTO traksense.schema_version (version, name) VALUES (12, 'events_of_sites');
INSERT INTO traksense.schema_version (version, name) VALUES (13, 'repeated_events');
INSERT INTO traksense.schema_version (version, name) VALUES (14, 'points_of_a_device');
INSERT INTO traksense.schema_version (version, name) VALUES (15, 'units_of_a_point');
INSERT INTO traksense.schema_version (version, name) VALUES (16, 'what_a_session_left');
INSERT INTO traksense.dictionary_epoch DEFAULT VALUES;

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
