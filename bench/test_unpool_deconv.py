"""unpool_deconv against torch's max_unpool2d, ReLU and transposed convolution, on the layers of
deconvnets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from backsight import ops
from backsight.sweep.allocator import reuse
from harness import QUICK, Report, alternate, duration, timed


@dataclass(frozen=True)
class Step:
    """One step back: a pool over `side` cells of `channels` channels, then a convolution whose
    output the map is, to `out` channels."""

    name: str
    batch: int
    channels: int
    side: int
    out: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    extra: int = 0  # output padding
    pool: int = 2
    windows: int = 0  # of this many windows of y, if not of whole maps

    @property
    def pooling(self) -> tuple[list[int], list[int], list[int], list[int]]:
        return [self.pool] * 2, [2, 2], [0, 0], [1, 1]

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        return [self.stride] * 2, [self.padding] * 2, [self.extra] * 2


def vgg(batch: int) -> list[Step]:
    layers = [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14)]
    names = ["pool1 to conv1_2", "pool2 to conv2_2", "pool3 to conv3_3", "pool4 to conv4_3"]
    names += ["pool5 to conv5_3"]
    return [
        Step(f"VGG16 {name}", batch, channels, side, channels)
        for name, (channels, side) in zip(names, layers, strict=True)
    ]


MAPS = [
    *vgg(1),
    *vgg(4),
    Step("AlexNet pool1 to conv1", 4, 64, 55, 3, 11, 4, 2, 1, 3),
    Step("AlexNet pool2 to conv2", 4, 192, 27, 64, 5, 1, 2, 0, 3),
    Step("AlexNet pool5 to conv5", 4, 256, 13, 256, 3, 1, 1, 0, 3),
    Step("ZFNet pool1 to conv1", 1, 96, 109, 3, 7, 2, 1, 1, 3),
    Step("ZFNet pool2 to conv2", 1, 256, 25, 96, 5, 2, 0, 0, 3),
    Step("DeconvNet 7", 2, 512, 14, 512),
    Step("SegNet decoder 2", 2, 256, 60, 128),
    Step("SegNet decoder 1", 2, 64, 224, 3),
]
WINDOWS = [
    Step("64 units of VGG16 conv4_3, pool3 to conv3_3", 64, 256, 56, 256, windows=7),
    Step("64 units of VGG16 conv4_1, pool3 to conv3_3", 64, 256, 56, 256, windows=3),
    Step("64 units of VGG16 conv3_3, pool2 to conv2_2", 64, 128, 112, 128, windows=7),
    Step("16 units of VGG16 conv5_3, pool4 to conv4_3", 16, 512, 28, 512, windows=7),
    Step("64 units of AlexNet conv3, pool2 to conv2", 64, 192, 27, 64, 5, 1, 2, 0, 3, 3),
    Step("64 units of AlexNet conv2, pool1 to conv1", 64, 64, 55, 3, 11, 4, 2, 1, 3, 5),
]
SECTION = "unpool_deconv against torch's unpooling, ReLU and transposed convolution"
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def calls(step: Step) -> dict[str, Callable[[], Tensor]]:
    """Our call, our two ops one after the other, and torch's three calls, in both memory formats,
    the weights in that format too."""
    rng = torch.Generator().manual_seed(0)
    maps = 1 if step.windows else step.batch
    x = torch.randn(maps, step.channels, step.side, step.side, generator=rng)
    taps = (step.channels, step.out, step.kernel, step.kernel)
    weight = torch.randn(taps, generator=rng) / math.sqrt(step.channels)
    found: dict[str, Callable[[], Tensor]] = {}
    expected = None
    for name, form in FORMATS.items():
        here, w = x.contiguous(memory_format=form), weight.contiguous(memory_format=form)
        pooled, switches = ops.max_pool(here, *step.pooling)
        places: dict[str, Tensor] = {}
        shape, side = list(pooled.shape), step.side
        if step.windows:
            shape = [step.batch, step.channels, step.windows, step.windows]
            side = (step.windows - 1) * 2 + step.pool
            room = pooled.shape[2] - step.windows
            at = torch.randint(0, room + 1, (step.batch, 2), generator=rng.manual_seed(1))
            places["base_index"] = torch.zeros(step.batch, dtype=torch.int64)
            places |= {"y_at": at, "window_at": 2 * at}
        y = torch.randn(shape, generator=rng.manual_seed(2)).contiguous(memory_format=form)
        size = [side, side]
        indices = torch_indices(step, switches, places, side).contiguous(memory_format=form)

        def ours(
            y: Tensor = y,
            w: Tensor = w,
            switches: Tensor = switches,
            size: list[int] = size,
            places: dict[str, Tensor] = places,
        ) -> Tensor:
            return ops.unpool_deconv(
                *(y, switches, *step.pooling, size, w, None, *step.geometry),
                relu=True,
                mode="set",
                **places,
            )

        def composed(
            y: Tensor = y,
            w: Tensor = w,
            switches: Tensor = switches,
            size: list[int] = size,
            places: dict[str, Tensor] = places,
        ) -> Tensor:
            x = ops.max_unpool(y, switches, *step.pooling, size, "set", True, **places)
            return ops.subpixel_deconv(x, w, None, *step.geometry)

        def theirs(
            y: Tensor = y, w: Tensor = w, indices: Tensor = indices, size: list[int] = size
        ) -> Tensor:
            x = functional.max_unpool2d(y, indices, step.pool, 2, output_size=size).relu_()
            return functional.conv_transpose2d(x, w, None, *step.geometry)

        found |= {f"ours {name}": ours, f"two ops {name}": composed, f"torch {name}": theirs}
        if expected is None:
            exact = ops.max_unpool(y.double(), switches, *step.pooling, size, "set", True, **places)
            expected = functional.conv_transpose2d(exact, weight.double(), None, *step.geometry)
    assert expected is not None
    for name, call in found.items():  # the benchmark is void if it does not compute the same thing
        if name.startswith("torch") and step.pool > 2:  # its last writer is that of any thread
            continue
        assert (call().double() - expected).abs().max() <= 1e-5 * expected.abs().max()
    return found


def torch_indices(step: Step, switches: Tensor, places: dict[str, Tensor], side: int) -> Tensor:
    """The switches as torch's indices into maps of `side` cells; of windows, into those."""
    if places:
        switches = torch.stack(
            [
                switches[0, :, r : r + step.windows, c : c + step.windows]
                for r, c in places["y_at"].tolist()
            ]
        )
    k = switches.long()
    row = torch.arange(switches.shape[2]).view(-1, 1) * 2 + k // step.pool
    column = torch.arange(switches.shape[3]) * 2 + k % step.pool
    return row * side + column


def repeated(function: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            function()

    return run


def measure(step: Step, benchmark: Any = None) -> dict[str, float]:
    """Median seconds of each call."""
    found = calls(step)
    times = max(1, int(4e-3 / min(timed(f) for f in found.values())))
    runs = {name: repeated(f, times) for name, f in found.items()}
    with torch.no_grad(), reuse():
        stats = alternate(runs, 3 if QUICK else 11, benchmark=benchmark)
    return {name: s.median / times for name, s in stats.items()}


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as fast as the faster of torch's two formats, in each format of ours, and
    the two ops in the better of theirs."""
    torchs = min(seconds[f"torch {name}"] for name in FORMATS)
    found = {name: torchs / seconds[f"ours {name}"] for name in FORMATS}
    return found | {"two ops": torchs / min(seconds[f"two ops {name}"] for name in FORMATS)}


@pytest.mark.parametrize("what", ["maps", "windows"])
def test_steps(what: str, report: Report, benchmark: Any) -> None:
    steps = MAPS if what == "maps" else WINDOWS
    found = {}
    for step in steps:
        seconds = measure(step, benchmark if step is steps[-1] else None)
        each = ratios(seconds)
        found[f"{step.name}, batch {step.batch}"] = each
        side = f"{step.windows}² windows" if step.windows else f"{step.side}²"
        report.add(
            f"{SECTION}: {what}",
            {
                "step": step.name,
                "shape": f"{step.batch} x {step.channels} x {side} to {step.out}",
                "taps / stride": f"{step.kernel}² / {step.stride}",
                **{
                    f"{who} {name}": duration(seconds[f"{who} {name}"])
                    for name in FORMATS
                    for who in ("ours", "torch")
                },
                **{f"x torch, {name}": f"{ratio:.2f}" for name, ratio in each.items()},
            },
        )
    row = {"of": what, "steps": str(len(found))}
    for name in (*FORMATS, "two ops"):
        mean = math.exp(sum(math.log(each[name]) for each in found.values()) / len(found))
        worst = min(found, key=lambda step: found[step][name])
        row[f"x torch, {name}"] = f"{mean:.2f} (least {found[worst][name]:.2f}, {worst})"
    report.add(SECTION, row | {"target": ">= 2"})
    report.remark(
        SECTION,
        "fp32, without gradients; glibc keeps freed memory, for both. torch: max_unpool2d with "
        "int64 indices, ReLU in place, conv_transpose2d, in the faster of its two memory formats; "
        "of windows it is given indices into the windows, ready-made. Two ops: max_unpool with "
        "its ReLU, then subpixel_deconv. y is normally distributed: half of it is negative.",
    )


def test_overhead(report: Report, benchmark: Any) -> None:
    """A call whose work is nothing."""
    step = Step("", 1, 4, 4, 4)
    found = calls(step)
    runs = {name: repeated(found[f"{name} contiguous"], 500) for name in ("ours", "torch")}
    with torch.no_grad():
        stats = alternate(runs, 3 if QUICK else 15, benchmark=benchmark)
    report.add(
        f"{SECTION}: a tiny call",
        {name: duration(stats[name].median / 500) for name in runs},
    )
