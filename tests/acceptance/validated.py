"""What the tests of `traksense validate` share: a running stack, and what the command said of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import attrs
import psycopg
import trio

from tests.command_line import Outcome, run_command
from tests.patience import HANG_SECONDS
from traksense.tools.validate.run import CHECKS

if TYPE_CHECKING:
    from traksense.tools.stack import ServiceProcess

PATIENT = ("--patience", "600")
"""What is found at once does not wait so long."""
NAMES = ["connectivity", *(name for name, _, _ in CHECKS), "cleanup"]
RELATIONS = (
    "traksense.measure",
    "traksense.series",
    "traksense.meta",
    "traksense.device",
    "traksense.tenant",
    "cmd_ack",
    "device_event",
    "ingest_errors",
)


@attrs.frozen
class Stack:
    """A running service, and the environment that names it."""

    dsn: str
    env: dict[str, str]
    service: ServiceProcess

    async def validate(self, *arguments: str, **env: str) -> Outcome:
        """Run the command."""
        with trio.fail_after(HANG_SECONDS):
            return await run_command(self.env | env, "validate", *arguments)

    def rows(self, tenant: str | None = None) -> dict[str, int]:
        """How many rows each relation has that has any; those of a tenant, if named."""
        with psycopg.connect(self.dsn) as connection:
            counts = {relation: count(connection, relation, tenant) for relation in RELATIONS}
        return {relation: rows for relation, rows in counts.items() if rows}

    async def wait_for_measures(self, at_least: int) -> None:
        """Wait until so many measurements are stored."""
        while True:
            if self.rows().get("traksense.measure", 0) >= at_least:
                return
            await trio.sleep(0.02)

    def change(self, *statements: str) -> None:
        """Change the database under the service: each alone, or what they lock could be what a probe locks in turn."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


def count(connection: psycopg.Connection[Any], relation: str, tenant: str | None) -> int:
    condition = b"" if tenant is None or relation == "traksense.measure" else b" WHERE tenant_id = %(tenant)s"
    row = connection.execute(b"SELECT count(*) FROM " + relation.encode() + condition, {"tenant": tenant}).fetchone()
    assert row is not None
    return int(row[0])


def statuses(outcome: Outcome) -> dict[str, str]:
    """The status of each check."""
    return {check["name"]: check["status"] for check in json.loads(outcome.stdout)["checks"]}


def failures(outcome: Outcome) -> list[str]:
    """What failed, in words."""
    checks = json.loads(outcome.stdout)["checks"]
    return [f"{f['what']}: {f['figure']}" for check in checks for f in check["findings"] if f["status"] == "fail"]


SLOW: Final = re.compile("Points stored: less than|p50 ingest latency: more than")
"""All that a busy machine may fail with: a point that is missing fails the same checks, with other words."""


def slow(outcome: Outcome) -> bool:
    """Whether nothing failed but speed.

    That is accepted on purpose: how long something takes on a machine that runs other tests beside it proves nothing,
    and no test of ours goes by it. What the speed checks find beside the time, such as a point that is not stored, is
    not accepted; for that they need `PATIENT`, since with the default a point may be late rather than lost.
    """
    failed = failures(outcome)
    return bool(failed) and all(map(SLOW.match, failed))


def findings(outcome: Outcome, name: str) -> list[dict[str, Any]]:
    """The findings of a check."""
    found: list[dict[str, Any]] = next(
        check["findings"] for check in json.loads(outcome.stdout)["checks"] if check["name"] == name
    )
    return found


def wrong(outcome: Outcome) -> tuple[str, str]:
    """What the wiring check found, and the next step; nothing else was tried."""
    assert {"connectivity": "ok", "wiring": "fail"} | dict.fromkeys(NAMES[2:-1], "not_run") == {
        name: status for name, status in statuses(outcome).items() if name != "cleanup"
    }
    assert 1 == outcome.status
    assert "CHECKS FAILED" == json.loads(outcome.stdout)["verdict"]
    (finding,) = findings(outcome, "wiring")
    return finding["figure"], finding["next_step"]
