"""Which units are in a store, by the names of their files: cheap enough to be asked each second."""

from __future__ import annotations

import contextlib
import os
import re
import time
from os import PathLike
from pathlib import Path

from ...occlusion_store import Store

__all__ = ["Glance"]

#: Of a unit's chunks, the one that is written last.
_LAST = "drops"
_CHUNK = re.compile(r"c\.(\d+)\.0")

#: Seconds between two looks at the folder at least, and how many times as long as a look takes.
_EVERY, _SHARE = 1.0, 20.0


class Glance:
    """The units of a store, also while it is being written; their checksums are not computed.

    Attributes:
        units: positions per unit.
        done: numbers of those that were there at the last look.
        positions: of them.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.units = Store.view(path).units
        self.done: set[int] = set()
        self.positions = 0
        self._folder = Path(path) / _LAST
        self._names: set[str] = set()
        self._next = 0.0
        self.look(now=True)

    def look(self, *, now: bool = False) -> set[int] | None:
        """Look again, unless the last look was only just (None); the units that are new."""
        started = time.monotonic()
        if not now and started < self._next:
            return None
        names = set(os.listdir(self._folder)) - self._names
        self._names |= names
        new = {unit for unit in map(self._unit, names) if unit is not None}
        self.done |= new
        self.positions += sum(self.units[unit] for unit in new)
        ended = time.monotonic()
        self._next = ended + max(_EVERY, _SHARE * (ended - started))
        return new

    def times(self) -> dict[int, float]:
        """When each unit was written: the time of its file, in seconds since the epoch."""
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                unit = self._unit(entry.name)
                if unit is not None:
                    # It may be written anew meanwhile.
                    with contextlib.suppress(FileNotFoundError):
                        found[unit] = entry.stat().st_mtime
        return found

    def _unit(self, name: str) -> int | None:
        match = _CHUNK.fullmatch(name)
        unit = int(match[1]) if match else len(self.units)
        return unit if unit < len(self.units) else None
