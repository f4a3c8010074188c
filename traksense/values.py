"""The text of a variable to its value."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import cattrs

from traksense.shards import Entry, parse_entries
from traksense.urls import Broker, DatabaseUrl, Secret, read_broker, read_database

if TYPE_CHECKING:
    from collections.abc import Callable

N = TypeVar("N", int, float)


def structure(text: str, kind: Any, *, unit: float) -> Any:
    """The value that this text is, as one of the types of `Settings`.

    Raises:
        ValueError: It is none; the text says what it must be, and has no part of a secret.
    """
    try:
        value = _CONVERTER.structure(text, kind)
    except (
        cattrs.BaseValidationError,
        cattrs.StructureHandlerNotFoundError,
    ) as error:  # pragma: no cover - hooks cover all types
        raise ValueError(f"cannot be read as {kind}") from error
    return value * unit if unit != 1 else value


def _number(cast: Callable[[str], N], what: str) -> Callable[[str, Any], N]:
    def hook(text: str, _: Any) -> N:
        try:
            value = cast(text.strip())
        except ValueError:
            raise ValueError(f"must be {what}, not {text!r}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be {what}, not {text!r}")
        return value

    return hook


def _boolean(text: str, _: Any) -> bool:
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.strip().lower())
    if value is None:
        raise ValueError(f"must be true or false, not {text!r}")
    return value


def _literal(text: str, kind: Any) -> str:
    choices: tuple[str, ...] = kind.__args__
    for choice in choices:
        if text.strip().lower() == choice.lower():
            return choice
    raise ValueError(f"must be one of {', '.join(choices)}, not {text!r}")


def _timestamp(text: str, _: Any) -> datetime:
    try:
        value = datetime.fromisoformat(text.strip())
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"must be an ISO 8601 date or time, not {text!r}") from None


_CONVERTER: Final = cattrs.Converter(detailed_validation=False)
_CONVERTER.register_structure_hook(int, _number(int, "a whole number"))
_CONVERTER.register_structure_hook(int | None, _number(int, "a whole number"))
_CONVERTER.register_structure_hook(float, _number(float, "a number"))
_CONVERTER.register_structure_hook(bool, _boolean)
_CONVERTER.register_structure_hook(str, lambda text, _: text)
_CONVERTER.register_structure_hook(str | None, lambda text, _: text)
_CONVERTER.register_structure_hook(Secret | None, lambda text, _: Secret(text))
_CONVERTER.register_structure_hook(Path | None, lambda text, _: Path(text))
_CONVERTER.register_structure_hook(datetime, _timestamp)
_CONVERTER.register_structure_hook(Broker, lambda text, _: read_broker(text))
_CONVERTER.register_structure_hook(DatabaseUrl, lambda text, _: read_database(text))
_CONVERTER.register_structure_hook_func(
    lambda kind: getattr(kind, "__origin__", None) is tuple,
    lambda text, _: tuple(part.strip() for part in text.split(",") if part.strip()),
)
_CONVERTER.register_structure_hook_func(lambda kind: kind == tuple[Entry, ...], lambda text, _: parse_entries(text))
_CONVERTER.register_structure_hook_func(lambda kind: getattr(kind, "__origin__", None) is Literal, _literal)
