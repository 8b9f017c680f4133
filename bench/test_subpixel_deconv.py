"""subpixel_deconv against torch's transposed convolution, on layers of real networks."""

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
from backsight.ops.packs import KeptFilter
from backsight.sweep.allocator import reuse
from harness import QUICK, Report, alternate, duration, timed


@dataclass(frozen=True)
class Layer:
    """One layer: x (batch, in, *size), weight (in, out / groups, *kernel)."""

    name: str
    x: tuple[int, ...]
    out: int
    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int = 0
    extra: int = 0  # output padding
    groups: int = 1

    def each(self, value: int | tuple[int, ...]) -> list[int]:
        return [value] * (len(self.x) - 2) if isinstance(value, int) else list(value)

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.x[1], self.out // self.groups, *self.each(self.kernel))


FAMILIES = {
    "dense": [
        Layer("DCGAN 1", (16, 100, 1, 1), 512, 4, 1),
        Layer("DCGAN 2", (16, 512, 4, 4), 256, 4, 2, 1),
        Layer("DCGAN 3", (16, 256, 8, 8), 128, 4, 2, 1),
        Layer("DCGAN 4", (16, 128, 16, 16), 64, 4, 2, 1),
        Layer("StyleGAN 32", (4, 512, 16, 16), 512, 3, 2),
        Layer("StyleGAN 128", (2, 256, 64, 64), 128, 3, 2),
        Layer("U-Net 1", (1, 1024, 28, 28), 512, 2, 2),
        Layer("U-Net 2", (1, 512, 56, 56), 256, 2, 2),
        Layer("U-Net 4", (1, 128, 196, 196), 64, 2, 2),
        Layer("nnU-Net 2-D, 1", (4, 512, 8, 8), 512, 2, 2),
        Layer("nnU-Net 2-D, 5", (4, 64, 128, 128), 32, 2, 2),
        Layer("nnU-Net 3-D, 2", (1, 256, 8, 8, 8), 128, 2, 2),
        Layer("nnU-Net 3-D, 5", (1, 64, 32, 48, 48), 32, (1, 2, 2), (1, 2, 2)),
        Layer("pose head", (4, 256, 16, 12), 256, 4, 2, 1),
    ],
    "few channels": [
        Layer("AlexNet conv1 back", (2, 64, 55, 55), 3, 11, 4, 2, 1),
        Layer("ResNet conv1 back", (2, 64, 112, 112), 3, 7, 2, 3, 1),
        Layer("ZFNet conv1 back", (1, 96, 110, 110), 3, 7, 2, 1),
        Layer("DCGAN 5", (16, 64, 32, 32), 3, 4, 2, 1),
        Layer("DCGAN 5, grey", (16, 64, 14, 14), 1, 4, 2, 1),
        Layer("FSRCNN x4", (1, 56, 90, 120), 1, 9, 4, 4, 3),
        Layer("FSRCNN x3", (1, 56, 90, 120), 1, 9, 3, 4, 2),
        Layer("patch 16 head", (2, 192, 14, 14), 3, 16, 16),
    ],
    "depthwise and grouped": [
        Layer("FCN-32s", (1, 21, 17, 17), 21, 64, 32, 0, 0, 21),
        Layer("FCN-8s", (1, 21, 65, 65), 21, 16, 8, 0, 0, 21),
        Layer("FCN-16s", (1, 21, 33, 33), 21, 4, 2, 0, 0, 21),
        Layer("DLA up x2", (2, 64, 64, 64), 64, 4, 2, 1, 0, 64),
        Layer("DLA up x4", (2, 64, 32, 32), 64, 8, 4, 2, 0, 64),
        Layer("depthwise 3x3", (4, 128, 28, 28), 128, 3, 2, 1, 1, 128),
        Layer("32 groups of 4", (2, 128, 56, 56), 128, 4, 2, 1, 0, 32),
        Layer("32 groups of 8", (2, 256, 28, 28), 256, 4, 2, 1, 0, 32),
        Layer("depthwise 3-D", (1, 32, 16, 32, 32), 32, 4, 2, 1, 0, 32),
    ],
    "1-D": [
        Layer("WaveGAN 1", (16, 1024, 16), 512, 25, 4, 11, 1),
        Layer("WaveGAN 3", (16, 256, 256), 128, 25, 4, 11, 1),
        Layer("WaveGAN 5", (16, 64, 4096), 1, 25, 4, 11, 1),
        Layer("HiFi-GAN 1", (1, 512, 128), 256, 16, 8, 4),
        Layer("HiFi-GAN 2", (1, 256, 1024), 128, 16, 8, 4),
        Layer("HiFi-GAN 3", (1, 128, 8192), 64, 4, 2, 1),
        Layer("HiFi-GAN 4", (1, 64, 16384), 32, 4, 2, 1),
    ],
    "stride 1": [
        Layer("DeconvNet 14", (2, 512, 14, 14), 512, 3, 1, 1),
        Layer("DeconvNet 112", (2, 64, 112, 112), 64, 3, 1, 1),
        Layer("SegNet head", (2, 64, 112, 112), 3, 3, 1, 1),
        Layer("VGG conv1_1 back", (1, 64, 224, 224), 3, 3, 1, 1),
    ],
}
SECTION = "subpixel_deconv against torch's transposed convolution"
TARGETS = {
    "dense": "contiguous >= 1.3 mean, channels last >= 0.97",
    "few channels": ">= 2.5",
    "depthwise and grouped": ">= 8",
    "1-D": ">= 1.5",
    "stride 1": ">= 0.97",
}
CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def calls(layer: Layer) -> tuple[dict[str, Callable[[], Tensor]], str]:
    """Our call and torch's in both memory formats, the weights of torch's in that format too; and
    the path that ours takes in each."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(layer.x, generator=rng)
    w = torch.randn(layer.weight, generator=rng) / math.sqrt(x.shape[1])
    b = torch.randn(layer.out, generator=rng)
    args = [layer.each(v) for v in (layer.stride, layer.padding, layer.extra)]
    peer = CONV_TRANSPOSE[x.dim() - 2]
    found: dict[str, Callable[[], Tensor]] = {}
    filters = KeptFilter(), KeptFilter()
    paths = []
    for name, form in (("contiguous", torch.clone), ("channels last", channels_last)):
        if name == "channels last" and x.dim() == 3:  # torch knows it from two axes on
            continue
        here, weight = form(x), form(w)
        found[f"ours {name}"] = lambda x=here, w=weight: ops.subpixel_deconv(
            x, w, b, *args, layer.groups
        )
        # As a module calls it, which keeps its filter from call to call.
        kept = filters[name == "channels last"]
        found[f"module {name}"] = lambda x=here, w=weight, kept=kept: ops.subpixel_deconv(
            x, w, b, *args, layer.groups, kept=kept
        )
        found[f"torch {name}"] = lambda x=here, w=weight: peer(x, w, b, *args, layer.groups)
        paths.append(ops.deconv_path(here, weight, b, *args, layer.groups))
    expected = peer(x.double(), w.double(), b.double(), *args, layer.groups)
    for call in found.values():  # the benchmark is void if it does not compute the same thing
        assert (call().double() - expected).abs().max() <= 1e-5 * expected.abs().max()
    return found, " / ".join(dict.fromkeys(paths))


def repeated(function: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            function()

    return run


def measure(layer: Layer, benchmark: Any = None) -> tuple[dict[str, float], str]:
    """Median seconds of each call, and the paths."""
    found, paths = calls(layer)
    times = max(1, int(4e-3 / min(timed(f) for f in found.values())))
    runs = {name: repeated(f, times) for name, f in found.items()}
    with torch.no_grad(), reuse():
        stats = alternate(runs, 3 if QUICK else 15, benchmark=benchmark)
    return {name: s.median / times for name, s in stats.items()}, paths


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as fast as torch in each of the caller's formats, and best against best."""
    formats = [name for name in FORMATS if f"ours {name}" in seconds]
    pairs = {name: seconds[f"torch {name}"] / seconds[f"ours {name}"] for name in formats}
    best = {who: min(seconds[f"{who} {name}"] for name in formats) for who in CALLERS}
    return pairs | {
        "better format": best["torch"] / best["ours"],
        "in modules": best["torch"] / best["module"],
    }


CALLERS = ("ours", "module", "torch")
FORMATS = ("contiguous", "channels last")


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, report: Report, benchmark: Any) -> None:
    found = {}
    for layer in FAMILIES[family]:
        last = layer is FAMILIES[family][-1]
        seconds, path = measure(layer, benchmark if last else None)
        found[layer.name] = ratios(seconds)
        report.add(
            f"{SECTION}: layers",
            {
                "layer": f"{layer.name}, {'x'.join(map(str, layer.x))} to {layer.out}",
                "kernel / stride": f"{layer.kernel} / {layer.stride}",
                "path": path,
                **{
                    f"{who} {name}": duration(seconds[f"{who} {name}"])
                    if f"{who} {name}" in seconds
                    else "-"
                    for name in FORMATS
                    for who in CALLERS
                },
                "x torch's better": f"{found[layer.name]['better format']:.2f}",
            },
        )
    row = {"family": family, "layers": str(len(found))}
    for name in (*FORMATS, "better format", "in modules"):
        each = {layer: values[name] for layer, values in found.items() if name in values}
        if not each:
            row[f"x torch, {name}"] = "-"
            continue
        mean = math.exp(sum(map(math.log, each.values())) / len(each))
        worst = min(each, key=each.__getitem__)
        row[f"x torch, {name}"] = f"{mean:.2f} (least {each[worst]:.2f}, {worst})"
    report.add(SECTION, row | {"target": TARGETS[family]})
    report.remark(
        SECTION,
        "fp32, without gradients, with bias; glibc keeps freed memory, for both. Geometric means "
        "over the family: in the caller's format, torch's weights in that format too, and the "
        "faster format of ours against the faster of torch's; in modules, which keep large filters "
        "in oneDNN's layout, the same.",
    )


def test_overhead(report: Report, benchmark: Any) -> None:
    """A call whose work is nothing."""
    x, w = torch.randn(1, 4, 2, 2), torch.randn(4, 4, 2, 2)
    pair = {
        "ours": repeated(lambda: ops.subpixel_deconv(x, w, None, [2, 2]), 1000),
        "torch": repeated(lambda: functional.conv_transpose2d(x, w, None, 2), 1000),
    }
    with torch.no_grad():
        stats = alternate(pair, 3 if QUICK else 15, benchmark=benchmark)
    over = (stats["ours"].median - stats["torch"].median) / 1000
    report.add(
        f"{SECTION}: a tiny call",
        {
            "ours": duration(stats["ours"].median / 1000),
            "torch": duration(stats["torch"].median / 1000),
            "ours - torch": f"{over * 1e6:.1f} µs",
            "target": "<= 4 µs",
        },
    )
