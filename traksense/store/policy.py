"""How long data live, as an operator says it: `LIFECYCLE_*` in the environment.

| variable | default | |
|---|---|---|
| `LIFECYCLE_RETAIN_RAW` | `forever` | raw points; older ones are refused, as dead letters |
| `LIFECYCLE_RETAIN_1M`, `_5M`, `_1H` | `forever` | aggregates; each at least as long as the one before |
| `LIFECYCLE_RETAIN_EVENTS`, `_ACKS` | `forever` | |
| `LIFECYCLE_RETAIN_ERRORS` | `14 days` | dead letters, from when they last came |
| `LIFECYCLE_COMPRESS_AFTER` | `7 days` | TimescaleDB: chunks of raw points that ended so long ago; `never` |
| `LIFECYCLE_COMPRESS_AGGREGATES_AFTER` | `7 days` | TimescaleDB: chunks of aggregates, likewise |
| `LIFECYCLE_CHUNK_INTERVAL` | `1 day` | TimescaleDB: chunks from now on; whole hours |
| `LIFECYCLE_ONLINE_WITHIN` | `5 minutes` | a device heard so lately is online |

A duration is a number and a unit, `90 days` or `90d`. Events, acks and dead letters can be kept for another time for
some tenants: `LIFECYCLE_RETAIN_EVENTS="1 year, acme=30 days, bravo=forever"`.
"""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import attrs

from traksense import misspelt
from traksense.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "LIFECYCLE_"
FOREVER: Final = ("forever", "never")
PER_TENANT: Final = ("retain_events", "retain_acks", "retain_errors")

_UNITS: Final = {
    "s": timedelta(seconds=1),
    "second": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "min": timedelta(minutes=1),
    "minute": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "hour": timedelta(hours=1),
    "d": timedelta(days=1),
    "day": timedelta(days=1),
    "w": timedelta(weeks=1),
    "week": timedelta(weeks=1),
    "year": timedelta(days=365),
    "y": timedelta(days=365),
}
# A duration, and then what may have been meant for the tenant's name.
_NO_COMMA: Final = re.compile(r"(forever|never|\d{1,6}\s*[a-z]+)[\s;]", re.IGNORECASE)
_DURATION: Final = re.compile(r"(?P<number>\d{1,6})\s*(?P<unit>[a-z]+?)s?", re.IGNORECASE)

_RETENTION_MINIMUM: Final = timedelta(days=1)


@attrs.frozen(kw_only=True)
class Policy:
    """The policy. Each name is that of a setting in the database; None is for ever, or never."""

    retain_raw: timedelta | None = None
    retain_1m: timedelta | None = None
    retain_5m: timedelta | None = None
    retain_1h: timedelta | None = None
    retain_events: timedelta | None = None
    retain_acks: timedelta | None = None
    retain_errors: timedelta | None = timedelta(days=14)
    compress_after: timedelta | None = timedelta(days=7)
    compress_aggregates_after: timedelta | None = timedelta(days=7)
    chunk_interval: timedelta | None = timedelta(days=1)
    online_within: timedelta | None = timedelta(minutes=5)
    tenants: dict[tuple[str, str], timedelta | None] = attrs.field(factory=dict)
    """By tenant and kind (`events`, `acks`, `errors`)."""

    def items(self) -> dict[str, timedelta | None]:
        """All but the tenants' own, by name."""
        return {field.name: getattr(self, field.name) for field in attrs.fields(Policy) if field.name != "tenants"}


def load(environ: Mapping[str, str]) -> Policy:
    """Read the policy from environment variables; an empty variable counts as unset.

    Raises:
        ConfigError: With every fault, one line each.
    """
    values: dict[str, timedelta | None] = {}
    tenants: dict[tuple[str, str], timedelta | None] = {}
    faults: list[str] = []
    known = variables()
    for variable, name in known.items():
        text = environ.get(variable, "").strip()
        if not text:
            continue
        try:
            common, own = _read(text, tenants_allowed=name in PER_TENANT)
        except ValueError as error:
            faults.append(f"{variable}: {error}")
            continue
        if common is not _UNSET:
            values[name] = common  # type: ignore[assignment]  # not _UNSET, so a duration or None
        tenants.update({(tenant, name.removeprefix("retain_")): keep for tenant, keep in own.items()})
    faults += misspelt.faults(environ, known, (PREFIX,))
    policy = Policy(tenants=tenants, **values)
    faults += _contradictions(policy)
    if faults:
        raise ConfigError(faults)
    return policy


@attrs.frozen
class Setting:
    """What a variable says, in the operator's words; `default` says whether the default is what holds for all tenants
    that it does not name.
    """

    variable: str
    value: str
    default: bool

    def __str__(self) -> str:
        return f"{self.variable}={self.value}{' (default)' if self.default else ''}"


def settings(environ: Mapping[str, str]) -> list[Setting]:
    """The policy that `load` reads, variable by variable."""
    found = []
    for variable, name in variables().items():
        said = environ.get(variable, "").strip()
        # Each of the parts may be a tenant's own.
        default = not said or all("=" in part for part in said.split(","))
        common = [in_years(write_duration(getattr(Policy(), name)))] if default else []
        found.append(Setting(variable, ", ".join([*([said] if said else []), *common]), default))
    return found


def variables() -> dict[str, str]:
    """Every variable that `load` reads, with the setting that it is for."""
    return {PREFIX + field.name.upper(): field.name for field in attrs.fields(Policy) if field.name != "tenants"}


_UNSET: Final = object()


def _read(text: str, *, tenants_allowed: bool) -> tuple[object, dict[str, timedelta | None]]:
    common: object = _UNSET
    tenants: dict[str, timedelta | None] = {}
    for part in text.split(","):
        tenant, separator, duration = part.rpartition("=")
        if not separator:
            keep = _read_common(part.strip(), tenants_allowed=tenants_allowed)
            if common is not _UNSET:
                raise ValueError(f"only one duration can be for all tenants: {text!r}")
            common = keep
        elif not tenants_allowed:
            raise ValueError(
                "cannot differ by tenant, since measurements are dropped in partitions that all tenants share: set one "
                "duration"
            )
        elif not tenant.strip():
            raise ValueError(f"no tenant before the = in {part.strip()!r}")
        elif _NO_COMMA.match(tenant.strip()) or "=" in tenant:
            raise ValueError(f"a comma is missing in {part.strip()!r}")
        elif tenant.strip() in tenants:
            raise ValueError(f"{tenant.strip()} is named twice")
        else:
            tenants[tenant.strip()] = read_duration(duration)
    return common, tenants


def _read_common(text: str, *, tenants_allowed: bool) -> timedelta | None:
    """A part without a `=`, which may be a tenant whose duration is missing."""
    try:
        return read_duration(text)
    except ValueError:
        if not tenants_allowed:
            raise
        if not text:
            raise ValueError("has a comma with nothing before or after it") from None
        raise ValueError(
            f"{text!r} is neither a duration, like 90 days, 12h or forever, nor that of a tenant, like acme=30 days"
        ) from None


def read_duration(text: str) -> timedelta | None:
    """`90 days`, `12h`, `forever`.

    Raises:
        ValueError: It is none.
    """
    text = text.strip()
    if text.lower() in FOREVER:
        return None
    match = _DURATION.fullmatch(text)
    unit = _UNITS.get(match["unit"].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"must be a duration like 90 days, 12h or forever, not {text!r}")
    return int(match["number"]) * unit


def write_duration(value: timedelta | None) -> str:
    """As an operator would say it, and as PostgreSQL reads it."""
    if value is None:
        return "forever"
    for seconds, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        number, rest = divmod(int(value.total_seconds()), seconds)
        if not rest and number:
            return f"{number} {unit}{'s' if number != 1 else ''}"
    return "0 seconds"


def in_years(duration: str) -> str:
    """What `write_duration` has written, in years if it is some: the database has days, but that is not what people
    say.
    """
    days = re.fullmatch("([0-9]+) days", duration)
    if days is None or int(days[1]) % _UNITS["year"].days:
        return duration
    years = int(days[1]) // _UNITS["year"].days
    return f"{years} year{'s' if years != 1 else ''}"


def _contradictions(policy: Policy) -> list[str]:
    faults = [
        f"{PREFIX}{name.upper()}: must be at least {write_duration(_RETENTION_MINIMUM)}"
        for name, value in policy.items().items()
        if name.startswith("retain_") and value is not None and value < _RETENTION_MINIMUM
    ]
    faults += [
        f"{PREFIX}RETAIN_{kind.upper()}: must be at least {write_duration(_RETENTION_MINIMUM)} for {tenant} too"
        for (tenant, kind), value in policy.tenants.items()
        if value is not None and value < _RETENTION_MINIMUM
    ]
    levels = ("retain_raw", "retain_1m", "retain_5m", "retain_1h")
    for finer, coarser in pairwise(levels):
        fine, coarse = getattr(policy, finer), getattr(policy, coarser)
        if coarse is not None and (fine is None or fine > coarse):
            faults.append(
                f"{PREFIX}{coarser.upper()}: must be at least as long as {PREFIX}{finer.upper()} "
                f"({in_years(write_duration(fine))}), which it is computed from"
            )
    chunk = policy.chunk_interval
    if chunk is None or chunk < timedelta(hours=1) or chunk % timedelta(hours=1):
        faults.append(f"{PREFIX}CHUNK_INTERVAL: must be whole hours, at least 1 hour")
    if policy.online_within is None or policy.online_within <= timedelta():
        faults.append(f"{PREFIX}ONLINE_WITHIN: must be more than 0 seconds")
    return faults
