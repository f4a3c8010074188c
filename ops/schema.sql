-- traksense: the whole schema, as migrations 1 to 7 and roles.sql make it, with TimescaleDB and without.
--
-- For reading. `traksense migrate` applies the migrations in sql/, which say why things are as they are. On an empty
-- database psql makes the same of this file, and `traksense migrate` goes on from there:
--     psql -v ON_ERROR_STOP=1 -f ops/schema.sql
--
-- Made by `python -m traksense.tools.schema`: do not edit.

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

CREATE FUNCTION traksense.current_tenant() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN NULLIF(current_setting('app.tenant_id'::text, true), ''::text);

COMMENT ON FUNCTION traksense.current_tenant() IS 'The tenant that the session named with SET app.tenant_id, or null.';

CREATE FUNCTION traksense.drop_expired() RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    SET lock_timeout TO '3s'
    AS $_$
DECLARE
    level   text;
    parent  regclass;
    expired record;
    cut     timestamptz;
    grace   interval;
BEGIN
    IF NOT pg_try_advisory_xact_lock(1953653099, 4) THEN
        RETURN;
    END IF;
    SELECT value::interval INTO STRICT grace FROM traksense.setting WHERE name = 'retain_grace';
    FOREACH level IN ARRAY ARRAY['raw', '1m', '5m', '1h'] LOOP
        parent := CASE level WHEN 'raw' THEN 'traksense.measure' ELSE 'traksense.rollup_' || level END;
        SELECT now() - nullif(value, '')::interval - grace INTO cut FROM traksense.setting WHERE name = 'retain_' || level;
        CONTINUE WHEN cut IS NULL;
        BEGIN
            IF traksense.timescaledb_schema() IS NOT NULL THEN
                RETURN QUERY EXECUTE format(
                    'SELECT %I.drop_chunks(%L::regclass, older_than => %L::timestamptz)::text',
                    traksense.timescaledb_schema(), parent, cut
                );
                CONTINUE;
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
                ORDER BY 2
            LOOP
                IF level = 'raw' THEN
                    UPDATE traksense.setting SET value = greatest(value::timestamptz, expired.upper)::text
                    WHERE name = 'raw_dropped_before';
                END IF;
                EXECUTE format('DROP TABLE %s', expired.partition);
                RETURN NEXT expired.partition::text;
            END LOOP;
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'traksense: % is in use: what has expired is dropped next time', parent;
        END;
    END LOOP;
END
$_$;

COMMENT ON FUNCTION traksense.drop_expired() IS 'Drops the partitions or chunks of raw points and aggregates that are older than the policy keeps; returns their names.';

CREATE FUNCTION traksense.ensure_partitions(from_ts timestamp with time zone, to_ts timestamp with time zone) RETURNS SETOF tstzrange
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    AS $$
DECLARE
    wanted    tstzrange;
    covered   tstzmultirange;
    daily     tstzrange;
    missing   timestamptz := from_ts;
    whole     tstzrange;
    partition text;
BEGIN
    IF from_ts IS NULL OR to_ts IS NULL OR NOT isfinite(from_ts) OR NOT isfinite(to_ts) OR from_ts > to_ts THEN
        RAISE EXCEPTION 'ensure_partitions: not a finite range: % to %', from_ts, to_ts USING ERRCODE = '22023';
    END IF;
    wanted := tstzrange(from_ts, to_ts, CASE WHEN from_ts = to_ts THEN '[]' ELSE '[)' END);
    SELECT range_agg(r) INTO covered FROM traksense.partition_ranges() AS r;
    IF NOT coalesce(covered @> wanted, false) THEN
        -- The second key is 2 here and 1 in traksense/store/migrate.py; the first spells "trak".
        PERFORM pg_advisory_xact_lock(1953653099, 2);
        -- Again, since whoever held the lock has made partitions.
        SELECT coalesce(range_agg(r), '{}') INTO covered FROM traksense.partition_ranges() AS r;
        SELECT tstzrange(now() - value::interval, now() + value::interval) INTO STRICT daily
            FROM traksense.setting WHERE name = 'partition_daily_within';
        WHILE wanted @> missing LOOP
            SELECT r INTO whole FROM unnest(covered) AS r WHERE r @> missing;
            IF NOT FOUND THEN
                whole := tstzrange(date_trunc('month', missing), date_trunc('month', missing) + interval '1 month');
                partition := to_char(missing, '"measure_y"YYYY"m"MM');
                IF daily @> missing OR covered && whole THEN
                    whole := tstzrange(date_trunc('day', missing), date_trunc('day', missing) + interval '1 day');
                    partition := to_char(missing, '"measure_y"YYYY"m"MM"d"DD');
                END IF;
                EXECUTE format('CREATE TABLE traksense.%I (LIKE traksense.measure INCLUDING ALL)', partition);
                PERFORM traksense.keep_no_statistics(format('traksense.%I', partition)::regclass);
                EXECUTE format(
                    'ALTER TABLE traksense.measure ATTACH PARTITION traksense.%I FOR VALUES FROM (%L) TO (%L)',
                    partition, lower(whole), upper(whole)
                );
                covered := covered + whole::tstzmultirange;
            END IF;
            missing := upper(whole);
        END LOOP;
    END IF;
    RETURN QUERY SELECT r FROM unnest(covered) AS r WHERE r && wanted;
END
$$;

COMMENT ON FUNCTION traksense.ensure_partitions(from_ts timestamp with time zone, to_ts timestamp with time zone) IS 'Makes sure that every instant from from_ts up to to_ts (excluded, unless they are equal) can be stored; returns the unbroken range that is covered around them. Safe to repeat and from several sessions. Its lock is held until the end of the transaction.';

CREATE FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    AS $$
DECLARE
    whole     tstzrange;
    level     text;
    partition text;
    first     timestamptz;
    last      timestamptz;
BEGIN
    FOR whole IN SELECT r FROM traksense.partition_ranges() AS r WHERE r && wanted LOOP
        FOREACH level IN ARRAY ARRAY['1m', '5m', '1h'] LOOP
            first := lower(whole);
            last := upper(whole);
            partition := CASE
                WHEN last - first > interval '1 day' THEN to_char(first, '"y"YYYY"m"MM')
                ELSE to_char(first, '"y"YYYY"m"MM"d"DD')
            END;
            IF level <> '1m' THEN
                first := date_trunc('month', first);
                last := first + interval '1 month';
                partition := to_char(first, '"y"YYYY"m"MM');
            END IF;
            partition := format('rollup_%s_%s', level, partition);
            CONTINUE WHEN to_regclass(format('traksense.%I', partition)) IS NOT NULL;
            EXECUTE format('CREATE TABLE traksense.%I (LIKE traksense.%I INCLUDING ALL)', partition, 'rollup_' || level);
            PERFORM traksense.keep_no_statistics(format('traksense.%I', partition)::regclass);
            EXECUTE format(
                'ALTER TABLE traksense.%I ATTACH PARTITION traksense.%I FOR VALUES FROM (%L) TO (%L)',
                'rollup_' || level, partition, first, last
            );
        END LOOP;
    END LOOP;
END
$$;

COMMENT ON FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) IS 'Makes sure that the aggregates of these times can be stored (plain PostgreSQL).';

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
BEGIN
    WHILE traksense.compress_next() IS NOT NULL LOOP
        COMMIT;
    END LOOP;
    PERFORM traksense.drop_expired();
    COMMIT;
    WHILE traksense.purge_expired() OPERATOR(pg_catalog.>) 0 LOOP
        COMMIT;
    END LOOP;
END
$$;

COMMENT ON PROCEDURE traksense.lifecycle_job(IN job_id integer, IN config jsonb) IS 'Carries out the policy: compresses, drops and purges (a job of TimescaleDB).';

CREATE TABLE traksense.dirty (
    series_id integer,
    low timestamp with time zone NOT NULL,
    high timestamp with time zone NOT NULL
);

COMMENT ON TABLE traksense.dirty IS 'What was written since the last roll-up: times from low to high, both included, of one series or (null) of all. Not used on TimescaleDB.';

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
    IF NOT pg_try_advisory_xact_lock(1953653099, 5) THEN
        RETURN 0;
    END IF;
    FOREACH kind IN ARRAY ARRAY['events', 'acks', 'errors'] LOOP
        EXECUTE format(
            $sql$
            DELETE FROM public.%1$I WHERE ctid = ANY (ARRAY(
                SELECT e.ctid FROM public.%1$I e
                LEFT JOIN traksense.tenant_retention r ON r.tenant_id = e.tenant_id AND r.kind = %2$L
                WHERE %3$s < now() - CASE
                    WHEN r.kind IS NOT NULL THEN r.keep
                    ELSE (SELECT nullif(value, '')::interval FROM traksense.setting WHERE name = 'retain_' || %2$L)
                END
                LIMIT $1
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

CREATE FUNCTION traksense.roll_up(marks_max integer DEFAULT 20000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    AS $$
DECLARE
    whole_day constant interval := interval '1 day';
    known  tstzmultirange;
    common tstzmultirange;
    series int[];
    ranges tstzrange[];
    marks  bigint;
    level  text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(1953653099, 3) THEN
        RETURN -1;
    END IF;
    WITH taken AS (
        DELETE FROM traksense.dirty
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM traksense.dirty LIMIT marks_max))
        RETURNING series_id, tstzrange(low, high, '[]') AS span
    )
    SELECT count(*), range_agg(span) FILTER (WHERE series_id IS NULL),
        array_agg(series_id) FILTER (WHERE series_id IS NOT NULL), array_agg(span) FILTER (WHERE series_id IS NOT NULL)
    INTO marks, common, series, ranges
    FROM taken;
    IF marks = 0 THEN
        RETURN 0;
    END IF;
    -- Where raw points have been dropped the aggregates stay as they are.
    SELECT coalesce(range_agg(r), '{}') * tstzmultirange(tstzrange(
        (SELECT value::timestamptz FROM traksense.setting WHERE name = 'raw_dropped_before'), NULL
    )) INTO known FROM traksense.partition_ranges() AS r;
    INSERT INTO traksense.dirty (low, high)
        SELECT lower(r) + whole_day, upper(r) FROM unnest(common * known) AS r WHERE upper(r) - lower(r) > whole_day;
    SELECT series || array_agg(NULL::int), ranges || array_agg(tstzrange(
            lower(r), least(upper(r), lower(r) + whole_day), CASE WHEN lower(r) = upper(r) THEN '[]' ELSE '[)' END
        ))
        INTO series, ranges
        FROM (
            SELECT r FROM unnest(common * known) AS r
        ) AS c;
    SELECT array_agg(k.series_id), array_agg(tstzrange(lower(part), upper(part) + interval '1 microsecond'))
        INTO series, ranges
        FROM unnest(series, ranges) AS k (series_id, span) CROSS JOIN LATERAL unnest(known * tstzmultirange(k.span)) AS part;
    IF series IS NOT NULL THEN
        PERFORM traksense.ensure_rollup_partitions((SELECT range_agg(r) FROM unnest(ranges) AS r));
        FOREACH level IN ARRAY ARRAY['1m', '5m', '1h'] LOOP
            PERFORM traksense.roll_up_level(level, series, ranges);
        END LOOP;
    END IF;
    RETURN marks;
END
$$;

COMMENT ON FUNCTION traksense.roll_up(marks_max integer) IS 'Brings the aggregates up to date with what was written (plain PostgreSQL); returns how many marks were worked off, 0 if there is nothing to do, -1 if another session is at it. Call it until it returns less than 1.';

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
    buckets bigint;
BEGIN
    EXECUTE format(
        $sql$
        INSERT INTO traksense.%1$I AS t (series_id, bucket, v_sum, v_min, v_max, v_count)
        SELECT k.series_id, r.*
        FROM (
            SELECT m.series_id, unnest(m.whole) AS span
            FROM (
                SELECT s.series_id, range_agg(tstzrange(
                    date_bin(%2$L, lower(k.span), 'epoch'),
                    date_bin(%2$L, upper(k.span) - interval '1 microsecond', 'epoch') + %2$L
                )) AS whole
                FROM unnest($1, $2) AS k (series_id, span)
                CROSS JOIN LATERAL (
                    SELECT k.series_id WHERE k.series_id IS NOT NULL
                    UNION ALL
                    SELECT a.series_id FROM traksense.series a WHERE k.series_id IS NULL
                ) AS s
                GROUP BY 1
            ) AS m
        ) AS k
        CROSS JOIN LATERAL (
            SELECT date_bin(%2$L, %3$I, timestamptz 'epoch'), %4$s
            FROM traksense.%5$I AS m
            WHERE m.series_id = k.series_id AND %3$I >= lower(k.span) AND %3$I < upper(k.span) %6$s
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
        CASE level WHEN '1m' THEN 'AND m.v_num IS NOT NULL' ELSE '' END
    ) USING series, ranges;
    GET DIAGNOSTICS buckets = ROW_COUNT;
    RETURN buckets;
END
$_$;

COMMENT ON FUNCTION traksense.roll_up_level(level text, series integer[], ranges tstzrange[]) IS 'Computes marked buckets of one aggregate from the level below (plain PostgreSQL).';

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

CREATE TABLE traksense.setting (
    name text NOT NULL,
    value text NOT NULL
);

COMMENT ON TABLE traksense.setting IS 'What the functions of this schema can be told; changed with UPDATE by the owner.';

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
     LEFT JOIN traksense.meta d ON (((d.meta_id = m.meta_id) AND (d.tenant_id = s.tenant_id))))
  WHERE ((s.tenant_id >= (traksense.tenant_low() COLLATE "C")) AND (s.tenant_id <= (traksense.tenant_high() COLLATE "C")));

COMMENT ON VIEW public.latest IS 'The newest value of each point and unit, by the device''s time.';

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

COMMENT ON COLUMN public.ts_measure.v_num IS 'The value if it is a number; exactly one of v_num, v_bool, v_text is not null.';

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

CREATE TABLE traksense.ingest_session (
    client_id text NOT NULL,
    broker text NOT NULL,
    connected_at timestamp with time zone NOT NULL,
    last_alive_at timestamp with time zone NOT NULL,
    held text[] DEFAULT '{}'::text[] NOT NULL,
    claimed text[] DEFAULT '{}'::text[] NOT NULL
);

COMMENT ON TABLE traksense.ingest_session IS 'The broker sessions that the service has had: if the broker no longer knows one, its queue is lost, and we can say so.';

COMMENT ON COLUMN traksense.ingest_session.broker IS 'host:port, without credentials.';

COMMENT ON COLUMN traksense.ingest_session.held IS 'Topic filters that the session may have at the broker: those of its configuration, and older ones until UNSUBACK.';

COMMENT ON COLUMN traksense.ingest_session.claimed IS 'Topic filters of its configuration, granted by the broker: others may give these up.';

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

ALTER TABLE ONLY traksense.tenant
    ADD CONSTRAINT tenant_pkey PRIMARY KEY (tenant_id);

ALTER TABLE ONLY traksense.tenant_retention
    ADD CONSTRAINT tenant_retention_pkey PRIMARY KEY (tenant_id, kind);

CREATE INDEX cmd_ack_updated_idx ON public.cmd_ack USING btree (tenant_id, updated_at);

CREATE UNIQUE INDEX device_event_id_key ON public.device_event USING btree (tenant_id, device_id, event_id) WHERE (event_id IS NOT NULL);

CREATE INDEX device_event_ts_idx ON public.device_event USING btree (tenant_id, ts);

CREATE UNIQUE INDEX device_event_ts_key ON public.device_event USING btree (tenant_id, device_id, event_type, ts) WHERE (event_id IS NULL);

CREATE INDEX ingest_errors_reason_idx ON public.ingest_errors USING btree (tenant_id, reason, ts);

CREATE INDEX ingest_errors_tenant_idx ON public.ingest_errors USING btree (tenant_id, ts);

CREATE INDEX ingest_errors_ts_idx ON public.ingest_errors USING btree (ts);

CREATE INDEX series_tenant_idx ON traksense.series USING btree (tenant_id, device_id, site_id);

ALTER TABLE ONLY traksense.device
    ADD CONSTRAINT device_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES traksense.tenant(tenant_id);

ALTER TABLE ONLY traksense.meta
    ADD CONSTRAINT meta_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES traksense.tenant(tenant_id);

ALTER TABLE ONLY traksense.series
    ADD CONSTRAINT series_tenant_id_site_id_device_id_fkey FOREIGN KEY (tenant_id, site_id, device_id) REFERENCES traksense.device(tenant_id, site_id, device_id);

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

REVOKE ALL ON FUNCTION traksense.compress_next() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.drop_expired() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ensure_partitions(from_ts timestamp with time zone, to_ts timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.ingest_tenants() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.keep_no_statistics(relation regclass) FROM PUBLIC;

REVOKE ALL ON PROCEDURE traksense.lifecycle_job(IN job_id integer, IN config jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.mark_dirty(from_ts timestamp with time zone, to_ts timestamp with time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.partition_ranges() FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.purge_expired(rows_max integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.roll_up(marks_max integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION traksense.roll_up_level(level text, series integer[], ranges tstzrange[]) FROM PUBLIC;

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

INSERT INTO traksense.setting (name, value) VALUES ('compress_after', '7 days');
INSERT INTO traksense.setting (name, value) VALUES ('compress_aggregates_after', '7 days');
INSERT INTO traksense.setting (name, value) VALUES ('online_within', '5 minutes');
INSERT INTO traksense.setting (name, value) VALUES ('partition_daily_within', '40 days');
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
        traksense.partition_ranges(), traksense.ensure_partitions(timestamptz, timestamptz), traksense.ingest_tenants(),
        traksense.roll_up(int), traksense.drop_expired(), traksense.purge_expired(int)
        TO traksense_ingest;
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
    GRANT INSERT, SELECT (tenant_id, device_id, event_id, event_type, ts) ON public.device_event TO traksense_ingest;
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
