"""The file of a run: what is written is read, and what is damaged or of other classes is refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from vmfcoop.errors import UserError
from vmfcoop.run import Run
from vmfcoop.trust.record import ClassFields, Trust, read_trust, trust_bytes
from vmfcoop.trust.used_files import file_digests, found_in


def run_in(folder: Path, classes: int = 3, calibration: int = 5, temperature: float = 1.37) -> Run:
    names = [f"c{i}" for i in range(classes)]
    per_class = {name: len(range(i, calibration, 3)) for i, name in enumerate(names)}
    kept = {"temperature": temperature, "per_class": per_class}
    return Run(folder, {"data": {"class_names": names}, "calibration": kept}, {})


def write(run: Run, trust: Trust) -> Path:
    path = run.folder / "trust.safetensors"
    path.write_bytes(trust_bytes(trust))
    return path


def fields(seed: int) -> ClassFields:
    draw = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(3, 8, generator=draw), dim=1)
    return ClassFields(directions, torch.rand(3, generator=draw, dtype=torch.float64))


def record(text: bool = True, calibration: int = 5) -> Trust:
    draw = torch.Generator().manual_seed(0)
    return Trust(
        torch.randn(4, 3, generator=draw),
        torch.tensor([0, 1, 2, 0]),
        torch.randn(calibration, 3, generator=draw),
        torch.arange(calibration) % 3,
        1.37,
        fields(1),
        fields(2) if text else None,
        {"softmax": torch.rand(calibration, generator=draw, dtype=torch.float64)},
        torch.randint(256, (7, 16), generator=draw, dtype=torch.uint8),
        torch.randint(256, (calibration, 16), generator=draw, dtype=torch.uint8),
    )


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("calibration", [5, 0])
def test_what_is_written_is_read(tmp_path: Path, text: bool, calibration: int) -> None:
    trust = record(text, calibration)
    run = run_in(tmp_path, calibration=calibration)
    assert read_trust(run) is None
    write(run, trust)
    found = read_trust(run)
    assert found is not None and found.temperature == 1.37
    images = ("logits", "labels")
    names = [f"{part}_{what}" for part in ("validation", "calibration") for what in images]
    for name in (*names, "fit_files", "calibration_files"):
        assert torch.equal(getattr(found, name), getattr(trust, name))
    assert torch.equal(found.image_fields.mean_directions, trust.image_fields.mean_directions)
    assert (found.text_fields is None) is not text
    assert torch.equal(found.calibration_scores["softmax"], trust.calibration_scores["softmax"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    path = write(run, record())
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"trust\.safetensors' is damaged; fit again"):
            read_trust(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("calibration_labels"),
        lambda t: t.pop("image_fields/mean_directions"),
        lambda t: t.update(calibration_labels=t["calibration_labels"][:-1].clone()),
        lambda t: t.update(validation_labels=t["validation_labels"] + 3),
        lambda t: t.update({"score/softmax": torch.zeros(2)}),
        lambda t: t.update({"text_fields/concentrations": torch.zeros(2)}),
        lambda t: t.update(temperature=torch.zeros(3)),
        lambda t: t.update(temperature=torch.tensor(0.0)),
        lambda t: t.update(temperature=torch.tensor(float("nan"))),
        lambda t: t.update(temperature=torch.tensor(1 + 1j)),
        lambda t: t.update(validation_labels=torch.tensor(0)),
        lambda t: t.update(validation_labels=t["validation_labels"].double()),
        lambda t: t.update(calibration_labels=t["calibration_labels"].int()),
        lambda t: t.update(calibration_labels=t["calibration_labels"] - 1),
        lambda t: t["calibration_logits"].fill_(float("nan")),
        lambda t: t["validation_logits"][0].fill_(float("inf")),
        lambda t: t.update(calibration_logits=t["calibration_logits"].long()),
        lambda t: t.update(calibration_logits=t["calibration_logits"].bfloat16()),
        lambda t: t.update(calibration_logits=torch.zeros(5, 3, 2)),
        lambda t: t["score/softmax"].fill_(float("nan")),
        lambda t: t.update({"image_fields/mean_directions": torch.zeros(3)}),
        lambda t: t.update({"text_fields/mean_directions": torch.zeros(3, 9)}),
        lambda t: t["image_fields/mean_directions"].fill_(float("nan")),
        lambda t: t["image_fields/concentrations"].neg_(),
        lambda t: t.update(fit_files=t["fit_files"].int()),
        lambda t: t.update(fit_files=t["fit_files"][:, :8].clone()),
        lambda t: t.update(calibration_files=t["calibration_files"][1:].clone()),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, change) -> None:
    run = run_in(tmp_path)
    path = write(run, record())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match="is damaged; fit again"):
        read_trust(run)


def test_a_file_of_other_classes_is_refused(tmp_path: Path) -> None:
    write(run_in(tmp_path), record())
    with pytest.raises(UserError, match="is damaged"):
        read_trust(run_in(tmp_path, classes=4))


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    """Of the same classes and backbone: its temperature or its calibration images are others."""
    write(run_in(tmp_path), record())
    assert read_trust(run_in(tmp_path)) is not None
    for other in (run_in(tmp_path, temperature=1.2), run_in(tmp_path, calibration=6)):
        with pytest.raises(UserError, match=r"is of another run than the run\.json beside it"):
            read_trust(other)


def test_a_file_without_digests_is_read(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    path = write(run, record())
    save_file({key: value for key, value in load_file(path).items() if "files" not in key}, path)
    found = read_trust(run)
    assert found is not None and found.fit_files.shape == found.calibration_files.shape == (0, 16)


def test_files_are_known_by_their_content_wherever_they_lie(tmp_path: Path) -> None:
    for name, content in {"a": b"one", "b": b"two", "copy": b"one", "c": b"three"}.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: file_digests([tmp_path / name]) for name in ("a", "b", "copy", "c")}
    expected = list(hashlib.sha256(b"one").digest()[:16])
    assert digests["a"].tolist() == [expected] == digests["copy"].tolist()
    all_four = torch.cat(list(digests.values()))
    assert found_in(all_four, digests["a"], digests["b"]).tolist() == [True, True, True, False]
    assert found_in(all_four, file_digests([])).tolist() == [False] * 4
    assert found_in(file_digests([]), all_four).tolist() == []
