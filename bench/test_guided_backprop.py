"""GuidedBackprop against captum's: time of whole images, and peak memory of fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import captum.attr
import pytest
import torch

from backsight.captum import GuidedBackprop
from harness import QUICK, Report, alternate, build, photo
from nets import vgg16

SECTION = "Guided backprop of one logit of VGG16 at 224²"
TARGETS = {1: 1.08, 8: 1.25}  # times captum's speed, by batch
LESS_MEMORY = 0.3


def peak(library: str, batch: int) -> float:
    """MiB beyond the model, of one call."""
    script = str(Path(__file__).resolve().parent / "memory.py")
    command = [sys.executable, script, "guided_backprop", library, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: float = json.loads(done.stdout.splitlines()[-1])["beyond_model_mib"]
    return found


@pytest.mark.parametrize("batch", TARGETS)
def test_guided_backprop(batch: int, report: Report, benchmark: Any) -> None:
    model = build(vgg16)
    x = photo(224).repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    found: dict[str, torch.Tensor] = {}

    def run(name: str, method: Any) -> None:
        found[name] = method.attribute(x, target=7)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says that it hooks
        stats = alternate(
            {
                "ours": lambda: run("ours", GuidedBackprop(model)),
                "captum": lambda: run("captum", captum.attr.GuidedBackprop(model)),
            },
            rounds=2 if QUICK else 9,
            benchmark=benchmark,
        )
    assert found["captum"].abs().max() > 0
    assert torch.equal(found["ours"], found["captum"])
    ours, theirs = (peak(library, batch) for library in ("backsight", "captum"))
    report.add(
        SECTION,
        {
            "batch": str(batch),
            "ours": str(stats["ours"]),
            "captum": str(stats["captum"]),
            "x captum": f"{stats['captum'].median / stats['ours'].median:.2f}",
            "target": f">= {TARGETS[batch]}",
            "peak": f"{ours:.0f} MiB",
            "captum's": f"{theirs:.0f} MiB",
            "less": f"{100 * (1 - ours / theirs):.0f}%",
            "target of that": f">= {100 * LESS_MEMORY:.0f}%",
        },
    )
    report.remark(
        SECTION,
        "Same arguments, same numbers bit for bit; the model is frozen, which spares captum the "
        "inputs of linear layers. Peaks: highest resident size of a fresh process, less that "
        "before the call.",
    )
