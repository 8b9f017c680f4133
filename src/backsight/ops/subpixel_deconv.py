"""subpixel_deconv: transposed convolution by output phases, without inserted zeros."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backsight import _C
from backsight.ops._launch import KEYS, is_plain, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    check_subpixel_deconv,
    check_subpixel_deconv_out,
    deconv_channels_last,
    empty_dense,
    laid_out,
    lies,
)
from backsight.ops.packs import KeptFilter, can_pack

Ints = tuple[int, ...]

#: What BACKSIGHT_DECONV may be.
PATHS = ("auto", "phase", "direct", "torch")

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_CONV_TRANSPOSE = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


class _Phase(NamedTuple):
    """The outputs ``first + i * stride`` of one axis: a convolution of x at stride 1, whose tap m,
    counted from the filter's end, is weight[tap + (taps - 1 - m) * step]."""

    first: int  # output
    outputs: int
    tap: int  # the first tap of weight
    step: int  # from tap to tap
    taps: int  # 0: no tap of the filter ever falls on these outputs
    start: int  # the input that output `first` meets at m = 0; may lie outside x
    dilation: int  # inputs from tap to tap


def _phases(n: int, k: int, stride: int, padding: int, dilation: int, size: int) -> list[_Phase]:
    """The phases of one axis: n inputs, k taps, `size` outputs."""
    common = math.gcd(stride, dilation)
    phases = []
    for first in range(min(stride, size)):
        place = first + padding  # on the axis before it is cropped: input * stride + tap * dilation
        tap = next((t for t in range(min(k, stride)) if (place - t * dilation) % stride == 0), k)
        step, inputs = stride // common, dilation // common
        taps = len(range(tap, k, step))
        count = len(range(first, size, stride))
        start = (place - tap * dilation) // stride - (taps - 1) * inputs
        phases.append(_Phase(first, count, tap, step, taps, start, inputs))
    return phases


class _Plan(NamedTuple):
    """What does not depend on the values: worked out once for each kind of call."""

    shape: Ints  # of the result
    strides: Ints
    channels_last: bool  # the layout of the result
    path: str  # that "auto" takes
    how: str  # that "phase" takes: "product", "joint" or "each"
    turn: bool  # "torch" runs channels last, whatever the caller's layout is
    code: int  # of the dtype
    kernel: Ints
    packed: bool  # weight is contiguous
    call: _C.PlannedDeconv | None  # of our own kernel on the CPU, without a ReLU
    keeps: bool  # "torch" gains by a filter in oneDNN's layout


# Channels of a group up to which our own kernel is the faster one.
_NARROW = 8
# Output channels up to which a filter's phases fill the vectors that one phase would not.
_FEW = 4

# By axes: a filter of so many values is worth keeping in oneDNN's layout, for so many pixels.
_LONG, _PIXELS = {1: 1 << 18, 2: 3 << 18}, {1: 1 << 12, 2: 1 << 10}

# Products in a call that takes no time, so that the least overhead decides.
_TINY = 1 << 13


def _choice(
    dtype: torch.dtype,
    size: Ints,
    weight: Ints,
    stride: Ints,
    groups: int,
    dilation: Ints,
    outputs: int,
    channels_last: bool,
) -> tuple[str, bool]:
    """The path of "auto" on the CPU, and whether torch's runs channels last for a contiguous
    result. Measured: see bench/NOTES.md."""
    into, onto, *kernel = weight[0] // groups, *weight[1:]
    own = dilation[-1] == 1 or kernel[-1] == 1  # else our kernel goes pixel by pixel
    if own and outputs * into * math.prod(kernel) <= _TINY * math.prod(stride):
        return "direct", False
    if groups > 1:
        # torch's bfloat16 is slow for single channels alone.
        narrow = 1 if dtype == torch.bfloat16 else _NARROW
        return ("direct" if own and max(into, onto) <= narrow else "torch"), False
    dims, pixels = len(size), math.prod(size)
    spread = max(stride) > 1
    joint = max(dilation) == 1 and dtype not in (torch.float64, torch.float16)
    if onto <= _FEW:
        if joint and spread and dims > 1:
            return "phase", False
        if own and dtype != torch.float64 and (spread or not channels_last):
            return "direct", False
    if dtype != torch.float32 or channels_last or dims == 1:
        return "torch", False
    if tuple(kernel) == stride:
        return ("phase" if pixels >= 784 and joint else "torch"), False
    return "torch", pixels >= (256 if dims == 2 else 4096)


def _keeps(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether "torch" gains by a filter that is in oneDNN's layout already: where laying it out
    takes long beside the products, of which each of its values makes one a pixel of x."""
    dims, pixels = x.dim() - 2, x.shape[0] * math.prod(x.shape[2:])
    if dims > 2 or not 0 < pixels <= _PIXELS[dims] or weight.numel() < _LONG[dims]:
        return False
    dense = weight.is_contiguous() or lies(weight, True)
    return dense and groups == 1 and x.dtype == torch.float32 and can_pack(x.dtype)


@lru_cache(maxsize=1024)
def _plan(
    dtype: torch.dtype,
    x_shape: Ints,
    x_stride: Ints,
    weight_shape: Ints,
    weight_stride: Ints,
    bias_shape: Ints | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
    on_cpu: bool,
) -> _Plan:
    """Refuses bad arguments in a sentence."""
    x = torch.empty_strided(x_shape, x_stride, dtype=dtype, device="meta")
    weight = torch.empty_strided(weight_shape, weight_stride, dtype=dtype, device="meta")
    bias = None if bias_shape is None else x.new_empty(bias_shape)
    shape = check_subpixel_deconv(
        x, weight, bias, stride, padding, output_padding, groups, dilation
    )
    kernel = weight_shape[2:]
    last = deconv_channels_last(x, weight)
    strides = empty_dense(x, shape, last).stride()
    path, turn = "torch", False
    if on_cpu:
        geometry = x_shape[2:], weight_shape, stride, groups, dilation
        path, turn = _choice(dtype, *geometry, math.prod(shape), last)
    how = "each"
    if groups == 1 and max(dilation) == 1 and dtype != torch.float16:
        how = "joint"
        products = kernel == stride and max(output_padding) == 0 and dtype != torch.bfloat16
        if products and not last and x.is_contiguous():
            how = "product"
    call = None
    if on_cpu:
        call = _C.PlannedDeconv(
            *(DTYPES[dtype], False, groups, kernel, stride, padding, dilation),
            *(x_shape, x_stride, shape, strides),
        )
    dense = x.is_contiguous() or lies(x, True)
    keeps = dense and path == "torch" and on_cpu and _keeps(x, weight, groups)
    return _Plan(
        shape,
        strides,
        last,
        path,
        how,
        turn,
        DTYPES[dtype],
        tuple(kernel),
        weight.is_contiguous(),
        call,
        keeps,
    )


def _planned(x: Tensor, weight: Tensor, bias: Tensor | None, args: tuple[Any, ...]) -> _Plan:
    if (
        weight.dtype != x.dtype
        or weight.device != x.device
        or (bias is not None and (bias.dtype != x.dtype or bias.device != x.device))
    ):
        check_subpixel_deconv(x, weight, bias, *args)
    return _plan(
        x.dtype,
        x.shape,
        x.stride(),
        weight.shape,
        weight.stride(),
        None if bias is None else bias.shape,
        *args,
        x.is_cpu,
    )


def forced_path(op: str = "subpixel_deconv") -> str:
    """The path that the environment forces, or "auto"."""
    forced = _C.getenv("BACKSIGHT_DECONV") or "auto"
    if forced not in PATHS:
        raise ValueError(
            f"{op}: expected BACKSIGHT_DECONV to be {', '.join(PATHS[:-1])} or "
            f"{PATHS[-1]}, got {forced!r}"
        )
    return forced


def _path(plan: _Plan, kept: KeptFilter | None = None) -> str:
    """The path that the environment forces, or the plan's own; "kept" where a filter gains by being
    kept, and can be."""
    forced = forced_path()
    if forced != "auto":
        return forced
    return "kept" if plan.keeps and kept is not None else plan.path


def _widened(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What torch's convolutions are given: on the CPU they would add up in float16."""
    if x.dtype != torch.float16 or not x.is_cpu:
        return x, weight, bias
    return x.float(), weight.float(), None if bias is None else bias.float()


def _by_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, args: tuple[Any, ...], plan: _Plan, relu: bool
) -> Tensor:
    stride, padding, output_padding, groups, dilation = args
    x, weight, bias = _widened(x, weight, bias)
    turn = plan.turn and x.is_cpu
    if turn:
        x = _turned(x)
    # Of several groups oneDNN is up to three times slower with a bias than without. (What is
    # bfloat16 would be rounded twice.)
    apart = bias if groups > 1 and x.is_cpu and x.dtype != torch.bfloat16 else None
    y = _CONV_TRANSPOSE[x.dim() - 2](
        x,
        weight,
        None if apart is not None else bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
    )
    if apart is not None:
        y.add_(apart.view(-1, *[1] * (x.dim() - 2)))
    if turn and lies(y, True):
        return _turned_back(y, relu)
    return y.relu_() if relu else y


def _by_kept(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    args: tuple[Any, ...],
    plan: _Plan,
    kept: KeptFilter,
) -> Tensor:
    """torch's transposed convolution of two axes, by a filter that is in oneDNN's layout."""
    stride, padding, output_padding, dilation = (list(a) for a in (*args[:3], args[4]))
    line = x.dim() == 3
    x = _turned(x)
    if line:  # a picture of one row
        batch, channels, n = x.shape
        x = x.as_strided((batch, channels, 1, n), (channels * n, 1, channels * n, channels))
        stride, dilation = [1, *stride], [1, *dilation]
        padding, output_padding = [0, *padding], [0, *output_padding]

    def pack() -> Tensor:
        plain = weight.detach().unsqueeze(2) if line else weight.detach()
        result: Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            plain, padding, output_padding, stride, dilation, 1, x.shape
        )
        return result

    packed = kept.get(weight, (x.shape, args), pack)
    y: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
        x, packed, bias, padding, output_padding, stride, dilation, 1, "none", [], ""
    )
    y = laid_out(y, True)
    if line:
        y = y.squeeze(2)
    return y.as_strided(plan.shape, plan.strides) if plan.channels_last else _turned_back(y, False)


def _by_each(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    args: tuple[Any, ...],
    plan: _Plan,
    relu: bool,
    out: Tensor,
) -> Tensor:
    """Each phase is torch's own convolution of a part of x, written to its places in `out`."""
    stride, padding, _, groups, dilation = args
    dims = x.dim() - 2
    x, weight, bias = _widened(x, weight, bias)
    # (groups, in / groups, out / groups, *kernel), turned to (groups, out / groups, in / groups).
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    axes = zip(
        x.shape[2:], weight.shape[2:], stride, padding, dilation, plan.shape[2:], strict=True
    )
    for phases in itertools.product(*(_phases(*axis) for axis in axes)):
        places = out
        for axis, (p, s) in enumerate(zip(phases, stride, strict=True)):
            places = places[(slice(None),) * (axis + 2) + (slice(p.first, None, s),)]
        if any(p.taps == 0 for p in phases):  # no tap of the filter falls here
            value = x.new_zeros(out.shape[1]) if bias is None else bias
            places.copy_((value.relu() if relu else value).view(-1, *[1] * dims))
            continue
        part, filters = x, turned
        around: list[int] = []
        for axis, p in enumerate(phases):
            taps = [p.tap + m * p.step for m in range(p.taps)][::-1]
            filters = filters.index_select(axis + 3, torch.tensor(taps, device=x.device))
            # The inputs that are met, and how many of them lie before and after x.
            lo, hi = p.start, p.start + p.outputs + (p.taps - 1) * p.dilation
            first = min(max(lo, 0), x.shape[axis + 2])
            last = min(max(hi, first), x.shape[axis + 2])
            before = min(max(-lo, 0), hi - lo)
            part = part.narrow(axis + 2, first, last - first)
            around = [before, hi - lo - before - (last - first), *around]
        if any(around):
            part = nn.functional.pad(part, around)
        y = _CONV[dims](
            part, filters.flatten(0, 1), bias, 1, 0, [p.dilation for p in phases], groups
        )
        places.copy_(y.relu_() if relu else y)
    return out


def _interleave(
    phases: Tensor,
    strides: tuple[int, int, Ints, Ints],
    stride: Ints,
    first: Ints,
    bias: Tensor | None,
    relu: bool,
    out: Tensor,
) -> None:
    """strides: elements from entry to entry and from channel to channel, and of each axis from
    cell to cell and from phase to phase."""
    launch(
        "deconv_interleave",
        out,
        DTYPES[out.dtype],
        relu,
        phases.data_ptr(),
        *strides,
        stride,
        first,
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.shape,
        out.stride(),
    )


def _turned(x: Tensor) -> Tensor:
    """x channels last."""
    if lies(x, True):
        return x
    if not x.is_contiguous() or x.dtype not in DTYPES or x.numel() == 0:
        return laid_out(x, True)
    batch, channels, *size = x.shape
    pixels = math.prod(size)
    result = empty_dense(x, x.shape, True)
    # Its pixels are channels, and its channels are a line of cells, to the kernel.
    flat = result.as_strided((batch, pixels, channels), (pixels * channels, channels, 1))
    _interleave(x, (x.stride(0), 1, (pixels,), (0,)), (1,), (0,), None, False, flat)
    return result


def _turned_back(y: Tensor, relu: bool) -> Tensor:
    """y, whose channels are last, contiguous."""
    result = y.new_empty(y.shape)
    dims = y.dim() - 2
    strides = (y.stride(0), 1, y.stride()[2:], (0,) * dims)
    _interleave(y, strides, (1,) * dims, (0,) * dims, None, relu, result)
    return result


def _steps(*sizes: int) -> Ints:
    """The strides of a dense array of these sizes."""
    return tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))


def _by_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    relu: bool,
    out: Tensor,
) -> None:
    """Where stride and kernel are the same every output meets one input: all phases are one product
    of matrices."""
    size = x.shape[2:]
    pixels, taps, channels = math.prod(size), math.prod(stride), weight.shape[1]
    y = torch.matmul(weight.flatten(1).t(), x.flatten(2))  # (B, out * taps, pixels)
    strides = (
        channels * taps * pixels,
        taps * pixels,
        _steps(*size),
        tuple(n * pixels for n in _steps(*stride)),
    )
    _interleave(y, strides, stride, padding, bias, relu, out)


def pack_deconv(weight: Tensor, stride: Sequence[int]) -> Tensor:
    """The filter's phases as one filter at stride 1: (prod(stride) * out, in, *taps), channels
    last, flipped, and filled with zeros where a phase has fewer taps. One group, no dilation."""
    dims = weight.dim() - 2
    kernel = weight.shape[2:]
    missing = [-k % s for k, s in zip(kernel, stride, strict=True)]
    if any(missing):
        weight = nn.functional.pad(weight, [n for m in missing[::-1] for n in (0, m)])
    sizes = [(-(-k // s), s) for k, s in zip(kernel, stride, strict=True)]
    weight = weight.reshape(*weight.shape[:2], *(n for pair in sizes for n in pair))
    taps, phases = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    packed = weight.permute(*phases, 1, *taps, 0).flip([*range(dims + 1, 2 * dims + 1)])
    return packed.flatten(0, dims).contiguous().movedim(-1, 1)


def _by_joint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    relu: bool,
    out: Tensor,
) -> None:
    """All phases as one convolution with prod(stride) times the output channels."""
    lines = x.dim() == 3 and x.is_contiguous() and out.is_contiguous()
    packed = pack_deconv(weight, stride)
    x = x if lines else _turned(x)
    channels, phases = out.shape[1], math.prod(stride)
    around, first = [], []
    axes = zip(x.shape[2:], out.shape[2:], packed.shape[2:], stride, padding, strict=True)
    for n, size, taps, s, p in axes:
        # Cell a of a phase meets inputs a - taps + 1 to a.
        pad = max(taps - 1 - p // s, (size - 1 + p) // s - (n - 1), 0)
        around.append(pad)
        first.append(p + (pad - taps + 1) * s)
    if lines:  # the phases of a channel one after the other, each a line of cells
        packed = packed.unflatten(0, (phases, channels)).transpose(0, 1).flatten(0, 1).contiguous()
        if bias is not None:
            bias = bias.repeat_interleave(phases)
        y = torch.conv1d(x, packed, bias, 1, around).contiguous()
        n = y.shape[2]
        lie: tuple[int, int, Ints, Ints] = (channels * phases * n, phases * n, (1,), (n,))
        return _interleave(y, lie, stride, tuple(first), None, relu, out)
    if bias is not None:
        bias = bias.repeat(phases)
    if x.dim() == 3:  # torch knows channels last from two axes on
        y = torch.conv2d(x.unsqueeze(2), packed.unsqueeze(2), bias, 1, [0, *around]).squeeze(2)
    else:
        y = _CONV[x.dim() - 2](x, packed, bias, 1, around)
    y = laid_out(y, True)
    cells = y.shape[2:]
    lie = (
        math.prod(cells) * phases * channels,
        1,
        tuple(n * phases * channels for n in _steps(*cells)),
        tuple(n * channels for n in _steps(*stride)),
    )
    return _interleave(y, lie, stride, tuple(first), None, relu, out)


def _by_phase(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    args: tuple[Any, ...],
    plan: _Plan,
    relu: bool,
    out: Tensor,
) -> Tensor:
    if plan.how == "each" or not x.is_cpu or out.numel() == 0:
        return _by_each(x, weight, bias, args, plan, relu, out)
    stride, padding, *_ = args
    run = _by_product if plan.how == "product" else _by_joint
    bias = None if bias is None else bias.contiguous()
    dense = (
        out if lies(out, plan.channels_last) else out.new_empty_strided(plan.shape, plan.strides)
    )
    run(x, weight, bias, stride, padding, relu, dense)
    return out if dense is out else out.copy_(dense)


def _by_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    args: tuple[Any, ...],
    plan: _Plan,
    relu: bool,
    out: Tensor,
) -> Tensor:
    stride, padding, _, groups, dilation = args
    if not plan.packed:
        weight = weight.contiguous()  # named: the copies live until the kernel has run
    if bias is not None:
        bias = bias.contiguous()
    given = out
    if plan.call is not None and not relu and out.stride() == plan.strides:
        plan.call.run(
            torch.get_num_threads(),
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
        )
        return out
    if out.stride() != plan.strides:
        out = out.new_empty_strided(plan.shape, plan.strides)
    launch(
        "subpixel_deconv",
        x,
        plan.code,
        relu,
        groups,
        plan.kernel,
        stride,
        padding,
        dilation,
        x.data_ptr(),
        x.shape,
        x.stride(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        plan.shape,
        plan.strides,
    )
    return given if given is out else given.copy_(out)


def _subpixel_deconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    relu: bool = False,
    out: Tensor | None = None,
    kept: KeptFilter | None = None,
) -> Tensor:
    args = tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation)
    plan = _planned(x, weight, bias, args)
    path = _path(plan, kept)
    if path == "kept":
        assert kept is not None
        return _by_kept(x, weight, bias, args, plan, kept)
    if path == "torch":
        y = _by_torch(x, weight, bias, args, plan, relu)
        if out is not None:
            return out.copy_(y)
        if y.stride() == plan.strides and y.dtype == x.dtype:
            return y
        y = y.to(x.dtype)
        y = _turned(y) if plan.channels_last and y.is_cpu else laid_out(y, plan.channels_last)
        # What has one pixel, or none, lies either way: only its strides may be others.
        return y.as_strided(plan.shape, plan.strides)
    if out is None:
        out = x.new_empty_strided(plan.shape, plan.strides)
    run = _by_kernel if path == "direct" else _by_phase
    return run(x, weight, bias, args, plan, relu, out)


def _subpixel_deconv_out(*args: Any, out: Tensor) -> Tensor:
    check_subpixel_deconv_out(*args, out=out)
    relu = args[8] if len(args) > 8 else False
    return _subpixel_deconv(*args[:8], relu, out)  # type: ignore[call-arg]


for _key in KEYS:
    LIBRARY.impl("subpixel_deconv", _subpixel_deconv, _key)
    LIBRARY.impl("subpixel_deconv.out", _subpixel_deconv_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *geometry = inputs
    relu = len(geometry) > 5 and geometry.pop()
    ctx.save_for_backward(x, weight, *([output] if relu else []))
    ctx.geometry = geometry
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, *rest = ctx.saved_tensors
    if rest:  # as at torch's relu: nothing passes where the result is 0, and everything where NaN
        grad = grad.masked_fill(rest[0] <= 0, 0)
    stride, padding, output_padding, groups, dilation = ctx.geometry
    wanted = [bool(w) for w in ctx.needs_input_grad[:3]]
    found = torch.ops.aten.convolution_backward.default(
        grad,
        x,
        weight,
        [grad.shape[1]] if ctx.has_bias else None,
        stride,
        padding,
        dilation,
        True,
        output_padding,
        groups,
        wanted,
    )
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), *[None] * 6


torch.library.register_autograd(
    "backsight::subpixel_deconv", _backward, setup_context=_setup_context, lib=LIBRARY
)


def register_autocast(name: str, cast_at: Sequence[int]) -> None:
    """Under autocast the arguments of op `name` at these places, tensors or None, are cast as torch
    casts those of its own convolutions."""
    op = getattr(torch.ops.backsight, name).default

    def register(device: str) -> None:
        key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")
        keys = torch._C.DispatchKeySet(key)

        def cast(x: Tensor | None) -> Tensor | None:
            if x is None or not x.is_floating_point() or x.dtype == torch.float64:
                return x
            return x.to(torch.get_autocast_dtype(device))

        def call(*args: Any) -> Tensor:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                result: Tensor = op(*(cast(x) if i in cast_at else x for i, x in enumerate(args)))
                return result

        LIBRARY.impl(name, call, f"Autocast{device.upper()}")

    for device in ("cpu", "cuda"):
        register(device)


register_autocast("subpixel_deconv", (0, 1, 2))


# Bound once, as in _launch.
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch.is_autocast_enabled


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """`is_plain` of x, and parameters that ask for nothing either."""
    if not is_plain(x) or _is_autocast_enabled("cpu" if x.is_cpu else "cuda"):
        return False
    grad = _is_grad_enabled()
    for p in (weight,) if bias is None else (weight, bias):
        if not (type(p) is nn.Parameter or type(p) is Tensor) or p.is_neg() or p._is_zerotensor():
            return False
        if grad and p.requires_grad:
            return False
    return True


def _geometry(
    x: Tensor,
    stride: Sequence[int] | None,
    padding: Sequence[int] | None,
    output_padding: Sequence[int] | None,
    groups: int,
    dilation: Sequence[int] | None,
) -> tuple[Sequence[int], Sequence[int], Sequence[int], int, Sequence[int]]:
    dims = max(x.dim() - 2, 1)
    return (
        [1] * dims if stride is None else stride,
        [0] * dims if padding is None else padding,
        [0] * dims if output_padding is None else output_padding,
        groups,
        [1] * dims if dilation is None else dilation,
    )


def deconv_path(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    groups: int = 1,
    dilation: Sequence[int] | None = None,
) -> str:
    """The path that `subpixel_deconv` takes for these arguments, by shapes, dtype and layout:

    - "phase": each output phase is a small dense convolution by torch, interleaved on write;
    - "direct": a kernel of our own;
    - "torch": torch's transposed convolution.

    The environment variable BACKSIGHT_DECONV forces one of them, where it is one that can do the
    case, or leaves the choice to shapes, dtype and layout ("auto", or not set).

    Raises:
        TypeError, ValueError: as `subpixel_deconv`, or a wrong value of the variable.
    """
    stride, padding, output_padding, groups, dilation = _geometry(
        x, stride, padding, output_padding, groups, dilation
    )
    args = tuple(stride), tuple(padding), tuple(output_padding), groups, tuple(dilation)
    return _path(_planned(x, weight, bias, args))


def subpixel_deconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    groups: int = 1,
    dilation: Sequence[int] | None = None,
    relu: bool = False,
    *,
    out: Tensor | None = None,
    kept: KeptFilter | None = None,
) -> Tensor:
    """Transposed convolution in sub-pixel form (Shi et al., "Is the deconvolution layer the same as
    a convolutional layer?", 2016): the outputs fall into prod(stride) phases, each of which meets
    its own taps of the filter, so each is a small dense convolution of x at stride 1, and no
    inserted zero is ever multiplied.

    The values are those of ``torch.conv_transpose1d``, ``2d`` and ``3d``: on each axis output
    ``i * stride - padding + k * dilation`` gets x at i times tap k of the filter. Differentiable in
    `x`, `weight` and `bias`, any number of times; with `out` it is not. `deconv_path` tells how it
    is computed.

    Args:
        x: (B, in, *S) with D spatial axes, any strides; float64, float32, float16 or bfloat16. What
            is 16 bits wide is added up in float32.
        weight: (in, out / groups, *kernel), of the dtype of x.
        bias: (out,), added to every pixel, also where no tap falls.
        stride, dilation: D positive ints each, in pixels; 1 if not given.
        padding: D ints, pixels cut off at both ends of each axis; 0 if not given.
        output_padding: D ints, pixels added at the end of each axis, each below the axis's stride
            or dilation; 0 if not given.
        groups: groups of channels that do not see each other.
        relu: take ``max(y, 0)`` of the result; NaN stays.
        out: (B, out, *O) to write to. Must not overlap the inputs.
        kept: what holds `weight` in other layouts from call to call, for a module that calls again
            with the same one; used where no gradient, `relu` or `out` is asked for.

    Returns:
        (B, out, *O) with O = (S - 1) * stride - 2 * padding + (kernel - 1) * dilation +
        output_padding + 1, channels last where x or weight is, else contiguous; or `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device, no pixel left, or a wrong value of
            BACKSIGHT_DECONV.
        RuntimeError: a gradient is asked for with `out`.
    """
    args = _geometry(x, stride, padding, output_padding, groups, dilation)
    if out is None and _is_plain(x, weight, bias):
        return _subpixel_deconv(x, weight, bias, *args, relu, None, None if relu else kept)
    if out is not None:
        result: Tensor = torch.ops.backsight.subpixel_deconv.out(
            x, weight, bias, *args, relu, out=out
        )
    else:
        result = torch.ops.backsight.subpixel_deconv.default(x, weight, bias, *args, relu)
    return result
