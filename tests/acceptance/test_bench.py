"""`traksense bench`, tiny: it measures, counts and cleans up. How fast it all is, is not judged here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import HANG_SECONDS
from traksense.config import DatabaseUrl, Secret
from traksense.store.connection import open_connection
from traksense.tools.bench.backlog import check_counts
from traksense.tools.bench.readings import children
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECKOUT = Path(__file__).parents[2]
TINY = ("--messages", "1500", "--seconds", "1", "--rates", "2000", "--rounds", "1", "--reader", "paho")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "traksense", "bench", *arguments]


def environment(directory: Path) -> dict[str, str]:
    """Temporary files in a place of our own, which the database's user can pass through."""
    directory.mkdir()
    directory.chmod(0o711)
    return os.environ | {"TMPDIR": str(directory), "PYTHONPATH": str(CHECKOUT)}


@pytest.fixture
def place(stack_directory: Path, request: pytest.FixtureRequest) -> Path:
    """Where the bench under test keeps its data."""
    name: str = request.node.name
    return stack_directory / name


def bench(place: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(place), capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


def test_bench_measures_and_cleans_up(place: Path, tmp_path: Path) -> None:
    """Ceiling, backlogs, latency and an outage: figures for all, plots, and nothing is left."""
    document = measured(
        bench(place, [*TINY, "--only", "ceiling,backlog,steady,outage", "--json", "--plots", str(tmp_path)])
    )

    assert [
        ("ceiling", "prepared bytes", ""),
        ("ceiling", "rows that the driver encodes", ""),
        ("backlog", "10-point messages", "paho"),
        ("backlog", "1-point messages", "paho"),
        ("steady", "2,000 points/s", "paho"),
        ("outage", "10,000 points/s come in all the time", "paho"),
    ] == [(r["scenario"], r["case"], r["contender"]) for r in document["results"]]
    assert {"bench.txt", "bench.json", "throughput.svg", "memory.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert [] == list(place.iterdir())


def test_bench_compares_two_checkouts(place: Path) -> None:
    """Another checkout's service is measured in turns with ours, and a change is told as a ratio."""
    document = measured(bench(place, [*TINY, "--only", "steady", "--compare", str(CHECKOUT), "--json"]))

    assert ["paho", f"{CHECKOUT.name} paho"] == [r["contender"] for r in document["results"]]
    (ratio,) = document["ratios"]
    assert ("paho", f"{CHECKOUT.name} paho") == (ratio["contender"], ratio["to"]["contender"])
    assert 0 < ratio["cpu_seconds"]["median"]


def measured(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a bench that went well says as JSON."""
    assert 0 == done.returncode, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert [] == document["faults"]
    for result in document["results"]:
        medians = [value["median"] for value in result.values() if isinstance(value, dict)]
        assert medians
        assert all(value >= 0 for value in medians), result
    return document


def test_bench_interrupted_leaves_nothing(place: Path) -> None:
    """Ctrl-C in the middle of a run ends broker, database and service, removes the data, and says 130."""
    process = subprocess.Popen(
        command("--quick", "--messages", "100000", "--only", "backlog", "--reader", "paho"),
        env=environment(place),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "backlog" in line:
            break
    deadline = time.monotonic() + HANG_SECONDS
    while len(started := children(process.pid)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)

    process.communicate(timeout=HANG_SECONDS)
    assert 130 == process.returncode
    # Whoever adopts them takes a moment to reap them.
    deadline = time.monotonic() + HANG_SECONDS
    while left := [pid for pid in started if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert [] == list(place.iterdir())


def test_bench_bad_arguments_are_named(tmp_path: Path) -> None:
    """What cannot be measured is said before anything is started."""
    done = subprocess.run(
        command("--compare", str(tmp_path)), capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )

    assert (2, f"traksense: --compare: no checkout of traksense: {tmp_path}\n") == (done.returncode, done.stderr)


async def test_bench_notices_lost_and_doubled_rows(database: str) -> None:
    """A run whose rows are not all there, or too many, is not a result."""
    async with open_connection(DatabaseUrl(Secret(database)), application="test") as connection:
        await connection.fetch("SELECT * FROM traksense.ensure_partitions(now(), now() + interval '1 day')")
        await connection.fetch(
            "INSERT INTO traksense.measure (series_id, ts, v_num) SELECT n, now(), 1 FROM generate_series(1, 5) n"
        )

        await check_counts(connection, 0, 5)
        with pytest.raises(StackError, match="5 rows are stored and 7 were published: 2 are lost"):
            await check_counts(connection, 0, 7)
        with pytest.raises(StackError, match="5 rows are stored and 4 were published: 1 are too many"):
            await check_counts(connection, 0, 4)
        await connection.fetch(
            "INSERT INTO public.ingest_errors (topic, payload, reason, digest) "
            "VALUES ('t', '', 'parse_error', decode(md5('t'), 'hex'))"
        )
        with pytest.raises(StackError, match="1 messages became dead letters"):
            await check_counts(connection, 0, 5)
