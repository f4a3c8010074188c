"""Where a run's links lead, whatever earlier runs of the session have done to the servers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from traksense.tools.prove.stage import Stage


@pytest.mark.parametrize(
    ("primary", "links", "expected"),
    [
        (5001, ["first", "second"], "first"),
        (5002, ["first", "second"], "second"),
        # A run before this one has failed over; this one has a pooler, and no standby.
        (5002, ["pooler"], "pooler"),
    ],
)
def test_link_to_the_primary(primary: int, links: list[str], expected: str) -> None:
    """Of two servers it is that of the primary, which changes; one alone leads to it anyway."""
    stage = SimpleNamespace(
        servers=SimpleNamespace(ports=(5001, 5002), primary=SimpleNamespace(port=primary)), database_links=links
    )

    assert Stage.database_link.fget(stage) == expected  # type: ignore[attr-defined]  # a property
