-- traksense: one login for one application or dashboard, with its limits.
--
--     psql -X -v ON_ERROR_STOP=1 -d traksense -v login=reports -v role=traksense_readonly -v tenant=acme \
--         -f ops/tenant-login.sql
--
-- As a superuser; safe to repeat, with other values to change them. Without `tenant`, the application names it itself in each
-- session. Give it a password afterwards: \password reports. More values: `connections` (5), `statement` (30s), `idle` (10min),
-- `temp` (1GB).
--
-- Walls are the role's grants, the connection limit and temp_file_limit, which only a superuser can change. The other settings
-- are defaults that a session may change for itself, app.tenant_id included: they stop mistakes, not a person who writes SQL.
-- Settings of a role are visible to every role of the server: name logins after nobody.

\if :{?connections} \else \set connections 5 \endif
\if :{?statement} \else \set statement 30s \endif
\if :{?idle} \else \set idle 10min \endif
\if :{?temp} \else \set temp 1GB \endif

SET client_min_messages = warning;
SELECT pg_catalog.format('CREATE ROLE %I LOGIN', :'login')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'login')
\gexec

BEGIN;
ALTER ROLE :"login" NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT :connections;
GRANT :"role" TO :"login";
-- Wherever it logs in, not in this database only.
ALTER ROLE :"login" SET temp_file_limit = :'temp';
ALTER ROLE :"login" SET default_transaction_read_only = on;
ALTER ROLE :"login" SET statement_timeout = :'statement';
ALTER ROLE :"login" SET lock_timeout = '5s';
-- A transaction that stays open keeps old rows of every table from being cleaned up, and locks what it has read.
ALTER ROLE :"login" SET idle_in_transaction_session_timeout = '30s';
ALTER ROLE :"login" SET idle_session_timeout = :'idle';
-- What an earlier release set in this database only would go before these.
ALTER ROLE :"login" IN DATABASE :"DBNAME" RESET ALL;
\if :{?tenant}
ALTER ROLE :"login" IN DATABASE :"DBNAME" SET app.tenant_id = :'tenant';
\endif
COMMIT;
