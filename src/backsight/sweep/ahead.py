"""Regions of an image that are read while others are computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch import Tensor

from ..maps import Box

__all__ = ["Ahead", "Reader"]

#: Reads a region of the image: (1, channels, *box), as the network takes it.
Reader = Callable[[Box], Tensor]


class Ahead:
    """A reader that begins with a region as soon as it is announced, in a thread of its own. Only
    one region is read at a time.
    """

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[Box, Future[Tensor]] | None = None

    def announce(self, box: Box) -> None:
        """This region will be asked for next."""
        if self._next is None or self._next[0] != box:
            self._drop()
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "backsight-reader")
            self._next = box, self._thread.submit(self._read, box)

    @property
    def pending(self) -> Box | None:
        """What was announced and not asked for yet."""
        return None if self._next is None else self._next[0]

    def __call__(self, box: Box) -> Tensor:
        if self._next is not None and self._next[0] == box:
            found = self._next[1]
            self._next = None
            return found.result()
        self._drop()
        return self._read(box)

    def close(self) -> None:
        """End the thread; a later announcement begins another."""
        self._drop()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _drop(self) -> None:
        """Let go of what was announced and not asked for."""
        if self._next is not None:
            found = self._next[1]
            self._next = None
            if not found.cancel():
                wait([found])
