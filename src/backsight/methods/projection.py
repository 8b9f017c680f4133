"""Units projected back to the pixels that they see: deconvnet, guided backprop and the gradient.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901.
Springenberg et al., "Striving for Simplicity: The All Convolutional Net", arXiv:1412.6806.
Simonyan et al., "Deep Inside Convolutional Networks", arXiv:1312.6034.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import plots
from ..graph import Node, NoGraphError
from ..graph.fields import Cells
from ..models.call import Call, Model, Output, check_images
from ..models.precision import alone
from ..models.prepare import Prepared, check_fit, forget, prepare, verify
from ..models.subject import Subject
from ..projection.record import Record
from ..projection.route import Windows
from ..projection.rules import RULES, Rule, is_activation
from ..projection.run import Projector
from ..projection.steps import Signal
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Units = int | Tensor | Sequence[Sequence[int]]
Seed = float | str | Tensor

#: What the forward pass of a part of the images may take, unless the caller says otherwise.
MEMORY = 1 << 30

_DRAWN = 8  # units of a figure unless told


@dataclass(frozen=True)
class Projection(Result):
    """What `project` finds.

    Attributes:
        pictures: (units, channels, *size), each unit's signal at the pixels of its window, in the
            dtype of the images; 0 outside the unit's receptive field.
        at: (units, D) int64, where in the image each window begins.
        boxes: (units, 2·D) int64, the receptive field of each unit, half-open, starts then ends.
        units: (units, ...) int64: image, channel and position of each; image alone for a whole
            layer.
        activations: (units,) the values of the units; the largest of a whole layer.
        image_size: D sizes.
        rule: which.
        photos: (images, H, W, 3) uint8, what the images show.
        layer: whose units they are; "" for the model's output.
        order: of the pictures' channels, "RGB" or "BGR"; "" where the model is no zoo.Network.
    """

    pictures: Tensor
    at: Tensor
    boxes: Tensor
    units: Tensor
    activations: Tensor
    image_size: tuple[int, ...]
    rule: str
    photos: Tensor
    layer: str = ""
    order: str = ""

    def __len__(self) -> int:
        return len(self.pictures)

    def crop(self, unit: int) -> Tensor:
        """The picture of a unit on its receptive field alone: (channels, *box)."""
        axes = len(self.image_size)
        box, at = self.boxes[unit].tolist(), self.at[unit].tolist()
        places = zip(box[:axes], box[axes:], at, strict=True)
        slices = tuple(slice(s - a, e - a) for s, e, a in places)
        found: Tensor = self.pictures[unit][(slice(None), *slices)]
        return found

    def whole(self, unit: int) -> Tensor:
        """The picture of a unit in the whole image, 0 around its window: (channels, *image)."""
        picture = self.pictures[unit]
        full = picture.new_zeros(picture.shape[0], *self.image_size)
        places = zip(self.at[unit].tolist(), picture.shape[1:], strict=True)
        full[(slice(None), *(slice(a, a + n) for a, n in places))] = picture
        return full

    def plot(self, image: int = 0, count: int = _DRAWN) -> Figure:
        """The first units of an image, a row each: the photo, what the unit sees of it, and what of
        that comes back to the pixels. Gray is 0.

        Raises:
            ValueError: the images are no photos, or there are no units of this one.
            ImportError: matplotlib is not installed.
        """
        units = [u for u in range(len(self)) if int(self.units[u, 0]) == image][:count]
        if len(self.image_size) != 2 or not units:
            raise ValueError(f"expected units of a photo, got {len(units)} of image {image}")
        return plots.projections(
            array(self.photos[image]),
            [self.boxes[unit].tolist() for unit in units],
            [self._shown(unit) for unit in units],
            labels=[self._named(unit) for unit in units],
            title=f"{self.layer or 'output'} by {self.rule}",
            note="gray: 0; brightest or darkest: the strongest hundredth of each picture",
        )

    def _shown(self, unit: int) -> Any:
        """The picture of a unit on what it sees, (h, w, 3) RGB."""
        crop = self.crop(unit)
        if len(crop) != 3:
            crop = crop.mean(0, keepdim=True).expand(3, -1, -1)
        return array(crop.flip(0) if self.order == "BGR" else crop).transpose(1, 2, 0)

    def _named(self, unit: int) -> str:
        _, *channel = self.units[unit].tolist()
        head = "whole layer"
        if channel:
            head = f"channel {channel[0]}"
            if channel[1:]:
                head += f" at {', '.join(map(str, channel[1:]))}"
        return f"{head}: {float(self.activations[unit]):.4g}"

    def summary(self) -> str:
        names = "; ".join(self._named(unit) for unit in range(min(len(self), _DRAWN)))
        more = f"; and {len(self) - _DRAWN} more" if len(self) > _DRAWN else ""
        return f"{self.layer or 'output'} by {self.rule}: {names}{more}"

    def report(self) -> dict[str, Any]:
        largest = self.pictures.flatten(1).abs().amax(1)
        return {
            "layer": self.layer,
            "rule": self.rule,
            "order": self.order,
            "units": self.units.tolist(),
            "activations": self.activations.tolist(),
            "boxes": self.boxes.tolist(),
            "largest": largest.tolist(),
        }


def project(
    model: Model | Network,
    images: Tensor,
    layer: str | None = None,
    units: Units | None = None,
    *,
    rule: str = "deconvnet",
    seed: Seed | None = None,
    unpool: str = "add",
    lrn: str | None = None,
    additional_forward_args: Sequence[Any] = (),
    output: Output | None = None,
    memory: int | None = None,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Projection:
    """Send the signals of single units of a layer back to the image, by windows only.

    Each unit's signal is computed only where the unit sees anything, and many units share a batch.
    Where the signals of several layers meet they are added before the rule is applied.

    Args:
        model: a zoo.Network, or a module (or function) from images to a tensor (images, ...), in
            evaluation mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point.
        layer: the name of a module, whose output holds the units; None for the model's output, as
            the scores of classes.
        units: rows of (image, channel, *position), or (image, channel) for the strongest position
            of a channel (the first of equal ones), or (image,) for the whole layer at once; or a
            number k: in each image the k channels with the largest activations, at their strongest
            positions. Default: the whole layer of every image; of the model's output, the largest.
        rule: at a ReLU of input f where the signal R comes back: "deconvnet" max(R, 0), "guided"
            max(R, 0) where f > 0, "gradient" R where f > 0. Other activations go back by their own
            derivative, to which the first two rules give max(R, 0).
        seed: what a unit starts with: "activation" (its value), a number, one per unit, or for a
            whole layer a tensor (units, *layer shape). Default: "activation" for "deconvnet", else
            1.0.
        unpool: where several windows of a max pool have one maximum, "add" their signals (the
            adjoint), or "set" that of the last.
        lrn: "pass" local response norms by, or take their "gradient". Default: "pass" for
            "deconvnet", else "gradient".
        additional_forward_args: what the model takes after the images. A tensor with one entry per
            image goes along with its image.
        output: which output of a model that returns several: a key, an attribute or an index.
        memory: bytes that the forward pass of a part of the images may take; default 1 GiB.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model and the images are.

    Returns:
        A `Projection`: the units' pictures, and where they lie.

    Raises:
        ValueError: an argument does not fit, or the model cannot be captured (`NoGraphError`); the
            sentence says what was expected and what came.
    """
    _check_choice("rule", rule, RULES)
    _check_choice("unpool", unpool, ("add", "set"))
    deconvnet = rule == "deconvnet"
    lrn = ("pass" if deconvnet else "gradient") if lrn is None else lrn
    _check_choice("lrn", lrn, ("pass", "gradient"))
    seed = ("activation" if deconvnet else 1.0) if seed is None else seed
    if isinstance(seed, str):
        _check_choice("seed", seed, ("activation",))
    check_images(images)
    if memory is not None and (not isinstance(memory, int) or memory <= 0):
        raise ValueError(f"expected memory to be a positive number of bytes, got {memory!r}")
    subject = Subject.of(model, device)
    if device is not None:
        images = images.to(subject.device)
    task = _Task(
        Call(subject.model, additional_forward_args, images, output, layer, total=False),
        images,
        Rule(rule, unpool, lrn),
        seed,
        memory or MEMORY,
    )
    found = task.run(units, show_progress)
    how = subject.preprocessing
    return replace(
        found,
        photos=subject.pictures(images),
        layer=layer or "",
        order="" if how is None else "BGR" if how.bgr else "RGB",
    )


class _Task:
    """One call of `project`, its arguments checked but for those that ask for the layer's shape."""

    def __init__(self, call: Call, images: Tensor, rule: Rule, seed: Seed, memory: int) -> None:
        self.call = call
        self.images = images
        self.rule = rule
        self.seed = seed
        self.memory = memory

    def run(self, units: Units | None, show_progress: bool) -> Projection:
        images = self.images
        if self.call.owner is not None:
            check_fit(self.call.owner, images)
        with torch.no_grad(), alone(images.device):
            projector = self._projector()
            chosen = Chosen(projector.output, len(images), units, self.call.layer is not None)
            seed = self._seeds(projector.output, chosen)
            found = _Results(projector, chosen, images)
            with tqdm(total=len(chosen.rows), unit="unit", disable=not show_progress) as bar:
                for some in self._chunks(projector, chosen):
                    record = projector.record(
                        _channels_last(images[some]), [side[some] for side in self.call.sides]
                    )
                    index = np.flatnonzero(np.isin(chosen.rows[:, 0], some.numpy()))
                    local = np.searchsorted(some.numpy(), chosen.rows[index, 0])
                    chosen.resolve(index, local, record.output)
                    for batch in found.batches(index):
                        rows = torch.from_numpy(
                            np.searchsorted(some.numpy(), chosen.rows[batch, 0])
                        )
                        found.enter(batch, record, rows.to(images.device), chosen, seed)
                        bar.update(len(batch))
            return found.projection(chosen, self.rule.name)

    def _projector(self) -> Projector:
        """The model's graph up to the layer, ready for the way back."""
        prepared = self._prepared()
        if prepared.graph is None:
            raise NoGraphError(
                "expected a model whose graph can be captured, for windows, got one that"
                f" cannot ({prepared.reason}): backsight.rules works with any"
            )
        graph = prepared.graph
        bare = self.call.layer is None and not any(map(is_activation, graph.nodes))
        if bare and self.rule.name == "guided":
            raise ValueError(
                "expected a model with ReLUs for rule='guided', got one without activations:"
                " its gradient is rule='gradient'"
            )
        return Projector(graph, self.rule)

    def _prepared(self) -> Prepared:
        call, images = self.call, self.images
        prepared = prepare(call, images, lowered=False)
        if not verify(prepared, call, images):
            forget(call)
            prepared = prepare(call, images, lowered=False)
            verify(prepared, call, images)
        return prepared

    def _chunks(self, projector: Projector, chosen: Chosen) -> Iterator[Tensor]:
        """The images that have units, as many at a time as fit the memory."""
        images = np.unique(chosen.rows[:, 0])
        count = max(1, self.memory // projector.image_bytes)
        for first in range(0, len(images), count):
            yield torch.from_numpy(images[first : first + count])

    def _seeds(self, node: Node, chosen: Chosen) -> Seed:
        """The seed as a name, a number, or a tensor with one entry per unit."""
        seed = self.seed
        if isinstance(seed, str):
            return seed
        try:
            value = torch.as_tensor(seed, dtype=self.images.dtype, device=self.images.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"expected seed to be 'activation', a number or a tensor, got {seed!r}"
            ) from None
        units = len(chosen.rows)
        fits = [(), (units,)] + ([(units, *node.shape)] if chosen.whole else [])
        if tuple(value.shape) not in fits:
            raise ValueError(
                f"expected seed to be a number or a tensor {' or '.join(map(str, fits[1:]))},"
                f" got {tuple(value.shape)}"
            )
        return value.expand(units) if value.ndim == 0 else value.detach()


class Chosen:
    """The units to project.

    Attributes:
        rows: (units, 1 to 2 + D) int64: image, and channel and position where single units are
            meant. Positions are -1 until `resolve` finds them.
        whole: whether each is a whole layer.
        values: (units,) their activations, once resolved.
    """

    def __init__(self, node: Node, images: int, units: Units | None, is_layer: bool) -> None:
        self.node = node
        self.shape = node.shape
        self.top = 0
        if units is None:
            units = [[i] for i in range(images)] if is_layer else 1
        if isinstance(units, int) and not isinstance(units, bool):
            if not 1 <= units <= self.shape[0]:
                raise ValueError(
                    f"expected from 1 to {self.shape[0]} units an image, one a channel, got {units}"
                )
            self.top = units
            rows = np.full((images * units, 1 + len(self.shape)), -1, np.int64)
            rows[:, 0] = np.repeat(np.arange(images), units)
        else:
            rows = self._rows(units, images)
        self.whole = rows.shape[1] == 1
        self.rows = rows
        self.values = torch.zeros(len(rows), dtype=torch.float64)

    def _rows(self, units: Any, images: int) -> Cells:
        """Explicit units, positions to be found left at -1."""
        axes = len(self.shape)
        widths = sorted({1, 2, 1 + axes})
        try:
            given = torch.as_tensor(units)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                "expected units as rows of integers, all of one length"
                f" ({' or '.join(map(str, widths))}), got {units!r}"
            ) from None
        whole = given.ndim == 2 and not given.is_floating_point() and not given.is_complex()
        if not whole or given.shape[1] not in widths or not len(given):
            raise ValueError(
                f"expected units as integers (units, {' or '.join(map(str, widths))}): image,"
                f" channel and position, got {tuple(given.shape)} {given.dtype}"
            )
        rows = given.cpu().numpy().astype(np.int64)
        limits = (images, *self.shape)[: rows.shape[1]]
        outside = ((rows < 0) | (rows >= np.array(limits))).any(1)
        if outside.any():
            raise ValueError(
                f"expected units within {images} images and a layer of {self.shape}, got"
                f" {tuple(map(int, rows[outside.argmax()]))}"
            )
        if rows.shape[1] == 2 and axes > 1:
            rows = np.concatenate([rows, np.full((len(rows), axes - 1), -1)], 1)
        return rows

    def resolve(self, index: Cells, image: Cells, values: Tensor) -> None:
        """Find the missing parts of the units `index`, of the images `image` whose layer holds
        `values`, and all their activations.
        """
        rows = self.rows
        flat = values.flatten(2) if values.ndim > 2 else values[..., None]
        if self.whole:
            self.values[index] = flat.flatten(1).amax(1)[image].double().cpu()
            return
        best, place = (x.cpu() for x in flat.max(2))  # the first of equal ones
        if self.top:
            order = best.sort(dim=1, descending=True, stable=True).indices[:, : self.top].numpy()
            rows[index, 1] = order[image, np.arange(len(index)) % self.top]
        if len(self.shape) > 1:
            missing = index[rows[index, 2] < 0]
            where = image[rows[index, 2] < 0]
            places = place[where, rows[missing, 1]].numpy()
            rows[missing, 2:] = np.stack(np.unravel_index(places, self.shape[1:]), 1)
        at = (torch.from_numpy(image), *torch.from_numpy(rows[index, 1:]).unbind(1))
        self.values[index] = values[at].double().cpu()


class _Results:
    """Fills in the pictures, batch by batch."""

    def __init__(self, projector: Projector, chosen: Chosen, images: Tensor) -> None:
        self.projector = projector
        self.whole = chosen.whole or not projector.output.spatial
        graph = projector.graph
        none = np.zeros((0, len(projector.output.extent)), np.int64)
        shapes = projector.everywhere(0) if self.whole else projector.route.windows(none)
        size = shapes[graph.input].size if graph.input in shapes else tuple(images.shape[2:])
        units = len(chosen.rows)
        self.pictures = images.new_zeros(units, images.shape[1], *size)
        self.at = np.zeros((units, len(size)), np.int64)
        self.boxes = np.tile(np.array([*[0] * len(size), *images.shape[2:]]), (units, 1))
        self.batch = projector.batch(shapes)
        self.image_size = tuple(images.shape[2:])

    def batches(self, index: Cells) -> Iterator[Cells]:
        for first in range(0, len(index), self.batch):
            yield index[first : first + self.batch]

    def enter(
        self, batch: Cells, record: Record, image: Tensor, chosen: Chosen, seed: Seed
    ) -> None:
        """Project the units `batch`, which are of the images `image` of a record."""
        projector = self.projector
        graph, rows = projector.graph, chosen.rows[batch]
        if self.whole:
            windows = projector.everywhere(len(batch))
        else:
            windows = projector.route.windows(rows[:, 2:])
            self.boxes[batch] = projector.route.boxes(rows[:, 2:])
            self.at[batch] = windows[graph.input].at
        start = _channels_last(self._start(batch, record.output, image, chosen, seed))
        here = windows.get(graph.output)
        if not self.whole:
            here = Windows(rows[:, 2:], (1,) * len(projector.output.extent))
        pictures = projector.back(record, image, Signal(start, here), windows)
        self.pictures[torch.from_numpy(batch)] = pictures

    def _start(
        self, batch: Cells, values: Tensor, image: Tensor, chosen: Chosen, seed: Seed
    ) -> Tensor:
        """The signals at the layer; `values` are the layer's for some images, `image` which of
        them each unit is of.
        """
        node, rows = self.projector.output, chosen.rows[batch]
        given = seed[torch.from_numpy(batch)] if isinstance(seed, Tensor) else None
        if chosen.whole:
            if given is None:
                return values[image]
            ones = [1] * (values.ndim - given.ndim)
            return given.reshape(*given.shape, *ones).expand(len(batch), *values.shape[1:])
        if given is None:
            given = chosen.values[batch]
        size = (node.shape[0], *[1] * len(node.extent)) if node.spatial else node.shape
        start = values.new_zeros(len(batch), *size)
        unit = torch.from_numpy(rows[:, 1:]) * (0 if node.spatial else 1)
        unit[:, 0] = torch.from_numpy(rows[:, 1])
        start[(torch.arange(len(batch)), *unit.unbind(1))] = given.to(values)
        return start

    def projection(self, chosen: Chosen, rule: str) -> Projection:
        return Projection(
            self.pictures,
            torch.from_numpy(self.at),
            torch.from_numpy(self.boxes),
            torch.from_numpy(chosen.rows),
            chosen.values.to(self.pictures),
            self.image_size,
            rule,
            torch.zeros(0, 0, 0, 3, dtype=torch.uint8),
        )


def _channels_last(x: Tensor) -> Tensor:
    """Channels side by side, as convolutions like them."""
    if x.ndim not in (4, 5):
        return x
    form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=form)


def _check_choice(name: str, given: Any, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"expected {name} to be {' or '.join(map(repr, known))}, got {given!r}")
