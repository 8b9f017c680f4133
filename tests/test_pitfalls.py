"""Models that look like others: batches on another axis, state that changes unseen, odd numbers."""

from __future__ import annotations

import functools
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from backsight.models import prepare
from nets import NETS, random_images, seeded
from oracle import oracle
from test_readouts import BOXES, PARTS, inpainted, judged, mask_of

SHAPE = (3, 33, 25)


class Stem(nn.Module):
    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 5, 4)
        self.fc = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def exact(model: nn.Module, images: Tensor, **arguments: Any) -> backsight.Occlusion:
    """A sweep in fp64, against the oracle."""
    model, images = model.double().eval(), images.double()
    result = backsight.occlusion(model, images, boxes=BOXES, **arguments)
    _, drops = oracle(model, images, BOXES)
    largest = float(drops.abs().max())
    assert largest > 1e-6
    assert float((result.drops - drops).abs().max()) <= 1e-9 * largest
    return result


# --- the batch is not always first ----------------------------------------------------------------


class SequenceFirst(nn.Module):
    """torch's default layout of a transformer: (positions, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).permute(2, 0, 1)
        return self.fc(self.layer(tokens).mean(0))


class TransposedHead(nn.Module):
    """Linear layers on (features, batch)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ self.stem(x).t()).t()


@pytest.mark.parametrize("make", [SequenceFirst, TransposedHead])
@pytest.mark.parametrize("memory", [3000, 30_000, None])
def test_the_batch_on_another_axis(make: Callable[[], nn.Module], memory: int | None) -> None:
    exact(seeded(make), random_images(SHAPE, count=3, seed=2), memory=memory)


class TransposedSide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        first = tokens.transpose(0, 1)  # (positions, batch, 4)
        return (self.stem(x) * first).sum(0)


def test_a_side_input_turned_around() -> None:
    model = seeded(TransposedSide).double().eval()
    images = random_images(SHAPE, count=2, seed=2).double()
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    _, drops = judged(model, images, mask_of(BOXES), 0.0, [tokens])
    result = backsight.occlusion(model, images, boxes=BOXES, additional_forward_args=(tokens,))
    assert float((result.drops - drops).abs().max()) <= 1e-9 * float(drops.abs().max())
    assert float(drops.abs().max()) > 1e-3


class Masked(nn.Module):
    """A boolean map and one of labels come with the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return (torch.where(mask, y, 0.1 * y) * labels).mean((2, 3))


def test_maps_of_booleans_and_labels_beside_the_image() -> None:
    model = seeded(Masked).double().eval()
    images = random_images(SHAPE, count=2, seed=2).double()
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 1, 33, 25, generator=generator) > 0.5
    labels = torch.randint(0, 4, (2, 1, 33, 25), generator=generator)
    _, drops = judged(model, images, mask_of(BOXES), 0.0, [mask, labels])
    result = backsight.occlusion(model, images, boxes=BOXES, additional_forward_args=(mask, labels))
    assert float((result.drops - drops).abs().max()) <= 1e-9 * float(drops.abs().max())
    assert float(drops.abs().max()) > 1e-3


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x / x.max(),
        lambda x: x - x.min(),
        lambda x: x / x.abs().max(),
        lambda x: x - x.amax((0, 2, 3), keepdim=True),
        lambda x: x / F.relu(x).max(),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_extrema_of_the_batch_are_noticed(mix: Callable[[Tensor], Tensor], shift: float) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Stem()

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(mix(x))

    images = random_images(SHAPE, count=1, seed=2) + shift
    with pytest.raises(ValueError, match="other scores for the same image in another batch"):
        backsight.occlusion(seeded(Net).eval(), images, boxes=BOXES)


# --- what changes unseen --------------------------------------------------------------------------


class Config:
    scale = 1.0


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.config = Config()
        self.table = np.ones(4)
        self.factors = [torch.ones(4, dtype=torch.float64)]
        self.pair = (torch.ones(4, dtype=torch.float64), 1.0)
        self.hidden = [nn.Linear(4, 4).double()]

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x) * self.config.scale * self.factors[0] * self.pair[0] * self.pair[1]
        return self.hidden[0](y) * torch.from_numpy(self.table)


def change_config(model: Configured) -> None:
    model.config.scale = 3.0


def change_table(model: Configured) -> None:
    model.table = np.array([1.0, 2.0, 3.0, 4.0])


def change_factors(model: Configured) -> None:
    model.factors[0] = torch.arange(4.0).double()


def change_pair(model: Configured) -> None:
    model.pair = (torch.arange(4.0).double(), 2.0)


def change_hidden(model: Configured) -> None:
    with torch.no_grad():
        model.hidden[0].weight.mul_(2)


@pytest.mark.parametrize(
    "change", [change_config, change_table, change_factors, change_pair, change_hidden]
)
def test_state_of_the_models_own(change: Callable[[Configured], None]) -> None:
    model = seeded(Configured).double().eval()
    images = random_images(SHAPE, count=1, seed=2).double()

    def drops() -> Tensor:
        # deepcopy, as the oracle does it, keeps what is no parameter.
        found = backsight.occlusion(model, images, boxes=BOXES).drops
        _, truth = judged(model, images, mask_of(BOXES))
        assert float((found - truth).abs().max()) <= 1e-9 * float(truth.abs().max())
        return found

    before = drops()
    change(model)
    assert float((drops() - before).abs().max()) > 1e-2 * float(before.abs().max())


def test_a_variable_that_a_hook_reads() -> None:
    """Ablation: a hook blanks the channel that a variable names."""
    model = seeded(Stem).double().eval()
    images = random_images(SHAPE, count=1, seed=2).double()
    state = {"channel": 0}

    def blank(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        keep = torch.ones(out.shape[1], dtype=out.dtype)
        keep[state["channel"]] = 0
        return out * keep.view(1, -1, 1, 1)

    handle = model.conv.register_forward_hook(blank)
    found = []
    for channel in (0, 5, 0):
        state["channel"] = channel
        found.append(backsight.occlusion(model, images, boxes=BOXES).drops)
        _, truth = judged(model, images, mask_of(BOXES))
        assert float((found[-1] - truth).abs().max()) <= 1e-9 * float(truth.abs().max())
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(found[0], found[2])
    handle.remove()


def test_an_argument_changed_in_place() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Stem()

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return self.stem(x) * weights.square()

    model = seeded(Weighted).double().eval()
    images = random_images(SHAPE, count=1, seed=2).double()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    found = []
    for _ in range(2):
        result = backsight.occlusion(model, images, boxes=BOXES, additional_forward_args=weights)
        found.append(result.drops)
        weights.copy_(weights.flip(0).clone())
    ratio = torch.tensor([16.0, 9 / 4, 4 / 9, 1 / 16]).double()
    assert torch.allclose(found[1], found[0] * ratio)
    assert float(found[0].abs().max()) > 1e-3


def test_captures_are_let_go() -> None:
    """Of many image sizes the last few are kept; of a model that is gone, none."""

    class Bound(Stem):
        def __init__(self) -> None:
            super().__init__()
            self.act = self.square

        def square(self, x: Tensor) -> Tensor:
            return x * x

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    model = seeded(Bound).eval()
    for size in range(16, 28):
        backsight.occlusion(model, random_images((3, size, 16)), window=8)
    assert len(prepare._known[model]) <= 4
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- outside the windows --------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["parts", "channels", "inpaint"])
def test_plain_sweeps_of_every_box(case: str) -> None:
    """A model that cannot be captured occludes the same."""
    model = NETS["data_dependent"].build().double()
    images = NETS["data_dependent"].images(SHAPE, count=2).double()
    content: Any = 0.0
    arguments: dict[str, Any] = {}
    boxes = BOXES
    if case == "parts":
        boxes = PARTS
    elif case == "channels":
        boxes = torch.tensor([[0, 3, 3, 2, 9, 9], [1, 0, 0, 3, 30, 24]])
    else:
        arguments["baseline"] = "inpaint"
        content = torch.stack(
            [torch.stack([inpainted(image, box) for box in boxes.tolist()]) for image in images]
        )
    result = backsight.occlusion(model, images, boxes=boxes, **arguments)
    assert result.plan.as_dict()["method"] == "plain"
    _, drops = judged(model, images, mask_of(boxes), content)
    largest = float(drops.abs().max())
    assert largest > 1e-3
    assert float((result.drops - drops).abs().max()) <= 1e-9 * largest


class SplitWeight(nn.Module):
    """One parameter holds two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, 4)
        self.both = nn.Parameter(torch.randn(9, 8))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both.split([5, 4])
        y = F.relu(self.stem(x)).mean((2, 3))
        return F.linear(y, first)[:, :4] + F.linear(y, second)


class Item(nn.Module):
    """A number of the image, taken out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x) * (x.numel() / x.shape[0])


class PoolsLines(nn.Module):
    """A 2-D pool over (batch, channels, positions), which torch takes for one image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv1d(2, 8, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(F.relu(self.conv(x)), 2).mean(2))


@pytest.mark.parametrize("make", [SplitWeight, Item])
def test_odd_operations(make: Callable[[], nn.Module]) -> None:
    exact(seeded(make), random_images(SHAPE, count=2, seed=2))


def test_a_pool_of_more_axes_than_the_image() -> None:
    model = seeded(PoolsLines).double().eval()
    images = random_images((2, 30), count=2, seed=2).double()
    boxes = torch.tensor([[0, 4], [11, 12], [26, 30], [0, 30]])
    _, drops = oracle(model, images, boxes)
    result = backsight.occlusion(model, images, boxes=boxes)
    assert float(drops.abs().max()) > 1e-3
    assert float((result.drops - drops).abs().max()) <= 1e-9 * float(drops.abs().max())


def test_a_score_that_works_in_place() -> None:
    model = seeded(Stem).double().eval()
    images = random_images(SHAPE, count=2, seed=2).double()
    expected = backsight.occlusion(model, images, boxes=BOXES, score=lambda s: s / 2)
    found = backsight.occlusion(model, images, boxes=BOXES, score=lambda s: s.div_(2))
    assert torch.equal(found.drops, expected.drops)
    assert torch.equal(found.most_probable(), expected.most_probable())
    assert float(found.drops.abs().max()) > 1e-3


def test_a_large_region_in_half_precision() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    model = seeded(Dense).eval()
    images = random_images((3, 300, 300), count=1, seed=2)
    boxes = torch.tensor([[0, 0, 150, 150]])
    full = backsight.occlusion(model, images, boxes=boxes, region="all").drops
    half = backsight.occlusion(model.bfloat16(), images.bfloat16(), boxes=boxes, region="all").drops
    assert float(full.abs().max()) > 1e-3
    assert float((half - full).abs().max()) <= 0.05 * float(full.abs().max())


# --- what is left as it was -----------------------------------------------------------------------


def test_a_region_of_a_model_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = model[1].running_mean.clone()
    with pytest.raises(ValueError, match="in training mode at '1'"):
        backsight.occlusion(model, random_images(SHAPE), boxes=BOXES, region="all")
    assert torch.equal(model[1].running_mean, before)


def test_functions_in_threads_leave_the_streams_alone() -> None:
    model = seeded(Stem).eval()
    images = random_images(SHAPE)
    stream = sys.stderr
    failures: list[BaseException] = []

    def work() -> None:
        try:
            backsight.occlusion(lambda x: model(x), images, boxes=BOXES)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sys.stderr is stream


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"targets": 3}, "targets as output indices, one or more, got 3"),
        ({"targets": [1.5]}, r"targets as output indices, one or more, got \[1.5\]"),
        ({"targets": []}, "one or more"),
        ({"top": True}, "top to be a positive integer, got True"),
        ({"baseline": None}, "baseline of numbers or its name, got NoneType"),
        ({"baseline": ["a", "b"]}, "baseline of numbers or its name, got list"),
        ({"boxes": "abc"}, "boxes as a table of integers, got str"),
        ({"layer": 3}, "layer to be a module's name, got 3"),
        ({"score": 3}, "score to be a function, got 3"),
        ({"output": 1.5}, "output to be a key, a name or an index, got 1.5"),
        ({"model": 3}, "a model that can be called, got int"),
        ({"score": lambda s: s * 1j}, "real numbers"),
        ({"score": lambda s: s[:, :0]}, "real numbers"),
    ],
)
def test_sentences(arguments: dict[str, Any], sentence: str) -> None:
    given = {"model": seeded(Stem).eval(), "boxes": BOXES} | arguments
    with pytest.raises(ValueError, match=sentence):
        backsight.occlusion(given.pop("model"), random_images(SHAPE), **given)


def test_partial_functions_are_known() -> None:
    """Attributes of a partial count as the model's state."""
    model = seeded(Stem).eval()
    model.scale = functools.partial(torch.mul, other=2.0)
    images = random_images(SHAPE)
    result = backsight.occlusion(model, images, boxes=BOXES, additional_forward_args=None)
    entry = next(iter(prepare._known[model].values()))
    assert entry.watched
    assert float(result.drops.abs().max()) > 1e-3
