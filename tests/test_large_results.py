"""What a store of a large image holds, and what is read back from it."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import backsight
from backsight.methods.large import Large, fill
from backsight.methods.large.read import _row_by_row
from backsight.methods.large.watch import Silent
from backsight.occlusion_store import Store, status
from backsight.plots.pyramid import halves, write_png
from backsight.sources import geo, open_source
from backsight.sweep.grid import EDGES, grid
from backsight.sweep.readout import Readout
from backsight.sweep.units import UnitSweep, partitioned
from nets import NETS
from test_large import smallest, task, tree
from test_occlusion_store import in_child

pytest.importorskip("google_crc32c")
tifffile = pytest.importorskip("tifffile")

WHERE: dict[str, Any] = {"window": 24, "stride": 16}
MEMORY = 1 << 20


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


QUICK = ("2-D targets", "2-D roi", "1-D", "3-D")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_a_store_is_read_back_as_what_it_is_without_one(tmp_path: Path, name: str) -> None:
    network, arguments = CASES[name]
    model, image = NETS[network].build(), NETS[network].images()[0]

    def job(memory: int = 1 << 20) -> Large:
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


# --- maps and pictures ---------------------------------------------------------------------------


def of_store(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The maps of a store by output, and what is told of the pictures."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="r")
    names = [folder.name for folder in (path / "maps").iterdir() if folder.is_dir()]
    arrays = {output: group["maps"][output] for output in names}
    maps = {output: array[:] for output, array in arrays.items()}
    cells = {output: array.attrs["cell"] for output, array in arrays.items()}
    told = dict(group["overview"].attrs) if "overview" in group else {}
    assert all(told[output]["cell"] == cells[output] for output in told)
    return maps, {"cells": cells, "pictures": told}


def by_hand(found: backsight.Occlusion, output: int, cell: int) -> np.ndarray:
    """A map by looking at each cell, in doubles."""
    axes = len(found.size)
    shape = [-(-n // cell) for n in found.size]
    total, count = np.zeros(shape), np.zeros(shape)
    drops = found.drops[0, :, found.column(output)].tolist()
    for box, drop in zip(found.boxes.tolist(), drops, strict=True):
        if all(start < stop for start, stop in zip(box[:axes], box[axes:], strict=True)):
            where = tuple(
                slice(start // cell, -(-stop // cell))
                for start, stop in zip(box[:axes], box[axes:], strict=True)
            )
            total[where] += drop
            count[where] += 1
    with np.errstate(invalid="ignore"):
        return total / count


def pictures(path: Path, output: int) -> list[np.ndarray]:
    """RGBA, the finest first."""
    folder = path / "overview" / str(output)
    names = sorted(folder.iterdir(), key=lambda file: int(file.stem))
    assert [file.name for file in names] == [f"{level}.png" for level in range(len(names))]
    return [np.asarray(Image.open(file).convert("RGBA")) for file in names]


MAPS: dict[str, tuple[str, dict[str, Any], int]] = {
    "tiles": ("resnet18", {"window": 5}, 5),
    "overlapping tiles": ("resnet18", {"window": 12, "stride": 4}, 4),
    "not in cells": ("resnet18", {"window": 7, "stride": 4}, 4),
    "two steps": ("resnet18", {"window": 12, "stride": (4, 6)}, 2),
    "inside": ("resnet18", {"window": 12, "stride": 4, "edge": "inside"}, 4),
    "overhang": ("resnet18", {"window": 5, "stride": 3, "edge": "overhang"}, 3),
    "gaps": ("resnet18", {"window": 2, "stride": 9}, 9),
    "one box": ("resnet18", {"window": 20, "edge": "drop"}, 20),
    "roi": ("resnet18", {"window": 4, "roi": [[0, 0, 9, 9], [20, 11, 33, 30]]}, 4),
    "1-D": ("conv1d", {"window": 8, "stride": 4}, 4),
    "3-D": ("ct", {"window": 6, "stride": 3}, 3),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_means_of_the_boxes(tmp_path: Path, name: str) -> None:
    network, arguments, cell = MAPS[name]
    model, image = NETS[network].build(), NETS[network].images()[0]
    backsight.large_occlusion(model, image, **arguments, store=tmp_path / "a")
    expected = backsight.large_occlusion(model, image, **arguments)
    assert isinstance(expected, backsight.Occlusion)
    maps, told = of_store(tmp_path / "a")
    (output,) = maps
    assert int(output) == expected.strongest()
    assert told["cells"] == {output: cell}
    heat = by_hand(expected, int(output), cell)
    assert maps[output].dtype == np.float32
    assert maps[output].shape == heat.shape
    largest = np.nanmax(np.abs(heat))
    assert largest > 0
    np.testing.assert_allclose(maps[output], heat, rtol=0, atol=1e-6 * largest)
    assert np.isnan(heat).any() == (name in ("roi", "one box"))
    if len(expected.size) == 1:
        assert not (tmp_path / "a" / "overview").exists()
        return
    about = told["pictures"][output]
    layer = np.unravel_index(np.nanargmax(heat), heat.shape)[0]
    assert about.get("layer") == (layer if heat.ndim == 3 else None)
    shown = heat[layer] if heat.ndim == 3 else heat
    assert about["limit"] == pytest.approx(np.nanmax(np.abs(shown)))
    (picture,) = pictures(tmp_path / "a", int(output))
    assert picture.shape == (*shown.shape, 4)
    assert np.array_equal(picture[..., 3] == 0, np.isnan(shown))
    red = picture[..., 0].astype(int) - picture[..., 2]
    assert (red[np.nan_to_num(shown) > 0.02 * about["limit"]] > 0).all()
    assert (red[np.nan_to_num(shown) < -0.02 * about["limit"]] < 0).all()


def test_maps_of_boxes_in_cells_are_those_of_the_pixels(
    near: nn.Module, scene: Tensor, tmp_path: Path
) -> None:
    where = {"window": 32, "stride": 16}
    backsight.large_occlusion(near, scene, **where, memory=MEMORY, store=tmp_path / "a")
    pixels = direct(near, scene, **where)
    maps, _ = of_store(tmp_path / "a")
    ((output, heat),) = maps.items()
    wide = np.kron(heat, np.ones((16, 16), np.float32))[:300, :280]
    assert np.array_equal(wide, pixels.map(int(output))[0].numpy())


def test_targets_have_a_map_each_up_to_four(near: nn.Module, scene: Tensor, tmp_path: Path) -> None:
    targets = [3, -5, 3, 1, 4, 2]
    backsight.large_occlusion(near, scene, **WHERE, targets=targets, store=tmp_path / "a")
    expected = direct(near, scene)
    maps, told = of_store(tmp_path / "a")
    assert set(maps) == set(told["pictures"]) == {"3", "0", "1", "4"}
    for output, heat in maps.items():
        largest = np.abs(heat).max()
        np.testing.assert_allclose(heat, by_hand(expected, int(output), 16), atol=1e-6 * largest)


def test_maps_of_many_cells_are_coarser_and_computed_in_bands(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsight.methods.large.derive._BAND", 100)
    monkeypatch.setattr("backsight.methods.large.derive._CHUNKS", {2: 7})
    job = task(near, scene, MEMORY, **WHERE)
    fill(job, tmp_path / "a")
    maps, _ = of_store(tmp_path / "a")
    whole, _ = of_store(complete)
    ((output, heat),) = maps.items()
    assert np.array_equal(heat, whole[output])
    assert len(list((tmp_path / "a" / "maps" / output).glob("c.*"))) == 9
    monkeypatch.setattr("backsight.methods.large.derive._CELLS", 60)
    fill(task(near, scene, MEMORY, **WHERE), tmp_path / "b")
    maps, told = of_store(tmp_path / "b")
    assert told["cells"] == {output: 48}
    assert maps[output].size <= 60
    expected = by_hand(direct(near, scene), int(output), 48)
    np.testing.assert_allclose(maps[output], expected, atol=1e-6 * np.abs(expected).max())


def test_pyramids_halve_what_is_there() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1100, 513)).astype(np.float32)
    values[:300, :200] = np.nan
    levels = list(halves(values))
    assert [level.shape for level in levels] == [(1100, 513), (550, 257), (275, 129), (138, 65)]
    for finer, level in itertools.pairwise(levels):
        padded = np.pad(finer, [(0, n % 2) for n in finer.shape], constant_values=np.nan).astype(
            np.float64
        )
        quarters = padded.reshape(level.shape[0], 2, level.shape[1], 2).transpose(0, 2, 1, 3)
        quarters = quarters.reshape(*level.shape, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            expected = np.nanmean(quarters, axis=2)
        np.testing.assert_allclose(level, expected, rtol=1e-6)
    assert np.isnan(levels[-1]).any()
    assert [level.shape for level in halves(values[:256, :9])] == [(256, 9)]


def test_pictures_have_the_colours_of_overlays(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    values = np.linspace(-3, 3, 1001, dtype=np.float32).reshape(7, 143)
    values[2, 5:9] = np.nan
    with open(tmp_path / "a.png", "wb") as file:
        write_png(file, values, 2.0)
    found = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA")).astype(int)
    known = ~np.isnan(values)
    assert np.array_equal(found[..., 3], np.where(known, 255, 0))
    expected = 255 * matplotlib.colormaps["RdBu_r"](np.clip(values / 4 + 0.5, 0, 1))
    assert (
        np.abs(found - expected)[known].max() <= 5
    )  # a step of the colours: its table has 256, ours 255
    assert np.ptp(found[known], axis=0)[:3].min() > 150


# --- killed while they are written ---------------------------------------------------------------


@pytest.mark.slow
def test_killed_while_maps_are_written_it_finishes(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path
) -> None:
    first, replace = tmp_path / "first", os.replace

    def run(path: Path, deaths: int, when: str) -> None:
        left = deaths

        def dying(source: str, target: str) -> None:
            nonlocal left
            inside = Path(target).relative_to(path.resolve()).parts
            derived = inside[0] in ("maps", "overview")
            left -= derived
            if derived and left == 0 and when == "before":
                os._exit(9)
            replace(source, target)
            if derived and left == 0:
                os._exit(9)

        os.replace = dying
        fill(task(near, scene, MEMORY, **WHERE), path)
        os._exit(0)

    every = ((deaths, when) for deaths in itertools.count(1) for when in ("before", "after"))
    for deaths, when in every:
        path = tmp_path / f"{deaths} {when}"
        if first.exists():  # units are computed once
            shutil.copytree(first, path)
        code = in_child(lambda path=path, at=deaths, when=when: run(path, at, when))  # type: ignore[misc]
        assert code in (0, 9)
        if code == 0:
            break
        if not first.exists():
            shutil.copytree(path, first)
        assert not status(path)["finished"]
        fill(task(near, scene, MEMORY, **WHERE), path)
        assert tree(path) == tree(complete)
    assert deaths == 1 + sum(name.startswith(("maps", "overview")) for name in tree(complete))


def test_maps_that_are_gone_or_damaged_are_written_again(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backsight.sweep.units.UnitSweep.run", None)  # nothing is computed
    names = [name for name in tree(complete) if name.startswith(("maps", "overview"))]
    assert len(names) > 4
    for i, name in enumerate(names):
        path = tmp_path / f"{i}"
        shutil.copytree(complete, path)
        if i % 2:
            (path / name).unlink()
        else:
            data = bytearray((path / name).read_bytes())
            data[len(data) // 2] ^= 8
            (path / name).write_bytes(data)
        assert not Store.view(path).intact
        fill(task(near, scene, MEMORY, **WHERE), path)
        assert tree(path) == tree(complete)
        assert Store.view(path).intact
    shutil.rmtree(path / "overview")
    fill(task(near, scene, MEMORY, **WHERE), path)
    assert tree(path) == tree(complete)


def test_what_keeps_maps_from_being_written_is_raised(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    output = next((complete / "overview").glob("*/0.png")).parent.name
    obstacle = path / "overview" / output / "0.png"

    class Blocking(Told):
        def stored(self, unit: int) -> None:
            obstacle.mkdir(parents=True, exist_ok=True)

    with pytest.raises(OSError, match=r"cannot write overview/.*/0.png of the store") as caught:
        fill(task(near, scene, MEMORY, **WHERE), path, watch=Blocking(path))
    assert not status(path)["finished"]
    assert "\n" not in str(caught.value)
    assert not [name for name in tree(path) if name.endswith((".tmp", ".lock"))]
    obstacle.rmdir()
    fill(task(near, scene, MEMORY, **WHERE), path)
    assert tree(path) == tree(complete)


# --- on the ground -------------------------------------------------------------------------------

KEYS = {"area": (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 1)}
KEYS["points"] = (*KEYS["area"][:-1], 2)
TIED = [
    (33550, "d", 3, (0.5, 0.25, 0.0), True),
    (33922, "d", 12, (8.0, 4.0, 0.0, 100.0, 200.0, 0.0, 20.0, 4.0, 0.0, 106.0, 200.0, 0.0), True),
]
SINGLE = (33922, "d", 6, (8.0, 4.0, 0.0, 100.0, 200.0, 0.0), True)
TURNED = [
    (
        *(34264, "d", 16),
        (0.5, -0.1, 0, 300.0, 0.2, 0.4, 0, -50.0, 0, 0, 0, 0, 0, 0, 0, 1.0),
        True,
    )
]


def on_the_ground(tags: dict[str, Any], row: float, column: float) -> list[tuple[float, float]]:
    """Where the corner of a pixel lies, rows and columns counted from the image's corner, by every
    tie point; written after the standard (OGC 19-008r4, chapter 7).
    """
    keys = tags["GeoKeyDirectory"]
    raster = next(keys[i + 3] for i in range(4, len(keys), 4) if keys[i] == 1025)
    if raster == 2:  # points: (0, 0) is the centre of the first pixel
        row, column = row - 0.5, column - 0.5
    if "ModelTransformation" in tags:
        a, b, _, x, c, d, _, y = tags["ModelTransformation"][:8]
        return [(a * column + b * row + x, c * column + d * row + y)]
    wide, high = tags["ModelPixelScale"][:2]
    ties = np.reshape(tags["ModelTiepoint"], (-1, 6))
    return [(x + (column - i) * wide, y - (row - j) * high) for i, j, _, x, y, _ in ties]


def write_scene(path: Path, image: Tensor, tags: list[Any]) -> None:
    tifffile.imwrite(
        path,
        image.numpy().transpose(1, 2, 0),
        photometric="rgb",
        tile=(64, 64),
        metadata=None,
        extratags=[*tags, (34737, "s", 0, "WGS 84|", True), (42113, "s", 0, "-9999", True)],
    )


@pytest.mark.parametrize("raster", ["area", "points"])
@pytest.mark.parametrize("placed", [TIED, TURNED], ids=["tied", "turned"])
def test_a_map_lies_where_its_image_lies(
    near: nn.Module, scene: Tensor, tmp_path: Path, placed: list[Any], raster: str
) -> None:
    keys = (34735, "H", 12, KEYS[raster], True)
    write_scene(tmp_path / "scene.tif", scene, [*placed, keys])
    roi = [[0, 0, 200, 280]]
    backsight.large_occlusion(
        near, tmp_path / "scene.tif", **WHERE, roi=roi, memory=MEMORY, store=tmp_path / "a"
    )
    with open_source(tmp_path / "scene.tif") as image:
        assert image.geo is not None
        assert Store.view(tmp_path / "a").meta["geo"] == image.geo
        maps, _ = of_store(tmp_path / "a")
        ((output, heat),) = maps.items()
        path = tmp_path / "a" / "maps" / f"{output}.tif"
        with open_source(path) as found:
            assert found.shape == (1, 19, 18)
            assert found.dtype == np.float32
            values = found.read([0, 0, 19, 18])[0]
            assert np.array_equal(values, heat, equal_nan=True)
            assert np.isnan(values).any()
            assert found.geo is not None
            assert found.geo["GDAL_NODATA"] == "nan"
            for name in ("GeoKeyDirectory", "GeoAsciiParams"):
                assert found.geo[name] == image.geo[name]
            assert found.geo.keys() == image.geo.keys()
            for row, column in ((0, 0), (3, 11), (18.5, 17.25)):
                here = on_the_ground(found.geo, row, column)
                np.testing.assert_allclose(
                    here, on_the_ground(image.geo, 16 * row, 16 * column), rtol=1e-12
                )
                assert here != on_the_ground(image.geo, row, column) or not row


@pytest.mark.parametrize("raster", ["area", "points"])
@pytest.mark.parametrize("placed", [[*TIED[:1], SINGLE], TURNED], ids=["tied", "turned"])
def test_rasterio_agrees_where_a_map_lies(tmp_path: Path, placed: list[Any], raster: str) -> None:
    rasterio = pytest.importorskip("rasterio")
    keys = (34735, "H", 12, KEYS[raster], True)
    write_scene(tmp_path / "scene.tif", torch.zeros(3, 300, 280), [*placed, keys])
    with open_source(tmp_path / "scene.tif") as source, open(tmp_path / "map.tif", "wb") as file:
        assert source.geo is not None
        geo.write_map(file, np.full((19, 18), np.nan), geo.scaled(source.geo, 16, 16))
    with (
        rasterio.open(tmp_path / "scene.tif") as image,
        rasterio.open(tmp_path / "map.tif") as found,
    ):
        for column, row in ((0, 0), (11, 3), (17.25, 18.5)):
            there = image.transform * (16 * column, 16 * row)
            np.testing.assert_allclose(found.transform * (column, row), there, rtol=1e-12)
            assert there != (16 * column, 16 * row)
        assert found.crs == image.crs
        assert np.isnan(found.nodata)


def test_a_store_of_a_placed_image_is_the_same_however_it_was_made(
    near: nn.Module, scene: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "scene.tif"
    write_scene(path, scene, [*TIED, (34735, "H", 12, KEYS["area"], True)])
    where = WHERE | {"memory": MEMORY, "targets": [2, 0]}
    backsight.large_occlusion(near, path, **where, store=tmp_path / "whole")
    for first in (2, 0, 1):
        backsight.large_occlusion(near, path, **where, store=tmp_path / "a", shard=(first, 3))
    whole = tree(tmp_path / "whole")
    assert tree(tmp_path / "a") == whole
    assert {"maps/2.tif", "maps/0.tif"} < set(whole)
    assert Store.view(tmp_path / "a").derived.keys() >= {"maps/2.tif", "maps/0.tif"}


class Own:
    """An image of the caller's own making."""

    dtype = np.float32

    def __init__(self, values: np.ndarray, **more: Any) -> None:
        self.values, self.shape = values, values.shape
        vars(self).update(more)

    def read(self, box: list[int]) -> np.ndarray:
        top, left, bottom, right = box
        return self.values[:, top:bottom, left:right]

    def fingerprint(self) -> str:
        return "mine"


@pytest.mark.parametrize(
    ("more", "placed"),
    [
        ({}, None),
        ({"geo": None}, None),
        ({"geo": "Berlin"}, None),
        ({"geo": {"ModelPixelScale": [1.0, 2.0]}}, None),
        ({"geo": {"ModelPixelScale": np.array([1, 2, 0])}}, {"ModelPixelScale": [1.0, 2.0, 0.0]}),
    ],
)
def test_images_of_ones_own_may_say_where_they_lie(
    near: nn.Module, scene: Tensor, tmp_path: Path, more: dict[str, Any], placed: Any
) -> None:
    image = Own(scene.numpy(), **more)
    backsight.large_occlusion(near, image, **WHERE, store=tmp_path / "a")
    assert Store.view(tmp_path / "a").meta["geo"] == placed
    assert any(name.endswith(".tif") for name in tree(tmp_path / "a")) == (placed is not None)


def test_damaged_tags_are_left_out() -> None:
    tags: dict[str, Any] = {
        "ModelTiepoint": (1.0,) * 7,
        "ModelTransformation": tuple(map(float, range(16))),
        "GeoKeyDirectory": (1, 1, 0, 70000),
        "GeoDoubleParams": 6378137.0,
        "GeoAsciiParams": b"WGS\xff|",
        "GDAL_NODATA": 3,
        "Else": [1],
    }
    assert geo.known(tags) == {
        "ModelTransformation": list(map(float, range(16))),
        "GeoDoubleParams": [6378137.0],
        "GeoAsciiParams": "WGS\ufffd|",
    }
    assert geo.known({"GeoDoubleParams": (1.0, np.nan), "GeoKeyDirectory": (1.5,)}) is None


def test_the_package_that_maps_need_is_named_before_all_work(
    near: nn.Module, scene: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    image = Own(scene.numpy(), geo={"ModelPixelScale": [1, 2, 0]})
    with pytest.raises(ImportError, match="writing GeoTIFF needs the package tifffile: pip"):
        backsight.large_occlusion(near, image, **WHERE, store=tmp_path / "a")
    assert not (tmp_path / "a").exists()
