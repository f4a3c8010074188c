"""ops/adapters.md is true: its example works as it stands there, and its table of reasons is complete."""

from __future__ import annotations

import configparser
import importlib
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.manuals import block_of, blocks_of
from traksense.adapters import Context, Registry, check_items, load_registry
from traksense.cli import main
from traksense.errors import DecodeError
from traksense.model import Kind, Point, Reason, Telemetry

MANUAL = (Path(__file__).parents[3] / "ops" / "adapters.md").read_text("utf-8")
NOT_OF_ADAPTERS = {
    Reason.CONFLICTING_VALUE,
    Reason.INVALID_TOPIC,
    Reason.TIMESTAMP_OUT_OF_WINDOW,
    Reason.PAYLOAD_TOO_LARGE,
    Reason.TOO_MANY_POINTS,
    Reason.UNKNOWN_DEVICE,
    Reason.DATABASE_REFUSED,
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, installed as pip would: its module, and metadata with the entry points of its setup.cfg."""
    config = configparser.ConfigParser()
    module, setup_cfg, _, _, _, test_module = blocks_of("adapters.md")
    config.read_string(setup_cfg.text)
    (tmp_path / f"{config['options']['py_modules']}.py").write_text(module.text, "utf-8")
    (tmp_path / "test_acme_meter.py").write_text(test_module.text, "utf-8")
    name, version = config["metadata"]["name"], config["metadata"]["version"]
    metadata = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = config["options.entry_points"].items()
    (metadata / "entry_points.txt").write_text("".join(f"[{group}]{points}\n" for group, points in groups))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_meter", raising=False)
    return tmp_path


def test_manual_example_is_found(installed: Path) -> None:
    """The example's entry point is enough for the registry to decode its telegrams."""
    context = Context("acme", "plant-1", "meter-1", datetime(2025, 10, 8, 15, 31, tzinfo=UTC))
    ts = datetime(2025, 10, 8, 15, 30, 45, tzinfo=UTC)

    assert [Telemetry(ts, [Point("temp", 23.5), Point("hum", 61.0)])] == load_registry().decode(
        Kind.TELEM, b"1759937445;temp=23.5;hum=61", context
    )


def test_manual_example_can_be_built() -> None:
    """What pip is told to build it with exists, and needs nothing else."""
    build = tomllib.loads(block_of("adapters.md [build-system]").text)["build-system"]

    assert ["setuptools"] == build["requires"]
    assert callable(importlib.import_module(build["build-backend"]).build_wheel)


def test_manual_commands_decode_the_example(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check behind the installation shows the two points."""
    commands = block_of("adapters.md /opt/traksense/bin/pip").text.splitlines()
    subprocess.run(commands[1], shell=True, cwd=installed, check=True)
    program, *arguments, file = commands[2].split()
    assert "traksense" == program

    assert 0 == main([*arguments, str(installed / file)])
    assert "2 points at 2025-10-08T15:30:45Z" in capsys.readouterr().out


def test_manual_json_example_decodes(installed: Path) -> None:
    """The variant for JSON works behind the module of the example, alongside the other adapters."""
    module = vars(importlib.import_module("acme_meter"))
    exec(block_of("adapters.md import msgspec").text, module)
    registry = Registry([module["AcmeJson"]()])
    context = Context("acme", "plant-1", "meter-1", datetime(2025, 10, 8, 15, 31, tzinfo=UTC))

    items = registry.decode(Kind.TELEM, b'{"time": 1759937445, "temp": 23.5}', context)
    check_items(items)
    assert [Telemetry(datetime(2025, 10, 8, 15, 30, 45, tzinfo=UTC), [Point("temp", 23.5, u="°C")])] == items
    for payload in (b'{"time": 1759937445, "temp": "warm"}', b'{"time": 999999999999, "temp": 23.5}'):
        with pytest.raises(DecodeError) as caught:
            registry.decode(Kind.TELEM, payload, context)
        assert Reason.INVALID_FIELD == caught.value.reason


def test_manual_example_tests_pass(installed: Path) -> None:
    """The tests that the manual shows pass as they stand there."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(installed),
        str(installed),
    ]
    root = str(Path(__file__).parents[3])
    run = subprocess.run(command, cwd=installed, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False)

    assert 0 == run.returncode, run.stdout + run.stderr
    assert "6 passed" in run.stdout


def test_manual_reasons_complete() -> None:
    """The manual's table has every reason that decoding can have, each with the code that is stored."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([a-z_]+)` \|", MANUAL, re.MULTILINE)

    assert {(reason.name, reason.value) for reason in Reason if reason not in NOT_OF_ADAPTERS} == set(rows)
