from __future__ import annotations

import json
import os
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmfcoop.data import KNOWN_DATASETS, Dataset, load_dataset
from vmfcoop.errors import UserError

MakeImages = Callable[..., Path]
CLASS_FILES = [f"{name}/{i:02d}.png" for name in ("glioma_tumor", "normal_brain") for i in range(10)]


def files(data: Dataset) -> list[str]:
    return [path.relative_to(data.root).as_posix() for path in data.paths]


def user_error(spec: object, *says: str, **options: object) -> None:
    """The spec is refused in one sentence that holds the given words."""
    with pytest.raises(UserError) as caught:
        load_dataset(spec, **options)
    for words in says:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def write_split(path: Path, **parts: list[list[object]]) -> Path:
    path.write_text(json.dumps(parts))
    return path


# Class folders


def test_class_folders(make_images: MakeImages) -> None:
    data = load_dataset(make_images(*CLASS_FILES))
    assert data.name == "set"
    assert data.class_names == ("glioma tumor", "normal brain")
    assert files(data) == CLASS_FILES
    assert data.labels.tolist() == [0] * 10 + [1] * 10 and data.labels.dtype == np.int64
    assert data.counts() == {
        "train": {"glioma tumor": 5, "normal brain": 5},
        "val": {"glioma tumor": 2, "normal brain": 2},
        "test": {"glioma tumor": 3, "normal brain": 3},
    }
    assert data.groups is None and len(data) == 20


def test_nested_and_hidden_files(make_images: MakeImages) -> None:
    hidden = ["a/._0.png", "a/.cache/1.png", "__MACOSX/a/2.png", ".git/3.png", "a/__MACOSX/4.png"]
    root = make_images(
        "a/x/y/0.png", "a/1.PNG", "a/2.png", "b/0.png", "b/1.png", "b/2.png", "loose.png", *hidden
    )
    (root / "a" / "Thumbs.db").touch()
    (root / "a" / "notes.txt").touch()
    assert files(load_dataset(root)) == ["a/1.PNG", "a/2.png", "a/x/y/0.png", "b/0.png", "b/1.png", "b/2.png"]


def test_class_folder_may_be_a_link(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images("a/0.png", "a/1.png", "a/2.png")
    make_images("0.png", "1.png", "2.png", under="elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert load_dataset(root).labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_same_seed_same_split(make_images: MakeImages) -> None:
    root = make_images(*CLASS_FILES)
    assert (load_dataset(root, seed=1).split == load_dataset(str(root), seed=1).split).all()
    assert (load_dataset(root, seed=1).split != load_dataset(root, seed=2).split).any()


def test_fingerprint_is_of_content(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images(*CLASS_FILES)
    shutil.copytree(root, tmp_path / "copy")
    original = load_dataset(root)
    assert load_dataset(tmp_path / "copy").fingerprint == original.fingerprint
    assert load_dataset(root, seed=1).fingerprint != original.fingerprint
    assert load_dataset(root, class_names={"normal_brain": "healthy"}).fingerprint != original.fingerprint
    (root / "normal_brain" / "00.png").rename(root / "normal_brain" / "renamed.png")
    assert load_dataset(root).fingerprint != original.fingerprint


def test_subset_and_indices(make_images: MakeImages) -> None:
    data = load_dataset(make_images(*CLASS_FILES))
    test = data.subset("test")
    assert set(test.split) == {"test"} and len(test) == 6
    assert test.paths == tuple(data.paths[row] for row in data.indices("test"))
    with pytest.raises(UserError, match="Unknown split 'tset'; did you mean 'test'"):
        data.subset("tset")


def test_arrays_are_read_only(make_images: MakeImages) -> None:
    data = load_dataset(make_images(*CLASS_FILES))
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 1


@pytest.mark.parametrize(
    ("labels", "split"), [([0], ["train", "test"]), ([0, 2], ["train", "test"]), ([0, 1], ["train", "dev"])]
)
def test_inconsistent_table(labels: list[int], split: list[str]) -> None:
    with pytest.raises(ValueError):
        Dataset("x", ("a", "b"), (Path("0"), Path("1")), np.array(labels), np.array(split))


def test_class_names_are_given(make_images: MakeImages) -> None:
    root = make_images(*CLASS_FILES)
    assert load_dataset(root, class_names={"normal_brain": "healthy"}).class_names == (
        "glioma tumor",
        "healthy",
    )
    user_error(root, "normal_brian", "did you mean 'normal_brain'", class_names={"normal_brian": "healthy"})


def test_class_folder_errors(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images("a/0.png")
    user_error(root, str(root), "single class 'a'")
    (root / "b").mkdir()
    user_error(root, str(root / "b"), "no images")
    (root / "b" / "notes.txt").touch()
    user_error(root, str(root / "b"), "no images")
    (tmp_path / "empty").mkdir()
    user_error(tmp_path / "empty", str(tmp_path / "empty"), "no class folders")
    root = make_images("a/0.png", "b/0.png", under="few")
    user_error(root, str(root), "Class 'a' has 1 image,")
    user_error(make_images("_/0.png", "b/0.png", under="nameless"), "class '_' without a name")


def test_class_names_that_differ_in_spelling_alone(make_images: MakeImages) -> None:
    root = make_images("a_b/0.png", "a b/0.png")
    user_error(root, str(root), "'a b'", "'a_b'", "rename one")
    root = make_images("Tumor/0.png", "tumor_/0.png", under="case")
    user_error(root, str(root), "'Tumor'")


# Groups


def write_groups(root: Path, rows: list[str], header: str = "class,file,group") -> Path:
    path = root / "groups.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_groups_stay_on_one_side(make_images: MakeImages) -> None:
    root = make_images(*CLASS_FILES)
    write_groups(root, [f"{file.replace('/', ',')},{i // 2}" for i, file in enumerate(CLASS_FILES)])
    data = load_dataset(root)
    assert data.groups is not None and data.leaking_groups() == ()
    assert data.groups.tolist() == [str(i // 2) for i in range(20)]
    ungrouped = Dataset(data.name, data.class_names, data.paths, data.labels, data.split)
    assert ungrouped.leaking_groups() == ()


def test_groups_from_another_place(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images(*CLASS_FILES)
    path = write_groups(tmp_path, [f"{file},{i // 2}" for i, file in enumerate(CLASS_FILES)], "path,group")
    assert load_dataset(root, groups=path).leaking_groups() == ()


def test_groups_errors(make_images: MakeImages) -> None:
    root = make_images(*CLASS_FILES)
    rows = [f"{file.replace('/', ',')},{i}" for i, file in enumerate(CLASS_FILES)]
    path = str(write_groups(root, rows[:-2]))
    user_error(root, path, "lacks 2 images", "normal_brain/08.png", "add")
    write_groups(root, [*rows, "normal_brain,zz.png,4"])
    user_error(root, path, "lists 1 images not in the dataset", "normal_brain/zz.png", "remove")
    write_groups(root, [*rows, "normal_brain,09.png,4"])
    user_error(root, path, "second group on line 22")
    write_groups(root, rows, "class,name,group")
    user_error(root, path, "class,name,group", "class,file,group or path,group")
    write_groups(root, ["normal_brain,09.png,"])
    user_error(root, path, "no group on line 2")
    user_error(root, "nowhere.csv", groups=Path("nowhere.csv"))


# Folders train, val, test


SPLIT_FOLDERS = [
    f"{split}/{name}/{i}.png" for split in ("Training", "valid", "Testing") for name in "ab" for i in "01"
]


def test_split_folders(make_images: MakeImages) -> None:
    data = load_dataset(make_images(*SPLIT_FOLDERS, "masks/a/0.png"))
    assert data.class_names == ("a", "b")
    assert len(data) == 12
    assert data.counts() == {split: {"a": 2, "b": 2} for split in ("train", "val", "test")}


def test_val_is_carved_out_of_train(make_images: MakeImages) -> None:
    names = [f"train/{name}/{i}.png" for name in "ab" for i in range(10)]
    root = make_images(*names, "test/a/0.png", "test/b/0.png")
    assert load_dataset(root).counts() == {
        "train": {"a": 8, "b": 8},
        "val": {"a": 2, "b": 2},
        "test": {"a": 1, "b": 1},
    }
    assert load_dataset(root, val_fraction=0).counts()["val"] == {"a": 0, "b": 0}


def test_split_folder_errors(make_images: MakeImages) -> None:
    root = make_images("train/a/0.png", "train/b/0.png", "val/a/0.png")
    user_error(root, str(root), "no image to test")
    root = make_images("test/a/0.png", "val/a/0.png", "val/b/0.png", under="no train")
    user_error(root, str(root), "no image to train")
    root = make_images("train/a/0.png", "test/a/0.png", "test/b/0.png", under="untrained")
    user_error(root, str(root), "no training image of class 'b'")
    root = make_images("train/a/0.png", "val/a/0.png", "valid/a/0.png", under="double")
    user_error(root, str(root), "more than one val folder", "valid")


# split_*.json


def split_rows() -> dict[str, list[list[object]]]:
    names = ["tumor", "cyst"]  # not sorted: labels give the order
    return {
        split: [[f"{names[label]}/{split}{i}.png", label, names[label]] for label in (0, 1) for i in range(n)]
        for split, n in (("train", 3), ("val", 1), ("test", 2))
    }


@pytest.fixture
def split_folder(make_images: MakeImages) -> Path:
    rows = split_rows()
    root = make_images(*(str(row[0]) for part in rows.values() for row in part))
    write_split(root / "split_set.json", **rows)
    return root


def test_split_file(split_folder: Path) -> None:
    data = load_dataset(split_folder)
    assert data.class_names == ("tumor", "cyst")
    assert data.counts() == {
        "train": {"tumor": 3, "cyst": 3},
        "val": {"tumor": 1, "cyst": 1},
        "test": {"tumor": 2, "cyst": 2},
    }
    assert files(data) == sorted(files(data))
    by_file = load_dataset(split_folder / "split_set.json")
    assert by_file.fingerprint == data.fingerprint and by_file.name == "split_set"


def test_split_file_with_images_in_a_subfolder(make_images: MakeImages) -> None:
    rows = split_rows()
    images = make_images(*(str(row[0]) for part in rows.values() for row in part), under="outer/SET")
    (images.parent / "other").mkdir()
    write_split(images.parent / "split_SET.json", **rows)
    data = load_dataset(images.parent)
    assert data.root == images and all(path.is_file() for path in data.paths)


def test_split_file_errors(split_folder: Path) -> None:
    path = split_folder / "split_set.json"
    rows = split_rows()
    (split_folder / "tumor" / "train1.png").unlink()
    (split_folder / "tumor" / "train2.png").unlink()
    user_error(split_folder, str(path), "2 of 12 files", "tumor/train1.png")
    write_split(path, **{**rows, "val": [["tumor/val0.png", 0, "cyst"]]})
    user_error(split_folder, str(path), "label 0 'tumor' and 'cyst'")
    write_split(path, train=[["a.png", 0, "x"]], test=[["b.png", 2, "y"]])
    user_error(split_folder, str(path), "labels [0, 2]")
    write_split(path, train=[["a.png", 0, "x"]], test=[["a.png", 1, "X"]])
    user_error(split_folder, str(path), "missing")
    write_split(path, train=[["a.png", "0", "x"]], test=[])
    user_error(split_folder, str(path), '["a.png", "0", "x"]', "in train")
    write_split(path, train="all", test=[])
    user_error(split_folder, str(path), '"all"')
    write_split(path, train=[], test=[])
    user_error(split_folder, str(path), "labels []")
    write_split(path, train=[])
    user_error(split_folder, str(path), "no split file")
    path.write_text("{")
    user_error(split_folder, str(path), "not valid JSON")
    write_split(split_folder / "split_other.json", **rows)
    user_error(split_folder, "split_other.json, split_set.json")


def test_split_file_with_one_name_for_two_labels(make_images: MakeImages) -> None:
    root = make_images("0.png", "1.png")
    rows: list[list[object]] = [["0.png", 0, "x"], ["1.png", 1, "x"]]
    write_split(root / "split_x.json", train=rows, test=rows)
    user_error(root, "split_x.json", "both named 'x'")


# CSV


def write_csv(root: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = root / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.fixture
def images(make_images: MakeImages) -> Path:
    return make_images(*(f"{i}.png" for i in range(12)))


def test_csv_with_names(images: Path) -> None:
    rows = [f"{i}.png,{'normal_scan' if i % 2 else 'Cyst'}" for i in range(12)]
    data = load_dataset(write_csv(images, "Path, Label", *rows, "", encoding="utf-8-sig"))
    assert data.name == "table"
    assert data.class_names == ("Cyst", "normal scan")
    assert len(data) == 12 and data.groups is None
    assert data.counts()["train"] == {"Cyst": 3, "normal scan": 3}


def test_csv_with_numbers_and_semicolons(images: Path) -> None:
    rows = [f"{i}.png;{10 if i % 2 else 9}" for i in range(12)]
    data = load_dataset(write_csv(images, "path;label", *rows), class_names={"10": "ten"})
    assert data.class_names == ("9", "ten")


def test_csv_with_groups(images: Path) -> None:
    rows = [f"{i}.png,{i % 2},patient {i // 4}" for i in range(12)]
    data = load_dataset(write_csv(images, "path,label,group", *rows))
    assert data.groups is not None and set(data.groups) == {"patient 0", "patient 1", "patient 2"}
    assert data.leaking_groups() == ()


def test_csv_with_splits_that_tear_a_group(images: Path) -> None:
    splits = ["train", "train", "test", "test", "validation", "val"]
    rows = [f"{i}.png,{i % 2},{i // 2},{splits[i % 6]}" for i in range(12)]
    path = write_csv(images, "path,label,group,split", *rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(path).counts() == {split: {"0": 2, "1": 2} for split in ("train", "val", "test")}
    path.write_text(path.read_text().replace("3.png,1,1", "3.png,1,0"))
    with pytest.warns(UserWarning, match=r"table\.csv puts 1 groups in more than one split"):
        assert load_dataset(path).leaking_groups() == ("0",)


def test_csv_in_another_folder_than_its_images(images: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    rows = [f"../set/{i}.png,{i % 2}" for i in range(11)] + [f"{images / '11.png'},1"]
    data = load_dataset(write_csv(tmp_path / "lists", "path,label", *rows))
    assert all(path.is_file() for path in data.paths)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "is empty"),
        (["path,label"], "no rows"),
        (["path,class", "0.png,a"], "path,label"),
        (["path,label", "0.png,a", "1.png,"], "no label on line 3"),
        (["path,label", "0.png,a", "1.png"], "no label on line 3"),
        (["path,label", "0.png,a", "1.png,b", "0.png,b"], "0.png on lines 2 and 4"),
        (
            ["path,label", "0.png,a", "x.png,b", "y.png,b"],
            "2 of 3 files that are missing, the first being x.png",
        ),
        (["path,label,split", "0.png,a,holdout"], "split 'holdout' on line 2"),
        (["path,label", "0.png,a", "1.png,a"], "single class 'a'"),
        (["path,label", '0.png,"a'], "cannot be read as a CSV"),
        (["path,label,split", "0.png,a,train", "1.png,b,val"], "no image to test"),
    ],
)
def test_csv_errors(images: Path, lines: list[str], says: str) -> None:
    path = images / "table.csv"
    path.write_text("\n".join(lines))
    user_error(path, str(path), says)


def test_csv_of_another_encoding(images: Path) -> None:
    path = write_csv(images, "path,label", "0.png,Läsion", encoding="latin-1")
    user_error(path, str(path), "UTF-8")


# Specs


def test_unknown_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_error(
        "no-such-set", "'no-such-set'", "no existing path", "split_*.json", "path,label[,group][,split]"
    )
    (tmp_path / "set.zip").touch()
    user_error(tmp_path / "set.zip", "set.zip", "unpack")
    monkeypatch.setitem(KNOWN_DATASETS, "btmri", lambda: tmp_path)
    user_error("btmr", "Unknown dataset 'btmr'; did you mean 'btmri'")
    user_error("zzz", "vmfcoop data list", "class folders")


def test_registry_key(make_images: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images(*CLASS_FILES)
    monkeypatch.setitem(KNOWN_DATASETS, "made-up", lambda: root)
    data = load_dataset("made-up")
    assert data.name == "made-up" and data.fingerprint == load_dataset(root).fingerprint


@pytest.mark.parametrize(
    ("name", "n", "n_classes"), [("BTMRI", 1439, 4), ("BUSI", 666, 3), ("DermaMNIST", 1609, 7)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_shared_data(shared_data: Path, name: str, n: int, n_classes: int, seed: int) -> None:
    data = load_dataset(shared_data / name, seed=seed)
    assert len(data) == n and len(data.class_names) == n_classes
    assert data.groups is not None and data.leaking_groups() == ()
    for label in range(n_classes):
        shares = [(data.split[data.labels == label] == split).mean() for split in ("train", "val", "test")]
        assert np.abs(np.array(shares) - [0.5, 0.2, 0.3]).max() < 0.03


def test_known_faults_of_a_fetched_dataset_are_told(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(*CLASS_FILES, under="home/datasets/lungcolon/images")
    monkeypatch.setitem(KNOWN_DATASETS, "lungcolon", lambda: root)
    monkeypatch.setenv("VMFCOOP_HOME", str(root.parents[2]))
    with pytest.warns(UserWarning, match="augmented copies across splits: see `vmfcoop data show lungcolon`"):
        load_dataset("lungcolon")


def test_slices_of_one_file_stay_together(tmp_path: Path) -> None:
    rows = [f"{label}{file}.nii#slice={n},{label}" for label in "ab" for file in range(9) for n in range(3)]
    for label in "ab":
        for file in range(9):
            (tmp_path / f"{label}{file}.nii").touch()
    (tmp_path / "set.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    data = load_dataset(tmp_path / "set.csv")
    assert len(data) == 54 and data.leaking_groups() == ()
    assert data.groups is not None and len(set(data.groups)) == 18


def test_window_is_added_to_dicom_and_nifti_alone(tmp_path: Path, make_images: MakeImages) -> None:
    root = make_images(*CLASS_FILES)
    for label in ("glioma_tumor", "normal_brain"):
        (root / label / "scan.nii.gz").touch()
        (root / label / "slice.dcm").touch()
    data = load_dataset(root, window="lung")
    shown = {path.name for path in data.paths if "#" in path.name}
    assert shown == {"scan.nii.gz#window=lung", "slice.dcm#window=lung"}
    assert data.fingerprint != load_dataset(root).fingerprint


# Names and links


def test_links_to_folders_elsewhere_are_followed_and_circles_are_not(
    make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images(*(f"{name}/{i}.png" for name in "ab" for i in range(3)))
    archive = make_images("p/0.png", "p/deep/1.png", under="archive")
    (root / "a" / "patient").symlink_to(archive / "p")
    (root / "a" / "again").symlink_to(archive / "p")
    (root / "a" / "circle").symlink_to(root)
    (archive / "p" / "back").symlink_to(root)
    (archive / "p" / "deep" / "up").symlink_to(archive / "p")
    found = [file for file in files(load_dataset(root)) if file.startswith("a/")]
    assert found == ["a/0.png", "a/1.png", "a/2.png", "a/again/0.png", "a/again/deep/1.png"]


def test_accents_may_be_composed_or_not(make_images: MakeImages) -> None:
    composed, apart = (unicodedata.normalize(form, "n\u00e4vus") for form in ("NFC", "NFD"))
    root = make_images(*(f"{name}/{i}.png" for name in (apart, "other") for i in range(4)))
    (root / "groups.csv").write_text(
        "class,file,group\n"
        + "".join(f"{name},{i}.png,{i}\n" for name in (composed, "other") for i in range(4)),
        encoding="utf-8",
    )
    data = load_dataset(root)
    assert composed in data.class_names and data.groups is not None
    (root / "groups.csv").unlink()
    (root / "other").rename(root / composed)
    user_error(root, "both named")


@pytest.mark.parametrize("spec", ["x" * 5000, "~nobody-of-this-name/x", "x\0y"])
def test_specs_that_no_disk_could_hold_are_unknown(spec: str) -> None:
    user_error(spec, "nknown dataset")


def test_split_files_with_other_paths(split_folder: Path) -> None:
    rows = split_rows()
    listed = [row for part in rows.values() for row in part]
    for row in listed:
        row[0] = f"./{row[0]}"
    write_split(split_folder / "split_set.json", **rows)
    groups = "".join(f"{str(row[0])[2:]},{n}\n" for n, row in enumerate(listed))
    (split_folder / "groups.csv").write_text("path,group\n" + groups)
    assert len(load_dataset(split_folder)) == len(listed)
    for row in listed:
        row[0] = str(row[0]).replace("/", "\\")
    write_split(split_folder / "split_set.json", **rows)
    user_error(split_folder, "12 of 12 files that are missing", "write / for \\ in the paths")
    listed[0][0] = "x" * 5000
    write_split(split_folder / "split_set.json", **rows)
    user_error(split_folder, "files that are missing")


def test_split_file_with_selections_in_a_subfolder(make_images: MakeImages) -> None:
    rows = split_rows()
    images = make_images(*(str(row[0]) for part in rows.values() for row in part), under="outer/SET")
    for part in rows.values():
        for row in part:
            row[0] = f"{row[0]}#frame=0"
    write_split(images.parent / "split_SET.json", **rows)
    assert load_dataset(images.parent).root == images


def test_folders_that_may_not_be_read(make_images: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images(*CLASS_FILES)

    def refuse(path: object = ".") -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for owner, name in ((os, "scandir"), (Path, "iterdir")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            user_error(root, str(root), "cannot be read (Permission denied); check its permissions")


def test_fractions_that_are_no_numbers(make_images: MakeImages) -> None:
    user_error(make_images(*CLASS_FILES), "no partition", test_fraction=float("nan"))


def test_a_table_of_whole_paths_is_the_same_however_it_is_named(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(*CLASS_FILES).resolve()
    rows = [f"{root / name},{Path(name).parent}" for name in CLASS_FILES]
    (root / "table.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    found = []
    named = ((root.parent, root / "table.csv"), (root.parent, "set/table.csv"), (root, "table.csv"))
    for folder, spec in named:
        monkeypatch.chdir(folder)
        data = load_dataset(spec)
        found.append((data.fingerprint, data.file(0)))
    assert found == [(found[0][0], CLASS_FILES[0])] * 3
