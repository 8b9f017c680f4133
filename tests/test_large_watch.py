"""What is told of a sweep into a store while it goes: counts, speed, and who shows them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest

import backsight
from backsight.methods.large import glance
from backsight.methods.large.watch import OfStore, StoreBars, Together
from backsight.occlusion_store import Store
from test_large import near, picture

__all__ = ["near", "picture"]  # fixtures

UNITS = [5, 3, 4, 2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(glance, "_EVERY", 0.0)
    monkeypatch.setattr(glance, "_SHARE", 0.0)
    return Store.create(tmp_path / "store", {}, units=UNITS, outputs=2, shared=True)


def write(store: Store, unit: int) -> None:
    drops = np.ones((UNITS[unit], 2), np.float32)
    store.write(unit, drops, boxes=np.ones((UNITS[unit], 4), np.int64))


def test_counts_are_of_the_whole_store_and_speed_is_of_this_run(store: Store) -> None:
    write(store, 0)
    watch = OfStore(store.path, (1, 2))
    watch.begin("pass", 100)
    watch.advance(40)
    assert (watch.phase, watch.done, watch.total) == ("pass", 40, 100)
    watch.advance(60)
    watch.end()
    watch.begin("sweep", 9)
    assert (watch.done, watch.total) == (5, 14)
    assert watch.per_second is watch.seconds_left is None
    watch.advance(2)
    assert watch.done == 7
    write(store, 2)  # by another process
    watch.advance(1)
    assert watch.done == 5 + 3 + 4
    write(store, 1)  # by this one, which was counted while it was computed
    assert watch.done == 12
    watch.advance(0)
    watch.stored(1)
    assert watch.done == 12
    watch.started = time.time() - 14
    assert watch.per_second == pytest.approx(7 / 14, rel=0.05)
    assert watch.seconds_left == pytest.approx(2 * 14 / 7, rel=0.05)
    watch.advance(2)
    write(store, 3)
    watch.stored(3)
    watch.end()
    assert watch.done == watch.total == 14


def test_a_look_at_the_store_is_rare(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = OfStore(store.path, (0, 2))
    watch.begin("sweep", 14)
    monkeypatch.setattr(glance, "_EVERY", 1000.0)
    watch.advance(1)  # looks, and next in a thousand seconds
    write(store, 3)
    watch.advance(1)
    assert watch.done == 2
    watch.end()
    assert watch.done == 4


def test_a_damaged_unit_that_is_computed_anew_is_counted_once(store: Store) -> None:
    for unit in range(4):
        write(store, unit)
    watch = OfStore(store.path)
    watch.begin("sweep", 5)
    watch.advance(5)
    watch.stored(0)
    watch.end()
    assert watch.done == watch.total == 14


def test_one_bar_of_all_ranks_goes_from_rank_to_rank(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    write(store, 0)
    bars = StoreBars(store.path, (1, 2), one=True)
    bars.begin("sweep", 5)
    bars.advance(3)
    assert capsys.readouterr().err == ""
    write(store, 2)  # the last of rank 0
    bars.advance(1)
    assert "13/14" in capsys.readouterr().err
    bars.end()
    first = StoreBars(store.path, (0, 2), one=True)
    first.begin("sweep", 0)
    assert "9/14" in capsys.readouterr().err
    first.end()


def test_several_are_told_the_same(store: Store) -> None:
    one, other = OfStore(store.path), OfStore(store.path)
    both = Together([one, other])
    both.begin("sweep", 14)
    both.advance(3)
    both.advance(2)
    write(store, 0)
    both.stored(0)
    both.end()
    assert one.done == other.done == 5


def test_shards_of_the_python_call_show_what_all_have_done(
    near: object, picture: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"window": 16, "stride": 8, "memory": 1 << 19, "store": tmp_path / "store"}

    def shown(i: int) -> list[tuple[int, int]]:
        backsight.large_occlusion(near, picture, shard=(i, 2), show_progress=True, **given)
        told = capsys.readouterr().err
        assert "first pass: 100%" in told
        found = re.findall(r"sweep: .*?(\d+)/(\d+) \[", told)
        return [(int(done), int(total)) for done, total in found]

    first, second = shown(0), shown(1)
    positions = len(
        np.concatenate([Store.view(given["store"]).read(u)["boxes"] for u in units(given["store"])])
    )
    assert {total for _, total in first + second} == {positions}
    assert first[0][0] == 0 < first[-1][0] == second[0][0] < second[-1][0] == positions


def units(path: Path) -> range:
    return range(len(Store.view(path).units))
