"""Criteria for the choice of a model, as pure functions on arrays: AIC, AICc, BIC and ICL of a maximum, WAIC and LOO of draws.

Signs and scales. AIC, AICc, BIC and ICL are on the deviance scale (−2 log), smaller is better, as in scikit-learn; mclust's BIC
and ICL have the opposite sign. WAIC and LOO are expected log predictive densities summed over the rows: the log scale, higher is
better, as in ArviZ 1.x and in R's ``elpd_waic`` and ``elpd_loo`` (``waic`` and ``looic`` there are −2 times these).

AIC, AICc, BIC and ICL assume a maximum of the likelihood: at a maximum a posteriori, or at a near-singular optimum, they are a
number but no longer the criterion. Parameters are counted by ``bayesgmm.core.covariance.structure(name).n_parameters(K, D)``.

Nothing of size draws × rows is needed at once: :class:`bayesgmm.pointwise.PointwiseCriteria` takes blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy

from bayesgmm.pointwise import PointwiseCriteria

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDDataLOO
    from xarray import DataArray

    from bayesgmm.elpd import ELPDDataWAIC


def aic(log_likelihood: float, n_parameters: float) -> float:
    """Akaike's information criterion −2 log L + 2 p; smaller is better.

    Parameters
    ----------
    log_likelihood : float
        Maximum of the log-likelihood, summed over the rows.
    n_parameters : float
        Number of free parameters p.

    Returns
    -------
    float

    References
    ----------
    Akaike (1974), A new look at the statistical model identification, IEEE Trans. Automatic Control 19, 716–723.
    """
    return -2.0 * log_likelihood + 2.0 * n_parameters


def aicc(log_likelihood: float, n_parameters: float, n_observations: float) -> float:
    """AIC corrected for small samples: AIC + 2 p (p + 1) / (N − p − 1); smaller is better.

    Parameters
    ----------
    log_likelihood : float
        Maximum of the log-likelihood, summed over the rows.
    n_parameters : float
        Number of free parameters p.
    n_observations : float
        Number of rows N (the sum of their weights).

    Returns
    -------
    float
        Infinity where N ≤ p + 1: the correction has its pole at p + 1 = N, and beyond it would reward parameters.

    References
    ----------
    Hurvich & Tsai (1989), Regression and time series model selection in small samples, Biometrika 76, 297–307.
    """
    spare = n_observations - n_parameters - 1.0
    if spare <= 0:
        return float("inf")
    return aic(log_likelihood, n_parameters) + 2.0 * n_parameters * (n_parameters + 1.0) / spare


def bic(log_likelihood: float, n_parameters: float, n_observations: float) -> float:
    """Bayesian information criterion −2 log L + p log N; smaller is better.

    Parameters
    ----------
    log_likelihood : float
        Maximum of the log-likelihood, summed over the rows.
    n_parameters : float
        Number of free parameters p.
    n_observations : float
        Number of rows N (the sum of their weights); positive.

    Returns
    -------
    float

    References
    ----------
    Schwarz (1978), Estimating the dimension of a model, Annals of Statistics 6, 461–464.
    """
    if not n_observations > 0:
        raise ValueError(f"n_observations must be positive; got {n_observations}")
    return -2.0 * log_likelihood + n_parameters * float(np.log(n_observations))


def icl(
    log_likelihood: float,
    n_parameters: float,
    n_observations: float,
    responsibilities: ArrayLike,
    sample_weight: ArrayLike | None = None,
    definition: str = "hard",
) -> float:
    """Integrated completed likelihood: BIC plus twice what the labels leave open; smaller is better.

    Parameters
    ----------
    log_likelihood : float
        Maximum of the log-likelihood, summed over the rows.
    n_parameters : float
        Number of free parameters.
    n_observations : float
        Number of rows N (the sum of their weights).
    responsibilities : array-like of shape (N, K)
        p(z_n = k given x_n); each row sums to 1.
    sample_weight : array-like of shape (N,), optional
        Frequency weights.
    definition : {"hard", "entropy"}, default "hard"
        - "hard": BIC − 2 Σ_n v_n log max_k r_nk. The most probable label stands in for the true one; mclust's ``icl`` (with
          the opposite sign) and :meth:`bayesgmm.GaussianMixture.icl`.
        - "entropy": BIC − 2 Σ_n v_n Σ_k r_nk log r_nk. The labels' entropy is the penalty (Biernacki et al. 2000 with
          McLachlan & Peel's 2000 approximation); never smaller than "hard".

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the responsibilities are no table of probabilities, or the definition is unknown.

    References
    ----------
    Biernacki, Celeux & Govaert (2000), Assessing a mixture model for clustering with the integrated completed likelihood, IEEE
    Trans. Pattern Analysis and Machine Intelligence 22, 719–725.
    McLachlan & Peel (2000), Finite Mixture Models, Wiley, section 6.10.
    """
    r = np.asarray(responsibilities, dtype=float)
    if r.ndim != 2 or not np.all(np.isfinite(r)) or np.any(r < 0) or np.any(np.abs(r.sum(axis=-1) - 1) > 1e-6):
        raise ValueError(
            f"responsibilities must be a table (rows × components) of probabilities with row sums 1; got shape {r.shape}"
        )
    if definition == "hard":
        logs = np.log(r.max(axis=1))
    elif definition == "entropy":
        logs = xlogy(r, r).sum(axis=1)
    else:
        raise ValueError(f'definition must be "hard" or "entropy"; got {definition!r}')
    total = float(logs.sum() if sample_weight is None else np.asarray(sample_weight, dtype=float) @ logs)
    return bic(log_likelihood, n_parameters, n_observations) - 2.0 * total


def waic(log_likelihood: Any, var_name: str | None = None) -> ELPDDataWAIC:
    """Widely applicable information criterion, as an expected log predictive density (log scale, higher is better).

    elpd_waic = Σ_n [log mean_s p(x_n given θ_s) − var_s log p(x_n given θ_s)].

    Parameters
    ----------
    log_likelihood : array-like of shape (C, S, N), DataTree, or iterator of arrays of shape (C, S, n)
        Pointwise log-likelihood of N rows under S draws of C chains (two axes are one chain), a DataTree with the group
        ``log_likelihood``, or a stream of blocks of rows.
    var_name : str, optional
        Variable of the group, where it has several.

    Returns
    -------
    ELPDData
        ``kind`` "waic"; ``elpd``, ``se`` (with N − 1, as R's loo), ``p`` (the sum of the variances over draws, with S − 1),
        pointwise ``elpd_i`` and ``p_waic_i``; ``warning`` tells whether a variance exceeds 0.4. ``az.compare`` takes it.

    Raises
    ------
    ValueError
        If a value is NaN or infinite; the row is named.

    Warns
    -----
    CriterionWarning
        If a pointwise variance exceeds 0.4.

    References
    ----------
    Watanabe (2010), Asymptotic equivalence of Bayes cross validation and widely applicable information criterion in singular
    learning theory, JMLR 11, 3571–3594.
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
    Statistics and Computing 27, 1413–1432, equations 11 to 13 and section 2.2.
    """
    blocks, like, _ = _blocks(log_likelihood, var_name)
    found = PointwiseCriteria(with_loo=False)
    for block in blocks:
        found.add(block)
    return found.waic(like)


def loo(log_likelihood: Any, r_eff: float | None = None, var_name: str | None = None) -> ELPDDataLOO:
    """Leave-one-out expected log predictive density by Pareto-smoothed importance sampling (log scale, higher is better).

    Parameters
    ----------
    log_likelihood : array-like of shape (C, S, N), DataTree, or iterator of arrays of shape (C, S, n)
        Pointwise log-likelihood of N rows under S draws of C chains (two axes are one chain), a DataTree with the group
        ``log_likelihood``, or a stream of blocks of rows.
    r_eff : float, optional
        Relative efficiency of the draws, effective sample size / S. Default: 1 for a single chain; for a DataTree with a
        posterior the mean over its variables, as ``az.loo`` does (so the draws must be relabelled); for arrays the mean over
        (at most 200) rows of that of the likelihood, as R's ``relative_eff``; for a stream that of its first block.
    var_name : str, optional
        Variable of the group, where it has several.

    Returns
    -------
    ELPDDataLOO
        As ``az.loo(..., pointwise=True)``: ``elpd``, ``se``, ``p``, ``elpd_i``, ``pareto_k``, ``good_k`` = min(1 − 1/log₁₀ S, 0.7),
        ``warning``; ``az.compare`` takes it. Log weights are not kept.

    Raises
    ------
    ValueError
        If a value is NaN or infinite (the row is named), or there are fewer than 25 draws.

    Warns
    -----
    CriterionWarning
        If k̂ of a row exceeds ``good_k``; the rows are named.

    References
    ----------
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
    Statistics and Computing 27, 1413–1432.
    Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    blocks, like, of_posterior = _blocks(log_likelihood, var_name)
    found = PointwiseCriteria(of_posterior if r_eff is None else r_eff)
    for block in blocks:
        found.add(block)
    return found.loo(like)


def posterior_efficiency(tree: Any) -> float | None:
    """Relative effective sample size, averaged over the variables of a DataTree's posterior; None where it has none.

    The definition is that of ``az.loo``. Parameters of single components enter, so the draws must be relabelled.
    """
    if "posterior" not in getattr(tree, "children", ()):
        return None
    import arviz_stats  # noqa: F401  (registers the accessor)

    dataset = tree["posterior"].to_dataset()
    if dataset.sizes["chain"] == 1:
        return 1.0
    sizes = dataset.azstats.ess(method="mean")
    values = np.concatenate([np.ravel(sizes[name].values) for name in sizes.data_vars])
    values = values[np.isfinite(values)]
    return float(values.mean()) / (dataset.sizes["chain"] * dataset.sizes["draw"]) if len(values) else 1.0


def _blocks(source: Any, var_name: str | None) -> tuple[Iterable[Any], DataArray | None, float | None]:
    """Blocks of rows, an array with the dims of the rows, and the posterior's relative efficiency (where there is one)."""
    if isinstance(source, Iterator):
        return source, None, None
    if not hasattr(source, "children"):
        return [np.asarray(source, dtype=float)], None, None
    if "log_likelihood" not in source.children:
        raise ValueError(
            "the DataTree has no group log_likelihood: call compute_log_likelihood() on the fit, or give an array"
        )
    group = source["log_likelihood"]
    names = list(group.data_vars)
    if var_name is None and len(names) != 1:
        raise ValueError(f"the group log_likelihood has the variables {', '.join(map(str, names))}: give var_name")
    values = group[names[0] if var_name is None else var_name]
    rest = [dim for dim in values.dims if dim not in ("chain", "draw")]
    ordered = values.transpose("chain", "draw", *rest)
    array = np.asarray(ordered.values, dtype=float).reshape(*ordered.shape[:2], -1)
    return [array], ordered.isel(chain=0, draw=0, drop=True), posterior_efficiency(source)
