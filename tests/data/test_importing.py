"""What ``data import`` takes, refuses and writes: the source untouched, the place never half-filled."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vmfcoop.data.downloads as downloads
import vmfcoop.data.importing as importing
from tests.data.test_twins import texture
from tests.data.test_verify import run, save
from vmfcoop.data import load_dataset, read_image
from vmfcoop.data.importing import Imported, ImportRequest, hashed, import_dataset
from vmfcoop.data.installed import one_at_a_time, read_source
from vmfcoop.data.registry import REGISTRY
from vmfcoop.data.verify import verify
from vmfcoop.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*has a known fault")
BUSI = REGISTRY["busi"].class_names


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Class folders with ten different images each."""

    def write(*folders: str, per_class: int = 10, name: str = "source") -> Path:
        for label, folder in enumerate(folders):
            for number in range(per_class):
                save(tmp_path / name / folder / f"{number:02d}.png", texture(100 * label + number, (40, 40)))
        return tmp_path / name

    return write


def bring(key: str, source: Path, **options: Any) -> Imported:
    return import_dataset(ImportRequest(key, source, **options))


def refused(key: str, source: Path, *says: str, **options: Any) -> None:
    """The import is refused in one sentence with the given words, and nothing is put in place."""
    with pytest.raises(UserError) as caught:
        bring(key, source, **options)
    for words in says:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((importing.datasets_folder()).glob("*")) or options.get("replace")


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Classes


def test_class_folders_in_registry_order(make: Callable[..., Path], home: Path) -> None:
    source = make("Normal-Scan", "malignant_tumor", "BENIGN tumor")
    before = contents(source)
    imported = bring("busi", source)
    assert contents(source) == before
    assert imported.class_names == BUSI and imported.images == 30
    assert imported.splits == {"train": 15, "val": 6, "test": 9} and imported.split_origin == "made"
    data = load_dataset("busi")
    assert data.class_names == BUSI
    for path, label in zip(data.paths, data.labels, strict=True):
        assert path.is_relative_to(home) and not path.is_symlink()
        assert path.parent.name == {0: "BENIGN tumor", 1: "malignant_tumor", 2: "Normal-Scan"}[int(label)]
        assert path.read_bytes() == (source / path.parent.name / path.name).read_bytes()
    assert verify("busi").splits == "made" and verify("busi").mismatches == ()


def test_other_names_are_given(make: Callable[..., Path]) -> None:
    source = make("benign", "malignant", "normal")
    names = dict(zip(("benign", "malignant", "normal"), BUSI, strict=True))
    assert bring("busi", source, class_names=names).class_names == BUSI


def test_unknown_and_missing_classes_are_one_sentence(make: Callable[..., Path]) -> None:
    source = make("benign_tumor", "malignant_tumor", "healthy_scan")
    refused(
        "busi",
        source,
        "lacks 'normal scan'",
        "unknown 'healthy_scan'",
        "--class-name 'healthy_scan=normal scan'",
    )


def test_a_missing_class(make: Callable[..., Path]) -> None:
    refused("busi", make("benign_tumor", "malignant_tumor"), "lacks 'normal scan'", "add their images")


def test_a_folder_too_many(make: Callable[..., Path]) -> None:
    source = make("benign_tumor", "malignant_tumor", "normal_scan", "masks")
    refused("busi", source, "unknown 'masks'", "move the others out")


def test_two_folders_of_one_class(make: Callable[..., Path]) -> None:
    source = make("benign_tumor", "Benign Tumor", "malignant_tumor", "normal_scan")
    refused("busi", source, "'Benign Tumor' and 'benign_tumor'", "merge them")


def test_names_for_folders_that_are_not_there(make: Callable[..., Path]) -> None:
    source = make("benign_tumor", "malignant_tumor", "normal_scan")
    refused("busi", source, "'ok'", "does not have", class_names={"ok": "normal scan"})


def test_unknown_keys_and_sources(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown dataset 'bussi'; did you mean 'busi'"):
        bring("bussi", make("benign_tumor"))
    refused("busi", tmp_path / "nowhere", "does not exist")


# Splits and groups


def official(root: Path, names: tuple[str, ...]) -> dict[str, list[list[object]]]:
    """A split file in the published form, with the labels in another order than the registry's."""
    parts: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(names):
        files = sorted((root / name.replace(" ", "_")).glob("*.png"))
        for number, file in enumerate(files):
            split = "train" if number < 6 else "val" if number < 8 else "test"
            parts[split].append([file.relative_to(root).as_posix(), label, name])
    return parts


@pytest.mark.parametrize("nested", [False, True])
def test_official_layout_is_kept_as_it_is(make: Callable[..., Path], tmp_path: Path, nested: bool) -> None:
    source = make("normal_scan", "benign_tumor", "malignant_tumor", name="BUSI")
    parts = official(source, tuple(reversed(BUSI)))
    (source / "split_BUSI.json").write_text(json.dumps(parts))
    imported = bring("busi", tmp_path if nested else source)
    assert imported.split_origin == "given" and imported.class_names == BUSI
    data = load_dataset("busi")
    found = {
        (path.relative_to(data.root).as_posix(), data.class_names[label], split)
        for path, label, split in zip(data.paths, data.labels, data.split, strict=True)
    }
    assert found == {(file, name, split) for split, rows in parts.items() for file, _, name in rows}


def test_a_given_split_can_be_left_aside(make: Callable[..., Path]) -> None:
    source = make("normal_scan", "benign_tumor", "malignant_tumor")
    (source / "split_BUSI.json").write_text(json.dumps(official(source, BUSI)))
    imported = bring("busi", source, resplit=True, test_fraction=0.4, val_fraction=0.1)
    assert imported.splits == {"train": 15, "val": 3, "test": 12} and imported.split_origin == "made"


def test_train_and_test_folders(make: Callable[..., Path], tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        source = make(*(f"{split}/{name}" for name in BUSI), per_class=3 + number)
    assert bring("busi", source).splits == {"train": 9, "val": 12, "test": 15}


def test_the_split_is_written_once_and_for_all(make: Callable[..., Path], home: Path) -> None:
    source = make(*BUSI)
    bring("busi", source, seed=3)
    first = load_dataset("busi", seed=0)
    assert (load_dataset("busi", seed=5, test_fraction=0.5).split == first.split).all()
    written = json.loads((home / "datasets/busi/images/split_busi.json").read_text())
    assert sorted(written) == ["test", "train", "val"]
    assert written["test"][0][1:] == [0, "benign tumor"]
    bring("busi", source, seed=4, replace=True)
    assert (load_dataset("busi").split != first.split).any()
    assert read_source("busi")["split_seed"] == 4


def test_groups_stay_on_one_side_and_are_written(make: Callable[..., Path], home: Path) -> None:
    source = make(*BUSI)
    images = [path.relative_to(source) for path in sorted(source.rglob("*.png"))]
    lines = [f"{path.parent},{path.name},patient {int(path.stem) // 2}-{path.parent}" for path in images]
    (source / "groups.csv").write_text("\n".join(["class,file,group", *lines]))
    imported = bring("busi", source)
    data = load_dataset("busi")
    assert imported.groups == 15 and data.groups is not None and data.leaking_groups() == ()
    assert "patient 0-benign tumor" in data.groups
    assert "by group" in imported.remarks[0]


def test_groups_of_a_file_given(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make(*BUSI)
    images = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.png"))]
    lines = [f"{image},{number // 2}" for number, image in enumerate(images)]
    (tmp_path / "groups.csv").write_text("\n".join(["path,group", *lines]))
    assert bring("busi", source, groups=tmp_path / "groups.csv").groups == 15
    assert load_dataset("busi").leaking_groups() == ()


def test_hashed_groups(make: Callable[..., Path], home: Path) -> None:
    source = make(*BUSI)
    images = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.png"))]
    (source / "groups.csv").write_text(
        "\n".join(["path,group", *(f"{image},Jane Doe {n // 2}" for n, image in enumerate(images))])
    )
    imported = bring("busi", source, hash_groups=True)
    written = (home / "datasets/busi/images/groups.csv").read_text()
    assert "Jane" not in written and hashed("Jane Doe 0") in written
    assert hashed("Jane Doe 0") == hashlib.sha256(b"Jane Doe 0").hexdigest()[:12]
    assert any("no anonymisation" in remark for remark in imported.remarks)
    assert imported.groups == 15 and load_dataset("busi").leaking_groups() == ()


def test_classes_too_small_for_a_split(make: Callable[..., Path]) -> None:
    refused("busi", make(*BUSI, per_class=2), "has 2 images, too few")


# CSV


def table(root: Path, header: str, lines: list[str]) -> Path:
    (root / "table.csv").write_text("\n".join([header, *lines]))
    return root / "table.csv"


def test_a_csv_with_all_columns(make: Callable[..., Path], tmp_path: Path) -> None:
    source = make(*BUSI)
    lines = [
        f"{name}/{number:02d}.png,{label},{name}-{number},{'train' if number < 7 else 'test'}"
        for label, name in enumerate(BUSI)
        for number in range(10)
    ]
    path = table(source, "path,label,group,split", lines)
    names = {str(label): name for label, name in enumerate(BUSI)}
    imported = bring("busi", path, class_names=names, val_fraction=0)
    assert imported.splits == {"train": 21, "val": 0, "test": 9} and imported.groups == 30
    assert load_dataset("busi").class_names == BUSI


def test_files_from_anywhere_get_a_place_of_their_own(make: Callable[..., Path], tmp_path: Path) -> None:
    """Absolute paths, and files of one name in two folders."""
    one, other = make(*BUSI, per_class=4, name="one"), make(*BUSI, per_class=4, name="other")
    for image in other.rglob("*.png"):
        save(image, texture(5000 + int(image.stem), (40, 40)))
    (tmp_path / "table").mkdir()
    lines = [f"{image},{image.parent.name}" for root in (one, other) for image in sorted(root.rglob("*.png"))]
    bring("busi", table(tmp_path / "table", "path,label", lines))
    data = load_dataset("busi")
    assert len(data) == 24
    assert {path.read_bytes() for path in data.paths} == {
        path.read_bytes() for root in (one, other) for path in root.rglob("*.png")
    }


# Unreadable images, room, what is there already


def test_one_unreadable_image_stops_the_import(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    for name in ("benign tumor/03.png", "normal scan/04.png"):
        (source / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    refused("busi", source, "2 of 30 images cannot be read", "benign tumor/03.png", "--skip-unreadable")


def test_unreadable_images_are_left_out_and_listed(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    (source / "benign tumor/03.png").write_bytes(b"broken")
    imported = bring("busi", source, skip_unreadable=True)
    assert list(imported.skipped) == ["benign tumor/03.png"] and imported.images == 29
    assert read_source("busi")["left_out"] == {"unreadable": 1}
    assert len(load_dataset("busi")) == 29


def test_nothing_readable(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    for path in source.rglob("*.png"):
        path.write_bytes(b"broken")
    refused("busi", source, "No image of", skip_unreadable=True)


def test_no_room(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(*BUSI)
    usage = shutil.disk_usage(source)._replace(free=1000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage)
    refused("busi", source, "free some space")


def test_what_is_there_is_replaced_on_request_only(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    bring("busi", source)
    before = load_dataset("busi").fingerprint
    with pytest.raises(UserError, match="--replace"):
        bring("busi", source, seed=1)
    assert load_dataset("busi").fingerprint == before
    bring("busi", source, seed=1, replace=True)
    assert load_dataset("busi").fingerprint != before


def test_a_failed_replacement_leaves_the_old_one(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    source = make(*BUSI)
    bring("busi", source)
    before = contents(home / "datasets")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing.shutil, "copyfile", fail)
    with pytest.raises(UserError, match="is full"):
        bring("busi", source, seed=1, replace=True)
    assert contents(home / "datasets") == before


def test_the_place_itself_can_be_split_anew(make: Callable[..., Path], home: Path, tmp_path: Path) -> None:
    bring("busi", make(*BUSI))
    images = home / "datasets/busi/images"
    names = [path.relative_to(images).as_posix() for path in sorted(images.rglob("*.png"))]
    (tmp_path / "g.csv").write_text(
        "\n".join(["path,group", *(f"{n},{i // 2}" for i, n in enumerate(names))])
    )
    options: dict[str, Any] = {"groups": tmp_path / "g.csv", "resplit": True, "replace": True}
    with pytest.raises(UserError, match="leave out --link"):
        bring("busi", images, link=True, **options)
    assert bring("busi", images, **options).groups == 15
    assert len(load_dataset("busi")) == 30
    assert bring("busi", images.parent, **options).groups == 15
    assert len(load_dataset("busi")) == 30


def test_two_imports_at_once(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            bring("busi", source)
            outcomes.append("imported")
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["imported", "refused", "refused"]
    assert len(load_dataset("busi")) == 30


def test_links(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    imported = bring("busi", source, link=True)
    data = load_dataset("busi")
    assert all(path.is_symlink() for path in data.paths)
    assert {path.resolve() for path in data.paths} == {path.resolve() for path in source.rglob("*.png")}
    assert imported.linked and any("symbolic links" in remark for remark in imported.remarks)
    bring("busi", source, replace=True)
    assert len(list(source.rglob("*.png"))) == 30


def test_a_number_sign_may_be_part_of_a_name(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    odd = {
        f"{BUSI[0]}/00.png": "a#q=1.png",
        f"{BUSI[0]}/01.png": "b#frame=0.png",
        f"{BUSI[1]}/00.png": "c#1.png",
    }
    for file, name in odd.items():
        (source / file).rename((source / file).with_name(name))
    bring("busi", source)
    names = {path.name for path in load_dataset("busi").paths}
    assert set(odd.values()) <= names and len(names) == 13
    assert verify("busi").unreadable == ()


def test_an_import_waits_for_another_and_clears_what_a_killed_one_left(make: Callable[..., Path]) -> None:
    source = make(*BUSI)
    left = importing.datasets_folder() / ".busi.half1234"
    (left / "images").mkdir(parents=True)
    told: list[str] = []
    with one_at_a_time("busi"):
        left.mkdir(exist_ok=True)
        waiting = threading.Thread(
            target=import_dataset,
            args=(ImportRequest("busi", source), lambda task, done, total: told.append(task)),
        )
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive() and not (importing.datasets_folder() / "busi").exists()
    waiting.join(20)
    assert len(load_dataset("busi")) == 30 and not left.exists()
    assert "Waiting for another process that prepares busi" in told


# UK Biobank


def participants(root: Path, classes: tuple[str, ...], per_class: int = 6, suffix: str = ".png") -> Path:
    for label, name in enumerate(classes):
        for number in range(per_class):
            for view in range(2):
                seed = 1000 * label + 10 * number + view
                path = root / name / f"participant{label}{number}" / f"view{view}{suffix}"
                save(path, texture(seed, (40, 40)))
    return root


def test_participant_folders_are_groups(tmp_path: Path) -> None:
    source = participants(tmp_path / "ukb", ("healthy_heart", "dilated_cardiomyopathy"))
    imported = bring("cmri", source)
    data = load_dataset("cmri")
    assert imported.groups == 12 and data.leaking_groups() == ()
    assert imported.class_names == ("dilated cardiomyopathy", "healthy heart")


def test_the_proposed_classes_have_the_registrys_order(tmp_path: Path) -> None:
    names = REGISTRY["lmri"].class_names
    source = participants(tmp_path / "ukb", tuple(name.replace(" ", "-") for name in reversed(names)))
    assert bring("lmri", source).class_names == names


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val", "test")])
def test_participants_below_split_folders(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        participants(tmp_path / "ukb" / part, ("a", "b"))
    refused("cmri", tmp_path / "ukb", "12 participants in more than one split", "--resplit")
    assert bring("cmri", tmp_path / "ukb", resplit=True).groups == 12
    assert load_dataset("cmri").leaking_groups() == ()


def test_images_without_a_participant_are_refused(make: Callable[..., Path]) -> None:
    refused("cmri", make("a", "b"), "which participant", "train and test", "--groups")


def test_one_image_without_a_participant_is_refused(tmp_path: Path) -> None:
    source = participants(tmp_path / "ukb", ("a", "b"))
    save(source / "a/stray.png", texture(9))
    refused("pmri", source, "a/stray.png")


def test_a_csv_needs_the_group_column(tmp_path: Path) -> None:
    source = participants(tmp_path / "ukb", ("a", "b"))
    images = [path.relative_to(source) for path in sorted(source.rglob("*.png"))]
    refused("cmri", table(source, "path,label", [f"{p},{p.parts[0]}" for p in images]), "column group")
    lines = [f"{p},{p.parts[0]},{p.parts[1]}" for p in images]
    assert bring("cmri", table(source, "path,label,group", lines)).groups == 12


def test_dicom_is_taken_as_it_is(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    original = Path(str(get_testdata_file("CT_small.dcm")))
    for name in "ab":
        for number in range(3):
            place = tmp_path / "ukb" / name / f"p{name}{number}" / "slice.dcm"
            place.parent.mkdir(parents=True)
            shutil.copyfile(original, place)
    bring("cmri", tmp_path / "ukb")
    data = load_dataset("cmri")
    assert len(data) == 6 and all(path.read_bytes() == original.read_bytes() for path in data.paths)
    assert read_image(data.paths[0]).size == (128, 128)


def test_slices_of_a_volume(tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(0)
    lines = []
    for label in "ab":
        for number in range(3):
            volume = nibabel.Nifti1Image(rng.normal(size=(16, 16, 6)).astype(np.float32), np.eye(4))
            nibabel.save(volume, tmp_path / f"{label}{number}.nii.gz")
            lines += [f"{label}{number}.nii.gz#axis=2&slice={s},{label},p{label}{number}" for s in (2, 3)]
    imported = bring("cmri", table(tmp_path, "path,label,group", lines))
    data = load_dataset("cmri")
    assert imported.images == 12 and data.leaking_groups() == ()
    assert len({str(path).partition("#")[0] for path in data.paths}) == 6
    assert read_image(data.paths[0]).size == (16, 16)


# The command


def test_the_command(make: Callable[..., Path]) -> None:
    source = make("benign", *BUSI[1:])
    (source / "benign/03.png").write_bytes(b"broken")
    code, out, err = run("import", "busi", "--from", source)
    assert code == 2 and out == "" and "lacks 'benign tumor'" in err
    arguments = ["--from", source, "--class-name", "benign=benign tumor"]
    assert run("import", "busi", *arguments)[0] == 2
    code, out, _ = run("import", "busi", *arguments, "--skip-unreadable")
    assert code == 0 and "busi is here now" in out and "benign/03.png" in out
    code, out, _ = run("import", "busi", *arguments, "--skip-unreadable", "--replace", "--link", "--json")
    content = json.loads(out)
    assert content["images"] == 29 and content["linked"] is True and content["splits"]["test"] == 9


def test_real_folders(shared_data: Path, home: Path) -> None:
    imported = bring("dermamnist", shared_data / "DermaMNIST", link=True)
    assert imported.class_names == REGISTRY["dermamnist"].class_names
    assert imported.images == imported.groups == 1609
    data = load_dataset("dermamnist")
    nevus = data.class_names.index("melanocytic nevus")
    assert {path.parent.name for path in np.array(data.paths)[data.labels == nevus]} == {"melanocytic_nevus"}
    assert isinstance(read_image(data.paths[0]), Image.Image)
