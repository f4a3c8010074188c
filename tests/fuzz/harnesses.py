"""Which harnesses there are, and their seeds."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

HERE: Final = Path(__file__).parent
PREFIX: Final = "fuzz_"

NAMES: Final = tuple(sorted(path.stem.removeprefix(PREFIX) for path in HERE.glob(f"{PREFIX}*.py")))


def seeds(name: str) -> list[Path]:
    """The seeds of a harness."""
    return sorted((HERE / "seeds" / name).iterdir())


def load(name: str) -> Callable[[bytes], None]:
    """The function of a harness."""
    module: Any = import_module(f"tests.fuzz.{PREFIX}{name}")
    one_input: Callable[[bytes], None] = module.one_input
    return one_input
