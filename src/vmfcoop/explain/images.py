"""Images explained by a run: for each an overlay, the raw map and the facts, and a page of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vmfcoop.__about__ import __version__
from vmfcoop.data.downloads import checksum
from vmfcoop.data.image_io import read_image
from vmfcoop.data.references import file_kind, parse_reference
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.explain.checks import Standing, standing
from vmfcoop.explain.dicom_out import SecondaryCaptures
from vmfcoop.explain.maps import DEFAULT_METHOD, MAP_METHODS, saliency_maps
from vmfcoop.explain.outputs import PAGE, SUMMARY, named_images, refuse_in_use, written_whole
from vmfcoop.explain.page import ExplanationPage
from vmfcoop.explain.placement import Box, place_map, seen_box
from vmfcoop.explain.render import (
    Caption,
    blend,
    figure_picture,
    hidden_share,
    is_padded,
    map_npy,
    map_png16,
    overlay_figure,
    percent,
    png,
    shrunk,
)
from vmfcoop.explain.targets import NONE, REST, Target, class_index, class_target
from vmfcoop.pipeline import OpenRun, class_probabilities, open_run
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import ADAPTER, Run, read_run

AT_ONCE = 4
"""Images that are explained together; progress is told after each such batch."""
SAME_FOR_ALL = "This kind of map is the same for every class."
LIMITS = "Research use only; not for clinical decisions."
NOTICED = 0.005
"""Share of an image that the model does not see, from which the caption says so."""
PEAK = 0.8
"""Of the map on the image, below which the caption says that its peak lies elsewhere."""
VALUES = "height x width of the image; 0 to 1 within it, in the PNG 0 to 65535; 0 outside the box"
ENDINGS = {
    "overlay": ".overlay.png",
    "map": ".map.npy",
    "map_png": ".map.png",
    "facts": ".json",
    "dicom": ".dcm",
}
"""Files of an image, by kind."""


@dataclass(frozen=True)
class ExplainedImage:
    """One image with its classification and where its map lies.

    Attributes:
        source: the image as given or found.
        name: of its files, relative to the output folder, without their endings.
        probabilities: of every class, by name.
        explained: the class that the map is about.
        target: the explained score in words, such as "melanoma rather than the rest".
        size: width and height in pixels.
        box: what the model sees of it.
        constant: whether the map is the same everywhere and so shows nothing.
        highest: the map's highest value on the image, below 1 where its peak lies on padding around it.
        files: the files by kind, relative to the output folder.
    """

    source: Path
    name: str
    probabilities: dict[str, float]
    explained: str
    target: str
    size: tuple[int, int]
    box: Box
    constant: bool
    highest: float
    files: dict[str, str]

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def title(self) -> str:
        """Class and probability in words."""
        said = f"Predicted: {self.predicted}, {percent(self.probabilities[self.predicted])}"
        if self.explained == self.predicted:
            return said
        return f"Explained: {self.explained}, {percent(self.probabilities[self.explained])}. {said}"

    def facts(self) -> dict[str, Any]:
        """What is known of the image and its map, ready for JSON; not where the image came from."""
        return {
            "image": self.name,
            "predicted": self.predicted,
            "explained": self.explained,
            "target": self.target,
            "probability": round(self.probabilities[self.explained], 6),
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "size": list(self.size),
            "box": [round(edge, 3) + 0.0 for edge in self.box],
            "constant": self.constant,
            "highest": round(self.highest, 6),
            "files": self.files,
        }


@dataclass(frozen=True)
class Explained:
    """What :func:`explain_images` wrote.

    Attributes:
        folder: where it lies.
        method: key of the map method.
        standing: what its checks on the run found.
        images: one entry an image.
    """

    folder: Path
    method: str
    standing: Standing
    images: tuple[ExplainedImage, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One mapping an image, ready for JSON."""
        return [{"source": str(image.source), **image.facts()} for image in self.images]


def explain_images(
    folder: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    method: str = DEFAULT_METHOD,
    wanted: str | None = None,
    contrast: str = REST,
    overwrite: bool = False,
    dicom: bool = False,
    keep_identifiers: bool = False,
    backbone: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: ProgressReport = no_progress,
) -> Explained:
    """Show what in images speaks for a class of a run.

    Writes, for each image, ``NAME.overlay.png`` (the original beside the overlay), ``NAME.map.npy`` (float32,
    the original's height and width, 0 where the model sees nothing), ``NAME.map.png`` (the same, 16-bit),
    ``NAME.json`` (class, probabilities, what of the image the model sees, run) and, if asked, ``NAME.dcm``;
    for all of them ``index.html`` and ``explained.json``. The folder appears with all of it or not at all.

    Args:
        folder: a run directory.
        inputs: image files, with selections, and folders of them.
        out: folder to write; it may be there if it is empty.
        method: key of :data:`~vmfcoop.explain.maps.MAP_METHODS`.
        wanted: the class to explain; default the predicted class of each image.
        contrast: ``rest``, ``none``, or the class that it is told from. Where no class is wanted, an image
            that is predicted to be of the contrast class itself is explained against the rest.
        overwrite: replace a folder that an earlier call wrote.
        dicom: also write each overlay as a DICOM Secondary Capture. All files then have neutral names
            (``image-0001``), and none says where an image came from, unless identifiers are kept.
        keep_identifiers: copy patient and study from DICOM sources into the captures.
        backbone: where the run's backbone lies now; default as recorded.
        device: where the towers run.
        precision: of the towers; default the run's own.
        progress: told of loading, encoding and explaining.

    Raises:
        UserError: no image, one that cannot be read, an unknown class or method, one that the backbone does
            not offer, or ``out`` is in use; nothing is written then.
    """
    refuse_in_use(out, overwrite)
    if method not in MAP_METHODS:
        raise unknown_name("saliency method", method, MAP_METHODS)
    run = read_run(folder)
    neutral = dicom and not keep_identifiers
    named = named_images(inputs, neutral)
    paths = [path for path, _ in named]
    _check_identifiers(paths, dicom, keep_identifiers)
    with written_whole(out) as scratch:
        opened = open_run(run, backbone, device, precision, progress)
        aim = _Aim(opened, wanted, contrast)
        shown = opened.shown(paths)
        probabilities = class_probabilities(opened.fitted, opened.encoder.encode_image_files(shown)[:, 0])
        cases = [_Case(*pair, *rest) for pair, *rest in zip(named, shown, probabilities, strict=True)]
        captures = SecondaryCaptures(keep_identifiers) if dicom else None
        writer = _Writer(run, method, scratch, captures, neutral, len(cases))
        for start in range(0, len(cases), AT_ONCE):
            progress("explain images", start, len(cases))
            part = cases[start : start + AT_ONCE]
            for case, map in zip(part, aim.maps(part, method), strict=True):
                writer.write(case, aim, map.numpy())
        progress("explain images", len(cases), len(cases))
        writer.write_summary()
    return Explained(out, method, writer.standing, tuple(writer.images))


def _check_identifiers(paths: Sequence[Path], dicom: bool, keep: bool) -> None:
    if keep and not dicom:
        raise UserError("--keep-identifiers is about the files that --dicom writes; give both or neither.")
    if keep and not any(file_kind(parse_reference(path).file) == "dicom" for path in paths):
        raise UserError(
            "None of the images is a DICOM file, so there are no identifiers; leave --keep-identifiers out."
        )


class _Case(NamedTuple):
    """An image as given, its outputs' name, itself in the run's window, its probabilities ``(C,)``."""

    source: Path
    name: str
    shown: Path
    shares: NDArray[np.float64]


class _Aim:
    """Which class of each image is explained, and against what."""

    def __init__(self, opened: OpenRun, wanted: str | None, contrast: str) -> None:
        self.encoder, self._fitted = opened.encoder, opened.fitted
        self._wanted = None if wanted is None else class_index(opened.fitted, wanted)
        self._contrast = contrast
        self._targets: dict[int, Target] = {}
        # What is wrong with the names is said before any image is read.
        if self._wanted is not None:
            self._target(self._wanted)
        elif contrast not in (REST, NONE):
            class_index(opened.fitted, contrast)

    def maps(self, cases: Sequence[_Case], method: str) -> torch.Tensor:
        """Maps of n images, each of its own class, shape ``(n, H, W)``."""
        pixels = torch.stack([self.encoder.preprocess(read_image(case.shown)) for case in cases])
        classes = [self._explained(case) for case in cases]
        maps = torch.empty(len(pixels), *pixels.shape[2:])
        for index in set(classes):
            rows = [row for row, own in enumerate(classes) if own == index]
            maps[rows] = saliency_maps(self.encoder, pixels[rows], self._target(index), method)
        return maps

    def describe(
        self, case: _Case, map: NDArray[np.float32], size: tuple[int, int], files: dict[str, str]
    ) -> tuple[ExplainedImage, NDArray[np.float32]]:
        """What there is to say of an image of a width and height, and its map on its own canvas."""
        index = self._explained(case)
        box = seen_box(self.encoder, size)
        placed = place_map(map, box, size)
        image = ExplainedImage(
            source=case.source,
            name=case.name,
            probabilities=dict(zip(self._fitted.class_names, case.shares.tolist(), strict=True)),
            explained=self._fitted.class_names[index],
            target=self._target(index).name,
            size=size,
            box=box,
            constant=not map.any(),
            highest=float(placed.max()),
            files=files,
        )
        return image, placed

    def _explained(self, case: _Case) -> int:
        return int(case.shares.argmax()) if self._wanted is None else self._wanted

    def _target(self, index: int) -> Target:
        if index not in self._targets:
            against_itself = self._wanted is None and self._contrast == self._fitted.class_names[index]
            contrast = REST if against_itself else self._contrast
            self._targets[index] = class_target(self._fitted, index, contrast)
        return self._targets[index]


class _Writer:
    """Writes what belongs to each image, and in the end what belongs to all."""

    def __init__(
        self,
        run: Run,
        method: str,
        folder: Path,
        captures: SecondaryCaptures | None,
        neutral: bool,
        count: int,
    ) -> None:
        self.standing = standing(run.folder, method)
        self.images: list[ExplainedImage] = []
        self._method = MAP_METHODS[method]
        self._folder, self._captures, self._neutral = folder, captures, neutral
        self._kinds = ENDINGS if captures is not None else {k: e for k, e in ENDINGS.items() if k != "dicom"}
        self._page = ExplanationPage(count)
        self._run = _describe_run(run)
        self._common = {
            "map": {"method": method, "title": self._method.title, "checks": self.standing.state},
            "run": self._run,
            "vmfcoop": __version__,
        }

    def write(self, case: _Case, aim: _Aim, map: NDArray[np.float32]) -> None:
        """The files of one image, and its place on the page."""
        picture = read_image(case.shown)
        files = {kind: case.name + ending for kind, ending in self._kinds.items()}
        image, placed = aim.describe(case, map, picture.size, files)
        caption = self._caption(image)
        overlay = figure_picture(overlay_figure(picture, placed, caption, image.box))
        contents = {
            "overlay": png(overlay),
            "map": map_npy(placed),
            "map_png": map_png16(placed),
            "facts": _pretty({**self._facts(image), "values": VALUES, **self._common}),
        }
        if self._captures is not None:
            derivation = f"{caption.subtitle}. {caption.title}."
            contents["dicom"] = self._captures.file(overlay, case.shown, derivation, " ".join(caption.notes))
        for kind, content in contents.items():
            file = self._folder / files[kind]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.images.append(image)
        page_caption = replace(caption, notes=self._notes(image))
        small, map_small, box = shrunk(picture, placed, image.box, self._page.side)
        self._page.add(
            image.name, page_caption, image.probabilities, small, blend(small, map_small, box), files
        )

    def _facts(self, image: ExplainedImage) -> dict[str, Any]:
        """Facts of an image, with its source unless names may not be written."""
        return {**({} if self._neutral else {"source": str(image.source)}), **image.facts()}

    def write_summary(self) -> None:
        """The page, and the facts of all images in one file."""
        rows = [self._facts(image) for image in self.images]
        (self._folder / SUMMARY).write_bytes(_pretty({**self._common, "images": rows}))
        page = self._page.html(self._run, self._method, self.standing, self._neutral)
        (self._folder / PAGE).write_bytes(page.encode(errors="replace"))

    def _notes(self, image: ExplainedImage) -> tuple[str, ...]:
        """What is to be said of this image alone."""
        notes = []
        hidden = hidden_share(image.box, image.size)
        if image.constant:
            notes.append("The map is the same everywhere: it says nothing of this image.")
        elif is_padded(image.box, image.size) and image.highest < PEAK:
            notes.append("The map's highest values lie on the padding around the image and are cut off.")
        if hidden > NOTICED:
            notes.append(f"Veiled in grey: the {percent(hidden)} of the image that the model does not see.")
        return tuple(notes)

    def _caption(self, image: ExplainedImage) -> Caption:
        about_method = [self.standing.words]
        if not self._method.reads_score:
            about_method.append(SAME_FOR_ALL)
        notes = (*about_method, *self._notes(image), LIMITS)
        return Caption(image.title, f"{self._method.title}: what speaks for {image.target}", notes)


def _describe_run(run: Run) -> dict[str, Any]:
    """What tells a run from any other, and what it was fitted on."""
    record = run.record
    return {
        "folder": str(run.folder),
        "method": record["method"]["name"],
        "adapter_sha256": checksum(run.folder / ADAPTER),
        "backbone": record["backbone"]["spec"],
        "backbone_fingerprint": record["backbone"]["fingerprint"],
        "data": record["data"]["name"],
        "data_fingerprint": record["data"]["fingerprint"],
    }


def _pretty(content: dict[str, Any]) -> bytes:
    # Names of files may hold bytes that are no Unicode; escaped, they are valid JSON.
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
