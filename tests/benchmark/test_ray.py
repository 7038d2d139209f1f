"""The engine on a Ray that is started here: the same table as the local engine, though a worker is killed."""

import sys

import pytest

from tests.benchmark.test_engine import COOP, run, table
from vmfcoop.errors import UserError


def test_says_how_to_get_ray(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'vmfcoop\[ray\]'"):
        run(make_recipe(methods=["zero-shot"], shots=[1]), tmp_path, engine="ray")


@pytest.mark.slow
def test_same_table_though_a_worker_is_killed(make_recipe, bench_process, tmp_path):
    pytest.importorskip("ray")
    recipe = make_recipe(methods=COOP, seeds=[1, 2, 3, 4])
    run(recipe, tmp_path / "local")
    process = bench_process(recipe, tmp_path / "ray", engine="ray", jobs=2)
    process.kill_a_worker()
    assert process.counts() == (8, 0, 0)
    assert table(tmp_path / "ray") == table(tmp_path / "local")


@pytest.mark.slow
def test_ctrl_c_ends_ray(make_recipe, bench_process, tmp_path):
    pytest.importorskip("ray")
    recipe = make_recipe(methods=[{"name": "coop", "settings": {"epochs": 5000}}])
    process = bench_process(recipe, tmp_path / "bench", engine="ray", jobs=2)
    process.wait_for("claims/*", count=2)
    said = process.interrupt()
    assert "interrupted" in said and "Traceback" not in said
    assert not list((tmp_path / "bench" / "claims").iterdir())


@pytest.mark.slow
def test_says_where_no_cluster_is(make_recipe, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no Ray at '127.0.0.1:1'"):
        run(make_recipe(methods=["zero-shot"], shots=[1]), tmp_path, engine="ray", ray_address="127.0.0.1:1")
