"""Environment variables that nobody reads, although we must be meant: misspelt names."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LIKENESS: Final = 0.6
"""How much of a name, behind its prefix, must be that of a variable for us to suggest it; difflib's default."""

PREFIX_MIN: Final = 4
"""One letter makes another prefix of a shorter one: `DB2_POOL_MAX` and `SLOG_LEVEL` are others'."""


def faults(environ: Mapping[str, str], known: Collection[str], prefixes: tuple[str, ...]) -> list[str]:
    """One line for each variable that is meant for us and that we do not know.

    Under a prefix that is ours alone, that is every unknown name. Other prefixes (`DB_`, `LOG_`, …) are shared, since a
    process shares its environment: there it is a name that is one slip away from a variable of ours that is not set.

    Args:
        environ: The environment.
        known: The variables that we read.
        prefixes: Those that are ours alone, such as `MQTT_`.
    """
    given = {name.removesuffix("_FILE") for name, value in environ.items() if value}
    missing = sorted(name for name in known if name.removesuffix("_FILE") not in given)
    lines = []
    for name, value in sorted(environ.items()):
        if name in known or _is_of_kubernetes(name, value):
            continue
        if name.startswith(prefixes):
            meant = _likeliest(name, known)
            lines.append(
                _line(name, meant) if meant else f"{name}: unknown variable; ops/traksense.env.example has all"
            )
        elif value and (near := [one for one in missing if _is_slip(name, one)]):
            lines.append(_line(name, near[0]))
    return lines


def _line(name: str, meant: str) -> str:
    return f"{name}: unknown variable, did you mean {meant}?"


def _likeliest(name: str, known: Collection[str]) -> str | None:
    """The variable that this name begins, or the one that is most like it behind the prefix."""
    prefix, _, rest = name.partition("_")
    rests = [one.removeprefix(f"{prefix}_") for one in known if one.startswith(f"{prefix}_")]
    close = [one for one in rests if one.startswith(rest)] or difflib.get_close_matches(rest, rests, 1, LIKENESS)
    return f"{prefix}_{close[0]}" if close else None


def _is_slip(name: str, variable: str) -> bool:
    """Whether they differ by one slip behind the prefix, or in the prefix alone."""
    prefix, _, rest = name.partition("_")
    own_prefix, _, own_rest = variable.partition("_")
    if prefix == own_prefix:
        return _is_one_slip(rest, own_rest)
    return rest == own_rest and len(own_prefix) >= PREFIX_MIN and _is_one_slip(prefix, own_prefix)


def _is_one_slip(one: str, other: str) -> bool:
    """Whether they differ by one character that is too many, missing or wrong, or by two neighbours exchanged.

    The likeness of difflib does not do here: it finds FORMATTER as like FORMAT as LEVLE is like LEVEL.
    """
    ahead = _shared(one, other)
    one, other = one[ahead:][::-1], other[ahead:][::-1]
    behind = _shared(one, other)
    one, other = one[behind:], other[behind:]
    return max(len(one), len(other)) == 1 or (len(one) == 2 and one == other[::-1])


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes injects it for a Service called `mqtt`, `mqtt-broker` or the like, unless the pod says
    `enableServiceLinks: false`. Source: its documentation of Services, "Environment variables".
    """
    if re.fullmatch(r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)", name):
        return True
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
