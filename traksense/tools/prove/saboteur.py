"""The service, with a bomb inside: `python -m traksense.tools.prove.saboteur ARM_FILE [--break WHAT]`.

The code that ships has no failpoints. Here the methods at the interesting places are wrapped before the service starts;
each passage looks whether ARM_FILE names its point, counts down, and at zero the process kills itself with SIGKILL, so
that nothing of it (no `finally`, no buffer, no signal handler) runs afterwards. Whoever writes the file sees it vanish
just before.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import trio

from traksense import config, log, service
from traksense.ingest.handover import Handover
from traksense.ingest.intake import Intake
from traksense.ingest.write import Writer
from traksense.mqtt.connection import Connection
from traksense.store import packing, transaction
from traksense.store.dictionary import Dictionary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from traksense.model import Delivery, Message

AFTER_RECEIVE: Final = "after-receive"
REGISTERING: Final = "registering"
MID_BATCH: Final = "mid-batch"
BEFORE_PUBACK: Final = "before-puback"
MID_PUBACK: Final = "mid-puback"

ACK_EARLY: Final = "ack-early"
HASTY_HANDOVER: Final = "hasty-handover"


class Bomb:
    """Goes off at the armed point. ARM_FILE holds the point and how many passages it takes: `mid-batch 3`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def passes(self, point: str) -> bool:
        """Count this passage; whether it is the one."""
        try:
            with open(self._path, "r+", encoding="ascii") as file:  # noqa: PTH123  (at every passage: a Path costs more)
                armed, _, left = file.read().partition(" ")
                if armed != point:
                    return False
                if int(left) > 1:
                    file.seek(0)
                    file.truncate()
                    file.write(f"{armed} {int(left) - 1}")
                    return False
        except FileNotFoundError:
            return False
        return True

    def explode(self) -> None:
        """End this process here and now."""
        os.unlink(self._path)  # noqa: PTH108
        os.kill(os.getpid(), signal.SIGKILL)

    def at(self, point: str) -> None:
        """Explode if this passage is the one."""
        if self.passes(point):
            self.explode()


def plant(bomb: Bomb) -> None:
    """Wrap the methods at the points."""
    _plant_in_pipeline(bomb)
    _plant_in_store(bomb)
    _plant_in_connection(bomb)


def _plant_in_pipeline(bomb: Bomb) -> None:
    accept = Intake.accept
    settle = Writer._settle

    @functools.wraps(accept)
    def accept_and_die(intake: Intake, messages: Iterable[Message]) -> None:
        messages = list(messages)
        accept(intake, messages)
        if messages:
            bomb.at(AFTER_RECEIVE)

    @functools.wraps(settle)
    def die_before_settling(writer: Writer, *arguments: Any) -> None:
        bomb.at(BEFORE_PUBACK)
        settle(writer, *arguments)

    Intake.accept = accept_and_die  # type: ignore[method-assign,assignment]
    Writer._settle = die_before_settling  # type: ignore[method-assign,assignment]


def _plant_in_store(bomb: Bomb) -> None:
    store_others = transaction._store_others
    register = Dictionary._register_series
    chunks = packing._chunks

    @functools.wraps(store_others)
    async def die_before_commit(connection: Any, rows: Any) -> set[int]:
        fresh = await store_others(connection, rows)
        if connection.is_in_transaction():
            bomb.at(MID_BATCH)
        return fresh

    @functools.wraps(register)
    async def die_registering(dictionary: Dictionary, connection: Any, series: Any) -> None:
        bomb.at(REGISTERING)
        await register(dictionary, connection, series)

    @functools.wraps(chunks)
    async def die_before_the_end(packed: Iterable[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks(packed):
            yield chunk
        # The rows are sent; a COPY that is alone commits with its end.
        bomb.at(MID_BATCH)

    packing._chunks = die_before_the_end
    transaction._store_others = die_before_commit
    Dictionary._register_series = die_registering  # type: ignore[method-assign,assignment]


def _plant_in_connection(bomb: Bomb) -> None:
    acknowledge = Connection.acknowledge

    @functools.wraps(acknowledge)
    def die_acknowledging(connection: Connection, packet_ids: Iterable[int]) -> None:
        acknowledge(connection, packet_ids)
        if bomb.passes(MID_PUBACK):
            # Straight to the kernel: the writing task will not get its turn. Half, and in the middle of a packet.
            data = connection.codec.take()
            stream = connection._stream
            assert isinstance(stream, trio.SocketStream)  # no TLS on this stage
            with contextlib.suppress(OSError):  # the connection may be gone as well
                os.write(stream.socket.fileno(), data[: len(data) // 2 | 1])
            bomb.explode()

    Connection.acknowledge = die_acknowledging  # type: ignore[method-assign,assignment]


def break_ack_early() -> None:
    """The classic bug: acknowledge first, store then."""
    write = Writer._write

    @functools.wraps(write)
    async def acknowledge_then_write(writer: Writer, deliveries: list[Delivery]) -> None:
        writer._acknowledger.settle([delivery.message for delivery in deliveries])
        await write(writer, deliveries)

    Writer._write = acknowledge_then_write  # type: ignore[method-assign,assignment]


def break_handover() -> None:
    """Give topics up at once, whoever reads them."""

    def release_everything(handover: Handover, _claims: frozenset[str]) -> frozenset[str]:
        return handover.kept

    Handover._claimed_long_enough = release_everything  # type: ignore[method-assign,assignment]


BREAKAGES: Final = {ACK_EARLY: break_ack_early, HASTY_HANDOVER: break_handover}


def main(argv: list[str]) -> int:
    """Run the service."""
    plant(Bomb(argv[0]))
    if argv[1:]:
        BREAKAGES[argv[2]]()
    settings = config.load(os.environ)
    log.configure(settings.log_level, settings.log_format)
    trio.run(service.run, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
