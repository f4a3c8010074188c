"""Payload adapters: one device format a module, a registry that picks, an entry point for third parties.

Everything here is pure: bytes in, items or a `DecodeError` out. `ops/adapters.md` says how to write another.
"""

from traksense.adapters.base import Adapter, Context, Partial, Salvager
from traksense.adapters.conformance import ConformanceError, check_items
from traksense.adapters.numbers import number
from traksense.adapters.registry import ENTRY_POINT_GROUP, Registry, load_registry

__all__ = [
    "ENTRY_POINT_GROUP",
    "Adapter",
    "ConformanceError",
    "Context",
    "Partial",
    "Registry",
    "Salvager",
    "check_items",
    "load_registry",
    "number",
]
