"""Classifiers that slide: on a larger image a map of scores for each class.

Sermanet et al., "OverFeat", arXiv:1312.6229; Oquab et al., "Is Object Localization for Free?", CVPR
2015; Long, Shelhamer and Darrell, "Fully Convolutional Networks", arXiv:1411.4038.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..geometry import Field
from ..models.call import Call, Model
from ..models.convolutional import convolutional
from ..models.layers import field_of
from ..models.subject import Subject
from ..models.targets import Target, aim
from ..plots import prediction_maps as drawn
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PredictionMaps", "fully_convolutional", "prediction_maps"]

_TOP = 5  # detections of an image that are told


@dataclass(frozen=True)
class PredictionMaps(Result):
    """What `prediction_maps` finds.

    Attributes:
        scores: (images, classes, *cells), the model's score of each class at each cell.
        best: (images, *cells) int64, the class of the largest score at each cell.
        segmentation: (images, *spatial) int64, `best` for each pixel, that of the nearest cell: a
            coarse one.
        peaks: (images, classes), each class's largest score over the cells.
        at: (images, classes, D) int64, the cell where that is; the first of equal ones.
        boxes: (images, classes, 2·D) int64, the pixels which that cell sees, half-open, starts then
            ends: each class's detection. The whole image where no receptive field is known.
        targets: (images,) int64, the class asked about.
        pictures: (images, H, W, 3) uint8, the photos.
        names: what the classes are called.
        field: for each spatial axis size, stride and offset: cell u sees the pixels from u·stride +
            offset on, as many as the size; None where that is not known.
    """

    scores: Tensor
    best: Tensor
    segmentation: Tensor
    peaks: Tensor
    at: Tensor
    boxes: Tensor
    targets: Tensor
    pictures: Tensor
    names: tuple[str, ...]
    field: tuple[tuple[int, int, int], ...] | None

    def detections(self, image: int = 0, count: int = _TOP) -> list[tuple[str, float, list[int]]]:
        """The classes with the largest peaks: name, score and box of each."""
        found = self.peaks[image].topk(min(count, self.peaks.shape[1]))
        return [
            (self.names[index], value, self.boxes[image, index].tolist())
            for value, index in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]

    def plot(self, image: int = 0) -> Figure:
        """The photo with the detection outlined, the target's probability at each cell, and the
        most probable class of each.

        Raises:
            ValueError: the images are no photos, which have two spatial axes.
        """
        if self.best.ndim != 3:
            raise ValueError(f"expected maps of photos, got maps of {self.best.ndim - 1} axes")
        target = int(self.targets[image])
        shares = self.scores[image].double().softmax(0)
        size = tuple(self.segmentation.shape[1:])
        rows, columns = (
            _centres(self.field, axis, *both)
            for axis, both in enumerate(zip(self.best.shape[1:], size, strict=True))
        )
        return drawn(
            array(self.pictures[image]),
            (rows.tolist(), columns.tolist()),
            share=array(shares[target]),
            best=array(self.best[image]),
            names={index: self.names[index] for index in self.best[image].unique().tolist()},
            box=self.boxes[image, target].tolist(),
            title=f"Fully convolutional: {self.names[target]}",
            note=f"{self._cells} cells; outlined: what the cell of the largest score sees",
        )

    @property
    def _cells(self) -> str:
        return " x ".join(map(str, self.best.shape[1:]))

    def summary(self) -> str:
        lines = []
        for image in range(len(self.peaks)):
            names = ", ".join(f"{name} {peak:.4g}" for name, peak, _ in self.detections(image))
            lines.append(f"{self._cells} cells; largest scores: {names}")
        return "\n".join(lines)

    def report(self) -> dict[str, Any]:
        return {
            "cells": list(self.best.shape[1:]),
            "field": None if self.field is None else [list(axis) for axis in self.field],
            "targets": [self.names[index] for index in self.targets.tolist()],
            "detections": [
                [
                    {"name": name, "score": score, "box": box}
                    for name, score, box in self.detections(image)
                ]
                for image in range(len(self.peaks))
            ],
        }


def fully_convolutional(
    model: Model | Network,
    shape: Sequence[int] | None = None,
    *,
    device: torch.device | str | None = None,
) -> nn.Module:
    """A copy of a classifier whose head is convolutions: on a larger image it gives a map of scores
    for each class, (images, classes, *cells).

    A fully connected layer over maps of h x w becomes a convolution with a kernel of h x w, those
    behind it become 1 x 1, and pools that bring maps to one size are taken out, with all
    flattening. On an image of `shape` a network without such a pool gives one cell, with the
    classifier's scores; behind a mean over all of the maps and one layer, the mean over the cells
    is the classifier's score. Without padding, each cell is the classifier on the pixels that the
    cell sees.

    Args:
        model: a zoo.Network, or a module from images to scores (images, classes), in evaluation
            mode. It is not changed; the copy shares nothing with it.
        shape: (channels, *spatial) of an image as the classifier takes it. Default: the network's
            crop.
        device: where the copy lies; default: where the model is.

    Raises:
        ValueError: the head is none of pools, flattening and fully connected layers, or cannot be
            traced; the sentence says what was expected and what came.
    """
    subject = Subject.of(model, device)
    return convolutional(subject, _shape(subject, shape))


def prediction_maps(
    model: Model | Network,
    images: Tensor,
    target: Target = None,
    *,
    shape: Sequence[int] | None = None,
    batch_size: int = 8,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> PredictionMaps:
    """Slide a classifier over larger images, by `fully_convolutional`: scores at each cell, the
    most probable class of each pixel, and each class's detection, where its score is largest.

    Args:
        model: a zoo.Network, or a module from images to scores (images, classes) or to maps of
            them, in evaluation mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point.
        target: the class to draw, by index or name, or one for each image. Default: the one of the
            largest mean over the cells.
        shape: as of `fully_convolutional`; of no account where the model puts out maps.
        batch_size: images at a time.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `PredictionMaps`; its tensors on the CPU.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a positive batch_size, got {batch_size!r}")
    if callable(target):
        raise ValueError("expected a target as an index or a class name, got a function")
    subject = Subject.of(model, device)
    images = subject.take(images)
    dense = _dense(subject, images, shape)
    found = []
    with torch.no_grad(), tqdm(total=len(images), unit="image", disable=not show_progress) as bar:
        for some in images.split(batch_size):
            found.append(dense(some).cpu())
            bar.update(len(some))
    scores = torch.cat(found)
    field = field_of(dense, images[:1])
    peaks, place = scores.flatten(2).max(2)
    cells, size = tuple(scores.shape[2:]), tuple(images.shape[2:])
    at = torch.stack(torch.unravel_index(place, cells), -1)
    best = scores.argmax(1)
    units = aim(subject, target, scores).units
    assert units is not None
    plain = None if field is None else tuple((a.size, a.stride, a.offset) for a in field)
    classes = scores.shape[1]
    return PredictionMaps(
        scores,
        best,
        _per_pixel(best, plain, size),
        peaks,
        at,
        _seen(at, field, size),
        torch.tensor([unit[0] for unit in units]),
        subject.pictures(images),
        tuple(subject.label(index, classes) for index in range(classes)),
        plain,
    )


def _shape(subject: Subject, shape: Sequence[int] | None) -> tuple[int, ...]:
    if shape is None:
        how = subject.preprocessing
        side = None if how is None else how.crop or how.short_side
        if side is None:
            raise ValueError(
                "expected the shape (channels, *spatial) of an image as the classifier takes it,"
                " got none"
            )
        return 3, side, side
    found = tuple(shape)
    if not 2 <= len(found) <= 4 or not all(isinstance(n, int) and n > 0 for n in found):
        raise ValueError(f"expected a shape (channels, *spatial) of positive sizes, got {shape!r}")
    return found


def _dense(subject: Subject, images: Tensor, shape: Sequence[int] | None) -> nn.Module:
    """The model itself where it puts out maps, else its fully convolutional copy."""
    if shape is None and (subject.network is None or subject.preprocessing is None):
        with torch.no_grad():
            whole = Call(subject.model, (), images[:1])
            if whole(images[:1]).ndim == images.ndim:
                return whole
    dense = convolutional(subject, _shape(subject, shape))
    with torch.no_grad():
        found = dense(images[:1])
    if found.ndim != images.ndim:
        raise ValueError(f"expected maps of scores, got {tuple(found.shape)}")
    return dense


def _centres(
    field: tuple[tuple[int, int, int], ...] | None, axis: int, cells: int, pixels: int
) -> npt.NDArray[np.float64]:
    """Where the middles of the cells lie along an axis, in pixels; without a field, evenly."""
    index = np.arange(cells, dtype=np.float64)
    if field is None:
        return (index + 0.5) * pixels / cells - 0.5
    size, stride, offset = field[axis]
    return index * stride + offset + (size - 1) / 2


def _per_pixel(
    best: Tensor, field: tuple[tuple[int, int, int], ...] | None, size: tuple[int, ...]
) -> Tensor:
    """(images, *size): the class of the nearest cell, of equally near ones the first."""
    for axis, pixels in enumerate(size):
        centres = torch.from_numpy(_centres(field, axis, best.shape[axis + 1], pixels))
        apart = (torch.arange(pixels)[:, None] - centres).abs()
        best = best.index_select(axis + 1, apart.argmin(1))
    return best


def _seen(at: Tensor, field: Sequence[Field] | None, size: tuple[int, ...]) -> Tensor:
    """(..., 2·D) the pixels that cells (..., D) see."""
    limits = torch.tensor(size)
    if field is None:
        return torch.cat([torch.zeros_like(at), limits.expand_as(at)], -1)
    sizes, strides, offsets = (
        torch.tensor([getattr(axis, name) for axis in field])
        for name in ("size", "stride", "offset")
    )
    start = at * strides + offsets
    ends = torch.minimum(start + sizes, limits)
    return torch.cat([start.clamp_min(0), ends], -1)
