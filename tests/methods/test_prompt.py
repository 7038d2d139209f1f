"""Prompts: the untrained one is the zero-shot one; trimming and the context are as METHOD says."""

import pytest
import torch

from tests.plain_encoder import PlainEncoder
from vmfcoop.methods.prompt import PromptLearner

NAMES = ("nevus", "actinic keratosis", "melanoma")


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_clip"])
def test_untrained_prompts_are_zero_shot(fixture, request):
    encoder = request.getfixturevalue(fixture)
    prompts = PromptLearner(encoder, NAMES)
    expected = encoder.encode_texts([f"a photo of a {name}." for name in NAMES])
    assert torch.allclose(prompts().detach(), expected, atol=1e-6)
    assert prompts.context.shape == (4, encoder.token_width)


def test_context_is_shared_and_replaces_the_words():
    encoder = PlainEncoder()
    prompts = PromptLearner(encoder, NAMES, "a photo of a")
    start = encoder.begin_marks
    tokens = encoder.tokenize([f"a photo of a {name}." for name in NAMES])
    embeddings = encoder.token_embeddings(tokens.ids).clone()
    length = prompts.context.shape[0]
    # Characters are tokens here, so the space in front of the name belongs to the name.
    assert length == len("a photo of a")
    replacement = torch.randn(length, encoder.token_width)
    embeddings[:, start : start + length] = replacement
    assert torch.allclose(prompts(replacement), encoder.encode_embeddings(embeddings, tokens.mask))


def test_prompts_are_no_longer_than_the_longest(tiny_bert):
    prompts = PromptLearner(tiny_bert, NAMES)
    longest = tiny_bert.tokenize([f"a photo of a {name}." for name in NAMES]).ids.shape[1]
    assert prompts._before.shape[1] + len(prompts.context) + prompts._after.shape[1] == longest
    assert longest < tiny_bert.context_length
