"""Prediction sets, outside scores and calibrated probabilities from the command line, on drawn images."""

import csv
import io
import json
import math
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from scipy.stats import betabinom

from tests.test_cli import refused, vmfcoop
from vmfcoop.backbones import load_backbone
from vmfcoop.data import load_dataset, sample_support
from vmfcoop.data.phantoms import PHANTOMS, materialise
from vmfcoop.evaluation import classification_metrics
from vmfcoop.pipeline import FitRequest, calibration_rows, recorded_dataset, run_fit
from vmfcoop.predicting import Predictions, predict_images
from vmfcoop.reporting.terminal import coverage_table, metrics_table, predictions_table
from vmfcoop.run import read_run
from vmfcoop.trust.conformal import SetRequest, coverage, fit_sets
from vmfcoop.trust.judging import TrustRequest
from vmfcoop.trust.record import read_trust

METHOD = ["--backbone", "phantom", "--method", "vmf-posterior", "--shots", 4, "--views", 2]


@pytest.fixture(scope="module", autouse=True)
def one_backbone():
    """The embedded CLIP, loaded once for all commands of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmfcoop.pipeline.load_backbone", cache(load_backbone))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of drawn breast ultrasound, 44 images each, two a patient."""
    return materialise("phantom-breast-ultrasound", tmp_path_factory.mktemp("drawn"), per_class=44)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Four drawn fundus photographs."""
    folder = tmp_path_factory.mktemp("others")
    for index in range(4):
        Image.fromarray(PHANTOMS["phantom-fundus"].phantom(0, 2 * index).image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    result = vmfcoop("fit", images, *METHOD, "--val-fraction", 0.3, "--test-fraction", 0.4, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "further labelled images of the val split, temperature" in result.stdout
    return out


def test_a_fit_keeps_further_val_images_and_records_them(run, images):
    record = json.loads((run / "run.json").read_text())
    kept, trust = record["calibration"], read_trust(read_run(run))
    table = load_dataset(images, val_fraction=0.3, test_fraction=0.4)
    val = {table.file(i) for i in table.indices("val")}
    assert set(kept["images"]) == val - set(record["support"]["val"])
    assert not set(kept["images"]) & set(record["support"]["train"])
    assert kept["asked"] == 256 and kept["grouped"] and sum(kept["per_class"].values()) == len(kept["images"])
    assert len(trust.calibration_labels) == len(kept["images"]) and len(trust.validation_labels) == 12
    by_name = dict(zip(kept["images"], trust.calibration_labels.tolist(), strict=True))
    assert all(name.startswith(table.class_names[c].replace(" ", "_")) for name, c in by_name.items())
    assert kept["temperature"] == trust.temperature != 1
    assert (run / "trust.safetensors").stat().st_size < 20_000


def test_the_classifier_does_not_depend_on_the_calibration_images(run, images, tmp_path, monkeypatch):
    # With a cache of its own every feature is computed anew, beside other images than in the first fit.
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    base = {"data": str(images), "backbone": "phantom", "method": "vmf-posterior", "shots": 4, "views": 2}
    for number in (0, 5):
        request = FitRequest(**base, val_fraction=0.3, test_fraction=0.4, calibration_images=number)
        other = run_fit(request, tmp_path / str(number))
        for name in ("adapter.safetensors", "predictions.csv"):
            assert (other.folder / name).read_bytes() == (run / name).read_bytes()
        assert len(read_trust(other).calibration_labels) == number
    message = "keeps no calibration images.*larger --val-fraction.*--calibration DATA"
    refused(vmfcoop("predict", tmp_path / "0", images, "--conformal", 0.1), message)
    refused(vmfcoop("predict", tmp_path / "0", images, "--ood"), message)
    few = vmfcoop("predict", tmp_path / "5", images, "--conformal", 0.1, "--ood", "--json")
    assert "need 9 calibration images, and there are 5; every set holds all classes" in few.stderr
    assert "with fewer than 19 no image can be flagged" in few.stderr
    assert all(len(row["set"]) == 3 and not row["ood_flag"] for row in json.loads(few.stdout)["predictions"])
    # The run's own data are what the fit would have taken: val without the validation shots.
    own = vmfcoop("predict", tmp_path / "0", images, "--conformal", 0.2, "--calibration", images, "--json")
    kept = vmfcoop("predict", run, images, "--conformal", 0.2, "--json")
    assert json.loads(own.stdout)["predictions"] == json.loads(kept.stdout)["predictions"]


def test_calibration_images_are_drawn_from_val_without_regard_to_class(images):
    table = load_dataset(images, val_fraction=0.3, test_fraction=0.4)
    chosen = sample_support(table, 4, 1)
    free = set(table.indices("val")) - set(chosen.val)
    draws = [calibration_rows(table, chosen, 10, seed) for seed in range(200)]
    assert all(len(rows) == 10 and set(rows) <= free for rows in draws)
    assert (calibration_rows(table, chosen, 10, 3) == draws[3]).all()
    drawn = np.bincount(np.concatenate(draws), minlength=len(table))[sorted(free)]
    expected = 200 * 10 / len(free)
    assert drawn == pytest.approx(np.full(len(free), expected), abs=5 * expected**0.5)
    assert set(calibration_rows(table, chosen, 10**6, 0)) == free


def test_sets_are_those_of_the_kept_logits(run, images):
    plain = json.loads(vmfcoop("predict", run, images, "--json").stdout)["predictions"]
    found = json.loads(vmfcoop("predict", run, images, "--conformal", 0.1, "--json").stdout)
    trust, names = read_trust(read_run(run)), read_run(run).class_names
    shares = trust.calibration_logits.double().softmax(dim=1).numpy()
    predictor = fit_sets(SetRequest(0.1), shares, trust.calibration_labels.numpy(), names)
    least = 1 - predictor.thresholds[0]
    for row, before in zip(found["predictions"], plain, strict=True):
        assert row["probabilities"] == before["probabilities"] and row["predicted"] == before["predicted"]
        held = {name for name, p in row["probabilities"].items() if p >= least - 1e-5}
        assert {row["predicted"]} <= set(row["set"]) <= held | {row["predicted"]}
    assert found["trust"]["conformal"] == {"alpha": 0.1, "method": "lac", "class_conditional": False}
    assert found["trust"]["calibration"]["source"] == "kept by the run"


def test_images_of_another_kind_are_flagged_in_every_format(run, images, others, tmp_path):
    own = sorted(images.rglob("*.png"))[:5]
    arguments = ["predict", run, *own, others, "--conformal", 0.2, "--ood"]
    rows = json.loads(vmfcoop(*arguments, "--json").stdout)["predictions"]
    assert all(row["ood_flag"] and row["ood_p"] <= 0.05 for row in rows[5:])
    assert sum(row["ood_flag"] for row in rows[:5]) <= 1
    assert min(r["ood_score"] for r in rows[5:]) > max(r["ood_score"] for r in rows[:5])
    assert vmfcoop(*arguments, "--out", tmp_path / "p.csv").returncode == 0
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(table[0])[-4:] == ["set", "ood_score", "ood_p", "ood_flag"]
    for cells, row in zip(table, rows, strict=True):
        assert cells["set"].split(" | ") == row["set"] and cells["ood_flag"] == str(int(row["ood_flag"]))
        assert float(cells["ood_p"]) == row["ood_p"]
    shown = vmfcoop(*arguments).stdout
    assert "ood_p" in shown and shown.count("outside") >= 4


def test_without_the_options_nothing_is_added(run, images):
    one = next(images.rglob("*.png"))
    found = json.loads(vmfcoop("predict", run, one, "--json").stdout)
    assert set(found) == {"run", "predictions"}
    assert set(found["predictions"][0]) == {"image", "predicted", "probabilities"}
    header = vmfcoop("predict", run, one, "--format", "csv").stdout.splitlines()[0]
    assert header.startswith("image,predicted,probability,p(") and header.endswith(")")


def test_calibrated_probabilities_are_softmax_at_the_temperature(run, images):
    one = next(images.rglob("*.png"))
    (plain,) = json.loads(vmfcoop("predict", run, one, "--json").stdout)["predictions"]
    (warm,) = json.loads(vmfcoop("predict", run, one, "--calibrated", "--json").stdout)["predictions"]
    before = np.log(list(plain["probabilities"].values()))
    expected = np.exp(before / read_trust(read_run(run)).temperature)
    assert list(warm["probabilities"].values()) == pytest.approx(expected / expected.sum(), abs=1e-4)
    assert warm["predicted"] == plain["predicted"]


def test_evaluate_reports_coverage_and_calibration(run, images):
    options = ["--conformal", 0.2, "--conformal-method", "aps", "--class-conditional", "--calibrated"]
    found = json.loads(vmfcoop("evaluate", run, *options, "--json").stdout)
    conformal = found["conformal"]
    assert conformal["n"] == found["n"] and conformal["class_conditional"]
    low, high = conformal["interval"]
    assert low < conformal["coverage"] < high or conformal["coverage"] in (0, 1)
    table = load_dataset(images, val_fraction=0.3, test_fraction=0.4)
    paths = [table.paths[i] for i in table.indices("test")]
    wanted = TrustRequest(sets=SetRequest(0.2, "aps", class_conditional=True))
    sets = predict_images(run, paths, trust=wanted).sets
    truth = table.labels[table.indices("test")]
    assert conformal["covered"] == sets[np.arange(len(truth)), truth].sum()
    assert conformal["mean_size"] == pytest.approx(sets.sum(axis=1).mean())
    assert sum(row["covered"] for row in conformal["per_class"].values()) == conformal["covered"]
    assert conformal["usual"] is None
    plain = json.loads(vmfcoop("evaluate", run, "--json").stdout)
    assert found["calibration"]["before"]["ece"] == plain["ece"] and "conformal" not in plain
    assert found["calibration"]["after"]["ece"] == found["ece"] and found["accuracy"] == plain["accuracy"]
    shown = vmfcoop("evaluate", run, *options).stdout
    assert "Prediction sets (aps) at 1 - alpha = 0.8" in shown and "class by class" in shown
    assert "as fitted" in shown and "calibrated" in shown


def test_images_of_the_fit_are_left_out_of_a_named_calibration(run, images, tmp_path):
    """A copy under other names holds the support, the validation shots and the kept images."""
    other = tmp_path / "other"
    for folder in filter(Path.is_dir, images.iterdir()):
        (other / folder.name).mkdir(parents=True)
        for path in folder.iterdir():
            shutil.copy(path, other / folder.name / f"copy-{path.name}")
    record = read_run(run).record
    one = next(images.rglob("*.png"))
    named = vmfcoop("predict", run, one, "--conformal", 0.2, "--calibration", other, "--json")
    assert "24 of the 132 images of" in named.stderr and "left out of the calibration" in named.stderr
    found = json.loads(named.stdout)["trust"]["calibration"]
    assert found == {"images": 132 - 12 - 12, "source": str(other)}
    # What remains holds the test images of the run's own data.
    refused(
        vmfcoop("evaluate", run, "--conformal", 0.2, "--calibration", other), "already used .* --calibration"
    )
    used = {Path(name) for key in ("train", "val") for name in record["support"][key]}
    for name in used:
        (other / name.parent / f"copy-{name.name}").rename(tmp_path / f"{name.parent.name}-{name.name}")
    assert not vmfcoop("predict", run, one, "--ood", "--calibration", other, "--json").stderr.strip()


def test_coverage_on_new_data_with_own_calibration(run, images, tmp_path):
    """Calibrated on one half of a local collection and measured on the other."""
    halves = [tmp_path / "calibrate.csv", tmp_path / "measure.csv"]
    table = load_dataset(images, val_fraction=0.3, test_fraction=0.4)
    test = table.indices("test")
    for half, rows in zip(halves, (test[::2], test[1::2]), strict=True):
        lines = [f"{table.paths[i]},{table.class_names[table.labels[i]]}" for i in rows]
        half.write_text("\n".join(["path,label", *lines]) + "\n")
    shown = vmfcoop("evaluate", run, halves[1], "--conformal", 0.2, "--calibration", halves[0], "--json")
    assert "already used" not in shown.stderr
    conformal, n = json.loads(shown.stdout)["conformal"], len(test[::2])
    assert conformal["calibration"] == {"images": n, "source": str(halves[0])}
    order = math.ceil((n + 1) * 0.8)
    low, high = betabinom(conformal["n"], order, n + 1 - order).interval(0.95)
    assert conformal["usual"] == pytest.approx([low / conformal["n"], high / conformal["n"]])
    refused(
        vmfcoop("evaluate", run, halves[0], "--conformal", 0.2, "--calibration", halves[0]),
        "cannot both calibrate and be measured on",
    )
    with halves[0].open("a") as file:
        file.write(f"{measured_on(run, halves[1])},{table.class_names[0]}\n")
    some = vmfcoop("evaluate", run, halves[1], "--conformal", 0.2, "--calibration", halves[0], "--json")
    assert f"1 of the {conformal['n']} images were already used to fit or to calibrate" in some.stderr


def measured_on(run, spec):
    """One of the images that ``evaluate`` measures on."""
    table = recorded_dataset(read_run(run), str(spec))
    return table.paths[table.indices("test")[0]]


def test_a_calibration_set_may_lack_a_class_and_have_others_in_another_order(run, images, tmp_path):
    """Thresholds are those of the same images labelled by the run's order."""
    table, names = load_dataset(images, val_fraction=0.3, test_fraction=0.4), read_run(run).class_names
    rows = [i for i in table.indices("test") if table.labels[i] != 0]
    numbers = {2: 0, 1: 1}  # of the split file, which has its own
    entries = [[str(table.paths[i]), numbers[table.labels[i]], names[table.labels[i]]] for i in rows]
    spec = tmp_path / "split_own.json"
    spec.write_text(json.dumps({"train": entries[::2], "val": [], "test": entries[1::2]}))
    paths = [table.paths[i] for i in table.indices("test")]
    wanted = TrustRequest(SetRequest(0.1, class_conditional=True), calibration=str(spec))
    with pytest.warns(UserWarning, match=rf"in every set: {names[0]} \(0\)"):
        found = predict_images(run, paths, trust=wanted)
    probabilities = predict_images(run, [table.paths[i] for i in rows]).probabilities
    with pytest.warns(UserWarning, match="every class needs 9"):
        expected = fit_sets(wanted.sets, probabilities, table.labels[rows], names)
    assert (found.sets == expected.sets(found.probabilities)).all()


def test_a_record_of_another_run_or_backbone_is_refused(run, images, tmp_path):
    one = next(images.rglob("*.png"))
    changed = shutil.copytree(run, tmp_path / "changed")
    path = changed / "trust.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"temperature": tensors["temperature"] * 1.01}, path)
    refused(vmfcoop("predict", changed, one, "--ood"), "is of another run than the run.json")
    narrow = {k: v[:, :5].clone() if "mean_directions" in k else v for k, v in tensors.items()}
    save_file(narrow, path)
    refused(vmfcoop("predict", changed, one, "--ood"), r"trust\.safetensors' is damaged")
    # A score that the record names and the run's method cannot compute.
    save_file({k: v for k, v in tensors.items() if not k.startswith("text_fields")}, path)
    refused(vmfcoop("predict", changed, one, "--ood-score", "text-fields"), "has no score 'text-fields'")


def test_without_validation_shots_the_temperature_is_1_and_that_is_said(images, tmp_path):
    options = ["--val-fraction", 0, "--test-fraction", 0.4, "--out", tmp_path / "bare"]
    shown = vmfcoop("fit", images, *METHOD, *options)
    assert "0 further labelled images of the val split, temperature 1.00" in shown.stdout
    one = next(images.rglob("*.png"))
    calibrated = vmfcoop("predict", tmp_path / "bare", one, "--calibrated", "--json")
    assert "no validation shots, so its temperature is 1" in calibrated.stderr
    plain = vmfcoop("predict", tmp_path / "bare", one, "--json")
    assert json.loads(calibrated.stdout)["predictions"] == json.loads(plain.stdout)["predictions"]
    refused(vmfcoop("predict", tmp_path / "bare", one, "--conformal", 0.1), "keeps no calibration images")
    refused(
        vmfcoop("predict", tmp_path / "bare", one, "--conformal", 0.1, "--calibration", images),
        "has no images for calibration.*larger --val-fraction",
    )


def test_names_of_classes_survive_every_format():
    """Commas, quotes, bars, backslashes, brackets: CSV gives them back, the terminal shows them."""
    names = ("all", 'the "c", b', "d | e", "f\\", "[bold]g[/x]")
    sets = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)
    shares = np.full((2, 5), 0.2)
    found = Predictions(("one.png", "two.png"), names, shares, sets)
    rows = list(csv.DictReader(found.csv().splitlines()))
    for row, inside in zip(rows, sets, strict=True):
        parts = [re.sub(r"\\(.)", r"\1", part) for part in row["set"].split(" | ")]
        assert parts == [name for name, held in zip(names, inside, strict=True) if held]
    assert [row["set"] for row in json.loads(json.dumps(found.rows()))] == [list(names[:3]), list(names[2:])]
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(predictions_table(found.rows(), names))
    console.print(predictions_table(Predictions(("one.png", "two.png"), names, shares).rows(), names))
    console.print(coverage_table(conformal_facts(sets, names)))
    console.print(metrics_table("x", classification_metrics(shares, np.array([0, 1]), names)))
    shown = console.export_text()
    assert shown.count("[bold]g[/x]") == 4 and 'all | the "c", b | d | e' in shown
    assert len(re.findall(r"^│ all ", shown, re.MULTILINE)) == 3


def conformal_facts(sets, names):
    """What ``evaluate --conformal`` finds, as its table takes it."""
    facts = {"method": "lac", "alpha": 0.1, "calibration": {"images": 9}, "class_conditional": False}
    return facts | {"usual": None} | coverage(sets, np.array([0, 1]), names)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["predict", "RUN", "DATA", "--conformal", "1.5"], "error rate of prediction sets is 1.5"),
        (
            ["predict", "RUN", "DATA", "--conformal", "0.1", "--conformal-method", "asp"],
            "Unknown conformal method 'asp'; did you mean 'aps'",
        ),
        (["predict", "RUN", "DATA", "--class-conditional"], "--class-conditional .* --conformal 0.1"),
        (["predict", "RUN", "DATA", "--conformal-method", "aps"], "--conformal-method .* --conformal 0.1"),
        (["predict", "RUN", "DATA", "--calibration", "DATA"], "ask for either with --conformal or --ood"),
        (["predict", "RUN", "DATA", "--ood-score", "enrgy"], "did you mean 'energy'"),
        (["predict", "RUN", "DATA", "--conformal", "0.1", "--calibration", "nowhere"], "nowhere"),
        (["predict", "RUN", "DATA", "--ood", "--calibration", "OTHER"], "but the run was fitted on"),
        (["evaluate", "RUN", "--conformal", "0.1", "--split", "val"], "val split of the run's own data"),
        (["evaluate", "RUN", "--conformal", "0.1", "--split", "train"], "train split of the run's own data"),
        (["evaluate", "RUN", "--calibrated", "--split", "val"], "val split of the run's own data"),
        (["evaluate", "RUN", "--conformal", "0.1", "--split", "tset"], "Unknown split 'tset'"),
        (["predict", "RUN", "DATA", "--ood-score", ""], "Unknown out-of-distribution score ''"),
        (["predict", "RUN", "DATA", "--conformal", "0.1", "--conformal-method", ""], "conformal method ''"),
        (["predict", "RUN", "DATA", "--conformal", "nan"], "error rate of prediction sets is nan"),
        (["fit", "DATA", "--calibration-images", "-1"], ""),
    ],
)
def test_what_cannot_be_is_said(arguments, pattern, run, images, image_folder):
    places = {"RUN": run, "DATA": images, "OTHER": image_folder}
    result = vmfcoop(*[places.get(a, a) for a in arguments])
    if pattern:
        refused(result, pattern)
    else:
        assert result.returncode == 2 and "--calibration-images" in result.stderr


def test_runs_of_earlier_versions_and_damaged_ones_say_what_to_do(run, images, tmp_path):
    old = shutil.copytree(run, tmp_path / "old")
    one = next(images.rglob("*.png"))
    (old / "trust.safetensors").unlink()
    assert vmfcoop("predict", old, one, "--json").returncode == 0
    for option in (["--conformal", 0.1], ["--ood"], ["--calibrated"]):
        refused(vmfcoop("predict", old, one, *option), "has no trust.safetensors.*fit again")
    refused(vmfcoop("evaluate", old, "--calibrated"), "has no trust.safetensors.*fit again")
    (old / "trust.safetensors").write_bytes(b"nothing")
    refused(vmfcoop("predict", old, one, "--ood"), r"trust\.safetensors' is damaged; fit again")
    assert vmfcoop("predict", old, one, "--json").returncode == 0


def test_a_broken_calibration_image_is_named_before_anything_is_fitted(images, tmp_path):
    data = shutil.copytree(images, tmp_path / "data")
    table = load_dataset(data, val_fraction=0.3, test_fraction=0.4)
    free = set(table.indices("val")) - set(sample_support(table, 4, 1).val)
    victim = table.paths[min(free)]
    victim.write_bytes(victim.read_bytes()[:200])
    fractions = ["--val-fraction", 0.3, "--test-fraction", 0.4]
    result = vmfcoop("fit", data, *METHOD, *fractions, "--out", tmp_path / "out")
    refused(result, victim.name)
    assert not (tmp_path / "out").exists()


def test_a_score_that_the_run_lacks_is_said(run, images, tmp_path):
    lacking = shutil.copytree(run, tmp_path / "lacking")
    tensors = load_file(lacking / "trust.safetensors")
    tensors = {key: value for key, value in tensors.items() if key != "score/text-fields"}
    save_file(tensors, lacking / "trust.safetensors")
    refused(
        vmfcoop("predict", lacking, images, "--ood-score", "text-fields"),
        "has no score 'text-fields'.*choose one of image-fields, posterior, softmax, energy",
    )


def test_a_class_without_calibration_images_is_said(run, images, tmp_path):
    partial = shutil.copytree(run, tmp_path / "partial")
    tensors = load_file(partial / "trust.safetensors")
    kept = tensors["calibration_labels"] != 2
    for key, value in tensors.items():
        if key.startswith(("calibration", "score")):
            tensors[key] = value[kept].clone()
    save_file(tensors, partial / "trust.safetensors")
    name, record = read_run(run).class_names[2], json.loads((run / "run.json").read_text())
    record["calibration"]["per_class"][name] = 0
    (partial / "run.json").write_text(json.dumps(record))
    one = next(images.rglob("*.png"))
    marginal = vmfcoop("predict", partial, one, "--conformal", 0.3, "--json")
    assert f"No calibration image is of {name}" in marginal.stderr
    own = vmfcoop("predict", partial, one, "--conformal", 0.3, "--class-conditional", "--json")
    assert f"in every set: {name} (0)" in own.stderr
    assert name in json.loads(own.stdout)["predictions"][0]["set"]


def test_help_states_the_assumption():
    shown = " ".join(vmfcoop("predict", "--help").stdout.replace("│", " ").split())
    assert "at least 1 - ALPHA of images" in shown
    assert "not of another scanner" in shown and "several of one patient" in shown
    assert "Example: vmfcoop predict runs/lesions new/ --conformal 0.1 --ood" in shown


def test_scores_are_those_of_the_classifier(run, images):
    """The softmax score and p-value from the printed probabilities and the kept scores."""
    rows = json.loads(vmfcoop("predict", run, images, "--ood-score", "softmax", "--json").stdout)[
        "predictions"
    ]
    kept = read_trust(read_run(run)).calibration_scores["softmax"]
    assert torch.is_tensor(kept)
    for row in rows[:20]:
        score = 1 - max(row["probabilities"].values())
        assert row["ood_score"] == pytest.approx(score, abs=2e-6)
        near = (kept - score).abs() < 1e-5
        beyond = int(((kept >= score) & ~near).sum())
        least, most = (1 + beyond) / (len(kept) + 1), (1 + beyond + int(near.sum())) / (len(kept) + 1)
        assert least - 1e-6 <= row["ood_p"] <= most + 1e-6
