"""Whole decoders after accelerate against the same decoders before it, in both memory formats."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backsight
from architectures import dcgan, segnet, unet
from harness import QUICK, Report, alternate
from nets import random_images, seeded

SECTION = "Decoders after accelerate"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TARGETS = {"contiguous": 1.3, "channels_last": 1.0}  # times the plain model's speed, by format


@dataclass(frozen=True)
class Case:
    """A network and its input. held: whether the targets are its; it is only reported else."""

    name: str
    factory: Callable[[], nn.Module]
    shape: tuple[int, ...]
    train: bool = False
    held: bool = True

    @property
    def label(self) -> str:
        return f"{self.name}, {'training' if self.train else 'inference'}"

    def input(self) -> Tensor:
        batch, *shape = self.shape
        if shape[1] == 1:
            return torch.randn(self.shape, generator=torch.Generator().manual_seed(7))
        return random_images(tuple(shape), batch, seed=7)


CASES = [
    Case("DCGAN 64², batch 1", dcgan, (1, 100, 1, 1)),
    Case("DCGAN 64², batch 16", dcgan, (16, 100, 1, 1)),
    Case("DCGAN 64², batch 64", dcgan, (64, 100, 1, 1)),
    Case("DCGAN 64², batch 16", dcgan, (16, 100, 1, 1), train=True, held=False),
    Case("U-Net 256², batch 1", unet, (1, 3, 256, 256)),
    Case("U-Net 128², batch 4", unet, (4, 3, 128, 128)),
    Case("U-Net 128², batch 4", unet, (4, 3, 128, 128), train=True, held=False),
    Case("SegNet 256², batch 1", segnet, (1, 3, 256, 256), held=False),
]
if QUICK:
    CASES = [
        Case("DCGAN 32² quick", lambda: dcgan(0.25, 32), (4, 100, 1, 1), held=False),
        Case("U-Net 64² quick", lambda: unet(width=0.25, depth=2), (1, 3, 64, 64), held=False),
    ]


def runner(model: nn.Module, x: Tensor, train: bool) -> Callable[[], Tensor]:
    def infer() -> Tensor:
        with torch.inference_mode():
            return model(x)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        y = model(x)
        y.square().mean().backward()
        return y.detach()

    return step if train else infer


def share(model: nn.Module, run: Callable[[], Tensor]) -> float:
    """Which part of its time a plain model spends in the forward of what `accelerate` swaps."""
    kinds = (nn.ConvTranspose2d, nn.MaxUnpool2d)
    found = [
        m for m in model.modules() if isinstance(m, kinds) or getattr(m, "return_indices", False)
    ]
    inside = 0.0
    starts: list[float] = []

    def after(*_: Any) -> None:
        nonlocal inside
        inside += time.perf_counter() - starts.pop()

    def before(*_: Any) -> None:
        starts.append(time.perf_counter())

    handles = [m.register_forward_pre_hook(before) for m in found]
    handles += [m.register_forward_hook(after) for m in found]
    shares = []
    for _ in range(5):
        inside, start = 0.0, time.perf_counter()
        run()
        shares.append(inside / (time.perf_counter() - start))
    for handle in handles:
        handle.remove()
    return statistics.median(shares)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_accelerate(case: Case, layout: str, report: Report, benchmark: Any) -> None:
    plain = seeded(case.factory).train(case.train).to(memory_format=FORMATS[layout])
    fast = copy.deepcopy(plain)
    done = backsight.accelerate(fast)
    assert done.swapped
    assert not done.left
    x = case.input().contiguous(memory_format=FORMATS[layout])
    functions = {"ours": runner(fast, x, case.train), "plain": runner(plain, x, case.train)}
    found = {name: function() for name, function in functions.items()}
    scale = float(found["plain"].abs().max())
    assert scale > 0
    torch.testing.assert_close(found["ours"], found["plain"], rtol=0, atol=1e-4 * scale)
    stats = alternate(functions, rounds=3 if QUICK else 15, warmup=2, benchmark=benchmark)
    report.add(
        SECTION,
        {
            "case": case.label,
            "format": layout,
            "ours": str(stats["ours"]),
            "plain": str(stats["plain"]),
            "x plain": f"{stats['plain'].median / stats['ours'].median:.2f}",
            "target": f">= {TARGETS[layout]}" if case.held else "",
            "share": f"{100 * share(plain, functions['plain']):.0f}%",
        },
    )
    report.remark(
        SECTION,
        "The same weights and input, in the same format; inference in inference mode, training "
        "forward and backward without the optimiser. Share: of the plain model's time, what the "
        "forward of the modules takes that were swapped; a model in which it is s gains at most "
        "1 / (1 - s) in inference, if they took no time at all.",
    )
