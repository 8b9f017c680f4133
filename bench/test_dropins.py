"""The drop-ins against their peers, called alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from backsight.captum import Occlusion
from harness import QUICK, Report, alternate, best_of, build, captum_peers, photo
from nets import resnet50, squeezenet1_1
from oracle import grid

SECTION = "Drop-ins: captum's Occlusion, one image, one target"


@dataclass(frozen=True)
class Case:
    """One row. sample: positions that captum runs; evals: its perturbations_per_eval."""

    name: str
    factory: Any
    size: int
    window: int
    stride: int
    target: float
    evals: tuple[int, ...]
    sample: int

    @property
    def label(self) -> str:
        return f"{self.name} {self.size} {self.window}/{self.stride} fp32"


CASES = [Case("ResNet-50", resnet50, 512, 32, 32, 6.0, (1, 4, 8, 16), 16)]
if QUICK:
    CASES = [Case("SqueezeNet 1.1 quick", squeezenet1_1, 512, 32, 32, 2.0, (4, 8), 8)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_captum(case: Case, report: Report, benchmark: Any) -> None:
    print(f"\n{case.label}", flush=True)
    model, image = build(case.factory), photo(case.size)
    window, stride = (3, case.window, case.window), (3, case.stride, case.stride)
    positions = len(grid((case.size,) * 2, window[1:], stride[1:]))
    arguments = {"sliding_window_shapes": window, "strides": stride, "target": 0}
    result: dict[str, Any] = {}

    def ours() -> None:
        result["ours"] = Occlusion(model).attribute(image, **arguments)

    peer = best_of(captum_peers(model, image, case.evals, case.sample))
    functions = {"ours": ours, "captum": peer.run}
    # The first call captures the model; later ones find it captured.
    stats = alternate(functions, rounds=1 if QUICK else 3, warmup=1, benchmark=benchmark)

    # The benchmark is void if it did not compute the same thing: one window's pixels, by hand.
    row, column = case.size // 2 // case.stride * case.stride, case.stride
    hidden = image.clone()
    hidden[..., row : row + case.window, column : column + case.window] = 0
    judge = model.double()
    with torch.no_grad():
        drop = (judge(image.double()) - judge(hidden.double()))[0, 0]
    found, largest = result["ours"], result["ours"].abs().max()
    middle = found[0, 0, row + case.window // 2, column + case.window // 2]
    assert largest > 0
    assert abs(middle - drop) <= 1e-3 * largest

    full = stats["captum"].times(positions / peer.passes)
    ran = f"{peer.setting}; {peer.passes} of {positions} positions run"
    report.add(
        SECTION,
        {
            "case": case.label,
            "positions": str(positions),
            "ours": str(stats["ours"]),
            "captum": f"{full} ({ran})",
            "x captum": f"{full.median / stats['ours'].median:.1f}",
            "target": f">= {case.target}",
        },
    )
    report.remark(
        SECTION,
        "Both calls are `Occlusion(model).attribute(...)` with the same arguments; captum's at its "
        "best perturbations_per_eval of several, on as many positions as stated and extrapolated "
        "linearly. Ours had captured the model in a call before.",
    )
