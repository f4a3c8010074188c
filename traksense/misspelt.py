"""Names of environment variables that are nearly ours."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

LIKENESS: Final = 0.88
"""A letter or two too many, missing, wrong or exchanged, in names as long as ours. `LOG_FORMATTER`, `DB_POOL_SIZE` and
the like are others': a process shares its environment."""

LIKENESS_OF_OURS: Final = 0.7
"""Where the prefix says that the name is meant for us, the one that it begins is named, or the likeliest."""


def unknown(name: str, known: Iterable[str]) -> str:
    """The fault of a variable that only we could be meant by."""
    known = list(known)
    close = [one for one in known if one.startswith(name)] or difflib.get_close_matches(
        name, known, 1, LIKENESS_OF_OURS
    )
    return f"{name}: unknown variable{f', did you mean {close[0]}?' if close else ' (is it misspelt?)'}"


def misspelt(names: Collection[str], known: Collection[str]) -> list[str]:
    """The faults of variables that are nearly one of ours, which itself is not set.

    Args:
        names: Those that are set.
        known: Those that we read.
    """
    given = {name.removesuffix("_FILE") for name in names}
    missing = [name for name in known if name.removesuffix("_FILE") not in given]
    return [
        f"{name}: unknown variable, did you mean {close[0]}?"
        for name in sorted(names)
        if name not in known and (close := difflib.get_close_matches(name, missing, 1, LIKENESS))
    ]
