"""How far a sweep over a large image is, told to whoever wants to know."""

from __future__ import annotations

from typing import Any, Protocol

from tqdm import tqdm

__all__ = ["Bars", "Silent", "Watch"]


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


class Bars(Silent):
    """Shows a progress bar for each phase on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, phase: str, total: int) -> None:
        unit = {"pass": "px", "sweep": "box"}[phase]
        self._bar = tqdm(total=total, unit=unit, unit_scale=phase == "pass")

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def end(self) -> None:
        self._bar.close()
