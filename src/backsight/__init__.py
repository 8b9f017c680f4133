"""backsight looks back through a convnet: which pixels a decision hangs on."""

from backsight import baselines
from backsight._version import __version__
from backsight.config import show_config
from backsight.explain import Deconvolution, explain_deconv
from backsight.methods.acceleration import Acceleration, accelerate, restore
from backsight.methods.feature_map import FeatureMap, feature_map
from backsight.methods.fully_convolutional import (
    PredictionMaps,
    fully_convolutional,
    prediction_maps,
)
from backsight.methods.occlusion import occlusion, plan
from backsight.methods.projection import Projection, project
from backsight.methods.rules import rules
from backsight.methods.saliency import Saliency, saliency
from backsight.methods.search import TopActivations, top_activations
from backsight.sweep.plan import Plan
from backsight.sweep.result import Occlusion

__all__ = [
    "Acceleration",
    "Deconvolution",
    "FeatureMap",
    "Occlusion",
    "Plan",
    "PredictionMaps",
    "Projection",
    "Saliency",
    "TopActivations",
    "__version__",
    "accelerate",
    "baselines",
    "explain_deconv",
    "feature_map",
    "fully_convolutional",
    "occlusion",
    "plan",
    "prediction_maps",
    "project",
    "restore",
    "rules",
    "saliency",
    "show_config",
    "top_activations",
]
