"""Schemas, fake kernels and argument checks of every op, in one place; backends only register.

Shapes: D is the number of spatial axes, 1 to 3, and ``*S`` its sizes. Dense arrays are contiguous
or channels last (``channels_last``, ``channels_last_3d``, and in 1-D the ``(B, C, L)`` view whose
channel stride is 1). All coordinates are int64 and global.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("backsight", "DEF")

# Tensor dtypes and their codes in csrc/ops.h.
DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

_OCCLUDE = "Tensor image, Tensor boxes, Tensor baseline"
_HEATMAP = "Tensor scores, Tensor boxes, int[] size, str reduce"
_POOL = "int[] kernel, int[] stride, int[] padding, int[] dilation"
_WINDOWS_OF_Y = "Tensor? base_index=None, Tensor? y_at=None, Tensor? window_at=None"
_MAX_GATHER = f'Tensor x, Tensor switches, {_POOL}, int[] size, str mode="add", {_WINDOWS_OF_Y}'
_MAX_UNPOOL = (
    f'Tensor y, Tensor switches, {_POOL}, int[] size, str mode="add", bool relu=False, '
    f"{_WINDOWS_OF_Y}"
)
_MAX_POOL = f"Tensor x, {_POOL}, bool ceil_mode=False, bool relu=False"
_PREACTIVATION = "Tensor[] maps, Tensor scale, Tensor shift"
_RECTIFY = (
    "Tensor grad, Tensor? bits, str rule, Tensor? base_index=None, Tensor? window_at=None, "
    "int[]? extent=None, int[]? base_at=None, int[]? tile=None"
)
_RELU = "Tensor x, str rule='gradient'"
_SPLICE = (
    "Tensor base, Tensor base_index, int[] base_at, int[] extent, Tensor patch, Tensor patch_at, "
    "Tensor window_at, int[] size, float outside=0.0"
)
_SUBPIXEL_DECONV = (
    "Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] output_padding, "
    "int groups, int[] dilation, bool relu=False"
)
_UNPOOL_DECONV = (
    f"Tensor y, Tensor switches, {_POOL}, int[] size, Tensor weight, Tensor? bias, "
    "int[] deconv_stride, int[] deconv_padding, int[] output_padding, int groups, "
    f'int[] deconv_dilation, str mode="add", bool relu=False, {_WINDOWS_OF_Y}'
)


#: Rules at a ReLU and their codes in csrc/ops.h.
RULES = {"gradient": 0, "deconvnet": 1, "guided": 2}


def _define(
    name: str,
    arguments: str,
    returns: str = "Tensor",
    out: str = "Tensor(a!) out",
    returns_out: str = "Tensor(a!)",
) -> None:
    """Defines `name` and its overload `name.out`."""
    tags = (torch.Tag.pt2_compliant_tag,)
    LIBRARY.define(f"{name}({arguments}) -> {returns}", tags=tags)
    LIBRARY.define(f"{name}.out({arguments}, *, {out}) -> {returns_out}", tags=tags)


_define("heatmap", _HEATMAP)
_define("max_gather", _MAX_GATHER)
_define(
    "max_pool",
    _MAX_POOL,
    "(Tensor y, Tensor switches)",
    "Tensor(a!) y, Tensor(b!) switches",
    "(Tensor(a!), Tensor(b!))",
)
_define("max_unpool", _MAX_UNPOOL)
_define("occlude", _OCCLUDE)
_define("preactivation", _PREACTIVATION)
_define("rectify", _RECTIFY)
_define(
    "relu",
    _RELU,
    "(Tensor y, Tensor bits)",
    "Tensor(a!) y, Tensor(b!) bits",
    "(Tensor(a!), Tensor(b!))",
)
_define("splice", _SPLICE)
_define("subpixel_deconv", _SUBPIXEL_DECONV)
_define("unpool_deconv", _UNPOOL_DECONV)


# --- layouts ---------------------------------------------------------------------------------


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of `x` (B, C, *S) are denser than its last axis."""
    return x.stride(1) < x.stride(-1)


def empty_like_format(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised dense tensor of `shape` in the memory format, device and, unless another is
    given, dtype of `x`."""
    return empty_dense(x, shape, is_channels_last(x), dtype)


def empty_dense(
    x: Tensor, shape: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """The same, channels last or contiguous as asked for."""
    if not channels_last or len(shape) == 2:
        return x.new_empty(shape, dtype=dtype)
    return x.new_empty_strided(shape, channels_last_stride(shape), dtype=dtype)


def channels_last_stride(shape: Sequence[int]) -> list[int]:
    """The strides of a dense tensor of `shape` (B, C, *S) with its channels last."""
    stride = [1] * len(shape)
    step = shape[1]
    for axis in (*range(len(shape) - 1, 1, -1), 0):
        stride[axis] = step
        step *= shape[axis]
    return stride


def is_dense(x: Tensor) -> bool:
    """Whether `x` (B, C, *S) is contiguous or channels last."""
    if x.is_contiguous():
        return True
    if x.dim() == 3:
        return x.transpose(1, 2).is_contiguous()
    memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.is_contiguous(memory_format=memory_format)


def lies(x: Tensor, channels_last: bool) -> bool:
    """Whether `x` (B, C) or (B, C, *S) is dense in that layout."""
    if not channels_last or x.dim() == 2:
        return x.is_contiguous()
    if x.dim() == 3:
        return x.transpose(1, 2).is_contiguous()
    memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.is_contiguous(memory_format=memory_format)


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """`x`, or a copy of it that is dense in that layout."""
    if lies(x, channels_last):
        return x
    return empty_dense(x, x.shape, channels_last).copy_(x)


# --- the bits of relu ------------------------------------------------------------------------


def packs_channels(x: Tensor) -> bool:
    """Whether the bits of `x` lie along the channels, and not along the last axis."""
    return x.dim() == 2 or is_channels_last(x) or max(x.shape[2:]) == 1


def bits_shape(shape: Sequence[int], channels: bool) -> tuple[int, ...]:
    """The shape of the bits of what has `shape`, by whether they lie along the channels."""
    axis = 1 if channels else len(shape) - 1
    return tuple((n + 7) // 8 if d == axis else n for d, n in enumerate(shape))


# --- checks ----------------------------------------------------------------------------------


def check_array(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{op}: expected {name} of dtype float64, float32, float16 or bfloat16, got {x.dtype}"
        )
    if not 3 <= x.dim() <= 5:
        raise ValueError(
            f"{op}: expected {name} of shape (batch, channels, *spatial) with 1 to 3 spatial axes, "
            f"got {tuple(x.shape)}"
        )


def _check_integers(op: str, name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if x.dtype != torch.int64:
        raise TypeError(f"{op}: expected {name} of dtype int64, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"{op}: expected {name} of shape {shape}, got {tuple(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{op}: expected {name} on {like.device}, got {x.device}")


def _check_same(op: str, name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.dtype != like.dtype:
        raise TypeError(
            f"{op}: expected {name} of the dtype of {like_name}, {like.dtype}, got {x.dtype}"
        )
    if x.device != like.device:
        raise ValueError(
            f"{op}: expected {name} on the device of {like_name}, {like.device}, got {x.device}"
        )


def check_out(op: str, out: Tensor, shape: tuple[int, ...], like_name: str, like: Tensor) -> None:
    """Refuses an `out` of a wrong shape, dtype or device."""
    _check_same(op, "out", out, like_name, like)
    if out.shape != shape:
        raise ValueError(f"{op}: expected out of shape {shape}, got {tuple(out.shape)}")


def _check_no_grad(op: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise RuntimeError(
            f"{op} is inference-only: call it under torch.no_grad() or on detached tensors"
        )


def check_occlude(image: Tensor, boxes: Tensor, baseline: Tensor) -> tuple[int, ...]:
    """Refuses bad arguments of occlude in a sentence; returns the shape of its result."""
    check_array("occlude", "image", image)
    if boxes.dim() == 0:
        raise ValueError("occlude: expected boxes of shape (N, 2 * D), got a scalar")
    count = boxes.shape[0]
    _check_integers("occlude", "boxes", boxes, (count, 2 * (image.dim() - 2)), image)
    _check_same("occlude", "baseline", baseline, "image", image)
    missing = image.dim() - baseline.dim()
    pairs = zip(baseline.shape, image.shape[max(missing, 0) :], strict=False)
    if missing < 0 or any(ours != 1 and ours != theirs for ours, theirs in pairs):
        raise ValueError(
            f"occlude: expected baseline to broadcast to image, {tuple(image.shape)}, "
            f"got {tuple(baseline.shape)}"
        )
    return (image.shape[0] * count, *image.shape[1:])


def check_occlude_out(image: Tensor, boxes: Tensor, baseline: Tensor, out: Tensor) -> None:
    """The same for occlude.out, which has no gradient."""
    shape = check_occlude(image, boxes, baseline)
    _check_no_grad("occlude with out=", image, baseline)
    check_out("occlude", out, shape, "image", image)


def check_heatmap(
    scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str
) -> tuple[int, ...]:
    """Refuses bad arguments of heatmap in a sentence; returns the shape of its result."""
    if scores.dtype not in DTYPES:
        raise TypeError(
            "heatmap: expected scores of dtype float64, float32, float16 or bfloat16, "
            f"got {scores.dtype}"
        )
    if scores.dim() != 2:
        raise ValueError(
            f"heatmap: expected scores of shape (boxes, outputs), got {tuple(scores.shape)}"
        )
    if not 1 <= len(size) <= 3 or min(size) < 0:
        raise ValueError(f"heatmap: expected a size of 1 to 3 non-negative ints, got {list(size)}")
    if reduce not in ("mean", "sum"):
        raise ValueError(f"heatmap: expected reduce to be 'mean' or 'sum', got {reduce!r}")
    _check_integers("heatmap", "boxes", boxes, (scores.shape[0], 2 * len(size)), scores)
    return (scores.shape[1], *size)


def check_heatmap_out(
    scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str, out: Tensor
) -> None:
    """The same for heatmap.out, which has no gradient."""
    shape = check_heatmap(scores, boxes, size, reduce)
    _check_no_grad("heatmap with out=", scores)
    check_out("heatmap", out, shape, "scores", scores)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What values of a dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_preactivation(maps: Sequence[Tensor], scale: Tensor, shift: Tensor) -> tuple[int, ...]:
    """Refuses bad arguments of preactivation in a sentence; returns the shape of its result."""
    op = "preactivation"
    if not maps:
        raise ValueError(f"{op}: expected one map or more, got none")
    first = maps[0]
    check_array(op, "maps[0]", first)
    batch, channels, *size = first.shape
    for i, x in enumerate(maps[1:], 1):
        _check_same(op, f"maps[{i}]", x, "maps[0]", first)
        if x.dim() == first.dim():
            own_batch, own_channels, *own_size = x.shape
            if own_batch == batch and own_size == size:
                channels += own_channels
                continue
        raise ValueError(
            f"{op}: expected maps[{i}] of the batch and the spatial sizes of maps[0], "
            f"{tuple(first.shape)}, got {tuple(x.shape)}"
        )
    dtype = accumulation_dtype(first.dtype)
    for name, values in (("scale", scale), ("shift", shift)):
        if values.dtype != dtype:
            raise TypeError(
                f"{op}: expected {name} of dtype {dtype} for maps of {first.dtype}, "
                f"got {values.dtype}"
            )
        if values.shape != (channels,):
            raise ValueError(
                f"{op}: expected {name} of shape ({channels},), one number a channel, "
                f"got {tuple(values.shape)}"
            )
        if values.device != first.device:
            raise ValueError(
                f"{op}: expected {name} on the device of maps[0], {first.device}, "
                f"got {values.device}"
            )
    _check_no_grad(op, *maps, scale, shift)
    return (batch, channels, *size)


def check_splice(
    base: Tensor,
    base_index: Tensor,
    base_at: Sequence[int],
    extent: Sequence[int],
    patch: Tensor,
    patch_at: Tensor,
    window_at: Tensor,
    size: Sequence[int],
) -> tuple[int, ...]:
    """Refuses bad arguments of splice in a sentence; returns the shape of its result."""
    check_array("splice", "base", base)
    _check_same("splice", "patch", patch, "base", base)
    dims = base.dim() - 2
    if patch.dim() != base.dim():
        raise ValueError(
            f"splice: expected patch with {dims} spatial axes like base, got {tuple(patch.shape)}"
        )
    windows = patch.shape[0]
    channels = base.shape[1]
    if patch.shape[1] != channels:
        raise ValueError(
            f"splice: expected patch with the {channels} channels of base, got {patch.shape[1]}"
        )
    for name, values in (("base_at", base_at), ("extent", extent), ("size", size)):
        if len(values) != dims:
            raise ValueError(
                f"splice: expected {dims} ints in {name}, one a spatial axis, got {list(values)}"
            )
    if min(size) < 0:
        raise ValueError(f"splice: expected a size of no negative ints, got {list(size)}")
    _check_integers("splice", "base_index", base_index, (windows,), base)
    _check_integers("splice", "patch_at", patch_at, (windows, dims), base)
    _check_integers("splice", "window_at", window_at, (windows, dims), base)
    _check_no_grad("splice", base, patch)
    return (windows, channels, *size)


def _check_pool(
    op: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Refuses the geometry of a pool over a map of `size`."""
    dims = len(size)
    if not len(kernel) == len(stride) == len(padding) == len(dilation) == dims:
        names = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        name, values = next((n, v) for n, v in names.items() if len(v) != dims)
        raise ValueError(
            f"{op}: expected {dims} ints in {name}, one a spatial axis, got {list(values)}"
        )
    for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True):
        if k < 1 or s < 1 or d < 1:
            raise ValueError(
                f"{op}: expected kernel, stride and dilation of positive ints, "
                f"got {list(kernel)}, {list(stride)} and {list(dilation)}"
            )
        if not 0 <= 2 * p <= (k - 1) * d + 1:
            raise ValueError(
                f"{op}: expected a padding of at most half of what a window spans, "
                f"got {list(padding)} for kernel {list(kernel)} and dilation {list(dilation)}"
            )


def pooled_size(
    op: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """How many windows a map of `size` has on each axis; in ceil_mode the last may hang over its
    end, but not begin beyond it. Refuses a bad geometry in a sentence."""
    _check_pool(op, size, kernel, stride, padding, dilation)
    windows = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - (k - 1) * d - 1
        count = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        if n < 1 or count < 1:
            raise ValueError(
                f"{op}: expected a map that holds a window, got one of {list(size)} cells for "
                f"kernel {list(kernel)}, padding {list(padding)} and dilation {list(dilation)}"
            )
        # Windows that begin in the padding: their first cell inside is their start modulo d.
        if d > n and any((o * s - p) % d >= n for o in range(min(count, -(-p // s)))):
            raise ValueError(
                f"{op}: expected every window to have a cell inside the map, got a map of "
                f"{list(size)} cells for padding {list(padding)} and dilation {list(dilation)}"
            )
        windows.append(count)
    return windows


def switch_dtype(kernel: Sequence[int]) -> torch.dtype:
    """The smallest dtype that holds every offset in a window."""
    cells = 1
    for k in kernel:
        cells *= k
    if cells <= 1 << 8:
        return torch.uint8
    return torch.int16 if cells <= 1 << 15 else torch.int32


def check_max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> list[int]:
    """Refuses bad arguments of max_pool in a sentence; returns the shape of its results."""
    check_array("max_pool", "x", x)
    size = x.shape[2:]
    windows = pooled_size("max_pool", size, kernel, stride, padding, dilation, ceil_mode)
    return [*x.shape[:2], *windows]


def check_max_pool_out(
    x: Tensor, kernel: Sequence[int], shape: Sequence[int], y: Tensor, switches: Tensor
) -> None:
    """Refuses `y` and `switches` of a wrong shape, dtype or device, or a gradient."""
    _check_no_grad("max_pool with out=", x)
    check_out("max_pool", y, tuple(shape), "x", x)
    if switches.dtype != switch_dtype(kernel):
        raise TypeError(
            f"max_pool: expected switches of dtype {switch_dtype(kernel)}, got {switches.dtype}"
        )
    if switches.shape != y.shape or switches.device != x.device:
        raise ValueError(
            f"max_pool: expected switches of shape {tuple(shape)} on {x.device}, "
            f"got {tuple(switches.shape)} on {switches.device}"
        )


SWITCH_DTYPES = (torch.uint8, torch.int16, torch.int32)
MODES = ("add", "set")


def _check_switched(
    op: str,
    name: str,
    x: Tensor,
    switches: Tensor,
    pool: Sequence[Sequence[int]],
    size: Sequence[int],
    mode: str,
    places: Sequence[Tensor | None],
) -> bool:
    """What max_unpool and max_gather refuse alike; returns whether x is windows."""
    check_array(op, name, x)
    if switches.dtype not in SWITCH_DTYPES:
        raise TypeError(
            f"{op}: expected switches of dtype uint8, int16 or int32, got {switches.dtype}"
        )
    if switches.device != x.device:
        raise ValueError(f"{op}: expected switches on {x.device}, got {switches.device}")
    if switches.dim() != x.dim() or switches.shape[1] != x.shape[1]:
        raise ValueError(
            f"{op}: expected switches with the {x.shape[1]} channels and {x.dim() - 2} spatial "
            f"axes of {name}, got {tuple(switches.shape)}"
        )
    if mode not in MODES:
        raise ValueError(f"{op}: expected mode to be 'add' or 'set', got {mode!r}")
    dims = x.dim() - 2
    if len(size) != dims or min(size) < 0:
        raise ValueError(
            f"{op}: expected a size of {dims} non-negative ints, one a spatial axis, "
            f"got {list(size)}"
        )
    _check_pool(op, size, *pool)
    if all(place is None for place in places):
        if switches.shape[0] != x.shape[0]:  # len() would fix a symbolic size
            raise ValueError(
                f"{op}: expected switches of {x.shape[0]} maps, as many as {name} has, "
                f"got {switches.shape[0]}"
            )
        return False
    base_index, y_at, window_at = places
    if base_index is None or y_at is None or window_at is None:
        raise ValueError(
            f"{op}: expected base_index, y_at and window_at together for windows, and none of them "
            "for whole maps"
        )
    _check_integers(op, "base_index", base_index, (x.shape[0],), x)
    _check_integers(op, "y_at", y_at, (x.shape[0], dims), x)
    _check_integers(op, "window_at", window_at, (x.shape[0], dims), x)
    return True


def check_max_unpool(
    y: Tensor,
    switches: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    mode: str = "add",
    relu: bool = False,
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
) -> tuple[int, ...]:
    """Refuses bad arguments of max_unpool in a sentence; returns the shape of its result."""
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    return _check_unpooled("max_unpool", y, switches, pool, size, mode, places)


def _check_unpooled(
    op: str,
    y: Tensor,
    switches: Tensor,
    pool: Sequence[Sequence[int]],
    size: Sequence[int],
    mode: str,
    places: Sequence[Tensor | None],
) -> tuple[int, ...]:
    """The same for any op that unpools y; returns the shape of the map."""
    windows = _check_switched(op, "y", y, switches, pool, size, mode, places)
    if not windows and switches.shape != y.shape:
        raise ValueError(
            f"{op}: expected switches of the shape of y, {tuple(y.shape)}, "
            f"got {tuple(switches.shape)}"
        )
    return (*y.shape[:2], *size)


def check_max_gather(
    x: Tensor,
    switches: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    mode: str = "add",
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
) -> tuple[int, ...]:
    """Refuses bad arguments of max_gather in a sentence; returns the shape of its result."""
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    windows = _check_switched("max_gather", "x", x, switches, pool, size, mode, places)
    if not windows and list(switches.shape[2:]) != list(size):
        raise ValueError(
            f"max_gather: expected the size of the switches, {list(switches.shape[2:])}, "
            f"got {list(size)}"
        )
    return (*x.shape[:2], *size)


def check_max_unpool_out(*args: Any, out: Tensor) -> None:
    """The same for max_unpool.out, which has no gradient."""
    shape = check_max_unpool(*args)
    _check_no_grad("max_unpool with out=", args[0])
    check_out("max_unpool", out, shape, "y", args[0])


def check_max_gather_out(*args: Any, out: Tensor) -> None:
    """The same for max_gather.out, which has no gradient."""
    shape = check_max_gather(*args)
    _check_no_grad("max_gather with out=", args[0])
    check_out("max_gather", out, shape, "x", args[0])


def _check_values(op: str, name: str, x: Tensor) -> None:
    """`check_array` for what may also have no spatial axes."""
    if x.dim() != 2:
        check_array(op, name, x)
    elif x.dtype not in DTYPES:
        check_array(op, name, x[..., None])


def check_rule(op: str, rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"{op}: expected rule to be one of {', '.join(RULES)}, got {rule!r}")


def check_relu(x: Tensor, rule: str = "gradient") -> tuple[int, ...]:
    """Refuses bad arguments of relu in a sentence; returns the shape of the bits."""
    check_rule("relu", rule)
    _check_values("relu", "x", x)
    return bits_shape(x.shape, packs_channels(x))


def check_relu_out(x: Tensor, rule: str = "gradient", *, y: Tensor, bits: Tensor) -> None:
    """The same for relu.out, which has no gradient."""
    shape = check_relu(x, rule)
    _check_no_grad("relu with out=", x)
    check_out("relu", y, tuple(x.shape), "x", x)
    if bits.dtype != torch.uint8 or bits.shape != shape or bits.device != x.device:
        raise ValueError(
            f"relu: expected bits of dtype uint8 and shape {shape} on {x.device}, "
            f"got {bits.dtype}, {tuple(bits.shape)} on {bits.device}"
        )


def check_rectify(
    grad: Tensor,
    bits: Tensor | None,
    rule: str,
    base_index: Tensor | None = None,
    window_at: Tensor | None = None,
    extent: Sequence[int] | None = None,
    base_at: Sequence[int] | None = None,
    tile: Sequence[int] | None = None,
) -> bool:
    """Refuses bad arguments of rectify in a sentence; returns whether it is to run on channels
    last: as the bits lie, or as grad does where there are none.
    """
    _check_values("rectify", "grad", grad)
    check_rule("rectify", rule)
    maps = tuple(grad.shape)
    if base_index is not None and window_at is not None and extent is not None:
        dims = grad.dim() - 2
        for name, values in (("extent", extent), ("base_at", base_at), ("tile", tile)):
            if values is not None and len(values) != dims:
                raise ValueError(
                    f"rectify: expected {dims} ints in {name}, one a spatial axis, "
                    f"got {list(values)}"
                )
        if dims == 0:
            raise ValueError(
                "rectify: expected windows (batch, channels, *spatial) with 1 to 3 spatial axes, "
                f"got {maps}"
            )
        _check_integers("rectify", "base_index", base_index, (maps[0],), grad)
        _check_integers("rectify", "window_at", window_at, (maps[0], dims), grad)
        count = 0 if bits is None or bits.dim() == 0 else bits.shape[0]
        maps = (count, maps[1], *(extent if tile is None else tile))
    elif any(x is not None for x in (base_index, window_at, extent, base_at, tile)):
        raise ValueError(
            "rectify: expected base_index, window_at and extent together for windows, "
            "and none of them nor base_at and tile for whole maps"
        )
    if rule == "deconvnet":
        return packs_channels(grad)
    if bits is None:
        raise ValueError(f"rectify: expected bits for rule {rule!r}, got None")
    if bits.dtype != torch.uint8:
        raise TypeError(f"rectify: expected bits of dtype uint8, got {bits.dtype}")
    if bits.device != grad.device:
        raise ValueError(f"rectify: expected bits on {grad.device}, got {bits.device}")
    for channels in (True, False):
        if bits.shape == bits_shape(maps, channels):
            return channels
    raise ValueError(
        f"rectify: expected bits of maps {maps}, of shape {bits_shape(maps, True)} along the "
        f"channels or {bits_shape(maps, False)} along the last axis, got {tuple(bits.shape)}"
    )


def check_rectify_out(*args: Any, out: Tensor) -> bool:
    """The same for rectify.out, which has no gradient."""
    channels = check_rectify(*args)
    grad = args[0]
    _check_no_grad("rectify with out=", grad)
    check_out("rectify", out, tuple(grad.shape), "grad", grad)
    return channels


def check_subpixel_deconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    relu: bool = False,
) -> tuple[int, ...]:
    """Refuses bad arguments of subpixel_deconv in a sentence; returns the shape of its result."""
    op = "subpixel_deconv"
    check_array(op, "x", x)
    geometry = (stride, padding, output_padding, groups, dilation)
    return _check_deconv(op, ("x", x), x.shape, "", weight, bias, *geometry)


def _check_deconv(
    op: str,
    like: tuple[str, Tensor],
    shape: Sequence[int],
    prefix: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """The same for any op with a transposed convolution of a map of `shape`, of the dtype and
    device of `like`; `prefix` is that of the names of its stride, padding and dilation."""
    dims = len(shape) - 2
    for name, values, least in (
        (f"{prefix}stride", stride, 1),
        (f"{prefix}padding", padding, 0),
        ("output_padding", output_padding, 0),
        (f"{prefix}dilation", dilation, 1),
    ):
        if len(values) != dims or min(values) < least:
            raise ValueError(
                f"{op}: expected {dims} ints of at least {least} in {name}, one a spatial axis, "
                f"got {list(values)}"
            )
    for extra, s, d in zip(output_padding, stride, dilation, strict=True):
        if extra >= s and extra >= d:
            raise ValueError(
                f"{op}: expected output_padding below stride or dilation on every axis, "
                f"got {list(output_padding)} for stride {list(stride)}, dilation {list(dilation)}"
            )
    _check_same(op, "weight", weight, *like)
    if weight.dim() != len(shape) or min(weight.shape) < 1:
        raise ValueError(
            f"{op}: expected weight of shape (in, out / groups, *kernel) with {dims} spatial axes, "
            f"none of them empty, got {tuple(weight.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups != 0:
        raise ValueError(
            f"{op}: expected groups to divide the {weight.shape[0]} input channels of weight, "
            f"got {groups}"
        )
    if shape[1] != weight.shape[0]:
        raise ValueError(
            f"{op}: expected {like[0]} of {weight.shape[0]} channels, as many as weight takes, "
            f"got {shape[1]}"
        )
    channels = weight.shape[1] * groups
    if bias is not None:
        _check_same(op, "bias", bias, *like)
        if bias.shape != (channels,):
            raise ValueError(
                f"{op}: expected bias of shape ({channels},), one number a channel, "
                f"got {tuple(bias.shape)}"
            )
    if min(shape[2:]) < 1:
        raise ValueError(
            f"{op}: expected {'size' if prefix else 'x'} with a pixel or more on every axis, "
            f"got {list(shape[2:]) if prefix else tuple(shape)}"
        )
    size = deconv_size(shape[2:], weight.shape[2:], stride, padding, output_padding, dilation)
    if min(size) < 1:
        raise ValueError(
            f"{op}: expected {prefix}padding that leaves a pixel or more of the result on every "
            f"axis, got {list(padding)}, which leaves {size}"
        )
    return (shape[0], channels, *size)


def deconv_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """The spatial sizes of a transposed convolution's result."""
    axes = zip(size, kernel, stride, padding, output_padding, dilation, strict=True)
    return [(n - 1) * s - 2 * p + (k - 1) * d + extra + 1 for n, k, s, p, extra, d in axes]


def deconv_channels_last(x: Tensor, weight: Tensor) -> bool:
    """Whether the result of subpixel_deconv has its channels last: where x or weight has them."""
    return is_channels_last(x) or is_channels_last(weight)


def check_subpixel_deconv_out(*args: Any, out: Tensor) -> tuple[int, ...]:
    """The same for subpixel_deconv.out, which has no gradient."""
    shape = check_subpixel_deconv(*args)
    x, weight, bias = args[:3]
    _check_no_grad("subpixel_deconv with out=", x, weight, *([] if bias is None else [bias]))
    check_out("subpixel_deconv", out, shape, "x", x)
    return shape


def check_unpool_deconv(
    y: Tensor,
    switches: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    deconv_stride: Sequence[int],
    deconv_padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    deconv_dilation: Sequence[int],
    mode: str = "add",
    relu: bool = False,
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
) -> tuple[int, ...]:
    """Refuses bad arguments of unpool_deconv in a sentence; returns the shape of its result."""
    op = "unpool_deconv"
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    shape = _check_unpooled(op, y, switches, pool, size, mode, places)
    geometry = (deconv_stride, deconv_padding, output_padding, groups, deconv_dilation)
    return _check_deconv(op, ("y", y), shape, "deconv_", weight, bias, *geometry)


def unpool_deconv_channels_last(switches: Tensor, size: Sequence[int], weight: Tensor) -> bool:
    """Whether the result of unpool_deconv has its channels last: where the map of `size`, which
    lies as the switches do, or weight has them."""
    if is_channels_last(weight):
        return True
    shape = (*switches.shape[:2], *size)  # a stride depends on the sizes
    stride = channels_last_stride(shape) if is_channels_last(switches) else None
    return stride is not None and stride[1] < stride[-1]


def check_unpool_deconv_out(*args: Any, out: Tensor) -> tuple[int, ...]:
    """The same for unpool_deconv.out, which has no gradient."""
    shape = check_unpool_deconv(*args)
    y, weight, bias = args[0], args[7], args[8]
    _check_no_grad("unpool_deconv with out=", y, weight, *([] if bias is None else [bias]))
    check_out("unpool_deconv", out, shape, "y", y)
    return shape


# --- fake kernels ----------------------------------------------------------------------------


def _fake_heatmap(scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str) -> Tensor:
    return scores.new_empty(check_heatmap(scores, boxes, size, reduce))


def _fake_heatmap_out(
    scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str, *, out: Tensor
) -> Tensor:
    check_heatmap_out(scores, boxes, size, reduce, out)
    return out


def _fake_max_gather(*args: Any) -> Tensor:
    return empty_like_format(args[1], check_max_gather(*args), args[0].dtype)


def _fake_max_gather_out(*args: Any, out: Tensor) -> Tensor:
    check_max_gather_out(*args, out=out)
    return out


def _fake_max_unpool(*args: Any) -> Tensor:
    return empty_like_format(args[1], check_max_unpool(*args), args[0].dtype)


def _fake_max_unpool_out(*args: Any, out: Tensor) -> Tensor:
    check_max_unpool_out(*args, out=out)
    return out


def _fake_max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    shape = check_max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    return empty_like_format(x, shape), empty_like_format(x, shape, switch_dtype(kernel))


def _fake_max_pool_out(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    relu: bool = False,
    *,
    y: Tensor,
    switches: Tensor,
) -> tuple[Tensor, Tensor]:
    shape = check_max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    check_max_pool_out(x, kernel, shape, y, switches)
    return y, switches


def _fake_occlude(image: Tensor, boxes: Tensor, baseline: Tensor) -> Tensor:
    return empty_like_format(image, check_occlude(image, boxes, baseline))


def _fake_occlude_out(image: Tensor, boxes: Tensor, baseline: Tensor, *, out: Tensor) -> Tensor:
    check_occlude_out(image, boxes, baseline, out)
    return out


def _fake_preactivation(
    maps: Sequence[Tensor], scale: Tensor, shift: Tensor, *, out: Tensor | None = None
) -> Tensor:
    shape = check_preactivation(maps, scale, shift)
    if out is None:
        return empty_like_format(maps[0], shape)
    check_out("preactivation", out, shape, "maps[0]", maps[0])
    return out


def _fake_rectify(*args: Any) -> Tensor:
    check_rectify(*args)
    grad: Tensor = args[0]
    return empty_like_format(grad, grad.shape)


def _fake_rectify_out(*args: Any, out: Tensor) -> Tensor:
    check_rectify_out(*args, out=out)
    return out


def _fake_relu(x: Tensor, rule: str = "gradient") -> tuple[Tensor, Tensor]:
    shape = check_relu(x, rule)
    return empty_like_format(x, x.shape), empty_dense(x, shape, packs_channels(x), torch.uint8)


def _fake_relu_out(
    x: Tensor, rule: str = "gradient", *, y: Tensor, bits: Tensor
) -> tuple[Tensor, Tensor]:
    check_relu_out(x, rule, y=y, bits=bits)
    return y, bits


def _fake_splice(
    base: Tensor,
    base_index: Tensor,
    base_at: Sequence[int],
    extent: Sequence[int],
    patch: Tensor,
    patch_at: Tensor,
    window_at: Tensor,
    size: Sequence[int],
    outside: float = 0.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    shape = check_splice(base, base_index, base_at, extent, patch, patch_at, window_at, size)
    if out is None:
        return empty_like_format(base, shape)
    check_out("splice", out, shape, "base", base)
    return out


def _fake_subpixel_deconv(*args: Any) -> Tensor:
    x, weight = args[:2]
    return empty_dense(x, check_subpixel_deconv(*args), deconv_channels_last(x, weight))


def _fake_subpixel_deconv_out(*args: Any, out: Tensor) -> Tensor:
    check_subpixel_deconv_out(*args, out=out)
    return out


def _fake_unpool_deconv(*args: Any) -> Tensor:
    y, switches, size, weight = args[0], args[1], args[6], args[7]
    last = unpool_deconv_channels_last(switches, size, weight)
    return empty_dense(y, check_unpool_deconv(*args), last)


def _fake_unpool_deconv_out(*args: Any, out: Tensor) -> Tensor:
    check_unpool_deconv_out(*args, out=out)
    return out


for _name, _fake in (
    ("heatmap", _fake_heatmap),
    ("heatmap.out", _fake_heatmap_out),
    ("max_gather", _fake_max_gather),
    ("max_gather.out", _fake_max_gather_out),
    ("max_pool", _fake_max_pool),
    ("max_pool.out", _fake_max_pool_out),
    ("max_unpool", _fake_max_unpool),
    ("max_unpool.out", _fake_max_unpool_out),
    ("occlude", _fake_occlude),
    ("occlude.out", _fake_occlude_out),
    ("preactivation", _fake_preactivation),
    ("preactivation.out", _fake_preactivation),
    ("rectify", _fake_rectify),
    ("rectify.out", _fake_rectify_out),
    ("relu", _fake_relu),
    ("relu.out", _fake_relu_out),
    ("splice", _fake_splice),
    ("splice.out", _fake_splice),
    ("subpixel_deconv", _fake_subpixel_deconv),
    ("subpixel_deconv.out", _fake_subpixel_deconv_out),
    ("unpool_deconv", _fake_unpool_deconv),
    ("unpool_deconv.out", _fake_unpool_deconv_out),
):
    torch.library.register_fake(f"backsight::{_name}", _fake, lib=LIBRARY)
