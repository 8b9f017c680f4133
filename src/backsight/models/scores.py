"""A model's output as scores."""

from __future__ import annotations

import torch
from torch import Tensor


def scores_of(output: object, batch: int) -> Tensor:
    """A model's output as (batch, outputs)."""
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != batch:
        came = f"{tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"expected the model to return a tensor of shape ({batch}, ...), got {came}"
        )
    if not output.is_floating_point():
        raise ValueError(f"expected floating-point scores, got {output.dtype}")
    return output.detach().reshape(batch, -1)


def check_scores(scores: Tensor) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("expected finite scores for the unoccluded images, got NaN or infinity")
