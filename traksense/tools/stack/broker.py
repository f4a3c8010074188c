"""A real MQTT broker as a child process: Mosquitto if installed, else rumqttd out of the `iotcore` wheel.

What differs, as found by tests/integration/test_stack.py:

| | Mosquitto 2.0 | iotcore 0.4 (rumqttd) |
|---|---|---|
| sessions and queues survive SIGTERM | yes | no, all is in memory |
| they survive SIGKILL | up to the last save | no |
| offline queue | `max_queued_messages` | about `IOTCORE_QUEUE_BYTES` a topic filter; the oldest go silently |
| messages in flight | Receive Maximum, and beyond it after a backlog | always 100, whatever the client asks |
| redelivery | same packet identifier, DUP set | in order, but new identifiers and DUP clear |
| session expiry | kept | ignored: a session stays |
| `$SYS` topics | yes | no: subscribing to them ends the connection |
| wrong credentials | CONNACK with a reason | the connection just ends |
| mutual TLS | yes | no: `capath` has no effect |
| client identifiers | any | none with `+`, `$`, `#` or `/` |
| MQTT 3.1.1 on the same port | yes | no: such a CONNECT is not answered |

So iotcore is good for a demonstration, and for nothing that proves durability or backpressure.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, Literal

import attrs

from traksense.tools.stack.errors import StackError
from traksense.tools.stack.processes import Child
from traksense.tools.stack.servers import PROBE_SECONDS, Server, free_port, listens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

Kind = Literal["mosquitto", "iotcore"]

MIB: Final = 1024 * 1024
IOTCORE_QUEUE_BYTES: Final = 256 * MIB
"""rumqttd keeps this much of each topic filter in memory, acknowledged or not.

Chosen by guess: some minutes of a demonstration's fleet."""
_IOTCORE_SEGMENTS: Final = 8
_GET_MOSQUITTO: Final = "install it (Debian: apt-get install mosquitto)"
_GET_IOTCORE: Final = "pip install 'traksense[demo]'"
_MOSQUITTO_PLACES: Final = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


@attrs.frozen(kw_only=True)
class TlsFiles:
    """A second listener that speaks TLS.

    With `require_certificate` it admits only clients that show a certificate which `ca` has signed.
    """

    ca: Path
    cert: Path
    key: Path
    require_certificate: bool = False


@attrs.frozen(kw_only=True)
class BrokerOptions:
    """What can be set. The defaults are those under which Mosquitto drops nothing (RELIABILITY.md 2.4).

    Every save rewrites the whole queue on Mosquitto's only thread. `autosave_on_changes` with an interval of
    1 saves at each change: it is for tests that kill the broker under a small load, not for throughput.
    """

    autosave_on_changes: bool = False
    autosave_interval: int = 30
    """Seconds, or changes with `autosave_on_changes`."""
    max_queued_messages: int = 10_000_000
    """A session. Explicit rather than 0: «unlimited» was broken in 2.0.16 and in part until 2.0.22."""
    max_inflight_messages: int = 2000
    """For MQTT 3.1.1; an MQTT 5 client's Receive Maximum replaces it."""
    max_packet_bytes: int = 16 * MIB
    """Well above `INGEST_PAYLOAD_MAX_BYTES`, so that it is traksense that judges a large message."""
    sys_interval: int = attrs.field(default=1, validator=[attrs.validators.ge(1), attrs.validators.le(10)])
    """Seconds between the `$SYS` figures."""
    users: Mapping[str, str] | None = None
    """Passwords by user name; None admits everybody."""
    tls: TlsFiles | None = None
    extra_config: tuple[str, ...] = ()
    """Further lines for mosquitto.conf; a number set twice counts as set last."""


class BrokerProcess(Server):
    """A broker that can be started, stopped, killed and started again; see `open_broker`."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        kind: Literal["auto", "mosquitto", "iotcore"] = "auto",
        options: BrokerOptions | None = None,
    ) -> None:
        self.kind, self._program = _find_broker(kind)
        self.options = options or BrokerOptions()
        if self.kind == "iotcore" and self.options.tls is not None and self.options.tls.require_certificate:
            raise StackError(f"iotcore does not ask clients for certificates: {_GET_MOSQUITTO}")
        super().__init__(self.kind, directory.absolute(), port)
        self.tls_port = free_port() if self.options.tls else None

    @property
    def url(self) -> str:
        """For `MQTT_URL`, without credentials."""
        return f"mqtt://{self.host}:{self.port}"

    @property
    def tls_url(self) -> str:
        """For `MQTT_URL`; the certificate must be good for `localhost`."""
        if self.tls_port is None:
            raise StackError(f"{self.name} has no TLS listener: set BrokerOptions.tls")
        return f"mqtts://localhost:{self.tls_port}"

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def _launch(self) -> Child:
        if self.kind == "mosquitto":
            config = self.directory / "mosquitto.conf"
            _write_private(config, self._mosquitto_config())
            argv: list[str | Path] = [self._program, "-c", config]
        else:
            config = self.directory / "iotcore.toml"
            _write_private(config, self._iotcore_config())
            # CRITICAL: rumqttd writes lines for every packet, and at the level ERROR.
            argv = [self._program, "-m", "iotcore", "--log-level", "CRITICAL", "--config", config]
        return Child(self.name, argv, log_path=self.log_path, cwd=self.directory)

    def _answers(self) -> bool:
        user = next(iter((self.options.users or {}).items()), None)
        if not _speaks_mqtt5(self.host, self.port, user):
            return False
        return self.tls_port is None or listens(self.host, self.tls_port)

    def _mosquitto_config(self) -> str:
        o = self.options
        lines = [
            "# Written by traksense at each start; changes are lost.",
            f"listener {self.port} {self.host}",
            *self._mosquitto_tls(),
            *self._mosquitto_users(),
            "persistence true",
            f"persistence_location {self.directory}/",
            f"autosave_on_changes {str(o.autosave_on_changes).lower()}",
            f"autosave_interval {o.autosave_interval}",
            f"max_queued_messages {o.max_queued_messages}",
            "max_queued_bytes 0",
            f"max_inflight_messages {o.max_inflight_messages}",
            "persistent_client_expiration 14d",
            f"max_packet_size {o.max_packet_bytes}",
            f"sys_interval {o.sys_interval}",
            "log_dest stderr",
            *(f"log_type {level}" for level in ("error", "warning", "notice", "information")),
            *o.extra_config,
        ]
        if os.geteuid() == 0:
            # Else it would become the user `mosquitto`, who cannot write here.
            lines.append("user root")
        return "\n".join(lines) + "\n"

    def _mosquitto_tls(self) -> list[str]:
        tls = self.options.tls
        if tls is None:
            return []
        return [
            f"listener {self.tls_port} {self.host}",
            f"cafile {tls.ca.absolute()}",
            f"certfile {tls.cert.absolute()}",
            f"keyfile {tls.key.absolute()}",
            f"require_certificate {str(tls.require_certificate).lower()}",
        ]

    def _mosquitto_users(self) -> list[str]:
        if self.options.users is None:
            return ["allow_anonymous true"]
        path = self.directory / "passwords"
        _write_private(path, "".join(f"{user}:{_mosquitto_hash(word)}\n" for user, word in self.options.users.items()))
        return ["allow_anonymous false", f"password_file {path}"]

    def _iotcore_config(self) -> str:
        o = self.options
        text = f"""\
# Written by traksense at each start; changes are lost.
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = {IOTCORE_QUEUE_BYTES // _IOTCORE_SEGMENTS}
max_segment_count = {_IOTCORE_SEGMENTS}
{self._iotcore_listener(1, self.port)}"""
        if o.tls is not None and self.tls_port is not None:
            text += self._iotcore_listener(2, self.tls_port)
            text += "    [v5.2.tls]\n"
            text += f"    certpath = {_toml(o.tls.cert.absolute())}\n"
            text += f"    keypath = {_toml(o.tls.key.absolute())}\n"
        return text

    def _iotcore_listener(self, number: int, port: int) -> str:
        o = self.options
        text = f"""\
[v5.{number}]
name = "v5-{number}"
listen = "{self.host}:{port}"
next_connection_delay_ms = 1
    [v5.{number}.connections]
    connection_timeout_ms = 60000
    max_payload_size = {o.max_packet_bytes}
    max_inflight_count = {o.max_inflight_messages}
    dynamic_filters = true
"""
        if o.users is not None:
            text += f"    [v5.{number}.connections.auth]\n"
            text += "".join(f"    {_toml(user)} = {_toml(word)}\n" for user, word in o.users.items())
        return text


@contextlib.asynccontextmanager
async def open_broker(
    directory: Path,
    *,
    port: int = 0,
    kind: Literal["auto", "mosquitto", "iotcore"] = "auto",
    options: BrokerOptions | None = None,
) -> AsyncIterator[BrokerProcess]:
    """Run a broker on the loopback interface; its state, configuration and log are in `directory`.

    Args:
        directory: Made if missing. The next run with the same directory finds the sessions again (Mosquitto).
        port: 0 takes a free one.
        kind: `auto` prefers Mosquitto.
        options: Limits, users and TLS.

    Raises:
        StackError: No such broker is installed, or it does not come up.

    Trio-flavored.
    """
    async with BrokerProcess(directory, port=port, kind=kind, options=options).opened() as broker:
        yield broker


def find_mosquitto() -> str | None:
    """The Mosquitto to run: `TRAKSENSE_MOSQUITTO`, else the one on the path or in the usual places."""
    named = os.environ.get("TRAKSENSE_MOSQUITTO")
    if named:
        return named
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MOSQUITTO_PLACES))
    return shutil.which("mosquitto", path=places)


def _find_broker(kind: Literal["auto", "mosquitto", "iotcore"]) -> tuple[Kind, str]:
    mosquitto = find_mosquitto() if kind != "iotcore" else None
    if mosquitto is not None:
        return "mosquitto", mosquitto
    if kind != "mosquitto" and importlib.util.find_spec("iotcore") is not None:
        return "iotcore", sys.executable
    raise StackError(
        {
            "mosquitto": f"Mosquitto is missing: {_GET_MOSQUITTO}, or name it in TRAKSENSE_MOSQUITTO",
            "iotcore": f"the iotcore broker is missing: {_GET_IOTCORE}",
            "auto": f"no MQTT broker here: {_GET_MOSQUITTO}, or {_GET_IOTCORE}",
        }[kind]
    )


def _speaks_mqtt5(host: str, port: int, user: tuple[str, str] | None) -> bool:
    """Whether a CONNECT is answered by a CONNACK, whatever that says: a refusal is an answer too."""
    # Source: MQTT 5.0 §3.1: name, level 5, Clean Start (user, password), keep alive 5 s, no properties.
    body = b"\x00\x04MQTT\x05" + (b"\xc2" if user else b"\x02") + b"\x00\x05\x00"
    for text in (f"ready-{secrets.token_hex(6)}", *(user or ())):
        body += struct.pack("!H", len(text.encode())) + text.encode()
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as connection:
            connection.sendall(b"\x10" + _variable_byte_integer(len(body)) + body)
            answered = connection.recv(4)[:1] == b"\x20"
            if answered:
                connection.sendall(b"\xe0\x00")
            return answered
    except OSError:
        return False


def _variable_byte_integer(value: int) -> bytes:
    """Source: MQTT 5.0 §1.5.5."""
    result = bytearray()
    while True:
        value, low = divmod(value, 128)
        result.append(low | (0x80 if value else 0))
        if not value:
            return bytes(result)


def _mosquitto_hash(password: str) -> str:
    """`$7$`, PBKDF2 of SHA-512 with 101 rounds. Source: what mosquitto_passwd 2.0 writes."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _toml(text: str | Path) -> str:
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write_private(path: Path, text: str) -> None:
    """Replace a file that only we may read: it may hold passwords."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
