"""How the C library keeps memory that was freed: within a sweep for the next batch, afterwards for
nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import threading
from collections.abc import Iterator
from functools import lru_cache

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: Where glibc's own adaptation of its two thresholds ends, once blocks so large were freed.
_ADAPTED = {_MMAP_MAX: 1 << 16, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
#: No block gets pages of its own from the system, and none goes back on its own.
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: (1 << 31) - 1}

#: Bytes that libraries take in a sweep, about.
_SPARE = 32 << 20

_lock = threading.Lock()
_sweeps = 0


@contextlib.contextmanager
def reuse() -> Iterator[None]:
    """While this lasts, freed memory is kept for the next block of any size (glibc; elsewhere
    nothing is done).

    Every batch asks for the same large blocks again. By default the system hands each out page by
    page, zeroed, and takes it back: as much time as many a layer needs. The settings are the
    process's. They end where glibc's own adaptation does, and what is free goes back to the
    system. Where the environment sets malloc's, they stand.
    """
    global _sweeps
    with _lock:
        _sweeps += 1
        if _sweeps == 1:
            _set(_KEEPING)
    try:
        yield
    finally:
        with _lock:
            _sweeps -= 1
            if not _sweeps:
                _set(_ADAPTED)
        give_back()


def give_back() -> None:
    """Hand freed memory back where the C library would keep it (glibc; elsewhere nothing is done).

    Blocks of every size come and go in a sweep, and what lies free between them is neither of use
    to larger ones nor to other processes: hundreds of mebibytes after a pass over a large image.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


class Ceiling:
    """How much memory a sweep may take beside what the process has.

    The C library keeps what was freed, and what it keeps may be of no use to the next block: so
    before much is taken, what is free goes back to the system where both would be too much. Only on
    Linux is it known how much that is.

    Args:
        limit: bytes.
        taken: those of them that the sweep has taken already.
    """

    def __init__(self, limit: int, taken: int = 0) -> None:
        # Libraries take some without asking: compiled kernels, scratch.
        spare = max(limit // 16, min(limit // 4, _SPARE))
        self._highest = _resident() + limit - spare - taken

    def make_room(self, size: int) -> None:
        """So many bytes are about to be taken."""
        if _resident() + size > self._highest:
            give_back()


def _resident() -> int:
    """Bytes of this process that are in memory; 0 where that is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _set(options: dict[int, int]) -> None:
    mallopt = _function("mallopt")
    if mallopt is None or _is_set_by_environment():
        return
    for option, value in options.items():
        mallopt(option, value)


def _is_set_by_environment() -> bool:
    names = [name for name in os.environ if name.startswith("MALLOC_") and name.endswith("_")]
    return bool(names) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


@lru_cache(maxsize=8)
def _function(name: str) -> ctypes._NamedFuncPointer | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries' options have other numbers
        found: ctypes._NamedFuncPointer = getattr(library, name)
    except (AttributeError, OSError, TypeError):
        return None
    return found
