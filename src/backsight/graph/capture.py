"""A model captured as a node table."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .build import build
from .export import export
from .node import Graph
from .twin import twin

#: From this number of bytes on, the example is made of untouched pages; from the other on, of
#: nothing, since even addresses may run out.
_LARGE, _ENORMOUS = 1 << 20, 1 << 28
#: Of Linux; Python has a name for it from 3.13 on.
_MAP_NORESERVE = 0x4000


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
    # Two samples: a batch of one would be baked into views.
    example = _zeros((2, *shape), dtype, device)
    # With two samples each, whatever the batch that came.
    more = [side.new_zeros((2, *side.shape[1:])) for side in sides]
    return build(export(twin(model), (example, *more)), len(shape) - 1, within)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory as long as nobody looks at them, and the capture does not: images
    may be larger than the memory.
    """
    size = prod(shape) * dtype.itemsize
    if size >= _ENORMOUS:
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
            return torch.zeros(shape, dtype=dtype, device=device)
    if device.type != "cpu" or size < _LARGE or sys.platform != "linux":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return torch.frombuffer(pages, dtype=dtype).reshape(shape)
