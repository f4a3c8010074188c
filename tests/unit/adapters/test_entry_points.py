"""Third-party adapters, found by entry points of distributions that are really on the path."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import pytest

from traksense.adapters import ENTRY_POINT_GROUP, load_registry
from traksense.errors import ConfigError
from traksense.model import Kind

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
from traksense.model import Kind

class Mine:
    kind = Kind.TELEM
    def __init__(self, name="mine"):
        self.name = name
    def claims(self, payload, members):
        return False
    def decode(self, payload, context):
        return []

class Needy(Mine):
    def __init__(self, name):
        raise OSError(f"no licence for {name}")

class Callable(Mine):
    def __call__(self):
        raise AssertionError("an adapter that can be called is not a factory")

instance = Mine("instance")
callable_instance = Callable("callable")
not_an_adapter = object()

def factory():
    return Mine("made")

def nothing():
    return None
"""


class Install(Protocol):
    """`install(name=value, ...)`: make a distribution with these entry points importable."""

    def __call__(self, **points: str) -> None: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def install(**points: str) -> None:
        metadata = tmp_path / "third_party-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{lines}")
        (tmp_path / "third_party_adapters.py").write_text(MODULE)
        (tmp_path / "broken_adapters.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        for module in ("third_party_adapters", "broken_adapters"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def names(kind: Kind = Kind.TELEM) -> list[str]:
    return [adapter.name for adapter in load_registry().adapters(kind)]


def test_load_registry_nothing_installed() -> None:
    """Without third parties, there are the built-in adapters."""
    assert ["envelope_v1", "parsec_v1", "je02_v1", "trak_sensors", "senml"] == names()


def test_load_registry_forms(install: Install) -> None:
    """An entry point may name a class, a function that makes an adapter, or an adapter; names give the order."""
    install(
        d="third_party_adapters:callable_instance",
        c="third_party_adapters:instance",
        b="third_party_adapters:factory",
        a="third_party_adapters:Mine",
    )

    assert ["envelope_v1", "mine", "made", "instance", "callable", "parsec_v1"] == names()[:6]


def test_load_registry_broken(install: Install) -> None:
    """Every entry point that is broken has its line, which names it and says why; there is no traceback."""
    install(
        a="no_such_module:Mine",
        b="third_party_adapters:NoSuchClass",
        c="broken_adapters:Mine",
        d="third_party_adapters:Needy",
        e="third_party_adapters:not_an_adapter",
        f="third_party_adapters:nothing",
        g="third_party_adapters:Mine",
    )
    with pytest.raises(ConfigError) as caught:
        load_registry()

    why = {
        "a = no_such_module:Mine": "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'",
        "b = third_party_adapters:NoSuchClass": "cannot be loaded: AttributeError: module 'third_party_adapters' has"
        " no attribute 'NoSuchClass'",
        "c = broken_adapters:Mine": "cannot be loaded: ZeroDivisionError: division by zero",
        "d = third_party_adapters:Needy": "cannot be loaded: TypeError: Needy.__init__() missing 1 required positional"
        " argument: 'name'",
        "e = third_party_adapters:not_an_adapter": "not an adapter: `name`: expected a str that is not empty, got None",
        "f = third_party_adapters:nothing": "not an adapter: `name`: expected a str that is not empty, got None",
    }
    assert [
        f"entry point {point} of third-party in [traksense.adapters]: {fault}" for point, fault in why.items()
    ] == list(caught.value.faults)


def test_load_registry_same_name_twice(install: Install) -> None:
    """Two adapters with one name are a fault of the configuration, too."""
    install(a="third_party_adapters:Mine", b="third_party_adapters:Mine")
    with pytest.raises(ConfigError, match="another adapter with the name 'mine'"):
        load_registry()
