"""What flows through traksense, from one PUBLISH to the rows that came of it.

A `Message` is one PUBLISH as the broker delivered it. Decoding turns it into `Item`s (telemetry, a command
acknowledgement, an event) or a `Rejection`; message and outcome travel together as a `Delivery`, and the
deliveries of one database transaction are a list of them.

What there is of each message (or each point) is a msgspec Struct, made three to five times as fast as an attrs object
(ops/decisions/0023); the rest is attrs. None of them takes part in a cycle, so the garbage collector need not look.
"""

from __future__ import annotations

import enum
from datetime import datetime  # noqa: TC003  (msgspec resolves the annotations at run time)
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self, TypeAlias

import attrs
import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

Value: TypeAlias = float | bool | str
"""A number may be an `Exact`, which is a float, too."""

ValueType: TypeAlias = Literal["float", "num", "int", "bool", "enum", "text"]


class Kind(enum.StrEnum):
    """The last level of a topic; it says what a message is."""

    TELEM = "telem"
    ACK = "ack"
    EVENT = "event"


class Reason(enum.StrEnum):
    """Why a message became a dead letter: the short code in `ingest_errors.reason` and in the metrics.

    The set is closed, so that `ingest_errors_total{reason}` stays bounded. The sentence beside each code is what
    operators read in the documentation.
    """

    INVALID_TOPIC = "invalid_topic"  # not traksense/{tenant}/{site}/{device}/{telem|ack|event}
    PARSE_ERROR = "parse_error"  # not JSON (or not UTF-8)
    UNKNOWN_FORMAT = "unknown_format"  # JSON, but no adapter knows its shape
    UNKNOWN_SCHEMA = "unknown_schema"  # an envelope of another schema version than v1
    INVALID_FIELD = "invalid_field"  # a field is missing, has the wrong type, or is too long
    TYPE_MISMATCH = "type_mismatch"  # a value disagrees with its declared type
    NUL_CHARACTER = "nul_character"  # U+0000 in a text: PostgreSQL cannot store it
    NUMBER_OUT_OF_RANGE = "number_out_of_range"  # beyond 1e290, or beyond numeric's digits after the point
    TIMESTAMP_OUT_OF_WINDOW = "timestamp_out_of_window"  # older or newer than is accepted
    MISSING_TIMESTAMP = "missing_timestamp"  # the device gave no time of its own
    PAYLOAD_TOO_LARGE = "payload_too_large"
    TOO_MANY_POINTS = "too_many_points"
    NESTED_TOO_DEEP = "nested_too_deep"  # would exhaust the stack
    UNKNOWN_DEVICE = "unknown_device"  # INGEST_PROVISIONING=strict and the device is not registered
    ADAPTER_FAILED = "adapter_failed"  # an adapter raised something else than a DecodeError
    CONFLICTING_VALUE = "conflicting_value"  # a point is stored under the same key (series and time) with another value
    DATABASE_REFUSED = "database_refused"  # the database refuses this message alone; detail has the SQLSTATE


class Exact(float):
    """A number that its double does not say: as a float it is the nearest double, and `digits` has all of it.

    It equals another of the same digits, and no plain float: that is another number. `adapters.numbers` says when a
    number is one, and how its digits are written.
    """

    __slots__ = ("digits",)

    digits: str

    def __new__(cls, digits: str) -> Self:
        """The nearest double to these digits, which keeps them."""
        exact = super().__new__(cls, digits)
        exact.digits = digits
        return exact

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exact) and self.digits == other.digits

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.digits)

    def __repr__(self) -> str:
        return f"Exact({self.digits!r})"


class Point(msgspec.Struct, frozen=True, gc=False):
    """One measured value. The field names are those of the envelope (PAYLOADS: v1), so that it decodes straight into
    it.

    Attributes:
        name: The point's identifier within its device, 1-128 characters.
        v: The value. Numbers are floats; an `Exact` where the nearest double is not the number that was sent.
        t: What the value claims to be; an adapter has checked that `v` agrees.
        u: Unit, or None.
        q: Quality: 0 good, 1 suspect, 2 bad.

    The limits are checked when msgspec decodes it, not when code makes one.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    v: Value
    t: ValueType = "num"
    u: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    q: Literal[0, 1, 2] = 0


class Telemetry(msgspec.Struct, frozen=True, gc=False):
    """Points that share one device timestamp (aware, UTC) and one `meta` (a JSON object as it came, or None)."""

    ts: datetime
    points: list[Point]
    meta: bytes | None = None


@attrs.frozen
class CommandAck:
    """A device's answer to a command. `payload` is the whole JSON object as it came."""

    cmd_id: str
    ok: bool
    payload: bytes
    ts_exec: datetime | None = None
    err: str | None = None


@attrs.frozen
class Event:
    """Something that happened on a device. `data` is a JSON value as it came, or None.

    Without `event_id`, an event is identified by its device, type and ts. Where an adapter makes the id of the content
    (`id_of_content`), the same id is the same event, at whatever time it comes again.
    """

    event_type: str
    ts: datetime
    event_id: str | None = None
    data: bytes | None = None
    id_of_content: bool = attrs.field(default=False, eq=False)


Item: TypeAlias = Telemetry | CommandAck | Event


@attrs.frozen
class Route:
    """What the topic says of a message.

    `path`, "tenant/site/device", is a unique key for the device: names hold no slash. It is made once, since a
    dictionary lookup by one string that knows its hash is several times cheaper than by a tuple of three.
    """

    tenant: str
    site: str
    device: str
    kind: Kind
    path: str = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "path", f"{self.tenant}/{self.site}/{self.device}")


class Message(msgspec.Struct, eq=False, gc=False):
    """One PUBLISH as the broker delivered it.

    Attributes:
        topic: The topic; bytes that are not UTF-8 appear as backslash escapes.
        payload: The exact bytes, until the message is settled; then none.
        qos: 0 or 1, the quality of service of this delivery.
        packet_id: The MQTT packet identifier (0 at QoS 0). Identifiers repeat: never a key.
        generation: Which connection brought it; a PUBACK on any other connection would be a lie.
        redelivered: The DUP flag.
        received_at: When it was read, aware UTC.
        route: What the topic says; None until the intake has read it, and for ever if it is not one of ours.
        cost_bytes: The memory that holding it takes, once the intake has reckoned it.
        settled: Set once by the acknowledger, after the COMMIT of all that came of the message.
        retain: The RETAIN flag: the broker had kept it, and sends it because we subscribed; it says nothing about now.
    """

    topic: str
    payload: bytes
    qos: int
    packet_id: int
    generation: int
    redelivered: bool
    received_at: datetime
    route: Route | None = None
    cost_bytes: int = 0
    settled: bool = False
    retain: bool = False


DETAIL_MAX: Final = 2000
"""Characters of `ingest_errors.detail`."""

REST_IS_STORED: Final = ", and the rest is stored"
"""What the detail of a message says a part of which is at fault; no more once nothing of it is stored."""


@attrs.frozen
class Rejection:
    """Why a message, or a part of it, cannot be stored as what it claims to be."""

    reason: Reason
    detail: str

    def and_also(self, other: Rejection) -> Rejection:
        """This one, with a detail that says the other, too, whatever room that takes."""
        said = f"; {other.reason}: {other.detail}"
        return Rejection(self.reason, f"{self.detail[: max(0, DETAIL_MAX - len(said))]}{said}")


class Delivery(msgspec.Struct, eq=False, gc=False):
    """A message and what was made of it: `items` to store, and a dead letter if `rejection` is set.

    With both, a part of the message is at fault and the rest is good: one transaction stores the items, and the bytes
    as a dead letter that names what is wrong. With neither, there was nothing to store: an empty payload, or points
    without a reading.
    """

    message: Message
    items: list[Item]
    points: int
    rejection: Rejection | None = None

    def reject(self, rejection: Rejection) -> None:
        """Turn this delivery into a dead letter, which says what it said before, too. What had been decoded is dropped,
        the bytes are not.
        """
        if self.rejection is not None:
            earlier = Rejection(self.rejection.reason, self.rejection.detail.replace(REST_IS_STORED, "", 1))
            rejection = rejection.and_also(earlier)
        self.rejection = rejection
        self.items = []
        self.points = 0

    def reject_all_but(self, kept: list[Item], rejection: Rejection) -> None:
        """Keep these items, and have a dead letter say why the others are dropped, beside what it says already."""
        self.rejection = rejection if self.rejection is None else self.rejection.and_also(rejection)
        self.items = kept
        self.points = count_points(kept)


def count_points(items: Iterable[Item]) -> int:
    """How many points these items have."""
    return sum(len(item.points) for item in items if isinstance(item, Telemetry))
