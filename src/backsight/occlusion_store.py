"""The raw result of a large occlusion sweep as a zarr store, filled unit by unit.

A store is a folder in zarr format 3 with a group of arrays: ``drops`` and, where they are kept,
``scores`` (positions, outputs), ``boxes`` (positions, 2·D) int64 and ``base`` (outputs,) fp64. A
*unit* is a run of positions, and is one chunk of each array but ``base``: one file, little-endian,
uncompressed, with a CRC-32C. A unit shorter than the longest is padded at its end with rows of NaN
and with boxes of zeros, so that unit ``u`` begins at row ``u`` times the longest; where all units
but the last are of one length, rows are positions and there is no padding.

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
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import store

__all__ = ["Store", "status", "tidy"]

Array = npt.NDArray[Any]
Pathlike = str | os.PathLike[str]

_FORMAT = 1
_META = "zarr.json"
_LOCK = ".lock"
_ARRAYS = ("base", "boxes", "drops", "scores")
_COLUMNS = {"boxes": "bound", "drops": "output", "scores": "output"}
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
class _Layout:
    """What fixes the arrays of a store.

    Attributes:
        units: positions per unit.
        outputs: columns of `drops`.
        axes: spatial axes of the image, and half the columns of `boxes`.
        dtype: of `drops` and `scores`.
        scores: whether there are any.
    """

    units: tuple[int, ...]
    outputs: int
    axes: int
    dtype: str
    scores: bool

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

    @property
    def arrays(self) -> dict[str, tuple[str, int]]:
        """Those with a chunk per unit, in the order in which they are written: dtype, columns."""
        found = {"boxes": ("int64", 2 * self.axes)}
        if self.scores:
            found["scores"] = (self.dtype, self.outputs)
        return found | {"drops": (self.dtype, self.outputs)}

    def length(self, name: str) -> int:
        """Bytes of a chunk's file."""
        dtype, columns = self.arrays[name]
        return self.longest * columns * np.dtype(dtype).itemsize + 4

    def metadata(self) -> dict[str, dict[str, Any]]:
        """The zarr metadata of each array."""
        rows = self.longest * (len(self.units) - 1) + self.units[-1]
        found = {
            name: _array(
                dtype, (rows, columns), (self.longest, columns), ("position", _COLUMNS[name])
            )
            for name, (dtype, columns) in self.arrays.items()
        }
        return found | {"base": _array("float64", (self.outputs,), (self.outputs,), ("output",))}

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
        finished: whether :meth:`finish` has been called, in this process or an earlier one.
        found: what :meth:`finish` was given.
    """

    def __init__(self, path: Path, lock: _Lock | None, root: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = lock
        self._layout = _Layout.of(root["layout"])
        self.meta: dict[str, Any] = root["meta"]
        self.finished: bool = root["finished"]
        self.found: dict[str, Any] = root["found"]
        self.units = self._layout.units
        self._right: set[int] = set()

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
        scores: bool = False,
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
            scores: whether scores are stored beside the drops.
            shared: whether other writers of the same `meta` may work on the store at the same time,
                on units of their own.

        Raises:
            ValueError: the folder holds something, or the arguments are of no store.
            RuntimeError: another run is writing to the store.
            OSError: the folder cannot be written to, or the disk is full; one sentence.
        """
        layout = _layout(units, outputs, axes, dtype, scores)
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
        scores: bool = False,
        shared: bool = False,
    ) -> Store:
        """:meth:`open` the store where there is one, and :meth:`create` it where there is none."""
        layout = _layout(units, outputs, axes, dtype, scores)
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
        names = [set(_files(self.path / name)) for name in self._layout.arrays]
        for unit in range(len(self.units)):
            if unit in self._right or not all(_chunk(unit) in found for found in names):
                continue
            if all(self._chunk(name, unit) is not None for name in self._layout.arrays):
                self._right.add(unit)
        return frozenset(self._right)

    @property
    def base(self) -> Array | None:
        """(outputs,) fp64, the scores of the unoccluded image; None before they are written."""
        return self._payload("base", "c.0", (self._layout.outputs,), "float64")

    def write_base(self, base: npt.ArrayLike) -> None:
        """Store the scores of the unoccluded image, (outputs,) fp64."""
        values = np.asarray(base)
        if values.shape != (self._layout.outputs,) or values.dtype != np.float64:
            raise ValueError(
                f"expected base of shape ({self._layout.outputs},) float64, got {values.shape} "
                f"{values.dtype}"
            )
        self._put("base", "c.0", values, "the base scores")

    def write(
        self,
        unit: int,
        drops: npt.ArrayLike,
        scores: npt.ArrayLike | None = None,
        *,
        boxes: npt.ArrayLike,
    ) -> None:
        """Store a unit, whole or not at all.

        Args:
            unit: its number.
            drops: (positions of the unit, outputs), of the store's dtype.
            scores: the same, where the store has scores.
            boxes: (positions of the unit, 2·D) integers.

        Raises:
            ValueError: there is no such unit, or an array is of another shape or dtype.
            OSError: the disk is full, or the folder cannot be written to; units that are there
                stay.
        """
        if not 0 <= unit < len(self.units):
            raise ValueError(f"expected a unit from 0 to {len(self.units) - 1}, got {unit}")
        given = {"boxes": boxes, "scores": scores, "drops": drops}
        if (scores is not None) != self._layout.scores:
            raise ValueError(
                f"expected {'scores' if self._layout.scores else 'no scores'}, since that is how "
                f"the store {self.path} was made"
            )
        chunks = {
            name: self._padded(name, unit, np.asarray(given[name])) for name in self._layout.arrays
        }
        # Drops come last: a unit that has some is all there.
        for name, values in chunks.items():
            self._put(name, _chunk(unit), values, f"unit {unit}")
        self._right.add(unit)

    def read(self, unit: int) -> dict[str, Array]:
        """The arrays of a unit by name, without padding.

        Raises:
            ValueError: it is not done.
        """
        found = {}
        for name in self._layout.arrays:
            values = self._chunk(name, unit) if 0 <= unit < len(self.units) else None
            if values is None:
                raise ValueError(f"expected a unit that is done in the store {self.path}: {unit}")
            found[name] = values[: self.units[unit]]
        return found

    def finish(self, found: Mapping[str, Any] | None = None) -> None:
        """Say that the sweep is complete, and close the store.

        Args:
            found: what is known at the end, such as the noise floor; values that JSON can say.

        Raises:
            ValueError: units, or the base scores, are missing.
        """
        missing = sorted(set(range(len(self.units))) - self.done)
        if missing or self.base is None:
            what = f"{len(missing)} units, the first {missing[0]}" if missing else "the base scores"
            raise ValueError(f"expected a complete store, and {self.path} misses {what}")
        root = _read_root(self.path) | {"finished": True, "found": _plain(found or {})}
        self._writable()
        with _sentence(f"cannot finish the store {self.path}"):
            _write_root(self.path, root)
        self.finished, self.found = True, root["found"]
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

    def _put(self, array: str, chunk: str, values: Array, what: str) -> None:
        self._writable()
        data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        with _sentence(f"cannot write {what} of the store {self.path}", kept=True):
            store.write_bytes(self.path / array / chunk, data + _checksum(data))

    def _padded(self, name: str, unit: int, values: Array) -> Array:
        dtype, columns = self._layout.arrays[name]
        shape = (self.units[unit], columns)
        fits = values.dtype.kind in "iu" if name == "boxes" else values.dtype == dtype
        if values.shape != shape or not fits:
            raise ValueError(
                f"expected {name} of shape {shape} {dtype}, got {values.shape} {values.dtype}"
            )
        whole = np.full((self._layout.longest, columns), _fill(dtype), dtype)
        whole[: len(values)] = values
        return whole

    def _chunk(self, name: str, unit: int) -> Array | None:
        dtype, columns = self._layout.arrays[name]
        return self._payload(name, _chunk(unit), (self._layout.longest, columns), dtype)

    def _payload(self, name: str, chunk: str, shape: tuple[int, ...], dtype: str) -> Array | None:
        """A chunk's values, or None where it is missing or damaged."""
        try:
            data = (self.path / name / chunk).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(f"cannot read the store {self.path}: {error.strerror}") from error
        stored = np.dtype(dtype).newbyteorder("<")
        length = int(np.prod(shape)) * stored.itemsize
        if len(data) != length + 4 or _checksum(data[:-4]) != data[-4:]:
            return None
        return np.frombuffer(data, stored, count=int(np.prod(shape))).reshape(shape).astype(dtype)


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
    sizes = [(_files(folder / name), layout.length(name)) for name in layout.arrays]
    done = [
        unit
        for unit in range(len(layout.units))
        if all(found.get(_chunk(unit)) == length for found, length in sizes)
    ]
    return {
        "units": len(layout.units),
        "units_done": len(done),
        "positions": sum(layout.units),
        "positions_done": sum(layout.units[unit] for unit in done),
        "finished": root["finished"] and len(done) == len(layout.units),
    }


def tidy(path: Pathlike) -> None:
    """Remove the lock and temporary files of killed writers, where nobody is writing and the folder
    can be written to.
    """
    folder = Path(path)
    if (folder / _LOCK).exists():
        with contextlib.suppress(OSError, RuntimeError):
            _Lock(folder, shared=False).release()


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


def _layout(
    units: Sequence[int], outputs: int, axes: int, dtype: npt.DTypeLike, scores: bool
) -> _Layout:
    return _Layout(
        tuple(map(int, units)), int(outputs), int(axes), np.dtype(dtype).name, bool(scores)
    )


def _make(folder: Path, meta: dict[str, Any], layout: _Layout) -> dict[str, Any]:
    """Write the metadata of a store that is empty yet."""
    _only_remains(folder)
    root = {
        "format": _FORMAT,
        "layout": layout.plain(),
        "meta": meta,
        "finished": False,
        "found": {},
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


def _chunk(unit: int) -> str:
    return f"c.{unit}.0"


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
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    store.write_json(folder / _META, group)


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
    for place in (folder, *(folder / name for name in _ARRAYS)):
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
