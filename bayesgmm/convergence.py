"""Effective sample size and R-hat of many quantities at once.

The definitions are those of Vehtari et al. (2021), and the numbers those of ArviZ; all quantities go through each step together, so that a
posterior of hundreds of parameters is judged in the time that ArviZ needs for some tens.

References
----------
Geyer, C. J. (1992). Practical Markov chain Monte Carlo. Statistical Science 7, 473–483.
Vehtari, A., Gelman, A., Simpson, D., Carpenter, B. & Bürkner, P.-C. (2021). Rank-normalization, folding, and localization: an improved
R-hat for assessing convergence of MCMC. Bayesian Analysis 16, 667–718.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.fft import next_fast_len
from scipy.special import ndtri

from bayesgmm.core.parameters import FloatArray

MIN_DRAWS = 4
"""Fewer draws a chain have no diagnostics: NaN."""

TAIL = (0.05, 0.95)
NUMBERS_AT_ONCE = 2**21
"""Quantities are taken in groups of about as many draws."""

RESOLUTION = 1e-15
"""Values that lie within it, of the largest, are the same."""


class Convergence(NamedTuple):
    """Diagnostics of P quantities, each (P,)."""

    ess_bulk: FloatArray
    ess_tail: FloatArray
    r_hat: FloatArray


def convergence(values: FloatArray) -> Convergence:
    """Rank-normalised R-hat, bulk and tail effective sample size (of the 5 % and 95 % quantiles).

    Parameters
    ----------
    values : ndarray of shape (P, C, S)
        P quantities in S draws of C chains.

    Returns
    -------
    Convergence
        NaN for fewer than four draws or where a value is NaN; R-hat is NaN for one chain.
    """
    return Convergence(*_in_groups(_diagnosed, values, 3))


def _in_groups(function: Callable[[FloatArray], FloatArray], values: FloatArray, n: int) -> FloatArray:
    """Some n numbers (n, P) of each quantity (P, C, S), from as many quantities at a time as memory should hold."""
    P, C, S = values.shape
    found = np.full((n, P), np.nan)
    if S >= MIN_DRAWS:
        step = max(1, NUMBERS_AT_ONCE // (C * S))
        for start in range(0, P, step):
            found[:, start : start + step] = function(np.asarray(values[start : start + step], dtype=float))
    found[:, np.isnan(values).any(axis=(1, 2))] = np.nan
    return found


def _diagnosed(values: FloatArray) -> FloatArray:
    halves = _split(values)
    ranked = _rank_normalised(halves)
    middle = np.median(halves, axis=(1, 2), keepdims=True)
    folded = _rank_normalised(np.abs(halves - middle))
    ends = np.quantile(values.reshape(len(values), -1), TAIL, axis=1)
    tails = [_effective_size(_split((values <= end[:, None, None]).astype(float))) for end in ends]
    r_hat = np.fmax(_r_hat(ranked), _r_hat(folded)) if values.shape[1] > 1 else np.full(len(values), np.nan)
    return np.array([_effective_size(ranked), np.minimum(*tails), r_hat])


def effective_size(values: FloatArray) -> FloatArray:
    """Effective sample size (P,) for the mean of each of P quantities (P, C, S); NaN for fewer than four draws."""
    return np.asarray(_in_groups(lambda group: _effective_size(_split(group)), values, 1)[0])


def _split(values: FloatArray) -> FloatArray:
    """First and last half of each chain as chains of their own: (P, 2 C, S // 2)."""
    half = values.shape[2] // 2
    return np.concatenate([values[:, :, :half], values[:, :, -half:]], axis=1)


@lru_cache(maxsize=8)
def _normal_scores(n: int) -> FloatArray:
    """Normal quantiles of ranks 1, 1.5, 2, … n among n, by Blom's plotting positions."""
    ranks = 1 + np.arange(2 * n - 1) / 2
    return np.asarray(ndtri((ranks - 0.375) / (n + 0.25)))


def _rank_normalised(values: FloatArray) -> FloatArray:
    """Normal scores of the ranks within each quantity; equal values share the average of their ranks."""
    flat = values.reshape(len(values), -1)
    n = flat.shape[1]
    order = np.argsort(flat, axis=1)
    ordered = np.take_along_axis(flat, order, axis=1)
    places = np.arange(n)
    differs = ordered[:, 1:] != ordered[:, :-1]
    if differs.all():
        twice = np.broadcast_to(2 * places, flat.shape)
    else:
        edge = np.ones((len(flat), 1), dtype=bool)
        first = np.maximum.accumulate(np.where(np.hstack([edge, differs]), places, 0), axis=1)
        last = np.where(np.hstack([differs, edge]), places, n)
        last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
        twice = first + last
    out = np.empty_like(flat)
    np.put_along_axis(out, order, _normal_scores(n)[twice], axis=1)
    return out.reshape(values.shape)


def _r_hat(chains: FloatArray) -> FloatArray:
    """Root of the ratio of the variance of all draws to that within chains."""
    n = chains.shape[2]
    within = chains.var(axis=2, ddof=1).mean(axis=1)
    between = chains.mean(axis=2).var(axis=1, ddof=1)
    # Chains that do not move have no variance within; folded values of two kinds none at all.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt((n - 1) / n + between / within))


def _effective_size(chains: FloatArray) -> FloatArray:
    """Effective sample size (P,) of the mean over chains (P, M, n), by the initial monotone sequence of Geyer (1992)."""
    P, M, n = chains.shape
    largest = np.abs(chains).max(axis=(1, 2))
    # In units of the largest: squares of large and of small numbers leave the range of float64.
    chains = chains / np.where(largest > 0, largest, 1.0)[:, None, None]
    means = chains.mean(axis=2, keepdims=True)
    size = next_fast_len(2 * n, real=True)
    spectrum = np.fft.rfft(chains - means, size, axis=2)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    covariance = np.fft.irfft(power, size, axis=1)[:, :n] / n
    variance = covariance[:, 0] + (means[:, :, 0].var(axis=1, ddof=1) if M > 1 else 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = 1 - (covariance[:, :1] * n / (n - 1) - covariance) / variance[:, None]
    rho[:, 0] = 1
    # Sums of two neighbours fall and are positive: the first that is not ends the sum, the last lags of all are noise.
    longest = max(0, -(-(n - 4) // 2))
    even = rho[:, 0 : 2 * longest + 1 : 2]
    pairs = even + rho[:, 1 : 2 * longest + 2 : 2]
    ends = np.where((pairs <= 0).any(axis=1), np.argmax(pairs <= 0, axis=1), longest)
    sums = np.concatenate([np.zeros((P, 1)), np.minimum.accumulate(pairs, axis=1).cumsum(axis=1)], axis=1)
    every = np.arange(P)
    last = even[every, ends]
    last = np.where((last > 0) | (pairs[every, ends] >= 0), last, 0.0)
    time = np.maximum(2 * sums[every, ends] - 1 + last, 1 / np.log10(M * n))
    constant = np.ptp(chains, axis=(1, 2)) < RESOLUTION
    return np.where(constant, M * n, M * n / time)
