"""What is told of a sweep into a store while it goes: counts, speed, and who shows them."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest

import backsight
from backsight.methods.large import glance
from backsight.methods.large.watch import OfStore, StoreBars, Together
from backsight.occlusion_store import Store
from test_large import picture

__all__ = ["picture"]  # a fixture

GIVEN = {"window": 16, "stride": 8, "memory": 1 << 19}


@pytest.fixture(scope="module")
def finished(near: object, picture: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "store"
    backsight.large_occlusion(near, picture, store=path, **GIVEN)
    return path


class Filling:
    """A store of four units or more whose drops come back one by one, as if they were written."""

    def __init__(self, finished: Path, folder: Path) -> None:
        self.path = folder / "store"
        shutil.copytree(finished, self.path)
        self.units = Store.view(self.path).units
        self.total = sum(self.units)
        self._aside = folder / "aside"
        self._aside.mkdir()
        assert len(self.units) >= 4
        for unit in range(len(self.units)):
            shutil.move(self.path / "drops" / f"c.{unit}.0", self._aside)

    def write(self, *units: int) -> None:
        for unit in units:
            shutil.move(self._aside / f"c.{unit}.0", self.path / "drops")

    def positions(self, *units: int) -> int:
        return sum(self.units[unit] for unit in units)


@pytest.fixture
def store(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filling:
    monkeypatch.setattr(glance, "_EVERY", 0.0)
    monkeypatch.setattr(glance, "_SHARE", 0.0)
    return Filling(finished, tmp_path)


def test_counts_are_of_the_whole_store_and_speed_is_of_this_run(store: Filling) -> None:
    store.write(0)
    watch = OfStore(store.path, (1, 2))
    watch.begin("pass", 100)
    watch.advance(40)
    assert (watch.phase, watch.done, watch.total) == ("pass", 40, 100)
    watch.advance(59)
    watch.end()
    assert watch.done == 100  # regions are rounded to pixels
    watch.begin("sweep", store.positions(1, 3))
    first = store.positions(0)
    assert (watch.done, watch.total) == (first, store.total)
    assert watch.per_second is watch.seconds_left is None
    watch.advance(2)
    assert watch.done == first + 2
    store.write(2)  # by another process
    watch.advance(1)
    done = first + 3 + store.positions(2)
    assert watch.done == done
    store.write(1)  # by this one, which was counted while it was computed
    watch.advance(0)
    watch.stored(1)
    assert watch.done == done
    watch.started = time.time() - 14
    assert watch.per_second == pytest.approx((done - first) / 14, rel=0.05)
    left = (store.total - done) * 14 / (done - first)
    assert watch.seconds_left == pytest.approx(left, rel=0.05)
    watch.advance(store.total - done)
    watch.end()
    assert watch.done == watch.total


def test_an_interrupted_pass_is_not_done(store: Filling) -> None:
    watch = OfStore(store.path)
    watch.begin("pass", 100)
    watch.advance(40)
    watch.end()
    assert watch.done == 40


def test_a_look_at_the_store_is_rare(store: Filling, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = OfStore(store.path, (0, 2))
    watch.begin("sweep", store.total)
    monkeypatch.setattr(glance, "_EVERY", 1000.0)
    watch.advance(1)  # looks, and next in a thousand seconds
    store.write(3)
    watch.advance(1)
    assert watch.done == 2
    watch.end()
    assert watch.done == 2 + store.positions(3)


def test_a_damaged_unit_that_is_computed_anew_is_counted_once(store: Filling) -> None:
    store.write(*range(len(store.units)))
    watch = OfStore(store.path)
    watch.begin("sweep", store.positions(0))
    watch.advance(store.positions(0))
    watch.stored(0)
    watch.end()
    assert watch.done == watch.total == store.total


def test_one_bar_of_all_ranks_goes_from_rank_to_rank(
    store: Filling, capsys: pytest.CaptureFixture[str]
) -> None:
    even = range(0, len(store.units), 2)
    store.write(*even[:-1])
    bars = StoreBars(store.path, (1, 2), one=True)
    bars.begin("sweep", 5)
    bars.advance(3)
    assert capsys.readouterr().err == ""
    store.write(even[-1])  # the last of rank 0
    bars.advance(1)
    assert f"{store.positions(*even) + 4}/{store.total}" in capsys.readouterr().err
    bars.end()
    first = StoreBars(store.path, (0, 2), one=True)
    first.begin("sweep", 0)
    assert f"{store.positions(*even)}/{store.total}" in capsys.readouterr().err
    first.end()


def test_several_are_told_the_same(store: Filling) -> None:
    one, other = OfStore(store.path), OfStore(store.path)
    both = Together([one, other])
    both.begin("sweep", store.total)
    both.advance(3)
    both.advance(2)
    both.stored(0)
    both.end()
    assert one.done == other.done == 5


def test_shards_of_the_python_call_show_what_all_have_done(
    near: object, picture: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"

    def shown(i: int) -> list[tuple[int, int]]:
        backsight.large_occlusion(
            near, picture, shard=(i, 2), store=path, show_progress=True, **GIVEN
        )
        told = capsys.readouterr().err
        assert "first pass: 100%" in told
        found = re.findall(r"sweep: .*?(\d+)/(\d+) \[", told)
        return [(int(done), int(total)) for done, total in found]

    first, second = shown(0), shown(1)
    positions = sum(Store.view(path).units)
    assert {total for _, total in first + second} == {positions}
    assert first[0][0] == 0 < first[-1][0] == second[0][0] < second[-1][0] == positions
