"""Which adapter decodes a message, and what becomes of an adapter that misbehaves."""

from __future__ import annotations

from codecs import BOM_UTF8
from heapq import nsmallest
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, cast

from traksense.adapters.ack_v1 import AckV1
from traksense.adapters.base import Partial
from traksense.adapters.conformance import ConformanceError, check_items
from traksense.adapters.envelope_v1 import EnvelopeV1
from traksense.adapters.event_v1 import EventV1
from traksense.adapters.je02_v1 import Je02V1
from traksense.adapters.json_checks import member_names
from traksense.adapters.parsec_v1 import ParsecV1
from traksense.adapters.salvage import without_nan
from traksense.adapters.senml import SenML
from traksense.adapters.trak_sensors import TrakSensors
from traksense.errors import ConfigError, DecodeError
from traksense.model import Kind, Reason, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from importlib.metadata import EntryPoint

    from traksense.adapters.base import Adapter, Context
    from traksense.model import Item

ENTRY_POINT_GROUP: Final = "traksense.adapters"

MAX_DETAIL: Final = 500
"""Characters of a detail that are kept. Payloads find their way into details, and `ingest_errors.detail` is
for people."""

_MEMBERS_NAMED: Final = 8

_FORMATS: Final = "; known formats: ops/reference/payloads.md"

_PADDING: Final = b"\0 \t\r\n"
_PADDED: Final = frozenset(bytes([byte]) for byte in _PADDING)

_DEFAULTS: Final[Mapping[Kind, Adapter]] = {
    Kind.TELEM: EnvelopeV1(),
    Kind.ACK: AckV1(),
    Kind.EVENT: EventV1(),
}
_OTHERS: Final[tuple[Adapter, ...]] = (ParsecV1(), Je02V1(), TrakSensors(), SenML())


class Registry:
    """The adapters that there are, in the order in which they are asked.

    For each kind, its default is tried first: it serves nearly every message, and trying is cheaper than
    asking. If it refuses, the others of the kind are asked in turn whether the message is theirs, third-party
    adapters first, and the first that claims it decodes it.
    """

    def __init__(self, third_party: Iterable[Adapter] = ()) -> None:
        """Take over the third-party adapters.

        Raises:
            ConfigError: One of them is not an adapter, or its name is taken; all faults are named.
        """
        third_party = tuple(third_party)
        faults = _faults(third_party)
        if faults:
            raise ConfigError(faults)
        self._third_party = frozenset(adapter.name for adapter in third_party)
        self._others = {
            kind: tuple(adapter for adapter in (*third_party, *_OTHERS) if adapter.kind == kind) for kind in Kind
        }

    def adapters(self, kind: Kind) -> tuple[Adapter, ...]:
        """The adapters of that kind in the order in which they get a message."""
        return (_DEFAULTS[kind], *self._others[kind])

    def decode(self, kind: Kind, payload: bytes, context: Context) -> list[Item]:
        """Turn the payload into items, at least one, each of which can be stored; or into a `Partial`.

        Raises:
            DecodeError: And nothing else, whatever the payload and the adapters do. `detail` is printable and
                short.
        """
        default = _DEFAULTS[kind]
        try:
            # The default adapters return a fresh list and keep the contract by construction.
            return default.decode(payload, context)  # type: ignore[return-value]  # `cast` would be a call
        except Exception as exc:  # noqa: BLE001 (that is the promise)
            # Kept in this frame, so without the traceback that leads back to it: no cycle that holds the payload.
            refusal = _refusal(default, exc).with_traceback(None)
        text = unpadded(payload)
        if refusal.reason is Reason.PARSE_ERROR and text is not payload:
            try:
                return cast("list[Item]", default.decode(text, context))
            except Exception as exc:  # noqa: BLE001
                refusal = _refusal(default, exc).with_traceback(None)
        members = member_names(text)
        claimant = self._claimant(kind, payload, text, members)
        if claimant is None:
            said = refusal.reason in {Reason.PARSE_ERROR, Reason.NESTED_TOO_DEEP} or "schema" in (members or ())
            raise refusal if said else DecodeError(Reason.UNKNOWN_FORMAT, _description(members))
        return self._decoded(claimant, claimant.decode, payload, text, context)

    def salvage(self, kind: Kind, payload: bytes, context: Context) -> Partial | None:
        """What can be stored of a payload that `decode` has refused; None if its adapter does not look for the good in
        the bad.

        Raises:
            DecodeError: The whole message is at fault. `detail` is printable and short.
        """
        text = unpadded(payload)
        if kind is Kind.TELEM:
            # What goes into a column as it came, of an acknowledgement or an event, is left as it came.
            text = without_nan(text)
        members = member_names(text)
        adapter = self._claimant(kind, payload, text, members)
        if adapter is None and "schema" in (members or ()):
            adapter = _DEFAULTS[kind]
        salvage: Callable[[bytes, Context], Partial] | None = getattr(adapter, "salvage", None)
        if adapter is None or salvage is None:
            return None
        salvaged = self._decoded(adapter, salvage, payload, text, context)
        return salvaged if isinstance(salvaged, Partial) else Partial(salvaged)

    def _decoded(
        self,
        adapter: Adapter,
        decode: Callable[[bytes, Context], Sequence[Item]],
        payload: bytes,
        text: bytes,
        context: Context,
    ) -> list[Item]:
        """What an adapter makes of a payload; a third party's gets it as it came, and is held to the contract."""
        third_party = adapter.name in self._third_party
        try:
            found = decode(payload if third_party else text, context)
            items = found if isinstance(found, Partial) else list(found)
            if third_party:
                check_items(items)
        except Exception as exc:
            raise _refusal(adapter, exc) from exc
        if isinstance(items, Partial):
            items.faults = [Rejection(fault.reason, _printable(fault.detail)) for fault in items.faults]
        return items

    def _claimant(self, kind: Kind, payload: bytes, text: bytes, members: frozenset[str] | None) -> Adapter | None:
        for adapter in self._others[kind]:
            try:
                if adapter.claims(payload if adapter.name in self._third_party else text, members):
                    return adapter
            except Exception as exc:
                raise _refusal(adapter, exc) from exc
        return None


def unpadded(payload: bytes) -> bytes:
    """The payload without what C strings and text editors leave around it: NULs and white space behind, a byte order
    mark in front. The same object if there is none.
    """
    text = payload.rstrip(_PADDING) if payload[-1:] in _PADDED else payload
    return text.removeprefix(BOM_UTF8) if text.startswith(BOM_UTF8) else text


def load_registry() -> Registry:
    """The registry with the adapters of all installed distributions that have an entry point for them.

    An entry point in the group `traksense.adapters` names an adapter or something that returns one when
    called without arguments, such as its class.

    Raises:
        ConfigError: With one line for each entry point that is broken.
    """
    adapters: list[Adapter] = []
    faults: list[str] = []
    for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda found: (found.name, found.value)):
        try:
            adapter = _load(entry_point)
        except Exception as exc:  # noqa: BLE001 (foreign code: it can raise anything)
            faults.append(f"{_place(entry_point)}: cannot be loaded: {_said(exc)}")
            continue
        fault = _shape_fault(adapter)
        if fault is None:
            adapters.append(adapter)
        else:
            faults.append(f"{_place(entry_point)}: {fault}")
    if faults:
        raise ConfigError(faults)
    return Registry(adapters)


def _load(entry_point: EntryPoint) -> Adapter:
    found = entry_point.load()
    is_factory = isinstance(found, type) or (callable(found) and not hasattr(found, "decode"))
    return cast("Adapter", found() if is_factory else found)


def _place(entry_point: EntryPoint) -> str:
    distribution = f" of {entry_point.dist.name}" if entry_point.dist is not None else ""
    return f"entry point {entry_point.name} = {entry_point.value}{distribution} in [{ENTRY_POINT_GROUP}]"


def _faults(third_party: tuple[Adapter, ...]) -> list[str]:
    faults = []
    taken = {adapter.name for adapter in (*_DEFAULTS.values(), *_OTHERS)}
    for adapter in third_party:
        fault = _shape_fault(adapter)
        if fault is None and adapter.name in taken:
            fault = f"there is another adapter with the name {adapter.name!r}"
        if fault is None:
            taken.add(adapter.name)
        else:
            faults.append(f"adapter {type(adapter).__module__}.{type(adapter).__qualname__}: {fault}")
    return faults


def _shape_fault(adapter: object) -> str | None:
    name = getattr(adapter, "name", None)
    if not isinstance(name, str) or not name:
        return f"not an adapter: `name`: expected a str that is not empty, got {name!r:.100}"
    if not isinstance(getattr(adapter, "kind", None), Kind):
        return f"not an adapter: `kind`: expected a traksense.model.Kind, got {getattr(adapter, 'kind', None)!r:.100}"
    missing = [method for method in ("claims", "decode") if not callable(getattr(adapter, method, None))]
    return f"not an adapter: it has no method `{missing[0]}`" if missing else None


def _refusal(adapter: Adapter, exc: Exception) -> DecodeError:
    if isinstance(exc, DecodeError) and isinstance(exc.reason, Reason):
        detail = exc.detail
        if isinstance(detail, str) and len(detail) <= MAX_DETAIL and detail.isprintable():
            return exc
        return DecodeError(exc.reason, _printable(detail))
    if isinstance(exc, RecursionError):
        return DecodeError(Reason.NESTED_TOO_DEEP, f"{adapter.name} ran out of stack")
    said = str(exc) if isinstance(exc, ConformanceError) else _said(exc)
    return DecodeError(Reason.ADAPTER_FAILED, _printable(f"{adapter.name}: {said}"))


def _said(exc: Exception) -> str:
    try:
        message = str(exc)
    except Exception:  # noqa: BLE001 (an exception that cannot even say what it is)
        message = "(no message)"
    return f"{type(exc).__name__}: {message}"


def _description(members: frozenset[str] | None) -> str:
    return f"{_printable(_shape(members), MAX_DETAIL - len(_FORMATS))}{_FORMATS}"


def _shape(members: frozenset[str] | None) -> str:
    if members is None:
        return "not an object, and no adapter claims it"
    named = ", ".join(repr(name[:40]) for name in nsmallest(_MEMBERS_NAMED, members))
    more = f" and {len(members) - _MEMBERS_NAMED} more" if len(members) > _MEMBERS_NAMED else ""
    return f"no adapter claims an object with {f'the members {named}{more}' if members else 'no members'}"


def _printable(detail: object, longest: int = MAX_DETAIL) -> str:
    """The text in one line of visible characters: PostgreSQL takes it, and a terminal is not driven by it."""
    text = str(detail)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= longest else escaped[: longest - 1] + "…"
