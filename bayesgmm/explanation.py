"""Why a row is where it is: its nearest component, how far away that is, and which features put it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray, MixtureParameters

if TYPE_CHECKING:
    import pandas as pd

DISTANCE_DRAWS = 400
"""Draws that the interval of a distance is taken over: its ends are within some percent of its width."""

BLOCK_ROWS = 8192


def point_parameters(fit: Any) -> MixtureParameters:
    """Parameters of a maximum; posterior means of the relabelled draws where they are identified, else the mode."""
    if not hasattr(fit, "_draws"):
        own: MixtureParameters = fit._parameters
        return own
    K, D = fit.means_.shape
    factors = structure(fit.covariance_type).factors(fit.covariances_, K, D)
    return MixtureParameters(fit.weights_, fit.means_, factors)


def explain_rows(fit: Any, X: FloatArray, names: Sequence[str], ci_prob: float = 0.9, top: int = 3) -> pd.DataFrame:
    """Nearest component, Mahalanobis distance and conditional residuals of every row.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted.
    X : ndarray of shape (N, D)
        Checked.
    names : sequence of str
        Of the features.
    ci_prob : float, default 0.9
        Probability of the distance's equal-tailed interval.
    top : int, default 3
        Features that are named.

    Returns
    -------
    DataFrame
        ``nearest_component``: of smallest Mahalanobis distance; ``mahalanobis``: that distance √((x − μ)ᵀ Σ⁻¹ (x − μ)); for a posterior
        its interval over the draws, ``lower`` and ``upper`` (where components cannot be told apart: of the smallest distance in each
        draw); ``z_FEATURE``: the residual of each feature given all others, [Σ⁻¹(x − μ)]_j / √(Σ⁻¹)_jj, standard normal for a
        row of the component; ``features``: those of largest size, in words.

    Raises
    ------
    ValueError
        If ``ci_prob`` lies outside (0, 1).
    """
    import pandas as pd

    if not 0 < ci_prob < 1:
        raise ValueError(f"ci_prob must lie in (0, 1); got {ci_prob}")
    point = point_parameters(fit)
    distance = np.stack([_distance(X, point, k) for k in range(point.n_components)], axis=1)
    distance[:, point.weights <= 0] = np.inf
    nearest = np.argmin(distance, axis=1)
    columns: dict[str, Any] = {
        "nearest_component": nearest,
        "mahalanobis": distance[np.arange(len(X)), nearest],
    }
    if hasattr(fit, "_draws"):
        columns["lower"], columns["upper"] = _interval(fit, X, nearest, ci_prob)
    z = residuals(X, point, nearest)
    columns |= {f"z_{name}": z[:, j] for j, name in enumerate(names)}
    order = np.argsort(-np.abs(z), axis=1, kind="stable")[:, :top]
    columns["features"] = [
        ", ".join(f"{names[int(j)]} ({row[j]:+.1f})" for j in some) for row, some in zip(z, order, strict=True)
    ]
    return pd.DataFrame(columns)


def residuals(X: FloatArray, parameters: MixtureParameters, component: np.ndarray) -> FloatArray:
    """Conditional residuals of rows in their components.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    parameters : MixtureParameters
    component : ndarray of int of shape (N,)

    Returns
    -------
    ndarray of shape (N, D)
        (x_j − E[x_j given the other features]) / sd[x_j given the other features] = [Σ⁻¹(x − μ)]_j / √(Σ⁻¹)_jj.
    """
    z = np.empty(X.shape)
    for k in np.unique(component):
        member = component == k
        P = parameters.precision_factors[k]
        z[member] = ((X[member] - parameters.means[k]) @ P) @ (P / np.linalg.norm(P, axis=1)[:, None]).T
    return z


def _distance(X: FloatArray, parameters: MixtureParameters, k: int) -> FloatArray:
    y = (X - parameters.means[k]) @ parameters.precision_factors[k]
    return np.asarray(np.linalg.norm(y, axis=1))


def _interval(fit: Any, X: FloatArray, nearest: np.ndarray, ci_prob: float) -> tuple[FloatArray, FloatArray]:
    draws = [MixtureParameters(*each) for each in zip(*fit._draws.thinned(DISTANCE_DRAWS).flat(), strict=True)]
    identified = fit.diagnostics_.labels_identified
    ends = np.empty((2, len(X)))
    for start in range(0, len(X), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        rows, component = X[part], nearest[part]
        distance = np.full((len(draws), len(rows)), np.inf)
        for s, draw in enumerate(draws):
            for k in range(draw.n_components):
                if identified:
                    member = component == k
                    distance[s, member] = _distance(rows[member], draw, k)
                else:
                    np.minimum(distance[s], _distance(rows, draw, k), out=distance[s])
        ends[:, part] = np.quantile(distance, [(1 - ci_prob) / 2, (1 + ci_prob) / 2], axis=0)
    return ends[0], ends[1]
