"""Several processes on one store: torchrun, shards, and runs that get in each other's way."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("google_crc32c")
pytest.importorskip("tifffile")

from backsight.methods.large import fill
from backsight.methods.large.watch import Silent
from backsight.occlusion_store import status
from backsight.sweep.readout import Readout
from forked import Nursery
from large_runs import COMMAND, SWEEP, chunks, command, done, files, network, same, scene, sweep
from test_large import task


def torchrun(
    processes: int, folder: Path, store: Path, *program: str
) -> subprocess.CompletedProcess[str]:
    """The command as torchrun starts it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    paths = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    return subprocess.run(
        [sys.executable, *launcher, *program, *COMMAND, "-o", str(store)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_ranks_finish_a_store_together(
    scenery: Path, complete: dict[str, bytes], tmp_path: Path, processes: int
) -> None:
    store = tmp_path / "store"
    ended = torchrun(processes, scenery, store, "-m", "backsight")
    assert ended.returncode == 0, ended.stderr
    same(files(store), complete)


@pytest.fixture(scope="module")
def abandoned(scenery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have left, of which one was killed."""
    store = tmp_path_factory.mktemp("abandoned") / "store"
    ended = torchrun(2, scenery, store, "-m", "large_runs", "1", "19")
    assert ended.returncode
    assert "SIGKILL" in ended.stderr
    assert 0 < done(store) < status(store)["units"]
    return store


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_rank_that_died_is_taken_over(
    nursery: Nursery,
    abandoned: Path,
    scenery: Path,
    complete: dict[str, bytes],
    tmp_path: Path,
    processes: int,
) -> None:
    store = tmp_path / "store"
    shutil.copytree(abandoned, store)
    before = chunks(store)
    if processes == 1:
        code, said = nursery.run(command, store, folder=scenery)
    else:
        ended = torchrun(processes, scenery, store, "-m", "backsight")
        code, said = ended.returncode, ended.stderr
    assert code == 0, said
    assert before.items() <= chunks(store).items()
    same(files(store), complete)


def rank(number: int, count: int) -> dict[str, str]:
    """What torchrun tells it."""
    return {"RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": str(number)}


def test_ranks_that_are_killed_at_random_instants(
    nursery: Nursery, scenery: Path, complete: dict[str, bytes], tmp_path: Path
) -> None:
    store, drawn = tmp_path / "store", random.Random(3)
    for world in (2, 3, 2, 4):
        before = chunks(store)
        ranks = [
            nursery.start(command, store, folder=scenery, environment=rank(i, world))
            for i in range(world)
        ]
        time.sleep(drawn.uniform(0, 0.4))
        for child in drawn.sample(ranks, world // 2):
            child.kill()
        for child in ranks:
            assert child.wait() in (0, -signal.SIGKILL), child.said()
        done(store)
        assert before.items() <= chunks(store).items()
    before = chunks(store)
    ranks = [
        nursery.start(command, store, folder=scenery, environment=rank(i, 3)) for i in range(3)
    ]
    for child in ranks:
        assert child.wait() == 0, child.said()
    assert before.items() <= chunks(store).items()
    same(files(store), complete)


class Told(Silent):
    """Prints which units were stored."""

    def stored(self, unit: int) -> None:
        print(unit)


class Gate(Silent):
    """Says that it has stored a unit, and waits until it may go on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stored(self, unit: int) -> None:
        if not self.path.exists():
            self.path.with_suffix(".reached").touch()
            wait_for(self.path.exists)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def part(store: Path, shard: tuple[int, int] | None, watch: Silent) -> None:
    job = task(network(), scene(), readout=Readout(None, None, None, 3), **SWEEP)
    fill(job, store, shard, watch)


@pytest.mark.parametrize("count", [2, 4])
def test_shards_are_disjoint_and_balanced(nursery: Nursery, tmp_path: Path, count: int) -> None:
    store = tmp_path / "store"
    parts = []
    for i in range(count):
        code, said = nursery.run(part, store, (i, count), Told())
        assert code == 0, said
        parts.append([int(line) for line in said.splitlines()])
    assert sorted(itertools.chain(*parts)) == list(range(status(store)["units"]))
    lengths = [len(units) for units in parts]
    assert max(lengths) - min(lengths) <= 1
    assert status(store)["finished"]


def test_a_second_run_is_refused(nursery: Nursery, scenery: Path, tmp_path: Path) -> None:
    store, gate = tmp_path / "store", tmp_path / "gate"
    first = nursery.start(part, store, None, Gate(gate))
    wait_for(gate.with_suffix(".reached").exists)
    before = files(store)
    code, said = nursery.run(sweep, store)
    assert code == 1
    assert "RuntimeError: another run is writing to the store" in said
    code, said = nursery.run(command, store, folder=scenery)
    assert code == 2
    assert (
        said == f"backsight: another run is writing to the store {store}: wait until it has ended\n"
    )
    assert files(store) == before
    gate.touch()
    assert first.wait() == 0, first.said()
    assert nursery.run(sweep, tmp_path / "alone") == (0, "")
    same(files(store), files(tmp_path / "alone"))


def test_shards_work_at_once_and_others_are_refused(nursery: Nursery, tmp_path: Path) -> None:
    store, gate = tmp_path / "store", tmp_path / "gate"
    first = nursery.start(part, store, (0, 2), Gate(gate))
    wait_for(gate.with_suffix(".reached").exists)
    one = done(store)
    code, said = nursery.run(part, store, (1, 2), Told())
    assert code == 0, said
    assert done(store) == one + len(said.splitlines())
    code, said = nursery.run(sweep, store)
    assert "RuntimeError: another run is writing to the store" in said
    gate.touch()
    assert first.wait() == 0, first.said()
    assert nursery.run(sweep, tmp_path / "alone") == (0, "")
    same(files(store), files(tmp_path / "alone"))


def test_the_same_shard_twice_at_once_corrupts_nothing(
    nursery: Nursery, scenery: Path, complete: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    both = [nursery.start(command, store, "--shard", "0/1", folder=scenery) for _ in range(2)]
    for child in both:
        assert child.wait() == 0, child.said()
    same(files(store), complete)


def test_another_sweep_beside_shards_is_refused(
    nursery: Nursery, scenery: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert nursery.run(command, store, "--shard", "1/2", folder=scenery)[0] == 0
    before = files(store)
    code, said = nursery.run(command, store, "--shard", "0/2", "--window", "24", folder=scenery)
    assert code == 2
    assert "was made for another run" in said
    assert said.count("\n") == 1
    assert files(store) == before
