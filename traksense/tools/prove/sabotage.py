"""What the saboteur does to the service: bombs at its interesting places, and bugs on demand.

It holds on to public names where there are any: the store's and the acknowledger's ports, and asyncpg's connection
class. It is right to break when one of them changes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import asyncpg
import trio

from traksense.ingest.ack import Acknowledger
from traksense.ingest.handover import Handover
from traksense.ingest.intake import Intake
from traksense.ingest.write import Writer
from traksense.mqtt.connection import Connection
from traksense.store.dictionary import Dictionary
from traksense.store.postgres import PostgresStore
from traksense.tools.prove import plain, saboteur

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from traksense.ingest.ports import Store, WriteResult
    from traksense.model import Delivery, Message
    from traksense.tools.prove.saboteur import Bomb

rewritten: list[Callable[[str], str]] = []
"""What becomes of each SQL text before it is sent."""


def plant(bomb: Bomb) -> None:
    """Wrap the methods at the points."""
    _plant_in_pipeline(bomb)
    _plant_in_store(bomb)
    _plant_in_connection(bomb)


def _plant_in_pipeline(bomb: Bomb) -> None:
    accept, settle = Intake.accept, Acknowledger.settle

    @functools.wraps(accept)
    def accept_and_die(intake: Intake, messages: Sequence[Message]) -> None:
        accept(intake, messages)
        if messages:
            bomb.at(saboteur.AFTER_RECEIVE)

    @functools.wraps(settle)
    def die_before_settling(acknowledger: Acknowledger, messages: Iterable[Message]) -> None:
        bomb.at(saboteur.BEFORE_PUBACK)
        settle(acknowledger, messages)

    Intake.accept = accept_and_die  # type: ignore[method-assign,assignment]
    Acknowledger.settle = die_before_settling  # type: ignore[method-assign,assignment]


def _plant_in_store(bomb: Bomb) -> None:
    register = Dictionary.register

    class Sabotage:
        """Passes the bomb before each COMMIT, and before the end of each COPY: one that is alone commits with it."""

        __slots__ = ()

        async def execute(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
            if query.lstrip().upper().startswith("COMMIT"):
                bomb.at(saboteur.MID_BATCH)
            return await super().execute(_rewrite(query), *arguments, **options)  # type: ignore[misc]

        async def fetch(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
            return await super().fetch(_rewrite(query), *arguments, **options)  # type: ignore[misc]

        async def fetchval(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
            return await super().fetchval(_rewrite(query), *arguments, **options)  # type: ignore[misc]

        async def fetchrow(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
            return await super().fetchrow(_rewrite(query), *arguments, **options)  # type: ignore[misc]

        async def _copy_in(self: Any, statement: str, source: Any, *rest: Any) -> Any:
            async def to_the_end() -> AsyncIterator[bytes]:
                async for chunk in source:
                    yield chunk
                bomb.at(saboteur.MID_BATCH)

            return await super()._copy_in(_rewrite(statement), to_the_end(), *rest)  # type: ignore[misc]

    def sabotaged(opener: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(opener)
        def opened(*arguments: Any, connection_class: type = asyncpg.Connection, **options: Any) -> Any:
            kind = type(f"Sabotaged{connection_class.__name__}", (Sabotage, connection_class), {"__slots__": ()})
            return opener(*arguments, connection_class=kind, **options)

        return opened

    @functools.wraps(register)
    async def die_registering(dictionary: Dictionary, connection: Any, missing: Any) -> set[str]:
        if missing.series:
            bomb.at(saboteur.REGISTERING)
        return await register(dictionary, connection, missing)

    Dictionary.register = die_registering  # type: ignore[method-assign,assignment]
    asyncpg.create_pool, asyncpg.connect = sabotaged(asyncpg.create_pool), sabotaged(asyncpg.connect)


def _rewrite(sql: str) -> str:
    for rewrite in rewritten:
        sql = rewrite(sql)
    return sql


def _plant_in_connection(bomb: Bomb) -> None:
    begin, acknowledge = Connection.__init__, Connection.acknowledge
    streams: WeakKeyDictionary[Connection, Any] = WeakKeyDictionary()

    @functools.wraps(begin)
    def remember_stream(connection: Connection, stream: Any, *arguments: Any, **options: Any) -> None:
        streams[connection] = stream
        begin(connection, stream, *arguments, **options)

    @functools.wraps(acknowledge)
    def die_acknowledging(connection: Connection, packet_ids: Iterable[int]) -> None:
        acknowledge(connection, packet_ids)
        if bomb.passes(saboteur.MID_PUBACK):
            # Straight to the kernel: the writing task will not get its turn. Half, and in the middle of a packet.
            data = connection.codec.take()
            stream = streams[connection]
            assert isinstance(stream, trio.SocketStream)  # no TLS on this stage
            with contextlib.suppress(OSError):  # the connection may be gone as well
                os.write(stream.socket.fileno(), data[: len(data) // 2 | 1])
            bomb.explode()

    Connection.__init__ = remember_stream  # type: ignore[method-assign,assignment]
    Connection.acknowledge = die_acknowledging  # type: ignore[method-assign,assignment]


# --- bugs on demand ---------------------------------------------------------------------------------------------------


def break_ack_early() -> None:
    """The classic bug: acknowledge first, store then."""
    begin = Writer.__init__

    class Early:
        """A store that tells before it has written."""

        def __init__(self, store: Store, acknowledger: Acknowledger) -> None:
            self._store = store
            self._acknowledger = acknowledger

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        async def write(self, batch: Sequence[Delivery]) -> WriteResult:
            self._acknowledger.settle([delivery.message for delivery in batch])
            return await self._store.write(batch)

    @functools.wraps(begin)
    def begin_early(writer: Writer, *arguments: Any, store: Store, acknowledger: Acknowledger, **options: Any) -> None:
        begin(writer, *arguments, store=Early(store, acknowledger), acknowledger=acknowledger, **options)

    Writer.__init__ = begin_early  # type: ignore[method-assign,assignment]


def break_handover() -> None:
    """Give topics up at once, whoever reads them."""

    def release_everything(handover: Handover, _claims: frozenset[str]) -> frozenset[str]:
        return handover.kept

    Handover._claimed_long_enough = release_everything  # type: ignore[method-assign,assignment]


def break_repeats() -> None:
    """A repeat writes nothing that its COMMIT would wait for: it is acknowledged whatever the standby has."""
    # Not transactional: then the message is no part of what is committed.
    rewritten.append(lambda sql: re.sub(r"(?i)(pg_logical_emit_message\s*\(\s*)true", r"\1false", sql))


def break_instants() -> None:
    """Messages without a time of their own share the second in which they were received."""
    plain.coarse = True


def break_points() -> None:
    """One bad point condemns the good points beside it."""
    write = PostgresStore.write

    @functools.wraps(write)
    async def write_all_or_none(store: PostgresStore, batch: Sequence[Delivery]) -> WriteResult:
        for delivery in batch:
            if delivery.rejection is not None:
                delivery.reject(delivery.rejection)
                delivery.items, delivery.points = [], 0
        return await write(store, batch)

    PostgresStore.write = write_all_or_none  # type: ignore[method-assign,assignment]


def break_clock() -> None:
    """The database's clock seems to be as wrong as ours: nothing to compare with."""
    from traksense.tools.prove import clock

    def shifted(_: re.Match[str]) -> str:
        off = (datetime.now(UTC) - clock.true_now()).total_seconds()
        return f"(pg_catalog.clock_timestamp() + interval '{off:.6f} seconds')"

    clocks = re.compile(r"(?i)\b(?:pg_catalog\.)?(?:clock|statement|transaction)_timestamp\(\)")
    rewritten.append(lambda sql: clocks.sub(shifted, sql))


BREAK: Final[dict[str, Callable[[], None]]] = {
    saboteur.ACK_EARLY: break_ack_early,
    saboteur.HASTY_HANDOVER: break_handover,
    saboteur.HASTY_REPEATS: break_repeats,
    saboteur.COARSE_INSTANTS: break_instants,
    saboteur.WHOLE_MESSAGE: break_points,
    saboteur.NO_CLOCK_CHECK: break_clock,
}
