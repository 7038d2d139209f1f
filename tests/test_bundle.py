"""Bundles: what is packed comes back and works elsewhere; what is damaged or hostile installs nothing."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from vmfcoop.backbones.installed import backbone_home, backbones_folder, read_manifest, verify_folder
from vmfcoop.benchmark.engine import run_benchmark
from vmfcoop.benchmark.recipe import load_recipe
from vmfcoop.bundle import Packed, pack, unpack
from vmfcoop.bundle.datasets import collect_data
from vmfcoop.bundle.manifest import MANIFEST
from vmfcoop.data import Dataset, load_dataset, sample_support
from vmfcoop.data.installed import dataset_home, install, staging
from vmfcoop.descriptions import load_descriptions, packaged_descriptions
from vmfcoop.errors import UserError
from vmfcoop.pipeline import FitRequest, run_fit
from vmfcoop.predicting import evaluate_run, predict_images
from vmfcoop.run import read_run

NAMES = ("glioma tumor", "meningioma tumor", "normal brain")
SETTINGS = {"epochs": 1, "vocabulary_sample": 32}


class Origin:
    """The connected machine: a home, a backbone, data, descriptions and a run, all below one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        self.backbone, self.data = root / "models" / "bert", root / "lesions"
        self.descriptions, self.run = root / "texts.json", root / "runs" / "first"


@pytest.fixture(scope="module")
def origin(
    image_folder: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Origin]:
    place = Origin(tmp_path_factory.mktemp("origin").resolve())
    shutil.copytree(tiny_bert_folder, place.backbone)
    shutil.copytree(image_folder, place.data)
    texts = {name: [f"a scan with {name}", f"{name} seen from above"] for name in NAMES}
    place.descriptions.write_text(json.dumps({"source": "the ward", "descriptions": texts}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMFCOOP_HOME", str(place.home))
        request = FitRequest(
            data=str(place.data),
            backbone=f"dir:{place.backbone}",
            settings=SETTINGS,
            shots=2,
            descriptions=place.descriptions,
            device="cpu",
        )
        run_fit(request, place.run)
    yield place


@pytest.fixture(scope="module")
def bundle(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMFCOOP_HOME", str(origin.home))
        return pack(origin.run, tmp_path_factory.mktemp("stick") / "lesions.tar", data=True)


@pytest.fixture
def elsewhere(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another machine: a new home, an empty folder to be in, and nothing of the origin there."""
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    hidden = origin.root.with_name("gone")
    origin.root.rename(hidden)
    yield tmp_path / "work"
    hidden.rename(origin.root)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty folder to be in, and an empty home."""
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work", tmp_path / "home"


def refusal(act: Callable[[], Any]) -> str:
    """The message of the UserError: one line."""
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, locks aside."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def hidden_ones(*folders: Path) -> list[str]:
    return [path.name for folder in folders for path in folder.glob(".*")]


def test_a_run_works_where_nothing_of_its_origin_is(origin: Origin, bundle: Packed, elsewhere: Path) -> None:
    unpacked = unpack(bundle.path)
    run = unpacked.target
    assert run == elsewhere / "lesions" / "run" and not unpacked.was_here
    metrics = evaluate_run(run, device="cpu")
    recorded = read_run(run).metrics
    assert metrics["accuracy"] == recorded["accuracy"] and metrics["ece"] == recorded["ece"]
    found = predict_images(run, [elsewhere / "lesions" / "data" / "lesions"], device="cpu")
    stated = {row["image"]: row for row in csv.DictReader((run / "predictions.csv").open())}
    probabilities = {
        Path(image).relative_to(elsewhere / "lesions" / "data" / "lesions").as_posix(): shares.max()
        for image, shares in zip(found.images, found.probabilities, strict=True)
    }
    for image, row in stated.items():
        assert probabilities[image] == pytest.approx(float(row["probability"]), abs=2e-6)


def test_everything_comes_back_as_it_was(origin: Origin, bundle: Packed, elsewhere: Path) -> None:
    unpacked, before = unpack(bundle.path), origin.root.with_name("gone")
    assert everything(unpacked.folder / "data" / "lesions") == everything(before / "lesions")
    came, went = everything(unpacked.target), everything(before / "runs" / "first")
    record = json.loads(came.pop("run.json"))
    original = json.loads(went.pop("run.json"))
    assert came == went
    assert record["data"]["spec"] == str(unpacked.folder / "data" / "lesions")
    assert record["data"]["packed_from"]["spec"] == original["data"]["spec"]
    assert record["data"]["fingerprint"] == original["data"]["fingerprint"]
    assert {**record, "data": 0} == {**original, "data": 0}
    bank = load_descriptions(unpacked.folder / bundle.manifest.descriptions[0])
    assert bank.fingerprint == original["descriptions"]["fingerprint"] and bank.meta["source"] == "the ward"
    (folder,) = unpacked.backbones.values()
    weights = everything(before / "models" / "bert")
    assert {name: content for name, content in everything(folder).items() if name != MANIFEST} == weights


def test_a_new_fit_takes_the_backbone_by_the_name_of_its_folder(bundle: Packed, elsewhere: Path) -> None:
    unpacked = unpack(bundle.path)
    (name,) = unpacked.backbones
    request = FitRequest(
        data=str(unpacked.folder / "data" / "lesions"),
        backbone=name,
        method="tip-adapter",
        shots=1,
        descriptions=unpacked.folder / bundle.manifest.descriptions[0],
        device="cpu",
    )
    run = run_fit(request, elsewhere / "again")
    assert run.record["backbone"]["fingerprint"] == bundle.manifest.backbones[0].fingerprint
    assert run.record["backbone"]["spec"] == name
    packed = pack(elsewhere / "again", elsewhere / "again.tar")
    assert packed.manifest.backbones[0].name == name


def test_a_folder_does_as_a_tar_does(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(origin.run, tmp_path / "stick" / "lesions", data=True)
    assert packed.sha256 is None and (packed.path / MANIFEST).is_file()
    (packed.path / ".DS_Store").write_text("x")
    (packed.path / "data" / "Thumbs.db").write_text("x")
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    unpacked = unpack(packed.path)
    assert unpacked.folder == tmp_path / "lesions" and not (unpacked.folder / "data" / "Thumbs.db").exists()
    assert evaluate_run(unpacked.target, device="cpu")["accuracy"] == read_run(origin.run).metrics["accuracy"]
    monkeypatch.chdir(tmp_path / "stick")
    assert "is the bundle itself" in refusal(lambda: unpack(Path("lesions")))


def test_the_same_content_gives_the_same_bytes(
    origin: Origin, bundle: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    for path in origin.run.iterdir():
        path.touch()
    again = pack(origin.run, tmp_path / "again.tar", data=True)
    assert again.path.read_bytes() == bundle.path.read_bytes()
    assert again.sha256 == hashlib.sha256(again.path.read_bytes()).hexdigest()
    with tarfile.open(again.path) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names[0] == MANIFEST and names[1:] == sorted(names[1:])
    facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members}
    assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}
    assert hidden_ones(tmp_path, bundle.path.parent) == []


def test_the_manifest_holds_the_checksum_of_every_file(bundle: Packed) -> None:
    with tarfile.open(bundle.path) as tar:
        contents = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    manifest = json.loads(contents.pop(MANIFEST))
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
    assert manifest["kind"] == "run" and manifest["data"][0]["images"] == {"train": 18, "val": 6, "test": 12}
    assert not [
        name for name in contents if name.split("/")[0] not in ("run", "data", "backbones", "descriptions")
    ]


def test_without_data_no_image_is_packed_and_predictions_still_run(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(origin.run, tmp_path / "light.tar")
    assert not packed.manifest.data and not any(name.endswith(".png") for name in packed.manifest.files)
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    unpacked = unpack(packed.path)
    shutil.copytree(origin.data, tmp_path / "new")
    assert (unpacked.target / "run.json").read_bytes() == (origin.run / "run.json").read_bytes()
    assert len(predict_images(unpacked.target, [tmp_path / "new"], device="cpu").images) == 36


def test_an_embedded_backbone_is_named_and_not_packed(
    image_folder: Path, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    request = FitRequest(str(image_folder), "phantom", "zero-shot", shots=1, device="cpu")
    run = run_fit(request, tmp_path / "run")
    packed = pack(tmp_path / "run", tmp_path / "b.tar", data=True)
    assert packed.manifest.embedded == ("phantom",) and not packed.manifest.backbones
    unpacked = unpack(packed.path)
    assert evaluate_run(unpacked.target, device="cpu")["accuracy"] == run.metrics["accuracy"]


# What may have changed since the fit.


def test_data_that_changed_since_the_fit_are_refused(origin: Origin, tmp_path: Path) -> None:
    further = origin.data / "normal_brain" / "99.png"
    Image.new("RGB", (40, 40)).save(further)
    try:
        assert "changed since the run was fitted" in refusal(
            lambda: pack(origin.run, tmp_path / "b.tar", data=True)
        )
    finally:
        further.unlink()
    assert not (tmp_path / "b.tar").exists() and hidden_ones(tmp_path) == []


def test_another_backbone_is_refused_and_the_right_one_found_where_it_is_said_to_be(
    origin: Origin, tmp_path: Path
) -> None:
    other = shutil.copytree(origin.backbone, tmp_path / "other")
    state = load_file(other / "open_clip_model.safetensors")
    state["logit_scale"] += 1
    save_file(state, other / "open_clip_model.safetensors")
    message = refusal(lambda: pack(origin.run, tmp_path / "b.tar", backbone=f"dir:{other}"))
    assert "fingerprint" in message and "--backbone" in message
    moved = shutil.copytree(origin.backbone, tmp_path / "moved")
    packed = pack(origin.run, tmp_path / "b.tar", backbone=f"dir:{moved}")
    assert packed.manifest.backbones[0].name.startswith("moved-")
    gone = f"dir:{tmp_path / 'gone'}"
    assert "does not exist" in refusal(lambda: pack(origin.run, tmp_path / "c.tar", backbone=gone))


def test_only_the_files_that_loading_needs_are_packed_of_a_backbone(origin: Origin, tmp_path: Path) -> None:
    more = shutil.copytree(origin.backbone, tmp_path / "more")
    for name in ("open_clip_pytorch_model.bin", "training.log", "optimizer.pt", ".hidden.json"):
        (more / name).write_bytes(b"0")
    (more / "LICENSE").write_text("MIT")
    packed = pack(origin.run, tmp_path / "b.tar", backbone=f"dir:{more}")
    names = {Path(name).name for name in packed.manifest.files if name.startswith("backbones/")}
    assert names == {path.name for path in origin.backbone.iterdir()} | {"LICENSE", MANIFEST}


def test_descriptions_that_are_gone_are_said_and_not_needed(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = origin.descriptions.read_text()
    origin.descriptions.write_text(kept.replace("above", "below"))
    try:
        packed = pack(origin.run, tmp_path / "b.tar")
    finally:
        origin.descriptions.write_text(kept)
    assert not packed.manifest.descriptions
    assert "prediction does not need them" in packed.remarks[0]


def test_links_are_not_followed_in_silence(origin: Origin, tmp_path: Path) -> None:
    run = shutil.copytree(origin.run, tmp_path / "run")
    (run / "secret.txt").symlink_to(origin.descriptions)
    packed = pack(run, tmp_path / "b.tar")
    assert "run/secret.txt" not in packed.manifest.files and "is a link and was left out" in packed.remarks[0]


def test_a_report_shows_images_and_goes_with_them(origin: Origin, tmp_path: Path) -> None:
    run = shutil.copytree(origin.run, tmp_path / "run")
    (run / "report.html").write_text("<img>")
    packed = pack(run, tmp_path / "b.tar")
    assert "run/report.html" not in packed.manifest.files and "shows images" in packed.remarks[0]
    packed = pack(run, tmp_path / "b-with-data.tar", data=True)
    assert "run/report.html" in packed.manifest.files


@pytest.mark.parametrize("to", ["bundle.tar.gz", "bundle.zip", "bundle.tgz"])
def test_a_compressed_bundle_is_refused(to: str, origin: Origin, tmp_path: Path) -> None:
    assert "weights do not compress" in refusal(lambda: pack(origin.run, tmp_path / to))


def test_what_is_there_is_replaced_only_if_it_is_a_bundle_and_asked_for(
    origin: Origin, tmp_path: Path
) -> None:
    pack(origin.run, tmp_path / "b.tar")
    assert "--replace it" in refusal(lambda: pack(origin.run, tmp_path / "b.tar"))
    pack(origin.run, tmp_path / "b.tar", replace=True)
    pack(origin.run, tmp_path / "b")
    pack(origin.run, tmp_path / "b", replace=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "is no bundle" in refusal(lambda: pack(origin.run, tmp_path / "mine", replace=True))
    assert "neither a run directory" in refusal(lambda: pack(tmp_path / "mine", tmp_path / "c.tar"))
    assert "neither a run directory" in refusal(lambda: pack(tmp_path / "nowhere", tmp_path / "c.tar"))


def test_a_file_that_changes_while_it_is_packed_is_noticed(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(origin.run, tmp_path / "run")
    from vmfcoop.bundle import packing

    write = packing.write_bundle

    def write_late(*arguments: Any) -> Any:
        (run / "history.csv").write_bytes((run / "history.csv").read_bytes().swapcase())
        return write(*arguments)

    monkeypatch.setattr(packing, "write_bundle", write_late)
    assert "changed while it was packed" in refusal(lambda: pack(run, tmp_path / "b.tar"))
    assert not (tmp_path / "b.tar").exists() and hidden_ones(tmp_path) == []


def test_a_full_disk_leaves_the_old_bundle(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pack(origin.run, tmp_path / "b.tar").path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    assert "is full" in refusal(lambda: pack(origin.run, tmp_path / "b.tar", replace=True))
    assert (tmp_path / "b.tar").read_bytes() == before and hidden_ones(tmp_path) == []


def test_a_disk_without_links_takes_a_bundle(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick, symlink_to = tmp_path / "stick", Path.symlink_to

    def only_elsewhere(path: Path, *arguments: Any) -> None:
        if path.is_relative_to(stick):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        symlink_to(path, *arguments)

    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Path, "symlink_to", only_elsewhere)
    for name in ("b.tar", "b"):
        assert pack(origin.run, stick / name, data=True).manifest.data
    assert hidden_ones(stick) == [] and everything(tmp_path / "home") == {}


def test_a_file_that_the_disk_cannot_hold_is_not_a_full_disk(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        message = refusal(lambda: pack(origin.run, tmp_path / "b.tar"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "larger than its disk allows (4 GB on FAT); name a folder" in message
    assert not (tmp_path / "b.tar").exists() and hidden_ones(tmp_path) == []


def test_a_bundle_does_not_go_into_the_run_that_it_packs(origin: Origin) -> None:
    before = everything(origin.run)
    for name in ("b.tar", "b"):
        assert "lies in the run" in refusal(lambda name=name: pack(origin.run, origin.run / name))
    assert everything(origin.run) == before and hidden_ones(origin.run) == []


def test_a_disks_own_folder_and_the_current_one_are_not_written_as_a_whole(
    origin: Origin, bundle: Packed, machine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = machine[0] / "disk"
    disk.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda place: str(place) in ("/", str(disk)))
    for place in (disk, Path("/")):
        assert "is a whole disk; name a folder on it" in refusal(
            lambda place=place: unpack(bundle.path, place)
        )
    assert "is a whole disk" in refusal(lambda: pack(origin.run, disk, replace=True))
    (machine[0] / "here").mkdir()
    monkeypatch.chdir(machine[0] / "here")
    for place in (Path(), Path("..")):
        assert "is the current folder or holds it" in refusal(lambda place=place: unpack(bundle.path, place))
    assert {path.name for path in machine[0].rglob("*")} == {"disk", "here"}


def test_a_link_to_an_empty_folder_stays_a_link(bundle: Packed, machine: tuple[Path, Path]) -> None:
    large = machine[0] / "large" / "lesions"
    large.mkdir(parents=True)
    (machine[0] / "lesions").symlink_to(large)
    unpacked = unpack(bundle.path)
    assert unpacked.folder == large and (machine[0] / "lesions").is_symlink()
    assert unpack(bundle.path).was_here


@pytest.mark.parametrize("names", [("Scan.png", "scan.png"), ("a\\b.png",)])
def test_names_that_are_not_apart_everywhere_are_refused_while_packing(
    names: tuple[str, ...], origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    run = shutil.copytree(origin.run, tmp_path / "run")
    for name in names:
        (run / name).write_bytes(b"0")
    if len(list(run.glob("[Ss]can.png"))) == 1:
        pytest.skip("this file system does not tell the two names apart")
    assert "was not packed" in refusal(lambda: pack(run, tmp_path / "b.tar"))
    assert not (tmp_path / "b.tar").exists() and hidden_ones(tmp_path) == []


def test_what_cannot_be_read_is_named(
    origin: Origin, tmp_path: Path, machine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path_open = shutil.copytree(origin.run, tmp_path / "run"), Path.open
    folder = pack(run, tmp_path / "b").path
    (backbone,) = unpack(folder, machine[0] / "first").backbones.values()
    locked = [run / "history.csv", folder / "run" / "history.csv", folder / MANIFEST]
    locked.append(backbone / "open_clip_model.safetensors")

    def refuses(path: Path, *arguments: Any, **options: Any) -> Any:
        if path in locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuses)
    said = "cannot be read (Permission denied)"
    assert f"'{locked[0]}' {said}" in refusal(lambda: pack(run, tmp_path / "c.tar"))
    assert f"'{locked[2]}' {said}" in refusal(lambda: unpack(folder, machine[0] / "second"))
    assert f"'{locked[3]}' {said}" in refusal(lambda: verify_folder(backbone))
    del locked[2]
    assert f"'{locked[1]}' {said}" in refusal(lambda: unpack(folder, machine[0] / "second"))
    assert not (machine[0] / "second").exists() and hidden_ones(tmp_path, machine[0]) == []


# Datasets in every layout.


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def class_folders(root: Path) -> str:
    for number in range(20):
        picture(root / f"class_{number % 2}" / "deeper" / f"{number:02d}.png", number)
    return str(root)


def class_folders_with_groups(root: Path) -> str:
    class_folders(root)
    rows = [f"class_{n % 2},deeper/{n:02d}.png,patient {n // 4}" for n in range(20)]
    (root / "groups.csv").write_text("\n".join(["class,file,group", *rows]))
    return str(root)


def split_folders(root: Path) -> str:
    for split, numbers in {"train": range(8), "val": range(8, 12), "test": range(12, 20)}.items():
        for number in numbers:
            picture(root / split / f"class_{number % 2}" / f"{number}.png", number)
    return str(root)


def split_entries(prefix: str) -> str:
    parts: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for number in range(20):
        part = ("train", "train", "val", "test")[number // 2 % 4]
        parts[part].append([f"{prefix}{number:02d}.png", number % 2, ("zebra", "ant")[number % 2]])
    return json.dumps(parts)


def split_file(root: Path) -> str:
    """Images in a sub-folder, and classes that are not in the order of their names."""
    for number in range(20):
        picture(root / "pictures" / f"{number:02d}.png", number)
    (root / "split_x.json").write_text(split_entries(""))
    return str(root / "split_x.json")


def folder_with_split_file(root: Path) -> str:
    return str(Path(split_file(root)).parent)


def split_file_of_absolute_paths(root: Path) -> str:
    for number in range(20):
        picture(root / "pacs" / f"{number:02d}.png", number)
    (root / "lists").mkdir()
    (root / "lists" / "split_x.json").write_text(split_entries(f"{root}/pacs/"))
    return str(root / "lists" / "split_x.json")


def table_rows(prefix: str) -> str:
    rows = [f"{prefix}{n:02d}.png,{'ab'[n % 2]},patient {n // 4}" for n in range(20)]
    return "\n".join(["path,label,group", *rows])


def table(root: Path) -> str:
    for number in range(20):
        picture(root / "export" / "year" / f"{number:02d}.png", number)
    (root / "table.csv").write_text(table_rows("export/year/"))
    return str(root / "table.csv")


def table_of_absolute_paths(root: Path) -> str:
    table(root)
    (root / "lists").mkdir()
    (root / "lists" / "table.csv").write_text(table_rows(f"{root}/export/year/"))
    return str(root / "lists" / "table.csv")


def table_of_paths_upwards(root: Path) -> str:
    table(root)
    (root / "lists").mkdir()
    (root / "lists" / "table.csv").write_text(table_rows("../export/year/"))
    return str(root / "lists" / "table.csv")


def table_of_slices(root: Path) -> str:
    import nibabel

    draw = np.random.default_rng(0)
    rows = []
    for number in range(8):
        volume = draw.normal(size=(4, 4, 6)).astype(np.float32)
        path = root / "volumes" / f"{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
        rows += [f"{path}#slice={cut}&axis=2,{'ab'[number % 2]}" for cut in (1, 3)]
    (root / "lists").mkdir()
    (root / "lists" / "slices.csv").write_text("\n".join(["path,label", *rows]))
    return str(root / "lists" / "slices.csv")


LAYOUTS = (
    class_folders,
    class_folders_with_groups,
    split_folders,
    split_file,
    folder_with_split_file,
    split_file_of_absolute_paths,
    table,
    table_of_absolute_paths,
    table_of_paths_upwards,
    table_of_slices,
)


def load(spec: str, groups: Path | None) -> Dataset:
    return load_dataset(spec, groups=groups, seed=3)


def materialised(contents: dict[str, Any], root: Path) -> None:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.read_bytes() if isinstance(content, Path) else content)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_gives_the_same_table_elsewhere(layout: Callable[[Path], str], tmp_path: Path) -> None:
    spec = layout(tmp_path / "here")
    (tmp_path / "scratch").mkdir()
    found = collect_data("set", spec, None, load, tmp_path / "scratch")
    expected = load(spec, None)
    materialised(found.contents, tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    shutil.rmtree(tmp_path / "scratch")
    again = load(str(tmp_path / "there" / found.part.path), None)
    assert again.class_names == expected.class_names and again.fingerprint == found.part.fingerprint
    assert np.array_equal(again.labels, expected.labels) and np.array_equal(again.split, expected.split)
    assert (again.groups is None) == (expected.groups is None)
    chosen, chosen_here = sample_support(again, 2, 5), sample_support(expected, 2, 5)
    assert np.array_equal(chosen.train, chosen_here.train)
    assert all(path.with_name(path.name.partition("#")[0]).is_file() for path in again.paths)
    inside = layout.__name__ not in {
        "split_file_of_absolute_paths",
        "table_of_absolute_paths",
        "table_of_paths_upwards",
        "table_of_slices",
    }
    assert inside == (again.fingerprint == expected.fingerprint)
    assert inside == (not found.remarks)


def test_groups_of_an_option_go_along(tmp_path: Path) -> None:
    for layout, path in ((class_folders, "class_{}/deeper/{:02d}.png"), (table_of_absolute_paths, "")):
        root, own = tmp_path / layout.__name__, tmp_path / f"{layout.__name__}.csv"
        spec = layout(root)
        path = path or f"{root}/export/year/{{1:02d}}.png"
        rows = [f"{path.format(n % 2, n)},patient {n // 2}" for n in range(20)]
        own.write_text("\n".join(["path,group", *rows]))
        scratch, there = tmp_path / f"scratch-{root.name}", tmp_path / f"there-{root.name}"
        scratch.mkdir()
        found = collect_data("set", spec, own, load, scratch)
        materialised(found.contents, there)
        assert found.part.groups == "groups/set.csv"
        again = load(str(there / found.part.path), there / found.part.groups)
        expected = load(spec, own)
        assert again.groups is not None and expected.groups is not None
        assert np.array_equal(again.groups, expected.groups) and np.array_equal(again.split, expected.split)


def test_only_listed_images_are_packed(tmp_path: Path) -> None:
    spec = split_file(tmp_path / "here")
    for name in ("notes.docx", ".hidden.png", "pictures/unlisted.png", "masks/00.png", "groups.txt"):
        picture(tmp_path / "here" / "x.png", 0)
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "here" / "x.png", tmp_path / "here" / name)
    (tmp_path / "scratch").mkdir()
    found = collect_data("set", spec, None, load, tmp_path / "scratch")
    listed = {f"data/set/pictures/{number:02d}.png" for number in range(20)}
    assert set(found.contents) == listed | {"data/set/split_x.json"}
    assert found.part.images == {"train": 12, "val": 4, "test": 4}


def test_images_behind_links_are_packed_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "here")
    picture(tmp_path / "vault" / "secret.png", 99)
    link = tmp_path / "here" / "class_0" / "linked.png"
    link.symlink_to(tmp_path / "vault" / "secret.png")
    (tmp_path / "scratch").mkdir()
    found = collect_data("set", str(tmp_path / "here"), None, load, tmp_path / "scratch")
    assert f"the first '{link}'" in found.remarks[0] and "1 files" in found.remarks[0]


def test_a_table_whose_order_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "here")
    rows = [f"{'../export/year/' if n % 2 else 'near/'}{n:02d}.png,{'ab'[n % 2]}" for n in range(20)]
    for number in range(0, 20, 2):
        picture(tmp_path / "here" / "alists" / "near" / f"{number:02d}.png", number)
    path = tmp_path / "here" / "alists" / "table.csv"
    path.write_text("\n".join(["path,label", *rows]))
    (tmp_path / "scratch").mkdir()
    message = refusal(lambda: collect_data("set", str(path), None, load, tmp_path / "scratch"))
    assert "bring them into one folder" in message


def test_a_table_that_would_be_read_otherwise_elsewhere_is_refused(tmp_path: Path) -> None:
    spec = class_folders(tmp_path / "here")
    (tmp_path / "scratch").mkdir()

    def load_by_place(place: str, groups: Path | None) -> Dataset:
        return load_dataset(place, groups=groups, seed=int(place == spec))

    message = refusal(lambda: collect_data("set", spec, None, load_by_place, tmp_path / "scratch"))
    assert "would be read otherwise in another place" in message


# Bundles that must not be unpacked.


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def members_of(bundle: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(bundle) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]


def with_listed(members: list[Any], name: str, content: bytes) -> list[Any]:
    """The members with one more file, which the manifest lists."""
    manifest = json.loads(members[0][1])
    record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest["files"][name] = record
    return [member(MANIFEST, json.dumps(manifest).encode()), *members[1:], member(name, content)]


def with_manifest(members: list[Any], **changes: Any) -> list[Any]:
    return [member(MANIFEST, json.dumps(json.loads(members[0][1]) | changes).encode()), *members[1:]]


def with_changed_byte(members: list[Any]) -> list[Any]:
    info, content = members[-1]
    return [*members[:-1], (info, content[:-1] + bytes([content[-1] ^ 1]))]


HOSTILE: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "absolute": (lambda m: with_listed(m, "/etc/cron.d/x", b"x"), "leads out of its folder"),
    "upwards": (lambda m: with_listed(m, "run/../../x", b"x"), "leads out of its folder"),
    "above": (lambda m: with_listed(m, "../x", b"x"), "leads out of its folder"),
    "dot": (lambda m: with_listed(m, "run/./x", b"x"), "leads out of its folder"),
    "backslash": (lambda m: with_listed(m, "run\\..\\x", b"x"), "leads out of its folder"),
    "drive": (lambda m: with_listed(m, "C:x", b"x"), "leads out of its folder"),
    "newline": (lambda m: with_listed(m, "run/a\nb", b"x"), "leads out of its folder"),
    "long": (lambda m: with_listed(m, "run/" + "n" * 300, b"x"), "too long"),
    "symbolic link": (
        lambda m: [*m, member("run/x", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "no plain file",
    ),
    "hard link": (
        lambda m: [*m, member("run/x", type=tarfile.LNKTYPE, linkname="run/run.json")],
        "no plain file",
    ),
    "device": (lambda m: [*m, member("run/x", type=tarfile.CHRTYPE, devmajor=1)], "no plain file"),
    "fifo": (lambda m: [*m, member("run/x", type=tarfile.FIFOTYPE)], "no plain file"),
    "folder": (lambda m: [*m, member("run/x", type=tarfile.DIRTYPE)], "no plain file"),
    "twice": (lambda m: [*m, m[-1]], "is in it twice"),
    "unlisted": (lambda m: [*m, member("run/x", b"x")], "its manifest does not list 'run/x'"),
    "unlisted backbone": (
        lambda m: with_listed(m, "backbones/biomedclip/config.json", b"{}"),
        "of no backbone that its manifest names",
    ),
    "case": (lambda m: with_listed(m, "run/RUN.json", b"x"), "names of one file"),
    "file as folder": (lambda m: with_listed(m, "run/run.json/x", b"x"), "both a file and a folder"),
    "missing": (lambda m: m[:-1], "1 of 50 files are missing"),
    "changed": (with_changed_byte, "its SHA-256 differs"),
    "other size": (lambda m: [*m[:-1], member(m[-1][0].name, b"x")], "bytes and not"),
    "newer": (lambda m: with_manifest(m, format=2), "packed by a newer vmfcoop"),
    "no manifest": (lambda m: m[1:], "no bundle"),
    "no JSON": (lambda m: [member(MANIFEST, b"{"), *m[1:]], "is damaged"),
    "other fields": (lambda m: with_manifest(m, further=1), "is damaged"),
    "folder name": (
        lambda m: with_manifest(m, backbones=[{"spec": "x", "name": "..", "fingerprint": "0"}]),
        "is damaged",
    ),
    "no backbone": (
        lambda m: with_manifest(
            m, backbones=[*json.loads(m[0][1])["backbones"], {"spec": "x", "name": "x", "fingerprint": "0"}]
        ),
        "lacks the backbone 'x'",
    ),
    "other fingerprint": (
        lambda m: with_manifest(m, backbones=[json.loads(m[0][1])["backbones"][0] | {"fingerprint": "0"}]),
        "contradicts itself",
    ),
    "no run": (lambda m: with_manifest(m, name="other"), "lacks the run"),
}


def nothing_installed(work: Path, home: Path) -> None:
    assert not [path for path in work.rglob("*") if path.is_file()]
    assert not [path for path in (home / "backbones").rglob("*") if path.is_file()]
    assert hidden_ones(work, home / "backbones") == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_bundle_installs_nothing(
    name: str, bundle: Packed, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    change, expected = HOSTILE[name]
    tar = write_tar(tmp_path / "bad.tar", change(members_of(bundle.path)))
    assert expected in refusal(lambda: unpack(tar))
    nothing_installed(*machine)


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 5_000, 200_000, -1024, -11_000])
def test_a_cut_off_bundle_installs_nothing(
    kept: int, bundle: Packed, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.tar").write_bytes(bundle.path.read_bytes()[:kept])
    if kept == -1024:  # Two blocks of zeros at the end say no more than that it ends.
        unpack(tmp_path / "cut.tar")
        return
    refusal(lambda: unpack(tmp_path / "cut.tar"))
    nothing_installed(*machine)


@pytest.mark.parametrize("position", [0, 150, 257, 600, 2_000])
def test_a_flipped_bit_anywhere_installs_nothing(
    position: int, bundle: Packed, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    content = bytearray(bundle.path.read_bytes())
    content[position] ^= 4
    (tmp_path / "bad.tar").write_bytes(content)
    refusal(lambda: unpack(tmp_path / "bad.tar"))
    nothing_installed(*machine)


def sparse_header(name: str, claimed: int) -> bytes:
    """A GNU sparse member that claims more bytes than the archive has."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[483:495] = b"%011o\0" % claimed
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def huge_header() -> bytes:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 6 << 30
    return info.tobuf(tarfile.GNU_FORMAT)


def test_archives_that_would_fill_disk_or_memory_are_refused(
    bundle: Packed, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = bundle.path.read_bytes()
    first = 512 + (len(members_of(bundle.path)[0][1]) + 511) // 512 * 512
    for header, expected in (
        (sparse_header("run/x", 1 << 40), "no plain file"),
        (huge_header(), "too large"),
    ):
        (tmp_path / "bomb.tar").write_bytes(whole[:first] + header + whole[first:])
        assert expected in refusal(lambda: unpack(tmp_path / "bomb.tar"))
    nothing_installed(*machine)


def test_other_files_are_no_bundles(machine: tuple[Path, Path], tmp_path: Path, bundle: Packed) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive" * 1000)
    assert "no bundle" in refusal(lambda: unpack(tmp_path / "x.tar"))
    assert "does not exist" in refusal(lambda: unpack(tmp_path / "nowhere.tar"))
    (tmp_path / "folder").mkdir()
    assert "no bundle" in refusal(lambda: unpack(tmp_path / "folder"))
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(bundle.path, "x")
    assert "no bundle" in refusal(lambda: unpack(tmp_path / "packed.tar"))
    nothing_installed(*machine)


@pytest.mark.parametrize("fault", ["changed", "missing", "link", "linked folder"])
def test_a_damaged_folder_installs_nothing(
    fault: str, origin: Origin, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = pack(origin.run, tmp_path / "stick" / "lesions").path
    table = folder / "run" / "predictions.csv"
    content = table.read_bytes()
    if fault == "changed":
        table.write_bytes(content.swapcase())
    elif fault == "linked folder":
        (folder / "run").rename(tmp_path / "moved")
        (folder / "run").symlink_to(tmp_path / "moved")
    else:
        table.unlink()
    if fault == "link":
        (tmp_path / "copy.csv").write_bytes(content)
        table.symlink_to(tmp_path / "copy.csv")
    refusal(lambda: unpack(folder, machine[0] / "there"))
    nothing_installed(*machine)


# Places that are taken.


def test_the_same_again_is_fine_and_other_content_is_not_replaced_unasked(
    origin: Origin, bundle: Packed, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    first = unpack(bundle.path)
    (first.target / "notes.txt").write_text("mine")
    assert unpack(bundle.path).was_here and (first.target / "notes.txt").exists()
    light = pack(origin.run, tmp_path / "light.tar")
    assert "add --replace" in refusal(lambda: unpack(light.path, first.folder))
    (first.target / "metrics.json").write_text("{}")
    assert "was changed; add --replace" in refusal(lambda: unpack(bundle.path))
    assert not unpack(bundle.path, replace=True).was_here
    assert (
        json.loads((first.target / "metrics.json").read_text()) and not (first.target / "notes.txt").exists()
    )


def test_a_folder_of_other_files_is_never_replaced(bundle: Packed, machine: tuple[Path, Path]) -> None:
    mine = machine[0] / "lesions"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    for replace in (False, True):
        message = refusal(lambda replace=replace: unpack(bundle.path, replace=replace))
        assert "holds other files" in message
    assert not backbones_folder().exists() or not list(backbones_folder().glob("*"))
    assert (mine / "thesis.txt").read_text() == "x"


def test_a_backbone_that_was_changed_is_replaced_only_if_asked(
    bundle: Packed, machine: tuple[Path, Path]
) -> None:
    (folder,) = unpack(bundle.path).backbones.values()
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    shutil.rmtree(machine[0] / "lesions")
    assert "or was changed; add --replace" in refusal(lambda: unpack(bundle.path))
    assert not (machine[0] / "lesions").exists()
    unpack(bundle.path, replace=True)
    verify_folder(folder)
    assert hidden_ones(backbones_folder(), machine[0]) == []


def test_what_a_killed_process_left_is_cleared(bundle: Packed, machine: tuple[Path, Path]) -> None:
    for left in (machine[0] / ".lesions.unpack", backbones_folder() / ".unpack"):
        (left / "content").mkdir(parents=True)
        (left / "content" / "half").write_bytes(b"0")
    unpack(bundle.path)
    assert hidden_ones(machine[0], backbones_folder()) == []


def test_too_little_space_is_said_before_anything_is_written(
    bundle: Packed, machine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("vmfcoop.data.downloads.shutil.disk_usage", lambda _: usage)
    assert "free some space" in refusal(lambda: unpack(bundle.path))
    nothing_installed(*machine)


def _unpack_in_process(bundle: Path, to: Path) -> None:
    unpack(bundle, to)


def test_two_processes_unpack_one_bundle(bundle: Packed, machine: tuple[Path, Path]) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_unpack_in_process, args=(bundle.path, machine[0] / "there")) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert unpack(bundle.path, machine[0] / "there").was_here


# Recipes.


def write_recipe(path: Path, **content: Any) -> Path:
    usual = {
        "methods": ["zero-shot", "tip-adapter"],
        "shots": [1],
        "seeds": [1],
        "protocols": ["few-shot"],
        "views": 1,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(usual | content))
    return path


def test_a_recipe_runs_where_nothing_of_its_origin_is(
    image_folder: Path, tiny_bert_folder: Path, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(image_folder, here / "data" / "brains")
    shutil.copytree(tiny_bert_folder, here / "bert")
    table_of_absolute_paths(here / "export")
    lines = [f"# {name}\n- a scan with {name}\n- {name} from above" for name in NAMES]
    (here / "texts.txt").write_text("\n".join(lines))
    recipe = write_recipe(
        here / "mine.yaml",
        backbones=["dir:bert", "phantom"],
        data=[
            {"spec": "data/brains", "descriptions": "texts.txt", "test_fraction": 0.4, "split_seed": 7},
            {"spec": "export/lists/table.csv", "name": "an export"},
        ],
    )
    expected = run_benchmark(load_recipe(recipe), tmp_path / "before", jobs=1)
    packed = pack(recipe, tmp_path / "mine.tar", data=True)
    assert [part.name for part in packed.manifest.data] == ["brains", "an--export"]
    shutil.rmtree(here)
    unpacked = unpack(packed.path)
    assert unpacked.target == machine[0] / "mine" / "mine.yaml"
    again = load_recipe(unpacked.target)
    assert again.name == "mine" and [entry.name for entry in again.data] == ["brains", "an export"]
    assert again.data[0].test_fraction == 0.4 and again.backbones[1] == "phantom"
    shutil.move(machine[0] / "mine", machine[0] / "moved")
    outcome = run_benchmark(load_recipe(machine[0] / "moved" / "mine.yaml"), tmp_path / "after", jobs=1)
    assert outcome.done == expected.done == 8 and not outcome.failed
    assert scores(tmp_path / "after") == scores(tmp_path / "before")


def scores(folder: Path) -> dict[tuple[str, str, bool], Any]:
    """What a benchmark found, whatever its backbone of a folder is called."""
    found = {}
    for path in (folder / "jobs").glob("*.json"):
        content = json.loads(path.read_text())
        job = content["job"]
        found[job["method"], job["data"]["name"], job["backbone"] == "phantom"] = content["result"]["test"]
    assert len(found) == 8
    return found


def test_a_key_of_the_registry_becomes_a_path_with_the_packages_descriptions(
    tiny_clip_folder: Path, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    bank = packaged_descriptions("busi")
    assert bank is not None
    with staging("busi") as folder:
        parts: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
        for label, name in enumerate(bank.descriptions):
            for number, part in enumerate(("train", "train", "val", "test")):
                picture(folder / "images" / f"{label}_{number}.png", 4 * label + number)
                parts[part].append([f"images/{label}_{number}.png", label, name])
        (folder / "split_busi.json").write_text(json.dumps(parts))
        install("busi", folder, {"data": "split_busi.json"})
    recipe = write_recipe(tmp_path / "r.yaml", backbones=[f"dir:{tiny_clip_folder}"], data=["busi"])
    with pytest.warns(UserWarning, match="known fault"):
        expected = load_recipe(recipe).data[0].dataset()
    packed = pack(recipe, tmp_path / "r.tar", data=True)
    shutil.rmtree(dataset_home("busi"))
    entry = load_recipe(unpack(packed.path).target).data[0]
    assert entry.name == "busi" and entry.dataset().fingerprint == expected.fingerprint
    assert entry.bank(expected.class_names).fingerprint == bank.fingerprint


def test_a_recipe_without_data_says_where_they_must_be(
    image_folder: Path, tiny_clip_folder: Path, machine: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "here" / "brains")
    groups = tmp_path / "here" / "own.csv"
    files = sorted(path.relative_to(image_folder) for path in image_folder.rglob("*.png"))
    groups.write_text("path,group\n" + "\n".join(f"{file},{n // 2}" for n, file in enumerate(files)))
    recipe = write_recipe(
        tmp_path / "here" / "r.yaml",
        backbones=[f"dir:{tiny_clip_folder}"],
        data=[{"spec": "brains", "groups": "own.csv"}, "phantom-fundus"],
    )
    packed = pack(recipe, tmp_path / "r.tar")
    assert len(packed.remarks) == 2 and "must be at 'brains'" in packed.remarks[0]
    unpacked = unpack(packed.path)
    assert "no such path" in refusal(lambda: load_recipe(unpacked.target))
    shutil.copytree(image_folder, unpacked.folder / "brains")
    entry = load_recipe(unpacked.target).data[0]
    assert entry.dataset().groups is not None and "groups/brains.csv" in packed.manifest.files


def test_a_recipes_file_may_have_any_name(machine: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "my 'récipe'.yaml", backbones=["phantom"], data=["phantom-fundus"])
    unpacked = unpack(pack(recipe, tmp_path / "r.tar").path)
    assert unpacked.target.name == "my--récipe--.yaml" and unpacked.manifest.title == recipe.name
    assert load_recipe(unpacked.target).backbones == ["phantom"]


def test_a_recipes_single_backbone_may_lie_elsewhere_now(
    tiny_clip_folder: Path, tiny_bert_folder: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", backbones=["dir:gone"], data=["phantom-fundus"])
    packed = pack(recipe, tmp_path / "r.tar", backbone=f"dir:{tiny_clip_folder}")
    assert len(packed.manifest.backbones) == 1
    two = [f"dir:{tiny_clip_folder}", f"dir:{tiny_bert_folder}"]
    several = write_recipe(tmp_path / "s.yaml", backbones=two, data=["phantom-fundus"])
    message = refusal(lambda: pack(several, tmp_path / "s.tar", backbone="phantom"))
    assert "names 2 backbones" in message
    assert len(pack(several, tmp_path / "s.tar").manifest.backbones) == 2


def test_what_was_fetched_keeps_its_key_and_its_licence(
    tiny_bert_folder: Path, machine: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tiny_bert_folder))
    recipe = write_recipe(tmp_path / "r.yaml", backbones=["biomedclip"], data=["phantom-fundus"])
    packed = pack(recipe, tmp_path / "r.tar")
    (part,) = packed.manifest.backbones
    assert (part.name, part.licence) == ("biomedclip", "MIT") and "out of scope" in part.limits
    unpacked = unpack(packed.path)
    assert load_recipe(unpacked.target).backbones == ["biomedclip"]
    assert read_manifest(backbone_home("biomedclip")).spec == "biomedclip"
    again = pack(unpacked.target, tmp_path / "again.tar")
    assert again.manifest.files[f"backbones/biomedclip/{MANIFEST}"]
    assert torch.equal(
        load_file(backbone_home("biomedclip") / "open_clip_model.safetensors")["logit_scale"],
        load_file(tiny_bert_folder / "open_clip_model.safetensors")["logit_scale"],
    )
