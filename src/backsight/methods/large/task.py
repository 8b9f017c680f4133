"""One sweep over a large image: what it needs, checked, and its drops unit by unit."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...graph import CaptureError, Graph, capture
from ...graph.fold import fold_batch_norms
from ...graph.lower import lower
from ...maps import Box
from ...models.call import Call, Model, Output
from ...models.precision import alone
from ...models.prepare import check_finite, check_fit, close
from ...models.subject import Subject
from ...ops.packs import Packs
from ...sources import open_source
from ...sources.source import Tiled
from ...sweep.allocator import Ceiling, give_back, reuse
from ...sweep.budget import Budget, TooLittle, told_at_least
from ...sweep.content import Picture
from ...sweep.grid import per_axis
from ...sweep.plan import graph_flops, told_bytes, weight_bytes
from ...sweep.rate import flop_rate
from ...sweep.readout import Drops, Reading, Readout, check_targets
from ...sweep.result import Occlusion
from ...sweep.units import Unit, UnitSweep
from ...zoo.network import Network
from .places import positions
from .watch import Silent, Watch

__all__ = ["Large", "LargePlan", "Regions"]

#: The model is compared with its graph on an image of at most so many pixels a side, and of fewer
#: where maps of so many bytes a pixel would be more than the memory; but networks need some.
_LARGEST, _SMALLEST, _PIXEL = 512, 128, 2 << 10


class Regions(Protocol):
    """An image that is read region by region, such as `backsight.sources.open_source` opens."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *spatial)."""

    @property
    def dtype(self) -> npt.DTypeLike: ...

    def read(self, box: Sequence[int]) -> npt.NDArray[Any]:
        """(channels, *sizes) of a half-open box, starts then ends along the spatial axes."""

    def fingerprint(self) -> str:
        """Equal for equal images; asked for when the result is stored."""


@dataclass(frozen=True)
class LargePlan:
    """What a sweep over a large image will do. `str(plan)` is a table; `as_dict()` is plain data.

    Attributes:
        positions: how many boxes.
        units: how many runs of positions that share a region; what is lost where a process is
            killed is one.
        side: in pixels, of a unit at most.
        pass_flops: of the first pass over the image.
        flops: of the positions' windows and the regions around them.
        plain_flops: of one plain forward pass over the image.
        pass_seconds, seconds: estimates of the first pass and of all positions, by one process.
        bytes: that the sweep takes at its peak beside the model; at most `memory`.
        memory: what it may take.
        drop_bytes: the result.
    """

    positions: int
    units: int
    side: int
    pass_flops: int
    flops: int
    plain_flops: int
    pass_seconds: float
    seconds: float
    bytes: int
    memory: int
    drop_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def __str__(self) -> str:
        plain = self.plain_flops * self.positions
        rows = [
            (
                "positions",
                f"{self.positions} in {self.units} units of at most {self.side} pixels a side",
            ),
            (
                "first pass",
                f"{self.pass_flops / 1e12:.2f} TFLOP, about {self.pass_seconds:.0f} s",
            ),
            (
                "positions' work",
                f"{self.flops / 1e12:.2f} TFLOP, about {self.seconds:.0f} s;"
                f" plain occlusion takes {plain / 1e12:.1f} TFLOP, {plain / self.flops:.0f} times",
            ),
            ("memory", f"{told_bytes(self.bytes)} of {told_bytes(self.memory)}"),
            ("result", told_bytes(self.drop_bytes)),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


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
        self.baseline, self.output, self.readout = baseline, output, readout
        self.shape = tuple(self.image.shape)
        self.memory = memory
        if not 2 <= len(self.shape) <= 4 or not prod(self.shape):
            raise ValueError(f"expected an image (channels, *spatial), got shape {self.shape}")
        if isinstance(self.image, Tiled):
            self.image.cache(memory // 16)
        self.like = torch.empty(0, dtype=self.subject.dtype, device=self.subject.device)
        self._read = self._reader()
        self.grid = positions(self.shape[1:], window, stride, edge, roi)
        #: What the positions were made of, in plain values.
        axes = len(self.shape) - 1
        self.places = {
            "window": list(per_axis(window, axes, "window")),
            "stride": list(per_axis(window if stride is None else stride, axes, "stride")),
            "edge": edge,
            "regions": roi is not None,
        }
        self.call = Call(self.subject.model, (), self.like.new_empty(1, *[1] * 3), output)
        self.packs = Packs()
        self.reserved = 0
        self.content = self._content(baseline)

    @cached_property
    def sweep(self) -> UnitSweep:
        """The model captured, and the positions in units."""
        with torch.no_grad(), alone(self.like.device):
            graph = self._captured()
            check_targets(self.readout.targets or (), graph.outputs)
            weights = weight_bytes(graph)
            gc.collect()
            give_back()
            # Two layouts of the weights are about what different windows ask for.
            self.packs.limit = min(self.memory // 8, 2 * weights)
            self.reserved = weights + self.packs.limit
            ceiling = Ceiling(self.memory, weights) if self.like.is_cpu else Ceiling(1 << 60)
            try:
                return UnitSweep(
                    graph,
                    self.grid,
                    self._read,
                    self.like,
                    self.content,
                    self.readout,
                    Budget(max(0, self.memory - self.reserved)),
                    ceiling,
                )
            except TooLittle as error:
                raise ValueError(
                    f"expected memory of {told_at_least(self.reserved + error.needed)} or more, got"
                    f" {told_bytes(self.memory)}: beside the weights, which take"
                    f" {told_bytes(self.reserved)} laid out for the sweep, {error}"
                ) from error

    @property
    def units(self) -> list[Unit]:
        return self.sweep.units

    def plan(self) -> LargePlan:
        """What `run` would do. Of the units, some are looked at."""
        sweep, units = self.sweep, self.units
        with torch.no_grad():
            looked_at = sorted({*np.linspace(0, len(units) - 1, 5, dtype=int).tolist()})
            some = [sweep.estimate(units[i]) for i in looked_at]
        positions, seen = len(self.grid.boxes), sum(each.positions for each in some)
        flops = sum(each.window_flops + each.region_flops for each in some)
        outputs = self.readout.columns(sweep.graph.outputs)
        wide = 8 if self.like.dtype == torch.float64 else 4
        return LargePlan(
            positions,
            len(units),
            sweep.side,
            sweep.pass_flops,
            flops * positions // seen,
            graph_flops(sweep.graph),
            sweep.pass_flops / flop_rate(self.like.device, self.like.dtype),
            sum(each.seconds for each in some) * positions / seen,
            self.reserved + max(sweep.pass_bytes, *(each.bytes for each in some)),
            self.memory,
            positions * outputs * wide,
        )

    def run(self, watch: Watch | None = None) -> Occlusion:
        """All units, in memory."""
        found: list[tuple[Unit, Drops]] = list(self.drops(self.units, watch))
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

    def first_pass(self, watch: Watch | None = None, carried: bytes | None = None) -> Reading:
        """What is read of the image as it is; one pass over it, the first time.

        Args:
            watch: is told of it.
            carried: what an earlier pass has found, if there was one: it saves this one.
        """
        sweep, pixels, watch = self.sweep, prod(self.shape[1:]), watch or Silent()
        if sweep.reading is None:
            with _phase(watch, "pass", pixels), self._computing(), closing(sweep):
                if carried is not None and sweep.maps.carry(carried):
                    watch.advance(pixels)
                sweep.base(watch.advance)
        return sweep.base()

    def drops(
        self, units: Sequence[Unit], watch: Watch | None = None
    ) -> Iterator[tuple[Unit, Drops]]:
        """Some units and their drops, one after the other; first, one pass over the image."""
        watch = watch or Silent()
        self.first_pass(watch)
        total = sum(len(unit.positions) for unit in units)
        with _phase(watch, "sweep", total), closing(self.sweep):
            for unit, following in itertools.zip_longest(units, units[1:]):
                with self._computing():
                    found = self.sweep.run(unit, watch.advance, following)
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
            values = self.image.read([*(s for s, _ in box), *(e for _, e in box)])
            if preprocessing is not None:
                taken = preprocessing.tensor(np.ascontiguousarray(values.transpose(1, 2, 0)))
            else:
                taken = torch.from_numpy(np.require(values, requirements=["C", "W"]))[None]
            taken = taken.to(like.device, like.dtype)
            if not all(bool(torch.isfinite(end)) for end in torch.aminmax(taken)):
                raise ValueError(f"expected a finite image, got NaN or infinity within {box}")
            return taken.contiguous(memory_format=form)

        return read

    def _captured(self) -> Graph:
        """The model's graph for the size of the image, compared with the model on a part of it."""
        module = self.subject.model
        if isinstance(module, torch.nn.Module):
            check_fit(module, self.like)
            check_finite(module)
        side = _LARGEST
        while side > _SMALLEST and prod(self._part(side)) * _PIXEL > self.memory:
            side //= 2
        while True:
            size = self._part(side)
            image = self._read(tuple((0, n) for n in size))
            if size == self.shape[1:]:
                graph, _ = self._graph(self.shape, self.packs)
                self._compared(graph, image)
                return graph
            small, steps = self._graph(tuple(image.shape[1:]), Packs())
            self._compared(small, image)
            del small
            graph, others = self._graph(self.shape, self.packs)
            if others == steps:
                return graph
            if side >= _LARGEST:
                raise ValueError(
                    "expected a model that computes alike whatever the size of the image, got one"
                    f" whose operations differ between {self.shape[1:]} and {size}"
                )
            side *= 2  # maps of a single cell are computed in other ways

    def _part(self, side: int) -> tuple[int, ...]:
        """The size of a corner of the image of at most so many pixels a side."""
        return tuple(min(n, side) for n in self.shape[1:])

    def _compared(self, graph: Graph, image: Tensor) -> None:
        """Refuse a graph that does not compute what the model does, or no scores."""
        output = graph.nodes[graph.output]
        if output.spatial and prod(output.extent) > 1:
            raise ValueError(
                "expected a model that returns scores (images, classes), got maps"
                f" {tuple(output.shape)}: average them in the model"
            )
        # The model itself may take views of contiguous images alone.
        own = self.call(image.contiguous().clone()).reshape(1, -1)
        if not close(graph(image).reshape(1, -1), own):
            raise ValueError(
                "expected a model whose captured graph computes what it does, got another output"
            )

    def _graph(self, shape: Sequence[int], packs: Packs) -> tuple[Graph, list[str]]:
        """The graph for images of a shape, and its operations as they were captured."""
        try:
            graph = capture(self.call, shape, self.like.dtype, self.like.device, (), within="model")
        except CaptureError as error:
            raise ValueError(
                "expected a model whose graph can be captured, to compute it region by region, got"
                f" one that cannot: {error}"
            ) from error
        return lower(fold_batch_norms(graph), packs), [node.label for node in graph.nodes]

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


@contextmanager
def _phase(watch: Watch, phase: str, total: int) -> Iterator[None]:
    watch.begin(phase, total)
    try:
        yield
    finally:
        watch.end()


def _regions(image: Any) -> Regions:
    if all(hasattr(image, name) for name in ("shape", "dtype", "read")):
        found: Regions = image
        return found
    if not isinstance(image, Tensor | np.ndarray | str | os.PathLike):
        raise ValueError(
            "expected an image (channels, *spatial) as an array, a tensor, a path or a source, got"
            f" {type(image).__name__}"
        )
    return open_source(image.detach().cpu() if isinstance(image, Tensor) else image)
