"""Leave-one-out by implicitly adaptive importance sampling: draws moved by affine maps to where the row's absence puts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.special import logsumexp

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.inference.compiled import MixturePosterior
from bayesgmm.inference.laplace import log_densities
from bayesgmm.pointwise import good_k, psis_weights

MAX_ROUNDS = 30


@dataclass(frozen=True, eq=False)
class Matched:
    """Leave-one-out density of one row.

    Parameters
    ----------
    elpd : float
        Log leave-one-out predictive density.
    pareto_k : float
        Of the matched weights, and of those of the final mixture of moved and unmoved draws: the larger.
    rounds : int
        Transformations that were accepted.
    """

    elpd: float
    pareto_k: float
    rounds: int


class MomentMatching:
    """Draws of a posterior with their densities, ready to be matched to the posterior without a row.

    Parameters
    ----------
    compiled : MixturePosterior
        The posterior given all rows.
    theta : ndarray of shape (S, P)
        Its draws in the unconstrained coordinates.
    r_eff : float, default 1.0
    """

    def __init__(self, compiled: MixturePosterior, theta: FloatArray, r_eff: float = 1.0) -> None:
        self._compiled = compiled
        self._theta = theta
        self._r_eff = r_eff
        self._log_posterior = self._density(theta)
        self.threshold = good_k(len(theta))

    def _density(self, theta: FloatArray) -> FloatArray:
        values = log_densities(self._compiled, theta)
        return np.where(np.isfinite(values), values, -np.inf)

    def _log_likelihood(self, row: FloatArray, theta: FloatArray) -> FloatArray:
        part = self._compiled.constrain(theta)
        values = kernel.pointwise_log_likelihood(
            row, part["weights"], part["means"], part["precision_factors"], n_threads=1
        )
        return np.asarray(values[:, 0])

    def _weights(self, log_ratios: FloatArray) -> tuple[FloatArray, float]:
        log_weights, pareto_k = psis_weights(_bounded(log_ratios)[None], self._r_eff)
        return log_weights[0], float(pareto_k[0])

    def _log_ratios(self, row: FloatArray, power: float, moved: FloatArray) -> FloatArray:
        """Density without the row at moved draws over the density that moving gave them.

        The map's Jacobian is the same for all draws, and self-normalised weights do not see it.
        """
        return self._density(moved) - power * self._log_likelihood(row, moved) - self._log_posterior

    def match(self, row: FloatArray, power: float = 1.0) -> Matched:
        """Leave-one-out density of a row.

        The draws are shifted, scaled and rotated, in turn, to the mean, variances and covariances that the importance weights ask
        for, as long as k̂ falls. At last half of the draws are moved and half are not, and all are weighted by the mixture's density:
        the moved ones cover the posterior without the row, the unmoved ones the row's own density.

        Parameters
        ----------
        row : ndarray of shape (1, D)
        power : float, default 1.0
            Share of the row that is left out.

        Returns
        -------
        Matched

        References
        ----------
        Paananen, Piironen, Bürkner & Vehtari (2021), Implicitly adaptive importance sampling, Statistics and Computing 31, 16,
        algorithm 1 and section 3.2 (the split proposal).
        """
        theta = self._theta
        P = theta.shape[1]
        log_weights, pareto_k = self._weights(-power * self._log_likelihood(row, theta))
        linear, offset, rounds = np.eye(P), np.zeros(P), 0
        while pareto_k > self.threshold and rounds < MAX_ROUNDS:
            for how in ("shift", "scale", "covariance"):
                step = _affine_step(theta, np.exp(log_weights), how)
                if step is None:
                    continue
                centre, matrix, target = step
                moved = (theta - centre) @ matrix.T + target
                new_weights, new_k = self._weights(self._log_ratios(row, power, moved))
                if new_k < pareto_k:
                    theta, log_weights, pareto_k = moved, new_weights, new_k
                    linear, offset = matrix @ linear, matrix @ (offset - centre) + target
                    rounds += 1
                    break
            else:
                break
        if rounds == 0:
            elpd = float(logsumexp(log_weights + self._log_likelihood(row, theta)))
            return Matched(elpd, pareto_k, 0)
        elpd, split_k = self._split(row, power, linear, offset)
        return Matched(elpd, max(pareto_k, split_k), rounds)

    def _split(self, row: FloatArray, power: float, linear: FloatArray, offset: FloatArray) -> tuple[float, float]:
        """Estimate from every other draw moved, with the densities of the equal mixture in the denominator."""
        log_volume = float(np.linalg.slogdet(linear)[1])
        moved = self._theta[::2] @ linear.T + offset
        still = self._theta[1::2]
        back = np.linalg.solve(linear, (still - offset).T).T
        points = np.concatenate([moved, still])
        density = np.concatenate([self._density(moved), self._log_posterior[1::2]])
        density_before = np.concatenate([self._log_posterior[::2], self._density(back)])
        proposal = np.logaddexp(density, density_before - log_volume)
        log_likelihood = self._log_likelihood(row, points)
        log_weights, pareto_k = self._weights(density - power * log_likelihood - proposal)
        return float(logsumexp(log_weights + log_likelihood)), pareto_k


def _bounded(log_ratios: FloatArray) -> FloatArray:
    """Ratios with those of draws beyond the density's reach made finite and negligible."""
    finite = np.isfinite(log_ratios)
    if finite.all():
        return log_ratios
    if not finite.any():
        return np.zeros_like(log_ratios)
    return np.where(finite, log_ratios, log_ratios[finite].min() - 700.0)


def _affine_step(theta: FloatArray, weights: FloatArray, how: str) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Centre, matrix and target of θ → matrix (θ − centre) + target that matches weighted moments; None where they do not exist."""
    centre, target = theta.mean(axis=0), weights @ theta
    S, P = theta.shape
    if how == "shift":
        return centre, np.eye(P), target
    plain, around = theta - centre, theta - target
    if how == "scale":
        variance, weighted_variance = np.mean(plain**2, axis=0), weights @ around**2
        if not (np.all(variance > 0) and np.all(weighted_variance > 0)):
            return None
        return centre, np.diag(np.sqrt(weighted_variance / variance)), target
    # Fewer effective draws than some multiple of the parameters leave the weighted covariance without meaning.
    if 1.0 / float(np.sum(weights**2)) < 3 * P:
        return None
    try:
        have = cholesky(plain.T @ plain / S, lower=True)
        want = cholesky((weights[:, None] * around).T @ around, lower=True)
    except LinAlgError:
        return None
    return centre, solve_triangular(have, want.T, lower=True, trans="T").T, target
