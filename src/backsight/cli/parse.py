"""Option texts to values; what cannot be read gets a sentence."""

from __future__ import annotations

import re

__all__ = ["bytes_of", "color", "floats", "pair"]

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("KMGT")},
    **{f"{prefix}IB": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")},
}
_COLORS = {"black": 0.0, "gray": 127.5, "grey": 127.5, "white": 255.0}


def pair(option: str, text: str) -> tuple[int, int]:
    """``"32"`` as (32, 32), ``"32x48"`` as (32, 48): height and width in pixels, at least 1."""
    match = re.fullmatch(r"\s*([+-]?\d+)(?:\s*[xX]\s*([+-]?\d+))?\s*", text)
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(sides) < 1:
        raise ValueError(
            f"expected {option} as N or HEIGHTxWIDTH in pixels, each at least 1, got {text!r}"
        )
    return sides


def floats(option: str, text: str) -> tuple[float, float, float]:
    """``"0.5,0.5,0.5"`` as three numbers."""
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected {option} as three numbers R,G,B, got {text!r}") from None
    return red, green, blue


def color(option: str, text: str) -> tuple[float, float, float] | None:
    """A colour as red, green and blue in 0..255; None for ``"mean"``."""
    word = text.strip().casefold()
    if word == "mean":
        return None
    try:
        parts = [_COLORS[word]] if word in _COLORS else [float(part) for part in word.split(",")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or not all(0 <= part <= 255 for part in parts):
        raise ValueError(
            f"expected {option} as mean, black, gray, white, a value in 0..255 or R,G,B, "
            f"got {text!r}"
        )
    return parts[0], parts[-1] if len(parts) == 1 else parts[1], parts[-1]


def bytes_of(option: str, text: str) -> int:
    """``"500MB"`` as 500,000,000, ``"2GiB"`` as 2 * 2**30, a bare number as bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if not match or unit is None or float(match[1]) * unit < 1:
        raise ValueError(f"expected {option} as bytes such as 500MB or 2GiB, got {text!r}")
    return int(float(match[1]) * unit)
