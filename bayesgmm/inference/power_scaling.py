"""What a posterior owes to its prior: prior and likelihood raised to a power near 1, and how far each quantity moves.

References
----------
Nguyen, H.-V. & Vreeken, J. (2015). Non-parametric Jensen–Shannon divergence. ECML PKDD 2015, 173–189.
Kallioinen, N., Paananen, T., Bürkner, P.-C. & Vehtari, A. (2024). Detecting and diagnosing prior and likelihood sensitivity with
power-scaling. Statistics and Computing 34, 57.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from bayesgmm.core.blocks import LogLikelihoods
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.inference.diagnostics import label_invariants, scalar_parameters
from bayesgmm.inference.posterior import feature_pairs
from bayesgmm.inference.summed import TableRows

THRESHOLD = 0.05
"""Sensitivity from which on a quantity is flagged (Kallioinen et al. 2024)."""

ALPHAS = (0.99, 1.01)
"""Powers between which the distance is taken, as ``az.psense`` does."""

LARGEST_WORK = 100_000_000
"""Draws × rows whose log-likelihoods are added up; of longer tables fewer draws, evenly spaced, are used."""

FEWEST_DRAWS = 500

CONFLICT, STRONG = "possible conflict of prior and data", "strong prior or weak data"
"""Diagnoses: the quantity moves with both, or with the prior alone."""


def prior_sensitivity(post: Any, names: Sequence[str]) -> pd.DataFrame:
    """Sensitivity of every quantity of a posterior to its prior and to its likelihood.

    Parameters
    ----------
    post : BayesianGaussianMixture
        Fitted.
    names : sequence of str
        Feature names.

    Returns
    -------
    DataFrame
        ``prior`` and ``likelihood`` (cumulative Jensen–Shannon distance per doubling of the power, by Pareto-smoothed
        importance sampling), and ``diagnosis``: empty, or where ``prior`` ≥ 0.05 "strong prior or weak data", or "possible conflict of
        prior and data" where ``likelihood`` ≥ 0.05 too. One row for each weight, mean, standard deviation and correlation; where
        components cannot be told apart, for each label-invariant quantity.
    """
    n_draws = max(FEWEST_DRAWS, LARGEST_WORK // max(1, len(post._X)))
    draws = post._draws.thinned(n_draws)
    kind = structure(post.covariance_type)
    sets = list(map(MixtureParameters, *draws.flat()))
    shape = draws.weights.shape[:2]
    likelihood = np.asarray(TableRows(post._X, post._sample_weight).total(LogLikelihoods(sets))).reshape(shape)
    prior = post.idata_["log_prior"]["prior"].values[:, post._draws.thinning(n_draws)]
    if post.diagnostics_.labels_identified:
        values = scalar_parameters(draws, kind, names, feature_pairs(names))
    else:
        values = label_invariants(draws, likelihood + prior)
        values.pop("log_posterior")
    table = pd.DataFrame(
        {"prior": sensitivities(values, prior), "likelihood": sensitivities(values, likelihood)},
        index=pd.Index(list(values), name="quantity"),
    )
    with_prior, with_data = table["prior"] >= THRESHOLD, table["likelihood"] >= THRESHOLD
    table["diagnosis"] = np.select([with_prior & with_data, with_prior], [CONFLICT, STRONG], "")
    return table


def sensitivities(values: Mapping[str, FloatArray], log_density: FloatArray) -> list[float]:
    """How far draws of each quantity move per doubling of the power of a density: ``az.psense``, many quantities at once.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (chains, draws)
    log_density : ndarray of shape (chains, draws)
        Of the prior, or of the likelihood.

    Returns
    -------
    list of float
        0 for what is the same in all draws.
    """
    weights = [_scaled_weights(log_density, alpha) for alpha in ALPHAS]
    # As the power falls the distance is counted as negative.
    per_doubling = [0.5 / abs(np.log2(alpha)) for alpha in ALPHAS]
    S = log_density.size
    base = np.linspace(1 / S, 1 - 1 / S, S - 1)
    found = []
    for value in values.values():
        order = np.argsort(value, axis=None)
        widths = np.diff(value.ravel()[order])
        total = 0.0
        for w, factor in zip(weights, per_doubling, strict=True):
            cumulative = np.cumsum(w[order] / w.sum())
            # From below, and from above: −value has the other tails.
            tails = cumulative[:-1], (1 - cumulative[:-1])[::-1]
            total += factor * max(_distance(base, tails[0], widths), _distance(base, tails[1], widths[::-1]))
        found.append(float(total))
    return found


def _distance(p: FloatArray, q: FloatArray, widths: FloatArray) -> float:
    """Cumulative Jensen–Shannon distance of two distribution functions between points that lie ``widths`` apart (Nguyen & Vreeken 2015)."""
    whole = widths @ (p + q)
    if not whole > 0:
        return 0.0
    q = np.maximum(q, np.finfo(float).tiny)
    middle = np.log2(0.5 * (p + q))
    divergences = (widths @ (p * (np.log2(p) - middle)), widths @ (q * (np.log2(q) - middle)))
    difference = 0.5 / np.log(2) * (widths @ (q - p))
    return float(np.sqrt((max(0.0, divergences[0] + difference) + max(0.0, divergences[1] - difference)) / whole))


def sensitivity_sentence(table: pd.DataFrame) -> str:
    """What a table of :func:`prior_sensitivity` comes to."""
    flagged = table.index[table["diagnosis"] != ""]
    if not len(flagged):
        return f"Power scaling moves no quantity by {THRESHOLD:g} or more when the prior is made stronger or weaker: the data decide."
    named = ", ".join(f"{name} ({table['prior'][name]:.2g}; {table['diagnosis'][name]})" for name in flagged[:8])
    more = f" and {len(flagged) - 8} more" if len(flagged) > 8 else ""
    return (
        f"Power scaling shows quantities that move with the prior: {named}{more}. Try another prior, and see whether what you conclude "
        "survives."
    )


def _scaled_weights(log_density: FloatArray, alpha: float) -> FloatArray:
    """Importance weights (S,) of draws for a density to the power α, Pareto-smoothed where their tail has more than one value."""
    from arviz_stats.base import array_stats

    try:
        with warnings.catch_warnings():
            # Of few draws in the tail: a sensitivity says nothing of its own error.
            warnings.simplefilter("ignore", UserWarning)
            return np.exp(array_stats.power_scale_lw(log_density, alpha=alpha, axis=(-2, -1))).ravel()
    except ValueError:
        # Resampled draws that are few distinct ones.
        ratios = (alpha - 1) * log_density.ravel()
        return np.exp(ratios - logsumexp(ratios))
