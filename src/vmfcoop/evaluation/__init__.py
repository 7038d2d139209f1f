"""Metrics and protocols."""

from vmfcoop.evaluation.metrics import classification_metrics
from vmfcoop.evaluation.protocols import BaseToNovel, base_to_novel, draw_support, split_accuracy

__all__ = ["BaseToNovel", "base_to_novel", "classification_metrics", "draw_support", "split_accuracy"]
