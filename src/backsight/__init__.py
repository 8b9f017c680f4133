"""backsight looks back through a convnet: which pixels a decision hangs on."""

from backsight import baselines
from backsight._version import __version__
from backsight.config import show_config
from backsight.explain import Deconvolution, explain_deconv
from backsight.methods.acceleration import Acceleration, accelerate, restore
from backsight.methods.class_model import ClassModel, class_model
from backsight.methods.dream import Dream, dream
from backsight.methods.fool import Fool, fool
from backsight.methods.occlusion import occlusion, plan
from backsight.methods.projection import Projection, project
from backsight.methods.rules import rules
from backsight.methods.saliency import Saliency, saliency
from backsight.methods.search import TopActivations, top_activations
from backsight.methods.style import Style, style
from backsight.sweep.plan import Plan
from backsight.sweep.result import Occlusion

__all__ = [
    "Acceleration",
    "ClassModel",
    "Deconvolution",
    "Dream",
    "Fool",
    "Occlusion",
    "Plan",
    "Projection",
    "Saliency",
    "Style",
    "TopActivations",
    "__version__",
    "accelerate",
    "baselines",
    "class_model",
    "dream",
    "explain_deconv",
    "fool",
    "occlusion",
    "plan",
    "project",
    "restore",
    "rules",
    "saliency",
    "show_config",
    "style",
    "top_activations",
]
