"""A vMFCoOp training step on BiomedCLIP's architecture against a plain implementation, in one process.

The plain step does what the public comparison code does: it runs the image tower on the batch, runs it again
for the frozen teacher, and pads every prompt to the context length of 256. Ours takes cached image features
and prompts as long as the longest real one. Both minimise the same loss by SGD from the same start. The
weights are random: time does not depend on them.

    python benchmarks/step.py --classes 2 4 8 --threads 1 2
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from random_backbone import write_biomedclip
from vmfcoop.backbones.open_clip import OpenClipEncoder, load_folder
from vmfcoop.methods.prompt import PromptLearner
from vmfcoop.methods.vmfcoop import VMFCoOp, VMFCoOpConfig
from vmfcoop.training import Batch

NAMES = (
    "glioma tumor",
    "normal brain",
    "meningioma tumor",
    "pituitary tumor",
    "brain edema",
    "benign cyst",
    "round lesion",
    "large mass",
)
BATCH = 4
COLUMNS = (
    "threads",
    "classes",
    "plain, ms",
    "ours, ms",
    "ratio",
    "largest difference of losses",
    "GFLOP a step",
    "GFLOP/s",
    "matmul peak, GFLOP/s",
    "share of peak",
)
LEARNING_RATE = 0.003


class Task:
    """One classification task: random images, their features, random anchors, and the loss of vMFCoOp."""

    def __init__(self, encoder: OpenClipEncoder, classes: int) -> None:
        draw = torch.Generator().manual_seed(classes)
        self.encoder = encoder
        self.names = NAMES[:classes]
        self.pixels = torch.randn(BATCH, 3, *encoder.image_size, generator=draw)
        self.features = encoder.encode_images(self.pixels)
        self.labels = torch.randint(classes, (BATCH,), generator=draw)
        self.anchors = normalize(torch.randn(classes, encoder.dim, generator=draw), dim=1)
        self.method = VMFCoOp(VMFCoOpConfig(dynamic_anchors=False))

    def loss(self, prompts: Tensor, features: Tensor) -> Tensor:
        """The total loss at the middle of training."""
        batch = Batch(features, self.labels, 0.5)
        terms = self.method.losses(prompts, self.anchors, self.anchors, batch, self.encoder.logit_scale, 16)
        return terms["loss"]


def our_step(task: Task) -> Callable[[], float]:
    """Cached features, trimmed prompts."""
    prompts = PromptLearner(task.encoder, task.names)
    optimizer = torch.optim.SGD([prompts.context], LEARNING_RATE)

    def step() -> float:
        loss = task.loss(prompts(), task.features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def plain_step(task: Task) -> Callable[[], float]:
    """Two image passes and prompts padded to the context length."""
    encoder = task.encoder
    learner = PromptLearner(encoder, task.names)
    tokens = encoder.tokenize([f"a photo of a {name}." for name in task.names])
    missing = encoder.context_length - tokens.ids.shape[1]
    ids = nn.functional.pad(tokens.ids, (0, missing))
    mask = nn.functional.pad(tokens.mask, (0, missing))
    embeddings = encoder.token_embeddings(ids)
    context = nn.Parameter(learner.context.detach().clone())
    optimizer = torch.optim.SGD([context], LEARNING_RATE)

    def step() -> float:
        features = encoder.encode_images(task.pixels)
        encoder.encode_images(task.pixels)
        shared = context.expand(len(ids), -1, -1)
        prompts = torch.cat([embeddings[:, :1], shared, embeddings[:, 1 + len(context) :]], dim=1)
        loss = task.loss(encoder.encode_embeddings(prompts, mask), features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def timed(step: Callable[[], float], repeats: int) -> tuple[float, list[float]]:
    """Median seconds of a step after one to warm up, and the loss of every step."""
    losses, seconds = [step()], []
    for _ in range(repeats):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    return median(seconds), losses


def matmul_peak() -> float:
    """FLOP/s of a large float32 matrix product on the threads in use."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / timed(lambda: float((a @ a)[0, 0]), 5)[0]


def row(encoder: OpenClipEncoder, classes: int, threads: int, args: argparse.Namespace) -> str:
    """One line of the table."""
    torch.set_num_threads(threads)
    task = Task(encoder, classes)
    plain, plain_losses = timed(plain_step(task), args.plain_repeats)
    ours, our_losses = timed(our_step(task), args.repeats)
    with FlopCounterMode(display=False) as counter:
        our_step(task)()
    flop, peak = counter.get_total_flops(), matmul_peak()
    difference = max(abs(a - b) for a, b in zip(our_losses, plain_losses, strict=False))
    numbers = [
        f"{threads}",
        f"{classes}",
        f"{1000 * plain:.0f}",
        f"{1000 * ours:.0f}",
        f"{plain / ours:.1f}",
        f"{difference:.1e}",
        f"{flop / 1e9:.1f}",
        f"{flop / ours / 1e9:.0f}",
        f"{peak / 1e9:.0f}",
        f"{100 * flop / ours / peak:.0f} %",
    ]
    return "| " + " | ".join(numbers) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of ours")
    parser.add_argument(
        "--plain-repeats", type=int, default=2, help="timed steps of the plain implementation"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        encoder = load_folder(write_biomedclip(Path(folder)))
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for threads in args.threads:
        for classes in args.classes:
            print(row(encoder, classes, threads, args), flush=True)
    print(f"\nPeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
