"""`ops/mosquitto.conf` under a real Mosquitto: accepted, and nothing is dropped while reader or broker is away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.patience import HANG_SECONDS
from traksense.tools.stack import find_mosquitto, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIPPED: Final = Path(__file__).parents[2] / "ops" / "mosquitto.conf"
MESSAGES: Final = 1500
"""More than the 1000 that Mosquitto keeps for a session by default."""
END: Final = b"end"


class ShippedMosquitto:
    """A Mosquitto under the shipped settings, on a port and in a directory of its own."""

    def __init__(self, directory: Path, text: str) -> None:
        self.port = free_port()
        self._log = directory / "mosquitto.log"
        self._config = directory / "mosquitto.conf"
        text = _replaced(text, "listener 1883 127.0.0.1", f"listener {self.port} 127.0.0.1")
        text = _replaced(text, "persistence_location /var/lib/mosquitto/", f"persistence_location {directory}/")
        if os.geteuid() == 0:
            # Else it would become a user who cannot write here.
            text += "user root\n"
        self._config.write_text(text, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = find_mosquitto()
        assert program is not None  # the fixture `mosquitto` has made sure
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([program, "-c", self._config], stdout=log, stderr=log)
        deadline = time.monotonic() + HANG_SECONDS
        while not self._listens():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def stop(self) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except OSError:
            return False


class Client:
    """An MQTT 5 client with a session that lasts; paho runs it on a thread."""

    def __init__(self, port: int, client_id: str) -> None:
        self.received: list[bytes] = []
        self._subscribed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        self._client.on_message = lambda _c, _u, message: self.received.append(bytes(message.payload))
        self._client.on_subscribe = self._on_subscribe
        self._client.max_inflight_messages_set(500)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho annotates half of it
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self._client.loop_start()

    def subscribe(self, topic: str) -> None:
        self._client.subscribe(topic, qos=1)
        wait_until(lambda: self._subscribed)

    def publish_all(self, topic: str, payloads: list[bytes]) -> None:
        """Returns when the broker has confirmed each one."""
        for info in [self._client.publish(topic, payload, qos=1) for payload in payloads]:
            info.wait_for_publish(HANG_SECONDS)
            assert info.is_published()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_subscribe(self, *_: Any) -> None:
        self._subscribed = True


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"mosquitto.conf has no line {old!r}"
    return text.replace(old, new)


@pytest.fixture
def shipped(mosquitto: None, tmp_path: Path) -> Iterator[ShippedMosquitto]:
    """The broker as ops/ ships it."""
    broker = ShippedMosquitto(tmp_path, SHIPPED.read_text(encoding="utf-8"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def default_queue(mosquitto: None, tmp_path: Path) -> Iterator[ShippedMosquitto]:
    """The same without its line about the length of the queue."""
    text = _replaced(SHIPPED.read_text(encoding="utf-8"), "max_queued_messages 10000000\n", "\n")
    broker = ShippedMosquitto(tmp_path, text)
    broker.start()
    yield broker
    broker.stop()


def received_after_an_absence(broker: ShippedMosquitto) -> list[bytes]:
    """What a reader gets that was away while 1500 messages were published and the broker was restarted."""
    topic = "traksense/acme/factory/device123/telem"
    reader = Client(broker.port, "reader")
    reader.subscribe("traksense/#")
    reader.close()
    publisher = Client(broker.port, "publisher")
    publisher.publish_all(topic, [b"%d" % number for number in range(MESSAGES)])
    publisher.close()
    assert 0 == broker.stop()
    broker.start()
    reader = Client(broker.port, "reader")
    publisher = Client(broker.port, "publisher")
    while END not in reader.received:
        # It comes after what is queued; a queue that is full drops it, too.
        publisher.publish_all(topic, [END])
        time.sleep(0.05)
    publisher.close()
    reader.close()
    return [payload for payload in reader.received if payload != END]


def test_mosquitto_accepts_the_shipped_file(shipped: ShippedMosquitto) -> None:
    """It starts and has nothing to say against any line."""
    assert "Error" not in shipped.log
    assert "mosquitto version" in shipped.log


def test_shipped_settings_keep_the_queue(shipped: ShippedMosquitto) -> None:
    """What was confirmed while the reader was away is delivered, in order, also after the broker was restarted."""
    assert [b"%d" % number for number in range(MESSAGES)] == received_after_an_absence(shipped)


def test_default_queue_drops(default_queue: ShippedMosquitto) -> None:
    """The test above can fail: with Mosquitto's own limit, confirmed messages are gone."""
    received = received_after_an_absence(default_queue)

    assert 0 < len(received) < MESSAGES
