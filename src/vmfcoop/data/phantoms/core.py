"""What a phantom is: a pure function (dataset, class, index) -> image, mask of the finding, attributes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZE = 160
"""Height and width of every phantom in pixels."""
IMAGES_PER_PATIENT = 2
"""Consecutive indices of a class that share a patient (anatomy, skin, site), as slices of one scan do."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """One drawn image.

    Attributes:
        image: uint8 RGB, shape ``(SIZE, SIZE, 3)``; grey modalities repeat one channel.
        mask: where the finding is, bool, shape ``(SIZE, SIZE)``; empty exactly for classes without one.
        attributes: what a report would mention, word by word (``side``: ``left``, ``size``: ``large``,
            ``margin``: ``irregular``), for captions.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class PhantomDataset:
    """A family of phantoms that mirrors one modality and task.

    Attributes:
        key: as data specs take it, ``phantom-...``.
        title: for tables.
        modality: as captions say it.
        anatomy: as captions say it.
        class_names: C names as prompts use them, in label order.
        findings: for each class, whether it has a finding (a mask).
        draw: (patient stream, image stream, label) -> phantom. The patient stream is the same for every
            image of a patient and gives what stays the same between them; the image stream gives the rest.
    """

    key: str
    title: str
    modality: str
    anatomy: str
    class_names: tuple[str, ...]
    findings: tuple[bool, ...]
    draw: Callable[[np.random.Generator, np.random.Generator, int], Phantom]

    def phantom(self, label: int, index: int) -> Phantom:
        """Image number ``index`` of a class: the same bytes at every call and in every process.

        Raises:
            IndexError: there is no such class, or the index is negative.
        """
        if not 0 <= label < len(self.class_names) or index < 0:
            raise IndexError(f"{self.key} has no image {index} of class {label}")
        patient, image = self.patient(label, index), _stream(self.key, label, index)
        return self.draw(_stream(self.key, "patient", patient), image, label)

    def patient(self, label: int, index: int) -> str:
        """Identity of the patient of an image; no patient has images of two classes."""
        return f"{label}-{index // IMAGES_PER_PATIENT}"


def _stream(*identity: object) -> np.random.Generator:
    """A random stream that depends on the identity alone, not on the process or the platform."""
    digest = hashlib.sha256(repr(identity).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
