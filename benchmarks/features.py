"""Image features: how files are read, what precision costs and gains, whether compiling the tower pays.

    python -m benchmarks.features loading --backbone dir:/models/small --kinds png jpeg dicom jpeg2000 nifti
    python -m benchmarks.features precision --threads 2
    python -m benchmarks.features compile --threads 2
    python -m benchmarks.features cache --backbone dir:/models/small

Without ``--backbone`` it is BiomedCLIP's architecture with random weights. Images are drawn, smooth fields
with noise, so that compressed files are about as large as those of real ones. Each time is the best of a few,
and the load of the machine stands beside it: with other work on the cores a time says nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.random_backbone import write_biomedclip
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from scipy.ndimage import zoom
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from vmfcoop.backbones import DualEncoder, load_backbone
from vmfcoop.backbones.base import DTYPES
from vmfcoop.features import CachedEncoder
from vmfcoop.memory import keep_freed_memory

KINDS = {"png": 256, "jpeg": 48, "dicom": 48, "jpeg2000": 24, "nifti": 120}
"""Images of each kind by default."""


class NoTower:
    """An encoder whose image tower takes no time, as a fast GPU beside slow reading."""

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """The first numbers of each image."""
        return normalize(pixels.flatten(1)[:, : self._encoder.dim], dim=1)


def field(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A smooth field with fine noise, in [0, 1]."""
    coarse = draw.uniform(size=tuple(max(2, length // 64) for length in shape))
    smooth = zoom(coarse, [length / c for length, c in zip(shape, coarse.shape, strict=True)], order=1)
    return np.clip(smooth + draw.normal(0, 0.01, smooth.shape), 0, 1)


def write_images(folder: Path, kind: str, count: int) -> list[Path]:
    """PNG of 224 x 224, JPEG of 6 megapixels, DICOM of 2048 x 2048 in 12 bits, NIfTI slices of 240 x 240."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    if kind == "nifti":
        return write_slices(folder, draw, count)
    files = []
    for number in range(count):
        if kind in ("png", "jpeg"):
            file = folder / f"{number}.{kind}"
            height, width = (224, 224) if kind == "png" else (2000, 3000)
            grey = (255 * field(draw, (height, width))).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(file, quality=90)
        else:
            file = folder / f"{number}.dcm"
            write_dicom(file, (4095 * field(draw, (2048, 2048))).astype(np.uint16), kind == "jpeg2000")
        files.append(file)
    return files


def write_dicom(file: Path, pixels: np.ndarray, compressed: bool) -> None:
    """A radiograph; compressed without loss as archives keep it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = DigitalXRayImageStorageForPresentation, "DX"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.tobytes()
    if compressed:
        import imagecodecs

        dataset.PixelData = encapsulate([imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k")])
    dataset["PixelData"].VR = "OB" if compressed else "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless if compressed else ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)


def write_slices(folder: Path, draw: np.random.Generator, count: int, per_volume: int = 40) -> list[Path]:
    """Middle slices of compressed volumes of 240 x 240 x 155."""
    import nibabel

    found: list[Path] = []
    for number in range(-(-count // per_volume)):
        file = folder / f"{number}.nii.gz"
        volume = (1000 * field(draw, (240, 240, 155))).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)
        found += [Path(f"{file}#axis=2&slice={50 + position}") for position in range(per_volume)]
    return found[:count]


def best(action: Callable[[], object], repeats: int) -> tuple[float, str]:
    """Seconds of the fastest of several calls, and the load of the machine during them."""
    seconds, loads = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
        loads.append(os.getloadavg()[0])
    return min(seconds), f"{min(loads):.1f} to {max(loads):.1f}"


def cosine_error(found: Tensor, exact: Tensor) -> float:
    """1 - cosine between rows, at most."""
    return float((1 - cosine_similarity(found.double(), exact.double())).max())


def table(*columns: str) -> None:
    """Print the head of a table."""
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def line(*values: object) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(str(value) for value in values) + " |", flush=True)


def loading(spec: str, args: argparse.Namespace) -> None:
    """Images a second from an empty cache, by worker processes."""
    encoder = load_backbone(spec, "cpu")
    cases: list[tuple[str, Any, int | None]] = [(args.title, encoder, None)]
    cases += [("none, batches of 64", NoTower(encoder), 64)] if args.no_tower else []
    table("kind", "images", "views", "tower", "workers", "images/s", "best of, s", "load")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.kinds:
            files = write_images(Path(scratch) / kind, kind, args.images or KINDS[kind])
            for (title, of, size), workers in product(cases, args.workers):
                extract = partial(from_nothing, of, files, args.views, size, workers)
                seconds, load = best(extract, args.repeats)
                rate = f"{len(files) * args.views / seconds:.1f}"
                line(kind, len(files), args.views, title, workers, rate, f"{seconds:.2f}", load)


def from_nothing(encoder: Any, files: Sequence[Path], views: int, size: int | None, workers: int) -> None:
    """Features of images, from an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        CachedEncoder(encoder, Path(cache), workers=workers).encode_image_files(files, views, size)


def random_pixels(encoder: DualEncoder, count: int) -> Tensor:
    """Pixels ``(n, 3, H, W)`` as preprocessing would give them."""
    return torch.randn(count, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0))


def in_batches(encoder: DualEncoder, pixels: Tensor, size: int) -> Tensor:
    """Features ``(n, d)``."""
    return torch.cat([encoder.encode_images(part) for part in pixels.split(size)])


def precision(spec: str, args: argparse.Namespace) -> None:
    """Images a second through the tower alone, by precision and batch size."""
    exact: Tensor | None = None
    table("tower", "precision", "batch", "threads", "images/s", "1 - cosine to fp32, at most", "load")
    for name in DTYPES:
        encoder = load_backbone(spec, args.device, name)
        pixels = random_pixels(encoder, args.images or 16)
        exact = in_batches(encoder, pixels, 2) if exact is None else exact
        for size in args.batch:
            found = in_batches(encoder, pixels, size)
            error = cosine_error(found, exact)
            seconds, load = best(lambda e=encoder, n=size, x=pixels: in_batches(e, x, n), args.repeats)
            rate = f"{len(pixels) / seconds:.1f}"
            line(args.title, name, size, torch.get_num_threads(), rate, f"{error:.1e}", load)


def compiled(spec: str, args: argparse.Namespace) -> None:
    """Images a second of the tower as it is and compiled, and the images after which compiling has paid."""
    table("tower", "precision", "batch", "threads", "eager", "compiled", "compiling, s", "pays after", "load")
    for name in ("fp32", "bf16"):
        for size in args.batch:
            encoder = load_backbone(spec, args.device, name)
            pixels = random_pixels(encoder, args.images or 16)
            eager, _ = best(lambda e=encoder, n=size, x=pixels: in_batches(e, x, n), args.repeats)
            torch._dynamo.reset()
            encoder._image_features = torch.compile(encoder._image_features)  # type: ignore[attr-defined]
            start = time.perf_counter()
            in_batches(encoder, pixels, size)
            first = time.perf_counter() - start
            fast, load = best(lambda e=encoder, n=size, x=pixels: in_batches(e, x, n), args.repeats)
            gain = (eager - fast) / len(pixels)
            pays = f"{(first - fast) / gain:.0f} images" if gain > 0 else "never"
            rates = [f"{len(pixels) / seconds:.1f}" for seconds in (eager, fast)]
            threads = torch.get_num_threads()
            line(args.title, name, size, threads, *rates, f"{first - fast:.1f}", pays, load)


def cache(spec: str, args: argparse.Namespace) -> None:
    """Disk and error of the cache, by the precision of its numbers."""
    encoder = load_backbone(spec, "cpu")
    table("tower", "cache", "features", "bytes a feature", "1 - cosine to fp32, at most")
    exact: Tensor | None = None
    with tempfile.TemporaryDirectory() as scratch:
        files = write_images(Path(scratch) / "png", "png", args.images or KINDS["png"])
        for stored in ("fp32", "fp16"):
            folder = Path(scratch) / stored
            found = CachedEncoder(encoder, folder, cache_precision=stored).encode_image_files(files)[:, 0]
            exact = found if exact is None else exact
            error = cosine_error(found, exact)
            size = sum(file.stat().st_size for file in folder.glob("*.sqlite")) / len(files)
            line(args.title, stored, len(files), f"{size:.0f}", f"{error:.1e}")


@contextmanager
def backbone(spec: str | None) -> Iterator[str]:
    """The spec, or that of a folder with BiomedCLIP's architecture for the time."""
    with tempfile.TemporaryDirectory() as scratch:
        yield spec or f"dir:{write_biomedclip(Path(scratch) / 'random', half=True)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["loading", "precision", "compile", "cache"])
    parser.add_argument("--backbone", help="default: BiomedCLIP's architecture, random weights")
    parser.add_argument("--title", help="of the tower in the table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--images", type=int, help="of each kind")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; default as torch chooses")
    parser.add_argument("--no-tower", action="store_true", help="loading: also beside a tower of no cost")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    args.title = args.title or args.backbone or "BiomedCLIP's architecture"
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    what = {"loading": loading, "precision": precision, "compile": compiled, "cache": cache}
    with backbone(args.backbone) as spec:
        what[args.what](spec, args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
