"""The command line of `traksense prove`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from traksense.cli import main
from traksense.commands.prove import REVEALING
from traksense.tools.prove import session
from traksense.tools.prove.schedule import CATALOGUE

if TYPE_CHECKING:
    from traksense.tools.prove.session import Request


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What would be done."""
    made: list[Request] = []

    def note(request: Request) -> int:
        made.append(request)
        return 0

    monkeypatch.setattr(session, "prove", note)
    return made


def test_list_faults_names_and_explains_each(capsys: pytest.CaptureFixture[str], requests: list[Request]) -> None:
    """One line a kind; nothing is started."""
    assert 0 == main(["prove", "--list-faults"])

    lines = capsys.readouterr().out.splitlines()
    assert list(CATALOGUE) == [line.split()[0] for line in lines]
    assert [] == requests


def test_unknown_faults_are_all_named(capsys: pytest.CaptureFixture[str], requests: list[Request]) -> None:
    """A misspelt kind would prove less than was asked for: exit status 2, nothing is started."""
    assert 2 == main(["prove", "--faults", "broker-kill,flood,fire"])

    error = capsys.readouterr().err
    assert "flood" in error
    assert "fire" in error
    assert "broker-kill" not in error
    assert [] == requests


@pytest.mark.parametrize(
    "arguments",
    [
        ["--replicas", "0"],
        ["--replicas", "17"],
        ["--seconds", "0"],
        ["--rate", "-1"],
        ["--patience", "0"],
        ["--runs", "0"],
        ["--runs", "x"],
        ["--break", "everything"],
    ],
)
def test_bad_arguments_exit_2(arguments: list[str], requests: list[Request]) -> None:
    """What makes no sense is refused before anything is started."""
    with pytest.raises(SystemExit) as refused:
        main(["prove", *arguments])

    assert 2 == refused.value.code
    assert [] == requests


def test_everything_is_passed_on(requests: list[Request]) -> None:
    """Each option reaches the run."""
    asked = ["--seconds", "9", "--rate", "50", "--runs", "3", "--seed", "7", "--faults", "broker-kill, service-kill"]
    main(["prove", *asked, "--replicas", "4", "--patience", "12", "--json", "--directory", "place"])

    (request,) = requests
    assert (9.0, 50.0, ("broker-kill", "service-kill"), None) == (
        request.options.seconds,
        request.options.rate,
        request.options.faults,
        request.options.breakage,
    )
    assert (4, 12.0) == (request.options.replicas, request.options.patience)
    assert request.chosen
    assert (3, 7, Path("place"), True) == (request.runs, request.seed, request.directory, request.as_json)


def test_a_directory_is_used_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What servers of an earlier session left would be taken up again, and hold the new one up."""
    (tmp_path / "postgres").mkdir()

    assert 1 == main(["prove", "--directory", str(tmp_path)])

    assert f"traksense: {tmp_path} is not empty: take another --directory\n" == capsys.readouterr().err


def test_by_default_all_faults_and_a_random_seed(requests: list[Request]) -> None:
    """Nobody has to choose."""
    main(["prove"])
    main(["prove"])

    first, second = requests
    assert tuple(CATALOGUE) == first.options.faults
    assert not first.chosen
    assert first.seed != second.seed


@pytest.mark.parametrize("breakage", REVEALING)
def test_controls_bring_their_own_faults(breakage: str, requests: list[Request]) -> None:
    """A control has to fail soon, so by default it meets only what reveals it."""
    main(["prove", "--break", breakage])

    (request,) = requests
    assert breakage == request.options.breakage
    assert set(request.options.faults) < set(CATALOGUE)
