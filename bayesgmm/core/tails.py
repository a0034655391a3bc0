"""How much of a mixture's mass has a density as low as a row's: simulated, with rows in the tails to spare.

The tail probability of a row x is P(p(x_new) ≤ p(x)), x_new from the mixture itself (or from an average of mixtures over draws): a
p-value in any dimension. Rows simulated from the mixture alone would leave nothing to count where it is small; half of them come from
components of inflated spread instead, and each row has the importance weight that puts this right. Weights are at most 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray, MixtureParameters

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

REACH = 1e-6
"""Share of a component's rows that lie beyond the typical inflated one."""

RESOLVED = 10.0
"""Effective simulated rows below a log density that its tail probability must rest on."""

SOLVED_ROWS = 65536
"""Rows that are simulated at a time: each has a matrix of its own while it is."""


def inflation(n_features: int) -> float:
    """Factor of a component's spread that brings the typical row out to where one in 1/``REACH`` lies."""
    return float(max(1.5, np.sqrt(chdtri(n_features, REACH) / n_features)))


def _noise(rng: np.random.Generator, n_rows: int, n_features: int) -> tuple[FloatArray, FloatArray]:
    """Standard normal rows, half of them inflated, and their importance weights φ / (φ/2 + φ_c/2)."""
    c = inflation(n_features)
    noise = rng.standard_normal((n_rows, n_features))
    noise[rng.permutation(n_rows)[: n_rows // 2]] *= c
    half_square = 0.5 * np.einsum("nd,nd->n", noise, noise)
    # exp overflows to inf far out, where the weight is 0.
    with np.errstate(over="ignore"):
        weights = 2.0 / (1.0 + np.exp(half_square * (1 - c**-2) - n_features * np.log(c)))
    return noise, weights


def simulate(
    weights: FloatArray, means: FloatArray, precision_factors: FloatArray, n_rows: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Rows from the average of mixtures over draws, with importance weights.

    Parameters
    ----------
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    n_rows : int
        M. Draws get equal shares of them.
    rng : numpy.random.Generator

    Returns
    -------
    rows : ndarray of shape (M, D)
    importance : ndarray of shape (M,)
        In [0, 2], of mean 1.
    """
    S, K, D = means.shape
    draw = (np.arange(n_rows) * S) // n_rows if n_rows >= S else rng.choice(S, n_rows, replace=False)
    cumulative = np.cumsum(weights, axis=1)
    u = rng.random(n_rows)
    component = np.minimum((u[:, None] * cumulative[draw, -1:] >= cumulative[draw]).sum(axis=1), K - 1)
    noise, importance = _noise(rng, n_rows, D)
    rows = np.empty((n_rows, D))
    for start in range(0, n_rows, SOLVED_ROWS):
        part = slice(start, start + SOLVED_ROWS)
        P = precision_factors[draw[part], component[part]]
        shift = np.linalg.solve(np.swapaxes(P, 1, 2), noise[part, :, None])[..., 0]
        rows[part] = means[draw[part], component[part]] + shift
    return rows, importance


@dataclass(frozen=True, eq=False)
class TailCurve:
    """Distribution function of the log density of simulated rows.

    Parameters
    ----------
    log_density : ndarray of shape (M,)
        Increasing.
    mass : ndarray of shape (M,)
        Share of the mass with a log density up to this; ends in 1.
    squares : ndarray of shape (M,)
        Sums of the squared shares, for the errors.
    """

    log_density: FloatArray
    mass: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, log_density: FloatArray, importance: FloatArray) -> Self:
        """Curve of rows with these log densities and importance weights (M,)."""
        order = np.argsort(log_density, kind="stable")
        shares = importance[order] / importance.sum()
        mass = np.cumsum(shares)
        return cls(log_density[order], mass / mass[-1], np.cumsum(shares**2))

    @property
    def resolution(self) -> float:
        """Smallest tail probability that rests on enough rows: relative standard error of about 1/3."""
        enough = self.mass**2 >= RESOLVED * self.squares
        return float(self.mass[np.argmax(enough)]) if enough.any() else 1.0

    def _up_to(self, log_density: FloatArray) -> tuple[FloatArray, FloatArray]:
        n_below = np.searchsorted(self.log_density, log_density, side="right")
        at = np.maximum(n_below - 1, 0)
        return np.where(n_below > 0, self.mass[at], 0.0), np.where(n_below > 0, self.squares[at], 0.0)

    def probability(self, log_density: FloatArray) -> FloatArray:
        """Tail probability at these log densities, no smaller than :attr:`resolution`.

        Parameters
        ----------
        log_density : ndarray of shape (N,)

        Returns
        -------
        ndarray of shape (N,)
        """
        return np.maximum(self._up_to(log_density)[0], self.resolution)

    def error(self, log_density: FloatArray) -> FloatArray:
        """Standard error of :meth:`probability` from the number of simulated rows (of a ratio of weighted sums)."""
        p, squares = self._up_to(log_density)
        p = np.maximum(p, self.resolution)
        return np.sqrt((1 - p) ** 2 * squares + p**2 * np.maximum(self.squares[-1] - squares, 0.0))

    def quantile(self, probability: float) -> float:
        """Log density below which this share of the mass lies."""
        # Weights of 0 repeat a mass; interpolation wants each once.
        mass, at = np.unique(self.mass, return_index=True)
        return float(np.interp(probability, mass, self.log_density[at]))


@dataclass(frozen=True, eq=False)
class PredictiveTail:
    """Tail probabilities under the average of mixtures over draws, with Monte Carlo error.

    Parameters
    ----------
    curve : TailCurve
        Of the mean density.
    batches : tuple of TailCurve
        Of the mean density of each batch of draws, from the same rows weighted anew; none for one batch.
    rows : ndarray of shape (M, D)
        The simulated rows.
    importance : ndarray of shape (M,)
    log_density : ndarray of shape (M,)
        Of the rows, in their order.
    """

    curve: TailCurve
    batches: tuple[TailCurve, ...]
    rows: FloatArray
    importance: FloatArray
    log_density: FloatArray

    @classmethod
    def simulate(
        cls,
        weights: FloatArray,
        means: FloatArray,
        precision_factors: FloatArray,
        n_rows: int,
        rng: np.random.Generator,
        edges: IntArray | None = None,
    ) -> Self:
        """Simulate rows and find their densities.

        Parameters
        ----------
        weights : ndarray of shape (S, K)
        means : ndarray of shape (S, K, D)
        precision_factors : ndarray of shape (S, K, D, D)
        n_rows : int
        rng : numpy.random.Generator
        edges : ndarray of shape (B + 1,), optional
            Batches of draws, for the errors; see ``bayesgmm.core.kernel.predictive_averages``.
        """
        rows, importance = simulate(weights, means, precision_factors, n_rows, rng)
        found = kernel.predictive_averages(
            rows, weights, means, precision_factors, edges=edges, with_responsibilities=False
        ).log_density
        mean = mean_over_batches(found, edges)
        batches: tuple[TailCurve, ...] = ()
        if found.shape[1] > 1:
            batches = tuple(TailCurve.of(each, importance * np.exp(each - mean)) for each in found.T)
        return cls(TailCurve.of(mean, importance), batches, rows, importance, mean)

    def error(self, log_density: FloatArray, by_batch: FloatArray, draws_per_effective: float = 1.0) -> FloatArray:
        """Standard error of the tail probability: of the simulated rows, and of the draws by batch means.

        Parameters
        ----------
        log_density : ndarray of shape (N,)
        by_batch : ndarray of shape (N, B)
            Of the same rows under each batch.
        draws_per_effective : float, default 1.0
            More than 1 where draws were resampled, so that batches share what they rest on.
        """
        simulated = self.curve.error(log_density)
        if not self.batches:
            return simulated
        each = np.stack([curve.probability(column) for curve, column in zip(self.batches, by_batch.T)], axis=1)
        return np.hypot(simulated, batch_error(each, draws_per_effective))


def mean_over_batches(log_density: FloatArray, edges: IntArray | None) -> FloatArray:
    """Log mean density over all draws (N,) from that over each batch (N, B)."""
    if edges is None or log_density.shape[1] == 1:
        return log_density[:, 0]
    sizes = np.diff(edges) / edges[-1]
    top = log_density.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(top[:, 0] + np.log(np.exp(log_density - top) @ sizes))


def batch_error(by_batch: FloatArray, draws_per_effective: float = 1.0) -> FloatArray:
    """Standard error of a mean over draws from its values in batches (N, B) (Geyer 1992, section 3.2); 0 for one batch."""
    B = by_batch.shape[1]
    if B < 2:
        return np.zeros(len(by_batch))
    return np.asarray(by_batch.std(axis=1, ddof=1) * np.sqrt(draws_per_effective / B))


def draw_quantiles(
    weights: FloatArray,
    means: FloatArray,
    precision_factors: FloatArray,
    probability: float,
    rng: np.random.Generator,
    n_rows: int = 2000,
) -> FloatArray:
    """Log density below which a draw's own mixture has this share of its mass, for every draw.

    Parameters
    ----------
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    probability : float
        In (0, 1).
    rng : numpy.random.Generator
    n_rows : int, default 2000
        Simulated for a draw; all draws see the same random numbers.

    Returns
    -------
    ndarray of shape (S,)
    """
    S, K, D = means.shape
    noise, importance = _noise(rng, n_rows, D)
    u = rng.permutation((np.arange(n_rows) + rng.random(n_rows)) / n_rows)
    out = np.empty(S)
    for s in range(S):
        cumulative = np.cumsum(weights[s])
        component = np.minimum(np.searchsorted(cumulative, u * cumulative[-1], side="right"), K - 1)
        rows = np.empty((n_rows, D))
        for k in range(K):
            member = component == k
            rows[member] = means[s, k] + np.linalg.solve(precision_factors[s, k].T, noise[member].T).T
        density = kernel.log_density(rows, MixtureParameters(weights[s], means[s], precision_factors[s]))
        out[s] = TailCurve.of(density, importance).quantile(probability)
    return out
