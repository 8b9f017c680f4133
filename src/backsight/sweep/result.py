"""What a sweep found."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops, store
from .grid import Grid
from .plan import Plan

Target = int | Sequence[int] | Tensor


class Occlusion:
    """The result of an occlusion sweep.

    Attributes:
        drops: (images, positions, outputs), original minus occluded score; fp64 for fp64 models,
            else fp32.
        boxes: (positions, 2·D) int64, half-open, starts then ends, clipped to the image.
        base: (images, outputs) fp64, the scores of the unoccluded images.
        noise_floor: the largest |drop| of null occlusions (the image's own pixels in the box) in
            the same sweep: drops below it mean nothing.
        plan: the plan that was run; after `load`, its plain data.
        size: pixels per spatial axis of the images.
        grid_shape: positions along each axis; None for boxes that are no grid.
    """

    def __init__(
        self,
        drops: Tensor,
        base: Tensor,
        grid: Grid,
        size: Sequence[int],
        noise_floor: float,
        plan: Plan | dict[str, Any],
    ) -> None:
        self.drops = drops
        self.base = base
        self.boxes = grid.boxes
        self.grid_shape = grid.shape
        self.size = tuple(size)
        self.noise_floor = noise_floor
        self.plan = plan

    def __repr__(self) -> str:
        images, positions, outputs = self.drops.shape
        return (
            f"Occlusion(images={images}, positions={positions}, outputs={outputs},"
            f" size={self.size}, noise_floor={self.noise_floor:.2g})"
        )

    @property
    def scores(self) -> Tensor:
        """(images, positions, outputs) fp64: the score with each box occluded, base - drop."""
        return self.base[:, None, :] - self.drops

    def _of_target(self, target: Target) -> Tensor:
        """(images, positions): the drops of one output, or of one per image."""
        images, _, outputs = self.drops.shape
        index = torch.as_tensor(target, device="cpu").flatten()
        if index.is_floating_point() or index.dtype == torch.bool or len(index) not in (1, images):
            raise ValueError(
                f"expected a target index, or one for each of {images} images, got {target!r}"
            )
        if bool(((index < 0) | (index >= outputs)).any()):
            raise ValueError(f"expected a target in [0, {outputs}), got {target!r}")
        index = index.to(self.drops.device).expand(images)
        return self.drops[torch.arange(images, device=index.device), :, index]

    def map(self, target: Target, reduce: str = "mean") -> Tensor:
        """The drops of `target` spread over the pixels: (images, *size), dtype of `drops`.

        Args:
            target: an output's index, or one per image.
            reduce: "mean" or "sum" over the boxes that cover a pixel. Pixels that no box covers are
                0.
        """
        if reduce not in ("mean", "sum"):
            raise ValueError(f"expected reduce to be 'mean' or 'sum', got {reduce!r}")
        scores = self._of_target(target).T.contiguous()
        return ops.heatmap(scores, self.boxes.to(scores.device), list(self.size), reduce)

    def _on_grid(self, values: Tensor) -> Tensor:
        if self.grid_shape is None:
            raise ValueError(
                "expected positions on a grid, got explicit boxes: read drops and boxes instead"
            )
        return values.reshape(len(values), *self.grid_shape)

    def grid(self, target: Target) -> Tensor:
        """The drops of `target` as (images, *positions along each axis)."""
        return self._on_grid(self._of_target(target))

    def most_probable(self) -> Tensor:
        """The output with the largest score at each position, (images, *positions along each axis)
        int64.
        """
        # One image at a time: all scores at once would double the memory of the result.
        best = [
            (base - drops).argmax(-1) for base, drops in zip(self.base, self.drops, strict=True)
        ]
        return self._on_grid(torch.stack(best))

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to an .npz file, whole or not at all."""
        plan = (
            self.plan
            if isinstance(self.plan, dict)
            else self.plan.as_dict() | {"versions": _versions()}
        )
        meta = {
            "noise_floor": self.noise_floor,
            "size": list(self.size),
            "grid": None if self.grid_shape is None else list(self.grid_shape),
            "plan": plan,
        }
        arrays = {name: getattr(self, name).cpu().numpy() for name in ("drops", "base", "boxes")}
        store.save_npz(path, arrays, meta)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Occlusion:
        """Read what `save` wrote. Raises ValueError for a file that is none or is damaged."""
        arrays, meta = store.load_npz(path, ("drops", "base", "boxes"))
        drops, base, boxes = (torch.from_numpy(arrays[name]) for name in ("drops", "base", "boxes"))
        shape = None if meta["grid"] is None else tuple(meta["grid"])
        return cls(drops, base, Grid(boxes, shape), meta["size"], meta["noise_floor"], meta["plan"])


def _versions() -> dict[str, str]:
    from .._version import __version__

    return {"backsight": __version__, "torch": torch.__version__, "numpy": np.__version__}
