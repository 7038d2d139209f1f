"""A run's report: its numbers against the run's own and others', and what it says where things are gone."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score

from tests.reporting.conftest import AWKWARD
from tests.reporting.page import Page
from tests.test_cli import refused, vmfcoop
from vmfcoop.data import load_dataset
from vmfcoop.errors import UserError
from vmfcoop.evaluation.intervals import metric_intervals
from vmfcoop.explain.checks import CHECKS
from vmfcoop.explain.verdict import CRITERIA
from vmfcoop.methods.vmfcoop import contrastive_temperature
from vmfcoop.pipeline import run_fit
from vmfcoop.reporting import run_report, run_texts
from vmfcoop.reporting.run_evidence import gather, read_predictions
from vmfcoop.reporting.run_report import PARTS, render_run, write_run_report
from vmfcoop.reporting.run_tables import (
    confusion_in_words,
    confusion_table,
    cosine_table,
    fields_table,
    per_class_table,
)
from vmfcoop.run import read_run
from vmfcoop.sphere import fit_vmf
from vmfcoop.trust.calibration import tempered
from vmfcoop.trust.conformal import SetRequest, coverage, fit_sets

GIBBERISH = next(criterion for criterion in CRITERIA if criterion.name == "gibberish")
NAMES = (AWKWARD, "meningioma tumor", "normal brain")


@pytest.fixture(scope="module")
def source(full_page):
    assert full_page.missing == ()
    return full_page.path.read_text("utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


@pytest.fixture(scope="module")
def whole(full_run):
    """The evidence of the full run."""
    return gather(full_run.folder, device="cpu")


def words(page):
    return re.sub(r"\s+", " ", page.text.replace("\u00a0", " "))


def row_of(page, name, columns):
    """The rows of that name and length."""
    return [row[1:] for row in page.rows if row and row[0] == name and len(row) == columns]


def test_needs_nothing_but_itself(source, page):
    for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
        for tag, value in page.attributes(name):
            assert value.startswith("data:image/jpeg;base64,") if tag == "img" else value.startswith("#")
    ids = [value for _, value in page.attributes("id")]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for name in ("href", "xlink:href") for _, value in page.attributes(name)]
    targets += re.findall(r"url\(#([^)]*)\)", source)
    targets += [value for name in ("aria-labelledby",) for _, value in page.attributes(name)]
    assert set(targets) <= set(ids)
    assert not re.search(r"@import|url\((?!#)|<link|<script src|https?://(?!www\.w3\.org)", source)
    assert len(source) < 3_000_000


def test_is_read_by_those_who_do_not_see_it(page):
    assert ("html", "en") in page.attributes("lang")
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("footer") == 1
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert [text for level, text in page.headings if level == 2] == list(PARTS.values())
    for tag, attributes in page.elements:
        if tag == "img":
            assert len(attributes["alt"]) > 15
        if tag == "svg" and "role" in attributes:
            assert attributes["role"] == "img" and len(attributes["aria-label"]) > 60
        if attributes.get("role") == "region":
            assert attributes["aria-label"] and attributes["tabindex"] == "0"
    assert sum("role" in attributes for tag, attributes in page.elements if tag == "svg") == 4
    assert len([1 for tag, attributes in page.elements if attributes.get("aria-sort") == "none"]) > 10


def test_numbers_are_the_runs_own(page, full_run):
    metrics, found = full_run.metrics, read_predictions(full_run)
    for title, key in (("accuracy", "accuracy"), ("macro AUROC", "macro_auroc"), ("Brier score", "brier")):
        assert row_of(page, title, 4)[0][0] == f"{metrics[key]:.3f}"
    for i, name in enumerate(NAMES):
        row = metrics["per_class"][name]
        area = average_precision_score(found.labels == i, found.probabilities[:, i])
        never = not np.array(metrics["confusion_matrix"])[:, i].any()
        precision = "–" if never else f"{row['precision']:.3f}"
        others = [f"{value:.3f}" for value in (row["f1"], row["auroc"], area)]
        assert [str(row["support"]), f"{row['recall']:.3f}", precision, *others] in row_of(page, name, 7)
        counts = metrics["confusion_matrix"][i]
        assert [*map(str, counts), str(sum(counts))] in row_of(page, name, 5)


def test_intervals_are_those_of_the_patients(page, full_run, grouped_images):
    table, found = (
        load_dataset(grouped_images, class_names={"glioma_tumor": AWKWARD}),
        read_predictions(full_run),
    )
    rows = {table.file(int(row)): table.groups[row] for row in table.indices("test")}
    groups = np.array([rows[file] for file in found.files])
    intervals = metric_intervals(found.probabilities, found.labels, groups)
    assert intervals.groups < len(groups)
    low, high = intervals.overall["accuracy"].low, intervals.overall["accuracy"].high
    assert row_of(page, "accuracy", 4)[0][1] == f"{low:.3f} to {high:.3f}"
    assert f"the {intervals.groups} groups of test images" in words(page)


def test_curves_reliability_and_sets(page, full_run, whole):
    labels = [value for tag, value in page.attributes("aria-label") if tag == "svg"]
    roc = next(label for label in labels if label.startswith("ROC"))
    assert f"{NAMES[1]} {full_run.metrics['per_class'][NAMES[1]]['auroc']:.3f} and" in roc
    reliability = next(label for label in labels if label.startswith("Reliability"))
    assert f"as the method gives them, ECE {full_run.metrics['ece']:.3f}" in reliability
    assert f"after temperature scaling, T = {whole.trust.temperature:.2f}" in reliability
    count = len(whole.trust.calibration_labels)
    assert count < 9 and f"need 9 calibration images; the run has {count}" in words(page)


def test_prediction_sets_are_those_of_predict(whole):
    """With twelve calibration images, which the tiny data have not: the thresholds of split conformal."""
    labels = whole.trust.validation_labels.repeat(4)
    logits = whole.trust.validation_logits.repeat(4, 1)
    trust = replace(whole.trust, calibration_logits=logits, calibration_labels=labels, calibration_scores={})
    evidence = replace(whole, trust=trust)
    shown = Page(render_run(evidence, None, 0))
    assert re.search(r"None of \d+ is shown, as was asked", shown.text)
    predictor = fit_sets(SetRequest(0.1), tempered(logits, 1.0), labels.numpy(), NAMES)
    sets = predictor.sets(tempered(evidence.test_logits, 1.0))
    found = coverage(sets, evidence.predictions.labels, NAMES)
    assert row_of(shown, "all", 5)[0][1].replace("\u00a0", " ") == f"{100 * found['coverage']:.1f} %"
    assert row_of(shown, "all", 5)[0][3] == f"{sets.sum(axis=1).mean():.2f}"


def test_training_has_every_term_and_the_temperature(page, whole):
    history = whole.history
    label = next(
        value for tag, value in page.attributes("aria-label") if value.startswith("Curves over 4 epochs")
    )
    for term in ("loss", "ce", "rce", "anc", "sc"):
        assert f"{term} {history[0][term]:.3g} and {history[-1][term]:.3g}" in label
    assert f"contrastive temperature {history[0]['tau']:.3g} and {history[-1]['tau']:.3g}" in label


def test_temperature_of_every_epoch_is_its_mean_over_images(whole):
    history, config = whole.history, whole.run.record["method"]["config"]
    scale = float(whole.state["logit_scale"])
    sizes = [4, 4, 1]  # nine support images in batches of four
    steps = [contrastive_temperature(step / 11, config["tau_start"], scale) for step in range(12)]
    expected = [np.dot(sizes, steps[3 * epoch : 3 * epoch + 3]) / 9 for epoch in range(4)]
    assert [row["tau"] for row in history] == pytest.approx(expected, rel=1e-5)


def test_fields_and_cosines_are_computed_anew(page, whole):
    texts = whole.bank.for_classes(NAMES)
    for name, rows in zip(NAMES, texts, strict=True):
        embeddings = whole.opened.encoder.encode_texts(list(rows))
        newton, debiased = fit_vmf(embeddings), fit_vmf(embeddings, "debiased")
        row = row_of(page, name, 8)[0]
        assert row[0] == "4" and row[1] == f"{float(newton.resultant_length):.3f}"
        assert float(row[2]) == pytest.approx(float(newton.concentration), rel=1e-3)
        assert float(row[3]) == pytest.approx(float(debiased.concentration), rel=1e-3)
    anchors = whole.anchors.numpy()
    for i, name in enumerate(NAMES):
        assert [f"{cosine:.3f}" for cosine in anchors[i] @ anchors.T] in row_of(page, name, 4)


def test_pictures_are_the_support_images_and_the_most_confident_mistakes(page, full_run, grouped_images):
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    for file in full_run.record["support"]["train"]:
        assert sum(f"Support image {file} of" in alt for alt in alts) == 1
    found = read_predictions(full_run)
    wrong = np.flatnonzero(found.predicted != found.labels)
    worst = wrong[np.argsort(-found.probabilities[wrong].max(axis=1), kind="stable")][:2]
    shown = [alt for alt in alts if alt.startswith("Test image")]
    assert shown == [
        f"Test image {found.files[row]}, which shows {NAMES[found.labels[row]]}" for row in worst
    ]
    picture = next(attributes["src"] for _, attributes in page.elements if attributes.get("alt") == shown[0])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",", 1)[1]))).convert("L"), float)
    original = np.asarray(Image.open(grouped_images / found.files[worst[0]]).convert("L"), float)
    assert np.corrcoef(image.ravel(), original.ravel())[0, 1] > 0.95


def test_words_follow_from_the_run(page, full_run):
    text = words(page)
    assert "vMFCoOp was trained on 9 labelled images of stripes, 3 of each of 3 classes" in text
    assert f"{100 * full_run.metrics['accuracy']:.1f} % of {full_run.metrics['n']} test images" in text
    assert "Fewer than 30 test images" in text and "The data name no patients" not in text
    assert f"This page shows {9 + 2} images of the data" in text
    assert "a 'b c'" in text and full_run.record["data"]["fingerprint"] in text
    assert "Not a medical device" in text and "was not checked on this run" in text


def test_the_same_bytes_every_time(source, full_run, tmp_path):
    write_run_report(
        full_run.folder, tmp_path / "again.html", device="cpu", map_method="gradcam", shown_mistakes=2
    )
    assert (tmp_path / "again.html").read_text("utf-8") == source


def test_older_runs_have_no_calibration_record_and_no_temperature(copied, tmp_path):
    (copied / "trust.safetensors").unlink()
    with (copied / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    taus = [float(row.pop("tau")) for row in rows]
    with (copied / "history.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    shown = Page(page_of(copied, tmp_path))
    assert "keeps no calibration record" in shown.text
    assert "contrastive temperature is computed from the settings" in shown.text
    label = next(value for tag, value in shown.attributes("aria-label") if value.startswith("Curves over"))
    assert f"contrastive temperature {taus[0]:.3g} and {taus[-1]:.3g}" in label


def page_of(folder, tmp_path, backbone=None):
    place = tmp_path / "page.html"
    write_run_report(folder, place, backbone, device="cpu", map_method=None, shown_mistakes=1)
    return place.read_text("utf-8")


def changed(folder, part, **values):
    record = json.loads((folder / "run.json").read_text())
    record[part].update(values)
    (folder / "run.json").write_text(json.dumps(record))


def test_without_its_data(copied, tmp_path):
    changed(copied, "data", spec="gone/elsewhere")
    shown = Page(page_of(copied, tmp_path))
    assert "The data are not at hand" in shown.text and "gone/elsewhere" in shown.text
    assert "intervals are too narrow" in words(shown) and "support images cannot be shown" in words(shown)
    assert not [1 for tag, _ in shown.elements if tag == "img"]
    assert row_of(shown, "accuracy", 4) and row_of(shown, NAMES[0], 8)


def test_with_changed_data(copied):
    changed(copied, "data", fingerprint="0" * 64)
    assert "changed since the run was fitted" in gather(copied, device="cpu").missing["data"]


def test_with_other_images_of_the_same_names(whole):
    """The page says that what is recorded and what is seen today differ, and keeps to what is recorded."""
    found = whole.predictions
    other = replace(found, probabilities=np.roll(found.probabilities, 1, axis=1))
    evidence = replace(whole, predictions=other, missing={})
    assert evidence.exact_logits is None
    assert evidence.test_logits.exp().numpy() == pytest.approx(other.probabilities)
    assert "changed since the run was fitted" in " ".join(run_texts.cautions(evidence))
    assert whole.exact_logits is not None and "changed" not in whole.missing


def test_without_its_backbone(copied, tmp_path, full_run, whole):
    changed(copied, "backbone", spec="dir:/nowhere/at/all")
    shown = Page(page_of(copied, tmp_path))
    assert "The backbone is not at hand" in shown.text
    assert "probabilities rounded to six digits" in words(shown)
    assert [1 for tag, _ in shown.elements if tag == "img"]  # the support set needs no backbone
    assert row_of(shown, NAMES[0], 8)[0][1] == f"{whole.recorded_lengths[1]:.3f}"
    assert gather(copied, full_run.record["backbone"]["spec"], "cpu").missing == {}


def test_a_place_or_device_that_was_named_and_is_not_there_is_an_error(copied):
    with pytest.raises(UserError, match="nowhere"):
        gather(copied, "dir:/nowhere/at/all", "cpu")
    with pytest.raises(UserError, match="device 'nonesuch' is not available"):
        gather(copied, device="nonesuch")


DAMAGED = {
    "predictions.csv": "The predictions cannot be read",
    "history.csv": "The history cannot be read",
    "adapter.safetensors": "is missing or damaged",
    "trust.safetensors": "The calibration record cannot be read",
}


def test_with_missing_or_damaged_files(copied, full_run, tmp_path):
    for file, said in DAMAGED.items():
        content = (copied / file).read_bytes()
        (copied / file).write_bytes(content[: len(content) // 2].replace(b",", b"\x00"))
        assert said in " ".join(gather(copied, device="cpu").missing.values())
        shutil.copy(full_run.folder / file, copied / file)
    assert gather(copied, device="cpu").missing == {}
    for file in DAMAGED:
        (copied / file).unlink()
    shown = Page(page_of(copied, tmp_path))
    assert row_of(shown, "accuracy", 4) and "keeps no calibration record" in shown.text
    for file in ("predictions.csv", "history.csv", "adapter.safetensors"):
        assert DAMAGED[file] in shown.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub(r"[\d.]+$", "nan", text, flags=re.M), "no probabilities"),
        (lambda text: re.sub(r"[\d.]+$", "7.5", text, flags=re.M), "no probabilities"),
        (lambda text: text.replace(",normal brain,", ",meningioma tumor,"), "no probabilities|other counts"),
        (lambda text: "".join(text.splitlines(keepends=True)[:5]), "other counts"),
        (lambda text: text + text.splitlines()[1] + "\n", "other counts"),
        (lambda text: text.splitlines()[0] + '\n"' + "x" * 200_000 + '"\n', "damaged"),
        (lambda text: text.splitlines()[0] + "\n", "no rows"),
    ],
)
def test_predictions_that_are_not_those_of_the_fit(copied, change, said):
    path = copied / "predictions.csv"
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    with pytest.raises(UserError, match=said):
        read_predictions(read_run(copied))


def test_the_recorded_class_wins_where_rounded_numbers_tie(copied):
    run = read_run(copied)
    with (copied / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "predicted", "probability", *(f"p({name})" for name in NAMES)])
        for name in NAMES:
            writer.writerow([f"{name}.png", name, NAMES[2], *["0.333333"] * 4])
    run.metrics["confusion_matrix"] = [[0, 0, 1]] * 3
    assert read_predictions(run).predicted.tolist() == [2, 2, 2]


@pytest.mark.parametrize("path", ["run.json", "metrics.json"])
def test_record_and_metrics_that_are_not_whole(copied, path):
    text = (copied / path).read_text("utf-8")
    keys = {"run.json": ("data", "support", "command"), "metrics.json": ("n", "ece", "confusion_matrix")}
    for key in keys[path]:
        content = json.loads(text)
        del content[key]
        (copied / path).write_text(json.dumps(content), "utf-8")
        with pytest.raises(UserError, match="damaged"):
            gather(copied, device="cpu")
    (copied / path).write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        gather(copied, device="cpu")


def test_metrics_of_early_versions_lack_what_follows_from_the_others(copied, full_run):
    metrics = {key: value for key, value in full_run.metrics.items() if key not in ("chance", "majority")}
    (copied / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    found = gather(copied, device="cpu").run.metrics
    assert found["chance"] == full_run.metrics["chance"] and found["majority"] == full_run.metrics["majority"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"anchors": torch.full_like(state["anchors"], torch.nan)}, "not finite"),
        (lambda state: state | {"anchors": state["anchors"].repeat(2, 1)}, "of other classes"),
        (lambda state: {key: value for key, value in state.items() if key != "context"}, "lacks 'context'"),
    ],
)
def test_adapters_that_are_not_those_of_the_run(copied, change, said):
    save_file(change(load_file(copied / "adapter.safetensors")), copied / "adapter.safetensors")
    evidence = gather(copied, device="cpu")
    assert said in evidence.missing["backbone"] and evidence.opened is None


def test_with_an_image_that_went_bad(copied, grouped_images, tmp_path):
    """Of the same name, so that the table of images is the same."""
    folder = tmp_path / "stripes"
    shutil.copytree(grouped_images, folder)
    changed(copied, "data", spec=str(folder))
    (folder / read_run(copied).record["support"]["train"][0]).write_bytes(b"no image")
    shown = Page(page_of(copied, tmp_path))
    assert "An image cannot be read" in shown.text and row_of(shown, "accuracy", 4)


@pytest.mark.parametrize("method", ["zero-shot", "vmfcoop+", "vmf-posterior"])
def test_other_methods(method, request_of, tmp_path):
    settings = {"epochs": 1} if method == "vmfcoop+" else {}
    run = run_fit(request_of(method, **settings), tmp_path / "run")
    shown = Page(page_of(run.folder, tmp_path))
    text = words(shown)
    trained = method == "vmfcoop+"
    assert ("not trained in steps" in text) != trained
    assert ("The method has no anchors" in text) != trained
    assert ("has no learned prompt of a class" in text) != trained
    assert ("no image was learned from" in text) == (method == "zero-shot")
    sphere = [
        value for tag, value in shown.attributes("aria-label") if value.startswith("The sphere seen from")
    ]
    assert len(sphere) == 1 and "9 support images" in sphere[0]


def test_says_what_checks_found_of_the_maps(copied, tmp_path):
    found = {"gradcam": {"passes": False, "failed": ["gibberish"], "asked": ["gibberish"]}}
    (copied / CHECKS).write_text(json.dumps({"images": 32, "methods": found}))
    write_run_report(copied, tmp_path / "page.html", device="cpu", map_method="gradcam", shown_mistakes=1)
    assert GIBBERISH.failure in Page((tmp_path / "page.html").read_text("utf-8")).text


def test_says_what_is_wrong_and_keeps_what_is_there(copied, tmp_path):
    (tmp_path / "page.html").write_text("kept")
    with pytest.raises(UserError, match="did you mean 'gradcam'"):
        write_run_report(copied, tmp_path / "page.html", map_method="gradcm")
    (copied / "metrics.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        write_run_report(copied, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "kept"


def test_keeps_the_runs_own_files_and_folders(copied):
    for name in ("run.json", "adapter.safetensors", "../run/predictions.csv", CHECKS):
        with pytest.raises(UserError, match="a file of the run itself"):
            write_run_report(copied, copied / name)
    with pytest.raises(UserError, match=r"is a folder; name the page, such as '.*report\.html'"):
        write_run_report(copied, copied)


def test_map_method_that_the_backbone_has_not(copied, monkeypatch):
    monkeypatch.setattr(run_report, "methods_for", lambda encoder: ("occlusion", "rise"))
    with pytest.raises(UserError, match="has no legrad maps; choose one of occlusion, rise, or none"):
        write_run_report(copied, device="cpu", map_method="legrad")
    assert not (copied / "report.html").exists()


def test_command_writes_beside_the_run_and_says_where(copied):
    result = vmfcoop("report", copied, "--map", "none", "--mistakes", 1, "--device", "cpu", "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said == {"run": str(copied), "report": str(copied / "report.html"), "missing": []}
    shown = Page((copied / "report.html").read_text("utf-8"))
    assert "what speaks for the predicted class" not in shown.text
    assert not [1 for _, value in shown.attributes("class") if value == "pair"]
    assert sum("Test image" in attributes.get("alt", "") for _, attributes in shown.elements) == 1


def test_command_says_what_is_wrong(copied, tmp_path):
    refused(vmfcoop("report", tmp_path), "no run directory")
    refused(vmfcoop("report", copied, "--reference", "CoOp"), "--reference is for the report of a benchmark")


def test_shades_and_words_of_tables():
    directions = np.eye(3)[:, [0, 1, 2]] + 0.5
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    same = cosine_table("Cosines", directions, directions, NAMES)
    assert [row[1 + i].shade for i, row in enumerate(same.rows)] == [None] * 3
    other = cosine_table("Cosines", directions, directions[::-1], NAMES)
    shades = np.array([[entry.shade for entry in row[1:]] for row in other.rows])
    assert shades.min() == 0 and shades.max() == 1 and shades[0, 2] == 1
    assert confusion_in_words([[5, 2], [0, 3]], ("a", "b")) == ["2 of 7 images of a were taken for b."]
    kept = fields_table(("a",), None, 0.4, [0.6], 64)
    assert [row[0].text for row in (*kept.rows, *kept.below)] == ["a", "vocabulary"]


def test_classes_that_are_absent_or_never_named_have_dashes(whole):
    per_class = {
        "a": {"support": 2, "recall": 1.0, "precision": 0.5, "f1": 2 / 3, "auroc": 0.75},
        "b": {"support": 2, "recall": 0.0, "precision": 0.0, "f1": 0.0, "auroc": 0.75},
        "c": {"support": 0, "recall": 0.0, "precision": 0.0, "f1": 0.0, "auroc": None},
    }
    metrics = {"per_class": per_class, "confusion_matrix": [[2, 0, 0], [2, 0, 0], [0, 0, 0]]}
    rows = per_class_table(metrics, None, None).rows
    assert [entry.text for entry in rows[1]] == ["b", "2", "0.000", "–", "0.000", "0.750"]
    assert [entry.text for entry in rows[2]] == ["c", "0", "–", "–", "–", "–"]
    run = replace(whole.run, metrics=whole.run.metrics | metrics)
    told = run_texts.cautions(replace(whole, run=run))
    assert any("No test image shows these classes" in text and text.endswith(": c.") for text in told)
    assert any("Fewer than 30" in text and text.endswith(": a (2), b (2).") for text in told)


def test_names_no_group_as_it_may_be_a_patient(whole):
    table = replace(whole.table, groups=np.full(len(whole.table), "DOE^JOHN"))
    told = " ".join(run_texts.cautions(replace(whole, table=table)))
    assert "1 group (a patient, a volume) has images in more than one split" in told and "DOE" not in told


def test_one_patient_gives_no_intervals(whole):
    found = whole.predictions
    intervals = metric_intervals(found.probabilities, found.labels, np.full(len(found.labels), "one"))
    assert run_texts.how_intervals(whole, intervals) == [
        "All test images are of one group (a patient, a volume): that gives no intervals for others."
    ]
    assert "95 % interval" not in " ".join(run_texts.summary(whole, intervals))
    assert "95 % interval" in " ".join(
        run_texts.summary(whole, metric_intervals(found.probabilities, found.labels))
    )


def test_history_without_losses_has_no_curves(whole):
    found = run_report._training(replace(whole, history=[{"epoch": 0.0, "learning_rate": 0.1}]))
    assert found.figures == () and "not trained in steps" in found.why


def test_only_commands_are_code():
    assert run_report._coded("`vmfcoop predict --ood` of `tick` & <b>") == (
        "<code>vmfcoop predict --ood</code> of `tick` &amp; &lt;b&gt;"
    )


def test_paper_says_which_tables_it_cuts():
    names = [f"class {i}" for i in range(12)]
    assert confusion_table(np.eye(12, dtype=int).tolist(), names).is_wide
    assert not confusion_table(np.eye(4, dtype=int).tolist(), names[:4]).is_wide


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_of_the_page_can_be_told_apart(source, dark):
    """WCAG 2.1 AA: 4.5 for text, 3 for lines and marks."""
    blocks = re.findall(r":root \{([^}]*)\}", source)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0] + blocks[2]))
    if dark:
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1] + blocks[3]))
    for ground in ("page", "head", "heat"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
    for ground in ("page", "head"):
        assert contrast(colours["muted"], colours[ground]) >= 4.5
    for name in ("link", "warn", *(f"series-{i}" for i in range(1, 7))):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    assert contrast(colours["series-rest"], colours["page"]) >= 3
