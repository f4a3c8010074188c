"""What `ops/` ships, checked without a container engine: the files parse, agree with the code and with each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs
import pytest
import yaml

from traksense import cli, config
from traksense.config import Settings
from traksense.store import policy
from traksense.store.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
OPS: Final = ROOT / "ops"
MIB: Final = 1024 * 1024

EXAMPLE: Final = OPS / "traksense.env.example"

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
    assert {"emqx", "db", "migrate", "traksense", "operator", "prometheus", "grafana"} == set(services())
    assert ["operator"] == services()["operator"]["profiles"], "for commands, not a part of the stack"


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
    built = {service.get("image") for service in services().values() if "build" in service}
    images = [service["image"] for service in services().values() if service.get("image") not in built]

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


def compose_environment(name: str) -> dict[str, str]:
    """What a service of ours finds in its environment, with the passwords that hold without ops/.env."""
    given = services()[name].get("environment", {})
    return env_values(OPS / "compose.env") | {name: without_env_file(text) for name, text in given.items()}


def without_env_file(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize(
    ("name", "role", "password", "user"),
    [
        ("migrate", "traksense_owner", "OWNER_PASSWORD", None),
        ("operator", "traksense_owner", "OWNER_PASSWORD", "traksense-operator"),
        ("traksense", "traksense_service", "SERVICE_PASSWORD", "traksense"),
    ],
)
def test_compose_gives_each_its_role_and_user(name: str, role: str, password: str, user: str | None) -> None:
    """Nobody works as a superuser: database.sql makes the role, with the password that the driver finds. The broker's
    user is one of those that EMQX makes, with its password, and that the access lists name.
    """
    environ = compose_environment(name)
    settings = config.load({key: text for key, text in environ.items() if key != "PGPASSWORD"})
    made = services()["db"]

    assert urlsplit(environ["DATABASE_URL"]).username == role
    assert f"CREATE ROLE {role} LOGIN" in (OPS / "database.sql").read_text("utf-8")
    assert "./database.sql:/docker-entrypoint-initdb.d/900_traksense.sql:ro" in made["volumes"]
    assert without_env_file(made["environment"][password]) == environ["PGPASSWORD"]
    assert services()[name]["environment"]["PGPASSWORD"].startswith(f"${{{password}:-")
    if user is not None:
        assert settings.username == user
        rows = without_env_file(compose()["configs"]["emqx-users"]["content"]).splitlines()
        assert rows[0] == "user_id,password,is_superuser"
        assert f"{user},{environ['MQTT_PASSWORD']},false" in rows
        assert f"user {user}\n" in (OPS / "mosquitto.acl").read_text("utf-8")
        assert f'{{allow, {{username, "{user}"}}' in (OPS / "emqx.acl").read_text("utf-8")


def test_install_page_sets_every_password_of_compose() -> None:
    """The page for containers leaves no password at its well-known default."""
    defaults = set(re.findall(r"\$\{(\w+):-", (OPS / "compose.yaml").read_text("utf-8")))
    page = (OPS / "install-containers.md").read_text("utf-8")

    assert defaults - {"TRAKSENSE_BIND", "TENANT_LOGIN", "TENANT_PASSWORD"} == set(
        re.findall(r"^(\w+)=\$\(password\)$", page, re.MULTILINE)
    )


def test_compose_has_the_hosts_of_its_env_file() -> None:
    """The broker and the database that `compose.env` names are services, and so is what Prometheus scrapes."""
    settings = config.load(env_values(OPS / "compose.env"))
    database = str(settings.database).split("//")[1].split(":")[0]
    jobs = prometheus()["scrape_configs"]
    targets = {target for job in jobs for group in job.get("static_configs", ()) for target in group["targets"]}

    assert {settings.broker.host, database} <= set(services())
    assert {f"traksense:{settings.metrics_port}", "localhost:9090"} == targets


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
        if line.endswith(("{", "[")):
            path.append(line[:-1].removesuffix("= ").strip())
        elif line in ("}", "]"):
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


def test_emqx_admits_users_and_what_its_access_list_allows() -> None:
    """By password, from the file that compose writes; the list is where compose mounts it, and its end refuses."""
    settings = emqx_settings()
    rules = re.findall(r"^\{.*\}\.$", (OPS / "emqx.acl").read_text("utf-8"), re.MULTILINE)

    assert {"password_based", "built_in_database", "username"} == {
        settings[f"authentication..{name}"] for name in ("mechanism", "backend", "user_id_type")
    }
    assert ("deny", "ignore") == (settings["authorization.no_match"], settings["authorization.deny_action"])
    assert "${EMQX_ETC_DIR}/acl.conf" == settings["authorization.sources..path"]
    assert "./emqx.acl:/opt/emqx/etc/acl.conf:ro" in services()["emqx"]["volumes"]
    assert '{allow, all, publish, ["traksense/${username}/+"]}.' == rules[-2]
    assert "{deny, all}." == rules[-1]


def test_emqx_keeps_its_name() -> None:
    """The node's name, under which everything is stored, has no container address in it, and can be resolved."""
    emqx = services()["emqx"]

    assert f"emqx@{emqx['hostname']}" == emqx["environment"]["EMQX_NODE_NAME"]
    assert "." in emqx["hostname"]


# --- shared with the other modules about ops/ -------------------------------------------------------------------------


def prometheus() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    return document


def run(*command: str | Path, cwd: Path) -> str:
    """What a program said, if it succeeded."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=150
    )
    assert 0 == done.returncode, done.stdout
    return done.stdout


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
