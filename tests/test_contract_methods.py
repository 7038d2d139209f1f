"""What every method owes: run on each of the registry, on features around class directions."""

import pytest
import torch

from tests.plain_encoder import PlainEncoder, around, clusters
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.errors import UserError
from vmfcoop.methods import METHODS, Support, make_method
from vmfcoop.methods.base import make_config

TRAINED = {"coop", "vmfcoop"}


def make_support(encoder, classes=2, shots=4, views=3):
    names = tuple(f"finding {i}" for i in range(classes))
    features, labels = clusters(encoder, classes, shots, views)
    texts = tuple(template_bank(names).for_classes(names))
    return Support(features, labels, names, texts, features[:, 0], labels)


def quick(name):
    return {"epochs": 3} if "epochs" in METHODS[name].Config.model_fields else {}


@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("shots", [1, 16])
@pytest.mark.parametrize("name", METHODS)
def test_fits_and_gives_finite_float32_logits(name, shots, classes):
    encoder = PlainEncoder()
    fitted = make_method(name, quick(name)).fit(make_support(encoder, classes, shots), encoder)
    features, _ = clusters(encoder, classes, 3, seed=1)
    logits = fitted.logits(features[:, 0])
    assert logits.shape == (3 * classes, classes)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert not logits.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_numbers_other_seed_other_numbers(name):
    encoder = PlainEncoder()
    support = make_support(encoder, 3, 4)

    def state(seed):
        return make_method(name, {"seed": seed, **quick(name)}).fit(support, encoder).state()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    if name in TRAINED:
        assert not torch.equal(first["class_embeddings"], other["class_embeddings"])


@pytest.mark.parametrize("name", METHODS)
def test_restored_logits_are_identical(name):
    encoder = PlainEncoder()
    support = make_support(encoder)
    method = make_method(name, quick(name))
    fitted = method.fit(support, encoder)
    restored = method.restore(fitted.state(), support.class_names, encoder)
    features, _ = clusters(encoder, 2, 5, seed=3)
    assert torch.equal(restored.logits(features[:, 0]), fitted.logits(features[:, 0]))
    assert restored.class_names == support.class_names


@pytest.mark.parametrize("name", METHODS)
def test_new_classes_by_name_and_old_ones_again(name):
    encoder = PlainEncoder()
    support = make_support(encoder)
    fitted = make_method(name, quick(name)).fit(support, encoder)
    again = fitted.for_classes(support.class_names)
    assert torch.allclose(again.class_embeddings, fitted.class_embeddings, atol=1e-6)
    other = fitted.for_classes(["cyst", "stone", "mass"])
    assert other.class_names == ("cyst", "stone", "mass")
    assert other.logits(support.image_features[:, 0]).shape[1] == 3


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_clip"])
@pytest.mark.parametrize("name", METHODS)
def test_encoder_is_left_bit_for_bit(name, fixture, request):
    encoder = request.getfixturevalue(fixture)
    before = {key: value.clone() for key, value in encoder._model.state_dict().items()}
    settings = quick(name) | ({"vocabulary_sample": 64} if name == "vmfcoop" else {})
    make_method(name, settings).fit(make_support(encoder, 2, 2), encoder)
    after = encoder._model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in encoder._model.parameters())


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_training_finds_the_context_that_the_images_ask_for(name):
    """Images lie where the text tower puts "x-ray 7 with <class>.": zero-shot is poor, training mends it."""
    encoder = PlainEncoder(dim=16, width=16)
    names = ("cyst", "stone", "mass")
    centres = encoder.encode_texts([f"x-ray 7 with {name}." for name in names])
    draw = torch.Generator().manual_seed(0)
    features, labels = around(centres, 8, 2, draw, noise=0.02)
    test_features, test_labels = around(centres, 60, 1, draw, noise=0.02)
    texts = tuple(template_bank(names).for_classes(names))
    support = Support(features, labels, names, texts, features[:0, 0], labels[:0])

    def accuracy(fitted):
        return float((fitted.logits(test_features[:, 0]).argmax(dim=1) == test_labels).float().mean())

    zero_shot = make_method("zero-shot").fit(support, encoder)
    fitted = make_method(name, {"learning_rate": 0.01, "epochs": 60}).fit(support, encoder)
    assert fitted.history[-1]["ce" if name == "vmfcoop" else "loss"] < fitted.history[0]["loss"]
    assert accuracy(fitted) > accuracy(zero_shot) + 0.1
    assert accuracy(fitted) > 0.55


@pytest.mark.parametrize("name", METHODS)
def test_unknown_setting_is_named_with_the_nearest(name):
    with pytest.raises(UserError, match="Unknown setting 'sed'; did you mean 'seed'"):
        make_method(name, {"sed": 1})


def test_unknown_method_is_named_with_the_nearest():
    with pytest.raises(UserError, match="Unknown method 'vmfcop'; did you mean 'vmfcoop'"):
        make_method("vmfcop")


def test_settings_are_checked():
    config = METHODS["vmfcoop"].Config
    assert make_config(config, {"epochs": "7", "anchor": "false", "tau_end": "3.5"}).tau_end == 3.5
    with pytest.raises(UserError, match="setting 'epochs' cannot be 'many'"):
        make_config(config, {"epochs": "many"})
    with pytest.raises(UserError, match="setting 'estimator' cannot be 'mle'"):
        make_config(config, {"estimator": "mle"})
