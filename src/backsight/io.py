"""Reading photos: every ordinary picture becomes one uint8 RGB array."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_image"]

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
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            'reading photos needs Pillow: pip install "backsight[cli]"', name="PIL"
        ) from error

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
