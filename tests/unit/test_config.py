"""The configuration: every fault at once, none of the secrets."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense import files
from traksense.config import Broker, Secret, load, variables
from traksense.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def faults(**environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    return list(caught.value.faults)


def test_config_defaults_are_for_localhost() -> None:
    """Without any variable, broker and database are on this machine."""
    settings = load({})

    assert Broker("localhost", 1883, tls=False) == settings.broker
    assert "postgresql://postgres:***@localhost:5432/traksense" == str(settings.database)
    assert 9100 == settings.metrics_port


def test_config_takes_the_seeds_own_env_file() -> None:
    """The seed's `.env.ingest` works as it is."""
    settings = load(
        {
            "MQTT_URL": "mqtt://emqx:1883",
            "MQTT_TOPICS": "traksense/+/+/+/telem,traksense/+/+/+/ack",
            "MQTT_QOS": "1",
            "INGEST_QUEUE_MAX": "50000",
            "INGEST_BATCH_SIZE": "800",
            "INGEST_BATCH_MS": "250",
            "DATABASE_URL": "postgresql://postgres:postgres@db:5432/traksense",
            "DB_POOL_MIN": "2",
            "DB_POOL_MAX": "8",
            "METRICS_PORT": "9100",
        }
    )

    assert ("traksense/+/+/+/telem", "traksense/+/+/+/ack") == settings.mqtt_topics
    assert (50_000, 800, 0.25, 2, 8) == (
        settings.queue_max,
        settings.batch_size,
        settings.batch_wait,
        settings.db_pool_min,
        settings.db_pool_max,
    )


def test_config_names_all_faults_at_once() -> None:
    """Each wrong value is named with its variable, all in one go."""
    assert [
        "MQTT_URL: must look like mqtt://host:1883 or mqtts://host:8883",
        "INGEST_BATCH_MS: must be a number, not 'soon'",
        "METRICS_PORT: must be a whole number, not '1.5'",
        "INGEST_BATCHSIZE: unknown variable, did you mean INGEST_BATCH_SIZE?",
        "DB_POOL_MIN: is more than DB_POOL_MAX (8)",
    ] == faults(MQTT_URL="http://x", INGEST_BATCH_MS="soon", METRICS_PORT="1.5", INGEST_BATCHSIZE="1", DB_POOL_MIN="9")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MQTT_URL", "mqtt://"),
        ("MQTT_URL", "mqtt://host:port"),
        ("MQTT_URL", "mqtt://host/topic"),
        ("MQTT_QOS", "2"),
        ("MQTT_QOS", "3"),
        ("MQTT_TOPICS", ","),
        ("MQTT_TOPICS", "a/#/b"),
        ("MQTT_TOPICS", "a/b+"),
        ("MQTT_VERSION", "4"),
        ("MQTT_KEEPALIVE", "0"),
        ("MQTT_SESSION_EXPIRY", "0"),
        ("MQTT_HEARTBEAT_TOPIC", "a/+"),
        ("MQTT_HEARTBEAT_TOPIC", "$SYS/traksense"),
        ("MQTT_HEARTBEAT_TOPIC", "traksense/tenant/site/device/telem"),
        ("MQTT_HEARTBEAT_SECONDS", "0"),
        ("MQTT_CA_FILE", "/does/not/exist"),
        ("INGEST_QUEUE_MAX", "0"),
        ("INGEST_QUEUE_BYTES", "1"),
        ("INGEST_BATCH_SIZE", "0"),
        ("INGEST_BATCH_MS", "-1"),
        ("INGEST_BATCH_MS", "nan"),
        ("INGEST_SHUTDOWN_SECONDS", "0"),
        ("INGEST_PROVISIONING", "maybe"),
        ("INGEST_PAYLOAD_MAX_BYTES", "0"),
        ("INGEST_POINTS_MAX", "0"),
        ("INGEST_TS_MIN", "yesterday"),
        ("INGEST_TS_MIN", "1960-01-01"),
        ("INGEST_TS_AHEAD_SECONDS", "-1"),
        ("DATABASE_URL", "mysql://x/y"),
        ("DATABASE_URL", "postgresql://host"),
        ("DB_POOL_MAX", "0"),
        ("DB_STATEMENT_TIMEOUT", "0"),
        ("DB_ALLOW_UNSAFE", "perhaps"),
        ("METRICS_PORT", "70000"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_config_refuses(variable: str, value: str) -> None:
    """Each bound and each choice is checked, and the fault names its variable."""
    assert any(fault.startswith(f"{variable}: ") for fault in faults(**{variable: value}))


def test_config_contradictions_are_faults() -> None:
    """Limits that cannot hold together are refused before anything runs."""
    assert any(
        "could never be held" in fault
        for fault in faults(INGEST_PAYLOAD_MAX_BYTES="3000000", INGEST_QUEUE_BYTES="2000000")
    )
    assert any("needs MQTT_CERT_FILE" in fault for fault in faults(MQTT_URL="mqtts://h", MQTT_KEY_FILE=__file__))
    assert any("not mqtts://" in fault for fault in faults(MQTT_CA_FILE=__file__))


def test_config_shard_has_its_topics_and_its_own_session() -> None:
    """One file for all replicas, but for MQTT_SHARD: client ids differ and the tenants are divided."""
    common = {"MQTT_TENANTS": "acme,beta=1,gamma/north=2", "MQTT_SHARD_COUNT": "3", "MQTT_TOPICS": "traksense/#"}
    replicas = [load({**common, "MQTT_SHARD": str(shard)}) for shard in (1, 2, 3)]

    assert ["traksense-ingest-1", "traksense-ingest-2", "traksense-ingest-3"] == [r.client_id for r in replicas]
    assert [("traksense/beta/#",), ("traksense/gamma/north/#",), ("traksense/acme/#",)] == [r.topics for r in replicas]
    assert ("traksense/#",) == load(common).topics


def test_config_without_shards_is_one_replica() -> None:
    """Client id and topics are what they are called."""
    settings = load({"MQTT_CLIENT_ID": "me", "MQTT_TOPICS": "a/#,b"})

    assert ("me", ("a/#", "b"), None) == (settings.client_id, settings.topics, settings.layout)


def test_config_tenants_come_from_a_file(tmp_path: Path) -> None:
    """A list of thousands is no environment variable."""
    file = tmp_path / "tenants"
    file.write_text("# large ones\nacme = 1\nbeta\n")

    settings = load({"MQTT_TENANTS_FILE": str(file), "MQTT_SHARD_COUNT": "2", "MQTT_SHARD": "1"})

    assert ["acme", "beta"] == [entry.tenant for entry in settings.mqtt_tenants]


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"MQTT_SHARD": "1"}, "MQTT_SHARD: needs MQTT_SHARD_COUNT too"),
        ({"MQTT_SHARD_COUNT": "2"}, "MQTT_SHARD_COUNT: needs MQTT_TENANTS too"),
        ({"MQTT_TENANTS": "a"}, "MQTT_TENANTS: needs MQTT_SHARD_COUNT too"),
        ({"MQTT_TENANTS": "a", "MQTT_SHARD_COUNT": "2", "MQTT_SHARD": "3"}, "MQTT_SHARD: must be 1-2, not 3"),
        ({"MQTT_TENANTS": "a", "MQTT_SHARD_COUNT": "2", "MQTT_SHARD": "0"}, "MQTT_SHARD: must be 1-2, not 0"),
        ({"MQTT_TENANTS": "a,a", "MQTT_SHARD_COUNT": "2"}, "MQTT_TENANTS: a is listed twice"),
        ({"MQTT_HANDOVER_SECONDS": "-1"}, "MQTT_HANDOVER_SECONDS: must not be negative"),
        ({"MQTT_TOPICS": "a", "MQTT_UNSUBSCRIBE": "a"}, "MQTT_UNSUBSCRIBE: is in MQTT_TOPICS too: a"),
        ({"MQTT_TOPICS": "$share/a"}, "MQTT_TOPICS: not a shared subscription, $share/group/filter: $share/a"),
        ({"MQTT_TOPICS": "$share/+/a"}, "MQTT_TOPICS: not a shared subscription, $share/group/filter: $share/+/a"),
        ({"MQTT_TOPICS": "$share/g/a+/b"}, "MQTT_TOPICS: not a topic filter: $share/g/a+/b"),
    ],
)
def test_config_replicas_are_checked(environ: dict[str, str], fault: str) -> None:
    """Each is one clear line."""
    assert [fault] == faults(**environ)


def test_config_takes_shared_subscriptions() -> None:
    """`$share/group/filter` is a filter."""
    assert ("$share/traksense/traksense/+/+/+/telem",) == load(
        {"MQTT_TOPICS": "$share/traksense/traksense/+/+/+/telem"}
    ).topics


def test_config_secrets_do_not_show(tmp_path: Path) -> None:
    """A secret is in no repr, no text, no fault; `reveal` gives it."""
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    settings = load(
        {"MQTT_URL": "mqtt://u:pa%40ss@h", "MQTT_PASSWORD_FILE": str(file), "DATABASE_URL": "postgres://u:hidden@h/d"}
    )

    assert settings.password is not None
    assert "s3cret" == settings.password.reveal()
    assert "u" == settings.username
    assert "postgresql://u:hidden@h/d" == settings.database.dsn.reveal()
    shown = f"{settings!r} {settings} {settings.database} {settings.broker} {settings.password:>20}"
    assert not any(secret in shown for secret in ("s3cret", "pa@ss", "hidden"))


def test_config_secret_given_twice_is_a_fault(tmp_path: Path) -> None:
    """A variable and its _FILE twin contradict each other; an unreadable file is named."""
    assert ["DATABASE_URL: set this or DATABASE_URL_FILE, not both"] == faults(
        DATABASE_URL="postgresql://h/d", DATABASE_URL_FILE=str(tmp_path)
    )
    assert ["MQTT_PASSWORD: cannot read MQTT_PASSWORD_FILE: No such file or directory"] == faults(
        MQTT_PASSWORD_FILE=str(tmp_path / "missing")
    )


def test_config_reads_no_file_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What never ends, or never begins, is refused in a line; a pipe that somebody writes to is read to its end."""
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0.05)
    silent, large, binary = tmp_path / "silent", tmp_path / "large", tmp_path / "binary"
    os.mkfifo(silent)
    with large.open("wb") as file:
        file.truncate(10_000_000_000)
    binary.write_bytes(b"s3cret\xff")
    longer = "it is longer than 1048576 bytes"
    for path, why in {
        "/dev/zero": longer,
        large: longer,
        silent: "nothing came out of it for 0 s: its writer is missing or too slow",
        tmp_path: "Is a directory",
        binary: "it is not UTF-8",
    }.items():
        assert [f"MQTT_PASSWORD: cannot read MQTT_PASSWORD_FILE: {why}"] == faults(MQTT_PASSWORD_FILE=str(path))
    reader, writer = os.pipe()
    os.write(writer, b"s3cret\n")
    os.close(writer)
    settings = load({"MQTT_PASSWORD_FILE": f"/dev/fd/{reader}"})
    os.close(reader)

    assert settings.password is not None
    assert "s3cret" == settings.password.reveal()


def test_config_timestamps_have_a_zone() -> None:
    """A time without an offset is UTC."""
    assert datetime(2020, 5, 1, tzinfo=UTC) == load({"INGEST_TS_MIN": "2020-05-01"}).ts_min


def test_config_receive_maximum_follows_the_queue() -> None:
    """The broker may send as much as the queue can hold, within MQTT's limit."""
    assert 300 == load({"INGEST_QUEUE_MAX": "300"}).receive_maximum
    assert 65_535 == load({"INGEST_QUEUE_MAX": "1000000"}).receive_maximum


@given(st.dictionaries(st.sampled_from(sorted(variables())), st.text(max_size=20)))
def test_config_raises_nothing_but_config_errors(environ: dict[str, str]) -> None:
    """Whatever the variables hold: settings, or faults that each name a variable."""
    faults: tuple[str, ...] = ()
    try:
        load(environ)
    except ConfigError as error:
        faults = error.faults

    assert all(re.match("[A-Z_0-9]+: ", fault) for fault in faults)


def test_secret_is_a_string_for_those_who_ask() -> None:
    """Equality and reveal work on the text; str and format do not show it."""
    assert ("***", "x") == (str(Secret("x")), Secret("x").reveal())
