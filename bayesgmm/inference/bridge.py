"""The optimal bridge between draws of two densities: the log ratio of their normalising constants, with its error.

References
----------
Frühwirth-Schnatter, S. (2004). Estimating marginal likelihoods for mixture and Markov switching models using bridge sampling
techniques. Econometrics Journal 7, 143–167.
Meng, X.-L. & Wong, W. H. (1996). Simulating ratios of normalizing constants via a simple identity: a theoretical exploration.
Statistica Sinica 6, 831–860.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_expit, logsumexp

from bayesgmm.convergence import effective_size
from bayesgmm.core.parameters import FloatArray


@dataclass(frozen=True, eq=False)
class Bridge:
    """One bridge: the log ratio of normalising constants and its error.

    Parameters
    ----------
    log_ratio : float
    proposal_variance : float
        Of ``log_ratio``, from the draws of q (and from thinned orders).
    draws_variance : float
        Of ``log_ratio``, from the draws of p. The sum of the two is the relative mean squared error of
        Frühwirth-Schnatter (2004), section 3.3.
    summands : ndarray of shape (S,)
        What is averaged over the draws of p, in units of its mean: ``draws_variance`` is the variance of their mean.
    effective_size : float
        Effective sample size of the draws of p for these.
    divergence : float
        Mean over the draws of p of log p − log q, less ``log_ratio``: about the divergence KL(p ‖ q) in nats. By Gibbs' inequality the
        mean itself bounds the log ratio from above, whether p and q overlap or not.
    """

    log_ratio: float
    proposal_variance: float
    draws_variance: float
    summands: FloatArray
    effective_size: float
    divergence: float

    @property
    def variance(self) -> float:
        """Of ``log_ratio``."""
        return self.proposal_variance + self.draws_variance


@dataclass(frozen=True, eq=False)
class Half:
    """Half of a posterior's draws.

    Parameters
    ----------
    theta : ndarray of shape (S, P)
    log_posterior : ndarray of shape (S,)
    counts : ndarray of shape (S,)
        How often each draw stands in the posterior: 1 for draws of a chain, more for resampled ones.
    n_chains : int
        The draws are those of the chains, one after the other; 0 for independent draws.
    """

    theta: FloatArray
    log_posterior: FloatArray
    counts: FloatArray
    n_chains: int

    def effective_size(self, values: FloatArray) -> float:
        """Number of independent draws that the mean of a quantity (S,) is worth."""
        variance, spread = self.mean_and_variance(values)[1], self._spread(values)
        return spread / variance if variance > 0 else float(self.counts.sum())

    def _spread(self, values: FloatArray) -> float:
        share = self.counts / self.counts.sum()
        return float(share @ (values - share @ values) ** 2)

    def mean_and_variance(self, values: FloatArray) -> tuple[float, float]:
        """Mean of a quantity (S,) over the draws, and the variance of that mean."""
        share = self.counts / self.counts.sum()
        mean = float(share @ values)
        if not self.n_chains:
            # The counts are random too: a draw that stands twice is one piece of news.
            return mean, float(np.sum((share * (values - mean)) ** 2))
        spread = float(np.var(values))
        if spread <= (1e-14 * abs(mean)) ** 2:
            return mean, 0.0
        size = float(effective_size(values.reshape(1, self.n_chains, -1))[0])
        return mean, spread / size if np.isfinite(size) and size > 0 else np.inf


def bridge(half: Half, log_ratio_at_draws: FloatArray, log_ratio_at_proposed: FloatArray) -> Bridge:
    """Optimal bridge between draws of p and draws of q.

    With s = S_p / (S_p + S_q), S_p the effective number of draws, the log ratio r of normalising constants solves

        mean over q of expit(log s/(1−s) + l − r) / s = mean over p of expit(−(log s/(1−s) + l − r)) / (1 − s),

    l = log p − log q unnormalised: the fixed point of Meng & Wong's iteration (1996, eq. 4.2), found by bracketing.

    Parameters
    ----------
    half : Half
        Which of its draws stand how often and how they depend on one another.
    log_ratio_at_draws : ndarray of shape (S,)
        l at the draws of p.
    log_ratio_at_proposed : ndarray of shape (M,)
        l at independent draws of q; −inf where p has no density.

    Returns
    -------
    Bridge
    """
    M = len(log_ratio_at_proposed)
    finite = log_ratio_at_proposed[np.isfinite(log_ratio_at_proposed)]
    if not len(finite):
        return Bridge(float(np.median(log_ratio_at_draws)), np.inf, 0.0, np.ones(len(log_ratio_at_draws)), 0.0, np.inf)
    low = min(log_ratio_at_draws.min(), finite.min()) - 50.0
    high = max(log_ratio_at_draws.max(), finite.max()) + 50.0
    share = half.counts / half.counts.sum()
    size = float(1 / np.sum(share**2))
    for _ in range(2):
        odds = np.log(size / M)
        s = size / (size + M)

        def summands(r: float, odds: float = odds, s: float = s) -> tuple[FloatArray, FloatArray]:
            over_q = log_expit(odds + log_ratio_at_proposed - r) - np.log(s)
            return over_q, log_expit(r - odds - log_ratio_at_draws) - np.log1p(-s)

        def difference(r: float) -> float:
            over_q, over_p = summands(r)
            return float(logsumexp(over_q) - np.log(M) - logsumexp(over_p, b=share))

        r = float(brentq(difference, low, high, xtol=1e-10, rtol=1e-14))
        over_q, over_p = summands(r)
        # In units of their mean: where p and q hardly meet, the numbers themselves are too small.
        over_q = np.exp(over_q - logsumexp(over_q) + np.log(M))
        over_p = np.exp(over_p - logsumexp(over_p, b=share))
        _, variance = half.mean_and_variance(over_p)
        spread = float(np.var(over_p))
        effective = spread / variance if variance > 0 else size
        result = Bridge(
            r, float(np.var(over_q)) / M, variance, over_p, effective, float(share @ log_ratio_at_draws) - r
        )
        # Once more with the effective number of draws in the place of their number.
        size = float(np.clip(effective, 1.0, size))
    return result


def bridge_over_repeats(
    half: Half,
    log_posterior_at_draws: FloatArray,
    log_q_at_draws: FloatArray,
    log_posterior_at_proposed: FloatArray,
    log_q_at_proposed: FloatArray,
) -> Bridge:
    """Bridge from independent estimates (R, S) of the proposal's density, with the error that they bring."""

    def joined(at_draws: FloatArray, at_proposed: FloatArray) -> Bridge:
        return bridge(half, log_posterior_at_draws - at_draws, log_posterior_at_proposed - at_proposed)

    repeats = max(len(log_q_at_draws), len(log_q_at_proposed))
    if repeats == 1:
        return joined(log_q_at_draws[0], log_q_at_proposed[0])
    pooled = joined(*(logsumexp(q, axis=0) - np.log(len(q)) for q in (log_q_at_draws, log_q_at_proposed)))
    singles = np.array(
        [
            joined(log_q_at_draws[r % len(log_q_at_draws)], log_q_at_proposed[r % len(log_q_at_proposed)]).log_ratio
            for r in range(repeats)
        ]
    )
    # An unbiased estimate inside a ratio makes a bias of about its relative variance; pooling R of them divides that by R.
    bias = (singles.mean() - pooled.log_ratio) / (repeats - 1)
    added = float(np.var(singles, ddof=1) / repeats + bias**2)
    return replace(pooled, proposal_variance=pooled.proposal_variance + added)
