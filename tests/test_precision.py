"""The towers' precision and the cache's, from the options to what is recorded and read again."""

import json
import shutil
import sqlite3

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.benchmark.conftest import make_recipe as make_recipe
from tests.test_cli import fit, refused, vmfcoop
from vmfcoop import FewShotClassifier, load_backbone
from vmfcoop.benchmark.engine import run_benchmark
from vmfcoop.benchmark.materials import Materials
from vmfcoop.benchmark.plan import plan
from vmfcoop.benchmark.recipe import load_recipe
from vmfcoop.benchmark.results import read_bench
from vmfcoop.errors import UserError
from vmfcoop.features import CachedEncoder
from vmfcoop.predicting import evaluate_run


@pytest.fixture(scope="module")
def rounded_run(image_folder, tiny_bert_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "rounded"
    result = fit(
        image_folder, tiny_bert_folder, out, "--precision", "bf16", "--cache-precision", "fp16", "--json"
    )
    assert result.returncode == 0, result.stderr
    return out, json.loads(result.stdout)


def some_images(folder):
    return sorted(folder.rglob("*.png"))[:6]


def test_a_run_records_its_precision_and_is_read_in_it(rounded_run, image_folder, tmp_path):
    out, printed = rounded_run
    recorded = json.loads((out / "run.json").read_text())["backbone"]
    assert (recorded["precision"], recorded["cache_precision"]) == ("bf16", "fp16")
    evaluated = json.loads(vmfcoop("evaluate", out, "--json").stdout)
    assert all(evaluated[key] == printed[key] for key in ("accuracy", "ece", "macro_auroc"))
    exact = json.loads(vmfcoop("evaluate", out, "--precision", "fp32", "--json").stdout)
    assert exact["ece"] != printed["ece"] and exact["ece"] == pytest.approx(printed["ece"], abs=0.05)

    images = some_images(image_folder)

    def probabilities(*more):
        found = json.loads(vmfcoop("predict", out, *images, "--json", *more).stdout)["predictions"]
        return torch.tensor([list(row["probabilities"].values()) for row in found])

    own = probabilities()
    assert torch.equal(own, probabilities("--precision", "bf16"))
    assert not torch.equal(own, probabilities("--precision", "fp32"))


def test_runs_from_before_there_was_a_choice_are_in_fp32(image_folder, tiny_bert_folder, tmp_path):
    assert fit(image_folder, tiny_bert_folder, tmp_path / "run").returncode == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert record["backbone"].pop("precision") == record["backbone"].pop("cache_precision") == "fp32"
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    assert evaluate_run(tmp_path / "run")["ece"] == metrics["ece"]


def test_speed_of_encoding_is_told_and_kept(image_folder, tiny_bert_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    first = fit(image_folder, tiny_bert_folder, tmp_path / "first")
    rate = json.loads((tmp_path / "first/metrics.json").read_text())["images_per_second"]
    assert rate > 0 and f"Images: {rate:.1f} a second" in first.stdout
    cached = fit(image_folder, tiny_bert_folder, tmp_path / "cached", "--json")
    assert json.loads(cached.stdout)["images_per_second"] is None


def test_wrong_precisions_are_refused(rounded_run, image_folder, tiny_bert_folder, tmp_path):
    refused(
        fit(image_folder, tiny_bert_folder, tmp_path / "x", "--precision", "fp8"), "Unknown precision 'fp8'"
    )
    refused(vmfcoop("predict", rounded_run[0], image_folder, "--precision", "half"), "Unknown precision")
    result = fit(image_folder, tiny_bert_folder, tmp_path / "x", "--cache-precision", "bf16")
    assert result.returncode == 2 and "'bf16' is not one of 'fp32', 'fp16'" in result.stderr
    assert not (tmp_path / "x").exists()


def test_features_of_two_precisions_never_mix(tiny_clip_folder, image_folder, tmp_path):
    images, spec = some_images(image_folder), f"dir:{tiny_clip_folder}"

    def features(precision, folder=tmp_path):
        encoder = CachedEncoder(load_backbone(spec, "cpu", precision), folder)
        return encoder.encode_image_files(images), encoder.encode_texts(["a cyst"])

    exact, rounded = features("fp32"), features("bf16")
    for one, other in zip(exact, rounded, strict=True):
        assert not torch.equal(one, other) and torch.allclose(one, other, atol=0.05)
    assert all(map(torch.equal, features("fp32"), exact))
    assert all(map(torch.equal, features("bf16", tmp_path / "alone"), rounded))
    fingerprint = load_backbone(spec, "cpu").fingerprint
    assert {file.name for file in tmp_path.glob("*.sqlite")} == {
        f"{fingerprint}.sqlite",
        f"{fingerprint}-bf16.sqlite",
    }


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_towers_that_overflow_in_fp16_give_a_sentence_and_nothing_is_kept(
    tower, tiny_clip_folder, image_folder, tmp_path
):
    folder, images = shutil.copytree(tiny_clip_folder, tmp_path / "large"), some_images(image_folder)
    weights = folder / "open_clip_model.safetensors"
    key = f"{tower}.transformer.resblocks.0.mlp.c_fc.weight"
    state = load_file(weights)
    save_file(state | {key: state[key] * 1e6}, weights)

    def classifier(precision):
        options = {"views": 1, "device": "cpu", "precision": precision, "cache_dir": tmp_path / "cache"}
        return FewShotClassifier(f"dir:{folder}", "zero-shot", **options)

    with pytest.raises(UserError, match="features in fp16 that are no numbers; .* --precision fp32"):
        classifier("fp16").fit(images, [0, 1] * 3).predict_proba(images)
    for file in (tmp_path / "cache").glob("*.sqlite"):
        kept = sqlite3.connect(file).execute("SELECT value FROM features").fetchall()
        assert all(np.isfinite(np.frombuffer(value, np.float32)).all() for (value,) in kept)
    for precision in ("bf16", "fp32"):
        found = classifier(precision).fit(images, [0, 1] * 3).predict_proba(images)
        assert torch.tensor(found).isfinite().all()


def test_a_text_of_broken_characters_is_refused_before_the_cache(tiny_clip_folder, tmp_path):
    encoder = CachedEncoder(load_backbone(f"dir:{tiny_clip_folder}", "cpu"), tmp_path)
    with pytest.raises(UserError, match="not valid Unicode"):
        encoder.encode_texts(["brain", "gl\udce4nzend"])


def test_rounding_the_weights_changes_the_cache(tiny_clip_folder, image_folder, tmp_path):
    images, spec = some_images(image_folder), f"dir:{tiny_clip_folder}"
    encoder = CachedEncoder(load_backbone(spec, "cpu"), tmp_path)
    exact, vocabulary = encoder.encode_image_files(images), encoder.encode_vocabulary(8)
    encoder.to("cpu", "bf16")
    assert encoder.precision == "bf16"
    assert not torch.equal(encoder.encode_image_files(images), exact)
    assert not torch.equal(encoder.encode_vocabulary(8), vocabulary)
    again = CachedEncoder(load_backbone(spec, "cpu"), tmp_path)
    assert torch.equal(again.encode_image_files(images), exact)


def test_the_estimator_s_precision(tiny_clip_folder, image_folder, tmp_path):
    images = some_images(image_folder)
    found = {}
    for precision in ("fp32", "bf16"):
        classifier = FewShotClassifier(
            f"dir:{tiny_clip_folder}",
            "zero-shot",
            views=1,
            device="cpu",
            precision=precision,
            cache_dir=tmp_path,
            cache_precision="fp16",
        )
        found[precision] = classifier.fit(images, [0, 1] * 3).predict_proba(images)
        assert classifier.encoder_.precision == precision
    assert abs(found["fp32"] - found["bf16"]).max() > 0
    assert all("stored-fp16" in file.name for file in tmp_path.iterdir())
    with pytest.raises(UserError, match="Unknown precision 'double'"):
        classifier.set_params(precision="double").fit(images, [0, 1] * 3)


def test_a_benchmark_s_jobs_depend_on_precision_and_old_ones_stay_valid(make_recipe, tmp_path):
    exact, rounded, kept = (
        plan(make_recipe(**changes)).jobs
        for changes in ({}, {"precision": "bf16"}, {"cache_precision": "fp16"})
    )
    assert len({*exact, *rounded, *kept}) == 3 * len(exact)
    assert {job.precision for job in rounded.values()} == {"bf16"}
    run_benchmark(make_recipe(), tmp_path / "bench", jobs=1)
    for file in (tmp_path / "bench").rglob("*.json"):
        content = json.loads(file.read_text())
        for part in (content, content.get("job", {})):  # as they were before there was a choice
            part.pop("precision", None)
            part.pop("cache_precision", None)
        file.write_text(json.dumps(content))
    again = run_benchmark(make_recipe(), tmp_path / "bench", jobs=1)
    assert (again.done, again.reused) == (0, len(exact))
    assert len(read_bench(tmp_path / "bench").cells) == len(exact)


def test_a_worker_takes_the_job_s_precision_not_its_own_reading_of_auto(make_recipe):
    (job, *_) = plan(make_recipe(precision="bf16")).jobs.values()
    materials = Materials(make_recipe(precision="auto"))
    assert materials.encoder(job.backbone).precision == "fp32"  # on a CPU
    materials.results([job])
    assert materials.encoder(job.backbone, "bf16").precision == "bf16"


def test_precision_of_a_recipe_and_the_options_that_replace_it(
    make_recipe, image_folder, tiny_bert_folder, tmp_path
):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"backbones: ['dir:{tiny_bert_folder}']\ndata: ['{image_folder}']\nmethods: [zero-shot]\n"
        "shots: [1]\nseeds: [1]\nprotocols: [few-shot]\nprecision: bf16\ncache_precision: fp16\n"
    )
    recipe = load_recipe(path)
    command = ["benchmark", path, "--jobs", 1, "--out", tmp_path / "b"]
    assert (recipe.precision, recipe.cache_precision, recipe.device) == ("bf16", "fp16", "cpu")
    result = vmfcoop(*command, "--precision", "fp32", "--device", "auto")
    assert result.returncode == 0, result.stderr
    found = read_bench(tmp_path / "b").recipe
    assert (found.precision, found.cache_precision, found.device) == ("fp32", "fp16", "auto")
    refused(vmfcoop("benchmark", path, "--precision", "fp8"), "mine.yaml.*key 'precision' cannot be 'fp8'")
    refused(vmfcoop("benchmark", path, "--out", tmp_path / "c", "--device", "tpu"), "device 'tpu'")


def test_descriptions_are_looked_at_in_a_precision(tiny_clip_folder, tmp_path):
    bank = tmp_path / "bank.json"
    bank.write_text(
        json.dumps({name: [f"{name} number {n} on the left" for n in range(4)] for name in "abc"})
    )
    show = ["descriptions", "show", bank, "--backbone", f"dir:{tiny_clip_folder}", "--device", "cpu"]
    exact = json.loads(vmfcoop(*show, "--json").stdout)
    rounded = json.loads(vmfcoop(*show, "--json", "--precision", "bf16").stdout)
    assert exact != rounded
    for command in (["check", bank], ["diff", bank, bank]):
        result = vmfcoop("descriptions", *command, *show[3:], "--precision", "fp8")
        refused(result, "Unknown precision 'fp8'")


def test_the_demo_takes_a_device():
    refused(vmfcoop("demo", "--device", "tpu"), "device 'tpu'")
