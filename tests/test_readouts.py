"""What a sweep may be asked for: outputs, layers, regions, probabilities, baselines, boxes."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from backsight import baselines
from backsight.maps import TiledMaps, WholeMaps
from backsight.sweep.grid import disjoint
from nets import calibrate, random_images, seeded
from test_occlusion_oracle import TOLERANCE, every_window_size, reading_from

FP32, FP64 = torch.float32, torch.float64
SHAPE = (3, 33, 25)
#: (start, stop) per axis of some boxes: corners, edges, inside, a strip, everything.
BOXES = torch.tensor(
    [
        [0, 0, 5, 4],
        [28, 20, 33, 25],
        [9, 8, 17, 14],
        [11, 12, 12, 13],
        [0, 7, 33, 9],
        [0, 0, 33, 25],
    ]
)


class Encoder(nn.Module):
    """Convolutions with a stride and a pool: something to window."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.pool(self.act(self.stem(x))))


class Classifier(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(x).mean((2, 3)))


class Segmenter(nn.Module):
    """Dense outputs, in a dict."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.classify = nn.Conv2d(12, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.encoder(x)
        return {"out": self.classify(found), "aux": found.mean((2, 3))}


def built(make: Callable[[], nn.Module], channels: int = 3) -> tuple[nn.Module, Tensor]:
    model = seeded(make)
    images = random_images((channels, *SHAPE[1:]), count=2, seed=5)
    return calibrate(model, images), images


def mask_of(table: Tensor, shape: Sequence[int] = SHAPE) -> Tensor:
    """(positions, *shape) bool from any table of boxes, cell by cell."""
    axes = len(shape) - 1
    masks = []
    for row in table.tolist():
        mask = torch.zeros(*shape, dtype=torch.bool)
        for box in row if isinstance(row[0], list) else [row]:
            if len(box) == 2 * axes:
                box = [0, *box[:axes], shape[0], *box[axes:]]
            start, stop = box[: axes + 1], box[axes + 1 :]
            mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
        masks.append(mask)
    return torch.stack(masks)


def judged(
    run: Callable[..., Tensor],
    images: Tensor,
    masks: Tensor,
    content: Tensor | float = 0.0,
    sides: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Base (images, k) and drops (images, positions, k) of `run` in fp64, one image at a time.

    content: a number, one picture per image, or (images, positions, channels, *spatial).
    """
    base, drops = [], []
    content = torch.as_tensor(content, dtype=FP64)
    with torch.no_grad():
        for i, image in enumerate(images.double()):
            more = [side[i : i + 1] for side in sides]
            before = run(image[None], *more)[0].flatten()
            rows = []
            for p, mask in enumerate(masks):
                here = content[i] if content.ndim else content
                here = here[p] if here.ndim > image.ndim else here
                covered = torch.where(mask, here, image)
                rows.append(before - run(covered[None], *more)[0].flatten())
            base.append(before)
            drops.append(torch.stack(rows))
    return torch.stack(base), torch.stack(drops)


def check(
    make: Callable[[], nn.Module],
    truth: Callable[..., Callable[..., Tensor]],
    *,
    content: Tensor | float = 0.0,
    masks: Tensor | None = None,
    sides: Sequence[Tensor] = (),
    select: Callable[[Tensor], Tensor] = lambda drops: drops,
    channels: int = 3,
    windows: bool = True,
    **arguments: Any,
) -> backsight.Occlusion:
    """Both dtypes and both kinds of maps against `truth(model)`, a function of (1, ...) in fp64."""
    model, images = built(make, channels)
    arguments = {"boxes": BOXES} | arguments
    if masks is None:
        masks = mask_of(torch.as_tensor(arguments["boxes"]), (channels, *SHAPE[1:]))
    run = truth(copy.deepcopy(model).double())
    doubles = [s.double() if s.is_floating_point() else s for s in sides]
    base, drops = judged(run, images, masks, content, doubles)
    drops = select(drops)
    largest = float(drops.abs().max())
    assert largest > 1e-3 * float(base.abs().max())
    for dtype, provider in itertools.product((FP32, FP64), (WholeMaps, TiledMaps)):
        with every_window_size(), reading_from(provider):
            extra = {"additional_forward_args": tuple(_as(s, dtype) for s in sides)}
            if not sides:
                extra = {}
            result = backsight.occlusion(
                model.to(dtype),
                images.to(dtype),
                **extra,
                **{k: _as(v, dtype) for k, v in arguments.items()},
            )
        assert (result.plan.as_dict()["method"] == "windows") == windows
        assert result.drops.shape == drops.shape
        error = float((result.drops.double() - drops).abs().max())
        assert error <= TOLERANCE[dtype] * largest, f"off by {error / largest:.1e} of the largest"
    return result


def _as(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", ["softmax", "sigmoid"])
def test_probabilities(probability: str) -> None:
    def truth(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: model(x).softmax(1) if probability == "softmax" else model(x).sigmoid()

    result = check(Classifier, truth, probability=probability)
    if probability == "softmax":  # of each position, occluded or not, they sum to 1
        assert float((result.scores.sum(-1) - 1).abs().max()) < 1e-12
        assert float(result.drops.sum(-1).abs().max()) < 1e-12
    model, images = built(Classifier)
    logits = backsight.occlusion(model, images, boxes=BOXES)
    assert torch.equal(logits.most_probable(), logits.scores.argmax(-1))


def test_targets_and_top() -> None:
    result = check(Classifier, lambda m: m, targets=[3, 1], select=lambda d: d[..., [3, 1]])
    assert result.targets is not None
    assert result.targets.tolist() == [[3, 1]] * 2
    model, images = built(Classifier)
    every = backsight.occlusion(model, images, boxes=BOXES)
    top = backsight.occlusion(model, images, boxes=BOXES, top=2)
    assert top.targets is not None
    order = every.base.argsort(1, descending=True)[:, :2]
    assert torch.equal(top.targets, order)
    chosen = order[:, None].expand(-1, len(BOXES), -1)
    assert torch.equal(top.drops, every.drops.gather(2, chosen))
    assert torch.equal(top.base, every.base.gather(1, order))
    best = order[:, 0]
    assert torch.equal(top.map(best), every.map(best))
    assert float(top.map(best).abs().max()) > 0
    assert torch.equal(top.most_probable(), every.most_probable())
    with pytest.raises(ValueError, match="expected a target of those kept"):
        top.map([int(order[0, 0]), next(k for k in range(5) if k not in order[1].tolist())])
    with pytest.raises(ValueError, match="expected targets within 5 outputs, got 5"):
        backsight.occlusion(model, images, boxes=BOXES, targets=[0, 5])
    with pytest.raises(ValueError, match="either targets or top, got both"):
        backsight.occlusion(model, images, boxes=BOXES, targets=[0], top=1)


def test_a_score_of_the_caller() -> None:
    def margin(logits: Tensor) -> Tensor:
        first, second = logits.topk(2).values.unbind(-1)
        return torch.stack([first - second, logits.logsumexp(-1)], -1)

    check(Classifier, lambda m: lambda x: margin(m(x)), score=margin)
    check(Classifier, lambda m: lambda x: m(x).norm(dim=1), score=lambda logits: logits.norm(dim=1))
    model, images = built(Classifier)

    def refused(score: Callable[[Tensor], Any]) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            backsight.occlusion(model, images, boxes=BOXES, score=score)
        return str(caught.value)

    assert "expected score to return a tensor of shape (2,)" in refused(lambda x: x.sum())
    assert "got float" in refused(lambda x: 1.0)
    assert "finite numbers, got NaN" in refused(lambda x: x / 0 - x / 0)


@pytest.mark.parametrize(
    ("layer", "depth"), [("encoder.stem", 1), ("encoder.pool", 3), ("encoder", 4), ("fc", 5)]
)
def test_total_activations_of_a_layer(layer: str, depth: int) -> None:
    """Before the in-place ReLU that follows, each channel summed over space."""

    def truth(model: nn.Module) -> Callable[[Tensor], Tensor]:
        encoder = model.encoder
        steps = [
            encoder.stem,
            encoder.act,
            encoder.pool,
            encoder.body,
            lambda x: x.mean((2, 3)),
            model.fc,
        ]

        def total(x: Tensor) -> Tensor:
            until = {1: 1, 3: 3, 4: 4, 5: 6}[depth]
            for step in steps[:until]:
                x = step(x)
            return x.sum((2, 3)) if x.ndim == 4 else x

        return total

    check(Classifier, truth, layer=layer)
    model, _images = built(Classifier)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    assert not any(hooks)


def test_an_unknown_layer() -> None:
    model, images = built(Classifier)
    with pytest.raises(
        ValueError, match=r"a layer of the model, such as encoder\.stem.*'encoder\.sten'"
    ):
        backsight.occlusion(model, images, boxes=BOXES, layer="encoder.sten")


def test_regions_of_dense_outputs() -> None:
    def dense(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: model(x)["out"].mean((2, 3))

    check(Segmenter, dense, region="all")
    model, images = built(Segmenter)
    out = model(images)["out"]
    size = out.shape[2:]
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(size, generator=generator) > 0.6

    def masked(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: model(x)["out"][:, :, mask].mean(-1)

    check(Segmenter, masked, region=mask)

    def probable(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: model(x)["out"].softmax(1)[:, :, mask].mean(-1)

    check(Segmenter, probable, region=mask, probability="softmax")
    # For each class the pixels where it wins in the unoccluded image, which goes along as a mask.
    wins = (out.argmax(1, keepdim=True) == torch.arange(4).view(1, -1, 1, 1)).double()
    assert (wins.sum((2, 3)) > 0).any(0).sum() > 1

    def predicted(model: nn.Module) -> Callable[..., Tensor]:
        def mean(x: Tensor, weights: Tensor) -> Tensor:
            return (model(x)["out"] * weights).sum((2, 3)) / weights.sum((2, 3)).clamp_min(1)

        return mean

    model64 = copy.deepcopy(model).double()
    _base, drops = judged(predicted(model64), images, mask_of(BOXES), 0.0, [wins])
    found = backsight.occlusion(model64, images.double(), boxes=BOXES, region="predicted")
    assert float((found.drops - drops).abs().max()) <= 1e-9 * float(drops.abs().max())
    assert float(drops.abs().max()) > 1e-2
    for region, sentence in (
        (torch.ones(3, 3), "mask of the output's size"),
        ("some", "'all' or 'predicted', got 'some'"),
        (torch.zeros(size), "holds a pixel"),
    ):
        with pytest.raises(ValueError, match=sentence):
            backsight.occlusion(model, images, boxes=BOXES, region=region)
    with pytest.raises(ValueError, match="dense outputs"):
        backsight.occlusion(*built(Classifier), boxes=BOXES, region="all")


class Pair(NamedTuple):
    first: Tensor
    logits: Tensor


@dataclass
class Found:
    logits: Tensor
    features: Tensor


class Several(nn.Module):
    """Two outputs, in a container of the test's choice."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.classifier = Classifier()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        features = self.classifier.encoder(x).amax((2, 3))
        return self.wrap(self.classifier(x), features)


CONTAINERS: list[tuple[Callable[[Tensor, Tensor], Any], Any, int]] = [
    (lambda a, b: (a, b), None, 0),
    (lambda a, b: (b, a), 1, 0),
    (lambda a, b: [a, b], -1, 1),
    (lambda a, b: {"aux": b, "logits": a}, None, 0),
    (lambda a, b: {"aux": b, "logits": a}, "aux", 1),
    (lambda a, b: Pair(b, a), "logits", 0),
    (lambda a, b: Found(a, b), None, 0),
    (lambda a, b: Found(a, b), "features", 1),
]


@pytest.mark.parametrize("case", range(len(CONTAINERS)))
def test_models_of_several_outputs(case: int) -> None:
    wrap, output, which = CONTAINERS[case]

    def truth(model: nn.Module) -> Callable[[Tensor], Tensor]:
        model.wrap = lambda a, b: (a, b)
        return lambda x: model(x)[which]

    extra = {} if output is None else {"output": output}
    check(lambda: Several(wrap), truth, **extra)


def test_an_unknown_output() -> None:
    model, images = built(lambda: Several(lambda a, b: {"a": a, "b": b}))
    with pytest.raises(ValueError, match=r"name one of the model's \('a', 'b'\), got None"):
        backsight.occlusion(model, images, boxes=BOXES)
    with pytest.raises(ValueError, match="got 'c'"):
        backsight.occlusion(model, images, boxes=BOXES, output="c")


# --- inputs ---------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """An image with a per-image vector, a per-image map and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(4)
        self.embed = nn.Linear(6, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor, vector: Tensor, second: Tensor, scale: float = 1.0) -> Tensor:
        features = self.encoder(torch.cat([x, second], 1))
        gate = self.embed(vector).sigmoid()
        features = features * gate[:, :, None, None] + features.detach() * scale
        return self.fc(F.relu(features - second[:, :, ::4, ::4]).mean((2, 3)))


def test_further_inputs_go_along_with_their_image() -> None:
    vector = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    second = random_images((1, *SHAPE[1:]), count=2, seed=8)
    model = seeded(TwoInputs).eval()
    images = random_images(SHAPE, count=2, seed=5)
    arguments = (vector, second, 0.5)
    model64 = copy.deepcopy(model).double()
    _, drops = judged(
        lambda x, v, s: model64(x, v, s, 0.5),
        images,
        mask_of(BOXES),
        0.0,
        [vector.double(), second.double()],
    )
    largest = float(drops.abs().max())
    assert largest > 1e-3
    for dtype, provider in itertools.product((FP32, FP64), (WholeMaps, TiledMaps)):
        given = tuple(_as(a, dtype) for a in arguments)
        with every_window_size(), reading_from(provider):
            result = backsight.occlusion(
                model.to(dtype), images.to(dtype), boxes=BOXES, additional_forward_args=given
            )
        assert result.plan.as_dict()["method"] == "windows", result.plan.reason
        assert result.plan.flop_ratio > 1.2
        error = float((result.drops.double() - drops).abs().max())
        assert error <= TOLERANCE[dtype] * largest
    other = (vector.flip(0), *arguments[1:])
    model.float()
    moved = backsight.occlusion(model, images, boxes=BOXES, additional_forward_args=other)
    assert float((moved.drops - drops).abs().max()) > 1e-2 * largest


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, images = built(Classifier)
    plain = backsight.occlusion(model, images, boxes=BOXES)
    wrapped = backsight.occlusion(wrap(model), images, boxes=BOXES)
    assert wrapped.plan.as_dict()["method"] == "windows"
    assert torch.equal(plain.drops, wrapped.drops)
    assert float(plain.drops.abs().max()) > 1e-3


# --- what stands in the boxes ---------------------------------------------------------------------


def test_named_baselines() -> None:
    _, images = built(Classifier)
    blurred = baselines.blur(images.double(), 2.0)
    noise = baselines.noise(images.double())
    check(
        Classifier, lambda m: m, baseline="mean", content=images.double().mean((2, 3), keepdim=True)
    )
    check(Classifier, lambda m: m, baseline="blur", content=baselines.blur(images.double()))
    check(Classifier, lambda m: m, baseline=blurred, content=blurred)
    check(Classifier, lambda m: m, baseline="noise", content=noise)
    with pytest.raises(ValueError, match="'inpaint', got 'gray'"):
        backsight.occlusion(*built(Classifier), boxes=BOXES, baseline="gray")


def test_blur() -> None:
    """A constant stays; the middle is the Gaussian's weighted mean; detail goes away."""
    flat = torch.full((1, 2, 9, 14), 0.7)
    assert torch.allclose(baselines.blur(flat, 3.0), flat)
    point = torch.zeros(1, 1, 41, 41, dtype=FP64)
    point[..., 20, 20] = 1
    at = torch.arange(-20, 21, dtype=FP64)
    bell = torch.exp(-0.5 * (at / 2) ** 2) * (at.abs() <= 9)
    bell = bell / bell.sum()
    # Away from the edges, where the Gaussian is whole.
    expected, found = torch.outer(bell, bell), baselines.blur(point, 2.0)[0, 0]
    assert torch.allclose(found[11:30, 11:30], expected[11:30, 11:30], atol=1e-12)
    volume = random_images((2, 9, 10, 11))
    assert baselines.blur(volume, 4.0).std() < 0.5 * volume.std()
    with pytest.raises(ValueError, match="sigma to be positive, got 0"):
        baselines.blur(flat, 0)


def test_noise() -> None:
    images = random_images(SHAPE, count=2, seed=1)
    first, second = baselines.noise(images, 3), baselines.noise(images, 3)
    assert torch.equal(first, second)
    assert not torch.equal(first, baselines.noise(images, 4))
    assert torch.allclose(first.mean((2, 3)), images.mean((2, 3)), atol=0.2)


def test_pixel() -> None:
    found = baselines.pixel(127.5, (0.485 * 255, 0.4 * 255), (0.2 * 255, 0.5 * 255))
    assert torch.allclose(found, torch.tensor([(0.5 - 0.485) / 0.2, 0.1 / 0.5]))


def inpainted(image: Tensor, box: list[int]) -> Tensor:
    """The four borders of a box, each weighted by one over its distance, pixel by pixel."""
    top, left, bottom, right = box
    filled = image.clone()
    for y in range(top, bottom):
        for x in range(left, right):
            near = [(top - 1, x, y - top + 1), (bottom, x, bottom - y)]
            near += [(y, left - 1, x - left + 1), (y, right, right - x)]
            inside = [
                (a, b, d) for a, b, d in near if 0 <= a < image.shape[1] and 0 <= b < image.shape[2]
            ]
            total = sum(1 / d for *_, d in inside)
            colour = [image[:, a, b] / d / total for a, b, d in inside]
            filled[:, y, x] = sum(colour) if inside else image.mean((1, 2))
    return filled


def test_inpainting() -> None:
    _, images = built(Classifier)
    content = torch.stack(
        [
            torch.stack([inpainted(image, box) for box in BOXES.tolist()])
            for image in images.double()
        ]
    )
    check(Classifier, lambda m: m, baseline="inpaint", content=content)


# --- boxes ----------------------------------------------------------------------------------------


def test_windows_of_some_channels() -> None:
    """Captum's windows: the first axis is the channels'."""
    model, images = built(Classifier)
    result = backsight.occlusion(model, images, window=(2, 9, 8), stride=(1, 7, 6))
    assert result.grid_shape == (2, 5, 4)
    assert result.boxes.shape == (40, 6)
    boxes = result.boxes[[0, 7, 19, 20, 33, 39]]
    assert (boxes[:, 3] - boxes[:, 0]).unique().tolist() == [2]
    check(Classifier, lambda m: m, boxes=boxes, baseline=0.3, content=0.3)
    _, drops = judged(copy.deepcopy(model).double(), images, mask_of(result.boxes))
    mask = mask_of(result.boxes).double()
    expected = torch.einsum("ip,pchw->ichw", drops[..., 1], mask) / mask.sum(0).clamp_min(1)
    found = result.map(1)
    assert found.shape == (2, *SHAPE)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert float(expected.abs().max()) > 1e-3


PARTS = torch.tensor(
    [
        [[0, 0, 5, 25], [20, 0, 24, 25]],  # two rows
        [[3, 3, 9, 9], [6, 6, 14, 12]],  # overlapping
        [[10, 10, 14, 14], [0, 0, 0, 0]],  # one, and an empty one
        [[0, 0, 33, 25], [3, 3, 4, 4]],  # one in another
    ]
)


def test_several_boxes_at_a_time() -> None:
    result = check(Classifier, lambda m: m, boxes=PARTS, baseline=-0.2, content=-0.2)
    assert torch.equal(result.boxes, PARTS)
    masks = mask_of(PARTS)[:, 0].double()
    for reduce in ("mean", "sum"):
        expected = torch.einsum("ip,phw->ihw", result.drops[..., 2], masks)
        if reduce == "mean":
            expected = expected / masks.sum(0).clamp_min(1)
        found = result.map(2, reduce)
        assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    with pytest.raises(ValueError, match=r"hold a pixel .* at 1"):
        backsight.occlusion(*built(Classifier), boxes=PARTS[2:].flip(0)[:, 1:].clone())


def test_disjoint_boxes_cover_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 9, (60, 4, 3), generator=generator)
    parts = torch.cat([start, start + torch.randint(0, 7, (60, 4, 3), generator=generator)], 2)
    boxes, owner = disjoint(parts)
    count = torch.zeros(60, 16, 16, 16, dtype=torch.int64)
    for box, o in zip(boxes.tolist(), owner.tolist(), strict=True):
        count[o, box[0] : box[3], box[1] : box[4], box[2] : box[5]] += 1
    covered = torch.stack([mask_of(p[None], (1, 16, 16, 16))[0, 0] for p in parts])
    assert torch.equal(count, covered.long())
    assert covered.any(0).sum() > 100


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boxes", [BOXES, PARTS, torch.tensor([[0, 3, 3, 2, 9, 9], [1, 0, 0, 3, 4, 4]])]
)
def test_results_travel(boxes: Tensor, tmp_path: Any) -> None:
    """Pickled, or saved and loaded, a result says the same."""
    model, images = built(Classifier)
    result = backsight.occlusion(model, images, boxes=boxes, top=2)
    result.save(tmp_path / "result.npz")
    assert result.targets is not None
    best = result.targets[:, 0]
    for other in (
        pickle.loads(pickle.dumps(result)),
        backsight.Occlusion.load(tmp_path / "result.npz"),
    ):
        assert torch.equal(other.drops, result.drops)
        assert torch.equal(other.boxes, boxes)
        assert torch.equal(other.targets, result.targets)
        assert torch.equal(other.most_probable(), result.most_probable())
        assert torch.equal(other.map(best), result.map(best))
        assert other.plan["method"] == "windows"
    assert float(result.drops.abs().max()) > 1e-3
