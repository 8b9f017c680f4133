"""The ops of backsight; importing this package registers them as ``torch.ops.backsight.*``."""

import torch  # noqa: F401  (first: its OpenMP library is the one the kernels share)

from backsight.ops import reference
from backsight.ops.heatmap import heatmap
from backsight.ops.occlude import occlude
from backsight.ops.preactivation import preactivation
from backsight.ops.splice import splice

__all__ = ["heatmap", "occlude", "preactivation", "reference", "splice"]
