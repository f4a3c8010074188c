"""Replicas come, go and are divided anew, with real processes under load: ops/scale-out.md, done in the worst order."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio

from tests.acceptance.service_bench import envelope, query
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess

pytestmark = [
    pytest.mark.skipif(sys.version_info >= (3, 12), reason="runs once, under Python 3.11"),
]

NOON: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)
TENANTS: Final = ("acme", "beta", "gamma", "delta", "epsilon", "zeta")
MOVED: Final = ("acme", "delta")
"""Who goes from two shards to a third: tests/unit/test_shards.py holds the rule."""


@attrs.define
class Plant:
    """A broker, a database, replicas that come and go, and devices that publish all the time."""

    broker: BrokerProcess
    dsn: str
    directory: Path
    confirmed: int = 0
    stopping: trio.Event = attrs.field(factory=trio.Event)
    _running: dict[int, ServiceProcess] = attrs.field(factory=dict)
    _starts: int = 0

    def environ(self, count: int) -> dict[str, str]:
        return {
            "MQTT_URL": self.broker.url,
            "MQTT_TENANTS": ",".join(TENANTS),
            "MQTT_SHARD_COUNT": str(count),
            "MQTT_HANDOVER_SECONDS": "1",
            "DATABASE_URL": self.dsn,
            "DB_POOL_MAX": "2",
        }

    async def start(self, shard: int, count: int) -> ServiceProcess:
        """A replica that is ready and has written down what it holds."""
        self._starts += 1
        env = self.environ(count) | {"MQTT_SHARD": str(shard)}
        service = ServiceProcess(env, self.directory, name=f"replica-{shard}-{self._starts}")
        self._running[shard] = service
        await service.wait_ready()
        await self.wait_claimed(f"traksense-ingest-{shard}", env)
        return service

    async def wait_claimed(self, client_id: str, env: dict[str, str]) -> None:
        """Wait until a replica has written down what it holds: one that ends before seems to be in use for a while."""
        wanted = sorted(load(env).topics)
        asked = "SELECT claimed = $2 FROM traksense.ingest_session WHERE client_id = $1"
        with trio.fail_after(HANG_SECONDS):
            while await query(self.dsn, asked, client_id, wanted) != [(True,)]:
                await trio.sleep(0.05)

    async def restart(self, shard: int, count: int) -> ServiceProcess:
        """The same shard of another number of shards."""
        await self.stop(shard)
        return await self.start(shard, count)

    async def stop(self, shard: int) -> None:
        """SIGTERM."""
        assert 0 == await self._running.pop(shard).stop()

    async def make_old(self, client_id: str) -> None:
        """As if it had been killed some time ago: a session that lived a moment ago, and was not left, is in use."""
        back = "UPDATE traksense.ingest_session SET last_alive_at = now() - interval '40 s' WHERE client_id = $1"
        await query(self.dsn, back, client_id)

    def kill_all(self) -> None:
        for service in self._running.values():
            service.kill()

    async def publish_on(self) -> None:
        """Every tenant in turn, until told to stop."""
        where = load({"MQTT_URL": self.broker.url}).broker
        async with open_publisher(where, client_id="devices", window=50) as publisher:
            number = 0
            while not self.stopping.is_set():
                await publisher.publish(f"traksense/{TENANTS[number % 6]}/s/d/telem", message(number))
                number += 1
                # A rate, not a wait for anything.
                await trio.sleep(0.002)
            await publisher.drain()
            self.confirmed = number

    async def wait_stored(self, count: int) -> None:
        """Wait until there are so many; then they are all there, once."""
        with trio.fail_after(HANG_SECONDS):
            while (await query(self.dsn, "SELECT count(DISTINCT v_num) FROM ts_measure"))[0][0] < count:
                await trio.sleep(0.05)
        assert [(count, count)] == await query(self.dsn, "SELECT count(*), count(DISTINCT v_num) FROM ts_measure")


def message(number: int) -> bytes:
    return envelope([{"name": "p", "v": number}], ts=NOON + timedelta(milliseconds=number))


@pytest.fixture
def broker(own_broker: OwnBroker) -> BrokerProcess:
    """Its own: tenants have fixed names here, since their names decide who has them."""
    return own_broker()


@pytest.fixture
def plant(broker: BrokerProcess, database: str, tmp_path: Path) -> Plant:
    """Nothing runs yet but the servers."""
    return Plant(broker, database, tmp_path)


async def wait_logged(service: ServiceProcess, event: str) -> None:
    """Wait until a replica has said something."""
    with trio.fail_after(HANG_SECONDS):
        while f'"event": "{event}"' not in service.log_path.read_text(encoding="utf-8"):
            await trio.sleep(0.05)


async def received(service: ServiceProcess) -> float:
    return (await service.metrics()).total("ingest_messages_total")


def shards(plant: Plant, *arguments: str, count: int, **more: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    """The command, for a thread."""
    environ = {**os.environ, **plant.environ(count), "LOG_LEVEL": "ERROR", **more}
    command = [sys.executable, "-m", "traksense", "shards", *arguments]
    return lambda: subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


async def publish(plant: Plant, site: str, numbers: range) -> None:
    """To `tenant/site`."""
    where = load({"MQTT_URL": plant.broker.url}).broker
    async with open_publisher(where, client_id="one-more") as publisher:
        for number in numbers:
            await publisher.publish(f"traksense/{site}/d/telem", message(number))
        await publisher.drain()


async def session_present(plant: Plant, client_id: str) -> bool:
    """Whether the broker still has it; it has not afterwards."""
    codec = PahoCodec(client_id=client_id, session_expiry=0)
    connection = Connection(await open_stream(plant.broker.host, plant.broker.port, None), codec, keepalive=30)
    present = []

    async def body() -> None:
        present.append((await connection.handshake()).session_present)
        await connection.close()

    await connection.run(body)
    return present[0]


async def test_growing_and_shrinking_lose_and_double_nothing(plant: Plant) -> None:
    """From two shards to three and back while devices publish: the old replicas are changed before the new one is
    there, and the one that is too many stops before the others read for it.
    """
    try:
        async with trio.open_nursery() as nursery:
            await plant.start(1, 2)
            await plant.start(2, 2)
            nursery.start_soon(plant.publish_on)
            one, two = await plant.restart(1, 3), await plant.restart(2, 3)
            await wait_logged(one, "subscriptions_kept")
            await wait_logged(two, "subscriptions_kept")

            three = await plant.start(3, 3)
            await wait_logged(one, "subscriptions_given_up")
            await wait_logged(two, "subscriptions_given_up")
            before = [await received(service) for service in (one, two, three)]
            with trio.fail_after(HANG_SECONDS):
                while await received(three) < before[2] + 20:
                    await trio.sleep(0.05)

            live = await trio.to_thread.run_sync(shards(plant, "retire", "traksense-ingest-3", count=3))
            await plant.stop(3)
            one, two = await plant.restart(1, 2), await plant.restart(2, 2)
            done = await trio.to_thread.run_sync(shards(plant, "retire", "traksense-ingest-3", count=2))
            plant.stopping.set()
        await plant.wait_stored(plant.confirmed)
        before = [await received(service) for service in (one, two)]
        await publish(plant, "acme/s", range(10**6, 10**6 + 10))
        await plant.wait_stored(plant.confirmed + 10)

        assert [before[0] + 10, before[1]] == [await received(service) for service in (one, two)]
        assert (2, True) == (live.returncode, "stop it first" in live.stderr)
        assert (0, "session ended\n") == (done.returncode, done.stdout), done.stderr
        assert not await session_present(plant, "traksense-ingest-3")
        assert await session_present(plant, "traksense-ingest-2")
    finally:
        plant.kill_all()


async def test_the_one_session_of_before_is_retired(plant: Plant) -> None:
    """From one replica to two: what the old session had queued is stored, and it is ended only when both read."""
    try:
        plain = {
            name: value for name, value in plant.environ(2).items() if name not in ("MQTT_TENANTS", "MQTT_SHARD_COUNT")
        }
        old = ServiceProcess(plain, plant.directory, name="old")
        await old.wait_ready()
        await plant.wait_claimed("traksense-ingest", plain)
        assert 0 == await old.stop()
        await publish(plant, "acme/s", range(50))
        async with trio.open_nursery() as nursery:
            done: list[subprocess.CompletedProcess[str]] = []

            async def retire() -> None:
                done.append(await trio.to_thread.run_sync(shards(plant, "retire", "traksense-ingest", count=2)))

            await plant.start(1, 2)
            nursery.start_soon(retire)
            await plant.wait_stored(50)
            await publish(plant, "zeta/s", range(50, 60))
            # Shard 2 is read by the session that is being retired only.
            await plant.wait_stored(60)
            assert [] == done
            await plant.start(2, 2)

        assert (0, "session ended\n") == (done[0].returncode, done[0].stdout), done[0].stderr
        assert not await session_present(plant, "traksense-ingest")
        # And back: nobody else reads what it had, nor shall.
        await trio.to_thread.run_sync(plant.kill_all)
        await publish(plant, "acme/s", range(60, 70))
        await plant.make_old("traksense-ingest-1")
        alone = await trio.to_thread.run_sync(shards(plant, "retire", "--unread", "traksense-ingest-1", count=2))
        assert (0, "session ended\n") == (alone.returncode, alone.stdout), alone.stderr
        await plant.wait_stored(70)
        typo = await trio.to_thread.run_sync(shards(plant, "retire", "traksense-ingset", count=2))
        assert (2, 1) == (typo.returncode, typo.stderr.count("nor the database has traksense-ingset"))
        assert not await session_present(plant, "traksense-ingset")
    finally:
        plant.kill_all()


@pytest.mark.parametrize("listed", [True, False])
async def test_validate_needs_tenants_of_its_own(plant: Plant, listed: bool) -> None:
    """Among shards they have to be listed, pinned to the replica that is asked; if they are not, it says so."""
    tenants = "acme=2,validate=1,validate-b=1" if listed else "acme=1,beta=2"
    env = {**plant.environ(2), "MQTT_TENANTS": tenants, "MQTT_TOPICS": "traksense/#"}
    service = ServiceProcess({**env, "MQTT_SHARD": "1"}, plant.directory, name="validated")
    try:
        await service.wait_ready()
        command = [sys.executable, "-m", "traksense", "validate", "--metrics-url", service.metrics_url]
        done = await trio.to_thread.run_sync(
            lambda: subprocess.run(
                command, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
            )
        )
        assert 0 == await service.stop()
    finally:
        service.kill()

    assert (0 if listed else 1) == done.returncode, done.stdout
    assert listed is not ("list validate and validate-b in MQTT_TENANTS" in " ".join(done.stdout.split()))


async def test_tenants_that_nobody_reads_are_found(plant: Plant) -> None:
    """From the database: who was stored once. From the broker: who publishes now."""
    await query(plant.dsn, "INSERT INTO traksense.tenant (tenant_id) VALUES ('acme'), ('forgotten')")
    await query(
        plant.dsn,
        "INSERT INTO traksense.device (tenant_id, site_id, device_id) "
        "VALUES ('acme', 'north', 'd'), ('acme', 'new', 'd')",
    )
    async with trio.open_nursery() as nursery:
        done: list[subprocess.CompletedProcess[str]] = []

        async def check() -> None:
            command = shards(plant, "check", "--listen", "8", count=2, MQTT_TENANTS="acme/north,beta")
            done.append(await trio.to_thread.run_sync(command))

        nursery.start_soon(check)
        while not done:
            for topic in ("beta/s", "unheard-of/s", "acme/north", "acme/south"):
                await publish(plant, topic, range(1))
            await trio.sleep(0.2)

    assert [
        "in no shard: acme/new (in the database)",
        "in no shard: acme/south (at the broker)",
        "in no shard: forgotten (in the database)",
        "in no shard: unheard-of (at the broker)",
    ] == done[0].stdout.splitlines(), done[0].stderr
    assert 1 == done[0].returncode


async def test_all_tenants_in_a_shard_is_success(plant: Plant) -> None:
    """Nothing to say, status 0."""
    await query(plant.dsn, "INSERT INTO traksense.tenant (tenant_id) VALUES ('acme')")

    done = await trio.to_thread.run_sync(shards(plant, "check", count=2))

    assert (0, "") == (done.returncode, done.stdout), done.stderr


def test_show_names_clients_and_tenants(plant: Plant) -> None:
    """One line a shard; nothing is needed to run."""
    done = shards(plant, "show", count=3)()

    assert [
        "1 of 3  traksense-ingest-1  beta, gamma",
        "2 of 3  traksense-ingest-2  epsilon, zeta",
        "3 of 3  traksense-ingest-3  acme, delta",
    ] == done.stdout.splitlines(), done.stderr


def test_run_without_its_number_exits_2(plant: Plant) -> None:
    """A replica that does not know which one it is would read everything: one clear line instead."""
    done = subprocess.run(
        [sys.executable, "-m", "traksense"],
        env={**os.environ, **plant.environ(3)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )

    assert 2 == done.returncode
    assert "traksense: MQTT_SHARD: there are 3 shards; which of them is this?" == done.stderr.splitlines()[-1]
