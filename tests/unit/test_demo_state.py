"""The demo's figures: rates, quantiles, the ledger, and the final comparison."""

from __future__ import annotations

import argparse
import errno
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.cli import main
from traksense.commands import demo
from traksense.errors import ConfigError, TraksenseError
from traksense.metrics import LATENCY_BUCKETS, Histogram
from traksense.model import Reason
from traksense.tools.demo.observe import SHOWN, watched_points
from traksense.tools.demo.place import PORTS_FILE, Place
from traksense.tools.demo.state import Addresses, Scrape, State, quantile
from traksense.tools.demo.verdict import Line, Verdict, compare
from traksense.tools.fleet import Fault, Fleet, FleetOptions, Tally
from traksense.tools.stack import Samples

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ADDRESSES = Addresses("mqtt://127.0.0.1:1883", "mosquitto", "postgresql://127.0.0.1/traksense", "http://m", "/d")


def scrape(at: float, points: float = 0.0, **more: float) -> Scrape:
    """A reading of /metrics with these values; `stored`, `duplicate` and `dead` are outcomes."""
    samples = Samples({("ingest_points_total", ()): points})
    for name, value in more.items():
        if name in ("stored", "duplicate", "dead"):
            samples["ingest_messages_ended_total", (("outcome", name),)] = value
        else:
            samples[name, ()] = value
    return Scrape(at, samples)


def state() -> State:
    """A demo that starts at 100 s of the monotonic clock."""
    return State(ADDRESSES, "a fleet", Tally(), started_at=100.0, now=100.0, wall=NOW)


def test_state_rate_is_the_mean_of_the_last_seconds() -> None:
    """«Now» looks back three seconds, not to the start."""
    demo = state()
    for second in range(20):
        demo.add(scrape(100.0 + second, points=50.0 * second if second < 10 else 500.0 + 600.0 * (second - 10)))

    assert pytest.approx(600.0) == demo.rate


def test_state_history_has_one_rate_a_second() -> None:
    """However often it is read, the last minute is a rate for each second, the newest 60 of them."""
    demo = state()
    for half in range(300):
        demo.add(scrape(100.0 + half / 2, points=400.0 * half / 2))

    assert 60 == len(demo.history)
    assert pytest.approx([400.0] * 60) == list(demo.history)


@pytest.mark.parametrize(("in_flight", "balanced"), [(3.0, True), (4.0, False)])
def test_scrape_ledger_holds_or_does_not(in_flight: float, balanced: bool) -> None:
    """The mark beside the ledger tells whether received = stored + duplicate + dead + in flight."""
    reading = scrape(0, ingest_messages_total=20, stored=14, duplicate=1, dead=2, ingest_in_flight_messages=in_flight)

    assert balanced == reading.balanced


@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_quantile_is_in_the_bucket_of_the_exact_one(values: list[float], share: float) -> None:
    """Interpolated from the histogram, a quantile is off by its bucket's width at most."""
    before = buckets([1.0, 7.0])
    exact = sorted(values)[max(0, -(-int(share * len(values) * 1000) // 1000) - 1)]
    bounds = [0.0, *LATENCY_BUCKETS]
    place = next(index for index, bound in enumerate(bounds) if exact <= bound)

    found = quantile(before, buckets([1.0, 7.0, *values]), share)

    assert found is not None
    assert bounds[max(0, place - 2)] <= found <= bounds[min(len(bounds) - 1, place + 1)]


def test_quantile_of_nothing_is_none() -> None:
    """When nothing was stored lately there is no latency to show, rather than an old one."""
    assert quantile(buckets([1.0]), buckets([1.0]), 0.5) is None


def buckets(values: list[float]) -> list[tuple[float, float]]:
    """Cumulative counts of the service's own histogram."""
    histogram = Histogram(LATENCY_BUCKETS)
    for value in values:
        histogram.observe(value)
    counts = (sum(histogram.counts[: index + 1]) for index in range(len(histogram.counts)))
    return list(zip((*LATENCY_BUCKETS, float("inf")), counts, strict=True))


def test_watched_points_show_every_kind_and_every_tenant() -> None:
    """The first points are one of each kind of device, over all tenants; a point is not shown twice."""
    watched = watched_points(Fleet(FleetOptions(tenants=3, devices=20)).paths)

    assert len(SHOWN) == len({device.partition("-")[0] for _, _, device, _ in watched[: len(SHOWN)]})
    assert 3 == len({tenant for tenant, _, _, _ in watched[:3]})
    assert len(watched) == len(set(watched))


def test_watched_points_of_a_small_fleet() -> None:
    """One device is enough."""
    assert [("sim-acme", "plant-north", "chiller-01", point) for point in SHOWN["chiller"]] == watched_points(
        Fleet(FleetOptions(tenants=1, devices=1)).paths
    )


# --- the comparison ---------------------------------------------------------------------------------------------------


class Counts:
    """A database that knows the answers to the comparison's two questions."""

    def __init__(self, points: int, dead: dict[str, int]) -> None:
        self._answers: list[list[dict[str, Any]]] = [
            [{"points": points, "events": 0, "acknowledgements": 0}],
            [{"reason": reason, "count": count} for reason, count in dead.items()],
        ]

    async def fetch(self, _query: str, *_arguments: object) -> list[dict[str, Any]]:
        """The next answer."""
        return self._answers.pop(0)


@pytest.mark.parametrize(
    ("dead", "adds_up"),
    [
        ({Reason.PARSE_ERROR: 2, Reason.TYPE_MISMATCH: 1}, True),
        ({Reason.PARSE_ERROR: 3}, False),
        ({Reason.PARSE_ERROR: 2}, False),
    ],
)
async def test_compare_looks_at_each_reason(dead: dict[str, int], adds_up: bool) -> None:
    """As many dead letters with other reasons do not add up."""
    tally = Tally(published=3, confirmed=3)
    tally.bad.update([Fault.TRUNCATED, Fault.NOT_JSON, Fault.WRONG_TYPE])

    verdict = await compare(tally, Counts(0, dead), tenants=[], since=0.0, last_dead=0)  # type: ignore[arg-type]

    assert adds_up == verdict.adds_up
    assert adds_up == ("It adds up" in verdict.text())


def test_verdict_unconfirmed_messages_do_not_add_up() -> None:
    """Equal counts are no proof while a message may still be under way."""
    assert Verdict((Line("points", 5, 5),), unconfirmed=0, repeats=0).adds_up
    assert not Verdict((Line("points", 5, 5),), unconfirmed=1, repeats=0).adds_up
    assert not Verdict((Line("points", 5, 6),), unconfirmed=0, repeats=0).adds_up


# --- the directory ----------------------------------------------------------------------------------------------------


def test_place_keeps_its_ports(tmp_path: Path) -> None:
    """The next run has the same addresses, so a psql line stays true; a taken port is replaced, a wanted one used."""
    first = Place(tmp_path)
    ports = first.ports({})
    first.remember_ports()
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports["mqtt"]))
        other.listen()
        taken = Place(tmp_path).ports({"metrics": 9100})

    assert ports == Place(tmp_path).ports({})
    assert (ports["postgres"], 9100) == (taken["postgres"], taken["metrics"])
    assert taken["mqtt"] != ports["mqtt"]


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "[" * 100_000, '{"mqtt": -5, "postgres": 99999999, "metrics": "x"}', '{"mqtt": true}']
)
def test_place_does_not_mind_what_became_of_its_ports(tmp_path: Path, text: str) -> None:
    """Whatever is in the file: the demo starts, and psql finds no database."""
    (tmp_path / PORTS_FILE).write_text(text)

    assert all(1024 <= port <= 65535 for port in Place(tmp_path).ports({}).values())
    assert not Place(tmp_path).database_runs()


def test_place_gives_each_a_port_of_its_own(tmp_path: Path) -> None:
    """The same one twice is refused, and one that was remembered gives way to one that is wanted."""
    with pytest.raises(ConfigError, match="each needs a port of its own"):
        Place(tmp_path).ports({"mqtt": 9100, "metrics": 9100})
    (tmp_path / PORTS_FILE).write_text('{"mqtt": 18747, "postgres": 18747, "metrics": 18747}')
    ports = Place(tmp_path).ports({"metrics": 18747})

    assert 18747 == ports["metrics"]
    assert 3 == len(set(ports.values()))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\udcff"])
def test_place_has_a_name_that_files_can_hold(tmp_path: Path, name: str) -> None:
    """A broker and a database read it in their configuration."""
    with pytest.raises(TraksenseError, match="characters that do not show: take another --directory"):
        Place(tmp_path / name)

    assert [] == list(tmp_path.iterdir())


def test_place_service_file_is_private(tmp_path: Path) -> None:
    """The file that holds the password is for its owner only, and connects psql to the right place."""
    place = Place(tmp_path)
    place.write_service_file("postgresql://postgres:geheim@127.0.0.1:5999/traksense")

    assert 0o600 == place.service_file.stat().st_mode & 0o777
    assert {"host=127.0.0.1", "port=5999", "password=geheim", "dbname=traksense"} <= set(
        place.service_file.read_text(encoding="utf-8").splitlines()
    )
    reader = place.service_file.read_text(encoding="utf-8").partition("[reader]")[2]
    assert "options=-c role=traksense_readonly" in reader, "within the walls"


def test_place_needs_an_earlier_demo_for_psql(tmp_path: Path) -> None:
    """To look at data there must be some; nothing is created by looking."""
    with pytest.raises(TraksenseError, match="no demo has been"):
        Place(tmp_path / "nowhere", make=False)

    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", [["demo"], ["prove"], ["bench"], ["bench", "--plots"]])
def test_a_directory_that_cannot_be_made_is_one_clear_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a way out, before anything is started; so is a path from a current directory that is gone."""
    (tmp_path / "file").write_text("")
    option = "--plots" if "--plots" in command else "--directory"
    asked = [*command, *([] if command[-1] == option else [option])]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    assert 1 == main([*asked, str(tmp_path / "file" / "below")])
    here.rmdir()
    assert 1 == main([*asked, "place"])

    assert (
        f"traksense: cannot make {tmp_path}/file/below: Not a directory; take another {option}\n"
        "traksense: the current directory has been removed: change to another, or give "
        f"{option} as a path that begins with /\n"
    ) == capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Not allowed", "/d/broker"), "cannot use /d/broker: Not allowed; take another"),
        (OSError(errno.EROFS, "Read-only"), "cannot use /d: Read-only; take another --directory"),
        (FileNotFoundError(errno.ENOENT, "Not found", "/usr/bin/initdb"), "cannot use /usr/bin/initdb: Not found$"),
        (OSError(errno.EMFILE, "Too many", "/d/log"), r"Too many: raise the limit of files \(ulimit -n\)$"),
        (OSError(errno.ENOMEM, "No memory"), "No memory: free some memory$"),
    ],
)
def test_another_directory_is_advised_where_it_helps(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not against a program that is missing, nor a machine that is short of something."""

    def fail(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(demo, "_run", fail)

    with pytest.raises(TraksenseError, match=said):
        demo.main(argparse.Namespace(directory=Path("/d")))
