"""Saliency against the bare forward and backward pass that it cannot do without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import backsight
from harness import QUICK, Report, alternate, build, photo
from nets import resnet18, vgg16

SECTION = "Saliency of one logit at 224²"
TARGET = 1.05  # of the bare passes' time
MODELS = {"ResNet-18": resnet18, "VGG16": vgg16}


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", MODELS)
def test_saliency(name: str, batch: int, report: Report, benchmark: Any) -> None:
    model = build(MODELS[name])
    x = photo(224).repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["ours"] = backsight.saliency(model, x, 7).maps

    def bare() -> None:
        leaf = x.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(model(leaf)[:, 7].sum(), leaf)
        found["bare"] = slopes.abs().amax(1)

    rounds = 3 if QUICK else 15 if batch == 1 else 7
    stats = alternate({"ours": ours, "bare": bare}, rounds=rounds, warmup=2, benchmark=benchmark)
    assert found["bare"].abs().max() > 0
    assert torch.equal(found["ours"], found["bare"])
    report.add(
        SECTION,
        {
            "model": name,
            "batch": str(batch),
            "ours": str(stats["ours"]),
            "bare": str(stats["bare"]),
            "ours / bare": f"{stats['ours'].median / stats['bare'].median:.3f}",
            "target": f"<= {TARGET}",
        },
    )
    report.remark(
        SECTION,
        "Bare: the model forward, torch.autograd.grad of the logit, the largest |gradient| over the"
        " channels; the same numbers bit for bit. Ours makes the mask and the photos, too.",
    )
