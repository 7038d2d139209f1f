"""The one optimisation loop: SGD over shuffled support images and their cached views, cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from vmfcoop.methods.base import History, MethodConfig
from vmfcoop.progress import ProgressReport, no_progress


class TrainingConfig(MethodConfig):
    """Settings that every trained method shares (see docs/method.md).

    Attributes:
        epochs: passes over the support set.
        batch_size: images a step; the last, smaller batch of an epoch is kept.
        learning_rate: of the cosine schedule.
        momentum: of SGD.
        weight_decay: of SGD.
        warmup_epochs: first epochs, at a constant ``warmup_learning_rate``.
        warmup_learning_rate: their learning rate.
    """

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(4, ge=1)
    learning_rate: float = Field(0.003, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    warmup_epochs: int = Field(1, ge=0)
    warmup_learning_rate: float = Field(1e-5, ge=0)


class Batch(NamedTuple):
    """One step's share of the support set.

    Attributes:
        features: one view an image, unit rows, shape ``(b, d)``.
        labels: shape ``(b,)``.
        progress: share of the training that is done, 0 at the first step, 1 at the last.
    """

    features: Tensor
    labels: Tensor
    progress: float


Objective = Callable[[Batch], dict[str, Tensor]]


def learning_rate(epoch: int, config: TrainingConfig) -> float:
    """Constant warm-up, then ``lr/2 (1 + cos(pi epoch / epochs))``.

    Example:
        >>> config = TrainingConfig(epochs=10, learning_rate=0.1)
        >>> [round(learning_rate(epoch, config), 5) for epoch in (0, 1, 5, 9)]
        [1e-05, 0.09755, 0.05, 0.00245]
    """
    if epoch < config.warmup_epochs:
        return config.warmup_learning_rate
    return config.learning_rate / 2 * (1 + math.cos(math.pi * epoch / config.epochs))


def optimise(
    objective: Objective,
    parameters: Iterable[Tensor],
    image_features: Tensor,
    labels: Tensor,
    config: TrainingConfig,
    progress: ProgressReport = no_progress,
) -> History:
    """Minimise an objective over the support set, in place.

    Args:
        objective: batch -> loss terms, scalars; the entry ``loss`` is minimised, the others are recorded.
        parameters: tensors to learn.
        image_features: unit features of V views an image, shape ``(n, V, d)``; each step takes a random view.
        labels: shape ``(n,)``.
        config: schedule and seed.
        progress: told of every epoch.

    Returns:
        One row an epoch: the mean of every loss term over its images, and the learning rate.
    """
    draw = torch.Generator().manual_seed(config.seed)
    learned = list(parameters)
    optimizer = torch.optim.SGD(
        learned, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    count, views = image_features.shape[:2]
    steps_per_epoch = math.ceil(count / config.batch_size)
    last_step = max(1, config.epochs * steps_per_epoch - 1)
    history: History = []
    for epoch in range(config.epochs):
        rate = optimizer.param_groups[0]["lr"] = learning_rate(epoch, config)
        order = torch.randperm(count, generator=draw)
        view = torch.randint(views, (count,), generator=draw)
        sums: dict[str, float] = {}
        for step, rows in enumerate(order.split(config.batch_size)):
            done = (epoch * steps_per_epoch + step) / last_step
            terms = objective(Batch(image_features[rows, view[rows]], labels[rows], done))
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach()) * len(rows)
        history.append({"epoch": epoch, "learning_rate": rate, **{k: v / count for k, v in sums.items()}})
        progress("train", epoch + 1, config.epochs)
    return history
