from __future__ import annotations

import pytest

from vmfcoop.descriptions.quality import (
    FAULTS,
    NOTES,
    Finding,
    Rules,
    SentenceJudge,
    check_bank,
    modality_words,
    names_modality,
    token_overlap,
    words,
)
from vmfcoop.descriptions.subject import Subject

TUMORS = Subject(
    ("glioma tumor", "meningioma tumor", "pituitary tumor", "normal brain"), "brain MRI", "brain"
)
GOOD = {
    "glioma tumor": (
        "A glioma on this MRI fades without any clear border into the white matter around it.",
        "Magnetic resonance shows ragged rim enhancement about the dark necrotic centre of a large glioma.",
    ),
    "meningioma tumor": (
        "This MR image shows a meningioma with a broad dural base and an even bright signal.",
        "On MRI a round extra-axial meningioma displaces the cortex and has a small enhancing tail.",
    ),
    "pituitary tumor": (
        "A pituitary mass widens the sella and lifts the optic chiasm on this coronal MRI view.",
        "The MRI displays a small dark focus within the pituitary that enhances later than its rest.",
    ),
    "normal brain": (
        "Healthy brain on MRI with symmetric ventricles, sharp grey and white matter and no mass at all.",
        "In this unremarkable MR scan the sulci are even and the midline structures lie where expected.",
    ),
}


def kinds(text: str, name: str = "glioma tumor", others: tuple[str, ...] = ()) -> list[str]:
    return [finding.kind for finding in SentenceJudge(TUMORS).faults(text, name, others)]


def test_a_good_bank_has_no_findings() -> None:
    assert check_bank(GOOD, TUMORS) == []
    assert check_bank(GOOD, TUMORS, count=2) == []


def test_words_and_overlap() -> None:
    assert words("X-ray, T2*; été") == ["x", "ray", "t2", "été"]
    assert token_overlap(["a", "b", "c", "d"], ["a", "b", "x"]) == pytest.approx(2 / 3)
    assert token_overlap([], ["a"]) == 0.0


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("A glioma on this MRI has no clear border.", "short"),
        ("A glioma on MRI is" + " very" * 36 + " large.", "long"),
    ],
)
def test_length(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


def test_length_at_the_limits() -> None:
    assert kinds("A glioma on MRI with " + "x " * 5) == []
    assert kinds("A glioma on MRI with " + "x " * 35) == []
    judge = SentenceJudge(TUMORS, Rules(min_words=3, max_words=4))
    assert judge.faults("Glioma on MRI.", "glioma tumor") == []
    assert [f.kind for f in judge.faults("Glioma on MRI seen here.", "glioma tumor")] == ["long"]


def test_repetition() -> None:
    first = GOOD["glioma tumor"][0]
    assert kinds(first.upper().replace(".", " !"), others=(GOOD["glioma tumor"][1], first)) == ["duplicate"]
    (found,) = SentenceJudge(TUMORS).faults(first.lower(), "glioma tumor", (GOOD["glioma tumor"][1], first))
    assert "sentence 2" in found.detail and found.text == first.lower()
    assert kinds(first.replace("any clear", "any"), others=(first,)) == ["overlap"]
    assert kinds(GOOD["glioma tumor"][1], others=(first,)) == []


@pytest.mark.parametrize(
    "text",
    [
        "This MRI shows a meningioma tumor with a broad base on the dura and an even signal.",
        "This MRI shows two Meningioma-Tumors with a broad base on the dura and an even signal.",
        "This MRI shows a meningioma tumour with a broad base on the dura and an even signal.",
        "This MRI shows a meningioma with a broad base on the dura and an even bright signal.",
        "A glioma on MRI that lies beside a meningioma tumor with an even and bright signal.",
    ],
)
def test_another_class_used_as_the_class(text: str) -> None:
    assert kinds(text) == ["other-class"]
    assert kinds(text, "pituitary tumor") == ["other-class"]


@pytest.mark.parametrize(
    "text",
    [
        "Unlike a meningioma tumor, this glioma on MRI has no attachment to the dura at all.",
        "A glioma on MRI, more ragged than a meningioma tumor and without any dural tail.",
        "A glioma on MRI that reaches down to the pituitary and pushes the chiasm upward.",
        "A glioma on MRI pushes the healthy tissue of the other hemisphere far to the side.",
    ],
)
def test_contrast_and_surroundings_are_no_fault(text: str) -> None:
    assert kinds(text) == []


def test_a_name_within_the_own_name_is_no_fault() -> None:
    subject = Subject(("polyps", "dyed lifted polyps"), "endoscopy")
    judge = SentenceJudge(subject)
    dyed = "Dyed lifted polyps on endoscopy rest on a blue cushion with a clear line around them."
    assert judge.faults(dyed, "dyed lifted polyps") == []
    assert [f.kind for f in judge.faults(dyed, "polyps")] == ["other-class"]


def test_notes() -> None:
    judge = SentenceJudge(TUMORS)
    astrocytoma = "A low-grade astrocytoma thickens the insular cortex and is homogeneous in signal."
    assert [f.kind for f in judge.notes(astrocytoma, "glioma tumor")] == ["class-unnamed", "modality-unnamed"]
    assert judge.notes("Gliomas on magnetic resonance.", "glioma tumor") == []
    assert judge.notes("No lesion on FLAIR, an unremarkable study.", "normal brain") == []
    assert SentenceJudge(Subject(("cyst", "stone"))).notes("A cystic bubble.", "cyst") == []


@pytest.mark.parametrize(
    ("modality", "text", "named"),
    [
        ("contrast-enhanced T1-weighted MRI", "on the MR image", True),
        ("contrast-enhanced T1-weighted MRI", "the mrna", False),
        ("chest X-ray", "this radiograph", True),
        ("chest X-ray", "a chest film", True),
        ("chest X-ray", "a computed tomogram", False),
        ("B-mode ultrasound", "on sonography", True),
        ("OCT B-scans", "in this OCT image", True),
        ("OCT B-scans", "in October", False),
        ("CT", "computed tomography", True),
        ("CT", "distinct", False),
        ("H&E histology", "stained with haematoxylin", True),
        ("dermatoscopy", "a dermoscopic view", True),
        ("colour fundus photography", "a retinal photograph", True),
        ("endoscopy", "at colonoscopy", True),
        ("thermography", "a thermography map", True),
        ("thermography", "a radiograph", False),
    ],
)
def test_modalities(modality: str, text: str, named: bool) -> None:
    assert names_modality(text, modality_words(modality)) is named


def test_what_is_wrong_with_a_bank() -> None:
    one, two = GOOD["glioma tumor"]
    bank = {
        "glioma tumor": (one, one, two, ""),
        "meningioma tumor": (GOOD["meningioma tumor"][0], one.replace("A glioma", "A glioma")),
        "normal brain": GOOD["normal brain"][:1],
        "stroke": (
            two.replace("glioma", "stroke"),
            "A stroke on MRI is bright in the region of one artery only.",
        ),
    }
    found = check_bank(bank, TUMORS)
    assert {(f.kind, f.class_name, f.position) for f in found} == {
        ("missing", "pituitary tumor", None),
        ("count", "normal brain", None),
        ("extra", "stroke", None),
        ("uneven", "normal brain", None),
        ("duplicate", "glioma tumor", 2),
        ("empty", "glioma tumor", 4),
        ("class-unnamed", "glioma tumor", 4),
        ("modality-unnamed", "glioma tumor", 4),
        ("other-class", "meningioma tumor", 2),
        ("class-unnamed", "meningioma tumor", 2),
        ("shared", "meningioma tumor", 2),
    }
    assert {f.kind for f in found if f.is_fault} <= set(FAULTS)
    assert {f.kind for f in found if not f.is_fault} <= set(NOTES)


def test_classes_are_matched_whatever_their_spelling() -> None:
    spelled = {name.title().replace(" ", "_"): texts for name, texts in GOOD.items()}
    assert check_bank(spelled, TUMORS) == check_bank(GOOD, TUMORS) == []


def test_an_organ_that_one_class_names_far_more_often_is_noted() -> None:
    def uneven(names: tuple[str, str], one: tuple[str, ...], other: tuple[str, ...]) -> list[Finding]:
        found = check_bank(
            dict(zip(names, (one, other), strict=True)), Subject(names, "ultrasound", "breast")
        )
        return [finding for finding in found if finding.kind == "organ-uneven"]

    plain = tuple(f"A benign mass with {n} lobules on this ultrasound of the right side." for n in range(8))
    placed = tuple(f"A malignant breast mass with {n} spicules on this ultrasound image." for n in range(8))
    (note,) = uneven(("benign", "malignant"), plain, placed)
    assert (note.class_name, note.is_fault) == ("benign", False)
    assert note.detail == "breast in 0% of its sentences, in 100% of 'malignant'"
    even = tuple(text.replace("ultrasound", "breast ultrasound") for text in plain[:6])
    assert not uneven(("benign", "malignant"), (*even, *plain[6:]), placed)
    # A word of a class name cannot be named evenly.
    cysts = tuple(text.replace("benign mass", "cyst") for text in plain)
    assert not uneven(("breast cyst", "malignant"), cysts, placed)


def test_counts_that_were_asked_for() -> None:
    found = check_bank(GOOD, TUMORS, count=50)
    assert [f.kind for f in found] == ["count"] * 4 and found[0].detail == "2 sentences, not 50"


def test_kinds_are_faults_or_notes() -> None:
    assert not set(FAULTS) & set(NOTES)
    assert Finding("short", "a", "b").is_fault and not Finding("stray", "a", "b").is_fault
