"""What an operator can do about a failure that no check has expected."""

from __future__ import annotations

import ssl
from typing import Final

from traksense.errors import BrokerRefusedError, StoreUnavailableError
from traksense.mqtt.stream import root
from traksense.store.fault_words import LOST
from traksense.tools.validate.endpoint import EndpointError
from traksense.tools.validate.target import OPERATORS_USER, CheckFailedError

ENDPOINT: Final = "does the service run, and is this its endpoint? It is named by METRICS_PORT or --metrics-url"

OWNERS_DATABASE: Final = "DATABASE_URL must name the database that the service writes to, and the login of its owner"

NEWER_RELEASE: Final = "run the release here that the service has"

HEALTH: Final = "ops/operations.md#health has a section for each condition"

NO_TENANT: Final = {
    False: "put traksense/+/+/+/telem into MQTT_TOPICS, of the service as well; where it shall read these tenants "
    "only, `validate` cannot try it",
    True: "list validate and validate-b in MQTT_TENANTS, pinned to the shard whose METRICS_PORT this is",
}
"""Whether there are shards: what to do where a tenant of our own is not read."""

_SERVICES_BROKER: Final = "MQTT_URL must name the broker of the service"

_NOT_MIGRATED: Final = (
    "if this is the database that the service writes to, run `traksense migrate` as its owner; else correct "
    "DATABASE_URL"
)

_SESSION_LOST: Final = (
    f"something ended that session, or the server: if GET /readyz says 200 by now, run `validate` again, else {HEALTH}"
)


def of_broker(error: Exception) -> str:
    """Where the broker cannot be reached, or refuses."""
    if isinstance(error, BrokerRefusedError):
        return f"{_SERVICES_BROKER}; {OPERATORS_USER}"
    if isinstance(root(error), ssl.SSLError):
        # It runs, and what was found says what to do.
        return f"do what it says; {_SERVICES_BROKER}, and the files for TLS must be those of the service"
    return f"is the broker running? {_SERVICES_BROKER}"


def of_database(error: Exception) -> str:
    """Where the database cannot be reached, or used."""
    if "run `traksense migrate`" in str(error):
        return _NOT_MIGRATED
    if isinstance(error, StoreUnavailableError) and not isinstance(root(error), ssl.SSLError):
        return f"is PostgreSQL running? {OWNERS_DATABASE}"
    return OWNERS_DATABASE


def of_check(error: BaseException) -> str:
    """Where a check ends with it."""
    if isinstance(error, CheckFailedError):
        return error.next_step
    if isinstance(error, EndpointError):
        return ENDPOINT
    return _SESSION_LOST if has_lost_session(error) else HEALTH


def has_lost_session(error: BaseException) -> bool:
    """Whether our connection to the database has ended, which nothing opens anew."""
    return isinstance(error, StoreUnavailableError) and LOST in str(error)
