"""Errors, named by whose fault they are. Foreign exceptions are translated in `mqtt/` and `store/` and do not leave
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from traksense.model import Reason, Rejection


class TraksenseError(Exception):
    """Base of every error that traksense raises on purpose."""


class ConfigError(TraksenseError):
    """The configuration is wrong; `faults` has one line for each fault, shaped `{variable}: {what}`."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class DecodeError(TraksenseError):
    """The message's fault: it becomes a dead letter with this reason and detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class BrokerError(TraksenseError):
    """The broker is away, closed the connection or broke the protocol: reconnect and go on."""


class BrokerRefusedError(BrokerError):
    """The broker refuses what we are configured to do; `variable` says where to look."""

    def __init__(self, message: str, variable: str) -> None:
        self.variable = variable
        super().__init__(message)


class ConnectionLostError(BrokerError):
    """The connection ended, and the broker did not say why."""


class SessionTakenOverError(BrokerError):
    """Another client connected with our client id and owns the session now; reconnecting would start a tug of war."""


class StoreError(TraksenseError):
    """The database refused or failed; `sqlstate` is its code, or None when there was no answer."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        self.sqlstate = sqlstate
        super().__init__(message)


class StoreUnavailableError(StoreError):
    """Nobody's data is at fault: connection, resources, shutdown, serialization, time-out. Wait and retry the whole
    batch.
    """


class StoreTooSlowError(StoreUnavailableError):
    """A statement was ended: it took too long, or an operator cancelled it. Nobody's fault as well, but the same work
    may take as long again: a smaller batch may pass.
    """


class StoreMisconfiguredError(StoreError):
    """An operator's to fix: a missing relation, column or right, an older schema. Wait and say so; dead-letter
    nothing.
    """


class ServerUnfitError(StoreMisconfiguredError):
    """The server, or a pooler before it, cannot keep what a COMMIT promises. At the start that is a wrong
    configuration; later, after a failover perhaps, it is waited for.
    """


class PoolBusyError(StoreUnavailableError):
    """Others of this process have all of its connections: that says nothing about the database."""


class DictionaryChangedError(StoreUnavailableError):
    """The numbers of series, devices or meta objects are not what was remembered: forget them, then write again."""


class SchemaNewerError(StoreMisconfiguredError):
    """The database was migrated by a newer release than this one; going on could store what that release cannot
    read.
    """


class DataRefusedError(StoreError):
    """The data's fault (SQLSTATE class 22 or 23, or the driver cannot encode it): some message in the batch is
    poison.
    """


class UnclassifiedStoreError(StoreError):
    """Neither the class of the error nor its fault is known: bisect, and call a message poison only if it fails
    alone.
    """


class DeliveriesRefusedError(StoreError):
    """The store knows which deliveries it cannot take: `rejections` maps their index in the batch to the reason."""

    def __init__(self, rejections: Mapping[int, Rejection]) -> None:
        self.rejections = rejections
        super().__init__(f"{len(rejections)} deliveries refused")


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group of groups, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    else:
        yield error
