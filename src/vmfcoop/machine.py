"""What this process may use of the machine: cores, memory, shared memory."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be had without swapping, within the limits of the container; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no limit ("max"), or another kind of groups
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def free_shared_memory() -> int:
    """Bytes that processes can hand to each other through ``/dev/shm``; 64 MB are usual in a container."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0
