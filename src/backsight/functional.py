"""Functions with the signatures of `torch.nn.functional`: max pooling and unpooling by ops that
keep one byte where torch keeps an index of eight, and transposed convolution without zeros.

Shapes: D is 1, 2 or 3 as the name says; inputs are (N, C, *S) or (C, *S) with D spatial axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from backsight import ops
from backsight.ops.packs import KeptFilter

__all__ = [
    "Switches",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "max_pool1d",
    "max_pool1d_switches",
    "max_pool2d",
    "max_pool2d_switches",
    "max_pool3d",
    "max_pool3d_switches",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]

Ints = int | Sequence[int]

_MAX_POOL: dict[int, Any] = {
    1: torch.nn.functional.max_pool1d,
    2: torch.nn.functional.max_pool2d,
    3: torch.nn.functional.max_pool3d,
}
_CONV_TRANSPOSE = {
    1: torch.conv_transpose1d,
    2: torch.conv_transpose2d,
    3: torch.conv_transpose3d,
}

_NO_TANGENTS = "switches have neither tangents nor batches of their own"


class Switches(NamedTuple):
    """Where the maxima of a pool were.

    Attributes:
        offsets: (N, C, *O) or (C, *O), the raster index of each maximum in its window: uint8, int16
            where a window has more than 256 cells, or int32 beyond 32768.
        size: D ints, the spatial size of what was pooled.
        kernel, stride, padding, dilation: D ints each, the pool's.
    """

    offsets: Tensor
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def indices(self) -> Tensor:
        """The indices that torch returns: int64, in the flattened map, shaped as `offsets`."""
        device = self.offsets.device
        dims = len(self.size)
        steps = [math.prod(self.size[axis + 1 :]) for axis in range(dims)]
        table = [
            sum(k * d * n for k, d, n in zip(cell, self.dilation, steps, strict=True))
            for cell in itertools.product(*map(range, self.kernel))
        ]
        result = torch.tensor(table, device=device)[self.offsets.long()]
        for axis in range(dims):
            windows = torch.arange(self.offsets.shape[axis - dims], device=device)
            starts = (windows * self.stride[axis] - self.padding[axis]) * steps[axis]
            result += starts.view(-1, *[1] * (dims - 1 - axis))
        return result


def _ints(op: str, name: str, value: Ints, dims: int) -> tuple[int, ...]:
    """`value` as one int for each axis."""
    if type(value) is tuple and len(value) == dims:
        return value
    values = (value,) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= dims
    if len(values) != dims:
        raise ValueError(f"{op}: expected {name} to be an int or {dims} ints, got {value}")
    return values


def _batched(op: str, input: Tensor, dims: int) -> tuple[Tensor, bool]:
    """`input` (N, C, *S), and whether it came without N."""
    if input.dim() not in (dims + 1, dims + 2):
        raise ValueError(
            f"{op}: expected an input of {dims + 1} or {dims + 2} axes, ([N,] C, *S), "
            f"got {tuple(input.shape)}"
        )
    return (input.unsqueeze(0), True) if input.dim() == dims + 1 else (input, False)


def _pool(
    op: str,
    dims: int,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
) -> tuple[Tensor, Switches]:
    if _transformed():
        raise NotImplementedError(f"{op}: expected no transform of torch.func: {_NO_TANGENTS}")
    x, alone = _batched(op, input, dims)
    kernel = _ints(op, "kernel_size", kernel_size, dims)
    # torch takes an empty stride as none
    given = stride is not None and stride != () and stride != []
    pool = (
        kernel,
        _ints(op, "stride", stride, dims) if given and stride is not None else kernel,
        _ints(op, "padding", padding, dims),
        _ints(op, "dilation", dilation, dims),
    )
    y, offsets = ops.max_pool(x, *pool, ceil_mode)
    if alone:
        y, offsets = y.squeeze(0), offsets.squeeze(0)
    return y, Switches(offsets, tuple(x.shape[2:]), *pool)


def _unpooled_size(
    op: str,
    windows: Sequence[int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_size: Sequence[int] | None,
) -> tuple[int, ...]:
    """torch's rule: `output_size`, less than a stride away from what the windows span."""
    dims = len(kernel)
    span = tuple(
        (o - 1) * s + k - 2 * p for o, k, s, p in zip(windows, kernel, stride, padding, strict=True)
    )
    if output_size is None:
        return span
    size = tuple(output_size)
    if len(size) == dims + 2:
        size = size[2:]
    near = zip(size, span, stride, strict=len(size) == dims)
    if len(size) != dims or not all(n - s < out < n + s and out >= 0 for out, n, s in near):
        raise ValueError(
            f"{op}: expected an output_size of {dims} ints, each less than the stride of "
            f"{list(stride)} away from {list(span)}, got {list(output_size)}"
        )
    return size


def _scatter(op: str, y: Tensor, indices: Tensor, size: tuple[int, ...]) -> Tensor:
    """Values (N, C, *O) at the cells that `indices` name; of several the last in raster order."""
    if indices.dtype != torch.int64:
        raise TypeError(f"{op}: expected indices of dtype int64, or Switches, got {indices.dtype}")
    cells = math.prod(size)
    flat, values = indices.flatten(2), y.flatten(2)
    message = f"{op}: expected indices in [0, {cells}), one for each cell of {list(size)}"
    if torch.compiler.is_compiling():
        torch._assert_async(((flat >= 0) & (flat < cells)).all(), message)
    elif flat.numel() > 0:
        low, high = (int(bound) for bound in torch.aminmax(flat))
        if low < 0 or high >= cells:
            raise ValueError(f"{message}, got {low if low < 0 else high}")
    # The last window of each cell, counted from 1; 0, of value 0, where there is none.
    numbers = torch.arange(1, flat.shape[2] + 1, device=y.device).expand_as(flat)
    last = torch.zeros(*flat.shape[:2], cells, dtype=torch.int64, device=y.device)
    last = last.scatter_reduce(2, flat, numbers, "amax")
    padded = torch.nn.functional.pad(values, (1, 0))
    return padded.gather(2, last).view(*y.shape[:2], *size)


def _unpool(
    op: str,
    dims: int,
    input: Tensor,
    indices: Tensor | Switches,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    output_size: Sequence[int] | None,
) -> Tensor:
    y, alone = _batched(op, input, dims)
    kernel = _ints(op, "kernel_size", kernel_size, dims)
    step = kernel if stride is None else _ints(op, "stride", stride, dims)
    pad = _ints(op, "padding", padding, dims)
    size = _unpooled_size(op, y.shape[2:], kernel, step, pad, output_size)
    found = indices.offsets if isinstance(indices, Switches) else indices
    if found.shape != input.shape or found.device != input.device:
        raise ValueError(
            f"{op}: expected indices of shape {tuple(input.shape)} on {input.device}, "
            f"got {tuple(found.shape)} on {found.device}"
        )
    if alone:
        found = found.unsqueeze(0)
    if isinstance(indices, Switches):
        if _transformed():
            raise NotImplementedError(f"{op}: expected indices under torch.func: {_NO_TANGENTS}")
        if (kernel, step, pad) != indices[2:5]:
            raise ValueError(
                f"{op}: expected the kernel_size, stride and padding of the switches, "
                f"{indices[2:5]}, got {(kernel, step, pad)}"
            )
        x = ops.max_unpool(y, found, *indices[2:], size, "set")
    else:
        x = _scatter(op, y, found, size)
    return x.squeeze(0) if alone else x


@overload
def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> Tensor: ...
@overload
def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    *,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...
def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool1d`, with torch's own indices: int64, in the flattened map.

    What is kept for the gradient is one byte a window; see `max_pool1d_switches`.
    """
    args = kernel_size, stride, padding, dilation, ceil_mode
    if _transformed():
        result: Tensor = _MAX_POOL[1](input, *args, return_indices=return_indices)
        return result
    y, switches = _pool("max_pool1d", 1, input, *args)
    return (y, switches.indices()) if return_indices else y


def max_pool1d_switches(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Switches]:
    """`max_pool1d` that returns `Switches` in place of indices: an eighth of their memory."""
    name = "max_pool1d_switches"
    return _pool(name, 1, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_unpool1d(
    input: Tensor,
    indices: Tensor | Switches,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """`torch.nn.functional.max_unpool1d`, of indices or of `Switches`.

    Where several windows name a cell the last in raster order counts, on every device, and the
    others get the gradient 0. Differentiable in `input`; allowed under
    `torch.use_deterministic_algorithms`.

    Args:
        input: (N, C, *O) or (C, *O).
        indices: int64 of the shape of input, cells of the flattened map; or `Switches`, whose pool
            the other arguments must name.
        kernel_size, stride, padding: the pool's; without stride, the kernel's.
        output_size: 1 ints, or 3 with batch and channels in front; less than a stride away
            from what the windows span, which is the default.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or size; an index outside of the map.
    """
    name = "max_unpool1d"
    return _unpool(name, 1, input, indices, kernel_size, stride, padding, output_size)


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> Tensor: ...
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    *,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...
def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool2d`, with torch's own indices: int64, in the flattened map.

    What is kept for the gradient is one byte a window; see `max_pool2d_switches`.
    """
    args = kernel_size, stride, padding, dilation, ceil_mode
    if _transformed():
        result: Tensor = _MAX_POOL[2](input, *args, return_indices=return_indices)
        return result
    y, switches = _pool("max_pool2d", 2, input, *args)
    return (y, switches.indices()) if return_indices else y


def max_pool2d_switches(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Switches]:
    """`max_pool2d` that returns `Switches` in place of indices: an eighth of their memory."""
    name = "max_pool2d_switches"
    return _pool(name, 2, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_unpool2d(
    input: Tensor,
    indices: Tensor | Switches,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """`torch.nn.functional.max_unpool2d`, of indices or of `Switches`.

    Where several windows name a cell the last in raster order counts, on every device, and the
    others get the gradient 0. Differentiable in `input`; allowed under
    `torch.use_deterministic_algorithms`.

    Args:
        input: (N, C, *O) or (C, *O).
        indices: int64 of the shape of input, cells of the flattened map; or `Switches`, whose pool
            the other arguments must name.
        kernel_size, stride, padding: the pool's; without stride, the kernel's.
        output_size: 2 ints, or 4 with batch and channels in front; less than a stride away
            from what the windows span, which is the default.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or size; an index outside of the map.
    """
    name = "max_unpool2d"
    return _unpool(name, 2, input, indices, kernel_size, stride, padding, output_size)


@overload
def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
) -> Tensor: ...
@overload
def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    *,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...
def max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool3d`, with torch's own indices: int64, in the flattened map.

    What is kept for the gradient is one byte a window; see `max_pool3d_switches`.
    """
    args = kernel_size, stride, padding, dilation, ceil_mode
    if _transformed():
        result: Tensor = _MAX_POOL[3](input, *args, return_indices=return_indices)
        return result
    y, switches = _pool("max_pool3d", 3, input, *args)
    return (y, switches.indices()) if return_indices else y


def max_pool3d_switches(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Switches]:
    """`max_pool3d` that returns `Switches` in place of indices: an eighth of their memory."""
    name = "max_pool3d_switches"
    return _pool(name, 3, input, kernel_size, stride, padding, dilation, ceil_mode)


def max_unpool3d(
    input: Tensor,
    indices: Tensor | Switches,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """`torch.nn.functional.max_unpool3d`, of indices or of `Switches`.

    Where several windows name a cell the last in raster order counts, on every device, and the
    others get the gradient 0. Differentiable in `input`; allowed under
    `torch.use_deterministic_algorithms`.

    Args:
        input: (N, C, *O) or (C, *O).
        indices: int64 of the shape of input, cells of the flattened map; or `Switches`, whose pool
            the other arguments must name.
        kernel_size, stride, padding: the pool's; without stride, the kernel's.
        output_size: 3 ints, or 5 with batch and channels in front; less than a stride away
            from what the windows span, which is the default.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or size; an index outside of the map.
    """
    name = "max_unpool3d"
    return _unpool(name, 3, input, indices, kernel_size, stride, padding, output_size)


def conv_transpose(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
    kept: KeptFilter | None = None,
) -> Tensor:
    """Transposed convolution along `dims` axes; the functions and modules of that many say how.

    Args:
        kept: what holds the weight in other layouts from call to call, for a module.
    """
    if _transformed():
        geometry = stride, padding, output_padding, groups, dilation
        result: Tensor = _CONV_TRANSPOSE[dims](input, weight, bias, *geometry)
        return result
    op = f"conv_transpose{dims}d"
    x, alone = _batched(op, input, dims)
    y = ops.subpixel_deconv(
        x,
        weight,
        bias,
        _ints(op, "stride", stride, dims),
        _ints(op, "padding", padding, dims),
        _ints(op, "output_padding", output_padding, dims),
        groups,
        _ints(op, "dilation", dilation, dims),
        kept=kept,
    )
    return y.squeeze(0) if alone else y


def _transformed() -> bool:
    """Whether a transform of `torch.func` is at work, or differentiation in forward mode: the op
    has no rules for them, and torch would take its tangents for 0."""
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """`torch.nn.functional.conv_transpose1d` by `ops.subpixel_deconv`.

    Args:
        input: (N, C, *S) or (C, *S), of one dtype with weight and bias; within `torch.autocast`
            all three are cast, as torch casts them.
        weight: (C, out // groups, K).
        bias: (out,).
        stride, dilation: positive, one or 1.
        padding: what is cropped at each end, one or 1.
        output_padding: what is added behind, one or 1; less than the stride or than the dilation.
        groups: divides C.

    Returns:
        (N, out, *O) or (out, *O) with ``O = (S - 1) * stride - 2 * padding + dilation * (K - 1) +
        output_padding + 1`` on each axis.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or size; a result without a cell.
    """
    return conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d` by `ops.subpixel_deconv`.

    Args:
        input: (N, C, *S) or (C, *S), of one dtype with weight and bias; within `torch.autocast`
            all three are cast, as torch casts them.
        weight: (C, out // groups, KH, KW).
        bias: (out,).
        stride, dilation: positive, one or 2.
        padding: what is cropped at each end, one or 2.
        output_padding: what is added behind, one or 2; less than the stride or than the dilation.
        groups: divides C.

    Returns:
        (N, out, *O) or (out, *O) with ``O = (S - 1) * stride - 2 * padding + dilation * (K - 1) +
        output_padding + 1`` on each axis.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or size; a result without a cell.
    """
    return conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """`torch.nn.functional.conv_transpose3d` by `ops.subpixel_deconv`.

    Args:
        input: (N, C, *S) or (C, *S), of one dtype with weight and bias; within `torch.autocast`
            all three are cast, as torch casts them.
        weight: (C, out // groups, KD, KH, KW).
        bias: (out,).
        stride, dilation: positive, one or 3.
        padding: what is cropped at each end, one or 3.
        output_padding: what is added behind, one or 3; less than the stride or than the dilation.
        groups: divides C.

    Returns:
        (N, out, *O) or (out, *O) with ``O = (S - 1) * stride - 2 * padding + dilation * (K - 1) +
        output_padding + 1`` on each axis.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or size; a result without a cell.
    """
    return conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)
