"""TIFF of every kind that tifffile knows: BigTIFF, OME-TIFF, pyramids, tiles, strips, volumes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import digest, geo
from .axes import Axes, named
from .source import Array, Source, Tiled

__all__ = ["MappedTiff", "TiledTiff", "open_tiff"]

#: The axes of a page as tifffile lays it out: planes of samples, depth, rows, columns, samples.
_PAGE = "SZYXS"

# What tifffile logs about a damaged file comes as an error too: not twice on a bare stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_PALETTE = 3
_JPEG = (6, 7, 34892, 33007)


def open_tiff(path: str, level: int, axes: str | None, name: str) -> Source:
    """A level of the first image of a TIFF."""
    tifffile = geo.load_tifffile("reading TIFF")
    file = tifffile.TiffFile(path)
    try:
        if not file.series:
            raise ValueError("expected an image, got a TIFF without pages")
        pyramid = file.series[0].levels
        if not 0 <= level < len(pyramid):
            raise ValueError(f"expected a level from 0 to {len(pyramid) - 1}, got {level}")
        return _of_level(_Level(file, pyramid, level, path, axes), name)
    except BaseException:
        file.close()
        raise


class _Level:
    """A level of a pyramid: where its pages lie in the file, and that they do."""

    def __init__(self, file: Any, pyramid: Any, level: int, path: str, axes: str | None) -> None:
        series = pyramid[level]
        self.file, self.path, self.level = file, path, level
        self.page = series.keyframe
        self.bytes = os.path.getsize(path)
        if series.is_multifile:
            raise ValueError("expected an image in one file, got a part of one in several files")
        if self.page.photometric == _PALETTE:
            raise ValueError("expected values of intensity, got indices into a palette of colours")
        if self.page.dtype is None or self.page.dtype != series.dtype:
            raise ValueError(
                f"expected pixels of integers or floats, got {self.page.bitspersample} bits of "
                f"format {self.page.sampleformat}"
            )
        self.mapped = series.dataoffset
        if self.mapped:
            self.long_enough(sum(self.page.databytecounts))
            self.pages = []
            names, self.shape = series.get_axes(False), series.get_shape(False)
        else:
            self.pages = list(series)
            names, self.shape = self._by_pages(series)
        self.axes = named(names, self.shape, axes)
        self.levels = tuple(_shape_of(each, self.axes) for each in pyramid)
        self.levels = (*self.levels[:level], self.axes.shape(self.shape), *self.levels[level + 1 :])
        self.geo = _geo(self.page, pyramid)

    def _by_pages(self, series: Any) -> tuple[str, tuple[int, ...]]:
        """The axes that count pages, and then a page's own."""
        names, shape = series.get_axes(False), series.get_shape(False)
        rest = math.prod(self.page.shape)
        lead = next((k for k in range(len(shape) + 1) if math.prod(shape[k:]) == rest), None)
        if lead is None or math.prod(shape[:lead]) != len(self.pages):
            raise ValueError(
                f"its header speaks of an image {tuple(shape)} in {len(self.pages)} pages of "
                f"{self.page.shape}"
            )
        return names[:lead] + _PAGE, (*shape[:lead], *self.page.shaped)

    def long_enough(self, length: int) -> None:
        """Refuse a page that says itself to be shorter than its pixels. ImageJ's say nothing."""
        if length < self.page.nbytes and not self.page.is_imagej:
            raise ValueError(
                f"its header does not fit: expected {self.page.nbytes} bytes of pixels in a page, "
                f"got {length}"
            )

    def spans(self) -> Iterator[tuple[Array, Array]]:
        """Offsets and lengths of the stored tiles, page by page; refuses those outside the file."""
        expected = math.prod(self.page.chunked)
        for number, page in enumerate(self.pages):
            if page is None:
                yield np.zeros(expected, np.int64), np.zeros(expected, np.int64)
                continue
            offsets = np.array(page.dataoffsets, dtype=np.int64)
            lengths = np.array(page.databytecounts, dtype=np.int64)
            if not len(offsets) == len(lengths) == expected:
                raise ValueError(
                    f"its header does not fit: expected {expected} tiles or strips in page "
                    f"{number}, got {len(offsets)} offsets and {len(lengths)} lengths"
                )
            beyond = (offsets < 0) | (lengths < 0) | (offsets + lengths > self.bytes)
            self._within(int(beyond.argmax()), bool(beyond.any()), offsets + lengths)
            yield offsets, lengths

    def within(self, start: int, length: int) -> None:
        self._within(0, start + length > self.bytes, np.array([start + length]))

    def _within(self, at: int, beyond: bool, ends: Array) -> None:
        if beyond:
            raise ValueError(
                f"it is truncated, or its header lies: expected tile or strip {at} to end at byte "
                f"{int(ends[at])}, got a file of {self.bytes} bytes"
            )


def _of_level(level: _Level, name: str) -> Source:
    if level.mapped:
        level.within(level.mapped, math.prod(level.shape) * level.page.dtype.itemsize)
        return MappedTiff(level, [int(level.mapped)], name)
    spans = list(level.spans())
    plain = all(page is not None and page.is_final for page in level.pages)
    if not plain or any(offsets[0] == 0 for offsets, _ in spans):
        return TiledTiff(level, spans, name)
    for offsets, lengths in spans:
        level.long_enough(int(lengths.sum()))
        level.within(int(offsets[0]), level.page.nbytes)
    return MappedTiff(level, [int(offsets[0]) for offsets, _ in spans], name)


class _Tiff(Source):
    """What the two have in common."""

    def _take(self, level: _Level) -> None:
        self._path = level.path
        # A number that is in no list has no name.
        compression = level.page.compression
        self._compression = str(getattr(compression, "name", compression))
        self.geo = level.geo

    def fingerprint(self) -> str:
        return digest.of_file(self._path, self._about())

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"compression": self._compression, "geo": self.geo}


class MappedTiff(_Tiff):
    """Pages of plain numbers, one after another: mapped into memory, so that the system reads what
    is touched.
    """

    kind = "tiff"

    def __init__(self, level: _Level, offsets: Sequence[int], name: str) -> None:
        super().__init__(name, level.shape, level.page.dtype, level.axes, level.level, level.levels)
        self._take(level)
        self._mapped = bytes_ = np.memmap(level.path, np.uint8, mode="r")
        stored = level.page.dtype.newbyteorder(level.file.byteorder)
        self._lead = level.shape[: -len(_PAGE)] if len(offsets) > 1 else ()
        shape = level.shape[len(self._lead) :]
        self._pages: list[Array] = [
            np.ndarray(shape, stored, buffer=bytes_, offset=offset) for offset in offsets
        ]
        level.file.close()

    def _region(self, region: tuple[slice, ...]) -> Array:
        pages = self._pages
        if not self._lead:
            return pages[0][region]
        lead, inner = region[: len(self._lead)], region[len(self._lead) :]
        numbers = np.arange(len(pages)).reshape(self._lead)[lead]
        found = np.stack([pages[i][inner] for i in numbers.flat])
        return found.reshape(*numbers.shape, *found.shape[1:])

    def close(self) -> None:
        super().close()
        self._pages = []


class TiledTiff(_Tiff, Tiled):
    """Pages of tiles or strips, compressed or scattered, decoded one by one."""

    kind = "tiff"

    def __init__(self, level: _Level, spans: Sequence[tuple[Array, Array]], name: str) -> None:
        page = level.page
        sizes = (page.tiledepth, page.tilelength, page.tilewidth)
        tile = sizes if page.is_tiled else (1, page.rowsperstrip, page.imagewidth)
        lead = level.shape[: -len(_PAGE)]
        super().__init__(
            name,
            level.shape,
            (*(1 for _ in lead), 1, *tile, level.shape[-1]),
            page.dtype,
            level.axes,
            level.level,
            level.levels,
        )
        self._take(level)
        self._offsets, self._lengths = (np.stack(part) for part in zip(*spans, strict=True))
        self._grid = tuple(-(-n // t) for n, t in zip(level.shape, self.tile, strict=True))
        self._keyframe = page
        self._tables = [None if p is None else p.jpegtables for p in level.pages]
        self._file = level.file
        self._decodable()
        self._handle = os.open(level.path, os.O_RDONLY)

    def _decodable(self) -> None:
        """Refuse a compression that nothing here decodes, before anything is read."""
        try:
            self._keyframe.decode(None, 0)
        except (ImportError, ValueError, NotImplementedError) as error:
            cause = " ".join(str(error).split())
            if "imagecodecs" in cause:
                raise ValueError(
                    f"its compression {self._compression} needs the package imagecodecs: "
                    "pip install imagecodecs"
                ) from error
            raise ValueError(
                f"its compression {self._compression} is not supported: {cause}"
            ) from error

    def _decode(self, index: tuple[int, ...]) -> Array:
        at = int(np.ravel_multi_index(index, self._grid))
        page, segment = divmod(at, self._offsets.shape[1])
        offset, length = int(self._offsets[page, segment]), int(self._lengths[page, segment])
        # Sparse files leave out the tiles that hold nothing.
        data = os.pread(self._handle, length, offset) if offset and length else None
        if data is not None and len(data) < length:
            raise ValueError(f"expected {length} bytes, and the file ends after {len(data)}")
        keyframe = self._keyframe
        more = {}
        if keyframe.compression in _JPEG:
            more = {"jpegtables": self._tables[page], "jpegheader": keyframe.jpegheader}
        values, _, shape = keyframe.decode(data, segment, **more)
        if values is None:
            values = np.full(shape, keyframe.nodata, self.dtype)
        lead = len(self._grid) - len(_PAGE) + 1
        found: Array = values.reshape((1,) * lead + values.shape)
        return found

    def close(self) -> None:
        if not self._closed:
            os.close(self._handle)
            self._file.close()
        super().close()


def _shape_of(series: Any, axes: Axes) -> tuple[int, ...]:
    """(channels, *spatial) of another level with these axes."""
    names, shape = series.get_axes(False), series.get_shape(False)
    sizes: dict[str, int] = {}
    for name, n in zip(names, shape, strict=True):
        letter = {"X": "W", "Y": "H", "Z": "D", "C": "C", "S": "C"}.get(name, "_")
        sizes[letter] = sizes.get(letter, 1) * n
    spatial = [c for c in "DHW" if c in axes.letters]
    return (sizes.get("C", 1), *(sizes.get(c, 1) for c in spatial))


def _geo(page: Any, pyramid: Any) -> dict[str, Any] | None:
    """The GeoTIFF tags of a level; those of the largest, scaled, where it has none of its own."""
    own, base = geo.of_page(page), geo.of_page(pyramid[0].keyframe)
    placed = {"ModelPixelScale", "ModelTransformation"}
    if not base or placed & own.keys() or page is pyramid[0].keyframe:
        return own or base or None
    own.pop("ModelTiepoint", None)  # it says nothing without a scale
    across = pyramid[0].keyframe.imagewidth / page.imagewidth
    down = pyramid[0].keyframe.imagelength / page.imagelength
    return geo.scaled(base | own, across, down)
