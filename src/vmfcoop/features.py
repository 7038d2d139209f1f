"""Frozen features, computed once: a cache on disk under the backbone's fingerprint and the content's hash."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from vmfcoop.backbones.base import DualEncoder, Precision
from vmfcoop.backbones.wrapped import WrappedEncoder
from vmfcoop.data.recent import RecentReads
from vmfcoop.data.references import parse_reference
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.files import disk_full, home, write_atomically
from vmfcoop.loading import DECODERS, ImageSource, Source, killed_worker_is_said, load_views, pins
from vmfcoop.progress import ProgressReport, no_progress

STORED: dict[str, np.dtype[np.floating]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
"""Numbers in the cache, by their precision."""

STORED_AT_ONCE = 16
CPU_BATCH = 2
DEVICE_BATCH_BYTES = 2**26
"""Bytes of pixels that are first tried at once on a device with memory of its own."""

_hashes: RecentReads[str] = RecentReads(4096)


class FeatureCache:
    """Vectors by key in one SQLite file: writes are transactions, so a killed process leaves whole rows only.

    Two processes may use one file at once; each waits for the other's short writes. A file that is no
    database (a disk fault) is put aside under the name ``*.damaged`` and a new one begun.

    Args:
        path: the file; its folder is made.
        dim: length d of every vector.
        precision: of the stored numbers. Unit vectors in ``fp16`` are scaled to unit length again when read.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, dim: int, precision: str = "fp32") -> None:
        self.path = path
        self.dim = dim
        self.precision = precision
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
                # Of a new file: in the usual 4096 bytes two vectors of 512 float32 numbers just do not fit.
                connection.execute("PRAGMA page_size = 16384")
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
                    if len(value) == STORED[self.precision].itemsize * self.dim:
                        found[key] = self._read(value)
        return found

    def put(self, vectors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Store vectors in one transaction, all of them or none; returns them as :meth:`get` gives them."""
        entries = [(key, value.numpy().astype(STORED[self.precision]).tobytes()) for key, value in vectors]
        with self._connected(), self._rows() as rows:
            rows.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", entries)
        return {key: self._read(value) for key, value in entries}

    def _read(self, value: bytes) -> Tensor:
        numbers = np.frombuffer(value, STORED[self.precision]).astype(np.float32)
        return torch.from_numpy(numbers if self.precision == "fp32" else numbers / np.linalg.norm(numbers))


class CachedEncoder(WrappedEncoder):
    """A dual encoder whose image, text and vocabulary features are kept on disk.

    Everything else is the wrapped encoder's own, so methods take it for any other encoder. Features of
    another precision of the towers or of the cache are kept in files of their own.

    Args:
        encoder: the encoder to wrap.
        folder: cache folder; default ``VMFCOOP_HOME/features``.
        progress: told of image and vocabulary encoding.
        cache_precision: of the numbers in the cache: ``fp32``, or ``fp16`` for half the disk. A feature is
            the same whether it was just computed or read: rounded, then scaled to unit length in float32.
        workers: processes that read images; default ``VMFCOOP_WORKERS``, or as many as pay.

    Raises:
        UserError: unknown cache precision, or the folder cannot be written.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        folder: Path | None = None,
        progress: ProgressReport = no_progress,
        cache_precision: str = "fp32",
        workers: int | None = None,
    ) -> None:
        if cache_precision not in STORED:
            raise unknown_name("cache precision", cache_precision, STORED)
        self.cache_precision = cache_precision
        super().__init__(encoder)
        self._progress = progress
        self._workers = workers
        self._folder = folder or home() / "features"
        self._encoded, self._seconds = 0, 0.0
        self._begin()

    def _begin(self) -> None:
        """What depends on device and precision."""
        self._vocabularies: dict[int | None, Tensor] = {}
        self._cache = FeatureCache(self._file(".sqlite"), self.dim, self.cache_precision)
        self._batches = FittingBatches(self._encoder)

    def _file(self, ending: str) -> Path:
        """A file of the cache; the plain name is that of float32 throughout."""
        towers = "" if self.precision == "fp32" else f"-{self.precision}"
        stored = "" if self.cache_precision == "fp32" else f"-stored-{self.cache_precision}"
        return self._folder / f"{self.fingerprint}{towers}{stored}{ending}"

    @property
    def images_per_second(self) -> float | None:
        """Images, each view counted, that were read and encoded in a second; None if all were cached."""
        return self._encoded / self._seconds if self._encoded else None

    def to(self, device: torch.device | str, precision: Precision | None = None) -> CachedEncoder:
        super().to(device, precision)
        self._begin()
        return self

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        keys = ["text/" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
        found = self._cache.get(keys)
        absent = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if absent or not texts:
            fresh = self._encoder.encode_texts(list(absent.values()))
            found |= self._cache.put(zip(absent, fresh, strict=True))
        return torch.stack([found[key] for key in keys])

    def encode_vocabulary(self, sample: int | None = None) -> Tensor:
        if sample not in self._vocabularies:
            self._vocabularies[sample] = self._read_or_encode_vocabulary(sample)
        return self._vocabularies[sample]

    def _read_or_encode_vocabulary(self, sample: int | None) -> Tensor:
        path = self._file(f"-vocabulary-{sample or 'all'}.safetensors")
        try:
            stored = load_file(path)["features"]
        except (FileNotFoundError, SafetensorError):
            self._progress("encode vocabulary", 0, 1)
            features = self._encoder.encode_vocabulary(sample)
            stored = features if self.cache_precision == "fp32" else features.half()
            write_atomically(path, save({"features": stored}))
            self._progress("encode vocabulary", 1, 1)
        return stored if self.cache_precision == "fp32" else normalize(stored.float(), dim=1)

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
            batch_size: images and views encoded at once; by default 2 on a CPU (4 in half precision),
                elsewhere 64 MiB of pixels (111 images of 224 px). Where memory is short of a batch, it is
                halved until it fits.

        Raises:
            UserError: an image cannot be read (named), a process that reads images was killed, the disk is
                full, or memory has no room for a single image.
        """
        with ThreadPoolExecutor(max_workers=DECODERS) as pool:
            hashes = list(pool.map(content_hash, images))
        keys = {content: [_view_key(content, view) for view in range(views)] for content in hashes}
        found = self._cache.get([key for group in keys.values() for key in group])
        absent = {c: i for c, i in zip(hashes, images, strict=True) if any(k not in found for k in keys[c])}
        if absent:
            self._encode_absent(list(absent.items()), views, batch_size, found)
        if not hashes:
            return torch.empty(0, views, self.dim)
        return torch.stack([torch.stack([found[key] for key in keys[content]]) for content in hashes])

    def _encode_absent(
        self, sources: Sequence[Source], views: int, batch_size: int | None, found: dict[str, Tensor]
    ) -> None:
        """Encode what is not found of the images' views; it goes into found and into the cache."""
        start, done, total = time.perf_counter(), 0, len(sources) * views
        self._progress("encode images", 0, total)
        # More than a CPU encodes at once: images are read in bursts, or reading would disturb every layer.
        size = batch_size or max(self._batches.size(), STORED_AT_ONCE)
        with killed_worker_is_said():
            for loaded in load_views(self, sources, views, max(1, size // views), self._workers):
                if isinstance(loaded, UserError):
                    raise loaded
                features = self._batches.encode(loaded.pixels.flatten(0, 1), batch_size)
                names = [_view_key(content, view) for content in loaded.contents for view in range(views)]
                fresh = (pair for pair in zip(names, features, strict=True) if pair[0] not in found)
                found |= self._cache.put(fresh)
                done += len(names)
                self._progress("encode images", done, total)
        self._encoded += done
        self._seconds += time.perf_counter() - start


class FittingBatches:
    """An image tower that is given as many images at once as memory has room for.

    Args:
        encoder: the tower's.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder = encoder
        self._most: int | None = None

    def size(self, asked: int | None = None) -> int:
        """Images at once: as asked, or by the device, but no more than fitted after memory was short."""
        encoder = self._encoder
        size = asked or first_batch_size(encoder.device, encoder.image_size, encoder.precision)
        return min(size, self._most or size)

    def encode(self, pixels: Tensor, asked: int | None = None) -> Tensor:
        """Pixels ``(n, 3, H, W)`` -> features ``(n, d)``; a batch that memory is short of is halved.

        What was encoded before is kept, and what fitted is remembered.

        Raises:
            UserError: memory has no room for a single image.
        """
        done: list[Tensor] = []
        while len(pixels):
            size = math.ceil(len(pixels) / math.ceil(len(pixels) / self.size(asked)))
            features = self._tried(pixels[:size])
            if features is not None:
                done.append(features)
                pixels = pixels[size:]
            elif size > 1:
                self._most = size // 2
                torch.cuda.empty_cache()
            else:
                raise UserError(
                    f"The memory of the device '{self._encoder.device}' has no room for one image through "
                    f"'{self._encoder.name}'; free some, try --precision bf16, or another --device."
                )
        return torch.cat(done)

    def _tried(self, pixels: Tensor) -> Tensor | None:
        """Features; None if memory was short, when this has returned and let go of what it held."""
        device = self._encoder.device
        try:
            return self._encoder.encode_images(pixels.to(device, non_blocking=pins(device)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None


def first_batch_size(device: torch.device, image_size: tuple[int, int], precision: Precision) -> int:
    """Images that a tower is given at once to begin with.

    On a CPU the activations of two in float32, or four in half precision, stay small enough to be reused
    instead of asked of the system anew in every layer: more images a second than with any larger number,
    twice those of eight at once, and far less memory.

    Example:
        >>> [first_batch_size(torch.device(device), (224, 224), "fp32") for device in ("cuda", "cpu")]
        [111, 2]
    """
    if device.type == "cpu":
        return CPU_BATCH if precision == "fp32" else 2 * CPU_BATCH
    return max(1, DEVICE_BATCH_BYTES // (4 * 3 * image_size[0] * image_size[1]))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on CUDA, MPS (a plain RuntimeError) or a CPU (likewise)."""
    marks = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(mark in str(error) for mark in marks)


def _view_key(content: str, view: int) -> str:
    return f"image/{content}/{view}"


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
