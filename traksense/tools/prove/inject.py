"""Does what the schedule says, to the stage. Each kind of fault undoes itself; `heal` undoes whatever is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.prove import database_faults, operators, reader, saboteur
from traksense.tools.prove.messages import PARTIAL, UNTIMED
from traksense.tools.prove.schedule import (
    CATALOGUE,
    FAILOVER,
    PARTIAL_MESSAGES,
    POOLER_KILL,
    RESTORE,
    UNTIMED_MESSAGES,
)
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from traksense.tools.prove.schedule import Injection
    from traksense.tools.prove.stage import Stage
    from traksense.tools.proxy import Proxy

CUT_SECONDS: Final = 5.0
"""How long a cut may wait for its moment."""
WORKING_SECONDS: Final = 5.0
"""How long to wait for a service that works, so that most faults meet one."""
OVERLAP_SECONDS: Final = 0.15
"""How long a service that was thought dead lives on at most: less than its reader waits before it connects again."""
SLOW_LATENCY_SECONDS: Final = 0.08
SLOW_RATE: Final = 64 * 1024
"""Bytes a second."""
CLOCK_OFF_SECONDS: Final = -3 * 86_400
BURST_MESSAGES: Final = 60


async def inject(stage: Stage, injection: Injection) -> bool:
    """Do it, when the part is free; says whether it took effect (a kill point or a cut may not be reached).

    Cancellation: what lasts is undone.
    """
    fault = CATALOGUE[injection.fault]
    async with stage.turns[fault.part]:
        if not fault.harmless:
            stage.resumed.begins()
        took_effect = await ACTIONS[fault.name](stage, injection)
        if not fault.harmless:
            stage.resumed.ends(fault.name)
        return took_effect


async def heal(stage: Stage) -> None:
    """Undo everything; afterwards nothing stands between the service and its work."""
    for link in (stage.broker_link, *stage.database_links):
        link.heal()
    for keeper in stage.replicas.keepers:
        keeper.set_clock(0)
    await stage.servers.heal()
    if stage.pooler is not None:
        await stage.pooler.start()
    await stage.broker.start()
    await database_faults.heal(stage)
    stage.publishing.only, stage.publishing.paused = None, False


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


async def _wrong_clock(stage: Stage, injection: Injection) -> bool:
    """It starts with a wrong clock, as a machine without a battery does; or the clock goes wrong under it."""
    await _wait_working(stage, injection)
    keeper = stage.replicas.hit_by(injection)
    keeper.set_clock(CLOCK_OFF_SECONDS)
    try:
        if injection.draw % 2:
            await keeper.kill()
        await trio.sleep(injection.seconds)
    finally:
        keeper.set_clock(0)
    return True


async def _reshard(stage: Stage, _injection: Injection) -> bool:
    await stage.replicas.deal_again()
    return True


def _kill_at(point: str, *, afresh: bool = False) -> Callable[[Stage, Injection], Awaitable[bool]]:
    async def action(stage: Stage, injection: Injection) -> bool:
        if afresh:
            # Only a service that has just started comes by here.
            await stage.replicas.hit_by(injection).kill()
        else:
            await _wait_working(stage, injection)
        return await stage.replicas.hit_by(injection).kill_at(point, 1 + injection.draw % (2 if afresh else 8))

    return action


async def _wait_working(stage: Stage, injection: Injection) -> None:
    """Wait a while until the service is ready; now and then not, to meet it while it starts."""
    if injection.draw % 4 == 0:
        return
    with trio.move_on_after(WORKING_SECONDS):
        while not await stage.replicas.hit_by(injection).ready():
            await trio.sleep(POLL_SECONDS)


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


# --- the rest ---------------------------------------------------------------------------------------------------------


async def _kill_pooler(stage: Stage, injection: Injection) -> bool:
    if stage.pooler is None:
        return False
    stage.pooler.kill()
    await trio.sleep(injection.seconds)
    if not stage.unhealed:
        await stage.pooler.start()
    return True


def _send(sort: str, count: int) -> Callable[[Stage, Injection], Awaitable[bool]]:
    async def action(stage: Stage, _injection: Injection) -> bool:
        return bool(await stage.publishing.send(sort, count))

    return action


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
    "service-clock": _wrong_clock,
    "database-terminate": database_faults.terminate_backends,
    "database-kill-backend": database_faults.kill_backend,
    "database-kill": database_faults.kill_postmaster,
    "database-restart": database_faults.restart_postgres,
    "database-freeze": database_faults.freeze,
    "database-read-only": database_faults.read_only,
    "database-strangers": database_faults.strangers,
    FAILOVER: database_faults.fail_over,
    "database-year": database_faults.year,
    "operator-delete": operators.delete_device,
    "operator-rename": operators.rename_series,
    "operator-truncate": operators.truncate,
    RESTORE: operators.restore,
    "reader-locks": reader.lock_everything,
    "database-full": database_faults.full,
    "database-reset": _on_link("database_link", _reset, lasts=False),
    "database-ambiguous": _on_link("database_link", lambda link, _: link.cut_at_outcome(), awaits_cut=True),
    "database-black-hole": _on_link("database_link", lambda link, _: link.black_hole()),
    "database-slow": _on_link("database_link", _slow),
    POOLER_KILL: _kill_pooler,
    UNTIMED_MESSAGES: _send(UNTIMED, BURST_MESSAGES),
    PARTIAL_MESSAGES: _send(PARTIAL, BURST_MESSAGES),
    "broker-restart": _restart_broker,
    "broker-kill": _kill_broker,
    "broker-reset": _on_link("broker_link", _reset, lasts=False),
    "broker-cut": _on_link("broker_link", lambda link, i: link.cut_after(1 + i.draw * 3), awaits_cut=True),
    "broker-black-hole": _on_link("broker_link", lambda link, _: link.black_hole()),
    "broker-hold": _on_link("broker_link", lambda link, _: link.hold()),
    "broker-slow": _on_link("broker_link", _slow),
}
