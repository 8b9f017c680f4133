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
    """How far a whole store is, whichever processes fill it: what they have stored, and of the unit
    that this one is computing what is done of it.

    Args:
        path: of the store, which is there before the first phase begins.

    Attributes:
        glance: at the store.
        phase: "pass", "sweep", or "" between them.
        total: pixels of the image, or positions of the whole store.
        done: of them. The pass over the image is this process's own.
        first: what was done when the phase began; it tells nothing of this run's speed.
        started: when that was, by `time.time`.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = path
        self.glance: Glance
        self.phase = ""
        self.total = self.done = self.first = 0
        self.started = 0.0
        self._own = 0  # what this process has done in this phase
        self._stored = 0  # of that, what was in the store at the last look
        self._written = 0  # of that, what is in it now

    def begin(self, phase: str, total: int) -> None:
        self.glance = Glance(self.path)
        self._own = self._stored = self._written = 0
        self.phase, self.total, self.done = phase, total, 0
        if phase == "sweep":
            self.total, self.done = sum(self.glance.units), self.glance.positions
        self.first, self.started = self.done, time.time()

    def advance(self, count: int) -> None:
        self._own += count
        self._look()

    def stored(self, unit: int) -> None:
        self._written += self.glance.units[unit]
        self._look()

    def end(self) -> None:
        self._look(now=True)
        self.phase = ""

    def _look(self, *, now: bool = False) -> bool:
        """Bring `done` up to date; whether the store was looked at for that."""
        looked = self.glance.look(now=now)
        if looked:
            self._stored = self._written
        if self.phase == "sweep":
            done = self.glance.positions + self._own - self._stored
            # A damaged unit is there, and is computed anew.
            self.done = max(self.done, min(done, self.total))
        else:
            # Pixels of regions are rounded, and some networks take several passes.
            self.done = min(self._own, self.total)
        return looked

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
        path: of the store.
        rank: (rank, ranks) for one of several processes with one bar: it is shown by the first that
            has units left, and the next goes on with it.
    """

    def __init__(self, path: str | PathLike[str], rank: tuple[int, int] | None = None) -> None:
        super().__init__(path)
        self._rank = rank
        self._before: set[int] = set()  # units of lower ranks that are not there
        self._bar: Any = None

    def begin(self, phase: str, total: int) -> None:
        super().begin(phase, total)
        if self._rank is not None:
            rank, ranks = self._rank
            # The i-th of n processes has every n-th unit from i on.
            units = {u for u in range(len(self.glance.units)) if u % ranks < rank}
            self._before = units - self.glance.done
        self._show()

    def end(self) -> None:
        goes_on = self.phase == "sweep" and self._rank is not None
        super().end()
        if self._bar is not None:
            # What is left, the next rank shows.
            self._bar.leave = not goes_on or self.done >= self.total
            self._bar.close()
            self._bar = None

    def _look(self, *, now: bool = False) -> bool:
        looked = super()._look(now=now)
        if looked and self._before:
            self._before -= self.glance.done
        self._show()
        return looked

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
