"""captum's `GuidedBackprop`, for any spelling of ReLU."""

from __future__ import annotations

from backsight.captum.attribution import Inputs, Target, unwrappable
from backsight.captum.gradients import RuleAttribution

__all__ = ["GuidedBackprop"]


class GuidedBackprop(RuleAttribution):
    """Guided backprop (Springenberg et al. 2014, arXiv:1412.6806), with captum 0.9.0's interface.

    The gradient of a score, but that each ReLU passes only what is positive, both in the forward
    and of what comes back: the rule "guided" of `backsight.rules`, which says what counts as a
    ReLU.

    It differs from captum where captum is at fault: every ReLU has the rule, not only modules of
    the class `nn.ReLU`. Nothing is hooked, and no input is changed, so that nothing is left after
    an exception. No memory is spent on gradients of weights.

    Args:
        model: a module or another callable from the inputs, followed by `additional_forward_args`,
            to scores: a tensor (examples, ...).
    """

    rule = "guided"

    @unwrappable
    def attribute(
        self, inputs: Inputs, target: Target = None, additional_forward_args: object = None
    ) -> Inputs:
        """What comes back to the inputs from the score of each example.

        Args:
            inputs: (examples, ...), or a tuple of such tensors, of floating point.
            target: which score: None where there is one an example; an index, or a tuple of indices
                behind the batch axis; or a list or tensor of indices, or a list of tuples, one for
                each example.
            additional_forward_args: further arguments of the model, one or a tuple.

        Returns:
            A tensor of the shape, dtype and device of each input; a tuple for a tuple.

        Raises:
            AssertionError: arguments of wrong types or lengths, or several scores an example.
            IndexError, RuntimeError: a target outside the scores; inputs that are not floating
                point, or that the scores do not depend on.
        """
        return self._signals(inputs, target, additional_forward_args)
