"""The metrics port under attack: few descriptors, more connections than they allow."""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.acceptance.service_bench import ServiceBench, envelope
from traksense.tools.stack import open_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from traksense.tools.stack import BrokerProcess

ASKING = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"GET /healthz HTTP/1.1\r\nHost: x"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process may have as many as the attack needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this machine allows too few descriptors for an attack")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def attack(stack: contextlib.ExitStack, port: int, connections: int, said: bytes) -> None:
    """Open so many connections, say this on each, and keep them."""
    for _ in range(connections):
        client = stack.enter_context(trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        with contextlib.suppress(OSError):  # those that are pushed out at once
            await client.connect(("127.0.0.1", port))
            await client.send(said)


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize(("descriptors", "connections", "said"), [(1024, 1300, ASKING), (256, 2000, HALF)])
async def test_service_survives_a_flood_of_connections(
    broker: BrokerProcess, database: str, tmp_path: Path, descriptors: int, connections: int, said: bytes
) -> None:
    """Probes are answered, messages stored, and the log has a line for the state rather than for each connection."""
    environ = {
        "MQTT_URL": broker.url,
        "MQTT_TOPICS": "traksense/flood/+/+/+",
        "MQTT_CLIENT_ID": f"ingest-flood-{descriptors}",
        "DATABASE_URL": database,
        "DB_POOL_MIN": "0",
    }
    command = ("sh", "-c", f'ulimit -n {descriptors}; exec "$0" -P -m traksense run', sys.executable)
    async with open_service(environ, tmp_path, command=command) as service:
        await service.wait_ready()
        bench = ServiceBench(service, broker, database, "flood", environ)
        port = int(service.env["METRICS_PORT"])
        with contextlib.ExitStack() as stack:
            await attack(stack, port, connections, said)
            for n in range(10):
                assert (200, '{"alive": true}\n') == await service.get("/healthz")
                await bench.publish((bench.topic(device=f"d{n}"), envelope([{"name": "p", "v": n}])))
            await bench.wait_ended(10)
            assert 200 == (await service.readiness())[0]
        log = service.log_path.read_text(encoding="utf-8")

    assert 1 == log.count("http_connections_full")
    assert not any(word in log for word in ("Too many open files", "Traceback", "EMFILE"))
