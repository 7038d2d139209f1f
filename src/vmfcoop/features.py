"""Frozen features, computed once: a cache on disk under the backbone's fingerprint and the content's hash."""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from vmfcoop.backbones.base import DualEncoder, Precision, Tokens
from vmfcoop.data.image_io import read_image
from vmfcoop.data.recent import RecentReads
from vmfcoop.data.references import parse_reference
from vmfcoop.errors import UserError
from vmfcoop.files import disk_full, home, write_atomically
from vmfcoop.progress import ProgressReport, no_progress

ImageSource = Path | Image.Image
DECODERS = min(8, os.cpu_count() or 1)
STORED_AT_ONCE = 16
CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

_hashes: RecentReads[str] = RecentReads(4096)


class FeatureCache:
    """Vectors by key in one SQLite file: writes are transactions, so a killed process leaves whole rows only.

    Two processes may use one file at once; each waits for the other's short writes. A file that is no
    database (a disk fault) is put aside under the name ``*.damaged`` and a new one begun.

    Args:
        path: the file; its folder is made.
        dim: length d of every vector.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.path = path
        self.dim = dim
        with self._connected(), self._rows() as rows:
            rows.execute("SELECT count(*) FROM features")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise disk_full(self.path.parent) from error
            raise UserError(f"The feature cache '{self.path}' cannot be used ({error}).") from error
        except sqlite3.DatabaseError:
            self.path.replace(self.path.with_suffix(".damaged"))
            with self._rows():
                pass
        except OSError as error:
            raise UserError(
                f"The cache folder '{self.path.parent}' cannot be made ({error.strerror}); set VMFCOOP_HOME."
            ) from error

    @contextmanager
    def _rows(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=120)
        try:
            with connection:
                connection.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, value BLOB)")
                yield connection
        finally:
            connection.close()

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The vectors that are there, by key; those of another length count as absent."""
        found: dict[str, Tensor] = {}
        with self._connected(), self._rows() as rows:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value FROM features WHERE key IN ({marks})"
                for key, value in rows.execute(query, part):
                    if len(value) == 4 * self.dim:
                        found[key] = torch.from_numpy(np.frombuffer(value, dtype="<f4").copy())
        return found

    def put(self, vectors: Iterable[tuple[str, Tensor]]) -> None:
        """Store vectors in one transaction: all of them or none."""
        entries = [(key, value.numpy().astype("<f4").tobytes()) for key, value in vectors]
        with self._connected(), self._rows() as rows:
            rows.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", entries)


class CachedEncoder(DualEncoder):
    """A dual encoder whose image, text and vocabulary features are kept on disk.

    Everything else is the wrapped encoder's own, so methods take it for any other encoder.

    Args:
        encoder: the encoder to wrap.
        folder: cache folder; default ``VMFCOOP_HOME/features``.
        progress: told of image and vocabulary encoding.
    """

    def __init__(
        self, encoder: DualEncoder, folder: Path | None = None, progress: ProgressReport = no_progress
    ) -> None:
        self._encoder = encoder
        self._progress = progress
        self._folder = folder or home() / "features"
        self._vocabularies: dict[int | None, Tensor] = {}
        self._cache = FeatureCache(self._folder / f"{encoder.fingerprint}.sqlite", encoder.dim)
        for attribute in (
            "name",
            "dim",
            "token_width",
            "begin_marks",
            "context_length",
            "image_size",
            "logit_scale",
            "precision",
        ):
            setattr(self, attribute, getattr(encoder, attribute))
        self.device = encoder.device

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self._encoder.image_mean_std

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._encoder.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return self._encoder.encode_images(pixels)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._encoder.tokenize(texts)

    def token_embeddings(self, ids: Tensor) -> Tensor:
        return self._encoder.token_embeddings(ids)

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self._encoder.encode_embeddings(embeddings, mask)

    def vocabulary(self) -> list[str]:
        return self._encoder.vocabulary()

    def vocabulary_tokens(self) -> Tokens:
        return self._encoder.vocabulary_tokens()

    def patch_activations(self, pixels: Tensor) -> Tensor:
        return self._encoder.patch_activations(pixels)

    def to(self, device: torch.device | str, precision: Precision | None = None) -> CachedEncoder:
        self._encoder.to(device, precision)
        self.device, self.precision = self._encoder.device, self._encoder.precision
        return self

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        keys = ["text/" + hashlib.sha256(text.encode()).hexdigest() for text in texts]
        found = self._cache.get(keys)
        absent = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if absent or not texts:
            fresh = dict(zip(absent, self._encoder.encode_texts(list(absent.values())), strict=True))
            self._cache.put(fresh.items())
            found |= fresh
        return torch.stack([found[key] for key in keys])

    def encode_vocabulary(self, sample: int | None = None) -> Tensor:
        if sample not in self._vocabularies:
            self._vocabularies[sample] = self._read_or_encode_vocabulary(sample)
        return self._vocabularies[sample]

    def _read_or_encode_vocabulary(self, sample: int | None) -> Tensor:
        path = self._folder / f"{self.fingerprint}-vocabulary-{sample or 'all'}.safetensors"
        try:
            return load_file(path)["features"]  # type: ignore[no-any-return]
        except (FileNotFoundError, SafetensorError):
            self._progress("encode vocabulary", 0, 1)
            features = self._encoder.encode_vocabulary(sample)
            write_atomically(path, save({"features": features}))
            self._progress("encode vocabulary", 1, 1)
            return features

    def encode_image_files(
        self, images: Sequence[ImageSource], views: int = 1, batch_size: int | None = None
    ) -> Tensor:
        """Image files or PIL images -> unit features of each one's views, ``(n, V, d)``, float32, on the CPU.

        View 0 is the model's own test-time transform; views 1 to V-1 are RandomResizedCrops (scale 0.08 to
        1, bicubic, no flip, as the peers train), drawn from the image's content hash: the same image gives
        the same views on every machine. Only what the cache lacks is computed, in batches that are stored
        as they come: an interrupted extraction goes on where it stopped.

        Args:
            images: n of them.
            views: V.
            batch_size: images and views encoded at once; by default 2 on a CPU, 128 elsewhere.

        Raises:
            UserError: an image cannot be read (named), or the disk is full.
        """
        with ThreadPoolExecutor(max_workers=DECODERS) as pool:
            hashes = list(pool.map(content_hash, images))
            keys = {content: [f"image/{content}/{view}" for view in range(views)] for content in hashes}
            found = self._cache.get([key for group in keys.values() for key in group])
            absent = {
                c: i for c, i in zip(hashes, images, strict=True) if any(k not in found for k in keys[c])
            }
            at_once = batch_size or (2 if self.device.type == "cpu" else 128)
            per_batch = max(1, (batch_size or max(at_once, STORED_AT_ONCE)) // views)
            for done, batch in enumerate(_read_ahead(pool, list(absent.items()), per_batch)):
                features = self._encode_views(batch, views, at_once)
                fresh = [
                    pair
                    for (content, _), rows in zip(batch, features, strict=True)
                    for pair in zip(keys[content], rows, strict=True)
                    if pair[0] not in found
                ]
                self._cache.put(fresh)
                found.update(fresh)
                self._progress("encode images", min((done + 1) * per_batch, len(absent)), len(absent))
        if not hashes:
            return torch.empty(0, views, self.dim)
        return torch.stack([torch.stack([found[key] for key in keys[content]]) for content in hashes])

    def _encode_views(self, batch: list[tuple[str, Image.Image]], views: int, at_once: int) -> Tensor:
        """Decoded images by content hash -> features of their views, ``(n, V, d)``."""
        mean, std = self.image_mean_std
        pixels = []
        for content, image in batch:
            crops = [random_resized_crop(image, content, view, self.image_size) for view in range(1, views)]
            augmented = [vision.normalize(vision.to_tensor(crop), mean, std) for crop in crops]
            pixels += [self.preprocess(image), *augmented]
        # On a CPU the activations of two images stay small enough to be reused instead of asked of the system
        # anew in every layer: nearly twice the images a second of eight at once, and far less memory.
        parts = [self._encoder.encode_images(part) for part in torch.stack(pixels).split(at_once)]
        return torch.cat(parts).reshape(len(batch), views, self.dim)


def _read_ahead(
    pool: ThreadPoolExecutor, sources: list[tuple[str, ImageSource]], per_batch: int
) -> Iterator[list[tuple[str, Image.Image]]]:
    """Batches of decoded images by content hash; the next batch is decoded while one is encoded.

    The threads only decode: a thread that calls torch starts a team of threads of its own, which then
    compete with those of the image tower.
    """
    starts = range(0, len(sources), per_batch)
    waiting: list[list[tuple[str, Future[Image.Image]]]] = []
    for start in [*starts, None]:
        if start is not None:
            part = sources[start : start + per_batch]
            waiting.append([(content, pool.submit(_decoded, source)) for content, source in part])
        if len(waiting) == 2 or (start is None and waiting):
            yield [(content, future.result()) for content, future in waiting.pop(0)]


def _decoded(source: ImageSource) -> Image.Image:
    return read_image(source) if isinstance(source, Path) else source


def content_hash(image: ImageSource) -> str:
    """SHA-256 of a file's bytes, or of a PIL image's mode, size and pixels.

    A selection inside a file (``scan.nii.gz#slice=40``) is hashed with the hash of the file, which is read
    once for many of its slices.

    Raises:
        UserError: the file is missing or cannot be opened, or the selection is malformed.
    """
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
    reference = parse_reference(image)
    try:
        if not reference.selection:
            return _file_hash(reference.file)
        content = _hashes.get(reference.file, "sha256", partial(_file_hash, reference.file))
    except OSError as error:
        raise UserError(f"The image '{image}' cannot be opened ({error.strerror}).") from error
    return hashlib.sha256(f"{content}#{reference.selection}".encode()).hexdigest()


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def random_resized_crop(image: Image.Image, content: str, view: int, size: tuple[int, int]) -> Image.Image:
    """Augmented view number ``view`` of an image: a RandomResizedCrop, seeded by the content hash.

    Example:
        >>> random_resized_crop(Image.new("RGB", (64, 48)), "00ff00ff", 1, (32, 32)).size
        (32, 32)
    """
    draw = torch.Generator().manual_seed(int(content[:8], 16) * 1000 + view)
    width, height = image.size
    for _ in range(10):
        share, shape, x, y = torch.rand(4, generator=draw, dtype=torch.float64).tolist()
        area = width * height * (CROP_SCALE[0] + share * (CROP_SCALE[1] - CROP_SCALE[0]))
        low, high = (math.log(r) for r in CROP_RATIO)
        ratio = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            box = (int(y * (height - h + 1)), int(x * (width - w + 1)), h, w)
            return vision.resized_crop(image, *box, list(size), InterpolationMode.BICUBIC)  # type: ignore[no-any-return]
    side = min(width, height)
    return vision.resized_crop(  # type: ignore[no-any-return]
        image, (height - side) // 2, (width - side) // 2, side, side, list(size), InterpolationMode.BICUBIC
    )
