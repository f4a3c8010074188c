"""Which settings are out of bounds or contradict each other: what a process could not run with."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from traksense.shards import covers

if TYPE_CHECKING:
    from pathlib import Path

    from traksense.config import Settings

TS_AHEAD_LIMIT: Final = 36_500 * 86_400.0
"""A century, in seconds: beyond it, times could not be reckoned with."""

DB_TIMEOUT_LIMIT: Final = 2_147_483.0
"""PostgreSQL's, in seconds, which has milliseconds in 31 bits."""

_MIB: Final = 1024 * 1024
_WILDCARDS: Final = frozenset("+#")


def contradictions(s: Settings, given: set[str]) -> list[tuple[str, str]]:
    """The variables at fault, each with what is wrong with it.

    Args:
        s: All settings.
        given: The variables that are set; the others have their defaults.
    """
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
        (not 1 <= s.mqtt_heartbeat <= 3600, "MQTT_HEARTBEAT_SECONDS", "must be 1-3600 seconds"),
        (not 1 <= s.mqtt_session_expiry <= 0xFFFFFFFF, "MQTT_SESSION_EXPIRY", "must be 1-4294967295 seconds"),
        (s.mqtt_key_file is not None and s.mqtt_cert_file is None, "MQTT_KEY_FILE", "needs MQTT_CERT_FILE too"),
        (s.queue_max < 1, "INGEST_QUEUE_MAX", "must be at least 1 message"),
        (s.batch_size < 1, "INGEST_BATCH_SIZE", "must be at least 1 point"),
        (not 0 <= s.batch_wait <= 60, "INGEST_BATCH_MS", "must be 0-60000 milliseconds"),
        (s.shutdown_deadline <= 0, "INGEST_SHUTDOWN_SECONDS", "must be more than 0 seconds"),
        (s.payload_max_bytes < 1, "INGEST_PAYLOAD_MAX_BYTES", "must be at least 1 byte"),
        (s.payload_max_bytes > 8 * _MIB, "INGEST_PAYLOAD_MAX_BYTES", "must be at most 8388608 bytes"),
        (s.queue_max_bytes < 1 * _MIB, "INGEST_QUEUE_BYTES", "must be at least 1048576 bytes"),
        (s.points_max < 1, "INGEST_POINTS_MAX", "must be at least 1 point"),
        (not 0 <= s.ts_ahead <= TS_AHEAD_LIMIT, "INGEST_TS_AHEAD_SECONDS", f"must be 0-{TS_AHEAD_LIMIT:.0f} seconds"),
        (s.ts_min.year < 1970, "INGEST_TS_MIN", "must not be before 1970"),
        (s.db_pool_min < 0, "DB_POOL_MIN", "must not be negative"),
        (s.db_pool_max < 1, "DB_POOL_MAX", "must be at least 1 connection"),
        (
            not 1 <= s.db_statement_timeout <= DB_TIMEOUT_LIMIT,
            "DB_STATEMENT_TIMEOUT",
            f"must be 1-{DB_TIMEOUT_LIMIT:.0f} seconds",
        ),
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
    if s.mqtt_heartbeat_topic is not None:
        faults.extend(
            ("MQTT_HEARTBEAT_TOPIC", fault) for fault in _heartbeat_faults(s.mqtt_heartbeat_topic, s.mqtt_topics)
        )
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
        (variable, fault)
        for variable, path in (
            ("MQTT_CA_FILE", s.mqtt_ca_file),
            ("MQTT_CERT_FILE", s.mqtt_cert_file),
            ("MQTT_KEY_FILE", s.mqtt_key_file),
        )
        if path is not None and (fault := _file_fault(path))
    )
    return faults


def _heartbeat_faults(topic: str, topics: tuple[str, ...]) -> list[str]:
    """Source: MQTT 5.0 §4.7.2 for `$`, §4.7.3 for the length."""
    if _WILDCARDS & set(topic) or "\x00" in topic or topic.startswith("$") or len(topic.encode()) > 65535:
        return [f"must be a topic of its own, without wildcards: {topic}"]
    return [f"must not be in MQTT_TOPICS, where it would hide data: {one}" for one in topics if covers(one, topic)]


def _topic_filter_fault(topic: str) -> str | None:
    """Source: MQTT 5.0 §4.7.1 (wildcards stand for whole levels, `#` only last), §4.8.2 (shared subscriptions)."""
    levels = topic.split("/")
    if len(topic.encode()) > 65535 or "\x00" in topic:
        return "a topic filter has at most 65535 bytes, and no NUL"
    if levels[0] == "$share":
        # The group is no filter; what is behind it is one.
        if len(levels) < 3 or not levels[1] or _WILDCARDS & set(levels[1]) or levels[2:] == [""]:
            return f"not a shared subscription, $share/group/filter: {topic}"
        levels = levels[2:]
    if any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]:
        return f"not a topic filter: {topic}"
    return None


def _file_fault(path: Path) -> str | None:
    try:
        if path.is_file():
            return None
        what = "a folder, no file" if path.is_dir() else "no such file"
    except ValueError:  # it holds a NUL
        what = "no such file"
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
    return f"{what}: {path}"
