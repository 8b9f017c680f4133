"""captum's attribution methods as drop-ins: the same names, arguments, shapes and numbers.

`from backsight.captum import Occlusion` in place of `from captum.attr import Occlusion`, and alike
`GuidedBackprop`, `Deconvolution` and `Saliency` (Kokhlikyan et al., "Captum", arXiv:2009.07896).
"""

from backsight.captum.deconvolution import Deconvolution
from backsight.captum.guided_backprop import GuidedBackprop
from backsight.captum.occlusion import Occlusion
from backsight.captum.saliency import Saliency

__all__ = ["Deconvolution", "GuidedBackprop", "Occlusion", "Saliency"]
