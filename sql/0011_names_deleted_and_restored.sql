-- traksense, migration 11: names that are deleted and restored.

-- What brings rows alone (logical replication, some restores) leaves the sequences behind them: numbers that are taken would be
-- given out, and ON CONFLICT takes such a row for one that is there already.
CREATE FUNCTION traksense.advance_sequences() RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
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
$$;
COMMENT ON FUNCTION traksense.advance_sequences IS 'Sets the sequences of series, meta objects and dead letters behind what is stored.';
REVOKE ALL ON FUNCTION traksense.advance_sequences() FROM PUBLIC;

-- Rows that were deleted and restored from a dump that holds the data alone bring the old epoch with them, into the same tables:
-- only that its row was written by another transaction tells it from the one that was there before. Without an epoch (the dump
-- is older) nothing could be stored.
CREATE OR REPLACE FUNCTION traksense.dictionary_token() RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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

CREATE OR REPLACE PROCEDURE traksense.hold_dictionary(token text, session text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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

-- A deletion waits for the roll-up that is at work (migration 10). It used to wait with the dictionary in its hands, and all
-- writers waited with it.
CREATE OR REPLACE FUNCTION traksense.dictionary_changes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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


INSERT INTO traksense.schema_version (version, name) VALUES (11, 'names_deleted_and_restored');
