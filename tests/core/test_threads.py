"""Threads that share a pass: all chunks once, whoever fails or comes late; the same bits; nothing kept alive."""

import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from bayesgmm.core import kernel, threads
from tests.mixtures import random_mixture

WORTH = 10 * threads.PARALLEL_FLOPS


@pytest.fixture
def helpers():
    """Two helpers of their own."""
    return threads._Helpers(2)


def _counting(seen, before=lambda helping: None):
    """Work in Python that notes which chunks it does."""

    def work(counters, signal, number, helping):
        before(helping)
        threads_begin(signal, number, helping)
        c = threads_take(counters)
        while c < 40:
            seen.append((c, helping))
            threads_complete(counters)
            c = threads_take(counters)
        return threads_end(counters, 40, signal, number, helping)

    return work


@threads.nb.njit(nogil=True)
def threads_begin(signal, number, helping):
    threads.begin(signal, number, helping)


@threads.nb.njit(nogil=True)
def threads_take(counters):
    return threads.take(counters)


@threads.nb.njit(nogil=True)
def threads_complete(counters):
    threads.complete(counters)


@threads.nb.njit(nogil=True)
def threads_end(counters, chunks, signal, number, helping):
    return threads.end(counters, chunks, signal, number, helping)


def test_every_chunk_is_done_once_pass_after_pass(helpers):
    for _ in range(50):
        seen = []
        helpers.run(40, _counting(seen))
        assert sorted(c for c, _ in seen) == list(range(40))


@pytest.mark.parametrize(("taken", "cost", "shared"), [(False, 1e9, True), (True, 1e9, False), (False, 1e3, False)])
def test_helpers_share_a_pass_that_is_worth_it_and_is_the_only_one(taken, cost, shared, helpers, monkeypatch):
    passes, seen = [], []

    def run(chunks, work):
        passes.append(chunks)
        type(helpers).run(helpers, chunks, work)

    counts = []
    monkeypatch.setattr(threads, "_helpers", lambda process, count: counts.append((process, count)) or helpers)
    monkeypatch.setattr(helpers, "run", run)
    if taken:
        assert helpers.one_caller.acquire(blocking=False)
    threads.together(40, cost, 2, _counting(seen))
    assert sorted(c for c, _ in seen) == list(range(40))
    assert passes == [40] * shared
    # The caller is one of the two threads.
    assert counts == [(os.getpid(), 1)] * (cost > 1e6)
    # It is free for the next pass, or still the other's.
    assert helpers.one_caller.acquire(blocking=False) != taken


def test_helpers_that_sleep_are_woken(helpers):
    started = threading.Event()
    seen = []

    def wait(helping):
        if helping:
            started.set()
        else:
            assert started.wait(10)

    for _ in range(3):
        started.clear()
        # They look out for a third of a millisecond.
        threading.Event().wait(0.05)
        helpers.run(40, _counting(seen, wait))
    assert len(seen) == 3 * 40


def test_an_error_of_a_helper_is_raised_by_the_caller_and_the_next_pass_is_whole(helpers):
    failed = threading.Event()

    def fail(helping):
        if helping:
            failed.set()
            raise MemoryError("no room")
        assert failed.wait(10)

    def work(counters, signal, number, helping):
        fail(helping)
        # A chunk that the helper had begun stays open.
        return False

    with pytest.raises(MemoryError, match="no room"):
        helpers.run(40, work)
    seen = []
    helpers.run(40, _counting(seen))
    assert sorted(c for c, _ in seen) == list(range(40))


def test_an_error_of_the_caller_is_raised(helpers):
    def work(counters, signal, number, helping):
        if not helping:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        helpers.run(40, work)
    seen = []
    helpers.run(40, _counting(seen))
    assert len(seen) == 40


def test_passes_from_several_threads_at_once_give_the_same_bits():
    rng = np.random.default_rng(0)
    mixture = random_mixture(rng, 3, 2)
    X = mixture.sample(rng, 60_000)
    assert kernel.pass_cost(*X.shape, 3) > threads.PARALLEL_FLOPS
    alone = kernel.accumulate(X, mixture.parameters, n_threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: kernel.accumulate(X, mixture.parameters, n_threads=n), [1, 2, 3, 4] * 10))
    for one in found:
        assert one.log_likelihood == alone.log_likelihood
        np.testing.assert_array_equal(one.second, alone.second)


def test_what_a_pass_holds_is_let_go_after_it(helpers):
    work = _counting([])
    helpers.run(40, work)
    kept = weakref.ref(work)
    del work
    # Helpers look out for the next pass meanwhile.
    threading.Event().wait(0.1)
    gc.collect()
    assert kept() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_has_helpers_of_its_own():
    rng = np.random.default_rng(0)
    mixture = random_mixture(rng, 2, 2)
    X = mixture.sample(rng, 50_000)
    expected = kernel.accumulate(X, mixture.parameters, n_threads=2).log_likelihood
    child = os.fork()
    if child == 0:
        found = kernel.accumulate(X, mixture.parameters, n_threads=2).log_likelihood
        os._exit(0 if found == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def met_by(n_threads, task):
    """The task of ranges, held up until so many threads have come: none of them does all."""
    barrier, local = threading.Barrier(n_threads), threading.local()

    def held_up(first, last):
        if not getattr(local, "came", False):
            local.came = True
            barrier.wait(10)
        task(first, last)

    return held_up


def test_ranges_are_all_of_the_chunks_once():
    for n_threads in (1, 2, 5):
        for n in (0, 1, 2, 17, 100):
            seen: list[int] = []
            threads.over_ranges(n, WORTH, n_threads, lambda a, b, seen=seen: seen.extend(range(a, b)))
            assert sorted(seen) == list(range(n))


def test_ranges_shrink_and_go_to_as_many_threads_as_asked():
    for n_threads in (2, 3):
        seen = []

        def task(first, last, seen=seen):
            seen.append((first, last, threading.get_ident()))

        threads.over_ranges(100, WORTH, n_threads, met_by(n_threads, task))
        assert len({ident for *_, ident in seen}) == n_threads
        assert threading.get_ident() in {ident for *_, ident in seen}
        ranges = sorted((first, last) for first, last, _ in seen)
        assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
        # Each takes its part of half of what is left, and one at the end.
        assert [last - first for first, last in ranges] == [
            max(1, (100 - first) // (2 * n_threads)) for first, _ in ranges
        ]


def test_all_is_done_on_return_whoever_is_slow():
    caller, done = threading.get_ident(), []

    def task(first, last):
        if threading.get_ident() != caller:
            time.sleep(0.05)
        done.extend(range(first, last))

    threads.over_ranges(10, WORTH, 2, met_by(2, task))
    assert sorted(done) == list(range(10))


def test_an_error_of_another_thread_is_raised():
    caller = threading.get_ident()

    def task(first, last):
        if threading.get_ident() != caller:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        threads.over_ranges(10, WORTH, 2, met_by(2, task))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("n_rows", "rows"), [(10, 4), (8, 4), (1, 4), (0, 4), (7, 1)])
def test_chunks_are_of_so_many_rows_but_for_the_last(n_rows, rows, n_threads):
    seen = []
    threads.over_chunks(n_rows, rows, WORTH, n_threads, lambda *chunk: seen.append(chunk))
    starts = range(0, n_rows, rows)
    assert sorted(seen) == [(i, start, min(start + rows, n_rows)) for i, start in enumerate(starts)]


def test_nothing_to_do_calls_nobody():
    called = []
    threads.over_ranges(0, WORTH, 2, lambda first, last: called.append((first, last)))
    assert called == []
    threads.over_ranges(1, WORTH, 2, lambda first, last: called.append((first, last)))
    assert called == [(0, 1)]


def test_an_error_in_a_range_is_raised_whoever_had_it():
    def fail(first, last):
        raise MemoryError(first)

    for n_threads in (1, 2):
        with pytest.raises(MemoryError):
            threads.over_ranges(40, WORTH, n_threads, fail)


def test_a_caller_that_waits_gives_its_core_away_and_never_sleeps(helpers, monkeypatch):
    begun, waited = threading.Event(), threading.Event()
    taken, naps = [], []

    def nap(seconds):
        naps.append(seconds)
        waited.set()

    monkeypatch.setattr(threads, "time", SimpleNamespace(sleep=nap))

    def work(counters, signal, number, helping):
        if helping:
            if not taken:
                taken.append(threads_take(counters))
                begun.set()
                # The last chunk is done once the caller has begun to wait.
                assert waited.wait(10)
                threads_complete(counters)
        else:
            assert begun.wait(10)
            while threads_take(counters) < 5:
                threads_complete(counters)
            return bool(counters[threads.DONE] >= 5)
        return True

    helpers.run(5, work)
    assert set(naps) == {0}


def test_a_thread_moves_off_its_callers_core_and_may_go_back():
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(cores) < 2:
        pytest.skip("one core")
    here = threads.current_core()
    assert here in cores
    found = []

    def other():
        # Where the caller is, and free to go.
        os.sched_setaffinity(0, {here})
        os.sched_setaffinity(0, cores)
        threads.move_off(here)
        found.append((threads.current_core() != here, os.sched_getaffinity(0)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [(True, cores)]


def test_no_core_is_told_where_none_can_be_chosen(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    threads._core_of_caller.cache_clear()
    try:
        assert threads.current_core() == -1
    finally:
        threads._core_of_caller.cache_clear()


def test_a_thread_on_another_core_stays_where_it_is(monkeypatch):
    moves = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda *args: moves.append(args), raising=False)
    for here, other in ((1, 0), (0, 1), (-1, -1)):
        monkeypatch.setattr(threads, "current_core", lambda here=here: here)
        threads.move_off(other)
    assert moves == []


def test_threads_from_the_environment(monkeypatch):
    monkeypatch.setenv("BAYESGMM_NUM_THREADS", "3")
    assert threads.available_threads() == 3
    with threads.at_most(2):
        assert threads.available_threads() == 2
        with threads.at_most(1):
            assert threads.available_threads() == 1
        assert threads.available_threads() == 2
    assert threads.available_threads() == 3
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for nonsense in ("many", "0", ""):
        monkeypatch.setenv("BAYESGMM_NUM_THREADS", nonsense)
        assert threads.available_threads() == cores
    monkeypatch.setenv("BAYESGMM_NUM_THREADS", "1")
    assert threads.available_threads() == 1


def test_threads_where_the_system_tells_no_affinity(monkeypatch):
    monkeypatch.delenv("BAYESGMM_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert threads.available_threads() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.available_threads() == 1


def test_helpers_that_have_nothing_to_do_sleep(helpers):
    for _ in range(3):
        helpers.run(40, _counting([]))
    # They look out for the next pass for a third of a millisecond, more on a busy machine.
    for _ in range(1000):
        if helpers._asleep >= 2:
            break
        threading.Event().wait(0.01)
    threading.Event().wait(0.05)
    # Both, once: one that did not sleep would go round and be counted again and again.
    assert helpers._asleep == 2


@pytest.mark.parametrize(
    ("n_chunks", "work", "n_threads", "expected"),
    [(1, WORTH, 4, 1), (2, WORTH, 4, 2), (9, WORTH, 4, 4), (9, threads.PARALLEL_FLOPS, 4, 4), (9, 1e3, 4, 1)],
)
def test_threads_for_work(n_chunks, work, n_threads, expected):
    assert threads._worth(n_chunks, work, n_threads) == expected


def test_by_default_all_threads_that_are_available(monkeypatch):
    monkeypatch.setenv("BAYESGMM_NUM_THREADS", "3")
    assert threads._worth(9, WORTH, None) == 3
