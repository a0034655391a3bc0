"""Confidence intervals of an EM fit from its standard errors, each on a scale on which it keeps its level in small components too.

An estimate ± z standard errors falls short where a component has few rows: variances of n rows are skewed and too small by (n − 1)/n, and
their own error is unknown. Where components are far apart, the intervals here are the textbook's for a normal sample (exact for means,
variances and correlations at zero); where they overlap, the standard errors say how many rows each variance is worth (Satterthwaite 1946):

    ν = 2 (σ² / se(σ²))²,    of which m are spent on the means, so that  ν σ̂² / σ² ~ χ²(ν − m).

- weights: logit ± z se;
- means: Student's t with ν − m degrees of freedom, the standard error times √(ν / (ν − m));
- variances and standard deviations: by that χ²;
- correlations: Fisher's z with standard deviation 1/√(ν_ρ − m − 2), ν_ρ = ((1 − ρ²) / se(ρ))²;
- covariances: σ_ij = σ_i σ_j (U − V) / 4 with U and V the variances of the sum and the difference of the standardised features, two
  independent χ², whose limits are combined (MOVER: Zou & Donner 2008).

References
----------
Satterthwaite, F. E. (1946). An approximate distribution of estimates of variance components. Biometrics Bulletin 2, 110–114.
Zou, G. Y. & Donner, A. (2008). Construction of confidence limits about effect measures: a general approach. Statistics in Medicine 27,
1693–1702.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, gammaincinv, logit, ndtri, stdtrit

from bayesgmm.core.covariance import structure
from bayesgmm.core.information import FreeEntries, StandardErrors, named_scalars
from bayesgmm.core.parameters import FloatArray, MixtureParameters

Limits = tuple[FloatArray, FloatArray]
"""Lower and upper ends."""

Estimated = tuple[FloatArray, FloatArray, FloatArray]
"""An estimate with its lower and upper limit."""


def intervals(
    parameters: MixtureParameters, packed: FloatArray, errors: StandardErrors, prob: float = 0.9
) -> dict[str, Limits]:
    """Equal-tailed intervals of every parameter.

    Parameters
    ----------
    parameters : MixtureParameters
        The fit.
    packed : ndarray
        Its covariances, packed.
    errors : StandardErrors
    prob : float, default 0.9

    Returns
    -------
    dict of str to (lower, upper)
        For weights, means, covariances, standard_deviations and (where the structure has them) correlations, of the shapes that ``errors``
        has. What is not determined has the whole range of the parameter.

    Raises
    ------
    ValueError
        If ``prob`` lies outside (0, 1).
    """
    check_prob(prob)
    free = FreeEntries(structure(errors.covariance_type), *parameters.means.shape)
    tail, z = (1 - prob) / 2, float(ndtri((1 + prob) / 2))
    spent = _means_per_variance(free)
    variances = free.deviations(packed).reshape(free.owners, -1) ** 2
    each = free.take(errors.covariances).reshape(free.owners, free.size)
    _, low, high = variance_limits(variances, each[:, free.diagonal], spent, tail)
    found = {"weights": _weight_limits(parameters.weights, errors.weights, z)}
    found["means"] = _mean_limits(parameters.means, errors.means, variances, each[:, free.diagonal], spent, tail)
    deviations = free.drop_shared(np.sqrt(low)), free.drop_shared(np.sqrt(high))
    lower, upper = np.empty_like(each), np.empty_like(each)
    lower[:, free.diagonal], upper[:, free.diagonal] = low, high
    if errors.correlations is not None:
        matrix = _scaled_blocks(free, errors)

        def limits(direction: FloatArray, value: FloatArray) -> Estimated:
            with np.errstate(invalid="ignore"):
                spread = np.sqrt(np.einsum("opi,oij,opj->op", direction, matrix, direction))
            return variance_limits(value, np.where(np.isnan(spread), np.inf, spread), spent, tail)

        rho = free.correlations(packed).reshape(free.owners, -1)
        lower[:, ~free.diagonal], upper[:, ~free.diagonal] = covariance_limits(free, packed, limits)
        own = errors.correlations.reshape(rho.shape)
        with np.errstate(divide="ignore"):
            degrees = np.maximum(((1 - rho**2) / own) ** 2 - spent - 2, 0.0)
            half = z / np.sqrt(degrees)
        z_rho, shape = np.arctanh(rho), errors.correlations.shape
        found["correlations"] = np.tanh(z_rho - half).reshape(shape), np.tanh(z_rho + half).reshape(shape)
    found["covariances"] = free.put(lower.ravel()), free.put(upper.ravel())
    found["standard_deviations"] = deviations
    return found


def named_intervals(
    parameters: MixtureParameters,
    packed: FloatArray,
    errors: StandardErrors,
    prob: float,
    feature_names: Sequence[str],
    order: Sequence[int] | np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """:func:`intervals` by the names of a summary's rows, but for those of the covariances."""
    found, kind = intervals(parameters, packed, errors, prob), structure(errors.covariance_type)
    low, high = (
        named_scalars({name: ends[side] for name, ends in found.items()}, kind, feature_names, order) for side in (0, 1)
    )
    return {name: (low[name], high[name]) for name in low}


def check_prob(prob: float) -> None:
    """Refuse what is no probability of an interval.

    Raises
    ------
    ValueError
    """
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie between 0 and 1; got {prob}")


def variance_limits(variances: FloatArray, errors: FloatArray, spent: float, tail: float) -> Estimated:
    """Variances without the bias of their maximum likelihood, and their limits by Satterthwaite's χ².

    Parameters
    ----------
    variances, errors : ndarray
        Estimates and their standard errors.
    spent : float
        m, means that each variance is about.
    tail : float
        Probability beyond each limit.
    """
    rows, degrees = _rows_and_degrees(variances, errors, spent)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = rows * variances
        lower, upper = (scaled / (2 * gammaincinv(degrees / 2, p)) for p in (1 - tail, tail))
    undetermined = ~np.isfinite(errors)
    return scaled / degrees, np.where(undetermined, 0.0, lower), np.where(undetermined, np.inf, upper)


def covariance_limits(
    free: FreeEntries, packed: FloatArray, limits: Callable[[FloatArray, FloatArray], Estimated]
) -> Limits:
    """Limits of the covariances (owners, pairs), from those of variances of sums and differences of standardised features.

    Parameters
    ----------
    free : FreeEntries
    packed : ndarray
    limits : callable
        Of directions (owners, pairs, q) in the free entries and the variances (owners, pairs) along them.
    """
    pairs, variances = np.flatnonzero(~free.diagonal), np.flatnonzero(free.diagonal)
    i, j = variances[free.rows[pairs]], variances[free.cols[pairs]]
    s = free.deviations(packed).reshape(free.owners, -1)
    si, sj = s[:, free.rows[pairs]], s[:, free.cols[pairs]]
    rho = free.correlations(packed).reshape(free.owners, -1)
    at = np.arange(len(pairs))
    found = []
    for sign in (1.0, -1.0):
        direction = np.zeros((free.owners, len(pairs), free.size))
        direction[:, at, i], direction[:, at, j], direction[:, at, pairs] = si**-2, sj**-2, sign * 2 / (si * sj)
        found.append(limits(direction, 2 * (1 + sign * rho)))
    (u, u_low, u_high), (v, v_low, v_high) = found
    with np.errstate(invalid="ignore"):
        lower = u - v - np.hypot(u - u_low, v_high - v)
        upper = u - v + np.hypot(u_high - u, v - v_low)
    scale = si * sj / 4
    return np.where(np.isnan(lower), -np.inf, scale * lower), np.where(np.isnan(upper), np.inf, scale * upper)


def _rows_and_degrees(variances: FloatArray, errors: FloatArray, spent: float) -> tuple[FloatArray, FloatArray]:
    """Rows ν that variances are worth, and the degrees of freedom that are left of them."""
    with np.errstate(divide="ignore"):
        rows = 2 * (variances / errors) ** 2
    return rows, np.maximum(rows - spent, 1.0)


def _means_per_variance(free: FreeEntries) -> float:
    return free.n_components * free.n_features / (free.owners * np.sum(free.diagonal))


def _weight_limits(weights: FloatArray, errors: FloatArray, z: float) -> Limits:
    inside = (weights > 0) & (weights < 1)
    safe = np.where(inside, weights, 0.5)
    half = z * errors / (safe * (1 - safe))
    # A weight that is not estimated (K = 1) is known; one at its bound says nothing of where it ends.
    known = errors == 0
    lower = np.where(known, weights, np.where(inside, expit(logit(safe) - half), 0.0))
    upper = np.where(known, weights, np.where(inside, expit(logit(safe) + half), 1.0))
    return lower, upper


def _mean_limits(
    means: FloatArray, errors: FloatArray, variances: FloatArray, variance_errors: FloatArray, spent: float, tail: float
) -> Limits:
    rows, degrees = _rows_and_degrees(variances, variance_errors, spent)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = stdtrit(degrees, 1 - tail) * np.sqrt(rows / degrees)
        half = np.broadcast_to(factor, means.shape) * errors
    half = np.where(np.isnan(half) | ~np.isfinite(errors), np.inf, half)
    return means - half, means + half


def _scaled_blocks(free: FreeEntries, errors: StandardErrors) -> FloatArray:
    """Covariance matrices (owners, q, q) of the free entries of each covariance."""
    begin = free.n_components - 1 + free.n_components * free.n_features
    starts = begin + free.size * np.arange(free.owners)
    return np.stack([errors.covariance_matrix[a : a + free.size, a : a + free.size] for a in starts])
