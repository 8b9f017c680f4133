"""The judge of every projection: slow, obvious, whole images, by autograd, and independent of the
package.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RELUS = (
    torch.relu,
    torch.relu_,
    F.relu,
    F.relu_,
    Tensor.relu,
    Tensor.relu_,
)


class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: str) -> Tensor:
        ctx.save_for_backward(x > 0)
        ctx.rule = rule
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        (passed,) = ctx.saved_tensors
        if ctx.rule == "gradient":
            return signal * passed, None
        signal = signal * (signal > 0)
        return (signal if ctx.rule == "deconvnet" else signal * passed), None


class _Set(torch.autograd.Function):
    """max_pool2d whose backward puts values back one after the other, each over what was there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *pool: Any) -> Tensor:
        y, index = F.max_pool2d(x, *pool, return_indices=True)
        ctx.index, ctx.shape = index, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Any, ...]:
        back = signal.new_zeros(*ctx.shape[:2], ctx.shape[2] * ctx.shape[3])
        for n in range(ctx.shape[0]):
            for c in range(ctx.shape[1]):
                values = signal[n, c].flatten().tolist()
                for to, value in zip(ctx.index[n, c].flatten().tolist(), values, strict=True):
                    back[n, c, to] = value
        return back.view(ctx.shape), *[None] * 5


class _Past(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal, None


class Rules(TorchFunctionMode):
    """ReLUs, pools and local response norms that go back by other rules, however they are spelt."""

    def __init__(self, rule: str, unpool: str, lrn: str) -> None:
        super().__init__()
        self.rule, self.unpool, self.lrn = rule, unpool, lrn
        self.inside = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        if func in RELUS:
            return _Rectifier.apply(args[0], self.rule)
        if func is F.max_pool2d and self.unpool == "set":
            pool = (args[1:] + (None,) * 5)[:5]
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            given = [kwargs.get(n, p) for n, p in zip(names, pool, strict=True)]
            kernel, stride, padding, dilation, ceil_mode = given
            pool = (kernel, stride or kernel, padding or 0, dilation or 1, bool(ceil_mode))
            return _Set.apply(args[0], *pool)
        if func is F.local_response_norm and self.lrn == "pass":
            self.inside = True
            try:
                return _Past.apply(args[0], func(args[0].detach(), *args[1:], **kwargs))
            finally:
                self.inside = False
        return func(*args, **kwargs)


def layers_of(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of the maps that the model's modules put out, by name."""
    found: dict[str, tuple[int, ...]] = {}

    def hook(name: str) -> Any:
        def keep(_: Any, __: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == images.ndim and len(out) == len(images):
                found[name] = tuple(out.shape[1:])

        return keep

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def projected(
    model: nn.Module,
    images: Tensor,
    layer: str | None,
    units: list[tuple[int, ...]],
    seed: str | float,
    rule: str = "gradient",
    unpool: str = "add",
    lrn: str = "gradient",
) -> Tensor:
    """Each unit's signal in its whole image: (units, channels, *spatial)."""
    held: list[Tensor] = []
    module = model if layer is None else dict(model.named_modules())[layer]
    handle = module.register_forward_hook(lambda _, __, out: held.append(out + 0))
    x = images.clone().requires_grad_()
    try:
        with Rules(rule, unpool, lrn):
            model(x + 0)
    finally:
        handle.remove()
    pictures = []
    for unit in units:
        value = held[-1][unit]
        start = value.detach() if seed == "activation" else torch.full_like(value, float(seed))
        (grad,) = torch.autograd.grad(value, x, start, retain_graph=True)
        pictures.append(grad[unit[0]])
    return torch.stack(pictures)
