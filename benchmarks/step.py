"""One vMFCoOp training step on BiomedCLIP's architecture: cached features and trimmed prompts, or neither.

The plain step is how prompt learning is usually written: the image tower runs on every batch, a second frozen
image pass follows it (as in BiomedCoOp), and prompts are padded to 256 tokens. Both steps learn the same
context and offsets from the same batches, in one process; their losses must agree. Weights are random: the
time of a step does not hang on them.

    python benchmarks/step.py --classes 2 4 8 --threads 1 0 --repeats 2
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from random_backbone import BIOMEDCLIP, build, write_biomedclip
from vmfcoop.backbones import DualEncoder, load_backbone
from vmfcoop.methods.prompt import PromptLearner
from vmfcoop.methods.vmfcoop import VMFCoOp, VMFCoOpConfig
from vmfcoop.training import Batch

NAMES = (
    "glioma tumor",
    "meningioma tumor",
    "pituitary tumor",
    "normal brain",
    "benign breast tumor",
    "lung adenocarcinoma",
    "diabetic retina edema",
    "viral pneumonia lungs",
)
BATCH = 4
SETTINGS = VMFCoOpConfig(lambda_anc=10.0, lambda_sc=1.0, per_shot=False, rce_weight=0.1, rce_log_zero=-4.0)
OURS_PER_PLAIN = 10


def sgd(learned: list[Tensor]) -> torch.optim.SGD:
    """The optimiser of both steps."""
    return torch.optim.SGD(
        learned, SETTINGS.learning_rate, SETTINGS.momentum, weight_decay=SETTINGS.weight_decay
    )


class OurStep:
    """The package's own objective on cached features, as :func:`vmfcoop.training.optimise` runs it."""

    def __init__(self, encoder: DualEncoder, anchors: Tensor, pixels: Tensor) -> None:
        self.encoder, self.anchors, self.method = encoder, anchors, VMFCoOp(SETTINGS)
        self.features = encoder.encode_images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        names = NAMES[: len(anchors)]
        self.prompts = PromptLearner(encoder, names, SETTINGS.context_init)
        self.tokens = encoder.tokenize([f"{SETTINGS.context_init} {name}." for name in names]).ids.shape[1]
        self.offsets = nn.Parameter(torch.zeros_like(anchors))
        self.scale = nn.Parameter(torch.tensor(SETTINGS.alpha_start))
        self.optimizer = sgd([self.prompts.context, self.offsets, self.scale])

    def __call__(self, number: int, labels: Tensor) -> float:
        batch = Batch(self.features[number % len(self.features)], labels, 0.5)
        dynamic = normalize(self.anchors + self.scale * self.offsets, dim=1)
        terms = self.method.losses(
            self.prompts()[0], self.anchors, dynamic, batch, self.encoder.logit_scale, BATCH
        )
        self.optimizer.zero_grad()
        terms["loss"].backward()
        self.optimizer.step()
        return float(terms["loss"].detach())


class PlainStep:
    """The same step without the package: images through the tower each time, prompts padded to 256."""

    def __init__(self, model: Any, folder: Path, anchors: Tensor, pixels: Tensor) -> None:
        self.model, self.anchors, self.pixels = model, anchors, pixels
        self.logit_scale = float(model.logit_scale.exp())
        tokenizer = HFTokenizer(str(folder), context_length=BIOMEDCLIP["text_cfg"]["context_length"])
        ids = tokenizer([f"a photo of a {name}." for name in NAMES[: len(anchors)]])
        self.mask = (ids != 0).long()
        self.embeddings = model.text.transformer.get_input_embeddings()(ids).detach()
        self.context = nn.Parameter(self.embeddings[0, 1:5].clone())
        self.offsets, self.scale = nn.Parameter(torch.zeros_like(anchors)), nn.Parameter(torch.tensor(1.0))
        self.optimizer = sgd([self.context, self.offsets, self.scale])

    def encode_prompts(self) -> Tensor:
        context = self.context.expand(len(self.anchors), -1, -1)
        embeddings = torch.cat([self.embeddings[:, :1], context, self.embeddings[:, 5:]], dim=1)
        output = self.model.text.transformer(inputs_embeds=embeddings, attention_mask=self.mask)
        return normalize(self.model.text.proj(self.model.text.pooler(output, self.mask)), dim=1)

    def __call__(self, number: int, labels: Tensor) -> float:
        images = self.pixels[number % len(self.pixels)]
        with torch.no_grad():
            features = self.model.encode_image(images, normalize=True)
            self.model.encode_image(images, normalize=True)
        prompts = self.encode_prompts()
        loss = self.loss(features, prompts, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def loss(self, features: Tensor, prompts: Tensor, labels: Tensor) -> Tensor:
        """The total at half of the training, spelt out."""
        logits = self.logit_scale * features @ prompts.T
        correct = logits.softmax(dim=1)[torch.arange(BATCH), labels]
        moving = normalize(self.anchors + self.scale * self.offsets, dim=1)
        tau = (1.0 + self.logit_scale) / 2
        apart = cross_entropy(tau * prompts @ self.anchors.T, torch.arange(len(prompts)))
        pull = ((prompts - moving) ** 2).sum(dim=1).mean()
        symmetric = cross_entropy(logits, labels) + 0.1 * 4.0 * (1 - correct).mean()
        return symmetric + 10.0 * pull + 1.0 * apart


def timed(step: Callable[[int, Tensor], float], numbers: range, labels: Tensor) -> tuple[list[float], float]:
    """Run steps -> their losses, and the mean time of one in seconds."""
    start = time.perf_counter()
    losses = [step(number, labels) for number in numbers]
    return losses, (time.perf_counter() - start) / len(numbers)


def matmul_peak() -> float:
    """GFLOP/s of a large single-precision matrix product on the threads in use, the best of three."""
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2e-9 * size**3 / min(times)


def peak_memory() -> float:
    """Peak resident memory of the process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class StepBench:
    """Both steps over one folder of random weights."""

    def __init__(self, folder: Path, repeats: int) -> None:
        self.folder = write_biomedclip(folder)
        self.model = build(BIOMEDCLIP, BertConfig())
        self.encoder = load_backbone(f"dir:{folder}", "cpu")
        self.repeats = repeats
        self.draw = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(2, BATCH, 3, 224, 224, generator=self.draw)
        self.differences: list[float] = []

    def compare(self, ours: OurStep, plain: PlainStep, labels: Tensor) -> None:
        """The same first steps with both, which warms them up."""
        numbers = range(3)
        pairs = zip(timed(ours, numbers, labels)[0], timed(plain, numbers, labels)[0], strict=True)
        self.differences += [abs(left - right) for left, right in pairs]

    def row(self, classes: int, threads: int) -> str:
        """Measure one number of classes on so many threads -> a line of the table."""
        torch.set_num_threads(threads)
        anchors = normalize(torch.randn(classes, self.encoder.dim, generator=self.draw), dim=1)
        labels = torch.arange(BATCH) % classes
        ours = OurStep(self.encoder, anchors, self.pixels)
        plain = PlainStep(self.model, self.folder, anchors, self.pixels)
        self.compare(ours, plain, labels)
        our_times, plain_times = [], []
        for number in range(self.repeats):
            plain_times.append(timed(plain, range(number, number + 1), labels)[1])
            our_times.append(timed(ours, range(OURS_PER_PLAIN), labels)[1])
        our_time, plain_time = statistics.mean(our_times), statistics.mean(plain_times)
        with FlopCounterMode(display=False) as counter:
            ours(0, labels)
        work, peak = counter.get_total_flops() / 1e9, matmul_peak()
        return (
            f"| {threads} | {classes} | {ours.tokens} | {1e3 * our_time:.0f} | {1e3 * plain_time:.0f} "
            f"| {plain_time / our_time:.1f} | {work:.1f} | {work / our_time:.0f} | {peak:.0f} "
            f"| {work / our_time / peak:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4, 8], help=f"at most {len(NAMES)}")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 0], help="0: all cores")
    parser.add_argument("--repeats", type=int, default=2, help="timed plain steps, after three that warm up")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = StepBench(Path(scratch), args.repeats)
        print(f"torch {torch.__version__}, {os.cpu_count()} cores, batch {BATCH}, fp32\n")
        print("| threads | classes | tokens | ours ms | plain ms | ratio | GFLOP | GFLOP/s | peak | share |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for threads in args.threads:
            for classes in args.classes:
                print(bench.row(classes, threads or os.cpu_count() or 1), flush=True)
    print(f"\nLargest difference of losses: {max(bench.differences):.1e}.")
    print(f"Peak memory: {peak_memory():.1f} GiB.")


if __name__ == "__main__":
    main()
