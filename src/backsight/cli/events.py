"""What happens in a sweep over a large image, for machines: a JSON object a line on stdout."""

from __future__ import annotations

import json
import sys
import time
from os import PathLike
from typing import Any

from backsight.methods.large.watch import OfStore

__all__ = ["Events", "tell"]

#: Seconds between lines of a phase; the last one comes in any case.
_EVERY = 0.25


def tell(event: str, values: dict[str, Any]) -> None:
    """Print an event."""
    line = json.dumps({"event": event, **values}, ensure_ascii=False, allow_nan=False)
    # One write: lines of several processes on one pipe must not run into each other.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Events(OfStore):
    """Prints the pass over the image as it goes, and each unit that this process has stored; in a
    hurry, the latest of those that come at once.

    Args:
        path, share: as of `OfStore`.
    """

    def __init__(self, path: str | PathLike[str], share: tuple[int, int] = (0, 1)) -> None:
        super().__init__(path, share)
        self._next = 0.0
        self._waiting: tuple[str, dict[str, Any]] | None = None

    def begin(self, phase: str, total: int) -> None:
        super().begin(phase, total)
        self._next, self._waiting = 0.0, None

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.phase == "pass":
            self._tell_pass()

    def stored(self, unit: int) -> None:
        super().stored(unit)
        values = {
            "unit": unit,
            "positions_done": self.done,
            "positions": self.total,
            "per_second": self.per_second,
            "seconds_left": self.seconds_left,
        }
        self._tell("unit", values)

    def end(self) -> None:
        passing = self.phase == "pass"
        super().end()
        self._next = 0.0
        if passing:
            self._tell_pass()
        elif self._waiting is not None:
            self._tell(*self._waiting)

    def _tell_pass(self) -> None:
        self._tell("pass", {"pixels": self.done, "of": self.total})

    def _tell(self, event: str, values: dict[str, Any]) -> None:
        now = time.monotonic()
        if now < self._next:
            self._waiting = event, values
            return
        self._next, self._waiting = now + _EVERY, None
        tell(event, {**values, "rank": self.share[0]})
