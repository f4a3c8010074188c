"""Publishes a fleet to the broker of the settings, and reports what was confirmed."""

from __future__ import annotations

import json
import logging
import secrets
import signal
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from traksense.log import TextFormatter
from traksense.mqtt.stream import tls_context
from traksense.terminal import say
from traksense.tools.fleet import Fleet, FleetOptions, Format, Limits, Tally, play
from traksense.tools.fleet.faults import BEYOND_DEFAULT_TOPICS
from traksense.tools.json_text import ascii_json
from traksense.tools.outbox import PACKET_TOO_LARGE
from traksense.tools.progress import BesideProgress, Progress
from traksense.tools.publisher import open_publisher

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator

    from traksense.config import Settings
    from traksense.tools.publisher import Publisher

DRAIN_SECONDS: Final = 30.0
"""How long the broker may take for the last confirmations before they count as missing."""

SEEDED_START_HOUR: Final = 10.0


async def simulate(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the command; returns the exit status.

    Raises:
        BrokerError: The broker is not there, or refuses us.

    Trio-flavored.
    """
    progress = Progress()
    handler = BesideProgress(progress, TextFormatter(), to=sys.stderr)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    options = _options(arguments)
    run = _Run(options, Tally(), str(settings.broker), arguments.qos)
    limits = Limits(seconds=arguments.seconds, messages=arguments.messages)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_publisher(
            settings.broker,
            client_id=f"traksense-simulate-{secrets.token_hex(4)}",
            window=arguments.window,
            version=settings.mqtt_version,
            username=settings.username,
            password=settings.password,
            tls=tls_context(settings),
            on_confirmed=run.tally.confirm,
            on_refused=run.tally.refuse,
        ) as publisher:
            run.publisher = publisher
            if not arguments.json:
                say(run.announcement(), flush=True, hanging=2)
            await run.go(limits, signals, progress)
    if arguments.json:
        say(ascii_json(json.dumps(run.as_dict())))
    else:
        say(run.summary(), hanging=4)
        if run.qos:
            say(run.comparison())
    return 0 if run.complete else 1


@attrs.define
class _Run:
    options: FleetOptions
    tally: Tally
    broker: str
    qos: int
    publisher: Publisher | None = None
    started_at: float = attrs.field(factory=time.time)
    seconds: float = 0.0

    async def go(self, limits: Limits, signals: AsyncIterator[int], progress: Progress) -> None:
        """Publish until a limit or a signal, then wait for the confirmations until a deadline or another signal."""
        assert self.publisher is not None
        fleet = Fleet(self.options)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            stages = [playing := trio.CancelScope(), draining := trio.CancelScope()]
            nursery.start_soon(_cancel_on_signals, signals, stages)
            with progress:
                progress.at(self._so_far)
                with playing:
                    await play(fleet, self.publisher, self.tally, limits=limits, qos=self.qos)
                self.seconds = trio.current_time() - begun
                if playing in stages:
                    stages.remove(playing)
                draining.deadline = trio.current_time() + DRAIN_SECONDS
                with draining:
                    await self.publisher.drain()
            nursery.cancel_scope.cancel()

    def _so_far(self) -> str:
        tally, fault = self.tally, self.publisher.fault if self.publisher else None
        state = f"; no connection: {fault}" if fault else ""
        return f"{tally.published:,} published, {tally.confirmed:,} confirmed{state}"

    @property
    def complete(self) -> bool:
        """Whether the broker has all but what is meant to be too large for it."""
        refused = self.tally.refused.total() - self.tally.oversize
        return not refused and (self.qos == 0 or not self.tally.unconfirmed)

    def announcement(self) -> str:
        """What is about to happen."""
        o = self.options
        rate = f"{o.rate:,.0f} points/s" if o.rate else "as fast as possible"
        return (
            f"Publishing to {self.broker}: {o.tenants} tenants ({o.tenant_prefix}…) × {o.devices} devices, {rate}, "
            f"format {o.format or 'mixed'}, seed {o.seed}. Ctrl-C ends it."
        )

    def summary(self) -> str:
        """The counts for people."""
        t, seconds = self.tally, max(self.seconds, 1e-9)
        if self.qos == 0:
            return (
                f"Published with QoS 0 in {seconds:.1f} s: {t.published:,} messages, {t.published_points:,} points "
                f"({t.published_points / seconds:,.0f}/s). None of it is confirmed."
            )
        points = t.points + t.repeats.points
        confirmed = f"{t.confirmed:,} of {t.published:,} messages, {points:,} points"
        lines = [
            f"Confirmed by the broker in {seconds:.1f} s: {confirmed}",
            f"  that is {t.confirmed / seconds:,.0f} messages/s and {points / seconds:,.0f} points/s",
            _line("telem", t.telemetry_messages, t.points, _listed(t.telemetry)),
            _line("event", t.events),
            _line("ack", t.acknowledgements),
            _line("bad", t.bad.total(), None, _listed(t.bad)),
            _line("repeated", t.repeats.messages, t.repeats.points, "sent twice on purpose; they store nothing"),
            _line("late", t.late.messages, t.late.points, "of the telemetry, sent after later ones"),
        ]
        return "\n".join([*lines, *self._troubles()])

    def _troubles(self) -> list[str]:
        t, counters = self.tally, self._counters()
        refused = {code: count for code, count in t.refused.items() if code != PACKET_TOO_LARGE}
        beyond = sum(t.bad[fault] for fault in BEYOND_DEFAULT_TOPICS)
        said = [
            (t.unconfirmed, "never confirmed: the broker may have them or not"),
            (
                sum(refused.values()),
                f"refused by the broker (reason {', '.join(f'0x{code:02X}' for code in sorted(refused))})",
            ),
            (t.refused[PACKET_TOO_LARGE], "not sent: larger than the broker's Maximum Packet Size"),
            (counters["unmatched"], "confirmed, but the broker has no subscriber for them: they are not stored"),
            (
                counters["retransmitted"],
                f"published again after a lost connection ({counters['reconnections']} reconnections)",
            ),
            (beyond, "bad ones on topics outside the default MQTT_TOPICS: only traksense/# receives them"),
        ]
        return [f"  {count:,} {what}" for count, what in said if count]

    def comparison(self) -> str:
        """How to compare, for a person to paste: each statement stays on one line."""
        since = f"'{datetime.fromtimestamp(self.started_at, UTC).isoformat(timespec='seconds')}'"
        prefix = self.options.tenant_prefix.replace("'", "''")
        ours = f"starts_with(tenant_id, '{prefix}')"
        dead = self.tally.dead(all_topics=False).total()
        rows = [
            (f"ts_measure WHERE {ours} AND ts >= {since}", self.tally.points),
            (f"device_event WHERE {ours} AND ts >= {since}", self.tally.events),
            (f"cmd_ack WHERE {ours} AND ts_exec >= {since}", self.tally.acknowledgements),
            (f"ingest_errors WHERE starts_with(topic, 'traksense/{prefix}') AND ts >= {since}", dead),
        ]
        statements = (f"  SELECT count(*) FROM {where};  -- {count}" for where, count in rows)  # noqa: S608  (not ours to run)
        return "\n".join(["Compare:", *statements])

    def as_dict(self) -> dict[str, Any]:
        """The same for machines."""
        o = self.options
        return {
            "complete": self.complete,
            "broker": self.broker,
            "started_at": datetime.fromtimestamp(self.started_at, UTC).isoformat(),
            "seconds": round(self.seconds, 3),
            "qos": self.qos,
            "fleet": {**attrs.asdict(o), "format": o.format or "mixed"},
            **self.tally.as_dict(),
            "connection": self._counters(),
        }

    def _counters(self) -> dict[str, int]:
        return attrs.asdict(self.publisher.counters) if self.publisher else {}


def _options(arguments: argparse.Namespace) -> FleetOptions:
    hour = arguments.start_hour
    if hour is None:
        now = datetime.now()  # noqa: DTZ005  (the hour that people here see)
        hour = now.hour + now.minute / 60 if arguments.seed is None else SEEDED_START_HOUR
    return FleetOptions(
        tenants=arguments.tenants,
        devices=arguments.devices,
        points=arguments.points,
        rate=arguments.rate,
        format=None if arguments.format == "mixed" else Format(arguments.format),
        bad=arguments.bad / 100,
        duplicates=arguments.duplicates / 100,
        disorder=arguments.disorder / 100,
        seed=secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed,
        start_hour=hour,
        speed=arguments.speed,
        tenant_prefix=arguments.tenant_prefix,
    )


async def _cancel_on_signals(signals: AsyncIterator[int], stages: list[trio.CancelScope]) -> None:
    async for _ in signals:
        if stages:
            stages.pop(0).cancel()


def _line(what: str, messages: int, points: int | None = None, details: str = "") -> str:
    counted = f"{points:>12,} points" if points is not None else " " * 19
    return f"  {what:<9}{messages:>10,} messages {counted}  {details}".rstrip()


def _listed(counts: Any) -> str:
    return ", ".join(f"{name} {getattr(count, 'points', count):,}" for name, count in sorted(counts.items()))
