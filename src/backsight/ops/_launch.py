"""Hands the arguments of an op to its compiled kernel for the device they lie on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from backsight import _C

# Dispatch keys with kernels in this build; the oracles serve all others.
KEYS = ("CPU", "CUDA") if _C.cuda_archs else ("CPU",)


def _kernels(suffix: str) -> dict[str, Callable[..., None]]:
    found = [name for name in dir(_C) if name.endswith(suffix)]
    return {name.removesuffix(suffix): getattr(_C, name) for name in found}


_CPU, _CUDA = _kernels("_cpu"), _kernels("_cuda")


def launch(name: str, like: Tensor, *args: object) -> None:
    """Calls kernel `name`: on torch's threads, or on the current stream of the device of `like`."""
    if like.is_cuda:
        with torch.cuda.device(like.device):
            stream = torch.cuda.current_stream().cuda_stream
            _CUDA[name](stream, *args)
    else:
        _CPU[name](torch.get_num_threads(), *args)


# Bound once: looking them up takes as long as calling them.
_is_compiling = torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._is_torch_function_mode_enabled
_functorch = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._get_tracing_state


def is_plain(x: Tensor) -> bool:
    """Whether an op on `x` needs nothing of torch's dispatcher, so that its kernel may be called
    directly: no gradient, no compiler, tracer or mode that wants to see the call, no subclass, no
    zeros or minus signs still to be written, and a device with kernels. The dispatcher costs more
    than a small kernel."""
    return (
        type(x) is Tensor
        and not _is_compiling()
        and not (x.requires_grad and torch.is_grad_enabled())
        and (x.is_cpu or (x.is_cuda and "CUDA" in KEYS))
        and not x.is_neg()
        and not x._is_zerotensor()
        and _modes() == 0
        and not _function_modes()
        and _functorch() is None
        and forward_ad._current_level < 0
        and _tracing() is None
    )
