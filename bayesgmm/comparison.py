"""EM and the posterior of the same mixture in one table: estimates, uncertainties, and where they part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm.core.covariance import CovarianceStructure, structure
from bayesgmm.core.intervals import named_intervals
from bayesgmm.core.parameters import FloatArray, MixtureParameters
from bayesgmm.exceptions import warn_user

if TYPE_CHECKING:
    import pandas as pd

    from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
    from bayesgmm.estimators.gaussian_mixture import GaussianMixture

SHIFT_LIMIT = 0.5
"""Posterior standard deviations between EM's value and the posterior median from which on the two part."""

RATIO_LIMITS = (0.67, 1.5)
"""Ratios of the posterior standard deviation to EM's standard error outside of which the two part."""


def compare(
    em: GaussianMixture,
    post: BayesianGaussianMixture,
    X: ArrayLike | None = None,
    ci_prob: float = 0.9,
    *,
    sample_weight: ArrayLike | None = None,
    method: str = "information",
) -> pd.DataFrame:
    """EM with standard errors beside the posterior, one row per weight, mean, standard deviation and correlation.

    Parameters
    ----------
    em : GaussianMixture
        Fitted, to the same data. Its components are put in the posterior's order.
    post : BayesianGaussianMixture
        Fitted or loaded.
    X : array-like of shape (N, D), optional
        Data for EM's standard errors. Default: the data (and weights) that the posterior was fitted to.
    ci_prob : float, default 0.9
        Probability of both intervals.
    sample_weight : array-like of shape (N,), optional
        Frequency weights that go with ``X``.
    method : {"information", "sandwich", "bootstrap"}, default "information"
        How EM's standard errors are found; see :meth:`GaussianMixture.standard_errors`.

    Returns
    -------
    DataFrame
        Indexed by the parameter's name, as in ``post.summary()``.

        - ``em``, ``em_se``, ``em_lower``, ``em_upper``: EM, its standard error and the interval that
          :meth:`GaussianMixture.intervals` makes of the two. An infinite standard error means that the data do not determine the
          parameter.
        - ``posterior_median``, ``posterior_sd``, ``lower``, ``upper``: of the draws; the interval is equal-tailed.
        - ``shift`` = (median − em) / posterior_sd, and ``sd_ratio`` = posterior_sd / em_se. A constant (the weight at K = 1)
          has shift 0 and ratio NaN.
        - ``parts``: "location" where the shift exceeds 0.5 or EM lies outside the posterior interval, "spread" where the ratio
          lies outside 0.67 … 1.5, "both", or "".

        ``attrs`` has ``ci_prob``, ``method`` and ``notes`` (what is wrong with the standard errors, in words).

    Raises
    ------
    TypeError
        If the first argument is no EM fit or the second no posterior.
    sklearn.exceptions.NotFittedError
        If one of them is not fitted.
    ValueError
        If they differ in components, features or covariance_type, ``ci_prob`` lies outside (0, 1), or weights come without
        ``X``.

    Warns
    -----
    ConvergenceWarning
        If the posterior's components cannot be told apart, so that its rows mean little.

    Notes
    -----
    EM's interval leans on a quadratic likelihood, the posterior's on the prior as well. Under the default priors the two
    agree where components hold many rows; they part for small components, near the boundary of the weights, and where rows
    do not say which component they come from.

    References
    ----------
    Louis (1982), Finding the observed information matrix when using the EM algorithm, Journal of the Royal Statistical Society B 44,
    226–233.

    Examples
    --------
    >>> from bayesgmm import BayesianGaussianMixture, GaussianMixture, compare
    >>> from bayesgmm.datasets import load_faithful
    >>> X = load_faithful()
    >>> em = GaussianMixture(2, random_state=0).fit(X)
    >>> post = BayesianGaussianMixture(2, method="laplace", random_state=0).fit(X)
    >>> compare(em, post).loc["weights[0]", ["em", "em_se", "posterior_median"]].round(2).tolist()
    [0.64, 0.03, 0.64]
    """
    import pandas as pd

    from bayesgmm.inference.diagnostics import scalar_parameters
    from bayesgmm.inference.posterior import feature_pairs
    from bayesgmm.inference.summary import parameter_values

    check_pair(em, post)
    if not 0 < ci_prob < 1:
        raise ValueError(f"ci_prob must lie between 0 and 1; got {ci_prob}")
    if X is None:
        if sample_weight is not None:
            raise ValueError("sample_weight goes with X: give X too, or neither (the posterior's own are used)")
        X, sample_weight = _fitted_data(em, post)
    kind = structure(em.covariance_type)
    names = _feature_names(em, post)
    pairs = feature_pairs(names)
    errors = em.standard_errors(X, method, sample_weight)
    order = posterior_order(em, post, kind)
    matched = MixtureParameters(em.weights_[order], em.means_[order], em._parameters.precision_factors[order])
    estimates = parameter_values(matched, kind, names)
    spreads = errors.by_name(names, order)
    ends = named_intervals(em._parameters, em.covariances_, errors, ci_prob, names, order)
    rows = {
        name: _row(estimates[name], spreads[name], ends[name], draws, ci_prob)
        for name, draws in scalar_parameters(post._draws, kind, names, pairs).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")
    table.attrs.update(ci_prob=ci_prob, method=method, notes=errors.notes)
    return table


def check_pair(em: Any, post: Any) -> None:
    """Refuse what are not EM and the posterior of the same mixture.

    Parameters
    ----------
    em : GaussianMixture
    post : BayesianGaussianMixture

    Raises
    ------
    TypeError
        If the first is no EM fit or the second no posterior.
    sklearn.exceptions.NotFittedError
        If one of them is not fitted.
    ValueError
        If they differ in components, features or covariance_type.

    Warns
    -----
    ConvergenceWarning
        If the posterior's components cannot be told apart.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_is_fitted

    if not hasattr(em, "standard_errors") or not hasattr(post, "coclustering"):
        raise TypeError(
            "compare(em, post) takes a GaussianMixture and then a BayesianGaussianMixture; got "
            f"{type(em).__name__} and {type(post).__name__}"
        )
    check_is_fitted(em)
    check_is_fitted(post)
    if em.covariance_type != post.covariance_type:
        raise ValueError(
            f"covariance_type differs: {em.covariance_type!r} in EM, {post.covariance_type!r} in the posterior"
        )
    K, D = em.means_.shape
    shape = tuple(post._draws.means.shape[2:])
    if shape != (K, D):
        raise ValueError(
            f"the two are different mixtures: {K} components and {D} features in EM, {shape[0]} components and {shape[1]} "
            "features in the posterior"
        )
    ours, theirs = getattr(em, "feature_names_in_", None), getattr(post, "feature_names_in_", None)
    if ours is not None and theirs is not None and list(ours) != list(theirs):
        raise ValueError(
            f"the features differ: {', '.join(map(str, ours))} in EM, {', '.join(map(str, theirs))} in the posterior"
        )
    diagnostics = getattr(post, "diagnostics_", None)
    if diagnostics is not None and not diagnostics.labels_identified:
        warn_user(
            "the posterior's components cannot be told apart from draw to draw, so a comparison component by component means "
            "little: use fewer components",
            ConvergenceWarning,
        )


def _fitted_data(em: Any, post: Any) -> tuple[ArrayLike, FloatArray | None]:
    """The posterior's data, as a table with the column names that EM expects, and its weights."""
    import pandas as pd

    X, v = getattr(post, "_X", None), getattr(post, "_sample_weight", None)
    if X is None:
        tree = getattr(post, "idata_", None)
        if tree is None or "observed_data" not in tree.children:
            raise ValueError("the posterior does not hold its data: give X")
        X = np.ascontiguousarray(tree["observed_data"]["x"].values)
        constant = tree.children.get("constant_data")
        v = constant["sample_weight"].values if constant is not None and "sample_weight" in constant else None
    columns = getattr(em, "feature_names_in_", None)
    return (X if columns is None else pd.DataFrame(X, columns=columns)), v


def _feature_names(em: Any, post: Any) -> list[str]:
    from bayesgmm.estimators.validation import feature_names

    return feature_names(em if getattr(post, "feature_names_in_", None) is None else post)


def posterior_order(em: Any, post: Any, kind: CovarianceStructure) -> np.ndarray:
    """Order of EM's components that matches the posterior's.

    Parameters
    ----------
    em : GaussianMixture
    post : BayesianGaussianMixture
    kind : CovarianceStructure
        Of both.

    Returns
    -------
    ndarray of int of shape (K,)
    """
    from bayesgmm.inference.relabel import relabel

    K, D = em.means_.shape
    center = (post.weights_, post.means_, kind.expand(np.asarray(post.covariances_), K, D))
    matrices = kind.expand(em.covariances_, K, D)
    return relabel(em.weights_[None], em.means_[None], matrices[None], center, covariance_type="full")[0]


def _row(
    value: float, se: float, ends: tuple[float, float], draws: FloatArray, ci_prob: float
) -> dict[str, float | str]:
    """EM beside the posterior for one parameter."""
    tail = (1 - ci_prob) / 2
    lower, median, upper = (float(q) for q in np.quantile(draws, [tail, 0.5, 1 - tail]))
    sd = float(np.std(draws, ddof=1))
    with np.errstate(divide="ignore"):
        shift = 0.0 if median == value else float(np.float64(median - value) / sd)
    ratio = sd / se if se > 0 else np.nan
    return {
        "em": value,
        "em_se": se,
        "em_lower": ends[0],
        "em_upper": ends[1],
        "posterior_median": median,
        "posterior_sd": sd,
        "lower": lower,
        "upper": upper,
        "shift": shift,
        "sd_ratio": ratio,
        "parts": _parts(abs(shift) > SHIFT_LIMIT or not lower <= value <= upper, ratio),
    }


def _parts(location: bool, ratio: float) -> str:
    """In what respect the two disagree."""
    spread = bool(ratio < RATIO_LIMITS[0] or ratio > RATIO_LIMITS[1])
    if location and spread:
        return "both"
    return "location" if location else "spread" if spread else ""
