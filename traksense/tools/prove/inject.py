"""Does what the schedule says, to the stage. Each kind of fault undoes itself; `heal` undoes whatever is left."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.prove import saboteur
from traksense.tools.prove.schedule import CATALOGUE
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from traksense.tools.prove.schedule import Injection
    from traksense.tools.prove.stage import Stage
    from traksense.tools.proxy import Proxy

CUT_SECONDS: Final = 5.0
"""How long a cut may wait for its moment."""
BACKENDS_SECONDS: Final = 4.0
"""How long to wait for the service to have a connection to the database."""
WORKING_SECONDS: Final = 2.0
"""How long to wait for a service that works, so that most faults meet one."""
OVERLAP_SECONDS: Final = 0.15
"""How long a service that was thought dead lives on at most: less than its reader waits before it connects again."""
SLOW_LATENCY_SECONDS: Final = 0.08
SLOW_RATE: Final = 64 * 1024
"""Bytes a second."""


async def inject(stage: Stage, injection: Injection) -> bool:
    """Do it, when the part is free; says whether it took effect (a kill point or a cut may not be reached).

    Cancellation: what lasts is undone.
    """
    fault = CATALOGUE[injection.fault]
    async with stage.turns[fault.part]:
        return await ACTIONS[fault.name](stage, injection)


async def heal(stage: Stage) -> None:
    """Undo everything; afterwards nothing stands between the service and its work."""
    stage.broker_link.heal()
    stage.database_link.heal()
    await stage.postgres.start()
    await stage.broker.start()
    await stage.database.execute_at_last(*_UNDO)


_UNDO: Final = (
    "ALTER SYSTEM RESET default_transaction_read_only",
    "SELECT pg_reload_conf()",
    "UPDATE prove.switch SET is_full = false",
)


# --- the service ------------------------------------------------------------------------------------------------------


async def _kill(stage: Stage, injection: Injection) -> bool:
    await _wait_working(stage, injection)
    await stage.replicas.hit_by(injection).kill()
    return True


async def _restart(stage: Stage, injection: Injection) -> bool:
    await _wait_working(stage, injection)
    await stage.replicas.hit_by(injection).restart()
    return True


async def _freeze_service(stage: Stage, injection: Injection) -> bool:
    await _wait_working(stage, injection)
    return await stage.replicas.hit_by(injection).freeze(injection.seconds)


async def _zombie(stage: Stage, injection: Injection) -> bool:
    await _wait_working(stage, injection)
    # Not long enough to connect again: two that fight for one client identifier are another matter.
    return await stage.replicas.hit_by(injection).replace(injection.seconds, injection.draw / 1000 * OVERLAP_SECONDS)


async def _lose(stage: Stage, injection: Injection) -> bool:
    await _wait_working(stage, injection)
    return await stage.replicas.hit_by(injection).lose(injection.seconds)


async def _take_over(stage: Stage, injection: Injection) -> bool:
    await _wait_working(stage, injection)
    return await stage.replicas.hit_by(injection).take_over(injection.seconds)


async def _reshard(stage: Stage, _injection: Injection) -> bool:
    await stage.replicas.deal_again()
    return True


def _kill_at(point: str, *, afresh: bool = False) -> Callable[[Stage, Injection], Awaitable[bool]]:
    async def action(stage: Stage, injection: Injection) -> bool:
        if afresh:
            # Only a service that has just started comes by here.
            await stage.replicas.hit_by(injection).kill()
        return await stage.replicas.hit_by(injection).kill_at(point, 1 + injection.draw % (2 if afresh else 8))

    return action


async def _wait_working(stage: Stage, injection: Injection) -> None:
    """Wait a while until the service is ready; now and then not, to meet it while it starts."""
    if injection.draw % 4 == 0:
        return
    with trio.move_on_after(WORKING_SECONDS):
        while not await stage.replicas.hit_by(injection).ready():
            await trio.sleep(POLL_SECONDS)


# --- the database -----------------------------------------------------------------------------------------------------


async def _terminate_backends(stage: Stage, _injection: Injection) -> bool:
    pids = await _backends(stage)
    await stage.database.execute_at_last(*(f"SELECT pg_terminate_backend({pid})" for pid in pids))
    return bool(pids)


async def _kill_backend(stage: Stage, injection: Injection) -> bool:
    pids = await _backends(stage)
    if pids:
        os.kill(pids[injection.draw % len(pids)], signal.SIGKILL)
        await stage.database.execute_at_last("SELECT 1")
    return bool(pids)


async def _kill_postmaster(stage: Stage, injection: Injection) -> bool:
    stage.postgres.kill()
    await trio.sleep(injection.seconds)
    await stage.postgres.start()
    return True


async def _restart_postgres(stage: Stage, injection: Injection) -> bool:
    await stage.postgres.stop()
    await trio.sleep(injection.seconds)
    await stage.postgres.start()
    return True


async def _freeze(stage: Stage, injection: Injection) -> bool:
    pids = await _backends(stage)
    try:
        _signal_all(pids, signal.SIGSTOP)
        await trio.sleep(injection.seconds)
    finally:
        _signal_all(pids, signal.SIGCONT)
    return bool(pids)


async def _read_only(stage: Stage, injection: Injection) -> bool:
    reload = "SELECT pg_reload_conf()"
    await stage.database.execute_at_last("ALTER SYSTEM SET default_transaction_read_only = on", reload)
    await trio.sleep(injection.seconds)
    await stage.database.execute_at_last("ALTER SYSTEM RESET default_transaction_read_only", reload)
    return True


async def _full(stage: Stage, injection: Injection) -> bool:
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


# --- the broker -------------------------------------------------------------------------------------------------------


async def _kill_broker(stage: Stage, injection: Injection) -> bool:
    stage.broker.kill()
    stage.broker_kills.append(trio.current_time())
    await trio.sleep(injection.seconds)
    await stage.broker.start()
    return True


async def _restart_broker(stage: Stage, injection: Injection) -> bool:
    await stage.broker.stop()
    await trio.sleep(injection.seconds)
    await stage.broker.start()
    return True


# --- the links --------------------------------------------------------------------------------------------------------


def _on_link(
    which: str, verb: Callable[[Proxy, Injection], None], *, lasts: bool = True, awaits_cut: bool = False
) -> Callable[[Stage, Injection], Awaitable[bool]]:
    async def action(stage: Stage, injection: Injection) -> bool:
        link: Proxy = getattr(stage, which)
        cuts = link.cuts
        try:
            verb(link, injection)
            if awaits_cut:
                with trio.move_on_after(CUT_SECONDS):
                    await link.wait_cut()
                return link.cuts > cuts
            await trio.sleep(injection.seconds)
        finally:
            if lasts or awaits_cut:
                link.heal()
        return True

    return action


def _reset(link: Proxy, _injection: Injection) -> None:
    link.reset()


def _slow(link: Proxy, _injection: Injection) -> None:
    link.latency, link.rate = SLOW_LATENCY_SECONDS, SLOW_RATE


ACTIONS: Final[dict[str, Callable[[Stage, Injection], Awaitable[bool]]]] = {
    "service-kill": _kill,
    "service-kill-after-receive": _kill_at(saboteur.AFTER_RECEIVE),
    "service-kill-registering": _kill_at(saboteur.REGISTERING, afresh=True),
    "service-kill-mid-batch": _kill_at(saboteur.MID_BATCH),
    "service-kill-before-puback": _kill_at(saboteur.BEFORE_PUBACK),
    "service-kill-mid-puback": _kill_at(saboteur.MID_PUBACK),
    "service-restart": _restart,
    "service-freeze": _freeze_service,
    "service-zombie": _zombie,
    "service-loss": _lose,
    "service-takeover": _take_over,
    "service-reshard": _reshard,
    "database-terminate": _terminate_backends,
    "database-kill-backend": _kill_backend,
    "database-kill": _kill_postmaster,
    "database-restart": _restart_postgres,
    "database-freeze": _freeze,
    "database-read-only": _read_only,
    "database-full": _full,
    "database-reset": _on_link("database_link", _reset, lasts=False),
    "database-ambiguous": _on_link("database_link", lambda link, _: link.cut_at_outcome(), awaits_cut=True),
    "database-black-hole": _on_link("database_link", lambda link, _: link.black_hole()),
    "database-slow": _on_link("database_link", _slow),
    "broker-restart": _restart_broker,
    "broker-kill": _kill_broker,
    "broker-reset": _on_link("broker_link", _reset, lasts=False),
    "broker-cut": _on_link("broker_link", lambda link, i: link.cut_after(1 + i.draw * 3), awaits_cut=True),
    "broker-black-hole": _on_link("broker_link", lambda link, _: link.black_hole()),
    "broker-hold": _on_link("broker_link", lambda link, _: link.hold()),
    "broker-slow": _on_link("broker_link", _slow),
}
