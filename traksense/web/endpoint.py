"""An ASGI application on Hypercorn's Trio worker."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any, Final

import hypercorn.trio
import trio
from hypercorn.config import Config
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from traksense.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from traksense.ingest.health import Health

BACKLOG: Final = 64


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
    except OSError as error:
        listener.close()
        raise ConfigError([f"cannot listen on {host}:{port}: {error.strerror or error} @ METRICS_PORT"]) from error
    listener.setblocking(False)
    return listener


async def serve(listener: socket.socket, registry: CollectorRegistry, health: Health) -> None:
    """Answer until cancelled. Takes the listener over, as Hypercorn closes what it is given by number."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = None
    config.errorlog = None
    config.graceful_timeout = 1.0
    config.shutdown_timeout = 1.0
    await hypercorn.trio.serve(_application(registry, health), config, shutdown_trigger=trio.sleep_forever)


def _application(registry: CollectorRegistry, health: Health) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                event = (await receive())["type"]
                await send({"type": f"{event}.complete"})
                if event == "lifespan.shutdown":
                    return
        if scope["type"] != "http":
            return
        status, content_type, body = _answer(scope["path"], registry, health)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return application


def _answer(path: str, registry: CollectorRegistry, health: Health) -> tuple[int, str, bytes]:
    if path == "/metrics":
        return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)
    if path == "/healthz":
        # That this answer is made at all is the point: the process lives and its loop turns.
        return 200, "application/json", b'{"alive": true}\n'
    if path == "/readyz":
        body = json.dumps({"ready": health.ready, "conditions": health.report()}, indent=2) + "\n"
        return (200 if health.ready else 503), "application/json", body.encode()
    return 404, "text/plain; charset=utf-8", b"try /metrics, /healthz or /readyz\n"
