"""Learned prompts: context vectors in front of class names, through the frozen text tower, never padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.errors import UserError
from vmfcoop.methods.base import Fitted, History


class PromptLearner(nn.Module):
    """Prompts ``[BOS] v_1 .. v_M <class name> . [EOS]`` with context vectors shared by all classes.

    The context starts as the token embeddings of ``context_init`` ("a photo of a", M = 4), so that an
    untrained prompt is the zero-shot one. All other token embeddings are looked up once. The prompts are as
    long as the longest real one: on BiomedCLIP about 11 tokens where padding to the context length has 256.

    Args:
        encoder: any dual encoder.
        class_names: C names, without a closing full stop.
        context_init: words whose embeddings start the context.

    Raises:
        UserError: the initial words are cut by the tower's context length.
    """

    def __init__(
        self, encoder: DualEncoder, class_names: Sequence[str], context_init: str = "a photo of a"
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
        embeddings = encoder.token_embeddings(tokens.ids).detach().float()
        self.context = nn.Parameter(embeddings[0, begin : begin + length].clone())
        self._before = embeddings[:, :begin]
        self._after = embeddings[:, begin + length :]
        self._mask = tokens.mask

    def forward(self, context: Tensor | None = None) -> Tensor:
        """Unit prompt embeddings P, shape ``(C, d)``, from the learned context or a given one ``(M, w)``."""
        vectors = self.context if context is None else context
        shared = vectors.expand(len(self._after), -1, -1)
        prompts = torch.cat([self._before, shared, self._after], dim=1)
        return self._encoder.encode_embeddings(prompts, self._mask)


@dataclass
class PromptClassifier(Fitted):
    """Logits ``s f . P`` with P from learned context vectors; new classes reuse the context.

    Attributes:
        class_names: C names.
        class_embeddings: P, unit rows, shape ``(C, d)``, CPU.
        logit_scale: s.
        context: learned context vectors, shape ``(M, w)``, CPU.
        context_init: the words they began as.
        encoder: the text tower, for new class names.
        extra: further learned tensors, kept in the state.
    """

    class_names: tuple[str, ...]
    class_embeddings: Tensor
    logit_scale: float
    context: Tensor
    context_init: str
    encoder: DualEncoder
    history: History = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.logit_scale * image_features @ self.class_embeddings.T

    @torch.no_grad()
    def for_classes(self, class_names: Sequence[str]) -> PromptClassifier:
        prompts = PromptLearner(self.encoder, class_names, self.context_init)
        embeddings = prompts(self.context.to(self.encoder.device)).float().cpu()
        return PromptClassifier(
            tuple(class_names), embeddings, self.logit_scale, self.context, self.context_init, self.encoder
        )

    def state(self) -> dict[str, Tensor]:
        return {
            "class_embeddings": self.class_embeddings,
            "logit_scale": torch.tensor(self.logit_scale, dtype=torch.float64),
            "context": self.context,
            **self.extra,
        }


def fitted_prompts(
    prompts: PromptLearner,
    class_names: Sequence[str],
    context_init: str,
    encoder: DualEncoder,
    history: History,
    extra: Mapping[str, Tensor] | None = None,
) -> PromptClassifier:
    """Freeze a trained :class:`PromptLearner` into a classifier."""
    with torch.no_grad():
        embeddings = prompts().float().cpu()
    return PromptClassifier(
        class_names=tuple(class_names),
        class_embeddings=embeddings,
        logit_scale=encoder.logit_scale,
        context=prompts.context.detach().cpu().clone(),
        context_init=context_init,
        encoder=encoder,
        history=history,
        extra={key: value.detach().cpu().clone() for key, value in (extra or {}).items()},
    )


def restore_prompts(
    state: Mapping[str, Tensor], class_names: Sequence[str], context_init: str, encoder: DualEncoder
) -> PromptClassifier:
    """The classifier that :meth:`PromptClassifier.state` was taken from."""
    own = {"class_embeddings", "logit_scale", "context"}
    return PromptClassifier(
        class_names=tuple(class_names),
        class_embeddings=state["class_embeddings"],
        logit_scale=float(state["logit_scale"]),
        context=state["context"],
        context_init=context_init,
        encoder=encoder,
        extra={key: value for key, value in state.items() if key not in own},
    )
