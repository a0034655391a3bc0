"""The pass beside the machine's own limit: what its operations and bytes take at the rates that this machine reaches.

The limit of a pass is the larger of two times. Arithmetic: the multiplications and additions of whitening and moments at the rate of
independent fused multiply-adds in registers, and each row's exponentials, logarithm and quotient at the rate of a loop that does nothing
else, on numbers in the first-level cache (their chains of operations have a limit of their own, and with few features they are most of
the work). Memory: one read of the rows at the rate of reading a table that no cache holds. What the pass moves within the caches counts
nothing, and neither do its maxima, comparisons, loads, stores and loops.

Beside it stands the plain share: all operations, those of the polynomials too, at the rate of the BLAS's matrix product.

Operations of a row, a fused multiply-add being two (x − μ is needed twice: it is not kept between the two uses):

- full, for each component: whitening D² + 4D + 1, moments D² + 4D + 2
- tied: 2D² + 5D for the row, 3D + 1 and 5D + 2 + 3(K − 1)/2 for each component
- diag and spherical, for each component: 4D + 1 and 5D + 2
- in all: an exponential of 30 for each component; a logarithm for every eight rows and a quotient, 6
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from bayesgmm.core import kernel, lanes
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters
from benchmarks.measure import (
    Row,
    Section,
    all_threads,
    count,
    duration,
    elapsed,
    interleaved,
    limited_threads,
    size,
)

TARGET, PARALLEL_TARGET = 0.5, 0.85
FEATURES = (2, 8, 20, 50, 100)
COMPONENTS = (3, 10)
PARALLEL = ((100_000, 2, 3), (100_000, 8, 4), (100_000, 20, 5), (1_000_000, 2, 3))
TABLE_BYTES = 80_000_000
EXPONENTIAL, QUOTIENT_AND_LOGARITHM = 30, 6
CHAINS = 12
"""Independent fused multiply-adds: more than their latency times the units of any processor that we know of."""

_options = {**kernel._exact_options, "cache": False}


@dataclass(frozen=True)
class Limits:
    """What one core reaches: operations and bytes a second; seconds for an exponential, and for a row's quotient and logarithm."""

    matrix_product: float
    multiply_add: float
    exponential: float
    quotient_and_logarithm: float
    bandwidth: float


@intrinsic
def _multiply_add(typingctx: Any, numbers: Any, n: Any) -> Any:
    def build(code: lanes.Lanes) -> None:
        numbers, n = code.args
        factor, term = code.broadcast(numbers), code.broadcast(code.at(numbers, 1))
        chains = code.zeros(CHAINS)
        code.clear(chains)
        with code.loop(lanes.I64(0), n, 1) as _:
            for chain in chains:
                code.builder.store(code.fma(code.builder.load(chain), factor, term), chain)
        for i, value in enumerate(code.values(chains)):
            code.store(value, code.at(numbers, i * lanes.LANES))

    return types.void(numbers, n), lanes._code(build)


@nb.njit(**_options)
def _multiply_adds(numbers, n):
    _multiply_add(numbers, n)


@nb.njit(**_options)
def _exponentials(exponents, u, top, total, n):
    for _ in range(n):
        # They are turned into exponentials where they stand.
        for i in range(u.shape[0]):
            u[i] = exponents[i]
        lanes.exponentials(u, u.shape[0], top, total)


@nb.njit(**kernel._options | {"cache": False})
def _quotients_and_logarithms(sums, total, n):
    out = 0.0
    for _ in range(n):
        for i in range(total.shape[0]):
            total[i] = sums[i]
        out += kernel._sum_of_logs(total, total.shape[0])
        for i in range(total.shape[0]):
            total[i] = 1.0 / total[i]
    return out


@nb.njit(**kernel._options | {"cache": False})
def _read(numbers):
    total = 0.0
    for i in range(numbers.shape[0]):
        total += numbers[i]
    return total


def _cpu_seconds(task: Callable[[], Any], repetitions: int) -> float:
    """Least time on this thread's core, in which other programs do not count, of several calls after a first."""
    task()
    times = []
    for _ in range(repetitions):
        begin = time.thread_time()
        task()
        times.append(time.thread_time() - begin)
    return min(times)


def limits(quick: bool = False) -> Limits:
    """Measure what one core reaches."""
    repetitions, scale = (3, 10) if quick else (15, 1)
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1000, 1000))
    n = 2_000_000 // scale
    numbers = np.full(CHAINS * lanes.LANES, 0.5)
    block, times = lanes.BLOCK, 20_000 // scale
    exponents, sums = -rng.uniform(0, 50, block), rng.uniform(0.1, 3, block)
    work, top, total = np.zeros(block), np.zeros(block), np.zeros(block)
    table = rng.random(TABLE_BYTES // 4 // scale)
    return Limits(
        2e9 / _cpu_seconds(lambda: a @ b, repetitions),
        2 * CHAINS * lanes.LANES * n / _cpu_seconds(lambda: _multiply_adds(numbers, n), repetitions),
        _cpu_seconds(lambda: _exponentials(exponents, work, top, total, times), repetitions) / times / block,
        _cpu_seconds(lambda: _quotients_and_logarithms(sums, total, times), repetitions) / times / block,
        table.nbytes / _cpu_seconds(lambda: _read(table), repetitions),
    )


def operations(covariance_type: str, D: int, K: int) -> int:
    """Additions and multiplications of whitening and moments of a row under all components."""
    if covariance_type == "full":
        return K * (2 * D * D + 8 * D + 3)
    if covariance_type == "tied":
        return 2 * D * D + 5 * D + K * (8 * D + 3) + 3 * K * (K - 1) // 2
    return K * (9 * D + 3)


def _mixture(covariance_type: str, D: int, K: int, rng: np.random.Generator) -> MixtureParameters:
    """Components that overlap so far that no row's responsibility is negligible: all counted operations are carried out."""
    kind = structure(covariance_type)
    spread = 1 + 0.2 / D * rng.standard_normal(kind.shape(K, D))
    if covariance_type in ("full", "tied"):
        spread = np.eye(D) + 0.2 / D * (spread - 1) @ np.swapaxes(spread - 1, -1, -2)
    return MixtureParameters(np.full(K, 1 / K), 0.05 * rng.standard_normal((K, D)), kind.factors(spread, K, D))


def _measure(covariance_type: str, D: int, K: int, limit: Limits, quick: bool) -> Row:
    rng = np.random.default_rng([D, K])
    N = max(4096, TABLE_BYTES // (8 * D) // (20 if quick else 1))
    X = rng.standard_normal((N, D))
    parameters, moments = _mixture(covariance_type, D, K, rng), structure(covariance_type).moments
    in_play = float(np.mean(kernel.responsibilities(X[:4096], parameters)[0] > kernel.NEGLIGIBLE))

    def task() -> None:
        kernel.accumulate(X, parameters, n_threads=1, moments=moments)

    seconds = _cpu_seconds(task, 2 if quick else 5)
    linear, others = operations(covariance_type, D, K), K * limit.exponential + limit.quotient_and_logarithm
    arithmetic, memory = N * (linear / limit.multiply_add + others), N * 8 * D / limit.bandwidth
    attainable = max(arithmetic, memory)
    flops = N * (linear + K * EXPONENTIAL + QUOTIENT_AND_LOGARITHM)
    share, plain = attainable / seconds, flops / seconds / limit.matrix_product
    return Row(
        f"{covariance_type} {size(N, D, K)}",
        "1",
        duration(seconds / N / K),
        duration(attainable / N / K),
        f"{share:.0%}",
        f"≥ {TARGET:.0%}",
        None if quick else share >= TARGET,
        f"{flops / N / K:.0f} flops, {flops / N / (8 * D):.1f} a byte; {flops / seconds / 1e9:.1f} Gflop/s, {plain:.0%} of a "
        f"matrix product; bound by {'memory' if memory > arithmetic else 'arithmetic'}"
        + ("" if in_play > 0.999 else f"; ONLY {in_play:.0%} IN PLAY"),
        {"seconds": seconds, "attainable": attainable, "flops": flops, "share": share, "plain_share": plain},
    )


def _parallel(n_rows: int, D: int, K: int, quick: bool) -> Row:
    rng = np.random.default_rng([D, K])
    X, parameters, threads = rng.standard_normal((n_rows, D)), _mixture("full", D, K, rng), all_threads()

    def run(n: int) -> float:
        return elapsed(lambda: kernel.accumulate(X, parameters, n_threads=n))

    def processor(n: int) -> float:
        begin = time.process_time()
        kernel.accumulate(X, parameters, n_threads=n)
        return time.process_time() - begin

    run(threads)
    many, one = interleaved(lambda: run(threads), lambda: run(1), 3 if quick else 40)
    busy = [processor(1) / processor(threads) for _ in range(3 if quick else 40)]
    efficiency = min(one) / min(many) / threads
    return Row(
        f"full {size(n_rows, D, K)}",
        f"{threads} | 1",
        duration(min(many)),
        duration(min(one)),
        f"{efficiency:.0%}",
        f"≥ {PARALLEL_TARGET:.0%}",
        None if quick or threads == 1 else efficiency >= PARALLEL_TARGET,
        f"least of {len(one)} runs each; processor time of one thread over that of all: {float(np.median(busy)):.0%}",
        {"many": many, "one": one, "efficiency": efficiency, "processor_time": busy},
    )


def run(quick: bool) -> Section:
    """Measure the machine, then every case."""
    with limited_threads(1):
        limit = limits(quick)
        cases = [("full", D, K) for D in FEATURES for K in COMPONENTS]
        cases += [(kind, D, 4) for kind in ("tied", "diag", "spherical") for D in FEATURES]
        rows = [_measure(*case, limit, quick) for case in cases]
    rows += [_parallel(*case, quick) for case in PARALLEL[: 1 if quick else None]]
    return Section(
        "Roofline: time of a pass for a row and component, and of its operations and bytes at the machine's rates",
        "the attainable limit (ratio: share of it that is reached); last rows: one thread (ratio: parallel efficiency)",
        tuple(rows),
        (
            f"One core: matrix product {limit.matrix_product / 1e9:.1f} Gflop/s, fused multiply-adds "
            f"{limit.multiply_add / 1e9:.1f} Gflop/s in vectors of {lanes.LANES}; an exponential {duration(limit.exponential)} "
            f"({EXPONENTIAL / limit.exponential / 1e9:.1f} Gflop/s), quotient and logarithm of a row "
            f"{duration(limit.quotient_and_logarithm)}; memory read at {limit.bandwidth / 1e9:.1f} GB/s",
            f"Tables of {count(TABLE_BYTES // 20 if quick else TABLE_BYTES)} bytes; seconds of the thread's own processor time, least of "
            f"{2 if quick else 5}; operations are counted in benchmarks/roofline.py",
        ),
    )
