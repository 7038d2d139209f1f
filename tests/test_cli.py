"""The commands: results on stdout; one sentence and exit code 2 for what a user can mend."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.data.test_dicom import write
from vmfcoop.cli import app

SETTINGS = ["--set", "epochs=2", "--set", "vocabulary_sample=32"]


class Result(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def vmfcoop(*arguments):
    """Run a command in this process: the same entry point, without a second start of torch."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200", "NO_COLOR": "1"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def vmfcoop_process(*arguments, **environment):
    """Start a command as a user does, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vmfcoop", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )


def fit_arguments(data, backbone, out, *more):
    return "fit", data, "--backbone", f"dir:{backbone}", "--shots", 2, *SETTINGS, "--out", out, *more


def fit(data, backbone, out, *more):
    return vmfcoop(*fit_arguments(data, backbone, out, *more))


def refused(result, *patterns):
    """Exit code 2, nothing on stdout, one sentence on stderr that matches, no traceback."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(message) == 1, result.stderr
    for pattern in patterns:
        assert re.search(pattern, message[0]), message[0]


@pytest.fixture(scope="module")
def run(image_folder, tiny_bert_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    result = fit(image_folder, tiny_bert_folder, out, "--json")
    assert result.returncode == 0, result.stderr
    return out, json.loads(result.stdout)


def test_fit_writes_all_that_repeats_it(run, image_folder, tiny_bert_folder, tmp_path):
    folder, printed = run
    files = {"run.json", "adapter.safetensors", "metrics.json", "predictions.csv", "history.csv"}
    files.add("trust.safetensors")
    assert {path.name for path in folder.iterdir()} == files
    record = json.loads((folder / "run.json").read_text())
    assert record["method"]["name"] == "vmfcoop" and record["method"]["config"]["epochs"] == 2
    assert record["support"]["shots"] == 2 and len(record["support"]["train"]) == 6
    assert record["data"]["class_names"] == sorted(record["data"]["class_names"])
    assert set(record["software"]) >= {"vmfcoop", "python", "torch", "transformers"}
    assert load_file(folder / "adapter.safetensors")["class_embeddings"].shape == (3, 64)
    assert (folder / "adapter.safetensors").stat().st_size < 64_000
    assert printed["accuracy"] == json.loads((folder / "metrics.json").read_text())["accuracy"]

    again = tmp_path / "again"
    result = fit(image_folder, tiny_bert_folder, again)
    assert result.returncode == 0 and "accuracy" in result.stdout
    for name in ("adapter.safetensors", "trust.safetensors", "predictions.csv", "history.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_without_descriptions_templates_are_told_where_they_matter(
    run, image_folder, tiny_bert_folder, tmp_path
):
    folder, printed = run
    assert printed["descriptions"] == "templates"
    assert json.loads((folder / "run.json").read_text())["descriptions"]["source"] == "templates"
    told = fit(image_folder, tiny_bert_folder, tmp_path / "told")
    assert "No descriptions: vMFCoOp had 14 templates filled with the class names" in told.stderr
    coop = ["--backbone", f"dir:{tiny_bert_folder}", "--method", "coop", "--shots", 1, "--set", "epochs=1"]
    result = vmfcoop("fit", image_folder, *coop, "--out", tmp_path / "coop")
    assert result.returncode == 0 and "No descriptions" not in result.stderr


def test_descriptions_from_a_text_file_and_from_the_package(image_folder, tiny_bert_folder, tmp_path):
    lines = [
        f"# {name}\n- a scan with {name} on the left\n- {name} seen from above"
        for name in ("glioma tumor", "meningioma tumor", "normal brain")
    ]
    (tmp_path / "mine.txt").write_text("\n\n".join(lines))
    for number, given in enumerate((tmp_path / "mine.txt", "btmri")):
        out = tmp_path / str(number)
        result = fit(image_folder, tiny_bert_folder, out, "--descriptions", given)
        assert result.returncode == 0 and "No descriptions" not in result.stderr
        recorded = json.loads((out / "run.json").read_text())["descriptions"]
        assert str(given) in recorded["source"]
        assert recorded["per_class"] == [[2, 2, 2], [50, 50, 50]][number]


def test_dicom_is_split_by_patient_shown_in_a_window_and_names_nobody(tiny_bert_folder, tmp_path):
    draw = np.random.default_rng(0)
    for name, level in (("cyst", 0), ("tumor", 60)):
        (tmp_path / "ct" / name).mkdir(parents=True)
        for n in range(16):
            values = (level + draw.normal(0, 15, (48, 48)) + 1024).astype(np.uint16)
            patient = {"PatientID": f"SECRET-{name}-{n // 2}", "PatientName": "SECRET^NAME"}
            write(
                tmp_path / "ct" / name / f"{n}.dcm", values, RescaleIntercept=-1024, RescaleSlope=1, **patient
            )
    out = tmp_path / "run"
    result = fit(tmp_path / "ct", tiny_bert_folder, out, "--window", "soft-tissue", "--val-fraction", 0.25)
    assert result.returncode == 0, result.stderr
    record = json.loads((out / "run.json").read_text())
    assert record["data"]["grouped"] and record["data"]["window"] == "soft-tissue"
    assert all(path.endswith(".dcm#window=soft-tissue") for path in record["support"]["train"])
    written = "".join(path.read_bytes().decode("latin-1") for path in out.iterdir())
    assert "SECRET" not in written + result.stdout + result.stderr

    rows = list(csv.DictReader((out / "predictions.csv").open()))
    scan = tmp_path / "ct" / rows[0]["image"].partition("#")[0]
    (plain,) = json.loads(vmfcoop("predict", out, scan, "--json").stdout)["predictions"]
    assert plain["probabilities"][rows[0]["predicted"]] == pytest.approx(
        float(rows[0]["probability"]), abs=1e-5
    )
    other = json.loads(vmfcoop("predict", out, f"{scan}#window=bone", "--json").stdout)["predictions"]
    assert other[0]["probabilities"] != plain["probabilities"]
    refused(vmfcoop("predict", out, f"{scan}#window=knee"), "knee")
    evaluated = json.loads(vmfcoop("evaluate", out, "--json").stdout)
    assert evaluated["accuracy"] == json.loads((out / "metrics.json").read_text())["accuracy"]


def test_predictions_agree_with_metrics(run):
    folder, printed = run
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(printed["accuracy"])
    shares = np.array([[float(v) for k, v in row.items() if k.startswith("p(")] for row in rows])
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)


def test_evaluate_repeats_the_fit_and_takes_other_data(run, image_folder, tiny_bert_folder, tmp_path):
    folder, printed = run
    result = vmfcoop("evaluate", folder, "--json")
    metrics = json.loads(result.stdout)
    assert {key: metrics[key] for key in ("n", "accuracy", "ece", "confusion_matrix")} == {
        key: printed[key] for key in ("n", "accuracy", "ece", "confusion_matrix")
    }
    groups = tmp_path / "groups.csv"
    paths = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png"))
    groups.write_text("\n".join(["path,group", *(f"{p},{n // 2}" for n, p in enumerate(paths))]) + "\n")
    grouped = tmp_path / "grouped"
    assert fit(image_folder, tiny_bert_folder, grouped, "--groups", groups).returncode == 0
    # The folder that the run was fitted on, named again, has the run's groups and so its split.
    own = json.loads(vmfcoop("evaluate", grouped, image_folder, "--json").stdout)
    assert own["accuracy"] == json.loads((grouped / "metrics.json").read_text())["accuracy"]
    other = shutil.copytree(image_folder, tmp_path / "other")
    table = vmfcoop("evaluate", folder, other, "--split", "val")
    assert table.returncode == 0 and "accuracy" in table.stdout


def test_predict_as_csv_json_and_table(run, image_folder, tmp_path):
    folder, _ = run
    images = sorted(image_folder.rglob("*.png"))
    whole = json.loads(vmfcoop("predict", folder, image_folder, "--json").stdout)["predictions"]
    assert [row["image"] for row in whole] == [str(path) for path in images]
    out = tmp_path / "p.csv"
    assert vmfcoop("predict", folder, *images[:3], "--out", out).returncode == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in whole[:3]]
    printed = vmfcoop("predict", folder, *images[:3], "--format", "csv").stdout
    assert printed == out.read_text()
    assert "predicted" in vmfcoop("predict", folder, images[0]).stdout


def test_predict_follows_links_to_folders_and_leaves_hidden_ones_out(run, image_folder, tmp_path):
    folder, _ = run
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "archive").symlink_to(image_folder / "normal_brain")
    shutil.copytree(image_folder / "glioma_tumor", tmp_path / "new" / ".thumbnails")
    found = json.loads(vmfcoop("predict", folder, tmp_path / "new", "--json").stdout)["predictions"]
    assert len(found) == 12 and all("/archive/" in row["image"] for row in found)


def test_predict_reads_every_kind_of_image(run, tmp_path):
    folder, _ = run
    grey = (np.arange(64 * 64).reshape(64, 64) * 15 % 65536).astype(np.uint16)
    colour = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(colour)
    Image.fromarray(grey).save(tmp_path / "sixteen.png")
    picture.convert("P").save(tmp_path / "palette.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    result = vmfcoop("predict", folder, tmp_path, "--json")
    assert len(json.loads(result.stdout)["predictions"]) == 4


def test_show_prints_the_backbone(tiny_bert_folder):
    facts = json.loads(
        vmfcoop("backbones", "show", f"dir:{tiny_bert_folder}", "--sample", 20, "--json").stdout
    )
    assert facts["dim"] == 64 and facts["field_concentration"] > 0
    assert "fingerprint" in vmfcoop("backbones", "show", f"dir:{tiny_bert_folder}").stdout


def test_help_has_an_example_for_every_command():
    for command in (
        ["demo"],
        ["fit"],
        ["evaluate"],
        ["predict"],
        ["backbones", "show"],
        ["data", "contact-sheet"],
    ):
        assert "Example: vmfcoop " + " ".join(command) in vmfcoop(*command, "--help").stdout
    assert "--install-completion" in vmfcoop("--help").stdout
    assert vmfcoop("--version").stdout.count(".") == 2


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["fit", "nowhere"], "nowhere"),
        (
            ["fit", "DATA", "--backbone", "biomedclp", "--shots", "2"],
            "Unknown backbone 'biomedclp'; did you mean 'biomedclip'",
        ),
        (
            ["fit", "DATA", "--backbone", "DIR", "--method", "vmfcop"],
            "Unknown method 'vmfcop'; did you mean 'vmfcoop'",
        ),
        (
            ["fit", "DATA", "--backbone", "DIR", "--set", "epoch=3"],
            "Unknown setting 'epoch'; did you mean 'epochs'",
        ),
        (["fit", "DATA", "--backbone", "DIR", "--set", "epochs"], "key=value"),
        (["fit", "DATA", "--backbone", "DIR", "--shots", "60"], "60"),
        (["fit", "DATA", "--backbone", "DIR", "--descriptions", "no.json", "--shots", "2"], "no.json"),
        (
            ["fit", "DATA", "--backbone", "DIR", "--device", "tpu", "--shots", "2"],
            "device 'tpu' is not available",
        ),
        (["fit", "DATA", "--backbone", "dir:nowhere", "--shots", "2"], "nowhere.* does not exist"),
        (["evaluate", "nowhere"], "nowhere.* is not a run directory"),
        (["predict", "nowhere", "x.png"], "nowhere.* is not a run directory"),
    ],
)
def test_bad_arguments(arguments, pattern, image_folder, tiny_bert_folder, tmp_path, monkeypatch):
    places = {"DATA": str(image_folder), "DIR": f"dir:{tiny_bert_folder}"}
    monkeypatch.chdir(tmp_path)
    refused(vmfcoop(*[places.get(a, a) for a in arguments]), pattern)
    assert not (tmp_path / "runs").exists()


def test_bad_images(run, image_folder, tiny_bert_folder, tmp_path):
    folder, _ = run
    whole = next(image_folder.rglob("*.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    refused(vmfcoop("predict", folder, tmp_path / "cut.png"), r"cut\.png.*truncated")
    refused(vmfcoop("predict", folder, tmp_path / "zero.png"), r"zero\.png")
    refused(vmfcoop("predict", folder, tmp_path / "no.png"), r"no\.png.* does not exist")
    data = shutil.copytree(image_folder, tmp_path / "data")
    victim = sorted(data.rglob("*.png"))[5]
    victim.write_bytes(whole[:50])
    refused(vmfcoop("predict", folder, data), re.escape(victim.name))
    (data / "empty_class").mkdir()
    refused(fit(data, tiny_bert_folder, tmp_path / "out"), "empty_class")
    assert not (tmp_path / "out").exists()


def test_existing_run_is_not_replaced_unless_asked(run, image_folder, tiny_bert_folder, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run[0], out)
    before = (out / "run.json").read_bytes()
    refused(
        fit(image_folder, tiny_bert_folder, out), "is there already; choose another --out, or --overwrite it"
    )
    assert (out / "run.json").read_bytes() == before
    assert fit(image_folder, tiny_bert_folder, out, "--overwrite", "--seed", 3).returncode == 0
    assert json.loads((out / "run.json").read_text())["support"]["seed"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "notes").mkdir()
    refused(fit(image_folder, tiny_bert_folder, tmp_path / "notes", "--overwrite"), "is not a run directory")


def test_other_backbone_is_refused(run, tiny_bert_folder, tiny_clip_folder, image_folder, tmp_path):
    folder, _ = run
    for command in ("evaluate", "predict"):
        more = [image_folder] if command == "predict" else []
        result = vmfcoop(command, folder, *more, "--backbone", f"dir:{tiny_clip_folder}")
        refused(result, "was fitted on the backbone .*fingerprint .*use the same weights")
    moved = shutil.copytree(tiny_bert_folder, tmp_path / "moved")
    assert vmfcoop("evaluate", folder, "--backbone", f"dir:{moved}").returncode == 0
    state = load_file(moved / "open_clip_model.safetensors")
    state["logit_scale"] = state["logit_scale"] + 1
    save_file(state, moved / "open_clip_model.safetensors")
    refused(vmfcoop("evaluate", folder, "--backbone", f"dir:{moved}"), "fingerprint")


def test_changed_data_and_other_classes_are_refused(image_folder, tiny_bert_folder, tmp_path):
    data = shutil.copytree(image_folder, tmp_path / "data")
    assert fit(data, tiny_bert_folder, tmp_path / "run").returncode == 0
    victim = next(data.rglob("*.png"))
    shutil.copy(victim, victim.with_name("added.png"))
    refused(vmfcoop("evaluate", tmp_path / "run"), "changed since the run was fitted")
    victim.parent.rename(data / "something_else")
    refused(vmfcoop("evaluate", tmp_path / "run", data), "something else.*fitted on")


def test_damaged_run_is_refused(run, tmp_path):
    broken = shutil.copytree(run[0], tmp_path / "broken")
    (broken / "adapter.safetensors").write_bytes(b"xx")
    refused(vmfcoop("evaluate", broken), r"adapter\.safetensors.* is missing or damaged")
    (broken / "run.json").write_text("{")
    refused(vmfcoop("evaluate", broken), "is damaged")


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="needs POSIX signals")
def test_interrupt_leaves_nothing_half_done(image_folder, tiny_bert_folder, tmp_path):
    arguments = fit_arguments(image_folder, tiny_bert_folder, tmp_path / "run", "--set", "epochs=1000000")
    process = vmfcoop_process(*arguments)
    time.sleep(15)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 2 and stdout == ""
    assert "Interrupted" in stderr and "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_asks_the_network(image_folder, tiny_bert_folder, tmp_path):
    guard = tmp_path / "sitecustomize.py"
    guard.write_text(
        "import socket\n"
        "def refuse(*a, **k):\n    raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "0", "VMFCOOP_HOME": str(tmp_path / "home")}
    process = vmfcoop_process(*fit_arguments(image_folder, tiny_bert_folder, tmp_path / "run"), **environment)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "AssertionError" not in stderr


def test_contact_sheet(tmp_path):
    assert (
        vmfcoop(
            "data", "contact-sheet", "phantom-fundus", "--columns", 2, "--out", tmp_path / "s.png"
        ).returncode
        == 0
    )
    assert Image.open(tmp_path / "s.png").height > 600
    refused(vmfcoop("data", "contact-sheet", "phantom-fundis"), "did you mean 'phantom-fundus'")
    sheet = "data", "contact-sheet", "phantom-fundus", "--columns", 1, "--out"
    assert vmfcoop(*sheet, tmp_path / "s.webp").returncode == 0
    assert Image.open(tmp_path / "s.webp").format == "WEBP"
    refused(vmfcoop(*sheet, tmp_path / "s.tif"), "not as 's.tif'")


def test_a_phantom_key_is_a_data_spec(tiny_bert_folder, tmp_path, monkeypatch):
    from vmfcoop.data import registry
    from vmfcoop.data.phantoms import library

    def few(key, **options):
        return library.materialise(key, tmp_path / "phantoms", per_class=12)

    monkeypatch.setitem(registry.KNOWN_DATASETS, "phantom-histology", lambda: few("phantom-histology"))
    monkeypatch.setattr("vmfcoop.pipeline.materialise", few)
    result = fit("phantom-histology", tiny_bert_folder, tmp_path / "run", "--json")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["spec"] == "phantom-histology" and record["data"]["grouped"]
    assert record["descriptions"]["source"] == "the package's descriptions of phantom-histology"
    assert record["descriptions"]["per_class"] == [50] * 5 and "No descriptions" not in result.stderr
    assert (
        json.loads(vmfcoop("evaluate", tmp_path / "run", "--json").stdout)["n"]
        == json.loads(result.stdout)["n"]
    )
