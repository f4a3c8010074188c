-- traksense, migration 3: aggregates that are stored.
--
-- traksense.rollup_1m, _5m and _1h hold, for each series and bucket, sum, minimum, maximum and count of the numbers. They are
-- continuous aggregates on TimescaleDB and partitioned tables on plain PostgreSQL; the public views read either. They follow
-- the raw points within about a minute (ops/decisions/0031).
--
-- On plain PostgreSQL the service marks what it has written in traksense.dirty, in the same transaction, and
-- traksense.roll_up() computes the marked buckets anew from the raw points. So late, duplicate and out-of-order points are
-- nothing special. Whoever writes measurements by hand calls traksense.mark_dirty(from, to).

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


-- What is to be computed anew (plain PostgreSQL) -----------------------------------------------------------------------------

CREATE TABLE traksense.dirty (
    series_id int NULL,
    low       timestamptz NOT NULL,
    high      timestamptz NOT NULL
);
COMMENT ON TABLE traksense.dirty IS
    'What was written since the last roll-up: times from low to high, both included, of one series or (null) of all. '
    'Not used on TimescaleDB.';

CREATE FUNCTION traksense.mark_dirty(from_ts timestamptz, to_ts timestamptz) RETURNS void
    LANGUAGE sql VOLATILE
    BEGIN ATOMIC
        INSERT INTO traksense.dirty (low, high) VALUES (from_ts, to_ts);
    END;
COMMENT ON FUNCTION traksense.mark_dirty IS
    'Has the aggregates of all series in a range computed anew: for whoever writes measurements without the service.';
REVOKE ALL ON FUNCTION traksense.mark_dirty(timestamptz, timestamptz) FROM PUBLIC;

-- A partition of rollup_1m for each one of measure, with its bounds; months for the coarser ones.
CREATE FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
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
COMMENT ON FUNCTION traksense.ensure_rollup_partitions IS
    'Makes sure that the aggregates of these times can be stored (plain PostgreSQL).';
REVOKE ALL ON FUNCTION traksense.ensure_rollup_partitions(tstzmultirange) FROM PUBLIC;

-- One level: the buckets in `ranges[n]` of `series[n]` (null: of all series) are computed from the level below and replaced.
-- Series by series through the key: there is no index on the time alone, which would cost every COPY.
CREATE FUNCTION traksense.roll_up_level(level text, series int[], ranges tstzrange[]) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    -- Index scans by series are what this is made for; a plan that hashes would read whole partitions.
    SET enable_hashjoin = off
    SET enable_mergejoin = off
    SET jit = off
AS $$
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
$$;
COMMENT ON FUNCTION traksense.roll_up_level IS 'Computes marked buckets of one aggregate from the level below (plain PostgreSQL).';
REVOKE ALL ON FUNCTION traksense.roll_up_level(text, int[], tstzrange[]) FROM PUBLIC;

-- Right under concurrency because a mark commits with its rows: this reads the rows with a snapshot that is not older than
-- the one that found the mark. Bounded: of a mark for all series at most a day is done at once, the rest is marked again.
CREATE FUNCTION traksense.roll_up(marks_max int DEFAULT 20000) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
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
COMMENT ON FUNCTION traksense.roll_up IS
    'Brings the aggregates up to date with what was written (plain PostgreSQL); returns how many marks were worked off, 0 if '
    'there is nothing to do, -1 if another session is at it. Call it until it returns less than 1.';
REVOKE ALL ON FUNCTION traksense.roll_up(int) FROM PUBLIC;

-- What there is already.
INSERT INTO traksense.dirty (low, high)
SELECT lower(r), upper(r) FROM traksense.partition_ranges() AS r WHERE lower(r) IS NOT NULL;


-- What users read --------------------------------------------------------------------------------------------------------------
--
-- One row for each bucket and series. A point that comes in two units is two series, and two rows: `unit` tells them apart.

DO $$
DECLARE
    suffix text;
BEGIN
    FOREACH suffix IN ARRAY ARRAY['1m', '5m', '1h'] LOOP
        EXECUTE format(
            $view$
            CREATE OR REPLACE VIEW public.%I WITH (security_barrier) AS
                SELECT
                    r.bucket,
                    s.tenant_id,
                    s.site_id,
                    s.device_id,
                    s.point_id,
                    traksense.opaque(r.v_sum / r.v_count) AS v_avg,
                    traksense.opaque(r.v_min) AS v_min,
                    traksense.opaque(r.v_max) AS v_max,
                    traksense.opaque(r.v_count) AS v_count,
                    s.unit
                FROM traksense.series s
                JOIN traksense.%I r ON r.series_id = s.series_id
                WHERE s.tenant_id >= traksense.tenant_low() COLLATE "C" AND s.tenant_id <= traksense.tenant_high() COLLATE "C"
            $view$,
            'ts_measure_' || suffix, 'rollup_' || suffix
        );
        EXECUTE format(
            'COMMENT ON COLUMN public.%I.unit IS %L',
            'ts_measure_' || suffix, 'The unit of the values, or null: a point in two units has two rows for each bucket.'
        );
    END LOOP;
END
$$;


INSERT INTO traksense.schema_version (version, name) VALUES (3, 'rollups');
