"""Where broker and database are, and the secrets in it.

A password with an unescaped `/` ends the authority of a URL early: what follows would be taken for a host, a port or a
database, and be shown as such. So what is read here is read strictly, nothing is guessed, and no fault has any part of
the text.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import attrs

PORT_MAX: Final = 65535

MQTT_FORM: Final = "must look like mqtt://host:1883 or mqtts://host:8883"
ONE_BROKER: Final = "must name one broker: several addresses behind one name, or a TCP proxy, do what a list would"
DATABASE_FORM: Final = "must look like postgresql://user:password@host:5432/database"
ENCODE: Final = "in user name and password write %2F for /, %40 for @, %23 for #, %3F for ?, %25 for %, %20 for a space"

SESSION_ATTRIBUTES: Final = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
"""Source: libpq, target_session_attrs."""

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


class Secret(str):
    """A string that does not show itself in a repr or a log; `reveal()` gives the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def reveal(self) -> str:
        """The secret itself."""
        return str.__str__(self)


@attrs.frozen
class Broker:
    """Where the broker is, from `MQTT_URL`."""

    host: str
    port: int
    tls: bool
    username: str | None = None
    password: Secret | None = None

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


@attrs.frozen
class DatabaseUrl:
    """A PostgreSQL connection string whose password does not show."""

    dsn: Secret

    def __str__(self) -> str:
        """Where the database is, and as whom; every command shows it so. Of a URL that cannot be read, nothing."""
        try:
            parts = _split(self.dsn.reveal(), DATABASE_FORM)
        except ValueError:
            return "postgresql://***"
        # Only the user is taken from the parameters, several of which are secrets.
        query = dict(parse_qsl(parts.query))
        user, colon, _ = (parts.credentials or "").partition(":")
        user = user or quote(query.get("user", ""), safe="")
        password = ":***" if colon or "password" in query else ""
        return f"postgresql://{user}{password}{'@' if user or password else ''}{parts.hosts}{parts.path}"


def read_broker(text: str) -> Broker:
    """Read `MQTT_URL`.

    Raises:
        ValueError: It is none; the text says what is right, and has no part of it.
    """
    text = text.strip()
    # Before others read it: they take a list that begins with an IPv6 address for a broken one.
    if "," in re.split("[/?#]", text.partition("://")[2])[0].rpartition("@")[2]:
        raise ValueError(ONE_BROKER)
    parts = _split(text, MQTT_FORM)
    if parts.scheme not in ("mqtt", "mqtts", "tcp", "ssl"):
        raise ValueError(MQTT_FORM)
    if parts.path.strip("/") or parts.query:
        raise ValueError("must end after the port; topics belong in MQTT_TOPICS")
    ((host, port),) = _read_hosts(parts.hosts, MQTT_FORM)
    if not host:
        raise ValueError(MQTT_FORM)
    tls = parts.scheme in ("mqtts", "ssl")
    user, colon, password = parts.credentials.partition(":") if parts.credentials is not None else (None, "", "")
    return Broker(
        host=host.lower(),
        port=port if port is not None else (8883 if tls else 1883),
        tls=tls,
        username=unquote(user) if user is not None else None,
        password=Secret(unquote(password)) if colon else None,
    )


def read_database(text: str) -> DatabaseUrl:
    """Read `DATABASE_URL`; several hosts, each with a port, are a list that the driver understands.

    Raises:
        ValueError: It is none; the text says what is right, and has no part of it.
    """
    # SQLAlchemy's and Django's spellings of the same scheme are common in existing env files.
    text = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", text.strip())
    parts = _split(text, DATABASE_FORM)
    if parts.scheme != "postgresql" or len(parts.path) < 2:
        raise ValueError(DATABASE_FORM)
    _read_hosts(parts.hosts, DATABASE_FORM)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "sslmode" and value not in SSL_MODES:
            raise ValueError(f"must have one of {', '.join(SSL_MODES)} as sslmode")
        if name == "target_session_attrs" and value not in SESSION_ATTRIBUTES:
            raise ValueError(f"must have one of {', '.join(SESSION_ATTRIBUTES)} as target_session_attrs")
        if name == "port" and not all(_is_port(port) for port in value.split(",")):
            raise ValueError(f"must have 1-{PORT_MAX} as port")
    return DatabaseUrl(Secret(text))


@attrs.frozen
class _Parts:
    """A URL, as it is written. `credentials` is None if it has none."""

    scheme: str
    credentials: str | None = attrs.field(repr=False)
    hosts: str = attrs.field(repr=False)
    path: str = attrs.field(repr=False)
    query: str = attrs.field(repr=False)


def _split(text: str, form: str) -> _Parts:
    """Source: RFC 3986, section 3. What follows an unescaped `/`, `?` or `#` of a password holds the `@` that ends the
    credentials, which is where it is found out.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise ValueError(form)
    authority, tail = re.split("(?=[/?#])|$", rest, maxsplit=1)
    credentials, at, hosts = authority.rpartition("@")
    doubtful = (
        any(character.isspace() or not character.isprintable() for character in text)
        or "#" in rest
        or "@" in credentials + tail
        or bool(set("[]") & set(credentials))
        or not all(_is_encoded(part) for part in (credentials, tail))
    )
    try:
        # Others read it too, and refuse more than is refused here.
        urlsplit(text)
    except ValueError:
        doubtful = True
    if doubtful:
        raise ValueError(f"{form}; {ENCODE}")
    path, _, query = tail.partition("?")
    return _Parts(scheme.lower(), credentials if at else None, hosts, path, query)


def _read_hosts(text: str, form: str) -> list[tuple[str, int | None]]:
    """Names or addresses, with their ports."""
    hosts = []
    for part in text.split(","):
        found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::([^:]*))?", part)
        if found is None or (found[3] is not None and not _is_port(found[3])):
            raise ValueError(f"{form}, with a port of 1-{PORT_MAX}; {ENCODE}")
        host = found[1] or found[2]
        if not _is_host(host):
            raise ValueError(form)
        hosts.append((host, int(found[3]) if found[3] is not None else None))
    return hosts


def _is_host(text: str) -> bool:
    """Whether a resolver would take it, or it is empty: a label of a name has 1-63 characters."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 1 <= int(text) <= PORT_MAX


def _is_encoded(text: str) -> bool:
    """Whether each `%` begins a byte in hexadecimal, and the bytes are UTF-8 without NUL."""
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        return False
    try:
        return "\x00" not in unquote(text, errors="strict")
    except UnicodeDecodeError:
        return False
