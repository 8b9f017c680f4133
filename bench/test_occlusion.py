"""Occlusion sweeps against captum and against plain batched PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import backsight
from harness import QUICK, Report, build, duration, has_amx, photo
from nets import resnet18, resnet50, squeezenet1_1, vgg16
from sweeps import ARCHITECTURES, Case, sweep_row

# With stride 64 and window 32 the last "clip" boxes of a 1024 image are empty, which flatters a
# sweep: those cases use "drop", and one of them is shown on the default grid too.
CASES = [
    Case("VGG16", vgg16, 224, 16, 8, 8.0, (1, 8, 32), 32),
    Case("ResNet-18", resnet18, 224, 16, 8, 2.2, (1, 8, 32), 64),
    Case("VGG16", vgg16, 1024, 32, 64, 90.0, (1, 2), 2, (1, 8), "drop"),
    Case("VGG16", vgg16, 1024, 32, 64, 90.0, (1,), 2, ()),
    Case("ResNet-50", resnet50, 1024, 32, 64, 20.0, (1, 2, 4), 4, (1, 8), "drop"),
    Case("SqueezeNet 1.1", squeezenet1_1, 1024, 32, 16, 1.0, (1, 4, 8), 8, (1, 8), share=0.9),
    *ARCHITECTURES,
]
BF16 = [
    Case("VGG16", vgg16, 1024, 32, 64, 90.0, (1, 2), 2, (), "drop", torch.bfloat16),
    Case("ResNet-50", resnet50, 1024, 32, 64, 20.0, (1, 2, 4), 4, (), "drop", torch.bfloat16),
]
if QUICK:
    CASES = [
        Case("VGG16 quick", lambda: vgg16(width=0.5), 224, 16, 16, 8.0, (1, 8), 8, (8,)),
        Case("ResNet-18 quick", resnet18, 224, 16, 16, 2.2, (8,), 16, (8,)),
        Case("SqueezeNet 1.1 quick", squeezenet1_1, 512, 32, 32, 1.0, (4,), 8, (8,), share=0.9),
    ]
    BF16 = BF16[:0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_sweep(case: Case, report: Report, benchmark: Any) -> None:
    sweep_row(case, report, benchmark)


@pytest.mark.skipif(not has_amx(), reason="bf16 is only worth timing where the CPU has AMX")
@pytest.mark.parametrize("case", BF16, ids=lambda case: case.label)
def test_sweep_bf16(case: Case, report: Report, benchmark: Any) -> None:
    sweep_row(case, report, benchmark)


def test_capture_and_plan(report: Report, benchmark: Any) -> None:
    """Cold (capture, fold, plan) and again on the same model."""
    model, image = build(resnet50), photo(1024)
    arguments = {"window": 32, "stride": 64, "edge": "drop"}
    start = time.perf_counter()
    backsight.plan(model, image, **arguments)
    cold = time.perf_counter() - start
    benchmark.pedantic(lambda: backsight.plan(model, image, **arguments), rounds=3, iterations=1)
    report.add(
        "Capture and plan",
        {
            "model": "ResNet-50 1024 32/64",
            "cold": duration(cold),
            "cached": duration(benchmark.stats.stats.median),
            "target": "cold <= 4 s",
        },
    )


MEMORY = [
    ("vgg16", 1024, 32, 64, "drop"),
    ("resnet50", 1024, 32, 64, "drop"),
    ("squeezenet1_1", 1024, 32, 64, "drop"),
]


@pytest.mark.parametrize("case", MEMORY[2:] if QUICK else MEMORY, ids=lambda case: case[0])
def test_peak_memory(case: tuple[str, int, int, int, str], report: Report, benchmark: Any) -> None:
    """Highest resident size of a fresh process beyond the model, against the plan's own number."""
    here = Path(__file__).resolve().parent
    command = [sys.executable, str(here / "memory.py"), *map(str, case)]
    lines: list[str] = []

    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        lines.append(done.stdout.splitlines()[-1])

    benchmark.pedantic(run, rounds=1, iterations=1)
    found = json.loads(lines[-1])
    plan = found["plan"]
    parts = {p: plan[f"{p}_bytes"] / 2**20 for p in ("weight", "base", "pass", "batch", "score")}
    report.add(
        "Peak memory beyond the model (fresh process)",
        {
            "case": "{} {} {}/{}".format(*case[:4]),
            "measured": f"{found['beyond_model_mib']:.0f} MiB",
            "stated by the plan": f"{plan['peak_bytes'] / 2**20:.0f} MiB",
        }
        | {part: f"{mib:.0f} MiB" for part, mib in parts.items()}
        | {
            "memory budget": f"{plan['memory'] / 2**20:.0f} MiB",
            "resident before": f"{found['before_mib']:.0f} MiB",
        },
    )
