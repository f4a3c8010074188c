"""What commands say of a broker that is not there, or refuses them: with its address, and as the service says it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from traksense.config import note_of_default_broker
from traksense.errors import BrokerError, BrokerRefusedError, ConfigError

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
    except BrokerRefusedError as error:
        raise ConfigError([f"{error.variable}: {error}"]) from error
    except BrokerError as error:
        raise type(error)(f"{broker}: {error}{note_of_default_broker(os.environ)}") from error
