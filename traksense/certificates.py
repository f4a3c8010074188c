"""What is wrong with certificates and keys, the server's and ours, and what to do about it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, TypeAlias

File: TypeAlias = str | Path

_EXPIRED: Final = (9, 10)
_OF_ANOTHER: Final = (62, 64)
"""The name, or the address. Source: OpenSSL, x509_vfy.h, X509_V_ERR_*."""

_PEM: Final = {"certificate": b"CERTIFICATE-----", "private key": b"PRIVATE KEY-----"}
"""How the lines that begin such a block end. Source: RFC 7468."""

_MISMATCH: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""Another key; another kind of key, which OpenSSL keeps apart from the certificate, where it then misses one."""


def untrusted(error: ssl.SSLCertVerificationError, authorities: str, url: str) -> str:
    """To be said after what it is the certificate of.

    Args:
        error: From the handshake.
        authorities: The setting that says whom we trust.
        url: The setting that says where the server is.
    """
    remedy = f"check {authorities} and {url}"
    if error.verify_code in _EXPIRED:
        # Python does not say which one of the chain.
        remedy = (
            f"renew it on the server, or its CA's there and in {authorities}, whichever it is, or set this machine's "
            "clock"
        )
    elif error.verify_code in _OF_ANOTHER:
        remedy = f"write a name that is in it in {url}, or renew it with this one"
    return f"is not trusted ({error.verify_message.removesuffix('.')}): {remedy}"


def unusable_authorities(error: OSError, path: File, name: str) -> str:
    """Why a file of those whom we trust could not be loaded; begins with the setting that names it."""
    if isinstance(error, ssl.SSLError):
        what = "CRL" if name == "sslcrl" else "certificate"
        return f"{name}: holds no {what} in PEM form that can be read: {path}"
    return f"{name}: cannot be read: {error.strerror}: {path}"


def load_own(
    context: ssl.SSLContext, cert: File, key: File | None, names: tuple[str, str], pass_phrase: str = ""
) -> None:
    """Show our own certificate to whoever asks for it.

    Args:
        context: Of our side.
        cert: The file of the certificate.
        key: The file of its key, if it is another one.
        names: The settings that name the two.
        pass_phrase: Of the key. Without one nobody is asked for it: a service has nobody to ask.

    Raises:
        ValueError: They are of no use; the text begins with the setting that is at fault.
    """
    asked = []

    def answer() -> str:
        asked.append(True)
        return pass_phrase

    try:
        context.load_cert_chain(cert, key, password=answer)
    except OSError as error:  # of which OpenSSL's are a kind
        shut = "has a pass phrase" if not pass_phrase else "has another pass phrase than the one given"
        raise ValueError(_own_fault(error, cert, key, names, shut if asked else "")) from error


def _own_fault(error: OSError, cert: File, key: File | None, names: tuple[str, str], shut: str) -> str:
    """OpenSSL does not say which of the files it is, nor, as a rule, what is wrong with it."""
    holder, holders_name = (cert, names[0]) if key is None else (key, names[1])
    if getattr(error, "reason", None) in _MISMATCH:
        return f"{holders_name}: is not the key of the certificate in {names[0]}: {holder}"
    if shut and key is None:
        # What `openssl pkey` writes has no certificate.
        return (
            f"{names[0]}: its key {shut}: write the key without it into a file of its own (openssl pkey -in {cert} "
            f"-out NEW) and name that in {names[1]}"
        )
    if shut:
        return f"{holders_name}: {shut}: remove it: openssl pkey -in {holder} -out NEW"
    for name, path, what in ((names[0], cert, "certificate"), (holders_name, holder, "private key")):
        try:
            text = Path(path).read_bytes()
        except OSError as unreadable:
            return f"{name}: cannot be read: {unreadable.strerror}: {path}"
        if _PEM[what] not in text:
            remedy = f": see that {names[0]} and {names[1]} are not exchanged"
            if key is None:
                remedy = f": name its file in {names[1]}" if what == "private key" else ""
            return f"{name}: holds no {what} in PEM form: {path}{remedy}"
    return f"{names[0]}: OpenSSL cannot use this certificate and its key, make them anew ({error.strerror}): {cert}"
