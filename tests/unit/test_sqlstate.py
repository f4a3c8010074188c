"""Whose fault it is: the classification of every error that the driver can raise."""

from __future__ import annotations

import asyncio
import inspect
import socket

import asyncpg
import pytest

from traksense.errors import (
    DataRefusedError,
    StoreError,
    StoreMisconfiguredError,
    StoreTooSlowError,
    StoreUnavailableError,
    UnclassifiedStoreError,
)
from traksense.store.fault_words import describe
from traksense.store.sqlstate import translate

CASES: list[tuple[BaseException, type[StoreError]]] = [
    (asyncpg.ConnectionDoesNotExistError("gone"), StoreUnavailableError),
    (asyncpg.AdminShutdownError("bye"), StoreUnavailableError),
    (asyncpg.CannotConnectNowError("starting"), StoreUnavailableError),
    (asyncpg.DeadlockDetectedError("deadlock"), StoreUnavailableError),
    (asyncpg.SerializationError("again"), StoreUnavailableError),
    (asyncpg.DiskFullError("full"), StoreUnavailableError),
    (asyncpg.TooManyConnectionsError("many"), StoreUnavailableError),
    (asyncpg.QueryCanceledError("timeout"), StoreTooSlowError),
    (asyncpg.LockNotAvailableError("lock"), StoreUnavailableError),
    (asyncpg.ReadOnlySQLTransactionError("read only"), StoreUnavailableError),
    (asyncpg.PostgresIOError("disk"), StoreUnavailableError),
    (asyncpg.InterfaceError("pool is closed"), StoreUnavailableError),
    (asyncpg.OutdatedSchemaCacheError("schema"), StoreUnavailableError),
    (asyncpg.InvalidCachedStatementError("cache"), StoreUnavailableError),
    (ConnectionRefusedError(111, "refused"), StoreUnavailableError),
    (ConnectionResetError(104, "reset"), StoreUnavailableError),
    (socket.gaierror(-2, "unknown host"), StoreUnavailableError),
    (TimeoutError(), StoreUnavailableError),
    (asyncio.CancelledError(), StoreUnavailableError),
    (asyncpg.UndefinedTableError("no table"), StoreMisconfiguredError),
    (asyncpg.InsufficientPrivilegeError("no right"), StoreMisconfiguredError),
    (asyncpg.InvalidPasswordError("wrong"), StoreMisconfiguredError),
    (asyncpg.InvalidCatalogNameError("no database"), StoreMisconfiguredError),
    (asyncpg.FeatureNotSupportedError("COPY with RLS"), StoreMisconfiguredError),
    (asyncpg.CharacterNotInRepertoireError("nul"), DataRefusedError),
    (asyncpg.UntranslatableCharacterError("nul in jsonb"), DataRefusedError),
    (asyncpg.NumericValueOutOfRangeError("range"), DataRefusedError),
    (asyncpg.CheckViolationError("check"), DataRefusedError),
    (asyncpg.NotNullViolationError("null"), DataRefusedError),
    (asyncpg.CardinalityViolationError("twice"), DataRefusedError),
    (asyncpg.ProgramLimitExceededError("index row"), DataRefusedError),
    (asyncpg.DataError("cannot encode"), DataRefusedError),
    (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), DataRefusedError),
    (OverflowError("int too large"), DataRefusedError),
    (asyncpg.InternalClientError("cannot switch to state 11"), StoreUnavailableError),
    (asyncpg.InternalServerError("what?"), UnclassifiedStoreError),
    (asyncpg.ConfigurationLimitExceededError("tuple decompression limit"), UnclassifiedStoreError),
    (KeyError("a bug"), UnclassifiedStoreError),
]


@pytest.mark.parametrize(
    ("error", "expected"), CASES, ids=lambda value: getattr(value, "__name__", type(value).__name__)
)
def test_sqlstate_says_whose_fault(error: BaseException, expected: type[StoreError]) -> None:
    """Each error that is known from practice has its class, by SQLSTATE or by type."""
    assert expected is type(translate(error))


def test_sqlstate_classifies_everything_the_driver_knows() -> None:
    """Every PostgreSQL error class of the driver translates, keeps its SQLSTATE, and is one line."""
    for _, cls in inspect.getmembers(asyncpg.exceptions, inspect.isclass):
        if issubclass(cls, asyncpg.PostgresError) and cls.sqlstate:
            error = translate(cls("first line\nDETAIL: Key (name)=(private) exists"))
            assert cls.sqlstate == error.sqlstate
            assert "\n" not in str(error)
            assert "private" not in str(error)


def test_sqlstate_leaves_ours_alone() -> None:
    """An error that is already ours is passed on as it is."""
    ours = StoreUnavailableError("away", "57P03")

    assert ours is translate(ours)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), "the database does not answer in time"),
        (
            asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
            "the connection to the database was lost",
        ),
        (
            asyncpg.InterfaceError("cannot call Transaction.__aexit__(): the underlying connection is closed"),
            "the connection to the database was lost",
        ),
        (
            asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
            "the connection to the database was lost",
        ),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 5432, 0, 0), [Errno 111] Connect …"),
            "nobody answers at the database's address: Connection refused",
        ),
        (
            PermissionError(13, "Permission denied", "/etc/traksense/client.key"),
            "cannot read /etc/traksense/client.key: Permission denied",
        ),
        (
            OSError(24, "Too many open files"),
            "this machine or process has no file descriptors left for connections to the database (ulimit -n)",
        ),
        (
            asyncpg.DiskFullError("could not extend file: No space left on device\nHINT: Check free disk space."),
            "the database's disk is full: could not extend file: No space left on device (SQLSTATE 53100)",
        ),
        (
            asyncpg.InvalidSQLStatementNameError('prepared statement "__asyncpg_stmt_4c__" does not exist'),
            (
                "a connection pooler gives each transaction another server process; set its pool_mode to session "
                "(SQLSTATE 26000)"
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sqlstate_describes_in_our_words(error: BaseException, expected: str) -> None:
    """What is wrong is named, whichever way the driver met it."""
    assert expected == describe(error)
