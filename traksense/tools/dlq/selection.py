"""Which dead letters: the options that `list`, `replay` and `purge` share, so that what one shows another takes."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from traksense.errors import ConfigError
from traksense.model import Reason

if TYPE_CHECKING:
    from traksense.store.dead_letters import Selection

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])")
_TIMES: Final = "ISO 8601, or an age like 2h, 7d"
_ID_MAX: Final = 2**63 - 1


def add_filters(parser: argparse.ArgumentParser) -> None:
    """The filters; all that are given must hold."""
    group = parser.add_argument_group("which dead letters (those that match all of these)")
    group.add_argument("--tenant", type=_name, metavar="TENANT", help="of this tenant")
    group.add_argument(
        "--reason", metavar="CODE", choices=[str(reason) for reason in Reason], help=f"one of: {', '.join(Reason)}"
    )
    group.add_argument("--since", type=point_in_time, metavar="TIME", help=f"last received then or later: {_TIMES}")
    group.add_argument("--until", type=point_in_time, metavar="TIME", help=f"last received before then: {_TIMES}")
    group.add_argument("--limit", type=_positive, metavar="N", help="at most N dead letters")
    state = group.add_mutually_exclusive_group()
    state.add_argument(
        "--open",
        dest="state",
        action="store_const",
        const="open",
        help="only those not replayed, or that came back since (the default)",
    )
    state.add_argument(
        "--all", dest="state", action="store_const", const="all", help="also those that have been replayed"
    )


def add_ids(parser: argparse.ArgumentParser) -> None:
    """Dead letters by name."""
    parser.add_argument("ids", nargs="*", type=dead_letter_id, metavar="ID", help="only these, replayed before or not")


def selection(arguments: argparse.Namespace, *, limit: int | None = None) -> Selection:
    """The selection that the arguments describe; `limit` is the default.

    Raises:
        ConfigError: Nothing can be in it.
    """
    from traksense.store.dead_letters import Selection

    if arguments.since and arguments.until and arguments.until <= arguments.since:
        raise ConfigError(["dlq: --until must be later than --since"])
    ids: list[int] = getattr(arguments, "ids", [])
    return Selection(
        ids=tuple(ids) or None,
        tenant=arguments.tenant,
        reason=arguments.reason,
        since=arguments.since,
        until=arguments.until,
        open_only=arguments.state == "open" if arguments.state else not ids,
        limit=arguments.limit or limit,
    )


def need_choice(arguments: argparse.Namespace) -> None:
    """Refuse to take everything because nothing was said.

    Raises:
        ConfigError: Neither ids nor a filter nor `--open` or `--all`.
    """
    said = (arguments.tenant, arguments.reason, arguments.since, arguments.until, arguments.limit, arguments.state)
    if not arguments.ids and not any(value is not None for value in said):
        raise ConfigError(["dlq: choose which: ids, filters, or --open or --all for every one"])


def point_in_time(text: str, *, now: datetime | None = None) -> datetime:
    """An instant: ISO 8601 (UTC if it has no offset), or how long ago: `90s`, `15m`, `2h`, `7d`, `1w`.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    match = _DURATION.fullmatch(text.strip())
    try:
        if match is not None:
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        instant = datetime.fromisoformat(text.strip())
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"must be ISO 8601, or an age like 90s, 15m, 2h, 7d, 1w, not {text[:40]!r}"
        ) from None


def dead_letter_id(text: str) -> int:
    """The `id` of a dead letter.

    Raises:
        argparse.ArgumentTypeError: It cannot be one.
    """
    return _number(text, "the id of a dead letter")


def _positive(text: str) -> int:
    return _number(text, f"a whole number, 1-{_ID_MAX}")


def _number(text: str, what: str) -> int:
    # Python reads no number of more than 4,300 digits.
    if not re.fullmatch("[0-9]{1,19}", text) or not 0 < int(text) <= _ID_MAX:
        raise argparse.ArgumentTypeError(f"must be {what}, not {text[:40]!r}")
    return int(text)


def _name(text: str) -> str:
    """Whatever PostgreSQL can compare with."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError(f"not UTF-8: {text!r}")
    return text
