"""What a COMMIT must wait for, and what is said while it does."""

from __future__ import annotations

from typing import Final

WAITING_FOR_STANDBY: Final = (
    "waiting for the synchronous standby: nothing is acknowledged that it does not have (pg_stat_replication says "
    "which standbys there are, synchronous_standby_names which are wanted)"
)

COMMIT_RECORD: Final = "SELECT pg_logical_emit_message(true, 'traksense', '')"
"""Gives a transaction that writes nothing a commit record, for which COMMIT waits as for any other. Source: PostgreSQL,
RecordTransactionCommit: without one, COMMIT waits for nobody."""
