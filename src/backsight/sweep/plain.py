"""Plain occlusion: the whole model on occluded copies, for models that cannot be captured."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from .. import ops
from ..graph.kinds import Where
from ..models.call import Call, repeated
from ..models.scores import check_scores, scores_of
from .content import Content, Picture
from .plan import NULLS, Plan
from .readout import Drops, Readout


def run_plain(
    plan: Plan,
    call: Call,
    images: Tensor,
    content: Content,
    readout: Readout,
    progress: Callable[[int], None],
) -> Drops:
    """What a sweep finds, by running the model on each occluded image."""
    device, positions = images.device, plan.positions
    batches = ceil((positions + NULLS) / plan.batch)
    rows = torch.arange(batches * plan.batch)
    found = []
    for i, image in enumerate(images):
        sides = [side[i : i + 1] for side in call.sides]
        output = call(image[None].clone(), *sides)
        base = scores_of(output, 1).double()
        check_scores(base)
        reading = readout.of(base, output.shape[1:])
        results = Drops.empty(reading, positions, images.dtype)
        here = content.part(i, i + 1)
        for first in range(0, len(rows), plan.batch):
            some = rows[first : first + plan.batch]
            real = max(0, min(len(some), positions - first))
            # What is left of the last batch holds null occlusions.
            copies = _occluded(plan, image, some[:real], here, len(some))
            change = scores_of(repeated(call, copies, sides), len(some)).double() - base
            at = torch.zeros(len(some), dtype=torch.int64, device=device)
            results.put(reading, at, some.to(device), change, slice(real), slice(real, None))
            progress(real)
        found.append(results)
    return Drops.joined(found)


def _occluded(plan: Plan, image: Tensor, rows: Tensor, content: Content, count: int) -> Tensor:
    """`count` copies of an image, the first of them with the boxes of `rows` filled."""
    grid, device = plan.grid, image.device
    size = tuple(image.shape)
    if isinstance(content, Picture) and grid.parts is None and grid.channels is None:
        boxes = torch.zeros(count, grid.boxes.shape[1], dtype=torch.int64)
        boxes[: len(rows)] = grid.boxes[rows]
        return ops.occlude(image[None], boxes.to(device), content.picture)
    copies = image.expand(count, *size).clone()
    if not len(rows):
        return copies
    where = Where(torch.zeros(len(rows), len(size) - 1, dtype=torch.int64, device=device), size[1:])
    at = torch.zeros(len(rows), dtype=torch.int64, device=device)
    filler = content.windows(at, grid.boxes[rows].to(device), where)
    inside = grid.covers(rows, where, size[0])
    copies[: len(rows)] = torch.where(inside, filler, copies[: len(rows)])
    return copies
