-- traksense: what every login of PostgreSQL may do by default, taken away from those that tenants use.
--
--     psql -X -v ON_ERROR_STOP=1 -d traksense -f ops/tenant-walls.sql
--
-- Once for each database, as a superuser, after `traksense migrate`; safe to repeat. It is no part of `migrate` because it
-- changes rights of PUBLIC in the whole database: in one that is shared with other applications, read it first, and GRANT
-- them what they need. The owner of the schema and the service keep all of it.
--
-- What is taken: temporary tables, tables in schema public, large objects, advisory locks, messages in the write-ahead log,
-- and transaction numbers taken without a write. With each of these a role that may only read fills the disk, holds up others,
-- or uses up what the whole server shares. What no grant can take is in ops/operations.md, "Logins of tenants".
--
-- The databases postgres and template1 come with each server, and let every login in, where all of this would be allowed:
-- they are closed to logins that are no superusers (GRANT CONNECT ON DATABASE postgres TO … for those who need them). Other
-- databases that let every login in are listed at the end: what this file takes, a login still has there.

BEGIN;

DO $$
DECLARE
    keepers text;
    routine regprocedure;
    other name;
BEGIN
    -- Who keeps it: the owners of the database and of our schema, and the service.
    SELECT string_agg(DISTINCT format('%I', rolname), ', ') INTO keepers
    FROM pg_catalog.pg_roles
    WHERE oid IN (
        (SELECT datdba FROM pg_catalog.pg_database WHERE datname = current_database()),
        (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'traksense')
    ) OR rolname = 'traksense_ingest';

    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO %s', current_database(), keepers);
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    -- Databases that were made by PostgreSQL 15 or newer have this already.
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;

    FOR routine IN
        SELECT oid::regprocedure FROM pg_catalog.pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND (
            -- Not those that release: poolers call pg_advisory_unlock_all() between two users.
            proname ~ '^pg_(try_)?advisory_(xact_)?lock(_shared)?$'
            OR proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_put', 'lowrite', 'lo_open', 'lo_import')
            OR proname IN ('pg_logical_emit_message', 'pg_current_xact_id', 'txid_current')
        )
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', routine, keepers);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', routine);
    END LOOP;

    FOR other IN
        SELECT datname FROM pg_catalog.pg_database
        WHERE datname IN ('postgres', 'template1') AND datname <> current_database()
            AND has_database_privilege('public', oid, 'CONNECT')
    LOOP
        EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', other);
    END LOOP;
END
$$;

COMMIT;

SELECT datname AS "databases that every login can still enter"
FROM pg_catalog.pg_database
WHERE datallowconn AND datname <> current_database() AND has_database_privilege('public', oid, 'CONNECT')
ORDER BY datname;
