"""`traksense simulate` for real: what it says that the broker confirmed is what the service stores."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.acceptance.service_bench import query
from tests.command_line import argv, environment, run_command
from tests.patience import HANG_SECONDS
from traksense.tools.simulate import DRAIN_SECONDS
from traksense.tools.stack import BrokerOptions, free_port, open_service

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess, ServiceProcess

TABLES = """
SELECT (SELECT count(*) FROM ts_measure), (SELECT count(*) FROM device_event), (SELECT count(*) FROM cmd_ack)
"""
FAULTY = ("--bad", "5", "--duplicates", "5", "--disorder", "5")


async def simulate(broker: BrokerProcess, *arguments: str) -> dict[str, Any]:
    """Run the command to its end and read its JSON."""
    outcome = await run_command({"MQTT_URL": broker.url}, "simulate", "--json", *arguments)
    assert (0, "") == (outcome.status, outcome.stderr)
    summary: dict[str, Any] = json.loads(outcome.text)
    return summary


async def wait_received(service: ServiceProcess, count: int) -> None:
    """Wait until so many messages were received."""
    while True:
        if (await service.metrics()).total("ingest_messages_total") >= count:
            return
        await trio.sleep(0.05)


async def wait_ended(service: ServiceProcess, count: int) -> None:
    """Wait until so many messages were received and none is in flight."""
    while True:
        metrics = await service.metrics()
        if metrics.total("ingest_messages_total") >= count and not metrics.value("ingest_in_flight_messages"):
            return
        await trio.sleep(0.05)


async def stored(dsn: str) -> dict[str, Any]:
    """What the database has, in the words of the summary."""
    ((points, events, acks),) = await query(dsn, TABLES)
    reasons = await query(dsn, "SELECT reason, count(*) FROM ingest_errors GROUP BY reason ORDER BY reason")
    return {"points": points, "events": events, "acks": acks, "reasons": dict(reasons)}


def confirmed(summary: dict[str, Any]) -> dict[str, Any]:
    """What the broker confirmed, in the same words."""
    return {
        "points": summary["telem"]["points"],
        "events": summary["event"]["messages"],
        "acks": summary["ack"]["messages"],
        "reasons": summary["bad"]["by_reason"],
    }


@pytest.mark.parametrize("pace", [("--rate", "0", "--messages", "4000"), ("--rate", "3000", "--seconds", "3")])
async def test_simulate_confirmed_is_stored(
    own_broker: OwnBroker, database: str, tmp_path: Path, pace: tuple[str, ...]
) -> None:
    """Points, events, acknowledgements, dead letters by reason: what the broker confirmed equals what is stored."""
    broker = own_broker()
    env = {"MQTT_URL": broker.url, "MQTT_TOPICS": "traksense/#", "DATABASE_URL": database}
    with trio.fail_after(HANG_SECONDS):
        async with open_service(env, tmp_path) as service:
            await service.wait_ready()
            summary = await simulate(broker, *pace, *FAULTY)
            await wait_ended(service, summary["messages"]["confirmed"])
            rows = await stored(database)

    assert confirmed(summary) == rows
    assert summary["complete"]
    assert summary["repeated"]["messages"] > 0
    assert summary["telem"]["late_messages"] > 0
    assert len(rows["reasons"]) > 5


async def test_simulate_loses_nothing_over_a_broker_restart(
    own_broker: OwnBroker, database: str, tmp_path: Path
) -> None:
    """With the broker restarted under load, messages are published again, and the database has each point once."""
    broker = own_broker()
    env = {"MQTT_URL": broker.url, "MQTT_TOPICS": "traksense/#", "DATABASE_URL": database}
    arguments = ("--rate", "4000", "--seconds", "4", "--bad", "2")
    summaries: list[dict[str, Any]] = []

    async def run() -> None:
        outcome = await run_command({"MQTT_URL": broker.url}, "simulate", "--json", *arguments)
        assert 0 == outcome.status
        summaries.append(json.loads(outcome.text))

    with trio.fail_after(HANG_SECONDS):
        async with open_service(env, tmp_path) as service:
            await service.wait_ready()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await wait_received(service, 200)
                await broker.restart()
            await wait_ended(service, summaries[0]["messages"]["confirmed"])
            rows = await stored(database)

    assert confirmed(summaries[0]) == rows
    assert 1 == summaries[0]["connection"]["reconnections"]


async def test_simulate_repeats_with_its_seed(own_broker: OwnBroker) -> None:
    """Two runs with one seed confirm the same counts of everything; another seed differs."""
    broker = own_broker()
    arguments = ("--rate", "0", "--messages", "1500", *FAULTY)
    counts = ("telem", "event", "ack", "bad", "repeated")
    with trio.fail_after(HANG_SECONDS):
        first, second, other = [await simulate(broker, *arguments, "--seed", seed) for seed in ("7", "7", "8")]

    assert [first[name] for name in counts] == [second[name] for name in counts]
    assert [first[name] for name in counts] != [other[name] for name in counts]


async def test_simulate_ends_at_a_signal_with_a_summary(own_broker: OwnBroker) -> None:
    """Ctrl-C stops the fleet, waits for the last confirmations, says how to compare, and exits 0."""
    broker = own_broker()
    with trio.fail_after(HANG_SECONDS):
        process = await trio.lowlevel.open_process(
            argv("simulate", "--tenant-prefix", "t'x-"),
            env=environment({"MQTT_URL": broker.url}),
            stdout=subprocess.PIPE,
        )
        said = await read_until(process, b"Ctrl-C")
        process.send_signal(signal.SIGINT)
        said += await read_until(process, None)
        status = await process.wait()

    text = said.decode()
    assert 0 == status
    assert "Confirmed by the broker" in text
    assert "SELECT count(*) FROM ts_measure WHERE starts_with(tenant_id, 't''x-')" in text
    assert "no subscriber" in text or " 0 of 0 messages" in text


async def test_simulate_unconfirmed_messages_are_a_failure(own_broker: OwnBroker) -> None:
    """If the broker goes away for good, a second signal ends the waiting: exit 1, and what is missing is counted."""
    broker = own_broker()
    with trio.fail_after(HANG_SECONDS):
        process = await trio.lowlevel.open_process(
            argv("simulate", "--rate", "0"),
            env=environment({"MQTT_URL": broker.url}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said = await read_until(process, b"Ctrl-C")
        broker.kill()
        said += await read_until(process, b"publisher_connection_lost")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        said += await read_until(process, None)
        status = await process.wait()

    assert 1 == status
    assert "never confirmed" in said.decode()


async def test_simulate_says_in_its_help_how_long_it_waits() -> None:
    """The waiting has an end of its own."""
    outcome = await run_command({}, "simulate", "--help")

    assert f"confirmed everything, for {DRAIN_SECONDS:.0f} seconds at most, " in " ".join(outcome.text.split())


async def test_simulate_one_signal_ends_the_waiting(own_broker: OwnBroker) -> None:
    """When all is published it waits for the broker alone, and that is what Ctrl-C ends then."""
    # Over QoS 1 it ends each connection, and MQTT 3.1.1 has no way to say so.
    broker = own_broker(options=BrokerOptions(extra_config=("max_qos 0",)))
    with trio.fail_after(DRAIN_SECONDS / 2):
        process = await trio.lowlevel.open_process(
            argv("simulate", "--messages", "5", "--rate", "0"),
            env=environment({"MQTT_URL": broker.url, "MQTT_VERSION": "3.1.1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(3):
            await read_until(process, b"publisher_connection_lost")
        process.send_signal(signal.SIGINT)
        said = await read_until(process, None)
        status = await process.wait()

    assert (1, True) == (status, b"5 never confirmed" in said)


async def test_simulate_says_what_the_broker_does_not_take(own_broker: OwnBroker) -> None:
    """Too large messages that are not meant to be so, and a broker that confirms nothing."""
    narrow = own_broker(options=BrokerOptions(max_packet_bytes=3_000))
    outcome = await run_command(
        {"MQTT_URL": narrow.url}, "simulate", "--messages", "5", "--points", "500", "--format", "v1"
    )
    assert (1, True) == (outcome.status, " not sent: larger than the broker's Maximum Packet Size" in outcome.text)
    silent = own_broker(options=BrokerOptions(extra_config=("max_qos 0",)))
    outcome = await run_command({"MQTT_URL": silent.url}, "simulate")
    assert (1, 1) == (outcome.status, outcome.stderr.count("\n"))
    assert outcome.stderr.startswith(f"traksense: {silent.url}: the broker takes QoS 0 only")


async def read_until(process: trio.Process, words: bytes | None) -> bytes:
    """What it says until these words, or until its end."""
    assert process.stdout is not None
    said = b""
    while words is None or words not in said:
        chunk = await process.stdout.receive_some()
        if not chunk:
            assert words is None, said
            break
        said += chunk
    return said


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "-1"),
        ("--bad", "101"),
        ("--qos", "2"),
        ("--tenants", "0"),
        ("--format", "xml"),
        ("--tenant-prefix", "a/b"),
    ],
)
async def test_simulate_wrong_argument_is_said(arguments: tuple[str, str]) -> None:
    """An argument that makes no sense: exit 2, and one line that names it."""
    outcome = await run_command({}, "simulate", *arguments)

    assert 2 == outcome.status
    assert arguments[0] in outcome.stderr.splitlines()[-1]


async def test_simulate_without_a_broker_is_one_line() -> None:
    """No broker: exit 1, and one line that says so, and where."""
    url = f"mqtt://127.0.0.1:{free_port()}"
    outcome = await run_command({"MQTT_URL": url}, "simulate")

    assert (1, f"traksense: {url}: cannot connect: Connection refused\n") == (outcome.status, outcome.stderr)
