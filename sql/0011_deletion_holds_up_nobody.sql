-- traksense, migration 11: who waits to delete holds nobody up.

-- A deletion waits for the roll-up that is at work (migration 10). It used to wait with the dictionary in its hands, and all
-- writers waited with it.
CREATE OR REPLACE FUNCTION traksense.dictionary_changes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME <> 'meta' AND traksense.timescaledb_schema() IS NULL THEN
        PERFORM FROM traksense.work WHERE name = 'aggregate' FOR UPDATE;
    END IF;
    -- Before any row is touched: nobody who holds the dictionary waits for those rows.
    LOCK TABLE traksense.dictionary_epoch IN EXCLUSIVE MODE;
    UPDATE traksense.dictionary_epoch SET epoch = gen_random_uuid();
    RETURN NULL;
END
$$;


INSERT INTO traksense.schema_version (version, name) VALUES (11, 'deletion_holds_up_nobody');
