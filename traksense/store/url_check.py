"""What the driver will not take of `DATABASE_URL`, and of the files that it names, found without connecting."""

from __future__ import annotations

import inspect
import os
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from asyncpg import connect_utils

from traksense.certificates import load_own, unusable_authorities
from traksense.errors import ConfigError
from traksense.store.fault_words import describe

if TYPE_CHECKING:
    from traksense.urls import DatabaseUrl

UNREADABLE: Final = "DATABASE_URL: the connection string cannot be read"

_TRUSTING: Final = ("require", "verify-ca", "verify-full")
"""The modes of TLS in which the driver reads whom to trust."""

_READ: Final = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]  # private: setup.cfg pins asyncpg
_ARGUMENTS: Final = dict.fromkeys(inspect.signature(_READ).parameters)


def check_url(url: DatabaseUrl) -> None:
    """Read it as the driver does for each connection.

    Raises:
        ConfigError: That fails.
    """
    dsn = url.dsn.reveal()
    try:
        _READ(**_ARGUMENTS | {"dsn": dsn})
    except (OSError, asyncpg.ClientConfigurationError) as error:
        fault = _fault_of_files(dsn) if isinstance(error, OSError) else None
        raise ConfigError([f"DATABASE_URL: {url}: {fault or describe(error)}{_remedy(error)}"]) from error
    except ValueError as error:
        # Its text may quote the password.
        raise ConfigError([UNREADABLE]) from error
    except LookupError as error:
        raise ConfigError([f"DATABASE_URL: {url}: names no user, and this process has none: write one in"]) from error


def _remedy(error: BaseException) -> str:
    if isinstance(error, asyncpg.ClientConfigurationError) and "root certificate file" in str(error):
        return ": name the file of the server's CA as sslrootcert in DATABASE_URL"
    return ""


def _fault_of_files(dsn: str) -> str | None:
    """What is wrong with which file: what the driver raises does not say."""
    query = dict(parse_qsl(urlsplit(dsn).query))

    def path(name: str, default: str) -> str | None:
        if given := query.get(name) or os.environ.get(f"PG{name.upper()}"):
            return given
        usual = connect_utils._dot_postgresql_path(default)  # type: ignore[attr-defined]  # as above
        return str(usual) if usual is not None and usual.exists() else None

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting = (query.get("sslmode") or os.environ.get("PGSSLMODE")) in _TRUSTING
    for name, default in (("sslrootcert", "root.crt"), ("sslcrl", "root.crl")) if trusting else ():
        if file := path(name, default):
            try:
                context.load_verify_locations(cafile=file)
            except OSError as error:
                return unusable_authorities(error, file, name)
    if cert := path("sslcert", "postgresql.crt"):
        key = path("sslkey", "postgresql.key")
        try:
            load_own(context, cert, key, ("sslcert", "sslkey"), query.get("sslpassword", ""))
        except ValueError as error:
            return str(error)
    return None
