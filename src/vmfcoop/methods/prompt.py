"""Learned prompts: context vectors in front of class names, through the frozen text tower, never padded."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from vmfcoop.backbones.base import DualEncoder, Tokens
from vmfcoop.errors import UserError
from vmfcoop.methods.base import Fitted, History, Method, Support
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.training import Batch, Terms, TrainingConfig, descend, optimise_together

Position = Literal["end", "middle", "front"]


class PromptConfig(TrainingConfig):
    """Settings that every prompt method shares.

    Attributes:
        context_init: words whose token embeddings start the context vectors.
    """

    context_init: str = "a photo of a"


class PromptLearner(nn.Module):
    """Prompts ``[BOS] v_1 .. v_M <class name> . [EOS]`` with learned context vectors, S sets of them at once.

    The context starts as the token embeddings of ``context_init`` ("a photo of a", M = 4), so that an
    untrained prompt is the zero-shot one. All other token embeddings are looked up once. The prompts are as
    long as the longest real one: on BiomedCLIP about 11 tokens where padding to the context length has 256.

    Args:
        encoder: any dual encoder.
        class_names: C names, without a closing full stop.
        context_init: words whose embeddings start the context.
        copies: S, sets of context vectors that go through the tower in one batch.
        position: of the class name: after the context, between its halves, or before it.
        class_specific: a context for every class instead of one for all.

    Attributes:
        context: learned, shape ``(S, M, w)``, or ``(S, C, M, w)`` if class-specific.

    Raises:
        UserError: the initial words keep no token of their own, or leave the class names none.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        class_names: Sequence[str],
        context_init: str = "a photo of a",
        copies: int = 1,
        position: Position = "end",
        class_specific: bool = False,
    ) -> None:
        super().__init__()
        self._encoder = encoder
        words = encoder.tokenize([context_init])
        tokens = encoder.tokenize([f"{context_init} {name}." for name in class_names])
        begin = encoder.begin_marks
        # The same words give the same tokens alone and in front of a name, up to the mark that ends them.
        agree = (
            (tokens.ids[:, : words.ids.shape[1]] == words.ids[:, : tokens.ids.shape[1]]).all(dim=0).cumprod(0)
        )
        length = int(agree.sum()) - begin
        if length < 1:
            raise UserError(f"The context '{context_init}' leaves no token of its own; use other words.")
        if begin + length >= tokens.ids.shape[1] - 1:
            raise UserError(
                f"The context '{context_init[:60]}' leaves names no room in the {encoder.context_length} "
                f"tokens that '{encoder.name}' reads; use fewer words, and names that it reads."
            )
        _warn_of_twins(class_names, tokens, encoder)
        embeddings = encoder.token_embeddings(tokens.ids).detach().float()
        start = embeddings[0, begin : begin + length]
        shape = (copies, len(class_names)) if class_specific else (copies,)
        self.context = nn.Parameter(start.expand(*shape, -1, -1).clone())
        self._before = embeddings[:, :begin]
        self._after = embeddings[:, begin + length :]
        self._mask = tokens.mask
        self._order: Tensor | None = None
        if position != "end":
            named = encoder.tokenize([f"{context_init} {name}" for name in class_names])
            ends = int(words.lengths[0]) - begin - length
            name_lengths = (named.lengths - begin - length - ends).tolist()
            self._order = _reordered(tokens.mask.shape[1], begin, length, name_lengths, position)

    def forward(self, context: Tensor | None = None) -> Tensor:
        """Unit prompt embeddings P, shape ``(S, C, d)``, from the learned context or a given one like it."""
        vectors = self.context if context is None else context
        copies, classes = len(vectors), len(self._after)
        shared = vectors if vectors.dim() == 4 else vectors[:, None].expand(-1, classes, -1, -1)
        before, after = (part.expand(copies, -1, -1, -1) for part in (self._before, self._after))
        prompts = torch.cat([before, shared, after], dim=2)
        if self._order is not None:
            index = self._order.to(prompts.device)[None, :, :, None]
            prompts = prompts.gather(2, index.expand(copies, -1, -1, prompts.shape[3]))
        features = self._encoder.encode_embeddings(prompts.flatten(0, 1), self._mask.repeat(copies, 1))
        return features.reshape(copies, classes, self._encoder.dim)


def _warn_of_twins(class_names: Sequence[str], tokens: Tokens, encoder: DualEncoder) -> None:
    """Say which class names are the same tokens: "HER2+" and "HER2-", where punctuation is dropped."""
    first: dict[tuple[int, ...], str] = {}
    for name, ids, mask in zip(class_names, tokens.ids.tolist(), tokens.mask.tolist(), strict=True):
        twin = first.setdefault((*ids, *mask), name)
        if twin != name:
            warnings.warn(
                f"The classes '{twin}' and '{name}' are the same tokens to '{encoder.name}', so that their "
                "prompts cannot be told apart; give them names of other words.",
                UserWarning,
                stacklevel=3,
            )


def _reordered(
    total: int, begin: int, length: int, name_lengths: Sequence[int], position: Position
) -> Tensor:
    """For every class, where each token of the prompt is taken from in ``context, name, rest``."""
    ahead = 0 if position == "front" else length // 2
    rows = []
    for name_length in name_lengths:
        context = list(range(begin, begin + length))
        name = list(range(begin + length, begin + length + name_length))
        rest = list(range(begin + length + name_length, total))
        rows.append([*range(begin), *context[:ahead], *name, *context[ahead:], *rest])
    return torch.tensor(rows)


@dataclass
class PromptClassifier(Fitted):
    """Logits ``s f . P`` with P from learned context vectors; new classes reuse the context.

    Attributes:
        class_names: C names.
        class_embeddings: P, unit rows, shape ``(C, d)``, CPU.
        logit_scale: s.
        context: learned context vectors, shape ``(M, w)``, or ``(C, M, w)`` if class-specific, CPU.
        context_init: the words they began as.
        encoder: the text tower, for new class names.
        position: of the class name.
        extra: further learned tensors, kept in the state.
    """

    class_names: tuple[str, ...]
    class_embeddings: Tensor
    logit_scale: float
    context: Tensor
    context_init: str
    encoder: DualEncoder
    position: Position = "end"
    history: History = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.logit_scale * image_features @ self.class_embeddings.T

    @torch.no_grad()
    def for_classes(
        self, class_names: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
    ) -> PromptClassifier:
        if self.context.dim() == 3:
            raise UserError(
                "A class-specific context belongs to its classes and cannot take new class names."
            )
        prompts = PromptLearner(self.encoder, class_names, self.context_init, position=self.position)
        embeddings = prompts(self.context[None].to(self.encoder.device))[0].float().cpu()
        return PromptClassifier(
            tuple(class_names),
            embeddings,
            self.logit_scale,
            self.context,
            self.context_init,
            self.encoder,
            self.position,
        )

    def state(self) -> dict[str, Tensor]:
        return {
            "class_embeddings": self.class_embeddings,
            "logit_scale": torch.tensor(self.logit_scale, dtype=torch.float64),
            "context": self.context,
            **self.extra,
        }


@dataclass
class PromptTask:
    """What one training adds to the shared forward pass.

    Attributes:
        losses: prompt embeddings P ``(C, d)`` and a batch -> loss terms.
        parameters: what is learned beside the context.
        extra: tensors to keep in the fitted state.
    """

    losses: Callable[[Tensor, Batch], Terms]
    parameters: list[Tensor] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)


PromptConfigT = TypeVar("PromptConfigT", bound=PromptConfig)


class PromptMethod(Method[PromptConfigT], Generic[PromptConfigT]):
    """A method that learns context vectors by a loss on the prompt embeddings; a subclass gives that loss.

    Several seeds train side by side, their prompts in one text batch: the tower works on larger matrices.
    """

    new_classes = True

    @abstractmethod
    def tasks(self, supports: Sequence[Support], encoder: DualEncoder) -> list[PromptTask]:
        """The losses of the trainings; what they share is computed once."""

    def prompts(self, names: Sequence[str], encoder: DualEncoder, copies: int) -> PromptLearner:
        """The prompts to learn."""
        return PromptLearner(encoder, names, self.config.context_init, copies)

    def backward(self, terms: Sequence[Terms], prompts: PromptLearner) -> None:
        """Gradients of the parameters, by default those of the summed losses."""
        descend(terms)

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        return self.fit_seeds([support], [self.config.seed], encoder, progress)[0]

    def fit_seeds(
        self,
        supports: Sequence[Support],
        seeds: Sequence[int],
        encoder: DualEncoder,
        progress: ProgressReport = no_progress,
    ) -> list[Fitted]:
        if len({(support.class_names, support.image_features.shape) for support in supports}) > 1:
            return super().fit_seeds(supports, seeds, encoder, progress)
        names, device = supports[0].class_names, encoder.device
        prompts = self.prompts(names, encoder, len(supports))
        tasks = self.tasks(supports, encoder)

        def objective(batches: Sequence[Batch]) -> list[Terms]:
            embeddings = prompts()
            return [task.losses(p, b) for task, p, b in zip(tasks, embeddings, batches, strict=True)]

        histories = optimise_together(
            objective,
            [prompts.context, *(parameter for task in tasks for parameter in task.parameters)],
            [support.image_features.to(device) for support in supports],
            [support.labels.to(device) for support in supports],
            seeds,
            self.config,
            progress,
            lambda terms: self.backward(terms, prompts),
        )
        return [
            self._fitted(prompts, row, names, encoder, history, task.extra)
            for row, (history, task) in enumerate(zip(histories, tasks, strict=True))
        ]

    @torch.no_grad()
    def _fitted(
        self,
        prompts: PromptLearner,
        row: int,
        names: Sequence[str],
        encoder: DualEncoder,
        history: History,
        extra: Mapping[str, Tensor],
    ) -> PromptClassifier:
        context = prompts.context[row : row + 1].detach()
        # A tower of its own batch, so that the embeddings do not depend on how many seeds trained together.
        embeddings = prompts(context)[0]
        if not embeddings.isfinite().all():
            raise UserError("The training diverged, its prompts are no numbers; set a lower learning rate.")
        state = {"class_embeddings": embeddings, "context": context[0], **extra}
        return self._classifier(
            {key: value.detach().float().cpu().clone() for key, value in state.items()},
            names,
            encoder.logit_scale,
            encoder,
            history,
        )

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return self._classifier(state, class_names, float(state["logit_scale"]), encoder, [])

    def _classifier(
        self,
        state: Mapping[str, Tensor],
        names: Sequence[str],
        logit_scale: float,
        encoder: DualEncoder,
        history: History,
    ) -> PromptClassifier:
        own = {"class_embeddings", "logit_scale", "context"}
        return PromptClassifier(
            class_names=tuple(names),
            class_embeddings=state["class_embeddings"],
            logit_scale=logit_scale,
            context=state["context"],
            context_init=self.config.context_init,
            encoder=encoder,
            position=self.position,
            history=history,
            extra={key: value for key, value in state.items() if key not in own},
        )

    @property
    def position(self) -> Position:
        """Of the class name in the prompt."""
        return "end"
