-- traksense: the roles and the database. As a superuser; safe to repeat, which sets the passwords again:
--
--     OWNER_PASSWORD=… SERVICE_PASSWORD=… psql -X -v ON_ERROR_STOP=1 -f ops/database.sql
--
-- Then `traksense migrate` as traksense_owner makes the schema. Logins of tenants: tenant-login.sql.

\getenv owner_password OWNER_PASSWORD
\getenv service_password SERVICE_PASSWORD

SET client_min_messages = warning;
SELECT statement FROM (VALUES
    -- Owns the schema; for `traksense migrate`, `dlq`, `lifecycle` and `validate`.
    ('traksense_owner', 'CREATE ROLE traksense_owner LOGIN'),
    -- The service.
    ('traksense_service', 'CREATE ROLE traksense_service LOGIN'),
    -- What a role may do; `traksense migrate` gives them their rights.
    ('traksense_ingest', 'CREATE ROLE traksense_ingest NOLOGIN'),
    ('traksense_app', 'CREATE ROLE traksense_app NOLOGIN'),
    ('traksense_readonly', 'CREATE ROLE traksense_readonly NOLOGIN')
) AS wanted (role, statement)
WHERE to_regrole(role) IS NULL
\gexec

ALTER ROLE traksense_owner PASSWORD :'owner_password';
ALTER ROLE traksense_service PASSWORD :'service_password';
GRANT traksense_ingest TO traksense_service;
-- So that `validate` can look at the walls between tenants as a dashboard does (SET ROLE). This gives it no further rights.
GRANT traksense_readonly TO traksense_owner;

SELECT 'CREATE DATABASE traksense OWNER traksense_owner ENCODING ''UTF8'' TEMPLATE template0'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'traksense')
\gexec

-- With TimescaleDB, before the first migration:
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
    AND current_setting('shared_preload_libraries') LIKE '%timescaledb%' AS timescaledb \gset
\if :timescaledb
\connect traksense
CREATE EXTENSION IF NOT EXISTS timescaledb;
\endif
