"""The file of a run: what is written is read, and what is damaged or of other classes is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from vmfcoop.errors import UserError
from vmfcoop.run import Run
from vmfcoop.trust.record import ClassFields, Trust, read_trust, write_trust


def run_in(folder: Path, classes: int = 3) -> Run:
    return Run(folder, {"data": {"class_names": [f"c{i}" for i in range(classes)]}}, {})


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
    )


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("calibration", [5, 0])
def test_what_is_written_is_read(tmp_path: Path, text: bool, calibration: int) -> None:
    trust = record(text, calibration)
    run = run_in(tmp_path)
    assert read_trust(run) is None
    assert write_trust(run, trust) == tmp_path / "trust.safetensors"
    found = read_trust(run)
    assert found is not None and found.temperature == 1.37
    for name in ("validation_logits", "validation_labels", "calibration_logits", "calibration_labels"):
        assert torch.equal(getattr(found, name), getattr(trust, name))
    assert torch.equal(found.image_fields.mean_directions, trust.image_fields.mean_directions)
    assert (found.text_fields is None) is not text
    assert torch.equal(found.calibration_scores["softmax"], trust.calibration_scores["softmax"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    path = write_trust(run, record())
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
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, change) -> None:
    run = run_in(tmp_path)
    path = write_trust(run, record())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match="is damaged; fit again"):
        read_trust(run)


def test_a_file_of_other_classes_is_refused(tmp_path: Path) -> None:
    write_trust(run_in(tmp_path), record())
    with pytest.raises(UserError, match="is damaged"):
        read_trust(run_in(tmp_path, classes=4))
