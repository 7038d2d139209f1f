"""NIfTI volumes to pictures of their slices, through nibabel; only what a slice needs is read."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmfcoop.data.display import (
    Window,
    apply_window,
    grey_picture,
    robust_window,
    square_pixels,
    too_many_pixels,
    window_between,
)
from vmfcoop.data.recent import RecentReads
from vmfcoop.data.references import ImageReference
from vmfcoop.errors import UserError

MAX_VOLUME_BYTES = 2**31
"""Largest 3D volume that is read, as stored and inflated: 1024 x 1024 x 1024 voxels of 16 bits."""

MAX_FILE_BYTES = 2**34
"""Largest content of a compressed file with several volumes, which must be inflated up to the chosen one."""

_DEFLATE_RATIO = 1032  # the most that deflate can inflate a byte to
_RANGE_VOXELS = 2**21
_HEADER_BYTES = 540  # of NIfTI-2
_SMALLEST_HEADER = 348  # of NIfTI-1

_volumes: RecentReads[NDArray[Any]] = RecentReads(2**29, weight=lambda volume: int(volume.nbytes))
_windows: RecentReads[Window | None] = RecentReads(4096)


@dataclass(frozen=True)
class _Layout:
    """What the header says.

    Attributes:
        file: The file.
        shape: Voxels along the three stored axes, then the volumes of a series.
        dtype: Type of a stored voxel.
        offset: Bytes before the voxels.
        slope, intercept: value = slope * stored + intercept.
        axes: Stored axis of each canonical axis (right, anterior, superior).
        reversed: Whether that stored axis runs against the canonical one.
        spacing: Voxel size along the canonical axes, mm.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]

    @property
    def volumes(self) -> int:
        return math.prod(self.shape[3:])

    @property
    def volume_bytes(self) -> int:
        return math.prod(self.shape[:3]) * self.dtype.itemsize

    def index(self, volume: int, stored_axis: int | None = None, position: int = 0) -> tuple[Any, ...]:
        """Index of a whole volume, or of one slice of it."""
        inside: list[Any] = [slice(None)] * 3
        if stored_axis is not None:
            inside[stored_axis] = position
        trailing = np.unravel_index(volume, self.shape[3:], order="F") if self.shape[3:] else ()
        return (*inside, *map(int, trailing))


def read_nifti(reference: ImageReference, max_pixels: int) -> Image.Image:
    """Read one slice of a NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``, as RGB.

    - Orientation: axes are those of the nearest canonical orientation (RAS+): 0 sagittal, counted from the
      patient's left, 1 coronal, from the back, 2 axial, from the feet. By default axis 2, slice
      ``count // 2``, and volume 0 of a series (``frame``; further dimensions count on, the fourth fastest).
    - Display is radiological: the patient's right on the picture's left, anterior on top of axial slices,
      superior on top of the others, anterior on the left of sagittal ones.
    - Values are ``scl_slope * stored + scl_inter``. Without a ``window``, black and white are the 0.5th and
      99.5th percentile of the finite values of the whole volume, so that its slices can be compared; they
      are taken over a regular grid of at most two million voxels. The modality is not recorded: a named
      CT window supposes Hounsfield units.
    - Oblong pixels are made square, the coarser side enlarged. RGB voxels are shown as they are,
      without an alpha channel.

    Args:
        reference: File, with ``axis``, ``slice``, ``frame`` and ``window`` where they are chosen.
        max_pixels: Largest number of pixels of a slice.

    Raises:
        UserError: The file is truncated or no NIfTI, larger than the limits by its header, of complex
            numbers, or the selection does not fit it.
        PermissionError: The file may not be read.
    """
    reference.require_only("a NIfTI file", "axis", "slice", "frame", "window")
    try:
        return _render(reference, max_pixels)
    except (UserError, PermissionError):
        raise
    # A damaged header or gzip stream makes the decoders raise nearly anything.
    except Exception as error:
        raise _damaged(reference.file) from error


def _render(reference: ImageReference, max_pixels: int) -> Image.Image:
    layout = _read_layout(reference.file)
    axis = 2 if reference.axis is None else reference.axis
    count = layout.shape[layout.axes[axis]]
    position = reference.index("slice", count, count // 2)
    volume = reference.index("frame", layout.volumes, 0)
    across, upward = (other for other in range(3) if other != axis)
    if layout.shape[layout.axes[across]] * layout.shape[layout.axes[upward]] > max_pixels:
        raise too_many_pixels(reference.file, max_pixels)
    stored = _stored_slice(layout, volume, axis, position)
    if layout.dtype.names:
        picture = _colour_picture(reference, stored)
    else:
        window = reference.window or _volume_window(layout, volume)
        values = stored * layout.slope + layout.intercept
        picture = grey_picture(apply_window(values, window) if window else np.zeros(values.shape))
    return square_pixels(picture, layout.spacing[upward], layout.spacing[across], layout.file, max_pixels)


def _stored_slice(layout: _Layout, volume: int, axis: int, position: int) -> NDArray[Any]:
    """Stored values of one canonical slice in radiological display, ``(H, W)``."""
    stored_axis = layout.axes[axis]
    if layout.reversed[axis]:
        position = layout.shape[stored_axis] - 1 - position
    if _is_compressed(layout.file):
        part = np.take(_inflated_volume(layout, volume), position, axis=stored_axis)
    else:
        part = np.asarray(_proxy(layout)[layout.index(volume, stored_axis, position)])
    across, upward = (other for other in range(3) if other != axis)
    if layout.axes[across] > layout.axes[upward]:
        part = part.T
    # In canonical order the first index grows to the right or front and the second upwards; on a
    # radiological display both run the other way, whichever the axis.
    flips = tuple(slice(None, None, 1 if layout.reversed[other] else -1) for other in (across, upward))
    shown: NDArray[Any] = part[flips].T
    return shown


def _volume_window(layout: _Layout, volume: int) -> Window | None:
    return _windows.get(layout.file, volume, partial(_measure_window, layout, volume))


def _measure_window(layout: _Layout, volume: int) -> Window | None:
    if _is_compressed(layout.file):
        stored = _inflated_volume(layout, volume)
    else:
        stored = np.asanyarray(_proxy(layout))[layout.index(volume)]
    step = math.ceil((stored.size / _RANGE_VOXELS) ** (1 / 3))
    window = robust_window(stored[::step, ::step, ::step] * layout.slope + layout.intercept)
    if window is not None or step == 1:
        return window
    # The grid met one value only: a small structure on an empty background lies between its points.
    whole = stored[np.isfinite(stored)]
    if whole.size == 0:
        return None
    ends = sorted(float(end) * layout.slope + layout.intercept for end in (whole.min(), whole.max()))
    return window_between(*ends)


def _inflated_volume(layout: _Layout, volume: int) -> NDArray[Any]:
    return _volumes.get(
        layout.file, volume, lambda: np.asarray(_proxy(layout)[layout.index(volume)], order="F")
    )


def _proxy(layout: _Layout) -> Any:
    """The stored array on disk, unscaled; indexing reads what is indexed."""
    from nibabel.arrayproxy import ArrayProxy

    return ArrayProxy(str(layout.file), (layout.shape, layout.dtype, layout.offset, 1.0, 0.0))


def _colour_picture(reference: ImageReference, stored: NDArray[Any]) -> Image.Image:
    if reference.window is not None:
        raise UserError(f"{reference}: a window has no meaning for colour; leave it out.")
    channels = np.stack([stored[name] for name in ("R", "G", "B")], axis=2)
    return Image.fromarray(np.ascontiguousarray(channels))


def _read_layout(file: Path) -> _Layout:
    """The header, checked against the limits and the file's length before any voxel is read."""
    header = _read_header(file)
    shape = tuple(int(length) for length in header.get_data_shape())
    shape = shape + (1,) * (3 - len(shape))
    dtype = header.get_data_dtype()
    if min(shape) < 1:
        raise _damaged(file)
    if dtype.kind == "c":
        raise UserError(f"{file} holds complex numbers; save their magnitude as NIfTI and name that file.")
    slope, intercept = header.get_slope_inter()
    axes, is_reversed, spacing = _canonical_axes(file, header.get_best_affine())
    layout = _Layout(
        file,
        shape,
        dtype,
        int(header.get_data_offset()),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        axes,
        is_reversed,
        spacing,
    )
    _check_size(layout)
    return layout


def _read_header(file: Path) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    with gzip.open(file) if _is_compressed(file) else file.open("rb") as stream:
        block = stream.read(_HEADER_BYTES)
    for header_class, magic, at in ((Nifti1Header, b"n+1\0", 344), (Nifti2Header, b"n+2\0", 4)):
        if block[at : at + 4] == magic:
            return header_class(block[: header_class.sizeof_hdr], check=False)
    raise _damaged(file)


def _canonical_axes(
    file: Path, affine: NDArray[np.float64]
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], tuple[float, float, float]]:
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if not np.isfinite(orientation).all():
        raise UserError(f"{file} has no valid orientation (sform and qform); correct its header.")
    sizes = voxel_sizes(affine)
    a, b, c = (int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3))
    is_reversed = (bool(orientation[a, 1] < 0), bool(orientation[b, 1] < 0), bool(orientation[c, 1] < 0))
    return (a, b, c), is_reversed, (float(sizes[a]), float(sizes[b]), float(sizes[c]))


def _check_size(layout: _Layout) -> None:
    compressed = _is_compressed(layout.file)
    needed = layout.offset + layout.volumes * layout.volume_bytes
    if layout.volume_bytes > MAX_VOLUME_BYTES or (compressed and needed > MAX_FILE_BYTES):
        limit = MAX_VOLUME_BYTES if layout.volume_bytes > MAX_VOLUME_BYTES else MAX_FILE_BYTES
        raise UserError(
            f"{layout.file} is larger than the {limit / 2**30:.0f} GiB that are read; "
            "crop it, downsample it, or split the series."
        )
    length = layout.file.stat().st_size * (_DEFLATE_RATIO if compressed else 1)
    if layout.offset < _SMALLEST_HEADER or length < needed:
        raise _damaged(layout.file)


def _is_compressed(file: Path) -> bool:
    return file.name.lower().endswith(".gz")


def _damaged(file: Path) -> UserError:
    return UserError(f"{file} is truncated or no NIfTI file; copy or convert it again.")
