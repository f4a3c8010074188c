"""An adapter of the kind that people write: a payload that is a plain number, with no time of its own.

The saboteur announces it by an entry point, as an installed package would.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from traksense.model import Kind, Point, Telemetry

if TYPE_CHECKING:
    from traksense.adapters import Context
    from traksense.model import Item

POINT = "plain"

coarse = False
"""For `--break coarse-instants`: whole seconds, which several messages share."""


class PlainNumber:
    """`4711`: a value of the point `plain`, at the instant at which it was received."""

    name = "prove_plain"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:
        """Whether it is digits and nothing else."""
        return members is None and re.fullmatch(rb"\d{1,15}", payload) is not None

    def decode(self, payload: bytes, context: Context) -> list[Item]:
        """One point."""
        ts = context.received_at.replace(microsecond=0) if coarse else context.received_at
        return [Telemetry(ts, [Point(POINT, float(payload))])]
