"""Several threads for one task: chunks of work that go to whoever is free, and helpers that stay awake from one pass to the next.

A pass over the rows takes from a tenth of a millisecond on, and an algorithm makes hundreds of them with a little work between.
A thread that sleeps meanwhile takes 20 to 50 µs to wake. So :func:`together` has helpers that look out for the next pass for a while, in
compiled code, before they sleep. Chunks are counted with atomic operations; what a chunk does is up to the caller.

Operating systems wake a thread on the core that its caller is busy on, and some leave the two there for as long as they run while
another core idles. Threads that find themselves on their caller's core move off it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

PARALLEL_FLOPS = 2e6
"""Operations from which a second thread is worth it."""

LOOKS = 10_000
"""How often a helper looks for the next pass, or a caller for the end of this one, before it sleeps: about 0.3 ms."""

TAKEN, DONE = 0, 1
"""Places in a pass's counters: chunks that somebody has begun, and those that are complete."""

_limit: ContextVar[int | None] = ContextVar("threads", default=None)


@contextmanager
def at_most(n_threads: int) -> Iterator[None]:
    """Within it, passes of this thread that are not told a number of threads take no more than this."""
    token = _limit.set(n_threads)
    try:
        yield
    finally:
        _limit.reset(token)


def available_threads() -> int:
    """Cores that this process may use (``BAYESGMM_NUM_THREADS`` overrides), no more than :func:`at_most` allows."""
    cores = _cores()
    limit = _limit.get()
    return cores if limit is None else min(cores, limit)


def _cores() -> int:
    setting = os.environ.get("BAYESGMM_NUM_THREADS", "")
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worth(n_chunks: int, work: float, n_threads: int | None) -> int:
    """Threads for so many chunks and operations."""
    if work < PARALLEL_FLOPS or n_chunks <= 1:
        return 1
    return min(available_threads() if n_threads is None else n_threads, n_chunks)


@lru_cache(maxsize=1)
def _core_of_caller() -> Callable[[], int]:
    """A function that says on which core it is called, −1 where none can be told or none chosen."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(AttributeError, OSError):
            return ctypes.PyDLL(None).sched_getcpu
    return lambda: -1


def current_core() -> int:
    """Core on which this thread runs, −1 where that cannot be told or chosen."""
    return _core_of_caller()()


def move_off(core: int) -> None:
    """Put this thread on any other core if it is on this one; it may go where it likes later."""
    if core < 0 or current_core() != core:
        return
    with suppress(OSError):
        cores = os.sched_getaffinity(0)
        if len(cores) > 1 and core in cores:
            os.sched_setaffinity(0, cores - {core})
            os.sched_setaffinity(0, cores)


@lru_cache(maxsize=4)
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    # Keyed by the process: a pool does not survive a fork.
    return ThreadPoolExecutor(n_threads, thread_name_prefix="bayesgmm")


def over_chunks(
    n_rows: int, rows: int, work: float, n_threads: int | None, task: Callable[[int, int, int], None]
) -> None:
    """Run ``task(chunk, start, stop)`` for every chunk of so many rows; see :func:`over_ranges`."""

    def over(first: int, last: int) -> None:
        for chunk in range(first, last):
            task(chunk, chunk * rows, min(n_rows, (chunk + 1) * rows))

    over_ranges(-(-n_rows // rows), work, n_threads, over)


def over_ranges(n_chunks: int, work: float, n_threads: int | None, task: Callable[[int, int], None]) -> None:
    """Run ``task(first, last)`` over ranges of chunks that make up all of them, on threads where the work is worth it.

    Ranges shrink towards the end and go to whoever is free: few calls, and a core that other programs use holds nobody up.
    """
    threads = _worth(n_chunks, work, n_threads)
    if threads <= 1:
        if n_chunks > 0:
            task(0, n_chunks)
        return
    ranges, first = [], 0
    while first < n_chunks:
        last = first + max(1, (n_chunks - first) // (2 * threads))
        ranges.append((first, last))
        first = last
    left, core = iter(ranges), current_core()

    def run() -> None:
        for first, last in left:
            task(first, last)

    def help_out() -> None:
        move_off(core)
        run()

    # The caller is one of the threads.
    others = [_pool(os.getpid(), threads - 1).submit(help_out) for _ in range(threads - 1)]
    try:
        run()
    finally:
        for other in others:
            other.result()


@intrinsic
def _add(typingctx: Any, counters: Any, at: Any) -> Any:
    """Add one to a counter; its value before."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _place(context, builder, sig, args), ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counters, types.intp), generate


@intrinsic
def _look(typingctx: Any, counters: Any, at: Any) -> Any:
    """The value of a counter that other threads change."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, sig, args), "acquire", 8)

    return types.int64(counters, types.intp), generate


@intrinsic
def _rest(typingctx: Any) -> Any:
    """Tell the processor that this thread waits in a loop, where it can be told."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


def _place(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """The pointer to the counter that an intrinsic's two arguments, array and index, name."""
    return builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])


_options = {"cache": True, "nogil": True, "inline": "always"}


@nb.njit(**_options)
def begin(signal: Any, number: int, helping: bool) -> None:
    """Say that pass ``number`` begins, to helpers that look out for it."""
    if not helping:
        while _look(signal, 0) < number:
            _add(signal, 0)


@nb.njit(**_options)
def take(counters: Any) -> Any:
    """The next chunk that nobody has begun."""
    return _add(counters, TAKEN)


@nb.njit(**_options)
def complete(counters: Any) -> None:
    """One chunk more is done, and what was written for it can be read by whoever sees that."""
    _add(counters, DONE)


@nb.njit(**_options)
def end(counters: Any, chunks: int, signal: Any, number: int, helping: bool) -> bool:
    """Wait a while: a helper for the pass after ``number``, a caller for the chunks that helpers still do. Whether it came."""
    for _ in range(LOOKS):
        if (_look(signal, 0) != number) if helping else (_look(counters, DONE) >= chunks):
            return True
        _rest()
    return False


Work = Callable[[NDArray[np.int64], NDArray[np.int64], int, bool], bool]
"""Called with a pass's counters, the signal, its number and whether a helper calls; what :func:`end` says comes back."""


class _Helpers:
    """Threads that take part in one pass after the other.

    Parameters
    ----------
    count : int
        How many.
    """

    def __init__(self, count: int) -> None:
        self.one_caller = threading.Lock()
        self._state = threading.Lock()
        self._bell = threading.Semaphore(0)
        self._asleep = 0
        self._signal = np.zeros(1, np.int64)
        self._job: tuple[int, Work | None, NDArray[np.int64], int] = (0, None, np.zeros(2, np.int64), -1)
        self._error: BaseException | None = None
        for i in range(count):
            threading.Thread(target=self._help, name=f"bayesgmm-helper-{i}", daemon=True).start()

    def _help(self) -> None:
        seen = 0
        while True:
            with self._state:
                idle = self._job[0] == seen
                self._asleep += idle
            if idle:
                self._bell.acquire()
            seen, work, counters, core = self._job
            move_off(core)
            try:
                if work is not None:
                    work(counters, self._signal, seen, True)
            except BaseException as error:  # the caller raises it
                self._error = error
            del work, counters

    def run(self, chunks: int, work: Work) -> None:
        """Do the chunks together with the helpers; ``one_caller`` is held."""
        counters = np.zeros(2, np.int64)
        with self._state:
            number = self._job[0] + 1
            self._job = (number, work, counters, current_core())
            wake, self._asleep = self._asleep, 0
        if wake:
            self._bell.release(wake)
        try:
            done = work(counters, self._signal, number, False)
            while not done:
                # A helper waits for its core: leave it this one.
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                time.sleep(0)
                done = int(counters[DONE]) >= chunks
        finally:
            self._job = (number, None, counters, -1)


@cache
def _helpers(process: int, count: int) -> _Helpers:
    # Keyed by the process: threads do not survive a fork.
    return _Helpers(count)


_ALONE = np.zeros(1, np.int64)


def together(chunks: int, cost: float, n_threads: int | None, work: Work) -> None:
    """Run ``work`` on as many threads as are worth it; each takes chunks until none are left, and all are done on return.

    Parameters
    ----------
    chunks : int
    cost : float
        Rough number of operations in all.
    n_threads : int or None
        At most so many threads; all available ones when None.
    work : callable
        Calls, in compiled code without the interpreter lock, :func:`begin`, then :func:`take` and :func:`complete` for chunk after
        chunk, and returns :func:`end`.
    """
    threads = _worth(chunks, cost, n_threads)
    if threads > 1:
        helpers = _helpers(os.getpid(), threads - 1)
        # Where another thread's pass has the helpers, the cores are busy.
        if helpers.one_caller.acquire(blocking=False):
            try:
                helpers.run(chunks, work)
            finally:
                helpers.one_caller.release()
            return
    work(np.zeros(2, np.int64), _ALONE, 0, False)
