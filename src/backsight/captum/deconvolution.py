"""captum's `Deconvolution`, for any spelling of ReLU."""

from __future__ import annotations

from backsight.captum.attribution import Inputs, Target, unwrappable
from backsight.captum.gradients import RuleAttribution

__all__ = ["Deconvolution"]


class Deconvolution(RuleAttribution):
    """Deconvnet (Zeiler & Fergus 2013, arXiv:1311.2901), with captum 0.9.0's interface.

    The gradient of a score, but that each ReLU passes what is positive of what comes back, whatever
    went through it in the forward: the rule "deconvnet" of `backsight.rules`, which says what
    counts as a ReLU.

    It differs from captum where `backsight.captum.GuidedBackprop` does.

    Args:
        model: a module or another callable from the inputs, followed by `additional_forward_args`,
            to scores: a tensor (examples, ...).
    """

    rule = "deconvnet"

    @unwrappable
    def attribute(
        self, inputs: Inputs, target: Target = None, additional_forward_args: object = None
    ) -> Inputs:
        """What comes back to the inputs from the score of each example.

        Arguments, result and errors are those of `backsight.captum.GuidedBackprop.attribute`.
        """
        return self._signals(inputs, target, additional_forward_args)
