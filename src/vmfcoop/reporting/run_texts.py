"""What a run's report says in words; every sentence follows from the run's own record and numbers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.data.registry import REGISTRY
from vmfcoop.evaluation.intervals import DRAWS, Interval, MetricIntervals
from vmfcoop.methods import METHODS
from vmfcoop.reporting.page import duration
from vmfcoop.reporting.run_evidence import Evidence
from vmfcoop.reporting.run_tables import share, shares

SURE = 0.9
"""Probability from which a wrong prediction is called a confident one."""

FEW = 30
"""Test images of a class below which its figures are called rough."""

OFF = 0.05
"""Expected calibration error from which a reader is warned."""


def method_title(run: Mapping[str, Any]) -> str:
    """The method's name for people; that of a method that this version lacks is its key."""
    name = str(run["method"]["name"])
    return METHODS[name].title if name in METHODS else name


def data_name(run: Mapping[str, Any]) -> str:
    """The dataset's name for people."""
    return str(run["data"]["name"])


def summary(evidence: Evidence, intervals: MetricIntervals | None) -> list[str]:
    """The report in a paragraph: what was learned from what, how well it does, its weakest class."""
    return [
        _learned(evidence),
        _accuracy(evidence, intervals),
        *_weakest_class(evidence, intervals),
    ]


def _learned(evidence: Evidence) -> str:
    record = evidence.run.record
    support, names = record["support"], evidence.names
    title, data = method_title(record), data_name(record)
    where = f"the frozen backbone {record['backbone']['spec']}"
    if _is_zero_shot(record):
        return (
            f"{title} tells {len(names)} classes of {data} apart by their texts alone, on {where}; no image "
            "was learned from."
        )
    count = len(support["train"])
    verb = "was trained on" if evidence.history else "was fitted to"
    return (
        f"{title} {verb} {count} labelled images of {data}, {support['shots']} of each of {len(names)} "
        f"classes, on {where}."
    )


def _accuracy(evidence: Evidence, intervals: MetricIntervals | None) -> str:
    metrics = evidence.run.metrics
    found = _bracketed(None if intervals is None else intervals.overall.get("accuracy"))
    return (
        f"It names the right class for {share(metrics['accuracy'])} of {metrics['n']} test images{found}; "
        f"chance is {share(metrics['chance'])}, and always naming the most frequent class gives "
        f"{share(metrics['majority'])}."
    )


def _weakest_class(evidence: Evidence, intervals: MetricIntervals | None) -> list[str]:
    rows = evidence.run.metrics["per_class"]
    present = [name for name in evidence.names if rows[name]["support"] > 0]
    if len(present) < 2:
        return []
    weakest = min(present, key=lambda name: float(rows[name]["recall"]))
    if rows[weakest]["recall"] == max(rows[name]["recall"] for name in present):
        return ["All classes are recognised equally often."]
    i = evidence.names.index(weakest)
    found = _bracketed(intervals.per_class["recall"][i]) if intervals is not None else ""
    counts = np.array(evidence.run.metrics["confusion_matrix"])[i]
    others = np.where(np.arange(len(counts)) == i, -1, counts)
    taken = f"; most often it is taken for {evidence.names[int(others.argmax())]}" if others.max() > 0 else ""
    return [
        f"The weakest class is {weakest}: {share(rows[weakest]['recall'])} of its {rows[weakest]['support']} "
        f"images are recognised{found}{taken}."
    ]


def _bracketed(interval: Interval | None) -> str:
    return "" if interval is None else f" (95 % interval {shares(interval)})"


def cautions(evidence: Evidence) -> list[str]:
    """What to beware of before the figures are believed, the gravest first."""
    found = [*_of_the_data(evidence), *_of_probabilities(evidence), *_of_small_classes(evidence)]
    return found or ["Nothing in the run's own record calls for more care than the limits below."]


def _of_the_data(evidence: Evidence) -> list[str]:
    data = evidence.run.record["data"]
    told = []
    if data["spec"] in PHANTOMS:
        told.append("The images are drawings of this package: the figures say nothing of real images.")
    known = REGISTRY.get(data["name"])
    if known is not None and known.caveat:
        told.append(f"{data['name']} has a known fault: {known.caveat}.")
    leaking = () if evidence.table is None else evidence.table.leaking_groups()
    if leaking:
        told.append(
            f"{len(leaking)} {_groups(len(leaking))} images in more than one split: the figures look better "
            "than they are."
        )
    elif not data["grouped"]:
        told.append(
            "The data name no patients: if images of one patient are in training and in test, the figures "
            "look better than they are."
        )
    if evidence.exact_logits is None and evidence.why("changed"):
        told.append(f"{evidence.why('changed')} Numbers are of what was recorded; pictures are of today.")
    return told


def _groups(count: int) -> str:
    """Which ones is not said: a group's name may be a patient's."""
    return "group (a patient, a volume) has" if count == 1 else "groups (patients, volumes) have"


def _of_probabilities(evidence: Evidence) -> list[str]:
    told = []
    metrics, predictions = evidence.run.metrics, evidence.predictions
    if predictions is not None:
        wrong = predictions.predicted != predictions.labels
        sure = int((wrong & (predictions.probabilities.max(axis=1) >= SURE)).sum())
        if sure:
            told.append(
                f"{sure} of its {int(wrong.sum())} mistakes on the test images were made with a probability "
                f"of {100 * SURE:.0f}\u00a0% or more."
            )
    if metrics["ece"] >= OFF:
        told.append(
            f"Its probabilities are off by {100 * metrics['ece']:.0f} points on average (expected "
            "calibration error)."
        )
    return told


def _of_small_classes(evidence: Evidence) -> list[str]:
    counts = {name: row["support"] for name, row in evidence.run.metrics["per_class"].items()}
    absent = [name for name, count in counts.items() if count == 0]
    small = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW]
    told = []
    if absent:
        told.append(
            "No test image shows these classes, so that nothing here is about them, and macro AUROC is not "
            f"defined: {_first(absent)}."
        )
    if small:
        told.append(
            f"Fewer than {FEW} test images show these classes, so that their figures are rough: "
            f"{_first(small)}."
        )
    return told


def _first(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def how_intervals(evidence: Evidence, intervals: MetricIntervals | None) -> list[str]:
    """Which intervals the tables have, and what they take for granted."""
    if intervals is None:
        return [f"There are no intervals. {evidence.why('predictions')}"]
    if intervals.groups == 1:
        return ["All test images are of one group (a patient, a volume): that gives no intervals for others."]
    told = []
    if intervals.groups is not None:
        told.append(
            f"Images of one group (a patient, a volume) are not independent, so intervals come from {DRAWS} "
            f"bootstrap resamples of the {intervals.groups} groups of test images, not of images "
            "(percentiles). Where all images of a class are right, or all wrong, Wilson's interval with the "
            "number of groups stands instead."
        )
    else:
        told.append(
            f"Accuracy and recall have Wilson's interval; the other metrics percentiles of {DRAWS} bootstrap "
            "resamples of the test images. Both take images as independent."
        )
        if evidence.run.record["data"]["grouped"]:
            told.append(
                "The images are grouped (by patient or volume), but which is whose is in the data, not in "
                f"the run: the intervals are too narrow. {evidence.why('data')}"
            )
    ends = [*intervals.overall.values()]
    ends += [end for key in ("f1", "auroc") for end in intervals.per_class[key] if end is not None]
    if any(interval.low == interval.high for interval in ends):
        told.append(
            "Where all resamples give the same value, as where all images are right or all wrong, the "
            "interval is a point, and says nothing of how sure the figure is."
        )
    told.append(
        "All intervals are for this one classifier on other images of the same kind; another support set "
        "gives another classifier. The calibration error has no interval: resampling itself raises it."
    )
    return told


def limits(evidence: Evidence, pictures: int) -> list[str]:
    """Limits of the run, from its facts.

    Args:
        evidence: of the run.
        pictures: how many images of the data the page shows.
    """
    record, metrics = evidence.run.record, evidence.run.metrics
    support, data = record["support"], record["data"]
    sources = [] if _is_zero_shot(record) else [f"{len(support['train'])} labelled images"]
    sources.append("the class names" + (" and their descriptions" if _reads_descriptions(record) else ""))
    told = [
        f"Learned from {' and '.join(sources)}, with one support set (seed {support['seed']}). Other images "
        "would give another classifier; `vmfcoop benchmark` measures how much over seeds.",
        f"Tested on {metrics['n']} images of the same source, {data_name(record)}. Nothing here says how it "
        "does on images of another hospital, scanner, protocol or population.",
        "No subgroup (age, sex, skin type, scanner) was tested: the data name none.",
        f"It names one of its {len(evidence.names)} classes for any image, also for one that shows none of "
        "them; `vmfcoop predict --ood` scores how far an image lies outside.",
    ]
    if data["grouped"]:
        told.append(
            "Images of one group (a patient, a volume) are kept in one split where the split is ours."
        )
    told += _calibration_limits(evidence)
    told.append(
        "Near copies between training and test images were not looked for here; "
        f"`vmfcoop data verify {shlex.quote(str(data['spec']))}` does."
    )
    if pictures:
        told.append(
            f"This page shows {pictures} images of the data and names files: see that both may be shared "
            "before you send it on."
        )
    return told


def _is_zero_shot(record: Mapping[str, Any]) -> bool:
    return str(record["method"]["name"]).startswith("zero-shot")


def _reads_descriptions(record: Mapping[str, Any]) -> bool:
    method = METHODS.get(record["method"]["name"])
    return method is not None and method.reads_descriptions


def _calibration_limits(evidence: Evidence) -> list[str]:
    trust = evidence.trust
    if trust is None:
        return ["Its probabilities were not calibrated: the run keeps no calibration record."]
    used, kept = len(trust.validation_labels), len(trust.calibration_labels)
    told = []
    if used:
        told.append(f"The temperature of its calibrated probabilities rests on {used} validation images.")
    else:
        told.append("Its probabilities were not calibrated: there were no validation images.")
    if kept:
        told.append(
            f"Prediction sets and out-of-distribution flags rest on {kept} further labelled images of the "
            "same source, which come on top of the few shots."
        )
    return told


def intended_use(evidence: Evidence) -> list[str]:
    """What the run may be used for, from what it is."""
    names = evidence.names
    return [
        f"Made to tell apart: {_first(names, 12)}; in images like those of {data_name(evidence.run.record)}.",
        "For research on few-shot adaptation: to compare methods, to see what a classifier of so few images "
        "looks at, and to find the classes that need more or better images.",
        "Not a medical device, and not validated for clinical decisions: no prospective study, no reader "
        "study and no regulatory review stands behind these figures.",
    ]


def facts(evidence: Evidence) -> list[tuple[str, str]]:
    """Settings and fingerprints, a line each."""
    record = evidence.run.record
    backbone, data, support, texts = (record[key] for key in ("backbone", "data", "support", "descriptions"))
    counts = {split: sum(row.values()) for split, row in data["images"].items()}
    lines = [
        ("Method", f"{method_title(record)} ({record['method']['name']})"),
        ("Backbone", f"{backbone['spec']}, {backbone.get('precision', 'fp32')} on {backbone['device']}"),
        ("Backbone's fingerprint", backbone["fingerprint"]),
        ("Data", str(data["spec"])),
        ("Data's fingerprint", data["fingerprint"]),
        ("Images", ", ".join(f"{count} {split}" for split, count in counts.items())),
        ("Classes", f"{len(evidence.names)}: {', '.join(evidence.names)}"),
        ("Patients or volumes", "kept in one split" if data["grouped"] else "not named by the data"),
        ("Support set", _support_line(support)),
        ("Descriptions", _texts_line(record)),
        ("Descriptions' fingerprint", texts["fingerprint"]),
        ("Command", shlex.join(record["command"]) or "(from Python)"),
    ]
    kept = record.get("calibration")
    if kept:
        further = f"{len(kept['images'])} further labelled images of the val split"
        lines.insert(9, ("Calibration", f"{further}, temperature {kept['temperature']:.2f}"))
    if data.get("window"):
        lines.insert(6, ("Window", str(data["window"])))
    seconds = evidence.run.metrics.get("seconds")
    if seconds:
        lines.append(("Time", ", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items())))
    return lines


def _support_line(support: Mapping[str, Any]) -> str:
    views = f"{support['views']} cached view{'s' if support['views'] != 1 else ''} an image"
    return (
        f"{support['shots']} images a class, {len(support['train'])} in all, seed {support['seed']}, "
        f"{views}; {len(support['val'])} validation images"
    )


def _texts_line(record: Mapping[str, Any]) -> str:
    texts = record["descriptions"]
    least, most = min(texts["per_class"]), max(texts["per_class"])
    count = str(most) if least == most else f"{least} to {most}"
    unread = "" if _reads_descriptions(record) else "; the method does not read them"
    return f"{count} a class, from {texts['source']}{unread}"
