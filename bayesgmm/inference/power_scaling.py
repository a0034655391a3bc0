"""What a posterior owes to its prior: prior and likelihood raised to a power near 1, and how far each quantity moves.

References
----------
Kallioinen, N., Paananen, T., Bürkner, P.-C. & Vehtari, A. (2024). Detecting and diagnosing prior and likelihood sensitivity with
power-scaling. Statistics and Computing 34, 57.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bayesgmm.core.blocks import LogLikelihoods
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.inference.diagnostics import label_invariants, scalar_parameters
from bayesgmm.inference.posterior import feature_pairs, log_prior
from bayesgmm.inference.summed import TableRows

THRESHOLD = 0.05
"""Sensitivity from which on a quantity is flagged (Kallioinen et al. 2024)."""

LARGEST_WORK = 400_000_000
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
    import arviz_base
    from arviz_stats import psense

    draws = post._draws.thinned(max(FEWEST_DRAWS, LARGEST_WORK // max(1, len(post._X))))
    kind = structure(post.covariance_type)
    sets = list(map(MixtureParameters, *draws.flat()))
    shape = draws.weights.shape[:2]
    likelihood = np.asarray(TableRows(post._X, post._sample_weight).total(LogLikelihoods(sets))).reshape(shape)
    prior = log_prior(draws, post.prior_, kind)
    if post.diagnostics_.labels_identified:
        values = scalar_parameters(draws, kind, names, feature_pairs(names))
    else:
        values = label_invariants(draws, likelihood + prior)
        values.pop("log_posterior")
    # By number: a tree takes no name with a slash.
    moving = {f"q{i}": value for i, value in enumerate(values.values()) if np.ptp(value) > 0}
    tree = arviz_base.from_dict(
        {"posterior": moving, "log_prior": {"prior": prior}, "log_likelihood": {"x": likelihood}}
    )
    columns = {group: psense(tree, group=group) for group in ("prior", "likelihood")}
    table = pd.DataFrame(
        {group: {name: float(found[name]) for name in moving} for group, found in columns.items()},
        index=[f"q{i}" for i in range(len(values))],
    )
    table = table.fillna(0.0).set_axis(list(values)).rename_axis("quantity")
    with_prior, with_data = table["prior"] >= THRESHOLD, table["likelihood"] >= THRESHOLD
    table["diagnosis"] = np.select([with_prior & with_data, with_prior], [CONFLICT, STRONG], "")
    return table


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
