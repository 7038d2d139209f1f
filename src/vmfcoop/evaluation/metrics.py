"""What a table of predictions is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from vmfcoop.errors import UserError

CALIBRATION_BINS = 15


def classification_metrics(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    """Metrics of predicted probabilities against labels, as plain numbers ready for JSON.

    Args:
        probabilities: shape ``(n, C)``, rows sum to one.
        labels: class indices, shape ``(n,)``.
        class_names: C names.

    Returns:
        ``n``, ``accuracy``, ``balanced_accuracy`` and ``macro_f1`` (over the classes that occur),
        ``macro_auroc`` (one against the rest; None unless every class occurs and n classes >= 2), ``ece``
        (15 equal bins of the top probability, Guo et al. 2017), ``per_class`` (precision, recall, F1,
        support) and ``confusion_matrix`` (rows: true, columns: predicted). All are shares in [0, 1].

    Raises:
        UserError: there is nothing to evaluate.

    Example:
        >>> sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> round(classification_metrics(sure, np.array([0, 1, 1]), ["a", "b"])["accuracy"], 3)
        0.667
    """
    if len(labels) == 0:
        raise UserError("There are no images to evaluate in this split.")
    # torchmetrics takes a second to import; commands that only predict need not wait for it.
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    present = np.unique(labels)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    top = torch.from_numpy(np.asarray(probabilities, np.float64))
    ece = multiclass_calibration_error(
        top, torch.from_numpy(np.array(labels)), len(classes), CALIBRATION_BINS
    )
    return {
        "n": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "macro_auroc": _macro_auroc(probabilities, labels) if len(present) == len(classes) > 1 else None,
        "ece": float(ece),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def _macro_auroc(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    one_against_rest = [
        roc_auc_score(labels == i, probabilities[:, i]) for i in range(probabilities.shape[1])
    ]
    return float(np.mean(one_against_rest))
