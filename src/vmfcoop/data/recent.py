"""Slow reads done once: what was read from the files used last, shared between threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class RecentReads(Generic[T]):
    """Results of reading files, the least recently used of them dropped beyond a capacity.

    A file is known by path, size and time of its last change, so a changed file is read anew. Threads that
    ask for the same thing wait for one read of it.

    Args:
        capacity: Largest sum of the weights of what is kept.
        weight: Weight of one result; by default 1, so that the capacity counts results.

    Example:
        >>> lengths = RecentReads[int](capacity=100)
        >>> lengths.get(Path(__file__), "length", lambda: len(Path(__file__).read_bytes())) > 0
        True
    """

    def __init__(self, capacity: int, weight: Callable[[T], int] = lambda result: 1) -> None:
        self._capacity = capacity
        self._weight = weight
        self._results: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._lock = Lock()

    def get(self, file: Path, detail: Hashable, read: Callable[[], T]) -> T:
        """What ``read`` gives for this state of the file; ``detail`` tells apart what is read from one file.

        Raises:
            OSError: The file is missing.
            Exception: Whatever ``read`` raises; nothing is kept then.
        """
        state = file.stat()
        key = (str(file.absolute()), state.st_size, state.st_mtime_ns, detail)
        with self._lock:
            known = self._results.get(key)
            result = known or self._results.setdefault(key, Future())
            self._results.move_to_end(key)
        if known is None:
            self._fill(key, result, read)
        return result.result()

    def _fill(self, key: Hashable, result: Future[T], read: Callable[[], T]) -> None:
        try:
            result.set_result(read())
        except BaseException as error:
            with self._lock:
                self._results.pop(key, None)
            result.set_exception(error)
            return
        with self._lock:
            finished = {k: self._weight(r.result()) for k, r in self._results.items() if r.done()}
            excess = sum(finished.values()) - self._capacity
            for old, weight in finished.items():
                if excess <= 0:
                    break
                del self._results[old]
                excess -= weight
