"""How long to wait before trying again."""

from __future__ import annotations

import random

import attrs


@attrs.define
class Backoff:
    """Exponential backoff with full jitter, for ever.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: full jitter spreads a herd of clients best.
    A floor of half the step keeps a single client from hammering.

    Attributes:
        initial: The first step, in seconds.
        maximum: The largest step, in seconds.
    """

    initial: float
    maximum: float
    _step: float = attrs.field(init=False, default=0.0)

    def next(self) -> float:
        """The next wait, in seconds: between half the step and the whole; the step doubles up to the maximum."""
        self._step = min(self._step * 2, self.maximum) if self._step else self.initial
        return self._step * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, not cryptography)

    def reset(self) -> None:
        """Start over, after a success."""
        self._step = 0.0
