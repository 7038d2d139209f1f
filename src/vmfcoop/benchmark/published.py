"""Figures that the vMFCoOp paper prints (arXiv 2511.09540), in percent: for reference, never for ranking.

They were measured with BiomedCLIP on the paper's datasets; our tables rest on other data, splits or backbones
unless they say otherwise. So their rows are labelled as not comparable and stay out of bold and of ranks.
"""

from __future__ import annotations

LABEL = "published, BiomedCLIP, {datasets} datasets: not comparable"
FEW_SHOT_DATASETS, BASE_TO_NOVEL_DATASETS = 14, 13

FEW_SHOT: dict[str, dict[int, tuple[float, float]]] = {
    "vMFCoOp": {
        1: (57.25, 4.75),
        4: (68.29, 2.07),
        8: (72.07, 1.98),
        16: (75.45, 1.48),
        64: (77.49, 1.05),
    },
    "BiomedCoOp": {
        1: (55.08, 5.85),
        4: (63.65, 3.27),
        8: (71.29, 2.19),
        16: (73.63, 1.27),
        64: (73.65, 3.98),
    },
}
"""Accuracy by method and K, averaged over 14 datasets: mean and standard deviation over three seeds."""

BASE_TO_NOVEL: dict[str, tuple[float, float, float]] = {
    "vMFCoOp": (78.02, 76.70, 77.35),
    "BiomedCoOp": (73.26, 71.91, 72.58),
}
"""Base, novel and their harmonic mean, over 13 datasets (BUSI left out). The last is that of the averages."""

ABLATION: dict[str, tuple[float, float, float, float]] = {
    "none": (43.22, 47.81, 60.90, 52.14),
    "anc": (50.29, 53.68, 63.87, 70.98),
    "anc + sc": (49.87, 54.23, 73.25, 73.42),
    "SCE": (46.35, 48.98, 65.72, 56.39),
    "all": (57.25, 68.29, 75.45, 77.15),
}
"""Accuracy at the shots of :data:`ABLATION_SHOTS` and a harmonic mean; the paper does not say which kind."""

ABLATION_SHOTS = (1, 4, 16)


def label(method: str, datasets: int) -> str:
    """The name of a published row.

    Example:
        >>> label("vMFCoOp", 14)
        'vMFCoOp (published, BiomedCLIP, 14 datasets: not comparable)'
    """
    return f"{method} ({LABEL.format(datasets=datasets)})"
