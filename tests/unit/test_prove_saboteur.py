"""The saboteur: its bomb goes off at the armed point, at the armed passage, and nowhere else; its clock is wrong when
told so; and otherwise it is the service that ships.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from traksense import cli
from traksense.commands.prove import REVEALING
from traksense.tools.prove import keeper, sabotage, saboteur, stage
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


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_every_control_can_be_asked_for_and_does_something() -> None:
    """The command line, the saboteur and the stage name the same breakages."""
    assert set(REVEALING) == set(stage.BREAKAGES)
    assert set(saboteur.BREAKAGES) == set(sabotage.BREAK)


def test_clock_of_the_process_is_off_by_what_the_file_says(tmp_path: Path) -> None:
    """For `datetime.now` and `time.time`, as long as the file is there; datetimes stay what they are."""
    told = tmp_path / "clock"
    code = """
import sys
from traksense.tools.prove import clock
clock.install(sys.argv[1])
import datetime, time, pathlib
from datetime import UTC
assert type(datetime.datetime.now(UTC)) is type(clock.true_now()) is type(datetime.datetime.fromisoformat("2026-01-01"))
assert isinstance(datetime.datetime(2026, 1, 1), datetime.datetime)
print(round((datetime.datetime.now(UTC) - clock.true_now()).total_seconds()), round(time.time()))
pathlib.Path(sys.argv[1]).unlink()
print(round((datetime.datetime.now(UTC) - clock.true_now()).total_seconds()), round(time.time()))
"""
    told.write_text("-259200")

    (wrong, wrong_seconds), (right, right_seconds) = (
        map(int, line.split()) for line in python(code, str(told)).splitlines()
    )

    assert (-259200, 0) == (wrong, right)
    assert right_seconds - 259200 - 5 < wrong_seconds < right_seconds - 259200 + 5
    assert abs(right_seconds - time.time()) < 60


def test_the_adapter_of_plain_numbers_is_found_by_its_entry_point() -> None:
    """As a third party's would be; nothing of the product knows it."""
    code = """
import sys
from traksense.tools.prove import saboteur
sys.meta_path.append(saboteur.Plugins())
from traksense.adapters import load_registry
from traksense.model import Kind
print([adapter.name for adapter in load_registry().adapters(Kind.TELEM)])
"""

    assert "prove_plain" in python(code)


def test_a_wrong_configuration_ends_it_as_it_ends_the_service(tmp_path: Path) -> None:
    """The saboteur runs what ships: exit status 2, and the fault in words."""
    environment = {**os.environ, "DB_POOL_MAX": "none"}
    command = [sys.executable, "-m", "traksense.tools.prove.saboteur", str(tmp_path / "armed")]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert cli.MISUSED == keeper.MISUSED == done.returncode
    assert "DB_POOL_MAX" in done.stderr
