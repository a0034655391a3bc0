"""Posterior draws whose true order of components is known, and the best that anybody could do to find it.

Of a few rows the component is known, of the others not: the posterior of the mixture then has names for its components, and a Gibbs
sampler (allocations of the other rows, then Dirichlet and normal-inverse-Wishart) draws from it. Its draws are shuffled by random
permutations, which a relabelling must undo, without being told which rows are known.

Prior and likelihood of the other rows are the same in every order of the components, so that the order of a shuffled draw θ with the
highest posterior probability is that under which the known rows are most likely. No rule is right more often.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

WARMUP = 200


@dataclass(frozen=True)
class Case:
    """A mixture and its rows: centres (K, D), rows of each component, sd of each, and how many rows of each are known."""

    centres: list[list[float]]
    counts: tuple[int, ...]
    deviations: tuple[float, ...]
    known: int


CASES = {
    "separated": Case([[0, 0], [6, 0], [0, 6], [6, 6]], (50, 50, 50, 50), (1, 1, 1, 1), 10),
    "crossing": Case([[0, 0], [0.05, 5], [-0.05, 10]], (60, 40, 50), (1, 1, 1), 10),
    "crossing, like weights": Case([[0, 0, 0], [0, 4, 0], [0, 0, 4]], (50, 50, 50), (1, 1, 1), 10),
    "heavy overlap": Case([[0, 0], [1.2, 0], [0, 1.2]], (150, 100, 100), (1, 1, 1), 10),
    "heavy overlap, few rows": Case([[0, 0], [1.2, 0], [0, 1.2]], (60, 40, 40), (1, 1, 1), 5),
    "one inside the other": Case([[0, 0], [0, 0]], (150, 75), (1, 3), 15),
}


@dataclass(frozen=True)
class Switched:
    """Shuffled draws with the permutations that undo it.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    covariances : ndarray of shape (S, K, D, D)
    undo : ndarray of shape (S, K), int
        ``means[s, undo[s]]`` is in the true order.
    log_worth : ndarray of shape (S, K, K)
        Log likelihood of the rows known to be of k if component j of draw s is k, at [s, k, j].
    """

    X: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    undo: np.ndarray
    log_worth: np.ndarray

    @property
    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, means and lower factors of the precisions."""
        return self.weights, self.means, np.linalg.cholesky(np.linalg.inv(self.covariances))

    def share_right(self, found: np.ndarray) -> float:
        """Share of the draws that found permutations put in one common order, whichever that is."""
        common = np.take_along_axis(np.argsort(self.undo, axis=1), found, axis=1)
        return float(np.unique(common, axis=0, return_counts=True)[1].max() / len(found))

    def best_orders(self) -> np.ndarray:
        """The most probable order of each draw, over all K!."""
        K = self.weights.shape[1]
        orders = np.array(list(permutations(range(K))))
        worth = np.stack([self.log_worth[:, np.arange(K), order].sum(axis=1) for order in orders], axis=1)
        return orders[worth.argmax(axis=1)]

    def by_coordinate(self, feature: int = 0) -> np.ndarray:
        """Orders by the means of one feature."""
        return np.argsort(self.means[:, :, feature], axis=1)


def switched(name: str, n_draws: int, seed: int) -> Switched:
    """Draws of a case, shuffled."""
    case, rng = CASES[name], np.random.default_rng(seed)
    K, D = np.shape(case.centres)
    z = np.repeat(np.arange(K), case.counts)
    known = np.concatenate([np.arange(n) < case.known for n in case.counts])
    X = np.asarray(case.centres, float)[z] + np.asarray(case.deviations)[z][:, None] * rng.standard_normal((len(z), D))
    weights, means, sigma = np.empty((n_draws, K)), np.empty((n_draws, K, D)), np.empty((n_draws, K, D, D))
    worth = np.empty((n_draws, K, K))
    labels = z.copy()
    for s in range(-WARMUP, n_draws):
        w, m, V = _given_labels(X, labels, K, rng)
        logs = np.log(w) + _log_normals(X, m, V)
        # Gumbel's maximum is a draw from the responsibilities.
        labels = np.where(known, z, np.argmax(logs + rng.gumbel(size=logs.shape), axis=1))
        if s >= 0:
            weights[s], means[s], sigma[s] = w, m, V
            worth[s] = [logs[known & (z == k)].sum(axis=0) for k in range(K)]
    order = np.argsort(rng.random((n_draws, K)), axis=1)
    rows = np.arange(n_draws)[:, None]
    worth = np.take_along_axis(worth, order[:, None, :], axis=2)
    return Switched(X, weights[rows, order], means[rows, order], sigma[rows, order], np.argsort(order, axis=1), worth)


def _log_normals(X: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(covariances)
    delta = X[:, None] - means
    distance = np.einsum("nkd,kde,nke->nk", delta, inverse, delta)
    return -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariances)[1])


def _given_labels(X: np.ndarray, z: np.ndarray, K: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """One draw of (π, μ, Σ) given allocations, under Dirichlet(1), κ₀ = 0.01, ν₀ = D + 2, Λ₀ = I around the mean of all rows."""
    D, centre = X.shape[1], X.mean(axis=0)
    counts = np.bincount(z, minlength=K)
    means, covariances = np.empty((K, D)), np.empty((K, D, D))
    for k in range(K):
        own, precision = X[z == k] - centre, 0.01 + counts[k]
        shift = own.sum(axis=0) / precision
        scale = np.eye(D) + own.T @ own - precision * np.outer(shift, shift)
        # Bartlett: Σ⁻¹ = L A Aᵀ Lᵀ with L Lᵀ = scale⁻¹.
        A = np.tril(rng.standard_normal((D, D)), -1)
        A[np.diag_indices(D)] = np.sqrt(rng.chisquare(D + 2 + counts[k] - np.arange(D)))
        root = np.linalg.inv(np.linalg.cholesky(np.linalg.inv(scale)) @ A).T
        covariances[k] = root @ root.T
        means[k] = centre + shift + root @ rng.standard_normal(D) / np.sqrt(precision)
    return rng.dirichlet(1.0 + counts), means, covariances
