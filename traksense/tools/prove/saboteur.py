"""The service, with a bomb inside: `python -m traksense.tools.prove.saboteur ARM_FILE [--break WHAT]`.

The code that ships has no failpoints. Here the methods at the interesting places are wrapped (`sabotage`) before the
service starts, as `traksense run` does it; each passage looks whether ARM_FILE names its point, counts down, and at
zero the process kills itself with SIGKILL, so that nothing of it (no `finally`, no buffer, no signal handler) runs
afterwards. Whoever writes the file sees it vanish just before. The process's clock is off by the seconds in
ARM_FILE.clock, if there is one.

Nothing of the product is imported before its clock is in place.
"""

from __future__ import annotations

import importlib.metadata
import os
import runpy
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

AFTER_RECEIVE: Final = "after-receive"
REGISTERING: Final = "registering"
MID_BATCH: Final = "mid-batch"
BEFORE_PUBACK: Final = "before-puback"
MID_PUBACK: Final = "mid-puback"

ACK_EARLY: Final = "ack-early"
HASTY_HANDOVER: Final = "hasty-handover"
HASTY_REPEATS: Final = "hasty-repeats"
COARSE_INSTANTS: Final = "coarse-instants"
WHOLE_MESSAGE: Final = "whole-message"
NO_CLOCK_CHECK: Final = "no-clock-check"
BREAKAGES: Final = (ACK_EARLY, HASTY_HANDOVER, HASTY_REPEATS, COARSE_INSTANTS, WHOLE_MESSAGE, NO_CLOCK_CHECK)
"""What is broken in the service itself; `stage` and `keeper` break the rest."""

CLOCK_SUFFIX: Final = ".clock"


class Bomb:
    """Goes off at the armed point. ARM_FILE holds the point and how many passages it takes: `mid-batch 3`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def passes(self, point: str) -> bool:
        """Count this passage; whether it is the one."""
        try:
            with open(self._path, "r+", encoding="ascii") as file:  # noqa: PTH123  (at every passage: a Path costs more)
                armed, _, left = file.read().partition(" ")
                if armed != point:
                    return False
                if int(left) > 1:
                    file.seek(0)
                    file.truncate()
                    file.write(f"{armed} {int(left) - 1}")
                    return False
        except FileNotFoundError:
            return False
        return True

    def explode(self) -> None:
        """End this process here and now."""
        os.unlink(self._path)  # noqa: PTH108
        os.kill(os.getpid(), signal.SIGKILL)

    def at(self, point: str) -> None:
        """Explode if this passage is the one."""
        if self.passes(point):
            self.explode()


class Plugins(importlib.metadata.DistributionFinder):
    """Announces `plain.PlainNumber` as if a package with its entry point were installed."""

    def find_spec(self, *_: object) -> None:
        """No module comes from here."""

    def find_distributions(
        self,
        context: importlib.metadata.DistributionFinder.Context = importlib.metadata.DistributionFinder.Context(),  # noqa: B008
    ) -> Iterable[importlib.metadata.Distribution]:
        """The one package, if it is asked for."""
        return [_Plugin()] if context.name in (None, _Plugin.TITLE) else []


class _Plugin(importlib.metadata.Distribution):
    TITLE: Final = "traksense-prove-plain"

    def read_text(self, filename: str) -> str | None:
        """Of the files of a `.dist-info`."""
        return {
            "METADATA": f"Metadata-Version: 2.1\nName: {self.TITLE}\nVersion: 1\n",
            "entry_points.txt": "[traksense.adapters]\nprove_plain = traksense.tools.prove.plain:PlainNumber\n",
        }.get(filename)

    def locate_file(self, path: object) -> Any:
        """It has no files."""
        raise FileNotFoundError(path)


def main(argv: list[str]) -> None:
    """Run the service, and end as it ends."""
    from traksense.tools.prove import clock

    arm_file, *breaking = argv
    clock.install(arm_file + CLOCK_SUFFIX)
    sys.meta_path.append(Plugins())

    from traksense.tools.prove import sabotage

    sabotage.plant(Bomb(arm_file))
    if breaking:
        sabotage.BREAK[breaking[1]]()
    sys.argv = ["traksense", "run"]
    runpy.run_module("traksense", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
