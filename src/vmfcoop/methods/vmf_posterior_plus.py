"""The vMF posterior whose prior are the prompts that vMFCoOp learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, Method, Support
from vmfcoop.methods.prompt import PromptClassifier
from vmfcoop.methods.vmf_posterior import (
    PosteriorClassifier,
    PosteriorConfig,
    TextsOf,
    fit_posterior,
    shot_folds,
)
from vmfcoop.methods.vmfcoop import VMFCoOp, VMFCoOpConfig
from vmfcoop.methods.zero_shot_ensemble import description_means
from vmfcoop.progress import ProgressReport, no_progress

_PROMPT = "prompt."
_FOLDS = 4


class VMFCoOpPlusConfig(VMFCoOpConfig, PosteriorConfig):
    """Settings of vMFCoOp and of the posterior.

    Attributes:
        held_out_prompts: learn the prompts four times more, each time without one fold of the shots, so that
            rho is chosen with prompts that have not seen the images it is judged by; without, with the
            prompts of all shots, which count the support twice.
    """

    held_out_prompts: bool = False


class VMFCoOpPlus(Method[VMFCoOpPlusConfig]):
    """vMFCoOp+: the learned prompts P_i are the prior texts of the vMF posterior (docs/vmf-posterior.md).

    Where a class has one image, no prompt can be learned without it: there the held-out prior is that of the
    descriptions.
    """

    name = "vmfcoop+"
    title = "vMFCoOp+"
    Config = VMFCoOpPlusConfig
    new_classes = True
    reads_descriptions = True

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        return self.fit_seeds([support], [self.config.seed], encoder, progress)[0]

    def fit_seeds(
        self,
        supports: Sequence[Support],
        seeds: Sequence[int],
        encoder: DualEncoder,
        progress: ProgressReport = no_progress,
    ) -> list[Fitted]:
        prompts = self._learn(supports, seeds, encoder, progress)
        folds = [shot_folds(support.labels.cpu(), _FOLDS) for support in supports]
        parts = [
            (_without(support, fold == number), seed)
            for support, fold, seed in zip(supports, folds, seeds, strict=True)
            for number in range(self._trainings(support, fold))
        ]
        held_out = iter(self._learn([p for p, _ in parts], [s for _, s in parts], encoder, progress))
        return [
            self._posterior(support, fold, full, held_out, encoder)
            for support, fold, full in zip(supports, folds, prompts, strict=True)
        ]

    def _learn(
        self,
        supports: Sequence[Support],
        seeds: Sequence[int],
        encoder: DualEncoder,
        progress: ProgressReport,
    ) -> list[PromptClassifier]:
        fits = VMFCoOp(self.config).fit_seeds(supports, seeds, encoder, progress) if supports else []
        return [fit for fit in fits if isinstance(fit, PromptClassifier)]

    def _trainings(self, support: Support, folds: Tensor) -> int:
        """How many times the prompts are learned without a fold."""
        return int(folds.max()) + 1 if self.config.held_out_prompts and support.shots > 1 else 0

    def _posterior(
        self,
        support: Support,
        folds: Tensor,
        prompts: PromptClassifier,
        held_out: Iterator[PromptClassifier],
        encoder: DualEncoder,
    ) -> Fitted:
        count, trainings = int(folds.max()) + 1, self._trainings(support, folds)
        texts = prompts.class_embeddings
        if trainings:
            unseen = [next(held_out).class_embeddings for _ in range(trainings)]
        elif support.shots == 1:
            unseen = [description_means(encoder, support.descriptions)] * count
        else:
            unseen = [texts] * count
        fitted = fit_posterior(support, texts, unseen, folds, _texts_of(prompts), self.config)
        extra = {_PROMPT + key: value for key, value in prompts.state().items()}
        return replace(fitted, history=prompts.history, extra=extra)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        inner = {key.removeprefix(_PROMPT): value for key, value in state.items() if key.startswith(_PROMPT)}
        prompts = VMFCoOp(self.config).restore(inner, class_names, encoder)
        assert isinstance(prompts, PromptClassifier)
        fitted = PosteriorClassifier.restored(state, class_names, _texts_of(prompts))
        return replace(fitted, extra={key: value for key, value in state.items() if key.startswith(_PROMPT)})


def _texts_of(prompts: PromptClassifier) -> TextsOf:
    def learned(names: Sequence[str], texts: Sequence[Sequence[str]]) -> Tensor:
        return prompts.for_classes(names).class_embeddings

    return learned


def _without(support: Support, rows: Tensor) -> Support:
    """The support set without some of its images."""
    kept = torch.nonzero(~rows).flatten().to(support.labels.device)
    return replace(support, image_features=support.image_features[kept], labels=support.labels[kept])
