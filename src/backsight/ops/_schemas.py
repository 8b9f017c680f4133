"""Schemas, fake kernels and argument checks of every op, in one place; backends only register.

Shapes: D is the number of spatial axes, 1 to 3, and ``*S`` its sizes. Dense arrays are contiguous
or channels last (``channels_last``, ``channels_last_3d``, and in 1-D the ``(B, C, L)`` view whose
channel stride is 1). All coordinates are int64 and global.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LIBRARY = torch.library.Library("backsight", "DEF")

# Tensor dtypes and their codes in csrc/ops.h.
DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

_OCCLUDE = "Tensor image, Tensor boxes, Tensor baseline"
_HEATMAP = "Tensor scores, Tensor boxes, int[] size, str reduce"
_PREACTIVATION = "Tensor[] maps, Tensor scale, Tensor shift"
_SPLICE = (
    "Tensor base, Tensor base_index, int[] base_at, int[] extent, Tensor patch, Tensor patch_at, "
    "Tensor window_at, int[] size, float outside=0.0"
)


def _define(name: str, arguments: str) -> None:
    """Defines `name` and its overload `name.out`."""
    tags = (torch.Tag.pt2_compliant_tag,)
    LIBRARY.define(f"{name}({arguments}) -> Tensor", tags=tags)
    LIBRARY.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> Tensor(a!)", tags=tags)


_define("heatmap", _HEATMAP)
_define("occlude", _OCCLUDE)
_define("preactivation", _PREACTIVATION)
_define("splice", _SPLICE)


# --- layouts ---------------------------------------------------------------------------------


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of `x` (B, C, *S) are denser than its last axis."""
    return x.stride(1) < x.stride(-1)


def empty_like_format(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised dense tensor of `shape` in the memory format, dtype and device of `x`."""
    if not is_channels_last(x):
        return x.new_empty(shape)
    stride = [1] * len(shape)
    step = shape[1]
    for axis in (*range(len(shape) - 1, 1, -1), 0):
        stride[axis] = step
        step *= shape[axis]
    return x.new_empty_strided(shape, stride)


def is_dense(x: Tensor) -> bool:
    """Whether `x` (B, C, *S) is contiguous or channels last."""
    if x.is_contiguous():
        return True
    if x.dim() == 3:
        return x.transpose(1, 2).is_contiguous()
    memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.is_contiguous(memory_format=memory_format)


# --- checks ----------------------------------------------------------------------------------


def _check_array(op: str, name: str, x: Tensor) -> None:
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
    _check_array("occlude", "image", image)
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
    _check_array(op, "maps[0]", first)
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
    _check_array("splice", "base", base)
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


# --- fake kernels ----------------------------------------------------------------------------


def _fake_heatmap(scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str) -> Tensor:
    return scores.new_empty(check_heatmap(scores, boxes, size, reduce))


def _fake_heatmap_out(
    scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str, *, out: Tensor
) -> Tensor:
    check_heatmap_out(scores, boxes, size, reduce, out)
    return out


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


for _name, _fake in (
    ("heatmap", _fake_heatmap),
    ("heatmap.out", _fake_heatmap_out),
    ("occlude", _fake_occlude),
    ("occlude.out", _fake_occlude_out),
    ("preactivation", _fake_preactivation),
    ("preactivation.out", _fake_preactivation),
    ("splice", _fake_splice),
    ("splice.out", _fake_splice),
):
    torch.library.register_fake(f"backsight::{_name}", _fake, lib=LIBRARY)
