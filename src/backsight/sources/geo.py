"""GeoTIFF tags: how pixels lie on the ground, by the names of the tags."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["known", "load_tifffile", "of_page", "scaled", "write_map"]

#: What GeoTIFF and GDAL add, and the type of its values. GDAL_NODATA is the value that means none.
_TAGS = {
    "ModelPixelScale": (33550, "d"),
    "ModelTiepoint": (33922, "d"),
    "ModelTransformation": (34264, "d"),
    "GeoKeyDirectory": (34735, "H"),
    "GeoDoubleParams": (34736, "d"),
    "GeoAsciiParams": (34737, "s"),
    "GDAL_NODATA": (42113, "s"),
}

#: Of those that say where pixels lie: how many numbers there are, or how many belong together.
_LENGTHS = {"ModelPixelScale": 3, "ModelTiepoint": 6, "ModelTransformation": 16}

_SHORT = frozenset(range(1 << 16))
_RASTER_TYPE, _POINT = 1025, 2  # a key of the directory, and its value where pixels are points


def of_page(page: Any) -> dict[str, Any]:
    """The tags of a page of tifffile's."""
    found = {name: page.tags.get(code) for name, (code, _) in _TAGS.items()}
    return known({name: tag.value for name, tag in found.items() if tag is not None}) or {}


def known(tags: object) -> dict[str, Any] | None:
    """The GeoTIFF tags among some, as lists of numbers and text; without those that are damaged.
    None where there are none.
    """
    found: dict[str, Any] = {}
    if not isinstance(tags, Mapping):
        return None
    for name, (_, kind) in _TAGS.items():
        value = tags.get(name)
        if kind == "s":
            text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str):
                found[name] = text
        elif value is not None:
            numbers = _numbers(value, _LENGTHS.get(name, 1))
            if kind == "H":
                shorts = [int(n) for n in numbers]
                numbers = shorts if shorts == numbers and set(shorts) <= _SHORT else []
            if numbers:
                found[name] = numbers
    return found or None


def _numbers(value: Any, together: int) -> list[Any]:
    """Finite numbers, of which so many belong together; none where they are something else."""
    try:
        numbers = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        return []
    whole = numbers.ndim == 1 and len(numbers) % together == 0 and np.isfinite(numbers).all()
    return list(numbers.tolist()) if whole else []


def scaled(tags: Mapping[str, Any], across: float, down: float) -> dict[str, Any]:
    """The tags of an image whose pixels are so many times as wide and as high, and begin where
    those of this one begin.
    """
    found = dict(tags)
    # Where pixels are points, they are counted from centre to centre, and the first one's moves.
    shift = 0.5 if _of_points(tags) else 0.0
    if "ModelPixelScale" in tags:
        x, y, *rest = tags["ModelPixelScale"]
        found["ModelPixelScale"] = [x * across, y * down, *rest]
    if "ModelTiepoint" in tags:
        points = _rows(tags["ModelTiepoint"], 6)
        found["ModelTiepoint"] = [
            value
            for i, j, *rest in points
            for value in ((i + shift) / across - shift, (j + shift) / down - shift, *rest)
        ]
    if "ModelTransformation" in tags:
        rows = _rows(tags["ModelTransformation"], 4)
        found["ModelTransformation"] = [
            value
            for x, y, z, at in rows
            for value in (
                x * across,
                y * down,
                z,
                at + shift * (x * (across - 1) + y * (down - 1)),
            )
        ]
    return found


def _rows(values: Sequence[float], width: int) -> list[Sequence[float]]:
    return [values[i : i + width] for i in range(0, len(values), width)]


def _of_points(tags: Mapping[str, Any]) -> bool:
    """Whether pixels are points, not areas."""
    keys = _rows(tags.get("GeoKeyDirectory", ()), 4)[1:]
    return any(key[0] == _RASTER_TYPE and key[1] == 0 and key[3] == _POINT for key in keys)


def write_map(
    file: BinaryIO, values: npt.NDArray[np.floating[Any]], tags: Mapping[str, Any]
) -> None:
    """Write a map (rows, columns) as a GeoTIFF of float32, in which NaN means none."""
    told = {**tags, "GDAL_NODATA": "nan"}
    buffer = io.BytesIO()  # tifffile takes no file that has a number for a name
    load_tifffile("writing GeoTIFF").imwrite(
        buffer,
        values.astype(np.float32),
        photometric="minisblack",
        metadata=None,
        software="backsight",
        extratags=[_written(name, told[name]) for name in _TAGS if name in told],
    )
    file.write(buffer.getbuffer())


def _written(name: str, value: Any) -> tuple[int, str, int, Any, bool]:
    code, kind = _TAGS[name]
    if kind == "s":
        return code, kind, 0, value.encode("ascii", "replace"), True
    return code, kind, len(value), tuple(value), True


def load_tifffile(what: str) -> Any:
    """tifffile, or a sentence that it is missing for something."""
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            f'{what} needs the package tifffile: pip install "backsight[large]"', name="tifffile"
        ) from error
    return tifffile
