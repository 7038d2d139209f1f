"""Which image files were used already: digests of their content, kept by a run in place of the images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmfcoop.features import content_hash
from vmfcoop.loading import DECODERS, ImageSource

DIGEST_BYTES = 16
"""Of the SHA-256 of a file that are kept: enough that no two of any collection agree by chance."""


def file_digests(images: Sequence[ImageSource]) -> Tensor:
    """The first bytes of each image's content hash, uint8, shape ``(n, 16)``.

    Raises:
        UserError: a file cannot be opened.
    """
    with ThreadPoolExecutor(max_workers=DECODERS) as pool:
        hashes = list(pool.map(content_hash, images))
    rows = [list(bytes.fromhex(content)[:DIGEST_BYTES]) for content in hashes]
    return torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), DIGEST_BYTES)


def found_in(digests: Tensor, *others: Tensor) -> NDArray[np.bool_]:
    """Which digests, shape ``(n, 16)``, are among others too, shape ``(n,)``.

    Example:
        >>> two = torch.arange(32, dtype=torch.uint8).reshape(2, 16)
        >>> found_in(two, two[1:]).tolist()
        [False, True]
    """
    known = {row.tobytes() for table in others for row in table.numpy()}
    return np.array([row.tobytes() in known for row in digests.numpy()], dtype=np.bool_)
