"""Maps held channels last, in groups of channels, without a channel axis: windows all the same."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from backsight.graph import Graph, Packs, capture, fold_batch_norms, lower
from backsight.graph.layouts import Layout
from backsight.sweep.tail import linear_tail
from nets import NETS, calibrate, random_images, seeded
from oracle import oracle
from test_occlusion_oracle import (
    PROVIDERS,
    assert_drops,
    boxes_of_every_kind,
    every_window_size,
    reading_from,
)

CPU = torch.device("cpu")
SHAPE = (3, 19, 16)


class Block(nn.Module):
    """A convolution, something done to its map, and another convolution behind it."""

    def __init__(self, body: Callable[[Tensor], Tensor], channels: int = 8, out: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.body = body
        self.last = nn.Conv2d(out, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.last(self.body(self.stem(x)))).mean((2, 3)))


class ConvNextBlock(nn.Module):
    """ConvNeXt's block as published: everything but the depthwise convolution in NHWC."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.project = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.linspace(0.4, 1.2, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNextTiny(nn.Module):
    """Channels-first layer norms spelled out, downsampling, blocks, pooling before the head norm,
    as in torchvision (permutes) and in the paper's own code (means over channels).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.first, self.second = ConvNextBlock(8), ConvNextBlock(12)
        self.weight, self.bias = (nn.Parameter(torch.linspace(a, 1.5, 8)) for a in (0.5, -0.5))
        self.down = nn.Conv2d(8, 12, 2, 2)
        self.head = nn.LayerNorm(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + 1e-6)
        x = self.second(self.down(self.weight[:, None, None] * x + self.bias[:, None, None]))
        x = F.adaptive_avg_pool2d(x, 1)
        x = self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(x.flatten(1))


class LinearNhwc(nn.Module):
    """No nonlinearity behind the stem, all of it in NHWC: the linear tail starts early."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.project, self.plain = nn.Linear(8, 6), nn.Parameter(torch.randn(6, 5))
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 5))
        self.window = nn.Parameter(torch.rand(10, 8, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(torch.tanh(self.stem(x)).movedim(1, -1)) * self.window + self.window
        y = (y @ self.plain) * self.gamma + 0.3 * self.gamma - 1.0
        y = F.pad(y, (1, 1)) + y.mean(-1, keepdim=True)
        return y.mean((1, 2))


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


def attention_to_channels(x: Tensor) -> Tensor:
    """A gate per cell from reductions over channels, as spatial attention modules have it."""
    both = torch.cat([x.mean(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
    return x * torch.sigmoid(both.sum(1, keepdim=True)) * F.softmax(x, dim=1)


def grouped(x: Tensor) -> Tensor:
    """Statistics of groups of channels, cell by cell, broadcast back over them."""
    y = x.unflatten(1, (2, 4))
    mean, spread = y.mean(2, keepdim=True), y.var(2, keepdim=True)
    y = (y - mean) / (spread + 0.1).sqrt() + y.amax(2, keepdim=True)
    return (y * y.norm(dim=1, keepdim=True)).flatten(1, 2)


def without_channels(x: Tensor) -> Tensor:
    """Single channels as (batch, *spatial), and several put together again."""
    first, *others = x.unbind(1)
    some = torch.stack([first * others[0], x[:, 3] - first, others[4].tanh()], 1)
    return torch.cat([some, x[:, [1, 5, 2]], x.select(1, 2).unsqueeze(1), x[:, -1:]], 1)


def masks(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    mask = (y > 0.1) & (y < y.mean(-1, keepdim=True) + 1.0)
    y = torch.where(mask, y, 0.3 * y) + (y >= 0.5) * y
    y = y.masked_fill(y < -1.0, -1.0)
    return torch.where(x.isnan(), torch.zeros_like(x), y.permute(0, 3, 1, 2))


def swapped(x: Tensor) -> Tensor:
    """Rows and columns swapped, between pointwise operations."""
    y = F.silu(x.transpose(2, 3)) + x.transpose(2, 3) * 0.5
    return F.glu(torch.cat([y, y.flip(1)], 1), 1).transpose(-1, -2)


def tail_of_channels(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    left, right = y.chunk(2, -1)
    y = torch.cat([right, left * right], -1)
    y = torch.stack([y, 1.0 - y], -1).flatten(3).index_select(3, torch.arange(15, -1, -2))
    return torch.roll(y.repeat(1, 1, 1, 2)[..., 4:12], 3, -1).permute(0, 3, 1, 2).contiguous()


def pooled_over_channels(x: Tensor) -> Tensor:
    y = x.unsqueeze(1)
    y = F.max_pool3d(y, (2, 1, 1), 1) + F.avg_pool3d(y, (2, 1, 1), 1)
    return F.pad(y.squeeze(1), (0, 0, 0, 0, 1, 0), value=0.2) + F.normalize(x, dim=1)


BODIES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "shuffle": lambda: shuffle,
    "channel_shuffle": lambda: lambda x: F.channel_shuffle(x, 4) * F.channel_shuffle(x, 2),
    "local_response_norm": lambda: nn.LocalResponseNorm(5, 0.5, 0.75, 1.0),
    "attention_to_channels": lambda: attention_to_channels,
    "grouped": lambda: grouped,
    "without_channels": lambda: without_channels,
    "masks": lambda: masks,
    "swapped": lambda: swapped,
    "tail_of_channels": lambda: tail_of_channels,
    "pooled_over_channels": lambda: pooled_over_channels,
    "prelu": lambda: nn.PReLU(8, 0.3),
    "block": lambda: ConvNextBlock(8),
    "addcmul": lambda: lambda x: torch.addcmul(x, x, x.mean(1, keepdim=True), value=0.3),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{k: lambda make=make: Block(make()) for k, make in BODIES.items()},  # type: ignore[misc]
    "convnext": ConvNextTiny,
    "linear_nhwc": LinearNhwc,
}


class Positions(nn.Module):
    """Constants that are maps: a mean image, positions in NHWC, coordinates as further channels, a
    mask; and one that has an extent along a single axis.
    """

    def __init__(self) -> None:
        super().__init__()
        _, height, width = SHAPE
        small = ((height + 1) // 2, (width + 1) // 2)
        self.register_buffer("mean", torch.randn(3, height, width))
        self.register_buffer("scale", torch.rand(1, 1, height, width) + 0.5)
        self.stem = nn.Conv2d(5, 8, 3, 2, 1)
        self.positions = nn.Parameter(torch.randn(*small, 8))
        self.columns = nn.Parameter(torch.rand(1, 8, 1, small[1]) + 0.5)
        rows, columns = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        self.register_buffer("coordinates", torch.stack([rows, columns])[None])
        self.register_buffer("inside", torch.rand(small) > 0.3)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * self.scale
        x = torch.cat([x, self.coordinates.expand(x.shape[0], -1, -1, -1)], 1)
        x = F.relu(self.stem(x)).permute(0, 2, 3, 1) + self.positions
        x = torch.where(self.inside[..., None], x, 0.2 * x)
        x = self.columns * x.permute(0, 3, 1, 2)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Sequence(nn.Module):
    """One axis, and channels behind it between the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv1d(3, 8, 5, 2, 2), nn.Conv1d(8, 6, 3, padding=1)
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 16)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.mix(self.norm(self.stem(x).transpose(1, 2))), -1).transpose(1, 2)
        return self.fc(F.relu(self.last(y)).transpose(1, 2).mean(1))


class Volume(nn.Module):
    """Three axes, channels last, the mean of all cells there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv3d(2, 8, 3, (1, 2, 2), 1), nn.Conv3d(8, 6, 3, padding=1)
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.mix(self.norm(self.stem(x).permute(0, 2, 3, 4, 1)))).movedim(-1, 1)
        return self.fc(F.relu(self.last(y)).permute(0, 2, 3, 4, 1).mean((1, 2, 3)))


class MapOut(nn.Module):
    """Scores of every cell, in NHWC."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.stem(x)).permute(0, 2, 3, 1))


MODELS |= {"positions": Positions, "sequence": Sequence, "volume": Volume, "map_out": MapOut}
SHAPES = {
    "vit": (3, 16, 16),
    "windowed": (3, 16, 16),
    "sequence": (3, 45),
    "volume": (2, 6, 15, 12),
}


class Attention(nn.Module):
    """A vision transformer: patches, a class token, positions, one block, the token's scores."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.fc(x[:, 0])


class AttentionOfRows(nn.Module):
    """Attention within each row of an NHWC map, a convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.qkv = nn.Linear(8, 24)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).permute(0, 2, 3, 1)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.fc(F.relu(self.last(x.permute(0, 3, 1, 2))).mean((2, 3)))


class AttentionInWindows(nn.Module):
    """Shifted windows of an NHWC map, attention in each, and merged patches behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.merge = nn.Linear(32, 12, bias=False)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        batch, height, width, channels = x.shape
        y = torch.roll(x, (-1, -1), (1, 2))
        y = y.view(batch, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        q, k, v = self.qkv(y.reshape(-1, 16, channels)).chunk(3, -1)
        y = self.out(F.scaled_dot_product_attention(q, k, v))
        y = y.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        x = x + torch.roll(y.reshape(batch, height, width, channels), (1, 1), (1, 2))
        parts = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
        x = self.merge(torch.cat(parts, -1))
        return self.fc(F.relu(x).permute(0, 3, 1, 2).mean((2, 3)))


class GlobalResponse(nn.Module):
    """ConvNeXt V2's normalisation of NHWC maps by the norms of whole channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(1, 1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x).permute(0, 2, 3, 1))
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        size = size / (size.mean(-1, keepdim=True) + 1e-6)
        return self.fc((self.gamma * (x * size) + x).mean((1, 2)))


def merged(x: Tensor) -> Tensor:
    """Rows and columns as one axis, and back."""
    y = x.permute(0, 2, 3, 1)
    batch, height, width, channels = y.shape
    y = y.reshape(batch, height * width, channels).cumsum(1) * 0.2
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Gate(nn.Module):
    """Squeeze and excitation in NHWC."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        return (y * torch.sigmoid(self.fc(y.mean((1, 2), keepdim=True)))).permute(0, 3, 1, 2)


#: Networks with operations that need whole maps, in layouts of all kinds.
GLOBAL: dict[str, Callable[[], nn.Module]] = {
    "vit": Attention,
    "rows": AttentionOfRows,
    "windowed": AttentionInWindows,
    "global_response": GlobalResponse,
    "merged": lambda: Block(merged),
    "gate": lambda: Block(Gate()),
    "transposed": lambda: Block(lambda x: F.avg_pool2d(x.transpose(2, 3), 3, 1, 1)),
    "norm_of_maps": lambda: Block(lambda x: F.layer_norm(x, x.shape[1:])),
}
EVERY = {**MODELS, **GLOBAL}
#: Where torch itself rounds otherwise: attention, and products of strided maps, by whether weights
#: may need a gradient; a convolution, by its input's memory layout.
ROUNDED = ("vit", "linear_nhwc", "map_out", "tail_of_channels")


def built(name: str) -> nn.Module:
    return calibrate(seeded(EVERY[name]), images(name, 8, seed=1))


def images(name: str, count: int, seed: int = 0) -> Tensor:
    return random_images(SHAPES.get(name, SHAPE), count, seed)


def captured(name: str, dtype: torch.dtype = torch.float32) -> tuple[Graph, nn.Module]:
    model = built(name).to(dtype)
    return capture(model, tuple(images(name, 1).shape[1:]), dtype, CPU), model


@pytest.mark.parametrize("name", EVERY)
def test_replay_equals_model(name: str) -> None:
    graph, model = captured(name)
    for count in (1, 2, 7):
        x = images(name, count, count)
        with torch.no_grad():
            found, own = graph(x), model(x)
        if name in ROUNDED:
            assert own.abs().max() > 0
            assert (found - own).abs().max() <= 1e-6 * own.abs().max()
        else:
            assert torch.equal(found, own)


@pytest.mark.parametrize("name", EVERY)
def test_folded_and_lowered_replay_equals_model(name: str) -> None:
    """Channels-last images too: the form in which windows run."""
    graph, model = captured(name, torch.float64)
    x = images(name, 2).double()
    with torch.no_grad():
        own = model(x)
        forms = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(x.ndim, [])
        for form in (torch.contiguous_format, *forms):
            found = lower(fold_batch_norms(graph), Packs())(x.contiguous(memory_format=form))
            assert own.abs().max() > 0
            assert (found - own).abs().max() <= 1e-12 * own.abs().max()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("dtype", "merged"), [(torch.float32, True), (torch.float64, False)])
def test_drops(name: str, dtype: torch.dtype, merged: bool) -> None:
    model, x = built(name), images(name, 2, 3)
    kinds = boxes_of_every_kind(tuple(x.shape[2:]))
    boxes = torch.cat(list(kinds.values()))
    base, drops = oracle(model, x, boxes, 0.1)
    base, drops = base.flatten(1), drops.flatten(2)
    model, x = model.to(dtype), x.to(dtype)
    for provider in PROVIDERS:
        with contextlib.nullcontext() if merged else every_window_size(), reading_from(provider):
            result = backsight.occlusion(model, x, boxes=boxes, baseline=0.1)
        assert_drops(result, base, drops, dtype, kinds)
        assert result.plan.as_dict()["method"] == "windows"
        assert bool(result.plan.barriers) == (name in GLOBAL)


@pytest.mark.parametrize("name", MODELS)
def test_no_barrier(name: str) -> None:
    """Every operation on maps but the convolutions and the mean at the end leaves cells alone."""
    graph, _ = captured(name)
    assert not any(n.kind.name == "barrier" for n in graph.nodes if n.varies)
    with every_window_size():
        plan = backsight.plan(built(name), images(name, 1), window=2, stride=4)
    assert plan.barriers == ()
    assert plan.flop_ratio > 1.2


@pytest.mark.parametrize("name", ["convnext", "shufflenet", "preprocessed"])
def test_no_barrier_in_registered_networks(name: str) -> None:
    case = NETS[name]
    with every_window_size():
        plan = backsight.plan(case.build(), case.images(), window=2, stride=8)
    assert plan.barriers == ()
    assert plan.flop_ratio > 1.2


def test_barriers_are_named() -> None:
    """By the operation that needs whole maps and its module, once each."""
    names = {
        "vit": ("flatten", "scaled_dot_product_attention at attention", "permute at attention"),
        "rows": ("matmul", "matmul"),
        "windowed": ("roll", "view", "roll", *["slice"] * 8, "linear at merge"),
        "transposed": ("avg_pool2d",),
        "norm_of_maps": ("layer_norm",),
    }
    for name, expected in names.items():
        with every_window_size():
            plan = backsight.plan(built(name), images(name, 1), window=2, stride=4)
        assert plan.barriers == expected, name


def test_linear_tail_in_nhwc() -> None:
    """Differences are carried from the last nonlinear operation on, whatever the layout."""
    graph, _ = captured("linear_nhwc")
    (start,) = linear_tail(graph).boundary
    assert graph.nodes[start].operation == "tanh"


def test_modules_are_kept() -> None:
    graph, _ = captured("block")
    found = {n.operation: n.module for n in graph.nodes if n.spatial and n.varies}
    assert found["layer_norm"] == "body.norm"
    assert found["linear"] == "body.project"
    assert found["mul"] == "body"


class Sides(nn.Module):
    """A map in NHWC joined with what comes with each image: a mask, a colour, and another map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.style = nn.Linear(4, 8)
        self.last = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor, style: Tensor, other: Tensor) -> Tensor:
        y = F.relu(self.norm(self.stem(x))).permute(0, 2, 3, 1)
        y = y * mask[..., None] + F.gelu(other.permute(0, 2, 3, 1) @ self.style.weight.t()[:3, :])
        y = y.permute(0, 3, 1, 2) * self.style(style)[:, :, None, None]
        return self.last(y).amax((2, 3))


def test_what_varies() -> None:
    """Through all passes: what is said not to vary does not change with the image."""
    model = seeded(Sides).eval()
    small = (10, 8)

    def sides(count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(count)
        shapes = (small, (4,), (3, *small))
        return [torch.randn(count, *shape, generator=generator) for shape in shapes]

    graph = capture(model, SHAPE, torch.float32, CPU, sides(1))
    for form in (graph, fold_batch_norms(graph), lower(fold_batch_norms(graph), Packs())):
        every = [n.index for n in form.nodes]
        for count in (1, 2, 7):
            x, more = random_images(SHAPE, count, seed=count), sides(count)
            with torch.no_grad():
                before = form.replay(x, every, more)
                after = form.replay(x + 1.0, every, more)
                own = model(x, *more)
            assert (before[form.output] - own).abs().max() <= 1e-5 * own.abs().max()
            for node in form.nodes:
                if not isinstance(before[node.index], Tensor):
                    assert not node.varies
                elif before[node.index].shape[:1] == (count,) and node.value is None:
                    assert torch.equal(before[node.index], after[node.index]) != node.varies
                else:
                    assert not node.varies


def layouts_of(sizes: list[int], steps: list[tuple[str, int, int]]) -> tuple[int, int]:
    """Follow a value through views and permutations; return how often its layout was known, and how
    often it was not.
    """
    value = torch.arange(2 * sizes[0] * sizes[1] * sizes[2], dtype=torch.float64)
    value = value.view(2, *sizes)
    table, extent = value, tuple(sizes[1:])
    layout = Layout.standard(sizes[0], 2)
    known = 0
    for kind, a, b in steps:
        count = value.ndim - 1
        if kind == "transpose":
            order = [*range(value.ndim)]
            a, b = 1 + a % count, 1 + b % count
            order[a], order[b] = order[b], order[a]
            after, moved = value.permute(order), layout.permuted(order)
            if not layout.keeps_channels(order):
                table = moved.hold(after)
        else:
            shape = list(value.shape[1:])
            at = a % count
            if kind == "merge" and at + 1 < count:
                shape[at : at + 2] = [shape[at] * shape[at + 1]]
            elif kind == "split" and shape[at] % (2 + b % 2) == 0:
                shape[at : at + 1] = [2 + b % 2, shape[at] // (2 + b % 2)]
            elif kind == "unsqueeze":
                shape.insert(at, 1)
            after, found = value.reshape(2, *shape), layout.viewed(extent, shape)
            if found is None:
                return known, 1
            moved = found
        value, layout = after, moved
        assert layout.shape(extent) == tuple(value.shape[1:])
        assert torch.equal(layout.restore(table), value)
        assert torch.equal(layout.hold(value), table)
        known += 1
    return known, 0


def test_layouts_follow_views_and_permutations() -> None:
    """Whatever is done to a map, its layout gives back the model's value."""
    rng = random.Random(0)
    known = lost = 0
    for _ in range(600):
        sizes = [rng.choice((1, 4, 6, 12)), rng.choice((1, 2, 3, 6)), rng.choice((1, 2, 4, 6))]
        kinds = [rng.choice(("transpose", "merge", "split", "unsqueeze")) for _ in range(6)]
        steps = [(kind, rng.randrange(12), rng.randrange(12)) for kind in kinds]
        a, b = layouts_of(sizes, steps)
        known, lost = known + a, lost + b
    assert known > 1000
    assert lost > 50
