"""A wrong clock for one process: `datetime.now` and `time.time` are off by what a file says, now.

For the saboteur only, which installs it before anything of the product is imported. The computer's own clock cannot be
changed for one process, and the product has no seam for it.
"""

from __future__ import annotations

import datetime as dt
import time
from typing import Any, Final

_TRUE_TIME: Final = time.time
_TRUE: Final = dt.datetime


def install(path: str) -> None:
    """From now on, the clock is off by the seconds in this file, as long as it is there."""

    def offset() -> float:
        try:
            with open(path, encoding="ascii") as file:  # noqa: PTH123  (at every look at the clock: a Path costs more)
                return float(file.read() or 0)
        except FileNotFoundError:
            return 0.0

    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, _TRUE)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, _TRUE)

    class Clock(_TRUE, metaclass=Meta):  # type: ignore[valid-type,misc]
        """Makes true datetimes only; nobody meets an instance of it."""

        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            return _TRUE(*arguments, **options)

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return _TRUE.now(tz) + dt.timedelta(seconds=offset())

    dt.datetime = Clock  # type: ignore[misc]
    time.time = lambda: _TRUE_TIME() + offset()


def true_now() -> dt.datetime:
    """What the computer's own clock says."""
    return _TRUE.now(dt.UTC)
