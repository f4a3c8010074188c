"""How far long work has got is said now and then, not each time that something is done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from traksense.tools import progress
from traksense.tools.progress import EVERY_SECONDS, Progress

if TYPE_CHECKING:
    import pytest


def test_progress_is_said_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what is quick; then a line whenever so much time has passed since the last one."""
    lines: list[str] = []
    work = Progress("deleted", 1234, lines.append)
    now = work._told_at
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))

    for done, later in ((1, 0.5), (2, 0.4), (1000, 0.2), (1001, 0.9), (1200, 0.2)):
        now += later * EVERY_SECONDS
        work.note(done)

    assert ["deleted 1,000 of 1,234 so far", "deleted 1,200 of 1,234 so far"] == lines
