"""Every block of README and manuals is run: here, as it stands, on a stack of its own, or by the file that is named."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import attrs
import pytest
import trio

from tests.command_line import environment
from tests.manuals import ROOT, block_of, blocks, blocks_of
from tests.patience import HANG_SECONDS
from traksense.cli import main
from traksense.config import load
from traksense.tools.shards.retire import has_session
from traksense.tools.stack import free_port, open_service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import OwnPostgres
    from traksense.tools.stack import BrokerProcess, PostgresProcess

DRAWING: Final = "a drawing"
NOT_HERE: Final = (
    "containers or a cluster, which the tests do not have: its files are held together by test_ops_compose"
)

ELSEWHERE: Final = {
    "README.md devices ─▶": DRAWING,
    "README.md sh ops/demo.sh": "ops/bare.sh",
    "README.md sh ops/test.sh": "ops/bare.sh",
    # The same blocks, which that file makes sure of.
    "README.pt-BR.md": "tests/unit/test_documentation.py",
    "CONTRIBUTING.md sh ops/test.sh": "tests/unit/test_documentation.py",
    "adapters.md": "tests/unit/adapters/test_adapters_manual.py",
    "install-debian.md": "ops/bare.sh",
    "install-containers.md umask": "tests/unit/test_ops_compose.py",
    "install-containers.md docker": NOT_HERE,
    "install-containers.md test ! -e ops/.env": NOT_HERE,
    "install-containers.md mosquitto_pub": NOT_HERE,
    "install-kubernetes.md": NOT_HERE,
    "uninstall.md": "ops/bare.sh",
    "operations.md docker compose": NOT_HERE,
    "operations.md git pull": "ops/bare.sh",
    "operations.md install -m 755": "ops/bare.sh",
    "operations.md cat >/etc/cron.d": "ops/bare.sh",
    "operations.md . /etc/traksense/passwords\ndump": "ops/bare.sh",
    "operations.md dump=/var/backups": "ops/bare.sh",
    "operations.md env -C / runuser": "ops/bare.sh",
    "reading.md SELECT": "tests/integration/test_reading.py",
    "reading.md WITH": "tests/integration/test_reading.py",
    "reading.md -- the newest reading": "tests/integration/test_read_back.py",
    "reading.md docker compose": NOT_HERE,
    "reading.md class TenantMiddleware": "tests/integration/test_read_back.py",
    "reading.md with transaction.atomic": "tests/integration/test_read_back.py",
    "reading.md coalesce": "tests/contract/test_store.py",
    "scale-out.md devices of tenants": DRAWING,
}
"""Which file runs the blocks that begin so."""

HERE: Final = (
    "lifecycle.md LIFECYCLE_RETAIN_RAW",
    "lifecycle.md traksense --env-file",
    "lifecycle.md policy",
    "operations.md OWNER_PASSWORD=",
    "operations.md SET app.tenant_id",
    "operations.md psql -X -v ON_ERROR_STOP=1 -d traksense -f ops/tenant-walls.sql",
    "operations.md SELECT pg_terminate_backend",
    "operations.md MQTT_TENANTS=",
    "operations.md traksense shards retire",
    "operations.md $ curl",
    "operations.md traksense dlq count",
    "operations.md . /etc/traksense/passwords\nletter",
    "operations.md traksense --env-file /etc/traksense/operator.env dlq purge",
    "operations.md INSERT INTO traksense.tenant",
    "operations.md psql -X -d traksense -c",
    "operations.md export PGOPTIONS=",
    'operations.md psql "$DATABASE_URL" -c "DELETE',
    'operations.md psql "$DATABASE_URL" -c "SET lock_timeout',
    "operations.md traksense validate",
    "operations.md dump=$(sh ops/backup.sh",
    "operations.md SELECT point_id, count(*)",
    "performance.md traksense bench",
    "reading.md CREATE ROLE",
    "reading.md mkdir",
    "scale-out.md MQTT_TENANTS_FILE=",
)
"""Which blocks are run in this file."""


FIRST_ROW: Final = """
mosquitto_pub -q 1 -t traksense/test_tenant/factory/device123/telem -m '{"schema": "v1", "ts": "2025-10-07T15:30:00Z",
    "points": [{"name": "temp_agua", "v": 7.3, "u": "°C"}, {"name": "compressor_1_on", "v": true, "t": "bool"}]}'
psql -d traksense -c "SELECT count(*) FROM ts_measure WHERE tenant_id = 'test_tenant'"
"""

LETTERS: Final = """
INSERT INTO ingest_errors (id, tenant_id, topic, payload, reason, detail, digest)
OVERRIDING SYSTEM VALUE SELECT id, 'acme', 'traksense/acme/factory/press-1/telem', 'temp=7.3', 'parse_error', 'no JSON',
    decode(md5(id::text), 'hex')
FROM unnest(ARRAY[4711, 4712]) AS n (id);
INSERT INTO ingest_errors (tenant_id, topic, payload, reason, digest, ts)
VALUES ('acme', 'traksense/acme/factory/new/telem', '{}', 'unknown_device', decode(md5('n'), 'hex'), now()),
    ('acme', 'traksense/acme/factory/old/telem', '{}', 'parse_error', decode(md5('o'), 'hex'), now() - interval '15 d');
"""


@attrs.frozen
class Stack:
    """Servers on ports of their own, which the programs of the manuals find as if they were the default ones."""

    place: Path
    env: dict[str, str]
    done: set[str] = attrs.field(factory=set)

    def take(self, beginning: str) -> str:
        """The text of the block that begins so, which is about to be run."""
        self.done.add(beginning)
        return block_of(beginning).text

    def installed(self, beginning: str) -> str:
        """The same, for an installation whose files are in this place."""
        return self.take(beginning).replace("/etc/traksense", str(self.place))

    async def run(self, beginning: str, then: str = "", **env: str) -> str:
        """A shell runs the block that begins so, and what somebody types behind it; what it printed."""
        return await self.shell(self.take(beginning).rstrip("\n") + then, **env)

    async def sql(self, beginning: str, then: str = "", **env: str) -> str:
        """The same for psql."""
        return await self.psql(self.take(beginning) + then, **env)

    async def shell(self, commands: str, **env: str) -> str:
        """They have to succeed; what they printed."""
        return await self._command(["sh", "-eu", "-c", commands], b"", env)

    async def psql(self, statements: str, **env: str) -> str:
        """The same for psql."""
        return await self._command(["psql", "-XqAt", "-v", "ON_ERROR_STOP=1"], statements.encode(), env)

    async def _command(self, command: list[str], stdin: bytes, env: Mapping[str, str]) -> str:
        with trio.fail_after(HANG_SECONDS):
            done = await trio.run_process(
                command,
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=self.place,
                env=self.env | dict(env),
            )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}{done.stdout.decode()}"
        return done.stdout.decode()


@pytest.fixture
def stack(own_postgres: OwnPostgres, broker: BrokerProcess, tmp_path: Path) -> Stack:
    postgres = own_postgres()
    postgres._ask(lambda db: db.execute("ALTER ROLE postgres PASSWORD 'postgres'"))
    return Stack(tmp_path, _environment(postgres, broker, tmp_path))


def _environment(postgres: PostgresProcess, broker: BrokerProcess, place: Path) -> dict[str, str]:
    """PATH has this traksense, this PostgreSQL's psql and Mosquitto's clients; each knows its server's port."""
    programs = place / "bin"
    programs.mkdir()
    (programs / "traksense").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m traksense "$@"\n')
    (programs / "traksense").chmod(0o755)
    for program in ("psql", "pg_dump", "pg_restore"):
        (programs / program).symlink_to(postgres.bindir / program)
    client = os.environ.get("TRAKSENSE_MOSQUITTO_PUB") or shutil.which("mosquitto_pub")
    assert client is not None, "mosquitto_pub is missing: run the tests with ops/test.sh, or install mosquitto-clients"
    (programs / "mosquitto_pub").symlink_to(client)
    settings = place / "config"
    settings.mkdir()
    (settings / "mosquitto_pub").write_text(f"-h 127.0.0.1\n-p {broker.port}\n")
    (place / "ops").symlink_to(ROOT / "ops")
    return environment({}) | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CONFIG_HOME": str(settings),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGUSER": "postgres",
        "PGPASSWORD": "postgres",
        "MQTT_URL": broker.url,
        "METRICS_PORT": str(free_port()),
    }


def test_every_block_is_run_somewhere() -> None:
    """Here, or in the file that is named, which takes it from the page. A block of which nobody knows fails."""
    beginnings = [*HERE, *ELSEWHERE]
    known = {block.name: [one for one in beginnings if block.name.startswith(one)] for block in blocks()}

    assert {} == {name: found for name, found in known.items() if len(found) != 1}
    assert set(beginnings) == {one for found in known.values() for one in found}
    for beginning, path in ELSEWHERE.items():
        if path not in (DRAWING, NOT_HERE):
            assert beginning in taken_in(path), f"{path} does not take {beginning!r}"


def taken_in(path: str) -> set[str]:
    """The blocks that a file of tests asks for by name, or that a script takes as pages or has in words of its own."""
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".sh"):
        commands = re.sub(r"^ *#.*", "", text, flags=re.MULTILINE)
        pages = {name for name in ELSEWHERE if f"blocks {name.split()[0]}" in commands}
        # Of a page of which it does not run all, the blocks that are fenced as commands.
        whole = {one for one in pages if " " not in one or all(block.language == "sh" for block in blocks_of(one))}
        return whole | {block.name.rstrip() for block in blocks() if block.text.rstrip() in commands}
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = ("block_of", "blocks_of")
    arguments = [argument for call in calls if getattr(call.func, "id", "") in names for argument in call.args]
    return {str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)}


def test_bench_takes_what_the_manual_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands take an hour: here their arguments are read, and no more."""
    from traksense.commands import bench

    monkeypatch.setattr(bench, "main", lambda arguments: 10 * arguments.rounds + len(arguments.only))
    assert [33, 12] == [main(line.split()[1:]) for line in block_of("performance.md traksense bench").text.splitlines()]


async def test_the_manuals_run_as_they_are_written(stack: Stack, tmp_path: Path) -> None:
    """From roles and database to an empty one, on one stack."""
    for _ in range(2):  # safe to repeat
        await stack.run("operations.md OWNER_PASSWORD=")
    owner = _login(stack, "traksense_owner")
    await stack.shell("traksense migrate", **owner)
    service = stack.env | _login(stack, "traksense_service")

    async with open_service(service, tmp_path / "service") as process:
        await process.wait_ready()
        await _first_row(stack)
        await _readers(stack)
        await _dead_letters(stack, owner)
        await _devices(stack, owner)
        await _corrected_letter(stack, owner)
        await _read_only(stack)
        told = json.loads(stack.take("operations.md $ curl").split("\n", 1)[1])
        assert json.loads((await process.get("/readyz"))[1])["conditions"].keys() == told["conditions"].keys()
        await _validate(stack, owner)
        await _owners_dump(stack, owner)
        await _debian_grafana(stack)
        await stack.run('operations.md psql "$DATABASE_URL" -c "SET lock_timeout', **owner)
        assert await stack.psql("SELECT count(*) FROM traksense.device", **owner) == "0\n"
        (stack.place / "operator.env").write_text(stack.take("lifecycle.md LIFECYCLE_RETAIN_RAW"))
        planned = await stack.shell(stack.installed("lifecycle.md traksense --env-file"), **owner)
        assert set(stack.take("lifecycle.md policy").splitlines()) - {"…"} <= set(planned.splitlines())
        await _replicas(stack, owner)

    assert {*HERE} - {"performance.md traksense bench"} == stack.done


async def _first_row(stack: Stack) -> None:
    out = ""
    with trio.fail_after(HANG_SECONDS):
        # Whoever types it is slower than the first batch; a repeat stores nothing.
        while "     2\n" not in out:
            out = await stack.shell(FIRST_ROW)


async def _readers(stack: Stack) -> None:
    await stack.run("operations.md psql -X -v ON_ERROR_STOP=1 -d traksense -f ops/tenant-walls.sql")
    await stack.sql("reading.md CREATE ROLE")
    await stack.sql("operations.md SELECT pg_terminate_backend")
    for role in ("dashboard", "grafana"):
        reader = {"PGOPTIONS": f"-c role={role}", "PGDATABASE": "traksense"}
        count = "SELECT count(*) FROM ts_measure;"
        assert await stack.psql(count, **reader) == "0\n"
        set_tenant = block_of("operations.md SET app.tenant_id").text.replace("acme", "test_tenant")
        assert await stack.psql(set_tenant + count, **reader) == "2\n"
        assert await stack.sql("operations.md SET app.tenant_id", count, **reader) == "0\n"


async def _dead_letters(stack: Stack, owner: Mapping[str, str]) -> None:
    await stack.psql(LETTERS, PGDATABASE="traksense")
    out = await stack.run("operations.md traksense dlq count", **owner)
    assert "4711" in out
    assert (stack.place / "payload.bin").read_bytes() == b"temp=7.3"
    assert "published 2 of 2 dead letters" in out
    assert "would publish 1 of 1 dead letter" in out
    assert "deleted 1 dead letter" in out


async def _devices(stack: Stack, owner: Mapping[str, str]) -> None:
    await stack.sql("operations.md INSERT INTO traksense.tenant", **owner)
    insert = block_of("operations.md INSERT INTO traksense.tenant").text.replace("device123", "press-1")
    delete, rename = stack.take('operations.md psql "$DATABASE_URL" -c "DELETE').splitlines()
    await stack.psql(insert, **owner)
    assert await stack.shell(rename, **owner) == "UPDATE 1\n"
    await stack.psql(insert, **owner)
    assert await stack.shell(delete, **owner) == "DELETE 1\n"
    devices = "SELECT device_id FROM traksense.device WHERE tenant_id = 'acme' ORDER BY device_id"
    assert (await stack.psql(devices, **owner)).split() == ["device123", "press-2"]
    await stack.sql("operations.md SELECT point_id, count(*)", **owner)


async def _corrected_letter(stack: Stack, owner: Mapping[str, str]) -> None:
    """Somebody corrects the file; its point is stored, then the letter is deleted. What is still wrong is not
    published.
    """
    good = '{"schema": "v1", "ts": "2025-10-07T15:30:00Z", "points": [{"name": "temp", "v": 7.3}]}'
    editor = stack.place / "bin" / "nano"
    (stack.place / "passwords").write_text("OPERATOR_PASSWORD=word\n")
    for name in ("operator.env", "ingest.env"):
        (stack.place / name).touch()
    send = stack.installed("operations.md . /etc/traksense/passwords\nletter").rstrip()
    send = send.replace("TOPIC", "traksense/acme/factory/press-3/telem").replace(" ID", " 4711")
    delete = stack.installed("operations.md traksense --env-file /etc/traksense/operator.env dlq purge").rstrip()
    points = "SELECT count(*) FROM ts_measure WHERE device_id = 'press-3'"
    look = f'until [ "$(psql -XAt -c "{points}")" = 1 ]; do :; done'
    commands = f"{send} && {look} && {delete.replace(' ID', ' 4711')}"
    letter = "SELECT count(*) FROM ingest_errors WHERE id = 4711"
    for text, left, named in (("temp=7.4", "1\n", ""), (good, "0\n", "nano --softwrap")):
        editor.write_text(f"#!/bin/sh\nfor file; do :; done\nprintf '%s' '{text}' >\"$file\"\n")
        editor.chmod(0o755)
        letters = Path(tempfile.mkdtemp(dir=stack.place))
        await stack.shell(f"{commands} || true", EDITOR=named, TMPDIR=str(letters), **owner)
        assert len([*letters.iterdir()]) == int(left), "the file stays until it is right"
        assert await stack.psql(letter, **owner) == left


async def _read_only(stack: Stack) -> None:
    """For everybody at once, so that a session could not change it without the manual's exception."""
    set_read_only = "SET default_transaction_read_only = on;"
    await stack.psql(
        f"ALTER ROLE traksense_service {set_read_only} ALTER DATABASE traksense {set_read_only}"
        f"ALTER SYSTEM {set_read_only} SELECT pg_reload_conf()",
        PGDATABASE="traksense",
    )
    told = await stack.run("operations.md psql -X -d traksense -c")
    assert "traksense_service" in told
    assert re.search(r"on +\| database +\|", told)
    await stack.run("operations.md export PGOPTIONS=")
    settings = (
        "SELECT count(*) FROM pg_db_role_setting, unnest(setconfig) s WHERE s ~ 'read_only' "
        "AND setrole IN (0, 'traksense_service'::regrole);"  # readers may keep theirs
    )
    shown = "SELECT setting FROM pg_settings WHERE name = 'default_transaction_read_only'"
    assert await stack.psql(settings + shown, PGDATABASE="traksense") == "0\noff\n"


async def _validate(stack: Stack, owner: Mapping[str, str]) -> None:
    """On a machine that is busy with other tests, speed proves nothing."""
    out = await stack.run("operations.md traksense validate", " || true", **owner)
    checks = re.split(r"^CHECK \d+: ", out, flags=re.MULTILINE)[1:]
    failed = {check.splitlines()[0] for check in checks if "[FAIL]" in check}
    assert len(checks) > 10
    assert failed <= {"Throughput Smoke Test", "Latency"}, out


async def _owners_dump(stack: Stack, owner: Mapping[str, str]) -> None:
    """Without a superuser, and with the grants of tenant-walls.sql in the dump: everything is there again."""
    await stack.psql("CREATE DATABASE moved OWNER traksense_owner")
    moved = re.sub("traksense$", "moved", owner["DATABASE_URL"])
    await stack.run("operations.md dump=$(sh ops/backup.sh", NEW_DATABASE_URL=moved, **owner)
    count = "SELECT count(*), count(DISTINCT tenant_id) FROM ts_measure;"
    kept = await stack.psql(count, **owner)
    assert int(kept.split("|")[1]) > 1
    assert await stack.psql(count, PGDATABASE="moved") == kept
    reader = {"PGOPTIONS": "-c role=traksense_readonly", "PGDATABASE": "moved"}
    one = "SELECT count(*) FROM ts_measure WHERE tenant_id = 'test_tenant';"
    assert await stack.psql(f"SET app.tenant_id = 'test_tenant'; {one}", **reader) == "2\n"


async def _debian_grafana(stack: Stack) -> None:
    """In the folders of Grafana's package: the data source is on this machine, the dashboard where it is looked for."""
    grafana = stack.place / "grafana"
    for name in ("dashboards", "datasources"):
        (grafana / "provisioning" / name).mkdir(parents=True)
    await stack.shell(stack.take("reading.md mkdir").replace("/etc/grafana", str(grafana)))
    source = (grafana / "provisioning" / "datasources" / "tenant.yaml").read_text("utf-8")
    assert "url: localhost:5432\n" in source
    provider = (grafana / "provisioning" / "dashboards" / "traksense.yaml").read_text("utf-8")
    assert "path: /etc/grafana/dashboards\n" in provider
    assert (grafana / "dashboards" / "tenant.json").exists()


async def _replicas(stack: Stack, owner: Mapping[str, str]) -> None:
    assert "traksense-ingest-2" in await stack.run("operations.md MQTT_TENANTS=", " traksense shards show")
    tenants = stack.place / "tenants"
    tenants.write_text("acme\nbeta\n")
    # The file of the manual is root's.
    told = await stack.run("scale-out.md MQTT_TENANTS_FILE=", f" MQTT_TENANTS_FILE={tenants} traksense shards show")
    assert "traksense-ingest-2" in told
    await has_session(load({"MQTT_URL": stack.env["MQTT_URL"], "MQTT_CLIENT_ID": "OLD_CLIENT_ID"}))
    await stack.run("operations.md traksense shards retire", **owner)


def _login(stack: Stack, role: str) -> dict[str, str]:
    """The environment of a role of database.sql, with the password that stands in the manual."""
    server = f"{stack.env['PGHOST']}:{stack.env['PGPORT']}"
    return {
        "PGUSER": role,
        "PGPASSWORD": "…",
        "PGDATABASE": "traksense",
        "DATABASE_URL": f"postgresql://{role}:{quote('…')}@{server}/traksense",
    }
