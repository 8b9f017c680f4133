"""Option texts to values; what cannot be read gets a sentence."""

from __future__ import annotations

import re

__all__ = [
    "FILLS",
    "baseline",
    "bytes_of",
    "channels",
    "count",
    "floats",
    "numbers",
    "one_of",
    "output",
    "pair",
    "position",
    "sides",
]

#: Baselines by name: the mean pixel of the training data, and those of `backsight.occlusion`.
FILLS = ("training", "mean", "blur", "noise", "inpaint")

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("KMGT")},
    **{f"{prefix}IB": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")},
}
_COLORS = {"black": 0.0, "gray": 127.5, "grey": 127.5, "white": 255.0}

RGB = tuple[float, float, float]


def pair(option: str, text: str) -> tuple[int, int]:
    """``"32"`` as (32, 32), ``"32x48"`` as (32, 48): height and width in pixels, at least 1."""
    height, width = sides(option, text, 2)
    return height, width


def sides(option: str, text: str, axes: int) -> tuple[int, ...]:
    """``"32"`` as 32 along each of some axes, ``"8x32x48"`` as (8, 32, 48): depth, height and width
    in pixels, at least 1.
    """
    parts = [part.strip() for part in re.split("[xX]", text)]
    found = [int(part) if re.fullmatch(r"[+-]?\d+", part) else 0 for part in parts]
    if len(found) not in (1, axes) or min(found) < 1:
        named = "x".join(("DEPTH", "HEIGHT", "WIDTH")[-axes:])
        raise ValueError(
            f"expected {option} as N{f' or {named}' if axes > 1 else ''} in pixels, each at least"
            f" 1, got {text!r}"
        )
    return tuple(found * axes if len(found) == 1 else found)


def count(option: str, value: int | None) -> int | None:
    """A number of at least 1, or None."""
    if value is not None and value < 1:
        raise ValueError(f"expected {option} to be at least 1, got {value}")
    return value


def one_of(option: str, text: str, words: tuple[str, ...]) -> str:
    """One of some words."""
    if text not in words:
        raise ValueError(f"expected {option} as one of {', '.join(words)}, got {text!r}")
    return text


def output(text: str) -> str | int:
    """Which of several outputs: an index where it is a whole number, a name otherwise."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def floats(option: str, text: str) -> RGB:
    """``"0.5,0.5,0.5"`` as three numbers."""
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected {option} as three numbers R,G,B, got {text!r}") from None
    return red, green, blue


def numbers(option: str, text: str) -> list[float]:
    """``"0.5"`` as one number, ``"0.5,-1"`` as two."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"expected {option} as a number, or one per channel A,B,..., got {text!r}"
        ) from None


def baseline(option: str, text: str, units: str, fills: tuple[str, ...] = FILLS) -> str | RGB:
    """What stands in the box: a name, or red, green and blue.

    Args:
        option: what the option is called.
        text: a name, a colour's name, a number, or R,G,B.
        units: "pixel" (numbers in 0..255), or "normalised" (any numbers, and no colours' names).
        fills: the names.
    """
    word = text.strip().casefold()
    if word in fills:
        return word
    colors = _COLORS if units == "pixel" else {}
    try:
        parts = [colors[word]] if word in colors else [float(part) for part in word.split(",")]
    except ValueError:
        parts = []
    low, high = (0.0, 255.0) if units == "pixel" else (-1e30, 1e30)
    if len(parts) not in (1, 3) or not all(low <= part <= high for part in parts):
        names = "black, gray, white, a value in 0..255" if colors else "a number"
        raise ValueError(f"expected {option} as {', '.join(fills)}, {names} or R,G,B, got {text!r}")
    return parts[0], parts[-1] if len(parts) == 1 else parts[1], parts[-1]


def bytes_of(option: str, text: str) -> int:
    """``"500MB"`` as 500,000,000, ``"2GiB"`` as 2 * 2**30, a bare number as bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if not match or unit is None or float(match[1]) * unit < 1:
        raise ValueError(f"expected {option} as bytes such as 500MB or 2GiB, got {text!r}")
    return int(float(match[1]) * unit)


def position(option: str, text: str) -> tuple[int, int]:
    """``"23,20"`` as row 23 and column 20 of a map."""
    match = re.fullmatch(r"\s*([+-]?\d+)\s*,\s*([+-]?\d+)\s*", text)
    if not match:
        raise ValueError(f"expected {option} as ROW,COLUMN, got {text!r}")
    return int(match[1]), int(match[2])


def channels(option: str, text: str) -> int | list[int]:
    """``"0,5,7"`` as these channels, ``"5,"`` as this one; ``"8"`` as how many."""
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*,?\s*", text) or text.strip() == "0":
        raise ValueError(
            f"expected {option} as a number of them, or as a list such as 0,5,7 ('5,' for one),"
            f" got {text!r}"
        )
    if "," not in text:
        return int(text)
    return list(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
