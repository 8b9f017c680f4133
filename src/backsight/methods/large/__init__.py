"""Occlusion maps of images that do not fit in memory."""

from .fill import fill
from .occlude import large_occlusion
from .read import read_occlusion
from .task import Large, LargePlan, Regions

__all__ = ["Large", "LargePlan", "Regions", "fill", "large_occlusion", "read_occlusion"]
