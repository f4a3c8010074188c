"""Every `traksense …` that README, manuals and reference pages show is one that the program takes."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tests.manuals import PAGES, ROOT
from traksense.cli import COMMANDS, _parser

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

DOCUMENTS: Final = [*PAGES, *sorted((ROOT / "ops" / "reference").glob("*.md")), ROOT / "ops" / "traksense.env.example"]

FENCED: Final = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE: Final = re.compile(r"^    (.*)$|`([^`]+)`", re.MULTILINE)

INCOMPLETE: Final = ("arguments are required", "expected one argument")
"""How argparse refuses what a sentence mentions in part, as in `traksense dlq`."""

PLACEHOLDERS: Final = {"ID": "4711", "$@": "migrate"}


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `traksense` in a shell's text, as far as that is one."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?<=\s)#.*", "", text))
    lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in [*lexer, ";"]:
            if not re.fullmatch(r"[;&|()<>]+", word):
                words.append(word)
                continue
            while words and "=" in words[0]:
                words.pop(0)
            for at, (program, argument) in enumerate(pairwise(words)):
                # A container's service is called so, too, and a database.
                if program.endswith("traksense") and (not at or argument in {*COMMANDS, "--env-file"}):
                    yield words[at + 1 :]
                    break
            words = []
    except ValueError:  # no shell's: a quotation mark that is not closed
        return


def shown() -> Iterator[tuple[str, list[str]]]:
    """What is in blocks and in code of the sentences, with the page's name."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        codes = FENCED.findall(text)
        codes.extend("".join(found) for found in CODE.findall(FENCED.sub("", text)))
        for code in codes:
            for arguments in commands(code):
                yield path.name, arguments


def test_documented_commands_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Their names, actions and options exist."""
    refused = []
    found = list(shown())
    for page, arguments in found:
        try:
            _parser([PLACEHOLDERS.get(argument, argument) for argument in arguments])
        except SystemExit as ended:
            said = capsys.readouterr().err
            if ended.code and not any(reason in said for reason in INCOMPLETE):
                refused.append(f"{page}: {arguments}: {said.splitlines()[-1]}")

    assert [] == refused
    assert {command for command in COMMANDS if command != "run"} <= {word for _, words in found for word in words}
