"""`traksense dlq` against the real thing: what a device sent wrong is found, seen, fixed, sent again, deleted."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from tests.acceptance.service_bench import ServiceBench, envelope, running_service
from tests.command_line import Outcome, argv, environment, run_command
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.store import dead_letters
from traksense.store.connection import open_connection
from traksense.store.dead_letters import Selection
from traksense.store.sql_files import LATEST
from traksense.tools.dlq import replay
from traksense.tools.dlq.replay import Counts, Replay
from traksense.tools.stack import BrokerOptions, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess

BYTES = b"\x00\xff\xfe not UTF-8 \xc3\x28 \x00\r\n"


async def dlq(env: dict[str, str], *arguments: str) -> Outcome:
    """Run the command."""
    with trio.fail_after(HANG_SECONDS):
        return await run_command(env, "dlq", *arguments)


async def listed(env: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """What `dlq list` finds."""
    outcome = await dlq(env, "list", "--json", *arguments)
    assert (0, "") == (outcome.status, outcome.stderr)
    letters: list[dict[str, Any]] = json.loads(outcome.stdout)
    return letters


@pytest.fixture
async def bench(database: str, broker: BrokerProcess, tenant: str, tmp_path: Path) -> AsyncIterator[ServiceBench]:
    """A service that takes registered devices only."""
    async with running_service(broker, database, tenant, tmp_path, INGEST_PROVISIONING="strict") as running:
        yield running


def insert(dsn: str, topic: str, payload: bytes = b"{}") -> int:
    """A dead letter that no service wrote; its id."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "INSERT INTO ingest_errors (topic, payload, reason, digest)"
            " VALUES (%s, %s, 'parse_error', decode(md5(random()::text), 'hex')) RETURNING id",
            (topic, payload),
        ).fetchone()
    assert row is not None
    return int(row[0])


def open_ids(dsn: str) -> list[int]:
    """The dead letters that are open."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT id FROM ingest_errors WHERE replayed_at IS NULL ORDER BY id")
        return [row[0] for row in rows]


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_dlq_shows_what_came_byte_for_byte(bench: ServiceBench) -> None:
    """A payload with NUL and invalid UTF-8 is listed with its reason, and comes out exactly as it went in."""
    await bench.publish((bench.topic(), BYTES), (bench.topic(), b'{"t": "\xc2\xb0C"}'))
    await bench.wait_ended(2)

    binary, text = sorted(await listed(bench.environ), key=lambda letter: -letter["bytes"])
    assert ("parse_error", bench.tenant, bench.topic(), len(BYTES)) == tuple(
        binary[name] for name in ("reason", "tenant_id", "topic", "bytes")
    )
    raw = await dlq(bench.environ, "show", str(binary["id"]), "--raw")
    assert (0, BYTES, "") == (raw.status, raw.stdout, raw.stderr)
    shown = await dlq(bench.environ, "show", str(binary["id"]))
    assert "00000000  00 ff fe 20 6e 6f 74 20  55 54 46 2d 38 20 c3 28  |... not UTF-8 .(|" in shown.text.splitlines()
    for_machines = json.loads((await dlq(bench.environ, "show", str(binary["id"]), "--json")).stdout)
    assert (BYTES, None) == (base64.b64decode(for_machines["payload_base64"]), for_machines["payload_text"])
    assert '{"t": "°C"}' == (await dlq(bench.environ, "show", str(text["id"]))).text.splitlines()[-1]


async def test_dlq_list_is_a_table_with_a_count_beside_it(bench: ServiceBench) -> None:
    """People get one line a dead letter on stdout, and on stderr how many there are and how many more."""
    await bench.publish(*((bench.topic(), f"bad {number}".encode()) for number in range(3)))
    await bench.wait_ended(3)

    outcome = await dlq(bench.environ, "list", "--tenant", bench.tenant, "--since", "1h", "--limit", "2")

    heading, *lines = outcome.text.splitlines()
    assert ["ID", "TS", "LAST_TS", "TENANT", "REASON", "REPEATS", "BYTES", "TOPIC", "DETAIL"] == heading.split()
    assert [[bench.tenant, "parse_error", "0", "5", bench.topic()]] * 2 == [line.split()[3:8] for line in lines]
    assert "traksense: 2 of 3 dead letters; --limit shows more\n" == outcome.stderr
    assert [] == await listed(bench.environ, "--until", "1h")


async def test_dlq_list_does_not_mind_a_reader_that_goes_away(bench: ServiceBench) -> None:
    """`dlq list | head` ends without a traceback."""
    await bench.publish((bench.topic(), b"bad"))
    await bench.wait_ended(1)
    with trio.fail_after(HANG_SECONDS):
        process = await trio.run_process(
            ["sh", "-c", f"{shlex.quote(sys.executable)} -m traksense dlq list | true"],
            env=environment(bench.environ),
            capture_stderr=True,
        )

    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("list >&-", 0),
        ("list --json >&-", 0),
        ("show 4711 --raw >&-", 1),
        ("replay --open --dry-run >&-", 0),
        ("purge --open <&-", 2),
    ],
)
async def test_dlq_does_not_mind_closed_streams(database: str, action: str, status: int) -> None:
    """As a service manager or a careless script starts it: no traceback, and nothing is deleted unasked."""
    number = insert(database, "traksense/acme/site/device/telem")
    with trio.fail_after(HANG_SECONDS):
        done = await trio.run_process(
            ["sh", "-c", f"{shlex.quote(sys.executable)} -m traksense dlq {action}"],
            env=environment({"DATABASE_URL": database}),
            capture_stderr=True,
            check=False,
        )

    assert (status, True) == (done.returncode, done.stderr.count(b"\n") <= 1)
    assert [number] == open_ids(database)


# --- replaying --------------------------------------------------------------------------------------------------------


async def test_dlq_replay_stores_what_can_be_stored_now(bench: ServiceBench) -> None:
    """Messages of an unknown device are stored once it is registered, once however often they are replayed."""
    messages = [envelope([{"name": f"p{number}", "v": number}]) for number in range(3)]
    await bench.publish(*((bench.topic(device="late"), message) for message in messages))
    await bench.wait_ended(3)
    await bench.query("INSERT INTO traksense.tenant (tenant_id) VALUES ($1)", bench.tenant)
    await bench.query(
        "INSERT INTO traksense.device (tenant_id, site_id, device_id) VALUES ($1, 'factory', 'late')", bench.tenant
    )

    dry = await dlq(bench.environ, "replay", "--reason", "unknown_device", "--dry-run")
    first = await dlq(bench.environ, "replay", "--reason", "unknown_device", "--json")
    await bench.wait_ended(6)
    again = await dlq(bench.environ, "replay", "--tenant", bench.tenant, "--all")
    await bench.wait_ended(9)

    assert "would publish 3 of 3 dead letters\n" == dry.text
    assert {"dry_run": False, "selected": 3, "published": 3} == {
        k: v for k, v in json.loads(first.stdout).items() if v or k == "dry_run"
    }
    assert "published 3 of 3 dead letters\n" == again.text
    assert [0, 0, 0] == [outcome.status for outcome in (dry, first, again)]
    assert [] == await listed(bench.environ)
    assert 3 == len(await listed(bench.environ, "--all"))
    points = await bench.query(
        "SELECT point_id, v_num FROM ts_measure WHERE tenant_id = $1 ORDER BY point_id", bench.tenant
    )
    assert [("p0", 0.0), ("p1", 1.0), ("p2", 2.0)] == points


async def test_dlq_replay_of_a_still_bad_message_opens_it_again(bench: ServiceBench) -> None:
    """What is refused again is one dead letter, open, with one repeat more; replay says which command finds it."""
    await bench.publish((bench.topic(), BYTES))
    await bench.wait_ended(1)
    (letter,) = await listed(bench.environ)
    insert(bench.dsn, bench.topic())
    await bench.query("UPDATE ingest_errors SET ts = ts - interval '1 hour'")

    outcome = await dlq(bench.environ, "replay", str(letter["id"]))
    await bench.wait_ended(2)

    assert (0, "published 1 of 1 dead letter\n") == (outcome.status, outcome.text)
    (command,) = re.findall("`traksense dlq list (.*)`", outcome.stderr)
    (again,) = await listed(bench.environ, *command.split())
    assert (letter["id"], 1, None) == (again["id"], again["repeats"], again["replayed_at"])
    raw = await dlq(bench.environ, "show", str(letter["id"]), "--raw")
    assert BYTES == raw.stdout


async def test_dlq_replay_leaves_what_cannot_be_published(bench: ServiceBench) -> None:
    """Topics with escaped bytes, and ids that are not there, are reported and left; the rest goes; exit 1."""
    good = insert(bench.dsn, bench.topic())
    escaped = insert(bench.dsn, f"traksense/{bench.tenant}/\\xff/device/telem")
    outcome = await dlq(bench.environ, "replay", str(good), str(escaped), "999999")

    assert 1 == outcome.status
    assert "published 1 of 3 dead letters (1 unpublishable, 1 missing)\n" == outcome.text
    left, gone, rest = outcome.stderr.splitlines()
    assert f"traksense: {escaped}: left alone: the topic had bytes that are not UTF-8" == left
    assert "traksense: 999999: there is no such dead letter, or the other options exclude it" == gone
    assert "is open again" in rest
    assert escaped in open_ids(bench.dsn)


async def test_dlq_replay_is_not_stopped_by_a_topic_that_the_broker_hates(bench: ServiceBench) -> None:
    """For a control character it would end the connection, each time, and take all others with it."""
    hated = insert(bench.dsn, f"traksense/{bench.tenant}/a\x1b/device/telem")
    good = insert(bench.dsn, bench.topic())

    outcome = await dlq(bench.environ, "replay", "--open")

    assert (1, "published 1 of 2 dead letters (1 unpublishable)\n") == (outcome.status, outcome.text)
    assert hated in open_ids(bench.dsn)
    assert good not in open_ids(bench.dsn)


async def test_dlq_replay_without_a_subscriber_stays_open(database: str, own_broker: OwnBroker) -> None:
    """A broker that has nobody to give the message to says so in its PUBACK: the dead letter stays open, exit 1."""
    number = insert(database, "traksense/acme/site/device/telem")
    outcome = await dlq({"DATABASE_URL": database, "MQTT_URL": own_broker().url}, "replay", "--open")

    assert 1 == outcome.status
    assert "published 0 of 1 dead letter (1 refused)\n" == outcome.text
    assert f"{number}: no client subscribes to its topic" in outcome.stderr
    assert [number] == open_ids(database)


async def test_dlq_replay_publishes_nothing_that_it_could_not_mark(bench: ServiceBench) -> None:
    """On a read-only database nothing is published: one line, exit 1, and the dead letter stays open."""
    await bench.publish((bench.topic(), b"temp=7.3"))
    await bench.wait_ended(1)
    read_only = f"{bench.environ['DATABASE_URL']}?default_transaction_read_only=on"

    outcome = await dlq(bench.environ | {"DATABASE_URL": read_only}, "replay", "--all")

    assert (1, "") == (outcome.status, outcome.text)
    assert "read-only" in outcome.stderr
    assert 1 == outcome.stderr.count("\n")
    assert 1 == (await bench.service.metrics()).value("ingest_messages_total", type="telem")
    assert 1 == len(await listed(bench.environ))


async def test_dlq_replay_without_a_broker_marks_nothing(database: str) -> None:
    """If the broker cannot be reached, one line says so and every dead letter stays as it is."""
    number = insert(database, "traksense/acme/site/device/telem")
    url = f"mqtt://127.0.0.1:{free_port()}"
    outcome = await dlq({"DATABASE_URL": database, "MQTT_URL": url}, "replay", "--open")

    assert (1, "") == (outcome.status, outcome.text)
    assert outcome.stderr.startswith(f"traksense: {url}: cannot connect")
    assert 1 == outcome.stderr.count("\n")
    assert [number] == open_ids(database)


async def test_dlq_replay_goes_on_behind_what_ends_the_connection(database: str, own_broker: OwnBroker) -> None:
    """With MQTT 3.1.1, which has no other answer, Mosquitto hangs up over a packet that is too large: that letter is
    named, counted and left open, and those behind it go.
    """
    broker = own_broker(options=BrokerOptions(max_packet_bytes=5_000))
    topic = "traksense/acme/site/device/telem"
    numbers = [insert(database, topic, b"1" * (10_000 if number in (3, 7) else 10)) for number in range(10)]
    hated = [numbers[3], numbers[7]]
    env = {"DATABASE_URL": database, "MQTT_URL": broker.url, "MQTT_VERSION": "3.1.1"}

    outcome = await dlq(env, "replay", "--open")

    assert (1, "published 8 of 10 dead letters (2 refused)\n") == (outcome.status, outcome.text)
    named = re.findall(r"(\d+): left alone: sent 3 times, and the broker ended the connection", outcome.stderr)
    assert hated == list(map(int, named))
    assert hated == open_ids(database)


async def test_dlq_replay_says_why_the_broker_ends_the_connection(database: str) -> None:
    """With MQTT 5 it may say so, and that is told with the number of the letter."""
    hated = [insert(database, f"traksense/{topic}/site/device/telem") for topic in ("hated", "acme", "hated")]
    with trio.fail_after(HANG_SECONDS):
        async with odd_broker(b"\x00") as (url, _):
            outcome = await dlq({"DATABASE_URL": database, "MQTT_URL": url}, "replay", "--open")

    assert (1, "published 1 of 3 dead letters (2 refused)\n") == (outcome.status, outcome.text)
    assert 2 == outcome.stderr.count("each time (the broker disconnects: Not authorized): its log")
    assert [hated[0], hated[2]] == open_ids(database)


async def test_dlq_replay_speaks_the_version_of_mqtt_that_is_set(database: str) -> None:
    """To a broker without MQTT 5 the way out is named as the service names it, by every command; then it works."""
    number = insert(database, "traksense/acme/site/device/telem")
    with trio.fail_after(HANG_SECONDS):
        async with odd_broker(b"\x00", level=4) as (url, _):
            env = {"DATABASE_URL": database, "MQTT_URL": url}
            refused = await dlq(env, "replay", "--open")
            for arguments in (["simulate"], ["shards", "retire", "gone"]):
                other = await run_command(env, *arguments)
                assert (refused.status, refused.stderr) == (other.status, other.stderr)
            assert [number] == open_ids(database)
            done = await dlq(env | {"MQTT_VERSION": "3.1.1"}, "replay", "--open")

    hint = "if it speaks MQTT 3.1.1 only, set MQTT_VERSION=3.1.1\n"
    assert (2, 1, True) == (refused.status, refused.stderr.count("\n"), refused.stderr.endswith(hint))
    assert refused.stderr.startswith("traksense: MQTT_VERSION: the broker refuses the connection: ")
    assert (0, "published 1 of 1 dead letter\n") == (done.status, done.text)
    assert [] == open_ids(database)


@asynccontextmanager
async def odd_broker(puback: bytes | None, *, level: int = 5) -> AsyncIterator[tuple[str, trio.Event]]:
    """A broker that answers PUBLISH with this reason, or not at all; its URL, and an event for the first PUBLISH.

    It speaks this protocol level (5, or 4 for MQTT 3.1.1) alone, and hangs up over a topic with `hated` in it.
    """
    published = trio.Event()
    ok = b"\x20\x03\x00\x00\x00" if level == 5 else b"\x20\x02\x00\x00"

    async def serve(stream: trio.SocketStream) -> None:
        data = b""
        async for chunk in stream:
            data += chunk
            while len(data) >= 2 and len(data) >= 2 + data[1]:
                packet, data = data[: 2 + data[1]], data[2 + data[1] :]
                kind = packet[0] >> 4
                if kind == 1:  # CONNECT
                    await stream.send_all(ok if packet[8] == level else b"\x20\x02\x00\x01")
                elif kind == 3:  # PUBLISH
                    published.set()
                    after_topic = 4 + int.from_bytes(packet[2:4], "big")
                    identifier = packet[after_topic : after_topic + 2]
                    if b"hated" in packet[4:after_topic]:
                        await stream.send_all(b"\xe0\x01\x87")
                        return
                    if puback is not None:
                        answer = identifier + puback if level == 5 else identifier
                        await stream.send_all(bytes([0x40, len(answer)]) + answer)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"mqtt://127.0.0.1:{listener.socket.getsockname()[1]}", published
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("puback", "expected", "said"),
    [
        (None, Counts(selected=2, unconfirmed=2), "stopped: no confirmation of 2 within 0 s (no answer)"),
        (b"\x87", Counts(selected=2, refused=2), "the broker refuses it (reason code 0x87 not authorized)"),
        (b"\x00", Counts(selected=2, published=2), None),
    ],
)
async def test_replay_leaves_open_what_the_broker_does_not_confirm(
    database: str, monkeypatch: pytest.MonkeyPatch, puback: bytes | None, expected: Counts, said: str | None
) -> None:
    """Without a PUBACK, or with one that refuses, it is open; with one that confirms, replayed."""
    monkeypatch.setattr(replay, "CONFIRM_SECONDS", 0.3)
    numbers = [insert(database, "traksense/acme/site/device/telem") for _ in range(2)]
    lines: list[str] = []
    with trio.fail_after(HANG_SECONDS):
        async with odd_broker(puback) as (url, _):
            settings = load({"DATABASE_URL": database, "MQTT_URL": url})
            async with open_connection(settings.database, application="test") as connection:
                run = Replay(settings, connection, Selection(), say=lines.append)
                await run.run()

    assert expected == run.counts
    assert (numbers if said else []) == open_ids(database)
    assert all(said is not None and said in line for line in lines)


async def test_replay_says_how_far_it_has_got(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each page; nothing of that is a remark."""
    monkeypatch.setattr(dead_letters, "PAGE_ROWS", 2)
    for _ in range(3):
        insert(database, "traksense/acme/site/device/telem")
    lines: list[str] = []
    said: list[str] = []
    with trio.fail_after(HANG_SECONDS):
        async with odd_broker(b"\x00") as (url, _):
            settings = load({"DATABASE_URL": database, "MQTT_URL": url})
            async with open_connection(settings.database, application="test") as connection:
                for selection, dry in ((Selection(), False), (Selection(open_only=False, limit=1), True)):
                    await Replay(settings, connection, selection, say=said.append, note=lines.append).run(dry=dry)

    assert (["published 2 of 3", "published 3 of 3", "looked at 1 of 1"], []) == (lines, said)


@pytest.mark.usefixtures("hangup_has_its_meaning")
@pytest.mark.parametrize("number_of_signal", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
async def test_dlq_replay_interrupted_leaves_open(database: str, number_of_signal: signal.Signals) -> None:
    """Ctrl-C, a terminal that is closed, or worse, while the broker keeps silent: nothing was sent for certain."""
    number = insert(database, "traksense/acme/site/device/telem")
    with trio.fail_after(HANG_SECONDS):
        async with odd_broker(None) as (url, published):
            env = environment({"DATABASE_URL": database, "MQTT_URL": url})
            process = await trio.lowlevel.open_process(
                argv("dlq", "replay", "--open"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert process.stderr is not None  # it is a pipe
            await published.wait()
            process.send_signal(number_of_signal)
            status = await process.wait()
            said = await process.stderr.receive_some()

    assert (number_of_signal != signal.SIGKILL) == (b"stopped before the end" in said)
    assert (130 if number_of_signal != signal.SIGKILL else -number_of_signal) == status
    assert [number] == open_ids(database)


# --- purging, and what goes wrong -------------------------------------------------------------------------------------


async def test_dlq_purge_deletes_what_was_selected(database: str) -> None:
    """Off a terminal `--yes` is required; with it, the selected dead letters go and the others stay."""
    first, second, third = (insert(database, f"traksense/acme/site/{name}/telem") for name in "abc")
    env = {"DATABASE_URL": database}

    unsure = await dlq(env, "purge", "--reason", "parse_error")
    assert (2, "traksense: dlq purge: would delete 3 dead letters: confirm with --yes\n") == (
        unsure.status,
        unsure.stderr,
    )
    assert [first, second, third] == open_ids(database)
    one = await dlq(env, "purge", str(second), "--yes")
    assert (0, "deleted 1 dead letter\n") == (one.status, one.text)
    assert [first, third] == open_ids(database)
    rest = await dlq(env, "purge", "--open", "--yes", "--json")
    assert {"deleted": 2, "missing": 0} == json.loads(rest.stdout)
    assert [] == open_ids(database)


async def test_dlq_purge_says_what_was_not_there(database: str) -> None:
    """As for a replay, an id that is missing is a failure; the others are deleted."""
    number = insert(database, "traksense/acme/site/device/telem")
    env = {"DATABASE_URL": database}

    told = await dlq(env, "purge", str(number), str(number + 1), "--yes")
    for_machines = await dlq(env, "purge", str(number), "--yes", "--json")

    assert (1, "deleted 1 dead letter (1 not there, or excluded by the other options)\n") == (told.status, told.text)
    assert (1, {"deleted": 0, "missing": 1}) == (for_machines.status, json.loads(for_machines.stdout))


async def test_dlq_purge_interrupted_says_what_is_deleted(database: str) -> None:
    """Ctrl-C while the second of its transactions waits for somebody's lock: what the first one deleted is gone."""
    rows = dead_letters.PURGE_ROWS + 1
    with psycopg.connect(database) as holder, trio.fail_after(HANG_SECONDS):
        holder.execute(
            "INSERT INTO ingest_errors (topic, payload, reason, digest) SELECT 't', '', 'parse_error',"
            " decode(md5(n::text), 'hex') FROM generate_series(1, %s) AS n",
            (rows,),
        )
        holder.commit()
        holder.execute("SELECT FROM ingest_errors ORDER BY id DESC LIMIT 1 FOR UPDATE")
        process = await trio.lowlevel.open_process(
            argv("dlq", "purge", "--all", "--yes"), env=environment({"DATABASE_URL": database}), stderr=subprocess.PIPE
        )
        assert process.stderr is not None  # it is a pipe
        while len(open_ids(database)) == rows:
            await trio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = b"".join([piece async for piece in process.stderr])
        status = await process.wait()

    told = f"traksense: deleted {rows - 1} dead letters; stopped before the end: repeat the command for the rest\n"
    assert (130, told) == (status, said.decode())


async def test_dlq_count_is_by_tenant_and_reason(database: str) -> None:
    """Letters, messages with their repeats, first and last time; the filters are those of `list`."""
    topic = "traksense/acme/site/device/telem"
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, repeats, ts, last_ts, digest)"
            " SELECT tenant, %s, '', reason, repeats, '2026-01-01 00:00Z', last::timestamptz, sha256(n::text::bytea)"
            " FROM (VALUES (1, 'acme', 'parse_error', 5, '2026-01-02 00:00Z'), (2, 'acme', 'parse_error', 0, NULL),"
            " (3, NULL, 'invalid_topic', 0, NULL)) AS v (n, tenant, reason, repeats, last)",
            (topic,),
        )
    env = {"DATABASE_URL": database}

    told = await dlq(env, "count")
    for_machines = json.loads((await dlq(env, "count", "--json", "--tenant", "acme")).stdout)

    heading, *lines = (line.split() for line in told.text.splitlines())
    assert heading == ["LETTERS", "MESSAGES", "FIRST_TS", "LAST_TS", "REASON", "TENANT"]
    assert lines == [
        ["2", "7", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "parse_error", "acme"],
        ["1", "1", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "invalid_topic", "-"],
    ]
    assert told.stderr == "traksense: 3 dead letters (open ones; --all: replayed ones too)\n"
    assert [("acme", 2, 7)] == [(group["tenant_id"], group["letters"], group["messages"]) for group in for_machines]


@pytest.mark.parametrize(("answer", "status", "left"), [(b"y\n", 0, 0), (b"\n", 1, 1)])
async def test_dlq_purge_asks_on_a_terminal(database: str, answer: bytes, status: int, left: int) -> None:
    """On a terminal it asks, and only yes means yes."""
    insert(database, "traksense/acme/site/device/telem")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer)
        with trio.fail_after(HANG_SECONDS):
            process = await trio.run_process(
                argv("dlq", "purge", "--open"),
                env=environment({"DATABASE_URL": database}),
                stdin=theirs,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    finally:
        os.close(ours)
        os.close(theirs)

    assert status == process.returncode
    assert process.stderr.startswith(b"Delete 1 dead letter? [y/N] ")
    assert left == len(open_ids(database))


@pytest.mark.parametrize("action", ["replay", "purge"])
async def test_dlq_does_not_take_everything_unasked(database: str, action: str) -> None:
    """Replaying or purging without ids, filters, `--open` or `--all` is refused: exit 2."""
    outcome = await dlq({"DATABASE_URL": database}, action)

    assert (2, "traksense: dlq: choose which: ids, filters, or --open or --all for every one\n") == (
        outcome.status,
        outcome.stderr,
    )


@pytest.mark.parametrize(
    ("change", "status", "line"),
    [
        (lambda _dsn, empty: empty, 1, f"schema is at version 0, this release needs {LATEST}: run `traksense migrate`"),
        (lambda dsn, _empty: dsn.replace("postgres:", "postgres:not", 2), 2, "password authentication failed"),
        (
            lambda _dsn, _empty: "postgresql://u:geheim@127.0.0.1:1/x",
            1,
            "127.0.0.1:1/x: the database server in",
        ),
    ],
)
async def test_dlq_errors_are_one_line(
    database: str, empty_database: str, change: Callable[[str, str], str], status: int, line: str
) -> None:
    """A database without a schema, with another password, or away: one clear line, the status of the contract."""
    outcome = await dlq({"DATABASE_URL": change(database, empty_database)}, "list")

    assert (status, "") == (outcome.status, outcome.text)
    assert line in outcome.stderr
    assert 1 == outcome.stderr.count("\n")
    assert "geheim" not in outcome.stderr


async def test_dlq_show_of_nothing_fails(database: str) -> None:
    """An id that is not there: one line, exit 1."""
    outcome = await dlq({"DATABASE_URL": database}, "show", "4711")

    assert (1, "", "traksense: there is no dead letter 4711\n") == (outcome.status, outcome.text, outcome.stderr)
