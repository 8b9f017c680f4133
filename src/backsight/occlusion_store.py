"""The raw result of a large occlusion sweep as a zarr store, filled unit by unit.

A store is a folder in zarr format 3 with a group of arrays. Of each position there are ``drops``
and ``scores`` (positions, outputs), ``boxes`` (positions, 2·D) int64 and ``most_probable``
(positions, 1) int64; of each unit, a ``noise_floor`` (units,) fp64; and of the sweep, ``base``
(outputs,) fp64 and ``targets`` (outputs,) int64, which outputs of the model the columns are.

A *unit* is a run of positions, and is one chunk of each array but the last two: one file,
little-endian, uncompressed, with a CRC-32C. A unit shorter than the longest is padded at its end
with rows of NaN, or of zeros where they are integers, so that unit ``u`` begins at row ``u`` times
the longest; where all units but the last are of one length, rows are positions and there is no
padding.

While a store is being filled, ``.pass`` in it holds what the first pass over the image has found.
What is derived from the units when all are done lies in the groups ``maps`` and ``overview``. A
store that is finished tells the SHA-256 of each of these files.

Files appear whole or not at all and say the same whenever and in whatever order they are written:
the store of a sweep that was killed and taken up again has the bytes of one that was not. Nothing
in it tells of a clock, a host or a speed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt

from . import store

__all__ = ["Store", "status", "tidy"]

Array = npt.NDArray[Any]
Pathlike = str | os.PathLike[str]

_FORMAT = 2
_META = "zarr.json"
_LOCK = ".lock"
_PASS = ".pass"
_DERIVED = ("maps", "overview")
_ARRAYS = ("base", "boxes", "drops", "most_probable", "noise_floor", "scores", "targets")
_DTYPES = ("float16", "float32", "float64")
#: Seconds that a writer who shares a store waits for one who does not.
_PATIENCE = 10.0
_TEMPORARY = re.compile(r"\..*\.\d+-[0-9a-f]{8}\.tmp")

#: What a write may run into that leaves the rest of a store whole.
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the largest size of a file is reached",
}


@dataclass(frozen=True)
class _Chunks:
    """An array of which each unit, or the sweep, has one chunk.

    Attributes:
        dtype: of the values.
        shape: of a chunk: (positions of the longest unit, columns), or (values,).
        names: of the axes.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def length(self) -> int:
        """Bytes of a chunk's file."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize + 4

    def file(self, index: int) -> str:
        """The name of a chunk, counted along the first axis."""
        return f"c.{index}" + ".0" * (len(self.shape) - 1)


@dataclass(frozen=True)
class _Layout:
    """What fixes the arrays of a store.

    Attributes:
        units: positions per unit.
        outputs: columns of `drops`.
        axes: spatial axes of the image, and half the columns of `boxes`.
        dtype: of `drops` and `scores`.
    """

    units: tuple[int, ...]
    outputs: int
    axes: int
    dtype: str

    def __post_init__(self) -> None:
        if not self.units or min(self.units) < 1:
            raise ValueError(f"expected units of a position or more, got {list(self.units)[:9]}")
        if self.outputs < 1 or self.axes < 1:
            raise ValueError(
                f"expected an output and a spatial axis or more, got {self.outputs}, {self.axes}"
            )
        if self.dtype not in _DTYPES:
            raise ValueError(f"expected dtype to be one of {', '.join(_DTYPES)}, got {self.dtype}")

    @property
    def longest(self) -> int:
        return max(self.units)

    @cached_property
    def arrays(self) -> dict[str, _Chunks]:
        """Those with a chunk per unit, in the order in which they are written."""

        def rows(dtype: str, columns: int, name: str) -> _Chunks:
            return _Chunks(dtype, (self.longest, columns), ("position", name))

        return {
            "boxes": rows("int64", 2 * self.axes, "bound"),
            "most_probable": rows("int64", 1, "rank"),
            "noise_floor": _Chunks("float64", (1,), ("unit",)),
            "scores": rows(self.dtype, self.outputs, "output"),
            "drops": rows(self.dtype, self.outputs, "output"),
        }

    @cached_property
    def singles(self) -> dict[str, _Chunks]:
        """Those of the sweep, of one chunk, in the order in which they are written."""
        return {
            "targets": _Chunks("int64", (self.outputs,), ("output",)),
            "base": _Chunks("float64", (self.outputs,), ("output",)),
        }

    def metadata(self) -> dict[str, dict[str, Any]]:
        """The zarr metadata of each array."""
        found = {}
        for name, chunks in self.arrays.items():
            first, *rest = chunks.shape
            last = self.units[-1] if rest else 1
            shape = (first * (len(self.units) - 1) + last, *rest)
            found[name] = _array(chunks.dtype, shape, chunks.shape, chunks.names)
        for name, chunks in self.singles.items():
            found[name] = _array(chunks.dtype, chunks.shape, chunks.shape, chunks.names)
        return found

    def plain(self) -> dict[str, Any]:
        """As JSON says it: units as runs of [positions, units]."""
        runs = [[size, len(list(same))] for size, same in itertools.groupby(self.units)]
        return asdict(self) | {"units": runs}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> _Layout:
        units = tuple(size for size, count in plain["units"] for _ in range(count))
        return cls(**{**plain, "units": units})


class Store:
    """A store that is being filled. A context manager, which closes it.

    Attributes:
        path: of the folder.
        meta: what :meth:`create` was given.
        units: positions per unit.
        dtype: of drops and scores, by name.
        finished: whether :meth:`finish` has been called, in this process or an earlier one.
        found: what :meth:`finish` was given.
        derived: the files of what is derived from the units, and the SHA-256 of each.
    """

    def __init__(self, path: Path, lock: _Lock | None, root: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = lock
        self._layout = _Layout.of(root["layout"])
        self.meta: dict[str, Any] = root["meta"]
        self.finished: bool = root["finished"]
        self.found: dict[str, Any] = root["found"]
        self.derived: dict[str, str] = root["derived"]
        self.units, self.dtype = self._layout.units, self._layout.dtype
        self._right: set[int] = set()
        self._deriving: list[str] = []

    @classmethod
    def create(
        cls,
        path: Pathlike,
        meta: Mapping[str, Any],
        *,
        units: Sequence[int],
        outputs: int,
        axes: int = 2,
        dtype: npt.DTypeLike = "float32",
        shared: bool = False,
    ) -> Store:
        """Begin a store in a new or empty folder.

        Args:
            path: the folder.
            meta: what the results depend on, in values that JSON can say: fingerprints of model and
                image, the plan, settings, versions, threads, instruction set or GPU. A store is
                taken up again only for an equal `meta`; so it has no place for clocks or hosts.
            units: positions per unit.
            outputs: outputs per position.
            axes: spatial axes of the image.
            dtype: of drops and scores: float16, float32 or float64.
            shared: whether other writers of the same `meta` may work on the store at the same time,
                on units of their own.

        Raises:
            ValueError: the folder holds something, or the arguments are of no store.
            RuntimeError: another run is writing to the store.
            OSError: the folder cannot be written to, or the disk is full; one sentence.
        """
        layout = _layout(units, outputs, axes, dtype)
        return cls._begin(Path(path), meta, layout, shared, resume=False)

    @classmethod
    def begin(
        cls,
        path: Pathlike,
        meta: Mapping[str, Any],
        *,
        units: Sequence[int],
        outputs: int,
        axes: int = 2,
        dtype: npt.DTypeLike = "float32",
        shared: bool = False,
    ) -> Store:
        """:meth:`open` the store where there is one, and :meth:`create` it where there is none."""
        layout = _layout(units, outputs, axes, dtype)
        return cls._begin(Path(path), meta, layout, shared, resume=True)

    @classmethod
    def open(cls, path: Pathlike, meta: Mapping[str, Any], *, shared: bool = False) -> Store:
        """Take up a store.

        Raises:
            ValueError: there is none, it is damaged, or it was made for another `meta`; one
                sentence that names what differs.
            RuntimeError: another run is writing to the store.
            OSError: the folder cannot be written to.
        """
        folder = Path(path)
        _read_root(folder)
        with _Lock.held(folder, shared) as lock:
            return cls._resumed(folder, lock, _plain(meta), None)

    @classmethod
    def view(cls, path: Pathlike) -> Store:
        """A store to read from, also while it is being written; nothing in the folder is touched.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        folder = Path(path)
        return cls(folder, None, _read_root(folder))

    @classmethod
    def _begin(
        cls, folder: Path, meta: Mapping[str, Any], layout: _Layout, shared: bool, resume: bool
    ) -> Store:
        plain = _plain(meta)
        _checksum(b"")  # says that the package is missing before anything is made
        made = not folder.exists()
        with _sentence(f"cannot make the store {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            if shared and resume:
                _make_alone(folder, plain, layout)
            with _Lock.held(folder, shared) as lock:
                if (folder / _META).exists():
                    if resume:
                        return cls._resumed(folder, lock, plain, layout)
                    raise ValueError(f"expected a new or empty folder, got the store {folder}")
                return cls(folder, lock, _make(folder, plain, layout))
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    @classmethod
    def _resumed(
        cls, folder: Path, lock: _Lock, meta: dict[str, Any], layout: _Layout | None
    ) -> Store:
        root = _read_root(folder)
        differing = list(_differences(root["meta"], meta, ""))
        if layout is not None:
            differing += _differences(root["layout"], layout.plain(), "")
        if differing:
            more = f", and {len(differing) - 3} more differ" if len(differing) > 3 else ""
            raise ValueError(
                f"the store {folder} was made for another run: {'; '.join(differing[:3])}{more}"
            )
        return cls(folder, lock, root)

    @property
    def done(self) -> frozenset[int]:
        """The units that are there, and whose checksums are right.

        Each unit is read once to find out. A truncated or altered one is as good as none: it is to
        be written again. Those of other writers are found too.
        """
        arrays = self._layout.arrays
        names = [(set(_files(self.path / name)), chunks) for name, chunks in arrays.items()]
        for unit in range(len(self.units)):
            if unit in self._right or not all(c.file(unit) in found for found, c in names):
                continue
            if all(
                self._payload(name, chunks, unit) is not None for name, chunks in arrays.items()
            ):
                self._right.add(unit)
        return frozenset(self._right)

    @property
    def base(self) -> Array | None:
        """(outputs,) fp64, the scores of the unoccluded image; None before they are written."""
        return self._payload("base", self._layout.singles["base"], 0)

    @property
    def targets(self) -> Array | None:
        """(outputs,) int64, which outputs of the model are kept; None before they are written."""
        return self._payload("targets", self._layout.singles["targets"], 0)

    def write_base(self, base: npt.ArrayLike, targets: npt.ArrayLike) -> None:
        """Store the scores of the unoccluded image.

        Args:
            base: (outputs,) fp64.
            targets: (outputs,) integers, which outputs of the model they are.
        """
        self._put({"targets": targets, "base": base}, self._layout.singles, 0, "the base scores")

    @property
    def first_pass(self) -> bytes | None:
        """What a first pass over the image has found, for the processes that fill the store; None
        before it is written, and once the store is finished.
        """
        try:
            data = (self.path / _PASS).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OSError(f"cannot read the store {self.path}: {error.strerror}") from error
        return data[:-4] if _checksum(data[:-4]) == data[-4:] else None

    def write_first_pass(self, data: bytes) -> None:
        """Keep what the first pass has found until the store is finished."""
        self._writable()
        with _sentence(f"cannot write the first pass of the store {self.path}", kept=True):
            store.write_bytes(self.path / _PASS, data + _checksum(data))

    def write(
        self,
        unit: int,
        *,
        drops: npt.ArrayLike,
        scores: npt.ArrayLike,
        boxes: npt.ArrayLike,
        most_probable: npt.ArrayLike,
        noise_floor: float,
    ) -> None:
        """Store a unit, whole or not at all.

        Args:
            unit: its number.
            drops: (positions of the unit, outputs), of the store's dtype.
            scores: the same of the scores with each box occluded.
            boxes: (positions of the unit, 2·D) integers.
            most_probable: (positions of the unit, 1) integers, the model's largest output at each.
            noise_floor: the largest |drop| of the unit's null occlusions.

        Raises:
            ValueError: there is no such unit, or an array is of another shape or dtype.
            OSError: the disk is full, or the folder cannot be written to; units that are there
                stay.
        """
        if not 0 <= unit < len(self.units):
            raise ValueError(f"expected a unit from 0 to {len(self.units) - 1}, got {unit}")
        given = {
            "boxes": boxes,
            "most_probable": most_probable,
            "noise_floor": np.array([noise_floor], np.float64),
            "scores": scores,
            "drops": drops,
        }
        self._put(given, self._layout.arrays, unit, f"unit {unit}")
        self._right.add(unit)

    def read(self, unit: int, *names: str) -> dict[str, Array]:
        """The arrays of a unit by name, without padding; all of them, or those that are named.

        Raises:
            ValueError: it is not done.
        """
        arrays = self._layout.arrays
        found = {}
        for name in names or arrays:
            known = 0 <= unit < len(self.units)
            values = self._payload(name, arrays[name], unit) if known else None
            if values is None:
                raise ValueError(f"expected a unit that is done in the store {self.path}: {unit}")
            found[name] = values[: self.units[unit]]
        return found

    @property
    def intact(self) -> bool:
        """Whether the store is finished, and all of it is as it was written. All is read once."""
        if not self.finished or len(self.done) < len(self.units):
            return False
        if self.base is None or self.targets is None:
            return False
        return all(self._sum(name) == known for name, known in self.derived.items())

    @contextlib.contextmanager
    def deriving(self, name: str) -> Iterator[BinaryIO]:
        """Open a file of what is derived from the units for writing; it is there whole or not at
        all.

        Args:
            name: its path in the store, in the folder "maps" or "overview".

        Raises:
            OSError: the disk is full, or the folder cannot be written to; all units stay.
        """
        with self._derived(name) as path, store.whole(path) as file:
            yield file

    def derive_group(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Say what lies in a folder, in the zarr metadata of a group."""
        with self._derived(f"{name}/{_META}") as path:
            store.write_json(path, _group(attributes))

    def derive_array(
        self,
        name: str,
        values: Array,
        chunk: Sequence[int],
        axes: Sequence[str],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write a zarr array, of floating point and padded with NaN.

        Args:
            name: its path in the store.
            values: the array.
            chunk: the shape of a chunk.
            axes: their names.
            attributes: values that JSON can say.
        """
        counts = [-(-n // side) for n, side in zip(values.shape, chunk, strict=True)]
        for index in itertools.product(*map(range, counts)):
            part = values[
                tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))
            ]
            whole = np.full(chunk, np.nan, values.dtype)
            whole[tuple(map(slice, part.shape))] = part
            with self._derived(f"{name}/c.{'.'.join(map(str, index))}") as path:
                store.write_bytes(path, _encoded(whole))
        metadata = _array(values.dtype.name, values.shape, tuple(chunk), tuple(axes))
        with self._derived(f"{name}/{_META}") as path:
            store.write_json(path, metadata | {"attributes": dict(attributes)})

    @contextlib.contextmanager
    def _derived(self, name: str) -> Iterator[Path]:
        self._writable()
        if name.split("/")[0] not in _DERIVED:
            raise ValueError(f"expected a path in {' or '.join(_DERIVED)}, got {name}")
        path = self.path / name
        with _sentence(f"cannot write {name} of the store {self.path}", kept=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        self._deriving.append(name)

    def finish(self, found: Mapping[str, Any] | None = None) -> None:
        """Say that the sweep is complete, and close the store.

        Args:
            found: what is known at the end, such as the noise floor; values that JSON can say.

        Raises:
            ValueError: units, or the base scores, are missing.
        """
        missing = sorted(set(range(len(self.units))) - self.done)
        if missing or self.base is None or self.targets is None:
            what = f"{len(missing)} units, the first {missing[0]}" if missing else "the base scores"
            raise ValueError(f"expected a complete store, and {self.path} misses {what}")
        self._writable()
        derived = {name: self._sum(name) for name in sorted(self._deriving)}
        end: dict[str, Any] = {"finished": True, "found": _plain(found or {}), "derived": derived}
        with _sentence(f"cannot finish the store {self.path}"):
            (self.path / _PASS).unlink(missing_ok=True)
            _write_root(self.path, _read_root(self.path) | end)
        self.finished, self.found, self.derived = True, end["found"], derived
        self.close()

    def close(self) -> None:
        """Let other runs write to the store; a second time is no error."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.path} of {len(self.units)} units>"

    def _writable(self) -> None:
        if self._lock is None or not self._lock.alive:
            raise ValueError(f"expected a store open for writing, and {self.path} is not")

    def _put(
        self,
        given: Mapping[str, npt.ArrayLike],
        arrays: Mapping[str, _Chunks],
        index: int,
        what: str,
    ) -> None:
        """Write a chunk of each array. The last comes last: where it is, all are."""
        self._writable()
        whole = {
            name: self._padded(name, np.asarray(given[name]), arrays[name], index)
            for name in arrays
        }
        for name, values in whole.items():
            path = self.path / name / arrays[name].file(index)
            with _sentence(f"cannot write {what} of the store {self.path}", kept=True):
                store.write_bytes(path, _encoded(values))

    def _padded(self, name: str, values: Array, chunks: _Chunks, index: int) -> Array:
        longest, *columns = chunks.shape
        shape = (self.units[index] if columns else longest, *columns)
        integers = chunks.dtype == "int64"
        if values.shape != shape or not (
            values.dtype.kind in "iu" if integers else values.dtype == chunks.dtype
        ):
            raise ValueError(
                f"expected {name} of shape {shape} {chunks.dtype}, got {values.shape} "
                f"{values.dtype}"
            )
        whole = np.full(chunks.shape, _fill(chunks.dtype), chunks.dtype)
        whole[: len(values)] = values
        return whole

    def _sum(self, name: str) -> str:
        """The SHA-256 of a file, "" where there is none."""
        try:
            return hashlib.sha256((self.path / name).read_bytes()).hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            raise OSError(f"cannot read the store {self.path}: {error.strerror}") from error

    def _payload(self, name: str, chunks: _Chunks, index: int) -> Array | None:
        """A chunk's values, or None where it is missing or damaged."""
        try:
            data = (self.path / name / chunks.file(index)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(f"cannot read the store {self.path}: {error.strerror}") from error
        if len(data) != chunks.length or _checksum(data[:-4]) != data[-4:]:
            return None
        stored = np.dtype(chunks.dtype).newbyteorder("<")
        values = np.frombuffer(data, stored, count=prod(chunks.shape)).reshape(chunks.shape)
        return values.astype(chunks.dtype)


def status(path: Pathlike) -> dict[str, Any]:
    """How far a store is: units and positions, and those done of them, whether it is finished.

    A glance, also while it is being written: units are counted by the names and lengths of their
    files, and their checksums are not computed (:attr:`Store.done` does).

    Raises:
        ValueError: there is no store, or it is damaged.
    """
    folder = Path(path)
    root = _read_root(folder)
    layout = _Layout.of(root["layout"])
    sizes = [(_files(folder / name), chunks) for name, chunks in layout.arrays.items()]
    done = [
        unit
        for unit in range(len(layout.units))
        if all(found.get(chunks.file(unit)) == chunks.length for found, chunks in sizes)
    ]
    return {
        "units": len(layout.units),
        "units_done": len(done),
        "positions": sum(layout.units),
        "positions_done": sum(layout.units[unit] for unit in done),
        "finished": root["finished"] and len(done) == len(layout.units),
    }


def tidy(path: Pathlike) -> None:
    """Remove what killed writers have left in a finished store, where nobody is writing and the
    folder can be written to: a lock, temporary files, what a first pass has found.
    """
    folder = Path(path)
    if (folder / _LOCK).exists() or (folder / _PASS).exists():
        with contextlib.suppress(OSError, RuntimeError), _Lock.held(folder, False) as lock:
            (folder / _PASS).unlink(missing_ok=True)
            lock.release()


class _Lock:
    """The right to write to a store, held by `flock` on a file in it: the system lets go of it when
    the process ends, however that happens.
    """

    _all: ClassVar[weakref.WeakSet[_Lock]] = weakref.WeakSet()

    def __init__(self, folder: Path, shared: bool) -> None:
        self._folder, self._path = folder, folder / _LOCK
        self._shared = shared
        busy = RuntimeError(
            f"another run is writing to the store {folder}: wait until it has ended"
        )
        with _sentence(f"cannot write to the store {folder}"):
            # Whoever shares a store has it alone for as long as making it takes.
            patience = time.monotonic() + (_PATIENCE if shared else 0)
            while True:
                try:
                    if self._taken(busy):
                        break
                except RuntimeError:
                    if time.monotonic() > patience:
                        raise
                    time.sleep(0.01)
        self._all.add(self)

    def _taken(self, busy: RuntimeError) -> bool:
        """Whether the lock on the file that is now there could be had; raises `busy` if not."""
        self._handle = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            alone = self._take(fcntl.LOCK_EX)
            if not alone and not (self._shared and self._take(fcntl.LOCK_SH)):
                raise busy
            # The last writer removes the file; a lock on a removed one keeps nobody out.
            if not self._current():
                self.abandon()
                return False
            if alone:
                _sweep(self._folder)
            if alone and self._shared and not self._take(fcntl.LOCK_SH):
                raise busy
        except BaseException:
            self.abandon()
            raise
        return True

    @classmethod
    @contextlib.contextmanager
    def held(cls, folder: Path, shared: bool) -> Iterator[_Lock]:
        """A lock that stays after the body, unless that raises."""
        lock = cls(folder, shared)
        try:
            yield lock
        except BaseException:
            lock.release()
            raise

    def release(self) -> None:
        """Sweep what killed writers have left, where nobody else is at work, and let go."""
        if self._handle < 0:
            return
        try:
            if not self._shared or self._take(fcntl.LOCK_EX):
                # A disk that refuses now has refused before, in a sentence.
                with contextlib.suppress(OSError):
                    _sweep(self._folder)
                    self._path.unlink(missing_ok=True)
        finally:
            self.abandon()

    @property
    def alive(self) -> bool:
        return self._handle >= 0

    def abandon(self) -> None:
        """Close the file, and leave the lock to whoever else holds it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _take(self, kind: int) -> bool:
        try:
            fcntl.flock(self._handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _current(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._handle))


def _abandon_all() -> None:
    for lock in list(_Lock._all):
        lock.abandon()


# A forked child shares the lock, and would hold it for as long as it lives.
os.register_at_fork(after_in_child=_abandon_all)


def _layout(units: Sequence[int], outputs: int, axes: int, dtype: npt.DTypeLike) -> _Layout:
    return _Layout(tuple(map(int, units)), int(outputs), int(axes), np.dtype(dtype).name)


def _make(folder: Path, meta: dict[str, Any], layout: _Layout) -> dict[str, Any]:
    """Write the metadata of a store that is empty yet."""
    _only_remains(folder)
    root = {
        "format": _FORMAT,
        "layout": layout.plain(),
        "meta": meta,
        "finished": False,
        "found": {},
        "derived": {},
    }
    try:
        with _sentence(f"cannot make the store {folder}"):
            for name, metadata in layout.metadata().items():
                (folder / name).mkdir(exist_ok=True)
                store.write_json(folder / name / _META, metadata)
            # Last, so that a folder with a root is a whole store.
            _write_root(folder, root)
    except BaseException:
        # Interrupted after the last file, it is a store, and stays.
        if not (folder / _META).exists():
            _only_remains(folder)
        raise
    return root


def _make_alone(folder: Path, meta: dict[str, Any], layout: _Layout) -> None:
    """Make a store unless there is one: of several that want to share it, one at a time."""
    patience = time.monotonic() + _PATIENCE
    while not (folder / _META).exists():
        try:
            with _Lock.held(folder, False) as lock:
                try:
                    if not (folder / _META).exists():
                        _make(folder, meta, layout)
                finally:
                    lock.release()
        except RuntimeError:
            if time.monotonic() > patience:
                raise
            time.sleep(0.01)


def _fill(dtype: str) -> float:
    return 0 if dtype == "int64" else float("nan")


def _array(
    dtype: str, shape: tuple[int, ...], chunk: tuple[int, ...], names: tuple[str, ...]
) -> dict[str, Any]:
    """Metadata of an array in zarr format 3."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0 if dtype == "int64" else "NaN",
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
        "attributes": {},
        "dimension_names": list(names),
    }


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a group in zarr format 3."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def _encoded(values: Array) -> bytes:
    """A chunk as its file holds it."""
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError(
            'a store needs the package google-crc32c: pip install "backsight[large]"',
            name="google_crc32c",
        ) from error
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back from JSON, keys in order."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(meta), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a description that JSON can say: {error}") from error
    return found


def _differences(old: Any, new: Any, name: str) -> Iterator[str]:
    """What differs, by name, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new or type(old) is not type(new):
        yield f"{name} is {_short(old)} in it and {_short(new)} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _digest(folder: Path, root: Mapping[str, Any]) -> str:
    """Of all metadata: a flipped bit in them could change what the results mean."""
    found = hashlib.sha256(json.dumps(root, sort_keys=True).encode())
    for name in _ARRAYS:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            data = (folder / name / _META).read_bytes()
            found.update(f"{name} {len(data)} ".encode() + data)
    return found.hexdigest()


def _write_root(folder: Path, root: Mapping[str, Any]) -> None:
    attributes = {"backsight": {**root, "digest": _digest(folder, root)}}
    store.write_json(folder / _META, _group(attributes))


def _read_root(folder: Path) -> dict[str, Any]:
    """The description of a store, once all metadata are known to be as they were written."""
    path = folder / _META
    try:
        group = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"there is no store at {folder}") from error
    except OSError as error:
        raise OSError(f"cannot read the store {folder}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the store {folder} is damaged: {path} is not JSON") from error
    try:
        attributes = dict(group["attributes"]["backsight"])
        digest = attributes.pop("digest")
        known = attributes["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is no store of occlusion drops, or is damaged") from error
    if known != _FORMAT:
        raise ValueError(f"expected a store of format {_FORMAT}, got {known} in {folder}")
    right = (group.get("zarr_format"), group.get("node_type")) == (3, "group") and (
        digest == _digest(folder, attributes)
    )
    if not right:
        raise ValueError(
            f"the store {folder} is damaged: its metadata are not what was written, so that its "
            "results cannot be trusted"
        )
    return attributes


def _only_remains(folder: Path) -> None:
    """Refuse a folder with anything in it but what a killed `create` has left, and remove that."""
    remains = []
    for entry in os.scandir(folder):
        if entry.name == _LOCK:
            continue
        known = entry.name in _ARRAYS and entry.is_dir(follow_symlinks=False)
        if not known or set(os.listdir(entry.path)) - {_META}:
            raise ValueError(
                f"expected a new or empty folder, and there is {entry.name} in {folder}"
                + (f" without the store's {_META}" if known else "")
            )
        remains.append(entry.path)
    for path in remains:
        shutil.rmtree(path)


def _sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers have left."""
    derived = (Path(place) for top in _DERIVED for place, _, _ in os.walk(folder / top))
    for place in (folder, *(folder / name for name in _ARRAYS), *derived):
        for name in _files(place):
            if _TEMPORARY.fullmatch(name):
                (place / name).unlink(missing_ok=True)


def _files(folder: Path) -> dict[str, int]:
    """The files of a folder by name, with their lengths; none where there is no folder."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            # One may be renamed meanwhile, by another writer.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    found[entry.name] = entry.stat().st_size
    return found


@contextlib.contextmanager
def _sentence(what: str, kept: bool = False) -> Iterator[None]:
    """Errors of the system, in a sentence."""
    try:
        yield
    except OSError as error:
        cause = _FULL.get(error.errno or 0) or error.strerror or str(error)
        rest = "; what is there stays, and the sweep can be taken up again" if kept else ""
        plain = OSError(f"{what}: {cause}{rest}")
        plain.errno = error.errno
        raise plain from error
