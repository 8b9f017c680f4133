"""How fast a store fills, which itself holds no clock: by the times of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["speed"]

#: A pause is a gap between two units so many times as long as is usual, and of so many seconds.
_PAUSE, _SECONDS = 10.0, 30.0
#: Of so many gaps in a row, the longest counts: processes in step store their units together.
_TOGETHER = 8


def speed(times: Mapping[int, float], positions: Sequence[int]) -> float | None:
    """Positions per second since the last pause, of all processes together.

    An approximation: a unit is taken to have been computed since the one stored before it.

    Args:
        times: when each unit that is done was stored, in seconds.
        positions: of each unit.

    Returns:
        None where fewer than two units have been stored since the last pause, or all at once.
    """
    units = sorted(times, key=lambda unit: (times[unit], unit))
    if len(units) < 2:
        return None
    at = np.array([times[unit] for unit in units])
    gaps = np.diff(at)
    usual = _usual(gaps)
    pauses = np.flatnonzero(gaps > max(_PAUSE * usual, _SECONDS))
    first = int(pauses[-1]) + 1 if len(pauses) else 0
    seconds = float(at[-1] - at[first])
    # When the first of them was begun is not known.
    made = sum(positions[unit] for unit in units[first + 1 :])
    return made / seconds if seconds > usual / 2 else None


def _usual(gaps: npt.NDArray[np.float64]) -> float:
    """The longest gap among neighbours, where it is short: pauses are few."""
    width = max(1, min(_TOGETHER, len(gaps) // 3))
    rows = np.lib.stride_tricks.sliding_window_view(gaps, width)
    return float(np.quantile(rows.max(1), 0.25, method="lower"))
