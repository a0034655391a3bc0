"""The table of a posterior: EM's mode beside posterior mean, sd, interval and diagnostics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bayesgmm.core.covariance import CovarianceStructure
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.inference.diagnostics import Diagnostics, scalar_parameters
from bayesgmm.inference.posterior import PosteriorDraws, feature_pairs


def parameter_values(
    parameters: MixtureParameters, kind: CovarianceStructure, names: Sequence[str]
) -> dict[str, float]:
    """Weights, means, standard deviations and correlations of one mixture by their names in the summary."""
    single = PosteriorDraws(
        parameters.weights[None, None], parameters.means[None, None], parameters.precision_factors[None, None]
    )
    return {name: float(v[0, 0]) for name, v in scalar_parameters(single, kind, names, feature_pairs(names)).items()}


def posterior_summary(
    draws: PosteriorDraws,
    mode: MixtureParameters,
    kind: CovarianceStructure,
    names: Sequence[str],
    diagnostics: Diagnostics,
    ci_prob: float = 0.9,
) -> pd.DataFrame:
    """Summary of relabelled draws.

    Parameters
    ----------
    draws : PosteriorDraws
    mode : MixtureParameters
        EM's mode.
    kind : CovarianceStructure
    names : sequence of str
        Feature names.
    diagnostics : Diagnostics
    ci_prob : float, default 0.9
        Probability of the equal-tailed interval.

    Returns
    -------
    DataFrame
        Columns map, mean, median, sd, the two interval ends, ess_bulk, ess_tail, r_hat.

    Raises
    ------
    ValueError
        If ``ci_prob`` lies outside (0, 1).
    """
    if not 0 < ci_prob < 1:
        raise ValueError(f"ci_prob must lie between 0 and 1; got {ci_prob}")
    tail = (1 - ci_prob) / 2
    ends = [f"{100 * tail:.3g}%", f"{100 * (1 - tail):.3g}%"]
    at_mode = parameter_values(mode, kind, names)
    rows = {}
    for name, values in scalar_parameters(draws, kind, names, feature_pairs(names)).items():
        low, median, high = np.quantile(values, [tail, 0.5, 1 - tail])
        rows[name] = {
            "map": at_mode[name],
            "mean": values.mean(),
            "median": median,
            "sd": values.std(ddof=1),
            ends[0]: low,
            ends[1]: high,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.join(diagnostics.parameters[["ess_bulk", "ess_tail", "r_hat"]]).rename_axis("parameter")
