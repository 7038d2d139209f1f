"""A run of every part that a report has, on a tiny backbone: grouped images, awkward names, descriptions."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from vmfcoop.pipeline import FitRequest, run_fit
from vmfcoop.reporting.run_report import RunReport, write_run_report
from vmfcoop.run import Run

AWKWARD = 'glioma <i>tumor</i> & "co"'


@pytest.fixture(scope="session")
def grouped_images(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image folder with pairs of images of one patient."""
    folder = tmp_path_factory.mktemp("grouped") / "stripes"
    shutil.copytree(image_folder, folder)
    with (folder / "groups.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "file", "group"])
        for path in sorted(folder.glob("*/*.png")):
            writer.writerow([path.parent.name, path.name, f"{path.parent.name}-{int(path.stem) // 2}"])
    return folder


@pytest.fixture(scope="session")
def request_of(grouped_images: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """What is asked of a fit, by method."""
    texts = {name: [f"{word} of a {name}" for word in ("a scan", "a picture", "an image", "a slice")]
             for name in (AWKWARD, "meningioma tumor", "normal brain")}  # fmt: skip
    bank = tmp_path_factory.mktemp("bank") / "texts.json"
    bank.write_text(json.dumps(texts))

    def ask(method: str, **settings: object) -> FitRequest:
        return FitRequest(
            str(grouped_images),
            backbone=f"dir:{tiny_bert_folder}",
            method=method,
            settings=settings,
            shots=3,
            views=2,
            val_shots=1,
            descriptions=bank,
            class_names={"glioma_tumor": AWKWARD},
            device="cpu",
        )

    return ask


@pytest.fixture(scope="session")
def full_run(request_of, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """vMFCoOp, four epochs."""
    return run_fit(
        request_of("vmfcoop", epochs=4), tmp_path_factory.mktemp("runs") / "full", command=["a", "b c"]
    )


@pytest.fixture(scope="session")
def full_page(full_run: Run, tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """Its report, with the maps of two mistakes."""
    place = tmp_path_factory.mktemp("report") / "page.html"
    return write_run_report(full_run.folder, place, device="cpu", map_method="gradcam", shown_mistakes=2)


@pytest.fixture
def copied(full_run: Run, tmp_path: Path) -> Path:
    """The run directory, to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(full_run.folder, folder)
    return folder
