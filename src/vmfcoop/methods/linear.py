"""What the linear methods share: rows to fit on, how a setting is scored, how a classifier is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import ConfigT, Fitted, LinearClassifier, Method, Support


class LinearMethod(Method[ConfigT]):
    """A method whose fitted classifier is ``f W^T + b`` and nothing else."""

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return LinearClassifier.restored(state, class_names)


def samples(support: Support, augmented: bool) -> tuple[Tensor, Tensor]:
    """Rows to fit a classifier on, image by image: the plain view, or all V of them.

    Returns:
        Features ``(r, d)``, float64, and labels ``(r,)``, with r = n or n V.
    """
    views = support.image_features if augmented else support.image_features[:, :1]
    return views.flatten(0, 1).double(), support.labels.repeat_interleave(views.shape[1])


def validation_score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and negative cross-entropy of validation shots: the larger pair is the better setting.

    A few validation shots leave many settings at the same accuracy; the cross-entropy decides between them.

    Args:
        logits: shape ``(m, C)``, m > 0.
        labels: shape ``(m,)``.

    Example:
        >>> validation_score(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        (0.5, -0.6931471824645996)
    """
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    return float(accuracy), -float(cross_entropy(logits, labels))
