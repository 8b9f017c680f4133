"""Transposed convolution worked out on small cases: as a matrix, its transpose, and phase by phase.

Everything here is literal and slow: it shows what `ops.subpixel_deconv` computes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Deconvolution", "Phase", "explain_deconv"]

_LARGEST = 1 << 20  # entries of a matrix
_WIDEST = 24  # entries of a row that is written out

Ints = int | Sequence[int]


@dataclass(frozen=True)
class Phase:
    """The results that lie a stride apart, and the part of the filter that makes them.

    Attributes:
        outputs: for each axis where these results lie among all.
        taps: for each axis which taps of the filter meet a value there. None of them may: then
            the results are 0.
        weight: the filter's values at those taps.
        result: what the convolution of y with that small filter gives, one for each output.
    """

    outputs: tuple[tuple[int, ...], ...]
    taps: tuple[tuple[int, ...], ...]
    weight: Tensor = field(repr=False)
    result: Tensor = field(repr=False)

    @property
    def multiplications(self) -> int:
        """Filter taps times outputs, at the edges too."""
        return self.weight.numel() * self.result.numel()


@dataclass(frozen=True)
class Deconvolution:
    """A transposed convolution of one channel, in three forms that give the same numbers.

    A convolution with stride maps x, padded, to y = W x. The transposed convolution goes back by
    x ≈ Wᵀ y, whose padding is cropped. It is no inverse: WᵀW is not the identity. The same numbers
    come from a convolution of stride 1, with zeros between the values of y and the filter flipped
    (the sub-pixel form); and without any zero from one small convolution for each phase.

    All tensors are float64 with D axes, or matrices of the cells in raster order.

    Attributes:
        y: (*N) the values.
        weight: (*K) the filter.
        stride, padding, output_padding, dilation: D ints each, as torch has them.
    """

    y: Tensor
    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def padded_size(self) -> tuple[int, ...]:
        """D ints, the size of x with its padding."""
        axes = zip(
            self.y.shape,
            self.stride,
            self.dilation,
            self.weight.shape,
            self.output_padding,
            strict=True,
        )
        return tuple((n - 1) * s + d * (k - 1) + 1 + extra for n, s, d, k, extra in axes)

    @property
    def size(self) -> tuple[int, ...]:
        """D ints, the size of the result."""
        return tuple(n - 2 * p for n, p in zip(self.padded_size, self.padding, strict=True))

    @cached_property
    def taps(self) -> Tensor:
        """W with the number of the tap in the place of its value: 1 for the first in raster order,
        0 where there is none; int64."""
        return _taps(self.y.shape, self.padded_size, self.weight.shape, self.stride, self.dilation)

    @cached_property
    def matrix(self) -> Tensor:
        """W, (cells of y, cells of padded x): each row is the filter, a stride further."""
        return self._valued(self.taps)

    @property
    def transpose(self) -> Tensor:
        """Wᵀ, (cells of padded x, cells of y)."""
        return self.matrix.T

    @cached_property
    def padded(self) -> Tensor:
        """Wᵀ y, of size `padded_size`."""
        return (self.transpose @ self.y.flatten()).view(self.padded_size)

    @cached_property
    def result(self) -> Tensor:
        """Wᵀ y without its padding, of `size`."""
        return self._cropped(self.padded)

    @cached_property
    def spread(self) -> Tensor:
        """y with zeros between its values and at its ends, of which the convolution of stride 1
        makes the result. Where the padding takes more than the filter adds, ends are cut off."""
        axes = zip(self.y.shape, self.stride, strict=True)
        between = self.y.new_zeros([(n - 1) * s + 1 for n, s in axes])
        between[tuple(slice(None, None, s) for s in self.stride)] = self.y
        ends = [
            (span - p, span - p + extra)
            for span, p, extra in zip(self._spans, self.padding, self.output_padding, strict=True)
        ]
        return _framed(between, ends)

    @property
    def flipped(self) -> Tensor:
        """The filter from its last tap to its first, as the sub-pixel form slides it."""
        return self.weight.flip(list(range(self.weight.dim())))

    @cached_property
    def subpixel_taps(self) -> Tensor:
        """`subpixel` with the number of the tap in the place of its value, as `taps`."""
        ones = (1,) * self.y.dim()
        taps = _taps(self.size, self.spread.shape, self.weight.shape, ones, self.dilation)
        return torch.where(taps > 0, self.weight.numel() + 1 - taps, 0)

    @cached_property
    def subpixel(self) -> Tensor:
        """(cells of the result, cells of `spread`): the flipped filter at stride 1."""
        return self._valued(self.subpixel_taps)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """One for each remainder by the stride, in raster order; those without outputs left out."""
        axes = [
            [_phase(first, *each) for first in range(min(each[1], each[5]))]
            for each in zip(
                self.y.shape,
                self.stride,
                self.padding,
                self.dilation,
                self.weight.shape,
                self.size,
                strict=True,
            )
        ]
        return tuple(self._phase(axis) for axis in itertools.product(*axes))

    @property
    def multiplications(self) -> tuple[int, int]:
        """Of the sub-pixel form with its zeros, and of the phases together."""
        zeros = math.prod(self.size) * self.weight.numel()
        return zeros, sum(phase.multiplications for phase in self.phases)

    def __str__(self) -> str:
        zeros, phases = self.multiplications
        lines = [
            f"Transposed convolution of {_by(self.y.shape)} by a filter of "
            f"{_by(self.weight.shape)}, stride {_by(self.stride)}, padding {_by(self.padding)}, "
            f"output padding {_by(self.output_padding)}, dilation {_by(self.dilation)}: "
            f"{_by(self.size)}",
            f"W, {_by(self.taps.shape)}:",
            *self._written(self.taps),
            f"Wᵀ y, {_by(self.padded_size)}:",
            *_rows(self.padded),
            f"without its padding, {_by(self.size)}:",
            *_rows(self.result),
            f"sub-pixel form, y with zeros, {_by(self.spread.shape)}:",
            *_rows(self.spread),
            f"and the flipped filter at stride 1, {_by(self.subpixel_taps.shape)}:",
            *self._written(self.subpixel_taps),
        ]
        for number, phase in enumerate(self.phases, 1):
            names = [self._name(tap) for tap in itertools.product(*phase.taps)]
            lines += [
                f"phase {number}, {' '.join(names) or 'no tap'}, {_by(phase.result.shape)}:",
                *_rows(phase.result),
            ]
        lines.append(f"multiplications: {zeros} with the zeros, {phases} by phases")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A figure of the matrices (one axis) or of the maps (two axes), and of the phases.

        Taps, results and rows of one phase have one colour; padding is pale.

        Raises:
            ImportError: matplotlib is not installed.
        """
        grids = self._matrices() if self.y.dim() == 1 else self._maps()
        zeros, phases = self.multiplications
        title = (
            f"{_by(self.y.shape)} values, a filter of {_by(self.weight.shape)}, stride "
            f"{_by(self.stride)}, padding {_by(self.padding)}: {_by(self.size)} values, by "
            f"{zeros} multiplications with the zeros and {phases} without"
        )
        return plots.cells(grids, title=title)

    @property
    def _spans(self) -> tuple[int, ...]:
        """How far the filter's last tap lies from its first."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.weight.shape, strict=True))

    def _valued(self, taps: Tensor) -> Tensor:
        return torch.cat([self.weight.new_zeros(1), self.weight.flatten()])[taps]

    def _cropped(self, padded: Tensor) -> Tensor:
        inside = zip(self.padding, self.size, strict=True)
        return padded[tuple(slice(p, p + n) for p, n in inside)]

    def _phase(self, axes: Sequence[_Axis]) -> Phase:
        """The phase of one remainder on each axis: a dense convolution of stride 1."""
        outputs = tuple(axis.outputs for axis in axes)
        taps = tuple(axis.taps for axis in axes)
        weight = self.weight
        for axis, used in enumerate(taps):
            weight = weight.index_select(axis, torch.tensor(used, dtype=torch.int64))
        size = [len(each) for each in outputs]
        if not weight.numel():
            return Phase(outputs, taps, weight, self.y.new_zeros(size))
        y = _framed(self.y, [axis.around for axis in axes])[None, None]
        convolve: Any = F.conv1d if self.y.dim() == 1 else F.conv2d
        filter = weight.flip(list(range(weight.dim())))[None, None]
        steps = [axis.step for axis in axes]
        result = convolve(y, filter, dilation=steps)[0, 0]
        return Phase(outputs, taps, weight, result)

    def _name(self, tap: Sequence[int]) -> str:
        """w1 for the first tap; w11 with two axes, w1,10 where a digit does not do."""
        numbers = [str(i + 1) for i in tap]
        return "w" + ("" if max(map(len, numbers)) == 1 else ",").join(numbers)

    def _names(self) -> list[str]:
        return ["", *map(self._name, itertools.product(*map(range, self.weight.shape)))]

    def _written(self, taps: Tensor) -> list[str]:
        """A matrix by the names of its taps, where a line can hold it."""
        if taps.shape[1] > _WIDEST:
            return []
        names = [name or "." for name in self._names()]
        width = max(map(len, names))
        return ["  " + " ".join(names[i].rjust(width) for i in row) for row in taps.tolist()]

    def _colors(self) -> Tensor:
        """The phase of each cell of the result, counted from 1."""
        colors = torch.zeros(self.size, dtype=torch.int64)
        for number, phase in enumerate(self.phases, 1):
            colors[tuple(slice(o[0], None, s) for o, s in self._strides(phase))] = number
        return colors

    def _strides(self, phase: Phase) -> list[tuple[tuple[int, ...], int]]:
        return [*zip(phase.outputs, self.stride, strict=True)]

    def _tap_colors(self) -> list[int]:
        """The phase of each tap by its number, counted from 1; 0 for no tap, or one that is cut."""
        colors = torch.zeros(self.weight.shape, dtype=torch.int64)
        for number, phase in enumerate(self.phases, 1):
            for tap in itertools.product(*phase.taps):
                colors[tap] = number
        return [0, *colors.flatten().tolist()]

    def _matrices(self) -> list[list[plots.Cells]]:
        names, paints = self._names(), self._tap_colors()
        (cut,), (rows,) = self.padding, self.size
        inside = [cut <= i < cut + rows for i in range(self.padded_size[0])]

        def matrix(title: str, taps: Tensor) -> plots.Cells:
            table = taps.tolist()
            return plots.Cells(
                title,
                [[names[tap] for tap in row] for row in table],
                [[paints[tap] for tap in row] for row in table],
            )

        def column(title: str, values: Tensor, colors: Sequence[int]) -> plots.Cells:
            shown = [_short(value) for value in values.tolist()]
            return plots.Cells(title, [[text] for text in shown], [[color] for color in colors])

        colors = self._colors().tolist()
        whole = [0] * cut + colors + [0] * (len(inside) - cut - rows)
        plain = [-1] * self.y.numel()
        y = column("y", self.y, plain)
        spread = [-1 if value else 0 for value in self._is_value().tolist()]
        zeros = column("y, zeros", self.spread, spread)
        return [
            [matrix(f"W, {_by(self.taps.shape)}", self.taps)],
            [
                matrix(f"Wᵀ, {_by(self.taps.T.shape)}", self.taps.T),
                y,
                column("Wᵀ y", self.padded, whole),
                matrix("flipped filter, stride 1", self.subpixel_taps),
                zeros,
                column("result", self.result, colors),
            ],
            self._small(),
        ]

    def _is_value(self) -> Tensor:
        """Which cells of `spread` hold a value of y, not an inserted zero."""
        ones = Deconvolution(
            torch.ones_like(self.y),
            self.weight,
            self.stride,
            self.padding,
            self.output_padding,
            self.dilation,
        )
        return ones.spread

    def _maps(self) -> list[list[plots.Cells]]:
        names, paints = self._names()[1:], self._tap_colors()[1:]
        width = self.weight.shape[1]
        filter = plots.Cells(
            f"filter, {_by(self.weight.shape)}",
            [names[i : i + width] for i in range(0, len(names), width)],
            [paints[i : i + width] for i in range(0, len(paints), width)],
        )
        values = torch.where(self._is_value() > 0, -1, 0)
        return [
            [
                _map(f"y, {_by(self.y.shape)}", self.y, torch.full(self.y.shape, -1)),
                _map(f"y with zeros, {_by(self.spread.shape)}", self.spread, values),
                filter,
                _map(f"result, {_by(self.size)}", self.result, self._colors()),
            ],
            self._small(),
        ]

    def _small(self) -> list[plots.Cells]:
        """The filter and the result of each phase."""
        found = []
        for number, phase in enumerate(self.phases, 1):
            rows = [
                [self._name((*row, i)) for i in phase.taps[-1]]
                for row in itertools.product(*phase.taps[:-1])
            ]
            paint = [[number] * len(row) for row in rows]
            head = f"phase {number}"
            if phase.weight.numel():
                found.append(plots.Cells(head, rows, paint))
            result = phase.result.reshape(-1, phase.result.shape[-1])
            found.append(
                _map(f"its {_by(phase.result.shape)}", result, torch.full(result.shape, number))
            )
        return found


@dataclass(frozen=True)
class _Axis:
    """One axis of a phase: its outputs and taps, zeros around y, cells between two taps."""

    outputs: tuple[int, ...]
    taps: tuple[int, ...]
    around: tuple[int, int]
    step: int


def _phase(
    first: int, count: int, stride: int, padding: int, dilation: int, kernel: int, size: int
) -> _Axis:
    """What makes the results ``first``, ``first + stride``, ... of `size` on an axis.

    Result o is the sum of w[k] y[i] over ``i * stride + k * dilation == o + padding``.
    """
    outputs = tuple(range(first, size, stride))
    place = first + padding
    taps = tuple(k for k in range(kernel) if (place - k * dilation) % stride == 0)
    if not taps:
        return _Axis(outputs, (), (0, 0), 1)
    step = dilation // math.gcd(stride, dilation)
    start = (place - taps[-1] * dilation) // stride  # the first value that the first result reads
    end = start + (len(taps) - 1) * step + len(outputs)
    return _Axis(outputs, taps, (-start, end - count), step)


def _taps(
    rows: Sequence[int],
    columns: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Which tap of a convolution's filter connects each cell of its output with each of its input:
    (cells of the output, cells of the input) int64, counted from 1, or 0."""
    table = torch.zeros(*rows, *columns, dtype=torch.int64)
    for number, tap in enumerate(itertools.product(*map(range, kernel)), 1):
        for row in itertools.product(*map(range, rows)):
            axes = zip(row, stride, tap, dilation, strict=True)
            table[(*row, *(o * s + k * d for o, s, k, d in axes))] = number
    return table.view(math.prod(rows), math.prod(columns))


def _framed(values: Tensor, ends: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros around `values`, so many before and behind on each axis; where that is less than none,
    so many cells are cut off instead, inserted zeros too."""
    values = F.pad(values, [max(end, 0) for pair in reversed(ends) for end in pair])
    for axis, (before, behind) in enumerate(ends):
        first, last = max(-before, 0), values.shape[axis] - max(-behind, 0)
        values = values.narrow(axis, first, last - first)
    return values


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _short(value: float) -> str:
    return f"{value:.3g}"


def _rows(values: Tensor) -> list[str]:
    """A line of text for each row."""
    table = values.reshape(-1, values.shape[-1]).tolist()
    return ["  " + " ".join(map(_short, row)) for row in table]


def _map(title: str, values: Tensor, colors: Tensor) -> plots.Cells:
    texts = [[_short(value) for value in row] for row in values.tolist()]
    return plots.Cells(title, texts, colors.tolist())


def _ints(name: str, value: Ints, dims: int, least: int) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or any(v < least for v in values):
        raise ValueError(
            f"explain_deconv: expected {name} to be an int or {dims} ints, {least} at least, "
            f"got {value}"
        )
    return values


def explain_deconv(
    y: Tensor | Sequence[Any],
    weight: Tensor | Sequence[Any],
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    dilation: Ints = 1,
) -> Deconvolution:
    """A small transposed convolution as a matrix, as its transpose, in the sub-pixel form and by
    phases, to look at (Shi et al., "Is the deconvolution layer the same as a convolutional layer?",
    arXiv:1609.07009).

    ::

        explained = backsight.explain_deconv([1, 2, 3, 4, 5], [1, 2, 3, 4], stride=2, padding=2)
        print(explained)  # the matrices, by the names of the taps
        explained.plot().savefig("deconvolution.png")

    The result equals ``torch.nn.functional.conv_transpose1d`` or ``2d`` of one channel.

    Args:
        y: (N) or (H, W), what is convolved: numbers.
        weight: (K) or (KH, KW), as torch has it, not flipped: numbers.
        stride, dilation: positive, one or one for each axis.
        padding: what is cropped at each end.
        output_padding: what is added behind; less than the stride or than the dilation.

    Raises:
        ValueError: wrong shapes or sizes, no result, or matrices of more than 2^20 entries.
    """
    values = torch.as_tensor(y, dtype=torch.float64, device="cpu").detach()
    filter = torch.as_tensor(weight, dtype=torch.float64, device="cpu").detach()
    dims = values.dim()
    if dims not in (1, 2) or filter.dim() != dims or not values.numel() or not filter.numel():
        raise ValueError(
            "explain_deconv: expected y and weight of one or of two axes both, not empty, got "
            f"{tuple(values.shape)} and {tuple(filter.shape)}"
        )
    found = Deconvolution(
        values,
        filter,
        _ints("stride", stride, dims, 1),
        _ints("padding", padding, dims, 0),
        _ints("output_padding", output_padding, dims, 0),
        _ints("dilation", dilation, dims, 1),
    )
    steps = zip(found.output_padding, found.stride, found.dilation, strict=True)
    if any(extra >= max(s, d) for extra, s, d in steps):
        raise ValueError(
            "explain_deconv: expected an output_padding less than the stride or than the dilation, "
            f"got {found.output_padding} with {found.stride} and {found.dilation}"
        )
    if min(found.size) < 1:
        raise ValueError(f"explain_deconv: expected a result of a cell at least, got {found.size}")
    rows, columns = values.numel(), math.prod(found.padded_size)
    # the sub-pixel form has as many rows as results, and hardly more columns than the padded x
    entries = max(rows, math.prod(found.size)) * columns
    if entries > _LARGEST:
        raise ValueError(
            f"explain_deconv: expected a small case, of {_LARGEST} entries at most, got {entries}"
        )
    return found
