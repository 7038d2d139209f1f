"""Images from files to pixels, read ahead of the tower that waits for them.

Threads read and decode, the process that owns them crops and scales. Where worker processes pay, each of them
is such a process for a share of the files.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.data.image_io import read_image
from vmfcoop.data.references import file_kind, parse_reference
from vmfcoop.errors import UserError
from vmfcoop.machine import available_memory, cores, free_shared_memory

ImageSource = Path | Image.Image
Source = tuple[str, ImageSource]
"""Content hash of an image, and where it is to be had."""

CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

DECODERS = min(8, os.cpu_count() or 1)
"""Threads that read and decode."""
AHEAD = 2
"""Decoded images that wait, by reader."""

FEW = 64
"""Images that are read before worker processes would have started."""
MOST_WORKERS = 8
WORKER_MEMORY = 2**30
"""Bytes of a worker: a decoded image and its copies, and the volumes that are kept for their next slices."""
PREFETCH = 2
"""Batches that each worker has ready."""
WORKERS = "VMFCOOP_WORKERS"
"""Environment variable: the number of worker processes."""


class Loaded(NamedTuple):
    """Images that are ready for the tower.

    Attributes:
        contents: content hashes of n images.
        pixels: their views, shape ``(n, V, 3, H, W)``, float32.
    """

    contents: tuple[str, ...]
    pixels: Tensor


class ViewStream(IterableDataset[Loaded | UserError]):
    """Batches of images with their views; in a worker process of a ``DataLoader``, those of its share.

    An image that cannot be read ends the stream: what was read before it comes as a last batch, then the
    error, as an item. Raised in a worker, it would come out wrapped in that worker's traceback.

    Args:
        encoder: gives the test-time transform and the size of crops.
        shares: images by worker, a single list of them without workers.
        views: V.
        per_batch: images of a batch.
    """

    def __init__(
        self, encoder: DualEncoder, shares: Sequence[Sequence[Source]], views: int, per_batch: int
    ) -> None:
        self._encoder = encoder
        self._shares = shares
        self._views = views
        self._per_batch = per_batch

    def __iter__(self) -> Iterator[Loaded | UserError]:
        worker = get_worker_info()
        if worker is None or worker.dataset is not self:  # a worker may be that of a caller's own loader
            share, readers = self._shares[0], DECODERS
        else:
            share, readers = self._shares[worker.id], 1
        contents: list[str] = []
        pixels: list[Tensor] = []
        fault = None
        try:
            for content, image in _read_ahead(share, readers):
                contents.append(content)
                pixels.append(views_of(image, content, self._views, self._encoder))
                if len(contents) == self._per_batch:
                    yield Loaded(tuple(contents), torch.stack(pixels))
                    contents, pixels = [], []
        except UserError as error:
            fault = error
        if contents:
            yield Loaded(tuple(contents), torch.stack(pixels))
        if fault:
            yield fault


def load_views(
    encoder: DualEncoder, sources: Sequence[Source], views: int, per_batch: int, workers: int | None = None
) -> Iterator[Loaded | UserError]:
    """Batches of images with their views, read ahead; their order is that of the sources within a worker.

    Args:
        encoder: gives the test-time transform, the size of crops, and the device they are for.
        sources: n images.
        views: V.
        per_batch: images of a batch.
        workers: worker processes, if this process may have them and shared memory has room for their
            batches; default ``VMFCOOP_WORKERS``, or as many as pay.

    Yields:
        Batches; if an image cannot be read, what was read before it and then the error, as the last item.

    Raises:
        UserError: ``VMFCOOP_WORKERS`` is no number.
    """
    wanted = _asked_for() if workers is None else workers
    if wanted is None:
        wanted = workers_that_pay(encoder.device, [image for _, image in sources])
    height, width = encoder.image_size
    batch_bytes = 4 * 3 * height * width * views * min(per_batch, len(sources))
    count = possible_workers(min(wanted, len(sources)), batch_bytes)
    stream = ViewStream(encoder, shares_of(sources, max(1, count)), views, per_batch)
    if count:
        # Forked processes never tokenise, and the tokenizers library would say on stderr that they cannot.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    yield from DataLoader(
        stream,
        batch_size=None,
        num_workers=count,
        prefetch_factor=PREFETCH if count else None,
        multiprocessing_context="fork" if count else None,
        worker_init_fn=_deaf_to_interrupts if count else None,
        pin_memory=pins(encoder.device),
        generator=torch.Generator(),  # or it would draw a number from the one that training may use
    )


def pins(device: torch.device) -> bool:
    """Whether batches go to page-locked memory, from which a device copies while the host goes on."""
    return device.type == "cuda"


def workers_that_pay(device: torch.device, images: Sequence[ImageSource]) -> int:
    """Worker processes for images that a tower on a device waits for, without limits of the process.

    None for a few images, and none beside a tower on the CPU, which needs the cores itself and is served as
    well by threads; but there are for compressed DICOM (as the first image is), since its decoders let one
    thread run at a time.
    """
    if len(images) < FEW or (device.type == "cpu" and not _compressed_dicom(images[0])):
        return 0
    memory = available_memory()
    room = MOST_WORKERS if memory is None else memory // WORKER_MEMORY
    return max(0, min(cores(), MOST_WORKERS, room))


def possible_workers(wanted: int, batch_bytes: int) -> int:
    """As many workers as this process may have and shared memory has room for.

    A daemonic process (a benchmark's) may have none. Elsewhere than on Linux processes are not forked
    safely, and started anew they would take seconds and need scripts to guard their main part.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 0
    return min(wanted, free_shared_memory() // ((PREFETCH + 2) * max(1, batch_bytes)))


def _asked_for() -> int | None:
    text = os.environ.get(WORKERS, "")
    if text and not text.isdecimal():
        raise UserError(f"{WORKERS} is '{text}'; set it to a number of processes, 0 for none, or unset it.")
    return int(text) if text else None


def _compressed_dicom(image: ImageSource) -> bool:
    if isinstance(image, Image.Image) or file_kind(parse_reference(image).file) != "dicom":
        return False
    from pydicom.filereader import read_file_meta_info

    try:
        return bool(read_file_meta_info(parse_reference(image).file).TransferSyntaxUID.is_compressed)
    except Exception:  # a damaged header makes it raise nearly anything; reading the image says what is wrong
        return False


def shares_of(sources: Sequence[Source], count: int) -> list[list[Source]]:
    """Sources dealt out to workers, evenly; slices of one file stay together, so that it is read once.

    A file with more slices than an even share is cut in pieces of that size.

    Example:
        >>> slices = [(str(i), Path(f"a.nii.gz#slice={i}")) for i in range(2)]
        >>> [len(share) for share in shares_of([*slices, ("2", Path("b.png")), ("3", Path("c.png"))], 2)]
        [2, 2]
    """
    if count == 1:
        return [list(sources)]
    even = math.ceil(len(sources) / count)
    of_file: dict[Hashable, list[Source]] = {}
    for content, image in sources:
        file = parse_reference(image).file if isinstance(image, Path) else content
        of_file.setdefault(file, []).append((content, image))
    pieces = [group[at : at + even] for group in of_file.values() for at in range(0, len(group), even)]
    shares: list[list[Source]] = [[] for _ in range(count)]
    for piece in sorted(pieces, key=len, reverse=True):
        min(shares, key=len).extend(piece)
    return shares


@contextmanager
def killed_worker_is_said() -> Iterator[None]:
    """Turn the death of a worker process, which may be noticed anywhere inside, into one sentence.

    Raises:
        UserError: a worker was killed, by the system for want of memory or by somebody.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            "A process that reads images was killed, perhaps for want of memory; what was computed is kept, "
            f"so repeat the command to go on, with {WORKERS}=0 to read without such processes."
        ) from error


def _deaf_to_interrupts(worker: int) -> None:
    """Ctrl-C is for the process that started this one: it says so, once, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_ahead(sources: Sequence[Source], readers: int) -> Iterator[tuple[str, Image.Image]]:
    """Decoded images by content hash, in order; the next few are decoded while one is worked on.

    The threads only decode: a thread that calls torch starts a team of threads of its own, which then
    compete with those of the image tower.
    """
    waiting: deque[tuple[str, Future[Image.Image]]] = deque()
    pool = ThreadPoolExecutor(max_workers=readers)
    try:
        for content, image in sources:
            waiting.append((content, pool.submit(_decoded, image)))
            if len(waiting) > AHEAD * readers:
                first, future = waiting.popleft()
                yield first, future.result()
        for content, future in waiting:
            yield content, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(source: ImageSource) -> Image.Image:
    return read_image(source) if isinstance(source, Path) else source


def views_of(image: Image.Image, content: str, views: int, encoder: DualEncoder) -> Tensor:
    """The model's own test-time transform and V - 1 random crops of an image -> ``(V, 3, H, W)``, float32."""
    mean, std = encoder.image_mean_std
    crops = [random_resized_crop(image, content, view, encoder.image_size) for view in range(1, views)]
    augmented = [vision.normalize(vision.to_tensor(crop), mean, std) for crop in crops]
    return torch.stack([encoder.preprocess(image), *augmented])


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
