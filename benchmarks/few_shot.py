"""Few-shot accuracy of methods and settings on folders of images: tables and sweeps, from cached features.

Every combination of data, shots, seed, method and settings is one job; jobs run in a process pool of one
thread each. Accuracy is taken on the validation split (to choose settings) or on the test split.

    python benchmarks/few_shot.py --backbone dir:FOLDER --data DATA1 DATA2 --descriptions BANK1 BANK2 \
        --shots 1 4 16 --method coop --method 'vmfcoop:lambda_anc=1|10,lambda_sc=0|1' --on val
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from vmfcoop import load_backbone, load_dataset, load_descriptions
from vmfcoop.descriptions import packaged_descriptions, template_bank
from vmfcoop.evaluation import draw_support, split_metrics
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import make_method


def expand(method: str) -> Iterator[tuple[str, dict[str, str]]]:
    """``name:key=a|b,other=c`` -> the name with every combination of settings."""
    name, _, settings = method.partition(":")
    pairs = [item.split("=", 1) for item in settings.split(",") if item]
    for values in itertools.product(*(value.split("|") for _, value in pairs)):
        yield name, {key: value for (key, _), value in zip(pairs, values, strict=True)}


class Bench:
    """Features of every dataset once; then one job a cell."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        self.args = args
        self.encoder = CachedEncoder(load_backbone(args.backbone, "cpu"))
        tables = [load_dataset(spec) for spec in args.data]
        banks = (
            [load_descriptions(path) for path in args.descriptions]
            if args.descriptions
            else [
                packaged_descriptions(spec) or template_bank(table.class_names)
                for spec, table in zip(args.data, tables, strict=True)
            ]
        )
        self.sets = {table.name: (table, bank) for table, bank in zip(tables, banks, strict=True)}

    def warm(self) -> None:
        """Compute every feature that the jobs will ask for."""
        for (table, bank), shots, seed in itertools.product(
            self.sets.values(), self.args.shots, self.args.seeds
        ):
            draw_support(self.encoder, table, bank, shots, seed, self.args.views)
            self.encoder.encode_image_files(table.subset(self.args.on).paths)
        self.encoder.encode_vocabulary()

    def job(self, name: str, shots: int, seed: int, method: str, settings: dict[str, str]) -> dict[str, Any]:
        """Accuracy and seconds of one fit."""
        table, bank = self.sets[name]
        support = draw_support(self.encoder, table, bank, shots, seed, self.args.views)
        start = time.perf_counter()
        fitted = make_method(method, {"seed": seed, **settings}).fit(support, self.encoder)
        seconds = time.perf_counter() - start
        label = method + "".join(f" {key}={value}" for key, value in settings.items())
        accuracy = split_metrics(self.encoder, table, fitted, self.args.on)["accuracy"]
        cell = {"data": name, "shots": shots, "seed": seed, "method": label}
        return {**cell, "accuracy": accuracy, "seconds": seconds}


_bench: Bench  # one a process: its features are too large to send with every job


def _start(args: argparse.Namespace) -> None:
    global _bench
    _bench = Bench(args)


def _work(job: tuple[str, int, int, str, dict[str, str]]) -> dict[str, Any]:
    return _bench.job(*job)


def table(rows: list[dict[str, Any]], shots: list[int]) -> str:
    """Markdown: mean and standard deviation over seeds in percent, and seconds a fit."""
    cells: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[row["data"], row["method"], row["shots"]].append(row)
    names, methods = (
        list(dict.fromkeys(r["data"] for r in rows)),
        list(dict.fromkeys(r["method"] for r in rows)),
    )
    lines = ["| method | data | " + " | ".join(f"K = {k}" for k in shots) + " | seconds a fit |"]
    lines.append("|---" * (len(shots) + 3) + "|")
    for method, name in itertools.product(methods, [*names, "mean"]):
        scores, times = [], []
        for k in shots:
            part = [cells[n, method, k] for n in (names if name == "mean" else [name])]
            seeds = [mean(r["accuracy"] for r in group) for group in zip(*part, strict=True)]
            spread = stdev(seeds) if len(seeds) > 1 else 0.0
            scores.append(f"{100 * mean(seeds):.1f} ± {100 * spread:.1f}")
            times.append(f"{mean(r['seconds'] for group in part for r in group):.1f}")
        lines.append(f"| {method} | {name} | " + " | ".join(scores) + " | " + ", ".join(times) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument(
        "--descriptions", nargs="+", help="a file a dataset; else the package's own or templates"
    )
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--method", action="append", required=True)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--on", choices=["val", "test"], default="test")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="also write every job's result as JSON lines")
    args = parser.parse_args()
    _start(args)
    _bench.warm()
    methods = [pair for method in args.method for pair in expand(method)]
    grid = itertools.product(_bench.sets, args.shots, args.seeds, methods)
    jobs = sorted(((n, k, s, *m) for n, k, s, m in grid), key=lambda job: -job[1])
    rows = []
    with ProcessPoolExecutor(args.jobs, initializer=_start, initargs=(args,)) as pool:
        for row in pool.map(_work, jobs):
            rows.append(row)
            print(f"{len(rows)}/{len(jobs)}", end="\r", file=sys.stderr)
    if args.out:
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    order = {m + "".join(f" {k}={v}" for k, v in s.items()): i for i, (m, s) in enumerate(methods)}
    print(table(sorted(rows, key=lambda r: (order[r["method"]], r["seed"])), args.shots))


if __name__ == "__main__":
    main()
