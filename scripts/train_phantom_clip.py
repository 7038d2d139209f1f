"""Train the embedded CLIP: a miniature of BiomedCLIP on phantom image-caption pairs.

A timm ViT and a small BERT with a WordPiece vocabulary of its own, ended by projections to d = 128, are
trained by CLIP's contrastive loss and written in open_clip's hub format, so that the package loads them as it
loads BiomedCLIP. The findings of HELD_OUT datasets never occur in training. Seeded; an interrupted training
goes on from its last epoch.

    python scripts/train_phantom_clip.py --work WORK --out src/vmfcoop/backbones/phantom_clip
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
from rich.console import Console
from safetensors.torch import save
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy, interpolate

from phantom_captions import caption, short_caption
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.data.phantoms.core import SIZE
from vmfcoop.descriptions import load_descriptions
from vmfcoop.files import write_atomically
from vmfcoop.progress import ProgressReport, no_progress, progress_bars

HELD_OUT = ("phantom-histology", "phantom-fundus")
"""Datasets whose findings are never shown, only their classes without one."""
FIRST_INDEX = 100_000
"""Training phantoms are numbered from here, far from those that datasets are made of."""
CAPTIONS_PER_IMAGE = 6
VALIDATION = 20
"""Further images a class, never trained on, that the curve's zero-shot accuracy is taken on."""
VOCABULARY = 2000
SHORT_SHARE = 0.5
"""Share of the training that shows short captions only: what a finding is called is learned before its looks
are told in sentences."""
WARMUP = 0.03
"""Share of the training over which the learning rate rises; then it falls linearly."""
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
    "initializer_range": 0.08,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
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
        "hf_pooler_type": "mean_pooler",
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
    """Images and captions of one class: ``(n, SIZE, SIZE, 3)`` and n lists, the short caption last."""
    key, label, count = job
    dataset = PHANTOMS[key]
    draw = np.random.default_rng([label, *key.encode()])
    images, captions = [], []
    for index in range(FIRST_INDEX, FIRST_INDEX + count):
        phantom = dataset.phantom(label, index)
        images.append(phantom.image)
        captions.append(
            [caption(draw, dataset, label, phantom) for _ in range(CAPTIONS_PER_IMAGE)]
            + [short_caption(draw, dataset, label)]
        )
    return np.stack(images), captions


def training_pairs(
    work: Path, per_class: int, report: ProgressReport
) -> tuple[NDArray[np.uint8], list[list[str]]]:
    """All training images and captions, drawn once and kept in the work folder."""
    images_file, captions_file = work / f"images-{per_class}.npy", work / f"captions-{per_class}.json"
    if not captions_file.is_file():
        jobs = [(key, label, per_class + VALIDATION) for key, label in shown_classes()]
        drawn = []
        with ProcessPoolExecutor() as pool:
            for result in pool.map(draw_class, jobs):
                drawn.append(result)
                report("draw classes", len(drawn), len(jobs))
        np.save(images_file, np.concatenate([images for images, _ in drawn]))
        write_atomically(captions_file, json.dumps([text for _, texts in drawn for text in texts]))
    return np.load(images_file, mmap_mode="r"), json.loads(captions_file.read_text())


def validation_rows(per_class: int) -> NDArray[np.bool_]:
    """Which of all drawn images are kept out of training, the last of every class."""
    return np.tile(np.arange(per_class + VALIDATION) >= per_class, len(shown_classes()))


@torch.no_grad()
def zero_shot_accuracy(model: Any, tokenizer: Tokenizer, images: NDArray[np.uint8]) -> float:
    """Share of the validation images named rightly among the classes of their dataset, by class names."""
    model.eval()
    right = []
    groups = images.reshape(len(shown_classes()), VALIDATION, *images.shape[1:])
    for key in dict.fromkeys(key for key, _ in shown_classes() if key not in HELD_OUT):
        ids = [tokenizer.encode(f"a photo of a {name}.").ids for name in PHANTOMS[key].class_names]
        texts = model.encode_text(padded(ids), normalize=True)
        for row, (other, label) in enumerate(shown_classes()):
            if other == key:
                pixels = torch.from_numpy(groups[row]).permute(0, 3, 1, 2).float() / 127.5 - 1
                predicted = (model.encode_image(pixels, normalize=True) @ texts.T).argmax(dim=1)
                right.append(float((predicted == label).float().mean()))
    return float(np.mean(right))


def padded(ids: list[list[int]]) -> Tensor:
    """Token ids of texts as one tensor, as long as the longest."""
    longest = max(map(len, ids))
    return torch.tensor([text + [0] * (longest - len(text)) for text in ids])


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


def imitate_trained_attention(tower: Any) -> None:
    """Start a ViT where trained ones end up: attention by likeness and by place.

    Mimetic initialisation (Trockman & Kolter, ICML 2023): ``W_q W_k^T`` near a multiple of I, ``W_v W_proj``
    near a negative one, sinusoidal positions. It is meant for ViTs that see few images.
    """
    width = tower.embed_dim
    for block in tower.blocks:
        heads, head = block.attn.num_heads, width // block.attn.num_heads
        for i in range(heads):
            left, right = _factors(0.7, 0.7, width, head)
            block.attn.qkv.weight[i * head : (i + 1) * head] = left.T
            block.attn.qkv.weight[width + i * head : width + (i + 1) * head] = right
        left, right = _factors(0.4, -0.4, width, width)
        block.attn.proj.weight.copy_(left)
        block.attn.qkv.weight[2 * width :] = right
    side = tower.patch_embed.grid_size[0]
    angles = torch.arange(side)[:, None] / 1000 ** (torch.arange(width // 4) / (width // 4))
    wave = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)
    tower.pos_embed[0, -side * side :] = 0.5 * torch.cat([rows, columns], dim=2).flatten(0, 1)


def _factors(noise: float, diagonal: float, width: int, rank: int) -> tuple[Tensor, Tensor]:
    """``noise Z + diagonal I`` as a product of ``(width, rank)`` and ``(rank, width)``."""
    target = noise * torch.randn(width, width) / width**0.5 + diagonal * torch.eye(width)
    u, s, v = torch.linalg.svd(target)
    return u[:, :rank] * s[:rank].sqrt(), s[:rank, None].sqrt() * v[:rank]


def tell_texts_apart(model: Any, ids: Tensor) -> None:
    """Start the text tower where different captions point in different directions.

    A fresh BERT gives all captions nearly the same embedding (a mean cosine of 0.92), and while it has to
    learn what tells them apart, the image tower has nothing to aim at. Positions are therefore made faint,
    and the last projection becomes the whitening of what it gets from a sample of captions, ``(n, L)`` token
    ids, without their mean direction.
    """
    embeddings, last = model.text.transformer.embeddings, model.text.proj[2]
    for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
        table.weight.mul_(0.1)
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for part in ids.split(64):
        model.encode_text(part)
    hook.remove()
    hidden = torch.cat(seen)
    mean = hidden.mean(dim=0)
    spread, directions = torch.linalg.eigh((hidden - mean).T.cov(correction=0))
    whitening = directions / (spread + 0.01 * spread.mean()).sqrt() @ directions.T
    whitening = whitening - torch.outer(whitening @ mean, mean) / mean.square().sum()
    last.weight.copy_(whitening / (hidden @ whitening.T).norm(dim=1).mean())


def optimisers(model: Any, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the image tower's blocks, AdamW for its rest, a slow AdamW for the text tower.

    The text tower begins with captions told apart; at the image tower's pace it would move faster than the
    image tower can follow.
    """
    image = [(n, p) for n, p in model.named_parameters() if not n.startswith("text.")]
    matrices = [p for n, p in image if ".blocks." in n and p.ndim == 2]
    others = [p for n, p in image if not (".blocks." in n and p.ndim == 2)]
    settings: dict[str, Any] = {"betas": (0.9, 0.98), "weight_decay": 0.05}
    return [
        torch.optim.Muon(matrices, lr=args.matrix_learning_rate, weight_decay=0.05),
        torch.optim.AdamW(others, lr=args.learning_rate, **settings),
        torch.optim.AdamW(model.text.parameters(), lr=args.text_learning_rate, **settings),
    ]


def contrastive_loss(model: Any, pixels: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over the batch (Radford et al., ICML 2021)."""
    images = model.encode_image(pixels, normalize=True)
    texts = model.encode_text(ids, normalize=True)
    logits = model.logit_scale.exp() * images @ texts.T
    pairs = torch.arange(len(logits))
    return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2


def train(rank: int, args: argparse.Namespace) -> None:
    """One of the processes: train on its share of every batch; the first writes the folder at every epoch."""
    torch.set_num_threads(1)
    store = f"file://{(args.work / 'rendezvous').resolve()}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=args.processes)
    images, captions = training_pairs(args.work, args.per_class, no_progress)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    held = validation_rows(args.per_class)
    encoded = [[e.ids for e in tokenizer.encode_batch(captions[i])] for i in np.flatnonzero(~held)]
    model = initial_model(args.out, padded([texts[-1] for texts in encoded[:: len(encoded) // 1000 or 1]]))
    optimizers = optimisers(model, args)
    checkpoint, first = args.work / "checkpoint.pt", 0
    if checkpoint.is_file():
        first = resume(checkpoint, model, optimizers, args.epochs)
    with progress_bars(Console(stderr=True, quiet=rank > 0)) as report:
        for epoch in range(first, args.epochs):
            loss, seconds = train_epoch(model, optimizers, images, encoded, ~held, epoch, args, report)
            if rank == 0:
                accuracy = zero_shot_accuracy(model, tokenizer, images[held])
                record(args.out / "training_curve.csv", epoch, loss, accuracy, seconds)
                keep(checkpoint, model, optimizers, epoch + 1, args.epochs)
                write_weights(model, args.out)
                print(
                    f"epoch {epoch + 1}/{args.epochs}: loss {loss:.3f}, zero-shot {accuracy:.3f}", flush=True
                )
    distributed.destroy_process_group()


def initial_model(folder: Path, ids: Tensor) -> Any:
    """The untrained CLIP, the same in every process; ids are a sample of short captions."""
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(
        **(CLIP | {"text_cfg": CLIP["text_cfg"] | {"hf_model_name": str(folder)}})
    )
    with torch.no_grad():
        imitate_trained_attention(model.visual.trunk)
        tell_texts_apart(model, ids)
    return model


def write_weights(model: Any, folder: Path) -> None:
    """The weights in half precision."""
    state = model.state_dict().items()
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state}
    write_atomically(folder / "open_clip_model.safetensors", save(weights))


def share_gradients(model: Any) -> None:
    """Replace every process's gradients by their mean."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def keep(
    checkpoint: Path, model: Any, optimizers: list[torch.optim.Optimizer], epoch: int, epochs: int
) -> None:
    """Write the state of the training, so that it can go on after this epoch."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    scratch = checkpoint.with_suffix(".part")
    torch.save(state | {"epoch": epoch, "epochs": epochs}, scratch)
    scratch.replace(checkpoint)


def resume(checkpoint: Path, model: Any, optimizers: list[torch.optim.Optimizer], epochs: int) -> int:
    """Read the state that :func:`keep` wrote, and return the number of epochs that are done."""
    saved = torch.load(checkpoint, weights_only=True)
    if saved["epochs"] != epochs:
        raise SystemExit(f"{checkpoint} is of a training of {saved['epochs']} epochs; give another --work.")
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return int(saved["epoch"])


def train_epoch(
    model: Any,
    optimizers: list[torch.optim.Optimizer],
    images: NDArray[np.uint8],
    encoded: list[list[list[int]]],
    trained: NDArray[np.bool_],
    epoch: int,
    args: argparse.Namespace,
    report: ProgressReport,
) -> tuple[float, float]:
    """One pass over the images, each with one of its captions -> this process's mean loss and its seconds."""
    model.train()
    draw, rank = torch.Generator().manual_seed(epoch), distributed.get_rank()
    start, losses, places = time.perf_counter(), [], np.flatnonzero(trained)
    size = args.batch_size * args.processes
    order = torch.randperm(len(encoded), generator=draw)
    batches = order[: len(order) // size * size].split(size)
    for step, batch in enumerate(batches):
        rows = batch[rank :: args.processes]
        done = (epoch + step / len(batches)) / args.epochs
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * min(1.0, done / WARMUP) * (1 - done)
        which = torch.randint(CAPTIONS_PER_IMAGE, (len(batch),), generator=draw)[rank :: args.processes]
        if done < SHORT_SHARE:
            which.fill_(CAPTIONS_PER_IMAGE)
        texts = [encoded[i][j] for i, j in zip(rows.tolist(), which.tolist(), strict=True)]
        loss = contrastive_loss(model, augment(images[places[rows.numpy()]], draw), padded(texts))
        model.zero_grad()
        loss.backward()
        share_gradients(model)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        losses.append(float(loss.detach()))
        report(f"epoch {epoch + 1}/{args.epochs}", step + 1, len(batches))
    return float(np.mean(losses)), time.perf_counter() - start


def record(path: Path, epoch: int, loss: float, accuracy: float, seconds: float) -> None:
    """Set a row of the training curve; rows of a training that was begun anew are dropped."""
    rows = list(csv.reader(path.read_text().splitlines()))[1 : epoch + 1] if path.is_file() else []
    rows.append([str(epoch + 1), f"{loss:.4f}", f"{accuracy:.4f}", f"{seconds:.1f}"])
    lines = [",".join(row) for row in [["epoch", "loss", "zero_shot", "seconds"], *rows]]
    write_atomically(path, "\n".join(lines) + "\n")


def main() -> None:
    """Draw the pairs, train the tokenizer, and start the processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="drawn images and checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--banks", type=Path, default=Path("src/vmfcoop/descriptions/banks"))
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch-size", type=int, default=16, help="of each process")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--matrix-learning-rate", type=float, default=0.01)
    parser.add_argument("--text-learning-rate", type=float, default=1e-4)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.work / "rendezvous").unlink(missing_ok=True)
    with progress_bars(Console(stderr=True)) as report:
        _, captions = training_pairs(args.work, args.per_class, report)
    write_description(args.out, train_tokenizer(captions, args.banks))
    torch.multiprocessing.spawn(train, (args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
