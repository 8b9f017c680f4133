"""What stands where an image has no pixels of its own left."""

from __future__ import annotations

from torch import Tensor

from ..sweep.content import Picture
from .occlusion import Baseline, content_of

__all__ = ["Baseline", "backdrop"]


def backdrop(baseline: Baseline, images: Tensor) -> Tensor:
    """The picture that a baseline of `backsight.occlusion` is, shaped like the images.

    Raises:
        ValueError: it does not fit the images, or is "inpaint", which needs a box.
    """
    content = content_of(baseline, images)
    if not isinstance(content, Picture):
        raise ValueError(f"expected a baseline of a colour or a picture, got {baseline!r}")
    return content.picture
