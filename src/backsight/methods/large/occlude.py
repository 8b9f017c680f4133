"""Occlusion maps of images that do not fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...models.call import Model, Output
from ...occlusion_store import Store
from ...sweep.readout import Readout
from ...sweep.result import Occlusion
from ...zoo.network import Network
from .fill import fill
from .task import Large, Regions
from .watch import Bars, StoreBars

__all__ = ["large_occlusion"]

#: Bytes of a sweep unless the caller says otherwise.
MEMORY = 2 << 30


def large_occlusion(
    model: Model | Network,
    image: str | PathLike[str] | Tensor | npt.NDArray[Any] | Regions,
    *,
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    edge: str = "clip",
    roi: Sequence[Sequence[int]] | npt.NDArray[np.bool_] | Tensor | None = None,
    baseline: float | Sequence[float] = 0.0,
    output: Output | None = None,
    probability: str | None = None,
    targets: Sequence[int] | None = None,
    top: int | None = None,
    memory: int = MEMORY,
    store: str | PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Occlusion | Store:
    """`occlusion` of one image of any size, in bounded memory.

    The drops are those of `occlusion`. Activations exist only for the region that some neighbouring
    positions read, with the halo that the layers need. What sums up whole maps (a global pool in
    front of a classifier) is accumulated in one pass over the image beforehand.

    Args:
        model: a zoo.Network, or a module from images to scores (images, classes), in evaluation
            mode, whose graph can be captured. It is not changed.
        image: (channels, *spatial), an array, a tensor, a path (.npy, zarr, TIFF and its pyramids,
            photos), or what `backsight.sources.open_source` has opened. With a zoo.Network, pixels
            (3, H, W) of 8 bits, which are normalised as its photos are and neither scaled nor
            cropped; otherwise floating point, as the model takes it.
        window, stride, edge: of the boxes, in pixels, as for `occlusion`.
        roi: regions of interest: boxes (any, 2·D), half-open, starts then ends, in pixels; or a
            mask over the whole image, of any size. Only positions whose box has its centre in one
            are computed. They may overlap.
        baseline: what stands in the box, in the units of what the model takes: a number, or one
            per channel.
        output: which output of a model that returns several.
        probability, targets, top: as for `occlusion`.
        memory: bytes that the sweep may take beside the model: weights laid out for it, regions of
            maps, windows, what is read ahead. What torch and its compiler take once per process
            comes on top.
        store: a folder to write the result to, unit by unit, in zarr format 3: drops and scores,
            and what else `read_occlusion` makes an `Occlusion` of. If it holds a part of the same
            sweep, that is taken up: a killed run is finished by the same call, and the store then
            has the bytes of one that was not killed. It holds neither clock nor host. Whoever
            finishes it adds the maps of the output with the largest score, or of the first four
            targets: as arrays, "maps/<output>", as PNGs of every size, "overview/<output>", and of
            images with GeoTIFF tags as GeoTIFF, "maps/<output>.tif".
        shard: (i, n) for the i-th of n processes on one store, from 0: each computes units of its
            own. Another number of processes may take a store up.
        show_progress: show progress bars on stderr: of the pass over the image, then of the
            positions; of a store, those of all processes that share it.
        device: where to compute; default: where the model is.

    Returns:
        An `Occlusion`, whose `boxes` are those of the positions that were computed; or, of a store,
        a view of it, finished unless other shards are still at work.

    Raises:
        RuntimeError: another run is writing to the store.
        OSError: the store cannot be written to, or the disk is full; what is whole stays.
        ValueError: an argument does not fit, or the store is of another sweep, and how it differs;
            the model reads large maps as a whole in its middle
            (squeeze and excitation, group or instance norm, attention) or cannot be captured; or
            the memory is too small, and then how much would do.
    """
    task = Large(
        model,
        image,
        window=window,
        stride=stride,
        edge=edge,
        roi=roi,
        baseline=baseline,
        output=output,
        readout=Readout(probability, None, None if targets is None else tuple(targets), top),
        memory=memory,
        device=device,
    )
    if store is not None:
        return fill(
            task, store, shard, StoreBars(store, shard or (0, 1)) if show_progress else None
        )
    if shard is not None:
        raise ValueError("expected a store for the result of a shard, got none")
    return task.run(Bars() if show_progress else None)
