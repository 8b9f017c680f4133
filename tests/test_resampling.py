"""Operations that change a map's geometry: their axis rules, replay, and drops on windows."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import backsight
from backsight.graph import Graph, capture, fold_batch_norms
from backsight.graph.kinds import Barrier, BatchNorm
from backsight.graph.resampling import ConvTranspose
from backsight.sweep.tail import linear_tail
from oracle import occluded, oracle
from test_geometry import check_forward, check_windows, reads
from test_occlusion_oracle import (
    PROVIDERS,
    assert_drops,
    boxes_of_every_kind,
    every_window_size,
    reading_from,
)

CPU = torch.device("cpu")
FP32, FP64 = torch.float32, torch.float64
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

Operation = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Convolutions and ReLUs in front of an operation and behind it; scores, or a dense output."""

    def __init__(self, operation: Operation, shape: Sequence[int], dense: bool = False) -> None:
        super().__init__()
        self.operation = copy.deepcopy(operation)
        torch.manual_seed(0)
        # Some operations were made at import, from whatever state the generator was in.
        getattr(self.operation, "reset_parameters", lambda: None)()
        axes = len(shape) - 1
        self.first = CONV[axes](shape[0], 4, 3, padding=1)
        with torch.no_grad():
            channels = operation(self.first(torch.zeros(1, *shape))).shape[1]
        self.last = CONV[axes](channels, 3, 3 if axes < 3 else 2, padding=1)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        y = self.operation(F.relu(self.first(x)))
        if self.dense:
            return y
        return F.relu(self.last(y)).mean(tuple(range(2, y.dim())))


def images_of(shape: Sequence[int], count: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator) * 0.5 + 0.3


def check_replay(model: nn.Module, shape: Sequence[int], dtype: torch.dtype = FP32) -> Graph:
    """Replay equals the model bit for bit."""
    graph = capture(model, tuple(shape), dtype, CPU)
    for count in (1, 2, 7):
        images = images_of(shape, count, seed=count).to(dtype)
        with torch.no_grad():
            own = model(images)
            assert own.abs().max() > 0
            assert torch.equal(graph(images), own)
    return graph


def check_drops(model: nn.Module, shape: Sequence[int], merged: bool = False) -> None:
    """Drops in fp32 and fp64, on whole maps and tiles, for boxes of every kind."""
    images = images_of(shape)
    kinds = boxes_of_every_kind(tuple(shape[1:]))
    # A single pixel may be one that the operation leaves out.
    pixels = kinds.pop("pixel")
    kinds = {"pixels": torch.cat([pixels, kinds.pop("small")]), **kinds}
    boxes = torch.cat(list(kinds.values()))
    base, drops = oracle(model, images, boxes, baseline=0.1)
    shape_of = base.shape[1:]
    base, drops = base.flatten(1), drops.flatten(2)
    for dtype in (FP32, FP64):
        for provider in PROVIDERS:
            exact = contextlib.nullcontext() if merged else every_window_size()
            with exact, reading_from(provider):
                result = backsight.occlusion(
                    model.to(dtype), images.to(dtype), boxes=boxes, baseline=0.1
                )
            plan = result.plan.as_dict()
            assert plan["method"] == "windows", plan["reason"]
            assert plan["barriers"] == []
            assert result.drops.shape[-1] == prod(shape_of)
            assert_drops(result, base, drops, dtype, kinds)
    model.float()


def up(**how: object) -> Operation:
    return lambda x: F.interpolate(x, **how)  # type: ignore[arg-type]


def pad(sizes: Sequence[int], mode: str = "constant", value: float | None = None) -> Operation:
    return lambda x: F.pad(x, list(sizes), mode, value)


LINE, PLANE, SPACE = (3, 29), (3, 19, 14), (2, 7, 9, 8)

OPERATIONS: dict[str, tuple[Operation, Sequence[int]]] = {
    "pad": (pad((1, 2, 0, 3)), PLANE),
    "pad value": (pad((3, 1, 2, 2), value=-1.5), PLANE),
    "pad crops": (pad((-2, 3, 1, -4), value=0.7), PLANE),
    "pad channels": (pad((1, 0, 0, 1, 2, 1), value=0.2), PLANE),
    "ConstantPad1d": (nn.ConstantPad1d((2, 3), 0.4), LINE),
    "ZeroPad3d": (nn.ZeroPad3d(1), SPACE),
    "ReflectionPad1d": (nn.ReflectionPad1d((3, 5)), LINE),
    "ReflectionPad2d": (nn.ReflectionPad2d((3, 0, 1, 4)), PLANE),
    "ReflectionPad3d": (nn.ReflectionPad3d(2), SPACE),
    "ReplicationPad1d": (nn.ReplicationPad1d((4, 2)), LINE),
    "ReplicationPad2d": (nn.ReplicationPad2d((3, 0, 1, 4)), PLANE),
    "ReplicationPad3d": (nn.ReplicationPad3d(1), SPACE),
    "CircularPad1d": (nn.CircularPad1d((4, 2)), LINE),
    "CircularPad2d": (nn.CircularPad2d((3, 0, 1, 4)), PLANE),
    "CircularPad3d": (nn.CircularPad3d(1), SPACE),
    "reflect crops": (pad((-2, 3, 1, -4), "reflect"), PLANE),
    "replicate crops": (pad((-2, 3, 1, -4), "replicate"), PLANE),
    "circular crops": (pad((-2, 3, 4, -1), "circular"), PLANE),
    "crop": (lambda x: x[..., 1:-1], PLANE),
    "strided slice": (lambda x: x[:, :, 2::3, -11::2], PLANE),
    "narrow": (lambda x: x.narrow(2, 3, 11), PLANE),
    "chunks": (lambda x: torch.cat(x.chunk(3, 2)[::2], 1)[:, :, :5], (3, 18, 14)),
    "split": (lambda x: x.split([5, 8, 6], -2)[1], PLANE),
    "flip": (lambda x: torch.flip(x, (2,)), PLANE),
    "flip all": (lambda x: torch.flip(x, (-1, 2)), PLANE),
    "roll": (lambda x: torch.roll(x, (3, -2), (2, 3)), PLANE),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 2), PLANE),
    "index_select": (lambda x: x.index_select(3, torch.tensor([4, 1, 1, 9, 13])), PLANE),
    "cat": (lambda x: torch.cat([x[:, :, 4:], x * x], 2), PLANE),
    "nearest": (up(scale_factor=2.0), PLANE),
    "nearest 4": (up(scale_factor=(4.0, 1.0)), PLANE),
    "nearest 3": (up(scale_factor=3.0), PLANE),
    "nearest 1.7": (up(scale_factor=1.7), PLANE),
    "nearest size": (up(size=(31, 9)), PLANE),
    "nearest recomputed": (up(scale_factor=1.7, recompute_scale_factor=True), PLANE),
    "nearest 1d": (up(scale_factor=2.5), LINE),
    "nearest 3d": (up(scale_factor=(2.0, 1.5, 1.0)), SPACE),
    "nearest-exact": (up(size=(31, 9), mode="nearest-exact"), PLANE),
    "nearest-exact 2": (up(scale_factor=2, mode="nearest-exact"), PLANE),
    "linear": (up(scale_factor=2, mode="linear"), LINE),
    "linear 1.3": (up(scale_factor=1.3, mode="linear"), LINE),
    "bilinear": (up(scale_factor=2, mode="bilinear"), PLANE),
    "bilinear 8": (up(scale_factor=(8, 2), mode="bilinear"), PLANE),
    "bilinear 3": (up(scale_factor=3, mode="bilinear"), PLANE),
    "bilinear corners": (up(size=(40, 11), mode="bilinear", align_corners=True), PLANE),
    "bilinear size": (up(size=(40, 11), mode="bilinear"), PLANE),
    "bilinear down": (up(scale_factor=0.4, mode="bilinear"), PLANE),
    "bilinear antialias": (up(size=(8, 23), mode="bilinear", antialias=True), PLANE),
    "trilinear": (up(scale_factor=2, mode="trilinear"), SPACE),
    "trilinear size": (up(size=(9, 5, 12), mode="trilinear"), SPACE),
    "bicubic": (up(scale_factor=2, mode="bicubic"), PLANE),
    "bicubic size": (up(size=(27, 10), mode="bicubic"), PLANE),
    "bicubic corners": (nn.Upsample(scale_factor=3, mode="bicubic", align_corners=True), PLANE),
    "bicubic antialias": (up(size=(8, 23), mode="bicubic", antialias=True), PLANE),
    "area": (up(size=(8, 5), mode="area"), PLANE),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 5, 3, 2, 1, 1), LINE),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), PLANE),
    "ConvTranspose2d 4": (nn.ConvTranspose2d(4, 3, (4, 2), (2, 3), (1, 0), bias=False), PLANE),
    "ConvTranspose2d gaps": (nn.ConvTranspose2d(4, 3, 2, 4, 1, (3, 2)), PLANE),
    "ConvTranspose2d dilated": (nn.ConvTranspose2d(4, 3, 3, 2, 2, 1, dilation=(2, 3)), PLANE),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 3, (3, 2, 3), 2, 1, (1, 0, 0)), SPACE),
    "PixelShuffle": (nn.PixelShuffle(2), PLANE),
    "PixelUnshuffle": (nn.PixelUnshuffle(2), (3, 18, 14)),
    "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(7), LINE),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((6, 14)), PLANE),
    "AdaptiveMaxPool2d divides": (nn.AdaptiveMaxPool2d((6, 7)), (3, 18, 14)),
    "AdaptiveMaxPool3d": (nn.AdaptiveMaxPool3d((3, None, 5)), SPACE),
    "max pool with indices": (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0], PLANE),
    "AvgPool2d divisor": (nn.AvgPool2d(3, 2, 1, divisor_override=4), PLANE),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str) -> None:
    """Replay bit for bit, then drops; windows pass through without a barrier."""
    operation, shape = OPERATIONS[name]
    model = Net(operation, shape)
    for dtype in (FP32, FP64):
        graph = check_replay(model.to(dtype), shape, dtype)
    assert not any(isinstance(n.kind, Barrier) and n.spatial and n.varies for n in graph.nodes)
    check_drops(model.float(), shape)


DENSE = [
    "pad value",
    "ReflectionPad2d",
    "strided slice",
    "bilinear size",
    "nearest",
    "ConvTranspose2d",
    "PixelShuffle",
    "AdaptiveMaxPool2d",
]


@pytest.mark.parametrize("name", DENSE)
def test_dense_output(name: str) -> None:
    """The operation's own map is the model's output: its differences, where it is linear."""
    operation, shape = OPERATIONS[name]
    model = Net(operation, shape, dense=True)
    check_replay(model, shape)
    check_drops(model, shape)


class Alone(nn.Module):
    """An operation as a model."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = copy.deepcopy(operation)

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


def depends(operation: Operation, shape: Sequence[int]) -> list[np.ndarray]:
    """For each axis (size_out, size_in) bool: which cells depend on which, from autograd."""
    x = images_of(shape, 1).double()
    axes = len(shape) - 1
    jacobian = torch.autograd.functional.jacobian(operation, x).squeeze((0, axes + 2))
    # (output channels, *output, input channels, *input), without the channels.
    moved = (jacobian != 0).any(axes + 1).any(0)
    tables = []
    for d in range(axes):
        others = [k for k in range(2 * axes) if k not in (d, axes + d)]
        tables.append((moved.sum(others) > 0 if others else moved).numpy())
    return tables


# Captured as several operations.
SEVERAL = ("chunks", "cat", "strided slice", "roll")


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n not in SEVERAL and "ircular" not in n])
def test_rules_are_what_the_operation_reads(name: str) -> None:
    """In one, two and three axes, each with its own parameters."""
    operation, shape = OPERATIONS[name]
    model = Alone(operation).double()
    shape = (4, *shape[1:])
    graph = capture(model, shape, FP64, CPU)
    (node,) = (n for n in graph.nodes if n.spatial and n.varies and n.index != graph.input)
    rules = node.rules[0]
    assert rules is not None
    for rule, true in zip(rules, depends(model.operation, shape), strict=True):
        table = reads(rule)
        assert table.shape == true.shape
        assert (table >= true).all()
        # A max reads more than it depends on; holes of a dilated kernel count as read.
        if "Max" not in name and "max" not in name and "dilated" not in name:
            low, high = true.argmax(1), true.shape[1] - true[:, ::-1].argmax(1)
            cells = np.arange(true.shape[1])
            between = (cells >= low[:, None]) & (cells < high[:, None])
            assert (table == between & true.any(1, keepdims=True)).all()
        check_forward(rule, table)
        check_windows(rule)


@pytest.mark.parametrize("name", ["CircularPad2d", "roll", "ReflectionPad2d", "flip", "bilinear 8"])
def test_windows_stay_small(name: str) -> None:
    """Also where an operation carries cells from one edge to the other."""
    operation, _ = OPERATIONS[name]
    graph = capture(Alone(operation), (4, 90, 70), FP32, CPU)
    rules = [rule for node in graph.nodes for some in node.rules for rule in some or ()]
    assert len(rules) >= 2
    assert max(rule.span(8) for rule in rules) <= 12


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Operation, Sequence[int]]:
    """A pad, an interpolation or a transposed convolution of one or two axes."""
    axes = draw(st.integers(1, 2))
    shape = (2, *(draw(st.integers(5, 15)) for _ in range(axes)))
    family = draw(st.sampled_from(["pad", "interpolate", "transposed"]))
    if family == "pad":
        mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
        sizes = [draw(st.integers(-2, 4)) for _ in range(2 * axes)]
        value = draw(st.floats(-2, 2)) if mode == "constant" else None
        return pad(sizes, mode, value), shape
    if family == "interpolate":
        linear, more = ("linear", []) if axes == 1 else ("bilinear", ["bicubic"])
        mode = draw(st.sampled_from(["nearest", "nearest-exact", linear, *more]))
        how: dict[str, object] = {"mode": mode}
        if mode in (linear, "bicubic"):
            how["align_corners"] = draw(st.booleans())
            how["antialias"] = axes == 2 and not how["align_corners"] and draw(st.booleans())
        if draw(st.booleans()):
            how["size"] = [draw(st.integers(2, 30)) for _ in range(axes)]
        else:
            some = st.one_of(st.sampled_from([1.0, 2.0, 4.0, 3.0]), st.floats(0.45, 3.3))
            how["scale_factor"] = [draw(some) for _ in range(axes)]
        return up(**how), shape
    stride = [draw(st.integers(1, 4)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 3)) for _ in range(axes)]
    kernel = [draw(st.integers(1, 4)) for _ in range(axes)]
    padding = [draw(st.integers(0, 3)) for _ in range(axes)]
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[axes]
    torch.manual_seed(1)
    groups = draw(st.sampled_from([1, 2, 4]))
    return kind(4, 4, kernel, stride, padding, extra, groups, True, dilation), shape


DRAWN = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=40
)


@DRAWN
@given(drawn())
def test_drawn_operation(case: tuple[Operation, Sequence[int]]) -> None:
    operation, shape = case
    try:
        with torch.no_grad():
            out = operation(torch.zeros(2, 4, *shape[1:]))
    except RuntimeError:
        assume(False)  # torch refuses what was drawn
    assume(min(out.shape[2:]) > 1)
    model = Net(operation, shape)
    images = images_of(shape)
    boxes = boxes_of_every_kind(tuple(shape[1:]))
    base, drops = oracle(model, images, torch.cat(list(boxes.values())), baseline=0.1)
    assume(drops.abs().max() > 1e-3 * base.abs().max())
    check_replay(model, shape)
    for dtype, provider in zip((FP32, FP64), PROVIDERS, strict=True):
        with every_window_size(), reading_from(provider):
            result = backsight.occlusion(
                model.to(dtype),
                images.to(dtype),
                boxes=torch.cat(list(boxes.values())),
                baseline=0.1,
            )
        assert result.plan.as_dict()["method"] == "windows"
        assert result.plan.as_dict()["barriers"] == []
        assert_drops(result, base, drops, dtype)


def test_batch_norm_behind_a_transposed_convolution_is_folded() -> None:
    for groups, axes in ((1, 1), (2, 2), (4, 2), (2, 3)):
        torch.manual_seed(groups)
        kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[axes]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes](8)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.uniform_(0.5, 2.0)
        layers = nn.Sequential(kind(4, 8, 3, 2, 1, groups=groups), norm, nn.ReLU()).eval()
        shape = (3, *(19, 14, 7)[:axes])
        model = Net(layers, shape).double().eval()
        graph = capture(model, shape, FP64, CPU)
        folded = fold_batch_norms(graph)
        assert sum(isinstance(n.kind, BatchNorm) for n in graph.nodes) == 1
        assert not any(isinstance(n.kind, BatchNorm) for n in folded.nodes)
        images = images_of(shape).double()
        with torch.no_grad():
            own = model(images)
            assert (folded(images) - own).abs().max() <= 1e-12 * own.abs().max()
        check_drops(model.float(), shape)


@pytest.mark.parametrize(
    "name", [n for n, (o, _) in OPERATIONS.items() if n.startswith("ConvTranspose")]
)
def test_flops_of_a_transposed_convolution(name: str) -> None:
    """Two for each product that lands inside the map."""
    operation, shape = OPERATIONS[name]
    graph = capture(Net(operation, shape).eval(), shape, FP32, CPU)
    (node,) = (n for n in graph.nodes if isinstance(n.kind, ConvTranspose))
    count = copy.deepcopy(operation)
    assert isinstance(count, nn.Module)
    with torch.no_grad():
        for name_, parameter in count.named_parameters():
            parameter.fill_(name_ == "weight")
        products = float(count(torch.ones(1, 4, *shape[1:])).sum())
    cells = prod(node.extent)
    assert abs(node.kind.flops(node, graph.nodes) * cells - 2 * products) <= cells / 2


class Mixed(nn.Module):
    """A part under autocast, in it one without, then casts by hand; no_grad around some of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.norm.running_mean.uniform_(-0.3, 0.3)
        self.norm.running_var.uniform_(0.3, 2.0)
        self.up = nn.ConvTranspose2d(16, 8, 3, 2, 1)
        self.inner = nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 16, 3, 2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.norm(self.first(x)).relu_()
            with torch.no_grad():
                y = F.relu(self.up(y))
            with torch.autocast("cpu", enabled=False):
                y = F.relu(self.inner(y.type_as(x)))
            y = F.interpolate(y, scale_factor=1.5, mode="bilinear")
            y = F.softmax(self.last(y), 1).to(x.dtype) * 3.0
        return self.fc(F.relu(y - 0.1).mean((2, 3)))


def check_like_plain(model: nn.Module, shape: Sequence[int], casts: int) -> None:
    """Replay bit for bit; drops in fp64 as the oracle's, in fp32 as near to it as plain ones,
    whose bf16 parts round as well.
    """
    graph = check_replay(model, shape)
    assert sum(n.kind.name == "cast" for n in graph.nodes) == casts
    images = images_of(shape)
    boxes = torch.cat(list(boxes_of_every_kind(tuple(shape[1:])).values()))
    base, drops = oracle(model, images, boxes, baseline=0.1)
    with torch.no_grad():
        plain = torch.stack([occluded_drops(model, image, boxes) for image in images])
    largest = float(drops.abs().max())
    rounding = float((plain - drops).abs().max())
    assert 1e-4 * largest < rounding < 0.2 * largest  # bf16 rounds, and drops stand out
    for provider in PROVIDERS:
        with every_window_size(), reading_from(provider):
            result = backsight.occlusion(model, images, boxes=boxes, baseline=0.1)
            assert result.plan.as_dict()["method"] == "windows", result.plan.as_dict()["reason"]
            assert float((result.drops - drops).abs().max()) <= 1.5 * rounding
            exact = backsight.occlusion(model.double(), images.double(), boxes=boxes, baseline=0.1)
            assert_drops(exact, base, drops, FP64)
        model.float()


def occluded_drops(model: nn.Module, image: Tensor, boxes: Tensor) -> Tensor:
    """Plain occlusion of one image in the model's own precision: (boxes, outputs)."""
    copies = torch.stack([occluded(image, box, 0.1) for box in boxes.tolist()])
    return model(image[None]).double() - model(copies).double()


def test_autocast_within_the_model() -> None:
    check_like_plain(Mixed().eval(), (3, 19, 14), casts=4)


class Halves(nn.Module):
    """Casts by hand, a bf16 tail among them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        half = x.dtype if x.dtype == FP64 else torch.bfloat16
        y = F.relu(F.conv2d(y.to(half), self.second.weight.to(half), None, 2)).to(x)
        return self.fc(y.mean((2, 3)).to(half).to(dtype=x.dtype))


def test_casts() -> None:
    check_like_plain(Halves().eval(), (3, 19, 14), casts=4)
    graph = capture(Halves(), (3, 19, 14), FP32, CPU)
    tail = linear_tail(graph)
    assert sum(graph.nodes[i].kind.name == "cast" for i in tail.nodes) == 3


def test_autocast_around_the_call() -> None:
    """Capturing under autocast captures what the model does there."""
    shape = (3, 19, 14)
    model = Net(OPERATIONS["bilinear"][0], shape)
    images = images_of(shape)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        graph = capture(model, shape, FP32, CPU)
        own = model(images)
        assert own.dtype == torch.bfloat16
        assert torch.equal(graph(images), own)
    assert torch.equal(graph(images), own)  # casts are in the graph
    with torch.no_grad():
        assert not torch.equal(model(images), own)
