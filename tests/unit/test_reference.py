"""The reference pages are what the code says; the one of columns is tested beside the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from traksense.adapters import Context, Registry
from traksense.config import Settings
from traksense.model import Kind
from traksense.tools import reference
from traksense.tools.payload_examples import EXAMPLES, RECEIVED_AT, payloads

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["variables", "metrics", "payloads"])
def test_pages_are_up_to_date(page: str) -> None:
    """`python -m traksense.tools.reference` would change nothing."""
    made = {
        "variables": lambda: reference.variables((ROOT / reference.EXAMPLE).read_text(encoding="utf-8")),
        "metrics": reference.metrics,
        "payloads": payloads,
    }[page]()

    assert made == (ROOT / reference.FOLDER / f"{page}.md").read_text(encoding="utf-8")


def test_every_format_has_an_example_that_its_adapter_reads() -> None:
    """What the service makes of it is what that adapter makes of it, and no dead letter."""
    registry = Registry()
    adapters = {adapter.name: adapter for kind in Kind for adapter in registry.adapters(kind)}
    context = Context("acme", "factory", "press-1", RECEIVED_AT, Settings().points_max)

    assert set(adapters) == {example.adapter for example in EXAMPLES}
    for example in EXAMPLES:
        delivery = example.delivery()
        assert (adapters[example.adapter].decode(example.payload.encode(), context), None) == (
            delivery.items,
            delivery.rejection,
        )
