"""The bomb in the service: it goes off at the armed point, at the armed passage, and nowhere else."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from traksense.tools.prove.saboteur import Bomb

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    return signals


def test_unarmed_bomb_never_goes_off(tmp_path: Path, killed: list[tuple[int, int]]) -> None:
    """Without the file, passages mean nothing."""
    bomb = Bomb(str(tmp_path / "armed"))

    bomb.at("mid-batch")

    assert [] == killed


def test_bomb_counts_the_passages_of_its_point_only(tmp_path: Path, killed: list[tuple[int, int]]) -> None:
    """At the third passage of the armed point it sends itself SIGKILL, and the file is gone."""
    arm_file = tmp_path / "armed"
    bomb = Bomb(str(arm_file))
    arm_file.write_text("mid-batch 3")

    for point in ("mid-batch", "before-puback", "mid-batch", "before-puback"):
        bomb.at(point)
    assert [] == killed
    bomb.at("mid-batch")

    assert [(os.getpid(), signal.SIGKILL)] == killed
    assert not arm_file.exists()
