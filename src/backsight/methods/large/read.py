"""An occlusion of a large image, back from its store."""

from __future__ import annotations

from os import PathLike

import numpy as np
import numpy.typing as npt
import torch

from ...occlusion_store import Store
from ...sweep.grid import Grid
from ...sweep.result import Occlusion

__all__ = ["read_occlusion"]


def read_occlusion(path: str | PathLike[str]) -> Occlusion:
    """What `large_occlusion` has written to a store, as it returns it without one: the same bits.

    Of a store that is not finished, also while it is being written, the positions of the units that
    are done; then `boxes` says which they are, and `grid_shape` is None. All drops are loaded; a
    part of a store that is larger than the memory can be had from its arrays, which zarr reads.

    Args:
        path: the store's folder.

    Raises:
        ValueError: there is no store, it is damaged, or no unit of it is done; one sentence.
        OSError: it cannot be read.
    """
    store = Store.view(path)
    done = sorted(store.done)
    base, targets = store.base, store.targets
    if not done or base is None or targets is None:
        raise ValueError(f"expected a store with units that are done, got {path} with none yet")
    meta = store.meta
    boxes = np.concatenate([store.read(unit, "boxes")["boxes"] for unit in done])
    order = _row_by_row(boxes)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    drops = np.empty((1, len(boxes), len(base)), store.dtype)
    best = np.empty((1, len(boxes)), np.int64)
    noise_floor, first = 0.0, 0
    for unit in done:
        found = store.read(unit, "drops", "most_probable", "noise_floor")
        here = place[first : first + store.units[unit]]
        first += len(here)
        drops[0, here], best[0, here] = found["drops"], found["most_probable"][:, 0]
        noise_floor = max(noise_floor, float(found["noise_floor"][0]))
    whole = len(done) == len(store.units) and meta["grid"] is not None
    every = meta["targets"] is None and meta["top"] is None
    return Occlusion(
        torch.from_numpy(drops),
        torch.from_numpy(base)[None],
        Grid(torch.from_numpy(boxes[order]), tuple(meta["grid"]) if whole else None),
        meta["image"]["shape"],
        noise_floor,
        meta["plan"],
        torch.from_numpy(best),
        None if every else torch.from_numpy(targets)[None],
    )


def _row_by_row(boxes: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The order of a grid's positions, whichever of them there are. Along an axis starts and ends
    rise, and no two positions share both.
    """
    axes = boxes.shape[1] // 2
    bounds = [boxes[:, end] for axis in range(axes) for end in (axis, axes + axis)]
    return np.lexsort(bounds[::-1])
