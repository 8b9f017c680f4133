"""Digests that tell one image from another without reading all of it.

Up to `WHOLE` bytes are digested whole. Of more, the length, the first and last `ENDS` bytes and
`SAMPLES` blocks of `BLOCK` bytes at even distances are: a change of length or header is always
noticed, one of some bytes in between only where a block lies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["of_array", "of_file", "of_tree"]

WHOLE = 64 << 20
ENDS = 1 << 16
SAMPLES = 1024
BLOCK = 1 << 12


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def of_file(path: str | os.PathLike[str], about: object) -> str:
    """Hex digest of a file's bytes, and of `about`, which says how they are read."""
    found = _start(about)
    _add_file(found, path, WHOLE)
    return found.hexdigest()


def of_tree(files: dict[str, Path], about: object) -> str:
    """Hex digest of the names and lengths of files, of those of metadata whole, and of the others'
    bytes up to `WHOLE` in all or else of `SAMPLES` files at even distances.

    Args:
        files: name to path. Names that end in .json or begin with .z are of metadata.
    """
    found = _start(about)
    names = sorted(files)
    data, total = [], 0
    for name in names:
        size = files[name].stat().st_size
        found.update(f"{name}\0{size}\0".encode())
        last = name.rsplit("/", 1)[-1]
        if last.endswith(".json") or last.startswith(".z"):
            found.update(files[name].read_bytes())
        else:
            data.append(name)
            total += size
    chosen = data if total <= WHOLE else [data[i] for i in _even(len(data), SAMPLES)]
    for name in chosen:
        _add_file(found, files[name], WHOLE if total <= WHOLE else 2 * ENDS)
    return found.hexdigest()


def of_array(values: npt.NDArray[Any], about: object) -> str:
    """Hex digest of an array's values, and of `about`."""
    found = _start(about)
    if values.nbytes <= WHOLE:
        found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()
    flat = values.reshape(-1) if values.flags.c_contiguous else values.flat
    step = max(1, BLOCK // values.itemsize)

    def block(start: int) -> bytes:
        return np.asarray(flat[start : start + step]).tobytes()

    _add_blocks(found, values.size - step, block)
    return found.hexdigest()


def _start(about: object) -> _Hash:
    return hashlib.sha256(repr(about).encode())


def _even(count: int, samples: int) -> list[int]:
    """Some of `range(count)` at even distances, both ends among them."""
    samples = min(count, samples)
    return sorted({i * (count - 1) // max(1, samples - 1) for i in range(samples)})


def _add_blocks(found: _Hash, last: int, block: Callable[[int], bytes]) -> None:
    for start in _even(last + 1, SAMPLES):
        found.update(block(start))


def _add_file(found: _Hash, path: str | os.PathLike[str], whole: int) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        found.update(size.to_bytes(8, "little"))
        if size <= whole:
            while data := file.read(1 << 20):
                found.update(data)
            return

        def block(start: int, length: int = BLOCK) -> bytes:
            file.seek(start)
            return file.read(length)

        found.update(block(0, ENDS))
        found.update(block(size - ENDS, ENDS))
        _add_blocks(found, size - BLOCK, block)
