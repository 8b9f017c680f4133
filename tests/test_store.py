"""Files are written whole or not at all, and damaged ones are refused in a sentence."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backsight.store import load_npz, save_npz, whole, write_bytes, write_json

ARRAYS = {
    "drops": np.arange(24, dtype=np.float64).reshape(2, 3, 4) / 7,
    "boxes": np.array([[0, 0, 3, 3], [1, 2, 4, 5]], dtype=np.int64),
    "half": np.array([1.5, -0.0, np.inf], dtype=np.float16),
    "empty": np.zeros((0, 5), dtype=np.float32),
    "scalar": np.array(3, dtype=np.uint8),
    "file": np.array([True, False]),  # numpy.savez has an argument of this name
}
META = {"window": [32, 32], "noise_floor": 1.25e-7, "note": "Größe", "plan": {"groups": [1, 2]}}


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    save_npz(path, ARRAYS, META)
    arrays, meta = load_npz(path, ["drops", "boxes"])
    assert meta == META
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()


def test_name_is_kept_and_numpy_reads_the_file(tmp_path: Path) -> None:
    save_npz(tmp_path / "result", ARRAYS, META)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    with np.load(tmp_path / "result") as archive:
        assert np.array_equal(archive["drops"], ARRAYS["drops"])
        assert json.loads(str(archive["meta"])) == META


def test_equal_results_are_equal_files(tmp_path: Path) -> None:
    save_npz(tmp_path / "a", ARRAYS, META)
    save_npz(tmp_path / "b", ARRAYS, META)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_reads_what_numpy_compressed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=ARRAYS["drops"], meta=np.array(json.dumps(META)))
    arrays, meta = load_npz(tmp_path / "a.npz", ["x"])
    assert meta == META
    assert np.array_equal(arrays["x"], ARRAYS["drops"])


def test_every_truncation_is_refused_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    save_npz(path, ARRAYS, META)
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"result\.npz is not a whole \.npz file") as raised:
            load_npz(path, [])
        assert "\n" not in str(raised.value)


def test_a_flipped_byte_in_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    save_npz(path, ARRAYS, META)
    data = bytearray(path.read_bytes())
    start = bytes(data).index(ARRAYS["drops"].tobytes())
    for offset in (0, 100, ARRAYS["drops"].nbytes - 1):
        damaged = data.copy()
        damaged[start + offset] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not a whole"):
            load_npz(path, [])


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"a\.npz is not a whole \.npz file"):
        load_npz(tmp_path / "a.npz", [])
    np.save(tmp_path / "b.npy", ARRAYS["drops"])
    with pytest.raises(ValueError, match=r"b\.npy is not a whole \.npz file"):
        load_npz(tmp_path / "b.npy", [])
    np.savez(tmp_path / "c.npz", other=ARRAYS["drops"])
    with pytest.raises(ValueError, match="expected arrays drops, meta, and drops, meta are miss"):
        load_npz(tmp_path / "c.npz", ["drops"])
    np.savez(tmp_path / "d.npz", meta=np.array("{"))
    with pytest.raises(ValueError, match="not JSON"):
        load_npz(tmp_path / "d.npz", [])
    np.savez(tmp_path / "e.npz", meta=np.array("[1]"))
    with pytest.raises(ValueError, match="not a JSON object"):
        load_npz(tmp_path / "e.npz", [])


def test_python_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="'x' holds Python objects"):
        save_npz(tmp_path / "a.npz", {"x": objects}, {})
    assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "b.npz", x=objects, meta=np.array("{}"))
    with pytest.raises(ValueError, match="is not a whole"):
        load_npz(tmp_path / "b.npz", [])


def test_meta_is_no_array_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='other than "meta"'):
        save_npz(tmp_path / "a.npz", {"meta": np.zeros(1)}, {})


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        load_npz(tmp_path / "none.npz", [])


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail() -> None:
        with whole(path) as file:
            file.write(b"new, but only half of")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_process_that_dies_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    program = (
        "import os, sys\nfrom backsight.store import whole\n"
        "with whole(sys.argv[1]) as file:\n"
        "    file.write(b'x' * 100000); file.flush(); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == 9
    assert path.read_bytes() == b"old"


def test_a_link_keeps_its_place_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "a"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"


def test_files_have_the_mode_of_ordinary_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_json_is_readable_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", META)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == META
    assert "Größe" in text
    assert text.endswith("}\n")
