"""A data set as a network sees it: what it makes of each image, which are alike, and all on a map.

Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NIPS 2012 (figure 4: nearest neighbours); van der Maaten and Hinton, "Visualizing Data using t-SNE",
JMLR 9 (2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..models.call import Call, Model
from ..models.convolutional import before_classifier
from ..models.stem import stem
from ..models.subject import Subject
from ..plots import picture_map, rows_of_pictures
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FeatureMap", "feature_map"]

_THUMBNAIL = 64  # pixels, the longer side of the pictures that a map keeps
_FEWEST = 5  # images; fewer are no map
_SIDE = 40  # cells, the longest side of a grid unless told


@dataclass(frozen=True)
class FeatureMap(Result):
    """What `feature_map` finds.

    Attributes:
        features: (images, features) phi, in the dtype of the images.
        neighbours: (images, k) int64, the other images nearest in phi, nearest first.
        distances: (images, k) fp64, their Euclidean distances in phi.
        places: (images, 2) fp32, where t-SNE puts each image: right and up, in its own units.
        cells: (images, 2) int64, row and column on the grid, no two images in one; -1 for images
            that found no room.
        labels: (images,) int64, which of the `classes` each image is of.
        pictures: (images, h, w, 3) uint8, the photos, 64 pixels on the longer side where they were
            larger.
        classes: names of the classes that there are.
        grid: rows and columns of the grid.
        layer: whose output phi is; "" for what the classifier takes.
        seed: of t-SNE.
    """

    features: Tensor
    neighbours: Tensor
    distances: Tensor
    places: Tensor
    cells: Tensor
    labels: Tensor
    pictures: Tensor
    classes: tuple[str, ...]
    grid: tuple[int, int]
    layer: str
    seed: int

    def plot(self) -> Figure:
        """The images as dots where t-SNE puts them, and as pictures on the grid, in the colours of
        their classes.
        """
        return picture_map(
            array(self.places),
            array(self.cells),
            array(self.pictures),
            array(self.labels),
            self.classes,
            grid=self.grid,
            title=f"{len(self.features)} images by {self._what}",
            note="near on the map: alike to the network; distances between groups mean little",
        )

    def plot_neighbours(self, images: Sequence[int] | None = None) -> Figure:
        """Some images, each before its nearest neighbours; the first eight unless told."""
        chosen = list(range(min(8, len(self.features)))) if images is None else list(images)
        pictures, names = array(self.pictures), [self.classes[i] for i in self.labels.tolist()]
        rows, labels = [], []
        for image in chosen:
            near = self.neighbours[image].tolist()
            apart = self.distances[image].tolist()
            rows.append([pictures[i] for i in (image, *near)])
            lines = [f"{names[i]}\n{d:.3g}" for i, d in zip(near, apart, strict=True)]
            labels.append([names[image], *lines])
        return rows_of_pictures(
            rows,
            labels,
            title=f"Nearest neighbours by {self._what}",
            note="left: the image; then the nearest ones, with their distances",
        )

    @property
    def _what(self) -> str:
        return f"phi, {self.layer or 'what the classifier takes'}"

    @property
    def agreement(self) -> float:
        """The share of nearest neighbours that are of their image's class."""
        return float((self.labels[self.neighbours] == self.labels[:, None]).double().mean())

    def summary(self) -> str:
        return (
            f"{len(self.features)} images by {self.features.shape[1]} features of"
            f" {self.layer or 'what the classifier takes'}, {len(self.classes)} classes;"
            f" {100 * self.agreement:.3g}% of nearest neighbours are of one class"
        )

    def report(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "images": len(self.features),
            "features": self.features.shape[1],
            "classes": list(self.classes),
            "labels": self.labels.tolist(),
            "neighbours": self.neighbours.tolist(),
            "distances": self.distances.tolist(),
            "places": self.places.tolist(),
            "cells": self.cells.tolist(),
            "grid": list(self.grid),
            "agreement": self.agreement,
            "seed": self.seed,
        }


def feature_map(
    model: Model | Network,
    images: Tensor | Iterable[Tensor],
    *,
    layer: str | None = None,
    labels: Sequence[int] | Sequence[str] | Tensor | None = None,
    neighbours: int = 5,
    perplexity: float = 30.0,
    side: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> FeatureMap:
    """What a network makes of each image, phi(x): which images are nearest in it, and all of them
    in two dimensions, by t-SNE and on a grid.

    Phi of maps is the mean over space of each channel. t-SNE keeps neighbours together; how large a
    group is, and how far groups lie apart, means little. On the grid images take the cells that are
    nearest to their places in all, one each.

    Args:
        model: a zoo.Network, or a module from images to scores (images, classes), in evaluation
            mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point; or an
            iterable of batches of them, of any sizes, alone or first in a tuple.
        layer: whose output phi is, after its ReLU: values below 0 count as 0. Default: what the
            last layer with weights, the classifier, takes, as it is.
        labels: a class for each image, by index or name. Default: the strongest score's.
        neighbours: how many of each image.
        perplexity: of t-SNE, about how many neighbours count; less where there are few images.
        side: rows and columns of the grid; default: enough for all images, 40 at most. Where there
            are more images than cells, those that fit best are shown.
        seed: of t-SNE. It runs on one thread, so that equal seeds give equal places.
        batch_size: images at a time, where they come as one tensor.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `FeatureMap`; its tensors on the CPU.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
        ImportError: scikit-learn is not installed.
    """
    _check_positive(batch_size=batch_size, neighbours=neighbours)
    if side is not None:
        _check_positive(side=side)
    if not perplexity > 0:
        raise ValueError(f"expected a positive perplexity, got {perplexity!r}")
    tsne = _tsne()
    subject = Subject.of(model, device)
    features, strongest, pictures = _seen(subject, images, layer, batch_size, show_progress)
    count = len(features)
    if count < _FEWEST:
        raise ValueError(f"expected {_FEWEST} images for a map, or more, got {count}")
    if not bool((features != features[0]).any()):
        raise ValueError("expected features that differ, got the same for all images")
    found, names = _labels(subject, labels, strongest, count)
    nearest, distances = _nearest(features, min(neighbours, count - 1))
    places = _places(tsne, features, min(perplexity, (count - 1) / 3), seed)
    side = side or min(_SIDE, math.ceil(math.sqrt(count)))
    return FeatureMap(
        features,
        nearest,
        distances,
        places,
        _cells(places, side),
        found,
        pictures,
        names,
        (side, side),
        layer or "",
        seed,
    )


def _check_positive(**given: Any) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} to be a positive number, got {value!r}")


def _tsne() -> Callable[..., Any]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            'maps of features need scikit-learn: pip install "backsight[tsne]"', name="sklearn"
        ) from error
    made: Callable[..., Any] = TSNE
    return made


# --- what the network makes of the images ---------------------------------------------------------


def _seen(
    subject: Subject,
    images: Tensor | Iterable[Tensor],
    layer: str | None,
    batch_size: int,
    show_progress: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Phi of all images, the scores' strongest of each batch, and thumbnails; on the CPU."""
    features: list[Tensor] = []
    strongest: list[Tensor] = []
    pictures: list[Tensor] = []
    total = len(images) if isinstance(images, Tensor) else None
    with torch.no_grad(), tqdm(total=total, unit="image", disable=not show_progress) as bar:
        for batch in _batches(images, batch_size):
            taken = subject.take(batch)
            phi, scores = _phi(subject, layer, taken)
            if features and phi.shape[1] != features[0].shape[1]:
                raise ValueError(
                    f"expected {features[0].shape[1]} features of each image, got {phi.shape[1]}:"
                    " images of other sizes need a layer that every size has"
                )
            features.append(phi.cpu())
            best = scores.flatten(2).mean(2) if scores.ndim > 2 else scores
            strongest.append(best.argmax(1).cpu())
            pictures.append(_thumbnails(subject.pictures(taken)))
            bar.update(len(taken))
    if not features:
        raise ValueError("expected images, got none")
    return torch.cat(features), strongest, _of_one_size(pictures)


def _batches(images: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(batch_size) if images.ndim else [images]
        return
    if not isinstance(images, Iterable):
        raise ValueError(
            f"expected images, or an iterable of batches of them, got {type(images).__name__}"
        )
    for batch in images:
        found: Any = batch[0] if isinstance(batch, tuple | list) and batch else batch
        yield found


def _phi(subject: Subject, layer: str | None, images: Tensor) -> tuple[Tensor, Tensor]:
    """(images, features) at a layer, and the model's scores."""
    if layer is None:
        _, found, scores = before_classifier(subject, images)
    else:
        found = stem(subject, layer, images)(images).relu()
        scores = Call(subject.model, (), images)(images)
    if found.ndim < 2 or len(found) != len(images) or scores.ndim < 2:
        raise ValueError(
            f"expected a layer that puts out ({len(images)}, channels, ...), got"
            f" {tuple(found.shape)}"
        )
    return (found.flatten(2).mean(2) if found.ndim > 2 else found), scores


def _thumbnails(pictures: Tensor) -> Tensor:
    """(images, h, w, 3) uint8, scaled down to `_THUMBNAIL` on the longer side."""
    longer = max(pictures.shape[1:3])
    if longer <= _THUMBNAIL:
        return pictures
    size = [max(1, n * _THUMBNAIL // longer) for n in pictures.shape[1:3]]
    values = pictures.permute(0, 3, 1, 2).float()
    small = F.interpolate(values, size=size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def _of_one_size(pictures: list[Tensor]) -> Tensor:
    """Thumbnails in the middle of the largest one's size, on white."""
    height, width = (max(p.shape[axis] for p in pictures) for axis in (1, 2))

    def padded(some: Tensor) -> Tensor:
        down, right = height - some.shape[1], width - some.shape[2]
        around = (0, 0, right // 2, right - right // 2, down // 2, down - down // 2)
        return F.pad(some, around, value=255)

    return torch.cat([padded(some) for some in pictures])


def _labels(
    subject: Subject, labels: Any, strongest: list[Tensor], count: int
) -> tuple[Tensor, tuple[str, ...]]:
    """For each image which of the classes that there are it is of; and their names."""
    if labels is None:
        indices = torch.cat(strongest)
        outputs = len(subject.classes or ()) or int(indices.max()) + 1
        kinds, found = indices.unique(return_inverse=True)
        return found, tuple(subject.label(int(kind), outputs) for kind in kinds)
    given = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if len(given) != count:
        raise ValueError(f"expected a label for each of {count} images, got {len(given)}")
    known = sorted(set(given))
    outputs = len(subject.classes or ())

    def name(label: Any) -> str:
        if isinstance(label, str):
            return label
        return subject.label(label, outputs) if 0 <= label < outputs else f"class {label}"

    place = {label: i for i, label in enumerate(known)}
    return torch.tensor([place[label] for label in given]), tuple(map(name, known))


# --- which are alike, and where they lie ----------------------------------------------------------


def _nearest(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(images, k) the nearest others of each, and their distances; of equal ones the first."""
    phi = features.double()
    index, distances = [], []
    for first in range(0, len(phi), 256):
        some = phi[first : first + 256]
        # By products of matrices, distances near 0 would be rounding alone.
        apart = torch.cdist(some, phi, compute_mode="donot_use_mm_for_euclid_dist")
        rows = torch.arange(len(some))
        apart[rows, rows + first] = torch.inf
        nearest = apart.sort(dim=1, stable=True)
        index.append(nearest.indices[:, :k])
        distances.append(nearest.values[:, :k])
    return torch.cat(index), torch.cat(distances)


def _places(tsne: Callable[..., Any], features: Tensor, perplexity: float, seed: int) -> Tensor:
    from threadpoolctl import threadpool_limits

    phi = array(features).astype(np.float64)
    if phi.shape[1] == 1:  # t-SNE starts from two principal components
        phi = np.concatenate([phi, np.zeros_like(phi)], 1)
    # Sums over several threads come in any order.
    with threadpool_limits(1):
        found = tsne(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(phi)
    return torch.from_numpy(np.asarray(found, np.float32))


def _cells(places: Tensor, side: int) -> Tensor:
    """Row and column of each image on a grid, so that the squares of the ways from the places to
    the cells have the least sum; -1 where there is no room.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    points = places.double().numpy()
    low, high = points.min(0), points.max(0)
    points = (points - low) / np.maximum(high - low, 1e-12)
    middles = (np.arange(side) + 0.5) / side
    row, column = (axis.ravel() for axis in np.indices((side, side)))
    cells = np.stack([middles[column], 1 - middles[row]], 1)
    image, cell = linear_sum_assignment(cdist(points, cells, "sqeuclidean"))
    found = np.full((len(points), 2), -1, np.int64)
    found[image] = np.stack([row[cell], column[cell]], 1)
    return torch.from_numpy(found)
