"""What a payload adapter is: a pure function from bytes to items, with a name and a claim.

No I/O, and no clock except `Context.received_at`. Source of every format: the project's payload
specification, repeated in each adapter's docstring.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  (msgspec resolves the annotations at run time)
from typing import TYPE_CHECKING, Protocol

import msgspec

from traksense.model import Item, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from traksense.model import Kind


class Context(msgspec.Struct, frozen=True, gc=False):
    """What is known of a message besides its bytes.

    `points_max` is how many points it may have (INGEST_POINTS_MAX). They are counted afterwards, too; an adapter that
    looks into each of very many parts had better not begin.
    """

    tenant: str
    site: str
    device: str
    received_at: datetime
    points_max: int = 10_000


class Partial(list[Item]):
    """The items of a message, and what else was in it; without items, it has at least one of the others.

    Attributes:
        faults: What is wrong with parts of it, the path included. They become one dead letter beside the items.
        absent: How many points had no reading: null, or not-a-number.
    """

    def __init__(self, items: Iterable[Item] = (), *, faults: Sequence[Rejection] = (), absent: int = 0) -> None:
        super().__init__(items)
        self.faults = list(faults)
        self.absent = absent


class Adapter(Protocol):
    """One device format."""

    @property
    def name(self) -> str:
        """Short and unique, for logs and documentation."""
        ...

    @property
    def kind(self) -> Kind:
        """The topic kind that it serves."""
        ...

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:
        """Whether the payload looks like this format.

        Args:
            payload: The exact bytes.
            members: The names of the top-level members if the payload is a JSON object, else None (a JSON
                array, or not JSON at all).
        """
        ...

    def decode(self, payload: bytes, context: Context) -> Sequence[Item]:
        """Turn the payload into items, at least one, or into a `Partial`.

        Raises:
            DecodeError: The payload is not acceptable; reason and detail go into the dead letter.
        """
        ...


class Salvager(Protocol):
    """An adapter whose `decode` refuses a message for the first fault that it meets, which is quick, and which then
    looks again for what is good in it.
    """

    def salvage(self, payload: bytes, context: Context) -> Partial:
        """Turn a payload that `decode` has refused into what can be stored of it.

        Raises:
            DecodeError: The whole message is at fault; that is its reason, then.
        """
        ...
