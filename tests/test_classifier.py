"""The estimator: scikit-learn's own checks, and images, arrays, paths and features as input."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from tests.plain_encoder import PlainEncoder, around, clusters
from vmfcoop import FewShotClassifier, UserError
from vmfcoop.features import CachedEncoder
from vmfcoop.methods.zero_shot_ensemble import description_means


class AnyWidthClassifier(FewShotClassifier):
    """scikit-learn's checks bring features of many widths: take a plain encoder of the width at hand."""

    def __init__(self, *, seed=0):
        super().__init__(backbone="plain", method="coop", settings={"epochs": 5}, seed=seed)

    def _load_encoder(self, width):
        return CachedEncoder(PlainEncoder(dim=width))


EXPECTED_FAILURES = {
    "check_classifiers_train": "asks for 83 % on blobs around the origin; at the unit length of rows "
    "they overlap, and a prompt shared by all classes cannot place each class freely",
    "check_classifiers_classes": "asks for a perfect fit of such blobs, likewise",
    "check_methods_subset_invariance": "asks for 1e-7; float32 products vary in the last digit with the rows",
    "check_methods_sample_order_invariance": "likewise",
    "check_sample_weight_equivalence_on_dense_data": "support images carry no weights",
}


@parametrize_with_checks(
    [AnyWidthClassifier()], expected_failed_checks=lambda _: EXPECTED_FAILURES, xfail_strict=False
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.fixture
def encoder():
    return PlainEncoder()


def features(encoder, classes=3, shots=6):
    x, y = clusters(encoder, classes, shots)
    return x[:, 0].numpy(), y.numpy()


def test_features_in_probabilities_out(encoder, tmp_path):
    x, y = features(encoder)
    names = np.array(["nevus", "melanoma", "keratosis"])[y]
    classifier = FewShotClassifier(encoder, settings={"epochs": 3}, cache_dir=tmp_path).fit(x, names)
    assert classifier.classes_.tolist() == ["keratosis", "melanoma", "nevus"]
    probabilities = classifier.predict_proba(x)
    assert probabilities.shape == (18, 3)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert (classifier.predict(x) == classifier.classes_[probabilities.argmax(axis=1)]).all()
    assert (classifier.decision_function(x).argmax(axis=1) == probabilities.argmax(axis=1)).all()


def test_paths_images_and_arrays_are_one(encoder, tmp_path):
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 255, (20, 20, 3), dtype=np.uint8) for _ in range(6)]
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for array, path in zip(arrays, paths, strict=True):
        Image.fromarray(array).save(path)
    y = ["a", "b"] * 3

    def fit(x):
        classifier = FewShotClassifier(encoder, method="zero-shot", cache_dir=tmp_path / "cache").fit(x, y)
        return classifier.predict_proba(x)

    expected = fit(paths)
    inputs = (
        list(map(str, paths)),
        arrays,
        np.stack(arrays),
        [Image.open(p) for p in paths],
        np.array(paths, object),
    )
    for x in inputs:
        assert np.allclose(fit(x), expected, atol=1e-6)


def test_class_names_go_into_prompts(encoder, tmp_path):
    x, y = features(encoder)
    names = {0: "nevus", 1: "melanoma", 2: "keratosis"}
    by_name = FewShotClassifier(encoder, "zero-shot", class_names=names, cache_dir=tmp_path).fit(x, y)
    in_order = FewShotClassifier(
        encoder, "zero-shot", class_names=list(names.values()), cache_dir=tmp_path
    ).fit(x, y)
    assert by_name.class_names_ == in_order.class_names_ == ("nevus", "melanoma", "keratosis")
    expected = encoder.encode_texts([f"a photo of a {name}." for name in names.values()])
    assert torch.allclose(by_name.fitted_.class_embeddings, expected)


def test_descriptions_matter(encoder, tmp_path):
    x, y = features(encoder)
    templates = FewShotClassifier(encoder, "zero-shot-ensemble", cache_dir=tmp_path).fit(x, y)
    given = {str(i): [f"finding number {i}", f"this is {i}"] for i in range(3)}
    described = FewShotClassifier(encoder, "zero-shot-ensemble", descriptions=given, cache_dir=tmp_path).fit(
        x, y
    )
    assert templates.descriptions_.source == "templates"
    assert not torch.allclose(templates.fitted_.class_embeddings, described.fitted_.class_embeddings)


def test_same_seed_same_probabilities_and_clone(encoder, tmp_path):
    x, y = features(encoder)
    first = FewShotClassifier(encoder, settings={"epochs": 3}, seed=4, cache_dir=tmp_path).fit(x, y)
    assert (clone(first).fit(x, y).predict_proba(x) == first.predict_proba(x)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "vmfcop"}, "Unknown method 'vmfcop'; did you mean"),
        ({"settings": {"lambda_and": 1}}, "Unknown setting 'lambda_and'; did you mean 'lambda_anc'"),
        ({"class_names": ["one", "two"]}, "2 class names for 3 classes"),
        ({"class_names": {0: "a", 1: "b"}}, "no name for the label 2"),
        ({"descriptions": {"0": ["a", "b"], "1": ["c", "d"]}}, "no descriptions of '2'"),
        ({"descriptions": "nowhere.json"}, "nowhere.json"),
        ({"descriptions": {"0": "a text", "1": ["c", "d"]}}, "of '0' are one text"),
    ],
)
def test_bad_settings_are_one_sentence(encoder, tmp_path, change, message):
    x, y = features(encoder)
    with pytest.raises(UserError, match=message):
        FewShotClassifier(encoder, **{"cache_dir": tmp_path, **change}).fit(x, y)


def test_bad_input_is_one_sentence(encoder, tmp_path):
    x, y = features(encoder)
    classifier = FewShotClassifier(encoder, "zero-shot", cache_dir=tmp_path)
    with pytest.raises(UserError, match="X has 7 columns, features of 'plain-16-0' have 16"):
        classifier.fit(x[:, :7], y)
    with pytest.raises(UserError, match="one class only"):
        classifier.fit(x, np.zeros(len(x)))
    with pytest.raises(UserError, match="2 images but 3 labels"):
        classifier.fit([Image.new("RGB", (9, 9))] * 2, ["a", "b", "a"])
    with pytest.raises(UserError, match="validation label 9 does not occur"):
        classifier.fit(x, y, x[:2], [0, 9])


def test_swapped_descriptions_are_told_and_right_ones_are_not(encoder, tmp_path, recwarn):
    texts = {
        "nevus": ("even brown network", "symmetric round spot"),
        "melanoma": ("ragged edge of many colours", "blue grey veil"),
        "keratosis": ("stuck on waxy plaque", "white milia like cysts"),
    }
    names = list(texts)
    means = description_means(encoder, list(texts.values()))
    x, y = around(means, 6, 1, torch.Generator().manual_seed(0), noise=0.01)
    labels = np.array(names)[y.numpy()]

    def fit(descriptions, method):
        settings = {"epochs": 1} if method == "coop" else {}
        estimator = FewShotClassifier(
            encoder, method, settings=settings, descriptions=descriptions, cache_dir=tmp_path
        )
        estimator.fit(x[:, 0].numpy(), labels)

    swapped = dict(zip(names, [texts[name] for name in (*names[1:], names[0])], strict=True))
    fit(texts, "zero-shot-ensemble")
    fit(swapped, "coop")
    assert not [w for w in recwarn if "recognise" in str(w.message)]
    with pytest.warns(UserWarning, match=r"recognise 0 of the 18 .* fewer than chance \(33%\).* are swapped"):
        fit(swapped, "zero-shot-ensemble")
