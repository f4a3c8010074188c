"""Prometheus and Grafana in `ops/`: rules and dashboards ask for what is exposed, and what is mounted is found."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.test_ops import OPS, run, unit
from tests.unit.test_ops_compose import prometheus, services
from traksense.config import Settings
from traksense.ingest.clock import ClockWatch
from traksense.ingest.health import Health
from traksense.metrics import make_registry
from traksense.service import CONDITIONS, INFORMING, Pipeline
from traksense.store.postgres import PostgresStore
from traksense.store.steps import STEPS, StepState

if TYPE_CHECKING:
    from pathlib import Path

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


RULE_TESTS: Final = ("alerts_test.yml", "alerts_days_test.yml")


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    folder = OPS / "grafana" / "dashboards"
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def dashboard_expressions() -> list[str]:
    """Every query of the dashboard of the service, with Grafana's variables replaced as Grafana would."""
    dashboard = dashboards()["traksense.json"]
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    found += [note["expr"] for note in dashboard["annotations"]["list"] if "expr" in note]
    for variable, value in (("instance", ".*"), ("__rate_interval", "1m"), ("__range", "1h"), ("__interval", "1m")):
        found = [expression.replace(f"${variable}", value) for expression in found]
    return found


@pytest.fixture(scope="module")
def exposition() -> str:
    """What a service's `/metrics` says."""

    async def scrape() -> str:
        await trio.lowlevel.checkpoint()  # only for trio's clock, which the health reads
        settings = Settings()
        health = Health(CONDITIONS, INFORMING)
        clock = ClockWatch(health)
        pipeline = Pipeline.build(settings, PostgresStore(settings, health, clock), health, clock)
        collector = pipeline.collector()
        collector.upkeep.states = [StepState(name, datetime.now(UTC)) for name in STEPS[1:]]
        collector.upkeep.states += [StepState(STEPS[0], datetime.now(UTC), waiting=0)]
        return generate_latest(make_registry(collector)).decode()

    return trio.run(scrape)


@pytest.fixture(scope="module")
def exposed(exposition: str) -> dict[str, dict[str, set[str]]]:
    """The sample names of it, each with its labels and their values."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(exposition):
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
        place = '{{ or $externalLabels.traksense_manual "the manual of traksense, ops" }}'
        assert rule["annotations"]["runbook"] == f"{place}/operations.md#{rule['alert'].lower()}"


def test_runbook_can_be_linked() -> None:
    """The label that the annotations ask for is the one that prometheus.yml explains, and is not set by itself."""
    text = (OPS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")

    assert re.search(r"^  # external_labels:\n  #   traksense_manual: https://\S+/ops$", text, re.MULTILINE)
    assert "external_labels" not in prometheus()["global"]


def test_background_work_is_watched(exposed: dict[str, dict[str, set[str]]]) -> None:
    """Each step has its failures and its last success as metrics, and is explained; their condition has an alert."""
    manual = (OPS / "operations.md").read_text(encoding="utf-8").split("### Condition: maintenance")[1]

    assert set(STEPS) == exposed["ingest_maintenance_failures_total"]["step"]
    assert set(STEPS) == exposed["ingest_maintenance_last_success_timestamp_seconds"]["step"]
    assert list(STEPS) == re.findall(r"^\| `(\w+)` \|", manual.split("## Alerts")[0], re.MULTILINE)
    assert {*CONDITIONS, *INFORMING} == exposed["ingest_ready"]["condition"]
    assert "traksense_build_info" in exposed


def test_emqx_is_scraped_where_it_is() -> None:
    """Compose, which starts it, mounts the file that names it; without that file nobody waits for one."""
    (job,) = [job for job in prometheus()["scrape_configs"] if job["job_name"] == "emqx"]
    mounts = dict(mount.split(":")[:2] for mount in services()["prometheus"]["volumes"])
    (group,) = yaml.safe_load((OPS / "prometheus-emqx" / "emqx.yml").read_text(encoding="utf-8"))

    assert "static_configs" not in job
    assert [f"{mounts['./prometheus-emqx']}/*.yml"] == job["file_sd_configs"][0]["files"]
    assert ["emqx:18083"] == group["targets"]
    assert "emqx" in services()


def test_alerts_have_tests() -> None:
    """Each alert has a case in alerts_test.yml."""
    cases = yaml.safe_load((OPS / "prometheus" / RULE_TESTS[0]).read_text(encoding="utf-8"))["tests"]
    text = json.dumps([case for case in cases if not case["name"].startswith("healthy")])

    assert [] == [rule["alert"] for rule in alerts() if not re.search(rf"\b{rule['alert']}\b", text)]


def test_memory_limits_agree() -> None:
    """The container's and the unit's limit are one, and the alert is below it."""
    (rule,) = [rule for rule in alerts() if rule["alert"] == "TraksenseMemoryHigh"]

    assert "1g" == services()["traksense"]["mem_limit"]
    assert ["1G"] == unit()["Service"]["MemoryMax"]
    assert rule["expr"].endswith("> 0.8 * 1024 * 1024 * 1024")


POSTGRESQL_FIELDS: Final = frozenset(
    {
        "connMaxLifetime",
        "database",
        "maxIdleConns",
        "maxIdleConnsAuto",
        "maxOpenConns",
        "postgresVersion",
        "sslCertFile",
        "sslKeyFile",
        "sslRootCertFile",
        "sslmode",
        "timescaledb",
        "tlsConfigurationMethod",
    }
)
"""Source: Grafana's manual, "Configure the PostgreSQL data source", the reference of what can be provisioned."""


def data_source(name: str) -> dict[str, Any]:
    path = OPS / "grafana" / "provisioning" / "datasources" / f"{name}.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    (source,) = document["datasources"]
    assert 1 == document["apiVersion"]
    found: dict[str, Any] = source
    return found


def test_dashboards_are_provisioned() -> None:
    """The files are mounted where the provider looks, and the panels' data source is chosen by a variable."""
    folder = OPS / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "traksense.yaml").read_text(encoding="utf-8"))["providers"]
    mounts = {mount.split(":")[0]: mount.split(":")[1] for mount in services()["grafana"]["volumes"]}
    source = data_source("prometheus")

    assert mounts["./grafana/provisioning/datasources"] == "/etc/grafana/provisioning/datasources"
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    assert source["url"] == "http://prometheus:9090"
    assert prometheus()["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]
    for name, kind in (("traksense", source["type"]), ("tenant", data_source("tenant")["type"])):
        dashboard = dashboards()[f"{name}.json"]
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        (variable,) = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
        assert ("datasource", kind) == (variable["name"], variable["query"])
        chosen = {"type": kind, "uid": "${datasource}"}
        asking = [*panels, *(target for panel in panels for target in panel["targets"])]
        asking += [one for one in dashboard["templating"]["list"] if one["type"] == "query"]
        assert [chosen] * len(asking) == [one["datasource"] for one in asking]
    assert len(dashboards()) == len({dashboard["uid"] for dashboard in dashboards().values()})


def test_dashboards_have_room_for_each_panel() -> None:
    """No two have one number or lie upon each other, and all are within the 24 columns."""
    for dashboard in dashboards().values():
        panels = dashboard["panels"]
        assert len(panels) == len({panel["id"] for panel in panels})
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in panels)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells))
        assert set(range(24)) == {x for x, _ in cells}


def test_tenant_data_source() -> None:
    """Its fields are Grafana's, its values compose's, and its connections fit into what tenant-login.sql allows."""
    source = data_source("tenant")
    login = (OPS / "tenant-login.sql").read_text(encoding="utf-8")
    given = services()["grafana"]["environment"]

    assert {"name", "uid", "type", "access", "url", "user", "secureJsonData", "editable", "jsonData"} == set(source)
    assert source["jsonData"].keys() <= POSTGRESQL_FIELDS
    assert {"password": "$TENANT_PASSWORD"} == source["secureJsonData"]
    assert {"TENANT_LOGIN", "TENANT_PASSWORD"} <= given.keys()
    assert "$TENANT_LOGIN" == source["user"]
    assert "db:5432" == source["url"]
    assert f"CREATE DATABASE {source['jsonData']['database']} " in (OPS / "database.sql").read_text(encoding="utf-8")
    (connections,) = re.findall(r"\\set connections (\d+)", login)
    (idle,) = re.findall(r"\\set idle (\d+)min", login)
    assert 0 < source["jsonData"]["maxOpenConns"] < int(connections)
    assert 0 < source["jsonData"]["connMaxLifetime"] < int(idle) * 60


def test_metrics_are_as_prometheus_likes_them(promtool: str, exposition: str) -> None:
    """Valid in the text format, and named and explained by its conventions, says promtool."""
    done = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, text=True, check=False)

    # What is ours: Python's own collectors have faults of their own.
    assert [] == [line for line in done.stderr.splitlines() if not line.startswith(("python_", "process_"))]


def test_prometheus_accepts_its_configuration(promtool: str) -> None:
    """There is no fault in prometheus.yml and the rules that it names, says promtool."""
    assert "SUCCESS" in run(promtool, "check", "config", "prometheus.yml", cwd=OPS / "prometheus")


def test_alerts_fire_as_they_should(promtool: str) -> None:
    """Each alert fires in its case, and nothing fires on a healthy service, says promtool."""
    assert "SUCCESS" in run(promtool, "test", "rules", *RULE_TESTS, cwd=OPS / "prometheus")


def test_dashboard_queries_are_valid(promtool: str, tmp_path: Path) -> None:
    """Every query of the dashboards is PromQL, says promtool."""
    rules = [{"record": f"query:{n}", "expr": expr} for n, expr in enumerate(dashboard_expressions())]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))

    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", "queries.yml", cwd=tmp_path)
