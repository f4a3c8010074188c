"""JSON that survives a terminal, a pipe and `say`: nothing but printable ASCII."""

from __future__ import annotations

import json
import re
from typing import Final

from traksense.names import json_escape
from traksense.terminal import say

_OTHERS: Final = re.compile(r"[^\n -~]")
"""Outside strings, the documents here have no other white space than line breaks and spaces."""


def ascii_json(text: str) -> str:
    """The same JSON document, with every character of its strings escaped that is not printable ASCII."""
    return _OTHERS.sub(lambda found: json_escape(found[0]), text)


def print_json(document: object) -> None:
    """To stdout, indented."""
    say(ascii_json(json.dumps(document, indent=2)))
