"""Maps and pictures of a store's drops, from its units alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ... import ops
from ...occlusion_store import Store
from ...plots.pyramid import halves, write_png
from ...sources import geo

__all__ = ["derive"]

_MOST = 4  # outputs that are drawn
_CELLS = 1 << 24  # of a map at most: 4096 a side of a square
_BAND = 1 << 20  # cells that are computed at once
_CHUNKS = {1: 1 << 18, 2: 512, 3: 64}  # cells a side, by axes
_AXES = ("depth", "row", "column")

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


def derive(store: Store) -> None:
    """Write the maps of a store whose units are all done: of its targets, where it was made for
    some, the first four; otherwise of the output with the largest score among those kept.

    A map has square cells as wide as the step from box to box (the greatest common divisor of the
    axes' steps; a multiple of it where more than 2^24 cells would be needed). A cell is the mean of
    the drops of all boxes that cover a pixel of it: where boxes begin and end with cells, it is
    what each of its pixels is in `Occlusion.map`. It is NaN where no box lies.

    - ``maps/<output>``: the map, a zarr array of the drops' dtype.
    - ``maps/<output>.tif``: the same as a GeoTIFF of float32, of two axes and where the image has
      GeoTIFF tags: these, scaled to the cells.
    - ``overview/<output>/<level>.png``: of two axes, the map as a picture, a pixel a cell, and its
      halves down to 256 pixels; of three axes, that of the layer with the map's largest value; of
      one axis, none. Colours reach from -limit to limit, the largest absolute value, which the
      attributes of ``overview`` tell.

    The units are read one after the other; some 50 bytes a position and 20 a cell are held.
    """
    outputs = _outputs(store)
    boxes, drops = _gathered(store, list(outputs.values()))
    size = store.meta["image"]["shape"][1:]
    axes = len(size)
    cell = _cell(boxes, size)
    cells = [-(-n // cell) for n in size]
    boxes[:, :axes] //= cell
    boxes[:, axes:] = -(-boxes[:, axes:] // cell)
    told: dict[str, dict[str, float]] = {}
    store.derive_group("maps", {})
    for output, values in zip(outputs, drops, strict=True):
        heat = _spread(values, boxes, cells)
        name, side = str(output), [min(n, _CHUNKS[axes]) for n in cells]
        store.derive_array(f"maps/{name}", heat, side, _AXES[-axes:], {"cell": cell})
        if axes == 1:
            continue
        if axes == 2 and store.meta["geo"]:
            with store.deriving(f"maps/{name}.tif") as file:
                geo.write_map(file, heat, geo.scaled(store.meta["geo"], cell, cell))
        told[name] = {"cell": cell}
        if axes == 3:
            layer = _strongest(heat)
            told[name]["layer"] = layer
            heat = heat[layer]
        limit = told[name]["limit"] = _limit(heat)
        for level, picture in enumerate(halves(heat)):
            with store.deriving(f"overview/{name}/{level}.png") as file:
                write_png(file, picture, limit)
    if told:
        store.derive_group("overview", told)


def _outputs(store: Store) -> dict[int, int]:
    """Those that are drawn, and their columns."""
    base, targets = store.base, store.targets
    assert base is not None
    assert targets is not None
    if store.meta["targets"] is None:
        column = int(base.argmax())
        return {int(targets[column]): column}
    found: dict[int, int] = {}
    for column, output in enumerate(targets.tolist()):
        found.setdefault(output, column)
    return dict(list(found.items())[:_MOST])


def _gathered(store: Store, columns: Sequence[int]) -> tuple[Integers, Floats]:
    """Of all positions that cover something, boxes (positions, 2·D) and drops (columns,
    positions).
    """
    count, axes = sum(store.units), len(store.meta["image"]["shape"]) - 1
    boxes = np.empty((count, 2 * axes), np.int64)
    drops = np.empty((len(columns), count), store.dtype)
    first = 0
    for unit in range(len(store.units)):
        found = store.read(unit, "boxes", "drops")
        some = (found["boxes"][:, axes:] > found["boxes"][:, :axes]).all(1)
        here = slice(first, first + int(some.sum()))
        boxes[here] = found["boxes"][some]
        drops[:, here] = found["drops"][some][:, columns].T
        first = here.stop
    return boxes[:first], drops[:, :first]


def _cell(boxes: Integers, size: Sequence[int]) -> int:
    """The side of a cell in pixels."""
    axes = len(size)
    steps = []
    for axis in range(axes):
        gaps, counts = np.unique(np.diff(np.unique(boxes[:, axis])), return_counts=True)
        if len(gaps):
            # The last box may have been moved inside, and regions of interest leave gaps.
            steps.append(int(gaps[counts.argmax()]))
    sides = boxes[:, axes:] - boxes[:, :axes]
    step = math.gcd(*steps) if steps else int(sides.max())
    cell = step
    while math.prod(-(-n // cell) for n in size) > _CELLS:
        cell += step
    return cell


def _spread(drops: Floats, boxes: Integers, cells: Sequence[int]) -> Floats:
    """The mean over the boxes that cover each cell, NaN where there are none."""
    axes = len(cells)
    heat = np.empty(cells, drops.dtype)
    for top, bottom in _bands(cells):
        here = (boxes[:, 0] < bottom) & (boxes[:, axes] > top)
        part = torch.from_numpy(boxes[here])
        part[:, [0, axes]] -= top
        size = [bottom - top, *cells[1:]]
        values = torch.from_numpy(drops[here])[:, None]
        mean = ops.heatmap(values, part, size)[0]
        none = ops.heatmap(torch.ones(len(part), 1), part, size, "sum")[0] == 0
        heat[top:bottom] = mean.masked_fill(none, math.nan).numpy()
    return heat


def _bands(cells: Sequence[int]) -> Iterator[tuple[int, int]]:
    step = max(1, _BAND // math.prod(cells[1:]))
    for top in range(0, cells[0], step):
        yield top, min(top + step, cells[0])


def _strongest(heat: Floats) -> int:
    """The layer with the largest value."""
    return int(np.nan_to_num(heat, nan=-math.inf).argmax()) // math.prod(heat.shape[1:])


def _limit(heat: Floats) -> float:
    """The largest absolute value, or 1 where all are 0."""
    return float(np.abs(np.nan_to_num(heat)).max()) or 1.0
