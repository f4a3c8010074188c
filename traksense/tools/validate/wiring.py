"""The first message: do broker, service and database belong together?

One point of our own tenant, and behind it on the same topic, whose order the broker keeps, messages with an empty
payload: a service counts them apart (`ingest_messages_empty_total`) and stores nothing of them. So it can be told also
on a busy service, and without leaving rows, whether it receives what we publish. That all is well is believed of the
point's row alone; the counter is evidence where there is none.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from traksense.model import Kind, Reason
from traksense.store.sessions import IN_USE_SECONDS
from traksense.tools.validate import payloads
from traksense.tools.validate.target import (
    BUSY,
    FENCES,
    OPERATORS_USER,
    CheckFailedError,
    Target,
    in_flight,
    utc_now,
)

if TYPE_CHECKING:
    from traksense.tools.validate.report import Result

DEVICE: Final = "wiring"

EMPTY_MESSAGES: Final = 128
"""So many that others' are not taken for ours, and that a dead letter of ours is less than one message in a hundred
(the alert TraksenseDeadLetters)."""

SURE_SECONDS: Final = 3.0
"""How much longer a row is waited for that should be there already. Chosen by guess."""

_SESSION: Final = """
SELECT client_id, broker, extract(epoch FROM now() - last_alive_at)::float8,
    coalesce(left_at < last_alive_at, true) AND last_alive_at > now() - make_interval(secs => $1)
FROM traksense.ingest_session ORDER BY 4 DESC, last_alive_at DESC LIMIT 1
"""

_DEAD: Final = "SELECT reason, detail FROM public.ingest_errors WHERE tenant_id = $1 AND payload = $2"

_EMPTY: Final = "ingest_messages_empty_total"
_ABANDONED: Final = "ingest_messages_abandoned_total"

_DATABASE: Final = "let DATABASE_URL name the database that the service at this endpoint has (its own DATABASE_URL)"


@attrs.frozen
class _Seen:
    """What became of the first message.

    Attributes:
        row: Whether its point can be read.
        dead: The reason and the detail of its dead letter, if there is one.
        empty: How many empty messages the service has received since then, of ours or others.
        received: How many messages in all, of ours or others.
        settled: Whether it received all of ours, and nothing that it had received by then is in flight.
        stuck: Whether it holds a message that may be ours.
        gauges: What it has in flight, for people.
    """

    row: bool
    dead: tuple[str, str] | None
    empty: float
    received: float
    settled: bool
    stuck: bool
    gauges: str


async def wiring(target: Target, result: Result) -> None:
    """What is published here is received by the service at the endpoint, and appears in this database.

    Raises:
        CheckFailedError: It does not; the finding says where it ended. What may be stored out of our reach is noted in
            the target.
    """
    session = await _find_session(target)
    started = trio.current_time()
    seen = await _send(target)
    if seen.dead is not None:
        raise _dead_letter(target, *seen.dead)
    if seen.row and not seen.empty:
        raise CheckFailedError(
            f"stored in this database, but not by the service at {target.endpoint.url}, which received none of it",
            "name the endpoint of the process that reads this tenant with METRICS_PORT or --metrics-url",
        )
    if not seen.row:
        raise await _not_stored(target, seen, session)
    seconds = trio.current_time() - started
    figure = f"received by {target.endpoint.url} and stored in {target.settings.database}, {seconds * 1000:.0f} ms"
    result.add("ok", "First message", figure, seconds=seconds)


async def _find_session(target: Target) -> tuple[str, str]:
    """Client id and broker of the service that this database heard of last.

    A service that is ready says every ten seconds in its database that it lives; without that, nothing need be
    published to know that it has another one.
    """
    rows, _ = await target.until(target.rows(_SESSION, IN_USE_SECONDS), lambda found: bool(found) and found[0][3])
    client_id, broker, age, in_use = rows[0] if rows else ("", "", None, False)
    if not in_use:
        last = "none ever was" if age is None else f"the last one, {client_id}, {age:.0f} s ago"
        raise CheckFailedError(
            f"the service at {target.endpoint.url} is ready, but no service is at work in {target.settings.database} "
            f"({last}): it stores into another database; nothing was published",
            _DATABASE,
        )
    return client_id, broker


async def _send(target: Target) -> _Seen:
    """Publish, and wait until it is known what became of it, or patience ends."""
    before = await target.endpoint.scrape()
    # Among shards the tenant is always the same: an earlier run may have left its own.
    point = f"canary-{secrets.token_hex(5)}"
    payload = payloads.numbers(utc_now(), {point: 1.0})
    await target.publish(Kind.TELEM, payload, device=DEVICE)
    for _ in range(EMPTY_MESSAGES):
        await target.publish(Kind.TELEM, b"", device=DEVICE)
    await target.confirm()
    target.stored += 1
    confirmed = trio.current_time()
    heard_at: list[float] = []

    async def look() -> _Seen:
        asked = trio.current_time()
        samples = await target.endpoint.scrape()
        # Asked after the scrape: what had ended by then must be visible.
        row = await target.count(FENCES[Kind.TELEM], target.tenant, DEVICE, point) > 0
        dead = await target.database.fetch(_DEAD, target.tenant, payload)
        empty = samples.value(_EMPTY) - before.value(_EMPTY)
        age = samples.value("ingest_oldest_unacknowledged_seconds")
        # What was in flight on a connection that is lost is forgotten, and comes again.
        again = samples.value(_ABANDONED) > before.value(_ABANDONED)
        holds = again or samples.value("ingest_in_flight_messages") > 0
        settled = bool(heard_at) and not again and (not holds or age < asked - heard_at[0])
        if not heard_at and empty >= EMPTY_MESSAGES:
            heard_at.append(trio.current_time())
        return _Seen(
            row=row,
            dead=(dead[0][0], dead[0][1]) if dead else None,
            empty=empty,
            received=samples.total("ingest_messages_total") - before.total("ingest_messages_total"),
            settled=settled,
            stuck=holds and not settled and (bool(heard_at) or age >= asked - confirmed),
            gauges=in_flight(samples),
        )

    def known(seen: _Seen) -> bool:
        sure = trio.current_time() - confirmed > SURE_SECONDS
        return seen.dead is not None or (seen.row and seen.empty > 0) or (sure and (seen.settled or _unheard(target)))

    seen, _ = await target.until(look, known)
    return seen


def _unheard(target: Target) -> bool:
    """Whether the broker says that nobody is subscribed; many brokers never do."""
    return target.publisher.counters.unmatched > EMPTY_MESSAGES


async def _not_stored(target: Target, seen: _Seen, session: tuple[str, str]) -> CheckFailedError:
    client_id, broker = session
    ours = f"1 point of tenant {target.tenant}"
    if seen.stuck:
        target.out_of_reach = f"the service may still store {ours}"
        return CheckFailedError(
            f"not stored within {target.patience:g} s, and the service has messages in flight: {seen.gauges}; "
            f"GET /readyz: {await _complaints(target)}",
            f"ops/operations.md#health has a section for each condition; {BUSY}",
        )
    if seen.settled:
        target.out_of_reach = f"the service's own database has {ours}"
        return CheckFailedError(
            f"the service at {target.endpoint.url} received what was published and has nothing of it in flight, but "
            f"{target.settings.database} has neither its row nor a dead letter: it stores into another database",
            _DATABASE,
        )
    step = (
        f"let MQTT_URL, MQTT_TOPICS, MQTT_TENANTS and MQTT_SHARD be those of the service at this endpoint (the service "
        f"{client_id} of this database is connected to {broker})"
    )
    if _unheard(target):
        heard = f"{target.settings.broker} confirms, and says that nobody is subscribed to it"
    else:
        heard = f"{target.settings.broker} confirms, but the service does not get it within {target.patience:g} s"
        target.out_of_reach = f"whoever is subscribed there may have stored {ours}, or do it later"
        step += (
            "; if it works off a backlog, wait for that; some brokers confirm, and drop, what a user may not publish: "
            + OPERATORS_USER
        )
    return CheckFailedError(
        f"{heard}: of {EMPTY_MESSAGES} messages {seen.empty:.0f} reached {target.endpoint.url}, which received "
        f"{seen.received:.0f} in all meanwhile",
        step,
    )


def _dead_letter(target: Target, reason: str, detail: str) -> CheckFailedError:
    steps = {
        Reason.UNKNOWN_DEVICE: "the service has INGEST_PROVISIONING=strict: set the same for `validate`, which then "
        "registers its devices beforehand and removes them afterwards",
        Reason.TIMESTAMP_OUT_OF_WINDOW: "set the clocks of this machine and of the service's (NTP), or correct "
        "INGEST_TS_MIN and INGEST_TS_AHEAD_SECONDS",
    }
    if target.settings.provisioning == "strict":
        steps[Reason.UNKNOWN_DEVICE] = "the service does not find what was just registered here: report it"
    step = next((step for known, step in steps.items() if known == reason), "ops/operations.md#dead-letters")
    return CheckFailedError(f"the service made a dead letter of it: {reason} ({detail})", step)


async def _complaints(target: Target) -> str:
    """Why the service is not ready, in its own words."""
    status, body = await target.endpoint.get("/readyz")
    try:
        conditions: dict[str, Any] = json.loads(body)["conditions"]
        said = [f"{name}: {one['reason']}" for name, one in conditions.items() if not one["ok"]]
    except (ValueError, LookupError, TypeError):
        said = [" ".join(body.split())]
    return f"{status}, {'; '.join(said)}" if said else str(status)
