"""The process as a supervisor sees it: signals from its first line to its last, and a stdout that takes nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.command_line import argv, environment
from tests.patience import HANG_SECONDS
from traksense.tools.stack import open_service

if TYPE_CHECKING:
    from traksense.tools.stack import ServiceProcess

NOBODY = {"MQTT_URL": "mqtt://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x", "METRICS_HOST": "127.0.0.1"}
"""Neither broker nor database: the service waits for both."""

STEP_IN = """
import builtins, os, signal, sys
real = builtins.__import__
def slow(name, *arguments, **options):
    if name == {module!r} and not sys.modules.get(name):
        os.kill(os.getpid(), signal.{signal})
    return real(name, *arguments, **options)
builtins.__import__ = slow
import runpy
sys.argv = ["traksense", {command!r}]
runpy.run_module("traksense", run_name="__main__", alter_sys=True)
"""
"""Runs a command that gets a signal while it imports this module."""


async def wait_alive(service: ServiceProcess) -> None:
    """Wait until the endpoint answers."""
    with trio.fail_after(HANG_SECONDS):
        while (await service.get("/healthz"))[0] != 200:
            await trio.sleep(0.02)


@pytest.mark.parametrize("module", ["argparse", "traksense.errors", "trio", "traksense.store.postgres"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signal_while_the_service_starts(module: str, number: str) -> None:
    """Exit 0 from the first import on, without a traceback."""
    code = STEP_IN.format(module=module, signal=number, command="run")
    done = subprocess.run(
        # Under nohup, SIGHUP would be ignored.
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{code}"],
        env=environment(NOBODY | {"METRICS_PORT": "0"}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.usefixtures("hangup_has_its_meaning")
@pytest.mark.parametrize(("number", "status"), [("SIGTERM", -signal.SIGTERM), ("SIGINT", 130), ("SIGHUP", 130)])
@pytest.mark.parametrize("module", ["traksense.errors", "traksense.store.migrate"])
def test_signal_while_another_command_starts(module: str, number: str, status: int) -> None:
    """It is not swallowed: the command ends by it, without a traceback; a closed terminal is Ctrl-C."""
    code = STEP_IN.format(module=module, signal=number, command="migrate")
    # A shell ignores SIGINT in what it starts with &, such as these tests.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment(NOBODY), capture_output=True)

    assert (status, b"", b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.usefixtures("hangup_has_its_meaning")
def test_closed_terminal_ends_what_ignores_ctrl_c() -> None:
    """As what a script starts with & does."""
    code = STEP_IN.format(module="traksense.errors", signal="SIGHUP", command="migrate")
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment(NOBODY), capture_output=True)

    assert -signal.SIGHUP == done.returncode


async def test_signals_until_the_end(tmp_path: Path) -> None:
    """One that is followed by many: exit 0, however far the end has come."""
    async with open_service(NOBODY, tmp_path) as service:
        await wait_alive(service)
        while service.status is None:
            service.send_signal(signal.SIGTERM)
            await trio.lowlevel.checkpoint()

        assert 0 == await service.wait()


@pytest.mark.usefixtures("hangup_has_its_meaning")
async def test_signals_without_a_meaning(tmp_path: Path) -> None:
    """USR1 and USR2, which what rotates logs sends, change nothing; HUP drains."""
    async with open_service(NOBODY, tmp_path) as service:
        await wait_alive(service)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            service.send_signal(number)
            assert 200 == (await service.get("/healthz"))[0]
        service.send_signal(signal.SIGHUP)

        assert 0 == await service.wait()
    assert '"signal": "SIGHUP"' in service.log_path.read_text(encoding="utf-8")


@pytest.mark.parametrize("stdout", ["full", "closed", "unread"])
async def test_log_that_nobody_takes(tmp_path: Path, stdout: str) -> None:
    """A full disk, a pipe without a reader, a pipe whose reader sleeps: the service lives, counts what it could not
    say, tells it once on stderr, and ends with exit 0.
    """
    where, told = tmp_path / "stdout", tmp_path / "stderr"
    end = None
    if stdout == "full":
        where.symlink_to("/dev/full")
    else:
        os.mkfifo(where)
        end = os.open(where, (os.O_RDWR if stdout == "unread" else os.O_RDONLY) | os.O_NONBLOCK)
    if end is not None and stdout == "unread":
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(end, b"x" * 4096)
    command = ("sh", "-c", 'exec "$0" -P -m traksense run >"$1" 2>"$2"', sys.executable, str(where), str(told))
    async with open_service(NOBODY, tmp_path, command=command) as service:
        await wait_alive(service)
        counted = (await service.metrics()).value("ingest_log_failures_total")
        if end is not None and stdout == "closed":
            os.close(end)
        assert 0 == await service.stop()

    lines = told.read_text(encoding="utf-8").splitlines()
    assert 1 == len(lines), lines
    assert lines[0].startswith("traksense: cannot write the log to stdout: ")
    assert counted >= 1 or stdout == "closed"
    if end is not None and stdout == "unread":
        os.close(end)


@pytest.mark.parametrize("command", ["shards show", "--help", "--version", "prove --list-faults"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("stdout", ["a full disk", "nobody reads"])
def test_answer_that_nobody_takes(command: str, unbuffered: str, stdout: str) -> None:
    """A command whose answer cannot be written has failed, in one line at most."""
    environ = environment({"MQTT_TENANTS": "a", "MQTT_SHARD_COUNT": "1", "PYTHONUNBUFFERED": unbuffered})
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") if stdout == "a full disk" else open(writer, "wb", closefd=False) as full:
        done = subprocess.run(
            argv(*command.split()), check=False, env=environ, stdout=full, stderr=subprocess.PIPE, text=True
        )

    os.close(writer)
    assert 1 == done.returncode
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
