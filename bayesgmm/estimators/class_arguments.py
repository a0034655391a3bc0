"""What a user says of classes: their priors, their numbers of components, the label of rejected rows. Checked here, once."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bayesgmm import criteria
from bayesgmm.core import em, kernel
from bayesgmm.core.classes import ClassLayout
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
from bayesgmm.estimators.gaussian_mixture import GaussianMixture
from bayesgmm.estimators.validation import n_distinct_rows
from bayesgmm.exceptions import DataWarning, warn_user

CRITERIA = ("bic", "aic", "icl")

Template = GaussianMixture | BayesianGaussianMixture


def by_class(values: Mapping[Any, Any], classes: np.ndarray, name: str) -> list[Any]:
    """Values of a dict in the order of the classes.

    Raises
    ------
    ValueError
        If the dict lacks a class, or has one that is not there.
    """
    known = classes.tolist()
    unseen, missing = [c for c in values if c not in known], [c for c in known if c not in values]
    if unseen or missing:
        what = f"has {_quoted(unseen)}, not among the labels of y" if unseen else f"lacks {_quoted(missing)}"
        raise ValueError(f"{name} {what}; the classes are {_quoted(known)}")
    return [values[c] for c in known]


def check_priors(priors: ArrayLike | Mapping[Any, float] | None, classes: np.ndarray) -> FloatArray | None:
    """Given class priors (C,), or None.

    Raises
    ------
    ValueError
        If classes are missing or not there, a prior is not positive, or they do not sum to 1.
    """
    if priors is None:
        return None
    if isinstance(priors, Mapping):
        priors = by_class(priors, classes, "priors")
    values = np.asarray(priors, dtype=float)
    if values.shape != classes.shape:
        raise ValueError(f"priors must have one value for each of the {len(classes)} classes; got shape {values.shape}")
    if not (np.isfinite(values).all() and np.all(values > 0)):
        raise ValueError(f"priors must be positive; got {values.tolist()}")
    if abs(values.sum() - 1) > 1e-8:
        raise ValueError(f"priors must sum to 1; they sum to {values.sum():.6g}")
    return np.asarray(values / values.sum())


def check_reject(reject: float | None, level: float | None, label: Any, classes: np.ndarray) -> Any:
    """Label of rejected rows: given, or −1 for numbers, "unknown" for text, else None.

    Raises
    ------
    ValueError
        If both a rate and a level are given, the level is not finite, or the label is a class.
    """
    if reject is not None and level is not None:
        raise ValueError("give reject (a rate) or reject_log_density (a level), not both")
    if level is not None and not np.isfinite(level):
        raise ValueError(f"reject_log_density must be finite; got {level}")
    if label is None:
        label = {"i": -1, "u": -1, "f": -1.0, "U": "unknown"}.get(classes.dtype.kind)
    if (reject is not None or level is not None) and any(label == c for c in classes.tolist()):
        raise ValueError(f"reject_label {label!r} is one of the classes: give another reject_label")
    return label


def numbers_of_components(
    wanted: int | Mapping[Any, int] | str,
    max_components: int,
    X: FloatArray,
    v: FloatArray | None,
    classes: np.ndarray,
    layout: ClassLayout,
    template: Template,
    rng: np.random.Generator,
) -> tuple[tuple[int, ...], dict[Any, dict[int, float]]]:
    """K_c, given or chosen by a criterion, with a look at whether each class has rows enough.

    Parameters
    ----------
    wanted : int, mapping or {"bic", "aic", "icl"}
    max_components : int
        The most that a criterion may choose.
    X : ndarray of shape (N, D)
        Sorted by class.
    v : ndarray of shape (N,) or None
    classes : ndarray of shape (C,)
    layout : ClassLayout
        Of the rows.
    template : GaussianMixture or BayesianGaussianMixture
        Settings of the fit.
    rng : numpy.random.Generator

    Returns
    -------
    numbers : tuple of int
    values : dict
        By class, the criterion of each number of components; empty where none chose.

    Raises
    ------
    ValueError
        If a class has fewer distinct labelled rows than components, or a single one where nothing regularises its covariance.
    """
    labels = classes.tolist()
    if isinstance(wanted, Mapping):
        numbers = by_class(wanted, classes, "n_components")
        for label, number in zip(labels, numbers, strict=True):
            if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
                raise ValueError(f"n_components of class {label!r} must be an integer of at least 1; got {number!r}")
    else:
        numbers = [1 if isinstance(wanted, str) else wanted] * len(labels)
    # Where covariances are shared or have a prior, a class may do with one row.
    alone = isinstance(template, GaussianMixture) and template.prior is None and template.covariance_type != "tied"
    for label, rows, number in zip(labels, layout.labelled, numbers, strict=True):
        n = n_distinct_rows(X[rows] if v is None else X[rows][v[rows] > 0], max(number, 2))
        if n < number:
            raise ValueError(
                f"class {label!r} has {n} distinct labelled row{'s' * (n != 1)} for {number} component{'s' * (number != 1)}: "
                "label more rows of this class or give it fewer components (n_components takes a dict)"
            )
        if alone and n < 2:
            message = (
                f"class {label!r} has a single distinct labelled row, which has no covariance but reg_covar: label more rows of this "
                "class, use a prior (estimator=GaussianMixture(prior='default')) or covariance_type='tied'"
            )
            if template.reg_covar == 0:
                raise ValueError(message)
            warn_user(message, DataWarning)
    if not isinstance(wanted, str):
        return tuple(int(number) for number in numbers), {}
    values = {}
    for label, rows, seed in zip(labels, layout.labelled, rng.spawn(len(labels)), strict=True):
        own = None if v is None else v[rows]
        values[label] = component_criteria(X[rows], own, wanted, max_components, template, seed)
    return tuple(min(found, key=found.__getitem__) for found in values.values()), values


def component_criteria(
    X: FloatArray,
    v: FloatArray | None,
    criterion: str,
    max_components: int,
    template: Template,
    rng: np.random.Generator,
) -> dict[int, float]:
    """Criterion of EM's maximum-likelihood fits with 1 … ``max_components`` components; smaller is better.

    Numbers of components above that of distinct rows, without a fit, or with none but near-singular ones are left out.

    Returns
    -------
    dict of int to float
    """
    values: dict[int, float] = {}
    D, total = X.shape[1], float(len(X) if v is None else v.sum())
    kind = structure(template.covariance_type)
    rows = X if v is None else X[v > 0]
    for K in range(1, max(1, n_distinct_rows(rows, max_components)) + 1):
        try:
            mode = em.fit(
                X,
                K,
                template.covariance_type,
                sample_weight=v,
                reg_covar=getattr(template, "reg_covar", GaussianMixture().reg_covar),
                tol=template.tol,
                max_iter=template.max_iter,
                n_init=template.n_init,
                init_params=template.init_params,
                rng=rng,
            ).modes[0]
        except em.DegenerateFitError:
            continue
        if mode.spurious and values:
            continue
        p = kind.n_parameters(K, D)
        if criterion == "aic":
            values[K] = criteria.aic(mode.run.log_likelihood, p)
        elif criterion == "bic":
            values[K] = criteria.bic(mode.run.log_likelihood, p, total)
        else:
            r = kernel.responsibilities(X, mode.run.parameters)[0]
            values[K] = criteria.icl(mode.run.log_likelihood, p, total, r, v)
    return values or {1: np.nan}


def _quoted(labels: list[Any]) -> str:
    return ", ".join(map(repr, labels))
