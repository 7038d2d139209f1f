"""The registry as data, where datasets lie, and that they get there whole or not at all."""

import json
import multiprocessing
import re
from importlib import resources

import pytest
from pydantic import ValidationError

from vmfcoop.data import KNOWN_DATASETS, load_dataset
from vmfcoop.data.installed import (
    data_path,
    dataset_home,
    datasets_folder,
    install,
    is_here,
    one_at_a_time,
    read_source,
    staging,
)
from vmfcoop.data.phantoms.library import PHANTOMS
from vmfcoop.data.registry import REGISTRY, find, locate
from vmfcoop.errors import UserError

PAPER = {
    "btmri": (4, 5712),
    "busi": (3, 780),
    "chmnist": (8, 5000),
    "covid": (4, 21165),
    "ctkidney": (4, 12446),
    "dermamnist": (7, 10014),
    "kneexray": (5, 8260),
    "kvasir": (8, 4000),
    "lungcolon": (5, 25000),
    "octmnist": (4, 109309),
    "retina": (4, 4217),
}
APPLIED_FOR = {"cmri", "lmri", "pmri"}
MEDMNIST = [
    "path",
    "chest",
    "derma",
    "oct",
    "pneumonia",
    "retina",
    "breast",
    "blood",
    "tissue",
    "organa",
    "organc",
    "organs",
]
RECORD = {"data": "split.json"}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))


def fill(folder, text="{}"):
    (folder / "split.json").write_text(text)
    return folder


def put(key, text="{}", replace=False):
    with staging(key) as folder:
        return install(key, fill(folder, text), RECORD, replace)


def test_the_papers_datasets_have_their_classes_and_sizes():
    for key, (classes, images) in PAPER.items():
        info = REGISTRY[key]
        assert len(info.class_names) == classes
        assert info.splits.train + info.splits.val + info.splits.test == images
    assert {key for key, info in REGISTRY.items() if info.collection == "paper"} == PAPER.keys() | APPLIED_FOR


def test_label_order_is_that_of_the_split_files():
    assert REGISTRY["btmri"].class_names == (
        "glioma tumor",
        "meningioma tumor",
        "pituitary tumor",
        "normal brain",
    )
    assert REGISTRY["retina"].class_names[0] == "diabetic retinopathy"


def test_every_medmnist_set_has_four_sizes_with_a_checksum_each():
    for name in MEDMNIST:
        key = f"medmnist-{name}"
        variants = [REGISTRY[key], *(REGISTRY[f"{key}@{size}"] for size in (128, 64, 28))]
        assert [info.size for info in variants] == [224, 128, 64, 28]
        assert [info.variant_of for info in variants] == [None, key, key, key]
        assert len({info.archive.md5 for info in variants}) == 4
        for info in variants:
            ending = "" if info.size == 28 else f"_{info.size}"
            assert re.fullmatch(
                rf"https://zenodo.org/records/10519652/files/\w+mnist{ending}.npz\?download=1",
                info.archive.url,
            )
    assert len(REGISTRY) == len(PAPER) + len(APPLIED_FOR) + 4 * len(MEDMNIST)
    assert len({info.archive.md5 for info in REGISTRY.values() if info.size}) == 4 * len(MEDMNIST)


def test_every_entry_says_what_a_user_has_to_know():
    for key, info in REGISTRY.items():
        assert info.key == key and info.title and info.modality and info.organ and info.layout
        assert info.licence and info.restrictions.endswith(".") and info.source.startswith("https://")
        assert re.search(r"doi:|arXiv:|https://", info.citation)
        assert len(set(map(str.casefold, info.class_names))) == len(info.class_names) >= 2
        assert bool(info.caveat) == bool(info.faults) and len(info.caveat) <= 40
        assert all(fault.endswith(".") for fault in info.faults)
        assert (info.splits is None) == (key in APPLIED_FOR or key.startswith("medmnist-chest"))
        if info.archive and info.archive.kind == "hub":
            assert info.archive.repo == "TahaKoleilat/BiomedCoOp" and info.archive.file.endswith(".zip")


def test_known_leaks_are_named():
    assert "1,250 originals" in REGISTRY["lungcolon"].faults[0]
    assert "one lesion" in REGISTRY["dermamnist"].faults[0]
    assert "slices of one patient" in REGISTRY["ctkidney"].faults[0]


def test_access_controlled_sets_say_how_to_get_them_and_that_classes_are_proposed():
    for key in APPLIED_FOR:
        info = REGISTRY[key]
        assert info.access == "apply" and info.classes_proposed and info.archive is None
        with pytest.raises(
            UserError, match=f"data import {key} --from FOLDER.*register and apply at https://"
        ):
            locate(key)
    assert REGISTRY["cmri"].class_names[0] == "healthy heart"


def test_infos_cannot_be_changed():
    with pytest.raises(ValidationError):
        REGISTRY["btmri"].title = "other"


def test_keys_of_all_kinds_are_known_to_load_dataset():
    assert KNOWN_DATASETS.keys() >= PHANTOMS.keys() | REGISTRY.keys() | {"medmnist-path@224"}
    with pytest.raises(
        UserError, match=r"btmri is not here; run `vmfcoop data fetch btmri` .licence: CC0 1.0"
    ):
        load_dataset("btmri")
    with pytest.raises(UserError, match="medmnist-path is not here"):
        load_dataset("medmnist-path@224")


def test_find_knows_the_usual_size_and_near_names():
    assert find("medmnist-path@224") is REGISTRY["medmnist-path"]
    for wrong in ("btmri@224", "medmnist-path@99", "medmnist-path@28@224"):
        with pytest.raises(UserError, match="Unknown dataset"):
            find(wrong)


def test_the_file_lies_in_the_package():
    assert resources.files("vmfcoop.data").joinpath("datasets.toml").is_file()


def test_what_is_installed_is_located_and_recorded():
    place = put("btmri")
    assert place == dataset_home("btmri") and is_here("btmri") and not is_here("busi")
    assert locate("btmri") == data_path("btmri") == place / "split.json"
    assert read_source("btmri") == RECORD
    assert [path.name for path in datasets_folder().iterdir()] == ["btmri"]


def test_what_is_not_installed_leaves_nothing():
    with pytest.raises(ZeroDivisionError), staging("btmri") as folder:
        fill(folder)
        raise ZeroDivisionError
    assert not is_here("btmri") and list(datasets_folder().iterdir()) == []


def test_a_second_one_is_refused_unless_it_is_to_replace():
    put("btmri", '{"old": 1}')
    with pytest.raises(UserError, match="btmri is here already, in .*add --replace"):
        put("btmri", '{"new": 1}')
    assert json.loads(locate("btmri").read_text()) == {"old": 1}
    put("btmri", '{"new": 1}', replace=True)
    assert json.loads(locate("btmri").read_text()) == {"new": 1}
    put("busi", replace=True)
    assert sorted(path.name for path in datasets_folder().iterdir()) == ["btmri", "busi"]


def test_a_failed_replacement_puts_the_old_one_back(monkeypatch):
    put("btmri", '{"old": 1}')
    with staging("btmri") as folder:
        fill(folder, '{"new": 1}')
        real = type(folder).rename

        def fail(self, target):
            if self == folder:
                raise OSError(5, "Input/output error")
            return real(self, target)

        monkeypatch.setattr(type(folder), "rename", fail)
        with pytest.raises(OSError):
            install("btmri", folder, RECORD, replace=True)
    assert json.loads(locate("btmri").read_text()) == {"old": 1}
    assert [path.name for path in datasets_folder().iterdir()] == ["btmri"]


def test_a_record_without_data_is_a_mistake():
    with pytest.raises(ValueError, match="names no data"), staging("btmri") as folder:
        install("btmri", folder, {"data": "gone.json"})


def test_a_damaged_record_is_said():
    place = put("btmri")
    (place / "source.json").write_text("[]")
    with pytest.raises(UserError, match="does not name the data; fetch or import btmri again with --replace"):
        locate("btmri")
    (place / "source.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        locate("btmri")
    (place / "source.json").write_text(json.dumps(RECORD))
    (place / "split.json").unlink()
    with pytest.raises(UserError, match="is gone"):
        locate("btmri")


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".hidden", "a\\b"])
def test_only_plain_names_are_keys(key):
    with pytest.raises(UserError, match="is no key of a dataset"):
        dataset_home(key)


def _replace_often(number):
    for turn in range(15):
        put("btmri", json.dumps([number, turn]), replace=True)


def test_processes_that_replace_at_once_leave_one_whole_dataset():
    processes = [
        multiprocessing.get_context("spawn").Process(target=_replace_often, args=(number,))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert json.loads(locate("btmri").read_text())[1] in range(15)
    assert [path.name for path in datasets_folder().iterdir()] == ["btmri"]


def test_what_a_killed_process_left_is_removed_by_the_next():
    put("btmri")
    for name in (".btmri.half1234", ".btmri.old.abcd1234", ".busi.half1234"):
        (datasets_folder() / name).mkdir()
        fill(datasets_folder() / name)
    with one_at_a_time("btmri"):
        names = sorted(path.name for path in datasets_folder().iterdir())
    assert names == [".btmri.lock", ".busi.half1234", "btmri"]


def test_a_dataset_that_was_set_aside_when_the_process_died_comes_back():
    place = put("btmri")
    aside = datasets_folder() / ".btmri.old.abcd1234"
    aside.mkdir()
    place.rename(aside / "0")
    with one_at_a_time("btmri"):
        assert is_here("btmri") and not aside.exists()


@pytest.mark.parametrize("wrong", [{"splits": {"train": "many"}}, {"splits": [1]}, {"left_out": None}])
def test_a_record_with_other_counts_is_refused(wrong):
    (put("btmri") / "source.json").write_text(json.dumps(RECORD | wrong))
    with pytest.raises(UserError, match="no valid counts; fetch or import btmri again with --replace"):
        read_source("btmri")


def test_drawn_datasets_are_neither_fetched_nor_imported():
    with pytest.raises(UserError, match="phantom-fundus is drawn when first used"):
        find("phantom-fundus")
