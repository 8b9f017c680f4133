"""Insertion and deletion curves against the usual loop, at its best batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backsight
from harness import QUICK, Peer, Report, alternate, best_of, build, photo
from nets import random_images, resnet18, squeezenet1_1

SECTION = "Insertion and deletion curves of one map, 224², 20 steps each"
STEPS = 5 if QUICK else 20
MODELS = {"ResNet-18": resnet18, "SqueezeNet": squeezenet1_1}


@torch.no_grad()
def usual(model: nn.Module, x: Tensor, order: Tensor, batch: int) -> Tensor:
    """As it is usually written: a picture a step, stacked into batches; (2, steps + 1)."""
    mean = x.mean((2, 3), keepdim=True).expand_as(x).contiguous()
    blanks = mean, backsight.baselines.blur(x).contiguous()
    pixels = x.shape[2] * x.shape[3]
    counts = [step * pixels // STEPS for step in range(STEPS + 1)]
    curves = []
    for start, finish in ((x, blanks[0]), (blanks[1], x)):
        pictures, scores = [], []
        for count in counts:
            picture = start.clone()
            at = order[:count]
            picture.view(1, 3, -1)[:, :, at] = finish.view(1, 3, -1)[:, :, at]
            pictures.append(picture)
            if len(pictures) == batch or count == pixels:
                scores.append(model(torch.cat(pictures)).softmax(1)[:, 7])
                pictures = []
        curves.append(torch.cat(scores))
    return torch.stack(curves)


@pytest.mark.parametrize("name", MODELS)
def test_faithfulness(name: str, report: Report, benchmark: Any) -> None:
    model = build(MODELS[name])
    x = photo(224).contiguous()
    maps = random_images((1, 224, 224), 1, seed=3)[:, 0]
    order = maps.flatten().argsort(descending=True)

    def loop(batch: int) -> Peer:
        setting = f"batch {batch}"
        return Peer("usual loop", lambda: usual(model, x, order, batch), 2 * STEPS, setting)

    best = best_of([loop(batch) for batch in (1, 8, 32)])
    found: dict[str, Tensor] = {}

    def ours() -> None:
        result = backsight.faithfulness(model, x, maps, 7, steps=STEPS)
        found["ours"] = torch.cat([result.deletion, result.insertion])

    def theirs() -> None:
        found["loop"] = best.run()

    rounds = 2 if QUICK else 5
    stats = alternate({"ours": ours, "loop": theirs}, rounds=rounds, benchmark=benchmark)
    assert found["loop"].std() > 0
    torch.testing.assert_close(found["ours"], found["loop"], rtol=1e-3, atol=1e-4)
    report.add(
        SECTION,
        {
            "model": name,
            "ours": str(stats["ours"]),
            "usual loop": f"{stats['loop']} ({best.setting})",
            "ours / loop": f"{stats['ours'].median / stats['loop'].median:.3f}",
            "target": "<= 1",
        },
    )
    report.remark(
        SECTION,
        "The loop makes a picture a step and stacks them; the best of batches 1, 8 and 32. Both"
        " blur the image by backsight.baselines.blur. Ours runs the image once for the two ends"
        " that are the image itself, in batches of its own choice.",
    )
