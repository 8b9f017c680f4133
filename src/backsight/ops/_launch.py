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


_peek_functorch = torch._C._functorch.peek_interpreter_stack


def is_plain(x: Tensor) -> bool:
    """Whether an op on `x` needs nothing of torch's dispatcher, so that its kernel may be called
    directly: no gradient, no compiler, tracer or mode that wants to see the call, no subclass, and
    a device with kernels. The dispatcher costs more than a small kernel."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not (x.requires_grad and torch.is_grad_enabled())
        and (x.is_cpu or (x.is_cuda and "CUDA" in KEYS))
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._is_torch_function_mode_enabled()
        and _peek_functorch() is None
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )
