"""The layout as text and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from traksense.cells import GAP, Column, table, width
from traksense.errors import ConfigError

if TYPE_CHECKING:
    from traksense.config import Settings
    from traksense.shards import Layout


def layout_of(settings: Settings) -> Layout:
    """How the environment divides the topics.

    Raises:
        ConfigError: It does not.
    """
    if settings.layout is None:
        raise ConfigError(["MQTT_TENANTS is not set, so there are no shards: one process reads everything"])
    return settings.layout


def as_json(settings: Settings) -> dict[str, Any]:
    """One object a shard, with what its replica has to have."""
    layout = layout_of(settings)
    return {
        "count": layout.count,
        "shards": [
            {
                "shard": shard,
                "client_id": f"{settings.mqtt_client_id}-{shard}",
                "tenants": [str(entry) for entry in layout.entries if layout.shard_of(entry) == shard],
                "filters": list(layout.filters(shard)),
            }
            for shard in range(1, layout.count + 1)
        ],
    }


def as_text(settings: Settings) -> tuple[list[str], int]:
    """A line a shard, and at which cell of it the tenants begin."""
    layout = as_json(settings)
    rows = [
        (
            f"{shard['shard']} of {layout['count']}",
            shard["client_id"],
            ", ".join(shard["tenants"]) or "no tenants: pin one to it, or use fewer shards",
        )
        for shard in layout["shards"]
    ]
    before = sum(max(width(cell) for cell in column) + len(GAP) for column in list(zip(*rows, strict=True))[:2])
    return list(table([Column()] * 3, rows, room=None)), before
