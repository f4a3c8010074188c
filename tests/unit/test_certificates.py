"""What is said of certificates by which two parties do not come together, in handshakes as they happen."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest
import trustme

from traksense.mqtt.stream import reason
from traksense.store.fault_words import describe

OURS, OTHERS = trustme.CA(), trustme.CA()
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def fault(server: trustme.LeafCert, ours: trustme.LeafCert | None = None) -> ssl.SSLError:
    """What a client that trusts our authority meets at a server with this certificate; with ours, if that is given."""
    client, listener = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for context in (client, listener):
        OURS.configure_trust(context)
    server.configure_cert(listener)
    if ours:
        ours.configure_cert(client)
        listener.verify_mode = ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(down, up, server_hostname="localhost"),
        listener.wrap_bio(up, down, server_side=True),
    )
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
                end.read()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                if end is ends[0]:
                    return error
    raise AssertionError("they came together")


@pytest.mark.parametrize(
    ("server", "why", "remedy"),
    [
        (OTHERS.issue_cert("localhost"), "unable to get local issuer certificate", "check {0} and {1}"),
        (
            OURS.issue_cert("localhost", not_before=LONG_AGO, not_after=LONG_AGO),
            "certificate has expired",
            "renew it on the server, or set this machine's clock",
        ),
        (
            OURS.issue_cert("example.org"),
            "Hostname mismatch, certificate is not valid for 'localhost'",
            "write a name that is in it in {1}, or renew it with this one",
        ),
    ],
)
def test_certificate_of_a_server(server: trustme.LeafCert, why: str, remedy: str) -> None:
    """Another authority helps only where that is what is wrong."""
    error = fault(server)
    broker = remedy.format("MQTT_CA_FILE", "MQTT_URL")
    database = remedy.format("sslrootcert", "DATABASE_URL")

    assert f"the certificate of the broker is not trusted ({why}): {broker}" == reason(error)
    assert f"the certificate of the database server is not trusted ({why}): {database}" == describe(error)


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        (OTHERS.issue_cert("us"), "unknown ca"),
        (OURS.issue_cert("us", not_before=LONG_AGO, not_after=LONG_AGO), "certificate expired"),
    ],
)
def test_certificate_of_ours(ours: trustme.LeafCert, why: str) -> None:
    """The variable is named."""
    assert (
        f"the broker does not trust the certificate in MQTT_CERT_FILE ({why}): take another, or look at its log"
        == reason(fault(OURS.issue_cert("localhost"), ours))
    )
