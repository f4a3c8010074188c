"""Which adapter gets a message, and that a `DecodeError` is all that can come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from traksense.adapters import Context, Registry
from traksense.adapters.registry import MAX_DETAIL
from traksense.adapters.timestamps import TIME_FORM
from traksense.errors import ConfigError, DecodeError
from traksense.model import CommandAck, Event, Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from traksense.model import Item

ENVELOPE = b'{"schema":"v1","ts":"2025-10-07T15:30:00Z","points":[{"name":"a","v":1}]}'


class Scripted:
    """A third-party adapter that claims, returns and raises what it is told to, and notes what it is asked."""

    def __init__(
        self,
        items: Sequence[object] = (),
        *,
        claims: Callable[[bytes, frozenset[str] | None], bool] = lambda _payload, _members: True,
        error: BaseException | None = None,
        name: str = "scripted",
        kind: Kind = Kind.TELEM,
    ) -> None:
        self.name = name
        self.kind = kind
        self.asked: list[tuple[bytes, frozenset[str] | None]] = []
        self._items = items
        self._claims = claims
        self._error = error

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:
        self.asked.append((payload, members))
        return self._claims(payload, members)

    def decode(self, payload: bytes, context: Context) -> Sequence[Item]:
        if self._error is not None:
            raise self._error
        return self._items  # type: ignore[return-value]  # what third parties return is not under our control


class MuteError(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("mute")


@pytest.fixture
def telemetry(context: Context) -> Telemetry:
    return Telemetry(context.received_at, [Point("third_party", 1.0)])


def refusal(registry: Registry, payload: bytes, context: Context, kind: Kind = Kind.TELEM) -> tuple[Reason, str]:
    with pytest.raises(DecodeError) as caught:
        registry.decode(kind, payload, context)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("kind", "payload", "item", "points"),
    [
        (Kind.TELEM, ENVELOPE, Telemetry, ["a"]),
        (Kind.TELEM, b'{"di1": 1, "di2": 0, "ts": "2025-10-07T15:30:00Z"}', Telemetry, ["status", "fault"]),
        (Kind.TELEM, b'{"DATA": {"TS": 1759937445, "UPTIME": 3600}}', Telemetry, ["uptime"]),
        (Kind.TELEM, b'{"INFO": {"MODEL": "JE02-INVERTER"}}', Event, []),
        (Kind.TELEM, b'[{"bn": "x", "bt": 1552594568}, {"n": "A", "v": 1}]', Telemetry, ["A"]),
        (
            Kind.TELEM,
            b'{"timestamp": "2025-10-20T14:30:00Z", "sensors": [{"sensor_id": "t", "value": 1}]}',
            Telemetry,
            ["t"],
        ),
        (
            Kind.TELEM,
            rb'{"topic": "x", "payload": "{\"sensors\":[{\"sensor_id\":\"t\",\"value\":1}]}", "ts": 1729216200000}',
            Telemetry,
            ["t"],
        ),
        (Kind.ACK, b'{"schema": "v1", "cmd_id": "c", "ok": true}', CommandAck, []),
        (Kind.EVENT, b'{"schema": "v1", "event_type": "boot", "ts": "2025-10-07T15:30:00Z"}', Event, []),
    ],
)
def test_registry_built_in(kind: Kind, payload: bytes, item: type, points: list[str], context: Context) -> None:
    """Each format of the specification finds its adapter by its shape alone."""
    (decoded,) = Registry().decode(kind, payload, context)

    assert item is type(decoded)
    assert points == [point.name for point in getattr(decoded, "points", [])]


@pytest.mark.parametrize(
    ("payload", "reason", "detail"),
    [
        (b"", Reason.PARSE_ERROR, "truncated"),
        (b"temp=7.3", Reason.PARSE_ERROR, "malformed"),
        (b'{"a":"\xff"}', Reason.PARSE_ERROR, "not UTF-8"),
        (b'{"\xff":1}', Reason.PARSE_ERROR, "not UTF-8"),
        (b'{"a":"\\ud800"}', Reason.PARSE_ERROR, "lone surrogate"),
        (b'{"schema":"v2"}', Reason.UNKNOWN_SCHEMA, '"v2"'),
        (b'{"schema":"v1"}', Reason.MISSING_TIMESTAMP, "`ts`"),
        (b'{"schema":"v1","ts":"2025-10-07T15:30:00Z"}', Reason.INVALID_FIELD, "`points`"),
        (ENVELOPE.replace(b'"v":1', b'"v":1e999'), Reason.NUMBER_OUT_OF_RANGE, "$.points[0].v"),
        (ENVELOPE.replace(b'"v":1', b'"v":true'), Reason.TYPE_MISMATCH, "$.points[0].v"),
        (ENVELOPE.replace(b'"a"', rb'"\u0000"'), Reason.NUL_CHARACTER, "U+0000"),
        (ENVELOPE.replace(b"v1", b"v1.1").replace(b'"points"', b'"di1":1,"x"'), Reason.UNKNOWN_SCHEMA, "v1.1"),
        (b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000, Reason.NESTED_TOO_DEEP, "nested"),
        (b'{"di1":1}', Reason.MISSING_TIMESTAMP, "`ts`"),
        (b'{"b":1,"a":2}', Reason.UNKNOWN_FORMAT, "no adapter claims an object with the members 'a', 'b'"),
        (b"{}", Reason.UNKNOWN_FORMAT, "no adapter claims an object with no members"),
        (b"[1, 2]", Reason.UNKNOWN_FORMAT, "not an object, and no adapter claims it"),
        (b"7.3", Reason.UNKNOWN_FORMAT, "not an object, and no adapter claims it"),
        (b"null", Reason.UNKNOWN_FORMAT, "not an object, and no adapter claims it"),
        *(
            (payload, Reason.INVALID_FIELD, f"Expected {TIME_FORM}, got `{got}` - at `$.{name}`")
            for payload, got, name in (
                (ENVELOPE.replace(b'"2025-10-07T15:30:00Z"', b"1759851000"), "int", "ts"),
                (ENVELOPE.replace(b'"2025-10-07T15:30:00Z"', b"[]"), "array", "ts"),
                (b'{"di1":1,"ts":1759851000.5}', "float", "ts"),
                (b'{"sensors":[{"sensor_id":"a","value":1}],"timestamp":1}', "int", "timestamp"),
            )
        ),
    ],
)
def test_registry_refusal(payload: bytes, reason: Reason, detail: str, context: Context) -> None:
    """What nobody claims has the default's reason if it is no JSON or has a schema, else an unknown format."""
    found, said = refusal(Registry(), payload, context)

    assert reason == found
    assert detail in said


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.EVENT])
def test_registry_other_kinds(kind: Kind, context: Context) -> None:
    """Adapters of one kind are not asked about another."""
    registry = Registry([Scripted()])

    said = "no adapter claims an object with the members 'di1'; known formats: ops/reference/payloads.md"
    assert (Reason.UNKNOWN_FORMAT, said) == refusal(registry, b'{"di1":1}', context, kind)


def test_registry_times_of_other_kinds(context: Context) -> None:
    """A number in the place of a time in text is told what is right; that it may be missing goes without saying."""
    for kind, payload, name in (
        (Kind.ACK, b'{"schema":"v1","cmd_id":"c","ok":true,"ts_exec":1}', "ts_exec"),
        (Kind.EVENT, b'{"schema":"v1","event_type":"boot","ts":1}', "ts"),
    ):
        expected = Reason.INVALID_FIELD, f"Expected {TIME_FORM}, got `int` - at `$.{name}`"
        assert expected == refusal(Registry(), payload, context, kind)


def test_registry_many_members(context: Context) -> None:
    """However many and long the members of an unknown format, the detail is short and printable."""
    payload = ('{"\\n' + "é" * 100_000 + '":1' + "".join(f',"m{index}":1' for index in range(100_000)) + "}").encode()
    reason, detail = refusal(Registry(), payload, context)

    assert Reason.UNKNOWN_FORMAT == reason
    assert detail.endswith(" and 99993 more; known formats: ops/reference/payloads.md")
    assert len(detail) <= MAX_DETAIL
    assert detail.isprintable()


@pytest.mark.parametrize(("members", "ending"), [(8, "'m7'"), (9, "'m7' and 1 more")])
def test_registry_as_many_members_as_are_named(members: int, ending: str, context: Context) -> None:
    """Eight members of an unknown format are named, and the others counted."""
    payload = ("{" + ",".join(f'"m{index}":1' for index in range(members)) + "}").encode()
    _, detail = refusal(Registry(), payload, context)

    assert detail.endswith(f"{ending}; known formats: ops/reference/payloads.md")


def test_registry_says_where_the_formats_are_whatever_comes(context: Context) -> None:
    """Names that grow when they are escaped are cut, and not what is behind them."""
    payload = ("{" + ",".join(f'"{chr(0xE0001) * 39}{index}":1' for index in range(8)) + "}").encode()
    _, detail = refusal(Registry(), payload, context)

    assert len(detail) == MAX_DETAIL
    assert detail.endswith("…; known formats: ops/reference/payloads.md")


def test_registry_default_first(telemetry: Telemetry, context: Context) -> None:
    """What the default understands is never offered to anybody else."""
    third_party = Scripted([telemetry])
    Registry([third_party]).decode(Kind.TELEM, ENVELOPE, context)

    assert [] == third_party.asked


def test_registry_third_party_before_built_in(telemetry: Telemetry, context: Context) -> None:
    """A third-party adapter may take over a format that a built-in one knows."""
    payload = b'{"di1":1,"ts":"2025-10-07T15:30:00Z"}'
    third_party = Scripted([telemetry])

    assert [telemetry] == Registry([third_party]).decode(Kind.TELEM, payload, context)
    assert [(payload, frozenset({"di1", "ts"}))] == third_party.asked


def test_registry_claims_in_order(telemetry: Telemetry, context: Context) -> None:
    """Adapters are asked in order, and the first claimant decodes."""
    no = Scripted(claims=lambda _payload, _members: False, name="no")
    yes = Scripted([telemetry], name="yes")
    never = Scripted(name="never")

    assert [telemetry] == Registry([no, yes, never]).decode(Kind.TELEM, b"\x00\x01", context)
    assert ([(b"\x00\x01", None)], []) == (no.asked, never.asked)


@pytest.mark.parametrize("payload", [b"\x00\x01", b"[1]", b'{"schema":"v9"}', b"{" * 5000])
def test_registry_third_party_may_claim_anything(telemetry: Telemetry, payload: bytes, context: Context) -> None:
    """Also what is no JSON, or of a schema that the default does not know."""
    assert [telemetry] == Registry([Scripted([telemetry])]).decode(Kind.TELEM, payload, context)


def test_registry_claimant_refuses(context: Context) -> None:
    """The claimant's own refusal counts, and nobody else is asked."""
    third_party = Scripted(error=DecodeError(Reason.UNKNOWN_SCHEMA, "version 9"))

    assert (Reason.UNKNOWN_SCHEMA, "version 9") == refusal(Registry([third_party]), b'{"di1":1}', context)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("7 is not 8"), (Reason.ADAPTER_FAILED, "scripted: ValueError: 7 is not 8")),
        (KeyError("ts"), (Reason.ADAPTER_FAILED, "scripted: KeyError: 'ts'")),
        (MuteError(), (Reason.ADAPTER_FAILED, "scripted: MuteError: (no message)")),
        (MemoryError(), (Reason.ADAPTER_FAILED, "scripted: MemoryError: ")),
        (ValueError("a\0\n\ud800°"), (Reason.ADAPTER_FAILED, "scripted: ValueError: a\\x00\\n\\ud800°")),
        (RecursionError(), (Reason.NESTED_TOO_DEEP, "scripted ran out of stack")),
        (DecodeError(Reason.PARSE_ERROR, "a\0b"), (Reason.PARSE_ERROR, "a\\x00b")),
        (DecodeError(Reason.PARSE_ERROR, 7), (Reason.PARSE_ERROR, "7")),  # type: ignore[arg-type]  # on purpose
        (
            DecodeError("made_up", "x"),  # type: ignore[arg-type]  # on purpose
            (Reason.ADAPTER_FAILED, "scripted: DecodeError: made_up: x"),
        ),
    ],
)
def test_registry_adapter_raises(error: Exception, expected: tuple[Reason, str], context: Context) -> None:
    """Whatever an adapter raises becomes a DecodeError with a reason of the closed set and a detail of one line."""
    assert expected == refusal(Registry([Scripted(error=error)]), b"{}", context)


def test_registry_claims_raises(context: Context) -> None:
    """An adapter that fails when it is asked fails the message like one that fails to decode it."""
    third_party = Scripted(claims=lambda payload, _members: payload[7] == 0)

    assert (Reason.ADAPTER_FAILED, "scripted: IndexError: index out of range") == refusal(
        Registry([third_party]), b"[]", context
    )


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("x" * MAX_DETAIL, "x" * MAX_DETAIL),
        ("x" * (MAX_DETAIL + 1), "x" * (MAX_DETAIL - 1) + "…"),
        ("\n" * (MAX_DETAIL // 2), r"\n" * (MAX_DETAIL // 2)),
        ("\n" * 1_000_000, (r"\n" * MAX_DETAIL)[: MAX_DETAIL - 1] + "…"),
    ],
)
def test_registry_long_detail(detail: str, expected: str, context: Context) -> None:
    """A detail is cut where a human has read enough, and not before."""
    third_party = Scripted(error=DecodeError(Reason.PARSE_ERROR, detail))

    assert (Reason.PARSE_ERROR, expected) == refusal(Registry([third_party]), b"{}", context)


@pytest.mark.parametrize(
    ("items", "detail"),
    [
        ([], "scripted: no items"),
        (["x"], "scripted: items[0]: expected Telemetry, CommandAck or Event, got str"),
        (None, "scripted: TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_registry_adapter_returns_nonsense(items: Any, detail: str, context: Context) -> None:
    """What could not be stored, or nothing at all, is the adapter's failure."""
    assert (Reason.ADAPTER_FAILED, detail) == refusal(Registry([Scripted(items)]), b"{}", context)


def test_registry_exit_is_not_an_error(context: Context) -> None:
    """What ends the process or cancels the task is not taken for a decoding error."""
    with pytest.raises(KeyboardInterrupt):
        Registry([Scripted(error=KeyboardInterrupt())]).decode(Kind.TELEM, b"{}", context)


def test_registry_adapters_in_order() -> None:
    """It tells its adapters in the order in which they get a message."""
    registry = Registry([Scripted(name="mine"), Scripted(name="my_ack", kind=Kind.ACK)])

    assert ["envelope_v1", "mine", "parsec_v1", "je02_v1", "trak_sensors", "senml"] == [
        adapter.name for adapter in registry.adapters(Kind.TELEM)
    ]
    assert ["ack_v1", "my_ack"] == [adapter.name for adapter in registry.adapters(Kind.ACK)]
    assert ["event_v1"] == [adapter.name for adapter in registry.adapters(Kind.EVENT)]


def test_registry_faulty_adapters() -> None:
    """Adapters that are none, or whose name is taken, are refused at once and all together."""
    nameless, kindless, mute = Scripted(), Scripted(), Scripted()
    nameless.name = ""
    kindless.kind = "telem"  # type: ignore[assignment]  # on purpose
    mute.decode = None  # type: ignore[assignment, method-assign]  # on purpose
    faulty = [Scripted(name="twice"), Scripted(name="twice"), Scripted(name="senml"), nameless, kindless, mute]
    with pytest.raises(ConfigError) as caught:
        Registry(faulty)

    place = f"adapter {Scripted.__module__}.Scripted"
    assert (
        f"{place}: there is another adapter with the name 'twice'",
        f"{place}: there is another adapter with the name 'senml'",
        f"{place}: not an adapter: `name`: expected a str that is not empty, got ''",
        f"{place}: not an adapter: `kind`: expected a traksense.model.Kind, got 'telem'",
        f"{place}: not an adapter: it has no method `decode`",
    ) == caught.value.faults
