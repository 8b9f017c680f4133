"""The two floors of an occlusion sweep: multiply-adds and bytes of exact windows.

``python bench/floors.py`` prints them for every case of the benchmark, with the times they come to
at the rates of this machine.

Reckoned from the layers alone (torch.fx and interval arithmetic), independently of the package, so
that the plan's own numbers have something to be compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Floors:
    """Of one sweep of one image, summed over all positions.

    plain: multiply-adds of running every occluded image whole.
    windows: multiply-adds when each layer computes only the outputs that can have changed.
    base: multiply-adds of the one pass over the unoccluded image that windows need.
    bytes: each layer's window read and written once in fp32, and all weights read once.
    """

    positions: int
    plain: float
    windows: float
    bytes: float

    @property
    def base(self) -> float:
        return self.plain / self.positions

    @property
    def ratio(self) -> float:
        return self.plain / (self.windows + self.base)


class _Walker(fx.Interpreter):
    """Runs the model on meta tensors and carries, beside each one, the window of each position."""

    def __init__(self, module: fx.GraphModule, boxes: np.ndarray) -> None:
        super().__init__(module)
        dims = boxes.shape[1] // 2
        self.box: list[Interval] = [(boxes[:, d], boxes[:, dims + d]) for d in range(dims)]
        self.windows: dict[fx.Node, list[Interval]] = {}
        self.positions = len(boxes)
        self.plain = self.changed = self.bytes = 0.0

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        sources = [self.windows[arg] for arg in node.all_input_nodes if arg in self.windows]
        if node.op == "placeholder":
            self.windows[node] = self.box
            return result
        if not isinstance(result, Tensor) or not sources:
            return result
        window = [hull(per_axis) for per_axis in zip(*sources, strict=True)]
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            self.plain += self.positions * module.weight.numel()
            self.changed += self.positions * module.weight.numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            window = [(np.zeros_like(a), np.full_like(b, 10**9)) for a, b in window]
        elif isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            before = window
            window = slide(module, before, result.shape[2:])
            if isinstance(module, nn.Conv2d):
                per_cell = module.weight.numel()
                out_cells = area(window)
                self.plain += self.positions * per_cell * result.shape[2:].numel()
                self.changed += float((per_cell * out_cells).sum())
                elements = module.in_channels * area(before) + module.out_channels * out_cells
                self.bytes += 4 * float(elements.sum())
        self.windows[node] = window
        return result


def area(window: list[Interval]) -> np.ndarray:
    cells = np.ones(1)
    for start, stop in window:
        cells = cells * np.maximum(stop - start, 0)
    return cells


def hull(intervals: Sequence[Interval]) -> Interval:
    """The smallest interval that holds all."""
    starts, stops = zip(*intervals, strict=True)
    return np.minimum.reduce(starts), np.maximum.reduce(stops)


def slide(module: Any, window: list[Interval], size: Sequence[int]) -> list[Interval]:
    """The outputs of a convolution or pool that read any cell of ``window``."""

    def axis(value: int | tuple[int, ...], d: int) -> int:
        return value if isinstance(value, int) else value[d]

    result = []
    for d, (start, stop) in enumerate(window):
        kernel, stride = axis(module.kernel_size, d), axis(module.stride, d)
        padding, dilation = axis(module.padding, d), axis(getattr(module, "dilation", 1), d)
        reach = dilation * (kernel - 1) + 1
        first = -(
            (reach - 1 - padding - start) // stride
        )  # ceil((start + padding - reach + 1) / s)
        last = (stop - 1 + padding) // stride
        result.append((np.clip(first, 0, size[d]), np.clip(last + 1, 0, size[d])))
    return result


def floors(model: nn.Module, image_size: tuple[int, int], boxes: Tensor) -> Floors:
    """The floors of sweeping ``boxes`` (P, 4) over one (3, *image_size) image."""
    traced = fx.symbolic_trace(copy.deepcopy(model).to("meta").eval())
    walker = _Walker(traced, boxes.numpy())
    walker.run(torch.empty(1, 3, *image_size, device="meta"))
    weights = 4 * sum(p.numel() for p in model.parameters())
    return Floors(len(boxes), walker.plain, walker.changed, walker.bytes + weights)


def matmul_rate() -> float:
    """Floating-point operations a second of a large fp32 matrix product."""
    from harness import alternate

    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    out = torch.empty(2048, 2048)
    stats = alternate({"matmul": lambda: torch.mm(a, b, out=out)}, rounds=7, warmup=2)
    return 2 * 2048**3 / stats["matmul"].median


def copy_rate() -> float:
    """Bytes a second, read and written, of copy_ outside the caches."""
    from harness import Copy, alternate

    copy_ = Copy()
    return copy_.bytes_moved / alternate({"copy": copy_}, rounds=7, warmup=2)["copy"].median


def main() -> None:
    from harness import duration, machine_line
    from oracle import grid
    from test_occlusion import CASES

    flops, bandwidth = matmul_rate(), copy_rate()
    print(f"{machine_line()}; {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s\n")
    print(
        "| case | positions | plain GMAC | windows GMAC | base GMAC | ratio, base counted | GB "
        "| FLOP floor | byte floor |"
    )
    print("|" + "---|" * 9)
    for case in CASES:
        with torch.device("meta"):
            model = case.factory()
        size, stride = (case.size,) * 2, (case.stride,) * 2
        f = floors(model, size, grid(size, (case.window,) * 2, stride, case.edge))
        print(
            f"| {case.label} | {f.positions} | {f.plain / 1e9:.0f} | {f.windows / 1e9:.0f} "
            f"| {f.base / 1e9:.1f} | {f.ratio:.1f} | {f.bytes / 1e9:.2f} "
            f"| {duration(2 * (f.windows + f.base) / flops)} "
            f"| {duration(f.bytes / bandwidth)} |"
        )


if __name__ == "__main__":
    main()
