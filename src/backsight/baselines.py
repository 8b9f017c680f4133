"""What may stand in an occluding box: pictures of the size of the images, in their units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean(images: Tensor) -> Tensor:
    """Each image's mean colour: (images, channels, 1, ...) from (images, channels, *spatial)."""
    return images.mean(dim=tuple(range(2, images.ndim)), keepdim=True)


def blur(images: Tensor, sigma: float | None = None) -> Tensor:
    """Each image blurred by a Gaussian: what is there is gone, its colours are not.

    Args:
        images: (images, channels, *spatial), one to three spatial axes.
        sigma: standard deviation in pixels; default: a sixteenth of the shorter side.

    Returns:
        Of the shape of `images`. At the edges the Gaussian's part inside the image counts.
    """
    size = images.shape[2:]
    sigma = min(size) / 16 if sigma is None else sigma
    if not sigma > 0:
        raise ValueError(f"expected sigma to be positive, got {sigma!r}")
    blurred = images.double()
    for d, n in enumerate(size):
        reach = min(int(4 * sigma) + 1, n - 1)
        at = torch.arange(-reach, reach + 1, dtype=torch.float64, device=images.device)
        kernel = torch.exp(-0.5 * (at / sigma) ** 2).view(1, 1, -1)
        lines = blurred.movedim(2 + d, -1)
        flat = lines.reshape(-1, 1, n)
        share = F.conv1d(torch.ones_like(flat[:1]), kernel, padding=reach)
        flat = F.conv1d(flat, kernel, padding=reach) / share
        blurred = flat.view(lines.shape).movedim(-1, 2 + d)
    return blurred.to(images.dtype)


def noise(images: Tensor, seed: int = 0) -> Tensor:
    """White noise with each image's mean and standard deviation per channel.

    Args:
        images: (images, channels, *spatial).
        seed: the same seed gives the same noise, whatever else the program draws.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(images.shape[1:], generator=generator, dtype=torch.float64)
    axes = tuple(range(2, images.ndim))
    middle = images.double().mean(axes, keepdim=True)
    spread = images.double().std(axes, keepdim=True, correction=0)
    return (middle + spread * drawn.to(images.device)).to(images.dtype)


def pixel(
    value: float | Sequence[float], mean: float | Sequence[float], std: float | Sequence[float] = 1
) -> Tensor:
    """A colour in the units of images that were normalised as (pixel - mean) / std: (channels,), or
    a single number.

    Args:
        value: a pixel's value, or one per channel, in the units that the images had before.
        mean, std: what they were normalised with, a number or one per channel.
    """
    return (torch.as_tensor(value) - torch.as_tensor(mean)) / torch.as_tensor(std)
