"""What stands in an occluding box."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..graph.kinds import Where
from ..maps import Tile, splice_base


class Content(Protocol):
    """Pictures that fill boxes, for images (images, channels, *spatial)."""

    def windows(self, image: Tensor, boxes: Tensor, where: Where) -> Tensor:
        """What stands in the windows `where` of some occlusions: (batch, channels, *size), or what
        broadcasts to it. Cells outside the box do not count.

        Args:
            image: (batch,), which image each is of.
            boxes: (batch, 2·D), starts then ends.
        """

    def part(self, first: int, last: int) -> Content:
        """The same for the images [first, last) alone."""


class Picture:
    """One picture per image, whatever the box: (images, channels, *spatial), expanded where it is
    constant.
    """

    def __init__(self, picture: Tensor) -> None:
        self.picture = picture

    def windows(self, image: Tensor, boxes: Tensor, where: Where) -> Tensor:
        picture, axes = self.picture, len(where.size)
        if all(picture.stride(2 + d) == 0 for d in range(axes)):
            corner = picture.as_strided((*picture.shape[:2], *[1] * axes), picture.stride())
            return corner[image]
        return splice_base(Tile(picture, (0,) * axes, tuple(picture.shape[2:])), image, where)

    def part(self, first: int, last: int) -> Picture:
        return Picture(self.picture[first:last])


class Inpainting:
    """Each box filled in from the pixels around it.

    A pixel is the mean of those that border the box on its lines along the axes (four in a
    photo), each weighted by one over its distance. A side at the image's edge does not count; a box
    that is the whole image gets the image's mean.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def windows(self, image: Tensor, boxes: Tensor, where: Where) -> Tensor:
        axes = len(where.size)
        size = self.images.shape[2:]
        along = [
            where.at[:, d : d + 1] + torch.arange(where.size[d], device=where.at.device)
            for d in range(axes)
        ]
        shape = [
            [len(image)] + [where.size[k] if k == d else 1 for k in range(axes)]
            for d in range(axes)
        ]
        cells = [a.view(s) for a, s in zip(along, shape, strict=True)]
        inside = [c.clamp(0, n - 1) for c, n in zip(cells, size, strict=True)]
        row = image.view(-1, *[1] * axes)
        total = torch.zeros((), dtype=self.images.dtype, device=image.device)
        weights = torch.zeros((), dtype=self.images.dtype, device=image.device)
        for d in range(axes):
            start, stop = (
                boxes[:, k].view(-1, *[1] * axes).to(image.device) for k in (d, axes + d)
            )
            for border, exists in ((start - 1, start > 0), (stop, stop < size[d])):
                at = [*inside[:d], border.clamp(0, size[d] - 1), *inside[d + 1 :]]
                # Advanced indices first, the channels last.
                pixels = self.images.movedim(1, -1)[(row, *at)]
                distance = (cells[d] - border).abs().clamp_min(1).to(pixels.dtype)
                weight = exists.to(pixels.dtype) / distance
                total = total + weight[..., None] * pixels
                weights = weights + weight
        mean = self.images.mean(tuple(range(2, 2 + axes)))[image].view(
            -1, *[1] * axes, total.shape[-1]
        )
        none = (weights == 0)[..., None]
        filled = torch.where(none, mean, total / weights.clamp_min(1e-30)[..., None])
        return filled.movedim(-1, 1)

    def part(self, first: int, last: int) -> Inpainting:
        return Inpainting(self.images[first:last])
