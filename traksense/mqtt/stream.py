"""TCP and TLS to the broker, opened by Trio."""

from __future__ import annotations

import os
import re
import socket
import ssl
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from traksense.certificates import load_own, untrusted, unusable_authorities
from traksense.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from traksense.config import Settings

Stream: TypeAlias = trio.SocketStream | trio.SSLStream[trio.SocketStream]

CONNECT_TIMEOUT_SECONDS: Final = 10.0
PLAIN_PORT: Final = ": if this port is one without TLS, write mqtt:// in MQTT_URL"
_OURS: Final = re.compile("ALERT_(.*CERTIFICATE.*|UNKNOWN_CA)$")
"""What the broker says of our certificate, as OpenSSL names it."""
_NOTHING_IN_COMMON: Final = re.compile("ALERT_(HANDSHAKE_FAILURE|PROTOCOL_VERSION|INSUFFICIENT_SECURITY)$")
"""What it says where it does not take what we offer; with TLS 1.2, also where it asks for a certificate of ours."""

UNACKNOWLEDGED_BYTES_TIMEOUT_SECONDS: Final = 60
"""TCP_USER_TIMEOUT: how long bytes that we sent may stay unacknowledged by the peer's kernel. It finds a black hole
even while reading is paused and PINGRESP therefore unseen."""


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context that the settings ask for, or None for plain TCP.

    Raises:
        ConfigError: A file is not what it should be.
    """
    if not settings.broker.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.mqtt_ca_file)
    except OSError as error:
        raise ConfigError([unusable_authorities(error, settings.mqtt_ca_file or "", "MQTT_CA_FILE")]) from error
    if settings.mqtt_cert_file is not None:
        try:
            load_own(context, settings.mqtt_cert_file, settings.mqtt_key_file, ("MQTT_CERT_FILE", "MQTT_KEY_FILE"))
        except ValueError as error:
            raise ConfigError([str(error)]) from error
    return context


async def open_stream(host: str, port: int, context: ssl.SSLContext | None) -> Stream:
    """Connect, with a deadline; the TLS handshake is done when this returns.

    Raises:
        BrokerError: In one line, what failed.
    """
    tcp: trio.SocketStream | None = None
    try:
        with trio.fail_after(CONNECT_TIMEOUT_SECONDS):
            tcp = await trio.open_tcp_stream(host, port)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_BYTES_TIMEOUT_SECONDS * 1000)
            if context is None:
                return tcp
            stream = trio.SSLStream(tcp, context, server_hostname=host, https_compatible=True)
            await stream.do_handshake()
            return stream
    except BaseException as error:
        if tcp is not None:
            await trio.aclose_forcefully(tcp)
        hint = PLAIN_PORT if context is not None and tcp is not None and _may_be_plain(root(error)) else ""
        if isinstance(error, trio.TooSlowError):
            raise BrokerError(f"no connection within {CONNECT_TIMEOUT_SECONDS:.0f} s{hint}") from error
        if isinstance(error, (OSError, UnicodeError, trio.BrokenResourceError)):
            raise BrokerError(f"cannot connect: {reason(root(error))}{hint}") from error
        raise


def _may_be_plain(error: BaseException) -> bool:
    """Whether a TLS handshake ends so with a peer that knows nothing of TLS: it hangs up, or answers something else."""
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return True
    return error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


def reason(error: BaseException) -> str:
    """In words, with what to do where that is known, and without the number and the address that stand in front: the
    URL is named elsewhere.
    """
    if isinstance(error, socket.gaierror):
        return str(error.strerror)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the broker {untrusted(error, 'MQTT_CA_FILE', 'MQTT_URL')}"
    if isinstance(error, ssl.SSLError) and (alert := _OURS.search(error.reason or "")):
        if alert[1] == "CERTIFICATE_REQUIRED":
            return "the broker asks for a certificate: set MQTT_CERT_FILE and MQTT_KEY_FILE"
        why = alert[1].replace("_", " ").lower()
        return f"the broker does not trust the certificate in MQTT_CERT_FILE ({why}): take another, or look at its log"
    if isinstance(error, ssl.SSLError) and _NOTHING_IN_COMMON.search(error.reason or ""):
        return (
            "the broker ends the TLS handshake: it wants another certificate than ours, or one at all (MQTT_CERT_FILE, "
            "MQTT_KEY_FILE), or has no TLS version or cipher in common with us: look at its log"
        )
    known = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    return os.strerror(known) if known else str(error)


def root(error: BaseException) -> BaseException:
    """What was at the bottom of it: Trio wraps the refusals of all addresses of a host."""
    while error.__cause__ is not None or isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__  # type: ignore[assignment]  # not None
    return error
