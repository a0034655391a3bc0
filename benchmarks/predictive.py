"""The log posterior-predictive density of new rows beside a loop of scikit-learn's ``score_samples`` over the draws.

What people do with draws from PyMC or Stan: set the parameters of a ``GaussianMixture`` to each draw in turn, score the rows, and average.
The loop's time is measured on some of the draws and scaled up; its average over those is held against ours.
"""

from __future__ import annotations

import numpy as np

from benchmarks.measure import Section, all_threads, elapsed, interleaved, simulate, size, speed_row

CASE = (100_000, 4, 4)
QUICK_CASE = (5_000, 4, 4)
N_DRAWS, QUICK_DRAWS = 1000, 40
LOOPED = 20
SPREAD = 3.0
TARGET = 30.0


def _draws(n_draws: int, n_features: int, n_components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws about a mixture: weights (S, K), means (S, K, D), covariances (S, K, D, D)."""
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.full(n_components, 200.0), n_draws)
    centres = SPREAD * rng.standard_normal((n_components, n_features))
    means = centres + 0.02 * rng.standard_normal((n_draws, n_components, n_features))
    factor = np.eye(n_features) + 0.1 * rng.standard_normal((n_draws, n_components, n_features, n_features))
    return weights, means, factor @ np.swapaxes(factor, -1, -2)


def run(quick: bool) -> Section:
    """Measure."""
    from scipy.special import logsumexp
    from sklearn.mixture import GaussianMixture as Peer
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    from bayesgmm.core import kernel

    n_rows, n_features, n_components = QUICK_CASE if quick else CASE
    n_draws = QUICK_DRAWS if quick else N_DRAWS
    X, _ = simulate(n_rows, n_features, n_components, SPREAD)
    weights, means, covariances = _draws(n_draws, n_features, n_components)
    factors = np.linalg.cholesky(np.linalg.inv(covariances))

    def ours(count: int = n_draws) -> np.ndarray:
        return kernel.posterior_predictive(
            X, weights[:count], means[:count], factors[:count], with_responsibilities=False
        )[0]

    def loop() -> np.ndarray:
        peer = Peer(n_components)
        total = np.empty((LOOPED, n_rows))
        for s in range(LOOPED):
            peer.weights_, peer.means_, peer.covariances_ = weights[s], means[s], covariances[s]
            peer.precisions_cholesky_ = _compute_precision_cholesky(covariances[s], "full")
            total[s] = peer.score_samples(X)
        return np.asarray(logsumexp(total, axis=0) - np.log(LOOPED))

    difference = float(np.abs(ours(LOOPED) - loop()).max())
    times = interleaved(lambda: elapsed(ours), lambda: elapsed(loop) * n_draws / LOOPED, 1 if quick else 3)
    row = speed_row(
        f"{size(n_rows, n_features, n_components)}, {n_draws} draws",
        f"{all_threads()} | as they come",
        *times,
        None if quick else TARGET,
        note=f"largest difference {difference:.1g}",
        # Two orders of summing the same terms.
        valid=difference < 1e-8,
    )
    return Section(
        "Log posterior-predictive density of rows",
        "scikit-learn's score_samples in a loop over the draws",
        (row,),
        (f"The loop's time is that of {LOOPED} draws, scaled up.",),
    )
