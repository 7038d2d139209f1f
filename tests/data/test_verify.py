"""What ``data verify`` finds, says and writes, on datasets with one fault each."""

from __future__ import annotations

import csv
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import vmfcoop.data.verify as verify_module
from tests.data.test_twins import jpeg, texture
from vmfcoop.cli import FriendlyGroup, data_checks
from vmfcoop.data import load_dataset
from vmfcoop.data.installed import install, staging
from vmfcoop.data.registry import REGISTRY
from vmfcoop.data.twins import THRESHOLD
from vmfcoop.data.verify import verify, write_groups, write_pairs
from vmfcoop.errors import UserError

app = typer.Typer(cls=FriendlyGroup, pretty_exceptions_enable=False)
app.command("verify")(data_checks.verify)
app.command("import")(data_checks.import_dataset)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten images, all different."""
    for seed in range(20):
        save(tmp_path / "set" / ("benign", "malignant")[seed // 10] / f"{seed:02d}.png", texture(seed))
    return tmp_path / "set"


def save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def with_split(root: Path, train: list[str], val: list[str], test: list[str]) -> Path:
    """Write a split file; labels are those of the folders."""
    names = ["benign", "malignant"]
    parts = {
        split: [[file, names.index(file.split("/")[0]), file.split("/")[0]] for file in files]
        for split, files in (("train", train), ("val", val), ("test", test))
    }
    (root / "split_set.json").write_text(json.dumps(parts))
    return root


def files(*numbers: int) -> list[str]:
    return [f"{('benign', 'malignant')[number // 10]}/{number:02d}.png" for number in numbers]


TRAIN, VAL, TEST = files(*range(5), *range(10, 15)), files(5, 6, 15, 16), files(7, 8, 9, 17, 18, 19)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80", "NO_COLOR": "1"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_clean_folder(folder: Path) -> None:
    found = verify(folder)
    assert found.is_clean and found.findings == ()
    assert found.splits == "drawn" and found.leak.images == 6
    assert found.as_json()["leak"]["share_in_train"] == 0
    assert found.advice == "Nothing was found that makes test figures doubtful."
    assert found.as_json()["counts"]["test"] == {"benign": 3, "malignant": 3}


def test_twins_of_test_images_by_split_and_class(folder: Path) -> None:
    """Three of six test images: a copy in train, a JPEG in train under the other class, a JPEG in val."""
    save(folder / "benign/07.png", texture(0))
    (folder / "malignant/11.png").unlink()
    save(folder / "malignant/11.png", jpeg(texture(8), 60))
    save(folder / "malignant/15.png", jpeg(texture(17), 60))
    found = verify(with_split(folder, TRAIN, VAL, TEST))
    assert found.splits == "given"
    leak = found.leak
    assert (leak.images, leak.twin_in_train, leak.twin_in_train_or_val) == (6, 2, 3)
    assert (leak.copied_right, leak.copied_right_or_val) == (1, 2)
    shares = leak.as_json()
    assert shares["share_in_train"] == pytest.approx(2 / 6)
    assert shares["copy_accuracy"] == 0.5 and shares["copy_accuracy_or_val"] == pytest.approx(2 / 3)
    assert found.leak_by_class["benign"].twin_in_train == 2
    assert found.leak_by_class["malignant"].twin_in_train_or_val == 1
    assert not found.is_clean
    assert "Test images with a twin in train: 2 of 6 (33.3%)" in found.findings[0].text
    assert "right for 50.0%" in found.findings[0].text
    (overlap,) = found.overlaps
    assert {overlap.image_a, overlap.image_b} == {"benign/08.png", "malignant/11.png"}
    assert overlap.kind == "near" and overlap.similarity > THRESHOLD
    assert found.duplicates.pairs == 3 and found.duplicates.across_splits == 3


def test_twins_inside_a_split_are_no_leak(folder: Path) -> None:
    save(folder / "benign/01.png", texture(0))
    found = verify(with_split(folder, TRAIN, VAL, TEST))
    assert found.is_clean and found.duplicates.pairs == 1 and found.duplicates.same_pixels == 1
    assert any("Pairs of twins: 1" in finding.text for finding in found.findings)


def test_one_picture_under_two_classes_is_doubtful(folder: Path) -> None:
    (folder / "malignant/10.png").write_bytes((folder / "benign/00.png").read_bytes())
    found = verify(with_split(folder, TRAIN, VAL, TEST))
    assert not found.is_clean and found.overlaps[0].kind == "same bytes"
    assert "--out pairs.csv" in found.advice and found.duplicates.same_bytes == 1


def test_every_unreadable_image_is_named(folder: Path) -> None:
    for name in ("benign/02.png", "malignant/12.png", "malignant/19.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    found = verify(folder)
    assert [remark.image for remark in found.unreadable] == files(2, 12, 19)
    assert all(remark.image in remark.reason for remark in found.unreadable)
    assert not found.is_clean and "Replace the unreadable images" in found.advice
    code, out, _ = run("verify", folder)
    assert code == 1 and all(name in out for name in files(2, 12, 19))


def test_odd_images(folder: Path) -> None:
    save(folder / "benign/00.png", Image.new("L", (160, 120), 9))
    rng = np.random.default_rng(0)
    save(folder / "benign/01.png", Image.fromarray(rng.integers(60, 62, (120, 160), np.uint8)))
    save(folder / "benign/02.png", texture(2, (12, 200)))
    save(folder / "malignant/10.png", texture(10, (1200, 900)))
    reasons = {remark.image: remark.reason for remark in verify(folder).odd}
    assert list(reasons) == files(0, 1, 2, 10)
    for image, reason in zip(
        files(0, 1, 2, 10), ("constant: every pixel is 9", "flat", "tiny", "odd size"), strict=True
    ):
        assert reasons[image].startswith(reason)


def test_a_coloured_image_among_grey_ones(folder: Path) -> None:
    for seed in range(20, 30):
        save(folder / "benign" / f"{seed}.png", texture(seed))
    red = np.asarray(texture(3)).copy()
    red[:30, :30] = (200, 20, 20)
    save(folder / "benign/03.png", Image.fromarray(red))
    (remark,) = verify(folder).odd
    assert remark.image == "benign/03.png" and remark.reason == "coloured among grey images"


def test_small_datasets_are_not_called_tiny_all_over(tmp_path: Path) -> None:
    """MedMNIST at 28 pixels."""
    for seed in range(20):
        save(tmp_path / "set" / "ab"[seed % 2] / f"{seed}.png", texture(seed, (28, 28)))
    assert verify(tmp_path / "set").odd == ()


def test_files_that_the_split_does_not_list(folder: Path) -> None:
    save(folder / "benign/extra.png", texture(50))
    save(folder / "benign/deep/more.png", texture(51))
    (folder / "benign/notes.txt").write_text("no image")
    save(folder / "elsewhere/other.png", texture(52))
    found = verify(with_split(folder, TRAIN, VAL, TEST))
    assert found.unlisted == ("benign/deep/more.png", "benign/extra.png")
    assert found.is_clean and "listed nowhere: 2" in found.findings[-1].text


def test_unlisted_files_beside_a_csv(tmp_path: Path) -> None:
    rows = ["path,label"]
    for seed in range(12):
        save(tmp_path / "images" / f"{seed:02d}.png", texture(seed))
        rows.append(f"images/{seed:02d}.png,{'ab'[seed % 2]}")
    save(tmp_path / "images/99.png", texture(99))
    save(tmp_path / "unrelated/1.png", texture(98))
    (tmp_path / "table.csv").write_text("\n".join(rows))
    assert verify(tmp_path / "table.csv").unlisted == ("images/99.png",)


def test_groups_in_two_splits_are_a_finding_and_no_warning(folder: Path) -> None:
    rows = [f"{file},{'patient 1' if file in files(0, 7) else file}" for file in TRAIN + VAL + TEST]
    (folder / "groups.csv").write_text("\n".join(["path,group", *rows]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = verify(with_split(folder, TRAIN, VAL, TEST))
    assert found.leaking_groups == ("patient 1",) and not found.is_clean
    assert "Groups in more than one split: 1, the first being 'patient 1'." in found.findings[0].text


def test_pairs_are_written(folder: Path, tmp_path: Path) -> None:
    save(folder / "benign/07.png", texture(0))
    save(folder / "malignant/18.png", jpeg(texture(10), 40))
    found = verify(with_split(folder, TRAIN, VAL, TEST))
    assert write_pairs(found, tmp_path / "pairs.csv") == 2
    with (tmp_path / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_a"], row["image_b"], row["kind"]) for row in rows] == [
        ("benign/00.png", "benign/07.png", "same bytes"),
        ("malignant/10.png", "malignant/18.png", "near"),
    ]
    assert (
        rows[1]["split_a"] == "train" and rows[1]["split_b"] == "test" and rows[1]["class_b"] == "malignant"
    )
    assert THRESHOLD < float(rows[1]["similarity"]) < 1


def test_written_groups_join_twins_with_given_groups_and_end_the_leak(folder: Path, tmp_path: Path) -> None:
    for seed in range(10):
        save(folder / "benign" / f"copy{seed}.png", jpeg(texture(seed), 50))
    images = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    given = {"benign/00.png": "p", "benign/01.png": "p"}
    (folder / "groups.csv").write_text(
        "\n".join(["path,group", *(f"{image},{given.get(image, image)}" for image in images)])
    )
    before = verify(folder)
    assert before.leak.twin_in_train > 0 and "--write-groups" in before.advice
    count = write_groups(before, tmp_path / "joined.csv")
    after = verify(folder, groups=tmp_path / "joined.csv")
    assert after.leak.twin_in_train_or_val == 0 and after.is_clean
    loaded = load_dataset(folder, groups=tmp_path / "joined.csv")
    assert loaded.groups is not None
    by_image = {
        path.relative_to(folder).as_posix(): g for path, g in zip(loaded.paths, loaded.groups, strict=True)
    }
    assert len({by_image[f"benign/{name}.png"] for name in ("00", "01", "copy0", "copy1")}) == 1
    assert len(set(by_image.values())) == count == 30 - 10 - 1


def test_flips_are_found_on_request(folder: Path) -> None:
    save(folder / "benign/07.png", texture(0).rotate(90, expand=True))
    with_split(folder, TRAIN, VAL, TEST)
    assert verify(folder).leak.twin_in_train == 0
    assert verify(folder, flips=True).leak.twin_in_train == 1


def test_the_threshold_decides(folder: Path) -> None:
    save(folder / "benign/07.png", texture(0).crop((4, 4, 157, 118)))
    with_split(folder, TRAIN, VAL, TEST)
    assert verify(folder, threshold=0.999).leak.twin_in_train == 0
    assert verify(folder, threshold=0.5).leak.twin_in_train == 1


# The registry


def put_in_place(
    key: str, home: Path, sizes: tuple[int, int, int], names: tuple[str, ...], **record: object
) -> None:
    """Install a dataset of drawn images under a key, with a split file."""
    with staging(key) as staged:
        parts: dict[str, list[list[object]]] = {}
        for split, count in zip(("train", "val", "test"), sizes, strict=True):
            for number in range(count):
                label = number % len(names)
                file = f"{label}/{split}_{number}.png"
                save(staged / "images" / file, texture(hash_of(split, number)))
                parts.setdefault(split, []).append([file, label, names[label]])
        (staged / "images" / f"split_{key}.json").write_text(json.dumps(parts))
        install(key, staged, {"data": f"images/split_{key}.json", **record})


def hash_of(split: str, number: int) -> int:
    return {"train": 0, "val": 1000, "test": 2000}[split] + number


@pytest.fixture
def small_busi(monkeypatch: pytest.MonkeyPatch) -> None:
    """BUSI as if its official parts held 6, 3 and 3 images."""
    entry = REGISTRY["busi"]
    splits = entry.splits.model_copy(update={"train": 6, "val": 3, "test": 3})  # type: ignore[union-attr]
    monkeypatch.setitem(REGISTRY, "busi", entry.model_copy(update={"splits": splits}))


def test_a_registry_key_that_is_as_published(home: Path, small_busi: None) -> None:
    put_in_place("busi", home, (6, 3, 3), REGISTRY["busi"].class_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = verify("busi")
    assert found.is_clean and found.mismatches == () and found.info is not None
    assert found.as_json()["known_faults"] == list(REGISTRY["busi"].faults)
    code, out, _ = run("verify", "busi")
    assert code == 0 and "600 patients" in out


def test_counts_that_differ_from_the_registry(home: Path, small_busi: None) -> None:
    put_in_place("busi", home, (6, 3, 6), REGISTRY["busi"].class_names)
    found = verify("busi")
    assert found.mismatches == ("train/val/test hold 6/3/6 images, the official parts 6/3/3.",)
    assert not found.is_clean and "not the published release" in found.advice
    assert run("verify", "busi")[0] == 1


def test_a_split_made_at_import_has_no_counts_to_keep(home: Path, small_busi: None) -> None:
    put_in_place("busi", home, (9, 3, 6), REGISTRY["busi"].class_names, split_origin="made")
    found = verify("busi")
    assert found.is_clean and found.splits == "made"


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("malignant tumor", "benign tumor", "normal scan"), "order"),
        (("benign tumor", "malignant tumor", "healthy"), "names"),
    ],
)
def test_classes_that_differ_from_the_registry(
    home: Path, small_busi: None, names: tuple[str, ...], word: str
) -> None:
    put_in_place("busi", home, (6, 3, 3), names)
    (mismatch,) = verify("busi").mismatches
    assert mismatch.startswith(f"The {word} of the classes differ")


def test_proposed_classes_bind_nobody(home: Path) -> None:
    put_in_place("cmri", home, (6, 3, 3), ("healthy", "sick"))
    assert verify("cmri").is_clean


def test_leaks_of_a_key_name_the_way_to_mend_them(home: Path, small_busi: None, tmp_path: Path) -> None:
    put_in_place("busi", home, (6, 3, 3), REGISTRY["busi"].class_names)
    place = home / "datasets/busi/images/0"
    (place / "test_0.png").write_bytes((place / "train_0.png").read_bytes())
    found = verify("busi")
    assert "vmfcoop data import busi --from FOLDER --groups groups.csv --resplit" in found.advice


# The command


def test_the_command_reports_writes_and_exits_with_1(folder: Path, tmp_path: Path) -> None:
    save(folder / "benign/07.png", texture(0))
    with_split(folder, TRAIN, VAL, TEST)
    code, out, err = run(
        "verify", folder, "--out", tmp_path / "pairs.csv", "--write-groups", tmp_path / "groups.csv"
    )
    assert code == 1
    assert "Test images with a twin in train: 1 of 6" in out and "What to do:" in out
    assert "pairs.csv (pairs of twins: 1)" in err and "groups.csv (groups: 19)" in err
    assert (tmp_path / "groups.csv").read_text().startswith("path,group\n")
    assert max(map(len, out.splitlines())) <= 80


def test_names_in_square_brackets_are_printed_as_they_are(folder: Path) -> None:
    (folder / "benign").rename(folder / "[red]a")
    _, out, _ = run("verify", folder.rename(folder.with_name("[bold]")))
    assert out.startswith("[bold]: ") and "[red]a" in out


@pytest.mark.parametrize("option", ["--out", "--write-groups"])
def test_a_folder_in_place_of_a_file_is_said_before_the_work(folder: Path, option: str) -> None:
    code, out, err = run("verify", folder, option, folder)
    assert code == 2 and out == "" and "is a folder; name a CSV file to write" in " ".join(err.split())


def test_the_command_as_json(folder: Path) -> None:
    code, out, _ = run("verify", folder, "--json")
    content = json.loads(out)
    assert code == 0 and content["clean"] is True and content["images"] == 20
    assert content["threshold"] == THRESHOLD


def test_user_errors_exit_with_2(tmp_path: Path) -> None:
    code, out, err = run("verify", tmp_path / "nowhere")
    assert code == 2 and out == "" and "Unknown dataset" in err
    assert run("verify", "busi")[0] == 2
    assert "data fetch busi" in run("verify", "busi")[2].replace("\n", " ")


def test_the_command_has_the_librarys_threshold() -> None:
    assert inspect.signature(data_checks.verify).parameters["threshold"].default == THRESHOLD


def test_phantoms_have_no_entry_in_the_registry(home: Path) -> None:
    from vmfcoop.data.phantoms.library import materialise

    drawn = materialise("phantom-brain-mri", per_class=6)
    (home / "phantoms/phantom-brain-mri-2-120").mkdir()
    drawn.rename(home / "phantoms/phantom-brain-mri-2-120/images")
    found = verify("phantom-brain-mri")
    assert found.info is None and found.unreadable == () and found.leaking_groups == ()


def test_a_dataset_that_cannot_be_listed(folder: Path) -> None:
    (folder / "benign/00.png").unlink()
    with pytest.raises(UserError, match="lists 1 of 20 files that are missing"):
        verify(with_split(folder, TRAIN, VAL, TEST))


def test_the_list_of_overlaps_is_capped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "SHOWN_OVERLAPS", 2)
    for seed in range(4):
        save(folder / "malignant" / f"{10 + seed}.png", texture(seed))
    found = verify(folder)
    assert found.n_overlaps == 4 and len(found.overlaps) == 2


def test_real_images(shared_data: Path, tmp_path: Path, write_bare: Callable[[str], Path]) -> None:
    """The figures of docs/verify-import.md: BUSI split by image, then by the clusters found."""
    bare = write_bare("BUSI")
    by_image = verify(bare)
    assert (by_image.leak.twin_in_train, by_image.leak.images) == (40, 200)
    assert by_image.n_overlaps == 7
    write_groups(by_image, tmp_path / "groups.csv")
    assert verify(bare, groups=tmp_path / "groups.csv").leak.twin_in_train_or_val == 0


@pytest.fixture
def write_bare(shared_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A shared dataset without its groups.csv, of links."""

    def write(name: str) -> Path:
        (tmp_path / name).mkdir()
        for path in (shared_data / name).iterdir():
            if path.is_dir():
                (tmp_path / name / path.name).symlink_to(path)
        return tmp_path / name

    return write
