"""`traksense validate` where everything is as installed by the manual, with ops/database.sql and ops/mosquitto.acl."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import yaml

from tests.acceptance.validated import (
    PATIENT,
    Stack,
    failures,
    findings,
    slow,
    statuses,
    wrong,
)
from tests.command_line import run_command
from tests.patience import HANG_SECONDS
from traksense.tools.stack import BrokerOptions, open_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess, PostgresProcess, Samples

OPS = Path(__file__).parents[2] / "ops"
SCRAPE_SECONDS = 5
HOURS = 2


@pytest.fixture
def acl_broker(own_broker: OwnBroker, stack_directory: Path, unique: Callable[[str], str]) -> BrokerProcess:
    """A Mosquitto with the shipped access control list; each user's password is `word`."""
    acl = stack_directory / unique("acl")
    acl.write_bytes((OPS / "mosquitto.acl").read_bytes())
    acl.chmod(0o600)
    users = dict.fromkeys(("traksense", "traksense-operator"), "word")
    return own_broker(options=BrokerOptions(users=users, extra_config=(f"acl_file {acl}",)))


@pytest.fixture
def databases(lone_postgres: PostgresProcess) -> PostgresProcess:
    """A server with the roles and the database of ops/database.sql; each password is `word`."""
    psql = shutil.which(lone_postgres.bindir / "psql") or shutil.which("psql")
    assert psql is not None
    subprocess.run(
        [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", lone_postgres.dsn, "-f", OPS / "database.sql"],
        env={"OWNER_PASSWORD": "word", "SERVICE_PASSWORD": "word"},
        check=True,
    )
    return lone_postgres


@pytest.fixture
async def installed(acl_broker: BrokerProcess, databases: PostgresProcess, tmp_path: Path) -> AsyncIterator[Stack]:
    """The service with a login of its own and strict provisioning, and the operator's environment."""
    place = f"{databases.host}:{databases.port}/traksense"
    operator = {"DATABASE_URL": f"postgresql://traksense_owner:word@{place}"}
    with trio.fail_after(HANG_SECONDS):
        assert 0 == (await run_command(operator, "migrate")).status
    common = {"MQTT_URL": acl_broker.url, "MQTT_PASSWORD": "word", "INGEST_PROVISIONING": "strict"}
    login = {"DATABASE_URL": f"postgresql://traksense_service:word@{place}", "MQTT_USERNAME": "traksense"}
    async with open_service(common | login, tmp_path) as service:
        await service.wait_ready()
        env = common | operator | {"MQTT_USERNAME": "traksense-operator", "METRICS_PORT": service.env["METRICS_PORT"]}
        yield Stack(databases.dsn_of("traksense"), env, service)


async def test_validate_finds_a_user_who_may_not_publish(installed: Stack) -> None:
    """With the service's user the broker says 0x87; the next step names the operators' user, and nothing is left."""
    outcome = await installed.validate("--json", *PATIENT, MQTT_USERNAME="traksense")

    figure, step = wrong(outcome)
    assert figure.endswith("reason code 0x87 not authorized")
    assert "operators' user" in step
    assert "ops/mosquitto.acl" in step
    assert "ok" == statuses(outcome)["cleanup"]
    assert {} == installed.rows()


async def test_validate_passes_as_installed_and_sets_off_no_alert(
    installed: Stack, promtool: str, tmp_path: Path
) -> None:
    """The recommended owner, the operators' user and strict provisioning: every check is made and passes. Three such
    runs within the hour, on a service with nothing else to do, set off no alert.
    """
    scrapes: list[Samples] = [await installed.service.metrics()]

    async def scrape() -> None:
        while True:
            scrapes.append(await installed.service.metrics())
            await trio.sleep(SCRAPE_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrape)
        outcome = await installed.validate("--json", *PATIENT)
        nursery.cancel_scope.cancel()
    scrapes.append(await installed.service.metrics())

    assert [] == failures(outcome) or slow(outcome)
    assert "ok" == statuses(outcome)["tenant_isolation"]
    assert [] == json.loads(outcome.stdout)["not_checked"]
    assert "As traksense_readonly" == findings(outcome, "tenant_isolation")[0]["what"]
    assert {} == installed.rows()
    assert 1 == scrapes[-1].value("ingest_points_conflicting_total")
    assert "SUCCESS" in no_alert(promtool, scrapes, tmp_path)


def no_alert(promtool: str, scrapes: list[Samples], directory: Path) -> str:
    """What promtool says of the claim that no alert fires, where these scrapes come three times in an hour."""
    counters = {key for samples in scrapes for key in samples if key[0].startswith("ingest_") and is_counter(key[0])}
    series = []
    for name, labels in sorted(counters):
        run = [samples.get((name, labels), 0.0) for samples in scrapes]
        values = [f"{run[0]:g}x{20 * 60 // SCRAPE_SECONDS}"]
        for repeat in range(3):
            values += [f"{run[0] + repeat * (run[-1] - run[0]) + value - run[0]:.6f}" for value in run]
            rest = (20 * 60 if repeat < 2 else HOURS * 3600) // SCRAPE_SECONDS
            values.append(f"{run[0] + (repeat + 1) * (run[-1] - run[0]):.6f}x{rest}")
        selector = ", ".join(f'{label}="{value}"' for label, value in (*labels, ("job", "traksense")))
        series.append({"series": f"{name}{{{selector}}}", "values": " ".join(values)})
    test: dict[str, Any] = {
        "interval": f"{SCRAPE_SECONDS}s",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{HOURS}h]))',
                "eval_time": f"{HOURS}h",
                "exp_samples": [],
            }
        ],
    }
    rules = str(OPS / "prometheus" / "alerts.yml")
    file = directory / "validated.yml"
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run(
        [promtool, "test", "rules", file], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def is_counter(name: str) -> bool:
    """Whether this sample only grows."""
    return name.endswith(("_total", "_bucket", "_count", "_sum"))
