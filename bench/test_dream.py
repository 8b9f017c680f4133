"""Dreams against the loop of the program that came with them, written out in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from harness import QUICK, Report, alternate, build, photo
from nets import vgg16

SECTION = "Dreams of VGG16"
STEPS, OCTAVES, SCALE, STEP, JITTER = 10, 4, 1.4, 0.025, 32


def by_hand(stem: nn.Module, image: Tensor, steps: int = STEPS) -> Callable[[], Tensor]:
    """With a model that is cut behind the layer."""

    def run() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        size = image.shape[2:]
        sizes = [tuple(round(n / SCALE**i) for n in size) for i in range(OCTAVES)][::-1]
        detail = torch.zeros_like(image)
        for now in sizes:
            base = F.interpolate(image, now, mode="bilinear", antialias=True)
            x = base + F.interpolate(detail, now, mode="bilinear")
            for _ in range(steps):
                shift = torch.randint(-JITTER, JITTER + 1, (2,), generator=generator).tolist()
                leaf = torch.roll(x, shift, (2, 3)).requires_grad_()
                maps = stem(leaf)
                (g,) = torch.autograd.grad(maps, leaf, maps.detach())
                x = leaf.detach() + STEP / g.abs().mean() * g
                x = torch.roll(x, [-n for n in shift], (2, 3))
            detail = x - base
        return x

    return run


@pytest.mark.parametrize(("layer", "size"), [("features.15", 128), ("features.22", 128)])
def test_dream(layer: str, size: int, report: Report, benchmark: Any) -> None:
    model = build(vgg16)
    image = photo(size)
    stem = model.features[: int(layer.split(".")[1]) + 1]

    def ours(steps: int = STEPS) -> Tensor:
        return backsight.dream(
            model,
            image,
            layer=layer,
            steps=steps,
            step=STEP,
            octaves=OCTAVES,
            scale=SCALE,
            jitter=JITTER,
        ).images

    # Few steps: ReLUs near 0 blow the last bits up in many.
    found, expected = ours(1), by_hand(stem, image, 1)()
    moved = (expected - image).abs().mean()
    assert moved > 0
    assert (found - expected).abs().mean() < 0.02 * moved
    stats = alternate(
        {"ours": ours, "by hand": by_hand(stem, image)},
        rounds=2 if QUICK else 3,
        benchmark=benchmark,
    )
    steps = STEPS * OCTAVES
    ratio = stats["ours"].median / stats["by hand"].median
    report.add(
        SECTION,
        {
            "layer": f"{layer} at {size}²",
            "ours": str(stats["ours"].times(1 / steps)),
            "by hand": str(stats["by hand"].times(1 / steps)),
            "x by hand": f"{ratio:.2f}",
            "target": "<= 1.10",
        },
    )
    report.remark(
        SECTION,
        f"Time of a step: {OCTAVES} octaves of {STEPS} steps with jitter, the photo's own activity "
        "before and after among them; by hand the model is cut behind the layer.",
    )
