"""The service as a member of `traksense_ingest`: it owns nothing, and writes for the tenants that it names."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio
from schema_servers import user_of
from trio_asyncio import aio_as_trio

from tests.contract.test_store import *  # noqa: F403
from tests.contract.test_store import NOW, delivery, open_postgres_store, register, telemetry

# The whole contract again, for a login without rights of its own.
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.errors import StoreMisconfiguredError
from traksense.ingest.health import Health
from traksense.model import CommandAck, Event, Point, Reason, Rejection
from traksense.store import postgres
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.migrate import migrate
from traksense.store.postgres import open_store
from traksense.store.roles import ROLES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from schema_servers import Database

    from tests.contract.test_store import Devices, OpenStore
    from traksense.store.postgres import PostgresStore

pytest_plugins = ("schema_fixtures",)

log = logging.getLogger(__name__)

INSERTS = {
    "tenant": "INSERT INTO traksense.tenant (tenant_id) VALUES ('{}')",
    "device": "INSERT INTO traksense.device (tenant_id, site_id, device_id) VALUES ('{}', 'site', 'new')",
    "series": "INSERT INTO traksense.series (tenant_id, site_id, device_id, point_id)"
    " VALUES ('{}', 'site', 'device', 'new')",
    "meta": "INSERT INTO traksense.meta (tenant_id, digest, doc) VALUES ('{}', decode(md5('new'), 'hex'), '{{}}')",
    "cmd_ack": "INSERT INTO public.cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, payload)"
    " VALUES ('{}', 'site', 'device', 'new', true, '{{}}')",
    "device_event": "INSERT INTO public.device_event (tenant_id, site_id, device_id, event_type, ts)"
    " VALUES ('{}', 'site', 'device', 'new', now())",
    "ingest_errors": "INSERT INTO public.ingest_errors (tenant_id, topic, payload, reason, digest)"
    " VALUES ('{}', 'topic', 'x', 'parse_error', decode(md5('new'), 'hex'))",
}


@pytest.fixture
def ingest(owned: Database) -> str:
    """The DSN of a login whose only right is to be a member of `traksense_ingest`."""
    return owned.create_member("traksense_ingest")


@pytest.fixture  # type: ignore[no-redef]  # in place of the imported one
def open_any_store(owned: Database, ingest: str) -> OpenStore:
    """In place of the contract's own: PostgreSQL with that login."""

    @asynccontextmanager
    async def open_as_ingest(*, registered: Devices | None = None) -> AsyncIterator[PostgresStore]:
        if registered:
            async with open_asyncio_loop():
                await aio_as_trio(register)(owned.dsn, registered)
        environ = {"DATABASE_URL": ingest, "INGEST_PROVISIONING": "strict" if registered is not None else "auto"}
        async with (
            open_asyncio_loop(),
            open_store(load(environ), Health(["database", "maintenance"])) as store,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(store.run)
            with trio.fail_after(HANG_SECONDS):
                await store.probe()
            yield store
            nursery.cancel_scope.cancel()

    return open_as_ingest


def test_ingest_has_no_attribute(owned: Database, ingest: str) -> None:
    """The service's role owns nothing, bypasses nothing, and is no operator."""
    attributes = owned.rows(
        "SELECT rolname::text, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolcanlogin"
        " FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1",
        list(ROLES),
    )
    owns = owned.value(
        "SELECT count(*) FROM pg_shdepend WHERE refobjid IN"
        " (SELECT oid FROM pg_roles WHERE rolname = ANY(%s)) AND deptype = 'o'",
        list(ROLES),
    )

    assert [("traksense_app", False), ("traksense_ingest", False), ("traksense_readonly", False)] == attributes
    assert 0 == owns
    assert not owned.value("SELECT NOT row_security_active('public.cmd_ack')", dsn=ingest)


@pytest.fixture
def two_tenants(owned: Database) -> Database:
    """Both tenants have a device with a point."""
    owned.add_series("acme", "device", "point")
    owned.add_series("bravo", "device", "point")
    return owned


@pytest.mark.parametrize("relation", INSERTS)
def test_row_of_a_tenant_that_was_not_named_is_refused(two_tenants: Database, ingest: str, relation: str) -> None:
    """The database refuses to register or store anything for a tenant that the transaction did not name."""
    statement = INSERTS[relation]
    new = "new" if relation == "tenant" else "bravo"
    for named in ("acme", "", "acme/charlie", "bra", "bravo ", "BRAVO", "bravo2/newer"):
        with psycopg.connect(ingest) as connection:
            connection.execute("SELECT set_config('app.tenant_ids', %s, true)", (named,))
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="violates row-level security policy"):
                connection.execute(statement.format(new))
    with psycopg.connect(ingest) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="violates row-level security policy"):
            connection.execute(statement.format(new))
        connection.rollback()
        connection.execute("SELECT set_config('app.tenant_ids', %s, true)", (f"acme/{new}",))
        connection.execute(statement.format(new))


def test_updates_are_walled_too(two_tenants: Database, ingest: str) -> None:
    """What the service may change, an acknowledgement say, it changes only for the tenants that it named."""
    for tenant in ("acme", "bravo"):
        two_tenants.run(INSERTS["cmd_ack"].format(tenant))
    with psycopg.connect(ingest) as connection:
        connection.execute("SET LOCAL app.tenant_ids = 'acme'")
        changed = connection.execute("UPDATE cmd_ack SET ok = false").rowcount
        devices = connection.execute("UPDATE traksense.device SET last_seen_at = now()").rowcount

    assert (1, 1) == (changed, devices)
    assert [("acme", False), ("bravo", True)] == two_tenants.rows("SELECT tenant_id, ok FROM cmd_ack ORDER BY 1")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM traksense.measure",
        "SELECT qual FROM traksense.measure",
        "SELECT meta FROM traksense.measure",
        "SELECT doc FROM traksense.meta",
        "SELECT payload FROM public.ingest_errors",
        "SELECT created_at FROM public.cmd_ack",
        "SELECT data FROM public.device_event",
        "SELECT * FROM public.ts_measure",
        "UPDATE traksense.measure SET v_num = 0",
        "UPDATE traksense.series SET tenant_id = 'acme'",
        "UPDATE traksense.device SET tenant_id = 'acme'",
        "UPDATE public.cmd_ack SET tenant_id = 'acme'",
        "UPDATE traksense.setting SET value = '1 day'",
        "UPDATE traksense.schema_version SET version = 9",
        "DELETE FROM traksense.measure",
        "DELETE FROM public.cmd_ack",
        "DELETE FROM public.ingest_errors",
        "TRUNCATE traksense.measure",
        "ALTER TABLE traksense.measure DISABLE TRIGGER ALL",
        "CREATE TABLE traksense.mine ()",
        "CREATE TABLE public.mine ()",
        "SELECT traksense.keep_no_statistics('traksense.measure')",
        "SET ROLE traksense_app",
        "SET ROLE postgres",
    ],
)
def test_ingest_may_do_nothing_else(owned: Database, ingest: str, statement: str) -> None:
    """The service's role reads what it needs, writes what it must, and nothing beyond."""
    if owned.server.timescaledb and statement.startswith("SELECT") and statement.endswith("FROM traksense.measure"):
        pytest.skip("TimescaleDB cannot grant single columns where there is a columnstore")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        owned.rows(statement, dsn=ingest)


async def test_store_names_the_topics_tenants(owned: Database, ingest: str) -> None:
    """A batch of several tenants with points, acks, events and dead letters is stored by a login without rights."""
    batch = [
        delivery(telemetry(Point("a", 1.0), meta=b'{"fw": 1}')),
        delivery(CommandAck("c1", True, b"{}", NOW)),
        delivery(Event("boot", NOW)),
        delivery(rejection=Rejection(Reason.PARSE_ERROR, "not JSON")),
    ]
    async with open_postgres_store(ingest) as store:
        await store.write(batch)
    for relation in ("ts_measure", "cmd_ack", "device_event", "ingest_errors"):
        assert [("tenant",)] == owned.rows(f"SELECT tenant_id FROM {relation}")


async def test_maintenance_needs_no_more_rights(owned: Database, ingest: str) -> None:
    """The service's own login aggregates, drops what has expired, and writes down when devices were last heard."""
    owned.run("UPDATE traksense.setting SET value = '90 days' WHERE name = 'retain_raw'")
    owned.run("SELECT traksense.ensure_partitions(now() - interval '300 days', now() - interval '300 days')")
    good = delivery(telemetry(Point("a", 1.0)))
    good.message.received_at = datetime.now(UTC)
    async with open_postgres_store(ingest) as store:
        await store.write([good])
        await store._call(store.upkeep.round)
        await store._call(store.upkeep.round)
        assert set() == {name for name, count in store.upkeep.failures.items() if count}
        assert {state.trouble(datetime.now(UTC)) for state in store.upkeep.states} == {None}

    assert [("tenant", "device", True)] == owned.rows("SELECT tenant_id, device_id, online FROM device_status")
    if not owned.server.timescaledb:
        assert [(1.0, 1)] == owned.rows("SELECT v_avg, v_count FROM ts_measure_1h")
        assert 0 == owned.value(
            "SELECT count(*) FROM traksense.partition_ranges() r WHERE upper(r) < now() - interval '95 days'"
        )


async def test_store_cannot_be_made_to_cross(owned: Database, ingest: str) -> None:
    """Should a row ever name another tenant than its topic does, the database refuses it: the second of two walls."""
    crossed = delivery(Event("boot", NOW))
    crossed.message.topic = "traksense/other/site/device/event"
    async with open_postgres_store(ingest) as store:
        await store.write([delivery(telemetry(Point("a", 1.0)))])
        with pytest.raises(Exception, match="row-level security"):
            await store.write([crossed])

    assert [] == owned.rows("SELECT * FROM device_event")


async def test_operator_who_locks_a_device_holds_up_no_round(owned: Database, ingest: str) -> None:
    """The aggregates are brought up to date, and the other devices' last signs of life are written down."""
    deliveries = [delivery(telemetry(Point("a", 1.0)), device=device) for device in "xy"]
    for good in deliveries:
        good.message.received_at = datetime.now(UTC)
    async with open_postgres_store(ingest) as store:
        await store.write(deliveries)
        with owned.connect() as session, session.transaction():
            session.execute("SELECT FROM traksense.device WHERE device_id = 'x' FOR UPDATE")
            with trio.fail_after(HANG_SECONDS):
                await store._call(store.upkeep.round)
                # By this round, or by one that the store had begun itself.
                while not (seen := owned.rows("SELECT device_id FROM traksense.device WHERE last_seen_at IS NOT NULL")):
                    await trio.sleep(0.05)

    assert [("y",)] == seen
    if not owned.server.timescaledb:
        assert 0 == owned.value("SELECT count(*) FROM traksense.dirty")


def test_nobody_may_call_what_runs_as_the_owner(owned: Database) -> None:
    """Functions and procedures with the owner's rights are not for everybody, even if he may use the schema."""
    public = owned.rows(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'traksense'::regnamespace AND prosecdef"
        " AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a WHERE a.grantee = 0)"
    )

    assert [] == public


def give_to_heir(owned: Database) -> str:
    """Give the schema to another role, as a dump that is restored does; how the heir connects."""
    if owned.dsn == owned.admin:
        pytest.skip("a superuser sees everything")
    heir = owned.create_role("heir")
    owned.run(
        f"GRANT CREATE ON SCHEMA public TO {user_of(heir)}",
        f"REASSIGN OWNED BY {user_of(owned.dsn)} TO {user_of(heir)}",
        dsn=owned.admin,
    )
    return heir


def test_owner_who_no_longer_sees_is_noticed(owned: Database, ingest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a running service, too: it waits, rather than to take another event for a repeat."""
    monkeypatch.setattr(postgres, "PROBE_EVERY_SECONDS", 0.2)

    async def serve() -> None:
        settings, health = load({"DATABASE_URL": ingest}), Health(["database", "maintenance"])
        async with open_asyncio_loop(), open_store(settings, health) as store, trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            with trio.fail_after(HANG_SECONDS):
                while not health.holds("database"):
                    await trio.sleep(0.05)
                await store.write([delivery(Event("boot", NOW, "e1"))])
                heir = await trio.to_thread.run_sync(give_to_heir, owned)
                while "does not see" not in str(health.report()["database"]):
                    await trio.sleep(0.05)
                with pytest.raises(StoreMisconfiguredError, match="does not see the rows of its tables"):
                    await store.write([delivery(Event("boot", NOW, "e1", b"1"))])
                await trio.to_thread.run_sync(lambda: asyncio.run(migrate(heir, log=log)))
                result = await store.write([delivery(Event("boot", NOW, "e1", b"1"))])
            nursery.cancel_scope.cancel()
        assert [Reason.CONFLICTING_VALUE] == [rejection.reason for rejection in result.rejected.values()]

    trio.run(serve)


def test_owner_who_does_not_see_is_noticed(owned: Database, ingest: str) -> None:
    """A dump that was restored as another role has policies for the first one: the service does not start on it, rather
    than to find no series to aggregate and no event to compare; migrating puts it right.
    """
    heir = give_to_heir(owned)

    async def look() -> str | None:
        settings, health = load({"DATABASE_URL": ingest}), Health(["database", "maintenance"])
        async with open_asyncio_loop(), open_store(settings, health) as store, trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            with trio.fail_after(HANG_SECONDS):
                while (found := health.report()["database"]).get("reason") == "not started yet":
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        reason = found.get("reason")
        return str(reason) if reason is not None else None

    assert "does not see the rows of its tables" in (trio.run(look) or "")
    asyncio.run(migrate(heir, log=log))
    assert trio.run(look) is None
