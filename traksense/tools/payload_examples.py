"""The page of payload formats: an example of each, and what the service makes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import attrs

from traksense.adapters import Registry
from traksense.config import Settings
from traksense.tools.decode import as_text, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.model import Delivery


RECEIVED_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)


@attrs.frozen
class Example:
    """A payload as a device sends it. `adapter` is the name of the one that reads it, `rules` what it goes by."""

    adapter: str
    title: str
    topic: str
    rules: str
    payload: str

    def delivery(self) -> Delivery:
        """What the service makes of it."""
        return made_of(self.payload, self.topic)


def made_of(payload: str, topic: str = "telem") -> Delivery:
    """What the service makes of a payload."""
    topic = f"traksense/acme/factory/press-1/{topic}"
    return decode(Settings(), Registry(), topic, payload.encode(), received_at=RECEIVED_AT)


EXAMPLES: Final = (
    Example(
        "envelope_v1",
        "Envelope v1",
        "telem",
        """\
* `schema` is `v1`. `ts` is ISO 8601 with an offset or `Z`, to the microsecond; without an offset it is UTC.
* `points`: one or more. `name` has 1-128 characters. `t` is `float`, `num`, `int`, `bool`, `enum` or `text`, and `num`
  if it is missing. `v` is any number for `float`, `num` and `int` (an `int` of 1.5 is stored as 1.5), `true` or `false`
  for `bool`, and a text for `enum` and `text`. `u` is the unit, `q` the quality: 0 good, 1 suspect, 2 bad.
* A `v` of `null` is no reading: nothing is stored, and nothing is wrong.
* `meta`: an object that describes the device. It is stored once for each distinct value.
* A point that comes twice in a message is stored once; with two values, the message is a dead letter as well.
""",
        """\
{"schema": "v1", "ts": "2025-10-07T15:30:00Z",
 "points": [{"name": "temp_agua", "t": "float", "v": 7.3, "u": "°C"},
            {"name": "compressor_1_on", "t": "bool", "v": true, "q": 1},
            {"name": "mode", "t": "enum", "v": "AUTO"}],
 "meta": {"fw": "1.2.3"}}
""",
    ),
    Example(
        "parsec_v1",
        "Parsec v1",
        "telem",
        """\
* `di1`: 1 is `RUN`, 0 is `STOP`. `di2`: whether there is a fault. At least one of them, and `ts`, are needed.
* `rssi` in dBm; `fw` goes into `meta`.
""",
        """\
{"di1": 1, "di2": 0, "rssi": -68, "fw": "1.2.3", "ts": "2025-10-07T15:30:00Z"}
""",
    ),
    Example(
        "je02_v1",
        "JE02 v1, data",
        "telem",
        """\
* `TS`: Unix seconds, UTC.
* `status` is `FAULT` if `INPUT2` is 1, else `RUN` if `INPUT1` is 1, else `STOP`. `VAR0` and `VAR1` are tenths.
""",
        """\
{"DATA": {"TS": 1759937445, "INPUT1": 1, "INPUT2": 0, "VAR0": 235, "VAR1": 550, "WRSSI": -65, "RELE": 0,
          "CNTSERR": 0, "UPTIME": 3600}}
""",
    ),
    Example(
        "je02_v1",
        "JE02 v1, information",
        "telem",
        """\
* Has no points: it is an event of the type `info`. It has no time of its own, so it gets that of its receipt.
""",
        """\
{"INFO": {"FW_VERSION": "1.2.3", "HW_VERSION": "v1", "DEVICE_ID": "INV-01", "MODEL": "JE02-INVERTER"}}
""",
    ),
    Example(
        "senml",
        "SenML (RFC 8428)",
        "telem",
        """\
* All of its rules: base name, time, unit, value, sum and version; relative times; `v`, `vs`, `vb`, `vd` and `s`. The
  base unit `bu` applies to texts and booleans, too.
* If all measurements of a pack have one base name, a point has the plain `n` as its name, and `bn` goes into `meta`. In
  a pack with several base names, or where two plain names would be one, it is `bn` and `n` joined. So give each device
  behind a gateway a topic of its own.
* As Khomp's LoRaWAN gateways send it, `model`, `gateway` and the like describe the device and go into `meta`. One name
  with two units is two points.
""",
        """\
[{"bn": "4b686f6d70107115", "bt": 1552594568}, {"n": "model", "vs": "nit20l"}, {"n": "rssi", "u": "dBW", "v": -61},
 {"n": "A", "u": "Cel", "v": 23.35}, {"n": "A", "u": "%RH", "v": 64.0}, {"n": "gateway", "vs": "000D6FFFFE642E70"}]
""",
    ),
    Example(
        "trak_sensors",
        "TrakSense sensors",
        "telem",
        """\
* Older firmware, by way of a broker's rule. Also wrapped as `{"client_id": …, "topic": …, "payload": …, "ts": …}`,
  whose `ts` in milliseconds since 1970 counts only if the payload has none.
""",
        """\
{"device_id": "GW-1760908415", "timestamp": "2025-10-20T14:30:00Z",
 "sensors": [{"sensor_id": "temp-amb-01", "value": 23.5, "unit": "celsius", "type": "temperature", "labels": {}}]}
""",
    ),
    Example(
        "ack_v1",
        "Acknowledgement of a command",
        "ack",
        """\
* `cmd_id` has 1-128 characters. `ts_exec` and `err` may be missing.
* One row for each command of a device. A repeat updates it; an older `ts_exec` does not.
""",
        """\
{"schema": "v1", "cmd_id": "01HQZC5K3M8YBQWER7TXZ9V2P3", "ok": true, "ts_exec": "2025-10-07T15:30:05Z", "err": null}
""",
    ),
    Example(
        "event_v1",
        "Event",
        "event",
        """\
* `event_id` may be missing: then the event is known by its type and `ts`. `data` is any JSON value.
""",
        """\
{"schema": "v1", "event_id": "01HQZC5K3M8YBQWER7TXZ9V2P4", "event_type": "boot", "ts": "2025-10-07T15:00:00Z",
 "data": {"reason": "power_on"}}
""",
    ),
)

_ABOUT: Final = """\
What a device may publish, and what becomes of it. The topic says whose it is and of which kind:
`traksense/{tenant}/{site}/{device}/{telem|ack|event}`. All formats are JSON in UTF-8. What cannot be stored is a
[dead letter](../operations.md#dead-letters) with a reason. [Below](#my-device-sends-something-else) is what to do with
other formats.

Each format has its own kind of time. The envelope, Parsec and the sensors' `timestamp` take text in ISO 8601: a number
there is an `invalid_field`. JE02 and SenML take seconds since 1970, the wrapper with `client_id` and `payload` takes
milliseconds.

Try your own with `traksense decode --topic TOPIC FILE`; below each example is what it says.
"""

FOREIGN: Final = '{"temperature": 7.3, "humidity": 55, "time": 1759851000}\n'
"""What no adapter reads."""

_FOREIGN_ABOUT: Final = """\
## My device sends something else

Reshape it to the envelope where that is easiest: in the device, in its gateway, or in a flow that reads one topic and
publishes to another. As it is, this payload becomes a dead letter:
"""

_RESHAPED_ABOUT: Final = """\
It has all that the envelope needs, except for the units, which you know. In Python, for example:
"""

_FOREIGN_RULES: Final = """\
* A measurement is identified by its time, so a bare number, such as `7.3`, cannot be stored as it is: add the time at
  which it was measured. If the device has no clock, let the gateway add the time once, before it publishes: a message
  that is sent again then has the same time, and is stored once.
* The topic names the device, so the payload does not have to.
* If nothing between device and broker can be changed, write an [adapter](../adapters.md): a small Python package that
  reads the payload as it comes. It, too, needs a time in the payload.
"""

RESHAPE: Final = """\
import json
from datetime import UTC, datetime


def reshape(payload):
    said = json.loads(payload)
    points = [
        {"name": "temperature", "v": said["temperature"], "u": "°C"},
        {"name": "humidity", "v": said["humidity"], "u": "%"},
    ]
    ts = datetime.fromtimestamp(said["time"], UTC).isoformat()
    return json.dumps({"schema": "v1", "ts": ts, "points": points})
"""
"""For the page; a test runs it."""

RESHAPED: Final = """\
{"schema": "v1", "ts": "2025-10-07T15:30:00+00:00",
 "points": [{"name": "temperature", "v": 7.3, "u": "°C"}, {"name": "humidity", "v": 55, "u": "%"}]}
"""
"""What it makes of `FOREIGN`."""


def payloads() -> str:
    """Every format: its rules, an example, and the rows that come of it; and what to do with others."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# Payloads\n"
    yield "<!-- Made by `python -m traksense.tools.reference`: do not edit. -->\n"
    yield _ABOUT
    for example in EXAMPLES:
        yield f"## {example.title}\n"
        yield f"To `…/{example.topic}`; read by the adapter `{example.adapter}`.\n"
        yield example.rules
        yield f"```json\n{example.payload}```\n"
        yield _said(example.delivery())
    yield _FOREIGN_ABOUT
    yield f"```json\n{FOREIGN}```\n"
    yield _said(made_of(FOREIGN))
    yield _RESHAPED_ABOUT
    yield f"```python\n{RESHAPE}```\n"
    yield "The result is an envelope, and is stored:\n"
    yield f"```json\n{RESHAPED}```\n"
    yield _said(made_of(RESHAPED))
    yield _FOREIGN_RULES


def _said(delivery: Delivery) -> str:
    """What `traksense decode` says of it."""
    said = "\n".join(as_text(delivery))
    return f"```text\n{said}\n```\n"
