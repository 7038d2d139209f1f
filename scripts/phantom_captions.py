"""Captions of phantoms in many wordings, for the training of the embedded CLIP."""

from __future__ import annotations

import numpy as np

from vmfcoop.data.phantoms.core import Phantom, PhantomDataset

MODALITY_WORDS: dict[str, tuple[str, ...]] = {
    "phantom-brain-mri": ("MRI", "magnetic resonance image", "contrast-enhanced T1 MRI", "MR scan"),
    "phantom-breast-ultrasound": ("ultrasound", "sonogram", "ultrasound scan", "B-mode image"),
    "phantom-abdominal-ct": ("CT", "computed tomography slice", "CT scan", "axial CT"),
    "phantom-chest-xray": ("chest X-ray", "chest radiograph", "frontal radiograph", "X-ray"),
    "phantom-dermatoscopy": ("dermatoscopic image", "dermoscopy", "dermatoscopy image", "skin image"),
    "phantom-fundus": ("fundus photograph", "retinal photograph", "colour fundus image", "retina image"),
    "phantom-histology": ("H&E slide", "histology image", "stained section", "histopathology patch"),
}
OPENINGS: tuple[str, ...] = (
    "{modality} of the {anatomy} with {finding}",
    "{modality} showing {finding}",
    "{finding} on {modality}",
    "{finding} in the {anatomy}, {modality}",
    "{anatomy} {modality}: {finding}",
    "this {modality} demonstrates {finding}",
    "{modality}, findings consistent with {finding}",
    "appearance of {finding} in a {modality}",
)
UNNAMED: tuple[str, ...] = (
    "{modality} of the {anatomy}",
    "{anatomy} seen on {modality}",
    "a {modality}",
    "{modality}, {anatomy}",
)
NAMED_SHARE = 0.6
"""Share of captions that name the class; the others only describe, as many real captions do."""
EMPTY_VALUES = frozenset({"none", "not applicable", ""})


def caption(draw: np.random.Generator, dataset: PhantomDataset, label: int, phantom: Phantom) -> str:
    """One caption: modality, anatomy, mostly the class, and some of what a report would mention."""
    words = {
        "modality": str(draw.choice(MODALITY_WORDS[dataset.key])),
        "anatomy": dataset.anatomy,
        "finding": dataset.class_names[label],
    }
    opening = str(draw.choice(OPENINGS if draw.random() < NAMED_SHARE else UNNAMED)).format(**words)
    facts = [(key, value) for key, value in phantom.attributes.items() if value not in EMPTY_VALUES]
    order = draw.permutation(len(facts))[: draw.integers(0, min(4, len(facts)) + 1)]
    phrases = [_phrase(draw, *facts[i]) for i in order]
    return ", ".join([opening, *phrases]) + "."


def _phrase(draw: np.random.Generator, key: str, value: str) -> str:
    forms = (f"{value} {key}", f"{key} {value}", f"{key}: {value}", value)
    return str(draw.choice(forms))
