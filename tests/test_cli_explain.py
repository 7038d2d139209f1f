"""The command ``explain``: what it writes and refuses, what it says of the maps, and what it keeps back."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.explain.test_dicom_out import secrets, source
from vmfcoop.cli import app
from vmfcoop.cli.common import out as out_console
from vmfcoop.errors import UserError
from vmfcoop.explain import DEFAULT_METHOD, MAP_METHODS, class_target, saliency_maps
from vmfcoop.explain import images as explain_images_module
from vmfcoop.explain.images import Standing, explain_images, standing
from vmfcoop.explain.outputs import named_images, written_whole
from vmfcoop.explain.placement import Box, place_map, seen_box
from vmfcoop.explain.verdict import CRITERIA
from vmfcoop.pipeline import FitRequest, OpenRun, open_run, run_fit
from vmfcoop.predicting import predict_images
from vmfcoop.run import Run, read_run

CLASSES = ("glioma tumor", "meningioma tumor", "normal brain")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path, tiny_clip_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "brains"
    request = FitRequest(
        data=str(image_folder),
        backbone=f"dir:{tiny_clip_folder}",
        method="zero-shot",
        shots=1,
        views=1,
        device="cpu",
    )
    run_fit(request, folder)
    return folder


@pytest.fixture(scope="module")
def images(image_folder: Path) -> list[Path]:
    return [sorted(folder.glob("*.png"))[-1] for folder in sorted(image_folder.iterdir())]


@pytest.fixture(autouse=True, scope="module")
def opened_once() -> Iterator[None]:
    """Each run's backbone is loaded once for all tests."""
    opened: dict[Path, OpenRun] = {}

    def open_or_known(run: Run, *given: Any) -> OpenRun:
        return opened.setdefault(run.folder, opened.get(run.folder) or open_run(run, *given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain_images_module, "open_run", open_or_known)
        yield


def vmfcoop(*arguments: Any) -> Any:
    environment = {"COLUMNS": "300", "NO_COLOR": "1"}
    result = CliRunner().invoke(app, list(map(str, arguments)), env=environment)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def explained(*arguments: Any) -> dict[str, Any]:
    quick = () if "--map" in arguments else ("--map", "gradcam")
    result = vmfcoop("explain", *arguments, *quick, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: Any) -> str:
    result = vmfcoop("explain", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    messages = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(messages) == 1, result.stderr
    return str(messages[0])


@pytest.fixture(scope="module")
def plain(
    run: Path, images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """One image a class, explained without any option: the folder and what was printed of each."""
    out = tmp_path_factory.mktemp("plain") / "out"
    result = vmfcoop("explain", run, *images, "--out", out, "--json")
    found = json.loads(result.stdout)
    assert found["map"] == DEFAULT_METHOD and found["out"] == str(out)
    return out, found["images"]


Plain = tuple[Path, list[dict[str, Any]]]


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# What is written


def test_every_image_gets_its_files_and_the_page_leads_to_them(plain: Plain, images: list[Path]) -> None:
    out, rows = plain
    assert [row["source"] for row in rows] == [str(image) for image in images]
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {f for row in rows for f in row["files"].values()} | {"index.html", "explained.json"}
    links = {link["href"] for link in Page(out / "index.html").all("a")}
    for row in rows:
        assert set(row["files"]) == {"overlay", "map", "map_png", "facts"}
        assert set(row["files"].values()) <= links
    assert json.loads((out / "explained.json").read_text())["images"] == rows


def test_the_raw_map_is_the_methods_own_on_the_images_canvas(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    picture = Image.open(images[0]).resize((90, 60))
    wide = tmp_path / "wide.png"
    picture.save(wide)
    out = tmp_path / "out"
    row = explained(
        run, wide, "--out", out, "--map", "rise", "--class", CLASSES[2], "--contrast", CLASSES[0]
    )["images"][0]
    opened = open_run(read_run(run), device="cpu")
    target = class_target(opened.fitted, CLASSES[2], CLASSES[0])
    map = saliency_maps(opened.encoder, opened.encoder.preprocess(picture)[None], target, "rise")[0].numpy()
    known = place_map(map, seen_box(opened.encoder, (90, 60)), (90, 60))
    read = np.load(out / row["files"]["map"], allow_pickle=False)
    assert read.shape == (60, 90) and read.dtype == np.float32
    np.testing.assert_allclose(read, known, atol=1e-6)
    assert not read[:, :14].any() and not read[:, -14:].any() and read.max() > 0.9  # Cropped to a square.
    pixels = np.asarray(Image.open(out / row["files"]["map_png"]))
    assert np.abs(pixels / 65535 - read).max() < 1e-5
    facts = json.loads((out / row["files"]["facts"]).read_text())
    assert facts["map"]["method"] == "rise" and facts["target"] == f"{CLASSES[2]} rather than {CLASSES[0]}"
    assert facts["size"] == [90, 60] and facts["box"] == pytest.approx([15, 0, 75, 60], abs=0.6)
    assert facts["run"]["backbone_fingerprint"] == opened.encoder.fingerprint
    assert "Veiled in grey" in Page(out / "index.html").text


def test_probabilities_are_those_of_predict(run: Path, images: list[Path], plain: Plain) -> None:
    for row, known in zip(plain[1], predict_images(run, images, device="cpu").rows(), strict=True):
        assert row["probabilities"] == pytest.approx(known["probabilities"], abs=1e-5)
        assert row["predicted"] == row["explained"] == known["predicted"]
        assert row["target"] == f"{known['predicted']} rather than the rest"


def test_the_prediction_against_its_own_class_is_told_from_the_rest(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    rows = explained(run, *images, "--out", tmp_path / "out", "--contrast", CLASSES[1])["images"]
    for row in rows:
        other = "the rest" if row["predicted"] == CLASSES[1] else CLASSES[1]
        assert row["target"] == f"{row['predicted']} rather than {other}"


def test_the_default_folder_is_named_by_the_run(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(out_console, "width", 300)
    result = vmfcoop("explain", run, images[0], "--map", "gradcam")
    assert (tmp_path / "explained" / "brains" / "index.html").is_file()
    assert "explained/brains/index.html" in result.stdout and str(images[0]) in result.stdout


def test_images_of_one_name_keep_their_folders(run: Path, images: list[Path], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "new" / folder).mkdir(parents=True)
        shutil.copy(images[0], tmp_path / "new" / folder / "1.png")
    rows = explained(run, tmp_path / "new", "--out", tmp_path / "out")["images"]
    assert [row["image"] for row in rows] == ["a/1", "b/1"]
    assert (tmp_path / "out" / "b" / "1.overlay.png").is_file()


def test_names_are_plain_and_unlike_each_other(tmp_path: Path) -> None:
    files = [
        "a/1.png",
        "a/1.jpg",
        "a/1 #x&.png",
        "b/.1.png",
        "b/scan.nii.gz",
        "b/" + "n" * 250 + ".png",
        "b/ä.PNG",
    ]
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    scan = f"{tmp_path}/b/scan.nii.gz#axis=2&slice=40"
    inputs = [
        tmp_path / "a",
        tmp_path / "b" / ".1.png",
        Path(scan),
        *sorted((tmp_path / "b").glob("[nä]*")),
        tmp_path / "a",
    ]
    names = [name for _, name in named_images(inputs)]
    assert names[:5] == ["1-x", "1", "1-2", "1-3", "scan-axis-2-slice-40"]
    assert names[5:] == ["n" * 120, "ä", "1-x-2", "1-4", "1-5"]
    assert [name for _, name in named_images(inputs[:1], neutral=True)] == [
        f"image-000{i}" for i in (1, 2, 3)
    ]


def test_no_file_of_an_image_is_written_over_by_another(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    new = tmp_path / "new"
    (new / "a.json").mkdir(parents=True)
    for name in ("explained.png", "a.png", "a.json/1.png", "index.html.png"):
        shutil.copy(images[0], new / name)
    shutil.copy(images[0], os.fsencode(new) + b"/caf\xe9.png")  # No Unicode: from a Latin-1 system.
    out = tmp_path / "out"
    rows = explained(run, new, "--out", out)["images"]
    files = [file for row in rows for file in row["files"].values()]
    assert len(rows) == 5 and len(set(files)) == 20 and all((out / file).is_file() for file in files)
    summary = json.loads((out / "explained.json").read_text())
    assert [row["source"] for row in summary["images"]] == [row["source"] for row in rows]
    assert any(os.fsencode(row["source"]).endswith(b"caf\xe9.png") for row in rows)


def test_the_python_call_does_the_same(run: Path, images: list[Path], tmp_path: Path, plain: Plain) -> None:
    done = explain_images(run, images, tmp_path / "python", device="cpu")
    assert done.rows() == plain[1]
    for row in done.rows():
        for file in row["files"].values():
            assert (tmp_path / "python" / file).read_bytes() == (plain[0] / file).read_bytes()


# The page


def test_the_page_asks_nothing_of_the_network_and_describes_its_pictures(
    plain: Plain, images: list[Path]
) -> None:
    out, _ = plain
    page = Page(out / "index.html")
    pictures = page.all("img")
    assert len(pictures) == 2 * len(images) + 1
    for picture in pictures:
        assert re.match(r"data:image/(png|jpeg);base64,", picture["src"] or "") and picture["alt"]
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "video") and not (
            tag == "script" and "src" in attributes
        )
    assert not re.search(r"url\(|@import|https?://", (out / "index.html").read_text().replace("data:", ""))
    for link in page.all("a"):
        target = link["href"] or ""
        assert target.startswith("#") or (out / target).is_file()
    for name in CLASSES:
        assert name in page.text
    assert "not for clinical decisions" in page.text


def test_names_are_escaped_on_the_page(run: Path, images: list[Path], tmp_path: Path) -> None:
    named = tmp_path / "<b>&.png"
    shutil.copy(images[0], named)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    record = json.loads((other / "run.json").read_text())
    record["data"]["class_names"] = ["<script>alert(1)</script>", "a & b", "$x^2$ \\frac"]
    (other / "run.json").write_text(json.dumps(record))
    explained(other, named, "--out", tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html


# What is said of the method


@pytest.mark.parametrize(
    ("content", "state", "said"),
    [
        (None, "unchecked", "vmfcoop explain check RUN"),
        ('{"methods": {}}', "unchecked", "vmfcoop explain check RUN"),
        ("{", "unchecked", "vmfcoop explain check RUN"),
        (
            '{"images": 32, "methods": {"%s": {"passes": true}}}',
            "passed",
            "passed its checks on this run (32 test images).",
        ),
        (
            '{"images": 8, "methods": {"%s": {"passes": false}}}',
            "failed",
            "failed its checks on this run (8 test images).",
        ),
        (
            '{"images": 8, "methods": {"%s": {"passes": false, "failed": ["weights", "gibberish"]}}}',
            "failed",
            f": it {CRITERIA[1].failure}; it {CRITERIA[3].failure}. Do not read it",
        ),
    ],
)
def test_the_checks_of_the_run_are_read(
    run: Path, tmp_path: Path, content: str | None, state: str, said: str
) -> None:
    assert [CRITERIA[i].name for i in (1, 3)] == ["gibberish", "weights"]
    if content is not None:
        (tmp_path / "explain_checks.json").write_text(content.replace("%s", DEFAULT_METHOD))
    found = standing(tmp_path, DEFAULT_METHOD)
    assert found.state == state and said in found.words


@pytest.mark.parametrize("state", ["unchecked", "passed", "failed"])
def test_the_checks_of_the_run_are_said(run: Path, images: list[Path], tmp_path: Path, state: str) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    if state != "unchecked":
        content = {"images": 32, "methods": {"gradcam": {"passes": state == "passed"}}}
        (other / "explain_checks.json").write_text(json.dumps(content))
    result = vmfcoop("explain", other, images[0], "--out", tmp_path / "out", "--map", "gradcam", "--json")
    assert json.loads(result.stdout)["checks"] == state
    words = standing(other, "gradcam").words
    assert words in Page(tmp_path / "out" / "index.html").text
    assert (words in result.stderr) is (state != "passed")


def test_the_caption_of_the_figure_says_it_too(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = []
    draw = explain_images_module.overlay_figure
    monkeypatch.setattr(
        explain_images_module, "overlay_figure", lambda *given: captions.append(given[2]) or draw(*given)
    )
    monkeypatch.setattr(explain_images_module, "standing", lambda *_: Standing("failed", "It failed."))
    explain_images(run, images[:1], tmp_path / "out", method="rollout", device="cpu")
    assert captions[0].notes[:2] == ("It failed.", "This kind of map is the same for every class.")
    assert captions[0].notes[-1] == "Research use only; not for clinical decisions."
    assert captions[0].subtitle.startswith(f"{MAP_METHODS['rollout'].title}: what speaks for ")


def test_a_map_that_is_the_same_everywhere_says_so(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = explain_images_module.saliency_maps
    monkeypatch.setattr(explain_images_module, "saliency_maps", lambda *given: 0 * real(*given))
    found = explained(run, images[0], "--out", tmp_path / "out")
    assert found["images"][0]["constant"] is True
    assert "says nothing of this image" in Page(tmp_path / "out" / "index.html").text


@pytest.mark.parametrize(("row", "said"), [(0, True), (31, True), (16, False)])
def test_a_peak_on_padding_is_said(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int, said: bool
) -> None:
    map = torch.full((1, 32, 32), 0.25)
    map[:, row] = 1.0
    monkeypatch.setattr(explain_images_module, "saliency_maps", lambda *_: map)
    monkeypatch.setattr(explain_images_module, "seen_box", lambda *_: Box(0.0, -20.0, 40.0, 60.0))
    found = explained(run, images[0], "--out", tmp_path / "out")["images"][0]
    assert found["highest"] == pytest.approx(0.25 if said else 1.0, abs=0.1)
    assert ("on the padding" in Page(tmp_path / "out" / "index.html").text) is said


# What is refused


def test_faults_of_the_input_are_named_and_nothing_is_written(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    out = tmp_path / "out"
    assert "bad.png" in refused(run, *images, bad, "--out", out)
    assert "nowhere.png" in refused(run, "nowhere.png", "--out", out)
    assert "'occlusion'" in refused(run, images[0], "--map", "oclusion", "--out", out)
    assert "'glioma tumor'" in refused(run, images[0], "--class", "glioma tumour", "--out", out)
    assert "'glioma tumor'" in refused(run, images[0], "--contrast", "glioma tumour", "--out", out)
    assert "itself" in refused(run, images[0], "--class", CLASSES[0], "--contrast", CLASSES[0], "--out", out)
    assert "run directory" in refused(tmp_path, images[0], "--out", out)
    assert "--dicom" in refused(run, images[0], "--keep-identifiers", "--out", out)
    assert "None of the images is a DICOM" in refused(
        run, images[0], "--dicom", "--keep-identifiers", "--out", out
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def test_a_folder_in_use_is_not_touched(run: Path, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    explained(run, images[0], "--out", out)  # An empty one may be there.
    assert "--overwrite" in refused(run, images[1], "--out", out)
    explained(run, images[1], "--out", out, "--overwrite")
    assert sorted(path.name for path in out.glob("*.npy")) == [f"{images[1].stem}.map.npy"]
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.tex").write_text("years of work")
    assert "not overwritten" in refused(run, images[0], "--out", own, "--overwrite")
    assert "is a file" in refused(run, images[0], "--out", own / "thesis.tex", "--overwrite")
    assert [path.name for path in own.iterdir()] == ["thesis.tex"]


def test_an_error_half_way_leaves_what_was_there(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    explained(run, images[0], "--out", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    calls = iter(range(9))
    place = explain_images_module.place_map

    def failing(*given: Any) -> Any:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        return place(*given)

    monkeypatch.setattr(explain_images_module, "place_map", failing)
    assert "full" in refused(run, *images[:2], "--map", "gradcam", "--out", out, "--overwrite")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_leaves_nothing_and_no_folder_that_was_made(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(explain_images_module, "place_map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explain_images(run, images[:1], tmp_path / "new" / "out", method="gradcam", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays_itself_and_is_exchanged_or_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming over it would fail on a mount, and take a link's place."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    (real / ".hidden").write_text("a file manager's")
    inode = real.stat().st_ino
    for content in ("first", "second"):
        with written_whole(link) as scratch:
            (scratch / "a").write_text(content)
            (scratch / content).write_text(content)
        assert sorted(path.name for path in real.iterdir()) == sorted([".hidden", "a", content])
        assert (real / "a").read_text() == content
    assert link.is_symlink() and real.stat().st_ino == inode

    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UserError, match="full"), written_whole(link) as scratch:
        for name in ("a", "b", "c"):
            (scratch / name).write_text("third")
    assert sorted(path.name for path in real.iterdir()) == [".hidden", "a", "second"]
    assert (real / "a").read_text() == "second"


def test_a_folder_that_another_process_makes_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="another process"), written_whole(out):
        out.mkdir()
        (out / "theirs").write_text("kept")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_explain_did_not_write_is_not_lost(run: Path, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    explained(run, images[0], "--out", out)
    (out / "notes.txt").write_text("seen by Dr A")
    assert "notes.txt" in refused(run, images[0], "--out", out, "--overwrite")
    assert (out / "notes.txt").is_file() and (out / "index.html").is_file()
    assert "too long" in refused(run, images[0], "--out", tmp_path / ("n" * 300))


def test_explanations_inside_the_input_folder_are_not_explained(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    shutil.copy(images[0], tmp_path / "1.png")
    for name in ("a/first", "second", "a/first"):
        rows = explained(run, tmp_path, "--out", tmp_path / name, "--overwrite")["images"]
        assert [row["image"] for row in rows] == ["1"]
    (tmp_path / "1.png").unlink()
    assert "earlier explanations" in refused(run, tmp_path, "--out", tmp_path / "third")


# DICOM


def test_dicom_in_dicom_out_without_identifiers_anywhere(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_console, "width", 300)
    path = source(tmp_path / "Doe-Secret_Jane.dcm")
    picture = tmp_path / "SECRET-4711.png"
    shutil.copy(images[0], picture)
    out = tmp_path / "out"
    result = vmfcoop("explain", run, path, picture, "--out", out, "--dicom", "--map", "gradcam")
    assert result.exit_code == 0 and "burned into the pixels" in result.stderr
    assert str(path) in result.stdout and "image-0001" in result.stdout  # Who is who is said, not written.
    for file in out.rglob("*"):
        assert "secret" not in str(file.relative_to(out)).lower()
        if file.is_file():
            assert secrets(file.read_bytes()) == [] and b"4711" not in file.read_bytes()
    for number in (1, 2):
        dataset = pydicom.dcmread(out / f"image-000{number}.dcm")
        overlay = np.asarray(Image.open(out / f"image-000{number}.overlay.png"))
        assert np.array_equal(dataset.pixel_array, overlay)
        assert "what speaks for" in dataset.DerivationDescription
        assert "Research use only" in dataset.ImageComments
    assert "numbered" in Page(out / "index.html").text


def test_kept_identifiers_come_from_dicom_sources_only(run: Path, images: list[Path], tmp_path: Path) -> None:
    path = source(tmp_path / "cine.dcm", frames=4)
    rows = explained(
        run, f"{path}#frame=1", images[0], "--out", tmp_path / "out", "--dicom", "--keep-identifiers"
    )["images"]
    assert [row["image"] for row in rows] == ["cine-frame-1", images[0].stem]
    kept, other = (pydicom.dcmread(tmp_path / "out" / row["files"]["dicom"]) for row in rows)
    assert kept.PatientName == "Doe-Secret^Jane" and kept.StudyInstanceUID == "1.2.3.4.5.777"
    assert int(kept.SourceImageSequence[0].ReferencedFrameNumber) == 2
    assert other["PatientName"].is_empty and other.StudyInstanceUID != kept.StudyInstanceUID


# The group


def test_help_shows_both_uses() -> None:
    help = vmfcoop("explain", "--help")
    assert help.exit_code == 0
    usage = [
        line.split() for line in help.stdout.splitlines() if "vmfcoop explain" in line or "[OPTIONS]" in line
    ]
    assert any(line[-2:] == ["[OPTIONS]", "RUN"] and "check" in line for line in usage)
    assert any("explain" in line and "check" not in line and "images" not in line for line in usage)
    for option in ("--map", "--class", "--contrast", "--dicom", "--keep-identifiers"):
        assert option in help.stdout
    check = vmfcoop("explain", "check", "--help")
    assert check.exit_code == 0 and "--masks" in check.stdout and "--contrast" in check.stdout
    assert "--map" in vmfcoop("explain").output


def test_options_may_come_first(run: Path, images: list[Path], tmp_path: Path) -> None:
    result = vmfcoop("explain", "--out", tmp_path / "out", "--map", "gradcam", "--json", run, images[0])
    assert len(json.loads(result.stdout)["images"]) == 1


def test_a_run_that_is_named_as_a_command_is_reached_by_its_path(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "check")
    monkeypatch.chdir(tmp_path)
    assert len(explained("./check", images[0])["images"]) == 1
