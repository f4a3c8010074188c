"""What the documentation says, held to the code: links, commands, variables, reasons, events, conditions, constants."""

from __future__ import annotations

import ast
import configparser
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import attrs
import pytest

from tests.manuals import block_of, blocks_of
from traksense import cli, config
from traksense.config import Settings
from traksense.ingest.batch import BATCH_MAX_BYTES
from traksense.ingest.decode import ROUTES_MAX
from traksense.ingest.ledger import MESSAGE_OVERHEAD_BYTES
from traksense.model import Reason
from traksense.mqtt.codec import PACKET_MAX_BYTES
from traksense.service import CONDITIONS, INFORMING
from traksense.store.dictionary import DEVICES_MAX, POINTS_MAX
from traksense.store.meta_numbers import META_LENGTH_MAX, META_MAX
from traksense.store.transaction import CAREFUL_BATCHES

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[2]
OPS: Final = ROOT / "ops"
README: Final = ROOT / "README.md"
README_PT: Final = ROOT / "README.pt-BR.md"
DOCUMENTS: Final = [*sorted(ROOT.glob("*.md")), *sorted(OPS.rglob("*.md"))]

LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE: Final = re.compile(r"`([^`]+)`")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """The document without its code blocks."""
    text = re.sub(r"^```.*?^```", "", text_of(path), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def headings(path: Path) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", prose(path), re.MULTILINE)]


def anchors(path: Path) -> set[str]:
    """The names by which GitHub and others let one link to the headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(path)}


def section(path: Path, title: str) -> str:
    """What stands between a heading and the next one of its level or above."""
    lines = text_of(path).splitlines()
    begin = next(n for n, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(title)}", line))
    level = lines[begin].index(" ")
    rest = lines[begin + 1 :]
    end = next((n for n, line in enumerate(rest) if re.match(rf"#{{1,{level}}} ", line)), len(rest))
    return "\n".join(rest[:end])


def rows(text: str) -> list[list[str]]:
    """The cells of the body of each table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [n for n, row in enumerate(cells) if all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    return [row for n, row in enumerate(cells) if n not in rules and n + 1 not in rules]


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link is to a file that is here, and to a heading in it."""
    broken = []
    for target in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)

    assert [] == broken


# --- the READMEs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", [README, README_PT], ids=lambda path: path.name)
def test_readme_commands_are_files(readme: Path) -> None:
    """The two commands to paste are one line each, and the scripts that they name are here."""
    scripts = re.findall(r"^    sh (\S+)$", text_of(readme), re.MULTILINE)

    assert ["ops/demo.sh", "ops/test.sh"] == scripts
    assert [] == [script for script in scripts if not (ROOT / script).is_file()]


@pytest.mark.parametrize("readme", [README, README_PT], ids=lambda path: path.name)
def test_readme_lists_every_command(readme: Path) -> None:
    """Each command of `traksense` has its row, and no row is about another."""
    named = set()
    for row in rows(text_of(readme)):
        named |= set(re.findall(r"`traksense ([a-z-]+)`", row[0]))

    assert set(cli.COMMANDS) == named


@pytest.mark.parametrize("readme", [README, README_PT], ids=lambda path: path.name)
def test_readme_variables_are_real(readme: Path) -> None:
    """The variables in the table exist, and a default that is written out is the default."""
    fields = config.variables()
    wrong = []
    for name, default, _ in (row for row in rows(text_of(readme)) if re.fullmatch(r"`[A-Z_]+`", row[0])):
        variable = name.strip("`")
        shown = default.strip("`")
        if variable not in fields:
            wrong.append(name)
        elif re.fullmatch(r"`[^`]+`|\d+", default):
            field = fields[variable].name
            if getattr(config.load({variable: shown}), field) != getattr(Settings(), field):
                wrong.append(f"{name} {default}")

    assert [] == wrong
    assert Settings().queue_max_bytes == 48 * 1024 * 1024, "written in words in the READMEs"
    assert Settings().mqtt_session_expiry == 14 * 86400, "written in words in the READMEs"


def test_readmes_say_the_same() -> None:
    """The Portuguese README has the sections, commands, links and table rows of the English one."""

    def skeleton(path: Path) -> dict[str, object]:
        text = text_of(path)
        links = [link for link in LINK.findall(text) if link not in (README.name, README_PT.name)]
        return {
            "levels": [level for level, _ in headings(path)],
            "links": links,
            "rows": [[CODE.findall(cell) for cell in row[:1]] for row in rows(text)],
            "bullets": len(re.findall(r"^\* ", text, re.MULTILINE)),
        }

    assert skeleton(README) == skeleton(README_PT)
    assert [block.text for block in blocks_of("README.md")] == [block.text for block in blocks_of("README.pt-BR.md")]


# --- operations.md ----------------------------------------------------------------------------------------------------


def log_events() -> set[str]:
    """Every event that the package logs: constants in the arguments of calls on a logger."""
    found: set[str] = set()
    for path in sorted((ROOT / "traksense").rglob("*.py")):
        for call in ast.walk(ast.parse(text_of(path))):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr in ("debug", "info", "warning", "error", "exception", "critical", "log")
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id in ("logger", "log")
            ):
                constants = [node for argument in call.args for node in ast.walk(argument)]
                found |= {
                    node.value for node in constants if isinstance(node, ast.Constant) and isinstance(node.value, str)
                }
    return found


def test_log_events_are_found() -> None:
    """The search below finds events of each shape."""
    assert {"started", "condition_fails", "session_lost", "migration_applied"} <= log_events()


def test_every_log_event_is_explained() -> None:
    """The runbook has a row for each event, and none for others."""
    explained = {row[0].strip("`") for row in rows(section(OPS / "operations.md", "Log events"))}

    assert log_events() == explained


def test_every_reason_is_explained() -> None:
    """The runbook has a row for each reason of a dead letter, and none for others."""
    explained = {row[0].strip("`") for row in rows(section(OPS / "operations.md", "Dead letters"))}

    assert {str(reason) for reason in Reason} == explained


def test_every_condition_is_explained() -> None:
    """The runbook has a section for each condition of /readyz."""
    titles = {title for _, title in headings(OPS / "operations.md")}

    assert {f"Condition: {name}" for name in (*CONDITIONS, *INFORMING)} == {
        title for title in titles if title.startswith("Condition: ")
    }


def test_every_alert_is_explained() -> None:
    """The runbook has a section for each alert, and none for others."""
    names = set(re.findall(r"^ +- alert: (\w+)$", text_of(OPS / "prometheus" / "alerts.yml"), re.MULTILINE))
    titles = re.findall(r"^### (\w+)$", section(OPS / "operations.md", "Alerts"), re.MULTILINE)

    assert names == set(titles)


def test_every_exit_status_is_explained() -> None:
    """The runbook has the three of the contract."""
    statuses = {row[0] for row in rows(section(OPS / "operations.md", "Exit status"))}

    assert {str(cli.DONE), str(cli.FAILED), str(cli.MISUSED)} <= statuses


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fact",
    [
        f"{BATCH_MAX_BYTES // (1024 * 1024)} MiB of payloads",
        f"and {MESSAGE_OVERHEAD_BYTES} bytes for each",
        f"{ROUTES_MAX:,} at most",
        f"{DEVICES_MAX:,} at most",
        f"{POINTS_MAX:,} at most",
        f"up to {META_LENGTH_MAX} bytes; {META_MAX:,} at most",
        f"we announce {PACKET_MAX_BYTES // (1024 * 1024)} MiB",
        f"the next {CAREFUL_BATCHES} batches",
        f"| {Settings().queue_max_bytes // (1024 * 1024)} MiB |",
        f"The default is {Settings().batch_size}.",
        f"`INGEST_QUEUE_MAX` up ({Settings().queue_max} to",
    ],
)
def test_tuning_has_the_codes_figures(fact: str) -> None:
    """The limits that the arithmetic rests on are those of the code."""
    assert fact in " ".join(text_of(OPS / "tuning.md").split())


def scale_out_figures() -> dict[str, float]:
    """The one table of measured figures."""
    text = text_of(OPS / "scale-out.md")
    part = text[text.index("<!-- figures: begin -->") : text.index("<!-- figures: end -->")]
    return {name: float(value) for name, value, _ in rows(part)}


def test_scale_out_follows_from_its_figures() -> None:
    """Whoever updates the figures is told which numbers below them change."""
    figures = scale_out_figures()
    wrong = []
    for cells in rows(section(OPS / "scale-out.md", "The arithmetic")):
        if len(cells) != 11:
            continue
        rate = int(cells[0].replace(",", ""))
        replicas = math.ceil(rate / (0.6 * figures["one process, ten-point messages"]))
        expected = [
            f"{replicas}",
            f"{rate * figures['service, ten-point messages'] / 1e6:.1f}",
            f"{rate * figures['database'] / 1e6:.1f}",
            f"{rate * figures['broker, ten-point messages'] / 1e6:.1f}",
            f"{rate / 10 * figures['a ten-point message with its topic'] * 8 / 1e9:.2f} Gbit/s",
            f"{rate * figures['to the database'] / 1e6:.0f} MB/s",
            f"{rate * figures['WAL'] / 1e6:.0f} MB/s",
            f"{rate * figures['on disk, raw'] * 3600 / 1e9:,.0f} GB",
            f"{rate * figures['on disk, compressed'] * 86400 / 1e9:,.0f} GB",
            f"{replicas * (4 + 1)}",  # one for maintenance
        ]
        wrong += [(cells[0], cell, right) for cell, right in zip(cells[1:], expected, strict=True) if cell != right]

    assert [] == wrong


@pytest.mark.parametrize(
    ("resource", "limit"),
    [
        ("one service process", lambda f: f["one process, ten-point messages"]),
        ("one Mosquitto", lambda f: 1e6 / f["broker, ten-point messages"]),
        ("the database's WAL", lambda f: 500e6 / f["WAL"]),
        ("16 cores of the database", lambda f: 16e6 / f["database"]),
    ],
)
def test_scale_out_says_what_ends_first(resource: str, limit: Callable[[dict[str, float]], float]) -> None:
    """Each limit is that of the figures, to two digits."""
    found = [row for row in rows(section(OPS / "scale-out.md", "The arithmetic")) if row[0].startswith(resource)]
    (said,) = [float(re.sub(r"\D", "", row[1].partition(" points")[0])) for row in found]

    assert math.isclose(limit(scale_out_figures()), said, rel_tol=0.03)


def test_documents_name_real_metrics() -> None:
    """A metric that a manual tells people to look at is one of the reference page, which is made from the code."""
    known = set(re.findall(r"^\| `(\w+)`", text_of(OPS / "reference" / "metrics.md"), re.MULTILINE))
    others = {"ingest_errors"}
    wrong: set[str] = set()
    for path in (path for path in DOCUMENTS if path.parent != OPS / "decisions"):
        for name in re.findall(r"(?<![\w/-])ingest_[a-z_]+\b(?!\.)", text_of(path)):
            if re.sub("_(bucket|sum|count)$", "", name) not in known and name not in known | others:
                wrong.add(f"{path.relative_to(ROOT)}: {name}")

    assert set() == wrong


def test_documents_name_real_variables() -> None:
    """A variable that a document tells people to set exists."""
    known = set(config.variables())
    wrong: set[str] = set()
    others = [path for kind in ("yaml", "conf", "service") for path in sorted(OPS.rglob(f"*.{kind}"))]
    for path in [*DOCUMENTS, *others]:
        wrong |= set(re.findall(r"\b((?:MQTT|INGEST)_[A-Z0-9_]*[A-Z0-9])\b(?![*-])", text_of(path))) - known

    assert set() == wrong


def test_contributing_names_real_environments() -> None:
    """The tox environments that contributors are told of exist."""
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    named: set[str] = set()
    for names in re.findall(r"-e (\S+)", block_of("CONTRIBUTING.md sh ops/test.sh").text):
        named |= set(names.split(","))
    for row in rows(text_of(ROOT / "CONTRIBUTING.md")):
        named |= set(CODE.findall(row[0]))

    assert set(re.split(r"[,\s]+", tox["tox"]["env_list"].strip())) == named


def test_decisions_are_numbered() -> None:
    """Each record has a number of its own, in its name and in its title."""
    numbers = []
    for path in sorted((OPS / "decisions").glob("0*.md")):
        match = re.fullmatch(r"(\d{4})-[a-z0-9-]+\.md", path.name)
        assert match, path.name
        assert re.match(rf"# {match[1]}:? ", text_of(path)), path.name
        numbers.append(match[1])

    assert len(numbers) == len(set(numbers))
    assert set(numbers) >= {f"{number:04}" for number in range(1, 10)}


def test_decisions_are_listed() -> None:
    """The list has each record, by its title."""
    listed = re.findall(r"^\* \[(\d{4})\]\((\S+)\): (.+)$", text_of(OPS / "decisions" / "README.md"), re.MULTILINE)
    titled = []
    for path in sorted((OPS / "decisions").glob("0*.md")):
        match = re.match(r"# (\d{4}):? (.+)", text_of(path))
        assert match
        titled.append((match[1], path.name, match[2].lower()))

    assert titled == [(number, name, title.lower()) for number, name, title in listed]


def test_decisions_that_are_cited_exist() -> None:
    """A reference to a decision leads to a record."""
    numbers = {path.name[:4] for path in (OPS / "decisions").glob("*.md")}
    cited: set[str] = set()
    for path in [*DOCUMENTS, OPS / "traksense.env.example"]:
        cited |= set(re.findall(r"(?:[Dd]ecision |decisions/)(\d{4})", text_of(path)))
    for path in (OPS / "decisions").glob("*.md"):
        cited |= set(re.findall(r"\((\d{4})\)", text_of(path)))

    assert set() == cited - numbers


def test_settings_are_all_variables() -> None:
    """No setting is without a variable: what the documents list is all there is."""
    named = {field.name for field in config.variables().values()}

    assert {field.name for field in attrs.fields(Settings)} == named
