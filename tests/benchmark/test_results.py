"""A benchmark folder: claims, damaged files, and what is told of folders that are none."""

import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from vmfcoop.benchmark import results
from vmfcoop.benchmark.results import BenchFolder, Job, PlannedCell, Source, read_bench
from vmfcoop.errors import UserError

JOB = Job(
    protocol="few-shot",
    method="coop",
    config={"epochs": 2, "batch_size": 4},
    shots=3,
    seed=5,
    views=2,
    backbone="phantom",
    fingerprint="f00d",
    data=Source("lesions", "da7a", "7e87"),
    classes=3,
)
RESULT = {"test": {"accuracy": 0.5}, "steps": 6, "seconds": {"fit": 1.0, "test": 0.5}}


@pytest.fixture
def folder(tmp_path, make_recipe):
    place = BenchFolder(tmp_path / "bench")
    cell = PlannedCell("main", "few-shot", "equal", "phantom", "lesions", None, "CoOp", 3, 5, JOB.key)
    place.begin(make_recipe(), [cell])
    return place


def test_hash_is_of_canonical_json():
    content = {
        "format": 1,
        "protocol": "few-shot",
        "method": "coop",
        "config": {"batch_size": 4, "epochs": 2},
        "shots": 3,
        "seed": 5,
        "views": 2,
        "backbone": "f00d",
        "data": [["da7a", "7e87"]],
    }
    assert JOB.key == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert JOB.steps == 2 * 3  # 9 images in batches of 4


def test_result_fills_its_cell(folder):
    assert len(read_bench(folder.path).missing) == 1
    folder.write_result(JOB, RESULT)
    bench = read_bench(folder.path)
    assert not bench.missing and bench.cells[0].result == RESULT and bench.cells[0].method == "CoOp"
    content = json.loads((folder.path / "jobs" / f"{JOB.key}.json").read_text())
    assert content["job"]["data"]["name"] == "lesions" and "torch" in content["software"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 0, "result": {}}', b'{"format": 1}']
)
def test_damaged_result_counts_as_missing(folder, content):
    folder.write_result(JOB, RESULT)
    (folder.path / "jobs" / f"{JOB.key}.json").write_bytes(content)
    assert folder.result(JOB.key) is None and len(read_bench(folder.path).missing) == 1


def test_failure_is_kept_until_a_result_comes(folder):
    folder.write_failure(JOB, "No such thing.")
    (failure,) = read_bench(folder.path).failures
    assert failure.message == "No such thing." and "coop" in failure.job and "lesions" in failure.job
    folder.write_result(JOB, RESULT)
    assert not read_bench(folder.path).failures


def test_a_claim_keeps_others_out_while_it_lasts(folder):
    with folder.claimed(["a", "b"], "one") as mine:
        assert mine == ["a", "b"]
        with folder.claimed(["b", "c"], "other") as theirs:
            assert theirs == ["c"]
        assert (folder.path / "claims" / "b").exists()
    with folder.claimed(["b"], "other") as theirs:
        assert theirs == ["b"]
    assert not list((folder.path / "claims").iterdir())


def claim_of(folder, key, **owner):
    path = folder.path / "claims" / key
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "run": "other", **owner}))
    return path


def test_claims_of_the_dead_are_taken_over(folder):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claim_of(folder, "dead", host=results.socket.gethostname(), pid=dead.pid)
    claim_of(folder, "alive", host=results.socket.gethostname(), pid=os.getpid())
    claim_of(folder, "own", run="one")
    claim_of(folder, "elsewhere")
    old = claim_of(folder, "old")
    os.utime(old, (0, time.time() - results.CLAIM_LIFE - 5))
    unsigned = folder.path / "claims" / "unsigned"
    unsigned.touch()
    keys = ["dead", "alive", "own", "elsewhere", "old", "unsigned"]
    with folder.claimed(keys, "one") as mine:
        assert mine == ["dead", "own", "old"]
    os.utime(unsigned, (0, time.time() - results.UNSIGNED_LIFE - 5))
    with folder.claimed(["unsigned"], "one") as mine:
        assert mine == ["unsigned"]


def test_a_claim_gives_signs_of_life(folder, monkeypatch):
    monkeypatch.setattr(results, "HEARTBEAT", 0.02)
    with folder.claimed(["a"], "one"):
        path = folder.path / "claims" / "a"
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime < 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_drop_claims_of_a_run_only(folder):
    claim_of(folder, "mine", run="one"), claim_of(folder, "theirs")
    folder.drop_claims("one")
    assert [path.name for path in (folder.path / "claims").iterdir()] == ["theirs"]


def test_says_what_is_no_benchmark(folder, tmp_path, make_recipe):
    with pytest.raises(UserError, match="no benchmark folder"):
        read_bench(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("kept")
    for path in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="choose another --out"):
            BenchFolder(path).begin(make_recipe(), [])
    folder.begin(make_recipe(), [])
    (folder.path / "cells.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_bench(folder.path)
