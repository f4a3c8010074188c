"""The metrics, the endpoint and the log lines."""

from __future__ import annotations

import json
import logging
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.patience import HANG_SECONDS
from traksense.errors import ConfigError
from traksense.ingest.health import Health
from traksense.ingest.ports import WriteResult
from traksense.log import JsonFormatter, TextFormatter
from traksense.metrics import LATENCY_BUCKETS, Histogram, Metrics
from traksense.model import Delivery, Event, Item, Message, Point, Reason, Rejection, Telemetry
from traksense.service import CONDITIONS, INFORMING
from traksense.web.endpoint import TAKEN, listen, readiness, serve

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def delivery(*items: Item, rejection: Rejection | None = None) -> Delivery:
    message = Message("t", b"", 1, 1, 1, redelivered=False, received_at=NOON)
    return Delivery(message, list(items), 1, rejection)


def at(seconds: float) -> Telemetry:
    return Telemetry(NOON - timedelta(seconds=seconds), [Point("a", 1.0)])


@given(st.lists(st.floats(0, 1e6)))
def test_histogram_counts_every_value_once(values: list[float]) -> None:
    """Cumulative buckets: each counts the values up to and including its bound; the last is all of them."""
    histogram = Histogram(LATENCY_BUCKETS)
    for value in values:
        histogram.observe(value)
    samples = {s.labels["le"]: s.value for s in histogram.family("x", "y").samples if s.name == "x_bucket"}

    assert {str(b): sum(v <= b for v in values) for b in LATENCY_BUCKETS} | {"+Inf": len(values)} == samples


def test_latency_ignores_nonsense_and_says_how_much() -> None:
    """Clocks ahead or a day behind, duplicates and dead letters do not bend the latency; the first two are counted."""
    metrics = Metrics(lambda: NOON)
    deliveries = [
        delivery(at(0.3)),
        delivery(at(-5)),
        delivery(at(86_401)),
        delivery(at(0.3)),
        delivery(rejection=Rejection(Reason.PARSE_ERROR, "")),
        delivery(Event("boot", NOON - timedelta(seconds=2))),
    ]
    metrics.committed(deliveries, WriteResult(duplicates=frozenset([3])))

    assert (2, 2.3) == (sum(metrics.latency.counts), round(metrics.latency.total, 6))
    assert (1, 1) == (metrics.latency_future, metrics.latency_late)


async def get(port: int, request: bytes) -> tuple[int, bytes]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := await stream.receive_some():
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def test_endpoint_answers(nursery: trio.Nursery) -> None:
    """/healthz always; /readyz by the health, with reasons as JSON; /metrics; anything else is 404 with a hint."""
    health = Health(["broker"])
    listener = listen("127.0.0.1", 0)
    port: int = listener.getsockname()[1]
    nursery.start_soon(serve, listener, CollectorRegistry(), health)
    with trio.fail_after(HANG_SECONDS):
        assert 200 == (await get(port, b"GET /healthz"))[0]
        status, body = await get(port, b"GET /readyz")
        assert (503, False) == (status, json.loads(body)["ready"])
        assert "not started yet" == json.loads(body)["conditions"]["broker"]["reason"]
        health.set("broker")
        assert 200 == (await get(port, b"GET /readyz"))[0]
        assert 200 == (await get(port, b"GET /metrics"))[0]
        assert (200, b"") == await get(port, b"HEAD /metrics")
        assert (404, b"try /metrics, /healthz or /readyz\n") == await get(port, b"GET /")
    nursery.cancel_scope.cancel()


def test_readiness_has_a_line_for_each_condition() -> None:
    """JSON for machines that people can read in a terminal, whatever a broker or a database has said in a reason."""
    conditions: dict[str, object] = {
        "broker": {"ok": True, "seconds": 1.5},
        "database": {"ok": False, "seconds": 2.0, "reason": 'caf\u00e9 "x"\x7f\n\x9b\ud800'},
    }
    text = readiness(conditions, ready=False)

    assert {"ready": False, "conditions": conditions} == json.loads(text)
    assert 5 + len(conditions) == len(text.splitlines())
    assert all(line.isprintable() for line in text.splitlines())
    assert 'caf\u00e9 \\"x\\"' in text


def test_readiness_is_as_the_manual_shows_it() -> None:
    """To the letter."""
    manual = (Path(__file__).parents[2] / "ops" / "operations.md").read_text(encoding="utf-8")
    shown = textwrap.dedent(manual.partition("$ curl -s localhost:9100/readyz\n")[2].partition("\n\n")[0]) + "\n"
    document = json.loads(shown)

    assert shown == readiness(document["conditions"], ready=document["ready"])
    assert {*CONDITIONS, *INFORMING} == set(document["conditions"])


def test_endpoint_address_that_is_not_to_be_had_is_a_wrong_configuration() -> None:
    """With the variable that is wrong: the port if it is taken, else the host."""
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError) as taken:
            listen("127.0.0.1", port)
    with pytest.raises(ConfigError) as unknown:
        listen("nowhere.invalid", port)

    assert f"METRICS_PORT: cannot listen on 127.0.0.1:{port}: Address already in use{TAKEN}" == str(taken.value)
    assert str(unknown.value).startswith(f"METRICS_HOST: cannot listen on nowhere.invalid:{port}: ")


def record(**extra: object) -> logging.LogRecord:
    line = logging.LogRecord("traksense.x", logging.INFO, __file__, 1, "batch_written", None, None)
    line.__dict__.update(extra)
    return line


def test_log_json_has_the_event_and_the_data() -> None:
    """One JSON object a line; the prefix that keeps our fields apart is dropped."""
    line = json.loads(JsonFormatter().format(record(traksense_rows=3, other="x")))

    assert ("batch_written", "INFO", 3) == (line["event"], line["level"], line["rows"])
    assert "other" not in line


@pytest.mark.parametrize("style", [JsonFormatter, TextFormatter])
def test_log_has_no_character_that_acts_on_a_terminal(style: type[logging.Formatter]) -> None:
    """Controls, DEL and those of C1 included, and characters that change the direction of others, are escaped."""
    evil = "a\x1b[2J\x07b\x7fc\x9b2Jd\u202ee\ud800f\u00e9"
    line = style().format(record(traksense_reason=evil))

    assert line.isprintable()
    assert "f\u00e9" in line
    if style is JsonFormatter:
        assert evil == json.loads(line)["reason"]


def test_log_text_is_for_people() -> None:
    """Time, level, event, key=value; values with spaces are quoted."""
    line = TextFormatter().format(record(traksense_rows=3, traksense_reason="a b", traksense_topics=["x", "y"]))

    assert line.endswith('INFO    batch_written rows=3 reason="a b" topics=x,y')
