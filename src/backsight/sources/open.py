"""Which kind of image it is."""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
import torch

from .. import io
from .arrays import InMemory, Npy, Photo, of_tensor
from .source import Source

__all__ = ["open_source"]

_TIFF = tuple(
    order + struct.pack(code + "H", version)
    for order, code in ((b"II", "<"), (b"MM", ">"))
    for version in (42, 43)
)


def open_source(
    image: np.ndarray[Any, Any] | torch.Tensor | str | os.PathLike[str],
    *,
    level: int = 0,
    axes: str | None = None,
) -> Source:
    """An image whose regions are read when they are asked for.

    Args:
        image: an array or tensor (channels, *spatial) of 1 to 3 spatial axes; or the path of a .npy
            file (mapped into memory), a zarr array of format 2 or 3, a group of OME-NGFF multiscale
            images, a TIFF, BigTIFF, OME-TIFF or SVS file, or an ordinary photo, which becomes uint8
            RGB (:func:`backsight.io.read_image`). Of a TIFF with several images the first is taken.
        level: which level of a pyramid; 0 is the largest. Only NGFF and TIFF have more than that.
        axes: what the stored axes are, by the letters C, D, H and W: "HWC", "DHWC", "HW". Arrays,
            .npy and zarr arrays have channels first unless it says otherwise. TIFF and NGFF say
            what their axes are; there the letters are of the axes longer than 1 (and of X and Y).

    Raises:
        ValueError: there is no such file or level, the file is truncated or damaged, its header
            does not fit its size, or it is stored in a way that cannot be read; one sentence.
        TypeError: `image` is none of these.
        ImportError: a package that reads such files is not installed.
    """
    if isinstance(image, torch.Tensor | np.ndarray):
        values = of_tensor(image) if isinstance(image, torch.Tensor) else image
        _only_level(level)
        return InMemory(values, axes)
    if not isinstance(image, str | os.PathLike):
        raise TypeError(f"expected an array, a tensor or a path, got {type(image).__name__}")
    path = os.fspath(image)
    try:
        return _open(path, level, axes)
    except FileNotFoundError as error:
        raise ValueError(f"cannot read the image {path}: there is no such file") from error
    except ImportError:
        raise
    # Readers of damaged files raise OSError, struct.error, KeyError, MemoryError, ...
    except Exception as error:
        if str(error).startswith("cannot read"):
            raise
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        cause = " ".join(cause.split()).rstrip(".") or type(error).__name__
        if not isinstance(error, ValueError | OSError):
            cause = f"its header is damaged ({cause})"
        raise ValueError(f"cannot read the image {path}: {cause}") from error


def _open(path: str, level: int, axes: str | None) -> Source:
    name = os.path.basename(os.path.normpath(path))
    if os.path.isdir(path):
        from .zarrs import open_zarr

        return open_zarr(path, level, axes, name)
    with open(path, "rb") as file:
        magic = file.read(8)
    if magic[:4] in _TIFF:
        from .tiff import open_tiff

        return open_tiff(path, level, axes, name)
    _only_level(level)
    if magic[:6] == b"\x93NUMPY" or path.endswith(".npy"):
        return Npy(path, axes, name)
    if axes is not None:
        raise ValueError("expected no axes=, since a photo says itself what its axes are")
    return Photo(io.read_image(path), "HWC", name)


def _only_level(level: int) -> None:
    if level != 0:
        raise ValueError(
            f"expected level 0, the only one of an image that is no pyramid, got {level}"
        )
