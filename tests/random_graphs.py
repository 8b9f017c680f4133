"""Random convolutional graphs with an image size and a grid of boxes, all valid by construction.

One drawing routine serves a seeded generator (``seeded_case``) and hypothesis (``graph_cases``),
so that a failure found by either is a printable module and a few numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from architectures import SqueezeExcitation
from nets import Shape, calibrate, random_images
from oracle import grid

T = TypeVar("T")
Size = tuple[int, ...]

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
DECONV = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVG_POOL = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_MAX = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
ADAPTIVE_AVG = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


class Chooser(Protocol):
    def integer(self, low: int, high: int) -> int: ...
    def pick(self, options: Sequence[T]) -> T: ...


class SeededChooser:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)


class DrawnChooser:
    def __init__(self, draw: Callable[[st.SearchStrategy[T]], T]) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))


# --- the pieces that are not plain torch modules -------------------------------------------------


class Functional(nn.Module):
    """An activation called as a function or a tensor method."""

    table: dict[str, Callable[[Tensor], Tensor]] = {  # noqa: RUF012
        "F.relu": F.relu,
        "Tensor.relu": lambda x: x.relu(),
        "relu_": lambda x: x.clone().relu_(),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "clamp": lambda x: x.clamp(-0.5, 1.5),
        "scale": lambda x: 0.7 * x - 0.2,
        "abs": torch.abs,
        "softmax": lambda x: 2 * torch.softmax(x, dim=1),
        "glu": lambda x: F.glu(torch.cat([x, 0.5 - x], dim=1), dim=1),
    }

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.table[self.name](x)

    def extra_repr(self) -> str:
        return self.name


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Concat(nn.Module):
    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Gate(nn.Module):
    """x times a per-pixel gate (a local product of two windows, not squeeze-excitation)."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class Swap(nn.Module):
    """Exchange the two halves of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([second, first], dim=1)


class Shuffle(nn.Module):
    """Channel shuffle by two views and a transpose."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *size = x.shape
        x = x.view(batch, self.groups, channels // self.groups, *size)
        return x.transpose(1, 2).contiguous().view(batch, channels, *size)

    def extra_repr(self) -> str:
        return str(self.groups)


class ChannelsLast(nn.Module):
    """``body``, which works on the last axis, on the channels of a map."""

    def __init__(self, body: nn.Module, dims: int) -> None:
        super().__init__()
        self.body = body
        self.there = (0, *range(2, dims + 2), 1)
        self.back = (0, dims + 1, *range(1, dims + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(self.there)).permute(self.back)


class Squeeze(nn.Module):
    """Squeeze-excitation in any number of axes: a gate a channel, of the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4)
        self.fc2 = nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        cells = list(range(2, x.dim()))
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(cells)))))
        return x * gate[(..., *[None] * len(cells))]


class Pad(nn.Module):
    """F.pad with amounts (first axis's front and back, ...), each axis in turn."""

    def __init__(self, amounts: Sequence[tuple[int, int]], mode: str) -> None:
        super().__init__()
        self.amounts = [n for pair in reversed(amounts) for n in pair]  # torch: last axis first
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "constant":
            return F.pad(x, self.amounts, value=0.3)
        return F.pad(x, self.amounts, mode=self.mode)

    def extra_repr(self) -> str:
        return f"{self.amounts}, {self.mode}"


class Head(nn.Module):
    """Scores from the last map: "gap", "gap_only", "dense" (a map of scores, averaged), "flat" or
    "mlp".
    """

    def __init__(self, kind: str, channels: int, size: Size, outputs: int) -> None:
        super().__init__()
        self.kind = kind
        cells = prod(size)
        if kind == "dense":
            self.fc: nn.Module = CONV[len(size) - 1](channels, outputs, 1)
        elif kind == "gap":
            self.fc = nn.Linear(channels, outputs)
        elif kind == "flat":
            self.fc = nn.Linear(channels * cells, outputs)
        elif kind == "mlp":
            self.fc = nn.Sequential(
                nn.Linear(channels * cells, 12), nn.LeakyReLU(0.1), nn.Linear(12, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "dense":
            return F.leaky_relu(self.fc(x), 0.3).mean(list(range(2, x.dim())))
        if self.kind in ("gap", "gap_only"):
            x = x.mean(list(range(2, x.dim())))
            return x if self.kind == "gap_only" else self.fc(x)
        return self.fc(torch.flatten(x, 1))

    def extra_repr(self) -> str:
        return self.kind


# --- drawing -------------------------------------------------------------------------------------


def pooled(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """Output cells of a convolution or pool along one axis, as torch counts them."""
    room = n + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil:
        return room // stride + 1
    out = -(-room // stride) + 1
    return out - 1 if (out - 1) * stride >= n + padding else out


@dataclass
class Drawing:
    """A graph under construction: where it stands (channels, size) and who chooses."""

    choose: Chooser
    channels: int
    size: Size
    layers: list[nn.Module] = field(default_factory=list)

    @property
    def dims(self) -> int:
        return len(self.size)

    def per_axis(self, low: int, high: int) -> Size:
        """One number for all axes, or now and then one each."""
        if self.choose.integer(0, 2):
            return (self.choose.integer(low, high),) * self.dims
        return tuple(self.choose.integer(low, high) for _ in range(self.dims))

    def activation(self) -> nn.Module:
        return self.choose.pick(ACTIVATIONS)()

    def window(self, max_kernel: int, pool: bool, ceil: bool) -> tuple[Size, Size, Size, Size]:
        """(kernel, stride, padding, dilation) that leave at least one cell on every axis."""
        kernel = list(self.per_axis(1, max_kernel))
        dilation = list(self.per_axis(1, 2))
        stride = list(self.per_axis(1, 3))
        padding = list(self.per_axis(0, 2))
        for axis, n in enumerate(self.size):
            if pool:  # torch wants a pool's padding to be at most half its kernel
                padding[axis] = min(padding[axis], kernel[axis] // 2)
            while dilation[axis] * (kernel[axis] - 1) + 1 > n:
                dilation[axis] = 1
                kernel[axis] = min(kernel[axis], n)
            if pool:
                padding[axis] = min(padding[axis], kernel[axis] // 2)
            while pooled(n, kernel[axis], stride[axis], padding[axis], dilation[axis], ceil) < 3:
                if stride[axis] == 1:
                    break
                stride[axis] -= 1  # keep the maps from vanishing after two layers
        return tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)

    def conv(self) -> None:
        kernel, stride, padding, dilation = self.window(5 if self.dims < 3 else 3, False, False)
        groups = self.choose.pick((1, 1, 1, 2, self.channels))
        groups = groups if self.channels % groups == 0 else 1
        outputs = self.channels if groups > 2 else self.choose.pick((4, 6, 8))
        bias = bool(self.choose.integer(0, 1))
        self.layers.append(
            CONV[self.dims - 1](
                self.channels, outputs, kernel, stride, padding, dilation, groups, bias
            )
        )
        if not bias or self.choose.integer(0, 1):
            self.layers.append(NORM[self.dims - 1](outputs))
        self.channels = outputs
        self.resize(kernel, stride, padding, dilation, False)
        if self.choose.integer(0, 3):
            self.layers.append(self.activation())

    def resize(self, kernel: Size, stride: Size, padding: Size, dilation: Size, ceil: bool) -> None:
        self.size = tuple(
            pooled(n, k, s, p, d, ceil)
            for n, k, s, p, d in zip(self.size, kernel, stride, padding, dilation, strict=True)
        )

    def max_pool(self) -> None:
        ceil = bool(self.choose.integer(0, 1))
        kernel, stride, padding, dilation = self.window(3, True, ceil)
        self.layers.append(MAX_POOL[self.dims - 1](kernel, stride, padding, dilation, False, ceil))
        self.resize(kernel, stride, padding, dilation, ceil)

    def avg_pool(self) -> None:
        ceil = bool(self.choose.integer(0, 1))
        kernel, stride, padding, _ = self.window(3, True, ceil)
        ones = (1,) * self.dims
        # Without the dilation that window() may have reckoned with, there is only more room.
        more: dict[str, Any] = {"count_include_pad": bool(self.choose.integer(0, 1))}
        if self.dims > 1 and self.choose.integer(0, 2) == 0:  # torch: not in 1-D
            more["divisor_override"] = self.choose.integer(1, 6)
        self.layers.append(AVG_POOL[self.dims - 1](kernel, stride, padding, ceil, **more))
        self.resize(kernel, stride, padding, ones, ceil)

    def adaptive(self) -> None:
        if max(self.size) > 12:  # a pool over much of the image leaves nothing to window
            return self.conv()
        size = tuple(self.choose.integer(2, max(2, n)) for n in self.size)
        kind = self.choose.pick((ADAPTIVE_MAX, ADAPTIVE_AVG))
        self.layers.append(kind[self.dims - 1](size[0] if self.dims == 1 else size))
        self.size = size
        return None

    def same(self, outputs: int, stride: int) -> nn.Module:
        """A branch whose map has ceil(n / stride) cells, whatever it is."""
        conv, d = CONV[self.dims - 1], self.dims - 1
        kind = self.choose.integer(0, 4)
        if kind == 0:
            return conv(self.channels, outputs, 1, stride)
        if kind == 1:
            return nn.Sequential(
                conv(self.channels, outputs, 3, stride, 1, bias=False), NORM[d](outputs)
            )
        if kind == 2:
            return nn.Sequential(
                conv(self.channels, outputs, 3, 1, 2, 2),
                self.activation(),
                conv(outputs, outputs, 3, stride, 1),
            )
        pool: nn.Module
        if kind == 3 or min(self.size) < 3:  # torch's 3-D average pool wants room for its kernel
            pool = MAX_POOL[d](3, stride, 1)
        else:
            pool = AVG_POOL[d](3, stride, 1, count_include_pad=bool(self.choose.integer(0, 1)))
        return nn.Sequential(pool, conv(self.channels, outputs, 1))

    def stepped(self, stride: int) -> None:
        self.size = tuple(-(-n // stride) for n in self.size)

    def residual(self) -> None:
        stride = 2 if min(self.size) >= 6 and self.choose.integer(0, 2) == 0 else 1
        if stride == 1 and self.choose.integer(0, 1):
            body: nn.Module = self.same(self.channels, 1)
            shortcut: nn.Module = nn.Identity()
        else:
            outputs = self.choose.pick((4, 6, 8))
            body, shortcut = self.same(outputs, stride), self.same(outputs, stride)
            self.channels = outputs
        self.layers.append(Residual(body, shortcut))
        self.stepped(stride)
        self.layers.append(self.activation())

    def concat(self) -> None:
        stride = 2 if min(self.size) >= 6 and self.choose.integer(0, 2) == 0 else 1
        outputs = [self.choose.pick((2, 4)) for _ in range(self.choose.integer(2, 3))]
        branches = [self.same(n, stride) for n in outputs]
        if stride == 1 and self.choose.integer(0, 2) == 0:
            branches.append(nn.Identity())
            outputs.append(self.channels)
        self.layers.append(Concat(branches))
        self.channels = sum(outputs)
        self.stepped(stride)

    def gate(self) -> None:
        self.layers.append(Gate(CONV[self.dims - 1](self.channels, self.channels, 3, padding=1)))

    def swap(self) -> None:
        if self.channels % 2 == 0:
            self.layers.append(Swap())

    def norm(self) -> None:
        self.layers += [NORM[self.dims - 1](self.channels), self.activation()]

    def group_norm(self) -> None:
        groups = self.choose.pick([g for g in (1, 2, 4) if self.channels % g == 0])
        self.layers += [nn.GroupNorm(groups, self.channels), self.activation()]

    def response_norm(self) -> None:
        size, alpha = self.choose.integer(2, 5), self.choose.pick((0.3, 2.0))
        self.layers.append(nn.LocalResponseNorm(size, alpha, k=self.choose.pick((1.0, 2.0))))

    def squeeze(self) -> None:
        if self.dims == 2 and self.choose.integer(0, 1):
            self.layers.append(SqueezeExcitation(self.channels, 4))
        else:
            self.layers.append(Squeeze(self.channels))

    def shuffle(self) -> None:
        groups = [g for g in (2, 3, 4) if self.channels % g == 0 and self.channels > g]
        if groups:
            self.layers.append(Shuffle(self.choose.pick(groups)))

    def channels_last(self) -> None:
        """ConvNeXt's block, or its layer norm alone."""
        c = self.channels
        body: list[nn.Module] = [nn.LayerNorm(c, eps=1e-6)]
        whole = bool(self.choose.integer(0, 2))
        if whole:
            hidden = self.choose.pick((4, 8))
            body += [nn.Linear(c, hidden), nn.GELU(), nn.Linear(hidden, c)]
        block = ChannelsLast(nn.Sequential(*body), self.dims)
        residual = whole and self.choose.integer(0, 1)
        self.layers.append(Residual(block, nn.Identity()) if residual else block)

    def has_room(self, factor: float) -> bool:
        """Whether the map may still grow so many times along every axis."""
        return prod(n * factor for n in self.size) <= MAX_CELLS

    def deconv(self) -> None:
        stride = self.per_axis(1, 2)
        if not self.has_room(max(stride)):
            return self.conv()
        kernel, dilation = self.per_axis(1, 4 if self.dims < 3 else 3), self.per_axis(1, 2)
        padding = [
            self.choose.integer(0, min(2, d * (k - 1) // 2))
            for k, d in zip(kernel, dilation, strict=True)
        ]
        over = [
            self.choose.integer(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)
        ]
        groups = 2 if self.channels % 2 == 0 and self.choose.integer(0, 2) == 0 else 1
        outputs, bias = self.choose.pick((4, 6)), bool(self.choose.integer(0, 1))
        self.layers.append(
            DECONV[self.dims - 1](
                self.channels, outputs, kernel, stride, padding, over, groups, bias, dilation
            )
        )
        self.channels = outputs
        self.size = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, s, p, d, k, o in zip(
                self.size, stride, padding, dilation, kernel, over, strict=True
            )
        )
        if self.choose.integer(0, 2):
            self.layers.append(NORM[self.dims - 1](outputs))
        if self.choose.integer(0, 2):
            self.layers.append(self.activation())
        return None

    def upsample(self) -> None:
        if not self.has_room(2):
            return self.conv()
        mode = self.choose.pick(("nearest", ("linear", "bilinear", "trilinear")[self.dims - 1]))
        if self.choose.integer(0, 1):
            factor: float | None = self.choose.pick((2.0, 2.0, 1.5))
            size, grown = None, tuple(int(n * factor) for n in self.size)
        else:
            factor, grown = None, tuple(self.choose.integer(n, 2 * n) for n in self.size)
            size = grown
        corners = None if mode == "nearest" else bool(self.choose.integer(0, 1))
        self.layers.append(nn.Upsample(size, factor, mode, corners))
        self.size = grown
        return None

    def pad(self) -> None:
        mode = self.choose.pick(("constant", "reflect", "replicate", "circular"))
        amounts = [
            (self.choose.integer(0, min(2, n - 1)), self.choose.integer(0, min(2, n - 1)))
            for n in self.size
        ]
        if not any(map(any, amounts)) or not self.has_room(1.5):
            return self.conv()
        self.layers.append(Pad(amounts, mode))
        self.size = tuple(n + a + b for n, (a, b) in zip(self.size, amounts, strict=True))
        return None

    def padded_conv(self) -> None:
        """A convolution that keeps the size by another padding than zeros."""
        mode = self.choose.pick(("reflect", "replicate", "circular"))
        padding = 1 if min(self.size) > 1 else 0
        outputs = self.choose.pick((4, 6))
        self.layers.append(
            CONV[self.dims - 1](
                self.channels, outputs, 1 + 2 * padding, padding=padding, padding_mode=mode
            )
        )
        self.layers.append(self.activation())
        self.channels = outputs

    def pixel_shuffle(self) -> None:
        """Depth to space or, where two divides the size, space to depth."""
        if self.dims == 2 and self.channels % 4 == 0 and self.has_room(2):
            self.layers.append(nn.PixelShuffle(2))
            self.channels //= 4
            self.size = tuple(2 * n for n in self.size)
            return None
        if self.dims == 2 and self.channels <= 8 and not any(n % 2 for n in self.size):
            self.layers.append(nn.PixelUnshuffle(2))
            self.channels *= 4
            self.size = tuple(n // 2 for n in self.size)
            return None
        return self.conv()


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.ReLU6,
    lambda: nn.LeakyReLU(0.1),
    nn.Sigmoid,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.PReLU,
    nn.ELU,
    nn.Mish,
    nn.Softplus,
    *(lambda name=name: Functional(name) for name in Functional.table),
)

# Drawn evenly; what stands several times is what networks are made of.
STEPS = (
    *(Drawing.conv,) * 4,
    *(Drawing.max_pool, Drawing.avg_pool) * 2,
    *(Drawing.residual, Drawing.concat) * 2,
    Drawing.gate,
    Drawing.swap,
    Drawing.norm,
    Drawing.adaptive,
    Drawing.deconv,
    Drawing.upsample,
    Drawing.pad,
    Drawing.padded_conv,
    Drawing.shuffle,
    Drawing.channels_last,
    Drawing.response_norm,
    Drawing.pixel_shuffle,
)
# They leave no windows behind them, so few graphs get one, and at most one.
BARRIERS = (Drawing.squeeze, Drawing.group_norm)

MAX_CELLS = 1600  # of a map, when it grows


@dataclass(frozen=True, eq=False)
class GraphCase:
    """A calibrated random model (fp32, eval) with images (I, C, *S) and boxes (P, 2*D) to try.

    window, stride and edge describe the grid of boxes; None when the boxes are arbitrary.
    """

    model: nn.Module
    images: Tensor
    boxes: Tensor
    window: Size | None
    stride: Size | None
    edge: str
    baseline: float | Tensor

    def __repr__(self) -> str:
        boxes = self.boxes.tolist() if self.window is None else f"{len(self.boxes)} boxes"
        return (
            f"images {tuple(self.images.shape)}, window {self.window}, stride {self.stride}, "
            f"edge {self.edge}, {boxes}, baseline {self.baseline}, {self.model}"
        )


MAX_POSITIONS = 40


def draw_case(choose: Chooser) -> GraphCase:
    dims = choose.pick((2, 2, 2, 2, 1, 3))
    low, high = {1: (12, 60), 2: (8, 30), 3: (5, 10)}[dims]
    shape: Shape = (choose.integer(1, 3), *(choose.integer(low, high) for _ in range(dims)))
    weight_seed = choose.integer(0, 10_000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weight_seed)
        drawing = Drawing(choose, shape[0], shape[1:])
        drawing.conv()
        count = choose.integer(1, 6)
        barrier = choose.integer(0, count - 1) if choose.integer(0, 5) == 0 else None
        for step in range(count):
            choose.pick(BARRIERS if step == barrier else STEPS)(drawing)
        kind = choose.pick(("gap", "gap", "flat", "flat", "gap_only", "dense", "mlp"))
        head = Head(kind, drawing.channels, drawing.size, 5)
        model = nn.Sequential(*drawing.layers, head)
    model = calibrate(model, random_images(shape, 16, seed=weight_seed), weight_seed)
    images = random_images(shape, choose.integer(1, 2), seed=weight_seed + 1)

    baseline: float | Tensor = choose.pick((0.0, -1.5))
    if choose.integer(0, 3) == 0:
        baseline = images.mean(list(range(2, images.dim())), keepdim=True)
    if choose.integer(0, 3) == 0:  # arbitrary boxes, one of them the whole image
        rows = [[0] * dims + list(shape[1:])]
        for _ in range(choose.integer(1, 12)):
            starts = [choose.integer(0, n - 1) for n in shape[1:]]
            stops = [choose.integer(a + 1, n) for a, n in zip(starts, shape[1:], strict=True)]
            rows.append(starts + stops)
        return GraphCase(model, images, torch.tensor(rows), None, None, "", baseline)
    edge = choose.pick(("clip", "clip", "inside", "drop", "overhang"))
    window, stride = [], []
    budget = MAX_POSITIONS
    for n in shape[1:]:
        most = max(1, round(budget ** (1 / dims)))  # positions this axis may have
        window.append(choose.integer(1, choose.pick((max(1, n // 4), max(1, n // 2), n))))
        # No stride larger than the window: every pixel should lie in some box.
        least = -(-n // most)
        window[-1] = max(window[-1], least)
        stride.append(choose.integer(least, window[-1]))
    boxes = grid(shape[1:], window, stride, edge)
    return GraphCase(model, images, boxes, tuple(window), tuple(stride), edge, baseline)


def seeded_case(seed: int) -> GraphCase:
    """The case of this seed; the same on every machine with the same torch."""
    return draw_case(SeededChooser(seed))


@st.composite
def graph_cases(draw: Callable[[st.SearchStrategy[T]], T]) -> GraphCase:
    return draw_case(DrawnChooser(draw))
