"""Results in the terminal: rich tables and small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def metrics_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Recall, precision and F1 of every class, with the summary as caption."""
    table = Table("class", "recall", "precision", "F1", "images", title=title, title_justify="left")
    for name, row in metrics["per_class"].items():
        table.add_row(
            name, *(f"{row[key]:.3f}" for key in ("recall", "precision", "f1")), str(row["support"])
        )
    auroc = metrics["macro_auroc"]
    summary = (
        f"accuracy {metrics['accuracy']:.3f}   balanced {metrics['balanced_accuracy']:.3f}   "
        f"macro F1 {metrics['macro_f1']:.3f}   macro AUROC {'-' if auroc is None else f'{auroc:.3f}'}   "
        f"ECE {metrics['ece']:.3f}   n = {metrics['n']}"
    )
    table.caption, table.caption_justify = summary, "left"
    return table


def predictions_table(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Table:
    """The predicted class and every class's probability, a row an image."""
    table = Table("image", "predicted", *class_names)
    for row in rows:
        shares = row["probabilities"]
        table.add_row(row["image"], row["predicted"], *(f"{shares[name]:.3f}" for name in class_names))
    return table
