"""Protocols: few-shot on all classes, and base-to-novel generalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmfcoop.data import Dataset, base_novel_classes, restrict_classes, sample_support
from vmfcoop.descriptions.bank import DescriptionBank
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import Fitted, Method, Support


def draw_support(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    shots: int,
    seed: int,
    views: int = 8,
    val_shots: int | None = None,
) -> Support:
    """The support set of a seed with its cached features: all that a method may see of a dataset.

    Args:
        encoder: the backbone behind the feature cache.
        table: images with splits; support images come from train, validation shots from val.
        bank: descriptions of the classes.
        shots: K.
        seed: which support set.
        views: V cached views an image.
        val_shots: validation images a class; default ``min(K, 4)``.

    Raises:
        UserError: a class has too few images or no descriptions, or an image cannot be read.
    """
    chosen = sample_support(table, shots, seed, val_shots)
    labels = torch.from_numpy(table.labels.copy())
    return Support(
        image_features=encoder.encode_image_files([table.paths[i] for i in chosen.train], views),
        labels=labels[chosen.train],
        class_names=table.class_names,
        descriptions=tuple(bank.for_classes(table.class_names)),
        validation_features=encoder.encode_image_files([table.paths[i] for i in chosen.val])[:, 0],
        validation_labels=labels[chosen.val],
    )


def split_accuracy(encoder: CachedEncoder, table: Dataset, fitted: Fitted, split: str = "test") -> float:
    """Share of a split's images that a fitted classifier gets right."""
    rows: NDArray[np.int64] = table.indices(split)
    features = encoder.encode_image_files([table.paths[i] for i in rows])[:, 0]
    predicted = fitted.logits(features).argmax(dim=1).numpy()
    return float((predicted == table.labels[rows]).mean())


@dataclass(frozen=True)
class BaseToNovel:
    """Accuracies of the base-to-novel protocol.

    Attributes:
        base: on test images of the base classes, the first ceil(C/2), that the support set holds.
        novel: on test images of the others, by their names alone.
    """

    base: float
    novel: float

    @property
    def harmonic_mean(self) -> float:
        """Of base and novel accuracy; 0 if one is.

        Example:
            >>> BaseToNovel(0.5, 1.0).harmonic_mean
            0.6666666666666666
        """
        total = self.base + self.novel
        return 2 * self.base * self.novel / total if total else 0.0


def base_to_novel(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    method: Method[Any],
    seed: int,
    shots: int = 16,
    views: int = 8,
) -> BaseToNovel:
    """Fit on K shots of the base classes, test on them and, by name, on the novel ones."""
    base, novel = (restrict_classes(table, classes) for classes in base_novel_classes(len(table.class_names)))
    fitted = method.fit(draw_support(encoder, base, bank, shots, seed, views), encoder)
    return BaseToNovel(
        base=split_accuracy(encoder, base, fitted),
        novel=split_accuracy(encoder, novel, fitted.for_classes(novel.class_names)),
    )
