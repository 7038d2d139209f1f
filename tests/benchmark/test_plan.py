"""Plans: which cells and jobs a recipe comes to, and what a job's hash does and does not depend on."""

import json
import shutil

import pytest
from PIL import Image

from vmfcoop.benchmark.plan import Estimate, describe, plan, tasks_of
from vmfcoop.benchmark.recipe import ABLATION, MethodEntry
from vmfcoop.errors import UserError
from vmfcoop.evaluation.protocols import on_budget


def keys(recipe):
    return set(plan(recipe).jobs)


def entry(spec, **more):
    return {"spec": str(spec), "name": "brain", **more}


def test_grid(make_recipe, four_classes):
    recipe = make_recipe(
        data=[str(four_classes)],
        protocols=["few-shot", "base-to-novel"],
        budgets=["paper", "equal"],
        shots=[1, 2],
    )
    made = plan(recipe.model_copy(update={"base_to_novel_shots": 3}))
    few, pairs = (
        [cell for cell in made.cells if cell.protocol == protocol]
        for protocol in ("few-shot", "base-to-novel")
    )
    assert len(few) == 2 * 2 * 2 * 2 and len(pairs) == 2 * 2 * 2  # budgets, methods, seeds (and shots)
    assert {cell.shots for cell in pairs} == {3} and not made.notes
    # Zero-shot is one fit under both budgets; CoOp's batch size differs.
    assert len(made.jobs) == 3 * (2 * 2 + 2)
    equal = on_budget("coop", {"epochs": 1}, "equal", images=3 * 2)
    by_key = {cell.job: cell for cell in pairs if cell.method == "CoOp" and cell.budget == "equal"}
    for key in by_key:
        assert made.jobs[key].config == equal.config.model_dump(exclude={"seed"})
        assert made.jobs[key].classes == 2 and made.jobs[key].steps == 2


def test_names_titles_order_and_places_do_not_count(make_recipe, image_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(image_folder, moved)
    other = make_recipe(
        name="other",
        data=[{"spec": str(moved), "name": "moved"}],
        methods=[{"name": "coop", "title": "Mine", "settings": {"epochs": 1}}, "zero-shot"],
        seeds=[2, 1],
        shots=[2, 1],
    )
    assert keys(other) == keys(make_recipe())


@pytest.mark.parametrize(
    "changes",
    [
        {"views": 3},
        {"seeds": [3, 4]},
        {"shots": [3, 4]},
        {"methods": [{"name": "coop", "settings": {"epochs": 2}}, "zero-shot-ensemble"]},
        {"protocols": ["base-to-novel"], "base_to_novel_shots": 1},
    ],
)
def test_settings_count(make_recipe, four_classes, changes):
    data = [str(four_classes)]
    assert not keys(make_recipe(data=data)) & keys(make_recipe(data=data, **changes))


def test_backbone_splits_descriptions_and_pixels_count(make_recipe, image_folder, tiny_clip_folder, tmp_path):
    names = ["glioma tumor", "meningioma tumor", "normal brain"]
    described = tmp_path / "d.json"
    described.write_text(json.dumps({name: [f"{name} one", f"{name} two"] for name in names}))
    changed = tmp_path / "changed"
    shutil.copytree(image_folder, changed)
    Image.new("RGB", (40, 40)).save(changed / "normal_brain" / "00.png")
    recipes = [
        make_recipe(),
        make_recipe(backbones=[f"dir:{tiny_clip_folder}"]),
        make_recipe(data=[entry(image_folder, split_seed=1)]),
        make_recipe(data=[entry(image_folder, class_names={"normal_brain": "healthy brain"})]),
        make_recipe(data=[entry(image_folder, descriptions=described)]),
        make_recipe(data=[entry(changed)]),
    ]
    found = [keys(recipe) for recipe in recipes]
    assert len(set.union(*found)) == sum(map(len, found)) == 8 * len(recipes)


def test_ablation_shares_its_full_row_with_the_main_table(make_recipe, four_classes):
    recipe = make_recipe(
        data=[str(four_classes)], methods=["vmfcoop"], protocols=["few-shot", "ablation"], ablation_shots=[1],
        shots=[1], base_to_novel_shots=2,
    )  # fmt: skip
    made = plan(recipe)
    rows = {
        title: {
            c.job
            for c in made.cells
            if c.section == "ablation" and c.protocol == "few-shot" and c.method == title
        }
        for title in ABLATION
    }
    main = {cell.job for cell in made.cells if cell.section == "main"}
    assert rows["all"] == main and len(main) == 2
    assert len(set.union(*rows.values())) == 5 * 2
    switches = ("anchor", "contrastive", "symmetric")
    on = {t: tuple(made.jobs[next(iter(k))].config[s] for s in switches) for t, k in rows.items()}
    assert on == {
        "none": (False, False, False),
        "anc": (True, False, False),
        "anc + sc": (True, True, False),
        "SCE": (False, False, True),
        "all": (True, True, True),
    }
    assert {c.shots for c in made.cells if c.protocol == "base-to-novel"} == {2}


def test_cross_dataset_pairs(make_recipe, image_folder, four_classes):
    recipe = make_recipe(
        data=[entry(image_folder), str(four_classes)],
        protocols=["cross-dataset"],
        cross_dataset=[{"train": "brain", "test": four_classes.name}],
    )
    made = plan(recipe)
    assert {(cell.data, cell.target) for cell in made.cells} == {("brain", four_classes.name)}
    assert all(job.target.name == four_classes.name for job in made.jobs.values())


def test_what_is_impossible_is_left_out_with_a_note(make_recipe):
    recipe = make_recipe(protocols=["few-shot", "base-to-novel"], shots=[1, 50])
    made = plan(recipe)
    assert {cell.protocol for cell in made.cells} == {"few-shot"} and {cell.shots for cell in made.cells} == {
        1
    }
    few, pairs = sorted(made.notes)
    assert "fewer than the 50 shots" in few and "brain: no base-to-novel, since 3 classes" in pairs
    with pytest.raises(UserError, match="comes to no job"):
        plan(make_recipe(shots=[50]))


def test_tasks_are_seeds_side_by_side_longest_first(make_recipe):
    made = plan(
        make_recipe(seeds=[1, 2, 3], methods=[{"name": "coop", "settings": {"epochs": 20}}, "zero-shot"])
    )
    tasks = tasks_of(made.jobs.values(), Estimate(made.text_seconds), stack=2)
    assert sorted(len(task.jobs) for task in tasks) == [1] * 4 + [2] * 4
    for task in tasks:
        assert len({(job.method, job.shots) for job in task.jobs}) == 1
        assert len({job.seed for job in task.jobs}) == len(task.jobs)
    assert (tasks[0].jobs[0].method, tasks[0].jobs[0].shots, len(tasks[0].jobs)) == ("coop", 2, 2)


def test_estimate_learns_by_method(make_recipe):
    made = plan(make_recipe())
    estimate = Estimate(made.text_seconds)
    by_method = {job.method: job for job in made.jobs.values() if job.shots == 2}
    assert (
        estimate.rough and estimate.seconds(by_method["coop"]) > estimate.seconds(by_method["zero-shot"]) > 0
    )
    for _ in range(3):
        estimate.learn(by_method["coop"], {"seconds": {"fit": 40.0, "test": 2.0}})
    assert not estimate.rough and estimate.seconds(by_method["coop"]) == pytest.approx(42)
    facts = describe(made, processes=2)
    assert facts["jobs"] == len(made.jobs) == 8 and facts["done"] == 0 and facts["rough"]
    assert facts["steps"] == facts["steps_left"] == 2 * (1 + 2)  # 3 and 6 images in batches of 4, two seeds
    assert json.dumps(facts)


def test_method_rows_are_checked_in_python_too():
    with pytest.raises(ValueError, match="Unknown method 'cop'"):
        MethodEntry(name="cop")


def test_datasets_without_descriptions_are_noted_where_a_method_reads_them(make_recipe):
    (note,) = plan(make_recipe(methods=["zero-shot", "vmfcoop"])).notes
    assert note.startswith("brain: no descriptions")
    assert not plan(make_recipe(methods=["zero-shot", "coop"])).notes
