"""What every method owes: run on each of the registry, on features around directions and on phantoms."""

import dataclasses

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from tests.plain_encoder import PlainEncoder, around, clusters
from vmfcoop.backbones import load_backbone
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.descriptions import packaged_descriptions
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.errors import UserError
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import METHODS, Support, make_method
from vmfcoop.methods.base import make_config
from vmfcoop.methods.prompt import PromptConfig

PHANTOM = "phantom-chest-xray"


def is_trained(name):
    return bool({"epochs", "iterations"} & set(METHODS[name].Config.model_fields))


def is_random(name):
    """Trained on shuffled batches: another seed gives other numbers."""
    return "epochs" in METHODS[name].Config.model_fields


def takes_new_classes(name):
    return make_method(name).new_classes


def make_support(encoder, classes=2, shots=4, views=3, validation=True):
    names = tuple(f"finding {i}" for i in range(classes))
    features, labels = clusters(encoder, classes, shots, views)
    texts = tuple(template_bank(names).for_classes(names))
    kept = slice(None) if validation else slice(0, 0)
    return Support(features, labels, names, texts, features[kept, 0], labels[kept])


def quick(name):
    """Settings that end a training after a few steps."""
    fields = METHODS[name].Config.model_fields
    return {key: value for key, value in {"epochs": 3, "iterations": 5}.items() if key in fields}


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


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_one_shot_without_validation_shots(name, views):
    encoder = PlainEncoder()
    support = make_support(encoder, 3, 1, views, validation=False)
    fitted = make_method(name, quick(name)).fit(support, encoder)
    assert fitted.logits(support.image_features[:, 0]).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_numbers_other_seed_other_numbers(name):
    encoder = PlainEncoder()
    support = make_support(encoder, 3, 4)

    def state(seed):
        return make_method(name, {"seed": seed, **quick(name)}).fit(support, encoder).state()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(value.device.type == "cpu" and not value.requires_grad for value in first.values())
    if is_random(name):
        assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", METHODS)
def test_global_random_state_plays_no_part(name):
    encoder = PlainEncoder()
    support = make_support(encoder, 2, 2)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(make_method(name, quick(name)).fit(support, encoder).state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", METHODS)
def test_descriptions_change_what_methods_that_read_them_fit_and_nothing_else(name):
    encoder = PlainEncoder()
    support = make_support(encoder, 3, 2)
    other = tuple((f"{texts[0]} quite", f"another view of {texts[1]}") for texts in support.descriptions)
    fits = [
        make_method(name, quick(name)).fit(dataclasses.replace(support, descriptions=texts), encoder)
        for texts in (support.descriptions, other)
    ]
    features = support.image_features[:, 0]
    same = torch.equal(fits[0].logits(features), fits[1].logits(features))
    assert same != METHODS[name].reads_descriptions


@pytest.mark.parametrize("name", METHODS)
def test_seeds_together_are_each_alone(name):
    encoder = PlainEncoder()
    supports = [make_support(encoder, 3, 2), make_support(encoder, 3, 2)]
    together = make_method(name, quick(name)).fit_seeds(supports, [4, 5], encoder)
    features = supports[0].image_features[:, 0]
    for seed, support, fitted in zip([4, 5], supports, together, strict=True):
        alone = make_method(name, {"seed": seed, **quick(name)}).fit(support, encoder)
        assert torch.allclose(fitted.logits(features), alone.logits(features), atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_logits_after_saving_and_loading_are_identical(name):
    """Through the bytes of an adapter file, as a run directory has it."""
    encoder = PlainEncoder()
    support = make_support(encoder)
    method = make_method(name, quick(name))
    fitted = method.fit(support, encoder)
    loaded = load(save({key: value.contiguous() for key, value in fitted.state().items()}))
    restored = method.restore(loaded, support.class_names, encoder)
    features, _ = clusters(encoder, 2, 5, seed=3)
    assert torch.equal(restored.logits(features[:, 0]), fitted.logits(features[:, 0]))
    assert restored.class_names == support.class_names


@pytest.mark.parametrize("name", METHODS)
def test_new_classes_where_the_method_takes_them(name):
    encoder = PlainEncoder()
    support = make_support(encoder)
    method = make_method(name, quick(name))
    fitted = method.fit(support, encoder)
    if not takes_new_classes(name):
        with pytest.raises(UserError, match="new class names"):
            fitted.for_classes(["cyst", "stone"])
        return
    names = ("cyst", "stone", "mass")
    features = support.image_features[:, 0]
    for classifier in (fitted, method.restore(fitted.state(), support.class_names, encoder)):
        for texts in (None, template_bank(names).for_classes(names)):
            other = classifier.for_classes(names, texts)
            assert other.class_names == names
            assert other.logits(features).shape == (len(features), 3)
            assert other.logits(features).isfinite().all()


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_clip"])
@pytest.mark.parametrize("name", METHODS)
def test_encoder_and_support_are_left_bit_for_bit(name, fixture, request):
    """The gradient reaches what is learned and nothing else."""
    encoder = request.getfixturevalue(fixture)
    support = make_support(encoder, 2, 2)
    features = support.image_features.clone()
    before = {key: value.clone() for key, value in encoder._model.state_dict().items()}
    sample = {"vocabulary_sample": 64} if "vocabulary_sample" in METHODS[name].Config.model_fields else {}
    make_method(name, quick(name) | sample).fit(support, encoder)
    after = encoder._model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in encoder._model.parameters())
    assert torch.equal(support.image_features, features)
    assert support.image_features.grad is None and not support.image_features.requires_grad


@pytest.mark.parametrize(
    "name", [name for name in METHODS if is_random(name) and hasattr(METHODS[name], "tasks")]
)
def test_training_finds_the_context_that_the_images_ask_for(name):
    """Images lie where the text tower puts "x-ray 7 with <class>.": zero-shot is poor, training mends it."""
    encoder = PlainEncoder(dim=16, width=16)
    names = ("cyst", "stone", "mass")
    centres = encoder.encode_texts([f"x-ray 7 with {name}." for name in names])
    generator = torch.Generator().manual_seed(0)
    features, labels = around(centres, 8, 2, generator, noise=0.02)
    test_features, test_labels = around(centres, 60, 1, generator, noise=0.02)
    texts = tuple(template_bank(names).for_classes(names))
    support = Support(features, labels, names, texts, features[:0, 0], labels[:0])

    def accuracy(fitted):
        return float((fitted.logits(test_features[:, 0]).argmax(dim=1) == test_labels).float().mean())

    zero_shot = make_method("zero-shot").fit(support, encoder)
    # The prior of KgCoOp and ProGrad is the hand-written prompt, which is wrong here on purpose.
    free = {"kgcoop": {"knowledge_weight": 0.5}, "prograd": {"projection": 0.0}}.get(name, {})
    settings = {"learning_rate": 0.01, "epochs": 60, "batch_size": 4, **free}
    fitted = make_method(name, settings).fit(support, encoder)
    loss = "ce" if "ce" in fitted.history[0] else "loss"
    assert fitted.history[-1][loss] < fitted.history[0][loss]
    assert accuracy(fitted) > accuracy(zero_shot) + 0.1
    assert accuracy(fitted) > 0.55


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """The embedded CLIP, a support set of 16 drawn images a class, and 24 others of each."""
    encoder = CachedEncoder(load_backbone("phantom", "cpu"), tmp_path_factory.mktemp("features"))
    dataset = PHANTOMS[PHANTOM]
    names = dataset.class_names
    images = [
        Image.fromarray(dataset.phantom(label, index).image)
        for label in range(len(names))
        for index in range(44)
    ]
    features = encoder.encode_image_files(images).reshape(len(names), 44, 1, -1)
    rows = {"train": slice(16), "val": slice(16, 20), "test": slice(20, 44)}
    parts = {key: features[:, part].flatten(0, 1) for key, part in rows.items()}
    labels = {key: torch.arange(len(names)).repeat_interleave(len(parts[key]) // len(names)) for key in rows}
    bank = packaged_descriptions(PHANTOM)
    texts = tuple(bank.for_classes(names))
    validation = parts["val"][:, 0], labels["val"]
    support = Support(parts["train"], labels["train"], names, texts, *validation)
    return encoder, support, parts["test"][:, 0], labels["test"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_beats_chance_on_phantoms(name, phantoms):
    encoder, support, features, labels = phantoms
    # A text tower in every step takes its time: its methods get ten epochs of their smallest batches.
    short = {"epochs": 10, "batch_size": 4} if issubclass(METHODS[name].Config, PromptConfig) else {}
    fitted = make_method(name, {"seed": 1, **short}).fit(support, encoder)
    accuracy = float((fitted.logits(features).argmax(dim=1) == labels).float().mean())
    # Chance is 0.25; five standard deviations of 96 coin tosses above it are 0.47.
    assert accuracy > 0.47, accuracy


@pytest.mark.parametrize("name", METHODS)
def test_logits_can_be_derived_by_the_image_for_saliency(name):
    """Gradients of a logit by the image feature are slopes of the logit, also after saving and loading."""
    encoder = PlainEncoder()
    method = make_method(name, quick(name))
    fitted = method.fit(make_support(encoder, 3), encoder)
    state = {key: value.contiguous() for key, value in fitted.state().items()}
    restored = method.restore(load(save(state)), fitted.class_names, encoder)
    features = clusters(encoder, 3, 1, seed=1)[0][:, 0]
    for classifier in (fitted, restored):
        leaf = features.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier.logits(leaf)[:, 1].sum(), [leaf])
        across = gradient - (gradient * features).sum(dim=1, keepdim=True) * features
        way = across / across.norm(dim=1, keepdim=True).clamp(min=1e-9)
        ends = [
            classifier.logits(torch.nn.functional.normalize(features + sign * 5e-3 * way, dim=1))[:, 1]
            for sign in (1, -1)
        ]
        slopes = (ends[0] - ends[1]).detach() / 1e-2
        torch.testing.assert_close(slopes, across.norm(dim=1), rtol=0.05, atol=0.02)


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
