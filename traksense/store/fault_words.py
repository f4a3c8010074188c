"""What is wrong with the database, in one line for people: what `/readyz`, logs and commands say.

The same trouble has the same words, whichever of its many ways the driver met it in: a reason that changes is a line in
the log. The server's own message is added where it names something; the driver's are of no use to anybody.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from typing import Final

import asyncpg

LOST: Final = "the connection to the database was lost"
SILENT: Final = "the database does not answer in time"
_NOT_WRITABLE: Final = "none of the database's hosts takes writes now"
_NO_TLS: Final = "the database's server refuses TLS"
_NOBODY: Final = "nobody answers at the database's address"

_POOLER: Final = "a connection pooler gives each transaction another server process; set its pool_mode to session"

_BY_SQLSTATE: Final[dict[str, str]] = {
    "08": LOST,
    "25006": "the database is read-only: a standby, or told to be",
    "26": _POOLER,
    "28": "the database does not let us in",
    "3D": "the database does not exist",
    "40": "the database has undone the transaction",
    "42": "the schema, or a right in it, is not as it should be",
    "42P05": _POOLER,
    "42501": "a right is missing",
    "53": "the database is short of something",
    "53100": "the database's disk is full",
    "53200": "the database has no memory left",
    "53300": "the database has no connection left for us",
    "55P03": "somebody holds a lock in the database for long (pg_locks, pg_stat_activity say who)",
    "57014": "a statement takes the database too long, or somebody cancelled it",
    "57P01": LOST,
    "57P02": LOST,
    "57P03": "the database is starting or stopping",
    "58": "the database's machine has a fault",
    "TK002": _POOLER,
}
"""By whole SQLSTATE first, then by its class."""

_WITHOUT_MESSAGE: Final = ("26000", "42P05", "55P03", "57014", "57P03", "TK002")
"""Nothing but these words: the server's message says no more, and one trouble may come with several of them."""

_LOST: Final = (
    asyncio.IncompleteReadError,
    asyncio.CancelledError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

_ERRNO: Final = re.compile(r"\[Errno (-?\d+)\]")


def describe(error: BaseException) -> str:
    """One line, without the data that the server quotes in DETAIL."""
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, asyncpg.PostgresError) and sqlstate:
        words = _BY_SQLSTATE.get(sqlstate) or _BY_SQLSTATE.get(sqlstate[:2])
        if words == LOST:
            return LOST
        parts = [words, "" if sqlstate in _WITHOUT_MESSAGE else _first_line(error)]
        return f"{': '.join(filter(None, parts))} (SQLSTATE {sqlstate})"[:500]
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return _NOT_WRITABLE
    if isinstance(error, asyncpg.DataError | ValueError | ssl.SSLError | socket.gaierror):
        return f"{_first_line(error)} ({type(error).__name__})"[:500]
    if isinstance(error, _LOST):
        return LOST
    if isinstance(error, OSError):
        return _describe_os_error(error)
    return f"{_first_line(error)} ({type(error).__name__})"[:500]


def _describe_os_error(error: OSError) -> str:
    numbers = {error.errno} if error.errno else {int(number) for number in _ERRNO.findall(str(error))}
    if numbers & {errno.EMFILE, errno.ENFILE}:
        return "this machine or process has no file descriptors left for connections to the database (ulimit -n)"
    if not numbers and isinstance(error, ConnectionError):
        # asyncpg's own; a server that ends while it is asked for TLS refuses it, too.
        return _NO_TLS if "SSL" in str(error) else LOST
    if error.filename and error.strerror:
        # A key or certificate, where libpq looks for them too.
        return f"cannot read {error.filename}: {error.strerror}"
    if not numbers:
        return SILENT if isinstance(error, TimeoutError) else f"{_first_line(error)} ({type(error).__name__})"[:500]
    return f"{_NOBODY}: {', '.join(sorted(map(os.strerror, numbers)))}"


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n", 1)[0].split()) or "no answer"
