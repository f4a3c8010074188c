"""Which number a `meta` object has in the dictionary, and which of them are stored with their rows instead."""

from __future__ import annotations

from typing import Final

META_MAX: Final = 20_000
"""How many `meta` objects are remembered."""

META_LENGTH_MAX: Final = 4096
"""A longer `meta`, in bytes, is stored with its rows instead of in the dictionary."""

INLINE_BYTES_MAX: Final = 64 * 1024
"""But not if that makes the rows of a message longer than so many bytes: a megabyte that each of ten thousand points
would repeat is stored once. Such objects are remembered apart (`PASSING_BYTES_MAX`)."""

INLINE_POINTS_MAX: Final = 8
"""So many points may repeat it all the same, since what is stored with its rows goes with them when they expire."""

PASSING_BYTES_MAX: Final = 32 * 1024 * 1024
"""How much of such objects is remembered. Twice what seven writers can need at the same time (a full batch and one
more message each, 2 MiB with the default `INGEST_PAYLOAD_MAX_BYTES`), so that none forgets what another is about to
use."""

_ENTRY_BYTES: Final = 200
"""What remembering one takes beside its document (measured with tracemalloc: 150; more while the table grows)."""

NOVEL_META_MAX: Final = 64
"""How many new `meta` objects one device may add to the dictionary. A device whose meta never repeats (a counter, an
uptime) would otherwise add one for each message; beyond this its meta is stored with its rows."""


class MetaNumbers:
    """What is remembered, by tenant and document.

    Attributes:
        kept: Most, until there are too many.
        passing: Large ones and those of devices that send ever new ones, with many points each; the newest.
    """

    def __init__(self) -> None:
        self.kept: dict[tuple[str, bytes], int] = {}
        self.passing: dict[tuple[str, bytes], int] = {}
        self._passing_bytes = 0

    def get(self, key: tuple[str, bytes]) -> int | None:
        """The number, if it is known."""
        number = self.kept.get(key)
        return number if number is not None or not self.passing else self.passing.get(key)

    def add(self, key: tuple[str, bytes], number: int, *, for_long: bool) -> None:
        """Remember one; what is forgotten for it is looked up again by whoever needs it.

        Of passing ones the oldest half goes: never what the batches under way have just looked up, or they would take
        it from each other again and again.
        """
        if for_long:
            self.kept[key] = number
            return
        if key not in self.passing:
            self._passing_bytes += len(key[1]) + _ENTRY_BYTES
        self.passing[key] = number
        if self._passing_bytes > PASSING_BYTES_MAX:
            while self._passing_bytes > PASSING_BYTES_MAX // 2:
                oldest = next(iter(self.passing))
                del self.passing[oldest]
                self._passing_bytes -= len(oldest[1]) + _ENTRY_BYTES

    def make_room(self, count: int) -> None:
        """Before so many more that are kept: all are forgotten if that would be too many."""
        if len(self.kept) + count > META_MAX:
            self.kept.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.kept.clear()
        self.passing.clear()
        self._passing_bytes = 0


SELECT_META: Final = """
SELECT m.meta_id, m.tenant_id, m.digest
FROM unnest($1::text[], $2::bytea[]) AS k (tenant_id, digest) JOIN traksense.meta m USING (tenant_id, digest)
"""

INSERT_META: Final = """
INSERT INTO traksense.meta (tenant_id, digest, doc)
SELECT tenant_id, digest, doc::jsonb FROM unnest($1::text[], $2::bytea[], $3::text[]) AS k (tenant_id, digest, doc)
ON CONFLICT DO NOTHING
RETURNING meta_id, tenant_id, digest
"""
