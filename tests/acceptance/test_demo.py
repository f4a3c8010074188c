"""`traksense demo` for real: it starts everything, adds up, ends in order, and goes on the next time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.command_line import argv, environment, run_command
from tests.patience import HANG_SECONDS
from traksense.tools.demo.display import chosen_display
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = re.compile(r": ([\d,]+) rows so far")


@pytest.fixture
def directory(stack_directory: Path, unique: Callable[[str], str]) -> Iterator[Path]:
    """A place for a demo that PostgreSQL's user can reach; removed afterwards."""
    path = stack_directory / unique("demo")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def rows_so_far(text: str) -> int:
    """The number of rows in the last words."""
    found = ROWS.search(text)
    assert found is not None, text
    return int(found[1].replace(",", ""))


class Running:
    """A demo that runs until the test ends it."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.said = ""

    @classmethod
    async def start(cls, *arguments: str) -> Running:
        """Start it, with its output in a pipe."""
        return cls(
            await trio.lowlevel.open_process(
                argv("demo", *arguments), env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )

    async def read_until(self, words: str) -> None:
        """Read until it says this."""
        assert self.process.stdout is not None
        while words not in self.said:
            chunk = await self.process.stdout.receive_some()
            assert chunk, self.said
            self.said += chunk.decode()

    async def finish(self) -> int:
        """Read to the end; its exit status."""
        assert self.process.stdout is not None
        async for chunk in self.process.stdout:
            self.said += chunk.decode()
        return await self.process.wait()

    def children(self) -> dict[str, int]:
        """The ids of the processes that it started, by a word of their command lines."""
        found = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                if f"PPid:\t{self.process.pid}\n" in status.read_text(encoding="utf-8"):
                    line = status.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
                    words = [word for word in ("mosquitto", "postgres", "traksense run") if word in line]
                    found.update(dict.fromkeys(words, int(status.parent.name)))
        return found


OWN = "SELECT v_num FROM ts_measure WHERE tenant_id = 'mine'"


async def test_demo_adds_up_and_goes_on(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself or at SIGTERM it ends with exit 0 and equal counts; a second run and psql find the rows. The query
    that it prints sees the tenant that it names, and no other.
    """
    place = ("--directory", str(directory))
    picture = tmp_path / "page.svg"
    client = os.environ.get("TRAKSENSE_MOSQUITTO_PUB") or shutil.which("mosquitto_pub")
    assert client is not None, "mosquitto_pub is missing: run the tests with ops/test.sh, or install mosquitto-clients"
    (tmp_path / "mosquitto_pub").symlink_to(client)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    with trio.fail_after(HANG_SECONDS):
        first = await run_command({}, "demo", *place, "--seconds", "4", "--bad", "5", "--screenshot", str(picture))
        second = await Running.start(*place)
        await second.read_until("received")
        line = next(line for line in second.said.splitlines() if "mosquitto_pub" in line)
        published = await trio.run_process(line, shell=True, cwd=tmp_path, capture_stdout=True)  # as typed
        query = next(line for line in second.said.splitlines() if "service=reader" in line)
        mine = b""
        while b"7.3" not in mine:
            mine = (await trio.run_process(query, shell=True, cwd=tmp_path, capture_stdout=True)).stdout
        others = (await trio.run_process(query.replace("mine", "acme"), shell=True, capture_stdout=True)).stdout
        unnamed = query.replace("SET app.tenant_id = 'mine';", "")
        nobody = (await trio.run_process(unnamed, shell=True, capture_stdout=True)).stdout
        second.process.send_signal(signal.SIGTERM)
        status = await second.finish()
        look = await run_command({}, "demo", *place, "--psql", "-Atc", "SELECT count(*) FROM ts_measure")
        own = await run_command({}, "demo", *place, "--psql", "-Atc", OWN)

    assert (0, "") == (first.status, first.stderr)
    assert "It adds up" in first.text
    assert 0 == status
    assert "It adds up" in second.said  # what somebody else publishes is no difference
    assert "7.3" == own.text.strip()
    assert b"" == published.stdout
    assert b"(1 row)" in mine
    assert b" acme " in others
    assert b" mine " not in others
    assert b"(0 rows)" in nobody
    assert 0 < rows_so_far(first.text) < rows_so_far(second.said)
    assert str(rows_so_far(second.said)) == look.text.strip()
    assert f"--directory {directory}" in first.text
    assert "ts_measure" in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize("client", ["mosquitto_pub", "paho"])
async def test_demo_runs_on_the_embedded_broker(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    """Without Mosquitto, the broker out of the iotcore wheel does. What it says to type works from any folder, also
    where one hides the package, with and without mosquitto_pub.
    """
    (tmp_path / "traksense").mkdir()
    (tmp_path / "traksense" / "__init__.py").touch()
    programs = {
        program.name: program
        for folder in reversed(os.environ["PATH"].split(os.pathsep))
        for program in Path(folder).glob("*")
    }
    named = os.environ.get("TRAKSENSE_MOSQUITTO_PUB")
    programs |= {"mosquitto_pub": Path(named)} if named else {}
    if client == "paho":
        programs.pop("mosquitto_pub", None)
    else:
        assert client in programs, "mosquitto_pub is missing: run the tests with ops/test.sh"
    path = directory.with_name(f"{directory.name}-bin")  # where PostgreSQL's user can reach it
    path.mkdir()
    for name, program in programs.items():
        (path / name).symlink_to(program)
    monkeypatch.setenv("PATH", str(path))
    with trio.fail_after(HANG_SECONDS):
        running = await Running.start("--directory", str(directory), "--broker", "iotcore")
        await running.read_until("received")
        line = next(line for line in running.said.splitlines() if "mine/here" in line)
        await trio.run_process(line, shell=True, cwd=tmp_path)
        running.process.send_signal(signal.SIGTERM)
        status = await running.finish()
        again = next(line for line in running.said.splitlines() if "--psql" in line)
        look = await trio.run_process(f'{again} -Atc "{OWN}"', shell=True, cwd=tmp_path, capture_stdout=True)

    assert client in line
    assert 0 == status
    assert "iotcore on port" in running.said
    assert "It adds up" in running.said
    assert b"7.3" == look.stdout.strip()


async def test_demo_draws_a_page_on_a_terminal(directory: Path) -> None:
    """On a terminal it draws its page in place; Ctrl-C ends it with the comparison, exit 0."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    # tox sets COLUMNS and LINES, which count more than the size of the terminal.
    env = environment({}) | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    said = b""
    with trio.fail_after(HANG_SECONDS):
        process = await trio.lowlevel.open_process(
            argv("demo", "--directory", str(directory)), env=env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        terminal = trio.lowlevel.FdStream(ours)
        while b"dead" not in said or b"temp_agua" not in said:
            said += await terminal.receive_some()
        process.send_signal(signal.SIGINT)
        try:
            async for chunk in terminal:
                said += chunk
        except trio.BrokenResourceError:
            pass  # how Linux says that the other side of a terminal is closed
        status = await process.wait()

    text = said.decode()
    assert 0 == status
    for part in ("Throughput", "Latency, device to COMMIT", "Ledger", "Latest values", "ready", "It adds up"):
        assert part in text


@pytest.mark.parametrize("victim", ["traksense run", "mosquitto"])
async def test_demo_says_when_a_part_dies(directory: Path, victim: str) -> None:
    """If the service or the broker ends by itself, the demo ends with exit 1 and a line that names it and its log."""
    with trio.fail_after(HANG_SECONDS):
        running = await Running.start("--directory", str(directory))
        await running.read_until("look at the data")
        os.kill(running.children()[victim], signal.SIGKILL)
        status = await running.finish()

    last = running.said.splitlines()[-1]
    assert 1 == status
    assert last.startswith("traksense: ")
    assert f"(log: {directory}" in last


async def test_demo_ends_at_once_while_it_starts(directory: Path) -> None:
    """Ctrl-C before everything runs: it gives up, and leaves no process behind."""
    with trio.fail_after(HANG_SECONDS):
        running = await Running.start("--directory", str(directory))
        await running.read_until("PostgreSQL")
        children = running.children()
        running.process.send_signal(signal.SIGINT)
        status = await running.finish()

    assert 130 == status
    assert "interrupted" in running.said
    assert children
    assert not [pid for pid in children.values() if alive(pid)]


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_demo_in_a_directory_that_is_in_use(directory: Path) -> None:
    """A second demo in the same directory refuses with one line, and does not disturb the first one."""
    with trio.fail_after(HANG_SECONDS):
        running = await Running.start("--directory", str(directory))
        await running.read_until("look at the data")
        second = await run_command({}, "demo", "--directory", str(directory))
        look = await run_command({}, "demo", "--directory", str(directory), "--psql", "-Atc", "SELECT 1")
        running.process.send_signal(signal.SIGINT)
        status = await running.finish()

    assert 1 == second.status
    assert ["runs on"] == re.findall("runs on", second.stderr)
    assert "1" == look.text.strip()
    assert 0 == status


def test_demo_without_rich_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package that draws the page, one line says what to install."""
    monkeypatch.setitem(sys.modules, "rich", None)

    with pytest.raises(StackError, match="pip install"):
        chosen_display(tmp_path / "page.svg")


def test_demo_screenshot_without_a_place_is_refused_at_once(tmp_path: Path) -> None:
    """A picture that could not be saved is said before anything starts, not after an hour."""
    with pytest.raises(StackError, match="no directory for the screenshot"):
        chosen_display(tmp_path / "nowhere" / "page.svg")


async def test_demo_says_what_is_wrong_with_its_directory(directory: Path) -> None:
    """A file where a directory belongs: one line, exit 1, and what had been started is stopped."""
    directory.mkdir()
    (directory / "broker").write_text("")
    with trio.fail_after(HANG_SECONDS):
        outcome = await run_command({}, "demo", "--directory", str(directory))

    assert 1 == outcome.status
    assert f"traksense: cannot use {directory / 'broker'}: File exists; take another --directory\n" == outcome.stderr
    assert not (directory / "cluster" / "postmaster.pid").exists()


async def test_demo_ends_in_order_when_nobody_reads(directory: Path) -> None:
    """`demo | head -1`: no traceback, exit 1, and what had been started is stopped."""
    line = '"$@" | head -1; echo "${PIPESTATUS[0]}"'
    with trio.fail_after(HANG_SECONDS):
        done = await trio.run_process(
            ["bash", "-c", line, "bash", *argv("demo", "--directory", str(directory))],
            env=environment({}),
            capture_stdout=True,
            capture_stderr=True,
        )

    assert (b"", b"1") == (done.stderr, done.stdout.splitlines()[-1])
    assert not (directory / "cluster" / "postmaster.pid").exists()
