"""captum's `Saliency`."""

from __future__ import annotations

from collections.abc import Callable

from backsight.captum.attribution import Attribution, Inputs, Target, unwrappable
from backsight.captum.gradients import signals

__all__ = ["Saliency"]


class Saliency(Attribution):
    """Saliency (Simonyan et al. 2013, arXiv:1312.6034), with captum 0.9.0's interface: how much a
    score changes with each element of the input, to first order.

    No memory is spent on gradients of weights, and no input is changed.

    Args:
        forward_func: a module or another callable from the inputs, followed by
            `additional_forward_args`, to scores: a tensor (examples, ...).
    """

    def __init__(self, forward_func: Callable[..., object]) -> None:
        self.forward_func = forward_func

    @unwrappable
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        abs: bool = True,
        additional_forward_args: object = None,
    ) -> Inputs:
        """The gradient of the score of each example, or its absolute value.

        Args:
            abs: whether to return absolute values.

        Other arguments, result and errors are those of `backsight.captum.GuidedBackprop.attribute`.
        """
        found = signals(self.forward_func, inputs, target, additional_forward_args)
        if not abs:
            return found
        return tuple(g.abs() for g in found) if isinstance(found, tuple) else found.abs()
