"""What can be measured of saliency maps, image by image; :mod:`vmfcoop.explain.checks` sums it up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.explain import localisation
from vmfcoop.explain.curves import curves, ranks
from vmfcoop.explain.maps import saliency_maps
from vmfcoop.explain.randomisation import rank_correlation, stand_ins
from vmfcoop.explain.remembering import RememberingEncoder
from vmfcoop.explain.sample import Sample
from vmfcoop.explain.targets import NONE, REST, Target, class_index, class_target
from vmfcoop.features import FittingBatches
from vmfcoop.methods.base import Fitted
from vmfcoop.progress import ProgressReport, no_progress

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the image tower's layers, from the last, whose weights are shuffled."""
SHUFFLES = 4
"""Differently shuffled towers; each image is seen through one of them."""
MOST_WRONG_CLASSES = 10
RANDOM_ORDERS = 3
TOLERANCE = 0.03
"""Of the pointing game, as a share of the shorter side: 15 pixels of 500, as published."""
UNKNOWN_GRID = (14, 14)
"""Cells of random maps where the tower names no grid of its own."""

Values = dict[str, NDArray[np.float64]]
"""Numbers by name, each ``(n,)``, NaN where undefined."""
Maps = NDArray[np.floating[Any]]


class MapMeasures:
    """Measures of a classifier's saliency maps on a sample; the class explained is the true one.

    Args:
        encoder: the backbone; one that has seen the images before need not see them again.
        fitted: the classifier.
        sample: the images.
        contrast: ``rest``, ``none`` or a class that no image is of.
        seed: of everything drawn.
        progress: told of every few maps and curves.
        methods: how many kinds of maps will be measured, for the progress.

    Attributes:
        stand_ins: what stands in for the class.
        tolerance: of the pointing game, in pixels.

    Raises:
        UserError: there is no such class to contrast with.
    """

    def __init__(
        self,
        encoder: RememberingEncoder,
        fitted: Fitted,
        sample: Sample,
        contrast: str = REST,
        seed: int = 0,
        progress: ProgressReport = no_progress,
        methods: int = 1,
    ) -> None:
        self._encoder, self._fitted, self._sample = encoder, fitted, sample
        self._contrast, self._seed, self._progress = contrast, seed, progress
        self._unwanted = None if contrast in (REST, NONE) else class_index(fitted, contrast)
        self._batches = FittingBatches(encoder)
        self._rows = np.arange(len(sample))
        self._shape = (len(sample), *sample.pixels.shape[2:])
        self.stand_ins = stand_ins(fitted, self._batches.encode(sample.pixels), seed)
        self.tolerance = round(TOLERANCE * min(self._shape[1:]))
        self._done, self._total = 0, self._work(methods)

    def _work(self, methods: int) -> int:
        """Maps and pairs of curves to come."""
        others = sum(1 + len(self.stand_ins.logits) + len(self.wrong_classes(c)) for c in self._sample.labels)
        shuffled = sum(len(self._rows_for(share)) for share in SHARES)
        curves_too = (methods + 1 + RANDOM_ORDERS) * len(self._sample)
        return methods * (others + shuffled) + curves_too

    def _tick(self, count: int) -> None:
        self._done += count
        self._progress("check saliency maps", self._done, self._total)

    def wrong_classes(self, c: int) -> list[int]:
        """The classes whose maps are compared with those of class c: all others, or a seeded draw of ten."""
        others = [d for d in range(len(self._fitted.class_names)) if d not in (c, self._unwanted)]
        if len(others) <= MOST_WRONG_CLASSES:
            return others
        drawn = np.random.default_rng([self._seed, c]).choice(others, MOST_WRONG_CLASSES, replace=False)
        return sorted(drawn.tolist())

    def maps(self, method: str) -> Maps:
        """The maps that everything else is about, ``(n, H, W)``: of the true classes."""
        return self._maps(method, self._own_target)

    def _own_target(self, c: int) -> Target:
        return class_target(self._fitted, c, self._contrast)

    def _maps(
        self,
        method: str,
        target_of: Callable[[int], Target | None],
        rows: NDArray[np.int64] | None = None,
        encoder: DualEncoder | None = None,
    ) -> Maps:
        """Maps of some rows by the target of each one's class; of a class without one, NaN."""
        rows = self._rows if rows is None else rows
        found = np.full((len(rows), *self._shape[1:]), np.nan, np.float32)
        for c in np.unique(self._sample.labels[rows]).tolist():
            own = np.flatnonzero(self._sample.labels[rows] == c)
            target = target_of(c)
            if target is not None:
                pixels = self._sample.pixels[rows[own]]
                maps = saliency_maps(encoder or self._encoder, pixels, target, method, seed=self._seed)
                found[own] = maps.numpy()
                self._tick(len(own))
        return found

    def prompts(self, method: str, true: Maps) -> Values:
        """``empty``, and rank correlations with maps of gibberish and of wrong classes, mean over those.

        ``rank_wrong_class`` is absent where there is no other class.
        """
        in_place = [self._maps(method, partial(self._stand_in, i)) for i in range(len(self.stand_ins.logits))]
        values = {
            "empty": (true == true[:, :1, :1]).all(axis=(1, 2)).astype(np.float64),
            "rank_gibberish": mean_defined(rank_correlation(true, maps) for maps in in_place),
        }
        most = max(len(self.wrong_classes(c)) for c in self._sample.labels.tolist())
        wrong = [self._maps(method, partial(self._wrong_target, i)) for i in range(most)]
        if wrong:
            values["rank_wrong_class"] = mean_defined(rank_correlation(true, maps) for maps in wrong)
        return values

    def _stand_in(self, i: int, c: int) -> Target:
        return self.stand_ins.target(i, self._fitted, c, self._contrast)

    def _wrong_target(self, i: int, c: int) -> Target | None:
        others = self.wrong_classes(c)
        return class_target(self._fitted, others[i], self._contrast) if i < len(others) else None

    def weights(self, true: dict[str, Maps]) -> dict[str, Values]:
        """Rank correlations with maps of shuffled towers, by method, as ``rank_weights_25`` to ``_100``.

        Half of the images are seen through wholly shuffled towers, an eighth through partly shuffled ones;
        the others are NaN. A tower is shuffled once for all methods, for it is copied.
        """
        values: dict[str, Values] = {method: {} for method in true}
        for share in SHARES:
            name = f"rank_weights_{round(100 * share)}"
            for method in true:
                values[method][name] = np.full(len(self._sample), np.nan)
            rows_for = self._rows_for(share)
            for shuffle, rows in enumerate(np.array_split(rows_for, min(SHUFFLES, len(rows_for)))):
                shuffled = self._encoder.randomised(share, self._seed + shuffle)
                for method, maps in true.items():
                    other = self._maps(method, self._own_target, rows, shuffled)
                    values[method][name][rows] = rank_correlation(maps[rows], other)
        return values

    def _rows_for(self, share: float) -> NDArray[np.int64]:
        """The first rows, in which classes are balanced as in all."""
        return self._rows[: -(-len(self._rows) // (2 if share == 1 else 8))]

    def curves(self, maps: Maps) -> Values:
        """Areas under the ``deletion`` and ``insertion`` curve in the order of maps."""
        areas = []
        for row in range(len(self._sample)):
            places = ranks(maps[row], self._seed)
            areas.append(curves(self._probability(row), self._sample.pixels[row], places).areas)
            self._tick(1)
        deletion, insertion = np.array(areas).T
        return {"deletion": deletion, "insertion": insertion}

    def _probability(self, row: int) -> Callable[[Tensor], NDArray[np.float64]]:
        c = int(self._sample.labels[row])

        def probability(pixels: Tensor) -> NDArray[np.float64]:
            with torch.no_grad():
                logits = self._fitted.logits(self._batches.encode(pixels))
            found: NDArray[np.float64] = logits.double().softmax(dim=1)[:, c].numpy()
            return found

        return probability

    def places(self, maps: Maps) -> tuple[Values, dict[str, float]]:
        """Localisation, and the thresholds that suit the whole set best; nothing without masks."""
        masks = self._sample.masks
        if masks is None or not masks.any():
            return {}, {}
        energy = localisation.energy_inside(maps, masks)
        values = {
            "pointing": localisation.pointing_game(maps, masks, self.tolerance),
            "energy": energy,
            "energy_gain": energy - localisation.area_share(masks),
            "iou": localisation.iou(maps, masks),
            "iou_best": localisation.best_iou(maps, masks),
            "dice": localisation.dice(maps, masks),
            "dice_best": localisation.best_dice(maps, masks),
        }
        thresholds = {}
        for name, score in (("iou_set_best", localisation.iou), ("dice_set_best", localisation.dice)):
            thresholds[name], values[name] = localisation.best_over_set(maps, masks, score)
        return values, thresholds

    def random_maps(self) -> list[Maps]:
        """Three sets of random maps, as coarse as the tower's last grid."""
        try:
            height, width = self._encoder.patch_activations(self._sample.pixels[:1]).shape[2:]
        except NotImplementedError:
            height, width = UNKNOWN_GRID
        seeds = np.random.SeedSequence(self._seed).generate_state(RANDOM_ORDERS).tolist()
        return [localisation.random_maps(self._shape, (height, width), seed) for seed in seeds]

    def settings(self) -> dict[str, Any]:
        """What was compared with what, ready for JSON."""
        names = self._fitted.class_names
        return {
            "stand_ins": {"kind": self.stand_ins.kind, "names": list(self.stand_ins.shown)},
            "wrong_classes": {
                names[c]: [names[d] for d in self.wrong_classes(c)]
                for c in np.unique(self._sample.labels).tolist()
            },
            "shares_shuffled": list(SHARES),
            "random_orders": RANDOM_ORDERS,
            "tolerance": self.tolerance,
        }

    def centre_maps(self) -> Maps:
        """A Gaussian in the middle of every image."""
        return localisation.centred_gaussians(self._shape)

    def uniform_maps(self) -> Maps:
        """Maps that mark everything alike."""
        return localisation.uniform_maps(self._shape)


def mean_defined(rows: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean of several ``(n,)`` over those where it is defined; NaN where none is.

    Example:
        >>> mean_defined([np.array([1.0, np.nan]), np.array([3.0, np.nan])]).tolist()
        [2.0, nan]
    """
    table = np.stack(list(rows))
    counts = (~np.isnan(table)).sum(axis=0)
    return np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
