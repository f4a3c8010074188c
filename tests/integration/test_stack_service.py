"""Asking a service that may end at any moment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

from tests.patience import HANG_SECONDS
from traksense.tools.stack import open_service

if TYPE_CHECKING:
    from pathlib import Path

DYING = """
import os, socket
listener = socket.create_server(("127.0.0.1", int(os.environ["METRICS_PORT"])))
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000\\r\\n\\r\\nhalf")
    connection.close()
    print("answered", flush=True)
"""


async def test_service_that_dies_while_it_answers_has_not_answered(tmp_path: Path) -> None:
    """Half an answer is none: status 0, whatever came before (urllib raises http.client.IncompleteRead then)."""
    with trio.fail_after(HANG_SECONDS):
        async with open_service({}, tmp_path, command=(sys.executable, "-c", DYING)) as service:
            while "answered" not in service.log_path.read_text():
                assert (0, "") == await service.get("/metrics")
