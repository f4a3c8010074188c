-- traksense, migration 2: what a tenant could learn of another without reading a row of it.
--
-- 1. Estimates. `EXPLAIN ... WHERE device_id = 'guess'` shows how many rows the planner expects, and the planner asks its
--    statistics of all tenants. A guess that is a common value there is estimated differently from one that is not: names
--    and values could be probed. So no statistics are kept of names and values, only of series and times, on which the plans
--    rest (ops/decisions/0030).
-- 2. Counts. `EXPLAIN ANALYZE ... WHERE v_text = 'guess'` shows how many rows each node passed on. A condition with a
--    leakproof operator is pushed below the security barrier, and the scan of the measurements would count everybody's rows
--    that meet it. So the views give values through traksense.opaque(): it is declared volatile, which keeps conditions on
--    its result above the barrier, and inlined afterwards, so that it costs nothing.

CREATE FUNCTION traksense.keep_no_statistics(relation regclass) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
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
COMMENT ON FUNCTION traksense.keep_no_statistics IS
    'Makes ANALYZE leave out all columns of a table but series and times: statistics of names and values can be probed with EXPLAIN.';
REVOKE ALL ON FUNCTION traksense.keep_no_statistics(regclass) FROM PUBLIC;

SELECT traksense.keep_no_statistics(relation::regclass)
FROM unnest(ARRAY[
    'traksense.tenant', 'traksense.device', 'traksense.series', 'traksense.meta', 'traksense.measure',
    'public.cmd_ack', 'public.device_event', 'public.ingest_errors'
]) AS relation;
SELECT traksense.keep_no_statistics(inhrelid::regclass) FROM pg_catalog.pg_inherits
WHERE inhparent = 'traksense.measure'::regclass;

-- As in migration 1, with one line more: a new partition keeps no statistics either.
CREATE OR REPLACE FUNCTION traksense.ensure_partitions(from_ts timestamptz, to_ts timestamptz) RETURNS SETOF tstzrange
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

CREATE FUNCTION traksense.opaque(double precision) RETURNS double precision LANGUAGE sql VOLATILE PARALLEL SAFE RETURN $1;
CREATE FUNCTION traksense.opaque(boolean) RETURNS boolean LANGUAGE sql VOLATILE PARALLEL SAFE RETURN $1;
CREATE FUNCTION traksense.opaque(text) RETURNS text LANGUAGE sql VOLATILE PARALLEL SAFE RETURN $1;
CREATE FUNCTION traksense.opaque(smallint) RETURNS smallint LANGUAGE sql VOLATILE PARALLEL SAFE RETURN $1;
CREATE FUNCTION traksense.opaque(bigint) RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE RETURN $1;
CREATE FUNCTION traksense.opaque(jsonb) RETURNS jsonb LANGUAGE sql VOLATILE PARALLEL SAFE RETURN $1;
CREATE FUNCTION traksense.opaque(timestamptz) RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE RETURN $1;
DO $$
DECLARE
    kind text;
BEGIN
    FOREACH kind IN ARRAY ARRAY['double precision', 'boolean', 'text', 'smallint', 'bigint', 'jsonb', 'timestamptz'] LOOP
        EXECUTE format(
            'COMMENT ON FUNCTION traksense.opaque(%s) IS %L',
            kind, 'The value itself; conditions on it are not evaluated below a security barrier.'
        );
        EXECUTE format('GRANT EXECUTE ON FUNCTION traksense.opaque(%s) TO PUBLIC', kind);
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW public.ts_measure WITH (security_barrier) AS
    SELECT
        s.tenant_id,
        s.site_id,
        s.device_id,
        s.point_id,
        m.ts,
        traksense.opaque(m.v_num) AS v_num,
        traksense.opaque(m.v_bool) AS v_bool,
        traksense.opaque(m.v_text) AS v_text,
        s.unit,
        traksense.opaque(coalesce(m.qual, 0::smallint)) AS qual,
        coalesce(m.meta, d.doc) AS meta
    FROM traksense.series s
    JOIN traksense.measure m ON m.series_id = s.series_id
    -- The tenant again: a wrong meta_id must not show another tenant's object.
    LEFT JOIN traksense.meta d ON d.meta_id = m.meta_id AND d.tenant_id = s.tenant_id
    WHERE s.tenant_id >= traksense.tenant_low() COLLATE "C" AND s.tenant_id <= traksense.tenant_high() COLLATE "C";

-- 3. Indexes. Where an index leads to a row before its tenant is looked at, EXPLAIN ANALYZE counts the rows that were removed
--    afterwards: whether a certain message of another tenant is a dead letter, how many it has for a reason. So every index
--    on a name or a content has the tenant first. The topic is part of the digest: the key is as unique as before.
ALTER TABLE public.ingest_errors DROP CONSTRAINT ingest_errors_digest_key;
ALTER TABLE public.ingest_errors
    ADD CONSTRAINT ingest_errors_digest_key UNIQUE NULLS NOT DISTINCT (tenant_id, digest);
DROP INDEX public.ingest_errors_reason_idx;
CREATE INDEX ingest_errors_reason_idx ON public.ingest_errors (tenant_id, reason, ts);
-- Without statistics the planner takes this one for a query that names tenant and device: then both shall lead to the rows.
DROP INDEX traksense.series_tenant_idx;
CREATE INDEX series_tenant_idx ON traksense.series (tenant_id, device_id, site_id);
-- For the last acknowledgements of a tenant, and for their retention.
CREATE INDEX cmd_ack_updated_idx ON public.cmd_ack (tenant_id, updated_at);


-- The tenants that the service writes for ---------------------------------------------------------------------------------
--
-- A batch has messages of many tenants. The service names them for the transaction, from the topics of the messages:
-- SET LOCAL app.tenant_ids = 'acme/bravo'. A name from a topic has no slash. Policies with this function exist for the role
-- traksense_ingest only (sql/roles.sql): nobody else gains anything by setting it.
CREATE FUNCTION traksense.ingest_tenants() RETURNS SETOF text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN unnest(string_to_array(pg_catalog.current_setting('app.tenant_ids', true), '/'));
COMMENT ON FUNCTION traksense.ingest_tenants IS
    'The tenants that the service writes for in this transaction: SET LOCAL app.tenant_ids, separated by slashes.';
REVOKE ALL ON FUNCTION traksense.ingest_tenants() FROM PUBLIC;


INSERT INTO traksense.schema_version (version, name) VALUES (2, 'walls');
