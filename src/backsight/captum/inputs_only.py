"""Keeps for a backward only what gradients of inputs need, not what those of weights do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class InputsOnly(TorchFunctionMode):
    """A context in which parameters get no gradients, and layers keep no input for them.

    The signal goes back through a convolution by its weights, and through a pool by its switches or
    none; of their inputs only the shape counts, which torch keeps whole. So does a batch norm in
    eval mode. What a layer's weights are computed from, the inputs possibly, keeps its gradient.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if function not in _LAYERS:
            return function(*args, **named)
        args = tuple(map(_constant, args))
        named = {name: _constant(value) for name, value in named.items()}
        x: Any = args[0] if args else named.get("input")
        others = (*args[1:], *(value for name, value in named.items() if name != "input"))
        training = function is F.batch_norm and (named.get("training") or any(args[5:6]))
        needed = any(isinstance(other, Tensor) and other.requires_grad for other in others)
        if needed or training or not _is_droppable(x):
            return function(*args, **named)

        place = _place(x)

        def pack(kept: Tensor) -> Tensor | _Layout:
            if _place(kept) != place:
                return kept
            return _Layout(tuple(kept.shape), kept.stride(), kept.dtype, kept.device)

        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            return function(*args, **named)


def _place(x: Tensor) -> tuple[int, int, torch.dtype]:
    return x.data_ptr(), x.numel(), x.dtype


@dataclass(frozen=True)
class _Layout:
    """What is kept of a tensor whose elements nothing reads."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _unpack(kept: Tensor | _Layout) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    return torch.empty_strided(kept.shape, kept.stride, dtype=kept.dtype, device=kept.device)


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, nn.Parameter) else value


def _is_droppable(x: Any) -> bool:
    return (
        type(x) is Tensor
        and x.requires_grad
        and x.numel() > 0
        and x.layout == torch.strided
        and x.device.type in ("cpu", "cuda")
    )


_LAYERS = {
    *(F.conv1d, F.conv2d, F.conv3d, F.linear, F.batch_norm),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}
