"""Train the embedded CLIP: a miniature of BiomedCLIP on phantom image-caption pairs.

A timm ViT and a small BERT with a WordPiece vocabulary of its own, ended by projections to d = 128, are
trained by CLIP's contrastive loss and written in open_clip's hub format, so that the package loads them as it
loads BiomedCLIP. The findings of HELD_OUT datasets never occur in training. Seeded; an interrupted training
goes on from its last epoch.

    python scripts/train_phantom_clip.py --work WORK --out src/vmfcoop/backbones/phantom_clip --epochs 12
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from phantom_captions import caption
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.data.phantoms.core import SIZE
from vmfcoop.descriptions import load_descriptions
from vmfcoop.files import write_atomically

HELD_OUT = ("phantom-abdominal-ct", "phantom-fundus")
"""Datasets whose findings are never shown; only their normal class is."""
FIRST_INDEX = 100_000
"""Training phantoms are numbered from here, far from those that datasets are made of."""
CAPTIONS_PER_IMAGE = 6
VOCABULARY = 2000
BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
CLIP: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "timm_model_name": "test_vit3",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": SIZE,
    },
    "text_cfg": {
        "hf_model_name": "vmfcoop/phantom-bert",
        "hf_tokenizer_name": "vmfcoop/phantom-bert",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "hf_model_pretrained": False,
        "context_length": 64,
    },
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def shown_classes() -> list[tuple[str, int]]:
    """Every (dataset, label) that training may see."""
    return [
        (key, label)
        for key, dataset in PHANTOMS.items()
        for label, finding in enumerate(dataset.findings)
        if key not in HELD_OUT or not finding
    ]


def draw_class(job: tuple[str, int, int]) -> tuple[NDArray[np.uint8], list[list[str]]]:
    """Images and captions of one class: ``(n, SIZE, SIZE, 3)`` and n lists of CAPTIONS_PER_IMAGE."""
    key, label, count = job
    dataset = PHANTOMS[key]
    draw = np.random.default_rng([label, *key.encode()])
    images, captions = [], []
    for index in range(FIRST_INDEX, FIRST_INDEX + count):
        phantom = dataset.phantom(label, index)
        images.append(phantom.image)
        captions.append([caption(draw, dataset, label, phantom) for _ in range(CAPTIONS_PER_IMAGE)])
    return np.stack(images), captions


def training_pairs(work: Path, per_class: int) -> tuple[NDArray[np.uint8], list[list[str]]]:
    """All training images and captions, drawn once and kept in the work folder."""
    images_file, captions_file = work / f"images-{per_class}.npy", work / f"captions-{per_class}.json"
    if not captions_file.is_file():
        jobs = [(key, label, per_class) for key, label in shown_classes()]
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(draw_class, jobs))
        np.save(images_file, np.concatenate([images for images, _ in drawn]))
        write_atomically(captions_file, json.dumps([text for _, texts in drawn for text in texts]))
    return np.load(images_file, mmap_mode="r"), json.loads(captions_file.read_text())


def train_tokenizer(captions: list[list[str]], banks: Path) -> Tokenizer:
    """WordPiece on the captions and on the descriptions, so that unseen findings are made of known pieces."""
    described = [load_descriptions(path).descriptions for path in sorted(banks.glob("phantom-*.json"))]
    texts = [text for group in captions for text in group]
    texts += [text for bank in described for group in bank.values() for text in group]
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special))
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=marks)
    return tokenizer


def write_description(out: Path, tokenizer: Tokenizer) -> None:
    """All files of the hub folder but the weights."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "mask_token": "[MASK]"}
    write_atomically(out / "tokenizer_config.json", json.dumps(settings | names, indent=1))
    write_atomically(
        out / "config.json", json.dumps(BERT | {"vocab_size": tokenizer.get_vocab_size()}, indent=1)
    )
    hub = {"model_cfg": CLIP, "preprocess_cfg": PREPROCESS}
    write_atomically(out / "open_clip_config.json", json.dumps(hub, indent=1))


def augment(images: NDArray[np.uint8], draw: torch.Generator) -> Tensor:
    """uint8 ``(n, H, W, 3)`` -> pixels ``(n, 3, H, W)``: one crop a batch, gain and shift an image."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    side = int(SIZE * (0.7 + 0.3 * float(torch.rand((), generator=draw))))
    top, left = (int(torch.randint(SIZE - side + 1, (), generator=draw)) for _ in range(2))
    pixels = interpolate(
        pixels[:, :, top : top + side, left : left + side], SIZE, mode="bilinear", antialias=True
    )
    gain = 0.8 + 0.4 * torch.rand(len(pixels), 1, 1, 1, generator=draw)
    shift = 0.3 * torch.rand(len(pixels), 1, 1, 1, generator=draw) - 0.15
    return pixels * gain + shift


def contrastive_loss(model: Any, pixels: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the batch (Radford et al., ICML 2021)."""
    images = model.encode_image(pixels, normalize=True)
    texts = model.encode_text(ids, normalize=True)
    logits = model.logit_scale.exp() * images @ texts.T
    pairs = torch.arange(len(logits))
    return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2


def train(args: argparse.Namespace) -> None:
    """Draw the pairs, train, and write the folder after every epoch."""
    args.work.mkdir(parents=True, exist_ok=True)
    images, captions = training_pairs(args.work, args.per_class)
    tokenizer = train_tokenizer(captions, args.banks)
    write_description(args.out, tokenizer)
    torch.manual_seed(0)
    text_cfg = CLIP["text_cfg"] | {"hf_model_name": str(args.out)}
    model = open_clip.CustomTextCLIP(**(CLIP | {"text_cfg": text_cfg}))
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
    steps = args.epochs * (len(images) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, steps, pct_start=0.1)
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    encoded = [[e.ids for e in tokenizer.encode_batch(group)] for group in captions]
    checkpoint, first = args.work / "checkpoint.pt", 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["epochs"] != args.epochs:
            raise SystemExit(
                f"{checkpoint} is of a training of {saved['epochs']} epochs; give another --work."
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first = saved["epoch"]
    for epoch in range(first, args.epochs):
        loss, seconds = train_epoch(model, optimizer, schedule, images, encoded, epoch, args)
        record(args.work / "curve.csv", epoch, loss, seconds)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        scratch = checkpoint.with_suffix(".part")
        torch.save(
            state | {"schedule": schedule.state_dict(), "epoch": epoch + 1, "epochs": args.epochs}, scratch
        )
        scratch.replace(checkpoint)
        weights = {
            k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()
        }
        save_file(weights, args.out / "open_clip_model.safetensors")
        print(f"epoch {epoch + 1}/{args.epochs}: loss {loss:.3f}, {seconds:.0f} s", flush=True)


def train_epoch(
    model: Any,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    images: NDArray[np.uint8],
    encoded: list[list[list[int]]],
    epoch: int,
    args: argparse.Namespace,
) -> tuple[float, float]:
    """One pass over the images, each with one of its captions -> mean loss and seconds."""
    model.train()
    draw = torch.Generator().manual_seed(epoch)
    start, losses = time.perf_counter(), []
    order = torch.randperm(len(images), generator=draw)
    for rows in order.split(args.batch_size):
        if len(rows) < args.batch_size:
            continue
        which = torch.randint(len(encoded[0]), (len(rows),), generator=draw)
        texts = [encoded[i][j] for i, j in zip(rows.tolist(), which.tolist(), strict=True)]
        longest = max(sum(token != 0 for token in text) for text in texts)
        ids = torch.tensor([(text + [0] * longest)[:longest] for text in texts])
        loss = contrastive_loss(model, augment(images[rows.numpy()], draw), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        losses.append(float(loss.detach()))
    return float(np.mean(losses)), time.perf_counter() - start


def record(path: Path, epoch: int, loss: float, seconds: float) -> None:
    """Append a row of the training curve."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["epoch", "loss", "seconds"])
        writer.writerow([epoch + 1, f"{loss:.4f}", f"{seconds:.1f}"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="drawn images, checkpoint and training curve"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--banks", type=Path, default=Path("src/vmfcoop/descriptions/banks"))
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    train(parser.parse_args())
