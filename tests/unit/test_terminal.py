"""Names that others chose do not act on the terminal that shows them, whatever command shows them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import os
import sys
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import traksense
from tests.terminals import open_terminal
from traksense import cli
from traksense.config import load
from traksense.log import JsonFormatter, TextFormatter
from traksense.store.dead_letters import Letter, Summary
from traksense.store.lifecycle import Change, Parts, Plan
from traksense.store.policy import Setting
from traksense.terminal import WHOLE, say
from traksense.tools.demo.display import chosen_display, show_lines, show_page
from traksense.tools.demo.state import Addresses, DeadLetter, LatestValue, State
from traksense.tools.fleet import Tally
from traksense.tools.validate.report import Finding, Printer
from traksense.tools.validate.run import Options, new_report

if TYPE_CHECKING:
    from collections.abc import Callable

EVIL = "acme\x1b[2J\x9b31m\u202egpj\u200b\x07"
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")

PACKAGE = Path(traksense.__file__).parent
MAY_PRINT = {"terminal.py", "tools/validate/report.py", "tools/progress.py", "tools/demo/view.py", "tools/schema.py"}
"""`say` itself, colours around what is said, the line that is rewritten, rich's own console, and the schema's text."""


def harmless(text: str) -> bool:
    """Whether nothing acts but line breaks and tabs."""
    return not any(unicodedata.category(c) in ACTING for c in text if c not in "\n\t")


@pytest.mark.parametrize("path", sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")))
def test_every_module_says_what_it_says_through_one_function(path: str) -> None:
    """No `print` and no `write` to a standard stream, but where the list above says why."""
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    found = [
        f"{path}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id == "print")
            or ast.unparse(node.func) in ("sys.stdout.write", "sys.stderr.write")
        )
    ]

    assert [] == found or path in MAY_PRINT | {"log.py"}


def test_say_escapes_what_acts(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines and tabs stay, all else is escaped; on stderr too."""
    say(f"a\tb\n{EVIL}")
    say(EVIL, to=sys.stderr)
    said = capsys.readouterr()

    assert "a\tb\nacme\\x1b[2J\\x9b31m\\u202egpj\\u200b\\x07\n" == said.out
    assert harmless(said.err)


def test_say_survives_a_terminal_of_few_letters() -> None:
    """ASCII, as in a cron job or a bare container: no traceback, and our own signs in the letters that there are."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    say("3 × 2 → 5 µg… ° \U0001f600", to=out)
    out.flush()

    assert b"3 x 2 -> 5 ug... \\xb0 \\U0001f600\n" == out.buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "term", "display"),
    [("utf-8", "xterm", show_page), ("ascii", "xterm", show_lines), ("utf-8", "dumb", show_lines)],
)
def test_demo_draws_only_where_its_page_can_be_drawn(encoding: str, term: str, display: object) -> None:
    """Elsewhere it prints lines, in ASCII."""
    with (
        open_terminal() as (_, written),
        os.fdopen(os.dup(written), "w", encoding=encoding) as stream,
        contextlib.redirect_stdout(stream),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TERM", term)

        assert display is chosen_display(None)


def test_lines_of_a_report_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, what is too long goes on below itself, coloured as far as it was; in a pipe it stays one line."""
    finding = Finding("ok", "First message", "received by " + "http://localhost:9100 " * 4)
    with open_terminal() as (seen, written), os.fdopen(os.dup(written), "w", encoding="utf-8") as stream:
        with contextlib.redirect_stdout(stream):
            monkeypatch.setenv("TERM", "xterm")
            monkeypatch.delenv("NO_COLOR", raising=False)
            Printer().finding(finding)
        shown = os.read(seen, 4096).decode()
    with contextlib.redirect_stdout(io.StringIO()) as piped:
        Printer().finding(finding)

    first, second, rest = shown.split("\r\n")
    assert first.startswith("\x1b[32m[OK]\x1b[0m First message: received by http")
    assert second.startswith("     http")
    assert "" == rest
    assert 1 == piped.getvalue().count("\n")


def shards() -> int:
    os.environ |= {"MQTT_TENANTS": EVIL, "MQTT_SHARD_COUNT": "1"}
    return cli.main(["shards", "show"])


def env_file() -> int:
    return cli.main(["--env-file", f"/nowhere/{EVIL}", "run"])


def arguments() -> int:
    with pytest.raises(SystemExit):
        cli.main(["dlq", "list", EVIL])
    return 2


def variable() -> int:
    os.environ |= {f"MQTT_{EVIL}": "1", "INGEST_QUEUE_MAX": EVIL, "MQTT_TOPICS": f"{EVIL}#", "MQTT_CA_FILE": EVIL}
    return cli.main(["run"])


def validate() -> int:
    printer = Printer()
    environ = {"MQTT_TOPICS": "a"}
    report = new_report(load(environ), Options(url=EVIL, points=1, patience=1, keep=False))
    printer.begin(report.subject | {"tenant": EVIL})
    printer.heading(EVIL)
    printer.finding(Finding("ok", EVIL, EVIL))
    printer.end(report)
    return 0


def lifecycle() -> int:
    from traksense.commands import lifecycle

    now = datetime.now(UTC)
    plan = Plan("postgresql", [Change(EVIL, EVIL, EVIL)], [Parts(EVIL, 1, 1, now, now)], [], [])
    settings = [Setting("LIFECYCLE_RETAIN_EVENTS", f"{EVIL}=1 year", default=True)]
    lifecycle._tell(lifecycle._plan_json(plan, settings), lifecycle._plan_text(plan, settings), as_json=False)
    return 0


def dead_letters() -> int:
    from traksense.tools.dlq import text

    summary = Summary(7, datetime.now(UTC), None, None, EVIL, "parse_error", EVIL, 0, EVIL, 2)
    for line in [*text.table([summary], WHOLE), *text.description(Letter(summary, EVIL.encode()))]:
        say(line)
    return 0


def demo() -> int:
    from rich.console import Console

    from traksense.tools.demo.lines import status_line
    from traksense.tools.demo.view import page

    now = datetime.now(UTC)
    state = State(Addresses(EVIL, EVIL, EVIL, EVIL, EVIL), EVIL, Tally(), 0.0, 0.0, now, not_ready=EVIL)
    state.publisher_fault = EVIL
    state.values = [LatestValue(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, now)]
    state.newest_dead = DeadLetter(EVIL, EVIL, EVIL, 1, now)
    Console(file=sys.stdout, force_terminal=False, width=300).print(page(state, 300, 50))
    say(status_line(state))
    return 0


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets does not stay."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("MQTT_", "INGEST_"))})


@pytest.mark.usefixtures("environ")
@pytest.mark.parametrize(
    "command",
    [shards, env_file, arguments, variable, validate, lifecycle, dead_letters, demo],
    ids=lambda c: c.__name__,
)
def test_command_shows_names_escaped(capsys: pytest.CaptureFixture[str], command: Callable[[], int]) -> None:
    """The name is there to be read, and does nothing."""
    command()
    said = capsys.readouterr()
    text = said.out + said.err

    assert "acme\\x1b[2J" in text
    assert harmless(text)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_log_line_is_harmless(formatter: logging.Formatter) -> None:
    """A log is read on a terminal in the end; JSON stays JSON."""
    try:
        raise ValueError(EVIL)
    except ValueError:
        record = logging.LogRecord("x", logging.INFO, "", 1, "happened", None, sys.exc_info())
    fields: dict[str, Any] = {"traksense_tenant": EVIL, "traksense_topics": [EVIL, "\U000e0001\ud800"]}
    record.__dict__.update(fields)
    line = formatter.format(record)

    assert harmless(line)
    assert line == line.encode().decode()
    if isinstance(formatter, JsonFormatter):
        assert EVIL == json.loads(line)["tenant"]
