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
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "glioma tumor": ("glioma", "glioblastoma", "high-grade glial neoplasm", "infiltrating intra-axial mass"),
    "meningioma tumor": ("meningioma", "dural-based mass", "extra-axial meningeal neoplasm"),
    "pituitary tumor": ("pituitary adenoma", "pituitary macroadenoma", "sellar mass"),
    "normal brain": ("no intracranial mass", "unremarkable brain", "a normal study"),
    "benign tumor": ("fibroadenoma", "simple cyst", "probably benign mass", "BI-RADS 2 lesion"),
    "malignant tumor": ("invasive ductal carcinoma", "breast cancer", "suspicious mass", "BI-RADS 5 lesion"),
    "normal scan": ("no focal lesion", "normal breast tissue", "unremarkable breast parenchyma"),
    "melanocytic nevus": ("nevus", "mole", "benign melanocytic lesion"),
    "melanoma": ("malignant melanoma", "superficial spreading melanoma", "invasive melanocytic cancer"),
    "seborrheic keratosis": ("seborrhoeic wart", "benign keratosis", "verrucous plaque"),
    "vascular lesion": ("haemangioma", "angioma", "angiokeratoma"),
    "normal retina": ("healthy fundus", "no retinopathy", "unremarkable fundus"),
    "diabetic retinopathy": ("retinal haemorrhages", "diabetic eye disease", "background retinopathy"),
    "glaucoma": ("glaucomatous cupping", "optic nerve damage", "enlarged cup"),
    "cataract": ("lens opacity", "media opacity", "clouded lens"),
    "normal lungs": ("clear lungs", "no acute cardiopulmonary disease", "a normal chest"),
    "lobar opacity": ("lobar pneumonia", "consolidation", "focal airspace disease"),
    "diffuse opacity": ("pulmonary edema", "interstitial lung disease", "bilateral infiltrates"),
    "pleural effusion": ("fluid in the pleural space", "hydrothorax", "blunted costophrenic angle"),
    "normal glands": ("normal colonic mucosa", "benign crypts", "healthy epithelium"),
    "tumor glands": ("adenocarcinoma", "invasive colorectal carcinoma", "malignant epithelium"),
    "stroma": ("connective tissue", "collagen bundles", "desmoplastic reaction"),
    "adipose tissue": ("fat", "adipocytes", "fat lobules"),
    "lymphocytes": ("lymphoid infiltrate", "inflammation", "lymphoid aggregate"),
    "normal kidney": ("no renal lesion", "unremarkable kidneys", "normal renal parenchyma"),
    "kidney cyst": ("renal cyst", "Bosniak I lesion", "simple cortical cyst"),
    "kidney stone": ("nephrolithiasis", "renal calculus", "urolithiasis"),
    "kidney tumor": ("renal cell carcinoma", "solid renal mass", "renal neoplasm"),
}
"""What authors call a class, who do not know a dataset's labels."""
NAMED_SHARE = 0.85
"""Share of captions that name the finding; the others only describe, as many real captions do."""
LABEL_SHARE = 0.25
"""Share of those that use the dataset's own name of the class."""
EMPTY_VALUES = frozenset({"none", "not applicable", ""})


def caption(draw: np.random.Generator, dataset: PhantomDataset, label: int, phantom: Phantom) -> str:
    """One caption: modality, anatomy, mostly the finding, and some of what a report would mention."""
    words = {
        "modality": str(draw.choice(MODALITY_WORDS[dataset.key])),
        "anatomy": dataset.anatomy,
        "finding": _finding(draw, dataset.class_names[label]),
    }
    opening = str(draw.choice(OPENINGS if draw.random() < NAMED_SHARE else UNNAMED)).format(**words)
    facts = [(key, value) for key, value in phantom.attributes.items() if value not in EMPTY_VALUES]
    order = draw.permutation(len(facts))[: draw.integers(0, min(4, len(facts)) + 1)]
    phrases = [_phrase(draw, *facts[i]) for i in order]
    return ", ".join([opening, *phrases]) + "."


def short_caption(draw: np.random.Generator, dataset: PhantomDataset, label: int) -> str:
    """The modality and what somebody would call the finding, nothing else."""
    return f"{draw.choice(MODALITY_WORDS[dataset.key])}, {_finding(draw, dataset.class_names[label])}."


def _finding(draw: np.random.Generator, class_name: str) -> str:
    if draw.random() < LABEL_SHARE:
        return class_name
    return str(draw.choice(OTHER_NAMES[class_name]))


def _phrase(draw: np.random.Generator, key: str, value: str) -> str:
    forms = (f"{value} {key}", f"{key} {value}", f"{key}: {value}", value)
    return str(draw.choice(forms))
