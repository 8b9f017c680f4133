"""How the memory of a sweep over a large image is shared out."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .plan import told_bytes

__all__ = ["Budget", "TooLittle", "told_at_least"]

#: Parts of the memory; what they leave is for what is freed and not yet given back, and for what
#: libraries take on the way.
_MAPS, _WINDOWS = 2, 4


class TooLittle(ValueError):
    """A budget does not do.

    Attributes:
        needed: bytes that would, as far as this goes.
    """

    def __init__(self, why: str, needed: int) -> None:
        super().__init__(why)
        self.needed = needed


@dataclass(frozen=True)
class Budget:
    """So many bytes, beside what is kept throughout."""

    bytes: int

    @property
    def maps(self) -> int:
        """For the maps of a region, or of a strip, on the way."""
        return self.bytes // _MAPS

    @property
    def windows(self) -> int:
        """For a batch of windows."""
        return self.bytes // _WINDOWS

    def check_maps(self, size: int, what: str) -> None:
        """Refuse maps that do not fit."""
        if size > self.maps:
            raise TooLittle(f"{what} takes {told_bytes(size)}, and half is for maps", size * _MAPS)

    def check_windows(self, size: int, what: str) -> None:
        """Refuse windows that do not fit."""
        if size > self.windows:
            raise TooLittle(
                f"{what} takes {told_bytes(size)}, and a quarter is for windows", size * _WINDOWS
            )


def told_at_least(size: int) -> str:
    """A number of bytes, rounded up."""
    unit = 1 << 10
    while size > 1024 * unit:
        unit <<= 10
    return told_bytes(ceil(size * 10 / unit) * unit / 10)
