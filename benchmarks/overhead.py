"""What sampling takes beyond the evaluation of the log posterior and its gradient.

Chains are run as ``BayesianGaussianMixture`` runs them, from one mode, and as many gradients as they took are evaluated once more by
the same C function at their own draws, on as many threads. The two are measured in turns, so that a slow minute of the
machine falls on both; what the chains took longer is nutpie's own work, whitening, the wait for the end and reading the trace.
The second row of a case adds what comes after: order of the components, diagnostics, and the DataTree. The pointwise
log-likelihood that goes into it is a pass over the rows for each draw, not overhead, and is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measure import Row, Section, all_threads, duration, elapsed, simulate, size

N, QUICK_N = 10_000, 1_000
DRAWS, TUNE, QUICK_DRAWS = 1000, 200, 100
LIMIT = 0.30
EVALUATED = 500


def _faithful_like(n_rows: int) -> np.ndarray:
    """Old Faithful's rows drawn again and jittered by a tenth of each feature's spread."""
    from bayesgmm.datasets import load_faithful

    rows = np.asarray(load_faithful(), dtype=float)
    rng = np.random.default_rng(0)
    return rows[rng.integers(len(rows), size=n_rows)] + 0.1 * rows.std(axis=0) * rng.standard_normal((n_rows, 2))


def _task(X: np.ndarray, K: int) -> Any:
    from bayesgmm import ConjugatePrior
    from bayesgmm.core import em
    from bayesgmm.core.covariance import structure
    from bayesgmm.inference.sampling import Task

    prior = ConjugatePrior().resolve(X, K)
    found = em.fit(X, K, prior=prior.for_em.at_least_uniform(), tol=1e-9, n_init=4, rng=np.random.default_rng(0))
    names = tuple(f"x{j}" for j in range(X.shape[1]))
    return Task(X, None, structure("full"), prior, (found.best,), names)


def _seconds_per_gradient(density: Any, points: np.ndarray, threads: int) -> float:
    """Wall-clock time of an evaluation with as many threads evaluating beside one another."""

    def evaluate(own: np.ndarray) -> None:
        for point in own:
            density(point)

    parts = np.array_split(points, threads)

    def run() -> None:
        workers = [threading.Thread(target=evaluate, args=(part,)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return elapsed(run) * threads / len(points)


def _timed(task: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its wall-clock seconds."""
    begin = time.perf_counter()
    result = task()
    return result, time.perf_counter() - begin


def _measure(X: np.ndarray, K: int, chains: int, draws: int, repetitions: int, limit: float | None) -> list[Row]:
    from bayesgmm.inference import posterior, sampling
    from bayesgmm.inference.compiled import CompiledPosterior
    from bayesgmm.inference.nuts import run_nuts

    task = _task(X, K)
    compiled = CompiledPosterior.from_data(X, K, "full", task.prior)
    found = sampling.approximate_modes(compiled, task)
    mode = found.approximations[0]
    whitening = [(mode.center, mode.factor)] * chains
    noise = np.random.default_rng(1).standard_normal((chains, compiled.ndim))
    starts = mode.center + noise @ mode.factor.T
    density = compiled.whitened(mode.center, mode.factor)
    settings = sampling.Settings("nuts", draws, TUNE, chains, 0.0, draws, chains, False)
    setup = sampling._setup(compiled, task, settings, found)
    run_nuts(compiled, starts, whitening, 10, 10, 0, chains)
    ratios, both = [], []
    seconds = gradients = 0.0
    before, posterior.LOG_LIKELIHOOD_LIMIT = posterior.LOG_LIKELIHOOD_LIMIT, 0

    def sampled() -> Any:
        return run_nuts(compiled, starts, whitening, draws, TUNE, 1, chains)

    def packaged(run: Any) -> Any:
        judged = sampling.with_agreement(setup, sampling.judge(compiled, setup, run))
        return sampling._package(compiled, setup, run, judged.draws, judged.diagnostics, judged.permutations)

    try:
        packaged(sampled())  # loads ArviZ and xarray
        for _ in range(repetitions):
            run, seconds = _timed(sampled)
            own = run.theta[:, :: max(1, draws // EVALUATED)].reshape(-1, compiled.ndim) - mode.center
            each = _seconds_per_gradient(density, np.linalg.solve(mode.factor, own.T).T, chains)
            gradients = run.n_gradients / chains
            ratios.append(seconds / (each * gradients) - 1)
            both.append((seconds + _timed(partial(packaged, run))[1]) / (each * gradients) - 1)
    finally:
        posterior.LOG_LIKELIHOOD_LIMIT = before
    case, threads = size(*X.shape, K), f"{chains} chain{'s' * (chains > 1)} on {chains} core{'s' * (chains > 1)}"

    def row(what: str, values: list[float]) -> Row:
        middle = float(np.median(values))
        return Row(
            f"{case}, {what}",
            threads,
            duration(seconds),
            duration(seconds / (1 + float(np.median(ratios)))),
            f"{100 * middle:+.0f} %",
            "–" if limit is None else f"≤ {100 * limit:.0f} %",
            None if limit is None else bool(middle <= limit),
            f"{gradients:.0f} gradients a chain, of {duration(seconds / (1 + float(np.median(ratios))) / gradients)}",
            {"overhead": values},
        )

    return [row("chains", ratios), row("chains and what comes after", both)]


def run(quick: bool) -> Section:
    """Measure every case with one chain on one core, and two on two."""
    n_rows, draws, repetitions = (QUICK_N, QUICK_DRAWS, 1) if quick else (N, DRAWS, 5)
    limit = None if quick else LIMIT
    cases = [
        (simulate(n_rows, 4, 4, 2.5, min_distance=4.0)[0], 4),
        (_faithful_like(n_rows), 2),
        (_faithful_like(n_rows), 3),
    ]
    rows: list[Row] = []
    with threadpool_limits(limits=1, user_api="blas"):
        for X, K in cases:
            for chains in (1, 2) if all_threads() > 1 else (1,):
                rows += _measure(X, K, chains, draws, repetitions, limit)
    return Section(
        "Sampling beyond the gradient: time of the chains beside that of the gradients they took",
        "the same C function, called as often on as many threads",
        tuple(rows),
        (
            f"{TUNE} draws of warm-up and {draws} more a chain; medians of {repetitions} runs, each beside its own gradients",
            "What comes after: order of the components, R-hat and ESS of every parameter (ArviZ), the DataTree without log-likelihood",
        ),
    )
