"""S trainings of vMFCoOp side by side, their prompts in one text batch, against the same one by one.

Both run ``VMFCoOp``; only ``fit_seeds`` with all seeds differs from ``fit_seeds`` with one. The embeddings
that they learn must agree. A backbone is any spec, or BiomedCLIP's architecture with random weights
(``biomedclip-random``).

    python benchmarks/stacked_seeds.py --backbone phantom biomedclip-random --seeds 3 10 --classes 4
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize

from random_backbone import write_biomedclip
from step import NAMES
from vmfcoop.backbones import DualEncoder, load_backbone
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import Fitted, Support, make_method

SAMPLE = 64  # of the vocabulary: the anchors' values do not change the time of a step


def supports(encoder: DualEncoder, classes: int, shots: int, seeds: int) -> list[Support]:
    """A support set of random unit features for every seed."""
    names = NAMES[:classes]
    texts = tuple(template_bank(names).for_classes(names))
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(shots)
    nothing = torch.empty(0, encoder.dim), labels[:0]
    features = [
        normalize(torch.randn(len(labels), 1, encoder.dim, generator=draw), dim=-1) for _ in range(seeds)
    ]
    return [Support(rows, labels, names, texts, *nothing) for rows in features]


def timed_fits(
    encoder: DualEncoder, data: Sequence[Support], epochs: int, together: bool
) -> tuple[list[Fitted], float]:
    """All fits and their wall time in seconds."""
    method = make_method("vmfcoop", {"epochs": epochs, "vocabulary_sample": SAMPLE})
    seeds = list(range(len(data)))
    groups = [seeds] if together else [[seed] for seed in seeds]
    start = time.perf_counter()
    fits = [
        fit for group in groups for fit in method.fit_seeds([data[seed] for seed in group], group, encoder)
    ]
    return fits, time.perf_counter() - start


def row(spec: str, encoder: DualEncoder, classes: int, shots: int, epochs: int, seeds: int) -> str:
    """Measure one number of seeds -> a line of the table."""
    data = supports(encoder, classes, shots, seeds)
    timed_fits(encoder, data[:1], 1, together=True)
    alone, slow = timed_fits(encoder, data, epochs, together=False)
    stacked, fast = timed_fits(encoder, data, epochs, together=True)
    difference = max(
        float((a.state()["class_embeddings"] - b.state()["class_embeddings"]).abs().max())
        for a, b in zip(alone, stacked, strict=True)
    )
    steps = epochs * -(-classes * shots // 4)
    per_step = [1e3 * seconds / steps / seeds for seconds in (slow, fast)]
    return (
        f"| {spec} | {torch.get_num_threads()} | {seeds} | {per_step[0]:.1f} | {per_step[1]:.1f} "
        f"| {slow / fast:.2f} | {difference:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["phantom", "biomedclip-random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--classes", type=int, default=4, help=f"at most {len(NAMES)}")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {args.classes} classes, batch 4, fp32\n")
    print(
        "| backbone | threads | seeds | ms a step and seed, one by one | side by side | ratio | difference |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for spec in args.backbone:
            folder = f"dir:{write_biomedclip(Path(scratch))}" if spec == "biomedclip-random" else spec
            # Descriptions and vocabulary come from the cache, as in a benchmark: only the training is timed.
            encoder = CachedEncoder(load_backbone(folder, "cpu"), Path(scratch) / "features")
            shown = "small CLIP" if spec.startswith("dir:") else spec
            for threads in args.threads:
                torch.set_num_threads(threads)
                for seeds in args.seeds:
                    print(row(shown, encoder, args.classes, args.shots, args.epochs, seeds), flush=True)


if __name__ == "__main__":
    main()
