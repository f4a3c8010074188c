"""Ports that the tools and tests give their servers: free, and never given twice while they are in use."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from traksense.tools.stack import StackError, free_port, servers

TAKE_PORTS = r"""
import os, sys
from concurrent.futures import ThreadPoolExecutor
from traksense.tools.stack import free_port

free_port()
os.fork()
sys.setswitchinterval(1e-6)
try:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            line = " ".join(str(port) for port in pool.map(lambda _: free_port(), range(600)))
            os.write(1, f"{line}\n".encode())  # so short that a pipe takes it whole
finally:
    os.write(1, b"done\n")
    sys.stdin.read()
"""


def test_free_port_is_given_once() -> None:
    """Two servers that are made before either of them starts do not get the same port, whether in different threads or
    processes, as the tests run in several, also where one process is the fork of the other.
    """
    given: list[str] = []
    with subprocess.Popen([sys.executable, "-c", TAKE_PORTS], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            given += line.split()
            if given.count("done") == 2:
                break

    assert 6000 == len(given) - 2 == len(set(given)) - 1


def test_free_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody listens is passed over; if that leaves none, it is said."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        monkeypatch.setattr(servers, "_ports_left", [server.getsockname()[1]])
        monkeypatch.setattr(servers, "_LAST_PORT", servers._FIRST_PORT)
        with pytest.raises(StackError, match="no free TCP port between 15000 and"):
            free_port()
