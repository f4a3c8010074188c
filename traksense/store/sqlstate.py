"""Whose fault is it? One table from SQLSTATE to what is to be done.

Sources: PostgreSQL 18 documentation, appendix A (error codes); asyncpg 0.32 `exceptions`; the notes beside each line.
The default for what is not listed is `UnclassifiedStoreError`: bisect, and call a message poison only if it fails
alone while the database takes other writes.
"""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import asyncpg

from traksense.errors import (
    DataRefusedError,
    DictionaryChangedError,
    ServerUnfitError,
    StoreError,
    StoreMisconfiguredError,
    StoreTooSlowError,
    StoreUnavailableError,
    UnclassifiedStoreError,
)
from traksense.store.fault_words import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

_WAIT: Final = StoreUnavailableError
_OPERATOR: Final = StoreMisconfiguredError
_DATA: Final = DataRefusedError
_UNKNOWN: Final = UnclassifiedStoreError

FAULTS: Final[dict[str, type[StoreError]]] = {
    # Nobody's: wait and write the whole batch again.
    "08": _WAIT,  # connection exception; includes 08007, transaction resolution unknown: the unique key resolves it
    "24": _WAIT,  # invalid cursor state
    "25": _WAIT,  # invalid transaction state: 25006 read-only after a failover, 25P03 idle in transaction time-out
    "26": _WAIT,  # invalid SQL statement name: a prepared statement that belonged to another server process
    "2D": _WAIT,  # invalid transaction termination
    "34": _WAIT,  # invalid cursor name
    "3B": _WAIT,  # savepoint exception
    "40": _WAIT,  # transaction rollback: 40001 serialization failure, 40P01 deadlock, 40003 completion unknown
    "53": _WAIT,  # insufficient resources: 53100 disk full, 53200 out of memory, 53300 too many connections
    "55006": _WAIT,  # object in use
    "42P03": _WAIT,  # duplicate cursor
    "42P05": _WAIT,  # duplicate prepared statement: as class 26
    "55P03": _WAIT,  # lock not available: lock_timeout
    "57": _WAIT,  # operator intervention: 57P01-57P03 shutting down, starting up
    "57014": StoreTooSlowError,  # query cancelled: statement_timeout, or by an operator
    "58": _WAIT,  # system error outside PostgreSQL: 58030 I/O error
    # An operator's: wait, and say what is missing.
    "0A": _OPERATOR,  # feature not supported, such as COPY into a view or under row-level security
    "0L": _OPERATOR,  # invalid grantor
    "0P": _OPERATOR,  # invalid role
    "28": _OPERATOR,  # invalid authorization: the password was changed under us
    "3D": _OPERATOR,  # no such database
    "3F": _OPERATOR,  # no such schema
    "TK001": DictionaryChangedError,  # our own: traksense.hold_dictionary
    "TK002": ServerUnfitError,  # our own: a pooler has changed the server process
    "42": _OPERATOR,  # undefined table or column, insufficient privilege (42501, also a refused RLS check)
    # The data's: bisect down to the message.
    "21": _DATA,  # cardinality violation
    "22": _DATA,  # data exception: out of range, NUL in text (22021) or jsonb (22P05), invalid JSON (22P02)
    "23": _DATA,  # constraint violation
    "44": _DATA,  # WITH CHECK OPTION violation
    "P0": _DATA,  # raised by a trigger of somebody's
    "54": _DATA,  # program limit exceeded: index row too long, jsonb nested beyond the stack
    # Looks like resources, but waiting does not help: TimescaleDB's tuple decompression limit. A smaller batch may
    # pass.
    "53400": _UNKNOWN,
}
"""By whole SQLSTATE first, then by its class (the first two characters)."""

UNUSABLE_URL: Final = ("28P01", "28000", "3D000")
"""Wrong password, no such role, no such database: at the first connection these are configuration errors, not
trouble."""

FOREIGN: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
"""What the driver raises when the database refuses or fails; TimeoutError is an OSError."""

BROKEN_SESSION: Final = ("24", "25", "26", "2D", "34", "3B", "42P03", "42P05", "TK002")
"""What a session says that is not as we left it. It is never used again: whoever comes next gets a new one."""

_NO_ANSWER: Final = (
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    asyncio.CancelledError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # "cannot switch to state …": the connection died under the driver's feet
)
"""No SQLSTATE: the connection was lost, refused or too slow, or closed under us while the pool was shutting down.

A CancelledError that Trio did not send comes from asyncpg giving up a connection (trio-asyncio documents this case)."""

_CLIENT_DATA: Final = (asyncpg.DataError, UnicodeError, OverflowError, ValueError, TypeError)
"""The driver could not encode a value; nothing of it was sent. asyncpg's client-side DataError is an InterfaceError
too."""

_STALE_CACHE: Final = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)
"""The schema changed under a prepared statement: asyncpg has dropped it, and the next try prepares it anew."""


def translate(error: BaseException, instead: Mapping[str, str] = MappingProxyType({})) -> StoreError:
    """The traksense error for a foreign one; to be raised `from` it. `instead` is that of `describe`."""
    if isinstance(error, StoreError):
        return error
    text = describe(error, instead)
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, _STALE_CACHE):
        return StoreUnavailableError(text, sqlstate)
    if isinstance(error, asyncpg.PostgresError) and sqlstate:
        return fault(sqlstate)(text, sqlstate)
    if isinstance(error, asyncpg.ClientConfigurationError):
        return StoreMisconfiguredError(text)
    if isinstance(error, _CLIENT_DATA):
        return DataRefusedError(text)
    if isinstance(error, _NO_ANSWER):
        return StoreUnavailableError(text)
    return UnclassifiedStoreError(text)


def fault(sqlstate: str) -> type[StoreError]:
    """The error class for a SQLSTATE."""
    return FAULTS.get(sqlstate) or FAULTS.get(sqlstate[:2], UnclassifiedStoreError)


def is_broken_session(sqlstate: str | None) -> bool:
    """Whether the session, rather than the data or the server, is to blame."""
    return sqlstate is not None and (sqlstate in BROKEN_SESSION or sqlstate[:2] in BROKEN_SESSION)
