"""A store that was killed and taken up again has the bytes of one that was not."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backsight.occlusion_store import Store, status

pytest.importorskip("google_crc32c")

META = {
    "model": {"fingerprint": "4f0a", "layers": 18},
    "image": {"fingerprint": "99d1", "shape": [3, 4096, 4096]},
    "plan": {"window": [32, 32], "stride": 16.5},
    "versions": {"torch": "2.13.0"},
    "threads": 2,
}
ARRAYS = ["base", "boxes", "drops", "most_probable", "noise_floor", "scores", "targets"]
LAYOUT: dict[str, Any] = {"units": (5, 5, 5, 3), "outputs": 3}
FORK = multiprocessing.get_context("fork")


def arrays(unit: int, layout: dict[str, Any] = LAYOUT) -> dict[str, Any]:
    rng = np.random.default_rng(unit)
    n, outputs = layout["units"][unit], layout["outputs"]
    drops = rng.normal(size=(n, outputs)).astype(layout.get("dtype", "float32"))
    return {
        "drops": drops,
        "scores": 1 - drops,
        "boxes": rng.integers(0, 2**40, (n, 4)),
        "most_probable": rng.integers(0, 1000, (n, 1)),
        "noise_floor": rng.uniform(0, 1e-6),
    }


BASE = np.array([0.1, 1e-300, -7.0])
TARGETS = np.array([7, 3, 999])


def sweep(path: Path, layout: dict[str, Any] = LAYOUT, order: int = 1) -> None:
    """What a run does, whether it is the first or not."""
    with Store.begin(path, META, **layout) as store:
        if store.base is None or store.targets is None:
            store.write_base(
                np.resize(BASE, layout["outputs"]), np.resize(TARGETS, layout["outputs"])
            )
        for unit in sorted(set(range(len(layout["units"]))) - store.done)[::order]:
            store.write(unit, **arrays(unit, layout))
        store.finish({"noise_floor": 1e-7})


def tree(path: Path) -> dict[str, bytes | None]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes() if file.is_file() else None
        for file in path.rglob("*")
    }


def in_child(work: Callable[[], None]) -> int:
    """Do it in a forked process; its exit code."""
    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def sentence(kind: type[Exception], match: str, call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        call(*args)
    assert "\n" not in str(caught.value)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    sweep(tmp_path / "whole")
    return tmp_path / "whole"


def test_what_is_written_is_read(whole: Path) -> None:
    store = Store.view(whole)
    assert store.done == {0, 1, 2, 3}
    assert store.finished
    assert store.found == {"noise_floor": 1e-7}
    assert store.meta == META
    assert store.units == (5, 5, 5, 3)
    assert store.base is not None
    assert np.array_equal(store.base, BASE)
    assert store.targets is not None
    assert np.array_equal(store.targets, TARGETS)
    for unit in range(4):
        found = store.read(unit)
        assert found.pop("noise_floor").tolist() == [arrays(unit)["noise_floor"]]
        for name, values in found.items():
            assert values.dtype == arrays(unit)[name].dtype
            assert np.array_equal(values, arrays(unit)[name])
        assert list(store.read(unit, "boxes")) == ["boxes"]


@pytest.mark.parametrize("units", [(5, 5, 5, 3), (4,), (2, 5, 3)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zarr_reads_it_and_would_write_the_same(
    tmp_path: Path, units: tuple[int, ...], dtype: str
) -> None:
    zarr = pytest.importorskip("zarr")
    layout = LAYOUT | {"units": units, "dtype": dtype}
    sweep(tmp_path / "a", layout)
    group = zarr.open_group(tmp_path / "a", mode="r")
    assert sorted(group.array_keys()) == ARRAYS
    assert np.array_equal(group["base"][:], BASE)
    assert np.array_equal(group["targets"][:], TARGETS)
    longest = max(units)
    rows = longest * (len(units) - 1) + units[-1]
    axes = {"boxes": "bound", "most_probable": "rank", "drops": "output", "scores": "output"}
    for name in (*axes, "noise_floor"):
        found, fill = group[name][:], np.nan if group[name].dtype.kind == "f" else 0
        step = 1 if name == "noise_floor" else longest
        assert len(found) == (len(units) if step == 1 else rows)
        for unit, n in enumerate(units):
            part = found[unit * step : (unit + 1) * step]
            assert np.array_equal(part[:n], np.atleast_1d(arrays(unit, layout)[name]))
            assert np.array_equal(part[n:], np.full_like(part[n:], fill), equal_nan=True)
        copy = zarr.create_array(
            tmp_path / "b",
            name=name,
            shape=found.shape,
            dtype=found.dtype,
            chunks=(step, *found.shape[1:]),
            fill_value=fill,
            serializer=zarr.codecs.BytesCodec(endian="little"),
            filters=(),
            compressors=[zarr.codecs.Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=("position", axes[name]) if name in axes else ("unit",),
            config={"write_empty_chunks": True},
        )
        copy[:] = found
        for file in tree(tmp_path / "a" / name):
            one, other = (tmp_path / ab / name / file for ab in "ab")
            if file == "zarr.json":
                written = json.loads(other.read_text())
                written.pop("storage_transformers", None)
                assert json.loads(one.read_text()) == written
            else:
                assert one.read_bytes() == other.read_bytes()


def test_order_of_writing_leaves_no_trace(whole: Path, tmp_path: Path) -> None:
    sweep(tmp_path / "other", order=-1)
    assert tree(tmp_path / "other") == tree(whole)
    with Store.begin(tmp_path / "third", dict(reversed(META.items())), **LAYOUT) as store:
        store.write(2, **arrays(2))
        store.write(2, **arrays(2))
    sweep(tmp_path / "third")
    assert tree(tmp_path / "third") == tree(whole)
    assert sorted(path for path, data in tree(whole).items() if data is None) == ARRAYS


def test_killed_at_random_and_taken_up_again(tmp_path: Path) -> None:
    layout = {"units": (9,) * 70, "outputs": 3}
    sweep(tmp_path / "whole", layout)
    rng = np.random.default_rng()
    partial, killed, done = tmp_path / "partial", 0, []
    for _ in range(10):
        child = FORK.Process(target=sweep, args=(partial, layout))
        child.start()
        at = done[-1] if done else 0
        # The instants lie among those of writing: after the first sign of progress.
        goal, end = at + int(rng.integers(0, 7)), time.monotonic() + 5
        while time.monotonic() < end and _progress(partial) < goal:
            pass
        time.sleep(rng.uniform(0, 0.004))
        child.kill()
        child.join()
        killed += child.exitcode == -9
        done.append(_progress(partial))
    assert killed >= 5
    assert any(0 < units < 70 for units in done)
    sweep(partial, layout)
    assert tree(partial) == tree(tmp_path / "whole")


def _progress(path: Path) -> int:
    try:
        return int(status(path)["units_done"])
    except ValueError:  # not even begun
        return 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_renaming(whole: Path, tmp_path: Path, when: str) -> None:
    replace, renamings = os.replace, 0

    def doomed(path: Path, at: int) -> None:
        def dying(source: str, target: str) -> None:
            nonlocal renamings
            renamings += 1
            if renamings == at and when == "before":
                os._exit(9)
            replace(source, target)
            if renamings == at:
                os._exit(9)

        os.replace = dying
        sweep(path)
        os._exit(0)

    count = 0
    for at in range(1, 100):
        path = tmp_path / f"{at}"
        code = in_child(lambda path=path, at=at: doomed(path, at))  # type: ignore[misc]
        assert code in (0, 9)
        if code == 0:
            break
        count += 1
        assert any(name.endswith(".tmp") for name in tree(path)) == (when == "before")
        sweep(path)
        assert tree(path) == tree(whole)
    assert count == 8 + 2 + 20 + 1  # metadata, base and targets, chunks, the end


def chunks(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.rglob("c.*")))


def damages(data: bytes) -> list[bytes]:
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 4
    zeros = bytes(len(data))
    return [b"", data[:7], data[:-1], data + b"\0", bytes(flipped), zeros]


def test_damaged_chunks_are_not_done_and_are_mended(whole: Path) -> None:
    first = tree(whole)
    for file in chunks(whole):
        if file.parent.name in ("base", "targets"):
            continue
        unit = int(file.name.split(".")[1])
        data = file.read_bytes()
        for bad in damages(data):
            assert bad != data
            file.write_bytes(bad)
            assert Store.view(whole).done == {0, 1, 2, 3} - {unit}
            sentence(ValueError, "expected a unit that is done", Store.view(whole).read, unit)
        sweep(whole)
        assert tree(whole) == first
    for name in ("base", "targets"):
        file = whole / name / "c.0"
        for bad in damages(file.read_bytes()):
            file.write_bytes(bad)
            assert getattr(Store.view(whole), name) is None
        sweep(whole)
        assert tree(whole) == first


def test_zarr_too_notices_a_flipped_bit(whole: Path) -> None:
    zarr = pytest.importorskip("zarr")
    file = whole / "drops" / "c.1.0"
    file.write_bytes(damages(file.read_bytes())[4])
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(whole, mode="r")["drops"][:]


def test_damaged_metadata_are_refused(whole: Path) -> None:
    rng, refused = np.random.default_rng(7), 0
    for file in sorted(whole.rglob("zarr.json")):
        data = file.read_bytes()
        flips = []
        for at in rng.integers(0, len(data), 40):
            flipped = bytearray(data)
            flipped[at] ^= 1 << int(rng.integers(0, 7))
            flips.append(bytes(flipped))
        for bad in (b"", data[:9], data[:-9], b"[]", b"{}", b"\xff" + data, *flips):
            file.write_bytes(bad)
            match = "is damaged|no store of occlusion drops|expected a store of format"
            sentence(ValueError, match, Store.open, whole, META)
            sentence(ValueError, match, sweep, whole)
            sentence(ValueError, match, status, whole)
            refused += 1
        file.unlink()
        root = file.parent == whole
        sentence(ValueError, "there is no store" if root else "is damaged", Store.open, whole, META)
        sentence(ValueError, f"without the store's {file.name}|is damaged", sweep, whole)
        file.write_bytes(data)
    assert refused > 200
    assert Store.open(whole, META).done == {0, 1, 2, 3}


def test_another_run_is_refused_by_what_differs(whole: Path) -> None:
    def other(*keys: str, value: Any) -> dict[str, Any]:
        meta = json.loads(json.dumps(META))
        inner = meta
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return meta

    cases = [
        (other("model", "fingerprint", value="77"), 'model.fingerprint is "4f0a" in it and "77"'),
        (other("image", "shape", value=[3, 8, 8]), r"image.shape is \[3, 4096, 4096\] in it and"),
        (other("plan", "stride", value=16), "plan.stride is 16.5 in it and 16 here"),
        (other("versions", "numpy", value="2"), 'versions.numpy is null in it and "2" here'),
        (other("threads", value=True), "threads is 2 in it and true here"),
        ({}, "image is .*; model is .*; plan is .*, and 2 more differ"),
    ]
    for meta, match in cases:
        sentence(ValueError, f"was made for another run: {match}", Store.open, whole, meta)
    for layout in ({"units": (5, 5, 5, 4)}, {"outputs": 2}, {"dtype": "float64"}, {"axes": 3}):
        with pytest.raises(ValueError, match=f"another run: {next(iter(layout))} is .* in it and"):
            Store.begin(whole, META, **(LAYOUT | layout))
    with Store.open(whole, META) as store:  # nobody is left holding it
        assert store.finished


def test_bad_arguments_get_a_sentence(tmp_path: Path) -> None:
    for wrong, match in (
        ({"units": ()}, "expected units of a position or more"),
        ({"units": (3, 0)}, "expected units of a position or more"),
        ({"outputs": 0}, "expected an output"),
        ({"dtype": "int32"}, "expected dtype to be one of"),
    ):
        with pytest.raises(ValueError, match=match):
            Store.create(tmp_path / "a", META, **(LAYOUT | wrong))
    for meta in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(ValueError, match="that JSON can say"):
            Store.create(tmp_path / "a", meta, **LAYOUT)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(ValueError, match="expected a new or empty folder, and there is mine"):
        Store.create(tmp_path / "b", META, **LAYOUT)
    assert os.listdir(tmp_path / "b") == ["mine"]
    sentence(ValueError, "there is no store at", Store.open, tmp_path / "c", META)
    sentence(ValueError, "there is no store at", status, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with Store.create(tmp_path / "a", META, **LAYOUT) as store:
        good = arrays(0)
        wrongs: list[tuple[int, dict[str, Any], str]] = [
            (4, good, "expected a unit from 0 to 3, got 4"),
            (3, good, r"expected boxes of shape \(3, 4\)"),
            (0, good | {"drops": good["drops"].astype(float)}, "float32, got .* float64"),
            (0, good | {"scores": good["scores"].T}, r"expected scores of shape \(5, 3\)"),
            (0, good | {"most_probable": good["most_probable"][:, 0]}, r"shape \(5, 1\) int64"),
            (0, good | {"boxes": good["boxes"] / 2}, r"expected boxes of shape \(5, 4\) int64"),
        ]
        for unit, values, match in wrongs:
            with pytest.raises(ValueError, match=match):
                store.write(unit, **values)
        with pytest.raises(ValueError, match=r"expected base of shape \(3,\) float64"):
            store.write_base(np.zeros(4), TARGETS)
        with pytest.raises(ValueError, match=r"expected targets of shape \(3,\) int64"):
            store.write_base(BASE, TARGETS / 2)
        assert store.base is None
        assert store.done == frozenset()
        store.write(1, **good)
        with pytest.raises(ValueError, match="misses 3 units, the first 0"):
            store.finish()
    with pytest.raises(ValueError, match="expected a store open for writing"):
        store.write(0, **good)
    with pytest.raises(ValueError, match="got the store"):
        Store.create(tmp_path / "a", META, **LAYOUT)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ImportError, match=r'google-crc32c: pip install "backsight\[large\]"'):
        Store.create(tmp_path / "a", META, **LAYOUT)
    assert not (tmp_path / "a").exists()


def test_status(tmp_path: Path, whole: Path) -> None:
    with Store.create(tmp_path / "a", META, **LAYOUT) as store:
        store.write(3, **arrays(3))
        assert status(tmp_path / "a") == {
            "units": 4,
            "units_done": 1,
            "positions": 18,
            "positions_done": 3,
            "finished": False,
        }
    assert status(whole)["units_done"] == 4
    assert status(whole)["finished"]
    (whole / "drops" / "c.0.0").unlink()
    assert not status(whole)["finished"]


def test_a_second_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backsight.occlusion_store._PATIENCE", 0.2)
    path = tmp_path / "a"
    with Store.create(path, META, **LAYOUT) as store:
        busy = "another run is writing to the store .*: wait until it has ended"
        sentence(RuntimeError, busy, Store.open, path, META)
        sentence(RuntimeError, busy, sweep, path)
        assert in_child(lambda: sentence(RuntimeError, busy, sweep, path)) == 0
        with pytest.raises(RuntimeError, match=busy):
            Store.open(path, META, shared=True)
        store.write(0, **arrays(0))
        assert Store.view(path).done == {0}  # reading is free
    sweep(path)
    assert ".lock" not in tree(path)


def test_writers_that_share_finish_together(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "a"
    Store.create(path, META, **LAYOUT).close()

    def some(which: int) -> None:
        with Store.open(path, META, shared=True) as store:
            if not which:
                store.write_base(BASE, TARGETS)
            for unit in (which, which + 2):
                store.write(unit, **arrays(unit))
                time.sleep(0.05)

    writers = [FORK.Process(target=some, args=(which,)) for which in range(2)]
    with Store.open(path, META, shared=True) as store:
        for writer in writers:
            writer.start()
        with pytest.raises(RuntimeError, match="another run is writing"):
            Store.open(path, META)
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        assert store.done == {0, 1, 2, 3}
        store.finish({"noise_floor": 1e-7})
    assert tree(path) == tree(whole)


def test_forked_children_do_not_hold_the_store(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a", META, **LAYOUT)
    child = FORK.Process(target=time.sleep, args=(30,))
    child.start()
    try:
        store.close()
        Store.open(tmp_path / "a", META).close()
    finally:
        child.kill()
        child.join()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


LARGE: dict[str, Any] = {"units": (2000,) * 20, "outputs": 3}


def fill(path: Path, written: set[int]) -> None:
    """Write units until the disk is full."""
    with Store.create(path, META, **LARGE) as store:
        for unit in range(20):
            store.write(unit, **arrays(unit, LARGE))
            written.add(unit)


def test_full_disks_keep_what_is_whole(small_disk: Path, tmp_path: Path) -> None:
    written: set[int] = set()
    with pytest.raises(
        OSError, match=r"cannot write unit . of .*: the disk is full; what"
    ) as caught:
        fill(small_disk / "a", written)
    assert "\n" not in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert 0 < len(written) < 20
    assert Store.view(small_disk / "a").done == written
    assert not [name for name in tree(small_disk) if name.endswith((".tmp", ".lock"))]
    # With more room it goes on.
    shutil.copytree(small_disk / "a", tmp_path / "a")
    sweep(tmp_path / "a", LARGE)
    sweep(tmp_path / "b", LARGE)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    before = {"a"}
    with pytest.raises(OSError, match=r"cannot make the store .*: the disk is full"):
        _make_until_full(small_disk, before)
    assert set(os.listdir(small_disk)) == before


def _make_until_full(disk: Path, names: set[str]) -> None:
    for i in range(99):
        Store.create(disk / f"{i}", META, **LARGE).close()
        names.add(f"{i}")


def test_files_beyond_the_limit_keep_what_is_whole(tmp_path: Path) -> None:
    def limited() -> None:
        with Store.create(tmp_path / "a", META, units=(9, 9), outputs=999) as store:
            small = {"units": (9, 9), "outputs": 999}
            store.write(0, **arrays(0, small))
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            with pytest.raises(OSError, match="the largest size of a file is reached") as caught:
                store.write(1, **arrays(1, small))
            assert caught.value.errno == errno.EFBIG
            assert store.done == {0}

    assert in_child(limited) == 0
    assert not [name for name in tree(tmp_path) if name.endswith((".tmp", ".lock"))]


def test_folders_that_cannot_be_written_get_a_sentence(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        sentence(OSError, "^cannot make the store .*: (Not a directory|File exists)$", sweep, path)

    def unprivileged(path: Path) -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        sentence(
            OSError, "^cannot write to the store .*: Permission denied$", Store.open, path, META
        )
        sentence(OSError, "^cannot make the store .*: Permission denied$", sweep, path / "new")
        assert Store.view(path).done == {0, 1, 2, 3}

    # Not below pytest's folders, which are private.
    with tempfile.TemporaryDirectory() as folder:
        public = Path(folder)
        shutil.copytree(whole, public / "a")
        public.chmod(0o755)
        (public / "a").chmod(0o555)
        before = tree(public)
        try:
            assert in_child(lambda: unprivileged(public / "a")) == 0
            assert tree(public) == before
        finally:
            (public / "a").chmod(0o755)


def test_what_is_derived_is_part_of_a_finished_store(tmp_path: Path) -> None:
    path = tmp_path / "a"
    heat = np.random.default_rng(0).normal(size=(7, 5, 9)).astype(np.float32)
    sweep(path)

    def derived() -> None:
        with Store.open(path, META) as store:
            store.derive_group("maps", {"a": 1})
            store.derive_array("maps/3", heat, (3, 5, 4), ("z", "y", "x"), {"cell": 8})
            with store.deriving("overview/3/0.png") as file:
                file.write(b"picture")
            with pytest.raises(ValueError, match="expected a path in maps or overview, got drops"):
                store.derive_group("drops", {})
            store.finish()

    derived()
    first = tree(path)
    store = Store.view(path)
    assert store.intact
    chunks = [f"maps/3/c.{z}.0.{x}" for z in range(3) for x in range(3)]
    files = ["maps/3/zarr.json", "maps/zarr.json", "overview/3/0.png"]
    assert list(store.derived) == chunks + files
    assert {name for name in first if name.startswith(("maps", "overview"))} == {
        *store.derived,
        *("maps", "maps/3", "overview", "overview/3"),
    }
    for name in store.derived:
        data = (path / name).read_bytes()
        for bad in damages(data)[1:]:
            if bad != data:
                (path / name).write_bytes(bad)
                assert not Store.view(path).intact
        (path / name).unlink()
        assert not Store.view(path).intact
        derived()
        assert tree(path) == first
        assert Store.view(path).intact
    (path / "maps" / "3" / ".c.0.0.0.7-0123abcd.tmp").touch()  # of a killed writer
    Store.open(path, META).close()
    assert tree(path) == first
    (path / "drops" / "c.1.0").unlink()
    assert not Store.view(path).intact
    zarr = pytest.importorskip("zarr")
    found = zarr.open_group(path, mode="r")["maps/3"]
    assert np.array_equal(found[:], heat)
    assert dict(found.attrs) == {"cell": 8}
    assert found.metadata.dimension_names == ("z", "y", "x")
