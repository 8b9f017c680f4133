"""Plain occlusion: the whole model on occluded copies, for models that cannot be captured."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from .. import ops
from .plan import NULLS, Plan

Model = Callable[[Tensor], Tensor]


def run_plain(
    plan: Plan, model: Model, images: Tensor, baseline: Tensor, progress: Callable[[int], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Differences (images, positions, outputs), null differences (…, outputs) and base (images,
    outputs), all fp64.
    """
    axes = images.ndim - 2
    device = images.device
    batches = ceil((plan.positions + NULLS) / plan.batch)
    # An empty box changes nothing: what is left of the last batch holds null occlusions.
    boxes = torch.zeros(batches * plan.batch, 2 * axes, dtype=torch.int64)
    boxes[: plan.positions] = plan.grid.boxes
    boxes = boxes.to(device)
    baseline = baseline.expand_as(images)
    base = torch.cat([scores_of(model(image[None]), 1) for image in images]).double()
    check_scores(base)
    changes = torch.zeros(len(images), len(boxes), plan.outputs, dtype=torch.float64, device=device)
    for i, image in enumerate(images):
        for first in range(0, len(boxes), plan.batch):
            some = slice(first, first + plan.batch)
            copies = ops.occlude(image[None], boxes[some], baseline[i : i + 1])
            changes[i, some] = scores_of(model(copies), plan.batch).double() - base[i]
            progress(max(0, min(first + plan.batch, plan.positions) - first))
    return (
        changes[:, : plan.positions],
        changes[:, plan.positions :].reshape(-1, plan.outputs),
        base,
    )


def scores_of(output: object, batch: int) -> Tensor:
    """A model's output as (batch, outputs)."""
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != batch:
        came = f"{tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"expected the model to return a tensor of shape ({batch}, ...), got {came}"
        )
    return output.detach().reshape(batch, -1)


def check_scores(scores: Tensor) -> None:
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("expected finite scores for the unoccluded images, got NaN or infinity")
