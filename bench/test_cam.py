"""CAM and Grad-CAM against bare passes of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from harness import QUICK, Report, alternate, build, photo
from nets import resnet18, resnet50, squeezenet1_1

SECTION = "CAM of one logit at 224²"
TARGET = 1.05  # of the bare passes' time

#: The model, and its last layer with maps.
MODELS = {"ResNet-18": (resnet18, "layer4"), "ResNet-50": (resnet50, "layer4")}


def by_hand(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """Grad-CAM as it is usually written: a hook, the model forward, and autograd."""
    kept: list[Tensor] = []
    leaf = x.detach().requires_grad_()
    hook = model.get_submodule(layer).register_forward_hook(lambda _, __, out: kept.append(out))
    try:
        scores = model(leaf)
    finally:
        hook.remove()
    (slopes,) = torch.autograd.grad(scores[:, 7].sum(), kept[0])
    maps = (slopes.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1).relu()
    return F.interpolate(maps[:, None], size=x.shape[2:], mode="bilinear")[:, 0]


def add(report: Report, row: dict[str, str], stats: dict[str, Any]) -> None:
    ours, bare = stats["ours"], stats["bare"]
    report.add(
        SECTION,
        {
            **row,
            "ours": str(ours),
            "bare": str(bare),
            "ours / bare": f"{ours.median / bare.median:.3f}",
            "target": f"<= {TARGET}",
        },
    )
    report.remark(
        SECTION,
        "Bare: for CAM the model forward and backward to the pixels; for Grad-CAM the model forward"
        " and backward to the layer, its maps weighted and enlarged by hand. CAM needs no backward"
        " pass: the weights of the head are read once from the captured graph, which runs. Capture"
        " and check are not timed: they take place once a model and size of images.",
    )


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", ["SqueezeNet", *MODELS])
def test_cam(name: str, batch: int, report: Report, benchmark: Any) -> None:
    model = build(squeezenet1_1 if name == "SqueezeNet" else MODELS[name][0])
    x = photo(224).repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        result = backsight.cam(model, x, 7)
        found["ours"] = result.cams.flatten(1).mean(1) + result.biases

    def bare() -> None:
        leaf = x.detach().requires_grad_()
        scores = model(leaf)[:, 7]
        torch.autograd.grad(scores.sum(), leaf)
        found["bare"] = scores.detach()

    rounds = 3 if QUICK else 15 if batch == 1 else 7
    stats = alternate({"ours": ours, "bare": bare}, rounds=rounds, warmup=2, benchmark=benchmark)
    assert found["bare"].abs().max() > 0
    torch.testing.assert_close(found["ours"], found["bare"], rtol=1e-3, atol=1e-4)
    add(report, {"map": "CAM", "model": name, "batch": str(batch)}, stats)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", MODELS)
def test_grad_cam(name: str, batch: int, report: Report, benchmark: Any) -> None:
    make, layer = MODELS[name]
    model = build(make)
    x = photo(224).repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        found["ours"] = backsight.cam(model, x, 7, layer=layer).maps

    def bare() -> None:
        found["bare"] = by_hand(model, layer, x)

    rounds = 3 if QUICK else 15 if batch == 1 else 7
    stats = alternate({"ours": ours, "bare": bare}, rounds=rounds, warmup=2, benchmark=benchmark)
    assert found["bare"].max() > 0
    torch.testing.assert_close(found["ours"], found["bare"], rtol=1e-4, atol=1e-6)
    add(report, {"map": f"Grad-CAM at {layer}", "model": name, "batch": str(batch)}, stats)
