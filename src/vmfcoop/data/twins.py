"""Images that are the same or nearly so: fingerprints, kept by content, and the search for twins among them.

The perceptual hash is real-valued. With :math:`D_{uv}` the orthonormal DCT of a grey 32 x 32 thumbnail,

.. math:: h_{uv} = \\sqrt{u^2 + v^2}\\, D_{uv}, \\quad 0 \\le u, v < 16,

scaled to unit length. By Parseval's identity :math:`\\langle h, h' \\rangle` is the correlation of the
gradients of two images below 8 cycles a side: brightness and contrast drop out, broad shading counts little,
and neither JPEG nor a change of size reaches these frequencies. Flips and rotations by 90 degrees only change
signs of ``h`` or transpose it, so turned copies are found without reading an image again.

Medical images of one view share outlines: a ribcage, the rim of a fundus photograph. Two images are therefore
compared by what sets them apart from the others, their gradients :math:`g(x)` standardised at every place
:math:`x` by mean and variance over the dataset:

.. math:: s(a, b) = \\cos(z_a, z_b), \\quad
    z(x) = \\frac{g(x) - \\bar g(x)}{\\sqrt{\\sigma^2(x) + \\bar\\sigma^2 / 10}}.

This is linear in ``h``, so :math:`s` is the cosine of two vectors of 256 numbers. Mean and variance are
shrunk towards 0 and a constant, as if by ``PRIOR_IMAGES`` further images: a few images can be compared too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vmfcoop.data.image_io import read_image
from vmfcoop.data.splits import SPLITS
from vmfcoop.errors import UserError
from vmfcoop.files import home
from vmfcoop.progress import ProgressReport, no_progress

if TYPE_CHECKING:
    from vmfcoop.features import FeatureCache

THRESHOLD = 0.88
"""Similarity :math:`s` from which two images are near twins; docs/verify-import.md has the calibration."""

PRIOR_IMAGES = 20
"""Weight of the prior in mean and variance of a dataset's gradients, in images."""

FLAT = 2.0
"""Standard deviation of a thumbnail's grey levels, of 255, below which images cannot be told apart by it."""

LISTED_PAIRS = 1_000_000
"""Pairs that are kept one by one; beyond, clusters and nearest twins still count every pair."""

_SIDE, _ORDER = 32, 16
_VERSION = 1
_AT_ONCE = 256
_TILE_ROWS, _TILE_COLUMNS = 1024, 4096
_MEASURES = 6
_LENGTH = _ORDER**2 + _MEASURES + hashlib.sha256().digest_size

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Rows of the first images, rows of the second, larger ones, and the similarity of the two."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What is known of n images without their pixels; rows of unreadable images are empty or zero.

    Attributes:
        contents: SHA-256 of each file's bytes, with the part of the file that is meant, '' if unreadable.
        pixels: SHA-256 of each picture's size and RGB pixels, '' if unreadable.
        hashes: Perceptual hashes, unit rows, zero where an image is flat (``FLAT``), float32 ``(n, 256)``.
        sizes: Width and height in pixels, ``(n, 2)``.
        levels: Lowest and highest grey level, ``(n, 2)``.
        contrasts: Standard deviation of the thumbnail's grey levels, ``(n,)``.
        grey: Whether the three channels are equal, bool ``(n,)``.
        unreadable: Why, by row.
    """

    contents: tuple[str, ...]
    pixels: tuple[str, ...]
    hashes: NDArray[np.float32]
    sizes: NDArray[np.int64]
    levels: NDArray[np.float32]
    contrasts: NDArray[np.float32]
    grey: NDArray[np.bool_]
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.contents)


def perceptual_hash(image: Image.Image) -> NDArray[np.float32]:
    """The hash ``h`` of a picture, flattened ``(256,)``: of unit length, or zero if the picture is flat."""
    return _hash(_thumbnail(image))


def _thumbnail(image: Image.Image) -> NDArray[np.float32]:
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small, np.float32)


def _hash(thumbnail: NDArray[np.float32]) -> NDArray[np.float32]:
    if thumbnail.std() < FLAT:
        return np.zeros(_ORDER**2, np.float32)
    weighted = (dctn(thumbnail, norm="ortho")[:_ORDER, :_ORDER] * _frequencies()).ravel()
    return np.asarray(weighted / max(float(np.linalg.norm(weighted)), 1e-12), np.float32)


def _frequencies() -> NDArray[np.float64]:
    steps = np.arange(_ORDER)
    return np.hypot(steps[:, None], steps)


def fingerprint_images(paths: Sequence[Path], progress: ProgressReport = no_progress) -> Fingerprints:
    """Read every image once, in threads; what was read before, under any name, comes from the cache.

    The cache lies in the home folder and goes by the content of the files. An image that cannot be read
    stops nothing: ``Fingerprints.unreadable`` says why.

    Args:
        paths: n files, or references to parts of files.
        progress: Told of the images.

    Raises:
        UserError: The cache cannot be written.
    """
    # Here, as it brings torch.
    from vmfcoop.features import FeatureCache
    from vmfcoop.loading import DECODERS

    cache = FeatureCache(home() / "fingerprints" / f"{_VERSION}.sqlite", _LENGTH)
    contents: list[str] = []
    vectors = np.zeros((len(paths), _LENGTH), np.float32)
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            part = paths[start : start + _AT_ONCE]
            for row, (content, found) in enumerate(_read_part(part, cache, pool), start):
                if isinstance(found, str):
                    unreadable[row] = found
                else:
                    vectors[row] = found
                contents.append("" if isinstance(found, str) else content)
            progress("Reading images", start + len(part), len(paths))
    return _unpack(contents, vectors, unreadable)


def _read_part(
    paths: Sequence[Path], cache: FeatureCache, pool: ThreadPoolExecutor
) -> list[tuple[str, NDArray[np.float32] | str]]:
    """Content and vector of each image, or the reason why there is none."""
    import torch

    contents = list(pool.map(_content, paths))
    known = {key: vector.numpy() for key, vector in cache.get([c for c in contents if c]).items()}
    absent = [row for row, content in enumerate(contents) if content not in known]
    measured = dict(zip(absent, pool.map(_measure, [paths[row] for row in absent]), strict=True))
    fresh = {contents[row]: found for row, found in measured.items() if not isinstance(found, str)}
    cache.put((content, torch.from_numpy(vector)) for content, vector in fresh.items() if content)
    return [(c, measured[row] if row in measured else known[c]) for row, c in enumerate(contents)]


def _content(path: Path) -> str:
    """Content hash of an image, '' where the file cannot be read."""
    from vmfcoop.features import content_hash

    try:
        return content_hash(path)
    except UserError:
        return ""


def _measure(path: Path) -> NDArray[np.float32] | str:
    """The image's vector as the cache keeps it, or the sentence that says why it cannot be read."""
    try:
        image = read_image(path)
    except UserError as error:
        return str(error)
    pixels = np.asarray(image)
    thumbnail = _thumbnail(image)
    grey = (pixels[:, :, 0] == pixels[:, :, 1]).all() and (pixels[:, :, 1] == pixels[:, :, 2]).all()
    measures = (*image.size, pixels.min(), pixels.max(), thumbnail.std(), grey)
    digest = hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).digest()
    return np.concatenate([_hash(thumbnail), np.array([*measures, *digest], np.float32)])


def _unpack(contents: list[str], vectors: NDArray[np.float32], unreadable: dict[int, str]) -> Fingerprints:
    hashes, measures, digests = np.split(vectors, [_ORDER**2, _ORDER**2 + _MEASURES], axis=1)
    pixels = [row.astype(np.uint8).tobytes().hex() for row in digests]
    return Fingerprints(
        contents=tuple(contents),
        pixels=tuple("" if row in unreadable else digest for row, digest in enumerate(pixels)),
        hashes=np.ascontiguousarray(hashes),
        sizes=measures[:, :2].astype(np.int64),
        levels=measures[:, 2:4],
        contrasts=measures[:, 4],
        grey=measures[:, 5] > 0,
        unreadable=unreadable,
    )


def turned(hashes: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The hashes ``(n, 256)`` of the images as they are, then of their seven flips and turns."""
    square = hashes.reshape(-1, _ORDER, _ORDER)
    signs = np.where(np.arange(_ORDER) % 2, -1, 1).astype(np.float32)
    for base in (square, square.transpose(0, 2, 1)):
        for down in (False, True):
            for across in (False, True):
                flipped = base * (signs[:, None] if down else 1) * (signs if across else 1)
                yield np.ascontiguousarray(flipped, np.float32).reshape(-1, _ORDER**2)


class Standardiser:
    """The linear map from hashes to standardised gradients, with mean and variance of a dataset.

    Args:
        hashes: Of the dataset, ``(n, 256)``; zero rows do not count.
    """

    def __init__(self, hashes: NDArray[np.float32]) -> None:
        known = hashes[hashes.any(axis=1)]
        n = len(known)
        gradients = _gradients_of_hashes()
        self._mean = np.asarray(known.sum(axis=0, dtype=np.float64) / (n + PRIOR_IMAGES), np.float32)
        centred = known - self._mean
        covariance = (centred.T @ centred).astype(np.float64) / max(n, 1)
        variance = (gradients * (covariance @ gradients)).sum(axis=0).reshape(2, -1).sum(axis=0)
        typical = max(float(variance.mean()), 1e-12)
        variance = (n * variance + PRIOR_IMAGES * typical) / (n + PRIOR_IMAGES)
        weights = np.tile(1 / (variance + typical / 10), 2)
        # Cosines are those of the gradients if the map is any square root of their metric.
        values, vectors = np.linalg.eigh((gradients * weights) @ gradients.T)
        self._root = np.asarray(vectors * np.sqrt(np.maximum(values, 0)), np.float32)

    def __call__(self, hashes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit rows whose products are the similarities, zero where a hash is zero, ``(n, 256)``."""
        mapped = (hashes - self._mean) @ self._root
        mapped[~hashes.any(axis=1)] = 0
        lengths = np.linalg.norm(mapped, axis=1, keepdims=True)
        return np.asarray(mapped / np.maximum(lengths, 1e-12), np.float32)


@cache
def _gradients_of_hashes() -> NDArray[np.float64]:
    """Gradients of the thumbnail behind each unit hash, across and then down, ``(256, 2 * 31 * 31)``."""
    weights = _frequencies()
    weights[0, 0] = 1
    spectra = np.zeros((_ORDER**2, _SIDE, _SIDE))
    spectra[:, :_ORDER, :_ORDER] = np.eye(_ORDER**2).reshape(-1, _ORDER, _ORDER) / weights
    images = idctn(spectra, axes=(1, 2), norm="ortho")
    across = np.diff(images, axis=2)[:, 1:, :].reshape(_ORDER**2, -1)
    down = np.diff(images, axis=1)[:, :, 1:].reshape(_ORDER**2, -1)
    return np.concatenate([across, down], axis=1)


def near_pairs(
    hashes: NDArray[np.float32],
    threshold: float = THRESHOLD,
    flips: bool = False,
    progress: ProgressReport = no_progress,
) -> Iterator[Pairs]:
    """All pairs of rows whose similarity is at least the threshold, tile by tile.

    Every pair is compared, in matrix products of a few million pairs, so none is missed and memory stays
    bounded; zero rows have no twins.

    Args:
        hashes: Unit or zero rows, ``(n, 256)``.
        threshold: Similarity, above 0.
        flips: Whether the first image may be flipped or turned by 90 degrees.
        progress: Told of the rows that are done.
    """
    n = len(hashes)
    standardise = Standardiser(hashes)
    standardised = standardise(hashes)
    for top in range(0, n, _TILE_ROWS):
        rows = slice(top, top + _TILE_ROWS)
        versions = [standardise(v) for v in turned(hashes[rows])] if flips else [standardised[rows]]
        for left in range(top - top % _TILE_COLUMNS, n, _TILE_COLUMNS):
            columns = standardised[left : left + _TILE_COLUMNS].T
            best = versions[0] @ columns
            for version in versions[1:]:
                np.maximum(best, version @ columns, out=best)
            first, second = np.nonzero(best >= threshold)
            upper = first + top < second + left
            first, second = first[upper], second[upper]
            yield first + top, second + left, best[first, second]
        progress("Comparing images", min(top + _TILE_ROWS, n), n)


def same_picture_pairs(pixels: Sequence[str], split: NDArray[np.str_]) -> Pairs:
    """Each image beside the first one of every split that has the same pixels."""
    firsts: dict[str, dict[str, int]] = {}
    pairs: list[tuple[int, int]] = []
    for row, digest in enumerate(pixels):
        if digest:
            seen = firsts.setdefault(digest, {})
            pairs += [(other, row) for other in seen.values()]
            seen.setdefault(str(split[row]), row)
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1], np.ones(len(found), np.float32)


class Twins:
    """Twins among n images, gathered pair by pair.

    Args:
        split: Split of each image, ``(n,)``.

    Attributes:
        nearest: Row of the most similar twin of each image in train, val and test, -1 for none, ``(n, 3)``.
        similarity: Similarity to it, 0 for none, ``(n, 3)``.
        n_pairs: Pairs found.
    """

    def __init__(self, split: NDArray[np.str_]) -> None:
        n = len(split)
        self.nearest = np.full((n, len(SPLITS)), -1, np.int64)
        self.similarity = np.zeros((n, len(SPLITS)), np.float32)
        self.n_pairs = 0
        self._codes = np.array([SPLITS.index(str(name)) for name in split], np.int64)
        self._clusters = np.arange(n)
        self._listed: list[Pairs] = []

    def add(self, pairs: Pairs) -> None:
        """Count more pairs in; a pair may come only once."""
        first, second, similarity = pairs
        self._note_nearest(first, second, similarity)
        self._note_nearest(second, first, similarity)
        room = max(0, LISTED_PAIRS - self.n_pairs)
        self._listed.append((first[:room], second[:room], similarity[:room]))
        if len(first) > room:
            self._clusters = join(self._clusters, first[room:], second[room:])
        self.n_pairs += len(first)

    def _note_nearest(
        self, image: NDArray[np.int64], twin: NDArray[np.int64], similarity: NDArray[np.float32]
    ) -> None:
        # Weakest first: of several twins of one image the strongest is written last, of equals the lower row.
        order = np.lexsort((-twin, similarity))
        image, twin, similarity = image[order], twin[order], similarity[order]
        code = self._codes[twin]
        better = similarity > self.similarity[image, code]
        self.nearest[image[better], code[better]] = twin[better]
        self.similarity[image[better], code[better]] = similarity[better]

    def pairs(self) -> Pairs:
        """The first ``LISTED_PAIRS`` pairs found, in the order of their rows."""
        empty: Pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
        first, second, similarity = (np.concatenate(c) for c in zip(empty, *self._listed, strict=True))
        order = np.lexsort((second, first))
        return first[order], second[order], similarity[order]

    def clusters(self) -> NDArray[np.int64]:
        """Number of each image's cluster ``(n,)``: images that a chain of twins joins are in one.

        An image without twins is a cluster of its own. Clusters are numbered in the order of their first
        rows.
        """
        first, second, _ = self.pairs()
        return join(self._clusters, first, second)


def find_twins(
    fingerprints: Fingerprints,
    split: NDArray[np.str_],
    threshold: float = THRESHOLD,
    flips: bool = False,
    progress: ProgressReport = no_progress,
) -> Twins:
    """Exact and near twins of images.

    Args:
        fingerprints: Of n images.
        split: Split of each, ``(n,)``.
        threshold: Similarity from which images are twins.
        flips: Whether flipped and turned copies count.
        progress: Told of the comparisons.

    Raises:
        UserError: The threshold lies outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UserError(f"The threshold of twins is a similarity above 0 and at most 1, not {threshold:g}.")
    twins = Twins(split)
    flat = [not row.any() for row in fingerprints.hashes]
    twins.add(
        same_picture_pairs([p if f else "" for p, f in zip(fingerprints.pixels, flat, strict=True)], split)
    )
    # Rounding must not keep the images with equal pixels apart at a threshold of 1.
    for pairs in near_pairs(fingerprints.hashes, min(threshold, 1 - 1e-5), flips, progress):
        twins.add(pairs)
    return twins


def join(
    clusters: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Clusters ``(n,)`` once those of each pair are one, numbered in the order of their first rows."""
    n = len(clusters)
    edges = coo_array((np.ones(len(first), bool), (clusters[first], clusters[second])), shape=(n, n))
    joined = connected_components(edges, directed=False)[1][clusters]
    _, first_rows, numbers = np.unique(joined, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first_rows))[numbers], np.int64)
