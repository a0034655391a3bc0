"""What the posterior says of a row that it was fitted to, had the row not been there: a row must not vouch for itself.

Draws are reweighted by Pareto-smoothed importance sampling, one set of weights a row; rows that this cannot leave out (k̂ too high:
the very outliers that are looked for) are left out by sampling again without them, the worst first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logsumexp

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.tails import IntArray, PredictiveTail, TailCurve, mean_over_batches
from bayesgmm.inference.loo import refit_without, relative_efficiency_of
from bayesgmm.pointwise import BLOCK_ELEMENTS, good_k, psis_weights

Draws = tuple[FloatArray, FloatArray, FloatArray]
"""Weights (S, K), means (S, K, D) and precision factors (S, K, D, D)."""

SMOOTHED_FROM = 0.02
"""Variance of log ratios from which weights are smoothed: below it no weight is far from 1, and a million rows would take minutes."""

REWEIGHTED_ROWS = 4000
"""Simulated rows that each row's own predictive density is weighed against."""

EXACT_PRODUCTS = 2e11
"""Rows × simulated rows × draws up to which every row has a curve of its own (some ten seconds); above it the common one serves,
which one row of so many hardly changes."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Leave-one-out values of the rows of a fit.

    Parameters
    ----------
    log_density : ndarray of shape (N,)
        Log predictive density given the other rows.
    tail_probability, tail_error : ndarray of shape (N,)
        Under the predictive distribution given the other rows, and its Monte Carlo standard error.
    below, below_error : ndarray of shape (N,)
        Posterior probability, given the other rows, that the density lies below the threshold, and its error.
    pareto_k : ndarray of shape (N,)
        k̂ of the importance weights; −inf where they hardly vary.
    refitted : ndarray of int
        Rows that were left out by sampling again.
    unreliable : ndarray of int
        Rows whose k̂ is too high and that were not.
    """

    log_density: FloatArray
    tail_probability: FloatArray
    tail_error: FloatArray
    below: FloatArray
    below_error: FloatArray
    pareto_k: FloatArray
    refitted: IntArray
    unreliable: IntArray


def leave_out(
    post: Any,
    draws: Draws,
    tail: PredictiveTail,
    thresholds: FloatArray,
    *,
    thin: int = 1,
    refits: int = 10,
    own_thresholds: Callable[[Draws], FloatArray] | None = None,
    own_curves: bool = True,
    rows: IntArray | None = None,
    random_state: np.random.Generator,
) -> LeftOut:
    """Leave each row of a fit out in turn.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted; holds its rows.
    draws : tuple of ndarray
        Of its posterior, every ``thin``-th.
    tail : PredictiveTail
        Of these draws.
    thresholds : ndarray of shape (S,)
        Log density for each draw that a row's is compared with.
    thin : int, default 1
    refits : int, default 10
        Rows that are left out by sampling again at most.
    own_thresholds : callable, optional
        Thresholds of other draws, for refits; default: the first of ``thresholds`` for all.
    own_curves : bool, default True
        False: the tail probability of a row is looked up in the curve that all rows share, which the row itself has a part in.
    rows : ndarray of int of shape (n,), optional
        Positions of the rows to leave out, whose values come in this order. Default: all.
    random_state : numpy.random.Generator

    Returns
    -------
    LeftOut

    References
    ----------
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
    Statistics and Computing 27, 1413–1432.
    """
    X, v = post._X, post._sample_weight
    if rows is not None:
        X, v = np.ascontiguousarray(X[rows]), None if v is None else v[rows]
    N, S = len(X), len(draws[0])
    efficiency = relative_efficiency_of(post, thin)
    none = np.empty(0, dtype=np.int64)
    out = LeftOut(np.empty(N), np.empty(N), np.empty(N), np.empty(N), np.empty(N), np.empty(N), none, none)
    common = N * min(REWEIGHTED_ROWS, len(tail.rows)) * S > EXACT_PRODUCTS
    own = None if common or not own_curves else _Reweighted.of(tail, draws)
    for part, log_likelihood in _blocks(X, draws):
        ratios = -log_likelihood if v is None else -log_likelihood * np.minimum(v[part], 1.0)[:, None]
        log_weights, out.pareto_k[part] = _weights(ratios, efficiency)
        weights = np.exp(log_weights)
        density = logsumexp(log_weights + log_likelihood, axis=1)
        out.log_density[part] = density
        is_below = log_likelihood < thresholds
        out.below[part] = np.einsum("ns,ns->n", weights, is_below)
        spread = weights**2 * (is_below - out.below[part, None]) ** 2
        out.below_error[part] = np.sqrt(spread.sum(axis=1) / efficiency)
        if own is None:
            out.tail_probability[part], out.tail_error[part] = (
                tail.curve.probability(density),
                tail.curve.error(density),
            )
        else:
            out.tail_probability[part], out.tail_error[part] = own.tail(weights, density)
    places = np.arange(N) if rows is None else rows
    return _treat(post, out, places, v, good_k(S), thresholds, own_thresholds, refits, len(tail.rows), random_state)


def _blocks(X: FloatArray, draws: Draws) -> Iterator[tuple[slice, FloatArray]]:
    """Log-likelihood (n, S) of blocks of rows."""
    rows = max(1, BLOCK_ELEMENTS // (4 * len(draws[0])))
    for start in range(0, len(X), rows):
        part = slice(start, min(start + rows, len(X)))
        yield part, np.ascontiguousarray(kernel.pointwise_log_likelihood(X[part], *draws).T)


def _weights(ratios: FloatArray, efficiency: float) -> tuple[FloatArray, FloatArray]:
    """Log importance weights (n, S), smoothed where they vary enough for it to matter, and k̂ (−inf where they do not)."""
    log_weights, pareto_k = ratios - logsumexp(ratios, axis=1)[:, None], np.full(len(ratios), -np.inf)
    wide = np.flatnonzero(ratios.var(axis=1) > SMOOTHED_FROM)
    if len(wide):
        log_weights[wide], pareto_k[wide] = psis_weights(ratios[wide], efficiency)
    return log_weights, pareto_k


@dataclass(frozen=True, eq=False)
class _Reweighted:
    """Simulated rows, and each draw's density there relative to the mean over draws."""

    ratio: FloatArray  # (M, S)
    importance: FloatArray  # (M,)
    log_density: FloatArray  # (M,)

    @classmethod
    def of(cls, tail: PredictiveTail, draws: Draws) -> _Reweighted:
        # At random: rows come in the order of the draws that they are from.
        some = np.random.default_rng(0).permutation(len(tail.rows))[:REWEIGHTED_ROWS]
        keep = np.sort(some)
        each = kernel.pointwise_log_likelihood(np.ascontiguousarray(tail.rows[keep]), *draws).T
        log_density = tail.log_density[keep]
        return cls(np.exp(each - log_density[:, None]), tail.importance[keep], log_density)

    def tail(self, weights: FloatArray, log_density: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tail probability and error of rows under the draws weighted by (n, S), at their own log densities (n,).

        A simulated row's density given the other rows is its mean density times the weighted mean of its ratios, which is also the
        importance weight that turns draws of the one distribution into draws of the other.
        """
        change = self.ratio @ weights.T
        with np.errstate(divide="ignore"):
            given_others = self.log_density[:, None] + np.log(change)
        curves = [TailCurve.of(given_others[:, i], self.importance * change[:, i]) for i in range(len(weights))]
        at = [(curve.probability(row), curve.error(row)) for curve, row in zip(curves, log_density[:, None])]
        probability, error = np.array(at)[:, :, 0].T
        return probability, error


def _treat(
    post: Any,
    out: LeftOut,
    places: IntArray,
    v: FloatArray | None,
    threshold: float,
    thresholds: FloatArray,
    own_thresholds: Callable[[Draws], FloatArray] | None,
    refits: int,
    n_simulated: int,
    rng: np.random.Generator,
) -> LeftOut:
    """Sample again without the rows whose weights cannot be relied upon, worst first."""
    bad = np.flatnonzero(out.pareto_k > threshold if v is None else (out.pareto_k > threshold) & (v > 0))
    bad = bad[np.argsort(-out.pareto_k[bad], kind="stable")]
    done, left = [], list(map(int, bad[refits:]))
    for row in map(int, bad[:refits]):
        try:
            found = refit_without(post, int(places[row]), rng).draws
        except (ValueError, RuntimeError):
            left.append(row)
            continue
        draws, edges = found.flat(), found.batch_edges()
        here = post._X[places[row]][None]
        log_likelihood = kernel.pointwise_log_likelihood(here, *draws)[:, 0]
        limits = np.full(len(log_likelihood), thresholds[0]) if own_thresholds is None else own_thresholds(draws)
        by_batch = kernel.predictive_averages(here, *draws, edges=edges, with_responsibilities=False).log_density
        tail = PredictiveTail.simulate(*draws, n_simulated, rng, edges)
        density = mean_over_batches(by_batch, edges)
        out.log_density[row] = density[0]
        out.tail_probability[row] = tail.curve.probability(density)[0]
        out.tail_error[row] = tail.error(density, by_batch)[0]
        share = float(np.mean(log_likelihood < limits))
        out.below[row], out.below_error[row] = share, np.sqrt(share * (1 - share) / len(log_likelihood))
        done.append(row)
    refitted, unreliable = (np.sort(places[np.array(rows, dtype=np.int64)]) for rows in (done, left))
    return replace(out, refitted=refitted, unreliable=unreliable)
