"""Weights of convolutions in the layouts that oneDNN asks for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from backsight import _C

#: More shapes than this are not remembered.
_MANY = 10_000


class Packs:
    """Convolution weights in oneDNN's own layouts, the least recently used dropped beyond `limit`
    bytes.

    Which layout oneDNN wants depends on the shape of the input, in ways of its own; given another
    one it converts the weight anew at every call, slowly. So a weight is packed for each shape that
    comes, and one copy of each different layout is kept.
    """

    def __init__(self) -> None:
        self.limit = 0
        self.bytes = 0
        self._kept: OrderedDict[Any, tuple[Tensor, int]] = OrderedDict()
        self._layouts: dict[Any, bytes] = {}  # by weight and shape
        self._lock = threading.Lock()

    @staticmethod
    def can_hold(weight: Tensor) -> bool:
        """Whether oneDNN takes packed weights of this device and dtype from this torch."""
        return weight.device.type == "cpu" and can_pack(weight.dtype)

    def get(self, weight: Tensor, shape: Any, pack: Callable[[], Tensor]) -> Tensor:
        """`weight` in the layout for `shape`; `pack` makes it."""
        with self._lock:
            layout = self._layouts.get((id(weight), shape))
            if layout is not None and (id(weight), layout) in self._kept:
                self._kept.move_to_end((id(weight), layout))
                return self._kept[id(weight), layout][0]
            if len(self._layouts) > _MANY:
                self._layouts.clear()
            packed = pack()
            layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
            self._layouts[id(weight), shape] = layout
            if (id(weight), layout) not in self._kept:
                size = torch.ops.mkldnn._nbytes(packed)
                self._kept[id(weight), layout] = packed, size
                self.bytes += size
            while self.bytes > self.limit and self._kept:
                self.bytes -= self._kept.popitem(last=False)[1][1]
            return packed


class KeptFilter:
    """The layouts of a module's filter, dropped when any of its bytes changes.

    Writing through `.data`, numpy or another library leaves no trace on a tensor, so its bytes are
    read at every call: a small part of what oneDNN takes to lay them out.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, Packs] = None, Packs()

    @property
    def bytes(self) -> int:
        return self._kept[1].bytes

    def get(self, weight: Tensor, shape: Any, pack: Callable[[], Tensor]) -> Tensor:
        """`weight`, dense, in the layout for `shape`; `pack` makes it."""
        size = weight.nbytes
        digest = _C.digest_cpu(torch.get_num_threads(), weight.data_ptr(), size)
        mark = weight.shape, weight.stride(), weight.dtype, digest
        known, packs = self._kept
        if mark != known:
            packs = Packs()
            packs.limit = 3 * size  # two layouts, which may be padded
            self._kept = mark, packs
        return packs.get(weight, shape, pack)


@lru_cache(maxsize=8)
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes packed weights of this dtype from this torch."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    names = (
        "_convolution_pointwise",
        "_convolution_transpose_pointwise",
        "_reorder_convolution_transpose_weight",
        "_reorder_convolution_weight",
        "_get_mkldnn_serialized_md",
        "_nbytes",
        "_is_mkldnn_bf16_supported",
    )
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
