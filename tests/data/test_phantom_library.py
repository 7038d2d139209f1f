"""Phantoms as folders of images and as contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmfcoop.data import load_dataset
from vmfcoop.data.phantoms.core import SIZE
from vmfcoop.data.phantoms.library import PHANTOMS, contact_sheet, materialise
from vmfcoop.errors import UserError

KEY = "phantom-fundus"


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_seven_datasets_under_their_keys() -> None:
    assert len(PHANTOMS) == 7
    for key, dataset in PHANTOMS.items():
        assert key == dataset.key
        assert key.startswith("phantom-")
        assert len(set(dataset.class_names)) == len(dataset.class_names) == len(dataset.findings)


@pytest.mark.parametrize("key", PHANTOMS)
def test_class_names_survive_the_folders(key: str, tmp_path: Path) -> None:
    dataset = load_dataset(materialise(key, tmp_path, per_class=2), val_fraction=0, test_fraction=0)
    assert dataset.class_names == tuple(sorted(PHANTOMS[key].class_names))


def test_round_trip(tmp_path: Path) -> None:
    phantoms, images = PHANTOMS[KEY], materialise(KEY, tmp_path, per_class=8)
    dataset = load_dataset(images)
    assert len(dataset) == 8 * len(phantoms.class_names)
    assert dataset.leaking_groups() == ()
    assert dataset.groups is not None
    assert len(set(dataset.groups)) == len(dataset) / 2
    for row, path in enumerate(dataset.paths):
        label = phantoms.class_names.index(dataset.class_names[dataset.labels[row]])
        phantom = phantoms.phantom(label, int(path.stem))
        np.testing.assert_array_equal(np.asarray(Image.open(path)), phantom.image)
        assert dataset.groups[row] == phantoms.patient(label, int(path.stem))


def test_masks_lie_beside_the_images_of_findings(tmp_path: Path) -> None:
    phantoms, images = PHANTOMS[KEY], materialise(KEY, tmp_path, per_class=2)
    masks = images.parent / "masks"
    expected = {
        n.replace(" ", "_") for n, f in zip(phantoms.class_names, phantoms.findings, strict=True) if f
    }
    assert {folder.name for folder in masks.iterdir()} == expected
    for path in masks.rglob("*.png"):
        mask = np.asarray(Image.open(path))
        label = phantoms.class_names.index(path.parent.name.replace("_", " "))
        np.testing.assert_array_equal(mask > 0, phantoms.phantom(label, int(path.stem)).mask)
        assert (images / path.relative_to(masks)).is_file()


def test_bytes_are_reproducible(tmp_path: Path) -> None:
    first, second = (materialise(KEY, tmp_path / name, per_class=2).parent for name in ("a", "b"))
    assert _files(first) == _files(second)


def test_second_call_draws_nothing(tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []

    def report(task: str, done: int, total: int) -> None:
        reports.append((task, done, total))

    images = materialise(KEY, tmp_path, per_class=1, progress=report)
    assert reports == [("Drawing fundus phantoms", done, 4) for done in (1, 2, 3, 4)]
    assert materialise(KEY, tmp_path, per_class=1, progress=report) == images
    assert len(reports) == 4


def test_lives_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path))
    images = materialise(KEY, per_class=1)
    assert images.parent.parent == tmp_path / "phantoms"
    assert images.parent.name.startswith(f"{KEY}-")
    assert images.parent.name.endswith("-1")


def test_loser_of_a_race_keeps_what_the_winner_made(tmp_path: Path) -> None:
    def win_meanwhile(task: str, done: int, total: int) -> None:
        if done == total:
            winner = materialise(KEY, tmp_path, per_class=1)
            (winner.parent / "won").touch()

    images = materialise(KEY, tmp_path, per_class=1, progress=win_meanwhile)
    assert (images.parent / "won").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [images.parent.name]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(task: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise(KEY, tmp_path, per_class=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'phantom-fundus'"):
        materialise("phantom-fundos", tmp_path)
    with pytest.raises(UserError, match="at least 1 image"):
        materialise(KEY, tmp_path, per_class=0)
    with pytest.raises(UserError, match="at least 1 column"):
        contact_sheet(KEY, columns=0)


def test_contact_sheet_has_a_row_a_class() -> None:
    sheets = {columns: contact_sheet(KEY, columns=columns) for columns in (1, 3)}
    assert sheets[3].mode == "RGB"
    assert (sheets[3].width - sheets[1].width) // 2 >= SIZE
    assert sheets[3].width - sheets[1].width < 2 * SIZE + 40
    assert 4 * SIZE <= sheets[1].height < 4 * SIZE + 100


def test_contact_sheet_outlines_findings_alone() -> None:
    plain, outlined = (np.asarray(contact_sheet(KEY, columns=2, outlines=o)) for o in (False, True))
    differs = (plain != outlined).any(axis=(1, 2))
    normal_row = slice(0, SIZE)
    assert not differs[normal_row].any()
    assert differs[SIZE + 60 :].any()
