"""A bound on the memory that decoding takes in this process, in all threads together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class MemoryBound:
    """Lets as much work begin as fits ``total`` bytes; the rest waits, one after another."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._next = threading.Lock()  # of the work that waits next: small work passes none by
        self._changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yields a function to be called once, with the bytes that the work inside will need.

        It waits until they are free; what needs more than there is waits for all of it.
        """
        taken = 0

        def take(nbytes: int) -> None:
            nonlocal taken
            nbytes = min(nbytes, self._total)
            with self._next, self._changed:
                self._changed.wait_for(lambda: self._free >= nbytes)
                self._free -= nbytes
            taken = nbytes

        try:
            yield take
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()
