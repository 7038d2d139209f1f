"""The report of a run: one HTML page that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from torch import Tensor

from vmfcoop.__about__ import __version__
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.evaluation.intervals import MetricIntervals, metric_intervals
from vmfcoop.explain.checks import CHECKS, standing
from vmfcoop.explain.maps import DEFAULT_METHOD, MAP_METHODS, methods_for
from vmfcoop.files import write_atomically
from vmfcoop.methods.vmfcoop import contrastive_temperature
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.reporting import run_texts
from vmfcoop.reporting.page import flat_settings, page_template
from vmfcoop.reporting.pictures import Mistake, Thumbnails, mistakes, thumbnails
from vmfcoop.reporting.run_evidence import Evidence, gather
from vmfcoop.reporting.run_figures import (
    DRAWN_IMAGES,
    average_precisions,
    loss_terms,
    reliability_diagram,
    roc_and_precision_recall,
    sphere_figure,
    training_curves,
)
from vmfcoop.reporting.run_tables import (
    PageTable,
    confusion_in_words,
    confusion_table,
    cosine_table,
    coverage_table,
    fields_table,
    metrics_table,
    per_class_table,
    settings_table,
)
from vmfcoop.reporting.sphere_view import CAP_SHARE, Images, SphereView, sphere_view
from vmfcoop.run import ADAPTER, HISTORY, METRICS, PREDICTIONS, RECORD, REPORT, TRUST
from vmfcoop.trust.calibration import calibration_scores, reliability, tempered
from vmfcoop.trust.conformal import SetRequest, coverage, fit_sets, images_needed

MISTAKES = 8
ALPHA = 0.1
"""Error rate of the prediction sets that are reported."""

OWN_FILES = (RECORD, ADAPTER, METRICS, PREDICTIONS, HISTORY, TRUST, CHECKS)

PARTS = {
    "summary": "Summary",
    "settings": "What was fitted on what",
    "metrics": "Metrics",
    "confusion": "Confusion",
    "classes": "Every class",
    "calibration": "Calibration",
    "training": "Training",
    "sphere": "The sphere",
    "fields": "Fields",
    "mistakes": "Mistakes",
    "support": "Support set",
    "limits": "Limits and use",
}
"""Parts of the page by their id."""


@dataclass(frozen=True)
class RunReport:
    """A report that was written.

    Attributes:
        path: the page.
        missing: why parts are missing, a sentence each.
    """

    path: Path
    missing: tuple[str, ...]


def write_run_report(
    folder: Path,
    out: Path | None = None,
    backbone: str | None = None,
    device: str = "auto",
    *,
    map_method: str | None = DEFAULT_METHOD,
    shown_mistakes: int = MISTAKES,
    progress: ProgressReport = no_progress,
) -> RunReport:
    """Write the report of a run, whole or not at all; the same bytes for the same run on the same machine.

    What the run directory holds is enough. Its data and backbone add the sphere, the mistakes, the support
    set and intervals over patients; where they are gone, the page says which part is missing and why.

    Args:
        folder: a run directory.
        out: the page; default ``report.html`` in the run directory.
        backbone: where the run's backbone lies now; default as recorded.
        device: where the towers run.
        map_method: key of ``MAP_METHODS`` for the mistakes' maps; None for no maps.
        shown_mistakes: how many of the most confident mistakes are shown.
        progress: told of reading, encoding and maps.

    Raises:
        UserError: no run directory, no such map method, or the page cannot be written.
    """
    if map_method is not None and map_method not in MAP_METHODS:
        raise unknown_name("saliency method", map_method, MAP_METHODS)
    path = out or folder / REPORT
    _refuse_own_file(path, folder)
    evidence = gather(folder, backbone, device, progress)
    _refuse_unoffered(map_method, evidence)
    page = render_run(evidence, map_method, shown_mistakes, progress)
    write_atomically(path, page)
    return RunReport(path, tuple(dict.fromkeys(evidence.missing.values())))


def _refuse_own_file(path: Path, folder: Path) -> None:
    """Keep the run's own files from being written over, and end early where a folder is named."""
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; name the page, such as '{path / REPORT}'.")
    if path.name in OWN_FILES and path.parent.resolve() == folder.resolve():
        raise UserError(f"'{path}' is a file of the run itself; choose another name for the page.")


def _refuse_unoffered(map_method: str | None, evidence: Evidence) -> None:
    if map_method is None or evidence.opened is None:
        return
    offered = methods_for(evidence.opened.encoder)
    if map_method not in offered:
        raise UserError(
            f"The backbone '{evidence.opened.encoder.name}' has no {map_method} maps; choose one of "
            f"{', '.join(offered)}, or none."
        )


def render_run(
    evidence: Evidence,
    map_method: str | None = DEFAULT_METHOD,
    shown_mistakes: int = MISTAKES,
    progress: ProgressReport = no_progress,
) -> str:
    """The page as HTML; arguments as :func:`write_run_report`."""
    intervals = _intervals(evidence)
    record = evidence.run.record
    wrong = _mistakes(evidence, map_method, shown_mistakes, progress)
    shots = _thumbnails(evidence)
    pictures = len(wrong.mistakes) + sum(len(one.pictures) for one in shots)
    return page_template("run.html.j2").render(
        name=f"{run_texts.method_title(record)} on {run_texts.data_name(record)}",
        subtitle=f"{record['support']['shots']} images a class, seed {record['support']['seed']}",
        parts=list(PARTS.items()),
        titles=PARTS,
        coded=_coded,
        summary=run_texts.summary(evidence, intervals),
        cautions=run_texts.cautions(evidence),
        facts=run_texts.facts(evidence),
        settings=_settings(evidence),
        metrics=metrics_table(evidence.run.metrics, intervals),
        how_intervals=run_texts.how_intervals(evidence, intervals),
        confusion=confusion_table(evidence.run.metrics["confusion_matrix"], evidence.names),
        confused=confusion_in_words(evidence.run.metrics["confusion_matrix"], evidence.names),
        classes=_classes(evidence, intervals),
        calibration=_calibration(evidence),
        training=_training(evidence),
        sphere=_sphere(evidence),
        fields=_fields(evidence),
        wrong=wrong,
        shots=shots,
        shots_why=evidence.why("data", "images"),
        limits=run_texts.limits(evidence, pictures),
        intended=run_texts.intended_use(evidence),
        version=__version__,
    )


def _coded(text: str) -> Markup:
    """Text whose commands in backquotes are code; other backquotes may be in the name of a class."""
    return Markup(re.sub(r"`(vmfcoop [^`]*)`", r"<code>\1</code>", str(escape(text))))


@dataclass(frozen=True)
class Block:
    """A part of the page: figures, tables and sentences, or why there are none.

    Attributes:
        figures: title and inline SVG of each.
        tables: in order.
        notes: sentences.
        why: why the part, or some of it, is missing.
    """

    figures: tuple[tuple[str, Markup], ...] = ()
    tables: tuple[PageTable, ...] = ()
    notes: tuple[str, ...] = ()
    why: str = ""


def _intervals(evidence: Evidence) -> MetricIntervals | None:
    found = evidence.predictions
    return None if found is None else metric_intervals(found.probabilities, found.labels, evidence.groups)


def _settings(evidence: Evidence) -> PageTable:
    """All of ``run.json`` but the names of files."""
    record = evidence.run.record
    parts: dict[str, Any] = {"method": record["method"]["config"]}
    for key in ("backbone", "data", "descriptions", "support", "calibration", "threads", "software"):
        if key in record:
            parts[key] = _without(record[key], _FILES.get(key, ()))
    lines = list(flat_settings(parts))
    return settings_table(f"All settings ({len(lines)})", lines)


_FILES = {"support": ("train", "val"), "calibration": ("images",)}


def _without(part: Any, keys: Sequence[str]) -> Any:
    return {key: value for key, value in part.items() if key not in keys} if keys else part


def _classes(evidence: Evidence, intervals: MetricIntervals | None) -> Block:
    metrics, found = evidence.run.metrics, evidence.predictions
    precisions = None if found is None else average_precisions(found.probabilities, found.labels)
    table = per_class_table(metrics, precisions, intervals)
    areas = [row.get("auroc") for row in metrics["per_class"].values()]
    if found is None or all(area is None for area in areas):
        why = evidence.why("predictions") or "No class has both images of its own and of others."
        return Block(tables=(table,), why=f"There are no curves. {why}")
    svg = roc_and_precision_recall(found.probabilities, found.labels, evidence.names, areas, "roc")
    return Block((("ROC and precision-recall curves", Markup(svg)),), (table,))


def _calibration(evidence: Evidence) -> Block:
    logits, found = evidence.test_logits, evidence.predictions
    if logits is None or found is None:
        return Block(why=evidence.why("predictions"))
    trust = evidence.trust
    plain = tempered(logits, 1.0)
    diagrams = {"as the method gives them": reliability(plain, found.labels)}
    notes = []
    if trust is None:
        why = evidence.why("trust") or (
            "The run keeps no calibration record (an older version fitted it), so there is no temperature "
            "and there are no prediction sets; fitting again makes one."
        )
    elif not len(trust.validation_labels):
        why = "There were no validation images, so the temperature is 1 and nothing was scaled."
    else:
        why = ""
        scaled = tempered(logits, trust.temperature)
        diagrams[f"after temperature scaling, T = {trust.temperature:.2f}"] = reliability(
            scaled, found.labels
        )
        notes.append(_scaling_note(plain, scaled, found.labels, len(trust.validation_labels)))
    notes.append(
        "Marks are bins of the top probability; the more images, the larger. Bars are 95 % intervals."
    )
    if evidence.exact_logits is None:
        reason = evidence.why("data", "backbone", "images", "changed")
        notes.append(f"Computed from probabilities rounded to six digits: {reason}")
    sets, set_notes = _prediction_sets(evidence, logits)
    svg = reliability_diagram(diagrams, "reliability")
    return Block((("Reliability diagram", Markup(svg)),), sets, (*notes, *set_notes), why)


def _scaling_note(plain: Any, scaled: Any, labels: Any, count: int) -> str:
    before, after = calibration_scores(plain, labels), calibration_scores(scaled, labels)
    said = "; ".join(
        f"{title} {before[key]:.3f} before, {after[key]:.3f} after"
        for key, title in (
            ("ece", "calibration error"),
            ("nll", "negative log-likelihood"),
            ("brier", "Brier score"),
        )
    )
    return (
        f"Temperature scaling, fitted to {count} validation images, on the test images: {said}. It changes "
        "no class."
    )


def _prediction_sets(evidence: Evidence, logits: Tensor) -> tuple[tuple[PageTable, ...], tuple[str, ...]]:
    trust, found = evidence.trust, evidence.predictions
    if trust is None or found is None:
        return (), ()
    count, needed = len(trust.calibration_labels), images_needed(ALPHA)
    if count < needed:
        return (), (
            f"Prediction sets at an error rate of {ALPHA:g} need {needed} calibration images; the run has "
            f"{count}.",
        )
    # As `predict --conformal` takes them: the guarantee needs no calibrated probabilities.
    request, calibration = SetRequest(ALPHA), tempered(trust.calibration_logits, 1.0)
    predictor = fit_sets(request, calibration, trust.calibration_labels.numpy(), evidence.names)
    sets = coverage(predictor.sets(tempered(logits, 1.0)), found.labels, evidence.names)
    sizes = ", ".join(f"{n} of size {size}" for size, n in enumerate(sets["sizes"], 1) if n)
    return (coverage_table(sets),), (
        f"Conformal prediction sets ({request.method.upper()}) at an error rate of {ALPHA:g}, calibrated on "
        f"{count} images: a set holds the true class of {100 * (1 - ALPHA):.0f} % of images or more, on "
        "average over calibration sets, if calibration and new images are exchangeable. Sets by size: "
        f"{sizes}.",
        "The coverage of a class is not guaranteed; a class-conditional calibration does that.",
    )


def _training(evidence: Evidence) -> Block:
    if not evidence.history or not loss_terms(evidence.history):
        why = evidence.why("history") or "The method is not trained in steps, so there are no loss curves."
        return Block(why=why)
    temperature, note = _temperatures(evidence)
    svg = training_curves(evidence.history, temperature, "training")
    notes = [
        "The mean over the support images of every term, before weights; the loss is their weighted sum."
    ]
    return Block((("Loss terms over epochs", Markup(svg)),), notes=(*notes, *note))


def _temperatures(evidence: Evidence) -> tuple[list[float] | None, tuple[str, ...]]:
    """The contrastive temperature of every epoch, recorded or, in older runs, from the settings."""
    history = evidence.history
    if "tau" in history[0]:
        return [row["tau"] for row in history], ()
    config, scale = evidence.run.record["method"]["config"], evidence.state.get("logit_scale")
    end = config.get("tau_end") or (None if scale is None else float(scale))
    if not config.get("contrastive") or "tau_start" not in config or end is None:
        return None, ()
    count = len(evidence.run.record["support"]["train"])
    values = _schedule(len(history), count, config["batch_size"], config["tau_start"], end)
    return values, ("The contrastive temperature is computed from the settings; the run did not record it.",)


def _schedule(epochs: int, count: int, batch: int, start: float, end: float) -> list[float]:
    """The contrastive temperature of every epoch, the mean over its images, as the history has it."""
    sizes = np.array([min(batch, count - first) for first in range(0, count, batch)])
    last = max(1, epochs * len(sizes) - 1)
    steps = [contrastive_temperature(step / last, start, end) for step in range(epochs * len(sizes))]
    return [float(mean) for mean in np.reshape(steps, (epochs, -1)) @ sizes / count]


def _sphere(evidence: Evidence) -> Block:
    texts = {
        kind: rows.double().numpy()
        for kind, rows in (
            ("before", evidence.prompts_before),
            ("after", evidence.prompts_after),
            ("anchors", evidence.anchors),
        )
        if rows is not None
    }
    absent = _absent_texts(evidence)
    if not texts:
        return Block(why=" ".join(absent) or evidence.why("backbone", "adapter"))
    view = sphere_view(texts, evidence.class_fields or (), _support(evidence), _tests(evidence))
    tables = tuple(_cosine_tables(texts, evidence.names))
    if view is None:
        return Block(tables=tables, why="The class texts span no plane, so there is nothing to see.")
    figures = tuple(_sphere_figures(view, evidence))
    gone = evidence.why("data", "images") if view.support is None or view.test is None else ""
    notes = _sphere_notes(view)
    if len(figures) > 1:
        notes = (*notes, "In the enlarged view, class texts that lie outside it are marked at the rim.")
    return Block(figures, tables, notes, " ".join([*absent, gone]).strip())


def _sphere_figures(view: SphereView, evidence: Evidence) -> Iterator[tuple[str, Markup]]:
    labels = None if evidence.predictions is None else evidence.predictions.labels
    frames = {"sphere": ("The sphere, seen from the mean of the class texts", view)}
    close = view.enlarged()
    if close is not None:
        frames["enlarged"] = ("The same view, enlarged to the images", close)
    for key, (title, frame) in frames.items():
        svg = sphere_figure(frame, evidence.names, evidence.support_labels, labels, key)
        yield title, Markup(svg)


def _absent_texts(evidence: Evidence) -> list[str]:
    told = []
    if evidence.prompts_before is None:
        told.append(evidence.why("backbone"))
    if evidence.prompts_after is None:
        told.append("The method has no learned prompt of a class, so none is shown after training.")
    if evidence.anchors is None:
        told.append("The method has no anchors.")
    return [sentence for sentence in told if sentence]


def _support(evidence: Evidence) -> Images | None:
    features, labels = evidence.support_features, evidence.support_labels
    return None if features is None or labels is None else Images(features.double().numpy(), labels)


def _tests(evidence: Evidence) -> Images | None:
    features, found = evidence.test_features, evidence.predictions
    return None if features is None or found is None else Images(features.double().numpy(), found.labels)


_VARIES = {
    "after": "between the prompts",
    "before": "between the class names' texts",
    "anchors": "between the anchors",
    "support": "between the classes' mean support images",
    "test": "among single test images",
}


def _sphere_notes(view: SphereView) -> tuple[str, ...]:
    kept = ", ".join(f"{100 * part:.0f} % {_VARIES[kind]}" for kind, part in view.kept.items())
    told = [
        "How it is drawn: three directions are kept, the mean of the class texts (the cross) and the two in "
        "which the classes differ most; points are put back to length 1 and drawn equal-area, circles are "
        f"angles from the cross. A projection misleads: of the variance it keeps {kept}. What lies together "
        "here may be apart in other directions; the tables have the angles in all of them.",
    ]
    if view.gap is not None:
        told.append(
            f"Images and texts lie in different cones of the sphere, {math.degrees(view.gap):.0f}° apart "
            "(the modality gap). The images were turned as a whole, so that their mean falls on the cross; "
            "angles between images are as they were."
        )
    if view.caps:
        told.append(
            f"A cap is where {100 * CAP_SHARE:.0f} % of the draws from a class's field (its κ) would be seen "
            "in this view. In all dimensions the field is far wider, see the table of fields, but so are all "
            "distances."
        )
    beyond = [f"{count} {_BEYOND[kind][count > 1]}" for kind, count in view.beyond.items() if count]
    if beyond:
        told.append(f"Outside the frame: {', '.join(beyond)}.")
    if view.test is not None and len(view.test) > DRAWN_IMAGES:
        told.append(f"Of {len(view.test)} test images {DRAWN_IMAGES}, drawn at random, are shown.")
    return tuple(told)


_BEYOND = {
    "before": ("prompt before training", "prompts before training"),
    "after": ("prompt after training", "prompts after training"),
    "anchors": ("anchor", "anchors"),
    "test": ("test image", "test images"),
}


def _cosine_tables(texts: Mapping[str, Any], names: Sequence[str]) -> list[PageTable]:
    titles = {"before": "prompts before training", "after": "prompts after training"}
    if "anchors" in texts:
        anchors = texts["anchors"]
        tables = [cosine_table("Cosines between anchors", anchors, anchors, names)]
        for kind in ("after", "before"):
            if kind in texts:
                title = f"Cosines of {titles[kind]} (rows) with anchors (columns)"
                tables.append(cosine_table(title, texts[kind], anchors, names))
        return tables
    return [
        cosine_table(f"Cosines between {titles[kind]}", texts[kind], texts[kind], names)
        for kind in ("after", "before")
        if kind in texts
    ]


def _fields(evidence: Evidence) -> Block:
    fields, recorded = evidence.class_fields, evidence.recorded_lengths
    if fields is None and recorded is None:
        return Block(why=evidence.why("backbone", "descriptions", "fields"))
    dim = evidence.anchors.shape[1] if fields is None and evidence.anchors is not None else _dim(evidence)
    vocabulary, kept = (recorded[0], recorded[1:]) if recorded is not None else (None, None)
    table = fields_table(evidence.names, fields, vocabulary, kept, dim)
    config = evidence.run.record["method"]["config"]
    notes = [
        f"Each law is fitted to the unit embeddings of a class's descriptions in d = {dim} dimensions: R is "
        "the length of their mean, κ the concentration. Few texts in many dimensions look more concentrated "
        "than they are; the debiased κ takes out what chance alone gives.",
    ]
    if "estimator" in config:
        notes.append(f"The run's anchors were made with the estimator '{config['estimator']}'.")
    if vocabulary is None:
        notes.append("The method makes no use of a vocabulary field, so none was fitted.")
    return Block(
        tables=(table,),
        notes=tuple(notes),
        why=evidence.why("backbone", "descriptions") if fields is None else "",
    )


def _dim(evidence: Evidence) -> int:
    assert evidence.opened is not None
    return evidence.opened.encoder.dim


@dataclass(frozen=True)
class Mistakes:
    """The most confident mistakes of a run.

    Attributes:
        mistakes: the most confident first.
        total: how many there are among the test images.
        title: of the map method.
        verdict: what is known of such maps on this run.
        why: why there are none, or no maps.
    """

    mistakes: tuple[Mistake, ...] = ()
    total: int = 0
    title: str = ""
    verdict: str = ""
    why: str = ""


def _mistakes(evidence: Evidence, method: str | None, most: int, progress: ProgressReport) -> Mistakes:
    found = evidence.predictions
    if found is None:
        return Mistakes(why=evidence.why("predictions"))
    rows = np.flatnonzero(found.predicted != found.labels)
    total = len(rows)
    rows = rows[np.argsort(-found.probabilities[rows].max(axis=1), kind="stable")]
    if not len(rows):
        return Mistakes(why="The run makes no mistake on the test images.")
    if most == 0:
        return Mistakes(total=total, why=f"None of {total} is shown, as was asked.")
    if evidence.opened is None or evidence.table is None:
        return Mistakes(total=total, why=evidence.why("data", "backbone"))
    rows = rows[:most]
    files = [found.files[row] for row in rows]
    try:
        paths = [evidence.images[file] for file in files]
        shown = mistakes(
            evidence.opened,
            files,
            paths,
            found.labels[rows].tolist(),
            found.probabilities[rows],
            method,
            progress,
        )
    except (KeyError, UserError) as error:
        evidence.missing["mistakes"] = f"The mistakes cannot be shown: {error}"
        return Mistakes(total=total, why=evidence.why("mistakes"))
    title = "" if method is None else MAP_METHODS[method].title
    verdict = "" if method is None else standing(evidence.run.folder, method).words
    return Mistakes(tuple(shown), total, title, verdict)


def _thumbnails(evidence: Evidence) -> list[Thumbnails]:
    files, labels = evidence.run.record["support"]["train"], evidence.support_labels
    if labels is None:
        return []
    try:
        return thumbnails(files, [evidence.images[file] for file in files], labels.tolist(), evidence.names)
    except UserError as error:
        evidence.missing["images"] = f"An image cannot be read: {error}"
        return []
