"""The one error of this package."""

from __future__ import annotations

from traksense.errors import TraksenseError


class StackError(TraksenseError):
    """A broker, database or service could not be run here; one line that says what, where and what to do."""
