"""Von Mises-Fisher laws on the unit sphere, and the semantic anchors built from them."""

from vmfcoop.sphere.anchors import SemanticAnchors, semantic_anchors
from vmfcoop.sphere.bessel import (
    bessel_ratio,
    bessel_ratio_derivative,
    inverse_bessel_ratio,
    log_normalizer,
)
from vmfcoop.sphere.vmf import VonMisesFisher, VonMisesFisherFit, fit_vmf, unit_sphere

__all__ = [
    "SemanticAnchors",
    "VonMisesFisher",
    "VonMisesFisherFit",
    "bessel_ratio",
    "bessel_ratio_derivative",
    "fit_vmf",
    "inverse_bessel_ratio",
    "log_normalizer",
    "semantic_anchors",
    "unit_sphere",
]
