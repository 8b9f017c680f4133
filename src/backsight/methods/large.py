"""Occlusion maps of images that do not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from ..graph import CaptureError, Graph, capture
from ..graph.fold import fold_batch_norms
from ..graph.lower import lower
from ..maps import Box
from ..models.call import Call, Model, Output
from ..models.precision import alone
from ..models.prepare import check_finite, check_fit, close
from ..models.subject import Subject
from ..ops.packs import Packs
from ..sweep.allocator import give_back, reuse
from ..sweep.content import Picture
from ..sweep.grid import Grid, explicit, grid, per_axis
from ..sweep.readout import Drops, Readout
from ..sweep.result import Occlusion
from ..sweep.units import Unit, UnitSweep
from ..zoo.network import Network

__all__ = ["LargePlan", "Regions", "large_occlusion"]

#: Bytes of a sweep unless the caller says otherwise.
MEMORY = 2 << 30

#: The model is compared with its graph on an image of at most so many pixels a side.
_SMALL = 512


class Regions(Protocol):
    """An image that is read region by region, such as `backsight.sources.open_source` opens."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *spatial)."""

    @property
    def dtype(self) -> npt.DTypeLike: ...

    def read(self, box: Box) -> npt.NDArray[Any]:
        """(channels, *box) of a half-open box, one (start, stop) per axis."""


@dataclass(frozen=True)
class LargePlan:
    """What a sweep over a large image does.

    Attributes:
        positions: how many boxes.
        units: how many runs of positions that share a region; what is lost where a process is
            killed is one.
        side: in pixels, of the squares that make a unit.
        flops: of the windows of an average unit, times the units.
        plain_flops: of one forward pass over the image.
        memory: bytes that the sweep stays within, beside the model.
    """

    positions: int
    units: int
    side: int
    flops: int
    plain_flops: int
    memory: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def large_occlusion(
    model: Model | Network,
    image: Tensor | npt.NDArray[Any] | Regions,
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
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Occlusion:
    """`occlusion` of one image of any size, in bounded memory.

    The drops are those of `occlusion`. Activations exist only for the region that some neighbouring
    positions read, with the halo that the layers need. What sums up whole maps (a global pool in
    front of a classifier) is accumulated in one pass over the image beforehand.

    Args:
        model: a zoo.Network, or a module from images to scores (images, classes), in evaluation
            mode, whose graph can be captured. It is not changed.
        image: (channels, *spatial), an array, a tensor, or anything that is read region by region.
            With a zoo.Network, pixels (3, H, W) of 8 bits, which are normalised as its photos are
            and neither scaled nor cropped; otherwise floating point, as the model takes it.
        window, stride, edge: of the boxes, in pixels, as for `occlusion`.
        roi: regions of interest: boxes (any, 2·D), half-open, starts then ends, in pixels; or a
            mask over the whole image, of any size. Only positions whose box has its centre in one
            are computed. They may overlap.
        baseline: what stands in the box, in the units of what the model takes: a number, or one
            per channel.
        output: which output of a model that returns several.
        probability, targets, top: as for `occlusion`.
        memory: bytes that the sweep may take beside the model and the result.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        An `Occlusion`; `boxes` are those of the positions that were computed.

    Raises:
        ValueError: an argument does not fit; the model reads large maps as a whole in its middle
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
    return task.run(show_progress)


class Large:
    """One call of `large_occlusion`, its arguments checked, unit by unit."""

    def __init__(
        self,
        model: Model | Network,
        image: Any,
        *,
        window: int | Sequence[int],
        stride: int | Sequence[int] | None,
        edge: str,
        roi: Any,
        baseline: float | Sequence[float],
        output: Output | None,
        readout: Readout,
        memory: int,
        device: torch.device | str | None,
    ) -> None:
        if isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0:
            raise ValueError(f"expected memory to be a positive number of bytes, got {memory!r}")
        self.subject = Subject.of(model, device)
        self.image = _regions(image)
        self.shape = tuple(self.image.shape)
        self.memory = memory
        if not 2 <= len(self.shape) <= 4 or not prod(self.shape):
            raise ValueError(f"expected an image (channels, *spatial), got shape {self.shape}")
        self.like = torch.empty(0, dtype=self.subject.dtype, device=self.subject.device)
        self._read = self._reader()
        self.grid = _positions(self.shape[1:], window, stride, edge, roi)
        self.call = Call(self.subject.model, (), self.like.new_empty(1, *[1] * 3), output)
        self.packs = Packs()
        self.packs.limit = memory // 8
        with torch.no_grad(), alone(self.like.device):
            graph = self._captured()
            self.sweep = UnitSweep(
                graph, self.grid, self._read, self.like, self._content(baseline), readout, memory
            )

    @property
    def units(self) -> list[Unit]:
        return self.sweep.units

    def plan(self) -> LargePlan:
        """What `run` would do."""
        with torch.no_grad():
            middle = self.sweep.plan(self.units[len(self.units) // 2])
        share = middle.positions
        windows = middle.flops - middle.plain_flops // share
        positions = len(self.grid.boxes)
        flops = windows * positions // share
        one = middle.plain_flops // share
        return LargePlan(positions, len(self.units), self.sweep.side, flops, one, self.memory)

    def run(self, show_progress: bool = False) -> Occlusion:
        """All units, in memory."""
        found: list[tuple[Unit, Drops]] = list(self.drops(self.units, show_progress))
        parts = [drops for _, drops in found]
        order = torch.from_numpy(np.concatenate([unit.positions for unit, _ in found]))
        first = parts[0]
        drops = torch.cat([p.drops for p in parts], 1)
        best = torch.cat([p.most_probable for p in parts], 1)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        back = back.to(drops.device)
        whole = Drops(
            drops[:, back],
            [null for p in parts for null in p.nulls],
            first.base,
            first.targets,
            best[:, back],
        )
        return Occlusion(
            whole.drops,
            whole.base,
            self.grid,
            self.shape,
            whole.noise_floor,
            self.plan().as_dict(),
            whole.most_probable,
            whole.targets,
        )

    def drops(
        self, units: Sequence[Unit], show_progress: bool = False
    ) -> Iterator[tuple[Unit, Drops]]:
        """Some units and their drops, one after the other; first, one pass over the image."""
        with self._computing():
            with tqdm(
                total=prod(self.shape[1:]), unit="px", unit_scale=True, disable=not show_progress
            ) as bar:
                self.sweep.base(bar.update)
            give_back()
        count = sum(len(unit.positions) for unit in units)
        with tqdm(total=count, unit="box", disable=not show_progress) as bar:
            for unit in units:
                with self._computing():
                    found = self.sweep.run(unit, bar.update)
                    empty = self.grid.empty[torch.from_numpy(unit.positions)]
                    found.drops[:, empty.to(found.drops.device)] = 0
                yield unit, found

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.no_grad(), alone(self.like.device), reuse():
            yield

    def _reader(self) -> Callable[[Box], Tensor]:
        """Regions as the model takes them, (1, channels, *box)."""
        preprocessing, like = self.subject.preprocessing, self.like
        kind = np.dtype(self.image.dtype)
        if preprocessing is not None:
            if kind != np.uint8 or len(self.shape) != 3 or self.shape[0] != 3:
                raise ValueError(
                    f"expected pixels (3, H, W) of uint8 for {self.subject.network.name},"  # type: ignore[union-attr]
                    f" got {self.shape} of {kind}"
                )
        elif kind.kind != "f":
            raise ValueError(
                "expected an image of floating point, as the model takes it, or a zoo.Network,"
                f" which knows how to normalise pixels; got {kind}"
            )
        form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(
            len(self.shape) + 1, torch.contiguous_format
        )

        def read(box: Box) -> Tensor:
            values = self.image.read(box)
            if preprocessing is not None:
                taken = preprocessing.tensor(np.ascontiguousarray(values.transpose(1, 2, 0)))
            else:
                taken = torch.from_numpy(np.array(values))[None]
            taken = taken.to(like.device, like.dtype)
            if not bool(torch.isfinite(taken).all()):
                raise ValueError(f"expected a finite image, got NaN or infinity within {box}")
            return taken.contiguous(memory_format=form)

        return read

    def _captured(self) -> Graph:
        """The model's graph for the size of the image, compared with the model on a part of it."""
        module = self.subject.model
        if isinstance(module, torch.nn.Module):
            check_fit(module, self.like)
            check_finite(module)
        graph, steps = self._graph(self.shape)
        output = graph.nodes[graph.output]
        if output.spatial and prod(output.extent) > 1:
            raise ValueError(
                "expected a model that returns scores (images, classes), got maps"
                f" {tuple(output.shape)}: average them in the model"
            )
        size = tuple(min(n, _SMALL) for n in self.shape[1:])
        image = self._read(tuple((0, n) for n in size))
        small, alike = graph, steps
        if size != self.shape[1:]:
            small, alike = self._graph(tuple(image.shape[1:]))
        if alike != steps:
            raise ValueError(
                "expected a model that computes alike whatever the size of the image, got one"
                f" whose operations differ between {self.shape[1:]} and {size}"
            )
        # The model itself may take views of contiguous images alone.
        own = self.call(image.contiguous().clone()).reshape(1, -1)
        if not close(small(image).reshape(1, -1), own):
            raise ValueError(
                "expected a model whose captured graph computes what it does, got another output"
            )
        return graph

    def _graph(self, shape: Sequence[int]) -> tuple[Graph, list[str]]:
        """The graph for images of a shape, and its operations as they were captured."""
        try:
            graph = capture(self.call, shape, self.like.dtype, self.like.device, (), within="model")
        except CaptureError as error:
            raise ValueError(
                "expected a model whose graph can be captured, to compute it region by region, got"
                f" one that cannot: {error}"
            ) from error
        return lower(fold_batch_norms(graph), self.packs), [node.label for node in graph.nodes]

    def _content(self, baseline: float | Sequence[float]) -> Picture:
        shape = (1, *self.shape)
        try:
            color = torch.as_tensor(baseline, dtype=self.like.dtype, device=self.like.device)
            color = color.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"expected a baseline number, or one for each of {shape[1]} channels, got"
                f" {baseline!r}"
            ) from None
        if not np.isfinite(np.asarray(baseline, np.float64)).all():
            raise ValueError("expected a finite baseline, got NaN or infinity")
        return Picture(color)


class _Array:
    """An array in memory, or mapped into it, as regions."""

    def __init__(self, values: Any) -> None:
        self.values = values
        self.shape = tuple(values.shape)
        self.dtype = values.dtype

    def read(self, box: Box) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.asarray(
            self.values[(slice(None), *(slice(start, stop) for start, stop in box))]
        )
        return found


def _regions(image: Any) -> Regions:
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _Array(image)
    if all(hasattr(image, name) for name in ("shape", "dtype", "read")):
        found: Regions = image
        return found
    raise ValueError(
        "expected an image (channels, *spatial) as an array, a tensor or a source, got"
        f" {type(image).__name__}"
    )


def _positions(
    size: Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] | None,
    edge: str,
    roi: Any,
) -> Grid:
    """The grid, or of it the boxes whose centres lie in a region of interest."""
    axes = len(size)
    sizes = per_axis(window, axes, "window")
    strides = sizes if stride is None else per_axis(stride, axes, "stride")
    if len(sizes) != axes or len(strides) != axes:
        raise ValueError(
            f"expected a window and a stride of {axes} axes, got {window!r}, {stride!r}"
        )
    every = grid(size, sizes, strides, edge)
    if roi is None:
        return every
    boxes = every.boxes.numpy()
    centres = (boxes[:, :axes] + boxes[:, axes:]) // 2
    inside = _inside(centres, roi, size)
    if not inside.any():
        raise ValueError("expected regions of interest with a box's centre, got none")
    return Grid(torch.from_numpy(np.ascontiguousarray(boxes[inside])), None)


def _inside(centres: npt.NDArray[np.int64], roi: Any, size: Sequence[int]) -> npt.NDArray[np.bool_]:
    values = np.asarray(roi.cpu() if isinstance(roi, Tensor) else roi)
    axes = len(size)
    if values.dtype == np.bool_:
        if values.ndim != axes:
            raise ValueError(f"expected a mask of {axes} axes, got {values.shape}")
        scale = np.array(values.shape) / np.array(size)
        cells = np.minimum((centres * scale).astype(np.int64), np.array(values.shape) - 1)
        found: npt.NDArray[np.bool_] = values[tuple(cells.T)]
        return found
    table = explicit(
        torch.as_tensor(values), (1, *size)
    ).boxes.numpy()  # refuses what is no box within the image
    found = np.zeros(len(centres), np.bool_)
    for box in table:
        found |= ((centres >= box[:axes]) & (centres < box[axes:])).all(1)
    return found
