"""Predictive densities of several models beside one another: differences with their errors, and stacking weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize

from bayesgmm.core.parameters import FloatArray


def compare_elpds(
    elpds: Mapping[str, Any], sample_weight: FloatArray | None = None
) -> tuple[dict[str, tuple[float, float]], FloatArray]:
    """Differences to the best model with their standard errors over paired rows, and stacking weights.

    Parameters
    ----------
    elpds : mapping of str to ELPDData
        Of the same rows; pointwise values count each row by its weight.
    sample_weight : ndarray of shape (N,), optional

    Returns
    -------
    differences : dict of str to (float, float)
        elpd − elpd of the best, and its standard error (with N − 1; ``az.compare`` has N). For subsampled LOO by ``az.compare``; of
        rows in blocks from the subsample: the variance over all rows is that of its differences.
    weights : ndarray of shape (models,)
    """
    from bayesgmm.elpd import ELPDDataLOOBlocks
    from bayesgmm.pointwise import standard_error

    names = list(elpds)
    pointwise = np.array([np.asarray(elpds[name].elpd_i, dtype=float).ravel() for name in names])
    rows = np.isfinite(pointwise).all(axis=0)
    v = sample_weight
    if v is not None:
        rows &= v > 0
    copies = pointwise[:, rows] if v is None else pointwise[:, rows] / v[rows]
    kept = None if v is None else v[rows]
    weights = stacking_weights(copies.T, kept)
    best = int(np.argmax([elpds[name].elpd for name in names]))
    if any(isinstance(elpds[name], ELPDDataLOOBlocks) for name in names):
        return _differences_of_subsample([elpds[name] for name in names], names, best), weights
    if any(hasattr(elpds[name], "subsampling_se") for name in names):
        import arviz_stats

        with warnings.catch_warnings():
            # It warns where more than eleven models are compared; the errors stand in the table.
            warnings.simplefilter("ignore")
            compared = arviz_stats.compare(dict(elpds), method="pseudo-BMA", round_to="none")
        return {n: (float(compared.loc[n, "elpd_diff"]), float(compared.loc[n, "dse"])) for n in names}, weights
    differences = {}
    for m, name in enumerate(names):
        gap = float(elpds[name].elpd - elpds[names[best]].elpd)
        differences[name] = (gap, 0.0 if m == best else standard_error(copies[m] - copies[best], kept))
    return differences, weights


def _differences_of_subsample(found: Sequence[Any], names: Sequence[str], best: int) -> dict[str, tuple[float, float]]:
    """Differences by the difference estimator, whose approximations have been summed over all rows."""
    exact = np.array([np.asarray(each.elpd_i, dtype=float) for each in found])
    errors = exact - np.array([np.asarray(each.elpd_loo_approx, dtype=float) for each in found])
    N, m = found[best].n_data_points, exact.shape[1]
    out = {}
    for k, name in enumerate(names):
        of_rows, of_subsample = (np.var(values[k] - values[best], ddof=1) for values in (exact, errors))
        variance = N * of_rows + N**2 * (1 - m / N) * of_subsample / m
        out[name] = (float(found[k].elpd - found[best].elpd), float(np.sqrt(variance)))
    return out


def stacking_weights(elpd_i: FloatArray, sample_weight: FloatArray | None = None) -> FloatArray:
    """Weights of a mixture of predictive distributions that maximise its leave-one-out score Σ_n v_n log Σ_m w_m exp(elpd_nm).

    Each row's maximum is taken out first, which changes the score by a constant and keeps exp from vanishing in all models.

    Parameters
    ----------
    elpd_i : ndarray of shape (N, M)
        Pointwise leave-one-out log densities of M models.
    sample_weight : ndarray of shape (N,), optional

    Returns
    -------
    ndarray of shape (M,)
        On the simplex.

    References
    ----------
    Yao, Vehtari, Simpson & Gelman (2018), Using stacking to average Bayesian predictive distributions, Bayesian Analysis 13,
    917–1007, equation 4.
    """
    densities = np.exp(elpd_i - elpd_i.max(axis=1, keepdims=True))
    N, M = densities.shape
    share = np.full(N, 1.0 / N) if sample_weight is None else sample_weight / sample_weight.sum()
    if M == 1:
        return np.ones(1)
    tiny = np.finfo(float).tiny

    def loss(w: FloatArray) -> float:
        return -float(share @ np.log(np.maximum(densities @ w, tiny)))

    def gradient(w: FloatArray) -> FloatArray:
        return -(densities.T @ (share / np.maximum(densities @ w, tiny)))

    even = np.full(M, 1.0 / M)
    found = minimize(
        loss,
        even,
        jac=gradient,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * M,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones(M)},
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    weights = np.clip(found.x, 0.0, None) if np.isfinite(found.x).all() else even
    weights = weights / weights.sum() if weights.sum() > 0 else even
    if loss(weights) > loss(even):
        weights = even
    # EM for the proportions goes up from wherever that ended (Dempster, Laird & Rubin 1977).
    for _ in range(200):
        weights = weights * -gradient(weights)
        weights /= weights.sum()
    return np.asarray(weights)
