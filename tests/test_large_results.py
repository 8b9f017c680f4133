"""What a store of a large image holds, and what is read back from it."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backsight
from backsight.methods.large import Large, fill
from backsight.methods.large.read import _row_by_row
from backsight.methods.large.watch import Silent
from backsight.occlusion_store import Store
from backsight.sweep.grid import EDGES, grid
from backsight.sweep.readout import Readout
from backsight.sweep.units import UnitSweep, partitioned
from nets import NETS, random_images
from test_large import of_small_fields, smallest, task, tree

pytest.importorskip("google_crc32c")

WHERE: dict[str, Any] = {"window": 24, "stride": 16}
MEMORY = 1 << 20


@pytest.fixture(scope="module")
def near() -> nn.Module:
    return of_small_fields()


@pytest.fixture(scope="module")
def scene() -> Tensor:
    return random_images((3, 300, 280), 1, seed=9)[0]


@pytest.fixture(scope="module")
def complete(near: nn.Module, scene: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "whole"
    store = backsight.large_occlusion(near, scene, **WHERE, memory=MEMORY, store=path)
    assert isinstance(store, Store)
    assert store.finished
    assert len(store.units) > 4
    return path


def direct(model: nn.Module, image: Tensor, **arguments: Any) -> backsight.Occlusion:
    """Without a store."""
    found = backsight.large_occlusion(model, image, **({"memory": MEMORY} | WHERE | arguments))
    assert isinstance(found, backsight.Occlusion)
    assert float(found.drops.abs().max()) > 0
    return found


# --- units ---------------------------------------------------------------------------------------


def test_a_unit_holds_all_that_is_known_of_its_positions(
    near: nn.Module, scene: Tensor, complete: Path
) -> None:
    store = Store.view(complete)
    expected = direct(near, scene)
    rows = {tuple(box): i for i, box in enumerate(expected.boxes.tolist())}
    floors = []
    for unit, positions in enumerate(store.units):
        found = store.read(unit)
        here = [rows.pop(tuple(box)) for box in found["boxes"].tolist()]
        assert len(here) == positions
        assert np.array_equal(found["drops"], expected.drops[0, here].numpy())
        assert np.array_equal(found["scores"], expected.scores[0, here].float().numpy())
        best = expected.most_probable().reshape(-1)[here]
        assert np.array_equal(found["most_probable"][:, 0], best.numpy())
        floors.append(float(found["noise_floor"][0]))
    assert not rows
    assert store.found == {"noise_floor": max(floors)}
    assert max(floors) == expected.noise_floor
    assert store.base is not None
    assert np.array_equal(store.base, expected.base[0].numpy())
    assert store.targets is not None
    assert store.targets.tolist() == [0, 1, 2, 3, 4]


def test_the_outputs_that_are_kept_are_said(near: nn.Module, scene: Tensor, tmp_path: Path) -> None:
    for name, kept in {"top": {"top": 2}, "targets": {"targets": [4, -4]}}.items():
        backsight.large_occlusion(near, scene, **WHERE, store=tmp_path / name, **kept)
        expected = direct(near, scene, **kept)
        found = Store.view(tmp_path / name)
        assert found.targets is not None
        assert expected.targets is not None
        assert found.targets.tolist() == expected.targets[0].tolist()
        assert found.base is not None
        assert np.array_equal(found.base, expected.base[0].numpy())


class Told(Silent):
    """Keeps what it is told of, and in which thread."""

    def __init__(self, path: Path) -> None:
        self.path, self.events = path, list[Any]()

    def end(self) -> None:
        self.events.append("end")

    def stored(self, unit: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert unit in Store.view(self.path).done
        self.events.append(unit)


def test_units_are_told_of_once_they_are_there(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path
) -> None:
    watch = Told(tmp_path / "a")
    job = task(near, scene, MEMORY, **WHERE)
    fill(job, tmp_path / "a", watch=watch)
    assert watch.events == ["end", *range(len(job.units)), "end"]
    assert tree(tmp_path / "a") == tree(complete)


def test_a_unit_is_written_while_the_next_one_is_computed(
    near: nn.Module,
    scene: Tensor,
    complete: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = task(near, scene, MEMORY, **WHERE)
    count = len(job.units)
    run, write = UnitSweep.run, Store.write
    begun = [threading.Event() for _ in range(count)]
    computed, writing, most = 0, 0, 0

    def computing(*arguments: Any) -> Any:
        nonlocal computed
        begun[computed].set()
        computed += 1
        return run(*arguments)

    def slow(store: Store, unit: int, **arrays: Any) -> None:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        if unit + 1 < count:  # it would wait for ever if nothing were computed meanwhile
            assert begun[unit + 1].wait(30)
        write(store, unit, **arrays)
        writing -= 1

    monkeypatch.setattr(UnitSweep, "run", computing)
    monkeypatch.setattr(Store, "write", slow)
    fill(job, tmp_path / "a")
    assert (computed, most) == (count, 1)
    assert tree(tmp_path / "a") == tree(complete)


def test_what_keeps_a_unit_from_being_written_is_raised(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    job = task(near, scene, MEMORY, **WHERE)

    class Blocking(Told):
        def stored(self, unit: int) -> None:
            super().stored(unit)
            if unit == 0:  # a folder is in the way of a file
                (path / "drops" / "c.2.0").mkdir()

    watch = Blocking(path)
    with pytest.raises(OSError, match=r"cannot write unit 2 of .*; what is there stays") as caught:
        fill(job, path, watch=watch)
    assert "\n" not in str(caught.value)
    assert watch.events == ["end", 0, 1, "end"]
    (path / "drops" / "c.2.0").rmdir()
    _resumed(near, scene, path, complete, {0, 1})


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_sweep_leaves_whole_units(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path, kind: type[BaseException]
) -> None:
    path = tmp_path / "a"
    job = task(near, scene, MEMORY, **WHERE)
    rest = [len(unit.positions) for unit in job.units[:3]]

    class Interrupting(Told):
        def begin(self, phase: str, total: int) -> None:
            self.left = sum(rest) - 1 if phase == "sweep" else 1 << 60

        def advance(self, count: int) -> None:
            self.left -= count
            if self.left < 0:
                raise kind

    with pytest.raises(kind):
        fill(job, path, watch=Interrupting(path))
    # The one that was in flight has been waited for.
    _resumed(near, scene, path, complete, {0, 1})


def _resumed(model: nn.Module, image: Tensor, path: Path, complete: Path, there: set[int]) -> None:
    assert Store.view(path).done == there
    assert not [name for name in tree(path) if name.endswith(".tmp")]
    assert not (path / ".lock").exists()
    computed = Told(path)
    fill(task(model, image, MEMORY, **WHERE), path, watch=computed)
    assert not there & set(computed.events)
    assert tree(path) == tree(complete)


# --- read back -----------------------------------------------------------------------------------


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """As a task takes them."""
    kept = {name: arguments.get(name) for name in ("probability", "targets", "top")}
    rest = {name: value for name, value in arguments.items() if name not in kept}
    return rest | {"readout": Readout(**kept)}


def same(found: backsight.Occlusion, expected: backsight.Occlusion) -> None:
    """To the bit, and in all that can be asked of them."""
    assert torch.equal(found.drops, expected.drops)
    assert found.drops.dtype == expected.drops.dtype
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.base, expected.base)
    assert found.base.dtype == expected.base.dtype == torch.float64
    assert (found.shape, found.grid_shape) == (expected.shape, expected.grid_shape)
    assert found.noise_floor == expected.noise_floor
    assert torch.equal(found.most_probable(), expected.most_probable())
    assert (found.targets is None) == (expected.targets is None)
    if found.targets is not None and expected.targets is not None:
        assert torch.equal(found.targets, expected.targets)
        assert found.targets.dtype == expected.targets.dtype
    target = expected.strongest()
    assert found.strongest() == target
    heat = expected.map(target)
    assert float(heat.abs().max()) > 0
    assert torch.equal(found.map(target), heat)
    assert isinstance(expected.plan, dict)
    assert isinstance(found.plan, dict)
    assert found.plan
    assert found.plan.items() <= expected.plan.items()
    assert found.report() == expected.report()


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "2-D": ("resnet18", {"window": 12, "stride": 8}),
    "2-D inside": ("resnet18", {"window": (12, 9), "stride": (7, 5), "edge": "inside"}),
    "2-D overhang": ("resnet18", {"window": 9, "stride": 6, "edge": "overhang"}),
    "2-D gaps": ("resnet18", {"window": 3, "stride": 9}),
    "2-D top": ("resnet18", {"window": 12, "top": 3, "probability": "softmax"}),
    "2-D targets": ("resnet18", {"window": 12, "targets": [-1, 2]}),
    "2-D roi": ("resnet18", {"window": 12, "stride": 6, "roi": [[0, 0, 30, 20], [9, 9, 33, 40]]}),
    "2-D all roi": ("resnet18", {"window": 12, "stride": 8, "roi": [[0, 0, 10**6, 10**6]]}),
    "1-D": ("conv1d", {"window": 9, "stride": 4}),
    "3-D": ("ct", {"window": 6, "stride": 5}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_store_is_read_back_as_what_it_is_without_one(tmp_path: Path, name: str) -> None:
    network, arguments = CASES[name]
    model, image = NETS[network].build(), NETS[network].images()[0]

    def job(memory: int = 1 << 16) -> Large:
        made = smallest(model, image, memory, **given(arguments))
        made.sweep.units = partitioned(made.grid, max(1, min(image.shape[1:]) // 3))
        return made

    first = job()
    assert len(first.units) > 1
    assert fill(first, tmp_path / "store").finished
    expected = job(first.memory).run()
    assert (expected.grid_shape is None) == ("roi" in arguments)
    same(backsight.read_occlusion(tmp_path / "store"), expected)


def test_doubles_are_read_back(near: nn.Module, scene: Tensor, tmp_path: Path) -> None:
    model = copy.deepcopy(near).double()
    image = scene.double()
    backsight.large_occlusion(model, image, **WHERE, memory=1 << 21, store=tmp_path / "a")
    expected = direct(model, image, memory=1 << 21)
    assert expected.drops.dtype == torch.float64
    same(backsight.read_occlusion(str(tmp_path / "a")), expected)


def test_units_in_any_order_are_read_row_by_row(
    near: nn.Module, scene: Tensor, complete: Path
) -> None:
    boxes = np.concatenate([Store.view(complete).read(u)["boxes"] for u in range(5)])
    expected = direct(near, scene)
    assert not np.array_equal(boxes, expected.boxes[: len(boxes)].numpy())
    same(backsight.read_occlusion(complete), expected)


@pytest.mark.parametrize("edge", EDGES)
def test_rows_are_found_again_in_grids_of_every_kind(edge: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        axes = int(rng.integers(1, 4))
        size = rng.integers(1, 12, axes)
        window = [int(rng.integers(1, n + 1)) for n in size]
        stride = rng.integers(1, 14, axes).tolist()
        boxes = grid(size.tolist(), window, stride, edge).boxes.numpy()
        some = rng.permutation(len(boxes))[: max(1, len(boxes) * 2 // 3)]
        assert np.array_equal(boxes[some][_row_by_row(boxes[some])], boxes[np.sort(some)])


def test_what_is_done_of_an_unfinished_store_is_read(
    near: nn.Module, scene: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    with pytest.raises(ValueError, match="there is no store at"):
        backsight.read_occlusion(path)
    backsight.large_occlusion(near, scene, **WHERE, memory=MEMORY, store=path, shard=(1, 3))
    found = backsight.read_occlusion(path)
    expected = direct(near, scene)
    store = Store.view(path)
    assert 0 < len(found.boxes) == sum(store.units[unit] for unit in store.done)
    assert len(found.boxes) < len(expected.boxes)
    rows = {tuple(box): i for i, box in enumerate(expected.boxes.tolist())}
    here = [rows[tuple(box)] for box in found.boxes.tolist()]
    assert here == sorted(here)
    assert torch.equal(found.drops, expected.drops[:, here])
    assert float(found.drops.abs().max()) > 0
    assert torch.equal(found.most_probable(), expected.most_probable().reshape(1, -1)[:, here])
    assert found.grid_shape is None
    for unit in store.done:
        (path / "drops" / f"c.{unit}.0").unlink()
    with pytest.raises(ValueError, match=r"^expected a store with units that are done, got .*$"):
        backsight.read_occlusion(path)
