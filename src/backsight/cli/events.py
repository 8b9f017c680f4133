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
        self._waiting: int | None = None  # the latest unit that was not told

    def begin(self, phase: str, total: int) -> None:
        super().begin(phase, total)
        self._next = 0.0

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.phase == "pass" and self._due():
            self._tell_pass()

    def stored(self, unit: int) -> None:
        super().stored(unit)
        self._waiting = unit
        if self._due():
            self._tell_unit()

    def end(self) -> None:
        passing = self.phase == "pass"
        super().end()
        if passing:
            self._tell_pass()
        elif self._waiting is not None:
            self._tell_unit()

    def _due(self) -> bool:
        now = time.monotonic()
        due = now >= self._next
        if due:
            self._next = now + _EVERY
        return due

    def _tell_pass(self) -> None:
        tell("pass", {"pixels": self.done, "of": self.total, "rank": self.share[0]})

    def _tell_unit(self) -> None:
        values = {
            "unit": self._waiting,
            "positions_done": self.done,
            "positions": self.total,
            "per_second": self.per_second,
            "seconds_left": self.seconds_left,
            "rank": self.share[0],
        }
        tell("unit", values)
        self._waiting = None
