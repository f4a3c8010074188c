"""What health says of the database is what is so, whatever befalls the database, and however often."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import secrets
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio
from fresh_messages import KINDS, refusal
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from troubles import (
    GENERAL,
    HEALTHY,
    READ_ONLY,
    SERVICE,
    TROUBLES,
    Scene,
    Trouble,
    locked,
    renamed,
    small_disk,
    without_right,
)

from traksense.config import load
from traksense.errors import StoreError
from traksense.ingest import write
from traksense.ingest.ack import Acknowledger
from traksense.ingest.batch import Batcher
from traksense.ingest.clock import ClockWatch
from traksense.ingest.health import Health
from traksense.ingest.ledger import Ledger
from traksense.ingest.write import Writer
from traksense.model import Delivery, Message
from traksense.service import writer_count
from traksense.store import pool, postgres, probe, upkeep
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.migrate import migrate
from traksense.store.postgres import PostgresStore, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.conftest import OwnPostgres

BOUND_SECONDS: Final = 60.0
"""Within which health says what is so. It takes a probe's interval and a probe, 25 s at the worst with what is in
force outside of tests; this is for busy machines."""

LASTS_SECONDS: Final = 0.7
"""For how long a state is watched."""

GATE: Final = (
    READ_ONLY,
    *GENERAL,
    locked("traksense.device"),
    without_right("public.device_event"),
    renamed("public.ingest_errors"),
    HEALTHY,
)

# What asyncpg, asyncio and Python say among themselves.
_INTERNALS: Final = re.compile(r"switch to state|__aexit__|Error\b|Errno|asyncpg|Traceback|pool|event loop|\n")


@attrs.define(eq=False)
class Lines(logging.Handler):
    """What is logged at WARNING and above."""

    records: list[logging.LogRecord] = attrs.field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def take(self) -> list[logging.LogRecord]:
        """What has come since this was last asked."""
        records, self.records = self.records, []
        return records


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def scene(own_postgres: OwnPostgres, stack_directory: Path) -> Iterator[Scene]:
    with small_disk(stack_directory / f"disk-{secrets.token_hex(4)}") as small:
        # No autovacuum: it would make room on the full disk.
        server = own_postgres(settings={"autovacuum": "off", "allow_system_table_mods": "on"})
        scene = Scene(server, "postgres", small)
        if small is not None:
            owner = (server.directory / "cluster").stat()
            os.chown(small, owner.st_uid, owner.st_gid)
            scene.run(f"CREATE TABLESPACE small LOCATION '{small}'")
        scene.run("CREATE DATABASE health" + (" TABLESPACE small" if small else ""))
        asyncio.run(migrate(server.dsn_of("health"), log=logging.getLogger(__name__)))
        scene.run(f"CREATE ROLE {SERVICE} LOGIN PASSWORD '{SERVICE}' IN ROLE traksense_ingest")
        scene.database = "health"
        with scene.hand:
            yield scene


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PROBE_EVERY_SECONDS", 0.2)
    monkeypatch.setattr(upkeep, "ROUND_EVERY_SECONDS", 0.5)
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 3.0)
    monkeypatch.setattr(probe, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(probe, "PROBE_SECONDS", 3.0)
    monkeypatch.setattr(write, "RETRY_MAXIMUM_SECONDS", 0.5)


@pytest.mark.timeout(3600)
@settings(
    phases=(Phase.explicit, Phase.generate) if os.environ.get("TRAKSENSE_TEST_EXAMPLES") else (Phase.explicit,),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(st.sampled_from(TROUBLES), min_size=2, max_size=8))
@example(GATE)
def test_health_agrees_with_what_can_be_written(scene: Scene, lines: Lines, troubles: list[Trouble]) -> None:
    """In each state of the database, under load: health comes to say what is so within the bound, says nothing else
    while the state lasts, and says it in one line, in words of ours, once.
    """
    trio.run(_walk, scene, lines, troubles)


async def _walk(scene: Scene, lines: Lines, troubles: list[Trouble]) -> None:
    health = Health(["database", "clock"], ["maintenance"])
    with trio.fail_after(len(troubles) * 3 * BOUND_SECONDS):
        async with open_asyncio_loop(), AsyncExitStack() as stack:
            store: PostgresStore | None = None
            for trouble in troubles:
                async with _lasting(trouble, scene):
                    lines.take()
                    if store is None:
                        store = await stack.enter_async_context(_service(scene, health))
                    await _check(trouble, health, lines)
                    if trouble.answers:
                        refused = "it waits"  # for a database that was never there, for ever
                        with trio.move_on_after(10):
                            refused = await refusal(store)
                        assert bool(refused) == (not trouble.storable), f"the model is wrong: {trouble}, {refused}"


async def _check(trouble: Trouble, health: Health, lines: Lines) -> None:
    """Health agrees with the model, and goes on to."""
    # Of a database that takes nothing, the clock may not be known.
    expected = {"database": trouble.storable} | ({"clock": trouble.clock} if trouble.storable else {})

    def agrees() -> bool:
        return expected == {name: health.holds(name) for name in expected}

    with trio.move_on_after(BOUND_SECONDS) as scope:
        while not (agrees() and trouble.reason in str(health.report()["database"].get("reason", ""))):
            await trio.sleep(0.01)
    assert not scope.cancelled_caught, f"{trouble}: {health.report()}"

    settled = lines.take()
    until = trio.current_time() + LASTS_SECONDS
    while trio.current_time() < until:
        assert agrees(), f"{trouble} lasts, but: {health.report()}"
        await trio.sleep(0.01)
    news = [line for line in lines.take() if line.getMessage() == "condition_fails"]
    said = [
        (vars(line)["traksense_condition"], vars(line)["traksense_reason"])
        for line in [*settled, *news]
        if line.getMessage() == "condition_fails"
    ]
    assert len(said) == len(set(said)), f"{trouble} is told again and again: {said}"
    for line in [*settled, *news]:
        text = " ".join(str(value) for key, value in vars(line).items() if key in ("msg", "traksense_reason"))
        assert not line.exc_info, f"{trouble}: a traceback, {text}"
        assert not _INTERNALS.search(text), f"{trouble}: {text}"


@asynccontextmanager
async def _lasting(trouble: Trouble, scene: Scene) -> AsyncIterator[None]:
    context = contextmanager(trouble.lasts)(scene)

    async def step(function: Callable[..., object], *args: object) -> None:
        await trio.to_thread.run_sync(scene.hand.submit(function, *args).result)

    await step(context.__enter__)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await step(context.__exit__, None, None, None)


@asynccontextmanager
async def _service(scene: Scene, health: Health) -> AsyncIterator[PostgresStore]:
    """A store and its writers, which are sent messages of every kind, one by one, as fast as they take them."""
    server = scene.server
    dsn = f"postgresql://{SERVICE}:{SERVICE}@{server.host}:{server.port}/health"
    config = load({"DATABASE_URL": dsn, "DB_STATEMENT_TIMEOUT": "2"})
    ledger, acknowledger = Ledger(), Acknowledger()
    send, receive = trio.open_memory_channel[list[Delivery]](0)
    batcher = Batcher(
        trio.open_memory_channel[Message](0)[1], send, decode=lambda m: Delivery(m, [], 0), size_max=1, wait_max=0
    )
    async with open_store(config, health, ClockWatch(health)) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        for number in range(writer_count(config)):
            writer = Writer(
                receive.clone(),
                store=store,
                batcher=batcher,
                ledger=ledger,
                acknowledger=acknowledger,
                health=health,
                name=f"writer {number}",
            )
            nursery.start_soon(writer.run)
        nursery.start_soon(_feed, send, ledger, acknowledger)
        nursery.start_soon(_log_session, store)
        yield store
        nursery.cancel_scope.cancel()


async def _feed(send: trio.MemorySendChannel[list[Delivery]], ledger: Ledger, acknowledger: Acknowledger) -> None:
    for kind in itertools.cycle(KINDS):
        delivery = kind()
        ledger.receive([delivery.message])
        acknowledger.received([delivery.message])
        await send.send([delivery])
        await trio.sleep(0.02)


async def _log_session(store: PostgresStore) -> None:
    """As ingest.session does."""
    while True:
        with suppress(StoreError):
            await store.sessions.connected("client", "broker", datetime.now(UTC))
        await trio.sleep(0.2)
