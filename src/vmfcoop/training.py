"""The one optimisation loop: shuffled support images and their cached views, cosine schedule.

Several trainings that differ in support set and seed alone may go through it side by side: they share the
schedule and the optimiser's settings, and an objective may compute their forward passes in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

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
        optimizer: ``sgd`` or ``adamw``.
        momentum: of SGD.
        weight_decay: of the optimiser.
        warmup_epochs: first epochs, at a constant ``warmup_learning_rate``.
        warmup_learning_rate: their learning rate.
    """

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(4, ge=1)
    learning_rate: float = Field(0.003, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
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


Terms = dict[str, Tensor]
"""Loss terms, scalars; the entry ``loss`` is minimised, the others are recorded."""

Objective = Callable[[Batch], Terms]
JointObjective = Callable[[Sequence[Batch]], Sequence[Terms]]
Backward = Callable[[Sequence[Terms]], None]


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
        objective: batch -> loss terms.
        parameters: tensors to learn.
        image_features: unit features of V views an image, shape ``(n, V, d)``; each step takes a random view.
        labels: shape ``(n,)``.
        config: schedule and seed.
        progress: told of every epoch.

    Returns:
        One row an epoch: the mean of every loss term over its images, and the learning rate.
    """
    return optimise_together(
        lambda batches: [objective(batches[0])],
        parameters,
        [image_features],
        [labels],
        [config.seed],
        config,
        progress,
    )[0]


def optimise_together(
    objective: JointObjective,
    parameters: Iterable[Tensor],
    image_features: Sequence[Tensor],
    labels: Sequence[Tensor],
    seeds: Sequence[int],
    config: TrainingConfig,
    progress: ProgressReport = no_progress,
    backward: Backward | None = None,
) -> list[History]:
    """S trainings side by side, each on its own support set of n images with its own seed.

    The loss of a training depends on its own parameters alone, so the gradient of the sum is that of each,
    and every parameter moves as it would in a training of its own.

    Args:
        objective: S batches -> the loss terms of each.
        parameters: tensors to learn, of all trainings.
        image_features: S of shape ``(n, V, d)``.
        labels: S of shape ``(n,)``.
        seeds: S seeds, of the order of images and views.
        config: schedule; its seed is not used.
        progress: told of every epoch.
        backward: loss terms -> gradients of the parameters; default the gradient of the summed losses.

    Returns:
        S histories.
    """
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    optimizer = _optimizer(list(parameters), config)
    count, views = image_features[0].shape[:2]
    steps_per_epoch = math.ceil(count / config.batch_size)
    last_step = max(1, config.epochs * steps_per_epoch - 1)
    histories: list[History] = [[] for _ in seeds]
    for epoch in range(config.epochs):
        rate = optimizer.param_groups[0]["lr"] = learning_rate(epoch, config)
        orders = [torch.randperm(count, generator=draw) for draw in draws]
        view = [torch.randint(views, (count,), generator=draw) for draw in draws]
        sums: list[dict[str, float]] = [{} for _ in seeds]
        for step in range(steps_per_epoch):
            part = slice(step * config.batch_size, (step + 1) * config.batch_size)
            done = (epoch * steps_per_epoch + step) / last_step
            batches = [
                Batch(features[order[part], chosen[order[part]]], label[order[part]], done)
                for features, label, order, chosen in zip(image_features, labels, orders, view, strict=True)
            ]
            terms = objective(batches)
            optimizer.zero_grad()
            (backward or descend)(terms)
            optimizer.step()
            for total, row, batch in zip(sums, terms, batches, strict=True):
                for key, value in row.items():
                    total[key] = total.get(key, 0.0) + float(value.detach()) * len(batch.labels)
        for history, total in zip(histories, sums, strict=True):
            means = {key: value / count for key, value in total.items()}
            history.append({"epoch": epoch, "learning_rate": rate, **means})
        progress("train", epoch + 1, config.epochs)
    return histories


def _optimizer(parameters: list[Tensor], config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )


def descend(terms: Sequence[Terms]) -> None:
    """Gradients of the summed losses, on every parameter that they reach."""
    torch.stack([row["loss"] for row in terms]).sum().backward()
