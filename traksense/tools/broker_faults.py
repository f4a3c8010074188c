"""What commands say of a broker that is not there, or refuses them: with its address, and as the service says it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from traksense.config import note_of_default_broker
from traksense.errors import BrokerError, BrokerRefusedError, ConfigError, leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.config import Broker


@contextmanager
def told(broker: Broker) -> Iterator[None]:
    """Whatever of this broker fails in the block says which one it is.

    Raises:
        ConfigError: The broker refuses what we are configured to do; the fault names the variable.
        BrokerError: It failed otherwise.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        # Of a nursery in the block.
        errors = list(leaves(group))
        if not all(isinstance(error, BrokerError) for error in errors):
            raise
        raise _located(errors[0], broker) from group
    except BrokerError as error:
        raise _located(error, broker) from error


def _located(error: BaseException, broker: Broker) -> BaseException:
    if isinstance(error, BrokerRefusedError):
        return ConfigError([f"{error.variable}: {error}"])
    return type(error)(f"{broker}: {error}{note_of_default_broker(os.environ)}")
