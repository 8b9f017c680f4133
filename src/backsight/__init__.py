"""backsight looks back through a convnet: which pixels a decision hangs on."""

from backsight import baselines
from backsight._version import __version__
from backsight.config import show_config
from backsight.explain import Deconvolution, explain_deconv
from backsight.methods.acceleration import Acceleration, accelerate, restore
from backsight.methods.activations import Activations, activations
from backsight.methods.cam import Cam, GapModel, cam, to_gap
from backsight.methods.class_model import ClassModel, class_model
from backsight.methods.dream import Dream, dream
from backsight.methods.faithfulness import Faithfulness, faithfulness
from backsight.methods.feature_map import FeatureMap, feature_map
from backsight.methods.filters import Filters, filters
from backsight.methods.fool import Fool, fool
from backsight.methods.fully_convolutional import (
    PredictionMaps,
    fully_convolutional,
    prediction_maps,
)
from backsight.methods.large import large_occlusion, read_occlusion
from backsight.methods.occlusion import occlusion, plan
from backsight.methods.projection import Projection, project
from backsight.methods.receptive_field import ReceptiveField, receptive_field
from backsight.methods.rotation import Rotation, rotation
from backsight.methods.rules import rules
from backsight.methods.saliency import Saliency, saliency
from backsight.methods.search import TopActivations, top_activations
from backsight.methods.style import Style, style
from backsight.sweep.plan import Plan
from backsight.sweep.result import Occlusion

__all__ = [
    "Acceleration",
    "Activations",
    "Cam",
    "ClassModel",
    "Deconvolution",
    "Dream",
    "Faithfulness",
    "FeatureMap",
    "Filters",
    "Fool",
    "GapModel",
    "Occlusion",
    "Plan",
    "PredictionMaps",
    "Projection",
    "ReceptiveField",
    "Rotation",
    "Saliency",
    "Style",
    "TopActivations",
    "__version__",
    "accelerate",
    "activations",
    "baselines",
    "cam",
    "class_model",
    "dream",
    "explain_deconv",
    "faithfulness",
    "feature_map",
    "filters",
    "fool",
    "fully_convolutional",
    "large_occlusion",
    "occlusion",
    "plan",
    "prediction_maps",
    "project",
    "read_occlusion",
    "receptive_field",
    "restore",
    "rotation",
    "rules",
    "saliency",
    "show_config",
    "style",
    "to_gap",
    "top_activations",
]
