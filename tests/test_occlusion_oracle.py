"""Every position's drop against the fp64 oracle: published and odd networks, and random graphs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn

import backsight
from backsight.maps import TiledMaps, WholeMaps
from backsight.methods import occlusion as method
from backsight.sweep.plan import Machine
from backsight.sweep.run import run_windows
from nets import NETS, Shape
from oracle import grid, oracle
from random_graphs import GraphCase, graph_cases, seeded_case

# Of the largest |drop| among the boxes of one kind.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
# How far the scores must move, as a share of the largest score, for a comparison to mean anything.
MOVES = 1e-5


def boxes_of_every_kind(size: tuple[int, ...]) -> dict[str, Tensor]:
    """Boxes (P, 2*D) from one pixel to the whole image; corners and edges among them."""
    rng = random.Random(0)

    def placed(window: list[int], count: int) -> list[list[int]]:
        """The window in every corner (three at most of each axis pair), then at random places."""
        starts = [sorted({0, n - w}) for n, w in zip(size, window, strict=True)]
        places = list(itertools.product(*starts))
        for _ in range(count):
            places.append(tuple(rng.randint(0, n - w) for n, w in zip(size, window, strict=True)))
        return [[*at, *(a + w for a, w in zip(at, window, strict=True))] for at in places]

    ones = [1] * len(size)
    # Strides over kernels leave most pixels unread; this one is read by every network.
    read = [min(n - 1, (10, 14, 10)[d]) for d, n in enumerate(size)]
    kinds = {
        "pixel": [*placed(ones, 10), [*read, *(a + 1 for a in read)]],
        "small": placed([min(n, 3 + 2 * d) for d, n in enumerate(size)], 5),
        "quarter": placed([max(1, n // 4) for n in size], 4),
        "most": placed([n - 1 for n in size], 0),
        "whole": [[0] * len(size) + list(size)],
    }
    strips = []
    for d, n in enumerate(size):  # full along all axes but one
        thin = list(size)
        thin[d] = max(1, n // 8)
        strips += placed(thin, 1)
    kinds["strip"] = strips
    return {kind: torch.tensor(rows) for kind, rows in kinds.items()}


@functools.lru_cache(maxsize=1)
def judged(name: str, shape: Shape) -> tuple[nn.Module, Tensor, dict[str, Tensor], Tensor, Tensor]:
    """(model, images, boxes by kind, base, drops) of a registered network."""
    case = NETS[name]
    model = case.build(shape)
    images = case.images(shape, count=2, seed=3)
    kinds = boxes_of_every_kind(shape[1:])
    base, drops = oracle(model, images, torch.cat(list(kinds.values())), baseline=0.1)
    return model, images, kinds, base, drops


def assert_drops(
    result: backsight.Occlusion,
    base: Tensor,
    drops: Tensor,
    dtype: torch.dtype,
    kinds: dict[str, Tensor] | None = None,
) -> float:
    """Base and drops equal the oracle's, within each kind of box, and the scores move in each.

    Returns the largest error, as a share of the largest |drop| of its kind.
    """
    found, size = result.drops.double().cpu(), float(base.abs().max())
    assert found.shape == drops.shape
    assert found.isfinite().all()
    tolerance = TOLERANCE[dtype]
    assert float((result.base.double().cpu() - base).abs().max()) <= tolerance * size
    off = result.scores.double().cpu() - (base[:, None] - drops)
    assert float(off.abs().max()) <= tolerance * size
    counts = {"all": drops.shape[1]} if kinds is None else {k: len(b) for k, b in kinds.items()}
    parts = zip(counts, *(x.split(list(counts.values()), 1) for x in (found, drops)), strict=True)
    worst = 0.0
    for kind, ours, theirs in parts:
        largest = float(theirs.abs().max())
        assert largest > MOVES * size, f"occluding {kind} boxes does not move the scores"
        error = float((ours - theirs).abs().max())
        assert error <= tolerance * largest, (
            f"{kind}: a drop is off by {error / largest:.1e} of the largest, {largest:.2e}"
        )
        worst = max(worst, error / largest)
    return worst


@contextlib.contextmanager
def every_window_size() -> Iterator[None]:
    """Plans merge small groups into larger windows; here each size of windows keeps its own group.

    Small networks would otherwise run on whole maps and the windows would go untested.
    """
    with pytest.MonkeyPatch.context() as patch:
        free = Machine(flops=1e9, bandwidth=1e15, launch=0.0, rows=64)
        patch.setattr(Machine, "of", classmethod(lambda cls, device, dtype: free))
        yield


PROVIDERS = (WholeMaps, TiledMaps)


@contextlib.contextmanager
def reading_from(provider: type) -> Iterator[None]:
    """Sweeps read the unoccluded activations from this provider."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "run_windows", functools.partial(run_windows, provider=provider))
        yield


FP32, FP64 = torch.float32, torch.float64
# (network, shape, dtype, merged): each network in both dtypes, with merged and with exact windows.
CASES = [
    (name, shape, dtype, merged)
    for name, case in NETS.items()
    for index, shape in enumerate(case.shapes)
    for dtype, merged in ([(FP32, True), (FP64, False)] if index == 0 else [(FP32, False)])
]


def label(value: object) -> str:
    return str(value).replace(" ", "").replace("torch.", "")


@pytest.mark.parametrize(("name", "shape", "dtype", "merged"), CASES, ids=label)
def test_network(name: str, shape: Shape, dtype: torch.dtype, merged: bool) -> None:
    """Windows from one pixel to the whole image, on odd and non-square images."""
    case = NETS[name]
    model, images, kinds, base, drops = judged(name, shape)
    boxes = torch.cat(list(kinds.values()))
    model, images = model.to(dtype), images.to(dtype)
    found = []
    with contextlib.nullcontext() if merged else every_window_size():
        for provider in PROVIDERS:
            with reading_from(provider):
                result = backsight.occlusion(model, images, boxes=boxes, baseline=0.1)
            assert torch.equal(result.boxes, boxes)
            assert_drops(result, base, drops, dtype, kinds)
            found.append(result.drops)
        if dtype == FP64:
            largest = found[0].abs().max()
            assert all((other - found[0]).abs().max() <= 1e-10 * largest for other in found[1:])
        if not merged and case.capture and case.barrier is False:
            # Small boxes cost less work than whole images, without a barrier and in several groups.
            stride = max(shape[1:]) // 6
            small = backsight.plan(model, images, window=2, stride=stride).as_dict()
            assert small["method"] == "windows"
            assert small["flop_ratio"] > 1.2
    model.float()  # the cached model stays as it was: fp64 holds every fp32 weight exactly
    plan = result.plan.as_dict()
    assert plan["method"] == ("windows" if case.capture else "plain")
    assert bool(plan["reason"]) != case.capture
    if case.barrier:
        assert plan["barriers"]


GRIDS = [
    ("resnet18", (3, 65, 49), (9, 16), (13, 11)),
    ("squeezenet1_1", (3, 48, 64), (20, 7), (9, 19)),
    ("vgg16_fc", (3, 65, 49), (65, 5), (1, 12)),
    ("odd_geometry", (3, 65, 49), (1, 1), (17, 13)),
    ("conv1d", (3, 64), (5,), (3,)),
    ("conv3d", (2, 7, 21, 17), (3, 6, 5), (3, 6, 5)),
    ("data_dependent", (3, 48, 64), (16, 16), (12, 16)),
]


@pytest.mark.parametrize("edge", ["clip", "inside", "drop", "overhang"])
@pytest.mark.parametrize(("name", "shape", "window", "stride"), GRIDS, ids=label)
def test_grid(
    name: str, shape: Shape, window: tuple[int, ...], stride: tuple[int, ...], edge: str
) -> None:
    """Position grids of every edge rule, non-square windows and strides, a baseline a channel."""
    case = NETS[name]
    model, images = case.build(shape), case.images(shape, count=1, seed=4)
    baseline = images.mean(list(range(2, images.dim())), keepdim=True)
    boxes = grid(shape[1:], window, stride, edge)
    result = backsight.occlusion(
        model, images, window=window, stride=stride, edge=edge, baseline=baseline
    )
    assert torch.equal(result.boxes, boxes)
    base, drops = oracle(model, images, boxes, baseline)
    assert_drops(result, base, drops, torch.float32)


def check_random_graph(case: GraphCase) -> dict[torch.dtype, float] | None:
    """The largest error of each dtype, as a share of the largest |drop|; None where the boxes move
    nothing (one case in a hundred).
    """
    base, drops = oracle(case.model, case.images, case.boxes, case.baseline)
    if drops.abs().max() <= 1e-3 * base.abs().max():
        return None
    errors = {}
    for dtype, provider in ((FP32, WholeMaps), (FP64, TiledMaps)):
        baseline = case.baseline
        if isinstance(baseline, Tensor):
            baseline = baseline.to(dtype)
        arguments = {"window": case.window, "stride": case.stride, "edge": case.edge}
        if case.window is None:
            arguments = {"boxes": case.boxes}
        exact = contextlib.nullcontext() if dtype == FP32 else every_window_size()
        with exact, reading_from(provider):
            result = backsight.occlusion(
                case.model.to(dtype), case.images.to(dtype), baseline=baseline, **arguments
            )
        case.model.float()
        assert torch.equal(result.boxes, case.boxes)
        assert result.plan.as_dict()["method"] == "windows"
        errors[dtype] = assert_drops(result, base, drops, dtype)
    return errors


RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(RANDOM, max_examples=20)
@given(graph_cases())
def test_random_graph(case: GraphCase) -> None:
    """Random graphs on random grids, in fp32 and fp64, always on windows."""
    assume(check_random_graph(case) is not None)


def check_seeds(seeds: range) -> dict[str, float]:
    """Check the random graphs of some seeds: how many moved, and the largest errors."""
    moved, worst = 0, {FP32: 0.0, FP64: 0.0}
    for seed in seeds:
        try:
            errors = check_random_graph(seeded_case(seed))
        except Exception as error:
            raise AssertionError(f"the random graph of seed {seed} fails") from error
        if errors is not None:
            moved += 1
            worst = {dtype: max(worst[dtype], share) for dtype, share in errors.items()}
    assert moved > 0.9 * len(seeds)
    return {"graphs": len(seeds), "moved": moved, "fp32": worst[FP32], "fp64": worst[FP64]}


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_seeded_graphs(first: int) -> None:
    check_seeds(range(first, first + 50))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_many_random_graphs(first: int) -> None:
    """What comes out goes to bench/RESULTS.md with the next benchmark."""
    found = check_seeds(range(first, first + 500))
    folder = Path(__file__).resolve().parent.parent / "bench" / "results" / "random_graphs"
    folder.mkdir(parents=True, exist_ok=True)
    record = {"first": first, **found, "torch": torch.__version__}
    (folder / f"{first:05d}.json").write_text(json.dumps(record) + "\n")
