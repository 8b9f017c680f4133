"""The node table: replay equals model; fields; folding; what is refused."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backsight.graph import (
    CaptureError,
    Graph,
    Packs,
    capture,
    fold_batch_norms,
    lower,
    projective_fields,
    receptive_field,
)
from backsight.graph.kinds import MAX_POOLS, Convolution, separable_max
from nets import NETS, alexnet, random_images, resnet18, resnet50, squeezenet1_1, vgg16

CPU = torch.device("cpu")
CAPTURED = [name for name, case in NETS.items() if case.capture]


def captured(name: str, dtype: torch.dtype = torch.float32) -> tuple[Graph, nn.Module]:
    case = NETS[name]
    model = case.build().to(dtype)
    return capture(model, case.shapes[0], dtype, CPU), model


@pytest.mark.parametrize("name", CAPTURED)
def test_replay_equals_model(name: str) -> None:
    graph, model = captured(name)
    case = NETS[name]
    for count in (1, 2, 7):
        images = case.images(count=count, seed=count)
        with torch.no_grad():
            assert torch.equal(graph(images), model(images))


@pytest.mark.parametrize("name", CAPTURED)
def test_folded_and_lowered_replay_equals_model(name: str) -> None:
    """Folding batch norms and fusing changes rounding alone; the model keeps its weights."""
    graph, model = captured(name, torch.float64)
    before = copy.deepcopy(model.state_dict())
    case = NETS[name]
    images = case.images(count=2).double()
    with torch.no_grad():
        own = model(images)
        for graph_ in (fold_batch_norms(graph), lower(fold_batch_norms(graph), Packs())):
            assert (graph_(images) - own).abs().max() <= 1e-12 * own.abs().max()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2", "conv3d"])
def test_lowered_fp32(name: str) -> None:
    graph, model = captured(name)
    images = NETS[name].images(count=2)
    with torch.no_grad():
        own = model(images)
        assert (
            lower(fold_batch_norms(graph), Packs())(images) - own
        ).abs().max() <= 1e-4 * own.abs().max()


def test_batch_norms_are_folded() -> None:
    graph, _ = captured("resnet18")
    assert sum(n.kind.name == "batch_norm" for n in graph.nodes) == 20
    assert not any(n.kind.name == "batch_norm" for n in fold_batch_norms(graph).nodes)


def field_of(model: nn.Module, kind: str, which: int, size: int = 512) -> int:
    """Receptive field of the `which`-th node of a kind."""
    graph = capture(model.eval(), (3, size, size), torch.float32, CPU)
    nodes = [n for n in graph.nodes if n.spatial and n.kind.name == kind]
    fields = receptive_field(graph, nodes[which].index)
    assert fields[0] == fields[1]
    return fields[0].size


def test_known_receptive_fields() -> None:
    vgg = vgg16("gap", 10, 1 / 16)
    assert field_of(vgg, "conv", 6) == 40  # conv3_3
    assert field_of(vgg, "conv", 9) == 92  # conv4_3
    assert field_of(vgg, "conv", 12) == 196  # conv5_3
    assert field_of(vgg, "max_pool", 4) == 212  # pool5
    assert field_of(alexnet(10, 1 / 16), "max_pool", 2) == 195
    assert field_of(squeezenet1_1(10, 1 / 8), "conv", -1) == 207
    assert field_of(resnet18(10, 1 / 8), "add", -1) == 435
    assert field_of(resnet50(10, 1 / 16), "add", -1) == 427
    assert field_of(resnet50(10, 1 / 16, stride_first=True), "add", -1) == 483


def test_receptive_field_of_resnet34() -> None:
    class Block(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, stride, 1)
            self.second = nn.Conv2d(3, 3, 3, 1, 1)
            self.short = nn.Conv2d(3, 3, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.second(F.relu(self.first(x))) + self.short(x))

    strides = [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]
    model = nn.Sequential(
        nn.Conv2d(3, 3, 7, 2, 3), nn.MaxPool2d(3, 2, 1), *map(Block, strides), nn.Flatten()
    )
    assert field_of(model, "add", -1) == 899


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "inception_block", "densenet", "conv1d", "conv3d"]
)
def test_projective_field_is_what_changes(name: str) -> None:
    """What a changed pixel moves lies inside the projective field, and touches its every side
    somewhere.
    """
    graph, _ = captured(name, torch.float64)
    case = NETS[name]
    maps = [n.index for n in graph.nodes if n.spatial]
    image = case.images().double()
    at = [n // 2 for n in case.shapes[0][1:]]
    fields = projective_fields(graph, torch.tensor([at]).numpy(), torch.tensor([at]).numpy() + 1)
    moved = image.clone()
    moved[(..., *at)] += 3.0
    with torch.no_grad():
        before, after = graph.replay(image, maps), graph.replay(moved, maps)
    tight = 0
    for i in maps:
        changed = (before[i] != after[i]).any(1)[0]
        start, stop = (f[0] for f in fields[i])
        inside = torch.zeros_like(changed)
        inside[tuple(slice(s, e) for s, e in zip(start, stop, strict=True))] = True
        assert not (changed & ~inside).any()
        tight += bool((changed == inside).all())
    assert tight >= 2


def test_training_mode_is_refused() -> None:
    for module in (nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Dropout2d(0.1)):
        model = nn.Sequential(module, nn.Flatten()).train()
        with pytest.raises(ValueError, match=r"evaluation mode.*call model\.eval"):
            capture(model, (3, 8, 8), torch.float32, CPU)


def test_functional_dropout_is_refused_whatever_the_mode() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5).flatten(1)

    with pytest.raises(ValueError, match="dropout in training mode"):
        capture(Net().eval(), (3, 8, 8), torch.float32, CPU)


def test_what_cannot_be_captured_says_why() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + torch.randn_like(x)).flatten(1)

    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).mean(0)

    for model, reason in ((Branch(), "data-dependent"), (Noise(), "random"), (Mixed(), "batch")):
        with pytest.raises(CaptureError, match=reason):
            capture(model, (3, 8, 8), torch.float32, CPU)


class InPlace(nn.Module):
    """In-place operations on values that are read again, under the same name or through a view."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        part = y[:, :2]
        if self.view:
            part.relu_()  # writes into y
        else:
            part = part * 2
            y.relu_()
            y.add_(1.0)
        return torch.cat([y, part], 1).flatten(1)


@pytest.mark.parametrize("view", [False, True])
def test_in_place_operations(view: bool) -> None:
    model = InPlace(view)
    graph = capture(model, (3, 9, 7), torch.float32, CPU)
    x = torch.randn(3, 3, 9, 7)
    with torch.no_grad():
        assert torch.equal(graph(x), model(x))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_maxima_axis_by_axis_are_torch_s(axes: int, dtype: torch.dtype) -> None:
    pool = MAX_POOLS[axes]
    x = random_images((5, 13, 11, 12)[: axes + 1], 3, seed=1).to(dtype)
    x.view(-1)[::7] = -torch.inf
    x.view(-1)[::31] = torch.nan
    for kernel, stride, dilation in product((1, 2, 3), (1, 2, 3), (1, 2)):
        sizes = [kernel, 2, 1][:axes], [stride, 1, 2][:axes], [dilation, 1, 3][:axes]
        found, expected = separable_max(x, *sizes), pool(x, sizes[0], sizes[1], 0, sizes[2])
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(9.0), expected.nan_to_num(9.0))


@pytest.mark.parametrize("axes", [2, 3])
def test_single_channels_convolved_into_single_cells(axes: int) -> None:
    """oneDNN misreads such windows where they lie with their channels last."""
    torch.manual_seed(0)
    convolution = (nn.Conv2d, nn.Conv3d)[axes - 2]
    model = nn.Sequential(convolution(1, 8, 2, (1,) * (axes - 1) + (3,)), nn.ReLU()).eval()
    graph = lower(capture(model, (1, *[9] * axes), torch.float32, CPU), Packs())
    node = graph.nodes[graph.output]
    assert isinstance(node.kind, Convolution)  # with the ReLU in it
    _, weight, bias, *rest = node.args
    constants = [graph.nodes[ref.index].value for ref in (weight, bias)]
    for width in range(2, 9):
        for rows in (2, 3, 7):
            x = torch.randn(5, rows, *[4] * (axes - 2), width, 1).movedim(-1, 1)
            with torch.no_grad():
                found = node.target(x, *constants, *rest)
                expected = copy.deepcopy(model).double()(x.double())
            assert expected.std() > 0.1
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
