"""Several replicas in `ops/`: the numbers that systemd, compose and Kubernetes hand out are shards, each once."""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from tests.unit.test_ops import OPS, env_values, run, seconds, unit
from tests.unit.test_ops_compose import compose, prometheus
from traksense import __version__, config
from traksense.config import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MANIFEST: Final = OPS / "kubernetes" / "traksense.yaml"
RETIRE: Final = OPS / "kubernetes" / "retire.yaml"
TENANTS: Final = "acme,beta,gamma,delta,epsilon,zeta"


def shipped() -> dict[str, str]:
    """What compose gives every replica."""
    return env_values(OPS / "compose.env")


def assert_whole(replicas: Iterable[dict[str, str]]) -> None:
    """Replicas with these variables are all shards of one count, each once: every tenant has one reader."""
    found = [load({**shipped(), "MQTT_TENANTS": TENANTS, **variables}) for variables in replicas]
    counts = {settings.mqtt_shard_count for settings in found}

    assert {len(found)} == counts
    assert list(range(1, len(found) + 1)) == sorted(settings.mqtt_shard or 0 for settings in found)
    assert len(found) == len({settings.client_id for settings in found})
    topics = [topic for settings in found for topic in settings.topics]
    assert sorted(topics) == sorted(
        topic.replace("+", tenant, 1) for topic in Settings().mqtt_topics for tenant in TENANTS.split(",")
    )


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_template_unit_hands_out_shards() -> None:
    """The instance is the number of the shard; the rest of the configuration is one file."""
    service = unit("traksense@.service")["Service"]
    (given,) = service["Environment"]
    name, value = given.split("=")

    assert (name, value) == ("MQTT_SHARD", "%i")
    assert name in config.variables()
    assert ["/etc/traksense/ingest.env", "/etc/traksense/shard-%i.env"] == service["EnvironmentFile"]
    assert_whole({"MQTT_SHARD_COUNT": "3", name: value.replace("%i", str(n))} for n in (1, 2, 3))


def test_template_unit_is_the_unit() -> None:
    """What one process needs, each shard needs: but for its number, the two units differ in names only."""
    one, many = unit("traksense.service"), unit("traksense@.service")
    for section in (one, many):
        section["Service"].pop("EnvironmentFile")
    many["Service"].pop("Environment")

    assert one["Service"] == many["Service"]
    assert ["traksense.target"] == many["Install"]["WantedBy"] == many["Unit"]["PartOf"]


def test_shards_start_at_boot() -> None:
    """Who enables a shard enables the target that wants it, and what is reached at boot wants the target."""
    assert ["traksense.target"] == unit("traksense@.service")["Install"]["Also"]
    assert ["multi-user.target"] == unit("traksense.target")["Install"]["WantedBy"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_accepts_the_template(tmp_path: Path) -> None:
    """systemd-analyze finds no unknown name and no bad value in an instance of it."""
    text = (OPS / "systemd" / "traksense@.service").read_text(encoding="utf-8")
    (tmp_path / "traksense@.service").write_text(text.replace("/opt/traksense/bin/traksense", sys.executable))
    shutil.copy(OPS / "systemd" / "traksense.target", tmp_path)

    said = run(
        "systemd-analyze", "verify", tmp_path / "traksense@2.service", tmp_path / "traksense.target", cwd=tmp_path
    )

    assert "" == said


# --- compose ----------------------------------------------------------------------------------------------------------


def replicas() -> dict[str, dict[str, Any]]:
    """The services of compose.yaml with compose.replicas.yaml on top, as far as they are ours."""
    document = yaml.safe_load((OPS / "compose.replicas.yaml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for name, service in document["services"].items():
        if name.startswith("traksense"):
            found[name] = {**compose()["services"].get(name, {}), **service}
    return found


def test_compose_replicas_are_shards() -> None:
    """Each shard once."""
    assert_whole(service["environment"] for service in replicas().values())


def test_compose_replicas_have_commands_that_start() -> None:
    """With a list of tenants in traksense.env, migration and operators' commands take the configuration, too."""
    document = yaml.safe_load((OPS / "compose.replicas.yaml").read_text(encoding="utf-8"))
    for name in ("migrate", "operator"):
        given = {**shipped(), "MQTT_TENANTS": TENANTS, **document["services"][name]["environment"]}
        assert load(given).mqtt_shard_count == len(replicas())


def test_compose_replicas_are_alike() -> None:
    """They differ in number and port, and not in limits, rights or patience."""
    alike = [
        {name: value for name, value in service.items() if name not in ("environment", "ports")}
        for service in replicas().values()
    ]

    assert [alike[0]] * 3 == alike
    ports = [port.rsplit(":", 1)[0] for service in replicas().values() for port in service["ports"]]
    assert len(ports) == len(set(ports))
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_replicas_are_scraped() -> None:
    """Prometheus knows each of them, once."""
    (groups,) = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in (OPS / "prometheus-targets").glob("*.yml")
    ]
    (job,) = [job for job in prometheus()["scrape_configs"] if job["job_name"] == "traksense"]
    targets = [target for group in (*groups, *job["static_configs"]) for target in group["targets"]]

    assert sorted(f"{name}:9100" for name in replicas()) == sorted(targets)
    document = yaml.safe_load((OPS / "compose.replicas.yaml").read_text(encoding="utf-8"))
    (mount,) = document["services"]["prometheus"]["volumes"]
    source, target, mode = mount.split(":")
    assert (OPS / source).is_dir()
    assert [f"{target}/*.yml"] == job["file_sd_configs"][0]["files"]
    assert "ro" == mode


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def manifests() -> dict[str, dict[str, Any]]:
    """By kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifests()["StatefulSet"]["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    assert isinstance(found, dict)
    return found


def test_ordinals_are_shards() -> None:
    """The pods' ordinals are the numbers of the shards, and there are as many as are counted."""
    spec = manifests()["StatefulSet"]["spec"]
    variables = {variable["name"]: variable for variable in container()["env"]}

    index = variables.pop("MQTT_SHARD")["valueFrom"]["fieldRef"]["fieldPath"]
    assert "metadata.labels['apps.kubernetes.io/pod-index']" == index
    begin = spec["ordinals"]["start"]
    ordinals = range(begin, begin + spec["replicas"])
    count = variables["MQTT_SHARD_COUNT"]["value"]
    assert_whole({"MQTT_SHARD": str(ordinal), "MQTT_SHARD_COUNT": count} for ordinal in ordinals)


def test_manifest_sets_known_variables() -> None:
    """Everything that a pod is given is read by the service; what comes from the ConfigMap is there."""
    config_map = manifests()["ConfigMap"]["data"]
    for kind in ("StatefulSet", "Job"):
        (only,) = manifests()[kind]["spec"]["template"]["spec"]["containers"]
        for variable in only["env"]:
            assert variable["name"] in config.variables()
            if "configMapKeyRef" in variable.get("valueFrom", {}):
                reference = variable["valueFrom"]["configMapKeyRef"]
                assert manifests()["ConfigMap"]["metadata"]["name"] == reference["name"]
                assert reference["key"] in config_map


def test_manifest_loads(tmp_path: Path) -> None:
    """As it is shipped it is a configuration without faults, and no shard of it is idle."""
    data = manifests()["ConfigMap"]["data"]
    tenants = tmp_path / "tenants"
    tenants.write_text(data["tenants"])
    more = {variable["name"]: variable["value"] for variable in container()["env"] if "value" in variable}
    more = {name: value for name, value in more.items() if not name.endswith("_FILE")}

    settings = load({"MQTT_URL": data["MQTT_URL"], "MQTT_TENANTS_FILE": str(tenants), "MQTT_SHARD": "1", **more})

    assert settings.layout is not None
    shards = {settings.layout.shard_of(entry) for entry in settings.layout.entries}
    assert shards == set(range(1, settings.layout.count + 1))


def test_manifest_has_no_secrets() -> None:
    """Passwords come from files of a Secret that is made elsewhere; every file that is named is mounted."""
    text = MANIFEST.read_text(encoding="utf-8")
    assert "Secret" not in manifests()
    assert not re.search(r"^kind: Secret", text, re.MULTILINE)
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text)
    for kind in ("StatefulSet", "Job"):
        spec = manifests()[kind]["spec"]["template"]["spec"]
        (only,) = spec["containers"]
        mounts = {mount["mountPath"] for mount in only["volumeMounts"] if mount["readOnly"]}
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in only["volumeMounts"]} <= volumes
        for variable in only["env"]:
            assert not variable["name"].endswith(("PASSWORD", "DATABASE_URL"))
            if variable["name"].endswith("_FILE"):
                assert variable["value"].rpartition("/")[0] in mounts


def test_pods_are_given_time_and_asked_the_right_questions() -> None:
    """SIGKILL after the service's own deadline; alive is /healthz, ready is /readyz, on the port that is there."""
    (port,) = container()["ports"]

    assert pod()["terminationGracePeriodSeconds"] > Settings().shutdown_deadline
    assert Settings().metrics_port == port["containerPort"]
    paths = {name: container()[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert ["/healthz", "/healthz", "/readyz"] == [probe["path"] for probe in paths.values()]
    assert {port["name"]} == {probe["port"] for probe in paths.values()}
    assert seconds(services_limit()) > Settings().shutdown_deadline


def services_limit() -> str:
    """How long compose waits, which is how long Kubernetes does."""
    limit: str = compose()["services"]["traksense"]["stop_grace_period"]
    assert pod()["terminationGracePeriodSeconds"] == seconds(limit)
    return limit


def test_pods_may_do_nothing_special() -> None:
    """Not root, no writable files, no capabilities, a bound on memory that the alert knows."""
    security = container()["securityContext"]

    assert pod()["securityContext"]["runAsNonRoot"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert ["ALL"] == security["capabilities"]["drop"]
    assert "1Gi" == container()["resources"]["limits"]["memory"]
    assert not pod()["automountServiceAccountToken"]


def test_disruptions_take_one_shard_at_a_time() -> None:
    """The budget is for the pods of the set, and the service finds them too."""
    labels = manifests()["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    budget = manifests()["PodDisruptionBudget"]["spec"]

    assert 1 == budget["maxUnavailable"]
    assert labels == budget["selector"]["matchLabels"] == manifests()["StatefulSet"]["spec"]["selector"]["matchLabels"]
    assert labels == manifests()["Service"]["spec"]["selector"]
    assert manifests()["Service"]["metadata"]["name"] == manifests()["StatefulSet"]["spec"]["serviceName"]


def test_images_are_this_release() -> None:
    """No `latest`."""
    images = re.findall(r"^ +image: (\S+)$", MANIFEST.read_text(encoding="utf-8"), re.MULTILINE)

    assert {f"traksense:{__version__}"} == set(images)


def test_the_job_that_retires_is_given_what_a_shard_is_given() -> None:
    """But for the number: the same list, count, secrets, image and limits; and what it runs is a command."""
    (job,) = yaml.safe_load_all(RETIRE.read_text(encoding="utf-8"))
    spec = job["spec"]["template"]["spec"]
    (only,) = spec["containers"]
    mine = {variable["name"]: variable for variable in only["env"]}
    shards = {variable["name"]: variable for variable in container()["env"]}

    assert {"MQTT_SHARD", "DB_POOL_MAX"} == shards.keys() - mine.keys()
    assert mine.items() <= shards.items()
    for name in ("image", "securityContext", "volumeMounts"):
        assert container()[name] == only[name]
    for name in ("securityContext", "volumes", "terminationGracePeriodSeconds"):
        assert pod()[name] == spec[name]
    assert ["shards", "retire"] == only["args"][:2]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="kubernetes-validate is installed for Python 3.11 alone")
@pytest.mark.parametrize("version", ["1.28", "1.31"])
@pytest.mark.parametrize("manifest", [MANIFEST, RETIRE], ids=["traksense", "retire"])
def test_kubernetes_accepts_the_manifest(version: str, manifest: Path) -> None:
    """The schema of the oldest version that has what is used, and of one where it is no longer beta."""
    said = run(sys.executable, "-m", "kubernetes_validate", "-k", version, "--strict", manifest, cwd=OPS)

    assert "ERROR" not in said
