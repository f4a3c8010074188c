"""The configuration: frozen, from environment variables, with every fault named at once.

Each field of `Settings` names its variable, its unit and its default; `ops/.env.ingest` explains them to operators and
a test holds the two together. The names and the first defaults are those of the system that this one replaces.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import attrs
import cattrs

from traksense.errors import ConfigError
from traksense.shards import Entry, Layout, parse_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BYTES: Final = 1
MIB: Final = 1024 * 1024 * BYTES
SECONDS: Final = 1.0
MILLISECONDS: Final = SECONDS / 1000
MINUTES: Final = 60 * SECONDS
HOURS: Final = 60 * MINUTES
DAYS: Final = 24 * HOURS

RECEIVE_MAXIMUM_LIMIT: Final = 65535
"""The largest Receive Maximum that a client can ask for. Source: MQTT 5.0 §3.1.2.11.3."""

_WILDCARDS: Final = frozenset("+#")

N = TypeVar("N", int, float)


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
        """Where the database is, without credentials."""
        parts = urlsplit(self.dsn.reveal())
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _variable(name: str, *, default: Any = attrs.NOTHING, from_file: bool = False, unit: float = 1) -> Any:
    return attrs.field(default=default, metadata={"variable": name, "from_file": from_file, "unit": unit})


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that can be configured. Durations are in seconds whatever unit their variable has."""

    # The broker
    broker: Broker = _variable("MQTT_URL", default=Broker(host="localhost", port=1883, tls=False), from_file=True)
    mqtt_topics: tuple[str, ...] = _variable(
        "MQTT_TOPICS",
        default=("traksense/+/+/+/telem", "traksense/+/+/+/ack", "traksense/+/+/+/event"),
    )
    mqtt_tenants: tuple[Entry, ...] = _variable("MQTT_TENANTS", default=(), from_file=True)
    mqtt_shard_count: int | None = _variable("MQTT_SHARD_COUNT", default=None)
    mqtt_shard: int | None = _variable("MQTT_SHARD", default=None)
    mqtt_handover: float = _variable("MQTT_HANDOVER_SECONDS", default=30 * SECONDS)
    mqtt_unsubscribe: tuple[str, ...] = _variable("MQTT_UNSUBSCRIBE", default=())
    mqtt_qos: int = _variable("MQTT_QOS", default=1)
    mqtt_version: Literal["5", "3.1.1"] = _variable("MQTT_VERSION", default="5")
    mqtt_reader: Literal["paho", "mqtt5"] = _variable("MQTT_READER", default="paho")
    mqtt_username: str | None = _variable("MQTT_USERNAME", default=None)
    mqtt_password: Secret | None = _variable("MQTT_PASSWORD", default=None, from_file=True)
    mqtt_client_id: str = _variable("MQTT_CLIENT_ID", default="traksense-ingest")
    mqtt_keepalive: float = _variable("MQTT_KEEPALIVE", default=30 * SECONDS)
    mqtt_session_expiry: float = _variable("MQTT_SESSION_EXPIRY", default=14 * DAYS)
    mqtt_ca_file: Path | None = _variable("MQTT_CA_FILE", default=None)
    mqtt_cert_file: Path | None = _variable("MQTT_CERT_FILE", default=None)
    mqtt_key_file: Path | None = _variable("MQTT_KEY_FILE", default=None)

    # Backpressure and batches
    queue_max: int = _variable("INGEST_QUEUE_MAX", default=50_000)
    queue_max_bytes: int = _variable("INGEST_QUEUE_BYTES", default=48 * MIB)
    batch_size: int = _variable("INGEST_BATCH_SIZE", default=5_000)
    batch_wait: float = _variable("INGEST_BATCH_MS", default=250 * MILLISECONDS, unit=MILLISECONDS)
    shutdown_deadline: float = _variable("INGEST_SHUTDOWN_SECONDS", default=25 * SECONDS)

    # What is acceptable
    provisioning: Literal["auto", "strict"] = _variable("INGEST_PROVISIONING", default="auto")
    payload_max_bytes: int = _variable("INGEST_PAYLOAD_MAX_BYTES", default=1 * MIB)
    points_max: int = _variable("INGEST_POINTS_MAX", default=10_000)
    ts_min: datetime = _variable("INGEST_TS_MIN", default=datetime(2000, 1, 1, tzinfo=UTC))
    ts_ahead: float = _variable("INGEST_TS_AHEAD_SECONDS", default=1 * DAYS)

    # The database
    database: DatabaseUrl = _variable(
        "DATABASE_URL",
        default=DatabaseUrl(Secret("postgresql://postgres:postgres@localhost:5432/traksense")),
        from_file=True,
    )
    db_pool_min: int = _variable("DB_POOL_MIN", default=2)
    db_pool_max: int = _variable("DB_POOL_MAX", default=8)
    db_statement_timeout: float = _variable("DB_STATEMENT_TIMEOUT", default=30 * SECONDS)
    db_allow_unsafe: bool = _variable("DB_ALLOW_UNSAFE", default=False)

    # Observability
    metrics_host: str = _variable("METRICS_HOST", default="0.0.0.0")  # noqa: S104  (containers are scraped from outside)
    metrics_port: int = _variable("METRICS_PORT", default=9100)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _variable("LOG_LEVEL", default="INFO")
    log_format: Literal["json", "text"] = _variable("LOG_FORMAT", default="json")

    @functools.cached_property
    def layout(self) -> Layout | None:
        """How the topics are divided among replicas, or None if they are not."""
        if self.mqtt_shard_count is None:
            return None
        return Layout(self.mqtt_topics, self.mqtt_tenants, self.mqtt_shard_count)

    @functools.cached_property
    def topics(self) -> tuple[str, ...]:
        """What this process subscribes to: `MQTT_TOPICS`, or the part of it that `MQTT_SHARD` names. May be empty."""
        if self.layout is None or self.mqtt_shard is None:
            return self.mqtt_topics
        return self.layout.filters(self.mqtt_shard)

    @property
    def client_id(self) -> str:
        """What names our session: `MQTT_CLIENT_ID`, with the number of the shard behind it, so that replicas can share
        one file. Without the count: the session outlives a change of that.
        """
        return self.mqtt_client_id if self.mqtt_shard is None else f"{self.mqtt_client_id}-{self.mqtt_shard}"

    @property
    def receive_maximum(self) -> int:
        """How many unacknowledged messages the broker may have under way: what the queue can hold, within MQTT's
        limit.
        """
        return min(self.queue_max, RECEIVE_MAXIMUM_LIMIT)

    @property
    def username(self) -> str | None:
        """`MQTT_USERNAME`, or the user in `MQTT_URL`."""
        return self.mqtt_username if self.mqtt_username is not None else self.broker.username

    @property
    def password(self) -> Secret | None:
        """`MQTT_PASSWORD`, or the password in `MQTT_URL`."""
        return self.mqtt_password if self.mqtt_password is not None else self.broker.password


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables; an empty variable counts as unset.

    Raises:
        ConfigError: With every fault, one line each, and no secret in any of them.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    for field in attrs.fields(Settings):
        variable = field.metadata["variable"]
        try:
            text = _read(environ, variable, from_file=field.metadata["from_file"])
            if text is not None:
                values[field.name] = _structure(text, _TYPES[field.name], unit=field.metadata["unit"])
        except ValueError as error:
            faults.append(f"{error} @ {variable}")
    faults.extend(_unknown_variables(environ))
    settings = Settings(**values)
    faults.extend(f"{what} @ {variable}" for variable, what in _contradictions(settings, set(values)))
    if faults:
        raise ConfigError(faults)
    return settings


def variables() -> dict[str, attrs.Attribute[Any]]:
    """Every variable that `load` reads, by name; those that may come from a file have a `_FILE` twin."""
    result: dict[str, attrs.Attribute[Any]] = {}
    for field in attrs.fields(Settings):
        result[field.metadata["variable"]] = field
        if field.metadata["from_file"]:
            result[field.metadata["variable"] + "_FILE"] = field
    return result


def _read(environ: Mapping[str, str], variable: str, *, from_file: bool) -> str | None:
    text = environ.get(variable) or None
    path = (environ.get(f"{variable}_FILE") or None) if from_file else None
    if path is None:
        return text
    if text is not None:
        raise ValueError(f"set this or {variable}_FILE, not both")
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {variable}_FILE: {type(error).__name__}") from error


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Misspelt names: our own prefixes only, since the environment also belongs to others (PGHOST, DB_HOST, …)."""
    known = variables()
    return [
        f"unknown variable (is it misspelt?) @ {name}"
        for name in sorted(environ)
        if name.startswith(("INGEST_", "MQTT_")) and name not in known
    ]


def _contradictions(s: Settings, given: set[str]) -> list[tuple[str, str]]:
    rules: list[tuple[bool, str, str]] = [
        (
            s.mqtt_qos == 2,
            "MQTT_QOS",
            "QoS 2 would confirm messages before they are stored; use 1, the broker downgrades QoS 2 publishers",
        ),
        (s.mqtt_qos not in (0, 1, 2), "MQTT_QOS", "must be 0 or 1"),
        (
            s.mqtt_reader == "mqtt5" and s.mqtt_version != "5",
            "MQTT_READER",
            f"mqtt5 speaks MQTT 5 only, and MQTT_VERSION is {s.mqtt_version}; use paho",
        ),
        (
            s.mqtt_reader == "mqtt5" and importlib.util.find_spec("mqtt5") is None,
            "MQTT_READER",
            "the package mqtt5 is missing: pip install traksense[fast]",
        ),
        (not s.mqtt_topics, "MQTT_TOPICS", "needs at least one topic filter"),
        (s.mqtt_shard is not None and s.mqtt_shard_count is None, "MQTT_SHARD", "needs MQTT_SHARD_COUNT too"),
        (s.mqtt_shard_count is not None and not s.mqtt_tenants, "MQTT_SHARD_COUNT", "needs MQTT_TENANTS too"),
        (s.mqtt_shard_count is None and bool(s.mqtt_tenants), "MQTT_TENANTS", "needs MQTT_SHARD_COUNT too"),
        (
            s.mqtt_shard is not None and not 1 <= s.mqtt_shard <= (s.mqtt_shard_count or s.mqtt_shard),
            "MQTT_SHARD",
            f"must be 1-{s.mqtt_shard_count}, not {s.mqtt_shard}",
        ),
        (s.mqtt_handover < 0, "MQTT_HANDOVER_SECONDS", "must not be negative"),
        (
            not 1 <= len(s.mqtt_client_id.encode()) <= 65535,
            "MQTT_CLIENT_ID",
            "must have 1-65535 bytes: it names the broker session",
        ),
        (not 1 <= s.mqtt_keepalive <= 65535, "MQTT_KEEPALIVE", "must be 1-65535 seconds"),
        (not 1 <= s.mqtt_session_expiry <= 0xFFFFFFFF, "MQTT_SESSION_EXPIRY", "must be 1-4294967295 seconds"),
        (s.mqtt_key_file is not None and s.mqtt_cert_file is None, "MQTT_KEY_FILE", "needs MQTT_CERT_FILE too"),
        (s.queue_max < 1, "INGEST_QUEUE_MAX", "must be at least 1 message"),
        (s.batch_size < 1, "INGEST_BATCH_SIZE", "must be at least 1 point"),
        (not 0 <= s.batch_wait <= 60, "INGEST_BATCH_MS", "must be 0-60000 milliseconds"),
        (s.shutdown_deadline <= 0, "INGEST_SHUTDOWN_SECONDS", "must be more than 0 seconds"),
        (s.payload_max_bytes < 1, "INGEST_PAYLOAD_MAX_BYTES", "must be at least 1 byte"),
        (s.payload_max_bytes > 8 * MIB, "INGEST_PAYLOAD_MAX_BYTES", "must be at most 8388608 bytes"),
        (s.queue_max_bytes < 1 * MIB, "INGEST_QUEUE_BYTES", "must be at least 1048576 bytes"),
        (s.points_max < 1, "INGEST_POINTS_MAX", "must be at least 1 point"),
        (s.ts_ahead < 0, "INGEST_TS_AHEAD_SECONDS", "must not be negative"),
        (s.ts_min.year < 1970, "INGEST_TS_MIN", "must not be before 1970"),
        (s.db_pool_min < 0, "DB_POOL_MIN", "must not be negative"),
        (s.db_pool_max < 1, "DB_POOL_MAX", "must be at least 1 connection"),
        (s.db_statement_timeout < 1, "DB_STATEMENT_TIMEOUT", "must be at least 1 second"),
        (not 0 <= s.metrics_port <= 65535, "METRICS_PORT", "must be 0-65535"),
        (s.db_pool_min > s.db_pool_max, "DB_POOL_MIN", f"is more than DB_POOL_MAX ({s.db_pool_max})"),
        (
            s.payload_max_bytes > s.queue_max_bytes,
            "INGEST_PAYLOAD_MAX_BYTES",
            f"is more than INGEST_QUEUE_BYTES ({s.queue_max_bytes}): such a message could never be held",
        ),
        (
            not s.broker.tls and not given.isdisjoint({"mqtt_ca_file", "mqtt_cert_file", "mqtt_key_file"}),
            "MQTT_URL",
            "has TLS files but is not mqtts://",
        ),
    ]
    faults = [(variable, what) for broken, variable, what in rules if broken]
    for variable, topics in (("MQTT_TOPICS", s.mqtt_topics), ("MQTT_UNSUBSCRIBE", s.mqtt_unsubscribe)):
        faults.extend((variable, fault) for topic in topics if (fault := _topic_filter_fault(topic)))
    if s.layout is not None and s.mqtt_tenants:
        faults.extend(s.layout.faults())
        faults.extend(
            ("MQTT_UNSUBSCRIBE", f"this replica subscribes to it: {topic}")
            for topic in (sorted(set(s.mqtt_unsubscribe) & set(s.topics)) if not faults else ())
        )
    else:
        faults.extend(
            ("MQTT_UNSUBSCRIBE", f"is in MQTT_TOPICS too: {topic}")
            for topic in sorted(set(s.mqtt_unsubscribe) & set(s.mqtt_topics))
        )
    faults.extend(
        (variable, f"no such file: {path}")
        for variable, path in (
            ("MQTT_CA_FILE", s.mqtt_ca_file),
            ("MQTT_CERT_FILE", s.mqtt_cert_file),
            ("MQTT_KEY_FILE", s.mqtt_key_file),
        )
        if path is not None and not path.is_file()
    )
    return faults


def _topic_filter_fault(topic: str) -> str | None:
    """Source: MQTT 5.0 §4.7.1 (wildcards stand for whole levels, `#` only last), §4.8.2 (shared subscriptions)."""
    levels = topic.split("/")
    if levels[0] == "$share":
        # The group is no filter; what is behind it is one.
        if len(levels) < 3 or not levels[1] or _WILDCARDS & set(levels[1]) or levels[2:] == [""]:
            return f"not a shared subscription, $share/group/filter: {topic}"
        levels = levels[2:]
    if any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]:
        return f"not a topic filter: {topic}"
    return None


# --- text to values
# -----------------------------------------------------------------------------------------------------


def _structure(text: str, kind: Any, *, unit: float) -> Any:
    try:
        value = _CONVERTER.structure(text, kind)
    except (
        cattrs.BaseValidationError,
        cattrs.StructureHandlerNotFoundError,
    ) as error:  # pragma: no cover - hooks cover all types
        raise ValueError(f"cannot be read as {kind}") from error
    return value * unit if unit != 1 else value


def _number(cast: Callable[[str], N], what: str) -> Callable[[str, Any], N]:
    def hook(text: str, _: Any) -> N:
        try:
            value = cast(text.strip())
        except ValueError:
            raise ValueError(f"must be {what}, not {text!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"must be {what}, not {text!r}")
        return value

    return hook


def _boolean(text: str, _: Any) -> bool:
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.strip().lower())
    if value is None:
        raise ValueError(f"must be true or false, not {text!r}")
    return value


def _literal(text: str, kind: Any) -> str:
    choices: tuple[str, ...] = kind.__args__
    for choice in choices:
        if text.strip().lower() == choice.lower():
            return choice
    raise ValueError(f"must be one of {', '.join(choices)}, not {text!r}")


def _timestamp(text: str, _: Any) -> datetime:
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"must be an ISO 8601 date or time, not {text!r}") from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _broker(text: str, _: Any) -> Broker:
    # The text may hold a password: no part of it goes into a message.
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise ValueError("must look like mqtt://host:1883 or mqtts://host:8883") from None
    if parts.scheme not in ("mqtt", "mqtts", "tcp", "ssl") or not parts.hostname:
        raise ValueError("must look like mqtt://host:1883 or mqtts://host:8883")
    if parts.path.strip("/") or parts.query:
        raise ValueError("must end after the port; topics belong in MQTT_TOPICS")
    tls = parts.scheme in ("mqtts", "ssl")
    return Broker(
        host=parts.hostname,
        port=port if port is not None else (8883 if tls else 1883),
        tls=tls,
        username=unquote(parts.username) if parts.username is not None else None,
        password=Secret(unquote(parts.password)) if parts.password is not None else None,
    )


def _database(text: str, _: Any) -> DatabaseUrl:
    text = text.strip()
    # SQLAlchemy's and Django's spellings of the same scheme are common in existing env files.
    text = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", text)
    try:
        # Its port is not looked at: several hosts, each with a port, are a list that the driver understands.
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("must look like postgresql://user:password@host:5432/database") from None
    if parts.scheme != "postgresql" or len(parts.path) < 2:
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    return DatabaseUrl(Secret(text))


_TYPES: Final[dict[str, Any]] = {field.name: field.type for field in attrs.fields(attrs.resolve_types(Settings))}
_CONVERTER: Final = cattrs.Converter(detailed_validation=False)
_CONVERTER.register_structure_hook(int, _number(int, "a whole number"))
_CONVERTER.register_structure_hook(int | None, _number(int, "a whole number"))
_CONVERTER.register_structure_hook(float, _number(float, "a number"))
_CONVERTER.register_structure_hook(bool, _boolean)
_CONVERTER.register_structure_hook(str, lambda text, _: text)
_CONVERTER.register_structure_hook(str | None, lambda text, _: text)
_CONVERTER.register_structure_hook(Secret | None, lambda text, _: Secret(text))
_CONVERTER.register_structure_hook(Path | None, lambda text, _: Path(text))
_CONVERTER.register_structure_hook(datetime, _timestamp)
_CONVERTER.register_structure_hook(Broker, _broker)
_CONVERTER.register_structure_hook(DatabaseUrl, _database)
_CONVERTER.register_structure_hook_func(
    lambda kind: getattr(kind, "__origin__", None) is tuple,
    lambda text, _: tuple(part.strip() for part in text.split(",") if part.strip()),
)
_CONVERTER.register_structure_hook_func(lambda kind: kind == tuple[Entry, ...], lambda text, _: parse_entries(text))
_CONVERTER.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is Literal, _literal)
