"""Why a server's certificate is not trusted, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl

_EXPIRED: Final = (9, 10)
_OF_ANOTHER: Final = (62, 64)
"""The name, or the address. Source: OpenSSL, x509_vfy.h, X509_V_ERR_*."""


def untrusted(error: ssl.SSLCertVerificationError, authorities: str, url: str) -> str:
    """To be said after what it is the certificate of.

    Args:
        error: From the handshake.
        authorities: The setting that says whom we trust.
        url: The setting that says where the server is.
    """
    remedy = f"check {authorities} and {url}"
    if error.verify_code in _EXPIRED:
        remedy = "renew it on the server, or set this machine's clock"
    elif error.verify_code in _OF_ANOTHER:
        remedy = f"write a name that is in it in {url}, or renew it with this one"
    return f"is not trusted ({error.verify_message.removesuffix('.')}): {remedy}"
