-- traksense, migration 1: the first schema.
--
-- `traksense migrate` applies this file in one transaction. psql can do the same:
--     psql -1 -v ON_ERROR_STOP=1 -f sql/0001_first_schema.sql
-- Needs PostgreSQL 15 or newer and a UTF8 database. Run it as the role that shall own the schema.
--
-- TimescaleDB is used if it is installed in this database *before* this file runs (CREATE EXTENSION timescaledb);
-- otherwise `traksense.measure` is a partitioned table. Nothing here installs an extension.
--
-- Every name is qualified: the file does not depend on search_path.

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
COMMENT ON SCHEMA traksense IS
    'traksense: private. No application role needs any right in here; they read the relations in schema public.';


-- Bookkeeping ----------------------------------------------------------------------------------------------------------

CREATE TABLE traksense.schema_version (
    version    int PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE traksense.schema_version IS 'The migrations that were applied.';
COMMENT ON COLUMN traksense.schema_version.checksum IS
    'SHA-256 of the file (hex), written by `traksense migrate`; null if psql ran it, until the next `traksense migrate`.';

CREATE TABLE traksense.setting (
    name  text PRIMARY KEY,
    value text NOT NULL
);
COMMENT ON TABLE traksense.setting IS 'What the functions of this schema can be told; changed with UPDATE by the owner.';
INSERT INTO traksense.setting (name, value) VALUES ('partition_daily_within', '40 days');


-- Who sees what --------------------------------------------------------------------------------------------------------
--
-- A session sees the tenant that it named with SET app.tenant_id; unset or '', it sees nothing. Operators see all, also
-- when they have set app.tenant_id: superusers, roles with BYPASSRLS, and the owner of this schema with its members. That
-- is whom PostgreSQL itself exempts from row security on a table of this owner, so we ask it: the marker has row security
-- without FORCE. Inside an owner-rights view the question is still asked for the invoker.
--
-- The functions are single expressions without SET or SECURITY DEFINER so that the planner inlines them, and have SQL-standard
-- bodies so that nobody's search_path matters and the invoker needs no USAGE on this schema: EXECUTE is enough.

CREATE TABLE traksense.operator_marker ();
COMMENT ON TABLE traksense.operator_marker IS 'Always empty. Whoever is exempt from its row security is an operator.';
ALTER TABLE traksense.operator_marker ENABLE ROW LEVEL SECURITY;

CREATE FUNCTION traksense.is_operator() RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN NOT pg_catalog.row_security_active('traksense.operator_marker'::pg_catalog.regclass);
COMMENT ON FUNCTION traksense.is_operator IS 'Whether the current role sees every tenant.';

CREATE FUNCTION traksense.current_tenant() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(pg_catalog.current_setting('app.tenant_id', true), '');
COMMENT ON FUNCTION traksense.current_tenant IS 'The tenant that the session named with SET app.tenant_id, or null.';

-- The views filter by a range, so that one condition serves tenants and operators and stays an index condition in both cases
-- (an OR would not): [tenant, tenant] for a tenant, everything for an operator, an empty range if unset. U+10FFFF is the last
-- character; names have at most 128.
CREATE FUNCTION traksense.tenant_low() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN traksense.is_operator() THEN '' ELSE coalesce(traksense.current_tenant(), chr(1114111)) END;
COMMENT ON FUNCTION traksense.tenant_low IS 'The first tenant_id, in "C" order, that the current session may see.';

CREATE FUNCTION traksense.tenant_high() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN traksense.is_operator() THEN repeat(chr(1114111), 128) ELSE coalesce(traksense.current_tenant(), '') END;
COMMENT ON FUNCTION traksense.tenant_high IS 'The last tenant_id, in "C" order, that the current session may see.';

-- EXECUTE is the default, but a database may have been hardened with ALTER DEFAULT PRIVILEGES.
GRANT EXECUTE ON FUNCTION traksense.is_operator(), traksense.current_tenant(), traksense.tenant_low(), traksense.tenant_high()
    TO PUBLIC;


-- Dictionaries ---------------------------------------------------------------------------------------------------------
--
-- Names have at most 128 characters (units 64) of at most 4 bytes: an index entry stays below btree's limit of 2704 bytes.

CREATE TABLE traksense.tenant (
    tenant_id  text COLLATE "C" PRIMARY KEY CHECK (char_length(tenant_id) BETWEEN 1 AND 128),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE traksense.tenant IS 'The tenants seen or registered.';

CREATE TABLE traksense.device (
    tenant_id    text COLLATE "C" NOT NULL REFERENCES traksense.tenant,
    site_id      text COLLATE "C" NOT NULL CHECK (char_length(site_id) BETWEEN 1 AND 128),
    device_id    text COLLATE "C" NOT NULL CHECK (char_length(device_id) BETWEEN 1 AND 128),
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NULL,
    PRIMARY KEY (tenant_id, site_id, device_id)
) WITH (fillfactor = 80);  -- room for HOT updates of last_seen_at
COMMENT ON TABLE traksense.device IS 'The devices seen or registered. With INGEST_PROVISIONING=strict, only these may publish.';
COMMENT ON COLUMN traksense.device.last_seen_at IS 'When a message of the device was last received (our clock), or null.';

CREATE TABLE traksense.series (
    series_id  int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id  text COLLATE "C" NOT NULL,
    site_id    text COLLATE "C" NOT NULL,
    device_id  text COLLATE "C" NOT NULL,
    point_id   text COLLATE "C" NOT NULL CHECK (char_length(point_id) BETWEEN 1 AND 128),
    unit       text COLLATE "C" NULL CHECK (char_length(unit) <= 64),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The device comes first because the views give the tenant as a range: (device =, tenant range) is one short stretch of
    -- this index, (tenant range, device =) would be the whole tenant.
    CONSTRAINT series_name_key UNIQUE NULLS NOT DISTINCT (device_id, tenant_id, site_id, point_id, unit),
    FOREIGN KEY (tenant_id, site_id, device_id) REFERENCES traksense.device
);
CREATE INDEX series_tenant_idx ON traksense.series (tenant_id, site_id, device_id);
COMMENT ON TABLE traksense.series IS
    'One row for each point of a device in one unit: the names that traksense.measure does not repeat on every row.';
COMMENT ON COLUMN traksense.series.unit IS 'Null if the device gave none, which is one series like any other unit.';

CREATE TABLE traksense.meta (
    meta_id    int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id  text COLLATE "C" NOT NULL REFERENCES traksense.tenant,
    digest     bytea NOT NULL CHECK (octet_length(digest) = 16),
    doc        jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, digest)
);
COMMENT ON TABLE traksense.meta IS 'The meta objects that messages repeat, each once for its tenant.';
COMMENT ON COLUMN traksense.meta.digest IS 'Computed by the service over the bytes of the object; the database only compares it.';


-- Measurements ---------------------------------------------------------------------------------------------------------
--
-- What was left out, and why:
--   * Foreign keys to series and meta: a trigger and a row lock for each row would cost more than the COPY itself. The service
--     takes both ids from the dictionaries in the same database, and nothing deletes a series that has measurements.
--   * CHECK (num_nonnulls(v_num, v_bool, v_text) = 1): the service's decoder guarantees it.
--   * Row security: COPY FROM is refused where it applies, and so are TimescaleDB's columnstore and continuous aggregates.
--     The schema is private instead; tenants read public.ts_measure.
--   * A ninth column: eight columns' null bitmap fits into the padding of the row header, a ninth would cost 8 bytes a row.
-- meta_id uses up the padding that the alignment of ts would need behind series_id: it is free.

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
COMMENT ON TABLE traksense.measure IS
    'One row for each measured value, by series and device time. A hypertable on TimescaleDB, else partitioned by ts.';
COMMENT ON COLUMN traksense.measure.ts IS 'The device''s time, never ours: redelivery must find the same key.';
COMMENT ON COLUMN traksense.measure.meta_id IS 'The message''s meta object in traksense.meta, or null.';
COMMENT ON COLUMN traksense.measure.qual IS 'Quality: 1 suspect, 2 bad; null means 0, good (a null costs no space).';
COMMENT ON COLUMN traksense.measure.meta IS
    'The message''s meta object itself, for devices whose meta never repeats; it takes precedence over meta_id.';


-- Partitions (plain PostgreSQL) ----------------------------------------------------------------------------------------

CREATE FUNCTION traksense.partition_ranges() RETURNS SETOF tstzrange
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
AS $$
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
$$;
COMMENT ON FUNCTION traksense.partition_ranges IS
    'The time ranges that traksense.measure can store, one for each partition; (,), without bounds, on TimescaleDB.';

-- Days within 40 days of now (setting partition_daily_within), whole months beyond if nothing in that month exists yet: a
-- device with a wrong clock makes one partition a month, not one a day.
--
-- A partition is made as a table of its own and then attached: that takes SHARE UPDATE EXCLUSIVE on traksense.measure,
-- which running INSERTs and COPYs do not notice (PARTITION OF would take ACCESS EXCLUSIVE and wait for them).
CREATE FUNCTION traksense.ensure_partitions(from_ts timestamptz, to_ts timestamptz) RETURNS SETOF tstzrange
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET "TimeZone" = 'UTC'
    SET "DateStyle" = 'ISO, YMD'
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
COMMENT ON FUNCTION traksense.ensure_partitions IS
    'Makes sure that every instant from from_ts up to to_ts (excluded, unless they are equal) can be stored; returns the '
    'unbroken range that is covered around them. Safe to repeat and from several sessions. Its lock is held until the end of '
    'the transaction.';

REVOKE ALL ON FUNCTION traksense.partition_ranges(), traksense.ensure_partitions(timestamptz, timestamptz) FROM PUBLIC;


-- The service's own memory ---------------------------------------------------------------------------------------------

CREATE TABLE traksense.ingest_session (
    client_id     text PRIMARY KEY,
    broker        text NOT NULL,
    connected_at  timestamptz NOT NULL,
    last_alive_at timestamptz NOT NULL
);
COMMENT ON TABLE traksense.ingest_session IS
    'The broker sessions that the service has had: if the broker no longer knows one, its queue is lost, and we can say so.';
COMMENT ON COLUMN traksense.ingest_session.broker IS 'host:port, without credentials.';


-- Acks, events, dead letters -------------------------------------------------------------------------------------------

CREATE TABLE public.cmd_ack (
    tenant_id  text COLLATE "C" NOT NULL CHECK (char_length(tenant_id) BETWEEN 1 AND 128),
    site_id    text COLLATE "C" NOT NULL CHECK (char_length(site_id) BETWEEN 1 AND 128),
    device_id  text COLLATE "C" NOT NULL CHECK (char_length(device_id) BETWEEN 1 AND 128),
    cmd_id     text COLLATE "C" NOT NULL CHECK (char_length(cmd_id) BETWEEN 1 AND 128),
    ok         boolean NOT NULL,
    ts_exec    timestamptz NULL,
    err        text NULL,
    payload    jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, device_id, cmd_id)
);
COMMENT ON TABLE public.cmd_ack IS
    'What devices answered to commands: one row for each command; a repeat updates it, an older ts_exec does not.';
COMMENT ON COLUMN public.cmd_ack.ts_exec IS 'When the device executed the command, by its own clock; null if it did not say.';
COMMENT ON COLUMN public.cmd_ack.payload IS 'The whole acknowledgement as the device sent it.';
COMMENT ON COLUMN public.cmd_ack.created_at IS 'When the first acknowledgement of the command was stored.';
COMMENT ON COLUMN public.cmd_ack.updated_at IS 'When the acknowledgement shown was stored.';

CREATE TABLE public.device_event (
    tenant_id  text COLLATE "C" NOT NULL CHECK (char_length(tenant_id) BETWEEN 1 AND 128),
    site_id    text COLLATE "C" NOT NULL CHECK (char_length(site_id) BETWEEN 1 AND 128),
    device_id  text COLLATE "C" NOT NULL CHECK (char_length(device_id) BETWEEN 1 AND 128),
    event_id   text COLLATE "C" NULL CHECK (char_length(event_id) BETWEEN 1 AND 128),
    event_type text COLLATE "C" NOT NULL CHECK (char_length(event_type) BETWEEN 1 AND 128),
    ts         timestamptz NOT NULL,
    data       jsonb NULL
);
CREATE UNIQUE INDEX device_event_id_key ON public.device_event (tenant_id, device_id, event_id) WHERE event_id IS NOT NULL;
CREATE UNIQUE INDEX device_event_ts_key ON public.device_event (tenant_id, device_id, event_type, ts) WHERE event_id IS NULL;
CREATE INDEX device_event_ts_idx ON public.device_event (tenant_id, ts);
COMMENT ON TABLE public.device_event IS
    'What happened on devices. An event is known again by its event_id or, if it has none, by its type and ts.';
COMMENT ON COLUMN public.device_event.ts IS 'When it happened, by the device''s own clock.';

CREATE TABLE public.ingest_errors (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   text COLLATE "C" NULL CHECK (char_length(tenant_id) BETWEEN 1 AND 128),
    topic       text NOT NULL,
    payload     bytea NOT NULL,
    reason      text COLLATE "C" NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 64),
    detail      text NULL,
    ts          timestamptz NOT NULL DEFAULT now(),
    replayed_at timestamptz NULL,
    digest      bytea NOT NULL UNIQUE CHECK (octet_length(digest) BETWEEN 16 AND 64),
    repeats     int NOT NULL DEFAULT 0,
    last_ts     timestamptz NULL
);
CREATE INDEX ingest_errors_tenant_idx ON public.ingest_errors (tenant_id, ts);
CREATE INDEX ingest_errors_reason_idx ON public.ingest_errors (reason, ts);
CREATE INDEX ingest_errors_ts_idx ON public.ingest_errors (ts);
COMMENT ON TABLE public.ingest_errors IS 'Dead letters: the messages that could not be stored as what they claim to be.';
COMMENT ON COLUMN public.ingest_errors.tenant_id IS 'Null if the topic does not name one; only operators see those.';
COMMENT ON COLUMN public.ingest_errors.topic IS 'The topic; bytes that are not UTF-8 appear as backslash escapes.';
COMMENT ON COLUMN public.ingest_errors.payload IS 'The exact bytes.';
COMMENT ON COLUMN public.ingest_errors.reason IS 'A short code of a closed set.';
COMMENT ON COLUMN public.ingest_errors.ts IS 'When it was first received.';
COMMENT ON COLUMN public.ingest_errors.replayed_at IS 'When it was last sent through the pipeline again, or null.';
COMMENT ON COLUMN public.ingest_errors.digest IS
    'Computed by the service over topic and payload: the same bytes on the same topic are one dead letter.';
COMMENT ON COLUMN public.ingest_errors.repeats IS 'How often the same message came again.';
COMMENT ON COLUMN public.ingest_errors.last_ts IS 'When it last came again, or null.';


-- Row security ---------------------------------------------------------------------------------------------------------
--
-- Two permissive policies: everybody gets an equality on the tenant, which indexes like; the owner, being an operator, gets
-- everything (FORCE would otherwise bind it to the first policy). Policies are chosen when a query is planned, so a tenant's
-- plan never sees the second one. Superusers and BYPASSRLS are exempt anyway.
-- ALTER ... OWNER does not change the second policy: recreate it then.

DO $$
DECLARE
    relation regclass;
BEGIN
    FOREACH relation IN ARRAY ARRAY[
        'traksense.tenant', 'traksense.device', 'traksense.series', 'traksense.meta',
        'public.cmd_ack', 'public.device_event', 'public.ingest_errors'
    ]::regclass[] LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', relation);
        EXECUTE format(
            'CREATE POLICY tenant ON %s TO PUBLIC '
            'USING (tenant_id = traksense.current_tenant()) WITH CHECK (tenant_id = traksense.current_tenant())',
            relation
        );
        EXECUTE format('CREATE POLICY operator ON %s TO CURRENT_USER USING (true) WITH CHECK (true)', relation);
    END LOOP;
END
$$;


-- What users read ------------------------------------------------------------------------------------------------------
--
-- security_barrier: a user's condition is evaluated before the tenant's only if it cannot leak (=, <, > on these columns can
-- not), so no function sees a row of another tenant. The views run with their owner's rights on the tables; the tenant is the
-- invoker's.

CREATE VIEW public.ts_measure WITH (security_barrier) AS
    SELECT
        s.tenant_id,
        s.site_id,
        s.device_id,
        s.point_id,
        m.ts,
        m.v_num,
        m.v_bool,
        m.v_text,
        s.unit,
        coalesce(m.qual, 0::smallint) AS qual,
        coalesce(m.meta, d.doc) AS meta
    FROM traksense.series s
    JOIN traksense.measure m ON m.series_id = s.series_id
    -- The tenant again: a wrong meta_id must not show another tenant's object.
    LEFT JOIN traksense.meta d ON d.meta_id = m.meta_id AND d.tenant_id = s.tenant_id
    WHERE s.tenant_id >= traksense.tenant_low() COLLATE "C" AND s.tenant_id <= traksense.tenant_high() COLLATE "C";
COMMENT ON VIEW public.ts_measure IS
    'Every measured value of the tenant in app.tenant_id (SET app.tenant_id = ''...''); nothing if unset; all for operators.';
COMMENT ON COLUMN public.ts_measure.ts IS 'The device''s time.';
COMMENT ON COLUMN public.ts_measure.v_num IS 'The value if it is a number; exactly one of v_num, v_bool, v_text is not null.';
COMMENT ON COLUMN public.ts_measure.v_bool IS 'The value if it is true or false.';
COMMENT ON COLUMN public.ts_measure.v_text IS 'The value if it is a text or a member of an enumeration.';
COMMENT ON COLUMN public.ts_measure.qual IS 'Quality: 0 good, 1 suspect, 2 bad.';
COMMENT ON COLUMN public.ts_measure.meta IS 'The meta object of the message that brought the value.';

-- The aggregates are computed when they are read; a later migration materialises them under the same names and columns.
DO $$
DECLARE
    suffix text;
    width  text;
BEGIN
    FOR suffix, width IN VALUES ('1m', '1 minute'), ('5m', '5 minutes'), ('1h', '1 hour') LOOP
        EXECUTE format(
            $view$
            CREATE VIEW public.%I WITH (security_barrier) AS
                SELECT
                    date_bin(interval %L, m.ts, timestamptz '1970-01-01 00:00:00+00') AS bucket,
                    s.tenant_id,
                    s.site_id,
                    s.device_id,
                    s.point_id,
                    avg(m.v_num) AS v_avg,
                    min(m.v_num) AS v_min,
                    max(m.v_num) AS v_max,
                    count(*) AS v_count
                FROM traksense.series s
                JOIN traksense.measure m ON m.series_id = s.series_id
                WHERE s.tenant_id >= traksense.tenant_low() COLLATE "C" AND s.tenant_id <= traksense.tenant_high() COLLATE "C"
                    AND m.v_num IS NOT NULL
                GROUP BY 1, 2, 3, 4, 5
            $view$,
            'ts_measure_' || suffix, width
        );
        EXECUTE format(
            'COMMENT ON VIEW public.%I IS %L',
            'ts_measure_' || suffix,
            format('The numbers of public.ts_measure by %s and point; bucket is the start, in device time, UTC.', width)
        );
    END LOOP;
END
$$;


INSERT INTO traksense.schema_version (version, name) VALUES (1, 'first_schema');
