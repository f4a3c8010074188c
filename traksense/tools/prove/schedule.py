"""What goes wrong, and when: a pure function of the seed."""

from __future__ import annotations

import enum
import math
from random import Random
from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.stack import BASEBACKUP, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Part(enum.StrEnum):
    """What a fault takes hold of. Faults of one part come one after the other, those of different parts overlap."""

    SERVICE = "service"
    DATABASE = "database"
    BROKER = "broker"
    DATABASE_LINK = "database link"
    BROKER_LINK = "broker link"
    POOLER = "connection pooler"
    PUBLISHER = "devices"


@attrs.frozen
class Fault:
    """A kind of fault.

    Attributes:
        name: As in `--faults`.
        part: What it takes hold of.
        summary: What is done, for people.
        seconds: How long it lasts: at least and at most. (0, 0) for what happens at once.
        harmless: It may stop nothing, not even while it lasts.
    """

    name: str
    part: Part
    summary: str
    seconds: tuple[float, float] = (0.0, 0.0)
    harmless: bool = False


_S, _D, _B, _DL, _BL = Part.SERVICE, Part.DATABASE, Part.BROKER, Part.DATABASE_LINK, Part.BROKER_LINK

FAILOVER: Final = "database-failover"
POOLER_KILL: Final = "pooler-kill"
RESTORE: Final = "operator-restore"
UNTIMED_MESSAGES: Final = "message-untimed"
PARTIAL_MESSAGES: Final = "message-partial"

CATALOGUE: Final = {
    fault.name: fault
    for fault in (
        Fault("service-kill", _S, "SIGKILL at a random moment"),
        Fault("service-kill-after-receive", _S, "SIGKILL when messages have just been read"),
        Fault("service-kill-registering", _S, "SIGKILL while new series are being registered"),
        Fault("service-kill-mid-batch", _S, "SIGKILL after COPY, before COMMIT"),
        Fault("service-kill-before-puback", _S, "SIGKILL between COMMIT and PUBACK"),
        Fault("service-kill-mid-puback", _S, "SIGKILL when half of the PUBACK bytes are sent"),
        Fault("service-restart", _S, "SIGTERM, drain, start again"),
        Fault("service-freeze", _S, "SIGSTOP for longer than the keepalive, SIGCONT", (4.5, 6.0)),
        Fault("service-zombie", _S, "SIGSTOP, another in its place, the first wakes up for a moment", (1.0, 3.0)),
        Fault("service-loss", _S, "SIGKILL, as if its host had died; another in its place later", (1.0, 4.0)),
        Fault("service-takeover", _S, "another with the same client id while the first works", (0.5, 2.5)),
        Fault("service-reshard", _S, "tenants dealt out anew, every replica restarted in turn"),
        Fault("service-clock", _S, "its clock is three days behind, later right again", (1.0, 3.0)),
        Fault("database-terminate", _D, "pg_terminate_backend of every backend of the service"),
        Fault("database-kill-backend", _D, "SIGKILL of one backend: the server restarts itself"),
        Fault("database-kill", _D, "SIGKILL of the postmaster, start again", (0.0, 1.0)),
        Fault("database-restart", _D, "fast shutdown, start again", (0.0, 1.0)),
        Fault("database-freeze", _D, "SIGSTOP of the service's backends, SIGCONT later", (0.5, 3.0)),
        Fault("database-read-only", _D, "default_transaction_read_only on, later off", (0.5, 2.5)),
        Fault("database-strangers", _D, "read-only while only unknown devices publish", (0.5, 2.5)),
        Fault(FAILOVER, _D, "synchronous standby away, primary SIGKILLed, standby promoted", (8.5, 9.5)),
        Fault("database-year", _D, "a year of daily partitions, and everything under way comes again"),
        Fault("operator-delete", _D, "an operator deletes a device and its series"),
        Fault("operator-rename", _D, "an operator renames a series"),
        Fault("operator-truncate", _D, "an operator empties measurements and names"),
        Fault(RESTORE, _D, "an operator restores a dump in place", (0.5, 1.5)),
        Fault("reader-locks", _D, "a tenant's reader locks what it may, in a transaction", (1.0, 2.0), harmless=True),
        Fault("database-full", _D, "every insertion raises 53100 disk_full, later no more", (0.5, 2.5)),
        Fault("database-reset", _DL, "RST on every connection"),
        Fault("database-ambiguous", _DL, "connection cut between COMMIT and its answer"),
        Fault("database-black-hole", _DL, "silence, both ways; the connections are dead afterwards", (1.0, 4.0)),
        Fault("database-slow", _DL, "80 ms more latency, 64 KiB/s", (1.0, 3.0)),
        Fault(POOLER_KILL, Part.POOLER, "SIGKILL of pgbouncer, start again", (0.0, 1.0)),
        Fault(UNTIMED_MESSAGES, Part.PUBLISHER, "many at once that are a number without a time"),
        Fault(PARTIAL_MESSAGES, Part.PUBLISHER, "good points around a bad one"),
        Fault("broker-restart", _B, "SIGTERM, start again", (0.0, 1.0)),
        Fault("broker-kill", _B, "SIGKILL, start again", (0.0, 1.0)),
        Fault("broker-reset", _BL, "RST on every connection"),
        Fault("broker-cut", _BL, "RST in the middle of a packet"),
        Fault("broker-black-hole", _BL, "silence, both ways, for longer than the keepalive", (4.0, 5.0)),
        Fault("broker-hold", _BL, "silence, then everything arrives late", (1.0, 5.0)),
        Fault("broker-slow", _BL, "80 ms more latency, 64 KiB/s", (1.0, 3.0)),
    )
}

GAP_SECONDS: Final = (0.1, 1.2)
CALM_SECONDS: Final = (2.0, 4.0)
CALMS: Final = 0.35
"""Between the beginnings of two faults: mostly a gap, so that they meet; else a calm, in which the service comes back
and has work to lose. Both are shorter if the time is too short for each kind to have its turn."""

WARM_UP_SECONDS: Final = 1.0
"""Nothing goes wrong before this."""


@attrs.frozen
class Injection:
    """One fault of a schedule.

    Attributes:
        at: Seconds after the beginning.
        fault: The name of its kind.
        seconds: How long it lasts.
        draw: A number that decides what else is left to chance, such as the passage of a kill point; 0-999.
    """

    at: float
    fault: str
    seconds: float
    draw: int


def missing_programs(faults: Iterable[str], bindir: Path) -> dict[str, str]:
    """Which of these faults cannot be done here, and what they lack; PostgreSQL's programs are in `bindir`."""
    programs = {FAILOVER: (BASEBACKUP,), RESTORE: ("pg_dump", "psql")}
    missing = {}
    for fault in faults:
        for program in programs.get(fault, ()):
            if not (bindir / program).exists():
                missing[fault] = f"{program}, which is not in {bindir}"
        if fault == POOLER_KILL and find_pgbouncer() is None:
            missing[fault] = "pgbouncer (Debian: apt-get install pgbouncer, or name it in TRAKSENSE_PGBOUNCER)"
    return missing


def suited(seed: int, faults: Iterable[str]) -> tuple[str, ...]:
    """What of this one run can have: a standby or a pooler, by its seed, where both are wanted."""
    wanted = tuple(faults)
    if not {FAILOVER, POOLER_KILL} <= {*wanted}:
        return wanted
    left_out = FAILOVER if seed % 2 else POOLER_KILL
    return tuple(fault for fault in wanted if fault != left_out)


def make_schedule(seed: int, seconds: float, faults: Iterable[str] = CATALOGUE) -> tuple[Injection, ...]:
    """The faults of a run, by time; each kind comes once before any comes again.

    Args:
        seed: The same seed makes the same schedule.
        seconds: How long messages are published.
        faults: The kinds to choose from, names of `CATALOGUE`.

    Raises:
        KeyError: There is no such kind.
    """
    random = Random(seed)  # noqa: S311  (repeatable, not secret)
    kinds = [CATALOGUE[name] for name in sorted(set(faults))]
    if not kinds:
        return ()
    injections: list[Injection] = []
    at, scale = WARM_UP_SECONDS, 1.0
    while at < seconds:
        deck = random.sample(kinds, len(kinds))
        gaps = [random.uniform(*(CALM_SECONDS if random.random() < CALMS else GAP_SECONDS)) for _ in deck]
        if not injections:
            # The first deck has to fit in, however short the time.
            scale = min(1.0, (seconds - WARM_UP_SECONDS) / sum(gaps))
        for fault, gap in zip(deck, gaps, strict=True):
            if at < seconds:
                lasting = random.uniform(*fault.seconds)
                injections.append(
                    Injection(_to_milliseconds(at), fault.name, _to_milliseconds(lasting), random.randrange(1000))
                )
            at += gap * scale
    return tuple(injections)


def _to_milliseconds(seconds: float) -> float:
    """Cut off, so that nothing comes later or lasts longer than it may."""
    return math.floor(seconds * 1000) / 1000
