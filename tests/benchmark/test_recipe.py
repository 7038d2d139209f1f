"""Recipes: what they default to, where their paths point, and what is said of mistakes in them."""

from pathlib import Path

import pytest

from vmfcoop.benchmark.recipe import Recipe, load_recipe
from vmfcoop.data import load_dataset
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.descriptions import packaged_descriptions, template_bank
from vmfcoop.errors import UserError
from vmfcoop.methods import METHODS

MINIMAL = "backbones: [phantom]\ndata: [phantom-histology]\n"


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults(written):
    recipe = load_recipe(written(MINIMAL))
    assert recipe.name == "mine"
    assert [row.name for row in recipe.methods] == list(METHODS)
    assert [row.title for row in recipe.methods] == [method.title for method in METHODS.values()]
    assert recipe.shots == [1, 2, 4, 8, 16] and recipe.seeds == [1, 2, 3]
    assert recipe.protocols == ["few-shot", "base-to-novel"] and recipe.budgets == ["equal"]
    assert recipe.equal.epochs == 50 and recipe.equal.batch_size == 4
    assert recipe.data[0].name == recipe.data[0].spec == "phantom-histology"


def test_relative_paths_count_from_the_recipe_and_keys_are_no_paths(
    written, tmp_path, image_folder, monkeypatch
):
    (tmp_path / "lesions").symlink_to(image_folder)
    (tmp_path / "phantom-fundus").mkdir()
    monkeypatch.chdir("/")
    recipe = load_recipe(
        written(
            "backbones: ['dir:models/tiny']\n"
            "data:\n- lesions\n- phantom-fundus\n"
            "- {spec: ./lesions/, name: again, descriptions: d.json, groups: g.csv}\n"
        )
    )
    assert recipe.backbones == [f"dir:{tmp_path / 'models/tiny'}"]
    first, key, again = recipe.data
    assert Path(first.spec) == Path(again.spec) == tmp_path / "lesions" and first.name == "lesions"
    assert key.spec == "phantom-fundus"
    assert again.descriptions == tmp_path / "d.json" and again.groups == tmp_path / "g.csv"
    assert len(first.dataset()) == len(load_dataset(image_folder))


def test_descriptions_given_packaged_or_templates(written, tmp_path, image_folder):
    (tmp_path / "d.json").write_text('{"a": ["one", "two"], "b": ["three", "four"]}')
    recipe = load_recipe(
        written(
            f"backbones: [phantom]\ndata: ['{image_folder}', phantom-fundus, "
            "{spec: phantom-fundus, name: given, descriptions: d.json}]\n"
        )
    )
    plain, packaged, given = recipe.data
    names = ["glioma tumor", "normal brain"]
    assert plain.bank(names).fingerprint == template_bank(names).fingerprint
    own = packaged_descriptions("phantom-fundus")
    assert packaged.bank(list(own.descriptions)).fingerprint == own.fingerprint
    assert given.bank(["a"]).descriptions["a"] == ("one", "two")
    with pytest.raises(UserError, match="no descriptions of 'c'"):
        given.bank(["c"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL + "shot: [1]\n", "Unknown recipe key 'shot'; did you mean 'shots'"),
        ("data: [phantom-histology]\n", "The key 'backbones' is missing"),
        (MINIMAL + "shots: [1, none]\n", r"The key 'shots\[1\]' cannot be 'none'"),
        (MINIMAL + "shots: [0]\n", r"The key 'shots\[0\]' cannot be 0"),
        (MINIMAL + "shots: []\n", "The key 'shots' cannot be"),
        (MINIMAL + "shots: [4, 4]\n", "shots: It lists '4' twice"),
        (MINIMAL + "protocols: [few-shots]\n", "'few-shots'.*'few-shot', 'base-to-novel'"),
        (MINIMAL + "budgets: [fair]\n", "'fair'.*'paper' or 'equal'"),
        (MINIMAL + "equal: {epoch: 5}\n", "Unknown key of equal 'epoch'; did you mean 'epochs'"),
        (MINIMAL + "methods: [vmfcop]\n", r"methods\[0\]: Unknown method 'vmfcop'; did you mean 'vmfcoop'"),
        (
            MINIMAL + "methods: [{name: coop, setting: {}}]\n",
            r"key of methods\[0\] 'setting'; did you mean 'settings'",
        ),
        (
            MINIMAL + "methods: [{name: coop, settings: {epoch: 3}}]\n",
            "Unknown setting 'epoch'; did you mean 'epochs'",
        ),
        (
            MINIMAL + "methods: [{name: coop, settings: {seed: 3}}]\n",
            "seeds come from the recipe's key 'seeds'",
        ),
        (
            MINIMAL + "methods: [coop, {name: coop, settings: {epochs: 3}}]\n",
            "title 'CoOp'; give each a 'title'",
        ),
        ("backbones: [phantom]\ndata: [phantom-histolgy]\n", "did you mean 'phantom-histology'"),
        (
            "backbones: [phantom]\ndata: [{spek: a}]\n",
            r"Unknown key of data\[0\] 'spek'; did you mean 'spec'",
        ),
        ("backbone: [phantom]\ndata: [phantom-fundus]\n", "'backbone'; did you mean 'backbones'"),
        (
            "backbones: [phantom]\ndata: [phantom-fundus, phantom-fundus]\n",
            "the name 'phantom-fundus'; give each a",
        ),
        (MINIMAL + "protocols: [cross-dataset]\n", "go together"),
        (
            MINIMAL
            + "protocols: [cross-dataset]\ncross_dataset: [{train: phantom-histology, test: histology}]\n",
            "Unknown dataset in cross_dataset 'histology'; did you mean 'phantom-histology'",
        ),
        (MINIMAL + "shots: [1\n", "no valid YAML in line"),
        ("- a\n- b\n", "is no mapping"),
        ("", "is no mapping"),
    ],
)
def test_says_what_is_wrong_and_in_which_file(written, text, said):
    with pytest.raises(UserError, match=said) as caught:
        load_recipe(written(text))
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_sweep_is_a_row_for_every_combination(make_recipe):
    sweep = {"learning_rate": [0.1, 0.2], "epochs": [1, 2]}
    recipe = make_recipe(methods=[{"name": "coop", "settings": {"batch_size": 8}, "sweep": sweep}])
    assert [row.title for row in recipe.methods] == [
        f"CoOp, learning_rate = {rate}, epochs = {epochs}" for rate in (0.1, 0.2) for epochs in (1, 2)
    ]
    assert recipe.methods[2].settings == {"batch_size": 8, "learning_rate": 0.2, "epochs": 1}
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_repository_s_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.backbones == ["phantom"]
    assert {entry.spec for entry in recipe.data} <= set(PHANTOMS)
