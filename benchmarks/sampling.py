"""Smallest bulk effective sample size per second, beside nutpie on the model that people write.

Ours is the whole ``BayesianGaussianMixture.fit`` (EM from ten starts, polish, warm-up, draws, relabelling,
diagnostics, DataTree), compiled beforehand; the peer's is ``nutpie.sample`` alone (warm-up and draws), started at the
true parameters without jitter. Both run their chains on all cores. nutpie's chains
each start BLAS threads where nobody has told them not to, and get in each other's way: the judged row is of the peer as its
users run it, its time taken with one BLAS thread and stretched by what a leapfrog step takes longer; the other row is of
the peer with its BLAS kept to one thread.

The peer is slow, so it draws less, and its figure is carried on to our number of draws in its favour: its warm-up is
counted once, at its share of the leapfrog steps, and effective draws and their time grow in proportion.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.measure import Row, Section, Truth, all_threads, duration, elapsed, simulate, size

CASE = (10_000, 4, 4)
QUICK_CASE = (1_000, 2, 2)
SPREAD, MIN_DISTANCE = 2.5, 4.0
CHAINS, DRAWS = 4, 1000
PEER_TUNE, PEER_DRAWS = 300, 300
TARGET = 100.0


@dataclass(frozen=True)
class Run:
    """One run of one side: seconds, smallest bulk ESS, ESS per second, and where the posterior means lie."""

    seconds: float
    ess: float
    rate: float
    divergences: int
    means: np.ndarray


def smallest_bulk_ess(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, truth: Truth) -> float:
    """Smallest bulk ESS (Vehtari et al. 2021) over weights, means and distinct covariance entries.

    Each chain is first put in the order of the truth as a whole, in case the chains differ in their labels.
    """
    from arviz_stats.base import array_stats
    from scipy.optimize import linear_sum_assignment

    rows, columns = np.tril_indices(means.shape[-1])
    chains = []
    for w, m, c in zip(weights, means, covariances, strict=True):
        distance = np.linalg.norm(m.mean(axis=0)[:, None] - truth.means[None], axis=2)
        order = linear_sum_assignment(distance.T)[1]
        parts = (w[:, order], m[:, order], c[:, order][:, :, rows, columns])
        chains.append(np.concatenate([part.reshape(len(w), -1) for part in parts], axis=1))
    return float(np.min(array_stats.ess(np.moveaxis(np.stack(chains), 2, 0), method="bulk")))


def _ours(X: np.ndarray, truth: Truth, draws: int, seed: int) -> Run:
    from bayesgmm import BayesianGaussianMixture

    K = len(truth.weights)
    post = BayesianGaussianMixture(K, draws=draws, chains=CHAINS, random_state=seed, progressbar=False)
    with warnings.catch_warnings():
        # A warning would be about convergence; the effective sample size says the same.
        warnings.simplefilter("ignore")
        seconds = elapsed(lambda: post.fit(X))
    values = post.idata_["posterior"]
    arrays = [values[name].values for name in ("weights", "means", "covariances")]
    ess = smallest_bulk_ess(*arrays, truth)
    divergences = int(post.idata_["sample_stats"]["diverging"].values.sum())
    return Run(seconds, ess, ess / seconds, divergences, post.means_)


def _peer(compiled: Any, truth: Truth, tune: int, draws: int, target_draws: int, seed: int) -> tuple[Run, float]:
    """The peer's run, and its rate carried on to `target_draws`."""
    import nutpie

    from benchmarks import peer

    traces: list[Any] = []
    seconds = elapsed(
        lambda: traces.append(
            nutpie.sample(compiled, draws=draws, tune=tune, chains=CHAINS, seed=seed, progress_bar=False)
        )
    )
    trace = traces[0]
    weights, means, covariances = peer.draws_of(trace, len(truth.weights))
    ess = smallest_bulk_ess(weights, means, covariances, truth)
    warm_steps = float(trace["warmup_sample_stats"]["n_steps"].values.sum())
    steps = float(trace["sample_stats"]["n_steps"].values.sum())
    more = target_draws / draws
    carried_seconds = seconds * (warm_steps + more * steps) / (warm_steps + steps)
    divergences = int(trace["sample_stats"]["diverging"].values.sum())
    run = Run(seconds, ess, ess / seconds, divergences, means.mean(axis=(0, 1)))
    return run, max(run.rate, more * ess / carried_seconds)


def _seconds_per_step(compiled: Any) -> float:
    """The peer's wall-clock time per leapfrog step over a few draws of all chains."""
    import nutpie

    traces: list[Any] = []
    seconds = elapsed(
        lambda: traces.append(nutpie.sample(compiled, draws=5, tune=5, chains=CHAINS, seed=0, progress_bar=False))
    )
    steps = sum(traces[0][group]["n_steps"].values.sum() for group in ("warmup_sample_stats", "sample_stats"))
    return seconds / float(steps)


def _worst_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance from a posterior mean of one side to the nearest of the other."""
    return float(np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1).max())


def run(quick: bool) -> Section:
    """Measure both sides, interleaved."""
    import nutpie

    from benchmarks import peer

    n_rows, n_features, n_components = QUICK_CASE if quick else CASE
    draws, tune, peer_draws = (200, 100, 100) if quick else (DRAWS, PEER_TUNE, PEER_DRAWS)
    repetitions = 1 if quick else 3
    X, truth = simulate(n_rows, n_features, n_components, SPREAD, min_distance=MIN_DISTANCE)
    model = peer.build_model(X, n_components)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = nutpie.compile_pymc_model(
            model, initial_points=peer.start(truth.weights, truth.means, truth.covariances), jitter_rvs=set()
        )
    ours, theirs = [], []
    with threadpool_limits(limits=1, user_api="blas"):
        # Compiles all that ours needs, and the peer's first call.
        _ours(X, truth, draws=50, seed=0)
        nutpie.sample(compiled, draws=4, tune=4, chains=1, seed=0, progress_bar=False)
        for seed in range(1, repetitions + 1):
            ours.append(_ours(X, truth, draws, seed))
            theirs.append(_peer(compiled, truth, tune, peer_draws, draws, seed))
        step = _seconds_per_step(compiled)
    step_as_it_comes = _seconds_per_step(compiled)
    rate, peer_rate = (float(np.median(rates)) for rates in ([r.rate for r in ours], [c for _, c in theirs]))
    as_measured = float(np.median([r.rate for r, _ in theirs]))
    ratio, slowdown = rate / peer_rate, step_as_it_comes / step
    distance = max(_worst_distance(a.means, b.means) for a, (b, _) in zip(ours, theirs, strict=True))
    same = distance < 0.2
    note = f"posterior means at most {distance:.2g} sd apart" + ("" if same else " NOT THE SAME MODE")
    figures = {
        "ratio": ratio,
        "ratio_as_measured": rate / as_measured,
        "ours": [[r.seconds, r.ess] for r in ours],
        "peer": [[r.seconds, r.ess] for r, _ in theirs],
        "peer_rates_carried_on": [c for _, c in theirs],
        "peer_seconds_per_step": {"one_blas_thread": step, "blas_as_it_comes": step_as_it_comes},
    }

    def row(peer_blas: str, peer_rate: float, target: float | None) -> Row:
        ratio = rate / peer_rate
        return Row(
            size(*X.shape, n_components),
            f"{CHAINS} chains on {all_threads()} cores each; peer's BLAS threads {peer_blas}",
            f"{rate:.4g} ESS/s",
            f"{peer_rate:.3g} ESS/s",
            f"{ratio:.3g}×",
            "–" if target is None else f"≥ {target:g}×",
            None if target is None else bool(same and ratio >= target),
            note,
            figures,
        )

    rows = (row("as they come", peer_rate / slowdown, None if quick else TARGET), row("kept to 1", peer_rate, None))
    a, b = ours[len(ours) // 2], theirs[len(theirs) // 2][0]
    return Section(
        "Sampling: smallest bulk ESS per second, warm-up included, compilation apart",
        "nutpie on the pm.Mixture model",
        rows,
        (
            f"Ours: {CHAINS} × {draws} draws, e.g. ESS {a.ess:.0f} in {duration(a.seconds)} for the whole fit, "
            f"{a.divergences} divergent",
            f"Peer: {CHAINS} × {peer_draws} draws after {tune} of warm-up, e.g. ESS {b.ess:.0f} in "
            f"{duration(b.seconds)}, {b.divergences} divergent; {as_measured:.3g} ESS/s as measured "
            f"({rate / as_measured:.3g}×), carried on to {draws} draws above",
            f"As they come, its BLAS threads make a leapfrog step {slowdown:.1f} times as long "
            f"({duration(step_as_it_comes)} against {duration(step)}, all chains, over 10 draws each)",
        ),
    )
