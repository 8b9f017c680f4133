"""Peak memory of one call in a fresh process: of a sweep, or of guided backprop by VGG16.

    python bench/memory.py NET SIZE WINDOW STRIDE EDGE
    python bench/memory.py guided_backprop backsight|captum BATCH

Prints one JSON object: what the process took beyond the model (its highest resident size, less what
was resident when the call began), and of a sweep what the plan said it would take.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

import backsight
from harness import MEBI, photo
from nets import resnet18, resnet50, squeezenet1_1, vgg16


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def highest() -> int:
    """Bytes of this process at its largest. (getrusage would count the parent's, from the fork.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def guided_backprop(library: str, batch: str) -> None:
    from captum.attr import GuidedBackprop as Theirs

    from backsight.captum import GuidedBackprop as Ours

    model = vgg16().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images = photo(224).repeat(int(batch), 1, 1, 1).contiguous(memory_format=torch.channels_last)
    method = (Ours if library == "backsight" else Theirs)(model)
    method.attribute(photo(32), target=0)  # what torch allocates once for any images
    before = resident()
    method.attribute(images, target=0)
    print(json.dumps({"beyond_model_mib": round((highest() - before) / MEBI, 1)}))


def sweep(name: str, *arguments: str) -> None:
    *rest, edge = arguments
    size, window, stride = (int(value) for value in rest)
    factories = {
        "vgg16": vgg16,
        "resnet18": resnet18,
        "resnet50": resnet50,
        "squeezenet1_1": squeezenet1_1,
    }
    model = factories[name]().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    image = photo(size)
    with torch.inference_mode():  # what torch allocates once for any model is no part of a sweep
        model(photo(64))
    # Capturing a small image first brings in torch.export's own code, some hundred mebibytes of it.
    backsight.plan(model, photo(64), window=16, stride=16)
    before = resident()
    plan = backsight.plan(model, image, window=window, stride=stride, edge=edge)
    result = backsight.occlusion(model, image, window=window, stride=stride, edge=edge)
    peak = highest()
    print(
        json.dumps(
            {
                "beyond_model_mib": round((peak - before) / MEBI, 1),
                "before_mib": round(before / MEBI, 1),
                "positions": len(result.boxes),
                "plan": plan.as_dict(),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "guided_backprop":
        guided_backprop(*sys.argv[2:])
    else:
        sweep(*sys.argv[1:])
