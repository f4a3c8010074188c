"""The service's replicas: each has a keeper, a shard of the tenants and a directory; the links are shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.prove.keeper import Keeper
from traksense.tools.prove.messages import tenant_count
from traksense.tools.prove.witness import Remarks
from traksense.tools.stack.processes import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from traksense.tools.prove.schedule import Injection

READY_SECONDS: Final = 3.0
"""How long the next replica's restart waits for this one to be ready, as an orchestrator would."""


class Replicas:
    """All of them.

    Attributes:
        keepers: One for each, in the order of their shards.
        client_ids: Their sessions.
    """

    def __init__(self, env: Mapping[str, str], directory: Path, count: int, *, breakage: str | None = None) -> None:
        client_id = env["MQTT_CLIENT_ID"]
        self._deal = 0
        if count == 1:
            self.client_ids = [client_id]
            self.keepers = [Keeper(env, directory, breakage=breakage)]
            return
        self.client_ids = [f"{client_id}-{shard}" for shard in range(1, count + 1)]
        self.keepers = []
        for shard in range(1, count + 1):
            place = directory / f"replica-{shard}"
            place.mkdir(parents=True, exist_ok=True)
            more = {"MQTT_SHARD": str(shard), "MQTT_SHARD_COUNT": str(count), "MQTT_TENANTS": tenants(count, 0)}
            self.keepers.append(Keeper({**env, **more}, place, breakage=breakage))

    def hit_by(self, injection: Injection) -> Keeper:
        """The one that a fault of the service takes hold of. Only the upper digits: the lower ones decide more."""
        return self.keepers[injection.draw // 16 % len(self.keepers)]

    @property
    def starts(self) -> int:
        """How often one was started."""
        return sum(keeper.starts for keeper in self.keepers)

    @property
    def kills(self) -> int:
        """How often one was killed."""
        return sum(keeper.kills for keeper in self.keepers)

    @property
    def misbehaved(self) -> Remarks:
        """Ends that nobody asked for."""
        found = Remarks()
        for keeper in self.keepers:
            found.extend(keeper.misbehaved)
        return found

    async def run(self) -> None:
        """Keep them running, until cancelled."""
        async with trio.open_nursery() as nursery:
            for keeper in self.keepers:
                nursery.start_soon(keeper.run)

    async def wait_ready(self) -> None:
        """Wait until each is ready for the first time.

        Raises:
            StackError: One ended, or was not ready in time.
        """
        for keeper in self.keepers:
            await keeper.wait_ready()

    async def deal_again(self) -> None:
        """Give every tenant to another replica, and restart them one by one: they hand the topics to each other."""
        self._deal += 1
        for keeper in self.keepers:
            if len(self.keepers) > 1:
                keeper.configure(MQTT_TENANTS=tenants(len(self.keepers), self._deal))
            await keeper.restart()
            with trio.move_on_after(READY_SECONDS):
                while not await keeper.ready():
                    await trio.sleep(POLL_SECONDS)

    async def finish(self) -> None:
        """SIGTERM for the last time."""
        async with trio.open_nursery() as nursery:
            for keeper in self.keepers:
                nursery.start_soon(keeper.finish)


def tenants(count: int, deal: int) -> str:
    """`MQTT_TENANTS`: those of `messages.Traffic`, so that each shard has one at least; at each deal all move on."""
    return ",".join(f"tenant-{tenant}={(tenant + deal) % count + 1}" for tenant in range(tenant_count(count)))
