"""Every method on every backbone family, from images to predictions and back from disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from tests.backbones.instances import TINY, write
from vmfcoop import FewShotClassifier, load_backbone
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import METHODS, make_method

NAMES = ("glioma tumor", "normal brain", "cyst")
SHOTS = 3


@pytest.fixture(scope="module", params=TINY)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CachedEncoder:
    folder = write(request.param, tmp_path_factory.mktemp("backbone"))
    return CachedEncoder(load_backbone(f"dir:{folder}", "cpu"), tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Stripes by class: ``SHOTS`` pictures to learn from, then two to predict."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :48]
    images = []
    for wave in (rows / 2, columns / 2, (rows + columns) / 8):
        for _ in range(SHOTS + 2):
            clean = 128 + 90 * np.sin(wave + draw.uniform(0, 2 * np.pi))
            noisy = np.clip(clean + draw.normal(0, 10, clean.shape), 0, 255).astype(np.uint8)
            images.append(Image.fromarray(noisy).convert("RGB"))
    return images


def quick(name: str) -> dict[str, Any]:
    """Settings that end a training after a few steps, and a short vocabulary."""
    fields = METHODS[name].Config.model_fields
    short = {"epochs": 2, "iterations": 3, "vocabulary_sample": 32}
    return {key: value for key, value in short.items() if key in fields}


@pytest.mark.parametrize("name", METHODS)
def test_fits_predicts_and_is_restored(
    name: str, encoder: CachedEncoder, pictures: list[Image.Image]
) -> None:
    rows = np.arange(len(pictures)).reshape(len(NAMES), SHOTS + 2)
    labels = np.arange(len(NAMES)).repeat(SHOTS)
    support = [pictures[i] for i in rows[:, :SHOTS].flatten()]
    queries = [pictures[i] for i in rows[:, SHOTS:].flatten()]
    classifier = FewShotClassifier(encoder, name, settings=quick(name), class_names=NAMES, views=2)
    classifier.fit(support, labels)
    probabilities = classifier.predict_proba(queries)
    assert probabilities.shape == (len(queries), len(NAMES))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert probabilities.std() > 0

    fitted = classifier.fitted_
    state = load(save({key: value.contiguous() for key, value in fitted.state().items()}))
    restored = make_method(name, quick(name)).restore(state, NAMES, encoder)
    features = encoder.encode_image_files(queries)[:, 0]
    assert torch.equal(restored.logits(features), fitted.logits(features))
