"""The reference pages are what the code says; the one of columns is tested beside the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from traksense.adapters import Context, Registry
from traksense.config import Settings
from traksense.model import Kind, Reason, Telemetry
from traksense.tools import reference
from traksense.tools.payload_examples import EXAMPLES, FOREIGN, RECEIVED_AT, RESHAPE, RESHAPED, made_of, payloads

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


def test_what_something_else_is_reshaped_to_is_stored() -> None:
    """The code of the page makes the envelope of the page; only that is stored, with the values and the time sent."""
    code: dict[str, Any] = {}
    exec(RESHAPE, code)
    rejection = made_of(FOREIGN).rejection
    (item,) = made_of(RESHAPED).items

    assert json.loads(RESHAPED) == json.loads(code["reshape"](FOREIGN))
    assert rejection is not None
    assert Reason.UNKNOWN_FORMAT == rejection.reason
    assert isinstance(item, Telemetry)
    assert (1759851000, [7.3, 55.0]) == (item.ts.timestamp(), [point.v for point in item.points])
