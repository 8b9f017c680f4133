"""How fast this device convolves: the one measurement behind a plan's estimated time."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
import torch.nn.functional as F


def flop_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a 3x3 convolution of 256 channels on this device."""
    return _measured(str(device), dtype, torch.get_num_threads())


@lru_cache(maxsize=64)
def _measured(device: str, dtype: torch.dtype, threads: int) -> float:
    channels, size = 256, 12
    with torch.no_grad():
        x = torch.ones(4, channels, size, size, dtype=dtype, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.ones(channels, channels, 3, 3, dtype=dtype, device=device)
        flops = 2 * weight.numel() * x.shape[0] * (size - 2) ** 2
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            F.conv2d(x, weight)
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return flops / min(seconds)
