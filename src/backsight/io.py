"""Reading photos, of which every ordinary one becomes a uint8 RGB array, and lists of boxes."""

from __future__ import annotations

import csv
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pictures", "read_boxes", "read_image"]

_WHITE = (255, 255, 255, 255)


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a photo as ``(H, W, 3)`` uint8 RGB, upright.

    The camera's EXIF orientation is applied. Transparent pixels are laid over white. 16-bit
    pictures are scaled to 8 bits (65535 becomes 255), grayscale, black-and-white, palette and
    CMYK pictures become RGB, and of an animation the first frame is taken.

    Raises:
        ValueError: there is no such file, it is not a picture, it is truncated or damaged, or its
            pixels have no defined range (floats, 32-bit integers beyond 65535); one sentence with
            the path and the cause.
        ImportError: Pillow is not installed.
    """
    Image = _pillow()
    from PIL import ImageOps, UnidentifiedImageError

    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns about large pictures (and refuses still larger ones by itself).
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return _to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise ValueError(f"cannot read photo {name}: there is no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"cannot read photo {name}: it is a folder") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"cannot read photo {name}: it is not a picture of a known format, or its header is "
            "damaged"
        ) from error
    # Decoders of damaged files raise OSError, SyntaxError, struct.error, zlib.error, EOFError, ...
    except Exception as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        cause = " ".join(cause.split()).rstrip(".") or type(error).__name__
        raise ValueError(f"cannot read photo {name}: {cause}") from error


def pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a folder whose names end like a picture's, by name; hidden ones are left out.

    Raises:
        ValueError: there is none, or the folder cannot be read.
        ImportError: Pillow, which knows the endings, is not installed.
    """
    endings = _pillow().registered_extensions()
    try:
        files = [path for path in Path(folder).iterdir() if path.is_file()]
    except OSError as error:
        raise ValueError(f"cannot read the folder {folder}: {error.strerror}") from error
    found = [
        path for path in files if path.suffix.lower() in endings and not path.name.startswith(".")
    ]
    if not found:
        raise ValueError(f"expected pictures in the folder {os.fspath(folder)}, and there are none")
    return sorted(found)


def read_boxes(path: str | os.PathLike[str]) -> npt.NDArray[np.int64]:
    """Boxes from a file: ``.npy``; ``.json`` (lists of lists); or ``.csv`` (a box a line, after a
    line of names or none).

    Returns:
        int64 of whatever shape is in the file, ``(positions, 4)`` most often: top, left, bottom and
        right in pixels, half-open.

    Raises:
        ValueError: there is no such file, it is of another kind, or it does not hold an array of
            whole numbers; one sentence.
    """
    name = os.fspath(path)
    readers = {".npy": _from_npy, ".json": _from_json, ".csv": _from_csv}
    reader = readers.get(Path(path).suffix.lower())
    if reader is None:
        raise ValueError(f"expected boxes in a file .npy, .json or .csv, got {name}")
    try:
        values = np.asarray(reader(name))
    except OSError as error:
        raise ValueError(f"cannot read the boxes {name}: {error.strerror or error}") from error
    # ragged lists, words among the numbers, damaged headers
    except (ValueError, TypeError, EOFError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(f"cannot read the boxes {name}: {cause}") from error
    if values.dtype.kind not in "iuf" or not bool((values == np.floor(values)).all()):
        raise ValueError(f"expected boxes of whole pixels in {name}, got {values.dtype}")
    return values.astype(np.int64)


def _from_npy(name: str) -> Any:
    return np.load(name, allow_pickle=False)


def _from_json(name: str) -> Any:
    return json.loads(Path(name).read_text(encoding="utf-8"))


def _from_csv(name: str) -> Any:
    with open(name, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not any(word.strip().lstrip("+-").isdigit() for word in rows[0]):
        rows = rows[1:]
    return [[int(word) for word in row] for row in rows]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'reading photos needs Pillow: pip install "backsight[cli]"', name="PIL"
        ) from error
    return Image


def _to_rgb(picture: Any) -> npt.NDArray[np.uint8]:
    """A loaded Pillow picture of any mode as ``(H, W, 3)`` uint8."""
    from PIL import Image

    if picture.mode.startswith("I"):
        # Pillow's own conversion cuts 16-bit values off at 255 instead of scaling them.
        values = np.asarray(picture).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError(
                f"expected pixels of 8 or 16 bits, and they go from {values.min()} to "
                f"{values.max()}"
            )
        gray = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("expected pixels of 8 or 16 bits, and they are floats of unknown range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        sheet = Image.new("RGBA", picture.size, _WHITE)
        picture = Image.alpha_composite(sheet, picture)
    # np.array, not asarray: the caller may write to it.
    return np.array(picture.convert("RGB"), dtype=np.uint8)
