"""MONAI's `OcclusionSensitivity`, by windows where the model can be captured.

`from backsight.monai import OcclusionSensitivity` in place of `from monai.visualize import
OcclusionSensitivity`: the same arguments and layouts (Cardoso et al., "MONAI", arXiv:2211.02701).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import ops
from .dropin import ImagesFirst, swept, windowed
from .sweep.grid import grid, per_axis

__all__ = ["OcclusionSensitivity"]

_MODES = ("gaussian", "mean_patch", "mean_img")
_OCCLUDING_SIGMA = 0.25  # of the mask's size: the Gaussian that darkens a patch
_BLENDING_SIGMA = 0.125  # of the mask's size: the Gaussian by which overlapping masks are weighted
_SMALLEST_WEIGHT = 1e-3

Mode = str | float | Callable[[Tensor, Tensor], Tensor]


class OcclusionSensitivity:
    """Class probabilities of an image while parts of it are hidden; MONAI 1.6's interface.

    The positions are MONAI's: `max(1, int(mask * (1 - overlap)))` apart, the last one moved inside.
    The map of a class holds at each pixel the mean probability over the masks that cover it (with
    "gaussian", weighted by a Gaussian over the mask). Masks run by windows where `backsight.plan`
    captures the model, otherwise on `n_batch` whole copies at a time.

    Corrected against MONAI 1.6.1:

    - "mean_patch" replaces a patch by its mean. MONAI multiplies the patch by its mean.
    - A single output gets a sigmoid and several a softmax. MONAI goes by the image's channels.
    - Positions are integers. MONAI carries them in the image's dtype: half precision rounds
      coordinates from 2048 on and masks the wrong place.
    - A callable `mode` works, and so does an integer. MONAI raises.
    - Each layer gets back its own training flag. MONAI puts frozen layers into training mode.

    Args:
        nn_module: a model from (batch, channels, *spatial) to (batch, classes). It runs in
            evaluation mode and is left as it was.
        mask_size: pixels, one number or one per spatial axis.
        n_batch: copies in one batch, where the model runs whole.
        verbose: show a progress bar on stderr.
        mode: what a mask does. A number stands in it; "mean_img" and "mean_patch": the mean of the
            image or of what is hidden, over all channels; "gaussian": what is hidden is multiplied
            by 0 in the middle, up to 1 in the farthest corner, along a Gaussian; a callable gets
            the image (1, channels, *spatial) and the patch (1, channels, *mask) and returns a
            patch.
        overlap: of neighbouring masks, in [0, 1), one number or one per spatial axis.
        activate: True: softmax, or sigmoid for a single output; False: none; or a callable from
            (batch, classes) to the same.

    Raises:
        NotImplementedError: an unknown mode.
    """

    def __init__(
        self,
        nn_module: nn.Module,
        mask_size: int | Sequence[int] = 16,
        n_batch: int = 16,
        verbose: bool = True,
        mode: Mode = "gaussian",
        overlap: float | Sequence[float] = 0.6,
        activate: bool | Callable[[Tensor], Tensor] = True,
    ) -> None:
        if isinstance(mode, str) and mode not in _MODES:
            raise NotImplementedError(
                f"expected mode to be a number, a callable or one of {', '.join(_MODES)},"
                f" got {mode!r}"
            )
        self.nn_module = nn_module
        self.mask_size = mask_size
        self.n_batch = n_batch
        self.verbose = verbose
        self.mode = mode
        self.overlap = overlap
        self.activate = activate

    def __call__(
        self, x: Tensor, b_box: Sequence[int] | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The map and the most probable class at each pixel.

        Args:
            x: (1, channels, *spatial), floating point, one to three spatial axes.
            b_box: [min1, max1, min2, max2, ...] in pixels, half-open: only this part is mapped,
                from masks that reach over its edges by half their size. (MONAI documents inclusive
                ends and takes them so: [2, 40] maps 38 pixels.) A negative minimum or maximum means
                the image's edge.
            kwargs: keyword arguments for the model.

        Returns:
            The map (1, classes, *spatial or *box), float64 for float64 images, else float32, and
            its argmax over the classes (1, 1, *spatial or *box), int64.

        Raises:
            ValueError: the image, the mask, the overlap, the box or the model's scores do not fit.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point() or not 3 <= x.ndim <= 5:
            came = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                "expected a floating-point image (1, channels, *spatial) with one to three spatial"
                f" axes, got {came}"
            )
        if len(x) != 1:
            raise ValueError(f"expected a batch of one image, got {len(x)}")
        image = x.detach().as_subclass(Tensor)
        size = tuple(image.shape[2:])
        mask = per_axis(self.mask_size, len(size), "mask_size")
        if len(mask) != len(size):
            raise ValueError(f"expected mask_size to be a number or {len(size)}, got {mask}")
        crop = _crop(b_box, size)
        region = [(0, n) for n in size]
        if b_box is not None:  # masks half of which lie outside the box count too
            edges = [(m - 1) // 2 for m in mask]
            region = [
                (max(lo - e, 0), min(hi + e, n))
                for (lo, hi), e, n in zip(crop, edges, size, strict=True)
            ]
            mask = tuple(min(m, hi - lo) for m, (lo, hi) in zip(mask, region, strict=True))
        extent = tuple(hi - lo for lo, hi in region)
        if any(m > n for m, n in zip(mask, extent, strict=True)):
            raise ValueError(f"expected a mask no larger than the image {extent}, got {mask}")
        stride = _stride(mask, extent, self.overlap)
        at = torch.tensor([lo for lo, _ in region] * 2)
        boxes = grid(extent, mask, stride, "inside").boxes
        with torch.no_grad(), _evaluating(self.nn_module):
            probabilities = self._probabilities(image, boxes + at, mask, kwargs)
            maps = _blended(probabilities, boxes, extent, mask, self.mode == "gaussian")
        inside = [slice(lo - r, hi - r) for (lo, hi), (r, _) in zip(crop, region, strict=True)]
        dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
        found = maps[(slice(None), *inside)][None].to(dtype).contiguous()
        return found, found.argmax(1, keepdim=True)

    def _probabilities(
        self, image: Tensor, boxes: Tensor, mask: tuple[int, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """(positions, classes) fp64: the activated scores with each box hidden."""
        content = _Content(self.mode, image, mask)
        scores = self._by_windows(image, boxes, content, kwargs)
        if scores is None:
            scores = self._plainly(image, boxes, content, kwargs)
        if callable(self.activate):
            return self.activate(scores.to(image.dtype)).double()
        if not self.activate:
            return scores
        return scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1)

    def _by_windows(
        self, image: Tensor, boxes: Tensor, content: _Content, kwargs: dict[str, Any]
    ) -> Tensor | None:
        """(positions, classes) fp64 scores; None where no windows can be run."""
        model = self.nn_module
        if not isinstance(model, nn.Module):
            return None
        if kwargs:
            model = ImagesFirst(model, keywords=kwargs)
        # What stands in the boxes of one sweep is one picture: boxes of varying content that
        # overlap go into different sweeps.
        sweeps = [torch.arange(len(boxes))] if content.number is not None else _disjoint(boxes)
        tasks = (
            windowed(model, image, boxes=boxes[some], baseline=content.picture(boxes[some]))
            for some in sweeps
        )
        first = next(tasks)
        if first is None or len(first.prepared().shape) != 1:
            return None
        scores: Tensor | None = None
        with self._bar(len(boxes)) as bar:
            for some, task in zip(sweeps, itertools.chain([first], tasks), strict=True):
                result = swept(task) if task is not None else None
                if result is None:
                    return None
                if scores is None:
                    scores = result.base.new_empty(len(boxes), result.base.shape[1])
                scores[some.to(scores.device)] = result.scores[0]
                bar.update(len(some))
        return scores

    def _plainly(
        self, image: Tensor, boxes: Tensor, content: _Content, kwargs: dict[str, Any]
    ) -> Tensor:
        """(positions, classes) fp64 scores from whole copies of the image."""
        rows = []
        with self._bar(len(boxes)) as bar:
            for some in boxes.split(self.n_batch):
                copies = image.repeat(len(some), *[1] * (image.ndim - 1))
                for copy, box in zip(copies, some.tolist(), strict=True):
                    copy[_inside(box)] = content.patch(box)
                output = self.nn_module(copies, **kwargs)
                if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(some):
                    came = tuple(output.shape) if isinstance(output, Tensor) else type(output)
                    raise ValueError(
                        f"expected the model to return scores ({len(some)}, classes), got {came}"
                    )
                rows.append(output.double())
                bar.update(len(some))
        return torch.cat(rows)

    def _bar(self, positions: int) -> Any:
        return tqdm(total=positions, unit="box", disable=not self.verbose)


class _Content:
    """What stands in the boxes of an image; `number` where that is the same number everywhere."""

    def __init__(self, mode: Mode, image: Tensor, mask: tuple[int, ...]) -> None:
        self.mode = mode
        self.image = image
        self.number: float | None = None
        if isinstance(mode, int | float):
            self.number = float(mode)
        elif mode == "mean_img":
            self.number = float(image.double().mean())
        elif mode == "gaussian":
            self.factor = _occluding(mask).to(image)

    def patch(self, box: Sequence[int]) -> Tensor | float:
        """What stands in a box: a number, or a tensor that broadcasts to (channels, *mask)."""
        if self.number is not None:
            return self.number
        hidden = self.image[0][_inside(box)]
        if self.mode == "mean_patch":
            return float(hidden.double().mean())
        if self.mode == "gaussian":
            return hidden * self.factor
        assert callable(self.mode)
        found: Tensor = self.mode(self.image, hidden[None].clone())
        return found[0]

    def picture(self, boxes: Tensor) -> Tensor | float:
        """A baseline that holds the content of these boxes, none of which overlap."""
        if self.number is not None:
            return self.number
        picture = self.image.clone()
        for box in boxes.tolist():
            picture[0][_inside(box)] = self.patch(box)
        return picture


def _inside(box: Sequence[int]) -> tuple[slice, ...]:
    axes = len(box) // 2
    return (slice(None), *map(slice, box[:axes], box[axes:]))


def _disjoint(boxes: Tensor) -> list[Tensor]:
    """Indices of boxes (positions, 2·D) on a grid, in sets without overlap."""
    axes = boxes.shape[1] // 2
    kind = torch.zeros(len(boxes), dtype=torch.int64)
    for d in range(axes):
        starts, which = boxes[:, d].unique(return_inverse=True)
        width = int(boxes[0, axes + d] - boxes[0, d])
        ends: list[int] = []  # of the last interval of each kind
        kinds = []
        for start in starts.tolist():
            free = [k for k, end in enumerate(ends) if end <= start]
            k = free[0] if free else len(ends)
            ends[k : k + 1] = [start + width]
            kinds.append(k)
        kind = kind * len(ends) + torch.tensor(kinds)[which]
    return [(kind == k).nonzero().flatten() for k in kind.unique().tolist()]


def _occluding(mask: tuple[int, ...]) -> Tensor:
    """(*mask) fp64: 0 in the middle, 1 where a Gaussian over the mask is smallest."""
    gaussian = torch.ones((), dtype=torch.float64)
    for m in mask:
        at = torch.arange(m, dtype=torch.float64) - m // 2
        ends = torch.stack([at - 0.5, at + 0.5]) / (math.sqrt(2) * _OCCLUDING_SIGMA * m)
        low, high = ends.erf()
        gaussian = gaussian[..., None] * (high - low)
    span = gaussian.max() - gaussian.min()
    return (gaussian.max() - gaussian) / span if span else torch.zeros_like(gaussian)


def _blending(mask: tuple[int, ...]) -> Tensor:
    """(*mask) fp64: how much each pixel of a mask counts where masks overlap."""
    weights = torch.ones((), dtype=torch.float64)
    for m in mask:
        at = torch.arange(m, dtype=torch.float64) - (m - 1) / 2
        weights = weights[..., None] * torch.exp(at**2 / (-2 * (_BLENDING_SIGMA * m) ** 2))
    return weights.clamp(min=_SMALLEST_WEIGHT)


def _blended(
    values: Tensor, boxes: Tensor, extent: tuple[int, ...], mask: tuple[int, ...], gaussian: bool
) -> Tensor:
    """The mean of values (positions, classes) fp64 over the boxes that cover a pixel:
    (classes, *extent).
    """
    if not gaussian:
        return ops.heatmap(values.contiguous(), boxes.to(values.device), extent, "mean")
    weights = _blending(mask).to(values.device)
    sums = values.new_zeros(values.shape[1], *extent)
    total = values.new_zeros(extent)
    for value, box in zip(values, boxes.tolist(), strict=True):
        at = _inside(box)
        sums[at] += value.view(-1, *[1] * len(extent)) * weights
        total[at[1:]] += weights
    return sums / total


def _stride(
    mask: tuple[int, ...], extent: tuple[int, ...], overlap: float | Sequence[float]
) -> tuple[int, ...]:
    each = tuple(overlap) if isinstance(overlap, Sequence) else (overlap,) * len(mask)
    if len(each) != len(mask) or not all(0 <= o < 1 for o in each):
        raise ValueError(
            f"expected overlap to be a number in [0, 1), or {len(mask)} of them, got {overlap!r}"
        )
    apart = [max(1, int(m * (1 - o))) for m, o in zip(mask, each, strict=True)]
    return tuple(m if m == n else a for m, n, a in zip(mask, extent, apart, strict=True))


def _crop(b_box: Sequence[int] | None, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """The box as a half-open interval of pixels along each axis."""
    if b_box is None:
        return [(0, n) for n in size]
    if len(b_box) != 2 * len(size):
        raise ValueError(
            f"expected b_box to hold a minimum and a maximum for each of {len(size)} axes,"
            f" got {list(b_box)}"
        )
    lows, highs = b_box[::2], b_box[1::2]
    crop = [
        (max(lo, 0), n if hi < 0 else min(hi, n))
        for lo, hi, n in zip(lows, highs, size, strict=True)
    ]
    if any(lo >= hi for lo, hi in crop):
        raise ValueError(f"expected b_box to hold a pixel of the image {size}, got {list(b_box)}")
    return crop


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for a while; then each module is again in the mode it was in."""
    if not isinstance(model, nn.Module):
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
