"""How far a sweep over a large image is, told to whoever wants to know."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol

from tqdm import tqdm

from .glance import Glance

__all__ = ["Bars", "OfStore", "Silent", "StoreBars", "Together", "Watch"]


class Watch(Protocol):
    """Is told of a sweep as it goes: first of a pass over the image, then of positions."""

    def begin(self, phase: str, total: int) -> None:
        """A phase begins: "pass", whose total is in pixels, or "sweep", in positions."""

    def advance(self, count: int) -> None:
        """So many more pixels or positions are done."""

    def stored(self, unit: int) -> None:
        """A unit has been written to the store."""

    def end(self) -> None:
        """The phase has ended, or was interrupted."""


class Silent:
    """Tells nobody."""

    def begin(self, phase: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def stored(self, unit: int) -> None:
        pass

    def end(self) -> None:
        pass


class Together:
    """Tells several."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = tuple(watches)

    def begin(self, phase: str, total: int) -> None:
        for watch in self._watches:
            watch.begin(phase, total)

    def advance(self, count: int) -> None:
        for watch in self._watches:
            watch.advance(count)

    def stored(self, unit: int) -> None:
        for watch in self._watches:
            watch.stored(unit)

    def end(self) -> None:
        for watch in self._watches:
            watch.end()


class Bars(Silent):
    """Shows a progress bar for each phase on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, phase: str, total: int) -> None:
        self._bar = _bar(phase, total)

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def end(self) -> None:
        self._bar.close()


class OfStore:
    """How far a whole store is, whichever processes fill it: what they have stored, and what this
    one has computed.

    Args:
        path: of the store, which is there before the first phase begins.
        share: (i, n) of the i-th of n processes: every n-th unit from i on is its own.

    Attributes:
        glance: at the store.
        phase: "pass", "sweep", or "" between them.
        total: pixels of the image, or positions of the whole store.
        done: of them. The pass over the image is this process's own.
        first: what was done when the phase began; it tells nothing of this run's speed.
        started: when that was, by `time.time`.
    """

    def __init__(self, path: str | PathLike[str], share: tuple[int, int] = (0, 1)) -> None:
        self.path, self.share = path, share
        self.glance: Glance
        self.phase = ""
        self.total = self.done = self.first = 0
        self.started = 0.0
        self._more = 0  # since the phase began, without the units of other processes
        self._rounded = 0.0  # pixels that rounding may have lost

    def begin(self, phase: str, total: int) -> None:
        self.glance = Glance(self.path)
        self.phase, self.total, self.first = phase, total, 0
        if phase == "sweep":
            self.total, self.first = sum(self.glance.units), self.glance.positions
        self.done, self.started = self.first, time.time()
        self._more, self._rounded = 0, 0.0

    def advance(self, count: int) -> None:
        self._more += count
        self._rounded += 0.5
        self._look()

    def stored(self, unit: int) -> None:
        self._look()

    def end(self) -> None:
        if self.phase == "pass" and 0 < self.total - self._more <= self._rounded:
            self._more = self.total
        self._look(now=True)
        self.phase = ""

    def _look(self, *, now: bool = False) -> set[int]:
        """Bring `done` up to date; the units that are new in the store."""
        new = self.glance.look(now=now) or set()
        if self.phase == "sweep":
            own, every = self.share
            self._more += sum(self.glance.units[unit] for unit in new if unit % every != own)
        # A damaged unit is there, and is computed anew; pixels of regions are rounded, and some
        # networks take several passes.
        self.done = min(self.first + self._more, self.total)
        return new

    @property
    def per_second(self) -> float | None:
        """Pixels or positions of this phase of this run; None before there are any."""
        seconds = time.time() - self.started
        return (self.done - self.first) / seconds if self.done > self.first and seconds else None

    @property
    def seconds_left(self) -> float | None:
        speed = self.per_second
        return (self.total - self.done) / speed if speed else None


class StoreBars(OfStore):
    """Shows on stderr a bar of the pass over the image, and one of all positions of a store: those
    that are there, and those that any process adds. Speed and time left are of this run.

    Args:
        path, share: as of `OfStore`.
        one: whether all processes have one bar together: it is shown by the first that has units
            left, and the next goes on with it.
    """

    def __init__(
        self, path: str | PathLike[str], share: tuple[int, int] = (0, 1), *, one: bool = False
    ) -> None:
        super().__init__(path, share)
        self._one = one
        self._before: set[int] = set()  # units of lower ranks that are not there
        self._bar: Any = None

    def begin(self, phase: str, total: int) -> None:
        super().begin(phase, total)
        if self._one:
            own, every = self.share
            units = {unit for unit in range(len(self.glance.units)) if unit % every < own}
            self._before = units - self.glance.done
        self._show()

    def end(self) -> None:
        goes_on = self.phase == "sweep" and self._one
        super().end()
        if self._bar is not None:
            # What is left, the next rank shows.
            self._bar.leave = not goes_on or self.done >= self.total
            self._bar.close()
            self._bar = None

    def _look(self, *, now: bool = False) -> set[int]:
        new = super()._look(now=now)
        self._before -= new
        self._show()
        return new

    def _show(self) -> None:
        if self._bar is None:
            if self._before:
                return
            self._bar = _bar(self.phase, self.total, self.first)
            self._bar.start_t = self.started
            self._bar.n = self.done
            self._bar.refresh()
        self._bar.update(self.done - self._bar.n)


def _bar(phase: str, total: int, first: int = 0) -> Any:
    passing = phase == "pass"
    return tqdm(
        total=total,
        initial=first,
        desc="first pass" if passing else "sweep",
        unit="px" if passing else " positions",
        unit_scale=passing,
        smoothing=0,  # of the whole run: units of other processes come in leaps
        miniters=1,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # a line of a log stays there
    )
