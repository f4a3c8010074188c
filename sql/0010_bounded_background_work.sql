-- traksense, migration 10: background work that nobody can hold up, that is bounded, and whose state is known.
--
-- 1. Locks are rows of a private table: an advisory lock can be taken by every role that may connect, for as long as it likes.
-- 2. Partitions are days, months or years by their age, so that what a device can make exist is bounded.
-- 3. A mark names the series that were written. They are worked off in pieces, the most recent times first.
-- 4. On TimescaleDB one job refreshes the three aggregates, one after the other, instead of three that overlap.
-- 5. Each step of the background work leaves when it was last done, or what it failed with.
-- ops/decisions/0036 and 0037 say why.


-- Locks and state ------------------------------------------------------------------------------------------------------

CREATE TABLE traksense.work (
    name         text PRIMARY KEY,
    holder       int NULL,
    holder_since timestamptz NULL
);
COMMENT ON TABLE traksense.work IS
    'What one session does at a time: whoever does it holds the lock of the row. No application role may touch it.';
COMMENT ON COLUMN traksense.work.holder IS
    'On TimescaleDB, the process that refreshes the aggregates: that takes several transactions, which no row lock outlives.';
COMMENT ON COLUMN traksense.work.holder_since IS 'When that process started, so that another with its number is not taken for it.';

CREATE TABLE traksense.step (
    name          text PRIMARY KEY,
    succeeded_at  timestamptz NOT NULL DEFAULT now(),
    failing_since timestamptz NULL,
    error         text NULL
) WITH (fillfactor = 50);  -- room for HOT updates
COMMENT ON TABLE traksense.step IS 'The steps of the background work, and how each ended when it was last tried.';
COMMENT ON COLUMN traksense.step.succeeded_at IS 'When it was last done; at first, when this was recorded first.';
COMMENT ON COLUMN traksense.step.failing_since IS 'Since when each attempt has failed, or null.';
COMMENT ON COLUMN traksense.step.error IS 'What the last attempt failed with, or null.';

CREATE FUNCTION traksense.end_step(step text, failure text DEFAULT NULL) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        UPDATE traksense.step s
        SET succeeded_at = CASE WHEN failure IS NULL THEN clock_timestamp() ELSE s.succeeded_at END,
            failing_since = CASE WHEN failure IS NOT NULL THEN coalesce(s.failing_since, clock_timestamp()) END,
            error = left(failure, 500)
        WHERE s.name = step;
    END;
COMMENT ON FUNCTION traksense.end_step IS 'Records that a step of the background work was done, or what it failed with.';


-- Partitions (plain PostgreSQL) ----------------------------------------------------------------------------------------

-- Days within partition_daily_within of now, months within this, years beyond.
INSERT INTO traksense.setting (name, value) VALUES ('partition_monthly_within', '2 years');

CREATE FUNCTION traksense.ranges_of(parent regclass) RETURNS tstzmultirange
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
AS $$
    SELECT coalesce(range_agg(tstzrange(
        substring(bound FROM $re$FROM \('([^']+)'\)$re$)::timestamptz,  -- null if it is MINVALUE
        substring(bound FROM $re$TO \('([^']+)'\)$re$)::timestamptz
    )), '{}')
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
    WHERE i.inhparent = parent AND NOT i.inhdetachpending AND bound LIKE 'FOR VALUES FROM %'
$$;
COMMENT ON FUNCTION traksense.ranges_of IS 'The times that a partitioned table can store.';

-- A partition fills what is free of its day, month or year between its neighbours: one that exists never makes its
-- neighbours smaller than their age asks for, only shorter. So of what is older than partition_monthly_within there is one for
-- each year, and one more at most for each partition that was there before.
CREATE FUNCTION traksense.fill_partitions(parent text, wanted tstzmultirange, finest text, most int)
    RETURNS tstzmultirange
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
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
COMMENT ON FUNCTION traksense.fill_partitions IS
    'Makes partitions for what is wanted, a number at most; returns all that is covered then. The finest is a day or a month.';

CREATE OR REPLACE FUNCTION traksense.ensure_partitions(from_ts timestamptz, to_ts timestamptz) RETURNS SETOF tstzrange
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
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

-- What the service calls, once a batch. A transaction makes sixteen partitions at most, so that its locks (four for each) fit
-- whatever max_locks_per_transaction is.
CREATE FUNCTION traksense.ensure_partitions(instants timestamptz[]) RETURNS SETOF tstzrange
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
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
COMMENT ON FUNCTION traksense.ensure_partitions(timestamptz[]) IS
    'Makes up to sixteen of the partitions that these instants need; returns everything that is covered then. Call it until all '
    'instants are. Safe from several sessions.';

-- The aggregates' partitions go by age too, but those of 5 m and 1 h are months at least.
CREATE OR REPLACE FUNCTION traksense.ensure_rollup_partitions(wanted tstzmultirange) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM traksense.fill_partitions('rollup_1m', wanted, 'day', 1000000);
    PERFORM traksense.fill_partitions('rollup_5m', wanted, 'month', 1000000);
    PERFORM traksense.fill_partitions('rollup_1h', wanted, 'month', 1000000);
END
$$;


-- Marks and pieces (plain PostgreSQL) ----------------------------------------------------------------------------------

ALTER TABLE traksense.dirty
    ADD COLUMN series int[] NULL,
    ADD COLUMN marked_at timestamptz NOT NULL DEFAULT now(),
    ALTER COLUMN series SET STORAGE EXTERNAL;  -- not worth the time to compress
CREATE INDEX dirty_high_idx ON traksense.dirty (high);
COMMENT ON TABLE traksense.dirty IS
    'What was written since the last roll-up: times from low to high, both included, of the series named, or of all if none is. '
    'Not used on TimescaleDB.';
COMMENT ON COLUMN traksense.dirty.series_id IS 'As releases before schema version 10 name a series.';
COMMENT ON COLUMN traksense.dirty.marked_at IS 'When what is to be computed was written.';
SELECT traksense.keep_no_statistics('traksense.dirty');

-- For the service, which marks all series where it writes most of them. Whoever owns the functions here must see all rows: a
-- policy names the role that migrated, and a dump may be restored as another.
CREATE FUNCTION traksense.count_series(at_most bigint) RETURNS bigint
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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
COMMENT ON FUNCTION traksense.count_series IS
    'How many series there are; so many at most are counted. Fails if the owner of this function does not see them.';

-- As in migration 3, with the times of all ranges as constants, so that the planner looks at their partitions only.
CREATE OR REPLACE FUNCTION traksense.roll_up_level(level text, series int[], ranges tstzrange[]) RETURNS bigint
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
$$;

-- One piece, in a transaction of its own. Right under concurrency because a mark commits with its rows: this reads the rows with
-- a snapshot that is not older than the one that found the mark.
--
-- Bounded by marks_max: so many marks are looked at, and so many hours of single series are computed; the rest is marked
-- again, by the hour. All of it lies within 31 days, so that a piece touches some thirty partitions of each table. The most
-- recent times come first: whatever history a device brings, what is written now is seen now. (Times that are ahead of the clock
-- come last.)
--
-- Not of what was marked since `until`: whoever works off a busy table would never be done, and compute the same minute again and
-- again. (A mark that is ahead of the clock was made before the clock was put right.)
CREATE FUNCTION traksense.roll_up_until(marks_max int, until timestamptz) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET jit = off
    -- Whoever holds the table for longer is an operator at work: not a piece that is too large.
    SET lock_timeout = '30s'
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
COMMENT ON FUNCTION traksense.roll_up_until IS
    'Brings the aggregates up to date with what was written, a piece at a time, the most recent first (plain PostgreSQL); returns '
    'how many marks were worked off or split, 0 if there is nothing to do, -1 if another session is at it. Call it until it '
    'returns less than 1, each time in a transaction of its own. What was marked since `until` stays.';

CREATE OR REPLACE FUNCTION traksense.roll_up(marks_max int DEFAULT 20000) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN traksense.roll_up_until(marks_max, 'infinity');
END
$$;
COMMENT ON FUNCTION traksense.roll_up IS 'The same of everything that is marked; for releases before schema version 10, and for people.';


-- A roll-up that had read the points before they were deleted would write aggregates that outlive their series, and lock its
-- rows in another order: so one waits for the other.
CREATE OR REPLACE FUNCTION traksense.delete_points_of_series() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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


-- Retention ------------------------------------------------------------------------------------------------------------

-- Of one level, and on plain PostgreSQL at most sixteen partitions: a short transaction with few locks.
CREATE FUNCTION traksense.drop_expired(level text) RETURNS SETOF text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
    -- Dropping a partition waits for those who read the table, and everybody else behind it: rather try again later.
    SET lock_timeout = '3s'
AS $$
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
$$;
COMMENT ON FUNCTION traksense.drop_expired(text) IS
    'Drops partitions or chunks of one level (raw, 1m, 5m, 1h) that are older than the policy keeps; returns their names. Call '
    'it until it returns none.';

CREATE OR REPLACE FUNCTION traksense.drop_expired() RETURNS SETOF text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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

CREATE OR REPLACE FUNCTION traksense.purge_expired(rows_max int DEFAULT 10000) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
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
$$;


-- TimescaleDB ----------------------------------------------------------------------------------------------------------

-- Three policies, each on its own, lost changes: while the refresh of one level writes, that of the next may move on past it.
-- So one job does all three, one after the other, and whoever refreshes by hand takes turns with it.
CREATE FUNCTION traksense.take_turn(what text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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
COMMENT ON FUNCTION traksense.take_turn IS
    'Whether this session may do now what one does at a time, over several transactions; it is at it from then on.';

CREATE FUNCTION traksense.end_turn(what text) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        UPDATE traksense.work SET holder = NULL, holder_since = NULL WHERE name = what AND holder = pg_backend_pid();
    END;
COMMENT ON FUNCTION traksense.end_turn IS 'Lets others have their turn.';

-- From where on the aggregates follow the raw points: late ones are taken in for as long as they are accepted, and what has been
-- dropped is never looked at again. Half the grace: longer than points are accepted, shorter than they are kept.
CREATE FUNCTION traksense.refreshed_from() RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    BEGIN ATOMIC
        SELECT nullif(greatest(
            (SELECT now() - nullif(value, '')::interval - (
                SELECT value::interval / 2 FROM traksense.setting WHERE name = 'retain_grace'
            ) FROM traksense.setting WHERE name = 'retain_raw'),
            (SELECT value::timestamptz FROM traksense.setting WHERE name = 'raw_dropped_before')
        ), '-infinity');
    END;
COMMENT ON FUNCTION traksense.refreshed_from IS 'The start of what is refreshed, or null if it is everything (TimescaleDB).';

-- The order has changed: dropping and purging do not wait for what may be days of compressing. Without SET clauses, so that it
-- may commit in between.
CREATE OR REPLACE PROCEDURE traksense.lifecycle_job(job_id int, config jsonb)
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


-- What is known of it --------------------------------------------------------------------------------------------------

CREATE FUNCTION traksense.maintenance_state()
    RETURNS TABLE (step text, succeeded_at timestamptz, failing_since timestamptz, error text, waiting bigint, waiting_since timestamptz)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION traksense.maintenance_state IS
    'The steps of the background work: when each was last done, since when it fails and with what; of the aggregates on plain '
    'PostgreSQL how many marks wait (100,000 at most are counted), and since when.';

REVOKE ALL ON FUNCTION
    traksense.end_step(text, text), traksense.ranges_of(regclass), traksense.fill_partitions(text, tstzmultirange, text, int),
    traksense.ensure_partitions(timestamptz[]), traksense.drop_expired(text), traksense.take_turn(text), traksense.end_turn(text),
    traksense.refreshed_from(), traksense.maintenance_state(), traksense.count_series(bigint),
    traksense.roll_up_until(int, timestamptz)
    FROM PUBLIC;


INSERT INTO traksense.schema_version (version, name) VALUES (10, 'bounded_background_work');


-- Since a number that is no double has its digits beside it (ops/decisions/0038).
COMMENT ON COLUMN public.ts_measure.v_num IS
    'The value if it is a number, or the double nearest to it; then v_text has its digits, if the double does not say them.';
