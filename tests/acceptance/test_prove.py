"""`traksense prove` against the real service: it passes with every kind of fault, and fails when something is broken.

It takes minutes and does not depend on the Python, so it runs once: under the oldest one that is supported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from traksense.tools.prove.schedule import CATALOGUE
from traksense.tools.stack import find_mosquitto, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTS = 3
SECONDS = 12
RATE = 100
CONTROL_SECONDS = 8
REPLICAS = 3
REPLICA_FAULTS = "service-loss,service-takeover,service-reshard,service-kill-mid-batch"
HASTY_SECONDS = 5
STAGES = {
    # What wants a standby, a pooler or a clean slate has a run of its own, with something that overlaps.
    "standby": (2, "database-failover,service-kill-before-puback"),
    "pooler": (6, "pooler-kill,database-kill,database-terminate,broker-reset"),
    "operators": (8, "operator-delete,operator-rename,operator-truncate,operator-restore,service-kill-mid-batch"),
    "devices": (6, "message-untimed,message-partial,broker-reset,service-kill-before-puback,service-clock"),
    "server": (6, "database-strangers,database-year,reader-locks"),
}
"""Seconds of trouble and faults."""
SHARED = {
    "service-kill-before-puback", "service-kill-mid-batch", "database-kill", "database-terminate", "broker-reset",
}  # fmt: skip
CONTROLS = {
    "hasty-repeats": ("lost", 1.1),
    "no-dictionary-check": ("nameless", 4),
    "no-clock-check": ("misfiled", 3),
    "coarse-instants": ("misfiled", 2),
    "whole-message": ("lost", 2),
    "lockable": ("slow to resume", 1.5),
    "unhealed": ("slow to resume", 3),
}
"""What each finds, and how many seconds of trouble that takes."""
CONTROL_SEEDS = range(1, 8)
SHORT_PATIENCE_SECONDS = 4

pytestmark = [
    pytest.mark.skipif(sys.version_info >= (3, 12), reason="runs once, under Python 3.11"),
    pytest.mark.skipif(
        find_mosquitto() is None and os.environ.get("TRAKSENSE_TEST_ALLOW_NO_MOSQUITTO") == "1",
        reason="Mosquitto is missing, and TRAKSENSE_TEST_ALLOW_NO_MOSQUITTO=1",
    ),
]


@pytest.fixture
def place(stack_directory: Path, unique: Callable[[str], str]) -> Iterator[Path]:
    """A directory for one command; the session removes it."""
    directory = stack_directory / unique("prove")
    directory.mkdir(mode=0o711)
    yield directory
    assert [] == processes_of(directory)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "traksense", "prove", *map(str, arguments)]


def prove(place: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        command(*arguments, "--json", "--directory", place), capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def processes_of(place: Path) -> list[str]:
    """The command lines of the processes that run on this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(place) in line or str(place) in str((process / "cwd").readlink()):
                found.append(line)
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_or_doubled_whatever_fails(part: int, place: Path) -> None:
    """Each kind of fault, a third of them in each run: every confirmed message is stored once, or a dead letter, or the
    broker's own loss.
    """
    apart = {fault for _, faults in STAGES.values() for fault in faults.split(",")} - SHARED
    kinds = [kind for kind in CATALOGUE if kind not in apart][part::PARTS]

    status, document = prove(place, "--seed", part, "--seconds", SECONDS, "--rate", RATE, "--faults", ",".join(kinds))

    assert "passed" == document["verdict"], document["findings"]
    assert 0 == status
    assert not any(document["findings"].values())
    figures = document["figures"]
    assert figures["confirmed"] == figures["stored"] + figures["dead_lettered"] + figures["lost_by_broker"]
    assert figures["dead_lettered"] > 0
    assert figures["redelivered"] > 0
    (run,) = document["runs"]
    assert set(kinds) == {injection["fault"] for injection in run["schedule"]}
    # A kill point or a cut may wait in vain for its moment, the more so on a busy machine, but not most of them.
    assert 2 * len(document["faults"]) >= len(kinds), run["without_effect"]


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_lost_or_doubled_whatever_else_the_field_brings(stage: str, place: Path) -> None:
    """A failover, a pooler, operators at work, messages of other kinds, a server with odd ideas: still every message is
    stored once under its own name, or a dead letter, unless an operator has removed it; and work goes on in time.
    """
    seconds, faults = STAGES[stage]
    if stage == "pooler" and find_pgbouncer() is None and os.environ.get("TRAKSENSE_TEST_ALLOW_NO_POOLER") == "1":
        pytest.skip("pgbouncer is missing, and TRAKSENSE_TEST_ALLOW_NO_POOLER=1")

    status, document = prove(place, "--seed", 5, "--seconds", seconds, "--rate", RATE, "--faults", faults)

    assert "passed" == document["verdict"], document["findings"]
    assert 0 == status
    figures = document["figures"]
    accounted = ("stored", "dead_lettered", "lost_by_broker", "removed")
    assert figures["confirmed"] == sum(figures[name] for name in accounted)
    assert stage == "operators" or not figures["removed"]
    (run,) = document["runs"]
    assert set(faults.split(",")) == {injection["fault"] for injection in run["schedule"]}
    assert 2 * len(document["faults"]) >= len(faults.split(",")), run["without_effect"]


@pytest.mark.parametrize("breakage", CONTROLS)
def test_what_is_broken_is_found(breakage: str, place: Path) -> None:
    """Negative controls: each finds what it breaks, with the faults that `prove` chooses for it; in one run of a few,
    since a fault may fall into a moment without the messages that show it (one run of three of hasty-repeats).
    """
    finding, seconds = CONTROLS[breakage]

    for seed in CONTROL_SEEDS:
        directory = place / str(seed)
        directory.mkdir(mode=0o711)
        status, document = prove(
            *(directory, "--seed", seed, "--seconds", seconds, "--rate", RATE),
            *("--patience", SHORT_PATIENCE_SECONDS, "--break", breakage),
        )
        if status:
            break

    assert 1 == status
    assert document["findings"][finding] > 0, document["findings"]
    assert 0 == document["findings"]["doubled"]


def test_replicas_are_killed_replaced_and_taken_over(place: Path) -> None:
    """Three replicas under load: lost and replaced, taken over while they live, dealt other tenants; nothing is lost,
    doubled or out of order.
    """
    status, document = prove(
        place, "--replicas", REPLICAS, "--seed", 3, "--seconds", SECONDS, "--rate", RATE, "--faults", REPLICA_FAULTS
    )

    assert "passed" == document["verdict"], document["findings"]
    assert 0 == status
    assert REPLICAS == document["replicas"]
    figures = document["figures"]
    assert figures["confirmed"] == figures["stored"] + figures["dead_lettered"]
    assert figures["service_kills"] >= 2
    # Whoever takes over is another start, and each shard has had one.
    assert figures["service_starts"] > REPLICAS + figures["service_kills"]
    assert {"service-loss", "service-takeover", "service-reshard"} <= set(document["faults"])


def test_a_replica_that_is_not_replaced_is_found(place: Path) -> None:
    """Negative control: what is queued for a shard that nobody reads is still at the broker when the time is up."""
    status, document = prove(
        place, "--replicas", REPLICAS, "--seed", 1, "--seconds", CONTROL_SECONDS, "--break", "not-replaced"
    )

    assert 1 == status
    assert document["findings"]["undelivered"] > 0
    assert 0 == document["findings"]["lost"]
    assert 0 == document["findings"]["doubled"]


def test_topics_that_are_given_up_too_early_are_found(place: Path) -> None:
    """Negative control: between two replicas that both do not read a tenant, its messages go nowhere."""
    status, document = prove(
        place, "--replicas", REPLICAS, "--seed", 1, "--seconds", HASTY_SECONDS, "--break", "hasty-handover"
    )

    assert 1 == status
    assert document["findings"]["lost"] > 0
    assert 0 == document["findings"]["doubled"]


def test_acknowledging_early_is_found(place: Path) -> None:
    """Negative control: a service that acknowledges before it stores loses messages, and is caught at it."""
    status, document = prove(place, "--seed", 1, "--seconds", CONTROL_SECONDS, "--break", "ack-early")

    assert 1 == status
    assert document["findings"]["lost"] > 0
    assert document["findings"]["acknowledged early"] > 0
    assert 0 == document["findings"]["doubled"]


def test_a_missing_unique_key_is_found(place: Path) -> None:
    """Negative control: without the key, redelivered messages are stored twice; nothing is lost."""
    status, document = prove(place, "--seed", 1, "--seconds", 2 * CONTROL_SECONDS, "--break", "no-unique-key")

    assert 1 == status
    assert document["findings"]["doubled"] > 0
    assert 0 == document["findings"]["lost"]


@pytest.mark.usefixtures("hangup_has_its_meaning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_leaves_nothing_behind(place: Path, number: signal.Signals) -> None:
    """In the middle of it all: exit status 130, every process ended, the temporary directory gone."""
    with subprocess.Popen(
        command("--seed", 4, "--seconds", 3600),
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        # The third fault begins.
        for _ in range(6):
            process.stderr.readline()
        assert processes_of(place)
        process.send_signal(number)
        process.stderr.read()
        assert 130 == process.wait()

    assert [] == list(place.iterdir())
