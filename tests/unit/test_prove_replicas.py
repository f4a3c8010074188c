"""Several replicas under `prove`: who has which tenant, and who is hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from traksense.shards import parse_entries
from traksense.tools.prove.messages import tenant_count
from traksense.tools.prove.replicas import Replicas, tenants
from traksense.tools.prove.schedule import Injection, make_schedule

if TYPE_CHECKING:
    from pathlib import Path

ENV = {"MQTT_CLIENT_ID": "me", "INGEST_SHUTDOWN_SECONDS": "4"}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_replica_has_a_tenant_and_each_tenant_moves(count: int) -> None:
    """At every deal: no shard is empty, and with more than one everybody is somewhere else than before."""
    before, after = ({entry.tenant: entry.pinned for entry in parse_entries(tenants(count, deal))} for deal in (0, 1))

    assert set(range(1, count + 1)) == set(before.values()) == set(after.values())
    assert tenant_count(count) == len(before)
    assert {f"tenant-{number}": number + 1 for number in range(count)}.items() <= before.items()
    if count > 1:
        assert all(before[tenant] != after[tenant] for tenant in before)


def test_one_replica_is_the_service_without_shards(tmp_path: Path) -> None:
    """Nothing changes for those who do not ask for several."""
    alone, three = Replicas(ENV, tmp_path, 1), Replicas(ENV, tmp_path, 3)

    assert ["me"] == alone.client_ids
    assert ["me-1", "me-2", "me-3"] == three.client_ids
    assert 1 == len(alone.keepers)


def test_faults_hit_every_replica(tmp_path: Path) -> None:
    """A long schedule spares nobody."""
    three = Replicas(ENV, tmp_path, 3)
    hit = {id(three.hit_by(injection)) for injection in make_schedule(1, 600, ["service-kill"])}

    assert set(map(id, three.keepers)) == hit
    assert three.hit_by(Injection(0, "service-kill", 0, 0)) is three.keepers[0]
