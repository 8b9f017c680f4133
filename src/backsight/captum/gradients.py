"""Signals that come back to the inputs of a model, for captum's gradient methods."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from backsight.captum.attribution import (
    Attribution,
    Inputs,
    Target,
    as_tuple,
    forward,
    read_scores,
    read_tensors,
    takes_none,
)
from backsight.captum.inputs_only import InputsOnly
from backsight.methods.rules import Rules


def signals(
    forward_func: Callable[..., object],
    inputs: Inputs,
    target: Target,
    additional_forward_args: object,
    context: contextlib.AbstractContextManager[object] | None = None,
) -> Inputs:
    """What comes back to the inputs from the target's score of each example.

    The model runs in `context`. It and the inputs are as they were, whatever happens.

    Raises:
        AssertionError: arguments of wrong types or lengths, or several scores an example.
        IndexError, RuntimeError: a target outside the scores; inputs that are not floating point,
            or that the scores do not depend on.
    """
    given = read_tensors(inputs)
    for x in given:
        if not (x.is_floating_point() or x.is_complex()):
            raise RuntimeError(f"expected inputs of floating point, got {x.dtype}")
    further = as_tuple(additional_forward_args)
    knows_inputs = takes_none(forward_func)
    with torch.inference_mode(False), torch.enable_grad(), contextlib.ExitStack() as stack:
        if knows_inputs:
            leaves = stack.enter_context(_with_gradients(given))
        else:
            leaves = tuple(
                (x.clone() if x.is_inference() else x.detach()).requires_grad_() for x in given
            )
        kept = contextlib.nullcontext() if knows_inputs else InputsOnly()
        with kept, context or contextlib.nullcontext():
            output = forward(forward_func, leaves, further)
        scores = read_scores(output, target)
        if scores.ndim and scores[0].numel() != 1:
            raise AssertionError(
                "expected a target that chooses one score of each example, got none or one that"
                f" leaves scores of shape {tuple(scores.shape)}"
            )
        found = torch.autograd.grad(scores, leaves, torch.ones_like(scores))
    return found if isinstance(inputs, tuple) else found[0]


@contextlib.contextmanager
def _with_gradients(inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """The inputs themselves, which require gradients as long as this lasts."""
    constant = [x for x in inputs if not x.requires_grad]
    try:
        yield tuple(x.requires_grad_() for x in inputs)
    finally:
        for x in constant:
            x.requires_grad_(False)


class RuleAttribution(Attribution):
    """What comes back to the inputs by a rule at each ReLU.

    A model without activations has the gradient itself, and a warning.
    """

    rule: str

    def __init__(self, model: Callable[..., object]) -> None:
        self.forward_func = self.model = model

    def _signals(self, inputs: Inputs, target: Target, additional_forward_args: object) -> Inputs:
        rules = Rules(self.rule, required=False)
        found = signals(self.model, inputs, target, additional_forward_args, rules)
        if not rules.intercepted:
            warnings.warn(
                "expected a model that computes activations, such as F.relu or nn.GELU, got none:"
                f" {self.get_name()} is then the gradient",
                stacklevel=4,
            )
        return found
