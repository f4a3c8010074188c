"""How long tests wait for what must come, however busy the machine is."""

from __future__ import annotations

from typing import Final

HANG_SECONDS: Final = 300.0
"""Only what hangs takes longer; the limit of a whole test is in tox.ini. Long enough for two workers with their servers
on a quarter of a core, and less than the 600 s that some tests give to what must not be waited for.
"""
