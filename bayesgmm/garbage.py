"""Memory of posteriors and figures that nobody holds any more, given back.

The nodes of a DataTree refer to each other in circles, and so do the parts of a figure. What stands in circles is not freed as it is
dropped but by a full collection, for which Python waits until the number of its objects has grown by a quarter; how many bytes hang on
them it does not know. A hundred posteriors with their draws are fewer objects than that. So we say how much we have made, and ask for the
collection.
"""

from __future__ import annotations

import gc
import threading
import time

LIMIT = 4_000_000
"""Bytes made since the last full collection from which another is due."""

SHARE = 0.05
"""Of all time, the most that these collections take, in a process with so many objects that each of them is slow."""

FIGURE = 500_000
"""About the bytes of a figure (2500 objects, and its canvas)."""


class _Ledger:
    """What was made since the last full collection, whoever asked for that."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bytes, self.collections, self.earliest = 0, 0, 0.0

    def add(self, n_bytes: int) -> bool:
        """Whether a collection is due, which the caller then does."""
        with self.lock:
            collections = gc.get_stats()[-1]["collections"]
            if collections != self.collections:
                self.bytes, self.collections = 0, collections
            self.bytes += n_bytes
            return self.bytes > LIMIT and gc.isenabled() and time.perf_counter() >= self.earliest

    def collect(self) -> None:
        begin = time.perf_counter()
        gc.collect()
        end = time.perf_counter()
        with self.lock:
            self.earliest = end + (end - begin) / SHARE


_ledger = _Ledger()


def made(n_bytes: int) -> None:
    """Say that something that stands in circles was made; what was dropped before is freed if that is due.

    Nothing is done where the user has switched the garbage collector off (``gc.disable()``).

    Parameters
    ----------
    n_bytes : int
    """
    if _ledger.add(n_bytes):
        _ledger.collect()
