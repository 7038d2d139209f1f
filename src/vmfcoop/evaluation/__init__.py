"""Metrics and, with the methods to come, protocols."""

from vmfcoop.evaluation.metrics import classification_metrics

__all__ = ["classification_metrics"]
