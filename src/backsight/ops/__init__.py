"""The ops of backsight; importing this package registers them as ``torch.ops.backsight.*``."""

import torch  # noqa: F401  (first: its OpenMP library is the one the kernels share)

from backsight.ops import reference
from backsight.ops._schemas import DTYPES, RULES
from backsight.ops.heatmap import heatmap
from backsight.ops.max_gather import max_gather
from backsight.ops.max_pool import max_pool
from backsight.ops.max_unpool import max_unpool
from backsight.ops.occlude import occlude
from backsight.ops.preactivation import preactivation
from backsight.ops.rectify import rectify
from backsight.ops.relu import relu
from backsight.ops.splice import splice
from backsight.ops.subpixel_deconv import deconv_path, subpixel_deconv
from backsight.ops.unpool_deconv import unpool_deconv, unpool_deconv_path

__all__ = [
    "DTYPES",
    "RULES",
    "deconv_path",
    "heatmap",
    "max_gather",
    "max_pool",
    "max_unpool",
    "occlude",
    "preactivation",
    "rectify",
    "reference",
    "relu",
    "splice",
    "subpixel_deconv",
    "unpool_deconv",
    "unpool_deconv_path",
]
