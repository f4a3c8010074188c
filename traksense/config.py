"""The configuration: frozen, from environment variables, with every fault named at once.

Each field of `Settings` names its variable, its unit and its default; `ops/traksense.env.example` explains them to
operators, and a test holds the two together. The names are those of the system that this one replaces.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003  (attrs resolves the types of the fields)
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from traksense import misspelt
from traksense.contradictions import contradictions
from traksense.errors import ConfigError
from traksense.files import read_text
from traksense.shards import Entry, Layout
from traksense.urls import Broker, DatabaseUrl, Secret
from traksense.values import structure

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Broker", "DatabaseUrl", "Secret", "Settings", "load", "variables"]

BYTES: Final = 1
MIB: Final = 1024 * 1024 * BYTES
SECONDS: Final = 1.0
MILLISECONDS: Final = SECONDS / 1000
MINUTES: Final = 60 * SECONDS
HOURS: Final = 60 * MINUTES
DAYS: Final = 24 * HOURS

RECEIVE_MAXIMUM_LIMIT: Final = 65535
"""The largest Receive Maximum that a client can ask for. Source: MQTT 5.0 §3.1.2.11.3."""


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
    mqtt_heartbeat_topic: str | None = _variable("MQTT_HEARTBEAT_TOPIC", default=None)
    mqtt_heartbeat: float = _variable("MQTT_HEARTBEAT_SECONDS", default=10 * SECONDS)
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

    # What is acceptable, and what it means
    provisioning: Literal["auto", "strict"] = _variable("INGEST_PROVISIONING", default="auto")
    conflicts: Literal["keep", "replace"] = _variable("INGEST_CONFLICTS", default="keep")
    payload_max_bytes: int = _variable("INGEST_PAYLOAD_MAX_BYTES", default=1 * MIB)
    points_max: int = _variable("INGEST_POINTS_MAX", default=10_000)
    ts_min: datetime = _variable("INGEST_TS_MIN", default=datetime(2000, 1, 1, tzinfo=UTC))
    ts_ahead: float = _variable("INGEST_TS_AHEAD_SECONDS", default=1 * DAYS)
    gone_words: tuple[str, ...] = _variable(
        "INGEST_GONE_WORDS",
        default=("offline", "disconnected", "connection_lost", "last_will", "lwt", "death"),
    )

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
                values[field.name] = structure(text, _TYPES[field.name], unit=field.metadata["unit"])
        except ValueError as error:
            faults.append(f"{variable}: {error}")
    faults.extend(misspelt.faults(environ, variables(), ("INGEST_", "MQTT_")))
    settings = Settings(**values)
    faults.extend(f"{variable}: {what}" for variable, what in contradictions(settings, set(values)))
    if faults:
        raise ConfigError(faults)
    return settings


def note_of_default_database(environ: Mapping[str, str]) -> str:
    """What to add to why the database cannot be reached: nothing, if the environment says where it is."""
    if environ.get("DATABASE_URL") or environ.get("DATABASE_URL_FILE"):
        return ""
    return "; DATABASE_URL is not set, in the environment or by --env-file: this is its default"


def note_of_default_broker(environ: Mapping[str, str]) -> str:
    """As `note_of_default_database`, for the broker."""
    if environ.get("MQTT_URL") or environ.get("MQTT_URL_FILE"):
        return ""
    return "; MQTT_URL is not set, in the environment or by --env-file: this is its default"


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
    if text is not None and not _is_utf_8(text):
        raise ValueError("must be UTF-8")
    path = (environ.get(f"{variable}_FILE") or None) if from_file else None
    if path is None:
        return text
    if text is not None:
        raise ValueError(f"set this or {variable}_FILE, not both")
    try:
        return read_text(path).strip() or None
    except ValueError as error:
        raise ValueError(f"cannot read {variable}_FILE: {error}") from None


def _is_utf_8(text: str) -> bool:
    """Bytes of the environment that are not appear as surrogates (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_TYPES: Final[dict[str, Any]] = {field.name: field.type for field in attrs.fields(attrs.resolve_types(Settings))}
