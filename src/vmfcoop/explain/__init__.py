"""Why a classifier says what it says: saliency maps of any tower, and checks of what they are worth."""

from vmfcoop.explain.maps import DEFAULT_METHOD, MAP_METHODS, methods_for, saliency_maps
from vmfcoop.explain.targets import Target, class_target, direction_target

__all__ = [
    "DEFAULT_METHOD",
    "MAP_METHODS",
    "Target",
    "class_target",
    "direction_target",
    "methods_for",
    "saliency_maps",
]
