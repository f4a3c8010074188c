-- traksense, migration 4: how long data live.
--
-- The policy is in traksense.setting, written by `traksense lifecycle apply`; the functions here carry it out. They take no
-- arguments that could widen it, so the service's role may call them. On plain PostgreSQL the service's maintenance task or
-- `traksense maintain` does; on TimescaleDB a background job does.
--
-- Points are accepted while they are younger than retain_raw and dropped a day later (retain_grace): what was accepted is in
-- the aggregates before it goes.

INSERT INTO traksense.setting (name, value) VALUES
    ('retain_raw', ''),               -- an interval; '' is for ever
    ('retain_1m', ''),
    ('retain_5m', ''),
    ('retain_1h', ''),
    ('retain_events', ''),
    ('retain_acks', ''),
    ('retain_errors', '14 days'),
    ('retain_grace', '1 day'),
    ('compress_after', '7 days'),     -- TimescaleDB only; '' is never
    ('raw_dropped_before', '-infinity');

CREATE TABLE traksense.tenant_retention (
    tenant_id text COLLATE "C" NOT NULL CHECK (char_length(tenant_id) BETWEEN 1 AND 128),
    kind      text NOT NULL CHECK (kind IN ('events', 'acks', 'errors')),
    keep      interval NULL,
    PRIMARY KEY (tenant_id, kind)
);
COMMENT ON TABLE traksense.tenant_retention IS
    'Tenants whose events, acks or dead letters are kept for another time than the setting says; null is for ever. '
    'Measurements are dropped by whole partitions or chunks, which all tenants share.';
ALTER TABLE traksense.tenant_retention ENABLE ROW LEVEL SECURITY;
ALTER TABLE traksense.tenant_retention FORCE ROW LEVEL SECURITY;
CREATE POLICY operator ON traksense.tenant_retention TO CURRENT_USER USING (true) WITH CHECK (true);
SELECT traksense.keep_no_statistics('traksense.tenant_retention');

CREATE FUNCTION traksense.timescaledb_schema() RETURNS name
    LANGUAGE sql STABLE
    BEGIN ATOMIC
        SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'timescaledb'
            AND (SELECT relkind FROM pg_catalog.pg_class WHERE oid = 'traksense.measure'::pg_catalog.regclass) <> 'p';
    END;
COMMENT ON FUNCTION traksense.timescaledb_schema IS
    'Where the functions of TimescaleDB are if it stores the measurements, else null.';
REVOKE ALL ON FUNCTION traksense.timescaledb_schema() FROM PUBLIC;

-- Partitions and chunks all of whose rows are older than their retention.
CREATE FUNCTION traksense.drop_expired() RETURNS SETOF text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
    -- Dropping a partition waits for those who read the table, and everybody else behind it: rather try again later.
    SET lock_timeout = '3s'
AS $$
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
$$;
COMMENT ON FUNCTION traksense.drop_expired IS
    'Drops the partitions or chunks of raw points and aggregates that are older than the policy keeps; returns their names.';

-- Acks, events and dead letters, row by row, at most so many of a kind: a short transaction.
CREATE FUNCTION traksense.purge_expired(rows_max int DEFAULT 10000) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION traksense.purge_expired IS
    'Deletes acks, events and dead letters that are older than the policy keeps, a number at most; returns how many. Call it '
    'until it returns 0.';

REVOKE ALL ON FUNCTION traksense.drop_expired(), traksense.purge_expired(int) FROM PUBLIC;


-- TimescaleDB --------------------------------------------------------------------------------------------------------------
--
-- Segmented by series, since every query goes by series; ordered by time. A chunk is analyzed after it was compressed: without,
-- the planner decompresses everything (DESIGN, section 5). A chunk that got late points since is compressed again.

CREATE FUNCTION traksense.compress_next() RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    due          interval;
    chunk        text;
    analyze_both text;
BEGIN
    SELECT nullif(value, '')::interval INTO due FROM traksense.setting WHERE name = 'compress_after';
    IF due IS NULL OR traksense.timescaledb_schema() IS NULL THEN
        RETURN NULL;
    END IF;
    -- Status bit 8 is «partially compressed»: late points came in. Source: TimescaleDB 2.28, src/chunk.h.
    EXECUTE $sql$
        SELECT format('%I.%I', i.chunk_schema, i.chunk_name)
        FROM timescaledb_information.chunks i
        JOIN _timescaledb_catalog.chunk c ON c.schema_name = i.chunk_schema AND c.table_name = i.chunk_name
        WHERE i.hypertable_schema = 'traksense' AND i.hypertable_name = 'measure' AND i.range_end < now() - $1
            AND (NOT i.is_compressed OR c.status & 8 <> 0)
        ORDER BY i.range_end LIMIT 1
    $sql$ INTO chunk USING due;
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
$$;
COMMENT ON FUNCTION traksense.compress_next IS
    'Compresses and analyzes the oldest chunk that is due, and returns its name, or null if none is (TimescaleDB).';
REVOKE ALL ON FUNCTION traksense.compress_next() FROM PUBLIC;

-- Run by TimescaleDB's scheduler. Without SET clauses, so that it may commit in between.
CREATE PROCEDURE traksense.lifecycle_job(job_id int, config jsonb)
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
COMMENT ON PROCEDURE traksense.lifecycle_job IS 'Carries out the policy: compresses, drops and purges (a job of TimescaleDB).';
REVOKE ALL ON PROCEDURE traksense.lifecycle_job(int, jsonb) FROM PUBLIC;

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


INSERT INTO traksense.schema_version (version, name) VALUES (4, 'lifecycle');
