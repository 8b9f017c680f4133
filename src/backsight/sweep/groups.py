"""Group positions so that one batch shape serves each group at little waste.

Two positions can share a batch when their windows have the same sizes at every layer. Few do
exactly (sizes depend on the alignment to the strides and on the edges), so groups are merged, the
windows of each made as large as the larger of the two, as long as that costs less time than the
launches it saves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: More classes than this are thinned out along each axis before pairs are compared.
_MANY = 400


@dataclass(frozen=True)
class Cost:
    """Seconds: `cell` per output cell of each layer (layers,), `batch` per batch launched, of at
    most `rows` rows.
    """

    cell: Floats
    batch: float
    rows: int

    def of(self, sizes: Ints, counts: Floats | Ints) -> Floats:
        """Time of groups with window `sizes` (..., layers, D) and `counts` (...) positions."""
        work: Floats = (sizes.prod(-1) @ self.cell) * counts + self.batch * np.ceil(
            counts / self.rows
        )
        return work


def group(sizes: Ints, cost: Cost) -> tuple[Ints, Ints]:
    """Group positions by their window sizes.

    Args:
        sizes: (positions, layers, D), the window each position needs.

    Returns:
        label (positions,): the group of each position; windows (groups, layers, D): each group's
        window sizes.
    """
    classes, label, counts = _unique(sizes.reshape(len(sizes), -1))
    if len(classes) > _MANY:
        sizes = np.stack([_thin(sizes[:, :, d], cost) for d in range(sizes.shape[2])], 2)
        classes, label, counts = _unique(sizes.reshape(len(sizes), -1))
    windows = classes.reshape(-1, *sizes.shape[1:])
    to, windows = _merge(windows, counts.astype(float), cost)
    return to[label], windows


def _unique(rows: Ints) -> tuple[Ints, Ints, Ints]:
    classes, label, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    return classes, label.reshape(-1), counts


def _thin(sizes: Ints, cost: Cost, most: int = 20) -> Ints:
    """At most `most` different rows of (positions, layers), each at least as large as the one it
    replaces.
    """
    classes, label, counts = _unique(sizes)
    if len(classes) > _MANY:
        order = np.argsort(classes.sum(1), kind="stable")
        bins = np.empty(len(classes), np.int64)
        bins[order] = np.arange(len(classes)) * _MANY // len(classes)
        classes = np.stack([classes[bins == b].max(0) for b in range(_MANY)])
        label = bins[label]
        counts = np.bincount(label, minlength=len(classes))
    to, merged = _merge(classes[:, :, None] ** 2, counts.astype(float), cost, most)
    thinned: Ints = np.sqrt(merged[:, :, 0]).round().astype(np.int64)[to[label]]
    return thinned


def _merge(windows: Ints, counts: Floats, cost: Cost, most: int = 0) -> tuple[Ints, Ints]:
    """Merge the pair of classes that saves most time, again and again, while it saves any or more
    than `most` are left.
    """
    windows, counts = windows.copy(), counts.copy()
    number = len(windows)
    to = np.arange(number)
    alive = np.ones(number, bool)
    time = cost.of(windows, counts)
    saved = np.full((number, number), -np.inf)

    def compare(i: int) -> None:
        both = np.maximum(windows[i], windows)
        row = time[i] + time - cost.of(both, counts[i] + counts)
        row[~alive] = -np.inf
        row[i] = -np.inf
        saved[i] = row
        saved[:, i] = row

    for i in range(number):
        compare(i)
    for left in range(number, 1, -1):
        i, j = divmod(int(saved.argmax()), number)
        if saved[i, j] <= 0 and not 0 < most < left:
            break
        windows[i] = np.maximum(windows[i], windows[j])
        counts[i] += counts[j]
        time[i] = cost.of(windows[i], counts[i])
        alive[j] = False
        saved[j] = saved[:, j] = -np.inf
        to[to == j] = i
        compare(i)
    kept = np.flatnonzero(alive)
    return np.searchsorted(kept, to), windows[kept]
