"""Environments of any kind: settings, or faults that name their variables and quote no secret."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from traksense.adapters import Registry
from traksense.config import Settings, load, variables
from traksense.errors import ConfigError
from traksense.ingest.decode import Decoder
from traksense.urls import DATABASE_FORM, ENCODE, MQTT_FORM, PORT_MAX, SSL_MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

NOON: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)
NAMES: Final = sorted(name for name in variables() if not name.endswith("_FILE"))
SECRET: Final = ("DATABASE_URL", "MQTT_URL", "MQTT_PASSWORD")

SAID_OF_SECRETS: Final = {
    *(f"{form}{more}" for form in (DATABASE_FORM, MQTT_FORM) for more in ("", f"; {ENCODE}")),
    *(f"{form}, with a port of 1-{PORT_MAX}; {ENCODE}" for form in (DATABASE_FORM, MQTT_FORM)),
    f"must have one of {', '.join(SSL_MODES)} as sslmode",
    f"must have 1-{PORT_MAX} as port",
    "must end after the port; topics belong in MQTT_TOPICS",
    "must name one broker: several addresses behind one name, or a TCP proxy, do what a list would",
    "must be UTF-8",
}
"""Every sentence that there is about a variable that holds a secret: none has room for a part of it."""


def one_input(data: bytes) -> None:
    """Lines NAME=value, where a number stands for the variable in that place; bytes that are not UTF-8 come as Python
    gives them.
    """
    environ = {}
    for line in data.split(b"\n"):
        name, _, value = line.decode("utf-8", "surrogateescape").partition("=")
        if name.isascii() and name.isdecimal() and len(name) < 4:
            name = NAMES[int(name) % len(NAMES)]
        if not name.endswith("_FILE"):
            environ[name] = value
    try:
        settings = load(environ)
    except ConfigError as error:
        check_faults(error.faults)
    else:
        check(settings)


def check_faults(faults: Sequence[str]) -> None:
    """Each names its variable; of a secret, it says nothing but what is right."""
    assert faults
    for fault in faults:
        variable, at, what = fault.partition(": ")
        assert at
        assert variable not in SECRET or what in SAID_OF_SECRETS, fault


def check(settings: Settings) -> None:
    """What is made of them can be made, and shows no secret."""
    Decoder(settings, Registry(), now=lambda: NOON)
    assert settings.receive_maximum >= 1
    assert settings.client_id
    assert isinstance(settings.topics, tuple)
    # What a URL says of credentials is in front of the @, or in its parameters; of these a URL shows the user.
    shown, told = (re.sub("//[^/?#]*@", "//", url) for url in (str(settings.database), settings.database.dsn.reveal()))
    assert shown == told.partition("?")[0]
    for secret in (settings.database.dsn, settings.broker.password, settings.mqtt_password):
        assert secret is None or repr(secret) == "'***'"
