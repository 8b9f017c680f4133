"""Whole sweeps that are killed, or run out of disk or memory, or whose store is damaged, and are
taken up again: the store has the bytes of one that nothing happened to.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("google_crc32c")
pytest.importorskip("tifffile")

from backsight.methods.large import fill
from backsight.methods.large.watch import Silent
from backsight.occlusion_store import status
from backsight.sweep.readout import Readout
from forked import Nursery
from large_runs import (
    SWEEP,
    chunks,
    command,
    done,
    dying,
    files,
    network,
    same,
    scene,
    sweep,
    warmed,
)
from test_large import task

KILLS = 50


@pytest.fixture(scope="module")
def clean(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of a sweep that nothing happened to."""
    path = tmp_path_factory.mktemp("clean") / "store"
    assert nursery.run(sweep, path) == (0, "")
    assert status(path)["finished"]
    assert status(path)["units"] > 20
    return files(path)


# --- killed --------------------------------------------------------------------------------------


def test_killed_at_fifty_random_instants(
    nursery: Nursery, clean: dict[str, bytes], tmp_path: Path
) -> None:
    times = []
    for i in range(3):
        started = time.perf_counter()
        assert nursery.run(sweep, tmp_path / f"uninterrupted{i}") == (0, "")
        times.append(time.perf_counter() - started)
    drawn = random.Random(0)
    kills, stores, store = 0, 0, tmp_path / "0"
    while kills < KILLS or chunks(store):
        before = chunks(store)
        child = nursery.start(sweep, store)
        if kills < KILLS:
            time.sleep(drawn.uniform(0, min(times)))
            child.kill()
        code = child.wait()
        assert code in (0, -signal.SIGKILL), child.said()
        kills += code < 0
        assert done(store) >= len(before)
        # What was there is not written again.
        assert before.items() <= chunks(store).items()
        if code == 0:
            same(files(store), clean)
            stores += 1
            store = tmp_path / f"{stores}"
    assert stores


class Doomed(Silent):
    """Kills its process at one of the events of a sweep."""

    def __init__(self, at: int) -> None:
        self.left = at

    def begin(self, phase: str, total: int) -> None:
        self._tick()

    def advance(self, count: int) -> None:
        self._tick()

    def stored(self, unit: int) -> None:
        self._tick()

    def end(self) -> None:
        self._tick()

    def _tick(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


class Halved(Doomed):
    """Kills its process after so many units."""

    def _tick(self) -> None:
        pass

    def stored(self, unit: int) -> None:
        super()._tick()


class Totals(Silent):
    """Prints how much there was to do."""

    def begin(self, phase: str, total: int) -> None:
        print(phase, total)


def watched(path: Path, watch: Silent) -> None:
    job = task(network(), scene(), edge="clip", readout=Readout(None, None, None, 3), **SWEEP)
    fill(job, path, watch=watch)


@pytest.mark.slow
def test_killed_at_every_kind_of_event(
    nursery: Nursery, clean: dict[str, bytes], tmp_path: Path
) -> None:
    seen, at = set(), 0
    while True:
        store = tmp_path / f"{at}"
        code, said = nursery.run(watched, store, Doomed(at))
        assert code in (0, -signal.SIGKILL), said
        if code == 0:
            break
        seen.add(done(store))
        now = status(store)
        missing = now["positions"] - now["positions_done"]
        code, said = nursery.run(watched, store, Totals())
        assert code == 0, said
        # Only what was not there is computed.
        assert f"sweep {missing}\n" in said
        same(files(store), clean)
        at += 1 if at < 5 else 19
    assert len(seen) > 3
    same(files(store), clean)


def doomed(path: Path, at: int, when: str) -> int:
    return dying(lambda: sweep(path), at, when)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_as_a_file_appears(
    nursery: Nursery, clean: dict[str, bytes], tmp_path: Path, when: str
) -> None:
    count, said = nursery.run(doomed, tmp_path / "all", 0, when)
    assert count >= len(clean), said
    first, last = range(1, 5), range(count - 2, count + 1)
    for at in (*first, *random.Random(1).sample(range(5, count - 2), 4), *last):
        store = tmp_path / f"{at}"
        code, said = nursery.run(doomed, store, at, when)
        assert code == -signal.SIGKILL, said
        before = chunks(store)
        assert nursery.run(sweep, store) == (0, "")
        assert before.items() <= chunks(store).items()
        same(files(store), clean)


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nursery, Path]]:
    """A nursery with a small disk of its own, and where that is."""
    disk = tmp_path_factory.mktemp("elsewhere")
    alone = ["unshare", "-rm"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    try:
        found = subprocess.run([*alone, *mount], capture_output=True).returncode
    except FileNotFoundError:
        found = 1
    if found:
        pytest.skip("no file system can be mounted here")
    with Nursery(*alone) as nursery:
        nursery.do(subprocess.check_call, mount)
        nursery.do(warmed, tmp_path_factory.mktemp("warm"))
        yield nursery, disk


def fill_up(disk: Path, room: int) -> None:
    """Take all of a disk but some of its pages."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(bytes(max(0, free.f_bavail - room) * free.f_bsize))


def test_full_disks_get_a_sentence_and_room_is_used(
    elsewhere: tuple[Nursery, Path], scenery: Path, complete: dict[str, bytes]
) -> None:
    nursery, disk = elsewhere
    store = disk / "store"
    before: dict[str, tuple[int, int]] = {}
    refusals = set()
    for _ in range(99):
        # Something else has taken what was free but for a few pages.
        nursery.do(fill_up, disk, 9)
        code, said = nursery.run(command, store, folder=scenery)
        now = nursery.do(chunks, store)
        assert before.items() <= now.items()
        before = now
        if code == 0:
            break
        assert code == 2, said
        assert said.startswith("backsight: cannot ")
        assert ": the disk is full" in said
        assert said.count("\n") == 1
        refusals.add(len(now))
    assert len(refusals) > 3
    same(nursery.do(files, store), complete)


def test_a_store_that_cannot_be_made_leaves_nothing(
    elsewhere: tuple[Nursery, Path], scenery: Path, complete: dict[str, bytes]
) -> None:
    nursery, disk = elsewhere
    made = []
    for room in range(6):
        nursery.do(fill_up, disk, room)
        code, said = nursery.run(command, disk / "other", folder=scenery)
        assert code == 2
        assert "the disk is full" in said
        assert said.count("\n") == 1
        made.append("cannot make the store" not in said)
        assert ("other" in nursery.do(os.listdir, disk)) == made[-1]
    assert not made[0]
    nursery.do(os.unlink, disk / "filler")
    assert nursery.run(command, disk / "other", folder=scenery)[0] == 0
    same(nursery.do(files, disk / "other"), complete)


def copied(store: Path, disk: Path) -> None:
    """Onto a disk of which nothing can be changed any more."""
    (disk / "filler").unlink(missing_ok=True)
    shutil.copytree(store, disk / store.name)
    subprocess.check_call(["mount", "-o", "remount,ro", str(disk)])


def test_a_disk_that_is_read_only(
    elsewhere: tuple[Nursery, Path], scenery: Path, tmp_path: Path
) -> None:
    nursery, disk = elsewhere
    both = tmp_path / "both"
    both.mkdir()
    for name, at in (("half", 20), ("finished", 0)):
        code, said = nursery.run(doomed, both / name, at, "after")
        assert code == -signal.SIGKILL if at else code > 0, said
    (both / "finished" / ".lock").touch()
    before = files(both)
    nursery.do(copied, both, disk)
    try:
        for name in ("both/half", "new", "both/new"):
            code, said = nursery.run(command, disk / name, folder=scenery)
            assert code == 2
            assert re.fullmatch(r"backsight: cannot .* the store .*: Read-only .*\n", said), said
        # There is nothing left to write.
        assert nursery.run(sweep, disk / "both" / "finished") == (0, "")
        same(nursery.do(files, disk / "both"), before)
    finally:
        nursery.do(subprocess.check_call, ["mount", "-o", "remount,rw", str(disk)])


# --- out of memory -------------------------------------------------------------------------------


def virtual() -> int:
    """Bytes of the process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limited(bytes_: int) -> None:
    most = virtual() + bytes_
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def starved(store: Path, room: int) -> int:
    """The command with so many bytes more than it has at its start."""
    limited(room)
    return command(store)


class Starved(Silent):
    """Leaves a sweep without memory after a few units."""

    def __init__(self, units: int) -> None:
        self.left = units

    def stored(self, unit: int) -> None:
        self.left -= 1
        if self.left == 0:
            limited(0)
            self.hoard = []
            # What the C library keeps free counts too.
            for size in (1 << 20, 1 << 17, 1 << 15):
                with contextlib.suppress(MemoryError):
                    while True:
                        self.hoard.append(bytearray(size))


def test_out_of_memory_gets_a_sentence(
    nursery: Nursery, scenery: Path, complete: dict[str, bytes], tmp_path: Path
) -> None:
    store, refused = tmp_path / "store", 0
    for room in range(5):
        code, said = nursery.run(starved, store, room << 20, folder=scenery)
        refused += code == 2
        if code:
            assert code == 2, said
            assert said.count("\n") == 1
            assert re.search("memory|allocate", said)
    assert refused
    assert nursery.run(command, store, folder=scenery)[0] == 0
    same(files(store), complete)


@pytest.mark.parametrize("units", [1, 9])
def test_out_of_memory_keeps_what_is_there(
    nursery: Nursery, clean: dict[str, bytes], tmp_path: Path, units: int
) -> None:
    store = tmp_path / "store"
    code, said = nursery.run(watched, store, Starved(units))
    assert code == 1
    assert re.search("\n.*Error: .*allocate", said), said
    assert units <= done(store) < status(store)["units"]
    assert ".lock" not in files(store)
    before = chunks(store)
    assert nursery.run(sweep, store) == (0, "")
    assert before.items() <= chunks(store).items()
    same(files(store), clean)


# --- damage --------------------------------------------------------------------------------------


DAMAGES = ("truncated", "empty", "flipped", "longer", "missing")


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    if how == "missing":
        path.unlink()
        return
    bad = {
        "truncated": data[: len(data) * 2 // 3],
        "empty": b"",
        "flipped": bytes(flipped),
        "longer": data + b"\0",
    }[how]
    assert bad != data
    path.write_bytes(bad)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["finished", "half"])
def test_damage_is_never_used(
    nursery: Nursery, clean: dict[str, bytes], tmp_path: Path, state: str
) -> None:
    original = tmp_path / "original"
    if state == "finished":
        assert nursery.run(sweep, original) == (0, "")
    else:
        code, said = nursery.run(watched, original, Halved(9))
        assert code == -signal.SIGKILL, said
        assert done(original) == 10
    drawn = random.Random(state)
    kinds: dict[str, list[Path]] = {}
    for path in sorted(p for p in original.rglob("*") if p.is_file() and p.name != ".lock"):
        # Files of units are many, and alike; all others are tried.
        place = str(path.parent if path.name.startswith("c.") else path)
        kinds.setdefault(place, []).append(path)
    mended, refused = 0, 0
    for paths in kinds.values():
        name = drawn.choice(paths).relative_to(original)
        for damage in DAMAGES if state == "finished" else ("flipped", "missing"):
            store = tmp_path / "damaged"
            shutil.copytree(original, store)
            (store / ".lock").unlink(missing_ok=True)
            damaged(store / name, damage)
            before = files(store)
            code, said = nursery.run(sweep, store)
            if code:
                # Refused: nothing is touched, and it goes on with the file as it was.
                assert name.name == "zarr.json", (name, damage)
                assert re.search(f"\nValueError: .*{store}.*", said), said
                same(files(store), before)
                shutil.copy(original / name, store / name)
                refused += 1
                assert nursery.run(sweep, store) == (0, "")
            else:
                mended += 1
            same(files(store), clean)
            shutil.rmtree(store)
    assert mended
    assert refused


@pytest.mark.parametrize("name", ["notes.txt", "drops/c.77.0", "drops/c.3.0.bak", "more/a"])
def test_strange_files_are_not_used(
    nursery: Nursery, clean: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    store = tmp_path / "store"
    code, said = nursery.run(watched, store, Halved(9))
    assert code == -signal.SIGKILL, said
    (store / name).parent.mkdir(exist_ok=True)
    (store / name).write_bytes(b"strange")
    for _ in range(2):
        assert nursery.run(sweep, store) == (0, "")
        found = files(store)
        assert found.pop(name) == b"strange"
        same(found, clean)
