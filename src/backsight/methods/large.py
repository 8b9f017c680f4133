"""Occlusion maps of images that do not fit in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from os import PathLike
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from .._version import __version__
from ..graph import CaptureError, Graph, capture
from ..graph.fold import fold_batch_norms
from ..graph.lower import lower
from ..maps import Box
from ..models.call import Call, Model, Output
from ..models.precision import alone
from ..models.prepare import check_finite, check_fit, close
from ..models.subject import Subject
from ..occlusion_store import Store
from ..ops.packs import Packs
from ..sources import open_source
from ..sweep.allocator import give_back, reuse
from ..sweep.content import Picture
from ..sweep.grid import Grid, explicit, grid, per_axis
from ..sweep.readout import Drops, Readout, check_targets
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

    def read(self, box: Sequence[int]) -> npt.NDArray[Any]:
        """(channels, *sizes) of a half-open box, starts then ends along the spatial axes."""

    def fingerprint(self) -> str:
        """Equal for equal images; asked for when the result is stored."""


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
        memory: bytes that regions and windows are planned for.
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
        memory: bytes that regions and windows are planned for; what libraries take beside them can
            make the peak twice as much.
        store: a folder to write the drops to, unit by unit, in zarr format 3. If it holds a part of
            the same sweep, that is taken up: a killed run is finished by the same call, and the
            store then has the bytes of one that was not killed. It holds neither clock nor host.
        shard: (i, n) for the i-th of n processes on one store, from 0: each computes units of its
            own. Another number of processes may take a store up.
        show_progress: show a progress bar on stderr.
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
        return task.fill(store, shard, show_progress)
    if shard is not None:
        raise ValueError("expected a store for the result of a shard, got none")
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
        self.baseline, self.output, self.readout = baseline, output, readout
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
        self.content = self._content(baseline)

    @cached_property
    def sweep(self) -> UnitSweep:
        """The model captured, and the positions in units."""
        with torch.no_grad(), alone(self.like.device):
            graph = self._captured()
            check_targets(self.readout.targets or (), graph.outputs)
            return UnitSweep(
                graph,
                self.grid,
                self._read,
                self.like,
                self.content,
                self.readout,
                self.memory,
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

    def fill(
        self,
        path: str | PathLike[str],
        shard: tuple[int, int] | None = None,
        show_progress: bool = False,
    ) -> Store:
        """The units of this shard that a store is missing, into it."""
        first, step = _shard(shard)
        meta = self.meta()
        if _is_finished(path, meta):
            return Store.view(path)
        outputs = self.readout.columns(self.sweep.graph.outputs)
        wide = torch.float64 if self.like.dtype == torch.float64 else torch.float32
        with Store.begin(
            path,
            meta,
            units=[len(unit.positions) for unit in self.units],
            outputs=outputs,
            axes=len(self.shape) - 1,
            dtype=str(wide).removeprefix("torch."),
            shared=shard is not None,
        ) as store:
            done = store.done
            missing = [i for i in range(len(self.units)) if i not in done and i % step == first]
            if missing or store.base is None:
                found = self.drops([self.units[i] for i in missing], show_progress)
                for number, (unit, drops) in zip(missing, found, strict=True):
                    boxes = self.grid.boxes[torch.from_numpy(unit.positions)]
                    store.write(number, drops.drops[0].cpu().numpy(), boxes=boxes.numpy())
                reading = self.sweep.base()
                store.write_base(reading.base[0].double().cpu().numpy())
            if len(store.done) == len(self.units):
                targets = self.sweep.base().targets
                store.finish({"targets": None if targets is None else targets[0].tolist()})
        return Store.view(path)

    def meta(self) -> dict[str, Any]:
        """What the result depends on, in plain values: equal for runs that give equal bytes."""
        readout = self.readout
        return {
            "model": self._fingerprint(),
            "image": {"shape": list(self.shape), "fingerprint": self.image.fingerprint()},
            "boxes": hashlib.sha256(self.grid.boxes.numpy().tobytes()).hexdigest(),
            "baseline": np.asarray(self.baseline, np.float64).reshape(-1).tolist(),
            "output": self.output,
            "probability": readout.probability,
            "targets": None if readout.targets is None else list(readout.targets),
            "top": readout.top,
            "memory": self.memory,
            "dtype": str(self.like.dtype).removeprefix("torch."),
            "machine": _machine(self.like.device),
            "threads": torch.get_num_threads(),
            "versions": {
                "backsight": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }

    def _fingerprint(self) -> str:
        """Of the layers and what their forward functions do, the weights, and the preprocessing. A
        function that a forward function calls may change unseen.
        """
        model = self.subject.module
        found = hashlib.sha256(f"{model!r} {self.subject.preprocessing!r}".encode())
        for name, module in model.named_modules():
            found.update(f"{name} {type(module).__qualname__}".encode())
            code = getattr(type(module).forward, "__code__", None)
            found.update(code.co_code if code else b"")
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            values = tensor.detach().cpu().contiguous()
            found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            found.update(values.flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

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
            values = self.image.read([*(s for s, _ in box), *(e for _, e in box)])
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


def _is_finished(path: str | PathLike[str], meta: dict[str, Any]) -> bool:
    """Whether a store holds this very sweep, and all of it."""
    try:
        found = Store.view(path)
    except (ValueError, OSError):
        return False
    return found.finished and found.meta == meta and len(found.done) == len(found.units)


def _machine(device: torch.device) -> str:
    """What the bits of a result depend on: the instruction set, or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()


def _shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    first, count = shard
    if not 0 <= first < count:
        raise ValueError(f"expected a shard (i, n) with i from 0 to n - 1, got {shard!r}")
    return first, count


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
