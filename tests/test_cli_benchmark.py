"""The commands benchmark and report, from a YAML recipe to the tables."""

import csv
import json
from statistics import mean

import pytest
import yaml

from tests.test_cli import refused, vmfcoop
from vmfcoop.backbones import load_backbone
from vmfcoop.data import load_dataset
from vmfcoop.descriptions import template_bank
from vmfcoop.evaluation.protocols import draw_support, split_metrics
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import make_method


def write_recipe(folder, image_folder, backbone, **changes):
    content = {
        "name": "stripes",
        "backbones": [f"dir:{backbone}"],
        "data": [{"spec": str(image_folder), "name": "stripes"}],
        "methods": ["zero-shot", {"name": "coop", "title": "CoOp, two epochs", "settings": {"epochs": 2}}],
        "shots": [1, 2],
        "seeds": [1, 2],
        "protocols": ["few-shot"],
        "views": 2,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def bench(image_folder, tiny_bert_folder, tmp_path_factory):
    """A finished benchmark, what its command said, and its recipe."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = write_recipe(folder, image_folder, tiny_bert_folder)
    result = vmfcoop("benchmark", recipe, "--out", folder / "out", "--jobs", 1, "--json")
    assert result.returncode == 0, result.stderr
    return folder / "out", json.loads(result.stdout), recipe


def test_benchmark_computes_every_job_and_none_twice(bench):
    out, said, recipe = bench
    assert (said["done"], said["reused"], said["failed"]) == (8, 0, 0)
    assert len(list((out / "jobs").glob("*.json"))) == 8
    again = vmfcoop("benchmark", recipe, "--out", out, "--jobs", 1, "--json")
    assert json.loads(again.stdout)["reused"] == 8


def test_dry_run_prints_the_grid_and_runs_nothing(bench, tmp_path):
    _, _, recipe = bench
    result = vmfcoop("benchmark", recipe, "--out", tmp_path / "none", "--dry-run", "--json")
    overview = json.loads(result.stdout)
    assert overview["jobs"] == 8 and overview["done"] == 0 and not (tmp_path / "none").exists()
    assert overview["steps"] == 2 * 2 * (1 + 2)  # two seeds, two epochs, batches of at most four
    text = vmfcoop("benchmark", recipe, "--out", tmp_path / "none", "--dry-run").stdout
    assert "CoOp, two epochs" in text and "time left" in text


def test_report_has_the_numbers_of_fits_made_here(bench, image_folder, tiny_bert_folder, tmp_path):
    out, _, _ = bench
    result = vmfcoop("report", out, "--out", tmp_path / "report", "--reference", "CoOp, two epochs")
    assert result.returncode == 0, result.stderr
    names = {"report.html", "tables.md", "tables.tex", "cells.csv"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    encoder = CachedEncoder(load_backbone(f"dir:{tiny_bert_folder}", "cpu"))
    table = load_dataset(image_folder)
    bank = template_bank(table.class_names)
    accuracies = []
    for seed in (1, 2):
        support = draw_support(encoder, table, bank, 2, seed, views=2)
        settings = {"epochs": 2, "batch_size": 4, "seed": seed}  # the recipe's budget is the equal one
        fitted = make_method("coop", settings).fit(support, encoder)
        accuracies.append(split_metrics(encoder, table, fitted)["accuracy"])
    with (tmp_path / "report" / "cells.csv").open() as file:
        rows = [
            float(row["accuracy"])
            for row in csv.DictReader(file)
            if row["method"] == "CoOp, two epochs" and row["shots"] == "2"
        ]
    assert rows == pytest.approx(accuracies)
    assert f"{100 * mean(accuracies):.2f}" in (tmp_path / "report" / "tables.md").read_text()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "resolved.equal.CoOp, two epochs.learning_rate" in page


def test_a_failed_job_is_said_and_gives_exit_code_one(image_folder, tiny_bert_folder, tmp_path):
    methods = ["zero-shot", {"name": "coop", "settings": {"context_init": "\n"}}]
    recipe = write_recipe(tmp_path, image_folder, tiny_bert_folder, methods=methods, shots=[1])
    result = vmfcoop("benchmark", recipe, "--out", tmp_path / "out", "--jobs", 1)
    assert result.returncode == 1
    assert "Failed:" in result.stderr and "2 done, 0 reused, 2 failed" in result.stdout
    report = vmfcoop("report", tmp_path / "out", "--reference", "Zero-shot (name)")
    assert report.returncode == 0 and "2 cells have no result yet" in report.stdout
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "Missing: CoOp, few-shot" in page and "Failed: coop" in page


def test_says_what_is_wrong(bench, image_folder, tiny_bert_folder, tmp_path):
    recipe = write_recipe(tmp_path, image_folder, tiny_bert_folder, shot=[1])
    refused(vmfcoop("benchmark", recipe, "--out", tmp_path / "out"), "'shot'; did you mean 'shots'")
    refused(vmfcoop("report", tmp_path), "no benchmark folder")
    assert not (tmp_path / "out").exists()
