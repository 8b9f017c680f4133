"""The drop-in against captum itself, and against the truth in fp64."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from backsight.captum import Occlusion
from backsight.methods import occlusion as method
from nets import NETS, random_images, seeded

# Of the largest attribution.
CLOSE = 1e-5
# The most rows that a sweep by windows sends through the model itself, to check what it captured.
OWN_ROWS = 6


class Counted(nn.Module):
    """Counts the rows that run through a model (of its first input), except while it is traced."""

    rows = 0

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        if isinstance(inputs[0].shape[0], int) and not torch.compiler.is_compiling():
            Counted.rows += inputs[0].shape[0]
        return self.model(*inputs)


class TwoImages(nn.Module):
    """Two images of different sizes, and features; forward's order is not the calls'."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 6, 3, 2, 1)
        self.tall = nn.Conv2d(3, 6, 5, 2, 2)
        self.features = nn.Linear(5, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        left = self.wide(a).relu().mean((2, 3))
        right = self.tall(b).relu().amax((2, 3))
        return self.fc(left * self.features(c) + right)


class Scaled(nn.Module):
    """An image with further arguments: a tensor per example, a number and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 3))

    def forward(self, x: Tensor, weight: Tensor, power: float = 1.0, flip: bool = False) -> Tensor:
        maps = self.net(x.flip(-1) if flip else x)
        return maps.mean((2, 3)).exp() * weight[:, None] ** power


class Pixels(nn.Module):
    """Dense outputs (batch, classes, *size)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Mixing(nn.Module):
    """Scores of an image that depend on the rest of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu().mean((2, 3))
        return maps - maps.mean(0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 4))


def noisy() -> nn.Module:
    """Dropout and a batch norm in training mode."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).train()


@functools.lru_cache
def net(name: str) -> nn.Module:
    return NETS[name].build()


@functools.lru_cache
def made(make: Callable[[], nn.Module]) -> nn.Module:
    return seeded(make).eval() if make is not noisy else seeded(make)


def images(name: str, count: int = 2) -> Tensor:
    return NETS[name].images(count=count)


@dataclass
class Case:
    """A model, its inputs, and the arguments of `attribute`."""

    model: Callable[..., Any]
    inputs: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    windows: bool = True
    rows: int = OWN_ROWS  # by windows, at most
    dtype: torch.dtype = torch.float32

    def in_dtype(self, dtype: torch.dtype) -> tuple[Callable[..., Any], Any, dict[str, Any]]:
        """Model, inputs and arguments with all floating-point tensors of a dtype."""
        model = self.model
        if isinstance(model, nn.Module):
            model = copy.deepcopy(model).to(dtype)
        elif hasattr(model, "inner"):
            model = model.of(copy.deepcopy(model.inner).to(dtype))
        return model, cast(self.inputs, dtype), cast(self.arguments, dtype)


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(cast(v, dtype) for v in value)
    if isinstance(value, dict):
        return {k: cast(v, dtype) for k, v in value.items()}
    return value


class After:
    """A function over a model, that no module is."""

    def __init__(self, inner: nn.Module, then: Callable[[Tensor], Any]) -> None:
        self.inner, self.then = inner, then

    def of(self, inner: nn.Module) -> After:
        return After(inner, self.then)

    def __call__(self, *inputs: Any) -> Any:
        return self.then(self.inner(*inputs))


def grids() -> dict[str, Case]:
    """Windows over all channels: models x windows x strides x baselines x targets x evaluations."""
    sizes = {
        "resnet18": [
            ((3, 17, 12), (3, 11, 9)),
            ((3, 20, 16), (1, 20, 16)),
            ((3, 65, 9), (2, 70, 8)),
        ],
        "flat": [((3, 9, 7), 3), ((3, 8, 8), (3, 5, 8)), ((3, 4, 25), (3, 3, 1))],
        "conv1d": [((3, 15), (3, 7)), ((3, 30), (1, 30)), ((3, 9), 3)],
        "conv3d": [((2, 3, 7, 5), (2, 2, 7, 5)), ((2, 7, 9, 8), (1, 1, 4, 5))],
        "group_norm": [((3, 21, 14), (3, 15, 9)), ((3, 13, 49), (3, 7, 2))],
        "preprocessed": [((3, 11, 8), (3, 6, 7)), ((3, 8, 8), (3, 8, 5))],
        "linear": [((3, 16, 12), (3, 10, 11))],
    }
    baselines: list[Callable[[Tensor], Any]] = [
        lambda x: None,
        lambda x: 0.4,
        lambda x: x.flip(-1)[:1],
        lambda x: 1,
        lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
        lambda x: torch.linspace(-1, 1, x.shape[1]).view(-1, *[1] * (x.ndim - 2)),
        lambda x: torch.tensor(0.25),
    ]
    targets: list[Any] = [
        2,
        [1, 3],
        torch.tensor([0, 6]),
        None,
        (4,),
        -1,
        torch.tensor(5),
        torch.tensor([3]),
        [(2,), (0,)],
    ]
    dtypes = [torch.float32, torch.float32, torch.float64]
    found, turn = {}, itertools.count()
    for name, places in sizes.items():
        for window, stride in places:
            for per_eval in (1, 3, 50):
                i = next(turn)
                x = images(name)
                arguments = {
                    "sliding_window_shapes": window,
                    "strides": stride,
                    "baselines": baselines[i % len(baselines)](x),
                    "target": targets[i % len(targets)],
                    "perturbations_per_eval": per_eval,
                }
                case = Case(net(name), x, arguments, dtype=dtypes[i % len(dtypes)])
                found[f"{name}-{i}"] = case
    return found


def others() -> dict[str, Case]:
    x = images("resnet18")
    place = {"sliding_window_shapes": (3, 17, 12), "strides": (3, 11, 9)}
    resnet = net("resnet18")
    three = (
        random_images((2, 17, 23), 3, 1),
        random_images((3, 25, 19), 3, 2),
        torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    )
    places = {
        "sliding_window_shapes": ((2, 5, 6), (3, 9, 7), (2,)),
        "strides": ((2, 3, 4), (3, 4, 7), 2),
    }
    features = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    weight = torch.tensor([0.5, 2.0])
    small = random_images((3, 21, 18), 2, 4)
    pixel = {"sliding_window_shapes": (3, 7, 6), "strides": (3, 5, 4)}
    counts = torch.randint(-5, 6, (3, 4, 6), generator=torch.Generator().manual_seed(2))
    return {
        # Windows over a part of the channels.
        "channels-1": Case(
            resnet, x, {"sliding_window_shapes": (1, 17, 12), "strides": (1, 15, 12), "target": 1}
        ),
        "channels-2": Case(
            resnet,
            x,
            {
                "sliding_window_shapes": (2, 17, 12),
                "strides": (1, 17, 11),
                "target": [2, 0],
                "baselines": 0.2,
            },
        ),
        "channels-cut": Case(
            net("flat"),
            images("flat"),
            {
                "sliding_window_shapes": (2, 9, 8),
                "strides": (2, 7, 8),
                "target": 3,
                "perturbations_per_eval": 7,
            },
            dtype=torch.float64,
        ),
        "channels-1d": Case(
            net("conv1d"),
            images("conv1d"),
            {"sliding_window_shapes": (1, 15), "strides": (1, 9), "target": None},
        ),
        "channels-3d": Case(
            net("conv3d"),
            images("conv3d"),
            {"sliding_window_shapes": (1, 4, 9, 9), "strides": (1, 3, 6, 8), "target": 0},
        ),
        # Functions, and several scores.
        "function": Case(After(resnet, lambda s: s.softmax(1)), x, {**place, "target": 1}),
        "function-one-score": Case(After(resnet, lambda s: s[:, 2] - s[:, 3]), x, place),
        "function-64": Case(
            After(net("flat"), lambda s: s.log_softmax(1)),
            images("flat"),
            {**pixel, "target": [1, 2]},
            dtype=torch.float64,
        ),
        "dense-all": Case(made(Pixels), small, pixel),
        "dense-one": Case(made(Pixels), small, {**pixel, "target": (1, 2, 0)}),
        "dense-part": Case(
            made(Pixels), small, {**pixel, "target": (3,), "perturbations_per_eval": 4}
        ),
        "dense-each": Case(made(Pixels), small, {**pixel, "target": [(1, 2, 1), (0, 1, 2)]}),
        "dense-slice": Case(made(Pixels), small, {**pixel, "target": (slice(0, 2), 1)}),
        "one-image": Case(resnet, x[:1], {**place, "target": [4]}),
        "a-tuple-of-one": Case(
            resnet,
            (x,),
            {
                "sliding_window_shapes": ((3, 17, 12),),
                "strides": ((3, 11, 9),),
                "target": 1,
                "baselines": (0.1,),
            },
        ),
        "stride-one": Case(
            net("flat"), images("flat"), {"sliding_window_shapes": (3, 29, 22), "target": 1}
        ),
        # Further arguments and several inputs.
        "arguments": Case(
            made(Scaled),
            small,
            rows=8,
            arguments={**pixel, "target": 1, "additional_forward_args": weight},
        ),
        "arguments-more": Case(
            made(Scaled),
            small,
            rows=8,
            arguments={
                **pixel,
                "target": [1, 4],
                "additional_forward_args": (weight, 2.0, True),
                "perturbations_per_eval": 3,
            },
        ),
        "arguments-64": Case(
            made(Scaled),
            small,
            rows=8,
            arguments={**pixel, "target": None, "additional_forward_args": (weight, 0.5)},
            dtype=torch.float64,
        ),
        "inputs": Case(made(TwoImages), three, rows=30, arguments={**places, "target": 1}),
        "inputs-each": Case(
            made(TwoImages),
            three,
            rows=30,
            arguments={
                **places,
                "target": [0, 3, 1],
                "baselines": (0.5, three[1].flip(0), -1),
                "perturbations_per_eval": 4,
            },
        ),
        "inputs-64": Case(
            made(TwoImages),
            three,
            rows=30,
            arguments={**places, "target": 2, "baselines": (0, 0.1, 0.2)},
            dtype=torch.float64,
        ),
        # What runs whole.
        "features": Case(
            made(mlp),
            features,
            {"sliding_window_shapes": (3,), "strides": 2, "target": 1},
            windows=False,
        ),
        "features-tuple": Case(
            made(mlp),
            features,
            {
                "sliding_window_shapes": (4,),
                "strides": (3,),
                "target": [0, 1, 2, 3],
                "baselines": features[:1],
                "perturbations_per_eval": 2,
            },
            windows=False,
        ),
        "features-64": Case(
            made(mlp),
            features,
            {"sliding_window_shapes": (2,), "perturbations_per_eval": 3},
            windows=False,
            dtype=torch.float64,
        ),
        "numbers": Case(
            lambda a: a**2 + a,
            torch.arange(1.0, 6.0),
            {"sliding_window_shapes": ((),)},
            windows=False,
        ),
        "integers": Case(
            lambda a: a.double().sin().sum((1, 2)),
            counts,
            {"sliding_window_shapes": (3, 2), "strides": (1, 2), "baselines": 2},
            windows=False,
        ),
        "integers-float-baseline": Case(
            lambda a: a.double().cos().sum((1, 2)),
            counts,
            {"sliding_window_shapes": (2, 3), "strides": 2, "baselines": 0.5},
            windows=False,
        ),
        "booleans": Case(
            lambda a: a.float().cumsum(1).sum((1, 2)),
            counts > 0,
            {"sliding_window_shapes": (2, 3)},
            windows=False,
        ),
        "batch-score": Case(After(resnet, lambda s: s[:, 1].sum()), x, place, windows=False),
        "batch-float": Case(After(resnet, lambda s: float(s[:, 1].sum())), x, place, windows=False),
        "data-dependent": Case(
            net("data_dependent"),
            images("data_dependent"),
            {**place, "target": 1, "perturbations_per_eval": 5},
            windows=False,
        ),
        "mixes-the-batch": Case(made(Mixing), small, {**pixel, "target": 1}, windows=False),
        "no-examples-apart": Case(
            After(made(Mixing), lambda s: s.std(0)), small, pixel, windows=False
        ),
        "five-axes": Case(
            lambda a: a.flatten(1).sin().sum(1),
            random_images((2, 4, 5), 6).view(1, 2, 3, 2, 4, 5),
            {"sliding_window_shapes": (1, 2, 2, 3, 3), "strides": (1, 1, 1, 2, 2)},
            windows=False,
        ),
    }


CASES = grids() | others()


def attribute(
    kind: Any, model: Callable[..., Any], inputs: Any, arguments: dict[str, Any]
) -> tuple[Any, int]:
    """Attributions and the rows that ran through the model."""
    Counted.rows = 0
    counted = Counted(model)
    counted.train(isinstance(model, nn.Module) and model.training)
    forward = counted if isinstance(model, nn.Module) else (lambda *given: counted(*given))
    return kind(forward).attribute(inputs, **arguments), Counted.rows


def tuples(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def truth(case: Case) -> tuple[Tensor, ...]:
    """Attributions in fp64, window by window, from the definition alone."""
    model, inputs, arguments = case.in_dtype(torch.float64)
    inputs, count = tuples(inputs), len(tuples(inputs))
    shapes = arguments["sliding_window_shapes"]
    shapes = shapes if isinstance(shapes[0], tuple) else (shapes,)
    strides = arguments.get("strides")
    if strides is None:
        strides = 1
    strides = strides if count > 1 and isinstance(strides, tuple) else (strides,) * count
    baselines = arguments.get("baselines")
    baselines = baselines if isinstance(baselines, tuple) else (baselines,) * count
    further = arguments.get("additional_forward_args", ())

    def scores(*x: Tensor) -> Tensor:
        with torch.no_grad():
            out = torch.as_tensor(model(*x, *tuples(further))).double()
        target = arguments.get("target")
        if target is None:
            return out.flatten()
        if isinstance(target, Tensor):
            target = target.tolist() if target.numel() > 1 else int(target)
        if not isinstance(target, list):
            target = [target] * len(out)
        return torch.stack([row[t] for row, t in zip(out, target, strict=True)]).flatten()

    before, found = scores(*inputs), []
    for i, x in enumerate(inputs):
        stride = strides[i]
        while isinstance(stride, tuple) and len(stride) == 1 and isinstance(stride[0], tuple):
            stride = stride[0]
        stride = stride if isinstance(stride, tuple) else (stride,) * (x.ndim - 1)
        starts = []
        for n, w, s in zip(x.shape[1:], shapes[i], stride, strict=True):
            at = [0]
            while at[-1] + w < n:
                at.append(at[-1] + s)
            starts.append(at)
        total, times = torch.zeros(len(before), *x.shape[1:], dtype=torch.float64), 0
        for corner in itertools.product(*starts):
            mask = torch.zeros(x.shape[1:], dtype=torch.float64)
            mask[tuple(slice(a, a + w) for a, w in zip(corner, shapes[i], strict=True))] = 1
            fill = 0 if baselines[i] is None else baselines[i]
            if isinstance(fill, float):
                fill = torch.tensor(fill, dtype=torch.float64)
            hidden = torch.where(mask.bool(), fill, x)
            if x.dtype == torch.bool:
                hidden = hidden.bool()
            drop = before - scores(*inputs[:i], hidden, *inputs[i + 1 :])
            total += drop.view(-1, *[1] * mask.ndim) * mask
            times = times + mask
        found.append(total / times)
    return tuple(found)


@pytest.mark.parametrize("name", CASES)
def test_parity(name: str) -> None:
    case = CASES[name]
    model, inputs, arguments = case.in_dtype(case.dtype)
    ours, rows = attribute(Occlusion, model, inputs, arguments)
    theirs, their_rows = attribute(captum.attr.Occlusion, model, inputs, arguments)
    assert type(ours) is type(theirs)
    double = case.dtype == torch.float64
    judge = truth(case) if double else None
    for i, (mine, their) in enumerate(zip(tuples(ours), tuples(theirs), strict=True)):
        assert mine.shape == their.shape
        assert mine.dtype == their.dtype == torch.float32
        assert mine.is_contiguous()
        largest = their.abs().max()
        assert largest > 1e-4
        if double:  # right to 1e-9, and then rounded once
            error = (mine.double() - judge[i]).abs()
            assert bool((error <= 1e-9 * largest + 2**-24 * judge[i].abs()).all())
        if (mine - their).abs().max() > CLOSE * largest:
            judge = judge or truth(case)
            error = (mine.double() - judge[i]).abs().max()
            assert error <= (their.double() - judge[i]).abs().max()
            assert error <= 1e-3 * largest
    if case.windows:
        assert rows <= case.rows < their_rows
    else:
        assert rows >= their_rows


def test_enough_cases() -> None:
    assert len(CASES) >= 60
    assert sum(case.windows for case in CASES.values()) >= 40


@pytest.mark.parametrize("name", ["resnet18-0", "features", "batch-score", "inputs-each"])
def test_the_judge_is_captum_s(name: str) -> None:
    """The definition in this file gives what captum gives for a model in fp64."""
    case = CASES[name]
    theirs, _ = attribute(captum.attr.Occlusion, *case.in_dtype(torch.float64))
    for judge, their in zip(truth(case), tuples(theirs), strict=True):
        assert torch.allclose(judge.float(), their, rtol=1e-6, atol=1e-9)
        assert judge.abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_as_near_as_captum(dtype: torch.dtype) -> None:
    """Not exact, and not called so."""
    case = CASES["resnet18-0"]
    model, inputs, arguments = case.in_dtype(dtype)
    judge = truth(Case(model.double(), inputs, arguments))[0]
    model.to(dtype)
    ours = Occlusion(model).attribute(inputs, **arguments)
    theirs = captum.attr.Occlusion(model).attribute(inputs, **arguments)
    assert ours.dtype == theirs.dtype
    assert judge.abs().max() > 1e-2
    error, of_captum = ((found.double() - judge).abs().max() for found in (ours, theirs))
    assert error <= 1.5 * of_captum


@pytest.mark.parametrize("name", ["resnet18-0", "arguments", "inputs"])
def test_autocast_comes_as_near_as_captum(name: str) -> None:
    """By windows, of what the model computes there."""
    case = CASES[name]
    model, inputs, arguments = case.in_dtype(torch.float32)
    full, _ = attribute(Occlusion, model, inputs, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        ours, rows = attribute(Occlusion, model, inputs, arguments)
        theirs, their_rows = attribute(captum.attr.Occlusion, model, inputs, arguments)
    assert rows <= case.rows < their_rows
    for mine, their, other, judge in zip(
        *map(tuples, (ours, theirs, full)), truth(case), strict=True
    ):
        error, of_captum = ((found.double() - judge).abs().max() for found in (mine, their))
        assert error <= 1.5 * of_captum < judge.abs().max()
        assert not torch.equal(mine, other)


@pytest.mark.parametrize("per_eval", [1, 4])
@pytest.mark.parametrize("two", [False, True])
def test_random_models_draw_what_captum_draws(per_eval: int, two: bool) -> None:
    """Dropout and batch norm in training mode, whose running statistics see every batch."""
    x = random_images((3, 17, 14), 3, 5)
    shape, stride = (3, 6, 5), (3, 4, 5)
    found = []
    for kind in (Occlusion, captum.attr.Occlusion):
        net = seeded(noisy)
        model = (lambda a, b, net=net: net(a) * net(b)) if two else net
        torch.manual_seed(0)
        attribution = kind(model).attribute(
            (x, x.flip(0)) if two else x,
            (shape, (3, 9, 9)) if two else shape,
            (stride, (1, 9, 5)) if two else stride,
            target=3,
            perturbations_per_eval=per_eval,
        )
        assert all(m.training for m in net.modules())
        found.append((tuples(attribution), net[1].running_mean.clone()))
    (ours, our_mean), (theirs, their_mean) = found
    for mine, their in zip(ours, theirs, strict=True):
        assert their.abs().max() > 1e-3
        assert torch.allclose(mine, their, rtol=1e-5, atol=1e-6)
    assert torch.allclose(our_mean, their_mean)
    assert our_mean.abs().max() > 1e-3


@pytest.mark.parametrize("count", [1, 3])
def test_an_argument_of_all_examples(count: int) -> None:
    """It has as many entries as there are examples, by chance, and goes with none of them."""
    x = random_images((3, 21, 18), count, 4)
    gains = torch.tensor([0.5, 2.0, -1.0])[:count].view(-1, 1, 1)
    conv = seeded(lambda: nn.Conv2d(3, 4, 5, 2))

    def model(images: Tensor, gains: Tensor) -> Tensor:
        return conv(images * gains).relu().mean((2, 3))

    arguments = {
        "sliding_window_shapes": (3, 8, 7),
        "strides": (3, 7, 5),
        "target": 1,
        "additional_forward_args": gains,
    }
    ours = Occlusion(model).attribute(x, **arguments)
    theirs = captum.attr.Occlusion(model).attribute(x, **arguments)
    assert theirs.abs().max() > 1e-3
    assert (ours - theirs).abs().max() <= CLOSE * theirs.abs().max()


def test_a_model_is_made_ready_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the targets and for the sweep: it means a look at every weight."""
    prepare, calls = method.prepare, []
    monkeypatch.setattr(method, "prepare", lambda *a: calls.append(a) or prepare(*a))
    _, inputs, arguments = CASES["resnet18-0"].in_dtype(torch.float32)
    Occlusion(net("resnet18")).attribute(inputs, **arguments)
    assert len(calls) == 1


def test_changed_weights_count() -> None:
    """Also where the images that are occluded come second."""
    model, inputs, arguments = CASES["inputs"].in_dtype(torch.float64)
    ours = Occlusion(model)
    before = ours.attribute(inputs, **arguments)
    with torch.no_grad():
        model.tall.weight *= -2
        model.fc.weight *= 1.5
    after = ours.attribute(inputs, **arguments)
    theirs = captum.attr.Occlusion(model).attribute(inputs, **arguments)
    for mine, their, old in zip(after, theirs, before, strict=True):
        assert (mine - their).abs().max() <= CLOSE * their.abs().max()
        assert (mine - old).abs().max() > 1e-2 * their.abs().max()


def test_infinity_stays_where_it_is() -> None:
    """An input that holds infinity inside one box does not spoil the others' scores."""
    x = torch.arange(1.0, 7.0).repeat(2, 1)
    x[0, 0] = torch.inf

    def finite(a: Tensor) -> Tensor:
        return a.nan_to_num(nan=1e6, posinf=100.0).sum(1)

    found = Occlusion(finite).attribute(x, (2,), 2)
    assert found.tolist() == [
        [102.0, 102.0, 7.0, 7.0, 11.0, 11.0],
        [3.0, 3.0, 7.0, 7.0, 11.0, 11.0],
    ]


def test_uint8_scores_do_not_wrap() -> None:
    x = torch.arange(1, 5, dtype=torch.uint8).repeat(2, 1)
    model = lambda a: 10 - a[:, 0] * 2 + a[:, 1]  # noqa: E731
    found = Occlusion(model).attribute(x, (1,))
    assert found.tolist() == [[-2.0, 2.0, 0.0, 0.0]] * 2


def test_empty_inputs() -> None:
    x, empty = torch.rand(2, 4), torch.rand(2, 0)

    def model(a: Tensor, b: Tensor) -> Tensor:
        return a.sum(1) + b.sum(1)

    ours = Occlusion(model).attribute((x, empty), ((2,), (0,)))
    theirs = captum.attr.Occlusion(model).attribute((x, empty), ((2,), (0,)))
    assert theirs[0].abs().max() > 0.1
    assert torch.allclose(ours[0], theirs[0])
    assert ours[1].shape == theirs[1].shape == (2, 0)


REFUSALS: dict[str, dict[str, Any]] = {
    "inputs-list": {"inputs": [torch.zeros(2, 3, 9, 8)]},
    "window-list": {"sliding_window_shapes": [3, 4, 4]},
    "window-short": {"sliding_window_shapes": (4, 4)},
    "window-large": {"sliding_window_shapes": (3, 10, 4)},
    "windows-many": {"sliding_window_shapes": ((3, 4, 4), (3, 4, 4))},
    "stride-list": {"strides": [3, 2, 2]},
    "stride-short": {"strides": (2, 2)},
    "stride-large": {"strides": (3, 5, 2)},
    "stride-float": {"strides": 1.5},
    "baseline-text": {"baselines": "mean"},
    "baseline-shape": {"baselines": torch.zeros(1, 3, 9, 7)},
    "baseline-examples": {"baselines": torch.zeros(3, 3, 9, 8)},
    "baseline-none": {"baselines": ()},
    "per-eval-zero": {"perturbations_per_eval": 0},
    "per-eval-float": {"perturbations_per_eval": 2.0},
    "target-large": {"target": 4},
    "target-negative": {"target": -5},
    "target-tuple": {"target": (1, 0)},
    "target-list-short": {"target": [1]},
    "target-list-large": {"target": [1, 4]},
    "target-list-text": {"target": ["cat", "dog"]},
    "target-list-tuples": {"target": [(1,), (4,)]},
    "target-tensor-short": {"target": torch.tensor([0, 1, 2])},
    "target-tensor-large": {"target": torch.tensor([0, 4])},
    "target-tensor-float": {"target": torch.tensor([0.5])},
    "target-tensor-two-axes": {"target": torch.tensor([[0], [1]])},
    "target-text": {"target": "cat"},
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("plain", [False, True])
def test_refusals_are_captum_s(name: str, plain: bool) -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model = (lambda x: torch.stack([net(row[None])[0] for row in x])) if plain else net
    arguments = {
        "inputs": torch.rand(2, 3, 9, 8),
        "sliding_window_shapes": (3, 4, 4),
        "strides": (3, 2, 2),
        "target": 1,
    } | REFUSALS[name]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        captum.attr.Occlusion(model).attribute(**arguments)
    with pytest.raises(theirs.type, match=r"^expected .+ got ") as ours:
        Occlusion(model).attribute(**arguments)
    assert ours.type is theirs.type


def test_scores_that_do_not_grow_are_refused_as_captum_refuses_them() -> None:
    model = lambda a: a.sum()  # noqa: E731
    arguments = {"sliding_window_shapes": (2,), "perturbations_per_eval": 2}
    for kind in (Occlusion, captum.attr.Occlusion):
        with pytest.raises(AssertionError):
            kind(model).attribute(torch.rand(3, 6), **arguments)
        with pytest.raises(AssertionError):
            kind(lambda a: "text").attribute(torch.rand(3, 6), (2,))
    with pytest.raises(IndexError, match="expected no target"):
        Occlusion(model).attribute(torch.rand(3, 6), (2,), target=1)
    with pytest.raises(AssertionError, match="expected strides from 1"):
        Occlusion(model).attribute(torch.rand(3, 6), (2,), strides=0)


def test_nothing_is_left_behind() -> None:
    model = copy.deepcopy(net("resnet18"))
    x = images("resnet18").requires_grad_()
    before = x.detach().clone()
    state = copy.deepcopy(model.state_dict())
    for forward in (model, lambda a: model(a).sum(0, keepdim=True).expand(len(a), -1)):
        for kind in (Occlusion, captum.attr.Occlusion):
            found = kind(forward).attribute(x, (3, 17, 12), (3, 16, 11), target=1)
            assert found.abs().max() > 1e-3
            assert not found.requires_grad
    assert torch.equal(x, before)
    assert x.grad is None
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def test_interface() -> None:
    def parameters(kind: Any) -> list[tuple[str, Any]]:
        signature = inspect.signature(kind.attribute)
        return [(p.name, p.default) for p in signature.parameters.values()]

    theirs = captum.attr.Occlusion(len)
    ours = Occlusion(len)
    assert parameters(Occlusion) == parameters(captum.attr.Occlusion)
    assert ours.forward_func is theirs.forward_func
    assert ours.get_name() == theirs.get_name()
    assert ours.has_convergence_delta() == theirs.has_convergence_delta()
    assert ours.multiplies_by_inputs == theirs.multiplies_by_inputs
    for one in (ours, theirs):
        with pytest.raises(NotImplementedError):
            one.attribute_future()


def test_inside_captum_s_noise_tunnel() -> None:
    case = CASES["resnet18-0"]
    found = []
    for kind in (Occlusion, captum.attr.Occlusion):
        torch.manual_seed(3)
        tunnel = captum.attr.NoiseTunnel(kind(case.model))
        found.append(tunnel.attribute(case.inputs, nt_samples=2, stdevs=0.2, **case.arguments))
    ours, theirs = found
    assert theirs.abs().max() > 1e-2
    assert (ours - theirs).abs().max() <= 2 * CLOSE * theirs.abs().max()


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("resnet18-0", "features"):
        case = CASES[name]
        Occlusion(case.model).attribute(case.inputs, **case.arguments, show_progress=True)
        assert "100%" in capsys.readouterr().err
        Occlusion(case.model).attribute(case.inputs, **case.arguments)
        assert not capsys.readouterr().err
