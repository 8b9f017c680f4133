"""backsight looks back through a convnet: which pixels a decision hangs on."""

import backsight.ops  # noqa: F401  (registers torch.ops.backsight.*)
from backsight._version import __version__

__all__ = ["__version__"]
