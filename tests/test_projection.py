"""Units projected back to pixels: against whole-image autograd, by identities; what is refused."""

from __future__ import annotations

import copy
import itertools
import random
import zlib
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

import backsight
from backsight import ops
from nets import NETS, Shape
from projection_oracle import layers_of, projected

RULES = {
    "gradient": {"rule": "gradient", "seed": 1.0, "lrn": "gradient"},
    "guided": {"rule": "guided", "seed": 1.0, "lrn": "gradient"},
    "deconvnet": {"rule": "deconvnet", "seed": "activation", "lrn": "pass"},
}
CAPTURED = [name for name, case in NETS.items() if case.capture]
#: Those that torch can differentiate: "spellings" overwrites what its own backward asks for.
DIFFERENTIABLE = [name for name in CAPTURED if name != "spellings"]


def units_of(shape: Shape, seed: int) -> list[tuple[int, ...]]:
    """Units of two images in corners, on edges and at random places."""
    rng = random.Random(seed)
    corners = list(itertools.product(*({0, n - 1} for n in shape[1:])))
    places = [rng.choice(corners), tuple(rng.randrange(n) for n in shape[1:])]
    edge = list(places[1])
    edge[rng.randrange(len(edge))] = 0
    return [(rng.randrange(2), rng.randrange(shape[0]), *place) for place in (*places, tuple(edge))]


def assert_equal(found: backsight.Projection, expected: Tensor, tolerance: float) -> None:
    """Each picture is the whole-image pass in its box, which is exactly 0 outside; some are not."""
    moved = 0
    for unit in range(len(found)):
        whole, theirs = found.whole(unit), expected[unit]
        largest = float(theirs.abs().max())
        moved += largest > 0
        assert float((whole - theirs).abs().max()) <= tolerance * largest
        axes = len(found.image_size)
        box = found.boxes[unit].tolist()
        slices = tuple(slice(a, b) for a, b in zip(box[:axes], box[axes:], strict=True))
        outside = theirs.clone()
        outside[(slice(None), *slices)] = 0
        assert not outside.any()
        assert torch.equal(found.crop(unit), whole[(slice(None), *slices)])
    assert moved, "no unit has a signal"


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_is_autograd_s(name: str) -> None:
    """Single units of some layers, the strongest of a channel, and a class's score, in fp64."""
    case = NETS[name]
    model, images = case.build().double(), case.images(count=2, seed=3).double()
    shapes = layers_of(model, images)
    # Each network at a layer somewhere; all layers of several below.
    for layer in list(shapes)[zlib.crc32(name.encode()) % max(1, len(shapes)) :][:1]:
        units = units_of(shapes[layer], seed=1)
        found = backsight.project(model, images, layer, units, rule="gradient")
        # A unit may be beyond what reads the image; a whole layer is not.
        expected = projected(model, images, layer, units, 1.0)
        if expected.any():
            assert_equal(found, expected, 1e-9)
        assert torch.equal(found.units, torch.tensor(units))
    found = backsight.project(model, images, rule="gradient")
    units = [tuple(row) for row in found.units.tolist()]
    assert_equal(found, projected(model, images, None, units, 1.0), 1e-9)


ARCHITECTURES = [
    "vgg16_fc",
    "alexnet",
    "caffenet",
    "squeezenet1_1",
    "resnet18",
    "inception_block",
    "densenet",
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rules_equal_the_whole_image_pass(name: str) -> None:
    """Every layer, units at corners and edges; also in fp32."""
    case, rules = NETS[name], ("guided", "deconvnet")
    model, images = case.build().double(), case.images(count=2, seed=3).double()
    shapes = layers_of(model, images)
    assert len(shapes) > 5
    alive = dict.fromkeys(rules, 0)
    for index, (layer, shape) in enumerate(shapes.items()):
        units = units_of(shape, seed=index)
        for rule in rules:
            expected = projected(model, images, layer, units, **RULES[rule])
            if expected.any():
                alive[rule] += 1
                found = backsight.project(model, images, layer, units, **RULES[rule])
                assert_equal(found, expected, 1e-9)
    assert min(alive.values()) > 0.8 * len(shapes)
    layer = list(shapes)[len(shapes) // 2]
    units = units_of(shapes[layer], seed=9)
    expected = {rule: projected(model, images, layer, units, **RULES[rule]) for rule in rules}
    model, images = model.float(), images.float()
    for rule in rules:
        found = backsight.project(model, images, layer, units, rule=rule)
        assert_equal(found, expected[rule].float(), 1e-5)


@pytest.mark.parametrize("lrn", ["pass", "gradient"])
@pytest.mark.parametrize("unpool", ["add", "set"])
def test_overlapping_pools_and_norms(unpool: str, lrn: str) -> None:
    """All settings of a network of overlapping pools with local response norms differ."""
    case = NETS["caffenet"]
    model, images = case.build().double(), case.images(count=2, seed=3).double()
    layer, shape = list(layers_of(model, images).items())[-2]
    units = units_of(shape, seed=2)
    pictures = []
    for u, n in itertools.product(("add", "set"), ("pass", "gradient")):
        arguments: dict[str, Any] = {"rule": "deconvnet", "unpool": u, "lrn": n}
        found = backsight.project(model, images, layer, units, **arguments)
        if (u, n) == (unpool, lrn):
            expected = projected(model, images, layer, units, "activation", **arguments)
            assert_equal(found, expected, 1e-9)
        pictures.append(found.pictures)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(pictures, 2))


@pytest.mark.parametrize("path", ["auto", "torch"])
@pytest.mark.parametrize("layer", ["6", "3"])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("rule", ["deconvnet", "gradient", "guided"])
def test_pools_go_back_together_with_their_convolutions(
    rule: str, rectified: bool, layer: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step where nothing of the way forward lies between; and to the same pictures."""
    monkeypatch.setenv("BACKSIGHT_DECONV", path)
    taken: list[tuple[int, ...]] = []
    fused = ops.unpool_deconv

    def counted(*args: Any, **named: Any) -> Tensor:
        taken.append(fused(*args, **named).shape)
        return fused(*args, **named)

    monkeypatch.setattr(ops, "unpool_deconv", counted)
    torch.manual_seed(0)
    relu = nn.ReLU if rectified else nn.Identity
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 5, 2, 1), relu(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(6, 20, 3, 1, 1), relu(), nn.MaxPool2d(2, 2, ceil_mode=True)),
        *(nn.Conv2d(20, 9, 3, 1, 1), nn.ReLU()),
    ).double()
    images = torch.randn(2, 3, 61, 58, dtype=torch.float64)
    shape = tuple(model[: int(layer) + 1](images).shape[1:])
    units = units_of(shape, seed=4)
    found = backsight.project(model, images, layer, units, **RULES[rule])
    assert_equal(found, projected(model, images, layer, units, **RULES[rule]), 1e-9)
    joins = path == "auto" and (rule == "deconvnet" or not rectified)
    assert len(taken) == (int(layer) // 3 if joins else 0)
    assert {shape[1] for shape in taken} == ({3, 6} if len(taken) == 2 else {3} if taken else set())


class Spelt(nn.Module):
    """Two convolutions, each with a ReLU in one of its spellings."""

    def __init__(self, spelling: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.relu = nn.ReLU(inplace=spelling == 1)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        spellings = (
            nn.ReLU(),
            self.relu,  # in place
            self.relu,  # one module twice
            nn.functional.relu,
            Tensor.relu,
            lambda x: x.clamp(min=0),
            lambda x: x.clamp_min(0),
        )
        relu = spellings[self.spelling]
        return relu(self.conv2(relu(self.conv1(x)))).mean((2, 3))


@pytest.mark.parametrize("rule", ["gradient", "deconvnet", "guided"])
def test_spellings_of_relu_agree_exactly(rule: str) -> None:
    images = torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(1))
    found = [backsight.project(Spelt(s).eval(), images, rule=rule).pictures for s in range(7)]
    assert found[0].any()
    assert all(torch.equal(found[0], other) for other in found[1:])


def convolutions() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 4),
    ).eval()
    return model, torch.randn(2, 3, 23, 23)


@pytest.mark.parametrize("rule", ["gradient", "deconvnet", "guided"])
def test_a_unit_of_the_first_convolution_is_its_filter(rule: str) -> None:
    """Activation times the filter at the receptive field, exactly 0 elsewhere."""
    model, images = convolutions()
    found = backsight.project(model, images, "0", [[1, 5, 4, 3]], rule=rule, seed="activation")
    with torch.no_grad():
        value = model[0](images)[1, 5, 4, 3]
    assert found.boxes.tolist() == [[7, 5, 12, 10]]
    expected = torch.zeros(3, 23, 23)
    expected[:, 7:12, 5:10] = value * model[0].weight[5]
    torch.testing.assert_close(found.whole(0), expected, rtol=1e-6, atol=1e-7)
    assert found.whole(0)[:, :7].abs().max() == 0
    torch.testing.assert_close(found.activations[0], value)


def test_the_kept_unit_of_a_volume() -> None:
    """A 5 x 5 x 256 volume, of which the unit in the third column, second row is kept."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 256, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)).eval()
    images = torch.randn(1, 3, 23, 23)
    with torch.no_grad():
        volume = model(images)
    assert volume.shape == (1, 256, 5, 5)
    channel = int(volume[0, :, 1, 2].argmax())
    kept = torch.zeros_like(volume)
    kept[0, channel, 1, 2] = volume[0, channel, 1, 2]
    single = backsight.project(model, images, "2", [[0, channel, 1, 2]])
    whole = backsight.project(model, images, "2", [[0]], seed=kept)
    assert single.pictures.any()
    torch.testing.assert_close(single.whole(0), whole.whole(0), rtol=1e-6, atol=1e-7)
    assert torch.equal(single.whole(0) == 0, whole.whole(0) == 0)


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_positive_homogeneity(rule: str) -> None:
    model, images = convolutions()
    units = [[0, 2, 3, 3], [1, 4, 0, 4]]
    one, two = (backsight.project(model, images, "4", units, rule=rule, seed=s) for s in (1.0, 8.0))
    assert one.pictures.any()
    assert torch.equal(8 * one.pictures, two.pictures)
    each = backsight.project(model, images, "4", units, rule=rule, seed=torch.tensor([8.0, 1.0]))
    assert torch.equal(each.pictures, torch.stack([two.pictures[0], one.pictures[1]]))


def test_two_captures_serve_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whatever changes the model asks for new ones."""
    model, images = NETS["vgg16_gap"].build(), NETS["vgg16_gap"].images()
    captures = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        captures.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)

    def picture(layer: str) -> Tensor:
        found: Tensor = backsight.project(model, images, layer, [[0, 1]]).pictures
        assert found.any()
        return found

    layers = list(layers_of(model, images))
    before = {layer: picture(layer) for layer in layers[:6]}
    assert len(captures) == 2
    assert all(torch.equal(picture(layer), before[layer]) for layer in before)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert not torch.equal(picture(layers[3]), before[layers[3]])
    assert len(captures) == 3


def test_without_relu_the_rules_agree() -> None:
    model, images = convolutions()
    found = [
        backsight.project(model, images, "0", [[0, 1, 2, 3], [0, 2, 9, 0]], rule=rule, seed=1.0)
        for rule in ("gradient", "deconvnet", "guided")
    ]
    assert found[0].pictures.any()
    assert torch.equal(found[0].pictures, found[1].pictures)
    assert torch.equal(found[0].pictures, found[2].pictures)


@pytest.mark.parametrize(
    ("rule", "peer"),
    [
        ("guided", captum.attr.NeuronGuidedBackprop),
        ("deconvnet", captum.attr.NeuronDeconvolution),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.filterwarnings("ignore:Setting forward")
def test_captum_agrees_on_modules(rule: str, peer: Any) -> None:
    model, images = convolutions()
    unit = (3, 2, 1)
    own = copy.deepcopy(model)
    theirs = peer(own, own[3]).attribute(images.clone().requires_grad_(), unit)
    units = [[n, *unit] for n in range(2)]
    found = backsight.project(model, images, "3", units, rule=rule, seed=1.0)
    assert_equal(found, theirs.detach(), 1e-5)


def test_strongest_and_top() -> None:
    model, images = convolutions()
    with torch.no_grad():
        layer = model[:5](images)
    found = backsight.project(model, images, "4", [[1, 3], [0, 5]])
    for row, (n, c) in zip(found.units.tolist(), ((1, 3), (0, 5)), strict=True):
        place = divmod(int(layer[n, c].flatten().argmax()), layer.shape[3])
        assert row == [n, c, *place]
    top = backsight.project(model, images, "4", 2)
    best = layer.flatten(2).amax(2).topk(2)
    assert top.units[:, :2].tolist() == [[n, c] for n in range(2) for c in best.indices[n].tolist()]
    torch.testing.assert_close(top.activations, best.values.flatten())
    # Ties go to the first position.
    flat = backsight.project(model, torch.zeros_like(images), "3", [[0, 0]])
    with torch.no_grad():
        value = model[:4](torch.zeros_like(images))[0, 0]
    assert value[tuple(found.units[0, 2:])] is not None
    assert flat.units[0, 2:].tolist() == list(divmod(int(value.flatten().argmax()), value.shape[1]))


def test_units_do_not_depend_on_their_neighbours() -> None:
    """The same pictures, alone or with others, from one pass over the images or from several."""
    case = NETS["squeezenet1_1"]
    model, images = case.build(), case.images(count=3, seed=3)
    layer, shape = list(layers_of(model, images).items())[12]
    units = [
        (n, c, *place)
        for n in (2, 0, 1)
        for c in (0, 3)
        for place in itertools.product(*(range(0, s, 2) for s in shape[1:]))
    ]
    together = backsight.project(model, images, layer, units)
    some = backsight.project(model, images, layer, units[5:40:7], memory=1)
    assert together.pictures.any()
    assert torch.equal(together.boxes[5:40:7], some.boxes)
    torch.testing.assert_close(together.pictures[5:40:7], some.pictures, rtol=1e-5, atol=1e-6)


def test_further_arguments_and_outputs() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, factor: Tensor) -> dict[str, Tensor]:
            y = self.conv(x).relu() * factor[:, None, None, None]
            return {"maps": y, "logits": y.mean((2, 3))}

    torch.manual_seed(0)
    model, images = Scaled().eval(), torch.randn(2, 3, 9, 9)
    factor = torch.tensor([1.0, 4.0])
    arguments: dict[str, Any] = {"additional_forward_args": [factor], "rule": "gradient"}
    found = backsight.project(model, images, None, [[0, 1], [1, 1]], **arguments)
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(x, factor)["logits"][:, 1].sum(), x)
    torch.testing.assert_close(found.pictures, expected)
    dense = backsight.project(model, images, None, [[1, 1, 3, 3]], output="maps", **arguments)
    assert dense.pictures.shape == (1, 3, 3, 3)


def test_nothing_is_left_behind() -> None:
    model, images = convolutions()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    backsight.project(model, images.requires_grad_(), "4", 2)
    for bad in ({"layer": "nowhere"}, {"units": [[0, 99, 0, 0]], "layer": "4"}):
        with pytest.raises(ValueError, match="expected"):
            backsight.project(model, images, **bad)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert modes == [m.training for m in model.modules()]
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layer": "5x"}, r"expected a layer of the model, such as 5.* got '5x'"),
        ({"layer": "4", "units": [[0, 6, 0, 0]]}, r"layer of \(6, 5, 5\), got \(0, 6, 0, 0\)"),
        ({"layer": "4", "units": [[0, 5, 0, 5]]}, r"layer of \(6, 5, 5\), got \(0, 5, 0, 5\)"),
        ({"layer": "4", "units": [[2, 5]]}, r"within 2 images .* got \(2, 5\)"),
        ({"layer": "4", "units": [[0, 1, 2]]}, r"\(units, 1 or 2 or 4\).* got \(1, 3\)"),
        ({"layer": "4", "units": [[0.5, 1.0]]}, r"as integers .* got \(1, 2\) torch.float32"),
        ({"layer": "4", "units": [[0, 1], [0]]}, r"all of one length"),
        ({"layer": "4", "units": 7}, r"from 1 to 6 units an image, .* got 7"),
        ({"rule": "backprop"}, r"'gradient' or 'deconvnet' or 'guided', got 'backprop'"),
        ({"unpool": "max"}, r"'add' or 'set', got 'max'"),
        ({"lrn": "skip"}, r"'pass' or 'gradient', got 'skip'"),
        ({"seed": "value"}, r"'activation', got 'value'"),
        ({"layer": "4", "seed": torch.ones(3)}, r"\(2,\) or \(2, 6, 5, 5\), got \(3,\)"),
        ({"memory": 0}, r"positive number of bytes, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], sentence: str) -> None:
    model, images = convolutions()
    with pytest.raises(ValueError, match=sentence):
        backsight.project(model, images, **arguments)


def test_guided_without_relu_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 49, 3)).eval()
    images = torch.randn(1, 3, 9, 9)
    with pytest.raises(ValueError, match="expected a model with ReLUs for rule='guided'"):
        backsight.project(model, images, rule="guided")
    found = [backsight.project(model, images, rule=r, seed=1.0) for r in ("deconvnet", "gradient")]
    assert found[0].pictures.any()
    assert torch.equal(found[0].pictures, found[1].pictures)


def test_what_cannot_be_captured_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * float(x.abs().sum() >= 0)

    with pytest.raises(ValueError, match="expected a model whose graph can be captured"):
        backsight.project(Branching().eval(), torch.randn(1, 3, 9, 9))
