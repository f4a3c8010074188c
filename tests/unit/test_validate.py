"""The parts of `traksense validate` that need no stack."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from traksense.config import load
from traksense.errors import (
    BrokerError,
    ConfigError,
    StoreMisconfiguredError,
    StoreTooSlowError,
    StoreUnavailableError,
)
from traksense.shards import covers
from traksense.tools.validate import next_steps
from traksense.tools.validate.endpoint import Endpoint, EndpointError, endpoint_url
from traksense.tools.validate.report import Finding, Printer, Report, Result
from traksense.tools.validate.run import CHECKS
from traksense.tools.validate.speed import percentile

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.tools.validate.report import Status

TOPIC = "traksense/acme/site/device/telem"


@pytest.mark.parametrize(
    ("topic_filter", "expected"),
    [
        (TOPIC, True),
        ("traksense/+/+/+/telem", True),
        ("traksense/#", True),
        ("#", True),
        ("traksense/acme/site/device/telem/#", True),
        ("$share/group/traksense/+/+/+/telem", True),
        ("traksense/+/+/+/ack", False),
        ("traksense/+/+/telem", False),
        ("traksense/+/+/+/telem/+", False),
        ("traksense/bravo/#", False),
    ],
)
def test_covers_matches_as_brokers_do(topic_filter: str, expected: bool) -> None:
    """Wildcards stand for whole levels, `#` also for none; a shared subscription counts by its filter."""
    assert expected is covers(topic_filter, TOPIC)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.51, 51.0), (0.99, 99.0), (1.0, 100.0)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    """The smallest value that so many of the values do not exceed."""
    assert expected == percentile([float(value) for value in range(1, 101)], share)
    assert 7.0 == percentile([7.0], share)


@pytest.mark.parametrize(
    ("env", "given", "expected"),
    [
        ({}, None, "http://localhost:9100"),
        ({"METRICS_PORT": "1234", "METRICS_HOST": "::"}, None, "http://localhost:1234"),
        ({"METRICS_HOST": "10.0.0.5"}, None, "http://10.0.0.5:9100"),
        ({"METRICS_HOST": "::1"}, None, "http://[::1]:9100"),
        ({}, "http://host:9100/metrics", "http://host:9100"),
        ({"METRICS_PORT": "0"}, "https://host/traksense/", "https://host/traksense"),
    ],
)
def test_endpoint_url_is_this_machine_unless_told(env: dict[str, str], given: str | None, expected: str) -> None:
    """By default METRICS_PORT on this machine; a URL may name the endpoint or its /metrics."""
    assert expected == endpoint_url(load(env), given)


@pytest.mark.parametrize("given", ["", "host:9100", "ftp://host", "http://", "http://host:x", "http://host/?q=1"])
def test_endpoint_url_refuses_what_is_no_address(given: str) -> None:
    """Anything else than an http or https address is a fault of the configuration."""
    with pytest.raises(ConfigError, match=r"^--metrics-url: "):
        endpoint_url(load({}), given)


async def test_endpoint_that_hangs_up_is_told_in_words() -> None:
    """As one that is not there is: without the number."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, hang_up)
            with pytest.raises(EndpointError) as caught:
                await Endpoint(url).get("/healthz")

    assert f"no answer from {url}/healthz: Connection reset by peer" == str(caught.value)


def report(*statuses: tuple[Status, ...], **more: Any) -> Report:
    """A report whose checks have these findings."""
    results = [Result(f"check-{number}", "Check", lambda _finding: None) for number in range(len(statuses))]
    for result, found in zip(results, statuses, strict=True):
        for status in found:
            result.add(status, "what", "figure")
    return Report({"version": "1"}, results, **more)


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        (report(("ok",), ("ok", "ok"), ("skip",)), True),
        (report(("ok",), ("ok", "fail")), False),
        (report(("ok",), ("not run",)), False),
        (report(("ok",), ()), False),
        (report(("ok",), interrupted=True), False),
    ],
)
def test_report_passes_only_if_every_check_was_made(found: Report, passed: bool) -> None:
    """One failure, one check that was not made, or an interruption, and it has not passed; a reasoned skip may be."""
    assert passed is found.passed
    assert passed is found.as_json()["passed"]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (report(("ok",), ("ok", "ok")), "ALL CHECKS PASSED"),
        (report(("ok",), ("ok", "skip")), "PASSED, BUT 1 CHECK COULD NOT BE MADE"),
        (report(("skip", "skip"), ("skip",)), "PASSED, BUT 2 CHECKS COULD NOT BE MADE"),
        (report(("fail",), ("skip",)), "CHECKS FAILED, AND 1 CHECK COULD NOT BE MADE"),
        (report(("ok",), ("not run",)), "CHECKS FAILED"),
        (report(("skip",), interrupted=True), "INTERRUPTED"),
    ],
)
def test_verdict_owns_up_to_what_was_not_checked(found: Report, verdict: str) -> None:
    """That all checks passed is said only if all were made; also a part of a check counts."""
    assert verdict == found.verdict
    assert verdict == found.as_json()["verdict"]
    assert len(found.not_checked) == len(found.as_json()["not_checked"])


def test_verdict_does_not_count_what_is_kept_on_purpose() -> None:
    """A clean-up that was not wanted is no check that could not be made."""
    found = report(("ok",))
    found.results.append(Result("cleanup", "Clean-up", lambda _finding: None))
    found.results[-1].add("skip", "Clean-up", "kept")

    assert "ALL CHECKS PASSED" == found.verdict


def test_printer_says_why_and_how_it_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line has what was not checked, why, and the next step; a finding has its next step below it."""
    found = report(("ok",), ("skip",))
    found.results[1].findings.clear()
    found.results[1].add("skip", "Walls", "no right", next_step="GRANT it")
    printer = Printer()
    printer.finding(found.results[1].findings[0])
    printer.end(found)

    lines = capsys.readouterr().out.splitlines()
    assert ["[SKIP] Walls: no right", "    next step: GRANT it"] == lines[:2]
    assert (
        "PASSED, BUT 1 CHECK COULD NOT BE MADE (1 check ok, 1 skipped; 0.0 s): Check: no right (next step: GRANT it)"
        == lines[-2]
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (report(("fail",), ("not run",), ()), "CHECKS FAILED (1 check failed, 2 not run; "),
        (report(("ok",), ("ok",)), "ALL CHECKS PASSED (2 checks ok; "),
    ],
)
def test_verdict_counts_checks(found: Report, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers say what they count."""
    Printer().end(found)

    assert capsys.readouterr().out.splitlines()[-2].startswith(said)


def test_installation_manual_shows_as_many_checks_as_there_are() -> None:
    """The connection comes before the others."""
    manual = (Path(__file__).parents[2] / "ops" / "install-debian.md").read_text(encoding="utf-8")

    assert f"ALL CHECKS PASSED ({1 + len(CHECKS)} checks ok; " in manual


@pytest.mark.parametrize(
    ("told", "error", "cause", "step"),
    [
        (next_steps.of_broker, BrokerError("x"), ConnectionRefusedError(), "is the broker running? MQTT_URL must name"),
        (next_steps.of_broker, BrokerError("x"), ssl.SSLCertVerificationError(), "do what it says; MQTT_URL must name"),
        (next_steps.of_database, StoreUnavailableError("x"), ConnectionRefusedError(), "is PostgreSQL running? DATAB"),
        (next_steps.of_database, StoreUnavailableError("x"), ssl.SSLCertVerificationError(), "DATABASE_URL must name"),
        (
            next_steps.of_database,
            StoreMisconfiguredError("the database schema is at version 0: run `traksense migrate`"),
            None,
            "if this is the database that the service writes to, run `traksense migrate` as its owner; else correct",
        ),
        (next_steps.of_check, StoreTooSlowError("x"), None, "ops/operations.md#health has"),
        (next_steps.of_check, EndpointError("x"), None, "does the service run, "),
    ],
)
def test_next_step_is_not_against_what_was_found(
    told: Callable[[Exception], str], error: Exception, cause: Exception | None, step: str
) -> None:
    """What answers with a certificate is running, and a database without a schema need not be another one's; whatever
    ends a check has a next step.
    """
    error.__cause__ = cause

    assert told(error).startswith(step)


def test_judge_has_a_next_step_only_if_it_failed() -> None:
    """What is in order needs none."""
    result = Result("check", "Check", lambda _finding: None)
    result.judge("what", "figure", faults=[], next_step="fix it")
    result.judge("what", "figure", faults=["broken"], next_step="fix it")

    assert ["", "fix it"] == [finding.next_step for finding in result.findings]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (BrokenPipeError(), "None"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write the output: No space left on device"),
    ],
)
def test_printer_survives_a_reader_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, error: OSError, fault: str
) -> None:
    """If nobody reads the report any more, or the disk is full, it falls silent: what was begun is still to be cleaned
    up.
    """

    class Broken:
        encoding = "ascii"

        def __init__(self, fileno: int) -> None:
            self._fileno = fileno

        def isatty(self) -> bool:
            return False

        def write(self, _text: str) -> int:
            raise error

        def flush(self) -> None: ...

        def fileno(self) -> int:
            return self._fileno

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr("sys.stdout", Broken(file.fileno()))
        printer = Printer()
        for _ in range(2):
            printer.finding(Finding("ok", "what", "figure"))

    assert fault == str(printer.fault)
