"""What is wrong with the database, and what to do about it, in one line: what `/readyz`, logs and commands say.

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
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import asyncpg

from traksense.certificates import untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

LOST: Final = "the connection to the database was lost"
SILENT: Final = "the database does not answer in time"
_NOT_WRITABLE: Final = "none of the hosts in DATABASE_URL accepts writes now"
NOT_POSTGRESQL: Final = (
    "what listens at the host and port in DATABASE_URL does not answer as a PostgreSQL server: correct them, or check "
    "the server and what stands before it"
)
NO_TLS: Final = "the database server refuses TLS: turn on ssl there, or change sslmode in DATABASE_URL"
_UNREACHABLE: Final = "the database server in DATABASE_URL cannot be reached"
_NO_FILE: Final = "the socket of the database server, or a certificate file in DATABASE_URL, does not exist"
_NOT_OUR_FILES: Final = "TLS with the database server fails over a file of ours: `traksense check-config` says which"
_UNRESOLVED: Final = "the host name in DATABASE_URL cannot be resolved"

POOLER: Final = (
    "a connection pooler gives each transaction another server process: set its pool_mode to session, or connect to "
    "PostgreSQL directly"
)

_BY_SQLSTATE: Final[dict[str, str]] = {
    "08": LOST,
    "08P01": "the database server, or a pooler in front of it, ended the session",
    "25006": "the database is read-only: it is a standby, where DATABASE_URL must name the primary, or "
    "default_transaction_read_only is on",
    "26": POOLER,
    "28": "the database server refuses the login: check user and password in DATABASE_URL, and pg_hba.conf",
    "3D": "the database named in DATABASE_URL does not exist",
    "3F": "the schema is missing: run `traksense migrate`, or correct DATABASE_URL",
    "40": "the database rolled the transaction back",
    "42": "the schema is not as this release needs it: run `traksense migrate`, and undo changes made by hand",
    "42P05": POOLER,
    "42501": "a privilege is missing: run `traksense migrate` as the owner of the schema, or correct the role in "
    "DATABASE_URL",
    "42704": "the database server lacks something that DATABASE_URL or the schema names",
    "53": "the database server has reached a limit",
    "53100": "the database's disk is full",
    "53200": "the database server is out of memory (for shared memory, raise max_locks_per_transaction)",
    "53300": "the database server has no connection left: lower DB_POOL_MAX, or raise the limit",
    "55P03": "another session holds a lock in the database for too long (see pg_locks and pg_stat_activity)",
    "57014": "a statement takes the database too long, or was cancelled (see pg_stat_activity)",
    "57P01": LOST,
    "57P02": LOST,
    "57P03": "the database server is starting or stopping",
    "58": "the database server has trouble with its disk or operating system",
    "TK002": POOLER,
}
"""By whole SQLSTATE first, then by its class."""

WHILE_MIGRATING: Final[dict[str, str]] = {
    "42": "the schema was changed by hand: undo that, or restore a backup",
    "42501": "a privilege is missing: the owner of the schema has to migrate it; to create it, a role needs CREATE on "
    "the database and on the schema public",
    "42P06": "this schema is somebody else's: take another database; or it was changed by hand: undo that, or "
    "restore a backup",
    "42P07": "something else in the database has this name: rename it, or take another database",
}
"""There the remedy cannot be to migrate."""

_NO_CONNECT: Final = "this role may not use the database: GRANT CONNECT ON DATABASE … TO …, or correct DATABASE_URL"
_CHECKS_CONNECT: Final = "CheckMyDatabase"
"""The function of the server that looks at CONNECT, which has the same SQLSTATE and words as others. Source:
PostgreSQL, src/backend/utils/init/postinit.c."""

_WITHOUT_MESSAGE: Final = ("25006", "26000", "42P05", "55P03", "57014", "57P03", "TK002")
"""Nothing but these words: the server's message says no more, and one trouble may come with several of them."""

_FILE: Final = re.compile(r'/[^/"]*"')
"""The last part of a path in a message: on a full disk each write meets it in another file."""

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


def describe(error: BaseException, instead: Mapping[str, str] = MappingProxyType({})) -> str:
    """One line, without the data that the server quotes in DETAIL.

    Args:
        error: What the driver raised.
        instead: Other words for some SQLSTATEs, or classes of them, for whoever does something else than the service.
    """
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, asyncpg.PostgresError) and sqlstate:
        known = {**_BY_SQLSTATE, **instead}
        words = known.get(sqlstate) or known.get(sqlstate[:2])
        if getattr(error, "server_source_function", None) == _CHECKS_CONNECT and sqlstate == "42501":
            words = _NO_CONNECT
        if words == LOST:
            return LOST
        message = "" if sqlstate in _WITHOUT_MESSAGE else _first_line(error)
        parts = [words, _FILE.sub('/…"', message) if sqlstate == "53100" else message]
        return f"{': '.join(filter(None, parts))} (SQLSTATE {sqlstate})"[:500]
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return _NOT_WRITABLE
    if isinstance(error, asyncpg.ClientConfigurationError):
        return f"a parameter of the URL cannot be used: {_first_line(error)}"[:500]
    if isinstance(error, socket.gaierror):
        return f"{_UNRESOLVED}: {error.strerror}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the database server {untrusted(error, 'sslrootcert', 'DATABASE_URL')}"
    if isinstance(error, IsADirectoryError) or (isinstance(error, ssl.SSLError) and _is_of_files(error)):
        return _NOT_OUR_FILES
    if isinstance(error, ssl.SSLError):
        return f"TLS with the database server fails: {error.reason or _first_line(error)}"
    if isinstance(error, asyncpg.DataError | ValueError):
        return f"{_first_line(error)} ({type(error).__name__})"[:500]
    if isinstance(error, _LOST):
        return LOST
    if isinstance(error, OSError):
        return _describe_os_error(error)
    return f"{_first_line(error)} ({type(error).__name__})"[:500]


def _is_of_files(error: ssl.SSLError) -> bool:
    """No handshake has begun then. For most that is wrong with a file OpenSSL has no reason."""
    reason = getattr(error, "reason", None)
    return reason in ("NO_CERTIFICATE_OR_CRL_FOUND", "KEY_VALUES_MISMATCH") or "PEM lib" in str(error)


def _describe_os_error(error: OSError) -> str:
    numbers = {error.errno} if error.errno else {int(number) for number in _ERRNO.findall(str(error))}
    if numbers & {errno.EMFILE, errno.ENFILE}:
        return "this machine or process has no file descriptors left for connections to the database (ulimit -n)"
    if not numbers and isinstance(error, ConnectionError):
        # asyncpg's own; a server that ends while it is asked for TLS refuses it, too.
        return NO_TLS if "SSL" in str(error) else LOST
    if error.filename and error.strerror:
        # A key or certificate, where libpq looks for them too.
        return f"cannot read {error.filename}: {error.strerror}"
    if error.errno == errno.ENOENT:
        return _NO_FILE
    if not numbers:
        return SILENT if isinstance(error, TimeoutError) else f"{_first_line(error)} ({type(error).__name__})"[:500]
    return f"{_UNREACHABLE}: {', '.join(sorted(map(os.strerror, numbers)))}"


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n", 1)[0].split()) or "no answer"
