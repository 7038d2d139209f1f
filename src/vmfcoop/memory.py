"""How the C library hands memory out: one setting that an image tower on a CPU profits from."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_MEGABYTE = 2**20


def keep_freed_memory() -> bool:
    """Let glibc reuse blocks of up to 32 MB and keep 64 MB free at the top of its heap.

    By default a tower's activations, some megabytes each, come from the system and go back to it in every
    layer, and clearing their pages anew took a third of the time of image encoding. Process-wide, so it is
    for the commands to call, not for the library.

    Returns:
        Whether the setting was made; False where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MEGABYTE) and libc.mallopt(_M_TRIM_THRESHOLD, 64 * _MEGABYTE)
    )
