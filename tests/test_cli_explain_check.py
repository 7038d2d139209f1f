"""``explain check`` through the command line, on a small run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vmfcoop.backbones import DualEncoder
from vmfcoop.cli import app
from vmfcoop.explain import methods_for
from vmfcoop.explain.checks import standing


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tiny_clip_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stripes"
    backbone = f"dir:{tiny_clip_folder}"
    done = command(
        "fit", image_folder, "--backbone", backbone, "--method", "zero-shot", "--shots", "2", "--out", folder
    )
    assert done.exit_code == 0, done.output
    return folder


def masks_of(image_folder: Path, folder: Path) -> Path:
    """The upper half of every image as its finding."""
    half = np.zeros((40, 40), np.uint8)
    half[:20] = 255
    for file in image_folder.rglob("*.png"):
        mask = folder / file.relative_to(image_folder)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(half).save(mask)
    return folder


def test_every_map_that_the_tower_offers_is_judged(run: Path, tiny_clip: DualEncoder, tmp_path: Path) -> None:
    report = tmp_path / "checks.md"
    done = command("explain", "check", run, "--images", "3", "--out", report)
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout and "(continued)" in done.stdout  # no number is cut at 80 characters
    assert max(map(len, done.stdout.splitlines())) <= 80
    written = json.loads((run / "explain_checks.json").read_text())
    assert list(written["methods"]) == list(methods_for(tiny_clip))
    assert written["images"] == 3 and not written["masks"]
    assert written["settings"]["stand_ins"]["kind"] == "names"
    for name, found in written["methods"].items():
        assert found["passes"] == (not found["failed"])
        assert f"{name}: {'PASSES' if found['passes'] else 'FAILS'}" in done.output
    # Rollout hears no prompt in a tower with a class token, whatever else it shows.
    assert written["methods"]["rollout"]["numbers"]["rank_gibberish"]["mean"] == pytest.approx(1)
    assert {"gibberish", "wrong-class"} <= set(written["methods"]["rollout"]["failed"])
    assert "No masks are known" in done.output
    text = report.read_text()
    assert "| Attention rollout | 1.00 [1.00, 1.00] |" in text and "Centred Gaussian" in text
    assert "- rollout: FAILS gibberish" in text


def test_masks_add_localisation_and_json_is_one_object(run: Path, image_folder: Path, tmp_path: Path) -> None:
    masks = masks_of(image_folder, tmp_path / "masks")
    options = ("--images", "3", "--map", "gradcam", "--masks", masks, "--json", "--out", tmp_path / "c.json")
    done = command("explain", "check", run, *options)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "c.json").read_text())
    assert list(printed["methods"]) == ["gradcam"] and printed["masks"]
    assert "energy" in printed["methods"]["gradcam"]["asked"]
    assert printed["baselines"]["uniform"]["numbers"]["energy"]["mean"] == pytest.approx(0.5)


def test_a_check_of_one_more_map_keeps_the_others_of_the_same_images(run: Path) -> None:
    def checked(*options: str) -> dict[str, object]:
        assert command("explain", "check", run, *options).exit_code == 0
        found: dict[str, object] = json.loads((run / "explain_checks.json").read_text())["methods"]
        return found

    first = checked("--images", "3", "--map", "gradcam")
    both = checked("--images", "3", "--map", "rollout")
    assert set(both) >= {"gradcam", "rollout"} and both["gradcam"] == first["gradcam"]
    assert list(checked("--images", "2", "--map", "rollout")) == ["rollout"]
    assert list(checked("--images", "2", "--map", "chefer", "--contrast", "none")) == ["chefer"]
    assert "on this run (2 test images, contrast none)" in standing(run, "chefer").words
    (run / "explain_checks.json").write_text("[damaged")
    assert list(checked("--images", "2", "--map", "gradcam")) == ["gradcam"]


def test_a_class_as_contrast_is_left_out(run: Path) -> None:
    done = command(
        "explain", "check", run, "--images", "4", "--map", "gradcam", "--contrast", "normal brain", "--json"
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert not any("normal_brain" in file for file in printed["files"])
    assert printed["settings"]["wrong_classes"]["glioma tumor"] == ["meningioma tumor"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--map", "gradcan"), "Unknown saliency method 'gradcan'; did you mean 'gradcam'"),
        (("--contrast", "glioma"), "Unknown class 'glioma'; did you mean 'glioma tumor'"),
        (("--out", "checks.html"), "'checks.html' has no ending of a report"),
        (("--masks", "nowhere"), "The folder 'nowhere' holds no mask"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence_and_leaves_earlier_checks(
    run: Path, options: tuple[str, str], sentence: str
) -> None:
    earlier = '{"methods": {}}'
    (run / "explain_checks.json").write_text(earlier)
    done = command("explain", "check", run, "--images", "3", *options)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert (run / "explain_checks.json").read_text() == earlier


def test_a_method_that_the_tower_lacks_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfcoop.explain.checks.methods_for", lambda encoder: ("occlusion", "rise"))
    done = command("explain", "check", run, "--map", "legrad")
    assert done.exit_code == 2
    assert "offers no 'legrad'; take occlusion, rise" in " ".join(done.stderr.split())
