"""Every line of the seed's "Features Implementadas" and "Validação", under the seed's own names, on the real thing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
import trio
from trio_asyncio import aio_as_trio

from tests.acceptance.service_bench import ServiceBench, envelope, query, running_service
from tests.patience import HANG_SECONDS
from traksense.store.asyncio_loop import open_asyncio_loop

if TYPE_CHECKING:
    from pathlib import Path

    from traksense.tools.stack import BrokerProcess

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)

SEED_PAYLOAD = envelope(
    [
        {"name": "temp_agua", "t": "float", "v": 7.3, "u": "°C"},
        {"name": "compressor_1_on", "t": "bool", "v": True},
    ],
    ts="2025-10-07T15:30:00Z",
    meta={"fw": "1.2.3", "src": "test"},
)
SEED_TS = datetime(2025, 10, 7, 15, 30, tzinfo=UTC)


async def test_seed_payload_is_persisted(broker: BrokerProcess, database: str, tenant: str, tmp_path: Path) -> None:
    """Publicar Telemetria: the seed's own example appears in public.ts_measure with all its columns."""
    async with running_service(broker, database, tenant, tmp_path) as bench:
        await bench.publish((bench.topic(), SEED_PAYLOAD))
        await bench.wait_ended(1)
        rows = await bench.query(
            "SELECT tenant_id, site_id, device_id, point_id, ts, v_num, v_bool, v_text, unit, qual, meta = $1::jsonb"
            " FROM public.ts_measure ORDER BY point_id",
            '{"fw": "1.2.3", "src": "test"}',
        )

    assert [
        (tenant, "factory", "device123", "compressor_1_on", SEED_TS, None, True, None, None, 0, True),
        (tenant, "factory", "device123", "temp_agua", SEED_TS, 7.3, None, None, "°C", 0, True),
    ] == rows


async def test_batching_flushes_by_size_and_by_time(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path
) -> None:
    """Batching Inteligente: many messages make few batches, none beyond INGEST_BATCH_SIZE, and a lone one is not
    held.
    """
    async with running_service(
        broker, database, tenant, tmp_path, INGEST_BATCH_SIZE="100", INGEST_BATCH_MS="250"
    ) as bench:
        messages = [
            (bench.topic(), envelope([{"name": "a", "v": n}], ts=NOON + timedelta(seconds=n))) for n in range(1000)
        ]
        await bench.publish(*messages)
        await bench.wait_ended(1000)
        many = await bench.service.metrics()
        await bench.publish((bench.topic(), envelope([{"name": "a", "v": 1}], ts=NOON - timedelta(seconds=1))))
        await bench.wait_ended(1001)
        one_more = await bench.service.metrics()

    batches = many.value("ingest_batch_size_count")
    assert 10 <= batches <= 500, batches
    assert batches == many.value("ingest_batch_size_bucket", le="100.0")
    assert 1000 == many.value("ingest_batch_size_sum")
    assert batches + 1 == one_more.value("ingest_batch_size_count")


async def test_backpressure_holds_and_loses_nothing(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path
) -> None:
    """Backpressure Automática: with a queue of 50 and a locked table, what is held stays bounded; the rest waits
    outside.
    """
    limits = {"INGEST_QUEUE_MAX": "50", "INGEST_BATCH_SIZE": "10", "DB_POOL_MAX": "3"}
    async with running_service(broker, database, tenant, tmp_path, **limits) as bench, open_asyncio_loop():
        locker = await aio_as_trio(asyncpg.connect)(database)
        try:
            await aio_as_trio(locker.execute)("BEGIN; LOCK TABLE traksense.measure IN ACCESS EXCLUSIVE MODE")
            await bench.publish(*((bench.topic(), numbered(n, "x" * 4000)) for n in range(1000)))
            held = await most_in_flight(bench)
            await aio_as_trio(locker.execute)("ROLLBACK")
        finally:
            await aio_as_trio(locker.close)()
        await bench.wait_ended(1000)
        rows = await bench.query("SELECT count(*), count(DISTINCT v_num) FROM ts_measure")

    # Queue, one batch at the writers' door, two writers' batches, and what one read of 64 KiB brings.
    assert 50 <= held <= 50 + 10 + 2 * 10 + 16
    assert [(1000, 1000)] == rows


def numbered(n: int, filler: str) -> bytes:
    return envelope([{"name": "a", "v": n}], ts=NOON + timedelta(seconds=n), meta={"filler": filler})


async def most_in_flight(bench: ServiceBench) -> float:
    """What is in flight once it has not grown for half a second."""
    most, since = 0.0, trio.current_time()
    with trio.fail_after(HANG_SECONDS):
        while most == 0 or trio.current_time() - since < 0.5:
            metrics = await bench.service.metrics()
            assert metrics.value("ingest_queue_size") <= 50
            if metrics.value("ingest_in_flight_messages") > most:
                most, since = metrics.value("ingest_in_flight_messages"), trio.current_time()
            await trio.sleep(0.02)
    return most


INVALID_PAYLOADS = {
    "not JSON": (b"this is not json", "parse_error"),
    "a NUL byte": (b"\x00", "parse_error"),
    "invalid UTF-8": (b'{"schema": "v1", "ts": "\xff\xfe"}', "parse_error"),
    "every byte": (bytes(range(256)), "parse_error"),
    "blank": (b" ", "parse_error"),
    "unknown schema": (b'{"schema": "v2", "ts": "2025-10-07T15:30:00Z", "points": []}', "unknown_schema"),
    "no points": (b'{"schema": "v1", "ts": "2025-10-07T15:30:00Z"}', "invalid_field"),
    "wrong type": (envelope([{"name": "a", "t": "bool", "v": 1}], ts=NOON), "type_mismatch"),
    "NUL in a text": (envelope([{"name": "a", "t": "text", "v": "\x00"}], ts=NOON), "nul_character"),
    "beyond double": (
        b'{"schema":"v1","ts":"2025-10-07T15:30:00Z","points":[{"name":"a","v":1e999}]}',
        "number_out_of_range",
    ),
    "far future": (envelope([{"name": "a", "v": 1}], ts="2999-01-01T00:00:00Z"), "timestamp_out_of_window"),
    "before 2000": (envelope([{"name": "a", "v": 1}], ts="1999-12-31T23:59:59Z"), "timestamp_out_of_window"),
    "nested too deep": (
        b'{"schema":"v1","ts":"2025-10-07T15:30:00Z","points":[{"name":"a","v":1}],"meta":{"a":'
        + b"[" * 50_000
        + b"]" * 50_000
        + b"}}",
        "nested_too_deep",
    ),
    "too large": (b"x" * (1024 * 1024 + 1), "payload_too_large"),
    "too many points": (envelope([{"name": f"p{n}", "v": 1} for n in range(10_001)], ts=NOON), "too_many_points"),
    "unknown format": (b'{"hello": "world"}', "unknown_format"),
}


async def test_dlq_keeps_the_exact_bytes_and_the_reason(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path
) -> None:
    """DLQ: every way to be unacceptable ends as one row of public.ingest_errors; neighbours are stored."""
    async with running_service(broker, database, tenant, tmp_path) as bench:
        good = [
            (bench.topic(), envelope([{"name": "good", "v": n}], ts=NOON + timedelta(seconds=n))) for n in range(20)
        ]
        bad = [(bench.topic(), payload) for payload, _ in INVALID_PAYLOADS.values()]
        bad_topics = [
            (f"traksense/{tenant}/factory/device123/other", SEED_PAYLOAD),
            (f"traksense/{tenant}///telem", SEED_PAYLOAD),
        ]
        await bench.publish(*good[:10], *bad, *bad_topics, *good[10:])
        await bench.wait_ended(len(good) + len(bad) + len(bad_topics))
        rows = await bench.query(
            "SELECT payload, reason, tenant_id, topic, detail FROM public.ingest_errors ORDER BY id"
        )
        stored = await bench.query("SELECT count(*) FROM ts_measure WHERE point_id = 'good'")
        metrics = await bench.service.metrics()

    assert {(payload, reason, tenant) for payload, reason in INVALID_PAYLOADS.values()} == {
        row[:3] for row in rows if row[3] == bench.topic()
    }
    assert [(SEED_PAYLOAD, "invalid_topic", None)] * 2 == [row[:3] for row in rows if row[3] != bench.topic()]
    assert len(INVALID_PAYLOADS) + 2 == len(rows)
    assert all(row[4] for row in rows), "every dead letter has a detail for people"
    assert [(20,)] == stored
    for reason in {reason for _, reason in INVALID_PAYLOADS.values()}:
        wanted = sum(r == reason for _, r in INVALID_PAYLOADS.values())
        assert wanted == metrics.value("ingest_errors_total", reason=reason), reason


async def test_dlq_takes_what_the_database_refuses(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path
) -> None:
    """A message that only the database refuses becomes a dead letter with its SQLSTATE; its batch neighbours are
    stored.
    """
    await query(database, "ALTER TABLE public.cmd_ack ADD CONSTRAINT no_poison CHECK (cmd_id <> 'poison')")
    names = [*(f"good-{n}" for n in range(30)), "poison", *(f"good-{n}" for n in range(30, 60))]
    async with running_service(broker, database, tenant, tmp_path) as bench:
        await bench.publish(
            *((bench.topic("ack"), json.dumps({"schema": "v1", "cmd_id": n, "ok": True}).encode()) for n in names)
        )
        await bench.wait_ended(61)
        errors = await bench.query("SELECT payload, reason, detail FROM ingest_errors")
        acks = await bench.query("SELECT count(*) FROM cmd_ack")

    assert [(60,)] == acks
    assert [(b'{"schema": "v1", "cmd_id": "poison", "ok": true}', "database_refused")] == [row[:2] for row in errors]
    assert errors[0][2].startswith("SQLSTATE 23514: ")


async def test_ack_is_idempotent(broker: BrokerProcess, database: str, tenant: str, tmp_path: Path) -> None:
    """Idempotência de ACKs: one row of public.cmd_ack per (tenant_id, device_id, cmd_id); newer updates, older does
    not.
    """

    def ack(ok: bool, second: int | None) -> bytes:
        ts_exec = None if second is None else (NOON + timedelta(seconds=second)).isoformat()
        return json.dumps(
            {"schema": "v1", "cmd_id": "01HQZC5K3M8YBQWER7TXZ9V2P3", "ok": ok, "ts_exec": ts_exec, "err": None}
        ).encode()

    async with running_service(broker, database, tenant, tmp_path) as bench:
        seen = []
        for count, payload in enumerate(
            [ack(False, 10), ack(False, 10), ack(True, 20), ack(False, 15), ack(False, None)], 1
        ):
            await bench.publish((bench.topic("ack"), payload))
            await bench.wait_ended(count)
            seen += await bench.query("SELECT ok, ts_exec FROM public.cmd_ack")
        updated = await bench.query("SELECT tenant_id, device_id, cmd_id, updated_at > created_at FROM public.cmd_ack")

    assert [(False, 10), (False, 10), (True, 20), (True, 20), (True, 20)] == [
        (ok, (ts - NOON).seconds) for ok, ts in seen
    ]
    assert [(tenant, "device123", "01HQZC5K3M8YBQWER7TXZ9V2P3", True)] == updated


async def test_metrics_have_the_seeds_names(broker: BrokerProcess, database: str, tenant: str, tmp_path: Path) -> None:
    """Métricas Prometheus: the seed's counters, histograms and gauge at :METRICS_PORT/metrics, and they count."""
    async with running_service(broker, database, tenant, tmp_path) as bench:
        await bench.publish(
            (bench.topic(), envelope([{"name": "a", "v": 1}, {"name": "b", "v": 2}])),
            (bench.topic("ack"), b'{"schema": "v1", "cmd_id": "c", "ok": true}'),
            (bench.topic("event"), b'{"schema": "v1", "event_type": "boot", "ts": "2025-10-07T15:00:00Z"}'),
            (bench.topic(), b"?"),
        )
        await bench.wait_ended(4)
        metrics = await bench.service.metrics()

    assert (2, 1, 1) == tuple(metrics.value("ingest_messages_total", type=kind) for kind in ("telem", "ack", "event"))
    assert 2 == metrics.value("ingest_points_total")
    assert 1 == metrics.value("ingest_errors_total", reason="parse_error")
    assert 1 <= metrics.value("ingest_batch_size_count")
    assert 1 == metrics.value("ingest_latency_seconds_count")
    assert 0 == metrics.value("ingest_queue_size")
    assert ("ingest_queue_size", ()) in metrics


async def test_out_of_order_timestamps_are_stored_and_aggregated(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path
) -> None:
    """Out-of-Order Timestamps: points in any order, 90 days late too, are stored and the aggregates are right."""
    minutes = [5, 1, 4, 1440 * 90, 0, 3, 1440 * 365 * 10, 2]
    async with running_service(broker, database, tenant, tmp_path) as bench:
        await bench.publish(
            *((bench.topic(), envelope([{"name": "a", "v": m}], ts=NOON - timedelta(minutes=m))) for m in minutes)
        )
        await bench.wait_ended(len(minutes))
        stored = await bench.query("SELECT v_num FROM ts_measure ORDER BY ts DESC")
        # The service does this every minute; here it is asked for at once.
        await bench.query("SELECT traksense.roll_up()")
        aggregated = await bench.query(
            "SELECT bucket, v_avg, v_min, v_max, v_count FROM ts_measure_5m WHERE bucket >= $1 ORDER BY bucket",
            NOON - timedelta(hours=1),
        )

    assert [(float(m),) for m in sorted(minutes)] == stored
    assert [
        (NOON - timedelta(minutes=5), 3.0, 1.0, 5.0, 5),
        (NOON, 0.0, 0.0, 0.0, 1),
    ] == aggregated


async def test_rls_isolates_tenants(broker: BrokerProcess, database: str, tenant: str, tmp_path: Path) -> None:
    """RLS: a session sees the tenant in the GUC app.tenant_id, and nothing without it."""
    async with running_service(
        broker, database, tenant, tmp_path, MQTT_TOPICS=f"traksense/{tenant}/#,traksense/{tenant}-b/#"
    ) as bench:
        for name in (tenant, f"{tenant}-b"):
            await bench.publish(
                (f"traksense/{name}/site/{name}-device/telem", SEED_PAYLOAD), (f"traksense/{name}/site/d/telem", b"?")
            )
        await bench.wait_ended(4)

    async def devices(setting: str | None) -> list[tuple[str, str]]:
        connection = await asyncpg.connect(database)
        try:
            async with connection.transaction():
                await connection.execute(
                    "CREATE ROLE reader; GRANT SELECT ON ts_measure, ingest_errors TO reader; SET LOCAL ROLE reader"
                )
                if setting is not None:
                    await connection.execute("SELECT set_config('app.tenant_id', $1, true)", setting)
                rows = await connection.fetch("SELECT DISTINCT tenant_id, device_id FROM ts_measure")
                errors = await connection.fetch("SELECT tenant_id, 'error' FROM ingest_errors")
                raise _Undo([tuple(row) for row in (*rows, *errors)])
        except _Undo as undo:
            return undo.rows
        finally:
            await connection.close()

    async with open_asyncio_loop():
        seen = {setting: await aio_as_trio(devices)(setting) for setting in (tenant, f"{tenant}-b", "nobody", "", None)}
    assert {
        tenant: [(tenant, f"{tenant}-device"), (tenant, "error")],
        f"{tenant}-b": [(f"{tenant}-b", f"{tenant}-b-device"), (f"{tenant}-b", "error")],
        "nobody": [],
        "": [],
        None: [],
    } == seen


class _Undo(Exception):  # noqa: N818  (it carries the rows out of a transaction that shall leave nothing)
    def __init__(self, rows: list[tuple[str, str]]) -> None:
        self.rows = rows
        super().__init__()


@pytest.mark.parametrize("provisioning", ["auto", "strict"])
async def test_provisioning(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path, provisioning: str
) -> None:
    """A device seen for the first time registers itself, or with INGEST_PROVISIONING=strict becomes a dead letter."""
    async with running_service(broker, database, tenant, tmp_path, INGEST_PROVISIONING=provisioning) as bench:
        await bench.publish((bench.topic(), SEED_PAYLOAD))
        await bench.wait_ended(1)
        devices = await bench.query("SELECT tenant_id, site_id, device_id FROM traksense.device")
        reasons = await bench.query("SELECT reason FROM ingest_errors")

    if provisioning == "auto":
        assert ([(tenant, "factory", "device123")], []) == (devices, reasons)
    else:
        assert ([], [("unknown_device",)]) == (devices, reasons)


async def test_every_adapter_reaches_the_tables(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path
) -> None:
    """Parsec v1, JE02 v1, SenML and the TrakSense sensors arrive as points beside the envelope."""
    payloads = {
        "parsec": b'{"di1": 1, "di2": 0, "rssi": -68, "fw": "1.2.3", "ts": "2025-10-07T15:30:00Z"}',
        "je02": b'{"DATA": {"TS": 1759937445, "INPUT1": 1, "INPUT2": 0, "VAR0": 235, "VAR1": 550, "WRSSI": -65}}',
        "senml": b'[{"bn": "4b686f6d70107115", "bt": 1552594568}, {"n": "A", "u": "Cel", "v": 23.35},'
        b' {"n": "A", "u": "%RH", "v": 64.0}]',
        "sensors": b'{"device_id": "GW-1760908415", "timestamp": "2025-10-20T14:30:00Z", "sensors":'
        b' [{"sensor_id": "temp-amb-01", "value": 23.5, "unit": "celsius", "type": "temperature", "labels": {}}]}',
    }
    async with running_service(broker, database, tenant, tmp_path) as bench:
        await bench.publish(*((bench.topic(device=name), payload) for name, payload in payloads.items()))
        await bench.wait_ended(len(payloads))
        rows = await bench.query(
            "SELECT device_id, point_id, v_num, v_bool, v_text, unit FROM ts_measure ORDER BY 1, 2, 3"
        )

    assert [] == await query(database, "SELECT reason, detail FROM ingest_errors")
    assert {
        ("je02", "status", None, None, "RUN", None),
        ("je02", "var0", 23.5, None, None, "°C"),
        ("parsec", "rssi", -68.0, None, None, "dBm"),
        ("parsec", "status", None, None, "RUN", None),
        ("parsec", "fault", None, False, None, None),
        ("senml", "A", 23.35, None, None, "Cel"),
        ("senml", "A", 64.0, None, None, "%RH"),
        ("sensors", "temp-amb-01", 23.5, None, None, "celsius"),
    } <= set(rows)
