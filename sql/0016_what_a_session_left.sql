-- traksense, migration 16: that a service left its session on purpose, and what its broker had said of itself by then.

ALTER TABLE traksense.ingest_session
    ADD COLUMN left_at timestamptz NULL,
    ADD COLUMN broker_started_at timestamptz NULL,
    ADD COLUMN broker_dropped numeric(20) NULL,
    ADD COLUMN broker_denies_session boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN traksense.ingest_session.left_at IS
    'When the service ended its last connection in good order; nobody uses the session if last_alive_at is not later.';
COMMENT ON COLUMN traksense.ingest_session.broker_started_at IS
    'When the broker was started, at the latest; NULL if it has never told its uptime.';
COMMENT ON COLUMN traksense.ingest_session.broker_dropped IS
    'How many messages the broker had dropped since then, by its own count; NULL if it has never told.';
COMMENT ON COLUMN traksense.ingest_session.broker_denies_session IS
    'Whether the broker has said that it had no session for us, and delivered what was queued in it: its word is not taken.';

INSERT INTO traksense.schema_version (version, name) VALUES (16, 'what_a_session_left');
