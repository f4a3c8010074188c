"""The compose file and the brokers' settings, without a container engine: they agree with the code and each other."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from tests.manuals import block_of
from tests.unit.test_ops import OPS, env_values, seconds
from traksense import config
from traksense.config import Settings

MIB: Final = 1024 * 1024

# --- compose.yaml -----------------------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((OPS / "compose.yaml").read_text(encoding="utf-8"))
    return document


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


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
    block = block_of("install-containers.md umask")

    assert defaults - {
        "TRAKSENSE_BIND",
        "TRAKSENSE_TLS_BIND",
        "OWNER_DATABASE_URL",
        "TENANT_LOGIN",
        "TENANT_PASSWORD",
    } == set(re.findall(r"^(\w+)=\$\(password\)$", block.text, re.MULTILINE))


def test_compose_has_the_hosts_of_its_env_file() -> None:
    """The broker and the database that `compose.env` names are services, and so is what Prometheus scrapes."""
    settings = config.load(env_values(OPS / "compose.env"))
    database = urlsplit(str(settings.database)).hostname
    jobs = prometheus()["scrape_configs"]
    targets = {target for job in jobs for group in job.get("static_configs", ()) for target in group["targets"]}

    assert {settings.broker.host, database} <= set(services())
    assert {f"traksense:{settings.metrics_port}", "localhost:9090"} == targets


def test_compose_listens_on_the_loopback_only() -> None:
    """Nothing with a default password is reachable from outside unless somebody says so."""
    ports = [port for service in services().values() for port in service.get("ports", [])]

    assert [] == [
        port for port in ports if not re.match(r"(127\.0\.0\.1|\$\{TRAKSENSE_(TLS_)?BIND:-127\.0\.0\.1\}):", port)
    ]


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


def prometheus() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    return document
