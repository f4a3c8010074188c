"""`traksense validate` where broker, service and database do not belong together: it says so at once, with a remedy."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.acceptance.validated import (
    PATIENT,
    Stack,
    failures,
    findings,
    statuses,
    wrong,
)
from tests.command_line import run_command
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import open_service
from traksense.tools.validate.payloads import numbers
from traksense.tools.validate.target import utc_now
from traksense.tools.validate.wiring import EMPTY_MESSAGES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.command_line import Outcome
    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess, PostgresProcess

PATIENCE = ("--patience", "5")

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE 'kept waiting by a test' USING ERRCODE = 'lock_not_available'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON traksense.series FOR EACH ROW
    WHEN (NEW.tenant_id LIKE 'validate-%') EXECUTE FUNCTION refuse();
"""


@attrs.frozen
class Plant:
    """Two services on one broker: `ours` reads every tenant, `theirs` only acme, each into a database of its own."""

    ours: Stack
    theirs: Stack


@pytest.fixture
async def plant(
    postgres_server: PostgresProcess,
    database: str,
    migrated_template: str,
    broker: BrokerProcess,
    unique: Callable[[str], str],
    tmp_path: Path,
) -> AsyncIterator[Plant]:
    name = unique("theirs")
    other = await postgres_server.create_database(name, migrated_template)
    common = {"MQTT_URL": broker.url, "MQTT_SESSION_EXPIRY": "60", "INGEST_SHUTDOWN_SECONDS": "5"}
    async with contextlib.AsyncExitStack() as stack:
        stacks = []
        for dsn, topics in ((database, "traksense/+/+/+/telem"), (other, "traksense/acme/+/+/telem")):
            client_id = unique("wired")
            env = common | {"DATABASE_URL": dsn, "MQTT_CLIENT_ID": client_id, "MQTT_TOPICS": topics}
            service = await stack.enter_async_context(open_service(env, tmp_path, name=client_id))
            await service.wait_ready()
            env = common | {"DATABASE_URL": dsn, "METRICS_PORT": service.env["METRICS_PORT"]}
            stacks.append(Stack(dsn, env, service))
        yield Plant(*stacks)
    await postgres_server.drop_database(name)


async def test_wiring_finds_a_database_without_a_service(plant: Plant, empty_database: str) -> None:
    """No service is at work in the database: nothing is published, and no row is left anywhere."""
    with trio.fail_after(HANG_SECONDS):
        assert 0 == (await run_command({"DATABASE_URL": empty_database}, "migrate")).status
    outcome = await plant.ours.validate("--json", *PATIENCE, DATABASE_URL=empty_database)

    figure, step = wrong(outcome)
    assert "no service is at work in" in figure
    assert "none ever was" in figure
    assert step.startswith("let DATABASE_URL name the database")
    assert ({}, {}) == (plant.ours.rows(), attrs.evolve(plant.ours, dsn=empty_database).rows())
    assert "ok" == statuses(outcome)["cleanup"]


async def test_wiring_finds_the_database_of_another_service(plant: Plant) -> None:
    """Another service is at work in it: one point is left with the first, and the command that is shown removes it."""
    outcome = await plant.ours.validate("--json", *PATIENCE, DATABASE_URL=plant.theirs.dsn)

    figure, step = wrong(outcome)
    assert "has neither its row nor a dead letter: it stores into another database" in figure
    assert step.startswith("let DATABASE_URL name the database")
    assert {"traksense.measure": 1, "traksense.series": 1, "traksense.device": 1, "traksense.tenant": 1} == (
        plant.ours.rows()
    )
    (cleanup,) = findings(outcome, "cleanup")
    assert f"1 point of tenant {json.loads(outcome.stdout)['tenant']}" in cleanup["figure"]
    plant.ours.change(re.findall('psql -1 -c "(.*)"', cleanup["next_step"])[0])
    assert ({}, {}) == (plant.ours.rows(), plant.theirs.rows())


async def test_wiring_finds_topics_of_another_service(plant: Plant, unique: Callable[[str], str]) -> None:
    """The service at the endpoint does not read our tenant. That it receives others meanwhile confuses nobody."""
    client_id = unique("fleet")
    outcomes: list[Outcome] = []

    async def validate() -> None:
        outcomes.append(await plant.theirs.validate("--json", *PATIENCE))

    with trio.fail_after(HANG_SECONDS):
        async with open_publisher(load(plant.ours.env).broker, client_id=client_id) as publisher:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(validate)
                while not outcomes:
                    await publisher.publish("traksense/acme/site/device/telem", numbers(utc_now(), {"p": 1.0}))
                    await trio.sleep(0.005)
            await publisher.drain()

    figure, step = wrong(outcomes[0])
    assert "of 128 messages 0 reached" in figure
    assert int(re.findall(r"which received (\d+) in all", figure)[0]) > 100
    assert step.startswith("let MQTT_URL, MQTT_TOPICS, MQTT_TENANTS and MQTT_SHARD be those of the service")
    assert "may have stored 1 point" in findings(outcomes[0], "cleanup")[0]["figure"]


async def test_wiring_finds_the_endpoint_of_another_service(plant: Plant) -> None:
    """Stored in our database, but by another process than the one at the endpoint."""
    outcome = await plant.ours.validate("--json", *PATIENCE, METRICS_PORT=plant.theirs.env["METRICS_PORT"])

    figure, step = wrong(outcome)
    assert "stored in this database, but not by the service at" in figure
    assert "METRICS_PORT or --metrics-url" in step
    assert ({}, {}) == (plant.ours.rows(), plant.theirs.rows())


@pytest.fixture
def another_broker(own_broker: OwnBroker) -> BrokerProcess:
    """That nobody of the plant knows."""
    return own_broker()


async def test_wiring_finds_another_broker(plant: Plant, another_broker: BrokerProcess) -> None:
    """Nobody is subscribed there, as the broker says itself; the broker of the database's service is named."""
    outcome = await plant.ours.validate("--json", *PATIENT, MQTT_URL=another_broker.url)

    figure, step = wrong(outcome)
    assert "says that nobody is subscribed to it" in figure
    assert f"is connected to {plant.ours.env['MQTT_URL']}" in step
    assert "ok" == statuses(outcome)["cleanup"]
    assert {} == plant.ours.rows()


async def test_wiring_reads_the_dead_letter(
    database: str, broker: BrokerProcess, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """A service with strict provisioning, of which `validate` has not been told: reason, detail, what to do."""
    env = {"DATABASE_URL": database, "MQTT_URL": broker.url, "MQTT_SESSION_EXPIRY": "60"}
    own = {"MQTT_CLIENT_ID": unique("strict"), "INGEST_PROVISIONING": "strict"}
    async with open_service(env | own, tmp_path) as service:
        await service.wait_ready()
        stack = Stack(database, env | {"METRICS_PORT": service.env["METRICS_PORT"]}, service)
        outcome = await stack.validate("--json", *PATIENT)

    figure, step = wrong(outcome)
    assert "made a dead letter of it: unknown_device (" in figure
    assert "INGEST_PROVISIONING=strict: set the same for `validate`" in step
    assert "ok" == statuses(outcome)["cleanup"]
    assert {} == stack.rows()


async def test_wiring_says_that_the_service_cannot_write(plant: Plant) -> None:
    """Received and not stored: what the service says of itself, and that the point may come when it can write again."""
    plant.ours.change(REFUSE)
    outcome = await plant.ours.validate("--json", *PATIENCE)

    figure, step = wrong(outcome)
    assert "the service has messages in flight" in figure
    assert "GET /readyz: 503, database: another session holds a lock in the database" in figure
    assert step.startswith("ops/operations.md#health")
    assert "may still store 1 point" in failures(outcome)[-1]
    assert "DELETE FROM traksense.device" in findings(outcome, "cleanup")[0]["next_step"]
    plant.ours.change("DROP TRIGGER refuse ON traksense.series")


async def test_wiring_accuses_nobody_if_the_broker_goes_away(
    database: str, own_broker: OwnBroker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """What the service held is forgotten with its connection, and comes again: it is not in another database."""
    broker = own_broker()
    env = {"DATABASE_URL": database, "MQTT_URL": broker.url, "MQTT_CLIENT_ID": unique("lost")}
    outcomes: list[Outcome] = []
    async with open_service(env | {"INGEST_SHUTDOWN_SECONDS": "5"}, tmp_path) as service:
        await service.wait_ready()
        stack = Stack(database, env | {"METRICS_PORT": service.env["METRICS_PORT"]}, service)
        stack.change(REFUSE)

        async def validate() -> None:
            outcomes.append(await stack.validate("--json", *PATIENCE))

        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(validate)
                while (await service.metrics()).value("ingest_in_flight_messages") <= EMPTY_MESSAGES:
                    await trio.sleep(0.01)
                broker.kill()

    assert not any("another database" in failure for failure in failures(outcomes[0]))
    assert findings(outcomes[0], "wiring")[-1]["next_step"].startswith("is the broker running?")
