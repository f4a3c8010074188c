"""`traksense validate` for real: it passes on a sound stack, fails on a broken one, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest
import trio

from tests.acceptance.validated import NAMES, PATIENT, SLOW, Stack, failures, findings, slow, statuses
from tests.command_line import Outcome, argv, environment
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.store.migrate import migrate
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import free_port, open_service
from traksense.tools.validate.payloads import numbers
from traksense.tools.validate.run import CHECKS
from traksense.tools.validate.target import utc_now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess


@asynccontextmanager
async def open_stack(database: str, broker: BrokerProcess, client_id: str, log_dir: Path) -> AsyncIterator[Stack]:
    """A service on the shared broker."""
    env = {
        "DATABASE_URL": database,
        "MQTT_URL": broker.url,
        "MQTT_CLIENT_ID": client_id,
        # The shared broker would keep all that later tests publish for this session.
        "MQTT_SESSION_EXPIRY": "60",
    }
    async with open_service(env, log_dir) as service:
        await service.wait_ready()
        yield Stack(database, env | {"METRICS_PORT": service.env["METRICS_PORT"]}, service)


@pytest.fixture
async def stack(
    database: str, broker: BrokerProcess, unique: Callable[[str], str], tmp_path: Path
) -> AsyncIterator[Stack]:
    """With a database of its own."""
    async with open_stack(database, broker, unique("validated"), tmp_path) as opened:
        yield opened


@pytest.fixture
def timescale(unique: Callable[[str], str]) -> Iterator[str]:
    """The superuser's DSN of a fresh, migrated database with TimescaleDB."""
    server = os.environ.get("TRAKSENSE_TEST_TIMESCALE_DSN")
    if not server:
        pytest.skip("no TimescaleDB: TRAKSENSE_TEST_TIMESCALE_DSN is not set")
    name = unique("validated")
    dsn = urlsplit(server)._replace(path=f"/{name}").geturl()
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        try:
            with psycopg.connect(dsn, autocommit=True) as inside:
                inside.execute("CREATE EXTENSION timescaledb")
            asyncio.run(migrate(dsn, log=logging.getLogger(__name__)))
            yield dsn
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_validate_passes_on_timescaledb(
    timescale: str, broker: BrokerProcess, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """With aggregates that the extension keeps, too: nobody waits a minute for them."""
    async with open_stack(timescale, broker, unique("validated"), tmp_path) as stack:
        outcome = await stack.validate("--json", *PATIENT)
        if slow(outcome):
            outcome = await stack.validate("--json", *PATIENT)

    assert dict.fromkeys(NAMES, "ok") == statuses(outcome)


async def test_validate_passes_and_leaves_nothing(stack: Stack) -> None:
    """On a sound stack every check is made and passes, the figures keep the seed's targets, and no row stays. If the
    machine is too busy, twice, only speed fails.
    """
    outcome = await stack.validate("--json", *PATIENT)
    if slow(outcome):
        outcome = await stack.validate("--json", *PATIENT)
    assert {} == stack.rows()
    if slow(outcome):
        assert dict.fromkeys(NAMES, "ok") == statuses(outcome) | {"throughput": "ok", "latency": "ok"}
        return

    assert [] == failures(outcome)
    assert dict.fromkeys(NAMES, "ok") == statuses(outcome)
    assert (0, "") == (outcome.status, outcome.stderr)
    assert findings(outcome, "throughput")[0]["values"]["points_per_second"] >= 5_000
    assert findings(outcome, "latency")[0]["values"]["p50_seconds"] <= 1.0


async def test_validate_is_not_confused_by_others(stack: Stack, unique: Callable[[str], str]) -> None:
    """Two validations and a fleet at once on one stack: both pass, in plain lines, and the fleet's rows stay."""
    outcomes: list[Outcome] = []
    fleet = unique("fleet")
    sent = 0

    async def validate() -> None:
        outcomes.append(await stack.validate(*PATIENT))

    with trio.fail_after(HANG_SECONDS):
        async with open_publisher(load(stack.env).broker, client_id=fleet) as publisher, trio.open_nursery() as nursery:
            nursery.start_soon(validate)
            nursery.start_soon(validate)
            while len(outcomes) < 2:
                await publisher.publish(f"traksense/{fleet}/site/device/telem", numbers(utc_now(), {"p": float(sent)}))
                sent += 1
                await trio.sleep(0.002)
            await publisher.drain()
        await stack.wait_for_measures(sent)

    assert {
        "traksense.measure": sent,
        "traksense.series": 1,
        "traksense.device": 1,
        "traksense.tenant": 1,
    } == stack.rows()
    for outcome in outcomes:
        # In the seed's manner: headings, a line for each finding, a verdict; no colours into a pipe.
        lines = outcome.text.splitlines()
        assert outcome.stdout.isascii()
        assert b"\x1b" not in outcome.stdout
        assert "CHECK 1: Connectivity" in lines
        assert f"CHECK {len(CHECKS) + 1}: Prometheus Metrics" in lines
        # Two at once with other tests beside them: the figures are there; whether they are good is another test's.
        assert any("Points stored: " in line and "10000 points in " in line for line in lines)
        assert [] == [line for line in lines if line.startswith("[FAIL]") and not SLOW.search(line)]
        assert lines[-2].startswith("ALL CHECKS PASSED" if outcome.status == 0 else "CHECKS FAILED")


async def test_validate_keeps_what_it_made_if_told(stack: Stack) -> None:
    """With `--keep` the rows stay, and the report names the tenants to look for, and a command that removes them."""
    outcome = await stack.validate("--json", "--keep", "--points", "5000", *PATIENT)

    tenant = json.loads(outcome.stdout)["tenant"]
    assert [] == failures(outcome) or slow(outcome)
    assert "skip" == statuses(outcome)["cleanup"]
    assert f"kept: {tenant} and {tenant}-b" == findings(outcome, "cleanup")[0]["figure"]
    assert stack.rows(tenant)["traksense.measure"] > 5000
    assert 14 == stack.rows(tenant)["ingest_errors"]
    stack.change(re.findall('psql -1 -c "(.*)"', findings(outcome, "cleanup")[0]["next_step"])[0])
    assert {} == stack.rows()


@pytest.mark.parametrize(
    ("variable", "what"), [("METRICS_PORT", "Service"), ("MQTT_URL", "MQTT connect"), ("DATABASE_URL", "Database")]
)
async def test_validate_says_what_is_away(stack: Stack, variable: str, what: str) -> None:
    """Without service, broker or database one line says so, no other check is run, nothing is published, exit 1."""
    port = free_port()
    away = {
        "METRICS_PORT": str(port),
        "MQTT_URL": f"mqtt://127.0.0.1:{port}",
        "DATABASE_URL": f"postgresql://user:geheim@127.0.0.1:{port}/traksense",
    }
    outcome = await stack.validate("--json", **{variable: away[variable]})

    failed = [finding for finding in findings(outcome, "connectivity") if finding["status"] == "fail"]
    assert 1 == outcome.status
    assert [what] == [finding["what"] for finding in failed]
    assert str(port) in failed[0]["figure"]
    assert failed[0]["next_step"]
    assert {"connectivity": "fail"} | dict.fromkeys(NAMES[1:-1], "not_run") == statuses(outcome)
    assert b"geheim" not in outcome.stdout + outcome.stderr.encode()
    assert {} == stack.rows()


@pytest.mark.parametrize(
    ("variable", "value", "said", "step"),
    [
        ("DATABASE_URL", "{dsn}?default_transaction_read_only=on", "read-only, such as a standby", "DATABASE_URL must"),
        ("MQTT_TOPICS", "traksense/acme/+/+/telem", "does not subscribe to traksense/validate-", "put traksense/+/+/"),
    ],
)
async def test_validate_publishes_nothing_that_it_could_not_remove_or_find(
    stack: Stack, variable: str, value: str, said: str, step: str
) -> None:
    """On a standby it would see all that the service stores, and leave it there; a tenant that nobody reads tells
    nothing.
    """
    outcome = await stack.validate("--json", **{variable: value.format(dsn=stack.dsn)})

    (failed,) = (finding for finding in findings(outcome, "connectivity") if finding["status"] == "fail")
    assert 1 == outcome.status
    assert said in failed["figure"]
    assert failed["next_step"].startswith(step)
    assert {"connectivity": "fail"} | dict.fromkeys(NAMES[1:-1], "not_run") == statuses(outcome)
    assert {} == stack.rows()


async def test_validate_ends_with_its_session_and_cleans_up(stack: Stack) -> None:
    """Somebody ends it in mid-run: one failure says what to do, the rest could not be checked, nothing is left."""
    outcomes: list[Outcome] = []

    async def validate() -> None:
        outcomes.append(await stack.validate("--json", "--points", "100000", *PATIENT))

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(validate)
            await stack.wait_for_measures(1000)
            stack.change(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'traksense validate' "
                "AND datname = current_database()"
            )

    (outcome,) = outcomes
    found = statuses(outcome)
    (failed,) = (name for name, status in found.items() if status == "fail")
    assert "the connection to the database was lost" in findings(outcome, failed)[-1]["figure"]
    assert findings(outcome, failed)[-1]["next_step"].startswith("something ended that session, or the server: if GET")
    rest = NAMES[NAMES.index(failed) + 1 : -1]
    assert dict.fromkeys(rest, "not_run") | {"cleanup": "ok"} == {name: found[name] for name in (*rest, "cleanup")}
    assert {} == stack.rows()


async def test_validate_ends_with_its_broker(
    database: str, own_broker: OwnBroker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """Killed in mid-run: one check fails and says what to do, nobody's rights are doubted, the rest is not run."""
    broker = own_broker()
    outcomes: list[Outcome] = []
    async with open_stack(database, broker, unique("validated"), tmp_path) as stack:

        async def validate() -> None:
            outcomes.append(await stack.validate("--json", "--points", "100000", "--patience", "3"))

        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(validate)
                await stack.wait_for_measures(1000)
                broker.kill()

    (outcome,) = outcomes
    found = statuses(outcome)
    failed, cleanup = (name for name, status in found.items() if status == "fail")
    assert "cannot connect: Connection refused" in findings(outcome, failed)[-1]["figure"]
    assert findings(outcome, failed)[-1]["next_step"].startswith("is the broker running?")
    rest = NAMES[NAMES.index(failed) + 1 : -1]
    assert dict.fromkeys(rest, "not_run") == {name: found[name] for name in rest}
    # What the broker keeps may come when it is back.
    assert "cleanup" == cleanup
    assert "more may come" in findings(outcome, cleanup)[0]["figure"]
    assert b"operators' user" not in outcome.stdout


async def test_validate_tells_of_what_a_killed_run_has_left(stack: Stack) -> None:
    """With the way to remove it; the run itself is judged by its own."""
    with trio.fail_after(HANG_SECONDS):
        process = await trio.lowlevel.open_process(
            argv("validate", "--points", "10000000"), env=environment(stack.env), stdout=subprocess.DEVNULL
        )
        await stack.wait_for_measures(1000)
        process.kill()
        await process.wait()
    outcome = await stack.validate("--json")

    own, earlier = findings(outcome, "cleanup")
    assert ("ok", "skip") == (own["status"], earlier["status"])
    assert earlier["figure"].startswith("left by earlier runs, unless they are running now: validate-")
    assert json.loads(outcome.stdout)["tenant"] not in earlier["figure"]
    stack.change(re.findall('psql -1 -c "(.*)"', earlier["next_step"])[0])
    assert {} == stack.rows()


async def test_validate_fails_where_the_database_was_tampered_with(stack: Stack) -> None:
    """Dead letters that lose a byte, a wrong average, a hole in a tenant's wall: just these checks fail."""
    stack.change(
        """
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN NEW.payload := substr(NEW.payload, 2); RETURN NEW; END $$
        """,
        "CREATE TRIGGER spoil BEFORE INSERT ON ingest_errors FOR EACH ROW EXECUTE FUNCTION spoil()",
        "ALTER VIEW ts_measure_1m RENAME TO right_minutes",
        """
        CREATE VIEW ts_measure_1m WITH (security_barrier) AS
            SELECT bucket, tenant_id, site_id, device_id, point_id, v_avg + 1 AS v_avg, v_min, v_max, v_count
            FROM right_minutes
        """,
        "CREATE POLICY hole ON device_event USING (true)",
        """
        CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN NEW.event_type := upper(NEW.event_type); RETURN NEW; END $$
        """,
        "CREATE TRIGGER shout BEFORE INSERT ON device_event FOR EACH ROW WHEN (NEW.event_type = 'boot') "
        "EXECUTE FUNCTION shout()",
    )
    outcome = await stack.validate("--json", "--patience", "5", "--points", "5000")

    failed = {name for name, status in statuses(outcome).items() if status == "fail"}
    assert {"dlq", "events", "out_of_order", "tenant_isolation"} == failed - {
        "throughput",
        "latency",
    }  # this machine may be busy
    assert re.fullmatch(
        r"stored as .*\"BOOT\".*; expected \[\"site\", \"\w+\", \"boot\", \"\d+-[^(]*",
        findings(outcome, "events")[0]["figure"],
    )
    assert "device_event shows" in findings(outcome, "tenant_isolation")[0]["figure"]
    for name in failed:
        assert [] == [f["what"] for f in findings(outcome, name) if f["status"] == "fail" and not f["next_step"]]
    assert 1 == outcome.status
    assert {} == stack.rows()


async def test_validate_cleans_up_although_its_report_cannot_be_written(stack: Stack, tmp_path: Path) -> None:
    """A disk that is full after the first kilobytes: one line, exit 1, and nothing of ours stays."""
    command = ["sh", "-c", 'ulimit -f 2; exec "$@" >"$REPORT"', "sh", *argv("validate")]
    with trio.fail_after(HANG_SECONDS):
        done = await trio.run_process(
            command, env=environment(stack.env) | {"REPORT": str(tmp_path / "report")}, capture_stderr=True, check=False
        )

    assert (1, b"traksense: cannot write the output: File too large\n") == (done.returncode, done.stderr)
    assert "CHECK 2" in (tmp_path / "report").read_text()
    assert {} == stack.rows()


@pytest.mark.usefixtures("hangup_has_its_meaning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_validate_interrupted_cleans_up(stack: Stack, number: signal.Signals) -> None:
    """A signal in the middle of the throughput test ends the checks; what is under way is waited for, then removed."""
    with trio.fail_after(HANG_SECONDS):
        process = await trio.lowlevel.open_process(
            argv("validate", "--points", "10000000"), env=environment(stack.env), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        said = b""
        while b"CHECK 5" not in said:
            said += await process.stdout.receive_some()
        await stack.wait_for_measures(1000)
        stack.service.send_signal(signal.SIGSTOP)
        process.send_signal(number)
        while b"Clean-up" not in said:
            more = await process.stdout.receive_some()
            assert more, "it ended without"
            said += more
        with trio.move_on_after(2):
            await process.wait()
        assert process.returncode is None
        if number == signal.SIGHUP:
            process.send_signal(number)  # first it is the shell's, then the kernel's
        stack.service.send_signal(signal.SIGCONT)
        while more := await process.stdout.receive_some():
            said += more
        status = await process.wait()

    lines = said.decode().splitlines()
    assert 130 == status
    assert "[NOT RUN] Throughput Smoke Test: interrupted" in lines
    assert "[NOT RUN] Prometheus Metrics: interrupted" in lines
    assert any(line.startswith("[OK] Clean-up: ") for line in lines)
    assert lines[-2].startswith("INTERRUPTED")
    assert {} == stack.rows()
