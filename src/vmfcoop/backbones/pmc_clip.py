"""PMC-CLIP: CLIP's modified ResNet-50 and PubMedBERT, from the three files that its authors extracted.

Lin et al., "PMC-CLIP: Contrastive Language-Image Pre-training using Biomedical Documents", MICCAI 2023,
arXiv 2303.07240; files at https://huggingface.co/datasets/axiong/pmc_oa.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from vmfcoop.backbones.base import Family
from vmfcoop.backbones.bert import build_bert, count_blocks, entry, load_tokenizer, run_bert
from vmfcoop.backbones.files import load_state, read_json, read_torch, read_weights, require
from vmfcoop.backbones.frozen import FrozenEncoder
from vmfcoop.backbones.text import TextTokenizer
from vmfcoop.errors import UserError

IMAGE_FILE = "image_encoder(resnet50).pth"
TEXT_FILE = "text_encoder.pth"
PROJECTION_FILE = "text_projection_layer.pth"
CONFIG_FILE = "pmc_clip_config.json"
TOKENIZER_REPOSITORY = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
CONTEXT_LENGTH = 77
LOG_SCALE = 4.4292
"""The learned log of the logit scale: the three files leave it out, the authors' demo gives the number."""


@dataclass(frozen=True)
class Forward:
    """How the weights are run, which the files do not tell and published code disagrees on.

    Attributes:
        image_heads: heads of the attention pool.
        pooler: whether a text is BERT's pooler output (dense layer and tanh over the first token) or the
            first token's last hidden state.
        reads_padding: whether the text tower attends to the padding up to the context length.
    """

    image_heads: int
    pooler: bool
    reads_padding: bool


FORWARDS = {
    # The authors' demo of these files, and after it BiomedCoOp's PMC-CLIP trainers (which mask the padding).
    "biomedcoop": Forward(image_heads=8, pooler=True, reads_padding=False),
    # What the authors' training code (src/pmc_clip/model/pmc_clip.py) optimised.
    "training": Forward(image_heads=32, pooler=False, reads_padding=True),
}


class PmcClipEncoder(FrozenEncoder):
    """PMC-CLIP behind the seam: image features of the attention pool, text features ``pooled @ projection``.

    The pass is :data:`FORWARDS` ``["biomedcoop"]``: 8 heads in the attention pool and BERT's pooler output,
    as in the authors' demo of these files, and padding masked, as in BiomedCoOp's trainers.
    ``{"forward": "training"}`` in ``pmc_clip_config.json`` beside the files chooses the pass of the authors'
    training code: 32 heads, the first token's hidden state, padding attended to up to 77 tokens.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer, forward: Forward, name: str) -> None:
        self._forward = forward
        self._reads_padding = forward.reads_padding
        preprocessing = PreprocessCfg(size=model.image_encoder.image_size)
        super().__init__(model, tokenizer, preprocessing, name, logit_scale=math.exp(LOG_SCALE))

    @property
    def _embedding(self) -> nn.Embedding:
        return self._model.text_encoder.get_input_embeddings()  # type: ignore[no-any-return]

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self._model.image_encoder(pixels)  # type: ignore[no-any-return]

    def _text_features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        output = run_bert(self._model.text_encoder, embeddings, mask)
        pooled = output.pooler_output if self._forward.pooler else output.last_hidden_state[:, 0]
        return pooled @ self._model.text_projection_layer  # type: ignore[no-any-return]

    @property
    def _spatial_layer(self) -> nn.Module:
        return self._model.image_encoder.layer4  # type: ignore[no-any-return]

    @property
    def _settings(self) -> dict[str, Any]:
        return {**super()._settings, **asdict(self._forward)}


class _PmcClip(nn.Module):
    """Both towers under the names of their files."""

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, projection: Tensor) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.text_projection_layer = nn.Parameter(projection)


def recognises(folder: Path) -> bool:
    """Whether one of the two files is there that no other model has."""
    return any((folder / file).is_file() for file in (IMAGE_FILE, PROJECTION_FILE))


def load_folder(folder: Path, name: str | None = None) -> PmcClipEncoder:
    """Load a folder with PMC-CLIP's three files, asking nothing of the network.

    Beside ``image_encoder(resnet50).pth``, ``text_encoder.pth`` and ``text_projection_layer.pth`` it holds
    the tokenizer of the text tower (``vocab.txt`` or ``tokenizer.json``). The authors' demo and BiomedCoOp
    take that of ``microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract`` (formerly PubMedBERT), the training
    code that of the model of the same name ending in ``-fulltext``, from which the text tower started.

    Args:
        folder: the folder.
        name: spec string to record; default ``dir:FOLDER``.

    Raises:
        UserError: a file is missing or damaged, holds more than tensors, or is not of the same model.
    """
    folder = folder.expanduser().resolve()
    image, text, projection = (
        require(folder, file, "a folder with PMC-CLIP's three files")
        for file in (IMAGE_FILE, TEXT_FILE, PROJECTION_FILE)
    )
    forward = _chosen_forward(folder / CONFIG_FILE)
    model = _PmcClip(_image_tower(image, forward), _text_tower(text), _read_projection(projection))
    _check_widths(model, projection)
    tokenizer = load_tokenizer(folder, TOKENIZER_REPOSITORY, CONTEXT_LENGTH, model.text_encoder)
    return PmcClipEncoder(model, tokenizer, forward, name or f"dir:{folder}")


def _chosen_forward(path: Path) -> Forward:
    choice = read_json(path).get("forward") if path.is_file() else "biomedcoop"
    if choice not in FORWARDS:
        raise UserError(f"'{path}' needs \"forward\": one of {', '.join(FORWARDS)}; it says {choice!r}.")
    return FORWARDS[choice]


def _image_tower(path: Path, forward: Forward) -> nn.Module:
    """CLIP's modified ResNet, its widths and depths read off the weights."""
    state = read_weights(path)
    dim, width = entry(state, "attnpool.c_proj.weight", path, axes=2).shape
    positions = len(entry(state, "attnpool.positional_embedding", path, axes=2))
    tower = ModifiedResNet(
        layers=[count_blocks(state, f"layer{stage}.") for stage in (1, 2, 3, 4)],
        output_dim=dim,
        heads=forward.image_heads,
        image_size=32 * math.isqrt(positions - 1),
        width=width // 32,
    )
    load_state(tower, state, path, "PMC-CLIP's image tower")
    return tower  # type: ignore[no-any-return]


def _text_tower(path: Path) -> nn.Module:
    state = read_weights(path)
    tower = build_bert(state, "", path)
    load_state(tower, state, path, "PMC-CLIP's text tower")
    return tower  # type: ignore[no-any-return]


def _read_projection(path: Path) -> Tensor:
    """The file holds one bare matrix ``(w, d)``, not a dictionary."""
    matrix = read_torch(path)
    if not isinstance(matrix, Tensor) or matrix.dim() != 2:
        raise UserError(f"The weights '{path}' are not one matrix; fetch them again.")
    return matrix.detach().float()


def _check_widths(model: Any, path: Path) -> None:
    expected = (model.text_encoder.config.hidden_size, model.image_encoder.output_dim)
    found = tuple(model.text_projection_layer.shape)
    if found != expected:
        raise UserError(
            f"'{path}' has the shape {found} where the towers beside it ask for {expected}; "
            "the three files must come from the same model."
        )


FAMILY = Family(
    name="pmc-clip",
    title=f"PMC-CLIP: {IMAGE_FILE}",
    recognises=recognises,
    load=load_folder,
    weight_files=(IMAGE_FILE,),
    small_files=(TEXT_FILE, PROJECTION_FILE, "*.json", "vocab.txt"),
)
