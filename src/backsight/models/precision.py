"""Full precision on GPUs: a drop is smaller than TensorFloat-32 resolves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """While this lasts, cuDNN convolves fp32 in fp32, with the same bits each time.

    The settings are the process's; they are put back, also after an exception.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, True, False
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


@contextlib.contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """Full precision, and no autocast but in the model itself."""
    with full_precision(device), torch.autocast(device.type, enabled=False):
        yield
