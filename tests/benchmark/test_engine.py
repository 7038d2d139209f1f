"""Runs: what they compute, skip, survive and report."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest

from vmfcoop.backbones import load_backbone
from vmfcoop.benchmark import engine, materials, processes
from vmfcoop.benchmark.engine import run_benchmark
from vmfcoop.benchmark.plan import describe, plan
from vmfcoop.benchmark.processes import Died, ProcessPool
from vmfcoop.benchmark.results import BenchFolder, read_bench
from vmfcoop.data import load_dataset
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.errors import UserError
from vmfcoop.evaluation.protocols import base_to_novel, cross_dataset, few_shot
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import make_method

COOP = [{"name": "coop", "settings": {"epochs": 40}}]


def table(folder):
    """Every cell with its numbers, without the seconds that they took."""
    return {
        dataclasses.astuple(cell)[:-1]: json.dumps({**cell.result, "seconds": None}, sort_keys=True)
        for cell in read_bench(folder).cells
    }


def run(recipe, out, **options):
    return run_benchmark(recipe, out, **{"jobs": 1, "stack": 1, **options})


def written(folder):
    return {path.name: path.stat().st_mtime_ns for path in (Path(folder) / "jobs").iterdir()}


def test_cells_are_what_the_protocols_say(
    make_recipe, four_classes, image_folder, tiny_bert_folder, tmp_path
):
    recipe = make_recipe(
        data=[{"spec": str(four_classes), "name": "four"}, {"spec": str(image_folder), "name": "brain"}],
        protocols=["few-shot", "base-to-novel", "cross-dataset"],
        cross_dataset=[{"train": "four", "test": "brain"}],
        shots=[2],
        seeds=[1],
        base_to_novel_shots=3,
    )
    outcome = run(recipe, tmp_path / "bench")
    assert not outcome.failed and outcome.done == len(read_bench(tmp_path / "bench").cells) == 2 * (2 + 1 + 1)
    encoder = CachedEncoder(load_backbone(f"dir:{tiny_bert_folder}", "cpu"))
    four, brain = load_dataset(four_classes), load_dataset(image_folder)
    banks = [template_bank(data.class_names) for data in (four, brain)]
    method = make_method("coop", {"epochs": 1, "batch_size": 4})
    expected = {
        ("few-shot", "four"): few_shot(encoder, four, banks[0], method, 2, [1], 2),
        ("few-shot", "brain"): few_shot(encoder, brain, banks[1], method, 2, [1], 2),
        ("base-to-novel", "four"): base_to_novel(encoder, four, banks[0], method, [1], 3, 2),
        ("cross-dataset", "four"): cross_dataset(encoder, four, banks[0], brain, banks[1], method, 2, [1], 2),
    }
    cells = [cell for cell in read_bench(tmp_path / "bench").cells if cell.method == "CoOp"]
    assert {(cell.protocol, cell.data) for cell in cells} == set(expected)
    for cell in cells:
        (found,) = expected[cell.protocol, cell.data]
        assert set(found) == set(cell.result) and cell.result["steps"] == found["steps"] > 0
        for part in set(found) - {"steps", "seconds"}:
            assert cell.result[part] == json.loads(json.dumps(found[part])), (cell.protocol, part)


def test_second_run_computes_nothing_and_a_change_only_what_it_touches(make_recipe, tmp_path):
    first = run(make_recipe(), tmp_path)
    assert (first.done, first.reused) == (8, 0) and first.seconds > 0
    before = written(tmp_path)
    again = run(make_recipe(name="renamed", methods=[*make_recipe().methods[::-1]]), tmp_path)
    assert (again.done, again.reused) == (0, 8) and written(tmp_path) == before
    changed = make_recipe(methods=["zero-shot", {"name": "coop", "settings": {"epochs": 2}}], seeds=[1, 2, 3])
    facts = describe(plan(changed), tmp_path)
    assert (facts["jobs"], facts["done"], facts["rough"]) == (12, 4, False)
    more = run(changed, tmp_path)
    assert (more.done, more.reused) == (8, 4)  # CoOp anew, zero-shot for the third seed
    assert {name: written(tmp_path)[name] for name in before} == before
    assert len(read_bench(tmp_path).cells) == 12


def test_validation_images_when_asked_for(make_recipe, tmp_path):
    found = {}
    for split in ("test", "val"):
        recipe = make_recipe(methods=["zero-shot"], shots=[1], seeds=[1], split=split)
        run_benchmark(recipe, tmp_path / split, jobs=1)
        (cell,) = read_bench(tmp_path / split).cells
        found[split] = cell.result["test"]["n"]
        table = recipe.data[0].dataset()
        assert found[split] == len(table.indices(split))
    assert found["test"] != found["val"]


def test_damaged_job_is_run_again(make_recipe, tmp_path):
    run(make_recipe(), tmp_path)
    expected = table(tmp_path)
    victim = next((tmp_path / "jobs").iterdir())
    victim.write_bytes(victim.read_bytes()[:40])
    outcome = run(make_recipe(), tmp_path)
    assert (outcome.done, outcome.reused) == (1, 7) and table(tmp_path) == expected


def test_seeds_side_by_side_or_one_by_one_are_the_same(make_recipe, tmp_path):
    recipe = make_recipe(methods=["coop", "vmfcoop"], equal={"epochs": 3}, seeds=[1, 2, 3])
    for stack in (1, 3):
        run(recipe, tmp_path / str(stack), stack=stack)
    one, three = (read_bench(tmp_path / str(stack)).cells for stack in (1, 3))
    assert len(one) == len(three) == 12
    for left, right in zip(one, three, strict=True):
        assert left.result["test"]["confusion_matrix"] == right.result["test"]["confusion_matrix"]
        assert left.result["test"]["accuracy"] == right.result["test"]["accuracy"]
        assert left.result["test"]["ece"] == pytest.approx(right.result["test"]["ece"], abs=1e-5)


def test_failing_jobs_are_collected_and_do_not_stop_the_rest(make_recipe, tmp_path):
    recipe = make_recipe(methods=["zero-shot", {"name": "vmfcoop", "settings": {"vocabulary": "token"}}])
    outcome = run(recipe, tmp_path)
    assert (outcome.done, len(outcome.failed)) == (4, 4)
    assert all("use vocabulary=encoded" in failure.message for failure in outcome.failed)
    bench = read_bench(tmp_path)
    assert set(bench.failures) == set(outcome.failed) and len(bench.cells) == len(bench.missing) == 4
    assert len(run(recipe, tmp_path).failed) == 4  # tried again
    assert not list((tmp_path / "claims").iterdir())


def test_other_errors_come_with_their_type(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(materials, "few_shot", lambda *_: 1 / 0)
    (failure, *_) = run(make_recipe(), tmp_path).failed
    assert failure.message == "ZeroDivisionError: division by zero"


def test_refuses_before_any_work(make_recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("kept")
    with pytest.raises(UserError, match="no benchmark folder"):
        run(make_recipe(), tmp_path)
    with pytest.raises(UserError, match="Unknown engine 'rya'; did you mean 'ray'"):
        run(make_recipe(), tmp_path / "new", engine="rya")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_progress_counts_every_job(make_recipe, tmp_path):
    told = []
    run(make_recipe(), tmp_path, progress=lambda *what: told.append(what))
    counts = [(done, total) for task, done, total in told if task == "fit and test"]
    assert counts[0] == (0, 8) and counts[-1] == (8, 8) and {total for _, total in counts} == {8}
    totals = [(done, total) for task, done, total in told if task == "seconds, of an estimated total"]
    assert all(done <= total for done, total in totals) and totals[-1][0] == totals[-1][1]


@pytest.mark.slow
def test_killed_run_goes_on_where_it_stopped(make_recipe, bench_process, tmp_path):
    recipe = make_recipe(methods=COOP, seeds=[1, 2, 3, 4])
    run(recipe, tmp_path / "whole")
    process = bench_process(recipe, tmp_path / "cut")
    process.wait_for("jobs/*.json", count=2)
    process.process.kill()
    process.process.communicate()
    there = len(list((tmp_path / "cut" / "jobs").glob("*.json")))
    assert 2 <= there < 8
    outcome = run(recipe, tmp_path / "cut")
    assert (outcome.done, outcome.reused) == (8 - there, there)
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


@pytest.mark.slow
def test_two_runs_share_a_folder_and_compute_each_job_once(make_recipe, bench_process, tmp_path):
    recipe = make_recipe(methods=COOP, seeds=[1, 2, 3, 4])
    run(recipe, tmp_path / "alone")
    both = [bench_process(recipe, tmp_path / "shared") for _ in range(2)]
    counts = [process.counts() for process in both]
    assert sum(done for done, _, _ in counts) == 8 and all(done + reused == 8 for done, reused, _ in counts)
    assert table(tmp_path / "shared") == table(tmp_path / "alone")


@pytest.mark.slow
def test_processes_give_the_same_table_though_one_is_killed(make_recipe, bench_process, tmp_path):
    recipe = make_recipe(methods=COOP, seeds=[1, 2, 3, 4])
    run(recipe, tmp_path / "one")
    process = bench_process(recipe, tmp_path / "pool", jobs=2)
    process.kill_a_worker()
    assert process.counts() == (8, 0, 0)
    assert table(tmp_path / "pool") == table(tmp_path / "one")


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_keeps_what_is_done(make_recipe, bench_process, tmp_path):
    recipe = make_recipe(methods=[{"name": "coop", "settings": {"epochs": 5000}}, "zero-shot"])
    process = bench_process(recipe, tmp_path / "bench", jobs=2)
    process.wait_for("claims/*", count=2)
    assert process.interrupt().strip() == "interrupted"
    assert not list((tmp_path / "bench" / "claims").iterdir())


def _no_start() -> None:
    pass


def _maybe_die(task: tuple[str, int]) -> int:
    kind, number = task
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "leave":
        os._exit(3)
    return number**2


@pytest.mark.slow
def test_pool_knows_whose_process_died():
    tasks = [("square", 1), ("die", 2), ("square", 3), ("leave", 4), ("square", 5)]
    with ProcessPool(2, _maybe_die, _no_start) as pool:
        found = dict(pool.results(tasks))
        again = dict(pool.results([("square", 6)]))
    assert [found["square", n] for n in (1, 3, 5)] == [1, 9, 25] and again == {("square", 6): 36}
    assert isinstance(found["die", 2], Died) and "SIGKILL" in found["die", 2].message
    assert found["leave", 4] == Died("The process ended with exit code 3.")


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.slow
def test_pool_ends_its_processes_at_once_on_an_error():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ProcessPool(2, _sleep, _no_start) as pool:
        for _ in pool.results([0.0, 600.0, 600.0]):
            raise KeyboardInterrupt
    assert time.monotonic() - start < 60


def test_memory_is_known_here():
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc")
    free = processes.available_memory()
    assert free is not None and 0 < free < 2**50
    assert 1 <= processes.default_processes("cpu") <= processes.cores()


def test_a_run_reports_what_another_computed_meanwhile(make_recipe, tmp_path, monkeypatch):
    """A job claimed elsewhere is waited for, and taken from the folder once it is there."""
    monkeypatch.setattr(engine, "POLL", 0.01)
    recipe = make_recipe(methods=["zero-shot"], shots=[1], seeds=[1])
    run(recipe, tmp_path / "other")
    (job,) = plan(recipe).jobs.values()
    result = BenchFolder(tmp_path / "other").result(job.key)
    shared = BenchFolder(tmp_path / "shared")
    shared.begin(recipe, plan(recipe).cells)
    waits = []

    def finish_elsewhere(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            shared.write_result(job, result)

    monkeypatch.setattr(engine.time, "sleep", finish_elsewhere)
    with shared.claimed([job.key], "another"):
        outcome = run(recipe, tmp_path / "shared")
    assert (outcome.done, outcome.reused) == (0, 1) and waits[:3] == [0.01] * 3
