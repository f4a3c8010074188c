"""What `ops/` ships, checked without a container engine: the files parse, agree with the code and with each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import pytest
import trio
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from traksense import cli, config
from traksense.config import Settings
from traksense.ingest.clock import ClockWatch
from traksense.ingest.health import Health
from traksense.metrics import make_registry
from traksense.service import CONDITIONS, INFORMING, Pipeline
from traksense.store import policy
from traksense.store.policy import Policy
from traksense.store.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
OPS: Final = ROOT / "ops"
MIB: Final = 1024 * 1024

EXAMPLE: Final = OPS / "traksense.env.example"

EMQX_METRICS: Final = frozenset(
    {
        "emqx_connections_count",
        "emqx_delivery_dropped_expired",
        "emqx_delivery_dropped_queue_full",
        "emqx_delivery_dropped_too_large",
        "emqx_ds_buffer_batches_failed",
        "emqx_messages_dropped_no_subscribers",
        "emqx_messages_received",
        "emqx_messages_sent",
        "emqx_sessions_count",
    }
)
"""Source: EMQX 5.8.9, apps/emqx_prometheus/src/emqx_prometheus.erl and
apps/emqx_durable_storage/include/emqx_ds_metrics.hrl."""


# --- traksense.env.example and compose.env ----------------------------------------------------------------------------


@attrs.frozen
class EnvLine:
    """One `NAME=value` of an environment file; off if it is commented out."""

    name: str
    value: str
    on: bool
    explained: bool


def env_lines(path: Path = EXAMPLE) -> list[EnvLine]:
    found: list[EnvLine] = []
    explained = False
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(#?)([A-Z][A-Z0-9_]*)=(.*)", line)
        if match:
            found.append(EnvLine(match[2], match[3], on=not match[1], explained=explained))
        else:
            explained = line.startswith("# ") and not line.startswith("# ---")
    return found


def env_values(path: Path) -> dict[str, str]:
    """What a file switches on."""
    return {line.name: line.value for line in env_lines(path) if line.on}


def test_env_file_has_every_variable() -> None:
    """Every variable that a command reads is in the file, once, and nothing else is."""
    names = [line.name for line in env_lines()]

    assert sorted([*config.variables(), *policy.variables()]) == sorted(names)


def test_env_file_explains_every_variable() -> None:
    """A comment stands directly above each variable or its group."""
    assert [] == [line.name for line in env_lines() if not line.explained]


def test_env_file_changes_nothing_by_itself() -> None:
    """A copy that nobody has edited is the defaults."""
    assert {} == env_values(EXAMPLE)


def test_env_file_shows_every_default() -> None:
    """What is shown is the default, and a default that can be written is shown."""
    shown = {line.name: line.value for line in env_lines() if line.value}
    others = {line.name for line in env_lines() if not line.value}
    fields = config.variables()

    assert Settings() == config.load({name: text for name, text in shown.items() if name in fields})
    assert Policy() == policy.load({name: text for name, text in shown.items() if name not in fields})
    assert [] == [name for name in others & set(fields) if not name.endswith("_FILE") and fields[name].default]
    assert set() == others - set(fields)


def test_env_file_is_read_by_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--env-file` takes what compose and systemd read, with every line switched on."""
    environ: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environ)
    on = tmp_path / "traksense.env"
    on.write_text(re.sub(r"^#(?=[A-Z_0-9]+=)", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE), "utf-8")

    cli.load_env_file(on)

    assert {line.name: line.value for line in env_lines()} == environ


# --- compose.yaml -----------------------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((OPS / "compose.yaml").read_text(encoding="utf-8"))
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def seconds(text: str) -> float:
    """A duration as compose and systemd write it."""
    number, unit = re.fullmatch(r"(\d+)(s|m|min)?", text).groups()  # type: ignore[union-attr]  # a mismatch fails
    return int(number) * {"s": 1, None: 1}.get(unit, 60)


def test_compose_has_the_whole_stack() -> None:
    """Broker, database, migration, service, metrics and dashboards come up together."""
    assert {"emqx", "db", "migrate", "traksense", "prometheus", "grafana"} == set(services())


@pytest.mark.parametrize("name", sorted(services()))
def test_compose_uses_only_what_exists(name: str) -> None:
    """Files, folders, volumes and services that a service names are there."""
    service = services()[name]
    missing = []
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        found = (OPS / source).exists() if source.startswith(".") else source in compose()["volumes"]
        missing += [] if found else [source]
    for file in service.get("env_file", []):
        if isinstance(file, str):
            missing += [] if (OPS / file).is_file() else [file]
        else:
            assert file == {"path": "traksense.env", "required": False}
    if "build" in service:
        dockerfile = (OPS / service["build"]["context"]) / service["build"]["dockerfile"]
        missing += [] if dockerfile.is_file() else [str(dockerfile)]
    missing += [other for other in service.get("depends_on", {}) if other not in services()]

    assert [] == missing


def test_compose_declares_no_unused_volume() -> None:
    """Every named volume belongs to a service."""
    used = {volume.split(":")[0] for service in services().values() for volume in service.get("volumes", [])}

    assert set(compose()["volumes"]) == {name for name in used if not name.startswith(".")}


def test_compose_pins_images() -> None:
    """An image that is not built here has a full version."""
    images = [service["image"] for service in services().values() if "build" not in service]

    assert [] == [image for image in images if not re.search(r":v?\d+\.\d+\.\d+(-pg\d+)?$", image)]


def test_compose_waits_for_what_is_needed() -> None:
    """The service starts after the migration, which starts after the database; each has a health check to wait for."""
    conditions = {
        (name, other): wanted["condition"]
        for name, service in services().items()
        for other, wanted in service.get("depends_on", {}).items()
    }

    assert "service_healthy" == conditions["migrate", "db"]
    assert "service_completed_successfully" == conditions["traksense", "migrate"]
    assert "service_healthy" == conditions["traksense", "emqx"]
    for (_, other), condition in conditions.items():
        if condition == "service_healthy":
            assert "test" in services()[other].get("healthcheck", {}), other


def test_compose_is_more_patient_than_the_service() -> None:
    """SIGKILL comes only after the service's own deadline."""
    assert seconds(services()["traksense"]["stop_grace_period"]) > Settings().shutdown_deadline


def test_compose_sets_known_variables() -> None:
    """What compose sets for the service beside the file is read by it."""
    given = [name for role in ("migrate", "traksense") for name in services()[role].get("environment", {})]

    assert {"PGPASSWORD"} == set(given), "the driver's own"


def test_compose_has_the_hosts_of_its_env_file() -> None:
    """The broker and the database that `compose.env` names are services, and so is what Prometheus scrapes."""
    settings = config.load(env_values(OPS / "compose.env"))
    database = str(settings.database).split("//")[1].split(":")[0]
    targets = {target for job in prometheus()["scrape_configs"] for target in job["static_configs"][0]["targets"]}

    assert {settings.broker.host, database} <= set(services())
    assert {f"traksense:{settings.metrics_port}", "emqx:18083", "localhost:9090"} == targets


def test_compose_listens_on_the_loopback_only() -> None:
    """Nothing with a default password is reachable from outside unless somebody says so."""
    ports = [port for service in services().values() for port in service.get("ports", [])]

    assert [] == [port for port in ports if not port.startswith(("127.0.0.1:", "${TRAKSENSE_BIND:-127.0.0.1}:"))]


# --- Dockerfile -------------------------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the last stage."""
    text = (OPS / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    instructions = [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]
    last = max(index for index, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[last:]


def healthcheck() -> list[str]:
    (text,) = [rest for word, rest in dockerfile() if word == "HEALTHCHECK"]
    command: list[str] = json.loads(text[text.index("[") :])
    return command


def test_dockerfile_needs_no_shell() -> None:
    """What runs in the container runs by itself, and signals reach it."""
    commands = {word: rest for word, rest in dockerfile() if word in ("ENTRYPOINT", "CMD")}

    assert {"ENTRYPOINT": ["traksense"], "CMD": ["run"]} == {word: json.loads(rest) for word, rest in commands.items()}
    assert ("STOPSIGNAL", "SIGTERM") in dockerfile()
    assert "python" == healthcheck()[0]


def test_dockerfile_runs_as_nobody_special() -> None:
    """The last user is a number other than root's."""
    users = [rest for word, rest in dockerfile() if word == "USER"]

    assert users[-1].isdecimal()
    assert int(users[-1]) > 0


def test_dockerfile_has_a_supported_python() -> None:
    """Both stages have the same Python, one that the package supports."""
    versions = re.findall(r"^FROM python:(\S+?)-slim\b", (OPS / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)

    assert ["3.13", "3.13"] == versions


@pytest.fixture
def endpoint() -> Iterator[tuple[int, list[int]]]:
    """A port that answers `/healthz` with the status that the list holds."""
    statuses = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0] if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, statuses
        finally:
            server.shutdown()
            thread.join()


def run_healthcheck(port: int) -> int:
    command = [sys.executable, *healthcheck()[1:]]
    proxy = "http://127.0.0.1:9"  # nobody is there
    env = os.environ | {"METRICS_PORT": str(port), "http_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": ""}
    return subprocess.run(command, env=env, capture_output=True, check=False, timeout=30).returncode


def test_healthcheck_judges_healthz(endpoint: tuple[int, list[int]]) -> None:
    """It is healthy when `/healthz` says 200, whatever proxy the environment names, and not otherwise."""
    port, statuses = endpoint

    assert 0 == run_healthcheck(port)
    statuses[0] = 503
    assert 1 == run_healthcheck(port)


def test_healthcheck_fails_when_nobody_listens(endpoint: tuple[int, list[int]]) -> None:
    """A process without its endpoint is unhealthy."""
    assert 1 == run_healthcheck(9)


def test_build_context_has_no_secrets() -> None:
    """Only what the wheel is made from is sent to the builder, and it is all there."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}

    assert "*" == rules[0]
    assert {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "MANIFEST.in", "sql", "traksense"} <= let_in
    assert [] == [name for name in let_in if not (ROOT / name).exists() and name != "setup.py"]
    assert [] == [name for name in let_in if name.startswith((".", "ops", "tests"))]


# --- broker settings --------------------------------------------------------------------------------------------------


def mosquitto_settings() -> dict[str, str]:
    lines = (OPS / "mosquitto.conf").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    return {name: value.strip() for name, value in pairs}


def hocon(text: str) -> dict[str, str]:
    """`{"section.name": "value"}` of the part of HOCON that emqx.conf uses: sections, and one `name = value` a line."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.endswith("{"):
            path.append(line[:-1].strip())
        elif line == "}":
            path.pop()
        else:
            name, value = line.split(" = ")
            found[".".join([*path, name])] = value.strip('"')
    assert path == [], "a section is not closed"
    return found


def emqx_settings() -> dict[str, str]:
    return hocon((OPS / "emqx.conf").read_text(encoding="utf-8"))


def days(text: str) -> timedelta:
    return timedelta(days=int(re.fullmatch(r"(\d+)d", text)[1]))  # type: ignore[index]  # a mismatch fails


def test_mosquitto_keeps_what_traksense_relies_on() -> None:
    """Queues are long and on disk, sessions live as long as ours, and a payload that is too large gets through."""
    settings = mosquitto_settings()

    assert "true" == settings["persistence"]
    assert int(settings["max_queued_messages"]) >= 1_000_000
    assert "0" == settings["max_queued_bytes"]
    assert int(settings["max_inflight_messages"]) >= 1000
    assert days(settings["persistent_client_expiration"]).total_seconds() >= Settings().mqtt_session_expiry
    assert int(settings["max_packet_size"]) >= 4 * Settings().payload_max_bytes


def test_emqx_keeps_what_traksense_relies_on() -> None:
    """Sessions are durable, and no limit makes EMQX drop messages before ours say so."""
    settings = emqx_settings()

    assert "true" == settings["durable_sessions.enable"]
    assert days(settings["durable_sessions.message_retention_period"]).total_seconds() >= Settings().mqtt_session_expiry
    assert days(settings["mqtt.session_expiry_interval"]).total_seconds() >= Settings().mqtt_session_expiry
    assert "infinity" == settings["mqtt.max_mqueue_len"]
    assert "infinity" == settings["mqtt.message_expiry_interval"]
    assert int(settings["mqtt.max_inflight"]) >= 1000
    assert int(settings["mqtt.max_packet_size"].removesuffix("MB")) * MIB >= 4 * Settings().payload_max_bytes
    assert int(settings["force_shutdown.max_mailbox_size"]) >= 10 * 1000


def test_emqx_keeps_its_name() -> None:
    """The node's name, under which everything is stored, has no container address in it, and can be resolved."""
    emqx = services()["emqx"]

    assert f"emqx@{emqx['hostname']}" == emqx["environment"]["EMQX_NODE_NAME"]
    assert "." in emqx["hostname"]


# --- Prometheus and Grafana -------------------------------------------------------------------------------------------


def prometheus() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    return document


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    folder = OPS / "grafana" / "dashboards"
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def dashboard_expressions() -> list[str]:
    """Every query of every dashboard, with Grafana's variables replaced as Grafana would."""
    found: list[str] = []
    for dashboard in dashboards().values():
        found += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
        found += [note["expr"] for note in dashboard["annotations"]["list"] if "expr" in note]
    for variable, value in (("instance", ".*"), ("__rate_interval", "1m"), ("__range", "1h"), ("__interval", "1m")):
        found = [expression.replace(f"${variable}", value) for expression in found]
    return found


@pytest.fixture(scope="module")
def exposed() -> dict[str, dict[str, set[str]]]:
    """The sample names of a service's `/metrics`, each with its labels and their values."""

    async def scrape() -> str:
        await trio.lowlevel.checkpoint()  # only for trio's clock, which the health reads
        settings = Settings()
        health = Health(CONDITIONS, INFORMING)
        clock = ClockWatch(health)
        pipeline = Pipeline.build(settings, PostgresStore(settings, health, clock), health, clock)
        return generate_latest(make_registry(pipeline.collector())).decode()

    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(trio.run(scrape)):
        for sample in family.samples:
            labels = found.setdefault(sample.name, defaultdict(set))
            for label, value in sample.labels.items():
                labels[label].add(value)
    return found


SELECTOR: Final = re.compile(r"\b((?:ingest|process|python|emqx)_\w+)(?:\{([^}]*)\})?")
MATCHER: Final = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


def unknown(expression: str, exposed: dict[str, dict[str, set[str]]]) -> list[str]:
    """What an expression asks for and no service exposes: metrics, labels, or values of labels."""
    faults = []
    for name, matchers in SELECTOR.findall(expression):
        if name.startswith("emqx_"):
            faults += [] if name in EMQX_METRICS else [name]
            continue
        if name not in exposed:
            faults.append(name)
            continue
        for label, _, value in MATCHER.findall(matchers):
            if label in ("job", "instance"):
                continue
            known = exposed[name].get(label, set())
            faults += [f"{name}{{{label}={one}}}" for one in value.split("|") if one != ".*" and one not in known]
    return faults


def test_unknown_names_are_noticed(exposed: dict[str, dict[str, set[str]]]) -> None:
    """The check below can fail."""
    expression = 'rate(ingest_point_total[5m]) + ingest_errors_total{reason="nope"} + emqx_nope + ingest_points_total'

    assert ["ingest_point_total", "ingest_errors_total{reason=nope}", "emqx_nope"] == unknown(expression, exposed)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_uses_exposed_metrics(rule: dict[str, Any], exposed: dict[str, dict[str, set[str]]]) -> None:
    """An alert on a metric that does not exist would never fire."""
    assert [] == unknown(rule["expr"], exposed)


def test_dashboard_uses_exposed_metrics(exposed: dict[str, dict[str, set[str]]]) -> None:
    """A panel on a metric that does not exist would stay empty."""
    assert [] == [fault for expression in dashboard_expressions() for fault in unknown(expression, exposed)]


def test_alerts_are_complete() -> None:
    """Each says how bad it is, what it is about, and where the runbook treats it."""
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, rule["alert"]
        assert {"summary", "description", "runbook"} == set(rule["annotations"]), rule["alert"]
        assert rule["annotations"]["runbook"] == f"ops/operations.md#{rule['alert'].lower()}"


def test_alerts_have_tests() -> None:
    """Each alert has a case in alerts_test.yml."""
    cases = yaml.safe_load((OPS / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    text = json.dumps([case for case in cases if not case["name"].startswith("healthy")])

    assert [] == [rule["alert"] for rule in alerts() if not re.search(rf"\b{rule['alert']}\b", text)]


def test_memory_limits_agree() -> None:
    """The container's and the unit's limit are one, and the alert is below it."""
    (rule,) = [rule for rule in alerts() if rule["alert"] == "TraksenseMemoryHigh"]

    assert "1g" == services()["traksense"]["mem_limit"]
    assert ["1G"] == unit()["Service"]["MemoryMax"]
    assert rule["expr"].endswith("> 0.8 * 1024 * 1024 * 1024")


def test_dashboards_are_provisioned() -> None:
    """The files are mounted where the provider looks, and the panels' data source is chosen by a variable."""
    folder = OPS / "grafana" / "provisioning"
    providers = yaml.safe_load((folder / "dashboards" / "traksense.yaml").read_text(encoding="utf-8"))
    sources = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))
    (provider,), (source,) = providers["providers"], sources["datasources"]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])

    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    assert source["url"] == "http://prometheus:9090"
    assert prometheus()["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]
    for dashboard in dashboards().values():
        panels = dashboard["panels"]
        assert len(panels) == len({panel["id"] for panel in panels})
        assert {"${datasource}"} == {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"}


def run(*command: str | Path, cwd: Path) -> str:
    """What a program said, if it succeeded."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=50
    )
    assert 0 == done.returncode, done.stdout
    return done.stdout


def test_prometheus_accepts_its_configuration(promtool: str) -> None:
    """There is no fault in prometheus.yml and the rules that it names, says promtool."""
    assert "SUCCESS" in run(promtool, "check", "config", "prometheus.yml", cwd=OPS / "prometheus")


def test_alerts_fire_as_they_should(promtool: str) -> None:
    """Each alert fires in its case, and nothing fires on a healthy service, says promtool."""
    assert "SUCCESS" in run(promtool, "test", "rules", "alerts_test.yml", cwd=OPS / "prometheus")


def test_dashboard_queries_are_valid(promtool: str, tmp_path: Path) -> None:
    """Every query of the dashboards is PromQL, says promtool."""
    rules = [{"record": f"query:{n}", "expr": expr} for n, expr in enumerate(dashboard_expressions())]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))

    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", "queries.yml", cwd=tmp_path)


# --- systemd ----------------------------------------------------------------------------------------------------------


def unit(file: str = "traksense.service") -> dict[str, dict[str, list[str]]]:
    """Sections, names, and all values of each name."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in (OPS / "systemd" / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            name, value = line.split("=", 1)
            section.setdefault(name, []).append(value)
    return found


def test_unit_stops_and_restarts_as_the_service_expects() -> None:
    """SIGTERM first, patience beyond the service's own deadline, no restart on a configuration that is wrong."""
    service = unit()["Service"]

    assert ["SIGTERM"] == service["KillSignal"]
    assert seconds(service["TimeoutStopSec"][0]) > Settings().shutdown_deadline
    assert ["on-failure"] == service["Restart"]
    assert [str(cli.MISUSED)] == service["RestartPreventExitStatus"]


def test_unit_leaves_process_metrics_alone() -> None:
    """prometheus_client needs /proc/stat for its process_ metrics, which ProcSubset=pid would hide."""
    assert "ProcSubset" not in unit()["Service"]


@pytest.fixture
def installed_unit(tmp_path: Path) -> Path:
    """The unit with a program that is here."""
    path = tmp_path / "traksense.service"
    text = (OPS / "systemd" / "traksense.service").read_text(encoding="utf-8")
    path.write_text(text.replace("/opt/traksense/bin/traksense", sys.executable), encoding="utf-8")
    return path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_accepts_the_unit(installed_unit: Path) -> None:
    """systemd-analyze finds no unknown name and no bad value."""
    assert "" == run("systemd-analyze", "verify", installed_unit, cwd=installed_unit.parent)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_calls_the_unit_safe(installed_unit: Path) -> None:
    """Its exposure is 2 or less on a scale to 10, on which a unit without hardening has 9.6."""
    said = run("systemd-analyze", "security", "--offline=true", "--threshold=20", installed_unit, cwd=ROOT)

    assert "Overall exposure level" in said
