"""A model captured as a node table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .build import build
from .export import export
from .node import Graph
from .twin import twin


def capture(
    model: nn.Module,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    sides: Sequence[Tensor] = (),
    within: str = "",
) -> Graph:
    """Capture `model` for images of `shape` (channels, *spatial), for any batch size.

    `sides` are further arguments of the model, batch first, whose shapes and dtypes count. Modules
    are named as they are within the module `within`.

    Raises:
        RefusedError: a batch norm or a dropout of the model is in training mode: its output for an
            image then depends on the batch or on chance.
        CaptureError: torch.export cannot capture the model, or what it captured is no function of
            one image tensor.
    """
    # Without memory: images of any size.
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        # Two samples: a batch of one would be baked into views.
        example = torch.zeros((2, *shape), dtype=dtype, device=device)
        # With two samples each, whatever the batch that came.
        more = [
            torch.zeros((2, *side.shape[1:]), dtype=side.dtype, device=side.device)
            for side in sides
        ]
    return build(export(twin(model), (example, *more)), len(shape) - 1, within)
