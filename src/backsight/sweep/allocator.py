"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from functools import lru_cache


def give_back() -> None:
    """Hand freed memory back where the C library would keep it (glibc; elsewhere nothing is done).

    Blocks of every size come and go in a sweep, and what lies free between them is neither of use
    to larger ones nor to other processes: hundreds of mebibytes after a pass over a large image.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> ctypes._NamedFuncPointer | None:
    try:
        trim: ctypes._NamedFuncPointer = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim
