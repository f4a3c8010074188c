"""Messages that brought another value than the one that is stored: what is said of them, as dead letters.

Two readings of one second, the hour that comes twice in autumn, a clock that starts anew after each boot: a device can
give two values of a point the same time. One is stored; the message with the other one is kept whole, so that nothing
has disappeared (ops/decisions/0035).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from traksense.model import Reason, Rejection
from traksense.store.rows import error_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from traksense.model import Delivery
    from traksense.store.dictionary import Dictionary
    from traksense.store.duplicates import Comparable, Conflict

SHOWN: Final = 10
"""How many points of one message are named."""


def reject(
    batch: Sequence[Delivery], dictionary: Dictionary, conflicts: Sequence[Conflict], events: AbstractSet[int]
) -> tuple[dict[int, Rejection], dict[int, tuple[Any, ...]]]:
    """Why deliveries become dead letters, and their rows for `ingest_errors`, both by their index in the batch.

    Args:
        batch: The deliveries.
        dictionary: Knows what series are called.
        conflicts: Points that differ from what is stored.
        events: The indices of deliveries with an event that differs from the one that is stored.
    """
    said: dict[int, list[str]] = {index: ["another event is stored under the same id or time"] for index in events}
    names: dict[str, dict[int, str]] = {}
    for conflict in conflicts:
        route = batch[conflict.delivery].message.route
        assert route is not None  # it has points
        if route.path not in names:
            names[route.path] = dictionary.names(route)
        said.setdefault(conflict.delivery, []).append(_describe(conflict, names[route.path]))
    rejections = {index: _rejection(batch[index].rejection, texts) for index, texts in said.items()}
    return rejections, {index: error_row(batch[index], why) for index, why in rejections.items()}


def _describe(conflict: Conflict, names: Mapping[int, str]) -> str:
    name = names.get(conflict.series_id, f"series {conflict.series_id}")
    return f"{name} at {conflict.ts.isoformat()}: {_value(conflict.stored)} is stored, {_value(conflict.brought)} came"


def _rejection(earlier: Rejection | None, texts: Sequence[str]) -> Rejection:
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    conflict = Rejection(Reason.CONFLICTING_VALUE, "; ".join([*texts[:SHOWN], *more]))
    # If it had bad points, too, one dead letter says both.
    return conflict if earlier is None else earlier.and_also(conflict)


def _value(value: Comparable) -> str:
    number, truth, text = value
    if truth is not None:
        return "true" if truth else "false"
    if text is None:
        return repr(number)
    # Beside a number, a text is its exact digits.
    return text if number is not None else repr(text[:100])
