"""What is said of certificates by which two parties do not come together, in handshakes as they happen."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from traksense.errors import ConfigError
from traksense.mqtt.stream import reason
from traksense.store.fault_words import describe
from traksense.tools.check_config import check

if TYPE_CHECKING:
    from pathlib import Path

OURS, OTHERS = trustme.CA(), trustme.CA()
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FILES = ("MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE")
PARAMETERS = ("sslrootcert", "sslcert", "sslkey")
HOST = "postgresql://user:geheim@127.0.0.1:1/x"


def fault(
    server: trustme.LeafCert,
    ours: trustme.LeafCert | None = None,
    *,
    asking: bool = False,
    oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLError:
    """What a client that trusts our authority meets at a server with this certificate; with ours, if that is given.

    Args:
        server: Its certificate.
        ours: The client's, which the server then asks for.
        asking: Whether it asks anyway.
        oldest: The client's lowest version of TLS.
        newest: The server's highest one.
    """
    client, listener = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.minimum_version, listener.maximum_version = oldest, newest
    for context in (client, listener):
        OURS.configure_trust(context)
    server.configure_cert(listener)
    if ours:
        ours.configure_cert(client)
    if ours or asking:
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
            "renew it on the server, or its CA's there and in {0}, whichever it is, or set this machine's clock",
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


@pytest.mark.parametrize(("asking", "oldest"), [(True, ssl.TLSVersion.TLSv1_2), (False, ssl.TLSVersion.TLSv1_3)])
def test_a_server_that_wants_something_else(asking: bool, oldest: ssl.TLSVersion) -> None:
    """With TLS 1.2 it has the same words for much: what it may be is named, and not only in OpenSSL's words."""
    error = fault(OURS.issue_cert("localhost"), asking=asking, oldest=oldest, newest=ssl.TLSVersion.TLSv1_2)

    assert (
        "the broker ends the TLS handshake: it wants another certificate than ours, or one at all (MQTT_CERT_FILE, "
        "MQTT_KEY_FILE), or has no TLS version or cipher in common with us: look at its log" == reason(error)
    )


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are, or are not, what they are taken for."""
    folder = tmp_path_factory.mktemp("pem")
    leaf = OURS.issue_cert("us")
    OURS.cert_pem.write_to_path(str(folder / "ca"))
    leaf.cert_chain_pems[0].write_to_path(str(folder / "cert"))
    leaf.private_key_pem.write_to_path(str(folder / "key"))
    OURS.issue_cert("them").private_key_pem.write_to_path(str(folder / "another"))
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    shut = serialization.BestAvailableEncryption(b"geheim")
    (folder / "shut").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, shut)
    )
    (folder / "combined").write_bytes((folder / "cert").read_bytes() + (folder / "shut").read_bytes())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "ec").write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*form))
    (folder / "ed25519").write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*form))
    rsa = OURS.issue_cert("us", key_type=trustme.KeyType.RSA)
    rsa.cert_chain_pems[0].write_to_path(str(folder / "rsa-cert"))
    rsa.private_key_pem.write_to_path(str(folder / "rsa"))
    (folder / "folder").mkdir()
    return folder


@pytest.mark.parametrize(
    ("files", "at_fault", "why"),
    [
        (("key", "cert", "key"), 0, "holds no certificate in PEM form that can be read: {0}"),
        (("ca", "key", "cert"), 1, "holds no certificate in PEM form: {1}: see that {names[1]} and {names[2]} are not"),
        (("ca", "key", None), 1, "holds no certificate in PEM form: {1}"),
        (("ca", "cert", None), 1, "holds no private key in PEM form: {1}: name its file in {names[2]}"),
        (("ca", "cert", "ca"), 2, "holds no private key in PEM form: {2}: see that {names[1]} and {names[2]} are not"),
        (("ca", "cert", "another"), 2, "is not the key of the certificate in {names[1]}: {2}"),
        (("ca", "cert", "rsa"), 2, "is not the key of the certificate in {names[1]}: {2}"),
        (("ca", "rsa-cert", "ec"), 2, "is not the key of the certificate in {names[1]}: {2}"),
        (("ca", "rsa-cert", "ed25519"), 2, "is not the key of the certificate in {names[1]}: {2}"),
        (
            ("ca", "combined", None),
            1,
            # The other file would be without the certificate.
            "its key has a pass phrase: write the key without it into a file of its own (openssl pkey -in {1} -out",
        ),
        (("ca", "cert", "shut"), 2, "has a pass phrase: remove it: openssl pkey -in {2} -out NEW"),
        (("ca", "cert", "folder"), 2, None),
        (("folder", None, None), 0, None),
        (("nothing", None, None), 0, None),
    ],
)
def test_files_of_ours(pem: Path, files: tuple[str | None, ...], at_fault: int, why: str | None) -> None:
    """The setting and the file that are at fault, for broker and database, before anything connects; nobody is asked
    for a pass phrase.
    """
    paths = [str(pem / file) if file else None for file in files]
    mqtt = {name: path for name, path in zip(FILES, paths, strict=True) if path}
    query = urlencode({name: path for name, path in zip(PARAMETERS, paths, strict=True) if path})
    with pytest.raises(ConfigError) as broker:
        check({"MQTT_URL": "mqtts://broker", **mqtt})
    with pytest.raises(ConfigError) as database:
        check({"DATABASE_URL": f"{HOST}?sslmode=require&{query}"})

    is_folder = "folder" in files
    otherwise = "a folder, no file" if is_folder else "no such file"
    expected = f"{FILES[at_fault]}: {why.format(*paths, names=FILES) if why else otherwise}"
    (found,) = broker.value.faults
    assert found.startswith(expected), found
    otherwise = f"cannot be read: {'Is a directory' if is_folder else 'No such file or directory'}: {paths[at_fault]}"
    expected = f"{PARAMETERS[at_fault]}: {why.format(*paths, names=PARAMETERS) if why else otherwise}"
    (found,) = database.value.faults
    assert found.startswith(f"DATABASE_URL: postgresql://user:***@127.0.0.1:1/x: {expected}"), found


def test_a_pass_phrase_of_the_url_is_used(pem: Path) -> None:
    """It is the driver's parameter; a wrong one is called so."""
    url = f"{HOST}?sslmode=require&sslcert={pem / 'cert'}&sslkey={pem / 'shut'}&sslpassword="
    check({"DATABASE_URL": f"{url}geheim"})
    with pytest.raises(ConfigError, match="sslkey: has another pass phrase than the one given: remove it: "):
        check({"DATABASE_URL": f"{url}other"})
