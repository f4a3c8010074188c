"""What the service says over HTTP: its metrics, that it lives, whether it is ready."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from traksense.errors import ConfigError
from traksense.names import printable_json
from traksense.web.server import Server, connection_limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

    from traksense.ingest.health import Health
    from traksense.web.server import Answer

BACKLOG: Final = 64
"""Connections that wait to be accepted."""

TAKEN: Final = ": does traksense run already? If something else listens there, choose another port"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        ConfigError: The address is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = (isinstance(error, OSError) and error.strerror) or "no such address"
        taken = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        variable = "METRICS_PORT" if taken else "METRICS_HOST"
        hint = TAKEN if isinstance(error, OSError) and error.errno == errno.EADDRINUSE else ""
        raise ConfigError([f"{variable}: cannot listen on {host}:{port}: {reason}{hint}"]) from error
    listener.setblocking(False)
    return listener


async def serve(listener: socket.socket, registry: CollectorRegistry, health: Health) -> None:
    """Answer until cancelled. Takes the listener over."""
    server = Server(lambda path: _answer(path, registry, health), limit=connection_limit())
    await server.serve(listener)


def readiness(conditions: Mapping[str, object], *, ready: bool) -> str:
    """What `/readyz` says: JSON, with a line for each condition, since people read it too."""
    lines = [f"    {printable_json(name)}: {printable_json(condition)}" for name, condition in conditions.items()]
    return f'{{\n  "ready": {printable_json(ready)},\n  "conditions": {{\n' + ",\n".join(lines) + "\n  }\n}\n"


def _answer(path: str, registry: CollectorRegistry, health: Health) -> Answer:
    if path == "/metrics":
        return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)
    if path == "/healthz":
        # That this answer is made at all is the point: the process lives and its loop turns.
        return 200, "application/json", b'{"alive": true}\n'
    if path == "/readyz":
        return (
            (200 if health.ready else 503),
            "application/json",
            readiness(health.report(), ready=health.ready).encode(),
        )
    return 404, "text/plain; charset=utf-8", b"try /metrics, /healthz or /readyz\n"
