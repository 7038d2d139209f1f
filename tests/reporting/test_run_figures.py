"""Figures of a run's report: what is drawn, how it is labelled, and what a reader without eyes is told."""

import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vmfcoop.reporting import run_figures
from vmfcoop.reporting.run_figures import (
    average_precisions,
    class_look,
    reliability_diagram,
    roc_and_precision_recall,
    shortened,
    sphere_figure,
    training_curves,
)
from vmfcoop.reporting.sphere_view import Images, sphere_view
from vmfcoop.trust.calibration import reliability


def table(n=80, classes=3):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, n)
    logits = draw.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True), labels


def view_of(classes, images=40):
    draw = np.random.default_rng(1)
    texts = np.eye(32)[0] + 0.12 * draw.normal(size=(classes, 32))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    labels = np.arange(images) % classes
    features = texts[labels] + 0.05 * draw.normal(size=(images, 32))
    found = Images(features / np.linalg.norm(features, axis=1, keepdims=True), labels)
    return sphere_view({"before": texts[::-1].copy(), "after": texts}, (), found, found), labels


def alt(svg):
    return re.search(r'aria-label="([^"]*)"', svg)[1]


def ids(svg):
    return set(re.findall(r'\bid="([^"]*)"', svg))


def test_areas_are_scikit_learns_and_undefined_classes_have_none():
    probabilities, labels = table(classes=4)
    labels[labels == 3] = 0
    found = average_precisions(probabilities, labels)
    expected = [average_precision_score(labels == i, probabilities[:, i]) for i in range(3)]
    assert found[:3] == pytest.approx(expected) and found[3] is None
    areas = [roc_auc_score(labels == i, probabilities[:, i]) for i in range(3)]
    svg = roc_and_precision_recall(probabilities, labels, ("a", "b", "c", "d"), [*areas, None], "k")
    for name, area, precision in zip("abc", areas, expected, strict=True):
        assert f"{name} {area:.3f} and {precision:.3f}" in alt(svg)
        assert f"<title>{name}: AUROC {area:.3f}" in svg
    assert "d:" not in alt(svg) and ">d: AUROC" not in svg


def test_figures_of_a_page_share_no_id_and_follow_its_colours():
    probabilities, labels = table()
    view, classes = view_of(3)
    figures = [
        roc_and_precision_recall(probabilities, labels, ("a", "b", "c"), [0.9, 0.9, 0.9], "one"),
        reliability_diagram({"plain": reliability(probabilities, labels)}, "two"),
        training_curves([{"epoch": 0.0, "loss": 1.0}, {"epoch": 1.0, "loss": 0.5}], [1.0, 2.0], "three"),
        sphere_figure(view, ("a", "b", "c"), classes, classes, "four"),
    ]
    every = [identity for svg in figures for identity in ids(svg)]
    assert len(every) == len(set(every))
    for svg in figures:
        assert "currentColor" in svg and run_figures.INK not in svg and "<metadata" not in svg
    assert "var(--series-3" in figures[0] and "var(--series-3" in figures[3]


def test_reliability_is_told_in_words():
    diagram = reliability(np.array([[0.9, 0.1], [0.2, 0.8], [0.95, 0.05]]), np.array([0, 1, 1]), 5)
    told = alt(reliability_diagram({"plain": diagram}, "k"))
    assert f"plain, ECE {diagram.ece:.3f}: 0.88 right 0.67 (3)." in told


def test_losses_of_unlike_size_have_a_logarithmic_axis_in_plain_numbers():
    history = [{"epoch": float(i), "loss": 3.0, "anc": 2.0 / 10**i} for i in range(4)]
    svg = training_curves(history, None, "k")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert "0.01" in texts and not any("$" in text for text in texts)
    assert "anc 2 and 0.002" in alt(svg)


def test_many_or_long_names_become_numbers_on_the_sphere():
    names = [f"class {i}" for i in range(12)]
    view, labels = view_of(12)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", sphere_figure(view, names, labels, labels, "k"))
    assert texts.count("12") == 1 and "class 11" not in texts
    assert any(text.split() == ["12", "class", "11"] for text in texts)
    view, labels = view_of(3)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", sphere_figure(view, names[:3], labels, labels, "k"))
    assert texts.count("class 0") == 2  # beside its prompt and in the legend


def test_a_great_many_images_are_drawn_in_part(monkeypatch):
    monkeypatch.setattr(run_figures, "DRAWN_IMAGES", 50)
    view, labels = view_of(3, images=200)
    drawn = [
        len(re.findall(r"<use ", sphere_figure(view, ("a", "b", "c"), None, some, "k")))
        for some in (labels, None)
    ]
    assert drawn[0] - drawn[1] == 50


def test_looks_are_unlike():
    looks = [class_look(i) for i in range(36)]
    assert len({(color, str(dash), marker) for color, dash, marker in looks}) == 36


LONG = "a name that pathologists write, with commas and clauses, and that ends in the grade, which is 3"


def test_legends_have_room_for_every_name():
    """Long names lose their middle, and one that begins with an underscore is not left out."""
    probabilities, labels = table()
    names = (LONG, "_hidden", "plain")
    svg = roc_and_precision_recall(probabilities, labels, names, [0.5] * 3, "k")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    shown = shortened(LONG)
    assert len(shown) <= 60 and shown.startswith("a name that") and shown.endswith(" grade, which is 3")
    for name in (shown, "_hidden", "plain"):
        assert sum(text.startswith(f"{name}: AUROC") for text in texts) == 1
    assert not [text for text in texts if LONG in text] and f"<title>{LONG}: AUROC" in svg
    view, labels = view_of(3)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", sphere_figure(view, names, labels, labels, "s"))
    assert {f"1  {shown}", "2  _hidden", "3  plain"} <= set(texts)


def test_text_is_left_alone_and_any_letter_will_do(recwarn):
    """Colours and ids are the page's in tags only; what the font lacks is drawn by the browser."""
    probabilities, labels = table()
    names = ("#0072b2 url(#x) #010203", "\U0001fac1 \u80ba", "\u0648\u0631\u0645")
    svg = roc_and_precision_recall(probabilities, labels, names, [0.5] * 3, "k")
    for name in names:
        assert f">{name}: AUROC" in svg
    assert "stroke: var(--series-1, #0072b2)" in svg
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_epochs_are_whole_numbers():
    svg = training_curves([{"epoch": float(i), "loss": 1.0 + i} for i in range(2)], None, "k")
    ticks = re.findall(r"<text[^>]*>(\d+(?:\.\d+)?)</text>", svg.split('id="k-matplotlib.axis_2"')[0])
    assert ticks == ["0", "1"]
