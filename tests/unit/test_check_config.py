"""`traksense check-config`: everything that is wrong at once, and no secret in what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.command_line import run_command
from traksense.errors import ConfigError
from traksense.tools.check_config import as_text, check

if TYPE_CHECKING:
    from pathlib import Path


def test_faults_of_all_kinds_come_together(tmp_path: Path) -> None:
    """Values, names, files that are named, and the policy, which the service itself does not read."""
    pem = tmp_path / "ca.pem"
    pem.write_text("no certificate")

    with pytest.raises(ConfigError) as caught:
        check({"INGEST_BATCH_SIZE": "many", "MQTT_TOPIC": "a", "LIFECYCLE_RETAIN_RAW": "soon"})
    with pytest.raises(ConfigError) as files:
        check({"MQTT_URL": "mqtts://broker", "MQTT_CA_FILE": str(pem), "LIFECYCLE_RETAIN_1D": "1 day"})

    assert ["INGEST_BATCH_SIZE", "MQTT_TOPIC", "LIFECYCLE_RETAIN_RAW"] == [
        fault.partition(": ")[0] for fault in caught.value.faults
    ]
    assert ["MQTT_CA_FILE", "LIFECYCLE_RETAIN_1D"] == [fault.partition(": ")[0] for fault in files.value.faults]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (
            "sslmode=verify-full",
            (
                'a parameter of the URL cannot be used: root certificate file "{home}/.postgresql/root.crt" does not '
                "exist or cannot be accessed: name the file of the server's CA as sslrootcert in DATABASE_URL"
            ),
        ),
        (
            "sslmode=require&ssl_min_protocol_version=TLSv9",
            "a parameter of the URL cannot be used: No such TLS version: TLSv9",
        ),
        ("geheim", "the connection string cannot be read"),
    ],
)
async def test_the_database_url_is_read_as_the_driver_does(tmp_path: Path, query: str, why: str) -> None:
    """All that `run` and the commands end with before they connect, in the same words, and with the same status."""
    env = {"DATABASE_URL": f"postgresql://u:geheim@127.0.0.1:1/x?{query}", "HOME": str(tmp_path)}
    outcomes = [await run_command(env, *command) for command in (("check-config",), ("run",), ("maintain",))]

    where = "" if query == "geheim" else "postgresql://u:***@127.0.0.1:1/x: "
    line = f"traksense: DATABASE_URL: {where}{why.format(home=tmp_path.resolve())}\n"
    assert [(2, "", line)] * 3 == [(outcome.status, outcome.text, outcome.stderr) for outcome in outcomes]


def test_nothing_secret_is_said(tmp_path: Path) -> None:
    """Neither of a variable nor of a file; where a secret comes from may be."""
    url = tmp_path / "url"
    url.write_text("postgresql://ingest:geheim@db/traksense")
    environ = {
        "MQTT_URL": "mqtts://user:geheim@broker",
        "MQTT_PASSWORD": "geheim",
        "DATABASE_URL_FILE": str(url),
        "MQTT_SHARD_COUNT": "2",
        "MQTT_TENANTS": "acme,beta",
        "LIFECYCLE_RETAIN_RAW": "90 days",
    }

    lines = list(as_text(check(environ), environ))

    assert not any("geheim" in line for line in lines)
    assert {
        "MQTT_URL=mqtts://broker:8883",
        "MQTT_PASSWORD=***",
        f"DATABASE_URL_FILE={url}",
        "MQTT_TENANTS=acme,beta",
        "LIFECYCLE_RETAIN_RAW=90 days",
        "database   postgresql://ingest:***@db/traksense, 8 connections",
        "reads      one of 2 shards; each process needs its number in MQTT_SHARD",
    } <= set(lines)


async def test_the_command_reads_the_file_and_has_the_status_of_a_wrong_configuration(tmp_path: Path) -> None:
    """0 or 2; the faults are on stderr, one line each."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("MQTT_URL=mqtt://broker\n")
    bad.write_text("MQTT_QOS=2\nINGEST_BATCH_SIZE=0\n")

    outcome = await run_command({}, "--env-file", str(good), "check-config")
    refused = await run_command({}, "--env-file", str(bad), "check-config")

    assert outcome.status == 0
    assert outcome.text.startswith("MQTT_URL=mqtt://broker:1883\n1 set, ")
    assert (refused.status, refused.text) == (2, "")
    assert [line.split(": ")[1] for line in refused.stderr.splitlines()] == ["MQTT_QOS", "INGEST_BATCH_SIZE"]
