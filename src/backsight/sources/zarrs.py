"""Zarr arrays of formats 2 and 3, and OME-NGFF pyramids of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import digest
from .axes import Axes, named, spelled
from .source import Array, Tiled

__all__ = ["Zarr", "open_zarr"]

#: The axes of OME-NGFF before 0.3, which did not name them.
_UNNAMED = ("t", "c", "z", "y", "x")

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class Zarr(Tiled):
    """A zarr array in a folder; only the chunks that a box touches are decoded (of shards, the
    inner chunks). Chunks that were never written are the fill value.
    """

    kind = "zarr"

    def __init__(
        self,
        array: Any,
        folder: str,
        axes: Axes,
        name: str,
        level: int = 0,
        levels: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        super().__init__(name, array.shape, array.chunks, array.dtype, axes, level, levels)
        self._array = array
        self._folder = Path(folder, array.path)
        # The metadata of the groups above say which array is which level.
        parents = [Path(folder), *(Path(folder, part) for part in Path(array.path).parents)]
        self._above = [
            path / file for path in parents for file in _METADATA if path != self._folder
        ]

    def _decode(self, index: tuple[int, ...]) -> Array:
        stored = self._array.shape
        where = tuple(
            slice(i * size, min((i + 1) * size, n))
            for i, size, n in zip(index, self.tile, stored, strict=True)
        )
        return np.asarray(self._array[where])

    def fingerprint(self) -> str:
        files = {f"^{i}/{path.name}": path for i, path in enumerate(self._above) if path.is_file()}
        for folder, _, names in os.walk(self._folder):
            for file in names:
                path = Path(folder, file)
                files[path.relative_to(self._folder).as_posix()] = path
        return digest.of_tree(files, self._about())

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"format": int(self._array.metadata.zarr_format)}


def open_zarr(folder: str, level: int, axes: str | None, name: str) -> Zarr:
    """A zarr array, or a level of an OME-NGFF group, in a folder."""
    try:
        import zarr
    except ImportError as error:
        raise ImportError(
            'reading zarr needs the package zarr: pip install "backsight[large]"', name="zarr"
        ) from error
    if not any(Path(folder, file).is_file() for file in _METADATA):
        raise ValueError("expected a zarr array or group, got a folder that is neither")
    node: Any = zarr.open(folder, mode="r")
    if isinstance(node, zarr.Array):
        if level != 0:
            raise ValueError(f"expected level 0, the only one of a zarr array, got {level}")
        return Zarr(node, folder, spelled(axes, node.shape), name)
    attributes: dict[str, Any] = dict(node.attrs)
    scales = attributes.get("multiscales") or dict(attributes.get("ome", {})).get("multiscales")
    if not scales:
        arrays = sorted(key for key, _ in node.arrays())
        raise ValueError(
            "expected a zarr array or a group of OME-NGFF multiscales, got a group of "
            + (f"arrays: name one of them, {', '.join(arrays)}" if arrays else "no array")
        )
    return _of_scales(node, scales[0], folder, level, axes, name)


def _of_scales(
    node: Any, scales: Mapping[str, Any], folder: str, level: int, axes: str | None, name: str
) -> Zarr:
    paths = [dataset["path"] for dataset in scales["datasets"]]
    if not 0 <= level < len(paths):
        raise ValueError(f"expected a level from 0 to {len(paths) - 1}, got {level}")
    missing = [path for path in paths if path not in node]
    if missing:
        raise ValueError(f"the group names the array {missing[0]}, and there is none")
    arrays = [node[path] for path in paths]
    stated = scales.get("axes") or _UNNAMED
    names = [axis["name"] if isinstance(axis, Mapping) else str(axis) for axis in stated]
    if len(names) != arrays[level].ndim:
        raise ValueError(
            f"expected {len(names)} axes {', '.join(names)}, got {arrays[level].shape}"
        )
    # Of the largest: an axis may be 1 long in a small level, and is still an axis.
    own = named(names, arrays[0].shape, axes)
    levels = tuple(own.shape(array.shape) for array in arrays)
    return Zarr(arrays[level], folder, own, name, level, levels)
