"""Metrics and protocols."""

from vmfcoop.evaluation.metrics import classification_metrics
from vmfcoop.evaluation.protocols import (
    base_to_novel,
    cross_dataset,
    draw_support,
    few_shot,
    harmonic_mean,
    split_metrics,
)

__all__ = [
    "base_to_novel",
    "classification_metrics",
    "cross_dataset",
    "draw_support",
    "few_shot",
    "harmonic_mean",
    "split_metrics",
]
