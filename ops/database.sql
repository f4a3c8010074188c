-- traksense: the roles and the database, on a server that has neither. As a superuser:
--
--     OWNER_PASSWORD=… SERVICE_PASSWORD=… psql -X -v ON_ERROR_STOP=1 -f ops/database.sql
--
-- Then `traksense migrate` as traksense_owner makes the schema. Logins of tenants: tenant-login.sql.

\getenv owner_password OWNER_PASSWORD
\getenv service_password SERVICE_PASSWORD

-- Owns the schema; for `traksense migrate`, `dlq`, `lifecycle` and `validate`.
CREATE ROLE traksense_owner LOGIN PASSWORD :'owner_password';
-- What a role may do; `traksense migrate` gives them their rights.
CREATE ROLE traksense_ingest NOLOGIN;
CREATE ROLE traksense_app NOLOGIN;
CREATE ROLE traksense_readonly NOLOGIN;
-- So that `validate` can look at the walls between tenants as a dashboard does (SET ROLE). This gives it no further rights.
GRANT traksense_readonly TO traksense_owner;
-- The service.
CREATE ROLE traksense_service LOGIN PASSWORD :'service_password' IN ROLE traksense_ingest;

CREATE DATABASE traksense OWNER traksense_owner ENCODING 'UTF8' TEMPLATE template0;

-- With TimescaleDB, before the first migration:
SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
    AND current_setting('shared_preload_libraries') LIKE '%timescaledb%' AS timescaledb \gset
\if :timescaledb
\connect traksense
CREATE EXTENSION timescaledb;
\endif
