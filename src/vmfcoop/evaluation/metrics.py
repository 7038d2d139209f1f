"""What a table of predictions is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

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
        ``macro_auroc`` (one against the rest; None unless every class occurs and C >= 2), ``ece`` (15 equal
        bins of the top probability, Guo et al. 2017), ``brier`` (Brier 1950, the form for several classes:
        sum over classes of (p_ic - [y_i = c])^2, mean over images; 0 is perfect, 2 the worst, and for two
        classes it is twice the binary score), ``chance`` (1 / C), ``majority`` (share of the most frequent
        class among the labels: the accuracy of always naming it), ``per_class`` (precision, recall, F1,
        support, and AUROC against the rest: None where the class or the rest does not occur) and
        ``confusion_matrix`` (rows: true, columns: predicted). All but ``n``, ``brier`` and the counts are
        shares in [0, 1].

    Raises:
        UserError: there is nothing to evaluate.

    Example:
        >>> sure = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> round(classification_metrics(sure, np.array([0, 1, 1]), ["a", "b"])["accuracy"], 3)
        0.667
    """
    if len(labels) == 0:
        raise UserError("There are no images to evaluate in this split.")
    classes = np.arange(len(class_names))
    predicted = probabilities.argmax(axis=1)
    present = np.unique(labels)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    auroc = [_auroc(labels == i, probabilities[:, i]) for i in classes]
    defined = [area for area in auroc if area is not None]
    return {
        "n": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "macro_auroc": float(np.mean(defined)) if len(defined) == len(classes) else None,
        "ece": _calibration_error(probabilities, labels),
        "brier": _brier(probabilities, labels),
        "chance": 1 / len(classes),
        "majority": float(support.max() / len(labels)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
                "auroc": auroc[i],
            }
            for i, name in enumerate(class_names)
        },
        "confusion_matrix": _confusion(labels, predicted, len(classes)).tolist(),
    }


def _confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    # scikit-learn's confusion_matrix warns where there is a single class, as among novel classes.
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _auroc(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]]) -> float | None:
    return float(roc_auc_score(positive, scores)) if 0 < positive.sum() < len(positive) else None


def _calibration_error(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    # torchmetrics takes a second to import; commands that only predict need not wait for it.
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = probabilities.shape[1]
    if classes == 1:
        return 0.0  # sure of the only class, and right; torchmetrics takes two classes or more
    top = torch.from_numpy(np.asarray(probabilities, np.float64))
    return float(
        multiclass_calibration_error(top, torch.from_numpy(np.array(labels)), classes, CALIBRATION_BINS)
    )


def _brier(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    # scikit-learn's brier_score_loss takes several classes from 1.7 only.
    wanted = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - wanted) ** 2).sum(axis=1).mean())
