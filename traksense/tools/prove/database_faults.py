"""What goes wrong with the database itself: its processes, its settings, its size, its primary."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.prove import saboteur
from traksense.tools.prove.messages import EVENT, STRANGER
from traksense.tools.prove.schedule import Part
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from traksense.tools.prove.schedule import Injection
    from traksense.tools.prove.stage import Stage

BACKENDS_SECONDS: Final = 4.0
"""How long to wait for the service to have a connection to the database."""

_READ_ONLY: Final = "default_transaction_read_only"

_UNDO: Final = (
    f"ALTER SYSTEM RESET {_READ_ONLY}",
    "SELECT pg_reload_conf()",
    "UPDATE prove.switch SET is_full = false",
)


async def heal(stage: Stage) -> None:
    """Undo what is left of all this."""
    await stage.database.execute_at_last(*_UNDO, f"ALTER DATABASE {stage.database_name} RESET {_READ_ONLY}")


async def terminate_backends(stage: Stage, _injection: Injection) -> bool:
    """As an operator would: every backend of the service."""
    pids = await _backends(stage)
    await stage.database.execute_at_last(*(f"SELECT pg_terminate_backend({pid})" for pid in pids))
    return bool(pids)


async def kill_backend(stage: Stage, injection: Injection) -> bool:
    """SIGKILL of one; the server restarts itself."""
    pids = await _backends(stage)
    if pids:
        os.kill(pids[injection.draw % len(pids)], signal.SIGKILL)
        await stage.database.execute_at_last("SELECT 1")
    return bool(pids)


async def kill_postmaster(stage: Stage, injection: Injection) -> bool:
    """SIGKILL of the whole server."""
    stage.servers.primary.kill()
    await trio.sleep(injection.seconds)
    await stage.servers.primary.start()
    return True


async def restart_postgres(stage: Stage, injection: Injection) -> bool:
    """A fast shutdown."""
    await stage.servers.primary.stop()
    await trio.sleep(injection.seconds)
    await stage.servers.primary.start()
    return True


async def freeze(stage: Stage, injection: Injection) -> bool:
    """SIGSTOP of the backends of the service."""
    pids = await _backends(stage)
    try:
        _signal_all(pids, signal.SIGSTOP)
        await trio.sleep(injection.seconds)
    finally:
        _signal_all(pids, signal.SIGCONT)
    return bool(pids)


async def read_only(stage: Stage, injection: Injection) -> bool:
    """Nothing can be written."""
    begin, end = _read_only_statements(stage, injection, await _backends(stage))
    await stage.database.execute_at_last(*begin)
    await trio.sleep(injection.seconds)
    await stage.database.execute_at_last(*end)
    return True


async def strangers(stage: Stage, injection: Injection) -> bool:
    """Read-only while there are only messages of unknown devices, whose names have to be registered first: what only a
    transaction that stores points would notice is not noticed.
    """
    publishing = stage.publishing
    await publishing.switch_to(STRANGER)
    begin, end = _read_only_statements(stage, injection, await _backends(stage))
    await stage.database.execute_at_last(*begin)
    publishing.paused = False
    await trio.sleep(injection.seconds)
    if not stage.unhealed:
        await stage.database.execute_at_last(*end)
    # Not at once: else the next message of a known device would help.
    publishing.back_to_usual()
    return True


def _read_only_statements(stage: Stage, injection: Injection, pids: list[int]) -> tuple[list[str], list[str]]:
    """The whole server at once; or the database, and then only new connections, for as long as they live."""
    name = stage.database_name
    if injection.draw % 2:
        ends = [f"SELECT pg_terminate_backend({pid})" for pid in pids]
        return [f"ALTER DATABASE {name} SET {_READ_ONLY} = on", *ends], [f"ALTER DATABASE {name} RESET {_READ_ONLY}"]
    reload = "SELECT pg_reload_conf()"
    return [f"ALTER SYSTEM SET {_READ_ONLY} = on", reload], [f"ALTER SYSTEM RESET {_READ_ONLY}", reload]


async def fail_over(stage: Stage, injection: Injection) -> bool:
    """To a standby that has been away; see `Servers.fail_over`."""
    # Of events, unlike measurements, a repeat writes nothing at all.
    await stage.publishing.switch_to(EVENT)
    await stage.fail_over(injection.seconds)
    stage.publishing.back_to_usual()
    return True


async def year(stage: Stage, injection: Injection) -> bool:
    """Of daily partitions; then what was under way comes again, so that there are duplicates to be found in it."""
    await stage.database.execute_at_last(
        "UPDATE traksense.setting SET value = '800 days' WHERE name = 'partition_daily_within'",
        "SELECT count(*) FROM traksense.ensure_partitions(now() - interval '365 days', now() + interval '7 days')",
    )
    async with stage.turns[Part.SERVICE]:
        return await stage.replicas.hit_by(injection).kill_at(saboteur.BEFORE_PUBACK, 1)


async def full(stage: Stage, injection: Injection) -> bool:
    """Nothing can be inserted."""
    await stage.database.execute_at_last("UPDATE prove.switch SET is_full = true")
    await trio.sleep(injection.seconds)
    await stage.database.execute_at_last("UPDATE prove.switch SET is_full = false")
    return True


async def _backends(stage: Stage) -> list[int]:
    pids: list[int] = []
    with trio.move_on_after(BACKENDS_SECONDS):
        while not (pids := await stage.database.backends()):
            await trio.sleep(POLL_SECONDS)
    return pids


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
