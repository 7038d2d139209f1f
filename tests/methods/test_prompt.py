"""Prompts: the untrained one is the zero-shot one; trimming and the context are as METHOD says."""

import warnings

import pytest
import torch

from tests.backbones.instances import write
from tests.plain_encoder import PlainEncoder
from vmfcoop.backbones import load_backbone
from vmfcoop.errors import UserError
from vmfcoop.methods import make_method
from vmfcoop.methods.base import Support
from vmfcoop.methods.prompt import PromptLearner

NAMES = ("nevus", "actinic keratosis", "melanoma")


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_clip"])
def test_untrained_prompts_are_zero_shot(fixture, request):
    encoder = request.getfixturevalue(fixture)
    prompts = PromptLearner(encoder, NAMES)
    expected = encoder.encode_texts([f"a photo of a {name}." for name in NAMES])
    assert torch.allclose(prompts().detach()[0], expected, atol=1e-6)
    assert prompts.context.shape == (1, 4, encoder.token_width)


def test_context_is_shared_and_replaces_the_words():
    encoder = PlainEncoder()
    prompts = PromptLearner(encoder, NAMES, "a photo of a")
    start = encoder.begin_marks
    tokens = encoder.tokenize([f"a photo of a {name}." for name in NAMES])
    embeddings = encoder.token_embeddings(tokens.ids).clone()
    length = prompts.context.shape[1]
    # Characters are tokens here, so the space in front of the name belongs to the name.
    assert length == len("a photo of a")
    replacement = torch.randn(length, encoder.token_width)
    embeddings[:, start : start + length] = replacement
    assert torch.allclose(prompts(replacement[None])[0], encoder.encode_embeddings(embeddings, tokens.mask))


def test_prompts_are_no_longer_than_the_longest(tiny_bert):
    prompts = PromptLearner(tiny_bert, NAMES)
    longest = tiny_bert.tokenize([f"a photo of a {name}." for name in NAMES]).ids.shape[1]
    assert prompts._before.shape[1] + prompts.context.shape[1] + prompts._after.shape[1] == longest
    assert longest < tiny_bert.context_length


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_clip"])
@pytest.mark.parametrize(
    ("position", "pattern"),
    [("end", "a photo of a {}."), ("middle", "a photo {} of a."), ("front", "{} a photo of a.")],
)
def test_class_name_stands_where_it_should(fixture, position, pattern, request):
    """Each arrangement is the same tokens as the sentence written out in that order."""
    encoder = request.getfixturevalue(fixture)
    prompts = PromptLearner(encoder, NAMES, position=position)
    expected = encoder.encode_texts([pattern.format(name) for name in NAMES])
    assert torch.allclose(prompts().detach()[0], expected, atol=1e-5)


def test_class_specific_context_is_a_context_a_class():
    encoder = PlainEncoder()
    prompts = PromptLearner(encoder, NAMES, class_specific=True, copies=2)
    assert prompts.context.shape == (2, 3, len("a photo of a"), encoder.token_width)
    with torch.no_grad():
        before = prompts()
        prompts.context[1, 2] += 1.0
        moved = (prompts() - before).norm(dim=2) > 1e-3
    assert moved.tolist() == [[False, False, False], [False, False, True]]


def test_copies_are_prompts_of_their_own():
    encoder = PlainEncoder()
    one, three = PromptLearner(encoder, NAMES), PromptLearner(encoder, NAMES, copies=3)
    contexts = torch.randn(3, *one.context.shape[1:], generator=torch.Generator().manual_seed(0))
    together = three(contexts)
    for row in range(3):
        assert torch.allclose(together[row], one(contexts[row : row + 1])[0], atol=1e-6)


def test_class_names_of_the_same_tokens_are_said(tmp_path):
    encoder = load_backbone(f"dir:{write('transformers-siglip', tmp_path)}", "cpu")
    with pytest.warns(UserWarning, match=r"'HER2\+' and 'HER2-' are the same tokens"):
        PromptLearner(encoder, ["HER2+", "brain", "HER2-"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PromptLearner(encoder, ["HER2 positive", "brain", "HER2 negative"])


def test_a_training_that_diverges_is_said(tiny_clip):
    features = torch.nn.functional.normalize(torch.randn(6, 1, tiny_clip.dim), dim=2)
    none = torch.empty(0, tiny_clip.dim), torch.empty(0, dtype=torch.int64)
    support = Support(features, torch.arange(6) % 3, NAMES, (("a lesion",),) * 3, *none)
    method = make_method("coop", {"learning_rate": 1e38, "epochs": 3})
    with pytest.raises(UserError, match="diverged"):
        method.fit(support, tiny_clip)


@pytest.mark.filterwarnings("ignore:.* longer than .* tokens")
@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_clip"])
def test_a_context_that_leaves_names_no_room_is_refused(fixture, request):
    encoder = request.getfixturevalue(fixture)
    with pytest.raises(UserError, match=f"no room in the {encoder.context_length} tokens"):
        PromptLearner(encoder, NAMES, "brain " * encoder.context_length)
    PromptLearner(encoder, NAMES, "brain " * (encoder.context_length // 2))
