"""Batch norms and ReLUs in front of convolutions as one node: which, and that nothing changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsight.graph import Graph, Packs, capture, fold_batch_norms, lower
from backsight.graph.kinds import BatchNorm, Where
from backsight.graph.preactivation import PreActivation
from nets import AUTOCAST, NETS, calibrate, random_images, seeded
from test_resampling import check_drops, images_of

CPU = torch.device("cpu")
SHAPE = (3, 19, 16)
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Unit(nn.Module):
    """He et al. 2016: batch norm and ReLU in front of each convolution, the projection included."""

    def __init__(self, inputs: int, planes: int, stride: int, axes: int) -> None:
        super().__init__()
        conv, norm = CONV[axes], NORM[axes]
        self.norm1 = norm(inputs)
        self.conv1 = conv(inputs, planes, 3, stride, 1, bias=False)
        self.norm2 = norm(planes)
        self.conv2 = conv(planes, planes, 3, 1, 1)
        self.short = conv(inputs, planes, 1, stride) if stride > 1 or inputs != planes else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x), inplace=True)
        x = x if self.short is None else self.short(y)
        return x + self.conv2(F.relu(self.norm2(self.conv1(y))))


class PreActivationNet(nn.Module):
    """Pre-activation units; the last batch norm and ReLU in front of the pool."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.stem = CONV[axes](channels, 6, 3, padding=1)
        self.units = nn.Sequential(Unit(6, 6, 1, axes), Unit(6, 8, 2, axes), Unit(8, 8, 1, axes))
        self.norm = NORM[axes](8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.units(self.stem(x))))
        return self.fc(x.mean(tuple(range(2, x.dim()))))


class Net(nn.Module):
    """Two convolutions, whose maps `body` joins and normalises in some way, and one behind it."""

    def __init__(self, body: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(2))
        self.norm, self.other, self.four = (nn.BatchNorm2d(c) for c in (8, 8, 4))
        self.body = body
        self.last = nn.LazyConv2d(5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return self.last(self.body(self, left, right)).mean((2, 3))


def joined(left: Tensor, right: Tensor) -> Tensor:
    return torch.cat([left, right], 1)


def twice(net: Net, left: Tensor, right: Tensor) -> Tensor:
    """One map in two places."""
    return F.relu(net.norm(joined(left, left)))


def two_readers_of_cat(net: Net, left: Tensor, right: Tensor) -> Tensor:
    x = joined(left, right)
    return F.relu(net.norm(x)) + F.relu(net.other(x))


def two_readers_of_norm(net: Net, left: Tensor, right: Tensor) -> Tensor:
    x = net.norm(joined(left, right))
    return F.relu(x) + x


def in_place(net: Net, left: Tensor, right: Tensor) -> Tensor:
    return net.norm(joined(left, right)).relu_()


def along_the_map(net: Net, left: Tensor, right: Tensor) -> Tensor:
    return F.relu(net.four(torch.cat([left, right], 2)))


def channels_last(net: Net, left: Tensor, right: Tensor) -> Tensor:
    x = torch.cat([left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)], -1)
    return F.relu(net.norm(x.permute(0, 3, 1, 2)))


def another_activation(net: Net, left: Tensor, right: Tensor) -> Tensor:
    return F.relu6(net.norm(joined(left, right)))


def without_weights(net: Net, left: Tensor, right: Tensor) -> Tensor:
    x, norm = joined(left, right), net.norm
    return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, bias=norm.bias, eps=0.1))


def nested(net: Net, left: Tensor, right: Tensor) -> Tensor:
    return F.relu(net.norm(torch.cat([joined(left, right)[:, 2:], left[:, :2]], 1)))


# What is joined, and what becomes of it: how many fused nodes, of how many maps each, and how many
# batch norms are left.
BODIES: dict[Callable[[Net, Tensor, Tensor], Tensor], tuple[list[int], int]] = {
    lambda net, left, right: F.relu(net.norm(joined(left, right))): ([2], 0),
    twice: ([2], 0),
    two_readers_of_cat: ([1, 1], 0),
    two_readers_of_norm: ([], 1),
    in_place: ([2], 0),
    along_the_map: ([1], 0),
    channels_last: ([2], 0),
    another_activation: ([], 1),
    without_weights: ([2], 0),
    nested: ([2], 0),
}


def lowered(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Graph:
    return lower(fold_batch_norms(capture(model, shape, dtype, CPU)), Packs())


def kinds_of(graph: Graph) -> Counter[str]:
    return Counter(n.kind.name for n in graph.nodes)


def made(factory: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    """A network whose batch norms have seen images."""
    return calibrate(seeded(factory), random_images(shape, 8, seed=1)).eval()


def check_values(
    model: nn.Module, graph: Graph, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Replay equals the model but for rounding, in both memory formats."""
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    forms = {3: [torch.channels_last], 4: [torch.channels_last_3d]}.get(len(shape), [])
    for form in (torch.contiguous_format, *forms):
        images = images_of(shape).to(dtype).contiguous(memory_format=form)
        with torch.no_grad():
            own = model(images)
            assert own.abs().max() > 0
            assert (graph(images) - own).abs().max() <= tolerance * own.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_densenet(dtype: torch.dtype) -> None:
    case = NETS["densenet121"]
    shape = case.shapes[0]
    model = case.build().to(dtype)
    plain = capture(model, shape, dtype, CPU)
    graph = lowered(model, shape, dtype)
    # Of each layer the second batch norm lies behind a convolution that nothing else reads.
    layers = kinds_of(plain)["cat"] - 4  # one a layer, and one a block
    assert layers == 9
    found = [n for n in graph.nodes if isinstance(n.kind, PreActivation)]
    assert len(found) == layers + 4
    assert sorted(len(n.args[0]) for n in found) == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    kinds = kinds_of(graph)
    assert (kinds["batch_norm"], kinds["cat"], kinds["relu"]) == (0, 0, 0)
    assert all(graph.nodes[i].own for n in found for i in n.inputs[-2:])
    check_values(model, graph, shape, dtype)


@pytest.mark.parametrize("shape", [(2, 40), SHAPE, (1, 9, 8, 7)], ids=["1d", "2d", "3d"])
def test_preactivation_units(shape: tuple[int, ...]) -> None:
    axes = len(shape) - 1
    model = made(lambda: PreActivationNet(shape[0], axes), shape)
    for dtype in (torch.float32, torch.float64):
        graph = lowered(model.to(dtype), shape, dtype)
        kinds = kinds_of(graph)
        assert (kinds["preactivation"], kinds["batch_norm"], kinds["relu"]) == (4, 0, 0)
        check_values(model, graph, shape, dtype)
    check_drops(model.float(), shape)


@pytest.mark.parametrize("body", BODIES)
def test_what_is_fused(body: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
    counts, left = BODIES[body]
    model = made(lambda: Net(body), SHAPE)
    graph = lowered(model, SHAPE)
    found = [n for n in graph.nodes if isinstance(n.kind, PreActivation)]
    assert [len(n.args[0]) for n in found] == counts
    assert sum(isinstance(n.kind, BatchNorm) for n in graph.nodes) == left
    check_values(model, graph, SHAPE, torch.float32)
    check_drops(model, SHAPE, merged=True)


def test_as_the_output() -> None:
    """The ReLU may be what the model returns; the batch norm in front of it may not."""

    class Out(nn.Module):
        def __init__(self, relu: bool) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.relu = relu

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.conv(x), self.conv(x)[:, :0]], 1)
            return F.relu(self.norm(x)) if self.relu else self.norm(x)

    for relu in (True, False):
        model = made(lambda relu=relu: Out(relu), SHAPE)  # type: ignore[misc]
        graph = lowered(model, SHAPE)
        assert kinds_of(graph)["preactivation"] == relu
        check_values(model, graph, SHAPE, torch.float32)


def test_where_the_model_rounds_nothing_is_fused() -> None:
    """Under autocast the maps have another dtype than the image."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.last = nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.conv(x)
                return self.last(F.relu(self.norm(y + y))).float().mean((2, 3))

    assert kinds_of(lowered(made(Half, SHAPE), SHAPE))["preactivation"] == 0
    assert kinds_of(lowered(AUTOCAST.build(), AUTOCAST.shapes[0]))["preactivation"] == 0


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_windows_hold_what_the_map_holds(form: torch.memory_format) -> None:
    """Bit for bit: what has not changed must not differ."""
    case = NETS["densenet"]
    graph = lowered(case.build(), case.shapes[0])
    node = next(n for n in graph.nodes if isinstance(n.kind, PreActivation) and len(n.args[0]) > 1)
    images = case.images(count=2).contiguous(memory_format=form)
    window = (..., slice(2, 7), slice(1, 8))
    with torch.no_grad():
        values = graph.replay(images, [node.index, *node.inputs])
        part = {i: values[i][window] if graph.nodes[i].spatial else values[i] for i in node.inputs}
        size = values[node.index][window].shape[2:]
        where = Where(torch.tensor([[2, 1]] * 2), tuple(size))
        found = node.kind.windows(node, part, dict.fromkeys(part, where), where)
    assert torch.equal(found, values[node.index][window])
