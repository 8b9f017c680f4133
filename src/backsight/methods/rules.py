"""What a signal does on its way back through a ReLU: three rules, for models as black boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from backsight import ops
from backsight.ops.relu import empty_bits

__all__ = ["Rules", "rules"]

aten = torch.ops.aten


def rules(rule: str) -> Rules:
    """A context in which every ReLU that a model computes sends signals back by `rule`.

    With f what goes into a ReLU and R the signal that comes back to it,

    - "gradient": R where f > 0, else 0;
    - "deconvnet": max(R, 0) (Zeiler & Fergus 2013, arXiv:1311.2901);
    - "guided": max(R, 0) where f > 0, else 0 (Springenberg et al. 2014, arXiv:1412.6806).

    ::

        with backsight.rules("guided") as applied:
            scores = model(images)  # images require a gradient
        (signal,) = torch.autograd.grad(scores[:, 7].sum(), images)
        applied.intercepted  # how many activations the model computed

    The forward counts: what runs within the context has the rule, whenever its backward runs. A
    model may be any callable. Neither it nor what it computes changes, and it keeps one bit an
    element for each ReLU. Works within `torch.compile` and around it, and is as often
    differentiable as a ReLU.

    ReLUs are `nn.ReLU`, `F.relu`, `torch.relu`, `Tensor.relu` and their in-place forms, and what
    clamps to [0, inf) or to [0, b] for a number b: `clamp`, `clip`, `clamp_min`, `hardtanh`,
    `relu6`, `threshold`. With b, f > 0 above stands for 0 < f < b. Other activations (SiLU, GELU,
    tanh, sigmoid, ELU, leaky ReLU and the like) keep their own backward; "deconvnet" and "guided"
    give it max(R, 0). It must be torch's Python functions that are called: activations inside a
    scripted module or inside `nn.LSTM` are not seen.

    Args:
        rule: "gradient", "deconvnet" or "guided".

    Raises:
        ValueError: another rule.
        RuntimeError: at the end of the context, if it met no activation.
    """
    return Rules(rule)


class Rules(TorchFunctionMode):
    """The context of `rules`; it need not meet an activation if not `required`.

    Attributes:
        rule: the rule.
        intercepted: activations computed since the context was entered.
    """

    def __init__(self, rule: str, required: bool = True) -> None:
        super().__init__()
        if rule not in ops.RULES:
            raise ValueError(f"expected rule to be one of {', '.join(ops.RULES)}, got {rule!r}")
        self.rule = rule
        self.required = required
        self.intercepted = 0

    def __enter__(self) -> Rules:
        self.intercepted = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if kind is None and self.required and not self.intercepted:
            raise RuntimeError(
                f"expected a model to compute activations under the rule {self.rule!r}, such as "
                "F.relu or nn.GELU, got none"
            )

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if function in _OTHERS:
            y = function(*args, **named)
            self.intercepted += 1
            return _clamp_signal(y) if self.rule != "gradient" else y
        read = _CLAMPS.get(function)
        if read is None or "out" in named:
            return function(*args, **named)
        x, low, high, in_place = read(*args, **named)
        if not x.is_floating_point() or not _rectifies(low, high):
            return function(*args, **named)
        self.intercepted += 1
        if x.dtype not in ops.DTYPES or not (torch.is_grad_enabled() and x.requires_grad):
            return function(*args, **named)
        return _rectified(x, self.rule, high, in_place)


# ------------------------------------------------------------------ what is intercepted

# Readers of arguments: the input, the bounds (None: no bound), and whether it is overwritten.
Bounds = tuple[Tensor, Any, Any, bool]


def _of_relu(input: Tensor, inplace: bool = False) -> Bounds:
    return input, 0, None, inplace


def _of_relu6(input: Tensor, inplace: bool = False) -> Bounds:
    return input, 0, 6, inplace


def _of_hardtanh(
    input: Tensor, min_val: Any = -1, max_val: Any = 1, inplace: bool = False
) -> Bounds:
    return input, min_val, max_val, inplace


def _of_threshold(input: Tensor, threshold: Any, value: Any, inplace: bool = False) -> Bounds:
    return input, threshold if value == threshold else None, None, inplace


def _of_clamp(input: Tensor, min: Any = None, max: Any = None) -> Bounds:
    return input, min, max, False


def _in_place(read: Callable[..., Bounds]) -> Callable[..., Bounds]:
    return lambda *args, **kwargs: (*read(*args, **kwargs)[:3], True)


_CLAMPS: dict[Callable[..., Any], Callable[..., Bounds]] = {
    **dict.fromkeys([F.relu, torch.relu, Tensor.relu, aten.relu.default], _of_relu),
    **dict.fromkeys([torch.relu_, Tensor.relu_, aten.relu_.default], _in_place(_of_relu)),
    F.relu6: _of_relu6,
    **dict.fromkeys([F.hardtanh, aten.hardtanh.default], _of_hardtanh),
    **dict.fromkeys([F.hardtanh_, aten.hardtanh_.default], _in_place(_of_hardtanh)),
    **dict.fromkeys([F.threshold, torch.threshold], _of_threshold),
    torch.threshold_: _in_place(_of_threshold),
    **dict.fromkeys(
        [
            *(torch.clamp, torch.clip, torch.clamp_min),
            *(Tensor.clamp, Tensor.clip, Tensor.clamp_min),
            *(aten.clamp.default, aten.clamp_min.default),
        ],
        _of_clamp,
    ),
    **dict.fromkeys(
        [
            *(torch.clamp_, torch.clip_, torch.clamp_min_),
            *(Tensor.clamp_, Tensor.clip_, Tensor.clamp_min_),
            *(aten.clamp_.default, aten.clamp_min_.default),
        ],
        _in_place(_of_clamp),
    ),
}

_OTHERS = {
    *(F.celu, torch.celu, torch.celu_, F.elu, F.elu_, F.selu, torch.selu, torch.selu_),
    *(F.gelu, F.silu, F.mish, F.hardswish),
    *(F.leaky_relu, F.leaky_relu_, F.prelu, Tensor.prelu, F.rrelu, torch.rrelu, torch.rrelu_),
    *(F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.hardsigmoid),
    *(F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_),
    *(F.softplus, F.softsign, F.logsigmoid, F.hardshrink, F.softshrink, F.tanhshrink),
}


def _rectifies(low: Any, high: Any) -> bool:
    numbers = isinstance(low, int | float) and (high is None or isinstance(high, int | float))
    return numbers and low == 0 and (high is None or high > 0)


# ------------------------------------------------------------------ what stands in their place


def _rectified(x: Tensor, rule: str, high: float | None, in_place: bool) -> Tensor:
    compiling = torch.compiler.is_compiling()  # a graph has no in-place forms in the end
    if high is not None or (in_place and not compiling):
        arguments = (x, rule, high, in_place and not compiling)
        y: Tensor = _Rectified.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        y = ops.relu(_rows(x), rule)[0].view(x.shape)
    return x.copy_(y) if in_place and compiling else y


def _rows(x: Tensor) -> Tensor:
    """x as an op takes it: as it is, or as one row."""
    return x if 2 <= x.dim() <= 5 else x.reshape(1, -1)


class _Rectified(torch.autograd.Function):
    """x clamped to [0, high], or to [0, inf) in place, with the backward of a rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: str, high: float | None, in_place: bool) -> Tensor:
        rows, bits = _rows(x), None
        if rule != "deconvnet" and high is not None:
            # Of NaN both bits are set: it passes, as it does in torch.
            bits = ops.relu(rows)[1] & ops.relu(high - rows)[1]
        if high is not None:
            y = F.hardtanh(x, 0, high, in_place)
        elif rule == "deconvnet" or rows.data_ptr() != x.data_ptr():
            bits = None if rule == "deconvnet" else ops.relu(rows)[1]
            y = F.relu(x, in_place)
        else:
            bits = empty_bits(rows)
            ops.relu(rows, out=(rows, bits))
            y = x
        ctx.rule = rule
        ctx.save_for_backward(bits)
        if in_place:
            ctx.mark_dirty(x)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        signal = ops.rectify(_rows(grad), bits, ctx.rule)
        return signal.view(grad.shape), None, None, None


class _Clamped(torch.autograd.Function):
    """x, with the negative part of the signal taken off on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _positive(grad)


def _positive(grad: Tensor) -> Tensor:
    return ops.rectify(_rows(grad), None, "deconvnet").view(grad.shape)


def _clamp_signal(y: Any) -> Any:
    if not isinstance(y, Tensor) or y.dtype not in ops.DTYPES or not y.requires_grad:
        return y
    if torch.compiler.is_compiling():
        return _Clamped.apply(y)  # type: ignore[no-untyped-call]
    y.register_hook(_positive)  # y stays itself, which may be the input
    return y
