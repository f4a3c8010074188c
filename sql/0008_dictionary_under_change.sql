-- traksense, migration 8: the dictionary stays true while it is changed.
--
-- The service remembers which number stands for which series, device and meta object. Whoever deletes, renames, truncates or
-- restores them under a running service makes that memory wrong, and points would be stored under numbers that name nothing, or
-- something else. So every transaction that stores points begins with CALL traksense.hold_dictionary(token): it takes a lock
-- that only changes of the dictionary exclude, and fails if the dictionary is no longer the one that the token stands for. A
-- change waits for the transactions under way, and those that follow fail, forget, and look everything up again
-- (ops/decisions/0035).

CREATE TABLE traksense.dictionary_epoch (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO traksense.dictionary_epoch DEFAULT VALUES;
COMMENT ON TABLE traksense.dictionary_epoch IS
    'One row; its epoch changes with every deletion, renaming or truncation of tenants, devices, series and meta objects.';

-- Not the epoch alone: tables that were dropped and restored have other numbers, with whatever epoch they bring.
CREATE FUNCTION traksense.dictionary_token() RETURNS text
    -- Not sql: that is checked when it is made, and in a dump functions come before tables.
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (
        SELECT format('%s/%s/%s', epoch, 'traksense.series'::regclass::oid, pg_relation_filenode('traksense.series'::regclass))
        FROM traksense.dictionary_epoch
    );
END
$$;
COMMENT ON FUNCTION traksense.dictionary_token IS
    'Stands for the present numbers of series, devices and meta objects: as long as it is the same, so are they.';

-- The session, too: what it was told at the start (time-outs, synchronous_commit) holds only as long as the server process is
-- still ours. A connection pooler that changes it between transactions is noticed here.
--
-- The token is spelt out once more: a call of the function would cost as much as all the rest.
CREATE PROCEDURE traksense.hold_dictionary(token text, session text)
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
        SELECT FROM traksense.dictionary_epoch
        WHERE token = format(
            '%s/%s/%s', epoch, 'traksense.series'::regclass::oid, pg_relation_filenode('traksense.series'::regclass)
        )
    ) THEN
        RAISE EXCEPTION 'tenants, devices, series or meta objects were deleted, renamed or restored' USING ERRCODE = 'TK001';
    END IF;
END
$$;
COMMENT ON PROCEDURE traksense.hold_dictionary IS
    'Keeps the dictionary as it is until the end of the transaction; fails if it is not what the token stands for (TK001) or '
    'if the session is not the one that set traksense.session (TK002).';

REVOKE ALL ON FUNCTION traksense.dictionary_token() FROM PUBLIC;
REVOKE ALL ON PROCEDURE traksense.hold_dictionary(text, text) FROM PUBLIC;

CREATE FUNCTION traksense.dictionary_changes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Before any row is touched: nobody who holds the dictionary waits for those rows.
    LOCK TABLE traksense.dictionary_epoch IN EXCLUSIVE MODE;
    UPDATE traksense.dictionary_epoch SET epoch = gen_random_uuid();
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION traksense.dictionary_changes IS 'Waits for the transactions that hold the dictionary, and ends its epoch.';

-- Points do not outlive their names: without, nobody could read them. Those that came between an operator's two statements too.
CREATE FUNCTION traksense.delete_points_of_series() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM traksense.measure m USING gone WHERE m.series_id = gone.series_id;
    IF traksense.timescaledb_schema() IS NULL THEN
        DELETE FROM traksense.rollup_1m r USING gone WHERE r.series_id = gone.series_id;
        DELETE FROM traksense.rollup_5m r USING gone WHERE r.series_id = gone.series_id;
        DELETE FROM traksense.rollup_1h r USING gone WHERE r.series_id = gone.series_id;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION traksense.delete_points_of_series IS 'Deletes the points and aggregates of series that were deleted.';

CREATE FUNCTION traksense.refuse_nameless_points() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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
COMMENT ON FUNCTION traksense.refuse_nameless_points IS
    'Refuses to truncate the series of points that are stored; truncates the aggregates of those that were.';

REVOKE ALL ON FUNCTION
    traksense.dictionary_changes(), traksense.delete_points_of_series(), traksense.refuse_nameless_points() FROM PUBLIC;

DO $$
DECLARE
    relation text;
    names text;
BEGIN
    FOR relation, names IN VALUES
        ('tenant', 'tenant_id'),
        ('device', 'tenant_id, site_id, device_id'),
        ('series', 'tenant_id, site_id, device_id, point_id, unit'),
        ('meta', 'tenant_id, digest')
    LOOP
        EXECUTE format(
            'CREATE TRIGGER dictionary_changes BEFORE DELETE OR UPDATE OF %s OR TRUNCATE ON traksense.%I
             FOR EACH STATEMENT EXECUTE FUNCTION traksense.dictionary_changes()',
            names, relation
        );
        -- Also where a replica or a restore applies the change.
        EXECUTE format('ALTER TABLE traksense.%I ENABLE ALWAYS TRIGGER dictionary_changes', relation);
    END LOOP;
END
$$;
CREATE TRIGGER delete_points AFTER DELETE ON traksense.series REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION traksense.delete_points_of_series();
ALTER TABLE traksense.series ENABLE ALWAYS TRIGGER delete_points;
CREATE TRIGGER refuse_nameless_points AFTER TRUNCATE ON traksense.series
    FOR EACH STATEMENT EXECUTE FUNCTION traksense.refuse_nameless_points();

-- A device is deleted or renamed with its series, by one statement.
ALTER TABLE traksense.series DROP CONSTRAINT series_tenant_id_site_id_device_id_fkey;
ALTER TABLE traksense.series ADD CONSTRAINT series_device_fkey
    FOREIGN KEY (tenant_id, site_id, device_id) REFERENCES traksense.device ON DELETE CASCADE ON UPDATE CASCADE;


-- A value under a key that has another one -------------------------------------------------------------------------------------
--
-- By default the stored value stays, and the message that brought another one is kept as a dead letter. With
-- INGEST_CONFLICTS=replace the newest wins; the service's role has no UPDATE on the measurements, so this does it.

-- Nor may it read what events say. Of its own tenants, it is told which ones differ.
CREATE FUNCTION traksense.differing_events(
    tenants text[], devices text[], ids text[], types text[], instants timestamptz[], contents text[]
) RETURNS SETOF bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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
COMMENT ON FUNCTION traksense.differing_events IS
    'The places, from 0, of those events that are stored with another type, time or content; of the tenants in app.tenant_ids.';
REVOKE ALL ON FUNCTION traksense.differing_events(text[], text[], text[], text[], timestamptz[], text[]) FROM PUBLIC;

CREATE FUNCTION traksense.replace_points(
    series int[], instants timestamptz[], numbers double precision[], truths boolean[], texts text[], quals smallint[],
    meta_ids int[], metas jsonb[]
) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
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
COMMENT ON FUNCTION traksense.replace_points IS
    'Gives stored points other values: for the service, when the newest value is to win (INGEST_CONFLICTS=replace).';
REVOKE ALL ON FUNCTION traksense.replace_points(
    int[], timestamptz[], double precision[], boolean[], text[], smallint[], int[], jsonb[]) FROM PUBLIC;


INSERT INTO traksense.schema_version (version, name) VALUES (8, 'dictionary_under_change');
