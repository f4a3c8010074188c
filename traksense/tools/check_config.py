"""What a configuration comes to, and all that is wrong with it, found without a broker or a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from traksense import config
from traksense.adapters import load_registry
from traksense.errors import ConfigError
from traksense.mqtt.stream import tls_context
from traksense.store import policy
from traksense.store.url_check import check_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from traksense.config import Settings

DAY: Final = 86_400


def check(environ: Mapping[str, str]) -> Settings:
    """All that the commands read: the variables of the service, the policy of how long data live, the files that they
    name, and the adapters that are installed.

    Raises:
        ConfigError: With the faults of all of them.
    """
    faults: list[str] = []

    def collect(read: Callable[[], object]) -> None:
        try:
            read()
        except ConfigError as error:
            faults.extend(error.faults)

    settings = config.Settings()
    try:
        settings = config.load(environ)
    except ConfigError as error:
        faults.extend(error.faults)
    else:
        collect(lambda: tls_context(settings))
        collect(lambda: check_url(settings.database))
    collect(lambda: policy.load(environ))
    collect(load_registry)
    if faults:
        raise ConfigError(faults)
    return settings


def as_text(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    """What is set, without secrets, and what follows from all of it."""
    known = config.variables()
    given = [name for name in [*known, *policy.variables()] if environ.get(name)]
    for name in given:
        yield f"{name}={_shown(settings, name, environ[name])}"
    yield f"{len(given)} set, {len(known) + len(policy.variables()) - len(given)} as they are by default"
    yield ""
    yield f"broker     {settings.broker}, MQTT {settings.mqtt_version}, QoS {settings.mqtt_qos}"
    yield f"session    {settings.client_id}, kept for {_duration(settings.mqtt_session_expiry)} while we are away"
    if settings.layout is not None and settings.mqtt_shard is None:
        yield f"reads      one of {settings.mqtt_shard_count} shards; each process needs its number in MQTT_SHARD"
    else:
        yield f"reads      {', '.join(settings.topics) or 'nothing: this shard has no tenants'}"
    yield f"database   {settings.database}, {settings.db_pool_max} connections"
    yield f"metrics    http://{settings.metrics_host}:{settings.metrics_port}/metrics, /healthz, /readyz"


def _shown(settings: Settings, variable: str, text: str) -> str:
    """As it is set, or as it is logged where there may be a secret in it."""
    field = config.variables().get(variable)
    if field is None or not field.metadata["from_file"] or variable.endswith("_FILE"):
        return text
    value = getattr(settings, field.name)
    return text if isinstance(value, tuple) else str(value)


def _duration(seconds: float) -> str:
    days = seconds / DAY
    return f"{days:g} days" if days >= 2 and days == int(days) else f"{seconds:g} s"
