"""What captum's methods share: their interface, and how arguments and targets are read."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])
Target = int | tuple[Any, ...] | Tensor | list[int] | list[tuple[int, ...]] | None


def unwrappable(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Give a method the `__wrapped__` by which captum's NoiseTunnel calls it."""

    @functools.wraps(method)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return method(*args, **kwargs)

    return call


class Attribution:
    """The part of captum's interface that is the same for all of its methods here."""

    forward_func: Callable[..., Any]

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    def has_convergence_delta(self) -> bool:
        return False

    @classmethod
    def get_name(cls) -> str:
        """The class's name in words."""
        return "".join(c if c.islower() or not i else f" {c}" for i, c in enumerate(cls.__name__))

    def attribute_future(self) -> NoReturn:
        """captum's methods have none either."""
        raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")


def read_tensors(inputs: object) -> tuple[Tensor, ...]:
    found = inputs if isinstance(inputs, tuple) else (inputs,)
    if not found or not all(isinstance(x, Tensor) and x.ndim for x in found):
        came = [f"{tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in found]
        raise AssertionError(
            "expected inputs as a tensor (examples, ...) or a tuple of them,"
            f" got {', '.join(came) or 'an empty tuple'}"
        )
    return found


def as_tuple(additional_forward_args: object) -> tuple[Any, ...]:
    if additional_forward_args is None:
        return ()
    if isinstance(additional_forward_args, tuple):
        return additional_forward_args
    return (additional_forward_args,)


def takes_none(forward_func: Callable[..., Any]) -> bool:
    """Whether captum calls a function without any argument."""
    try:
        return not inspect.signature(forward_func).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def forward(
    forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], further: tuple[Any, ...]
) -> Any:
    return forward_func() if takes_none(forward_func) else forward_func(*inputs, *further)


def read_scores(output: object, target: Target) -> Tensor:
    """The target's scores in what `forward_func` returned."""
    if target is None and isinstance(output, int | float):
        return torch.tensor(output, dtype=torch.float64)
    if not isinstance(output, Tensor):
        raise AssertionError(
            f"expected forward_func to return a tensor, an int or a float, got {type(output)}"
        )
    return select(output, target)


def select(output: Tensor, target: Target) -> Tensor:
    """The target's entries of output (examples, ...), by captum's rules; the first axis stays.

    Raises:
        AssertionError: a target of a wrong type or length.
        IndexError: an index outside the output.
        RuntimeError: one of a list or tensor of indices outside the output.
    """
    if target is None:
        return output
    came = f"got {target!r} for scores of shape {tuple(output.shape)}"
    if not output.ndim:
        raise IndexError(f"expected no target for a single score, {came}")
    if isinstance(target, Tensor) and target.numel() == 1 and isinstance(target.item(), int):
        target = int(target.item())
    if isinstance(target, int | tuple):
        index = target if isinstance(target, tuple) else (target,)
        if len(index) > output.ndim - 1:
            raise AssertionError(f"expected at most {output.ndim - 1} indices as target, {came}")
        try:
            return output[(slice(None), *index)]
        except IndexError:
            raise IndexError(f"expected a target within the scores, {came}") from None
    if not isinstance(target, Tensor | list):
        raise AssertionError(
            "expected target to be an int, a tuple, a list, a tensor or None,"
            f" got {type(target).__name__}"
        )
    if (isinstance(target, Tensor) and target.ndim != 1) or len(target) != len(output):
        raise AssertionError(f"expected a target for each of {len(output)} examples, {came}")
    if isinstance(target, list) and isinstance(target[0], tuple):
        try:
            return torch.stack([output[(i, *t)] for i, t in enumerate(target)])
        except IndexError:
            raise IndexError(f"expected targets within the scores, {came}") from None
    if isinstance(target, list) and not isinstance(target[0], int):
        raise AssertionError(
            f"expected a list of integers or tuples as target, got {type(target[0]).__name__}"
        )
    if output.ndim != 2:
        raise AssertionError(f"expected scores (examples, outputs) for a list of targets, {came}")
    columns = torch.as_tensor(target, device=output.device)
    if columns.is_floating_point() or bool(((columns < 0) | (columns >= output.shape[1])).any()):
        raise RuntimeError(f"expected integer targets in [0, {output.shape[1]}), {came}")
    return output.gather(1, columns.long()[:, None]).squeeze(1)
