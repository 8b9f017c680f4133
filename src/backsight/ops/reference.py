"""Slow, obvious oracles of every op in plain torch.

They judge every backend, and they are what runs on devices without kernels of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from backsight.ops._schemas import (
    LIBRARY,
    check_heatmap,
    check_heatmap_out,
    check_occlude,
    check_occlude_out,
    check_out,
    check_preactivation,
    check_splice,
    empty_like_format,
)


def occlude(image: Tensor, boxes: Tensor, baseline: Tensor) -> Tensor:
    """See `backsight.ops.occlude`."""
    out = empty_like_format(image, check_occlude(image, boxes, baseline))
    content = baseline.expand_as(image)
    dims = image.dim() - 2
    for b in range(image.shape[0]):
        for n, box in enumerate(boxes.tolist()):
            row = out[b * len(boxes) + n]
            row.copy_(image[b])
            inside: tuple[Any, ...] = (
                ...,
                *(slice(max(box[d], 0), max(box[d + dims], 0)) for d in range(dims)),
            )
            row[inside] = content[b][inside]
    return out


def preactivation(maps: Sequence[Tensor], scale: Tensor, shift: Tensor) -> Tensor:
    """See `backsight.ops.preactivation`."""
    shape = check_preactivation(maps, scale, shift)
    each = (-1,) + (1,) * (len(shape) - 2)
    wide = torch.cat([x.to(scale.dtype) for x in maps], 1)
    activated = (wide * scale.view(each) + shift.view(each)).relu()
    return empty_like_format(maps[0], shape).copy_(activated)


def splice(
    base: Tensor,
    base_index: Tensor,
    base_at: Sequence[int],
    extent: Sequence[int],
    patch: Tensor,
    patch_at: Tensor,
    window_at: Tensor,
    size: Sequence[int],
    outside: float = 0.0,
) -> Tensor:
    """See `backsight.ops.splice`."""
    shape = check_splice(base, base_index, base_at, extent, patch, patch_at, window_at, size)
    out = empty_like_format(base, shape).fill_(float("nan"))
    for b, (m, origin) in enumerate(zip(base_index.tolist(), window_at.tolist(), strict=True)):
        if 0 <= m < len(base):
            _paste(out[b], origin, base[m], base_at)
        _paste(out[b], origin, patch[b], patch_at[b].tolist())
        for d, (start, count) in enumerate(zip(origin, size, strict=True)):
            before = min(max(-start, 0), count)
            after = min(max(extent[d] - start, before), count)
            out[b].narrow(d + 1, 0, before).fill_(outside)
            out[b].narrow(d + 1, after, count - after).fill_(outside)
    return out


def _paste(window: Tensor, window_at: Sequence[int], source: Tensor, at: Sequence[int]) -> None:
    """Copies what `source` (C, *T) at global origin `at` covers of `window` (C, *size)."""
    for d, (start, origin) in enumerate(zip(window_at, at, strict=True), start=1):
        lo = max(start, origin)
        count = min(start + window.shape[d], origin + source.shape[d]) - lo
        if count <= 0:
            return
        window = window.narrow(d, lo - start, count)
        source = source.narrow(d, lo - origin, count)
    window.copy_(source)


def heatmap(scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str) -> Tensor:
    """See `backsight.ops.heatmap`. Sums in float64, in an order of the rows' contents."""
    shape = check_heatmap(scores, boxes, size, reduce)
    dims = len(size)
    total = torch.zeros(shape, dtype=torch.float64)
    count = torch.zeros(list(size), dtype=torch.float64)
    spoilt = torch.zeros(shape, dtype=torch.bool)
    values = scores.detach().cpu().double()
    finite = torch.where(values.isfinite(), values, 0.0)
    rows = sorted(zip(boxes.tolist(), finite.tolist(), (~values.isfinite()).tolist(), strict=True))
    for box, row, bad in rows:
        inside = tuple(slice(max(box[d], 0), max(box[d + dims], 0)) for d in range(dims))
        each = (-1,) + (1,) * dims
        total[(slice(None), *inside)] += torch.tensor(row, dtype=torch.float64).view(each)
        spoilt[(slice(None), *inside)] |= torch.tensor(bad, dtype=torch.bool).view(each)
        count[inside] += 1
    if reduce == "mean":
        total /= count.clamp(min=1)
    return total.masked_fill(spoilt, float("nan")).to(scores)


def _into_out(op: Callable[..., Tensor], check: Callable[..., Any]) -> Callable[..., Tensor]:
    def call(*args: Any, out: Tensor) -> Tensor:
        check(*args, out)
        return out.copy_(op(*args))

    return call


def _check_splice_out(*args: Any) -> None:
    *rest, _, out = args if len(args) == 10 else (*args[:-1], 0.0, args[-1])
    check_out("splice", out, check_splice(*rest), "base", rest[0])


def _check_preactivation_out(
    maps: Sequence[Tensor], scale: Tensor, shift: Tensor, out: Tensor
) -> None:
    shape = check_preactivation(maps, scale, shift)
    check_out("preactivation", out, shape, "maps[0]", maps[0])


for _name, _op, _check in (
    ("heatmap", heatmap, check_heatmap_out),
    ("occlude", occlude, check_occlude_out),
    ("preactivation", preactivation, _check_preactivation_out),
    ("splice", splice, _check_splice_out),
):
    LIBRARY.impl(_name, _op, "CompositeExplicitAutograd")
    LIBRARY.impl(f"{_name}.out", _into_out(_op, _check), "CompositeExplicitAutograd")
