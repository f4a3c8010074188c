-- traksense, migration 7: what each broker session is subscribed to, so that replicas can hand topics to each other.

ALTER TABLE traksense.ingest_session
    ADD COLUMN held text[] NOT NULL DEFAULT '{}',
    ADD COLUMN claimed text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN traksense.ingest_session.held IS
    'Topic filters that the session may have at the broker: those of its configuration, and older ones until UNSUBACK.';
COMMENT ON COLUMN traksense.ingest_session.claimed IS
    'Topic filters of its configuration, granted by the broker: others may give these up.';

INSERT INTO traksense.schema_version (version, name) VALUES (7, 'subscriptions');
