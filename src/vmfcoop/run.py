"""A run directory: what one fit was, what it learned, and how it is read again."""

from __future__ import annotations

import csv
import io
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vmfcoop.__about__ import __version__
from vmfcoop.backbones import DualEncoder
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said
from vmfcoop.methods import Fitted, make_method
from vmfcoop.methods.base import History

FORMAT = 1
RECORD, ADAPTER, METRICS = "run.json", "adapter.safetensors", "metrics.json"
PREDICTIONS, HISTORY, TRUST = "predictions.csv", "history.csv", "trust.safetensors"
REPORT = "report.html"
"""Written into the folder later, by ``vmfcoop report``; it shows images."""
LIBRARIES = ("torch", "torchvision", "open-clip-torch", "transformers", "timm", "scikit-learn", "numpy")


def describe_software() -> dict[str, str]:
    """Versions of Python, the machine's system and every library that numbers depend on."""
    versions = {"vmfcoop": __version__, "python": platform.python_version(), "system": platform.platform()}
    return versions | {library: version(library) for library in LIBRARIES}


@dataclass(frozen=True)
class Run:
    """A run directory that was read.

    Attributes:
        folder: where it lies.
        record: ``run.json``.
        metrics: ``metrics.json``.
    """

    folder: Path
    record: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names in label order."""
        return tuple(self.record["data"]["class_names"])

    def restore(self, encoder: DualEncoder) -> Fitted:
        """The fitted classifier, on the backbone that it was fitted on.

        Raises:
            UserError: the encoder's fingerprint is another one, or the adapter file is damaged.
        """
        recorded = self.record["backbone"]
        if encoder.fingerprint != recorded["fingerprint"]:
            raise UserError(
                f"The run '{self.folder}' was fitted on the backbone '{recorded['spec']}' (fingerprint "
                f"{recorded['fingerprint']}), but '{encoder.name}' has {encoder.fingerprint}; "
                "use the same weights and preprocessing."
            )
        try:
            state = load_file(self.folder / ADAPTER)
        except (OSError, SafetensorError) as error:
            raise UserError(f"'{self.folder / ADAPTER}' is missing or damaged; fit again.") from error
        method = make_method(self.record["method"]["name"], self.record["method"]["config"])
        return method.restore(state, self.class_names, encoder)


def write_run(
    folder: Path,
    record: Mapping[str, Any],
    fitted: Fitted,
    metrics: Mapping[str, Any],
    predictions: str,
    overwrite: bool = False,
    trust: bytes | None = None,
) -> None:
    """Write a run directory: all of its files or none.

    Args:
        folder: where to; its parents are made.
        record: becomes ``run.json``, with the format's number and the software's versions added.
        fitted: its state becomes ``adapter.safetensors``, its history ``history.csv``.
        metrics: becomes ``metrics.json``.
        predictions: CSV text, see :func:`predictions_table`.
        overwrite: replace a run directory that is there.
        trust: becomes ``trust.safetensors``, see :func:`vmfcoop.trust.record.trust_bytes`.

    Raises:
        UserError: the folder is there, or the disk is full; what was there stays as it was.
    """
    refuse_existing(folder, overwrite)
    full_record = {"format": FORMAT, **record, "software": describe_software()}
    with full_disk_is_said(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            scratch.chmod(0o755)
            state = {key: value.contiguous() for key, value in fitted.state().items()}
            (scratch / ADAPTER).write_bytes(save(state))
            (scratch / METRICS).write_text(_pretty(metrics), encoding="utf-8")
            (scratch / PREDICTIONS).write_text(predictions, encoding="utf-8")
            (scratch / HISTORY).write_text(history_table(fitted.history), encoding="utf-8")
            if trust is not None:
                (scratch / TRUST).write_bytes(trust)
            (scratch / RECORD).write_text(_pretty(full_record), encoding="utf-8")
            _move_into_place(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Stop before any work is done where the result would have no place.

    Raises:
        UserError: the folder is there and may not, or must not, be replaced.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"'{folder}' is there already; choose another --out, or --overwrite it.")
    if not (folder / RECORD).is_file():
        raise UserError(f"'{folder}' is not a run directory and is not overwritten; choose another --out.")


def _move_into_place(scratch: Path, folder: Path) -> None:
    if folder.exists():
        retired = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
        folder.replace(retired / folder.name)
        scratch.replace(folder)
        shutil.rmtree(retired)
    else:
        scratch.replace(folder)


def read_run(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: there is none, a file is missing or damaged, or a newer version wrote it.
    """
    if not (folder / RECORD).is_file():
        raise UserError(f"'{folder}' is not a run directory (it has no {RECORD}); give one that 'fit' wrote.")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        known = record["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The run directory '{folder}' is damaged ({error}); fit again.") from error
    if not known:
        raise UserError(f"The run '{folder}' has format {record['format']}; this version reads {FORMAT}.")
    return Run(folder, record, metrics)


def predictions_table(
    sources: Sequence[str],
    probabilities: NDArray[np.floating[Any]],
    class_names: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    more: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """CSV text: ``image[,label],predicted,probability,p(<class>)...``, one row an image.

    Args:
        sources: n names of images.
        probabilities: shape ``(n, C)``.
        class_names: C names.
        labels: true classes, shape ``(n,)``, if known.
        more: further columns by their name, n values each, put last.
    """
    further = more or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    known = ["label"] if labels is not None else []
    shares_of = [f"p({name})" for name in class_names]
    writer.writerow(["image", *known, "predicted", "probability", *shares_of, *further])
    for row, (source, shares) in enumerate(zip(sources, probabilities, strict=True)):
        best = int(shares.argmax())
        truth = [class_names[labels[row]]] if labels is not None else []
        numbers = [f"{p:.6f}" for p in (shares[best], *shares)]
        writer.writerow([source, *truth, class_names[best], *numbers, *(c[row] for c in further.values())])
    return text.getvalue()


def history_table(history: History) -> str:
    """CSV text of a training history: one row an epoch, one column a term."""
    text = io.StringIO()
    if history:
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    return text.getvalue()


def _pretty(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
