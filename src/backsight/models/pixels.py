"""The pixels that a model takes, for methods that make pictures: their range, and steps in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .subject import Subject

__all__ = ["Pixels", "check_steps", "in_dtype", "usual_shape", "wide"]

_LEVELS = 64  # within the deviation of a photo's values


@dataclass(frozen=True)
class Pixels:
    """The range of a model's pixels, in its own units.

    Attributes:
        subject: the model.
        level: (1, 1 or channels, 1, ...) of one among the 255 levels from the least to the greatest
            pixel; 1 where the range is not known.
        low, high: the values of the least and of the greatest pixel, shaped like `level`; None
            where they are not known.
    """

    subject: Subject
    level: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def of(cls, subject: Subject, images: Tensor, limits: Sequence[float] | None = None) -> Pixels:
        """The range of pixels of images (images, channels, *spatial).

        Args:
            subject: a zoo.Network's preprocessing knows what 0 and 255 become.
            limits: the values of the least and of the greatest pixel, for a bare model.

        Raises:
            ValueError: the limits do not rise, or the network knows its own.
        """
        known = subject.preprocessing if images.shape[1] == 3 else None
        dtype = wide(images.dtype)
        ones = (1,) * (images.ndim - 2)
        if limits is not None:
            if known is not None:
                raise ValueError("expected no limits for a network that knows its own, got limits")
            if len(limits) != 2 or not float(limits[0]) < float(limits[1]):
                raise ValueError(f"expected limits (low, high) that rise, got {limits!r}")
            ends = [torch.full((1, 1), float(end), dtype=torch.float64) for end in limits]
        elif known is not None:
            ends = [known.color((end,) * 3).double().flatten(1) for end in (0, 255)]
        else:
            one = torch.ones(1, 1, *ones, dtype=dtype, device=images.device)
            return cls(subject, one)
        low, high = ends
        level = (high - low) / 255
        if known is not None:  # color rounds to float32
            level = known.scale / torch.tensor([known.std], dtype=torch.float64)
        found = [t.view(*t.shape, *ones).to(images.device, dtype) for t in (level, low, high)]
        return cls(subject, *found)

    def kept(self, images: Tensor) -> Tensor:
        """The images, cut off where pixels would lie outside the range, where that is known."""
        return images if self.low is None else images.clamp(self.low, self.high)

    def stretched(self, images: Tensor) -> Tensor:
        """Each image (images, channels, *spatial) scaled and shifted so that its least value is the
        least pixel and its largest the greatest, where these are known.
        """
        if self.low is None:
            return images
        levels = (images - self.low) / self.level
        axes = tuple(range(1, images.ndim))
        least, most = levels.amin(axes, True), levels.amax(axes, True)
        spread = (most - least).clamp_min(torch.finfo(levels.dtype).tiny)
        return self.low + (levels - least) / spread * 255 * self.level

    def usual(self, levels: float) -> float:
        """So many levels; where the range is not known, as much of values whose deviation is 1."""
        return levels if self.low is not None else levels / _LEVELS

    def step(self, gradients: Tensor, levels: float) -> Tensor:
        """Changes along gradients (images, channels, *spatial): of each image so many levels in the
        mean over its values; 0 where a gradient is 0.
        """
        space = tuple(range(2, gradients.ndim))
        sums = torch.linalg.vector_norm(gradients, 1, space, keepdim=True) / self.level
        size = sums.mean(1, keepdim=True) / gradients[0, 0].numel()
        scale = torch.where(size > 0, levels / size, 0.0)
        return gradients * scale.to(gradients.dtype)

    def pictures(self, images: Tensor) -> Tensor:
        """The pictures (images, H, W, 3) uint8 RGB that images show, as `Subject.pictures`; for a
        bare model from its least to its greatest pixel, where these are known.
        """
        gray = images.ndim == 4 and images.shape[1] in (1, 3)
        if self.low is None or self.subject.preprocessing is not None or not gray:
            return self.subject.pictures(images)
        shades = ((images - self.low) / self.level).round().clamp(0, 255).byte()
        return shades.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()

    def noise(self, shape: Sequence[int], seed: int) -> Tensor:
        """White noise (1, channels, *spatial): uniform over the range, or of deviation 1 around 0
        where that is not known. The same seed gives the same noise.
        """
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn if self.low is None else torch.rand
        drawn = draw((1, *shape), generator=generator, dtype=torch.float64)
        values = drawn.to(self.level.device, self.level.dtype)
        return values if self.low is None else self.low + values * 255 * self.level


def usual_shape(subject: Subject, shape: Sequence[int] | None) -> tuple[int, ...]:
    """(channels, *spatial) of pictures: those that are asked for, or that a network takes mostly.

    Raises:
        ValueError: no such shape, or none is known.
    """
    if shape is not None:
        if not 2 <= len(shape) <= 4 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"expected a shape (channels, *spatial), got {tuple(shape)}")
        return tuple(shape)
    known = subject.preprocessing
    side = None if known is None else known.crop or known.short_side
    if side is None:
        raise ValueError("expected a shape (channels, *spatial) for a model without a usual size")
    return 3, side, side


def wide(dtype: torch.dtype) -> torch.dtype:
    """What pictures are kept in while they change: half precision would swallow small steps."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def in_dtype(run: Callable[[Tensor], Any], dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """The function `run`, which takes images of one dtype, for images of any."""
    return lambda images: run(images.to(dtype))


def check_steps(**counts: int) -> None:
    """Refuse counts of steps and the like that are not positive whole numbers."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"expected {name} of at least 1, got {count!r}")
