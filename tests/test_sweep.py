"""Sweeps: identities, providers, bit-identity, results, refusals, and nothing left behind."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backsight
from backsight.methods import occlusion as method
from backsight.models.precision import full_precision
from backsight.sweep.grid import grid
from backsight.sweep.groups import Cost, group
from backsight.sweep.plan import Machine
from nets import NETS, seeded
from oracle import grid as oracle_grid
from oracle import oracle


@functools.lru_cache
def built(name: str) -> nn.Module:
    return NETS[name].build()


def sizes(name: str, window: int) -> list[int]:
    return [min(window, n) for n in NETS[name].shapes[0][1:]]


def test_linear_model_drop_is_a_box_sum() -> None:
    """drop = Σ over the box of w·(x - b), to the last digits of fp64, from an fp32 model too."""
    case = NETS["linear"]
    model, images = built("linear"), case.images(count=2)
    result = backsight.occlusion(model, images, window=(7, 5), stride=(6, 9), baseline=0.3)
    x = images.double().requires_grad_()
    outputs = copy.deepcopy(model).double()(x)
    for k in range(outputs.shape[1]):
        (weight,) = torch.autograd.grad(outputs[:, k].sum(), x, retain_graph=True)
        change = (weight * (images.double() - 0.3)).sum(1)
        for p, (top, left, bottom, right) in enumerate(result.boxes.tolist()):
            expected = change[:, top:bottom, left:right].sum((1, 2))
            assert torch.allclose(result.drops[:, p, k].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_fc", "squeeze_excitation", "data_dependent"])
def test_baseline_equal_to_the_image_drops_nothing(name: str) -> None:
    case = NETS[name]
    images = case.images()
    arguments: dict[str, Any] = {"window": sizes(name, 16), "stride": 15}
    result = backsight.occlusion(built(name), images, baseline=images, **arguments)
    moved = backsight.occlusion(built(name), images, baseline=0.0, **arguments)
    assert result.drops.abs().max() <= 1e-4 * moved.drops.abs().max()
    assert result.noise_floor <= 1e-4 * moved.drops.abs().max()
    assert moved.drops.abs().max() > 1e-3


def test_full_image_box_gives_one_constant() -> None:
    case = NETS["resnet18"]
    size = case.shapes[0][1:]
    images = case.images(count=2)
    result = backsight.occlusion(built("resnet18"), images, window=size, baseline=0.5)
    with torch.no_grad():
        gray = built("resnet18")(torch.full_like(images, 0.5))
    assert result.drops.shape[1] == 1
    assert torch.allclose(result.scores[:, 0].float(), gray, atol=1e-4)
    pixels = result.map(2)
    assert torch.equal(pixels, pixels[:, :1, :1].expand_as(pixels))
    assert pixels.abs().min() > 1e-3


def test_reruns_and_orders_give_the_same_bits() -> None:
    model, images = built("squeezenet1_1"), NETS["squeezenet1_1"].images(count=2)
    first = backsight.occlusion(model, images, window=9, stride=7)
    again = backsight.occlusion(model, images, window=9, stride=7)
    assert first.drops.abs().max() > 1e-3
    assert torch.equal(first.drops, again.drops)
    order = torch.randperm(len(first.boxes), generator=torch.Generator().manual_seed(0))
    shuffled = backsight.occlusion(model, images, boxes=first.boxes[order])
    assert torch.equal(shuffled.drops, first.drops[:, order])


def test_images_do_not_touch_each_other() -> None:
    model, images = built("resnet18"), NETS["resnet18"].images(count=3)
    together = backsight.occlusion(model, images, window=16)
    for i in range(3):
        alone = backsight.occlusion(model, images[i : i + 1], window=16)
        largest = alone.drops.abs().max()
        assert (together.drops[i] - alone.drops[0]).abs().max() <= 1e-4 * largest
        assert largest > 1e-2


def test_small_memory_changes_batches_not_drops() -> None:
    model, images = built("vgg16_fc"), NETS["vgg16_fc"].images()
    arguments: dict[str, Any] = {"window": 12, "stride": 9}
    large = backsight.occlusion(model, images, **arguments)
    small = backsight.occlusion(model, images, **arguments, memory=200_000)
    assert isinstance(large.plan, backsight.Plan)
    assert isinstance(small.plan, backsight.Plan)
    assert small.plan.as_dict()["batches"] > large.plan.as_dict()["batches"]
    assert (small.drops - large.drops).abs().max() <= 1e-4 * large.drops.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "vgg16_fc", "squeezenet1_1", "squeeze_excitation"])
def test_half_precision_comes_near(name: str, dtype: torch.dtype) -> None:
    """Not exact, and not called so: as near to the truth as plain occlusion in that dtype is."""
    model, images = copy.deepcopy(built(name)).to(dtype), NETS[name].images().to(dtype)
    result = backsight.occlusion(model, images, window=16)
    _, truth = oracle(model, images, result.boxes, 0.0)
    assert isinstance(result.plan, backsight.Plan)
    assert result.plan.windows
    with torch.no_grad():
        copies = model(backsight.ops.occlude(images, result.boxes, torch.zeros(1, dtype=dtype)))
        plain = (model(images) - copies).double()
    error, of_plain = (result.drops - truth).abs().max(), (plain[None] - truth).abs().max()
    assert error <= 1.5 * of_plain
    assert result.map(0).dtype == torch.float32


def test_the_head_s_batches_lose_no_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever remains when a batch of the head is full: much, one row, or none."""
    model, images = built("vgg16_fc"), NETS["vgg16_fc"].images()
    boxes = backsight.occlusion(model, images, window=12, stride=9).boxes
    expected = backsight.occlusion(model, images, boxes=boxes).drops
    few = Machine(flops=1e9, bandwidth=1e9, launch=1e-5, rows=2)
    monkeypatch.setattr(Machine, "of", classmethod(lambda cls, device, dtype: few))
    for count in range(1, 25):
        drops = backsight.occlusion(model, images, boxes=boxes[:count]).drops
        largest = expected[:, :count].abs().max()
        assert (drops - expected[:, :count]).abs().max() <= 1e-4 * largest


def test_batches_hold_no_more_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = built("squeezenet1_1"), NETS["squeezenet1_1"].images()
    expected = backsight.occlusion(model, images, window=12)
    large = max(g.item_bytes * g.batch for g in expected.plan.groups)
    tight = Machine(flops=1e12, bandwidth=1e12, launch=1.0, rows=64, cache=large // 3)
    monkeypatch.setattr(Machine, "of", classmethod(lambda cls, device, dtype: tight))
    # Another number of positions, so that the plan is made anew.
    result = backsight.occlusion(model, images, boxes=expected.boxes[1:])
    groups = result.plan.groups
    assert all(g.item_bytes * g.batch <= tight.cache or g.batch == 1 for g in groups)
    assert max(g.batches for g in groups) > 1
    largest = expected.drops.abs().max()
    assert (result.drops - expected.drops[:, 1:]).abs().max() <= 1e-4 * largest


def test_several_threads_at_once() -> None:
    model, images = built("squeezenet1_1"), NETS["squeezenet1_1"].images()
    expected = backsight.occlusion(model, images, window=12).drops
    found: list[Tensor] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(backsight.occlusion(model, images, window=12).drops)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    # Threads of Python have their own number of threads in torch, and with it their own rounding.
    for drops in found:
        assert (drops - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("edge", ["clip", "inside", "drop", "overhang"])
def test_grids_are_the_oracle_s(edge: str) -> None:
    for size, window, stride in (
        ((33, 20), (5, 7), (4, 3)),
        ((9,), (9,), (2,)),
        ((4, 5, 6), (2, 2, 3), (3, 1, 2)),
    ):
        assert torch.equal(
            grid(size, window, stride, edge).boxes, oracle_grid(size, window, stride, edge)
        )


def test_a_stride_beyond_the_window_leaves_gaps_of_zero() -> None:
    result = backsight.occlusion(built("resnet18"), NETS["resnet18"].images(), window=4, stride=10)
    pixels = result.map(0)[0]
    covered = torch.zeros(pixels.shape, dtype=torch.bool)
    for top, left, bottom, right in result.boxes.tolist():
        covered[top:bottom, left:right] = True
    assert (pixels[~covered] == 0).all()
    assert (pixels[covered] != 0).any()


def test_result(tmp_path: Path) -> None:
    images = NETS["resnet18"].images(count=2)
    result = backsight.occlusion(built("resnet18"), images, window=(16, 12), stride=(10, 9))
    rows, columns = result.grid(0).shape[1:]
    assert result.drops.shape == (2, rows * columns, 7)
    assert torch.equal(result.grid([1, 3])[1].flatten(), result.drops[1, :, 3])
    assert torch.equal(result.scores, result.base[:, None] - result.drops)
    assert torch.equal(result.most_probable().flatten(1), result.scores.argmax(-1))
    for reduce in ("mean", "sum"):
        slow = torch.zeros(2, 65, 49, dtype=torch.float64)
        count = torch.zeros(65, 49)
        for p, (top, left, bottom, right) in enumerate(result.boxes.tolist()):
            slow[:, top:bottom, left:right] += result.drops[:, p, 4].double()[:, None, None]
            count[top:bottom, left:right] += 1
        slow = slow / count.clamp(min=1) if reduce == "mean" else slow
        assert torch.allclose(result.map(4, reduce).double(), slow, rtol=1e-5, atol=1e-7)
    path = tmp_path / "sweep.npz"
    result.save(path)
    loaded = backsight.Occlusion.load(path)
    for name in ("drops", "base", "boxes"):
        assert torch.equal(getattr(loaded, name), getattr(result, name))
    assert loaded.noise_floor == result.noise_floor
    assert torch.equal(loaded.grid(1), result.grid(1))
    assert isinstance(loaded.plan, dict)
    assert loaded.plan["method"] == "windows"
    assert loaded.plan["versions"]["torch"] == torch.__version__


def test_plan_tells_what_will_be_done() -> None:
    text = str(backsight.plan(built("group_norm"), NETS["group_norm"].images(), window=8))
    assert "exact windows" in text
    assert "group_norm" in text.split("barriers")[1]
    plan = backsight.plan(
        built("squeeze_excitation"), NETS["squeeze_excitation"].images(), window=8
    )
    assert any("mul" in barrier for barrier in plan.barriers)
    assert not backsight.plan(built("vgg16_fc"), NETS["vgg16_fc"].images(), window=8).barriers
    plan = backsight.plan(built("data_dependent"), NETS["data_dependent"].images(), window=8)
    assert not plan.windows
    assert "data-dependent" in str(plan)


def test_a_changed_model_is_captured_anew() -> None:
    model, images = copy.deepcopy(built("squeezenet1_1")), NETS["squeezenet1_1"].images()
    before = backsight.occlusion(model, images, window=16).drops
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = backsight.occlusion(model, images, window=16)
    _, truth = oracle(model, images, after.boxes, 0.0)
    assert (after.drops - truth).abs().max() <= 1e-3 * truth.abs().max()
    assert (after.drops - before).abs().max() > 1e-2 * before.abs().max()


def test_weights_edited_through_data_are_noticed() -> None:
    """Such edits leave the tensors' version counters alone."""
    model, images = copy.deepcopy(built("resnet18")), NETS["resnet18"].images()
    backsight.occlusion(model, images, window=16)
    weight = next(iter(model.parameters()))
    weight.data.copy_(weight.data * 1.1)
    after = backsight.occlusion(model, images, window=16)
    _, truth = oracle(model, images, after.boxes, 0.0)
    assert (after.drops - truth).abs().max() <= 1e-3 * truth.abs().max()


def test_a_model_that_cannot_be_captured_stays_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    backsight.plan(NETS["data_dependent"].build(), NETS["data_dependent"].images(), window=8)
    assert capfd.readouterr() == ("", "")


def test_a_model_changed_behind_our_back_is_noticed() -> None:
    """An attribute that is no parameter is baked into the captured graph."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) * self.scale).flatten(1).cumsum(1)[:, ::50]

    model, images = Scaled(), torch.randn(1, 3, 20, 20)
    before = backsight.occlusion(model, images, window=10).drops
    model.scale = 2.0
    after = backsight.occlusion(model, images, window=10)
    _, truth = oracle(model, images, after.boxes, 0.0)
    assert (after.drops - truth).abs().max() <= 1e-3 * truth.abs().max()
    assert (after.drops - before).abs().max() > 0.1 * before.abs().max()


@pytest.mark.parametrize("change", ["layer", "function", "tensor", "list", "permutation"])
def test_no_change_goes_unnoticed(change: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.layer = nn.Conv2d(3, 4, 3), nn.Tanh()
            self.function, self.factor, self.factors = torch.tanh, torch.tensor(2.0), [2.0]

        def forward(self, x: Tensor) -> Tensor:
            y = self.function(self.layer(self.conv(x)) * self.factor * self.factors[0])
            return y.mean((2, 3)) * torch.arange(1.0, 5.0)

    model, images = Net(), torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    before = backsight.occlusion(model, images, window=7)
    weight = model.conv.weight
    with torch.no_grad():
        {
            "layer": lambda: setattr(model, "layer", nn.Sigmoid()),
            "function": lambda: setattr(model, "function", torch.sigmoid),
            "tensor": lambda: setattr(model, "factor", torch.tensor(5.0)),
            "list": lambda: setattr(model, "factors", [5.0]),
            "permutation": lambda: weight.data.copy_(weight.data.flip(0)),
        }[change]()
    after = backsight.occlusion(model, images, window=7)
    base, truth = oracle(model, images, after.boxes, 0.0)
    assert (after.base - base).abs().max() <= 1e-4 * base.abs().max()
    assert (after.drops - truth).abs().max() <= 1e-3 * truth.abs().max()
    assert (after.drops - before.drops).abs().max() > 1e-2 * before.drops.abs().max()


def test_a_function_over_a_changed_model() -> None:
    inner, images = copy.deepcopy(built("resnet18")), NETS["resnet18"].images()
    before = backsight.occlusion(lambda x: inner(x), images, window=20).drops
    inner.conv1.weight.data.mul_(3.0)
    after = backsight.occlusion(lambda x: inner(x), images, window=20)
    _, truth = oracle(inner, images, after.boxes, 0.0)
    assert (after.drops - truth).abs().max() <= 1e-3 * truth.abs().max()
    assert (after.drops - before).abs().max() > 1e-2 * before.abs().max()


class Conv(nn.Module):
    """A convolution and what a test does with it."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 2, 3, padding=1), then

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.then(self.conv(x))
        return y


@pytest.mark.parametrize(
    "then",
    [
        lambda y: y,
        lambda y: y.relu(),
        lambda y: y[:, :1] * 2.0,
        lambda y: nn.functional.avg_pool2d(y, 2),
        lambda y: torch.div(y, 0.1, rounding_mode="floor").flatten(1),
        lambda y: (2.0 - y).tanh(),
    ],
    ids=["conv", "relu", "scaled", "pool", "floor", "tanh"],
)
def test_maps_as_outputs(then: Any) -> None:
    """Dense outputs come flattened: (images, positions, channels * height * width)."""
    model = Conv(then).double()
    images = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(1)).double()
    for window in (1, 4):
        result = backsight.occlusion(model, images, window=window, stride=3)
        _, truth = oracle(model, images, result.boxes, 0.0)
        truth = truth.flatten(2)
        assert truth.abs().max() > 0
        assert (result.drops - truth).abs().max() <= 1e-9 * truth.abs().max()


@pytest.mark.parametrize("then", [lambda y: y / y.shape[0], lambda y: y - y.mean((0, 2, 3))[0]])
def test_models_that_mix_the_batch_are_refused(then: Any) -> None:
    images = torch.randn(1, 3, 9, 12, generator=torch.Generator().manual_seed(1))
    model = Conv(lambda y: then(y).mean((2, 3)))
    assert "scores each image by itself" in refusal(model=model, images=images, window=3)


class Broken(nn.Module):
    """Fails on occluded copies alone."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 0.125).any()):
            raise RuntimeError("the model broke")
        return x.flatten(1)


def state(model: nn.Module) -> Any:
    return (
        [m.training for m in model.modules()],
        [(n, id(p), p.requires_grad, p._version) for n, p in model.named_parameters()],
        [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ],
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )


def test_nothing_is_left_behind() -> None:
    model = copy.deepcopy(built("resnet18"))
    images = NETS["resnet18"].images()
    kept = images.clone()
    before = state(model)
    result = backsight.occlusion(model, images, window=16)
    assert state(model) == before
    assert torch.equal(images, kept)
    assert not result.drops.requires_grad
    broken = Broken()
    before = state(broken)
    with pytest.raises(RuntimeError, match="the model broke"):
        backsight.occlusion(broken, images, window=16, baseline=0.125)
    assert state(broken) == before


def refusal(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "model": built("resnet18"),
        "images": NETS["resnet18"].images(),
        "window": 8,
    } | changes
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (each caller matches the sentence)
        backsight.occlusion(arguments.pop("model"), arguments.pop("images"), **arguments)
    return str(caught.value)


def test_refusals() -> None:
    images = NETS["resnet18"].images()
    assert "no larger than the image (65, 49), got (66, 3)" in refusal(window=(66, 3))
    assert "stride to be a positive integer or 2 of them, got 0" in refusal(stride=0)
    assert "stride" in refusal(stride=-3)
    assert "window to be a positive integer or 2 of them, got -1" in refusal(window=-1)
    assert "window" in refusal(window=(1, 2, 3, 4))
    assert "window" in refusal(window=2.5)
    assert "either boxes or a window" in refusal(boxes=[[0, 0, 1, 1]])
    assert "got neither" in refusal(window=None)
    assert "(3, 65)" in refusal(images=images[0, 0][None].expand(3, 65, 49)[:, :, 0])
    assert "at least one image" in refusal(images=images[:0])
    assert "floating-point" in refusal(images=images.long())
    assert "list" in refusal(images=[1, 2])
    assert "finite images" in refusal(images=images.clone().fill_(float("nan")))
    assert "finite images" in refusal(images=images.clone().fill_(float("inf")))
    assert "one of clip, inside, drop, overhang, got 'wrap'" in refusal(edge="wrap")
    assert "model's dtype (torch.float32), got torch.float64" in refusal(images=images.double())
    assert "on one device" in refusal(
        images=images, model=copy.deepcopy(built("resnet18")).to("meta")
    )
    assert "positive number of bytes, got 0" in refusal(memory=0)
    assert "baseline" in refusal(baseline="purple")
    assert "(1, 3, 65, 49)" in refusal(baseline=torch.zeros(5, 5))
    assert "finite baseline" in refusal(baseline=float("nan"))
    assert "shape (positions, 4)" in refusal(window=None, boxes=[[0, 1]])
    assert "got [70, 0, 80, 5] at 1" in refusal(window=None, boxes=[[0, 0, 5, 5], [70, 0, 80, 5]])
    training = copy.deepcopy(built("resnet18")).train()
    assert "BatchNorm2d in training mode at 'bn1': call model.eval() first" in refusal(
        model=training
    )
    broken = copy.deepcopy(built("resnet18"))
    with torch.no_grad():
        next(iter(broken.parameters())).view(-1)[3] = float("nan")
    assert "finite weights, got NaN or infinity in" in refusal(model=broken)
    assert "output 0 to be a tensor, got str" in refusal(model=lambda x: ("a", x))
    result = backsight.occlusion(built("resnet18"), images, window=16)
    with pytest.raises(ValueError, match=r"target in \[0, 7\), got 7"):
        result.map(7)
    with pytest.raises(ValueError, match="one for each of 1 images"):
        result.map([1, 2])
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        result.map(1, "max")


def test_a_request_is_the_arguments_of_occlusion() -> None:
    asked = inspect.signature(method.Request).parameters.values()
    taken = inspect.signature(method.occlusion).parameters.values()
    assert [(p.name, p.default, p.annotation) for p in asked] == [
        (p.name, p.default, p.annotation) for p in taken
    ]
    with pytest.raises(TypeError, match="colour"):
        backsight.plan(built("resnet18"), NETS["resnet18"].images(), window=9, colour="grey")


def test_training_mode_dropout_without_capture_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x).flatten(1) if float(x.sum()) > 0 else x.flatten(1)

    assert "call model.eval()" in refusal(model=Net().train())


def test_one_pixel_image() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    )
    images = torch.full((1, 3, 1, 1), 2.0)
    result = backsight.occlusion(model, images, window=1)
    _, truth = oracle(model, images, result.boxes, 0.0)
    assert torch.allclose(result.drops.double(), truth, rtol=1e-5)
    assert truth.abs().max() > 0
    assert result.map(0).shape == (1, 1, 1)


def test_groups_cover_and_save() -> None:
    generator = torch.Generator().manual_seed(1)
    needed = torch.randint(1, 6, (300, 4, 2), generator=generator).numpy()
    for batch in (0.0, 1e-6, 1.0):
        cost = Cost(np.array([1e-6, 2e-6, 1e-7, 3e-6]), batch, 10**6)
        label, windows = group(needed, cost)
        assert (windows[label] >= needed).all()
        counts = np.bincount(label, minlength=len(windows))
        classes, counted = np.unique(needed, axis=0, return_counts=True)
        assert cost.of(windows, counts).sum() <= cost.of(classes, counted).sum() + 1e-12
    assert len(windows) == 1  # launches cost more than anything


def test_settings_of_cudnn_come_back() -> None:
    """Settable without a GPU, so testable without one."""
    cudnn = torch.backends.cudnn

    def settings() -> tuple[bool, bool, bool]:
        return cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    def fail() -> None:
        with full_precision(torch.device("cuda")):
            assert settings() == (False, True, False)
            raise RuntimeError("inside")

    before = settings()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert settings() == before
    assert before != (False, True, False)
