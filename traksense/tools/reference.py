"""The reference pages, from the code and its files: `python -m traksense.tools.reference`, in a checkout.

Each page is one function, and `ops/reference/` has what they give; tests hold the two together. Nobody edits the
pages: a variable is explained in `ops/traksense.env.example`, a metric in `traksense.metrics`, a column by a COMMENT in
`sql/`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import asyncpg
import attrs
import trio

from traksense import config
from traksense.config import Settings
from traksense.ingest.clock import ClockWatch
from traksense.ingest.health import Health
from traksense.service import CONDITIONS, INFORMING, Pipeline
from traksense.store.migrate import migrate
from traksense.store.postgres import PostgresStore
from traksense.store.steps import STEPS, StepState
from traksense.terminal import say
from traksense.tools.payload_examples import payloads
from traksense.tools.schema import temporary_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

FOLDER: Final = Path("ops/reference")
EXAMPLE: Final = Path("ops/traksense.env.example")
WIDTH: Final = 120

RELATIONS: Final = (
    "ts_measure",
    "ts_measure_1m",
    "ts_measure_5m",
    "ts_measure_1h",
    "latest",
    "device_status",
    "cmd_ack",
    "device_event",
    "ingest_errors",
)
"""What applications may read."""

MEANINGS: Final = {
    "tenant_id": "The tenant, from the topic.",
    "site_id": "The site, from the topic.",
    "device_id": "The device, from the topic.",
    "point_id": "The point: its name in the message.",
    "unit": "The unit, or null.",
    "bucket": "The start of the interval, in device time, UTC.",
    "v_avg": "The mean of the numbers in it.",
    "v_min": "The least of them.",
    "v_max": "The greatest of them.",
    "v_count": "How many there are.",
    "cmd_id": "What the command was sent with.",
    "ok": "Whether the device says that it was executed.",
    "err": "What the device says went wrong, or null.",
    "event_id": "What the device calls the event, or null.",
    "event_type": "What kind of event it is.",
    "data": "What else the device says of it, or null.",
    "id": "Its number, for `traksense dlq`.",
    "detail": "What is wrong, for people.",
}
"""Of columns that have no comment of their own in the database."""

_COLUMNS: Final = """
SELECT c.relname, obj_description(c.oid, 'pg_class') AS about, a.attname, format_type(a.atttypid, a.atttypmod) AS type,
    col_description(c.oid, a.attnum) AS meaning
FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, place)
    JOIN pg_class c ON c.oid = ('public.' || wanted.name)::regclass
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY wanted.place, a.attnum
"""


def variables(example: str) -> str:
    """Every variable, its kind, its default and its meaning.

    Args:
        example: The text of `ops/traksense.env.example`.
    """
    lines = [
        *_head(
            "Variables",
            "Every environment variable that traksense reads. An empty one counts as unset. `traksense check-config` "
            "says what is wrong with those that are set. Made of [traksense.env.example](../traksense.env.example), "
            "which is there to be copied.",
        )
    ]
    paragraphs: list[str] = []
    names: list[tuple[str, str]] = []
    for line in [*example.partition("\n\n\n")[2].splitlines(), ""]:
        variable = re.fullmatch(r"#([A-Z][A-Z0-9_]*)=(.*)", line)
        if line.startswith("# ---"):
            title = line.strip("# -")
            lines += [f"## {title[0].upper()}{title[1:]}", ""]
        elif variable:
            names.append((variable[1], variable[2]))
        elif names:
            lines += _variable_section(names, paragraphs)
            names, paragraphs = [], []
        elif line.startswith("# "):
            if not paragraphs:
                paragraphs.append("")
            paragraphs[-1] = f"{paragraphs[-1]} {_MANUAL.sub(_LINK, line[2:])}".strip()
        elif line == "#":
            paragraphs.append("")
        elif paragraphs:
            lines += _wrapped(paragraphs)
            paragraphs = []
    return _page(lines)


def metrics() -> str:
    """Every metric of `/metrics`, its kind, its labels and its meaning."""
    rows = [("Metric", "Type", "Labels", "Meaning"), ("---",) * 4]
    for family in trio.run(_families):
        # As Prometheus stores it, which is what a query names.
        ending = "_total" if family.type == "counter" else ""
        labels = {name for sample in family.samples for name in sample.labels if name != "le"}
        shown = ", ".join(f"`{name}`" for name in sorted(labels))
        rows.append((f"`{family.name}{ending}`", family.type, shown, family.documentation))
    return _page(
        [
            *_head(
                "Metrics",
                "What `/metrics` has, beside the usual `process_` and `python_` metrics of a Python process. A counter "
                "starts at 0 when the process does. Of a histogram there are `_bucket`, `_sum` and `_count`. The "
                "[alerts](../operations.md#alerts) and the dashboard rest on these.",
            ),
            *_table(rows),
        ]
    )


def columns(found: list[Any]) -> str:
    """The public relations and their columns.

    Args:
        found: The rows of `read_columns`.
    """
    lines = _head(
        "Relations and columns",
        "What applications read, each within the tenant that the session names with `SET app.tenant_id`: see "
        "[reading.md](../reading.md). All else is in the schema `traksense` and may change.",
    )
    meanings = MEANINGS | {
        row["attname"]: row["meaning"] for row in found if row["relname"] == "ts_measure" and row["meaning"]
    }
    for relation in RELATIONS:
        rows = [row for row in found if row["relname"] == relation]
        lines += [f"## {relation}", "", *_wrapped([rows[0]["about"]])]
        table = [("Column", "Type", "Meaning"), ("---",) * 3]
        table += [(f"`{row['attname']}`", row["type"], row["meaning"] or meanings[row["attname"]]) for row in rows]
        lines += _table(table)
    return _page(lines)


async def read_columns(connection: asyncpg.Connection[asyncpg.Record]) -> list[asyncpg.Record]:
    """What `columns` shows, of a migrated database."""
    return await connection.fetch(_COLUMNS, list(RELATIONS))


def main() -> None:
    """Write all pages."""
    pages = {
        "variables": variables(EXAMPLE.read_text(encoding="utf-8")),
        "metrics": metrics(),
        "columns": columns(_columns_of_a_new_database()),
        "payloads": payloads(),
    }
    for name, text in pages.items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")
        say(f"{FOLDER / name}.md")


def _columns_of_a_new_database() -> list[Any]:
    async def read(dsn: str) -> list[asyncpg.Record]:
        await migrate(dsn, log=logging.getLogger(__name__), roles=False)
        connection = await asyncpg.connect(dsn)
        try:
            return await read_columns(connection)
        finally:
            connection.terminate()

    with temporary_database() as (dsn, _):
        return asyncio.run(read(dsn))


def _variable_section(names: list[tuple[str, str]], paragraphs: list[str]) -> Iterator[str]:
    yield "### " + ", ".join(name for name, _ in names)
    yield ""
    yield from _wrapped(paragraphs)
    rows = [("Variable", "Value", "Default"), ("---",) * 3]
    rows += [(f"`{name}`", _kind(name), f"`{default}`" if default else "none") for name, default in names]
    yield from _table(rows)


def _kind(variable: str) -> str:
    """What a value of it looks like."""
    field = config.variables().get(variable)
    if field is None:
        end = {"RETAIN": ", or `forever`", "COMPRESS": ", or `never`"}.get(variable.split("_")[1], "")
        return f"a duration{end}"
    if variable.endswith("_FILE") and field.metadata["from_file"]:
        return f"the path of a file with `{field.metadata['variable']}`"
    kind = cast("Any", attrs.fields_dict(attrs.resolve_types(Settings))[field.name].type)
    if choices := [choice for choice in get_args(kind) if isinstance(choice, str)]:
        return " or ".join(f"`{choice}`" for choice in choices)
    text = str(kind)
    for part, shown in _KINDS.items():
        if part in text:
            return shown
    return "text"


_MANUAL: Final = re.compile(r"\b[a-z-]+\.(md|conf)\b")
_LINK: Final = r"[\g<0>](../\g<0>)"
_KINDS: Final = {
    "Broker": "a URL",
    "DatabaseUrl": "a URL",
    "Secret": "text, secret",
    "Entry": "a list",
    "tuple": "a list, separated by commas",
    "Path": "the path of a file",
    "datetime": "a date or time, ISO 8601",
    "bool": "`true` or `false`",
    "float": "a number",
    "int": "a whole number",
}


async def _families() -> list[Metric]:
    """Of a service that is connected to nothing, but as if it had seen all that has a metric."""
    await trio.lowlevel.checkpoint()
    settings = Settings()
    health = Health(CONDITIONS, INFORMING)
    clock = ClockWatch(health)
    pipeline = Pipeline.build(settings, PostgresStore(settings, health, clock), health, clock)
    now = datetime.now(UTC)
    pipeline.upkeep.states = [StepState(name, now, waiting=0 if name == "aggregate" else None) for name in STEPS]
    return list(pipeline.collector().collect())


def _head(title: str, about: str) -> list[str]:
    return [
        f"# {title}",
        "",
        "<!-- Made by `python -m traksense.tools.reference`: do not edit. -->",
        "",
        *_wrapped([about]),
    ]


def _wrapped(paragraphs: list[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        for line in textwrap.wrap(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False):
            # What would begin a list, a heading or a quotation there.
            yield re.sub(r"^([-+*#>]|\d+[.)])(?= )", r"\\\1", line)
        yield ""


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _page(lines: list[str]) -> str:
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    main()
