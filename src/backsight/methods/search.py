"""The images of a data set that excite each channel of a layer most.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901 (figure
2); Girshick et al., "Rich feature hierarchies", arXiv:1311.2524 (figure 4).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..graph.fields import Cells
from ..models.call import Call, Model, Output, check_images
from ..models.dataset import batches, image_of, length
from ..models.precision import alone
from ..models.prepare import Prepared, check_fit, prepare, verify
from ..models.subject import Subject, pictures_of
from ..plots import Panel, panels, rows_of_pictures
from ..projection.route import Route
from ..results import Result, array
from ..store import load_npz, save_npz
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Seconds between two writes of a checkpoint.
EVERY = 30.0

#: Images a batch, of a data set that gives single ones.
BATCH = 32

_CHANNELS = 8  # rows of a figure unless told


@dataclass(frozen=True)
class TopActivations(Result):
    """What `top_activations` finds; channels in the layer's order, the strongest image first.

    Attributes:
        values: (channels, k) the activations; minus infinity where there were fewer images.
        images: (channels, k) int64, which image of the data set each is of; -1 where there is none.
        positions: (channels, k, D) int64, where in the layer; empty for a layer without space.
        boxes: (channels, k, 2·D) int64, the receptive field in the image, half-open, starts then
            ends. Pixels outside it have no influence on the activation.
        count: how many images were looked at.
        skipped: those that the data set had no image for, by index.
        layer: which; "" for the model's output.
    """

    values: Tensor
    images: Tensor
    positions: Tensor
    boxes: Tensor
    count: int
    skipped: tuple[int, ...]
    layer: str = ""

    def units(self, channel: int) -> list[tuple[int, ...]]:
        """A channel's units as rows of (image, channel, *position)."""
        rows = zip(self.images[channel].tolist(), self.positions[channel].tolist(), strict=True)
        return [(image, channel, *position) for image, position in rows if image >= 0]

    def strongest(self, count: int) -> list[int]:
        """The channels with the largest activations, strongest first."""
        order = self.values[:, 0].argsort(descending=True, stable=True)
        return [int(channel) for channel in order[:count]]

    def plot(
        self,
        images: Any = None,
        *,
        network: Network | None = None,
        channels: Sequence[int] | None = None,
    ) -> Figure:
        """What excites the channels most.

        Args:
            images: the data set that was searched, by index: then the crops are drawn, a row a
                channel. Without it, the activations themselves.
            network: whose preprocessing the images have, to show them as they were.
            channels: which; default: the eight with the largest activations, or all of them where
                only activations are drawn.

        Raises:
            ValueError: there is no such channel, or the images are no photos.
            ImportError: matplotlib is not installed.
        """
        what = self.layer or "the model's output"
        if channels is None:
            channels = self.strongest(len(self.values) if images is None else _CHANNELS)
        for channel in channels:
            if not 0 <= channel < len(self.values):
                raise ValueError(f"expected a channel below {len(self.values)}, got {channel}")
        if images is None:
            values = array(self.values[list(channels)])
            least = values[np.isfinite(values)].min()
            return panels(
                [Panel(np.maximum(values, least), colors="viridis", bar="activation")],
                title=f"Largest activations of {what}",
                note=f"down: {len(channels)} channels; across: the {values.shape[1]} images that"
                " excite each most",
            )
        if self.boxes.shape[2] != 4:
            raise ValueError(f"expected photos, got boxes of {self.boxes.shape[2] // 2} axes")
        how = network.preprocessing if network else None
        rows, labels = [], []
        for channel in channels:
            crops, lines = [], []
            for rank, (image, *_) in enumerate(self.units(channel)):
                found = image_of(images[image])
                assert found is not None
                top, left, bottom, right = self.boxes[channel, rank].tolist()
                crops.append(array(pictures_of(found[None], how)[0])[top:bottom, left:right])
                lines.append(f"{float(self.values[channel, rank]):.4g}")
            rows.append(crops)
            labels.append([f"channel {channel}\n{lines[0]}", *lines[1:]])
        return rows_of_pictures(
            rows,
            labels,
            title=f"What excites {what} most",
            note=f"of {self.count} images, what the units see of them; strongest first",
        )

    def summary(self) -> str:
        channel = self.strongest(1)[0]
        value, image = float(self.values[channel, 0]), int(self.images[channel, 0])
        return (
            f"{len(self.values)} channels of {self.layer or 'the output'}, {self.count} images:"
            f" channel {channel} has the largest activation, {value:.4g}, of image {image}"
        )

    def report(self) -> dict[str, Any]:
        rows = zip(self.values.tolist(), self.images.tolist(), strict=True)
        return {
            "layer": self.layer,
            "images": self.count,
            "skipped": list(self.skipped),
            "channels": [
                [{"image": i, "activation": v} for v, i in zip(*row, strict=True) if i >= 0]
                for row in rows
            ],
        }


def top_activations(
    model: Model | Network,
    layer: str | None,
    dataset: Any,
    k: int = 9,
    *,
    output: Output | None = None,
    batch_size: int = BATCH,
    checkpoint: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> TopActivations:
    """Run a data set through a model and keep, for each channel of a layer, the k images with the
    largest activations, each with its strongest position.

    The images are looked at once and not kept. Of equal activations the earlier image counts, and
    the first position of it.

    Args:
        model: a zoo.Network, or a module (or function) from images to a tensor (images, ...), in
            evaluation mode. It is not changed.
        layer: the name of a module; None for the model's output.
        dataset: images (images, channels, *spatial); or a data set of single images (channels,
            *spatial), by index; or a DataLoader or any other iterable of batches of images. Images
            may come with more, as the first of a tuple or list. A data set may give None for an
            image that it cannot read; it is counted, and left out.
        k: how many images a channel.
        output: which output of a model that returns several: a key, an attribute or an index.
        batch_size: images at a time, where the data set gives single ones. Ones of several sizes
            run with their like.
        checkpoint: a file to write what was found so far to, every half a minute and at the end.
            If it is there, the search goes on from it.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model and the images are.

    Raises:
        ValueError: an argument does not fit, or the checkpoint is of another search; the sentence
            says what was expected and what came.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"expected k to be a positive number of images, got {k!r}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected batch_size to be a positive number, got {batch_size!r}")
    subject = Subject.of(model, device)
    search = _Search(subject.model, layer, output, k)
    search.device = None if device is None else subject.device
    if checkpoint is not None:
        search.resume(Path(checkpoint))
    total = length(dataset)
    with torch.no_grad(), tqdm(total=total, unit="image", disable=not show_progress) as bar:
        bar.update(search.count)
        written = time.monotonic()
        for images, index in batches(dataset, batch_size, search.count):
            search.see(images, index)
            bar.update(len(index))
            if checkpoint is not None and time.monotonic() - written > EVERY:
                search.write(Path(checkpoint))
                written = time.monotonic()
    if checkpoint is not None:
        search.write(Path(checkpoint))
    return search.result()


class _Search:
    """The k best of each channel so far."""

    def __init__(self, model: Model, layer: str | None, output: Output | None, k: int) -> None:
        self.model = model
        self.layer = layer
        self.output = output
        self.k = k
        self.device: torch.device | None = None
        self.count = 0
        self.skipped: list[int] = []
        self.values: Tensor | None = None
        self.images = np.zeros((0, k), np.int64)
        self.positions = np.zeros((0, k, 0), np.int64)
        self.boxes = np.zeros((0, k, 0), np.int64)
        self._known: dict[Any, tuple[Call, Prepared, Route | None]] = {}
        self._print: str | None = None

    # ------------------------------------------------------------------ looking at images

    def see(self, images: Tensor | None, index: Sequence[int]) -> None:
        """Look at a batch of images, whose places in the data set are `index`; None: there is
        none.
        """
        if images is None:
            self.skipped.extend(index)
        else:
            check_images(images)
            maps, route = self._layer(images if self.device is None else images.to(self.device))
            self._keep(maps, np.asarray(index), route, tuple(images.shape[2:]))
        self.count += len(index)

    def _layer(self, images: Tensor) -> tuple[Tensor, Route | None]:
        """What the layer puts out, and which pixels its cells see."""
        key = tuple(images.shape[1:]), images.dtype, images.device
        if key not in self._known:
            call = Call(self.model, (), images, self.output, self.layer, total=False)
            if call.owner is not None:
                check_fit(call.owner, images)
            with alone(images.device):
                prepared = prepare(call, images)
                verify(prepared, call, images)
            graph = prepared.graph
            spatial = graph is not None and graph.nodes[graph.output].spatial
            self._known[key] = call, prepared, Route(graph, {}) if graph and spatial else None
        call, prepared, route = self._known[key]
        with alone(images.device):
            found = call(images) if prepared.graph is None else prepared.graph(images)
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"expected a layer of channels (images, channels, ...), got {came}")
        return found, route

    def _keep(self, maps: Tensor, index: Cells, route: Route | None, size: Sequence[int]) -> None:
        """Enter a batch's best of each channel."""
        space = tuple(range(2, maps.ndim))
        best = (maps.amax(space) if space else maps).T.double().cpu()  # (channels, batch)
        if bool(best.isnan().any()):
            image = int(index[int(best.isnan().any(0).nonzero()[0])])
            raise ValueError(f"expected activations that are numbers, got NaN for image {image}")
        if self.values is None:
            self._begin(maps, len(size))
        elif tuple(self.values.shape) != (maps.shape[1], self.k):
            raise ValueError(
                f"expected a layer of {len(self.values)} channels, as before, got {maps.shape[1]}"
            )
        assert self.values is not None
        both = torch.cat([self.values, best], 1)
        # Stable: of equal ones those that came earlier stay in front.
        order = both.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.values = both.gather(1, order)
        place = order.numpy()
        old, row = np.minimum(place, self.k - 1), np.arange(len(place))[:, None]
        self.images, self.positions, self.boxes = (
            kept[row, old] for kept in (self.images, self.positions, self.boxes)
        )
        channel, rank = np.nonzero(place >= self.k)
        if not len(channel):
            return
        batch = place[channel, rank] - self.k
        at = self._strongest(maps, batch, channel)
        self.images[channel, rank] = index[batch]
        self.positions[channel, rank] = at
        whole = np.array([*[0] * len(size), *size])
        self.boxes[channel, rank] = whole if route is None else route.boxes(at)

    def _begin(self, maps: Tensor, axes: int) -> None:
        channels = maps.shape[1]
        self.values = torch.full((channels, self.k), -torch.inf, dtype=torch.float64)
        self.images = np.full((channels, self.k), -1, np.int64)
        self.positions = np.full((channels, self.k, maps.ndim - 2), -1, np.int64)
        self.boxes = np.zeros((channels, self.k, 2 * axes), np.int64)

    def _strongest(self, maps: Tensor, batch: Cells, channel: Cells) -> Cells:
        """The first strongest position of some maps, (maps, D)."""
        if maps.ndim == 2:
            return np.zeros((len(batch), 0), np.int64)
        device = maps.device
        chosen = maps[torch.from_numpy(batch).to(device), torch.from_numpy(channel).to(device)]
        flat = chosen.flatten(1).max(1).indices.cpu().numpy()
        return np.stack(np.unravel_index(flat, maps.shape[2:]), 1)

    # ------------------------------------------------------------------ stopping and going on

    def result(self) -> TopActivations:
        if self.values is None:
            raise ValueError(f"expected at least one image, got none of {self.count}")
        return TopActivations(
            self.values.float(),
            torch.from_numpy(self.images),
            torch.from_numpy(self.positions),
            torch.from_numpy(self.boxes),
            self.count,
            tuple(self.skipped),
            self.layer or "",
        )

    def _meta(self) -> dict[str, Any]:
        """What a search must have in common with the one whose checkpoint it takes up."""
        if self._print is None:
            self._print = _fingerprint(self.model)
        output = None if self.output is None else str(self.output)
        return {"model": self._print, "layer": self.layer, "output": output, "k": self.k}

    def write(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        if self.values is None:
            return
        arrays = {
            "values": self.values.numpy(),
            "images": self.images,
            "positions": self.positions,
            "boxes": self.boxes,
            "skipped": np.array(self.skipped, np.int64),
        }
        save_npz(path, arrays, self._meta() | {"count": self.count})

    def resume(self, path: Path) -> None:
        """Take up a checkpoint, if there is one."""
        if not path.exists():
            return
        names = ("values", "images", "positions", "boxes", "skipped")
        arrays, meta = load_npz(path, names)
        for name, here in self._meta().items():
            if meta.get(name) != here:
                raise ValueError(
                    f"expected a checkpoint of the same {name} ({here!r}), and {path} is one of"
                    f" {meta.get(name)!r}"
                )
        self.values = torch.from_numpy(arrays["values"])
        self.images, self.positions, self.boxes = (arrays[n] for n in names[1:4])
        self.skipped = arrays["skipped"].tolist()
        self.count = int(meta["count"])


def _fingerprint(model: Model) -> str:
    """A digest of a module's weights and structure; of a function, its name."""
    if not isinstance(model, nn.Module):
        return str(getattr(model, "__qualname__", type(model).__qualname__))
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
