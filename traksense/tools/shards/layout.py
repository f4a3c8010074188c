"""The layout as text and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        raise ConfigError(["MQTT_SHARD_COUNT: there are no shards: set MQTT_TENANTS too"])
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


def as_text(settings: Settings) -> list[str]:
    """A line a shard."""
    lines = []
    for shard in as_json(settings)["shards"]:
        tenants = ", ".join(shard["tenants"]) or "no tenants: pin one to it, or use fewer shards"
        lines.append(f"{shard['shard']} of {layout_of(settings).count}  {shard['client_id']}  {tenants}")
    return lines
