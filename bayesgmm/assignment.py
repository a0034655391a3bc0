"""Clustering that may answer "I do not know": a component for each row, or none, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.exceptions import warn_user

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = -1
"""Label of a row that is assigned to no component."""


def assign_rows(
    fit: Any,
    X: FloatArray,
    min_density: float | None = None,
    min_responsibility: float | None = None,
    min_log_density: float | None = None,
) -> pd.DataFrame:
    """Assign rows in two steps: whether the density is high enough, and whether a component dominates.

    Parameters
    ----------
    fit : GaussianMixture or BayesianGaussianMixture
        Fitted.
    X : ndarray of shape (N, D)
        Checked.
    min_density : float, optional
        Density, per unit volume of the features, below which a row is far from every component. Mind the units: see
        ``min_log_density``.
    min_responsibility : float, optional
        In (0, 1]. Highest responsibility below which a row is ambiguous.
    min_log_density : float, optional
        The logarithm of ``min_density``, where that would be too small for a number.

    Returns
    -------
    DataFrame
        ``component`` (−1 unknown), ``probability`` (highest responsibility, averaged over draws; of the nearest component also where
        the row is unknown), ``sd`` (its standard deviation over the draws; a posterior alone), ``log_density``, and ``reason``: "ok",
        "far" or "ambiguous".

    Raises
    ------
    ValueError
        If a limit lies outside its range, or both densities are given.
    """
    import pandas as pd

    limit = log_threshold(min_density, min_log_density)
    if min_responsibility is not None and not 0 < min_responsibility <= 1:
        raise ValueError(f"min_responsibility must lie in (0, 1]; got {min_responsibility}")
    if not hasattr(fit, "_draws"):
        r, density = kernel.responsibilities(X, fit._parameters)
        squares = None
    else:
        found = kernel.predictive_averages(X, *fit._draws.flat(), with_squares=True)
        r, density, squares = found.responsibilities, found.log_density[:, 0], found.squares
    component = np.argmax(r, axis=1)
    rows = np.arange(len(r))
    probability = r[rows, component]
    columns: dict[str, Any] = {"component": component, "probability": probability}
    if squares is not None:
        columns["sd"] = np.sqrt(np.maximum(squares[rows, component] - probability**2, 0.0))
    reason = reasons(density, probability, limit, min_responsibility)
    columns["component"] = np.where(reason == "ok", component, UNKNOWN)
    return pd.DataFrame(columns | {"log_density": density, "reason": reason})


def log_threshold(density: float | None, log_density: float | None, names: tuple[str, str] | None = None) -> float:
    """Log of a smallest density given as such or as its logarithm; −inf where neither is.

    Raises
    ------
    ValueError
        If both are given, the density is not positive, or its logarithm is not finite.
    """
    plain, log = names or ("min_density", "min_log_density")
    if density is not None and log_density is not None:
        raise ValueError(f"give {plain} or {log}, not both")
    if density is not None:
        if not (density > 0 and np.isfinite(density)):
            raise ValueError(
                f"{plain} must be positive and finite; got {density}. It is a density per unit volume of the features: for very small "
                f"ones give its logarithm, {log}"
            )
        return float(np.log(density))
    if log_density is not None:
        if not np.isfinite(log_density):
            raise ValueError(f"{log} must be finite; got {log_density}")
        return float(log_density)
    return -np.inf


def reasons(
    log_density: FloatArray, probability: FloatArray, limit: float, min_responsibility: float | None
) -> np.ndarray:
    """Say "far", "ambiguous" or "ok" of each row; far comes first."""
    ambiguous = (
        np.zeros(len(probability), dtype=bool) if min_responsibility is None else probability < min_responsibility
    )
    return np.where(log_density < limit, "far", np.where(ambiguous, "ambiguous", "ok")).astype(object)


def tell_unidentified(post: Any) -> None:
    """Warn where the draws' components cannot be told apart, so that averages of responsibilities say little."""
    if not post.diagnostics_.labels_identified:
        warn_user(
            "the draws' components cannot be told apart: responsibilities averaged over them say little of a component. "
            "coclustering and partition do not depend on labels",
            ConvergenceWarning,
        )
