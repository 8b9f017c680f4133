"""The drop-in against a slow reading, in fp64, of what MONAI 1.6 documents and does."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backsight.monai import OcclusionSensitivity
from nets import NETS, random_images, seeded

#: Rows that a sweep by windows sends through the model itself: to check what it captured.
OWN_ROWS = 6


class Counted(nn.Module):
    """Counts the rows that run through a model, except while it is traced."""

    rows = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        if isinstance(x.shape[0], int) and not torch.compiler.is_compiling():
            Counted.rows += x.shape[0]
        return self.model(x, **arguments)


class Tempered(nn.Module):
    """With a keyword argument, dropout and a batch norm."""

    def __init__(self, channels: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, 2)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        return self.fc(self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))) * 4 / temperature


@functools.lru_cache
def built(name: str) -> nn.Module:
    return copy.deepcopy(NETS[name].build()).double()


@functools.lru_cache
def tempered(channels: int = 2, classes: int = 4) -> nn.Module:
    return seeded(lambda: Tempered(channels, classes)).double().eval()


def image(name: str) -> Tensor:
    return NETS[name].images().double()


def positions(size: int, mask: int, overlap: float) -> list[int]:
    """Starts along an axis: int(mask * (1 - overlap)) apart, the last moved inside."""
    step = mask if mask == size else max(1, int(mask * (1 - overlap)))
    starts = [0]
    while starts[-1] + mask < size:
        starts.append(min(starts[-1] + step, size - mask))
    return starts


def kernel(mask: tuple[int, ...]) -> Tensor:
    """1 - Gaussian of a quarter of the mask, scaled to [0, 1], element by element."""
    found = torch.empty(mask, dtype=torch.float64)
    for at in itertools.product(*map(range, mask)):
        value = 1.0
        for i, m in zip(at, mask, strict=True):
            t = 1 / (math.sqrt(2) * m * 0.25)
            off = i - m // 2
            value *= 0.5 * (math.erf(t * (off + 0.5)) - math.erf(t * (off - 0.5)))
        found[at] = -value
    low, high = found.min(), found.max()
    return (found - low) / (high - low) if high > low else torch.zeros(mask, dtype=torch.float64)


def importance(mask: tuple[int, ...]) -> Tensor:
    """MONAI's weights of overlapping windows: a Gaussian of an eighth of the mask."""
    found = torch.empty(mask, dtype=torch.float64)
    for at in itertools.product(*map(range, mask)):
        squares = [((i - (m - 1) / 2) / (0.125 * m)) ** 2 for i, m in zip(at, mask, strict=True)]
        found[at] = max(math.exp(-sum(squares) / 2), 1e-3)
    return found


@torch.no_grad()
def slow(
    model: Callable[..., Tensor],
    x: Tensor,
    mask: tuple[int, ...],
    overlap: float = 0.6,
    mode: Any = "gaussian",
    activate: Any = True,
    b_box: list[int] | None = None,
    **kwargs: Any,
) -> Tensor:
    """One position after the other."""
    size = tuple(x.shape[2:])
    low, high, crop = [0] * len(size), list(size), [slice(None)] * len(size)
    if b_box is not None:
        for d, n in enumerate(size):
            first, last = b_box[2 * d], b_box[2 * d + 1]
            edge = (mask[d] - 1) // 2
            low[d] = max(first - edge, 0)
            high[d] = n if last < 0 else min(last + edge, n)
            start = max(first, 0) - low[d]
            crop[d] = slice(start, start + (n if last < 0 else last) - max(first, 0))
        mask = tuple(min(m, b - a) for m, a, b in zip(mask, low, high, strict=True))
    extent = tuple(b - a for a, b in zip(low, high, strict=True))
    starts = [positions(n, m, overlap) for n, m in zip(extent, mask, strict=True)]
    weights = importance(mask) if mode == "gaussian" else torch.ones(mask, dtype=torch.float64)
    sums: Tensor | None = None
    total = torch.zeros(extent, dtype=torch.float64)
    for corner in itertools.product(*starts):
        at = [slice(a + c, a + c + m) for a, c, m in zip(low, corner, mask, strict=True)]
        hidden = x.clone()
        patch = hidden[(slice(None), slice(None), *at)]
        if mode == "gaussian":
            patch *= kernel(mask)
        elif mode == "mean_patch":
            patch[:] = patch.mean()
        elif mode == "mean_img":
            patch[:] = x.mean()
        elif callable(mode):
            patch[:] = mode(x, patch.clone())
        else:
            patch[:] = mode
        scores = model(hidden, **kwargs)
        if callable(activate):
            scores = activate(scores)
        elif activate:
            scores = scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1)
        if sums is None:
            sums = torch.zeros(scores.shape[1], *extent, dtype=torch.float64)
        here = tuple(slice(c, c + m) for c, m in zip(corner, mask, strict=True))
        sums[(slice(None), *here)] += scores[0].view(-1, *[1] * len(size)) * weights
        total[here] += weights
    assert sums is not None
    return (sums / total)[(slice(None), *crop)][None]


def blackened(x: Tensor, patch: Tensor) -> Tensor:
    return patch * 0.5 + x.amin()


CASES: dict[str, dict[str, Any]] = {
    "gaussian": {"mask_size": 14},
    "gaussian-sizes": {"mask_size": (12, 17), "overlap": 0.3},
    "gaussian-pixel": {"mask_size": (1, 3), "overlap": 0.0, "b_box": [20, 24, 5, 16]},
    "mean_img": {"mask_size": 13, "mode": "mean_img", "overlap": 0.25},
    "mean_patch": {"mask_size": 13, "mode": "mean_patch", "overlap": 0.5},
    "mean_patch-apart": {"mask_size": (9, 12), "mode": "mean_patch", "overlap": 0.0},
    "number": {"mask_size": 16, "mode": 0.3},
    "integer": {"mask_size": 16, "mode": 1},
    "callable": {"mask_size": 15, "mode": blackened},
    "logits": {"mask_size": 16, "mode": 0.0, "activate": False},
    "activation": {"mask_size": 16, "mode": 0.0, "activate": lambda s: s.log_softmax(1)},
    "whole-axis": {"mask_size": (11, 49), "mode": 0.5, "overlap": 0.4},
    "box": {"mask_size": 12, "mode": 0.0, "b_box": [10, 40, 7, 30]},
    "box-open": {"mask_size": 12, "b_box": [-1, 40, 7, -1]},
    "box-small": {"mask_size": (20, 12), "mode": "mean_patch", "b_box": [0, 5, 3, 30]},
    "box-edge": {"mask_size": 10, "mode": "mean_img", "b_box": [40, 65, 25, 49]},
}
WHOLE = {"data_dependent"}


def compare(model: nn.Module, x: Tensor, case: dict[str, Any], windows: bool = True) -> None:
    case = dict(case)
    b_box, kwargs = case.pop("b_box", None), case.pop("kwargs", {})
    Counted.rows = 0
    ours = OcclusionSensitivity(Counted(model), verbose=False, **case)
    found, best = ours(x, b_box, **kwargs)
    rows = Counted.rows
    mask = case.pop("mask_size")
    mask = mask if isinstance(mask, tuple) else (mask,) * (x.ndim - 2)
    truth = slow(model, x, mask, b_box=b_box, **case, **kwargs)
    assert found.shape == truth.shape
    assert best.shape == (1, 1, *found.shape[2:])
    assert best.dtype == torch.int64
    assert torch.equal(best, found.argmax(1, keepdim=True))
    moves = (truth.flatten(2).amax(2) - truth.flatten(2).amin(2)).max()
    assert moves > 1e-4
    assert (found - truth).abs().max() <= 1e-9 * moves
    if windows:
        assert rows <= OWN_ROWS
    else:
        assert rows > OWN_ROWS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["resnet18", "data_dependent"])
def test_maps(name: str, case: str) -> None:
    compare(built(name), image(name), CASES[case], windows=name not in WHOLE)


@pytest.mark.parametrize("mode", ["gaussian", "mean_patch", 0.2])
@pytest.mark.parametrize("name", ["conv1d", "conv3d"])
def test_other_dimensions(name: str, mode: Any) -> None:
    mask = {"conv1d": (17,), "conv3d": (3, 9, 6)}[name]
    compare(built(name), image(name), {"mask_size": mask, "mode": mode, "overlap": 0.4})


@pytest.mark.parametrize("temperature", [2.0, torch.tensor(0.5, dtype=torch.float64)])
def test_keyword_arguments(temperature: Any) -> None:
    x = random_images((2, 24, 19), 1, 5).double()
    case = {"mask_size": 9, "mode": "mean_patch", "kwargs": {"temperature": temperature}}
    compare(tempered(), x, case)


def test_fp32_and_half() -> None:
    x = image("resnet18")
    truth = slow(built("resnet18"), x, (14, 14))
    model = copy.deepcopy(built("resnet18"))
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        found, _ = OcclusionSensitivity(model.to(dtype), 14, verbose=False)(x.to(dtype))
        assert found.dtype == torch.float32
        assert truth.max() - truth.min() > 0.1
        assert (found - truth).abs().max() <= bound


# --- faults that are not kept --------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0.2, "mean_patch"])
def test_the_callers_autocast_holds_for_the_model(mode: Any) -> None:
    x, model = image("resnet18").float(), copy.deepcopy(built("resnet18")).float()
    truth = slow(built("resnet18"), x.double(), (14, 14), mode=mode)
    case = {"mask_size": 14, "mode": mode, "verbose": False}
    full, _ = OcclusionSensitivity(model, **case)(x)
    Counted.rows = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, _ = OcclusionSensitivity(Counted(model), **case)(x)
        own = slow(model, x, (14, 14), mode=mode)
    assert Counted.rows <= OWN_ROWS
    assert found.dtype == torch.float32
    assert not torch.equal(found, full)
    assert (found - truth).abs().max() <= 1.5 * (own - truth).abs().max()


def test_a_patch_s_mean_stands_in_it() -> None:
    """MONAI multiplies the patch by its mean: a constant image would then change."""
    x = torch.full((1, 2, 20, 16), 0.5, dtype=torch.float64)
    x[..., :8] = 3.0
    model = tempered()
    with torch.no_grad():
        base = model(x)[0]
    found, _ = OcclusionSensitivity(
        model, 4, mode="mean_patch", overlap=0, activate=False, verbose=False
    )(x)
    assert torch.allclose(found, base.view(1, -1, 1, 1).expand_as(found), atol=1e-12)
    halves, _ = OcclusionSensitivity(
        model, (4, 16), mode="mean_patch", overlap=0, activate=False, verbose=False
    )(x)
    assert (halves - found).abs().max() > 1e-3


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_outputs_decide_the_activation(channels: int, classes: int) -> None:
    """MONAI takes the sigmoid for images of one channel, whatever comes out."""
    x = random_images((channels, 17, 15), 1, 2).double()
    model = tempered(channels, classes)
    logits, _ = OcclusionSensitivity(model, 15, mode=0.0, activate=False, verbose=False)(x)
    found, _ = OcclusionSensitivity(
        model, (15, 15), mode=0.0, overlap=0.0, activate=True, verbose=False
    )(x)
    one = logits.flatten(2)[0, :, 0]
    expected = one.sigmoid() if classes == 1 else one.softmax(0)
    assert torch.allclose(found.flatten(2)[0, :, 0], expected, atol=1e-3)
    assert torch.allclose(found.sum(1), torch.ones(()).double()) == (classes > 1)


def test_far_coordinates_in_half_precision() -> None:
    """bf16 cannot tell 257 from 256: the boxes of a long image still lie where they should."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(1, 1, 700).index_fill(2, torch.tensor([603]), 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.place).sum(2)

    model = Sum().to(torch.bfloat16)
    x = torch.ones(1, 1, 700, dtype=torch.bfloat16)
    found, _ = OcclusionSensitivity(model, 3, mode=0.0, overlap=0.0, activate=False, verbose=False)(
        x
    )
    assert (found[0, 0] == 0).nonzero().flatten().tolist() == [603, 604, 605]
    assert set(found[0, 0].tolist()) == {0.0, 1.0}


def test_training_flags_come_back() -> None:
    model = copy.deepcopy(tempered()).train()
    model.norm.eval()  # frozen
    x = random_images((2, 20, 16), 1, 2).double()
    state = copy.deepcopy(model.state_dict())
    found, _ = OcclusionSensitivity(model, 7, verbose=False)(x)
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert torch.allclose(found, slow(tempered(), x, (7, 7)), atol=1e-9)
    assert found.max() - found.min() > 1e-3
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        OcclusionSensitivity(model, 7, verbose=False, mode=broken)(x)
    assert [m.training for m in model.modules()] == [True, True, False, True, True]


# --- the rest ------------------------------------------------------------------------------------


def test_interface() -> None:
    parameters = inspect.signature(OcclusionSensitivity).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("nn_module", inspect.Parameter.empty),
        ("mask_size", 16),
        ("n_batch", 16),
        ("verbose", True),
        ("mode", "gaussian"),
        ("overlap", 0.6),
        ("activate", True),
    ]


def test_against_monai_where_it_is_installed() -> None:
    visualize = pytest.importorskip("monai.visualize")
    model, x = built("resnet18"), image("resnet18")
    for name in ("gaussian", "mean_img", "number", "logits", "box", "box-open"):
        case = dict(CASES[name]) | {"verbose": False}
        b_box = case.pop("b_box", None)
        ours, best = OcclusionSensitivity(model, **case)(x, b_box)
        theirs, their_best = visualize.OcclusionSensitivity(model, **case)(x, b_box)
        assert ours.shape == theirs.shape
        assert torch.allclose(ours.float(), torch.as_tensor(theirs).float(), atol=1e-6)
        assert torch.equal(best, torch.as_tensor(their_best))


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("resnet18", "data_dependent"):
        OcclusionSensitivity(built(name), 30)(image(name))
        assert "100%" in capsys.readouterr().err
        OcclusionSensitivity(built(name), 30, verbose=False)(image(name))
        assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "x", "b_box", "sentence"),
    [
        ({}, torch.rand(2, 2, 20, 16), None, "expected a batch of one image, got 2"),
        (
            {},
            torch.ones(1, 2, 20, 16, dtype=torch.int64),
            None,
            r"floating-point image .* torch\.int64",
        ),
        ({"mask_size": 17}, torch.rand(1, 2, 20, 16), None, r"no larger .* got \(17, 17\)"),
        ({"mask_size": (4, 4, 4)}, torch.rand(1, 2, 20, 16), None, "expected mask_size"),
        ({"overlap": 1.0}, torch.rand(1, 2, 20, 16), None, r"overlap .* got 1\.0"),
        ({"overlap": (0.1,)}, torch.rand(1, 2, 20, 16), None, "or 2 of them"),
        ({}, torch.rand(1, 2, 20, 16), [1, 5], r"each of 2 axes, got \[1, 5\]"),
        ({}, torch.rand(1, 2, 20, 16), [5, 5, 0, 9], "hold a pixel"),
    ],
)
def test_refusals(arguments: Any, x: Tensor, b_box: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OcclusionSensitivity(tempered(), **({"mask_size": 5, "verbose": False} | arguments))(
            x.double() if x.is_floating_point() else x, b_box
        )


def test_unknown_modes_and_dense_scores_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="got 'blur'"):
        OcclusionSensitivity(tempered(), mode="blur")
    dense = nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"expected the model to return scores .* got"):
        OcclusionSensitivity(dense, 5, verbose=False)(torch.rand(1, 2, 12, 11))
