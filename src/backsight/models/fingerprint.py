"""Whether a model is still the one that was captured."""

from __future__ import annotations

import enum
import functools
import types
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Values that are told apart by themselves.
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.memory_format,
    slice,
)


class Marks:
    """Stand-ins for values, hashable and equal as long as nothing has changed.

    They hold on to nothing but plain values. `complete` becomes False where something was met that
    may change unseen: an object or a function of the user's own, which may refer to anything.
    """

    def __init__(self) -> None:
        self.complete = True
        self._seen: set[int] = set()

    def module(self, module: nn.Module) -> Any:
        """Changes when a parameter, a buffer, a layer, a hook or an attribute does; an attribute of
        a class is taken for a constant.
        """
        marks: list[Any] = []
        named = list(module.named_modules())
        self._seen.update(id(one) for _, one in named)
        for name, one in named:
            others = [
                (k, self.value(v))
                for k, v in vars(one).items()
                if k not in ("_parameters", "_buffers", "_modules")
            ]
            marks.append((name, id(type(one)), *others))
        tensors = (*module.parameters(), *module.buffers())
        return (*marks, *map(self.value, tensors))

    def value(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            version = None if value.is_inference() else value._version
            shape = tuple(value.shape), value.dtype
            return id(value), value.data_ptr(), version, shape, _sums(value)
        if isinstance(value, _PLAIN):
            return type(value).__name__, value
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return "array", value.shape, str(value.dtype), hash(value.tobytes())
        if isinstance(value, list | tuple | set | frozenset):
            return type(value).__name__, *map(self.value, value)
        if isinstance(value, dict):
            return "dict", *((self.value(k), self.value(v)) for k, v in value.items())
        if isinstance(value, nn.Module):
            # One in a list, say, is no part of the tree.
            return id(value), None if id(value) in self._seen else self.module(value)
        if isinstance(value, functools.partial):
            return "partial", *map(self.value, (value.func, value.args, value.keywords))
        if isinstance(value, types.MethodType):
            self.complete = self.complete and isinstance(value.__self__, nn.Module)
            return id(value.__func__), id(value.__self__)
        if isinstance(value, types.BuiltinFunctionType):
            return value.__qualname__, id(value)
        if isinstance(value, types.FunctionType) and value.__module__.startswith("torch."):
            return value.__qualname__, id(value.__code__)
        self.complete = False
        return type(value).__name__, id(value)


def _sums(tensor: Tensor) -> tuple[float, ...]:
    """A sum of all values, and one with weights by their places: edits through `.data` leave no
    other trace.
    """
    if not tensor.numel() or tensor.is_meta or tensor.layout != torch.strided:
        return ()
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    if not values.is_floating_point() or values.dtype.itemsize < 4:
        values = values.float()
    form = torch.channels_last if values.ndim == 4 else torch.contiguous_format
    dense = values.is_contiguous() or values.is_contiguous(memory_format=form)
    flat = values.as_strided((values.numel(),), (1,)) if dense else values.flatten()
    weights = _weights(values.dtype, values.device)
    rows = len(flat) // len(weights)
    whole = flat[: rows * len(weights)].view(rows, len(weights)) @ weights
    rest = flat[rows * len(weights) :]
    by_row = torch.arange(1, rows + 1, dtype=whole.dtype, device=whole.device)
    return float(flat.sum()), float(whole @ by_row), float(rest @ weights[: len(rest)])


@lru_cache(maxsize=4)
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    """No two alike, in no order."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1024, generator=generator, dtype=torch.float64).to(device, dtype) + 0.5
