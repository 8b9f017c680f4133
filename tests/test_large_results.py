"""What a store of a large image holds, and what is read back from it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import backsight
from backsight.methods.large import fill
from backsight.methods.large.watch import Silent
from backsight.occlusion_store import Store
from backsight.sweep.units import UnitSweep
from nets import random_images
from test_large import of_small_fields, task, tree

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
    found = backsight.large_occlusion(model, image, memory=MEMORY, **(WHERE | arguments))
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
