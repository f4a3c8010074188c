"""How the process uses memory: large blocks go back to the system, and the garbage collector rarely looks for
cycles.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

M_MMAP_THRESHOLD: Final = -3
"""Source: glibc <malloc.h>."""

LARGE_BLOCK_BYTES: Final = 256 * 1024
"""Blocks from this size on are mapped and unmapped one by one. Far above what small messages and reads need, below a
batch of large payloads. Measured: the peak of 300 payloads of 1 MiB through seven writers falls from 271 to 180 MiB;
see tests/acceptance/test_outage.py."""


GC_THRESHOLDS: Final = (100_000, 50, 100)
"""When the collector runs, by allocations. A queue full of messages is long-lived, and each default run (every 700
allocations) walks it in vain: nothing in the pipeline makes cycles. Measured with `bench --compare`, three rounds: 6.4
to 4.6 CPU seconds per million ten-point points, 20.9 to 16.0 for one-point messages; memory unchanged."""


def collect_rarely() -> None:
    """Set the collector to the pipeline's pace, and take what is loaded now out of its sight. Call once, after
    imports.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def return_large_blocks() -> None:
    """Keep glibc from raising its mmap threshold by itself: after the first large block is freed, blocks up to 32 MiB
    would come from the heap, where one small survivor holds all of it. Does nothing on other C libraries.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
    except (OSError, AttributeError):
        return


def shares(size: int, ordinary: int, *texts: str) -> int:
    """How many ordinary entries of a cache one counts for: a device may choose names that take ten times the memory.

    Args:
        size: What an ordinary entry takes, in bytes.
        ordinary: How much of that its names are.
        texts: The names of this one.
    """
    return 1 + (max(sum(map(sys.getsizeof, texts)) - ordinary, 0) + size // 2) // size
