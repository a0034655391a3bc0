"""Stepwise EM: a mixture learned from a stream of batches, each seen once.

In place of the sums over all rows stands a moving average of them, per unit of weight: after each batch

    s ← (1 − γ_t) s + γ_t s̄_batch,    γ_t = (t + t₀)^(−α),

and the M-step follows (Cappé & Moulines 2009, equation 13). With ½ < α ≤ 1 the steps grow small enough to settle and not so small
as to stop on the way. Sums are centred at the means that they belong to, and move with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bayesgmm.core import em
from bayesgmm.core.covariance import CovarianceStructure, products
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics


@dataclass(frozen=True, eq=False)
class Stepwise:
    """Where a stream has come to.

    Parameters
    ----------
    parameters : MixtureParameters
    covariances : ndarray
        Packed.
    average : SufficientStatistics
        s, per unit of weight, centred at the means of ``parameters``; its ``log_likelihood`` is an average over batches, each at the
        parameters before it.
    weight : float
        Weight of all rows so far.
    n_steps : int
        Batches so far.
    restarted : bool
        Whether the last batch left a component without rows, which was started anew.
    """

    parameters: MixtureParameters
    covariances: FloatArray
    average: SufficientStatistics
    weight: float
    n_steps: int
    restarted: bool = False


def begin(run: em.EMRun, statistics: SufficientStatistics) -> Stepwise:
    """From EM on a first batch, with the sums of a pass at its end."""
    return Stepwise(run.parameters, run.covariances, _scaled(statistics, 1.0), statistics.total_weight, 1)


def resume(
    kind: CovarianceStructure, parameters: MixtureParameters, packed: FloatArray, weight: float, n_steps: int = 1
) -> Stepwise:
    """From a mixture that was fitted to rows of this weight: their sums are those that it is the M-step of."""
    pi = parameters.weights
    second = pi[:, None, None] * parameters.covariances
    if kind.moments == "pooled":
        second = second.sum(axis=0, keepdims=True)
    elif kind.moments == "diagonal":
        second = np.diagonal(second, axis1=1, axis2=2).copy()
    average = SufficientStatistics(0.0, 1.0, pi.copy(), np.zeros_like(parameters.means), second)
    return Stepwise(parameters, packed, average, weight, n_steps)


def step(
    state: Stepwise,
    problem: em.Problem,
    batch: SufficientStatistics,
    decay: float,
    offset: float,
    rng: np.random.Generator,
) -> Stepwise:
    """Learn from a batch.

    Parameters
    ----------
    state : Stepwise
    problem : Problem
        The batch, with structure and prior. Its prior counts once, against all rows so far.
    batch : SufficientStatistics
        Of a pass over it at the state's parameters.
    decay : float
        α.
    offset : float
        t₀.
    rng : numpy.random.Generator
        Chooses where a component that has lost its rows is started anew.

    Returns
    -------
    Stepwise

    References
    ----------
    Cappé & Moulines (2009), On-line expectation–maximization algorithm for latent data models, JRSS B 71, 593–613.
    """
    here = state.parameters
    n_steps, weight = state.n_steps + 1, state.weight + batch.total_weight
    # A batch smaller than the others has so much less to say.
    usual = state.weight / state.n_steps
    gamma = (n_steps - 1 + offset) ** -decay * min(1.0, batch.total_weight / usual)
    average = _scaled(state.average, 1 - gamma) + _scaled(batch, gamma)
    try:
        there, packed = problem.m_step(_scaled(average, weight), here.means)
    except np.linalg.LinAlgError:
        there, packed = em.restarted(problem, batch, here, rng)
        return replace(resume(problem.kind, there, packed, weight, n_steps), restarted=True)
    return Stepwise(there, packed, _recentred(average, there.means - here.means), weight, n_steps)


def _scaled(statistics: SufficientStatistics, weight: float) -> SufficientStatistics:
    """The same sums for another weight in all."""
    share = weight / statistics.total_weight
    return SufficientStatistics(
        share * statistics.log_likelihood,
        weight,
        share * statistics.counts,
        share * statistics.first,
        share * statistics.second,
    )


def _recentred(statistics: SufficientStatistics, by: FloatArray) -> SufficientStatistics:
    """Sums about centres (K, D) that have moved."""
    first, second = statistics.first, statistics.second
    moved = statistics.counts[:, None] * by
    second = second - products(first, by, second) - products(by, first, second) + products(moved, by, second)
    return replace(statistics, first=first - moved, second=second)
