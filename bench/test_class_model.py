"""Class models against a loop that is written out, a class at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import backsight
from harness import QUICK, Report, Stats, alternate, build
from nets import squeezenet1_1

SECTION = "Class models of SqueezeNet 1.1 at 224²"
BATCHES = (1, 2, 4)
CLASSES, STEPS = 4, 6
STEP, DECAY, SIGMA, EVERY = 0.1, 0.02, 1.0, 2


def by_hand(
    model: nn.Module, start: Tensor, batch: int, steps: int = STEPS
) -> Callable[[], Tensor]:
    """The same ascent as most would write it: the gradient, decay, a blur, the best kept."""
    reach = int(4 * SIGMA) + 1
    at = torch.arange(-reach, reach + 1, dtype=start.dtype)
    kernel = torch.exp(-0.5 * (at / SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)

    def run() -> Tensor:
        made = []
        for first in range(0, CLASSES, batch):
            some = torch.arange(first, first + batch)
            x = start.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
            best, most = x, torch.full((batch,), -torch.inf)
            for k in range(steps + 1):
                leaf = x.requires_grad_()
                scores = model(leaf)[torch.arange(batch), some]
                better = scores.detach() > most
                best = torch.where(better.view(-1, 1, 1, 1), x.detach(), best)
                most = torch.where(better, scores.detach(), most)
                if k == steps:
                    break
                (g,) = torch.autograd.grad(scores.sum(), leaf)
                x = x.detach() + STEP * g / g.abs().mean((1, 2, 3), keepdim=True)
                if k < steps - 1:
                    x = x * (1 - DECAY)
                    if (k + 1) % EVERY == 0:
                        x = nn.functional.pad(x, (reach, reach, reach, reach), mode="replicate")
                        x = nn.functional.conv2d(x, kernel, groups=3)
                        x = nn.functional.conv2d(x, kernel.mT, groups=3)
            made.append(best)
        return torch.cat(made)

    return run


def test_class_model(report: Report, benchmark: Any) -> None:
    model = build(squeezenet1_1)
    start = 0.15 * torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def ours(steps: int = STEPS) -> Tensor:
        return backsight.class_model(
            model,
            list(range(CLASSES)),
            start=start,
            steps=steps,
            step=STEP,
            decay=DECAY,
            blur=SIGMA,
            blur_every=EVERY,
        ).images

    # The middle, which the edges' blur does not reach in so few steps; in many ReLUs near 0
    # blow the last bits up.
    inner = (..., slice(60, -60), slice(60, -60))
    expected, found = by_hand(model, start, CLASSES, 3)(), ours(3)
    assert (expected - start).abs().max() > 0.1
    assert (found[inner] - expected[inner]).abs().mean() < 0.02 * (expected - start).abs().mean()
    loops = {f"batch {batch}": by_hand(model, start, batch) for batch in BATCHES}
    stats = alternate({"ours": ours, **loops}, rounds=2 if QUICK else 7, benchmark=benchmark)
    best = min(loops, key=lambda name: stats[name].median)

    def one(found: Stats) -> str:
        return str(found.times(1 / CLASSES / STEPS))

    report.add(
        SECTION,
        {
            "ours": one(stats["ours"]),
            **{name: one(stats[name]) for name in loops},
            "x the best": f"{stats[best].median / stats['ours'].median:.2f}",
            "target": ">= 1",
        },
    )
    report.remark(
        SECTION,
        f"Time of a step of a class: {CLASSES} classes, {STEPS} steps of ascent with decay and, "
        f"every {EVERY}, a blur; the others are the same loop written out, in batches.",
    )
