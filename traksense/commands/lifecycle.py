"""`traksense lifecycle`: retention and compression."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from traksense.terminal import counted, say
from traksense.tools.json_text import ascii_json

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from traksense.store.lifecycle import Change, Parts, Plan
    from traksense.store.policy import Setting

APPLICATION: Final = "traksense lifecycle"

_WHEN: Final = (
    "it is carried out within an hour; at once by `traksense maintain` (on TimescaleDB with --jobs), and on PostgreSQL "
    "when the service starts"
)

_PART: Final = {"timescaledb": "chunk", "postgresql": "partition"}
"""What holds a span of time, by engine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions."""
    parser.epilog = (
        "The policy is set with LIFECYCLE_* variables (ops/lifecycle.md). DATABASE_URL must be the owner's. plan "
        "changes nothing; apply writes the policy into the database, where the service and TimescaleDB's jobs read it."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("plan", "show the policy, what apply would change, and what would be compressed, dropped and deleted"),
        ("apply", "write the policy of the environment into the database"),
        ("status", "show differences from the policy, sizes, the times that are covered, compression, and jobs"),
    ):
        action = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        action.add_argument("--json", action="store_true", help="print JSON")


def main(arguments: argparse.Namespace) -> int:
    """Do the action."""
    import os

    from traksense import config
    from traksense.cli import DONE
    from traksense.store import lifecycle, maintenance, policy
    from traksense.tools.progress import Progress

    wanted = policy.load(os.environ)
    run_once = partial(maintenance.run_once, config.load(os.environ).database.dsn.reveal(), APPLICATION)
    if arguments.action == "plan":
        plan = run_once(lambda c: lifecycle.plan(c, wanted))
        settings = policy.settings(os.environ)
        _tell(_plan_json(plan, settings), _plan_text(plan, settings), as_json=arguments.json)
    elif arguments.action == "apply":
        with Progress() as progress:
            changes = run_once(lambda c: lifecycle.apply(c, wanted, progress.at))
        text = [f"changed {change}" for change in changes] or ["nothing to change"]
        if any(change.wanted != "forever" for change in changes):
            text.append(_WHEN)
        _tell({"changed": _changes_json(changes)}, text, as_json=arguments.json)
    else:
        status = run_once(lambda c: lifecycle.status(c, wanted))
        _tell(status, _status_text(status), as_json=arguments.json)
    return DONE


def _tell(document: dict[str, Any], text: list[str], *, as_json: bool) -> None:
    if as_json:
        say(ascii_json(json.dumps(document, indent=2, default=str)))
    else:
        say("\n".join(text), hanging=2)


def _changes_json(changes: list[Change]) -> list[dict[str, str]]:
    return [{"what": change.what, "now": change.now, "wanted": change.wanted} for change in changes]


def _plan_json(plan: Plan, settings: list[Setting]) -> dict[str, Any]:
    return {
        "engine": plan.engine,
        "policy": {setting.variable: {"value": setting.value, "default": setting.default} for setting in settings},
        "changes": _changes_json(plan.changes),
        "compress": [_parts_json(parts) for parts in plan.compress],
        "expired": [_parts_json(parts) for parts in plan.expired],
        "purge": [{"relation": name, "rows": rows} for name, rows in plan.purge],
    }


def _plan_text(plan: Plan, settings: list[Setting]) -> list[str]:
    part = _PART[plan.engine]
    lines = [f"change {change}" for change in plan.changes]
    lines += [f"compress {_parts_text(parts, part)}" for parts in plan.compress]
    lines += [f"drop {_parts_text(parts, part)}" for parts in plan.expired]
    lines += [f"delete {counted(rows, 'row')} of {name}" for name, rows in plan.purge]
    return [*(f"policy {setting}" for setting in settings), *(lines or ["nothing to do"])]


def _parts_json(parts: Parts) -> dict[str, Any]:
    return {
        "relation": parts.relation,
        "parts": parts.number,
        "bytes": parts.size,
        "oldest": parts.begin,
        "newest": parts.end,
    }


def _parts_text(parts: Parts, part: str) -> str:
    span = f"{_time(parts.begin)} to {_time(parts.end)}"
    return f"{counted(parts.number, part)} of {parts.relation}, {_size(parts.size)}, {span}"


def _status_text(status: dict[str, Any]) -> list[str]:
    lines = [f"engine {status['engine']}"]
    lines += [f"drift {drift}" for drift in status["drift"]] or [
        "drift none: the database has the policy of the environment"
    ]
    part = _PART[status["engine"]]
    for relation in status["relations"]:
        lines.append(
            f"{relation['relation']}: {_size(relation['bytes'])} in {counted(relation['parts'], part)}, "
            f"{_time(relation['oldest'])} to {_time(relation['newest'])}"
        )
    lines += [f"{table['relation']}: {_size(table['bytes'])}" for table in status["tables"]]
    for row in status["compression"]:
        ratio = row["bytes_before"] / row["bytes_after"]
        lines.append(
            f"compressed {counted(row['chunks'], 'chunk')} of {row['relation']}: {_size(row['bytes_before'])} to "
            f"{_size(row['bytes_after'])}, {ratio:.1f} to 1"
        )
    if status["behind"]:
        lines.append(f"aggregates: {status['behind']['marks']} time ranges waiting to be aggregated")
    for job in status["jobs"]:
        error = f": {job['last_error']}" if job["last_error"] else ""
        lines.append(
            f"job {job['job_id']} {job['name']}: next run {_time(job['next_start'], 'never')}, "
            f"last run {job['last_run_status'] or 'never'}{error}"
        )
    return lines


def _time(instant: datetime | None, none: str = "-") -> str:
    return none if instant is None else instant.isoformat(timespec="seconds").replace("+00:00", "Z")


def _size(number: int) -> str:
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"
