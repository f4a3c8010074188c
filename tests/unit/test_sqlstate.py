"""Whose fault it is: the classification of every error that the driver can raise."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl

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
    (asyncpg.ClientConfigurationError("gsslib"), StoreMisconfiguredError),
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
            asyncpg.ProtocolViolationError("server login has been failing, try again later"),
            (
                "the database server, or a pooler in front of it, ended the session: server login has been failing, "
                "try again later (SQLSTATE 08P01)"
            ),
        ),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 5432, 0, 0), [Errno 111] Connect …"),
            "the database server in DATABASE_URL cannot be reached: Connection refused",
        ),
        (
            FileNotFoundError(2, "No such file or directory"),
            "the socket of the database server, or a certificate file in DATABASE_URL, does not exist",
        ),
        (
            IsADirectoryError(21, "Is a directory"),
            "TLS with the database server fails over a file of ours: `traksense check-config` says which",
        ),
        (
            ssl.SSLError(524297, "[SSL] PEM lib (_ssl.c:3895)"),
            "TLS with the database server fails over a file of ours: `traksense check-config` says which",
        ),
        (
            socket.gaierror(-2, "Name or service not known"),
            "the host name in DATABASE_URL cannot be resolved: Name or service not known",
        ),
        (
            asyncpg.ClientConfigurationError("gsslib parameter must be either 'gssapi' or 'sspi', got 'x'"),
            "a parameter of the URL cannot be used: gsslib parameter must be either 'gssapi' or 'sspi', got 'x'",
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
            asyncpg.DiskFullError('could not extend file "base/16389/2619": No space left on device\nHINT: Check …'),
            (
                'the database\'s disk is full: could not extend file "base/16389/…": No space left on device '
                "(SQLSTATE 53100)"
            ),
        ),
        (
            asyncpg.InvalidSQLStatementNameError('prepared statement "__asyncpg_stmt_4c__" does not exist'),
            (
                "a connection pooler gives each transaction another server process: set its pool_mode to session, or "
                "connect to PostgreSQL directly (SQLSTATE 26000)"
            ),
        ),
        (
            asyncpg.InvalidPasswordError('password authentication failed for user "ingest"'),
            (
                "the database server refuses the login: check user and password in DATABASE_URL, and pg_hba.conf: "
                'password authentication failed for user "ingest" (SQLSTATE 28P01)'
            ),
        ),
        (
            asyncpg.InsufficientPrivilegeError("permission denied for table measure"),
            (
                "a privilege is missing: run `traksense migrate` as the owner of the schema, or correct the role in "
                "DATABASE_URL: permission denied for table measure (SQLSTATE 42501)"
            ),
        ),
        (
            asyncpg.UndefinedTableError('relation "traksense.measure" does not exist'),
            (
                "the schema is not as this release needs it: run `traksense migrate`, and undo changes made by hand: "
                'relation "traksense.measure" does not exist (SQLSTATE 42P01)'
            ),
        ),
        (
            asyncpg.ReadOnlySQLTransactionError("cannot execute nextval() in a read-only transaction"),
            (
                "the database is read-only: it is a standby, where DATABASE_URL must name the primary, or "
                "default_transaction_read_only is on (SQLSTATE 25006)"
            ),
        ),
        (
            asyncpg.TooManyConnectionsError("sorry, too many clients already"),
            (
                "the database server has no connection left: lower DB_POOL_MAX, or raise the limit: sorry, too many "
                "clients already (SQLSTATE 53300)"
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sqlstate_describes_in_our_words(error: BaseException, expected: str) -> None:
    """What is wrong is named, whichever way the driver met it."""
    assert expected == describe(error)
