"""Linear probe: logistic regression on frozen image features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, LinearClassifier, MethodConfig, Support
from vmfcoop.methods.linear import LinearMethod, samples, validation_score
from vmfcoop.progress import ProgressReport, no_progress

GRID = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""log10 C of the coarse grid; the search stays between its ends."""

WIDTHS = (1.0, 0.5, 0.25, 0.125)
"""Steps of log10 C around the best of the coarse grid: down to 8 steps a decade."""


class LinearProbeConfig(MethodConfig):
    """Settings of the linear probe.

    Attributes:
        default_c: C where there are no validation shots.
        augmented: fit on all cached views of an image, each with weight 1/V, instead of the plain one.
        tolerance: of L-BFGS, on the largest partial derivative of the mean loss.
        max_iterations: of L-BFGS; scikit-learn warns where they end before the tolerance is met.
    """

    default_c: float = Field(1.0, gt=0)
    augmented: bool = False
    tolerance: float = Field(1e-6, gt=0)
    max_iterations: int = Field(10_000, ge=1)


class LinearProbe(LinearMethod[LinearProbeConfig]):
    """Linear probe (Radford et al., ICML 2021, appendix A.3): multinomial logistic regression on f.

    With ``q = softmax(f W^T + b)`` it minimises ``1/2 |W|^2 + C sum_n -log q_{n, y_n}`` by L-BFGS; the bias
    is free. For two classes scikit-learn fits one vector w, which is kept as the rows -w/2 and +w/2.

    C is searched as there: 10^-6, 10^-4, .. 10^6 by validation accuracy, then the interval around the best is
    halved until it has 8 steps a decade. Between equal accuracies the lower validation cross-entropy decides,
    then the smaller C of the grid. Without validation shots C is ``default_c``.
    """

    name = "linear-probe"
    title = "Linear probe"
    Config = LinearProbeConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        if len(support.validation_labels) == 0:
            return self.fit_c(support, self.config.default_c)
        scored: list[tuple[tuple[float, float], float, LinearClassifier]] = []
        total = len(GRID) + 2 * len(WIDTHS)

        def score(exponents: Sequence[float]) -> None:
            for exponent in exponents:
                fitted = self.fit_c(support, 10.0**exponent)
                logits = fitted.logits(support.validation_features)
                scored.append((validation_score(logits, support.validation_labels), exponent, fitted))
                progress("search C", len(scored), total)

        score(GRID)
        for width in WIDTHS:
            centre = _best(scored)[1]
            score([e for e in (centre - width, centre + width) if GRID[0] <= e <= GRID[-1]])
        return _best(scored)[2]

    def fit_c(self, support: Support, c: float) -> LinearClassifier:
        """The logistic regression of one C."""
        config = self.config
        features, labels = samples(support, config.augmented)
        regression = LogisticRegression(C=c, tol=config.tolerance, max_iter=config.max_iterations)
        weights = np.full(len(labels), len(support.labels) / len(labels))
        with warnings.catch_warnings():
            # Many classes of one shot each are no regression problem, as scikit-learn wonders.
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            regression.fit(features.numpy(), labels.numpy(), sample_weight=weights)
        weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
        if len(weight) == 1:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        extra = {"c": torch.tensor(c, dtype=torch.float64)}
        return LinearClassifier(
            support.class_names, weight.float().contiguous(), bias.float().contiguous(), extra=extra
        )


def _best(
    scored: Sequence[tuple[tuple[float, float], float, LinearClassifier]],
) -> tuple[tuple[float, float], float, LinearClassifier]:
    return max(scored, key=lambda row: row[0])
