"""Are the judgements to be trusted? Coverage of prediction sets, calibration, images from outside.

For every dataset, method and seed: a fit at 16 shots as ``vmfcoop fit`` does it, with the calibration images
that it keeps, measured on the test split. Datasets are the phantoms on the embedded CLIP and, where
VMFCOOP_TEST_DATA names a folder with ``data/``, ``descriptions/`` and ``models/``, its real sets on its small
real CLIP. All of it takes more than half an hour on one core; parts can be chosen.

    python -m benchmarks.trust
    python -m benchmarks.trust --phantoms phantom-brain-mri --seeds 1 --methods vmf-posterior
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score
from torch import Tensor

from vmfcoop import load_backbone, load_dataset, load_descriptions, make_method, sample_support
from vmfcoop.data import Dataset, read_image, restrict_classes
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.descriptions import DescriptionBank, bank_for
from vmfcoop.evaluation import draw_support
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import Fitted
from vmfcoop.pipeline import calibration_rows
from vmfcoop.trust.calibration import calibration_scores, fit_temperature, tempered
from vmfcoop.trust.conformal import SetRequest, covered_law, fit_sets
from vmfcoop.trust.judging import Labelled, fit_trust
from vmfcoop.trust.ood import DEFAULT_OOD_SCORE, OOD_SCORES, Seen, all_scores, fit_text_fields, outside
from vmfcoop.trust.record import Trust
from vmfcoop.trust.used_files import file_digests

SHOTS, VIEWS, CALIBRATION = 16, 8, 256
ALPHAS = (0.05, 0.1, 0.2)
REDRAWS = 200
DAMAGED = 40
REAL = ("BTMRI", "BUSI", "DermaMNIST")
QUICK_METHODS = ("vmf-posterior", "linear-probe")
"""Refitted for every class that is left out."""


@dataclass(frozen=True)
class Family:
    """Datasets that share a backbone.

    Attributes:
        title: for tables.
        encoder: the backbone.
        tables: datasets by name.
        banks: their descriptions.
    """

    title: str
    encoder: CachedEncoder
    tables: Mapping[str, Dataset]
    banks: Mapping[str, DescriptionBank]

    def features(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        table = self.tables[name]
        return self.encoder.encode_image_files([table.paths[i] for i in rows])[:, 0]


@dataclass(frozen=True)
class Cell:
    """One fit with what it keeps, and the test split as it sees it."""

    family: Family
    data: str
    method: str
    seed: int
    fitted: Fitted
    trust: Trust
    logits: Tensor
    labels: NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        return self.family.tables[self.data].class_names

    def scores(self, features: Tensor) -> dict[str, NDArray[np.float64]]:
        """Every out-of-distribution score of images."""
        logits = self.fitted.logits(features).detach()
        seen = Seen(features, logits, self.fitted, self.trust.image_fields, self.trust.text_fields)
        return {name: values.numpy() for name, values in all_scores(seen).items()}


def families(phantoms: Sequence[str]) -> Iterator[Family]:
    tables = {key: load_dataset(key) for key in phantoms}
    if tables:
        banks = {key: bank_for(key, table.class_names, None) for key, table in tables.items()}
        yield Family("phantoms", CachedEncoder(load_backbone("phantom", "cpu")), tables, banks)
    folder = os.environ.get("VMFCOOP_TEST_DATA")
    if folder:
        root = Path(folder)
        tables = {name: load_dataset(root / "data" / name) for name in REAL}
        banks = {name: load_descriptions(root / "descriptions" / f"{name}.json") for name in REAL}
        backbone = load_backbone(f"dir:{root / 'models/mini-biomed-clip'}", "cpu")
        yield Family("real", CachedEncoder(backbone), tables, banks)


def cells_of(family: Family, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    for data, table in family.tables.items():
        for method in methods:
            supports = [
                draw_support(family.encoder, table, family.banks[data], SHOTS, s, VIEWS) for s in seeds
            ]
            texts = [family.encoder.encode_texts(list(group)) for group in supports[0].descriptions]
            fits = make_method(method, {}).fit_seeds(supports, list(seeds), family.encoder)
            test = table.indices("test")
            features = family.features(data, test)
            for seed, support, fitted in zip(seeds, supports, fits, strict=True):
                rows = calibration_rows(table, sample_support(table, SHOTS, seed), CALIBRATION, seed)
                labels, none = torch.from_numpy(table.labels[rows]), file_digests([])
                kept = Labelled(family.features(data, rows), labels, none)
                trust = fit_trust(fitted, support, fit_text_fields(texts), kept, none)
                logits = fitted.logits(features).detach()
                yield Cell(family, data, method, seed, fitted, trust, logits, table.labels[test])
            print(f"fitted {method} on {data}", file=sys.stderr, flush=True)


@cache
def usual_counts(calibration: int, images: int, alpha: float) -> tuple[float, float]:
    """How many exchangeable images are covered in 95 % of cases."""
    low, high = covered_law(calibration, images, alpha).interval(0.95)
    return float(low), float(high)


@dataclass
class Tally:
    """Prediction sets on many test splits, against the exact law of exchangeable images.

    Sets that are never empty cover at least as many images as the classifier gets right, so that fits which
    are better than 1 - alpha lie above the law; below it they have no such reason to be.

    Attributes:
        alpha: error rate.
        shares, sizes: coverage and mean size of every split.
        below, above: for every split (or class of one), whether it lies outside the law's middle 95 %.
    """

    alpha: float
    shares: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    below: list[bool] = field(default_factory=list)
    above: list[bool] = field(default_factory=list)

    def add(self, sets: NDArray[np.bool_], labels: NDArray[np.int64], laws: Mapping[int | None, int]) -> None:
        """Count sets; ``laws`` has the calibration images of every class, or of all under None."""
        held = sets[np.arange(len(labels)), labels]
        self.shares.append(float(held.mean()))
        self.sizes.append(float(sets.sum(axis=1).mean()))
        for label, count in laws.items():
            mine = held if label is None else held[labels == label]
            low, high = usual_counts(count, len(mine), self.alpha)
            self.below.append(bool(mine.sum() < low))
            self.above.append(bool(mine.sum() > high))

    def row(self) -> str:
        outside_law = f"{sum(self.below)} / {sum(self.above)} of {len(self.below)}"
        return f"{np.mean(self.shares):.3f} | {np.mean(self.sizes):.2f} | {outside_law}"


def tally(cells: Iterable[Cell], request: SetRequest) -> Tally:
    found = Tally(alpha=request.alpha)
    for cell in cells:
        kept = cell.trust
        predictor = fit_sets(
            request, tempered(kept.calibration_logits, 1), kept.calibration_labels.numpy(), cell.names
        )
        laws: dict[int | None, int] = {None: int(predictor.counts[0])}
        if request.class_conditional:
            counts, limited = predictor.counts, np.isfinite(predictor.thresholds)
            laws = {label: int(counts[label]) for label in np.unique(cell.labels) if limited[label]}
        found.add(predictor.sets(tempered(cell.logits, 1)), cell.labels, laws)
    return found


def redrawn(cells: Iterable[Cell], request: SetRequest) -> Tally:
    """The control: calibration and test images dealt out anew, so that they are exchangeable."""
    found = Tally(alpha=request.alpha)
    for cell in cells:
        kept = cell.trust
        logits = torch.cat([kept.calibration_logits, cell.logits])
        labels = np.concatenate([kept.calibration_labels.numpy(), cell.labels])
        probabilities, count = tempered(logits, 1), len(kept.calibration_labels)
        draw = np.random.default_rng(cell.seed)
        for _ in range(REDRAWS):
            order = draw.permutation(len(labels))
            first, rest = order[:count], order[count:]
            predictor = fit_sets(request, probabilities[first], labels[first], cell.names)
            found.add(predictor.sets(probabilities[rest]), labels[rest], {None: count})
    return found


def print_coverage(cells: Sequence[Cell]) -> None:
    print("\n## Coverage: lac, by dataset (mean over methods and seeds)\n")
    headings = "coverage | size | below / above"
    print(f"| data | 1 - alpha | {headings} | by class: {headings} | dealt anew: coverage | below |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for family in dict.fromkeys(cell.family.title for cell in cells):
        of_family = [cell for cell in cells if cell.family.title == family]
        for data in [*dict.fromkeys(cell.data for cell in of_family), f"all {family}"]:
            own = [cell for cell in of_family if data in (cell.data, f"all {family}")]
            for alpha in ALPHAS:
                plain, by_class = (tally(own, SetRequest(alpha, "lac", each)) for each in (False, True))
                control = redrawn(own, SetRequest(alpha, "lac"))
                anew = f"{np.mean(control.shares):.3f} | {np.mean(control.below):.1%}"
                print(f"| {data} | {1 - alpha:g} | {plain.row()} | {by_class.row()} | {anew} |", flush=True)


def print_set_methods(cells: Sequence[Cell]) -> None:
    print("\n## Methods of sets (all datasets, methods and seeds)\n")
    print("| family | 1 - alpha | sets | coverage | size | below / above |\n|---|---|---|---|---|---|")
    for family in dict.fromkeys(cell.family.title for cell in cells):
        own = [cell for cell in cells if cell.family.title == family]
        for alpha in ALPHAS:
            for method, randomised in (
                ("lac", False),
                ("aps", False),
                ("raps", False),
                ("aps", True),
                ("raps", True),
            ):
                title = f"{method}, randomised" if randomised else method
                row = tally(own, SetRequest(alpha, method, randomised=randomised)).row()
                print(f"| {family} | {1 - alpha:g} | {title} | {row} |", flush=True)


def print_by_method(cells: Sequence[Cell]) -> None:
    print("\n## Coverage at 0.9 by the classifier's method (lac)\n")
    print("| family | method | accuracy | coverage | size | below / above |\n|---|---|---|---|---|---|")
    for family, method in dict.fromkeys((cell.family.title, cell.method) for cell in cells):
        own = [cell for cell in cells if (cell.family.title, cell.method) == (family, method)]
        right = [float((cell.logits.argmax(1).numpy() == cell.labels).mean()) for cell in own]
        print(f"| {family} | {method} | {np.mean(right):.3f} | {tally(own, SetRequest(0.1, 'lac')).row()} |")


TEMPERATURES: dict[str, Callable[[Trust], float]] = {
    "T = 1": lambda kept: 1.0,
    "maximum likelihood": lambda kept: fit_temperature(kept.validation_logits, kept.validation_labels, None),
    **{
        f"prior of {octaves:g} octaves": partial(
            lambda kept, octaves: fit_temperature(kept.validation_logits, kept.validation_labels, octaves),
            octaves=octaves,
        )
        for octaves in (0.25, 0.5, 1.0)
    },
    "prior of 0.5, calibration images": lambda kept: fit_temperature(
        kept.calibration_logits, kept.calibration_labels, 0.5
    ),
}


def print_calibration(cells: Sequence[Cell]) -> None:
    print("\n## Temperature (ECE / NLL / Brier on the test split, mean over datasets and seeds)\n")
    pairs = list(dict.fromkeys((cell.family.title, cell.method) for cell in cells))
    print(f"| temperature | {' | '.join(f'{family}, {method}' for family, method in pairs)} |")
    print("|---" * (len(pairs) + 1) + "|")
    for title, temperature in TEMPERATURES.items():
        shown = []
        for pair in pairs:
            own = [cell for cell in cells if (cell.family.title, cell.method) == pair]
            found = [calibration_scores(tempered(c.logits, temperature(c.trust)), c.labels) for c in own]
            means = [np.mean([scores[key] for scores in found]) for key in ("ece", "nll", "brier")]
            shown.append(" / ".join(f"{mean:.3f}" for mean in means))
        print(f"| {title} | {' | '.join(shown)} |", flush=True)


def damages(image: Image.Image, draw: np.random.Generator) -> dict[str, Image.Image]:
    """An image spoilt in ways that occur: a bad acquisition, a wrong window, a wrong orientation or crop."""
    picture = image.convert("RGB")
    pixels = np.asarray(picture, np.float64)
    width, height = picture.size

    def clipped(values: NDArray[np.float64]) -> Image.Image:
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

    return {
        "noise": clipped(pixels + draw.normal(0, 40, pixels.shape)),
        "inverted": clipped(255 - pixels),
        "blurred": picture.filter(ImageFilter.GaussianBlur(min(width, height) / 40)),
        "dark": clipped(0.3 * pixels),
        "upside down": picture.rotate(180),
        "middle quarter": picture.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4)),
    }


def damaged_features(family: Family, data: str) -> dict[str, Tensor]:
    """Unit features of spoilt test images by the kind of damage."""
    table, draw = family.tables[data], np.random.default_rng(0)
    chosen = draw.permutation(table.indices("test"))[:DAMAGED]
    spoilt = [damages(read_image(table.paths[i]), draw) for i in chosen]
    return {kind: family.encoder.encode_image_files([s[kind] for s in spoilt])[:, 0] for kind in spoilt[0]}


def auroc(inside: NDArray[np.float64], outside_scores: NDArray[np.float64]) -> float:
    truth = np.repeat([0, 1], [len(inside), len(outside_scores)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside_scores])))


Areas = dict[tuple[str, str, str, str], list[float]]
"""AUROCs by family, score, method and kind of outside."""


def areas_of(cells: Sequence[Cell]) -> Areas:
    """Every score against other datasets and spoilt images."""
    found: Areas = {}
    test = {
        (cell.family.title, cell.data): cell.family.features(
            cell.data, cell.family.tables[cell.data].indices("test")
        )
        for cell in cells
    }
    spoilt = {(c.family.title, c.data): c.family for c in cells}
    damaged = {key: damaged_features(family, key[1]) for key, family in spoilt.items()}
    for cell in cells:
        key = (cell.family.title, cell.data)
        mine = cell.scores(test[key])
        others = {"other data": [f for k, f in test.items() if k[0] == key[0] and k != key]}
        for kind, groups in {**others, **{k: [f] for k, f in damaged[key].items()}}.items():
            for features in groups:
                for name, values in cell.scores(features).items():
                    area = auroc(mine[name], values)
                    found.setdefault((key[0], name, cell.method, kind), []).append(area)
    return found


def new_class_areas(family: Family, methods: Sequence[str], seeds: Sequence[int]) -> Areas:
    """Every score against the images of a class that the fit was left without."""
    found: Areas = {}
    for data, table in family.tables.items():
        classes = range(len(table.class_names))
        for left_out in classes if len(classes) > 2 else ():
            rest = restrict_classes(table, [label for label in classes if label != left_out])
            part = Family(family.title, family.encoder, {data: rest}, {data: family.banks[data]})
            test = table.indices("test")
            unknown = family.features(data, test[table.labels[test] == left_out])
            known = part.features(data, rest.indices("test"))
            for cell in cells_of(part, methods, seeds):
                mine, theirs = cell.scores(known), cell.scores(unknown)
                for name in mine:
                    key = (family.title, name, cell.method, "new class")
                    found.setdefault(key, []).append(auroc(mine[name], theirs[name]))
    return found


def print_areas(areas: Areas) -> None:
    print("\n## AUROC of out-of-distribution scores (mean; of other data also the lowest)\n")
    kinds = list(dict.fromkeys(kind for *_, kind in areas))
    print(f"| family | score | method | {' | '.join(kinds)} |\n" + "|---" * (len(kinds) + 3) + "|")
    shared = ("image-fields", "text-fields")
    for family in dict.fromkeys(key[0] for key in areas):
        for score in OOD_SCORES:
            methods = dict.fromkeys(key[2] for key in areas if key[:2] == (family, score))
            # The fields do not depend on the method, but for the classes that fits were left without.
            groups = [list(methods)] if score in shared else [[method] for method in methods]
            for group in groups:
                cells = [
                    [a for m in group for a in areas.get((family, score, m, kind), [])] for kind in kinds
                ]
                shown = [f"{np.mean(values):.3f}" if values else "-" for values in cells]
                if cells[0]:
                    shown[0] += f" ({min(cells[0]):.3f})"
                title = "any" if score in shared else group[0]
                print(f"| {family} | {score} | {title} | {' | '.join(shown)} |")


def print_false_alarms(cells: Sequence[Cell]) -> None:
    print(f"\n## Flags: {DEFAULT_OOD_SCORE}, p <= 0.05 (share of images, mean over seeds)\n")
    print("| data | calibration images | test images | seeds above the law | other data |")
    print("|---|---|---|---|---|")
    for family, data in dict.fromkeys((cell.family.title, cell.data) for cell in cells):
        own = [cell for cell in cells if (cell.family.title, cell.data) == (family, data)]
        own = [cell for cell in own if cell.method == own[0].method]
        tables = own[0].family.tables
        shares, above, found = [], [], []
        for cell in own:
            kept = cell.trust.calibration_scores[DEFAULT_OOD_SCORE].numpy()
            flags = {
                name: outside(
                    cell.scores(cell.family.features(name, table.indices("test")))[DEFAULT_OOD_SCORE], kept
                ).flags
                for name, table in tables.items()
            }
            shares.append(flags[data].mean())
            least = usual_counts(len(kept), len(flags[data]), 0.05)[0]
            above.append((~flags[data]).sum() < least)
            found += [flags[name].mean() for name in flags if name != data]
        others = f"{np.mean(found):.3f}" if found else "-"
        print(f"| {data} | {len(kept)} | {np.mean(shares):.3f} | {sum(above)} of {len(above)} | {others} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--phantoms", nargs="*", default=list(PHANTOMS))
    parser.add_argument("--methods", nargs="+", default=["coop", "vmfcoop", "vmf-posterior", "linear-probe"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Few images of a class for 0.05 are what class-conditional sets are measured with.
    warnings.filterwarnings("ignore", message="At an error rate")
    found = list(families(args.phantoms))
    cells = [cell for family in found for cell in cells_of(family, args.methods, args.seeds)]
    print_coverage(cells)
    print_by_method(cells)
    print_set_methods(cells)
    print_calibration(cells)
    areas = areas_of(cells)
    for family in found:
        areas |= new_class_areas(family, QUICK_METHODS, args.seeds[:1])
    print_areas(areas)
    print_false_alarms(cells)


if __name__ == "__main__":
    main()
