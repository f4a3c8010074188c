"""The blocks of README and manuals: commands, SQL, code, drawings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]

# The reference pages are made from the code, and decisions and changelog speak of their day.
PAGES: Final = [
    *(ROOT / name for name in ("README.md", "README.pt-BR.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "ops").glob("*.md")),
]

_FENCED: Final = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED: Final = re.compile(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+")


@attrs.frozen
class Block:
    """A block as it stands in its page.

    Attributes:
        page: The file's name.
        text: What somebody pastes, without indentation.
        language: What the fence says, or nothing.
    """

    page: str
    text: str
    language: str = ""

    @property
    def name(self) -> str:
        """The page and what is in it; tests name it by as much of the beginning as it takes."""
        return f"{self.page} {self.text}"


def blocks() -> Iterator[Block]:
    """Those of all pages, in their order."""
    for path in PAGES:
        yield from _read(path)


def blocks_of(*beginnings: str) -> list[Block]:
    """Those whose names begin with one of these, in their order. `test_manuals` searches for the calls: write the names
    out.
    """
    return [block for block in blocks() if block.name.startswith(beginnings)]


def block_of(beginning: str) -> Block:
    """The one whose name begins so."""
    (block,) = blocks_of(beginning)
    return block


def _read(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = {match.start(): Block(path.name, match["text"], match["language"]) for match in _FENCED.finditer(text)}
    # A fence is blotted out, so that what is indented in it is no block of its own.
    rest = _FENCED.sub(lambda match: re.sub(r"[^\n]", "x", match[0]), text)
    for match in _INDENTED.finditer(rest):
        lines = match[0].strip("\n").split("\n")
        found[match.start()] = Block(path.name, "".join(f"{line[4:]}\n" for line in lines))
    return [found[start] for start in sorted(found)]
