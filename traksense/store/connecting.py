"""How commands connect: what can be wrong with that has the same words, and the same exit status, in each of them.

asyncio-flavored throughout.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from traksense.errors import ConfigError, StoreError, StoreMisconfiguredError, StoreUnavailableError, TraksenseError
from traksense.store import session_settings
from traksense.store.fault_words import LOST, NO_TLS, NOT_POSTGRESQL, SILENT
from traksense.store.schema_version import check_schema
from traksense.store.sqlstate import FOREIGN, UNUSABLE_URL, translate
from traksense.store.url_check import UNREADABLE, check_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from traksense.store.session_settings import ServiceConnection
    from traksense.urls import DatabaseUrl

PORT: Final = 5432
"""PostgreSQL's own."""

ANSWER_SECONDS: Final = 3.0
"""For something that has not answered before. Chosen by guess: a server answers before it looks at anything."""

NO_PRIVILEGE: Final = "42501"

_SSL_REQUEST: Final = bytes.fromhex("0000000804d2162f")
"""Every PostgreSQL answers it with one byte, and so does every pooler. Source: PostgreSQL 18 documentation, 54.7,
SSLRequest."""


async def connect(
    url: DatabaseUrl,
    *,
    application: str,
    settings: Mapping[str, str],
    connect_seconds: float,
    statement_seconds: float,
    schema: bool,
    **options: Any,
) -> ServiceConnection:
    """One connection, as `session_settings.connect` makes it.

    Args:
        url: Where to.
        application: See there.
        settings: See there.
        connect_seconds: See there.
        statement_seconds: See there.
        schema: Whether the database has to have the schema that this release needs.
        options: See there.

    Raises:
        ConfigError: The URL cannot work: a parameter, a file, the password, no such role or database.
        StoreError: The database is not available, or refuses, or has not that schema.
    """
    check_url(url)
    try:
        connection = await session_settings.connect(
            url.dsn.reveal(),
            application=application,
            settings=settings,
            connect_seconds=connect_seconds,
            statement_seconds=statement_seconds,
            **options,
        )
        if schema:
            await _check(connection)
    except (StoreError, *FOREIGN, ValueError) as error:
        raise await _told(error, url) from error
    return connection


@contextmanager
def located(url: DatabaseUrl) -> Iterator[None]:
    """Whatever a database fails with in the block says which database it is. Not for what `connect` raises.

    Raises:
        StoreError: It failed.
    """
    try:
        yield
    except (StoreError, *FOREIGN) as error:
        raise named(url, translate(error)) from error


def named(url: DatabaseUrl, error: StoreError) -> StoreError:
    """The same error, of a database that is named."""
    return type(error)(f"{url}: {error}", error.sqlstate)


async def explain(error: BaseException, dsn: str) -> StoreError:
    """The traksense error for one from connecting; it is found out whether what answers there is a PostgreSQL."""
    translated = translate(error)
    if str(translated) in (LOST, SILENT, NO_TLS) and await _is_something_else(dsn):
        return StoreUnavailableError(NOT_POSTGRESQL)
    return translated


async def check_operator(connection: Any) -> None:
    """Make sure that this role sees all of every tenant, and the policy: others would be shown a part, or refused at
    some later point. asyncio-flavored.

    Raises:
        StoreMisconfiguredError: It does not.
    """
    try:
        operator = await connection.fetchval("SELECT traksense.is_operator()")
    except asyncpg.InsufficientPrivilegeError:
        operator = False
    if not operator:
        raise StoreMisconfiguredError(
            "this role is not an operator: DATABASE_URL must be that of the role that ran `traksense migrate`",
            NO_PRIVILEGE,
        )


async def _check(connection: ServiceConnection) -> None:
    usable = False
    try:
        await check_schema(connection)
        usable = True
    except StoreError as error:
        # Whoever may not look at the version is told so at what comes next, in the words of that.
        usable = error.sqlstate == NO_PRIVILEGE
        if not usable:
            raise
    finally:
        if not usable:
            await session_settings.close(connection)


async def _told(error: BaseException, url: DatabaseUrl) -> TraksenseError:
    if isinstance(error, ValueError) and not isinstance(error, (OSError, asyncpg.ClientConfigurationError)):
        # Its text may quote the password.
        return ConfigError([UNREADABLE])
    found = await explain(error, url.dsn.reveal())
    if found.sqlstate in UNUSABLE_URL or isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigError([f"DATABASE_URL: {url}: {found}"])
    return named(url, found)


async def _is_something_else(dsn: str) -> bool:
    """Whether something listens there that is no PostgreSQL. Not asked where there are several hosts, or a socket."""
    parts = urlsplit(dsn)
    if not parts.hostname or "," in parts.netloc or {"host", "port"} & parse_qs(parts.query).keys():
        return False
    listens = False
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or PORT)
            listens = True
            try:
                writer.write(_SSL_REQUEST)
                answer = await reader.read(256)
            finally:
                writer.close()
    except OSError:
        return listens
    # An error is the answer of very old servers.
    return answer not in (b"S", b"N") and not answer.startswith(b"E")
