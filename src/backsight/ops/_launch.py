"""Hands the arguments of an op to its compiled kernel for the device they lie on."""

from __future__ import annotations

import torch
from torch import Tensor

from backsight import _C

# Dispatch keys with kernels in this build; the oracles serve all others.
KEYS = ("CPU", "CUDA") if _C.cuda_archs else ("CPU",)


def launch(name: str, like: Tensor, *args: object) -> None:
    """Calls kernel `name`: on torch's threads, or on the current stream of the device of `like`."""
    if like.is_cuda:
        with torch.cuda.device(like.device):
            stream = torch.cuda.current_stream().cuda_stream
            getattr(_C, f"{name}_cuda")(stream, *args)
    else:
        getattr(_C, f"{name}_cpu")(torch.get_num_threads(), *args)
