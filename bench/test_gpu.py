"""Occlusion sweeps on a GPU, fp32 and bf16, against channels_last and torch.compile'd PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import Copy, Report, Stats, alternate
from nets import resnet18, resnet50, vgg16
from sweeps import Case, sweep_row

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DTYPES = (torch.float32, torch.bfloat16)
CASES = [
    case
    for dtype in DTYPES
    for case in (
        Case("VGG16", vgg16, 224, 16, 4, 7.0, (32, 128), 512, (), "clip", dtype),
        Case("ResNet-18", resnet18, 224, 16, 4, 2.0, (64, 256), 1024, (), "clip", dtype),
        Case("ResNet-50", resnet50, 2048, 32, 16, 60.0, (2, 8), 16, (), "clip", dtype),
    )
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_sweep_on_gpu(case: Case, report: Report, benchmark: Any) -> None:
    sweep_row(case, report, benchmark, device="cuda", compile=True)


def test_copy_on_gpu(report: Report, benchmark: Any) -> None:
    """The yardstick of the kernels: device copies of 256 MiB and 1 GiB."""
    copies = {f"{count >> 20} MiB": Copy(count, "cuda") for count in (1 << 28, 1 << 30)}
    stats: dict[str, Stats] = alternate(dict(copies), rounds=20, warmup=3, benchmark=benchmark)
    for name, copy in copies.items():
        rate = copy.bytes_moved / stats[name].median / 1e9
        report.add("Copies", {"copy_": name, "time": str(stats[name]), "GB/s": f"{rate:.0f}"})
