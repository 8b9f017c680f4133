"""What a source is: regions of an image, exactly and from any thread."""

from __future__ import annotations

import itertools
import math
import mmap
import operator
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .axes import Axes

__all__ = ["Source", "Tiled", "checked_dtype"]

Array = npt.NDArray[Any]

#: Decoded tiles that are kept, in bytes, unless `cache` says otherwise.
CACHE_BYTES = 64 << 20

#: A tile has to be decoded whole; larger ones are refused.
TILE_BYTES = 1 << 30


class Source(ABC):
    """An image, read region by region. A context manager, which closes it.

    Attributes:
        shape: (channels, *spatial).
        dtype: of the values, in the machine's byte order; as stored, neither scaled nor inverted.
        levels: (channels, *spatial) of each level of the pyramid; one for an image that is none.
        level: which of them this is.
        geo: the GeoTIFF tags of this level, name to numbers or text; None where there are none.
    """

    kind = ""

    def __init__(
        self,
        name: str,
        stored: Sequence[int],
        dtype: npt.DTypeLike,
        axes: Axes,
        level: int = 0,
        levels: Sequence[Sequence[int]] = (),
    ) -> None:
        self.name = name
        self._axes = axes
        self.shape = axes.shape(stored)
        if 0 in self.shape:
            raise ValueError(f"expected an image with pixels, got (channels, *size) {self.shape}")
        self.dtype: np.dtype[Any] = checked_dtype(dtype)
        self.level = level
        self.levels = tuple(map(tuple, levels)) or (self.shape,)
        self.geo: dict[str, Any] | None = None
        self._mapped: np.memmap[Any, Any] | None = None
        self._closed = False

    def read(self, box: Sequence[int]) -> Array:
        """The pixels of a box.

        Args:
            box: 2·D integers, half-open, starts then ends, inside the image and not empty.

        Returns:
            (channels, *sizes of the box), C-contiguous, the caller's own.

        Raises:
            ValueError: the box does not lie in the image, or what lies there cannot be read; one
                sentence.
        """
        if self._closed:
            raise ValueError(f"expected an open image, and {self.name} has been closed")
        region = self._axes.region(self._checked(box), self.shape[0])
        stored = self._region(region)
        dropped = tuple(d for d, letter in enumerate(self._axes.letters) if letter == "_")
        values = stored.transpose(*dropped, *self._axes.order)
        values = values.reshape(values.shape[len(dropped) :])
        if "C" not in self._axes.letters:
            values = values[None]
        found = np.array(values, dtype=self.dtype, order="C")
        if self._mapped is not None:
            _forget(self._mapped)
        return found

    def _checked(self, box: Sequence[int]) -> list[int]:
        size = self.shape[1:]
        try:
            values = [operator.index(value) for value in box]
        except TypeError:
            raise ValueError(f"expected a box of integers, starts then ends, got {box!r}") from None
        axes = len(size)
        if len(values) != 2 * axes or not all(
            0 <= start < stop <= n
            for start, stop, n in zip(values[:axes], values[axes:], size, strict=True)
        ):
            raise ValueError(
                f"expected a box, {axes} starts then {axes} ends, that holds a pixel and lies in "
                f"the image {size}, got {values}"
            )
        return values

    @abstractmethod
    def _region(self, region: tuple[slice, ...]) -> Array:
        """The values of a region of the stored array, in its own order of axes."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest that is equal for equal images, whatever they are called and wherever they lie,
        and differs for another level, other axes or another file format.

        Up to 64 MiB of file (or of array in memory) are digested whole. Of larger ones the length,
        the header, the end and some thousand blocks in between are: it is a matter of milliseconds,
        and a few changed pixels that leave the length of the file as it was may go unnoticed.
        """

    def describe(self) -> dict[str, Any]:
        """What the image is, in plain data that JSON can say."""
        return {
            "kind": self.kind,
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "axes": self._axes.letters,
            "level": self.level,
            "levels": [list(shape) for shape in self.levels],
        }

    def _about(self) -> tuple[object, ...]:
        """How the bytes are read: what a fingerprint says beside them."""
        return self.kind, self.shape, self.dtype.name, self._axes.letters, self.level

    def close(self) -> None:
        """Let go of the file; a second time is no error."""
        self._mapped = None
        self._closed = True

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.shape} {self.dtype.name}>"


class Tiled(Source):
    """A source of tiles that are decoded one by one; a few of them are kept.

    Attributes:
        decoded: how many tiles have been decoded so far.
    """

    def __init__(
        self,
        name: str,
        stored: Sequence[int],
        tile: Sequence[int],
        dtype: npt.DTypeLike,
        axes: Axes,
        level: int = 0,
        levels: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(name, stored, dtype, axes, level, levels)
        self.tile = tuple(tile)
        needed = math.prod(map(min, stored, self.tile)) * self.dtype.itemsize
        if needed > TILE_BYTES:
            raise ValueError(
                f"expected tiles, strips or chunks of {TILE_BYTES >> 20} MiB at most, got one of "
                f"{needed >> 20} MiB, {self.tile}: store the image in smaller ones"
            )
        self._kept = _Kept(CACHE_BYTES)
        self.decoded = 0

    def cache(self, limit: int) -> None:
        """Keep at most so many bytes of decoded tiles; the latest stays, however large it is."""
        self._kept.hold(limit)

    @abstractmethod
    def _decode(self, index: tuple[int, ...]) -> Array:
        """The tile at `index` of the grid of tiles, in the stored order of axes; it may end with
        the image.
        """

    def _region(self, region: tuple[slice, ...]) -> Array:
        values = np.empty([part.stop - part.start for part in region], self.dtype)
        touched = [
            range(part.start // size, -(-part.stop // size))
            for part, size in zip(region, self.tile, strict=True)
        ]
        for index in itertools.product(*touched):
            tile = self._kept.get(index, self._counted)
            here, there = [], []
            for i, size, part in zip(index, self.tile, region, strict=True):
                start = max(part.start, i * size)
                stop = min(part.stop, (i + 1) * size)
                here.append(slice(start - i * size, stop - i * size))
                there.append(slice(start - part.start, stop - part.start))
            values[tuple(there)] = tile[tuple(here)]
        return values

    def _counted(self, index: tuple[int, ...]) -> Array:
        try:
            tile = self._decode(index)
        # Codecs raise errors of their own, of a dozen types.
        except Exception as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"cannot read the image {self.name}: its tile {index} is damaged: {cause}"
            ) from error
        self._kept.count(self)
        return tile

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"tile": list(self.tile)}

    def close(self) -> None:
        super().close()
        self._kept.clear()


class _Kept:
    """The tiles used last. Two threads that want the same tile decode it once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._tiles: OrderedDict[Hashable, Array] = OrderedDict()
        self._pending: dict[Hashable, Future[Array]] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple[int, ...], decode: Callable[[tuple[int, ...]], Array]) -> Array:
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
                return tile
            future = self._pending.get(key)
            first = future is None
            if future is None:
                future = self._pending[key] = Future()
        if not first:
            return future.result()
        try:
            tile = decode(key)
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._pending[key]
            self._tiles[key] = tile
            self._bytes += tile.nbytes
            self._trim()
        future.set_result(tile)
        return tile

    def hold(self, limit: int) -> None:
        """Set another limit."""
        with self._lock:
            self._limit = limit
            self._trim()

    def _trim(self) -> None:
        while self._bytes > self._limit and len(self._tiles) > 1:
            self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    def count(self, source: Tiled) -> None:
        with self._lock:
            source.decoded += 1

    def clear(self) -> None:
        with self._lock:
            self._tiles.clear()
            self._bytes = 0


def checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """A dtype of pixels, in the machine's byte order."""
    found = np.dtype(dtype)
    if found.hasobject or found.kind not in "biuf" or found.itemsize > 8:
        raise ValueError(f"expected pixels of integers or floats, got {found}")
    return found.newbyteorder("=")


def _forget(mapped: np.memmap[Any, Any]) -> None:
    """Give the pages of a mapped file that have been read back to the system, which keeps them for
    as long as nobody else needs the memory; to the process they would count as taken.
    """
    pages = getattr(mapped, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
