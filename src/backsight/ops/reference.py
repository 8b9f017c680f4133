"""Slow, obvious oracles of every op in plain torch.

They judge every backend, and they are what runs on devices without kernels of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from backsight.ops._schemas import (
    LIBRARY,
    accumulation_dtype,
    check_heatmap,
    check_heatmap_out,
    check_max_gather,
    check_max_gather_out,
    check_max_pool,
    check_max_pool_out,
    check_max_unpool,
    check_max_unpool_out,
    check_occlude,
    check_occlude_out,
    check_out,
    check_preactivation,
    check_rectify,
    check_rectify_out,
    check_relu,
    check_relu_out,
    check_splice,
    check_subpixel_deconv,
    check_subpixel_deconv_out,
    check_unpool_deconv,
    check_unpool_deconv_out,
    deconv_channels_last,
    empty_dense,
    empty_like_format,
    packs_channels,
    switch_dtype,
    unpool_deconv_channels_last,
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


def relu(x: Tensor, rule: str = "gradient") -> tuple[Tensor, Tensor]:
    """See `backsight.ops.relu`."""
    shape = check_relu(x, rule)
    y = empty_like_format(x, x.shape).copy_(x.masked_fill(x < 0, 0))
    channels = packs_channels(x)
    axis = 1 if channels else x.dim() - 1
    bits = empty_dense(x, shape, channels, torch.uint8).zero_()
    passes = (~(x <= 0)).to(torch.uint8).movedim(axis, -1)
    for bit in range(8):  # of elements bit, bit + 8, ...
        every = passes[..., bit::8]
        bits.movedim(axis, -1)[..., : every.shape[-1]] |= every << bit
    return y, bits


def rectify(
    grad: Tensor,
    bits: Tensor | None,
    rule: str,
    base_index: Tensor | None = None,
    window_at: Tensor | None = None,
    extent: Sequence[int] | None = None,
    base_at: Sequence[int] | None = None,
    tile: Sequence[int] | None = None,
) -> Tensor:
    """See `backsight.ops.rectify`."""
    channels = check_rectify(grad, bits, rule, base_index, window_at, extent, base_at, tile)
    signal = grad if rule == "gradient" else grad.masked_fill(grad < 0, 0)
    if rule == "deconvnet":
        passes = grad.new_ones(grad.shape)
    else:
        assert bits is not None
        axis = 1 if channels else bits.dim() - 1
        size = grad.shape if extent is None else (*grad.shape[:2], *(tile or extent))
        each = torch.stack([bits.movedim(axis, -1) >> bit & 1 for bit in range(8)], -1)
        passes = each.flatten(-2)[..., : size[axis]].movedim(-1, axis).to(grad.dtype)
    if base_index is not None and window_at is not None and extent is not None:
        # Cells of no map at all are NaN to splice; under deconvnet they are all there is.
        missing = rule == "deconvnet"
        base = passes[:0] if missing else passes
        base_at = base_at or [0] * len(extent)
        patch = grad.new_empty(*grad.shape[:2], *[0] * len(extent))
        size = grad.shape[2:]
        passes = splice(base, base_index, base_at, extent, patch, window_at, window_at, size)
        passes = passes.isnan().to(grad.dtype) if missing else passes
    rectified = signal.masked_fill(passes == 0, 0).masked_fill(passes.isnan(), float("nan"))
    return empty_like_format(grad, grad.shape).copy_(rectified)


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


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `backsight.ops.max_pool`."""
    shape = check_max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    y = empty_like_format(x, shape)
    switches = empty_like_format(x, shape, switch_dtype(kernel))
    if relu:
        x = x.relu() + 0  # -0 becomes 0
    for o in itertools.product(*map(range, shape[2:])):
        best: Tensor | None = None
        for offset, cell in enumerate(_cells(o, kernel, stride, padding, dilation)):
            if not all(0 <= i < n for i, n in zip(cell, x.shape[2:], strict=True)):
                continue
            values = x[_at(slice(None), cell)]
            if best is None:
                best, first = values.clone(), torch.full_like(values, offset, dtype=switches.dtype)
            else:
                take = (values > best) | values.isnan()
                best, first = torch.where(take, values, best), first.masked_fill(take, offset)
        assert best is not None  # every window has a cell inside the map
        y[_at(slice(None), o)] = best
        switches[_at(slice(None), o)] = first
    return y, switches


def _at(batch: slice, cell: Sequence[int]) -> tuple[slice | int, ...]:
    """The index of a cell in all channels of some entries."""
    return (batch, slice(None), *cell)


def _cells(
    o: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, ...]]:
    """The cells of window o, by their offsets."""
    return [
        tuple(
            a * s - p + b * d for a, s, p, b, d in zip(o, stride, padding, k, dilation, strict=True)
        )
        for k in itertools.product(*map(range, kernel))
    ]


def _switched(
    op: str,
    y_size: Sequence[int],
    x_size: Sequence[int],
    switches: Tensor,
    pool: Sequence[Sequence[int]],
    places: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Iterator[tuple[slice, tuple[int, ...], tuple[int, ...], Tensor]]:
    """All (entries, window of y, cell of x, where that window's switch points to that cell), in
    raster order of the windows. Refuses wrong switches."""
    base_index, y_at, window_at = places
    if base_index is None or y_at is None or window_at is None:
        zeros = (0,) * len(y_size)
        batches = [(slice(None), slice(None), zeros, zeros)]
    else:
        batches = []
        rows = (base_index.tolist(), y_at.tolist(), window_at.tolist())
        for b, (m, windows, cells) in enumerate(zip(*rows, strict=True)):
            if not 0 <= m < len(switches):
                raise ValueError(f"{op}: expected base_index in [0, {len(switches)}), got {m}")
            batches.append((slice(b, b + 1), slice(m, m + 1), tuple(windows), tuple(cells)))
    for batch, maps, first_window, first_cell in batches:
        for w in itertools.product(*map(range, y_size)):
            o = tuple(a + b for a, b in zip(w, first_window, strict=True))
            if not all(0 <= a < n for a, n in zip(o, switches.shape[2:], strict=True)):
                continue
            found = switches[_at(maps, o)]
            right = torch.zeros_like(found, dtype=torch.bool)
            for offset, g in enumerate(_cells(o, *pool)):
                here = found == offset
                cell = tuple(a - b for a, b in zip(g, first_cell, strict=True))
                inside = all(0 <= a < n for a, n in zip(cell, x_size, strict=True))
                if inside or base_index is not None:
                    right |= here
                if inside:
                    yield batch, w, cell, here
            if not right.all():
                raise ValueError(
                    f"{op}: expected switches below {len(_cells(o, *pool))}, each of a cell inside "
                    f"the map, got {int(found[~right][0])}"
                )


def max_unpool(
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
) -> Tensor:
    """See `backsight.ops.max_unpool`."""
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    shape = check_max_unpool(y, switches, *pool, size, mode, relu, *places)
    wide = accumulation_dtype(y.dtype)
    x = empty_like_format(switches, shape, wide).zero_()
    for batch, w, cell, here in _switched("max_unpool", y.shape[2:], size, switches, pool, places):
        value = y[_at(batch, w)].to(wide)
        at = _at(batch, cell)
        x[at] = torch.where(here, value if mode == "set" else x[at] + value, x[at])
    return empty_like_format(switches, shape, y.dtype).copy_(x.relu() if relu else x)


def max_gather(
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
) -> Tensor:
    """See `backsight.ops.max_gather`."""
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    shape = check_max_gather(x, switches, *pool, size, mode, *places)
    y = empty_like_format(switches, shape, x.dtype).zero_()
    # The last window so far that points to a cell, counted from 1.
    winner = torch.zeros(x.shape, dtype=torch.int64, device=x.device)
    found = list(_switched("max_gather", size, x.shape[2:], switches, pool, places))
    numbers = {w: i + 1 for i, w in enumerate(itertools.product(*map(range, size)))}
    for batch, w, cell, here in found:
        winner[_at(batch, cell)].masked_fill_(here, numbers[w])
    for batch, w, cell, here in found:
        wins = here & (winner[_at(batch, cell)] == numbers[w])
        at = _at(batch, w)
        take = wins if mode == "set" else here
        y[at] = torch.where(take, x[_at(batch, cell)], y[at])
    return y


def subpixel_deconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    relu: bool = False,
) -> Tensor:
    """See `backsight.ops.subpixel_deconv`. Zeros between the pixels of x, zeros around them, and
    the flipped filter at stride 1."""
    shape = check_subpixel_deconv(
        x, weight, bias, stride, padding, output_padding, groups, dilation, relu
    )
    wide = accumulation_dtype(x.dtype)
    # Pixel i of the result is the sum over offsets k of spread[i + k * d] * weight[last - k].
    size = [n + (k - 1) * d for n, k, d in zip(shape[2:], weight.shape[2:], dilation, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *size), dtype=wide)
    geometry = list(zip(weight.shape[2:], stride, padding, dilation, strict=True))
    for i in itertools.product(*map(range, x.shape[2:])):
        cell = [a * s + (k - 1) * d - p for a, (k, s, p, d) in zip(i, geometry, strict=True)]
        if all(0 <= c < n for c, n in zip(cell, size, strict=True)):  # else it is cut off
            spread[_at(slice(None), cell)] = x[_at(slice(None), i)].to(wide)
    out = x.new_zeros(shape, dtype=wide)
    each = (-1,) + (1,) * (x.dim() - 2)
    into, onto = weight.shape[0] // groups, weight.shape[1]
    for at in itertools.product(*map(range, weight.shape[2:])):
        flipped = [k - 1 - a for k, a in zip(weight.shape[2:], at, strict=True)]
        taps = weight[_at(slice(None), flipped)]
        window = spread
        for axis, (a, d) in enumerate(zip(at, dilation, strict=True), start=2):
            window = window.narrow(axis, a * d, shape[axis])
        for c in range(weight.shape[0]):
            g = c // into
            products = window[:, c : c + 1] * taps[c].to(wide).view(each)
            out[:, g * onto : (g + 1) * onto] += products
    if bias is not None:
        out += bias.to(wide).view(each)
    result = empty_dense(x, shape, deconv_channels_last(x, weight))
    return result.copy_(out.relu() if relu else out)


def _subpixel_deconv_out(*args: Any, out: Tensor) -> Tensor:
    check_subpixel_deconv_out(*args, out=out)
    return out.copy_(subpixel_deconv(*args))


def unpool_deconv(
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
) -> Tensor:
    """See `backsight.ops.unpool_deconv`. One op after the other."""
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    geometry = (deconv_stride, deconv_padding, output_padding, groups, deconv_dilation)
    case: tuple[Any, ...] = (y, switches, *pool, size, weight, bias, *geometry, mode, relu, *places)
    shape = check_unpool_deconv(*case)
    x = max_unpool(y, switches, *pool, size, mode, relu, *places)
    out = subpixel_deconv(x, weight, bias, *geometry)
    return empty_dense(y, shape, unpool_deconv_channels_last(switches, size, weight)).copy_(out)


def _unpool_deconv_out(*args: Any, out: Tensor) -> Tensor:
    check_unpool_deconv_out(*args, out=out)
    return out.copy_(unpool_deconv(*args))


LIBRARY.impl("subpixel_deconv", subpixel_deconv, "CompositeExplicitAutograd")
LIBRARY.impl("subpixel_deconv.out", _subpixel_deconv_out, "CompositeExplicitAutograd")
LIBRARY.impl("unpool_deconv", unpool_deconv, "CompositeExplicitAutograd")
LIBRARY.impl("unpool_deconv.out", _unpool_deconv_out, "CompositeExplicitAutograd")


def _into_out(op: Callable[..., Tensor], check: Callable[..., Any]) -> Callable[..., Tensor]:
    def call(*args: Any, out: Tensor) -> Tensor:
        check(*args, out)
        return out.copy_(op(*args))

    return call


def _check_splice_out(*args: Any) -> None:
    *rest, _, out = args if len(args) == 10 else (*args[:-1], 0.0, args[-1])
    check_out("splice", out, check_splice(*rest), "base", rest[0])


def _max_pool_out(*args: Any, y: Tensor, switches: Tensor) -> tuple[Tensor, Tensor]:
    ceil_mode = args[5] if len(args) > 5 else False
    shape = check_max_pool(args[0], args[1], args[2], args[3], args[4], ceil_mode)
    check_max_pool_out(args[0], args[1], shape, y, switches)
    values, offsets = max_pool(*args)
    return y.copy_(values), switches.copy_(offsets)


def _max_gather_out(*args: Any, out: Tensor) -> Tensor:
    check_max_gather_out(*args, out=out)
    return out.copy_(max_gather(*args))


def _max_unpool_out(*args: Any, out: Tensor) -> Tensor:
    check_max_unpool_out(*args, out=out)
    return out.copy_(max_unpool(*args))


def _check_preactivation_out(
    maps: Sequence[Tensor], scale: Tensor, shift: Tensor, out: Tensor
) -> None:
    shape = check_preactivation(maps, scale, shift)
    check_out("preactivation", out, shape, "maps[0]", maps[0])


LIBRARY.impl("max_gather", max_gather, "CompositeExplicitAutograd")
LIBRARY.impl("max_gather.out", _max_gather_out, "CompositeExplicitAutograd")
LIBRARY.impl("max_pool", max_pool, "CompositeExplicitAutograd")
LIBRARY.impl("max_pool.out", _max_pool_out, "CompositeExplicitAutograd")
LIBRARY.impl("max_unpool", max_unpool, "CompositeExplicitAutograd")
LIBRARY.impl("max_unpool.out", _max_unpool_out, "CompositeExplicitAutograd")


def _rectify_out(*args: Any, out: Tensor) -> Tensor:
    check_rectify_out(*args, out=out)
    return out.copy_(rectify(*args))


def _relu_out(
    x: Tensor, rule: str = "gradient", *, y: Tensor, bits: Tensor
) -> tuple[Tensor, Tensor]:
    check_relu_out(x, rule, y=y, bits=bits)
    found, passing = relu(x)
    return y.copy_(found), bits.copy_(passing)


LIBRARY.impl("rectify", rectify, "CompositeExplicitAutograd")
LIBRARY.impl("rectify.out", _rectify_out, "CompositeExplicitAutograd")
LIBRARY.impl("relu", relu, "CompositeExplicitAutograd")
LIBRARY.impl("relu.out", _relu_out, "CompositeExplicitAutograd")

for _name, _op, _check in (
    ("heatmap", heatmap, check_heatmap_out),
    ("occlude", occlude, check_occlude_out),
    ("preactivation", preactivation, _check_preactivation_out),
    ("splice", splice, _check_splice_out),
):
    LIBRARY.impl(_name, _op, "CompositeExplicitAutograd")
    LIBRARY.impl(f"{_name}.out", _into_out(_op, _check), "CompositeExplicitAutograd")
