"""Where a sweep runs: threads, forked workers, autocast; and models that do not keep the rules."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import backsight
from backsight.sweep import allocator
from nets import AUTOCAST, MULTI, NETS, calibrate, random_images, seeded
from oracle import oracle
from test_occlusion_oracle import assert_drops

SHAPE = (3, 33, 25)


def small(seed: int = 0, **changes: nn.Module) -> nn.Module:
    layers = {
        "conv": nn.Conv2d(3, 8, 3, 2, 1),
        "act": nn.ReLU(inplace=True),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(8, 4),
    }
    model = seeded(lambda: nn.Sequential(), seed)
    for name, layer in (layers | changes).items():
        model.add_module(name, layer)
    return model.eval()


# --- threads and processes ------------------------------------------------------------------------


def test_several_threads_at_once() -> None:
    """Models of one's own, one model for all, one model with several readouts: as alone."""
    names = ["resnet18", "mobilenet_v2", "densenet", "convnext"]
    models = {name: NETS[name].build() for name in names}
    images = {name: NETS[name].images(count=2) for name in names}
    shared = calibrate(seeded(small), random_images(SHAPE, 8))
    tasks: list[tuple[nn.Module, Tensor, dict[str, object]]] = [
        (models[name], images[name], {"window": 9, "stride": 7}) for name in names
    ]
    some = random_images(SHAPE, count=2, seed=3)
    tasks += [(shared, some, {"window": 8, "layer": "conv"}), (shared, some, {"window": 8})]
    tasks += [(shared, some, {"window": 8, "top": 2}), (shared, some, {"window": 5})]
    alone = [backsight.occlusion(copy.deepcopy(m), x, **a).drops for m, x, a in tasks]
    assert all(float(drops.abs().max()) > 1e-4 for drops in alone)
    found: dict[int, Tensor] = {}
    failures: list[BaseException] = []
    start = threading.Barrier(len(tasks))
    count = torch.get_num_threads()

    def work(index: int) -> None:
        model, x, arguments = tasks[index]
        # Each thread of Python has a number of its own, and with it other rounding.
        torch.set_num_threads(count)
        try:
            start.wait()
            for _ in range(2):
                found[index] = backsight.occlusion(model, x, **arguments).drops
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for index, drops in enumerate(alone):
        assert torch.equal(found[index], drops)
    assert not any(m._forward_hooks for m in shared.modules())


class Maps(Dataset[Tensor]):
    """Each item is made by a sweep, in whatever process asks for it."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return backsight.occlusion(self.model, self.images[index : index + 1], window=9).drops[0]


def test_in_a_forked_worker() -> None:
    """A loader's workers are forked from a process that has swept before."""
    model = NETS["resnet18"].build()
    images = NETS["resnet18"].images(count=3)
    maps = Maps(model, images)
    here = torch.stack([maps[k] for k in range(3)])
    loader = DataLoader(
        maps, batch_size=3, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    (there,) = list(loader)
    assert float(here.abs().max()) > 1e-4
    # One thread there, perhaps more here: batches are planned and summed up differently.
    assert float((there - here).abs().max()) <= 1e-4 * float(here.abs().max())


# --- precision ------------------------------------------------------------------------------------


def test_the_callers_autocast_holds_for_the_model() -> None:
    """Inside autocast it is the model's own bf16 that is swept; outside, nothing of it."""
    case = NETS["resnet18"]
    model, images = case.build(), case.images(count=1)
    full = backsight.occlusion(model, images, window=16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = backsight.occlusion(model, images, window=16)
        own = model(images)
    assert result.plan.as_dict()["method"] == "windows", result.plan.reason
    assert float((result.base - own.double()).abs().max()) <= 2e-2 * float(own.abs().max())
    assert not torch.equal(result.drops, full.drops)
    _, truth = oracle(model, images, result.boxes)
    largest = float(truth.abs().max())
    assert float((full.drops - truth).abs().max()) <= 1e-3 * largest
    # What autocast itself costs, measured on plain occlusion.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        copies = backsight.ops.occlude(images, result.boxes, torch.zeros(1))
        plain = (own.float() - model(copies).float()).double()
    rounding = float((plain - truth[0]).abs().max())
    assert float((result.drops - truth).abs().max()) <= 1.5 * rounding
    again = backsight.occlusion(model, images, window=16)
    assert torch.equal(again.drops, full.drops)


def test_autocast_inside_the_model() -> None:
    model, images = AUTOCAST.build(), AUTOCAST.images(count=1)
    result = backsight.occlusion(model, images, window=9)
    assert result.plan.as_dict()["method"] == "windows"
    assert not result.plan.barriers
    assert float(result.drops.abs().max()) > 1e-3


# --- further inputs and outputs -------------------------------------------------------------------


@pytest.mark.parametrize("name", MULTI)
def test_networks_of_several_inputs_or_outputs(name: str) -> None:
    case = MULTI[name]
    model, images, more = case.build(), case.images(count=2), case.more(2)
    model64 = copy.deepcopy(model).double()

    class Alone(nn.Module):
        """One image's scores, with what goes along with it."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.model, self.index = model64, index

        def forward(self, x: Tensor) -> Tensor:
            along = [a[self.index : self.index + 1].double() for a in more]
            return case.scores(self.model(x, *along)).flatten(1)

    result = backsight.occlusion(
        model, images, window=7, stride=9, additional_forward_args=more, output=case.output
    )
    assert result.plan.as_dict()["method"] == "windows", result.plan.reason
    judged = [oracle(Alone(k), images[k : k + 1], result.boxes) for k in range(2)]
    base, drops = (torch.cat(part) for part in zip(*judged, strict=True))
    assert_drops(result, base, drops, torch.float32)


# --- models that do not keep the rules ------------------------------------------------------------


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class Noisy(nn.Module):
    """Randomness that no tag tells of."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(torch.randn(()))


class Centred(nn.Module):
    """Centres the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (Doubling, "leaves its input as it is, got one that changes it in place"),
        (Noisy, "without randomness, got other scores for the same image"),
        (Centred, "scores each image by itself, got other scores"),
    ],
)
def test_refused_models(layer: Callable[[], nn.Module], sentence: str) -> None:
    images = random_images(SHAPE, count=2, seed=1)
    model = nn.Sequential(layer(), small())
    before = images.clone()
    with pytest.raises(ValueError, match=sentence):
        backsight.occlusion(model, images, window=8)
    assert torch.equal(images, before)
    uncapturable = nn.Sequential(layer(), NETS["data_dependent"].build())
    with pytest.raises(ValueError, match=sentence):
        backsight.occlusion(uncapturable, images, window=8)
    assert torch.equal(images, before)


def test_nothing_is_left_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    images = random_images(SHAPE, count=1, seed=1)
    expected = backsight.occlusion(model, images, window=8, layer="conv")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.pool.register_forward_hook(interrupted)
    for arguments in ({"layer": "conv"}, {}):
        with pytest.raises(KeyboardInterrupt):
            backsight.occlusion(model, images, window=8, **arguments)
    handle.remove()
    assert not any(m._forward_hooks for m in model.modules())
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    result = backsight.occlusion(model, images, window=8, layer="conv")
    assert torch.equal(result.drops, expected.drops)


def test_freed_memory_is_kept_during_sweeps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of several sweeps sets it, the last one ends it, also after an exception."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(
        allocator, "_function", lambda name: lambda *a: calls.append(a) if name == "mallopt" else 0
    )
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    with allocator.reuse():
        began = len(calls)
        assert began == len(allocator._KEEPING)
        with pytest.raises(KeyError), allocator.reuse():
            raise KeyError
        assert len(calls) == began
    assert {a[0] for a in calls[:began]} <= {a[0] for a in calls[began:]}
    assert dict(calls[began:]) == allocator._ADAPTED
    calls.clear()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    with allocator.reuse():
        assert calls == []
    assert calls == []
