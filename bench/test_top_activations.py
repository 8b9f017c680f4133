"""top_activations against the model's own forward pass over the same images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import backsight
from harness import QUICK, Report, alternate, build
from nets import resnet18, squeezenet1_1, vgg16

SECTION = "Dataset search: top_activations over images in memory"

# Name, network, layer, images, side.
CASES: list[tuple[str, Any, str, int, int]] = [
    ("SqueezeNet 1.1", squeezenet1_1, "7", 64, 224),
    ("ResNet-18", resnet18, "layer4", 32, 224),
    ("VGG16", vgg16, "features.30", 8, 224),
]
if QUICK:
    CASES = [("SqueezeNet 1.1 quick", squeezenet1_1, "7", 8, 96)]


@pytest.mark.parametrize(("name", "factory", "layer", "count", "side"), CASES)
def test_top_activations(
    name: str, factory: Any, layer: str, count: int, side: int, report: Report, benchmark: Any
) -> None:
    print(f"\n{name}", flush=True)
    model = build(factory)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=rng)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = min(count, 16)
    result: dict[str, Any] = {}

    def ours() -> None:
        result["ours"] = backsight.top_activations(model, layer, images, batch_size=batch)

    def forward() -> None:
        with torch.inference_mode():
            for some in images.split(batch):
                model(some)

    stats = alternate(
        {"ours": ours, "forward": forward},
        rounds=1 if QUICK else 7,
        warmup=1,
        benchmark=benchmark,
    )
    # The benchmark is void if it did not compute the same thing.
    held: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, y: held.append(y))
    forward()
    handle.remove()
    best = torch.cat(held).amax((2, 3)).T.topk(min(9, count)).values
    found = result["ours"].values[:, : best.shape[1]]
    assert best.max() > 0
    assert (found - best).abs().max() <= 1e-4 * best.max()
    own, theirs = stats["ours"].median, stats["forward"].median
    report.add(
        SECTION,
        {
            "case": f"{name} {side} {layer}",
            "images": f"{count}, {batch} a batch",
            "ours": str(stats["ours"]),
            "model alone": str(stats["forward"]),
            "share of the model's throughput": f"{100 * theirs / own:.0f}%",
            "target": ">= 95%",
        },
    )
    report.remark(
        SECTION,
        "Ours runs the captured graph up to the layer, with activations fused into convolutions; "
        "the model runs whole, channels_last, in inference mode, in batches of the same size.",
    )
