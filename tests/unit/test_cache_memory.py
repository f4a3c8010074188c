"""What is remembered of topics, devices and points takes the memory that ops/tuning.md says, however long the names."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Final

import pytest

from traksense.ingest import decode
from traksense.ingest.decode import ROUTE_BYTES, Router
from traksense.store import devices
from traksense.store.devices import POINT_BYTES, Device, Layout, device_shares
from traksense.store.packing import HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT: Final = 2_000
NAMES: Final = {
    "ordinary": lambda number: f"line-{number:06d}",
    "long": lambda number: f"{number:06d}".rjust(128, "x"),
    "longest": lambda number: f"{number:06d}".rjust(128, "\U00020000"),
}


def traced(make: Callable[[], object]) -> int:
    """What is left of the memory that this takes, in bytes."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = make()
        after, _ = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return after - before


@pytest.mark.parametrize("name", ["line-1", "0f8fad5b-d9cb-469f-a165-70867728950e"])
def test_ordinary_names_count_once(name: str) -> None:
    """A fleet that is named by UUIDs has the room that ops/tuning.md says."""
    router = Router()
    router.route(f"traksense/acme-industries/plant-hamburg/{name}/telem")

    assert 1 == router._shares
    assert 1 == device_shares(f"acme-industries/plant-hamburg/{name}")
    assert 1 == Layout(((name, "°C"),)).shares


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_topics_take_what_they_may(monkeypatch: pytest.MonkeyPatch, name: Callable[[int], str]) -> None:
    """Those of a device that makes up names, too: they are forgotten sooner."""
    monkeypatch.setattr(decode, "ROUTES_MAX", COUNT)

    def make() -> Router:
        router = Router()
        # Just not so many that all are forgotten.
        while router._shares < COUNT:
            number = len(router._routes)
            router.route(f"traksense/acme/{name(number)}/{name(number)}/telem")
        return router

    assert traced(make) < 1.5 * COUNT * ROUTE_BYTES


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_devices_and_points_take_what_they_may(name: Callable[[int], str]) -> None:
    """Each counts for as many ordinary ones as it takes memory."""
    layouts: list[Layout] = []

    def make_points() -> Device:
        keys = tuple((name(number), name(number)[-64:]) for number in range(COUNT))
        layouts.append(Layout(keys))
        return Device(layouts[0], b"x" * (COUNT * HEAD_BYTES))

    assert traced(make_points) < 1.5 * layouts[0].shares * POINT_BYTES

    paths: list[str] = []

    def make_devices() -> dict[str, Device]:
        paths.extend(f"acme/{name(number)}/{name(number)}" for number in range(COUNT))
        return {path: Device(heads=b"x" * 10 * HEAD_BYTES) for path in paths}

    assert traced(make_devices) < 1.5 * sum(map(device_shares, paths)) * devices.DEVICE_BYTES
