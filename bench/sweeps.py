"""One benchmark row: a sweep, its peers, and a check that they computed the same thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import backsight
from architectures import (
    convnext_tiny,
    densenet121,
    efficientnet_b0,
    efficientnet_lite0,
    googlenet,
    mobilenet_v2,
    resnet50_gn,
    shufflenet_v2_x1_0,
    unet,
)
from floors import floors
from harness import (
    QUICK,
    Report,
    alternate,
    best_of,
    build,
    captum_peers,
    photo,
    plain,
    plain_peers,
    spread_sample,
    timed,
)
from oracle import grid

SECTION = "Occlusion, one image, all outputs"


@dataclass(frozen=True)
class Case:
    """One row.

    target: what the ratio to plain PyTorch should be. share: of the plan's FLOP ratio, where that
    is a target too. counted: whether bench/floors.py knows all of the network's operations.
    """

    name: str
    factory: Callable[[], nn.Module]
    size: int
    window: int
    stride: int
    target: float
    batches: tuple[int, ...]
    sample: int
    evals: tuple[int, ...] = (1, 8, 32)
    edge: str = "clip"
    dtype: torch.dtype = torch.float32
    share: float | None = None
    counted: bool = True

    @property
    def label(self) -> str:
        kind = {torch.float32: "fp32", torch.bfloat16: "bf16"}[self.dtype]
        return f"{self.name} {self.size} {self.window}/{self.stride} {self.edge} {kind}"


def unet_means() -> nn.Module:
    """Half a U-Net's channels, and the mean of each class's map: a score a pixel is too many."""
    return nn.Sequential(unet(width=0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


# What a family of architectures costs on one grid. Where barriers come early, little is left to
# windows, and a sweep has only to be no slower.
ARCHITECTURES = [
    Case(name, factory, size, 32, 32, target, (1, 4, 8), 8, (), share=share, counted=False)
    for name, factory, size, target, share in (
        ("DenseNet-121", densenet121, 512, 3.0, 0.85),
        ("GoogLeNet", googlenet, 512, 3.0, 0.85),
        ("MobileNetV2", mobilenet_v2, 512, 3.0, 0.85),
        ("ShuffleNetV2", shufflenet_v2_x1_0, 512, 3.0, 0.85),
        ("ConvNeXt-T", convnext_tiny, 512, 3.0, 0.85),
        ("EfficientNet-lite0", efficientnet_lite0, 512, 3.0, 0.85),
        ("U-Net", unet_means, 512, 10.0, None),
        ("EfficientNet-B0", efficientnet_b0, 256, 0.95, None),
        ("ResNet-50 with group norms", resnet50_gn, 256, 0.95, None),
    )
]


def sweep_row(
    case: Case, report: Report, benchmark: Any, device: str = "cpu", compile: bool = False
) -> None:
    """Time one case against its peers, check the scores against plain's, and add the row.

    compile: torch.compile'd PyTorch is one of the peers, at the best batch size of plain's.
    """
    print(f"\n{case.label}", flush=True)
    model = build(case.factory, device, case.dtype)
    image = photo(case.size, device, case.dtype)
    sides, windows = (case.size,) * 2, (case.window,) * 2
    boxes = grid(sides, windows, (case.stride,) * 2, case.edge)
    arguments = {"window": case.window, "stride": case.stride, "edge": case.edge}
    plan = backsight.plan(model, image, **arguments).as_dict()
    result: dict[str, Any] = {}

    def ours() -> None:
        result["ours"] = backsight.occlusion(model, image, **arguments)

    peers = [best_of(plain_peers(model, image, boxes, case.batches, case.sample))]
    if case.evals:
        peers.append(best_of(captum_peers(model, image, case.evals, case.sample)))
    if compile:
        batch = int(peers[0].setting.split()[-1])
        torch.compiler.reset()
        compiled = torch.compile(model)
        peers += [
            best_of(plain_peers(compiled, image, boxes, (batch,), case.sample, "torch.compile"))
        ]
    functions = {"ours": ours} | {peer.name: peer.run for peer in peers}
    # Choosing their settings has warmed the peers up.
    rounds = 5 if timed(ours) < 10 else 3
    stats = alternate(functions, rounds=1 if QUICK else rounds, warmup=0, benchmark=benchmark)

    # The benchmark is void if it did not compute the same thing.
    found = result["ours"]
    assert torch.equal(found.boxes.cpu(), boxes)
    part = spread_sample(len(boxes), 4)
    judge = plain(model, image, boxes[part], 1).double().cpu()
    error = (found.scores[0, part].cpu().double() - judge).abs().max() / judge.abs().max()
    if case.dtype == torch.float32:
        assert error < 1e-3, f"scores differ from plain PyTorch's by {error:.1e} of their size"

    row = {"case": case.label, "positions": str(len(boxes)), "ours": str(stats["ours"])}
    for peer in peers:
        full = stats[peer.name].times(len(boxes) / peer.passes)
        row[peer.name] = f"{full} ({peer.setting}; {peer.passes} of {len(boxes)} positions run)"
        row[f"x {peer.name}"] = f"{full.median / stats['ours'].median:.1f}"
    row["target"] = f">= {case.target}"
    if case.share is not None:
        share = case.share * plan["flop_ratio"]
        row["target"] += f" and {share:.1f} ({case.share} of the FLOP ratio)"
    row["FLOP ratio of the plan"] = f"{plan['flop_ratio']:.2f}"
    if case.counted:
        row["of exact windows"] = f"{floors(model, sides, boxes).ratio:.1f}"
    row["barriers"] = str(len(plan["barriers"]))
    row["score error"] = f"{error:.0e}"
    if case.dtype != torch.float32:
        row["drop error"] = f"{drop_error(case, found, device):.1e} of the largest"
    report.add(SECTION, row)
    report.remark(
        SECTION,
        "plain: boxes filled into an expanded batch, channels_last, inference mode, best batch "
        "size of several; captum: 0.9.0 at its best perturbations_per_eval of several. Both ran on "
        "as many positions as stated and are extrapolated linearly.",
    )
    report.remark(
        SECTION,
        "of exact windows: the FLOP ratio if every layer computed only what can have changed; the "
        "one pass over the unoccluded image counts, as in the plan's.",
    )


def drop_error(case: Case, found: Any, device: str) -> float:
    """The largest |drop - fp32 drop| over the largest |fp32 drop|."""
    model, image = build(case.factory, device), photo(case.size, device)
    full = backsight.occlusion(
        model, image, window=case.window, stride=case.stride, edge=case.edge
    ).drops
    return float((found.drops.double() - full.double()).abs().max() / full.abs().max())
