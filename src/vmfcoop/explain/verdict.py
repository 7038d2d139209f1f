"""What a saliency map must show before it is called a map of anything.

A map passes if it meets every criterion that can be asked of the data. Each is met only where the whole 95 %
interval over images lies on the right side of its bound: what is not shown is not passed.

==============  ========================================================  =====================
criterion       number                                                    bound
==============  ========================================================  =====================
``empty``       share of images whose map is the same everywhere          below 0.1
``gibberish``   rank correlation with the maps of gibberish names         below 0.5
``wrong-class`` rank correlation with the maps of all other classes       below 0.5
``weights``     rank correlation after all weights were shuffled          between -0.3 and 0.3
``deletion``    area under deletion, less that of a random order          below 0
``insertion``   area under insertion, less that of a random order         above 0
``energy``      energy inside the mask, less the mask's share of area     above 0 (with masks)
==============  ========================================================  =====================

The bounds were chosen before any map was measured. 0.5 leaves room for what a name and gibberish share (with
the contrast ``rest`` the other classes' logits are in both scores); a negative correlation with another class
is no fault, the log-odds of two classes are each other's negative. Both signs count for shuffled weights, of
which a map should know nothing at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vmfcoop.explain.estimates import Estimate

EMPTY_MOST = 0.1
PROMPT_CORRELATION_MOST = 0.5
WEIGHTS_CORRELATION_MOST = 0.3


@dataclass(frozen=True)
class Criterion:
    """A demand on one number of a map.

    Attributes:
        name: as verdicts list it.
        number: the key of the number.
        failure: what is wrong with a map that does not meet it.
        least, most: what the lower end must be above, and the upper end below.
    """

    name: str
    number: str
    failure: str
    least: float = -math.inf
    most: float = math.inf

    def is_met(self, found: Estimate) -> bool:
        """Whether the whole interval lies between the bounds; False where there is none."""
        return (
            found.low is not None
            and found.high is not None
            and self.least < found.low
            and found.high < self.most
        )


CRITERIA = (
    Criterion("empty", "empty", "is the same everywhere in too many images", most=EMPTY_MOST),
    Criterion(
        "gibberish",
        "rank_gibberish",
        "is not shown to differ from those of gibberish",
        most=PROMPT_CORRELATION_MOST,
    ),
    Criterion(
        "wrong-class",
        "rank_wrong_class",
        "is not shown to differ from those of other classes",
        most=PROMPT_CORRELATION_MOST,
    ),
    Criterion(
        "weights",
        "rank_weights_100",
        "is not shown to depend on what the tower learned",
        -WEIGHTS_CORRELATION_MOST,
        WEIGHTS_CORRELATION_MOST,
    ),
    Criterion(
        "deletion",
        "deletion_gain",
        "is not shown to name better pixels to delete than a random order does",
        most=0.0,
    ),
    Criterion(
        "insertion",
        "insertion_gain",
        "is not shown to name better pixels to insert than a random order does",
        least=0.0,
    ),
    Criterion("energy", "energy_gain", "is not shown to lie on the finding more than elsewhere", least=0.0),
)


@dataclass(frozen=True)
class Verdict:
    """Which criteria a map failed.

    Attributes:
        failed: those that were asked and not met, in the order of :data:`CRITERIA`.
        asked: names of all that were asked.
    """

    failed: tuple[Criterion, ...]
    asked: tuple[str, ...]

    @property
    def passes(self) -> bool:
        """Whether all that was asked was met."""
        return not self.failed


def judge(numbers: Mapping[str, Estimate]) -> Verdict:
    """The verdict on a map.

    A criterion whose number is absent is not asked (``energy`` without masks); one whose number has no
    interval is failed, for it is not shown.

    Example:
        >>> same = Estimate(mean=0.97, low=0.95, high=0.99, images=32, undefined=0)
        >>> verdict = judge({"rank_gibberish": same})
        >>> verdict.passes, [criterion.name for criterion in verdict.failed]
        (False, ['gibberish'])
    """
    asked = [criterion for criterion in CRITERIA if criterion.number in numbers]
    failed = tuple(criterion for criterion in asked if not criterion.is_met(numbers[criterion.number]))
    return Verdict(failed, tuple(criterion.name for criterion in asked))
