"""What a sweep found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops, plots, store
from ..results import array
from ..zoo.network import Network
from .grid import Grid, disjoint
from .plan import Plan
from .readout import Drops

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = int | str | Sequence[int] | Sequence[str] | Tensor

_TOP = 5  # outputs that a report tells of


class Occlusion:
    """The result of an occlusion sweep.

    Attributes:
        drops: (images, positions, outputs), original minus occluded score; fp64 for fp64 models,
            else fp32.
        boxes: (positions, 2·D) int64, half-open, starts then ends, clipped to the image; with the
            channels' interval first, or of several boxes per position, as they were asked for.
        base: (images, outputs) fp64, the scores of the unoccluded images.
        targets: (images, outputs) int64, which outputs the columns are; None for all in their
            order.
        noise_floor: the largest |drop| of null occlusions (the image's own pixels in the box) in
            the same sweep: drops below it mean nothing.
        plan: the plan that was run; after `load`, its plain data.
        shape: (channels, *spatial) of an image.
        grid_shape: positions along each axis; None for boxes that are no grid.
        pictures: (images, H, W, 3) uint8, the photos; None after `load`.
    """

    def __init__(
        self,
        drops: Tensor,
        base: Tensor,
        grid: Grid,
        shape: Sequence[int],
        noise_floor: float,
        plan: Plan | dict[str, Any],
        most_probable: Tensor,
        targets: Tensor | None = None,
    ) -> None:
        self.drops = drops
        self.base = base
        self.boxes = grid.table
        self.grid_shape = grid.shape
        self.shape = tuple(shape)
        self.noise_floor = noise_floor
        self.plan = plan
        self.targets = targets
        self.pictures: Tensor | None = None
        self._network: Network | None = None
        self._most_probable = most_probable
        self._grid = grid

    @classmethod
    def of(cls, found: Drops, grid: Grid, shape: Sequence[int], plan: Plan) -> Occlusion:
        """What a sweep has filled in."""
        return cls(
            found.drops,
            found.base,
            grid,
            shape,
            found.noise_floor,
            plan,
            found.most_probable,
            found.targets,
        )

    def shows(self, pictures: Tensor, network: Network | None) -> None:
        """Say what the images look like, and what network the outputs are of; it keeps what is
        known of its classes and leaves the model out.
        """
        self.pictures = pictures
        self._network = None
        if network is not None and network.classes is not None:
            count, kept = len(network.classes), self.targets
            named = count == self.base.shape[1] if kept is None else count > int(kept.max())
            self._network = replace(network, model=nn.Identity()) if named else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the outputs, where a zoo.Network gave them; not after `load`."""
        return self._network.classes if self._network else None

    def label(self, index: int) -> str:
        """What to call an output."""
        return self._network.label(index) if self._network else f"output {index}"

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per spatial axis of the images."""
        return self.shape[1:]

    def __getstate__(self) -> dict[str, Any]:
        """For pickling: a plan's graph stays behind, its plain data goes along."""
        return self.__dict__ | {"plan": self._plan_data()}

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

    def _index(self, target: Any) -> Any:
        """A target with the names of classes as their indices."""
        if isinstance(target, list | tuple):
            return [self._index(each) for each in target]
        if not isinstance(target, str):
            return target
        if self._network is None or self.classes is None:
            raise ValueError(
                f"expected a target index, got {target!r}: only the result of a zoo.Network knows"
                " the names of its classes"
            )
        return self._network.find(target, len(self.classes))

    def column(self, output: int, image: int = 0) -> int:
        """Where the drops of an output stand.

        Raises:
            ValueError: they were not kept.
        """
        kept = range(self.drops.shape[2]) if self.targets is None else self.targets[image].tolist()
        if output not in kept:
            raise ValueError(f"expected a target of those kept, {list(kept)}, got {output}")
        return list(kept).index(output)

    def strongest(self, image: int = 0) -> int:
        """The output with the largest score of an unoccluded image, among those kept."""
        column = int(self.base[image].argmax())
        return column if self.targets is None else int(self.targets[image, column])

    def spatial_boxes(self, position: int) -> Tensor:
        """What one position covers, (boxes, 2·D) int64, without channels and empty boxes."""
        axes = len(self.size)
        boxes = self.boxes[position].reshape(-1, self.boxes.shape[-1])
        if boxes.shape[1] > 2 * axes:
            boxes = torch.cat([boxes[:, 1 : axes + 1], boxes[:, axes + 2 :]], 1)
        return boxes[(boxes[:, axes:] > boxes[:, :axes]).all(1)]

    def _of_target(self, target: Target) -> Tensor:
        """(images, positions): the drops of one output, or of one per image."""
        images, _, outputs = self.drops.shape
        index = torch.as_tensor(self._index(target), device="cpu").flatten()
        if index.is_floating_point() or index.dtype == torch.bool or len(index) not in (1, images):
            raise ValueError(
                f"expected a target index, or one for each of {images} images, got {target!r}"
            )
        if self.targets is not None:
            found = self.targets.cpu() == index.expand(images)[:, None]
            if not bool(found.any(1).all()):
                kept = self.targets.unique().tolist()
                raise ValueError(f"expected a target of those kept, {kept}, got {target!r}")
            index = found.int().argmax(1)
        elif bool(((index < 0) | (index >= outputs)).any()):
            raise ValueError(f"expected a target in [0, {outputs}), got {target!r}")
        index = index.to(self.drops.device).expand(images)
        return self.drops[torch.arange(images, device=index.device), :, index]

    def map(self, target: Target, reduce: str = "mean") -> Tensor:
        """The drops of `target` spread over the pixels: (images, *size), dtype of `drops`; with a
        channel axis, (images, channels, *size), where boxes cover a part of the channels.

        Args:
            target: an output's index, or a class's name where a zoo.Network was given; or one per
                image.
            reduce: "mean" or "sum" over the boxes that cover a pixel. Pixels that no box covers are
                0.
        """
        if reduce not in ("mean", "sum"):
            raise ValueError(f"expected reduce to be 'mean' or 'sum', got {reduce!r}")
        drops = self._of_target(target).T.contiguous()
        boxes, channels = self._grid.boxes, self._grid.channels
        if self._grid.parts is not None:
            boxes, owner = disjoint(self._grid.parts)
            drops = drops[owner.to(drops.device)]
        if channels is None:
            return ops.heatmap(drops, boxes.to(drops.device), list(self.size), reduce)
        maps = []
        for channel in range(self.shape[0]):
            here = (channels[:, 0] <= channel) & (channel < channels[:, 1])
            some = here.to(drops.device)
            maps.append(
                ops.heatmap(drops[some], boxes[here].to(drops.device), list(self.size), reduce)
            )
        return torch.stack(maps, 1)

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
        """Which of the model's outputs is the largest at each position, whichever drops were kept:
        int64 (images, *positions along each axis), or (images, positions) for boxes that are no
        grid.
        """
        shape = self.grid_shape or self._most_probable.shape[1:]
        return self._most_probable.reshape(len(self.base), *shape)

    def plot(self, target: int | str | None = None, image: int = 0) -> Figure:
        """The photo beside its map: red where covering lowers the score of the target, blue where
        it raises it. Outlined: what costs most.

        Args:
            target: an output's index, or a class's name where a zoo.Network was given. Default: the
                strongest of the image's outputs.
            image: which of the images.

        Raises:
            ValueError: the images have not two spatial axes, or there is no such target.
            ImportError: matplotlib is not installed.
        """
        if len(self.size) != 2:
            raise ValueError(f"expected photos, with two spatial axes, got {len(self.size)}")
        index = self.strongest(image) if target is None else int(self._index(target))
        base = float(self.base[image, self.column(index, image)])
        heat = self.map([index] * len(self.base))[image].double()
        drop, position = self._largest(index, image)
        photo = np.full((*self.size, 3), 255, np.uint8)
        if self.pictures is not None:
            photo = array(self.pictures[image])
        return plots.overlay(
            photo,
            array(heat.mean(0) if heat.ndim == 3 else heat),
            title=f"Occlusion: {self.label(index)}, score {base:.4g}",
            note=f"{self.drops.shape[1]} positions; outlined: what costs most, {drop:.3g};"
            f" noise floor {self.noise_floor:.2g}",
            label="drop of the score, mean over covering boxes",
            box=self.spatial_boxes(position).tolist(),
        )

    def _largest(self, output: int, image: int) -> tuple[float, int]:
        """The largest drop of an output, and its position."""
        drops = self.drops[image, :, self.column(output, image)]
        position = int(drops.argmax())
        return float(drops[position]), position

    def summary(self) -> str:
        """What was found, in a line for each image."""
        lines = []
        for image, found in enumerate(self.report()["images"]):
            base = float(self.base[image].max())
            lines.append(
                f"{found['target']}: score {base:.4g}, largest drop {found['largest_drop']:.4g} by"
                f" {_places(found['boxes'])}; noise floor {self.noise_floor:.2g}"
            )
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        """What was found of each image's strongest output, in plain values that JSON can say."""
        images = []
        for image in range(len(self.base)):
            index = self.strongest(image)
            drop, position = self._largest(index, image)
            images.append(
                {
                    "target": self.label(index),
                    "index": index,
                    "score": float(self.base[image, self.column(index, image)]),
                    "largest_drop": drop,
                    "boxes": self.spatial_boxes(position).tolist(),
                }
            )
        return {
            "images": images,
            "positions": self.drops.shape[1],
            "noise_floor": float(self.noise_floor),
        }

    def _plan_data(self) -> dict[str, Any]:
        if isinstance(self.plan, dict):
            return self.plan
        return self.plan.as_dict() | {"versions": _versions()}

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to an .npz file, whole or not at all."""
        meta = {
            "noise_floor": self.noise_floor,
            "shape": list(self.shape),
            "grid": None if self.grid_shape is None else list(self.grid_shape),
            "plan": self._plan_data(),
        }
        tensors = {
            "drops": self.drops,
            "base": self.base,
            "boxes": self.boxes,
            "most_probable": self._most_probable,
            "targets": self.targets,
        }
        arrays = {name: t.cpu().numpy() for name, t in tensors.items() if t is not None}
        store.save_npz(path, arrays, meta)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Occlusion:
        """Read what `save` wrote. Raises ValueError for a file that is none or is damaged."""
        arrays, meta = store.load_npz(path, ("drops", "base", "boxes", "most_probable"))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        grid = None if meta["grid"] is None else tuple(meta["grid"])
        return cls(
            tensors["drops"],
            tensors["base"],
            Grid.of_table(tensors["boxes"], len(meta["shape"]) - 1, grid),
            meta["shape"],
            meta["noise_floor"],
            meta["plan"],
            tensors["most_probable"],
            tensors.get("targets"),
        )


def _places(boxes: list[list[int]]) -> str:
    """Boxes in words."""
    axes = len(boxes[0]) // 2 if boxes else 0
    names = ("rows", "columns") if axes == 2 else [f"axis {axis}" for axis in range(axes)]
    return " and ".join(
        ", ".join(
            f"{name} {start} to {end}"
            for name, start, end in zip(names, box[:axes], box[axes:], strict=True)
        )
        for box in boxes
    )


def _versions() -> dict[str, str]:
    from .._version import __version__

    return {"backsight": __version__, "torch": torch.__version__, "numpy": np.__version__}
