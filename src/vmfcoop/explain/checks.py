"""Does a saliency map mean anything? Prompts, weights, deletion and insertion, masks; and a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmfcoop.__about__ import __version__
from vmfcoop.data import Dataset
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.explain.estimates import Estimate, estimate
from vmfcoop.explain.maps import MAP_METHODS, methods_for
from vmfcoop.explain.measuring import MapMeasures, Values, mean_defined
from vmfcoop.explain.remembering import RememberingEncoder
from vmfcoop.explain.sample import Sample, draw_sample
from vmfcoop.explain.targets import NONE, REST, class_index
from vmfcoop.explain.verdict import CRITERIA, Verdict, judge
from vmfcoop.files import write_atomically
from vmfcoop.methods.base import Fitted
from vmfcoop.pipeline import OpenRun
from vmfcoop.progress import ProgressReport, no_progress

CHECKS = "explain_checks.json"
BASELINES = {"uniform": "Uniform", "random": "Random", "centre": "Centred Gaussian"}
"""Maps that look at no image, with their titles; any table of maps carries them."""


@dataclass(frozen=True)
class MapChecks:
    """What was found of one kind of map.

    Attributes:
        title: for tables.
        numbers: means over images with their intervals, by name.
        values: the numbers of every image behind them.
        thresholds: those that suit the whole set best, by ``iou_set_best`` and ``dice_set_best``.
        verdict: None for baselines, which explain nothing.
    """

    title: str
    numbers: dict[str, Estimate]
    values: Values
    thresholds: dict[str, float]
    verdict: Verdict | None = None

    def as_json(self) -> dict[str, Any]:
        """Verdict and numbers, without the images' own."""
        judged: dict[str, Any] = {}
        if self.verdict is not None:
            failed = [criterion.name for criterion in self.verdict.failed]
            judged = {"passes": self.verdict.passes, "failed": failed, "asked": list(self.verdict.asked)}
        numbers = {name: number.as_json() for name, number in self.numbers.items()}
        return {"title": self.title, **judged, "numbers": numbers, "thresholds": self.thresholds}


@dataclass(frozen=True)
class SaliencyChecks:
    """What was found of every kind of map.

    Attributes:
        methods: by the map's name.
        baselines: by the names of :data:`BASELINES`; ``uniform`` only where there are masks.
        files: images that were looked at.
        has_masks: whether their findings are known.
        settings: of the check.
    """

    methods: dict[str, MapChecks]
    baselines: dict[str, MapChecks]
    files: tuple[str, ...]
    has_masks: bool
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As ``explain_checks.json`` holds it."""
        return {
            "images": len(self.files),
            "masks": self.has_masks,
            "methods": {name: found.as_json() for name, found in self.methods.items()},
            "baselines": {name: found.as_json() for name, found in self.baselines.items()},
            "settings": self.settings,
            "files": list(self.files),
        }

    def write(self, folder: Path) -> Path:
        """Write ``explain_checks.json`` into a run directory.

        Kinds of maps that an earlier check looked at on the same images with the same settings stay in it;
        an earlier check of anything else is replaced.

        Raises:
            UserError: the disk is full or the folder not writable; an earlier file stays as it was.
        """
        path, content = folder / CHECKS, self.as_json()
        earlier = _read_json(path)
        if all(earlier.get(key) == content[key] for key in ("images", "masks", "settings", "files")):
            content["methods"] = {**earlier.get("methods", {}), **content["methods"]}
        write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return path


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Standing(NamedTuple):
    """What the checks of a map method on a run found, for software and in words."""

    state: Literal["passed", "failed", "unchecked"]
    words: str


def standing(folder: Path, method: str) -> Standing:
    """Whether a map method passed its checks on a run, as ``vmfcoop explain check`` noted there."""
    try:
        checks = _read_json(folder / CHECKS)
        found = checks["methods"][method]
        passes, failed = bool(found["passes"]), set(found.get("failed", ()))
        contrast = checks.get("settings", {}).get("contrast")
        told = f", contrast {contrast}" if contrast else ""
        where = f"its checks on this run ({int(checks['images'])} test images{told})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        words = "This kind of map was not checked on this run; `vmfcoop explain check RUN` does that."
        return Standing("unchecked", words)
    if passes:
        return Standing("passed", f"This kind of map passed {where}.")
    faults = "; ".join(f"it {criterion.failure}" for criterion in CRITERIA if criterion.name in failed)
    said = f"This kind of map failed {where}" + (f": {faults}." if faults else ".")
    return Standing("failed", f"{said} Do not read it as the reason for the class.")


def check_run(
    opened: OpenRun,
    table: Dataset,
    images: int = 32,
    methods: Sequence[str] | None = None,
    masks: Path | None = None,
    seed: int = 0,
    contrast: str = REST,
    progress: ProgressReport = no_progress,
) -> SaliencyChecks:
    """Check the saliency maps of a run on images of the test split.

    Args:
        opened: the run.
        table: its dataset, or another with the same classes.
        images: how many; see :func:`vmfcoop.explain.sample.draw_sample`.
        methods: keys of ``MAP_METHODS``; default all that the tower offers.
        masks: folder of masks, see :func:`vmfcoop.explain.masks.mask_files`.
        seed: of everything drawn.
        contrast: ``rest``, ``none`` or a class, whose own images are then left out.
        progress: told of every few maps.

    Raises:
        UserError: unknown method or contrast, no image to draw, or a mask that cannot be read.
    """
    offered = methods_for(opened.encoder)
    for method in methods or ():
        if method not in MAP_METHODS:
            raise unknown_name("saliency method", method, MAP_METHODS)
        if method not in offered:
            names = ", ".join(offered)
            raise UserError(f"The image tower of '{opened.encoder.name}' offers no '{method}'; take {names}.")
    without = None if contrast in (REST, NONE) else class_index(opened.fitted, contrast)
    sample = draw_sample(opened.encoder, table, images, masks, seed, without)
    encoder = RememberingEncoder(opened.encoder)
    found = check_maps(encoder, opened.fitted, sample, methods or offered, contrast, seed, progress)
    where = {
        "data": table.name,
        "masks": None if masks is None else str(masks),
        "precision": opened.encoder.precision,
        "version": __version__,
    }
    return replace(found, settings={**where, **found.settings})


def check_maps(
    encoder: RememberingEncoder,
    fitted: Fitted,
    sample: Sample,
    methods: Sequence[str],
    contrast: str = REST,
    seed: int = 0,
    progress: ProgressReport = no_progress,
) -> SaliencyChecks:
    """Check saliency maps of a classifier; the class explained is the true one.

    Args:
        encoder: the backbone; one that has seen the images for another classifier need not see them again.
        fitted: the classifier.
        sample: the images.
        methods: keys of ``MAP_METHODS`` that the tower offers.
        contrast: ``rest``, ``none`` or a class that no image is of.
        seed: of everything drawn.
        progress: told of every few maps.

    Raises:
        UserError: there is no such class to contrast with.
    """
    measures = MapMeasures(encoder, fitted, sample, contrast, seed, progress, len(methods))
    baselines = _baselines(measures, sample)
    true = {method: measures.maps(method) for method in methods}
    shuffled = measures.weights(true)
    found = {}
    for method, maps in true.items():
        areas = _with_gains(measures.curves(maps), baselines["random"].values)
        places, thresholds = measures.places(maps)
        values = {**measures.prompts(method, maps), **shuffled[method], **areas, **places}
        summary = summed_up(MAP_METHODS[method].title, values, thresholds, sample.groups)
        found[method] = replace(summary, verdict=judge(summary.numbers))
    settings = {"contrast": contrast, "seed": seed, **measures.settings()}
    has_masks = sample.masks is not None
    return SaliencyChecks(found, baselines, sample.files, has_masks, settings)


def _baselines(measures: MapMeasures, sample: Sample) -> dict[str, MapChecks]:
    draws = measures.random_maps()
    orders = [measures.curves(maps) for maps in draws]
    chance = {name: mean_defined(order[name] for order in orders) for name in orders[0]}
    centre = measures.centre_maps()
    values = {
        "uniform": ({}, measures.uniform_maps()),
        "random": (chance, draws[0]),
        "centre": (_with_gains(measures.curves(centre), chance), centre),
    }
    found = {}
    for name, (areas, maps) in values.items():
        places, thresholds = measures.places(maps)
        found[name] = summed_up(BASELINES[name], {**areas, **places}, thresholds, sample.groups)
    return {name: checks for name, checks in found.items() if checks.numbers}


def _with_gains(areas: Values, chance: Values) -> Values:
    """Areas under the curves, and what they are above those of a random order on the same images."""
    return {**areas, **{f"{name}_gain": area - chance[name] for name, area in areas.items()}}


def summed_up(
    title: str, values: Values, thresholds: dict[str, float], groups: NDArray[np.str_] | None
) -> MapChecks:
    """Means and intervals of numbers that were measured image by image, without a verdict."""
    # One seed for all, so that every number of a table is of the same draws of images.
    numbers = {name: estimate(each, groups) for name, each in values.items()}
    return MapChecks(title, numbers, values, thresholds)
