"""Full-size architectures of every family: images a second, text step, memory, beside the library's own pass.

The library's pass is how a model is usually run: images in batches of 32, prompts padded to the context
length, the output of the text tower's embedding layer replaced by prompts with a learned context. Ours has
small batches of images and trimmed prompts. A text step is forward and backward of four prompts down to the
context. Memory is the most that a process of its own held which loaded the model, encoded the images and did
the steps. Weights are random: times and memory do not hang on them, and where both passes have the same ones
they must agree on them; the largest difference of a feature (images, prompts) is shown.

    python -m benchmarks.backbones --threads 1
    python -m benchmarks.backbones --only pubmedclip medsiglip --images 8 --precision fp32 bf16
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from benchmarks.random_backbone import BIOMEDCLIP, build, write_biomedclip, write_folder
from benchmarks.random_checkpoints import write_medclip, write_pmc_clip
from benchmarks.random_transformers import write_medsiglip, write_pubmedclip
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BertConfig

from vmfcoop.backbones import DualEncoder, load_backbone
from vmfcoop.backbones.files import read_weights
from vmfcoop.methods.prompt import PromptLearner

NAMES = ("glioma tumor", "meningioma tumor", "pituitary tumor", "normal brain")
CONTEXT, WORDS = "a photo of a", 4
LIBRARY_BATCH, OUR_BATCH = 32, 2


@dataclass
class Library:
    """A model as its library runs it.

    Attributes:
        images: pixels ``(n, 3, H, W)`` -> features ``(n, d)``.
        texts: token ids and mask, padded to the context length -> features ``(n, d)``.
        embedding: the text tower's embedding layer.
        tokenize: texts -> ids and mask, padded to the context length.
        same_weights: whether its weights are those of the folder, so that features must agree.
    """

    images: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor, Tensor], Tensor]
    embedding: nn.Module
    tokenize: Callable[[list[str]], tuple[Tensor, Tensor]]
    same_weights: bool = True


def of_open_clip(folder: Path) -> Library:
    """open_clip's loader and its own towers."""
    model = open_clip.create_model(f"local-dir:{folder}", force_custom_text=True).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = tokenizer(texts)
        return ids, ids != 0

    return Library(
        model.encode_image, lambda ids, _: model.encode_text(ids), model.text.token_embedding, tokenize
    )


def of_biomedclip(folder: Path) -> Library:
    """open_clip's modules: its loader of BERT towers asks the hub."""
    model = build(BIOMEDCLIP, BertConfig())
    state = read_weights(folder / "open_clip_pytorch_model.bin")
    model.load_state_dict({k: v for k, v in state.items() if not k.endswith("position_ids")})
    tokenizer = HFTokenizer(str(folder), context_length=BIOMEDCLIP["text_cfg"]["context_length"])

    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = tokenizer(texts)
        return ids, ids != 0

    embedding = model.text.transformer.get_input_embeddings()
    return Library(model.encode_image, lambda ids, _: model.encode_text(ids), embedding, tokenize)


def of_transformers(folder: Path) -> Library:
    """``from_pretrained`` and ``get_*_features``."""
    model = (
        transformers.AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval().requires_grad_(False)
    )
    siglip = model.config.model_type == "siglip"
    reader = transformers.PreTrainedTokenizerFast if siglip else transformers.AutoTokenizer
    tokenizer = reader.from_pretrained(str(folder))
    length = model.config.text_config.max_position_embeddings

    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        cleaned = [text.lower().replace(".", "") for text in texts] if siglip else texts
        batch = tokenizer(cleaned, padding="max_length", max_length=length, return_tensors="pt")
        return batch.input_ids, batch.attention_mask

    def texts(ids: Tensor, mask: Tensor) -> Tensor:
        return _tensor(model.get_text_features(ids, attention_mask=None if siglip else mask))

    def images(pixels: Tensor) -> Tensor:
        return _tensor(model.get_image_features(pixel_values=pixels))

    return Library(images, texts, model.text_model.get_input_embeddings(), tokenize)


def _tensor(output: Any) -> Tensor:
    """Features of transformers 4 (a tensor) and 5 (the towers' output)."""
    return output if isinstance(output, Tensor) else output.pooler_output


def of_published_code(folder: Path, encoder: Any = None) -> Library:
    """PMC-CLIP's and MedCLIP's towers as their authors' code has them, prompts padded to 77 tokens."""
    encoder = encoder or load_backbone(f"dir:{folder}", "cpu")
    model = encoder._model

    def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = encoder.tokenize(texts)
        rest = (0, encoder.context_length - tokens.ids.shape[1])
        return nn.functional.pad(tokens.ids, rest), nn.functional.pad(tokens.mask, rest)

    if hasattr(model, "image_encoder"):

        def pmc_texts(ids: Tensor, mask: Tensor) -> Tensor:
            output = model.text_encoder(ids, attention_mask=mask.long())
            return output.pooler_output @ model.text_projection_layer

        return Library(model.image_encoder, pmc_texts, encoder._embedding, tokenize)

    swin = hasattr(model.vision_model, "projection_head")
    tower = transformers.SwinModel(transformers.SwinConfig()).eval() if swin else model.vision_model

    def images(pixels: Tensor) -> Tensor:
        if not swin:
            return tower(pixels)
        return model.vision_model.projection_head(tower(pixels).pooler_output)

    def texts(ids: Tensor, mask: Tensor) -> Tensor:
        output = model.text_model.model(ids, attention_mask=mask.long(), output_hidden_states=True)
        states = torch.stack([output.hidden_states[layer] for layer in (1, 2, -1)])
        return model.text_model.projection_head(states.mean(dim=(0, 2)))

    return Library(images, texts, encoder._embedding, tokenize, same_weights=False)


@dataclass
class Architecture:
    """A published architecture: writes its folder, and the library's way to run it."""

    write: Callable[[Path], Path]
    library: Callable[[Path], Library]


def open_clip_folder(model: str, folder: Path) -> Path:
    """A folder of an architecture of open_clip's list."""
    return write_folder(folder, open_clip.get_model_config(model), half=True)


ARCHITECTURES = {
    "biomedclip": Architecture(partial(write_biomedclip, half=True), of_biomedclip),
    "clip-vit-b-16": Architecture(partial(open_clip_folder, "ViT-B-16"), of_open_clip),
    "clip-vit-l-14": Architecture(partial(open_clip_folder, "ViT-L-14"), of_open_clip),
    "pubmedclip": Architecture(partial(write_pubmedclip, half=True), of_transformers),
    "medsiglip": Architecture(partial(write_medsiglip, half=True), of_transformers),
    "pmc-clip": Architecture(partial(write_pmc_clip, half=True), of_published_code),
    "medclip-vit": Architecture(partial(write_medclip, half=True), of_published_code),
    "medclip-resnet": Architecture(partial(write_medclip, vision="resnet", half=True), of_published_code),
}


class LibraryRun:
    """The library's passes over the benchmark's images and prompts."""

    def __init__(self, library: Library) -> None:
        self.library = library
        ids, self.mask = library.tokenize([f"{CONTEXT} {name}." for name in NAMES])
        self.ids = ids
        self.embeddings = library.embedding(ids).detach()
        self.begin = int(ids[0, 0] == library.tokenize(["zebra"])[0][0, 0])
        self.context = nn.Parameter(self.embeddings[0, self.begin : self.begin + WORDS].clone())

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        parts = [self.library.images(part) for part in pixels.split(LIBRARY_BATCH)]
        return normalize(torch.cat(parts).float(), dim=1)

    def prompts(self) -> Tensor:
        context = self.context.expand(len(NAMES), -1, -1)
        end = self.begin + WORDS
        inputs = torch.cat([self.embeddings[:, : self.begin], context, self.embeddings[:, end:]], dim=1)
        hook = self.library.embedding.register_forward_hook(lambda *_: inputs)
        try:
            return normalize(self.library.texts(self.ids, self.mask).float(), dim=1)
        finally:
            hook.remove()


class OurRun:
    """The package's passes over the same."""

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self.learner = PromptLearner(encoder, NAMES, CONTEXT)

    def images(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.encoder.encode_images(part) for part in pixels.split(OUR_BATCH)])

    def prompts(self) -> Tensor:
        return self.learner()[0]


def seconds(action: Callable[[], Any], least: float = 1.0) -> float:
    """Median seconds of an action, after one to warm up, over at least a second and three times."""
    action()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(run: LibraryRun | OurRun, pixels: Tensor) -> dict[str, float]:
    """Images a second and milliseconds of a text step."""
    return {
        "images": len(pixels) / seconds(lambda: run.images(pixels)),
        "step": 1000 * seconds(lambda: run.prompts().sum().backward()),
    }


def compare(name: str, folder: Path, count: int, precision: str) -> dict[str, Any]:
    """Both passes in one process, and the memory of each in one of its own."""
    encoder = load_backbone(f"dir:{folder}", "cpu", precision)
    pixels = torch.rand(count, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))
    ours = OurRun(encoder)
    found: dict[str, Any] = {"ours": measure(ours, pixels), "precision": precision}
    library = ARCHITECTURES[name].library(folder)
    theirs = LibraryRun(library)
    found["library"] = measure(theirs, pixels)
    if library.same_weights:
        few = pixels[:2]
        pairs = ((ours.images(few), theirs.images(few)), (ours.prompts(), theirs.prompts()))
        found["difference"] = [float((a - b).abs().max().detach()) for a, b in pairs]
    return found


def peak_memory(name: str, folder: Path, count: int, precision: str, whose: str) -> float:
    """GiB that this process held at most, after loading, images and steps of one pass."""
    if whose == "ours":
        encoder = load_backbone(f"dir:{folder}", "cpu", precision)
        run: LibraryRun | OurRun = OurRun(encoder)
        size = encoder.image_size
    else:
        run = LibraryRun(ARCHITECTURES[name].library(folder))
        size = (448, 448) if name == "medsiglip" else (224, 224)
    run.images(torch.rand(count, 3, *size))
    run.prompts().sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_a_process(*arguments: str) -> Any:
    """What this script prints when it is told to do one thing."""
    command = [sys.executable, "-m", "benchmarks.backbones", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, found: dict[str, Any], memory: dict[str, float]) -> str:
    """A line of the table."""
    ours, library = found["ours"], found["library"]
    agree = " / ".join(f"{value:.0e}" for value in found.get("difference", [])) or "-"
    return (
        f"| {name} | {found['precision']} | {ours['images']:.2f} | {library['images']:.2f} "
        f"| {ours['images'] / library['images']:.2f} | {ours['step']:.1f} | {library['step']:.1f} "
        f"| {library['step'] / ours['step']:.1f} | {memory['ours']:.2f} | {memory['library']:.2f} | {agree} |"
    )


HEADER = (
    "| architecture | precision | images/s | library's | ratio | text step ms | library's | ratio "
    "| GiB | library's | difference |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Print the table, a line for each architecture and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--images", type=int, default=32, help="images to encode")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="ours; the library's is fp32")
    parser.add_argument("--task", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.task:
        task, name, folder, precision, whose = options.task
        work = compare if task == "compare" else partial(peak_memory, whose=whose)
        print(json.dumps(work(name, Path(folder), options.images, precision)))
        return
    print(f"torch {torch.__version__}, threads {options.threads}, {options.images} images")
    print(HEADER)
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            folder = str(ARCHITECTURES[name].write(Path(scratch) / name))
            for precision in options.precision:
                tell = ("--images", str(options.images), "--threads", str(options.threads), "--task")
                found = in_a_process(*tell, "compare", name, folder, precision, "-")
                memory = {
                    whose: in_a_process(*tell, "memory", name, folder, precision, whose)
                    for whose in ("ours", "library")
                }
                print(row(name, found, memory), flush=True)


if __name__ == "__main__":
    main()
