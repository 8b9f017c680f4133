"""Which stored axis is which: channels, depth, height, width, or one of length 1 to be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axes", "named", "spelled"]

#: The spatial axes, in the order in which they are read.
SPATIAL = "DHW"

#: The names that TIFF and OME-NGFF give to axes.
_KNOWN = {"X": "W", "Y": "H", "Z": "D", "C": "C", "S": "C"}


@dataclass(frozen=True)
class Axes:
    """A stored array's axes.

    Attributes:
        letters: a letter per stored axis: "C", "D", "H", "W", each once at most, or "_" for one of
            length 1 that is left out.
    """

    letters: str

    @property
    def order(self) -> tuple[int, ...]:
        """The stored axes in the order (channels, *spatial), without channels where there are
        none.
        """
        return tuple(self.letters.index(c) for c in "C" + SPATIAL if c in self.letters)

    def shape(self, stored: Sequence[int]) -> tuple[int, ...]:
        """(channels, *spatial) of an array of the shape `stored`."""
        found = tuple(stored[axis] for axis in self.order)
        return found if "C" in self.letters else (1, *found)

    def region(self, box: Sequence[int], channels: int) -> tuple[slice, ...]:
        """The stored region of a box, starts then ends, with all channels."""
        spatial = [c for c in SPATIAL if c in self.letters]
        where = {"C": slice(0, channels), "_": slice(0, 1)}
        for d, letter in enumerate(spatial):
            where[letter] = slice(box[d], box[len(spatial) + d])
        return tuple(where[letter] for letter in self.letters)


def spelled(axes: str | None, shape: Sequence[int]) -> Axes:
    """The axes of an array that does not say what they are: channels first unless `axes` says
    otherwise.
    """
    if axes is None:
        if len(shape) not in (2, 3, 4):
            raise ValueError(
                f"expected an array (channels, *spatial) of 1 to 3 spatial axes, got {tuple(shape)}"
            )
        return Axes("C" + SPATIAL[-(len(shape) - 1) :])
    letters = axes.upper()
    spatial = "".join(c for c in SPATIAL if c in letters)
    known = len(set(letters)) == len(letters) and set(letters) <= set("C" + SPATIAL)
    if not known or not spatial or not SPATIAL.endswith(spatial) or len(letters) != len(shape):
        raise ValueError(
            f"expected axes to name the {len(shape)} axes of {tuple(shape)} by C, D, H and W, "
            f"such as 'HWC', got {axes!r}"
        )
    return Axes(letters)


def named(names: Sequence[str], shape: Sequence[int], axes: str | None) -> Axes:
    """The axes of a file that names them (X, Y, Z, C, S, T, ...).

    Args:
        names: of each stored axis.
        shape: of the stored array.
        axes: the caller's own letters for the axes that are longer than 1, and for X and Y.
    """
    upper = [name.upper() for name in names]
    kept = [d for d, name in enumerate(upper) if shape[d] > 1 or name in ("X", "Y")]
    if axes is not None:
        own = spelled(axes, [shape[d] for d in kept]).letters
    else:
        own = "".join(_KNOWN.get(upper[d], "?") for d in kept)
        if "?" in own or len(set(own)) < len(own):
            lengths = ", ".join(f"{upper[d]} of {shape[d]}" for d in kept)
            raise ValueError(
                f"expected axes X, Y, Z and one of channels, got {lengths}: say what they are by "
                "axes=, such as 'DHW'"
            )
    letters = ["_"] * len(upper)
    for d, letter in zip(kept, own, strict=True):
        letters[d] = letter
    found = "".join(letters)
    if "D" in found and "H" not in found:
        raise ValueError(f"expected an axis of rows beside {', '.join(upper)}")
    return Axes(found)
