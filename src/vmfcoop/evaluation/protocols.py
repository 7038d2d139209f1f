"""Protocols: few-shot on all classes, base-to-novel and cross-dataset generalisation; budgets of training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from vmfcoop.data import Dataset, base_novel_classes, restrict_classes, sample_support
from vmfcoop.descriptions.bank import DescriptionBank
from vmfcoop.errors import UserError
from vmfcoop.evaluation.metrics import classification_metrics
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import Fitted, Method, Support, make_method
from vmfcoop.methods.base import MethodConfig

EQUAL_EPOCHS, EQUAL_BATCH_SIZE = 50, 4
"""The ``equal`` budget: those of vMFCoOp's paper (batches of 4) and of our defaults."""

BASE_TO_NOVEL_SHOTS, MIN_CLASSES = 16, 4
Budget = Literal["paper", "equal"]
Result = dict[str, Any]


def budget_settings(
    config: type[MethodConfig],
    budget: Budget,
    images: int,
    epochs: int = EQUAL_EPOCHS,
    batch_size: int = EQUAL_BATCH_SIZE,
) -> dict[str, Any]:
    """Settings that put a method on a budget.

    ``paper`` leaves each method its own epochs, batch size and views. ``equal`` gives every method that is
    trained in steps ``epochs * ceil(images / batch_size)`` of them, and all cached views.

    Args:
        config: the method's config class; its fields say how it is trained (see :class:`Method`).
        budget: which.
        images: of the support set.
        epochs, batch_size: of the equal budget.

    Example:
        >>> from vmfcoop.methods import METHODS
        >>> budget_settings(METHODS["coop"].Config, "equal", images=64)
        {'epochs': 50, 'batch_size': 4}
        >>> budget_settings(METHODS["zero-shot"].Config, "equal", images=64)
        {}
    """
    settings: dict[str, Any] = {}
    if budget == "paper":
        return settings
    if "epochs" in config.model_fields:
        settings = {"epochs": epochs, "batch_size": batch_size}
    if "iterations" in config.model_fields:
        settings = {"iterations": epochs * math.ceil(images / batch_size)}
    if "augmented" in config.model_fields:
        settings["augmented"] = True
    return settings


def training_steps(config: MethodConfig, images: int) -> int:
    """Optimisation steps that a config takes on so many images; 0 where nothing is trained in steps."""
    settings = config.model_dump()
    if "epochs" in settings:
        return int(settings["epochs"]) * math.ceil(images / int(settings["batch_size"]))
    return int(settings.get("iterations", 0))


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


def split_metrics(encoder: CachedEncoder, table: Dataset, fitted: Fitted, split: str = "test") -> Result:
    """Metrics of a fitted classifier on a split (see :func:`classification_metrics`)."""
    rows: NDArray[Any] = table.indices(split)
    features = encoder.encode_image_files([table.paths[i] for i in rows])[:, 0]
    probabilities = fitted.logits(features).double().softmax(dim=1).numpy()
    return classification_metrics(probabilities, table.labels[rows], table.class_names)


def few_shot(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    method: Method[Any],
    shots: int,
    seeds: Sequence[int],
    views: int = 8,
    split: str = "test",
) -> list[Result]:
    """Fit on K shots of every class, test on all images of a split; one result a seed.

    Returns:
        For every seed ``test`` (metrics), ``steps`` and ``seconds`` (``fit``, ``test``; the seeds train side
        by side, each is given its share).
    """
    fits, shared = _fit(encoder, table, bank, method, shots, seeds, views)
    return [_timed(shared, lambda f=f: {"test": split_metrics(encoder, table, f, split)}) for f in fits]


def base_to_novel(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    method: Method[Any],
    seeds: Sequence[int],
    shots: int = BASE_TO_NOVEL_SHOTS,
    views: int = 8,
    split: str = "test",
) -> list[Result]:
    """Fit on K shots of the first ceil(C/2) classes; test on them and, separately, on the others.

    Novel classes are known by their names, and by their descriptions to methods that classify by those. With
    a single novel class there is nothing to tell apart, so a dataset needs four classes.

    Returns:
        For every seed ``base`` and ``novel`` (metrics; ``novel`` is None where the method cannot take new
        classes), ``steps`` and ``seconds`` as :func:`few_shot` has them.

    Raises:
        UserError: there are fewer than four classes.
    """
    if len(table.class_names) < MIN_CLASSES:
        raise UserError(
            f"Base-to-novel needs at least {MIN_CLASSES} classes, so that there are two novel ones to tell "
            f"apart; '{table.name}' has {len(table.class_names)}."
        )
    base, novel = (restrict_classes(table, classes) for classes in base_novel_classes(len(table.class_names)))
    fits, shared = _fit(encoder, base, bank, method, shots, seeds, views)

    def tests(fitted: Fitted) -> Result:
        found = {"base": split_metrics(encoder, base, fitted, split), "novel": None}
        if method.new_classes:
            other = fitted.for_classes(novel.class_names, bank.for_classes(novel.class_names))
            found["novel"] = split_metrics(encoder, novel, other, split)
        return found

    return [_timed(shared, lambda f=f: tests(f)) for f in fits]


def cross_dataset(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    target: Dataset,
    target_bank: DescriptionBank,
    method: Method[Any],
    shots: int,
    seeds: Sequence[int],
    views: int = 8,
    split: str = "test",
) -> list[Result]:
    """Fit on K shots of one dataset, test on it and, by the classes' names, on another.

    Where both have the same class names the classifier is taken as it is, else :meth:`Fitted.for_classes`.

    Returns:
        For every seed ``source`` and ``target`` (metrics; ``target`` is None where the method cannot take the
        other classes), ``steps`` and ``seconds`` as :func:`few_shot` has them.
    """
    fits, shared = _fit(encoder, table, bank, method, shots, seeds, views)
    names = target.class_names

    def tests(fitted: Fitted) -> Result:
        found = {"source": split_metrics(encoder, table, fitted, split), "target": None}
        if names == table.class_names:
            found["target"] = split_metrics(encoder, target, fitted, split)
        elif method.new_classes:
            other = fitted.for_classes(names, target_bank.for_classes(names))
            found["target"] = split_metrics(encoder, target, other, split)
        return found

    return [_timed(shared, lambda f=f: tests(f)) for f in fits]


def _fit(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    method: Method[Any],
    shots: int,
    seeds: Sequence[int],
    views: int,
) -> tuple[list[Fitted], Result]:
    """The fits of all seeds, with the steps and the seconds of one."""
    supports = [draw_support(encoder, table, bank, shots, seed, views) for seed in seeds]
    start = time.perf_counter()
    fits = method.fit_seeds(supports, seeds, encoder)
    seconds = (time.perf_counter() - start) / len(seeds)
    steps = training_steps(method.config, len(supports[0].labels))
    return fits, {"steps": steps, "seconds": {"fit": seconds}}


def _timed(shared: Result, tests: Any) -> Result:
    start = time.perf_counter()
    found = tests()
    seconds = {**shared["seconds"], "test": time.perf_counter() - start}
    return {**found, **shared, "seconds": seconds}


def on_budget(name: str, settings: dict[str, Any], budget: Budget, images: int, **equal: int) -> Method[Any]:
    """A method by name on a budget; settings that are given win over the budget's.

    Raises:
        UserError: unknown method or setting.
    """
    config = type(make_method(name).config)
    return make_method(name, {**budget_settings(config, budget, images, **equal), **settings})


def harmonic_mean(base: float, novel: float) -> float:
    """Of base and novel accuracy; 0 if both are.

    A table of several datasets has two: the harmonic mean of the averages, and the average of the datasets'
    harmonic means. They differ, so tables name theirs.

    Example:
        >>> round(harmonic_mean(0.5, 1.0), 4)
        0.6667
    """
    total = base + novel
    return 2 * base * novel / total if total else 0.0
