"""MedMNIST's npz files become PNG files that ``load_dataset`` reads, and nothing else becomes anything."""

import hashlib
import io
import re
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from vmfcoop.data import load_dataset
from vmfcoop.data.archives import DamagedArchiveError
from vmfcoop.data.fetch import fetch
from vmfcoop.data.installed import dataset_home, read_source
from vmfcoop.data.medmnist import class_folder, write_images
from vmfcoop.data.registry import REGISTRY
from vmfcoop.errors import UserError

from .archive_server import npz_of, serving

LABELS = {"train": [0, 1, 1], "val": [1], "test": [1, 0]}
NAMES = ("malignant", "normal or benign")


def write(tmp_path, content, names=NAMES, size=28):
    (tmp_path / "set.npz").write_bytes(content)
    folder = tmp_path / "into"
    folder.mkdir(exist_ok=True)
    return folder, write_images(tmp_path / "set.npz", folder, "some-key", names, size)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_pixels_labels_splits_and_indices(tmp_path, channels):
    folder, written = write(tmp_path, npz_of(LABELS, channels=channels))
    data = load_dataset(folder / written.split_file)
    assert data.class_names == NAMES and written.left_out == {"train": 0, "val": 0, "test": 0}
    assert {split: data.subset(split).labels.tolist() for split in LABELS} == {
        "train": [0, 1, 1],
        "val": [1],
        "test": [0, 1],
    }
    for path, label in zip(data.paths, data.labels, strict=True):
        split, index = re.fullmatch(r"(\w+)_(\d{6}).png", path.name).groups()
        pixels = np.asarray(Image.open(path))
        assert pixels.shape[:2] == (28, 28) and pixels.flat[0] == int(index)
        assert LABELS[split][int(index)] == label


def test_images_of_several_findings_are_left_out_and_counted(tmp_path):
    labels = {"train": [[0, 0], [1, 0], [0, 1], [1, 1]], "val": [[1, 1]], "test": [[0, 1], [0, 0]]}
    names = ("no finding", "mass", "nodule")
    folder, written = write(tmp_path, npz_of(labels, channels=1), names)
    data = load_dataset(folder / written.split_file, val_fraction=0)
    assert written.left_out == {"train": 1, "val": 1, "test": 0}
    assert data.subset("train").labels.tolist() == [1, 0, 2]  # sorted by path: mass, no_finding, nodule
    assert data.class_names == names


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (npz_of(LABELS, size=32), "train_images is 3x32x32x3 of uint8"),
        (npz_of(LABELS, train_images=np.zeros((3, 28, 28), np.float32)), "of float32"),
        (npz_of(LABELS, train_images=np.zeros((2, 28, 28), np.uint8)), "train_images is 2x28x28"),
        (npz_of(LABELS, val_images=np.zeros((1, 28, 28, 4), np.uint8)), "val_images is 1x28x28x4"),
        (npz_of(LABELS, train_labels=np.array([[0], [1], [2]])), "labels in train beyond its 2 classes"),
        (npz_of(LABELS, train_labels=np.zeros((3, 2), np.uint8)), "train_labels is 3x2"),
        (npz_of(LABELS, train_labels=np.zeros(3, np.uint8)), "train_labels is 3 of uint8"),
        (npz_of(LABELS, test_labels=np.array([[None], [None]], object)), "no plain array of numbers"),
        (npz_of({"train": [0, 1], "val": [1]}), "it has no test_labels"),
        (
            npz_of(LABELS, train_images=np.asfortranarray(np.zeros((3, 28, 28), np.uint8))),
            "no plain array of numbers",
        ),
    ],
)
def test_other_arrays_are_refused(tmp_path, content, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        write(tmp_path, content)


def test_damage_is_said(tmp_path):
    whole = npz_of(LABELS)
    for content in (b"", b"no npz", whole[:-40]):
        with pytest.raises(DamagedArchiveError, match="damaged or no npz"):
            write(tmp_path, content)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    arrays["val_images.npy"] = arrays["val_images.npy"][:-10]
    short = io.BytesIO()
    with zipfile.ZipFile(short, "w") as archive:
        for name, data in arrays.items():
            archive.writestr(name, data)
    with pytest.raises(DamagedArchiveError, match="val_images is cut off"):
        write(tmp_path, short.getvalue())


@pytest.mark.parametrize(
    "header", [b"{'descr': (", b"\0" * 20, b"{'descr': '|O'}", b"{'descr': 1, 'shape': (9,"]
)
def test_a_header_that_is_no_header_is_said(tmp_path, header):
    content = io.BytesIO(npz_of(LABELS))
    with zipfile.ZipFile(content) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    arrays["val_labels.npy"] = arrays["val_labels.npy"][:10] + header.ljust(118) + bytes(2)
    damaged = io.BytesIO()
    with zipfile.ZipFile(damaged, "w") as archive:
        for name, data in arrays.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="val_labels is no (plain )?array of numbers"):
        write(tmp_path, damaged.getvalue())


def test_class_folders_are_plain_and_distinct():
    assert class_folder("normal, benign") == "normal_benign" and class_folder("A/../b") == "a_b"
    for info in REGISTRY.values():
        assert len({class_folder(name) for name in info.class_names}) == len(info.class_names)


def test_a_set_is_fetched_by_key_and_size(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    content = npz_of(LABELS, channels=1)
    info = REGISTRY["medmnist-breast@28"]
    with serving() as server:
        server.files["/records/breastmnist.npz"] = content
        archive = info.archive.model_copy(
            update={
                "url": f"{server.address}/records/breastmnist.npz",
                "md5": hashlib.md5(content).hexdigest(),
            }
        )
        monkeypatch.setitem(REGISTRY, info.key, info.model_copy(update={"archive": archive}))
        server.close_after = [300]
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            place = fetch("medmnist-breast@28")
        assert [request[2] for request in server.gets()] == [None, "bytes=300-"]
        with pytest.raises(UserError, match="md5 differs"):
            other = tmp_path / "other.npz"
            other.write_bytes(content + b"x")
            fetch("medmnist-breast@28", archive=other, replace=True)
    assert place == dataset_home("medmnist-breast@28")
    data = load_dataset("medmnist-breast@28")
    assert data.class_names == NAMES and len(data) == 6
    source = read_source("medmnist-breast@28")
    assert source["data"] == "split_medmnist-breast@28.json" and "md5" not in source["left_out"]
    assert "3/1/2 images in train/val/test; the registry has 546/78/156" in source["remarks"][0]
