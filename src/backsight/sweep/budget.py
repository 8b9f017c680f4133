"""How the memory of a sweep over a large image is shared out."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .plan import told_bytes

__all__ = ["Budget", "TooLittle", "told_at_least"]

#: Quarters of the memory. Windows are there when the maps on the way are gone, and what that leaves
#: is for what is freed and not yet given back.
_MAPS, _WINDOWS = 3, 1


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
        return self.bytes * _MAPS // 4

    @property
    def windows(self) -> int:
        """For a batch of windows."""
        return self.bytes * _WINDOWS // 4

    def check_maps(self, size: int, what: str) -> None:
        """Refuse maps that do not fit."""
        if size > self.maps:
            needed = ceil(size * 4 / _MAPS)
            raise TooLittle(
                f"{what} takes {told_bytes(size)} and may take {_MAPS} quarters", needed
            )

    def check_windows(self, size: int, what: str) -> None:
        """Refuse windows that do not fit."""
        if size > self.windows:
            needed = ceil(size * 4 / _WINDOWS)
            raise TooLittle(f"{what} takes {told_bytes(size)} and may take a quarter", needed)


def told_at_least(size: int) -> str:
    """A number of bytes, rounded up."""
    unit = 1 << 10
    while size > 1024 * unit:
        unit <<= 10
    return told_bytes(ceil(size * 10 / unit) * unit / 10)
