-- traksense, migration 6: the stored aggregates are compressed too, on TimescaleDB.
--
-- A device that sends a value a minute has as many rows in traksense.rollup_1m as in traksense.measure, and wider ones. They
-- are segmented by series, as measurements are and for the same reason. Ordered by bucket alone, without segments, a late
-- point would be cheaper (the refresh replaces a bucket of all series: 0.3 s instead of 1 s with 500 series), but a query of
-- one series would decompress the fleet.
--
-- A refresh replaces buckets in compressed chunks as in others; the chunk is then compressed again, like one with late points.

INSERT INTO traksense.setting (name, value) VALUES ('compress_aggregates_after', '7 days');  -- TimescaleDB only; '' is never

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

-- As in migration 4, for the aggregates too.
CREATE OR REPLACE FUNCTION traksense.compress_next() RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION traksense.compress_next IS
    'Compresses and analyzes the oldest chunk of measurements or aggregates that is due, and returns its name, or null if '
    'none is (TimescaleDB).';


INSERT INTO traksense.schema_version (version, name) VALUES (6, 'compressed_rollups');
