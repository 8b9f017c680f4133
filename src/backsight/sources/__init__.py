"""Images too large to hold, read region by region: arrays, .npy, zarr, TIFF pyramids, photos."""

from .open import open_source
from .source import Source

__all__ = ["Source", "open_source"]
