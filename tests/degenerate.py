"""Degenerate tables, every way to hand them in, and what no fit may make of them.

A :class:`Case` prints as code that makes it again; :func:`fault_of` runs it and says what is wrong, or None. Right is a refusal in one
clear error of ours (or of scikit-learn's validation), or a result without NaN that agrees with what is computed here by other means:
densities through Cholesky factors of the correlations, the closed forms of one component, probabilities that sum to one.
"""

from __future__ import annotations

import contextlib
import dis
import io
import itertools
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning

import bayesgmm.exceptions
from bayesgmm import (
    AnomalyDetector,
    BayesianGaussianMixture,
    GaussianMixture,
    HierarchicalPrior,
    MixtureClassifier,
    SeparationPrior,
    load,
    open_blocks,
    select,
)
from bayesgmm.cli import main
from bayesgmm.core.information import InformationWarning
from tests.oracles import expand_covariances

SECONDS = 60
"""A case that takes longer hangs."""

STRUCTURES = ("full", "tied", "diag", "spherical")

Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """What is done to which table, and how that is handed in."""

    task: str
    table: str
    container: str
    weighting: str
    covariance_type: str
    n_components: int
    seed: int


class Fault(AssertionError):
    """What a fit may not do."""


# --- tables -------------------------------------------------------------------------------------------------------------


def _plain(rng: Rng) -> np.ndarray:
    return np.concatenate([rng.standard_normal((22, 2)), rng.standard_normal((18, 2)) * [0.5, 2.0] + [7.0, -4.0]])


def _with(rng: Rng, column: Any) -> np.ndarray:
    return np.column_stack([_plain(rng), np.broadcast_to(column, 40)])


def _changed(rng: Rng, row: int, value: float) -> np.ndarray:
    X = _plain(rng)
    X[row, 1] = value
    return X


def _collinear(rng: Rng) -> np.ndarray:
    X = _plain(rng)
    return np.column_stack([X, X @ [1.0, -2.0] + 3.0])


def _nearly_collinear(rng: Rng) -> np.ndarray:
    X = _collinear(rng)
    return X + 1e-9 * rng.standard_normal(X.shape)


def _halves(rng: Rng) -> np.ndarray:
    X = _plain(rng)
    X[:20] = X[0]
    return X


TABLES: dict[str, Callable[[Rng], np.ndarray]] = {
    "plain": _plain,
    "one feature": lambda rng: _plain(rng)[:, :1],
    "constant column": lambda rng: _with(rng, 3.0),
    "constant columns": lambda rng: np.column_stack([_with(rng, 0.0), np.full(40, 1e6)]),
    "all constant": lambda rng: np.full((12, 2), 1.5),
    "all zero": lambda rng: np.zeros((12, 2)),
    "duplicated rows": lambda rng: np.repeat(_plain(rng)[::4], 4, axis=0),
    "half one row": _halves,
    "two distinct rows": lambda rng: np.repeat([[0.0, 0.0], [1.0, 3.0]], 10, axis=0),
    "fewer rows than K": lambda rng: _plain(rng)[:2],
    "three rows": lambda rng: _plain(rng)[[0, 1, 30]],
    "one row": lambda rng: _plain(rng)[:1],
    "one value": lambda rng: _plain(rng)[:1, :1],
    "no rows": lambda rng: np.empty((0, 2)),
    "no columns": lambda rng: np.empty((10, 0)),
    "more features than rows": lambda rng: rng.standard_normal((7, 9)),
    "1e150": lambda rng: _plain(rng) * 1e149,
    "above 1e150": lambda rng: _plain(rng) * 1e152,
    "largest": lambda rng: np.sign(_plain(rng)) * np.finfo(float).max,
    "1e-150": lambda rng: _plain(rng) * 1e-150,
    "1e-100": lambda rng: _plain(rng) * 1e-100,
    "subnormal": lambda rng: _plain(rng) * 1e-310,
    "units apart": lambda rng: _plain(rng) * [1e-60, 1e60],
    "far from zero": lambda rng: _plain(rng) + 1e9,
    "lost in rounding": lambda rng: 1e16 + np.rint(_plain(rng)) * 2,
    "an outlier": lambda rng: _changed(rng, 3, 1e12),
    "infinity": lambda rng: _changed(rng, 7, np.inf),
    "NaN": lambda rng: _changed(rng, 7, np.nan),
    "collinear": _collinear,
    "nearly collinear": _nearly_collinear,
    "duplicated column": lambda rng: _plain(rng)[:, [0, 1, 0]],
    "whole numbers": lambda rng: np.rint(_plain(rng)),
    "two values": lambda rng: (_plain(rng) > 2).astype(float),
    "mostly zeros": lambda rng: _plain(rng) * (rng.random((40, 2)) < 0.1),
    "a grid": lambda rng: np.array(list(itertools.product(range(5), range(5))), dtype=float),
    "heavy tails": lambda rng: rng.standard_cauchy((40, 2)) ** 3,
}

SOUND = {"plain", "one feature", "whole numbers", "far from zero", "duplicated rows"}
"""Tables that EM under maximum likelihood has no reason to refuse."""


# --- containers ---------------------------------------------------------------------------------------------------------


def _frame(X: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(X, columns=[f"c{j}" for j in range(X.shape[1])])


def _integers(dtype: str) -> Callable[[np.ndarray], tuple[Any, np.ndarray]]:
    limits = np.iinfo(dtype)

    def make(X: np.ndarray) -> tuple[Any, np.ndarray]:
        bound = min(limits.max, 2**53)
        whole = np.clip(np.rint(np.nan_to_num(X, posinf=0, neginf=0)), max(limits.min, -bound), bound).astype(dtype)
        return whole, whole.astype(float)

    return make


def _cast(dtype: Any) -> Callable[[np.ndarray], tuple[Any, np.ndarray]]:
    def make(X: np.ndarray) -> tuple[Any, np.ndarray]:
        with np.errstate(over="ignore", under="ignore"):
            narrow = X.astype(dtype)
        return narrow, narrow.astype(float)

    return make


def _strided(X: np.ndarray) -> tuple[Any, np.ndarray]:
    wide = np.full((2 * len(X), 2 * X.shape[1]), np.nan)
    wide[::2, ::2] = X
    return wide[::2, ::2], X


def _read_only(X: np.ndarray) -> tuple[Any, np.ndarray]:
    out = X.copy()
    out.setflags(write=False)
    return out, X


def _masked(X: np.ndarray) -> tuple[Any, np.ndarray | None]:
    mask = np.zeros(X.shape, dtype=bool)
    mask[: len(X) // 2, :1] = True
    return np.ma.masked_array(X, mask), None if mask.any() else X


def _truths(X: np.ndarray) -> tuple[Any, np.ndarray]:
    truths = X > 1.0
    return truths, truths.astype(float)


def _with_none(X: np.ndarray) -> tuple[Any, np.ndarray | None]:
    cells = X.astype(object)
    cells[:1, :1] = None
    return cells, X if not X.size else None


def _with_missing(X: np.ndarray) -> tuple[Any, np.ndarray | None]:
    frame = _frame(X).astype("Float64")
    if X.size:
        frame.iloc[0, 0] = pd.NA
    return frame, X if not X.size else None


def _arrow(X: np.ndarray) -> tuple[Any, np.ndarray]:
    return _frame(X).astype("float64[pyarrow]") if X.size else _frame(X), X


def _named_alike(X: np.ndarray) -> tuple[Any, np.ndarray]:
    return pd.DataFrame(X, columns=["a"] * X.shape[1]), X


def _named_oddly(X: np.ndarray) -> tuple[Any, np.ndarray]:
    names = ["=1+1", "a,b\n[0]", "<b>x</b>", "naïve/ß"]
    return pd.DataFrame(X, columns=[f"{names[j % 4]}{j}" for j in range(X.shape[1])]), X


def _shuffled_index(X: np.ndarray) -> tuple[Any, np.ndarray]:
    return _frame(X).set_index(pd.Index(np.arange(len(X))[::-1] // 2)), X


def _text(X: np.ndarray) -> tuple[Any, np.ndarray | None]:
    frame = _frame(X).astype(object)
    frame["word"] = ["red"] * len(X)
    return frame, None


CONTAINERS: dict[str, Callable[[np.ndarray], tuple[Any, np.ndarray | None]]] = {
    "float64": lambda X: (X, X),
    "float32": _cast(np.float32),
    "float16": _cast(np.float16),
    "longdouble": _cast(np.longdouble),
    "big-endian": _cast(">f8"),
    "Fortran order": lambda X: (np.asfortranarray(X), X),
    "strided": _strided,
    "reversed": lambda X: (X[::-1, ::-1], X[::-1, ::-1]),
    "read-only": _read_only,
    "int64": _integers("int64"),
    "int8": _integers("int8"),
    "uint16": _integers("uint16"),
    "bool": _truths,
    "object": lambda X: (X.astype(object), X),
    "object with None": _with_none,
    "list": lambda X: (X.tolist(), X),
    "DataFrame": lambda X: (_frame(X), X),
    "DataFrame float32": lambda X: (_frame(_cast(np.float32)(X)[0]), _cast(np.float32)(X)[1]),
    "DataFrame of objects": lambda X: (_frame(X).astype(object), X),
    "DataFrame nullable": lambda X: (_frame(X).astype("Float64"), X),
    "DataFrame missing": _with_missing,
    "DataFrame Arrow": _arrow,
    "DataFrame text": _text,
    "names alike": _named_alike,
    "names odd": _named_oddly,
    "index odd": _shuffled_index,
    "masked": _masked,
    "masked nowhere": lambda X: (np.ma.masked_array(X), X),
    "complex": lambda X: (X + 0j, None),
    "sparse": lambda X: (sparse.csr_matrix(X), None),
}


# --- weights ------------------------------------------------------------------------------------------------------------


def _only(n: int, rows: slice) -> np.ndarray:
    v = np.zeros(n)
    v[rows] = 1.0
    return v


WEIGHTINGS: dict[str, Callable[[Rng, int], np.ndarray | None]] = {
    "none": lambda rng, n: None,
    "ones": lambda rng, n: np.ones(n),
    "whole": lambda rng, n: rng.integers(1, 4, n),
    "many zeros": lambda rng, n: (rng.random(n) < 0.4).astype(float),
    "one row": lambda rng, n: _only(n, slice(0, 1)),
    "two rows": lambda rng, n: _only(n, slice(0, 2)),
    "tiny": lambda rng, n: np.full(n, 1e-300),
    "huge": lambda rng, n: np.full(n, 1e300),
    "overflowing": lambda rng, n: np.full(n, 1.7e308),
    "unequal": lambda rng, n: 10.0 ** rng.uniform(-12, 12, n),
    "all zero": lambda rng, n: np.zeros(n),
    "negative": lambda rng, n: np.where(np.arange(n) == 2, -1.0, 1.0),
    "NaN": lambda rng, n: np.where(np.arange(n) == 0, np.nan, 1.0),
    "too few": lambda rng, n: np.ones(max(0, n - 1)),
}


# --- what is right ------------------------------------------------------------------------------------------------------


def log_densities(X: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """log p(x_n), NaN where a correlation matrix is too near singular for float64 to say (condition above 1e8)."""
    joint = np.empty((len(weights), len(X)))
    for k, (mean, matrix) in enumerate(zip(means, covariances, strict=True)):
        deviation = np.sqrt(np.diagonal(matrix))
        correlation = matrix / deviation / deviation[:, None]
        if np.linalg.cond(correlation) > 1e8:
            return np.full(len(X), np.nan)
        factor = np.linalg.cholesky(correlation)
        with np.errstate(over="ignore", divide="ignore"):
            y = np.linalg.solve(factor, ((X - mean) / deviation).T)
            q = np.square(y).sum(axis=0)
            constant = np.log(np.diagonal(factor)).sum() + np.log(deviation).sum() + 0.5 * len(mean) * np.log(2 * np.pi)
            joint[k] = np.log(weights[k]) - 0.5 * q - constant
    with np.errstate(all="ignore"):
        return logsumexp(joint, axis=0)


def _need(condition: Any, what: str) -> None:
    if not np.all(condition):
        raise Fault(what)


def _finite(values: Any, what: str) -> None:
    numbers = np.ravel(np.asarray(values, dtype=float))
    _need(np.isfinite(numbers), f"{what} is not finite: {numbers[:6]}")


def _probabilities(values: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    _need(values.shape == shape, f"{what} has the shape {values.shape}, not {shape}")
    # Rounding of sums of K numbers.
    _need(np.abs(values.sum(axis=-1) - 1) < 1e-9, f"{what} does not sum to 1: {np.ravel(values.sum(axis=-1))[:4]}")
    _need((values >= 0) & (values <= 1 + 1e-12), f"{what} lies outside [0, 1]")


def _densities_agree(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    _need(~np.isnan(found), f"{what} is NaN")
    known = ~np.isnan(expected)
    found, expected = found[known], expected[known]
    with np.errstate(invalid="ignore"):
        # 1e-6: rounding, times a condition number of up to 1e8, in the squares of a density's exponent.
        close = np.abs(found - expected) <= 1e-6 * (1 + np.abs(expected))
    beyond = expected < -1e290
    _need(close | beyond, f"{what}: {found[~(close | beyond)][:3]}, not {expected[~(close | beyond)][:3]}")


def _weights_of(case: Case, n: int) -> np.ndarray | None:
    return WEIGHTINGS[case.weighting](np.random.default_rng([case.seed, 1]), n)


def _given(case: Case) -> tuple[Any, np.ndarray | None, np.ndarray | None]:
    """The table as it is handed in, its numbers as float64 or None where it must be refused, and its weights."""
    made = TABLES[case.table](np.random.default_rng(case.seed))
    table, X = CONTAINERS[case.container](made)
    return table, X, _weights_of(case, len(made))


def _refused(case: Case, X: np.ndarray | None) -> None:
    """A fit came out: nothing about the input may have asked for a refusal."""
    _need(X is not None, "values that are masked, missing or no numbers were fitted without a word")
    _need(np.isfinite(X), "values that are not finite were fitted")
    _need(case.weighting not in ("all zero", "negative", "NaN", "too few"), "impossible weights were fitted")
    _need(len(X) >= case.n_components and len(X) > 1, "fewer rows than components were fitted")


def _check_mixture(fit: Any, table: Any, X: np.ndarray, v: np.ndarray | None) -> None:
    """Parameters, densities, responsibilities and labels of an EM fit."""
    K, D = fit.means_.shape
    _need(X.shape[1] == D, "the number of features")
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_", "lower_bound_"):
        _finite(getattr(fit, name), name)
    _probabilities(fit.weights_, (K,), "weights_")
    matrices = expand_covariances(fit.covariances_, fit.covariance_type, K, D)
    _need(np.diagonal(matrices, axis1=1, axis2=2) > 0, "a variance is not positive")
    scores = fit.score_samples(table)
    _densities_agree(scores, log_densities(X, fit.weights_, fit.means_, matrices), "score_samples")
    _probabilities(fit.predict_proba(table), (len(X), K), "predict_proba")
    labels = fit.predict(table)
    _need((labels >= 0) & (labels < K), "labels outside the components")
    counted = np.ones(len(X)) if v is None else np.asarray(v, dtype=float)
    within = X[counted > 0]
    spread = within.max(axis=0) - within.min(axis=0)
    slack = 1e-9 * np.abs(within).max(axis=0) + 1e-6 * spread
    inside = (fit.means_ >= within.min(axis=0) - slack) & (fit.means_ <= within.max(axis=0) + slack)
    _need(inside, f"a mean lies outside the rows: {fit.means_}")


def _check_one_component(fit: Any, X: np.ndarray, v: np.ndarray | None) -> None:
    """The maximum likelihood of one component is known: the mean and the covariance of the rows."""
    if fit.n_components != 1 or fit.prior_ is not None:
        return
    v = np.ones(len(X)) if v is None else np.asarray(v, dtype=float)
    v = (v / v.max()).astype(np.longdouble)
    mean = v @ X.astype(np.longdouble) / v.sum()
    centred = X - mean
    scatter = np.asarray((v[:, None] * centred).T @ centred / v.sum(), dtype=float)
    deviation = np.sqrt(np.maximum(np.diagonal(scatter), np.finfo(float).tiny))
    # Rounding: of the rows themselves (relative to their size), and of sums over them.
    error = 1e-7 * deviation + 1e-13 * np.abs(X).max(axis=0)
    _need(np.abs(fit.means_[0] - np.asarray(mean, dtype=float)) <= error, f"the mean {fit.means_[0]}, not {mean}")
    scatter = scatter + fit.reg_covar * np.eye(len(scatter))
    if fit.covariance_type in ("diag", "spherical"):
        scatter = np.diag(np.diagonal(scatter))
    if fit.covariance_type == "spherical":
        scatter = np.mean(np.diagonal(scatter)) * np.eye(len(scatter))
    found = expand_covariances(fit.covariances_, fit.covariance_type, 1, X.shape[1])[0]
    size = np.sqrt(np.diagonal(scatter)) + 1e-13 * np.abs(X).max(axis=0)
    _need(
        np.abs(found - scatter) <= 1e-6 * np.outer(size, size),
        f"the covariance {found.tolist()}, not {scatter.tolist()}",
    )


def _check_posterior(post: Any, table: Any, X: np.ndarray) -> None:
    K, D = post.means_.shape
    for name in ("weights", "means", "covariances", "standard_deviations"):
        _finite(post.idata_["posterior"][name].values, f"draws of {name}")
    _probabilities(post.weights_, (K,), "weights_")
    _probabilities(
        np.asarray(post.idata_["posterior"]["weights"].values), post.idata_["posterior"]["weights"].shape, "weights"
    )
    _probabilities(post.predict_proba(table), (len(X), K), "predict_proba")
    _need(~np.isnan(post.score_samples(table)), "score_samples is NaN")
    summary = post.summary()
    for column in ("mean", "median", "sd"):
        if column in summary:
            _finite(summary[column], f"summary's {column}")
    from bayesgmm import ConjugatePrior

    if K == 1 and isinstance(post.prior_, ConjugatePrior) and post._sample_weight is None and post.diagnostics_.ok:
        # Under a conjugate prior the expected mean of one component is known; seven Monte Carlo errors of the draws' mean.
        kappa, expected = post.prior_.mean_precision, None
        expected = (kappa * post.prior_.resolved_mean + X.sum(axis=0)) / (kappa + len(X))
        draws = post.idata_["posterior"]["means"].values.reshape(-1, D)
        error = draws.std(axis=0) * 7 / np.sqrt(len(draws) / 4)
        _need(np.abs(draws.mean(axis=0) - expected) <= error, f"posterior mean {draws.mean(axis=0)}, not {expected}")


# --- tasks --------------------------------------------------------------------------------------------------------------


def _em(case: Case, **settings: Any) -> None:
    table, X, v = _given(case)
    fit = GaussianMixture(
        case.n_components, covariance_type=case.covariance_type, n_init=2, random_state=case.seed, **settings
    ).fit(table, sample_weight=v)
    _refused(case, X)
    _check_mixture(fit, table, X, v)
    _check_one_component(fit, X, v)
    if settings.get("prior") is None:
        share = np.ones(len(X)) if v is None else v / np.max(v)
        scores = fit.score_samples(table)
        mean = share[share > 0] @ scores[share > 0] / share.sum()
        # Sums in another order.
        _need(
            abs(fit.lower_bound_ - mean) <= 1e-8 * (1 + np.abs(scores[share > 0]).max()),
            "lower_bound_ is not the mean log density",
        )


def _errors(case: Case) -> None:
    table, X, v = _given(case)
    fit = GaussianMixture(case.n_components, covariance_type=case.covariance_type, n_init=2, random_state=case.seed)
    fit.fit(table, sample_weight=v)
    for method in ("information", "sandwich"):
        errors = fit.standard_errors(table, method, sample_weight=v)
        for name in ("weights", "means", "covariances", "standard_deviations"):
            values = getattr(errors, name)
            _need(~np.isnan(values) & (values >= 0), f"standard errors of {name} by {method}: {values.tolist()}")
    for name in ("aic", "bic", "icl"):
        _need(not np.isnan(getattr(fit, name)(table, sample_weight=v)), name)
    _finite(fit.sample(5)[0], "sample")


def _bootstrap(case: Case) -> None:
    table, _, v = _given(case)
    fit = GaussianMixture(case.n_components, covariance_type=case.covariance_type, n_init=2, random_state=case.seed)
    replicates = fit.fit(table, sample_weight=v).bootstrap(table, 5, v)
    _need(~np.isnan(replicates.means), "means of resampled rows are NaN")


def _stream(case: Case) -> None:
    table, X, v = _given(case)
    fit = GaussianMixture(case.n_components, covariance_type=case.covariance_type, n_init=2, random_state=case.seed)
    for _ in range(3):
        fit.partial_fit(table, sample_weight=v)
    _refused(case, X)
    _check_mixture(fit, table, X, v)


def _blocks(case: Case) -> None:
    table, X, _ = _given(case)
    blocks = open_blocks(table)
    fit = GaussianMixture(case.n_components, covariance_type=case.covariance_type, n_init=2, random_state=case.seed)
    fit.fit(blocks)
    _need(X is not None, "values that are masked, missing or no numbers were fitted without a word")
    _check_mixture(fit, table if hasattr(table, "columns") else X, X, None)
    _check_one_component(fit, X, None)


def _kept(case: Case) -> None:
    table, X, v = _given(case)
    fit = GaussianMixture(case.n_components, covariance_type=case.covariance_type, n_init=2, random_state=case.seed)
    fit.fit(table, sample_weight=v)
    with tempfile.TemporaryDirectory() as folder:
        back = load(fit.save(folder))
    _need(back.score_samples(table) == fit.score_samples(table), "a loaded fit scores otherwise")


def _posterior(case: Case, prior: Any = "default", method: str = "laplace", draws: int = 40) -> None:
    table, X, v = _given(case)
    post = _bayesian(case, method, draws, prior=prior).fit(table, sample_weight=v)
    _refused(case, X)
    _check_posterior(post, table, X)


def _bayesian(case: Case, method: str = "laplace", draws: int = 40, **settings: Any) -> BayesianGaussianMixture:
    return BayesianGaussianMixture(
        case.n_components,
        covariance_type=case.covariance_type,
        method=method,
        draws=draws,
        tune=20,
        chains=2,
        target_ess=0,
        max_draws=draws,
        n_init=2,
        random_state=case.seed,
        progressbar=False,
        **settings,
    )


def _classifier(case: Case, estimator: Any = None) -> None:
    table, X, v = _given(case)
    made = TABLES[case.table](np.random.default_rng(case.seed))
    y = np.where(np.arange(len(made)) % 5 == 4, -1, (made[:, :1].sum(axis=1) > 3).astype(int) if made.size else 0)
    estimator = estimator or GaussianMixture(case.n_components, covariance_type=case.covariance_type, n_init=2)
    classifier = MixtureClassifier(estimator, random_state=case.seed).fit(table, y.astype(float), sample_weight=v)
    _need(X is not None, "values that are masked, missing or no numbers were fitted without a word")
    _finite(classifier.class_priors_, "class_priors_")
    _probabilities(classifier.predict_proba(table), (len(X), len(classifier.classes_)), "predict_proba")
    _need(np.isin(classifier.predict(table), classifier.classes_), "predict")
    _need(~np.isnan(classifier.score_samples(table)), "score_samples is NaN")


def _detector(case: Case, estimator: Any = None, **settings: Any) -> None:
    table, X, v = _given(case)
    estimator = estimator or GaussianMixture(case.n_components, covariance_type=case.covariance_type, n_init=2)
    detector = AnomalyDetector(estimator, n_simulated=300, refits=0, random_state=case.seed, **settings)
    detector.fit(table, sample_weight=v)
    _need(X is not None, "values that are masked, missing or no numbers were fitted without a word")
    _need(np.isin(detector.predict(table), (-1, 1)), "predict")
    names = (
        "predictive_tail_probability",
        *(("anomaly_probability",) if hasattr(detector.estimator_, "idata_") else ()),
    )
    for name in names:
        p = getattr(detector, name)(table)
        _need((p >= 0) & (p <= 1 + 1e-12), f"{name}: {p[:5]}")
    _need(~np.isnan(detector.offset_), "the threshold is NaN")
    assigned = detector.assign(table, min_responsibility=0.9)
    _need(assigned["component"].between(-1, case.n_components - 1), "assign")


def _select(case: Case) -> None:
    table, X, v = _given(case)
    found = select(
        table, sorted({1, case.n_components}), case.covariance_type, sample_weight=v, n_init=1, random_state=case.seed,
        progressbar=False,
    )  # fmt: skip
    _need(X is not None, "values that are masked, missing or no numbers were fitted without a word")
    for key, row in found.table.iterrows():
        if key in found.fits:
            _need(not np.isnan(row["bic"]), f"BIC of {key} is NaN")
    _need(found.summary() != "", "summary")


FILES = {"csv": ",", "tsv": "\t", "semicolon": ";", "blank": " "}
FORMATS = (*FILES, "npy", "npy float32", "npy Fortran", "parquet", "no header")
"""The containers of the command: how a table stands in a file."""


def _format_of(case: Case) -> str:
    return FORMATS[list(CONTAINERS).index(case.container) % len(FORMATS)]


def _is_sound_file(case: Case) -> bool:
    # Numbers far from zero are all the same in float32.
    lost = _format_of(case) == "npy float32" and case.table == "far from zero"
    return case.table in SOUND and case.n_components <= 2 and not lost


def _written(case: Case, folder: Path) -> Path:
    X = TABLES[case.table](np.random.default_rng(case.seed))
    names = [f"c{j}" for j in range(X.shape[1])]
    form = _format_of(case)
    if form.startswith("npy"):
        with np.errstate(over="ignore", under="ignore"):
            np.save(
                folder / "data.npy",
                np.asfortranarray(X) if "Fortran" in form else X.astype("f4" if "32" in form else "f8"),
            )
        return folder / "data.npy"
    if form == "parquet":
        pd.DataFrame(X, columns=names).to_parquet(folder / "data.parquet")
        return folder / "data.parquet"
    path = folder / "data.csv"
    pd.DataFrame(X, columns=names).to_csv(path, index=False, sep=FILES.get(form, ","), header=form != "no header")
    return path


def _command(arguments: list[str]) -> tuple[int, str]:
    """Run the command in this process; its exit code, and what it said on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
    return code, _judged(code, out.getvalue(), err.getvalue())


def _process(arguments: list[str]) -> tuple[int, str]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bayesgmm", *arguments], capture_output=True, text=True, timeout=SECONDS
    )
    return done.returncode, _judged(done.returncode, done.stdout, done.stderr)


def _judged(code: int, out: str, said: str) -> str:
    _need("Traceback" not in said + out, f"a traceback: {said[-500:]}")
    _need(code in (0, 1, 3), f"exit code {code}: {said}")
    for line in said.splitlines():
        _need(line.startswith("bayesgmm: "), f"a line that is not ours: {line!r}")
    if code == 1:
        _need(said.startswith("bayesgmm: error: ") and said.count("\n") == 1, f"not one line of error: {said!r}")
        _judge_message(said)
    return said


def _cli_fit(
    case: Case, method: str, more: tuple[str, ...] = (), run: Callable[[list[str]], tuple[int, str]] = _command
) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, out = _written(case, folder), folder / "out"
        sizes = ["-k", str(case.n_components), "--covariance", case.covariance_type, "--method", method]
        code, said = run(["fit", str(data), *sizes, "--out", str(out), "--quiet", "--seed", str(case.seed), *more])
        if code == 1:
            _need(not out.exists(), "a failed fit left its folder")
            _need(
                case.table not in SOUND or case.n_components > 2 or method != "em", f"sound rows were refused: {said}"
            )
            return "refused"
        assignments = pd.read_csv(out / "assignments.csv")
        p = assignments.filter(like="responsibility_").to_numpy()
        _probabilities(p, p.shape, "responsibilities")
        _need(assignments["log_density"].notna(), "log_density is NaN")
        _finite(pd.read_csv(out / "summary.csv")["em" if method == "em" else "median"], "summary.csv")
        _need((out / "report.html").stat().st_size > 10_000, "report.html is not whole")
        code, scored = run(["score", str(out), str(data), "--out", str(folder / "scored.csv"), "--quiet"])
        _need(code != 1, f"score refused the rows of the fit: {scored}")
        _need("nan" not in (folder / "scored.csv").read_text().lower(), "scored.csv has NaN")
        return "fitted with a warning" if said else "fitted"


def _cli_select(case: Case) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, out = _written(case, folder), folder / "out"
        sizes = ["-k", f"1-{case.n_components}", "--covariance", case.covariance_type]
        code, said = _command(["select", str(data), *sizes, "--out", str(out), "--quiet"])
        if code == 1:
            _need(not _is_sound_file(case), f"sound rows were refused: {said}")
            return "refused"
        _need((out / "selection.csv").exists() and (out / "report.html").exists(), "files of the selection are missing")
        return "fitted with a warning" if said else "fitted"


TASKS: dict[str, Callable[[Case], str | None]] = {
    "em": _em,
    "em, reg_covar=0": lambda case: _em(case, reg_covar=0.0),
    "em, prior": lambda case: _em(case, prior="default"),
    "standard errors": _errors,
    "bootstrap": _bootstrap,
    "partial_fit": _stream,
    "blocks": _blocks,
    "saved": _kept,
    "classifier": _classifier,
    "detector": _detector,
    "detector, contamination": lambda case: _detector(case, contamination=0.1),
    "select": _select,
    "laplace": _posterior,
    "laplace, hierarchical": lambda case: _posterior(case, HierarchicalPrior()),
    "laplace, separation": lambda case: _posterior(case, SeparationPrior()),
    "nuts": lambda case: _posterior(case, method="nuts", draws=20),
    "classifier, laplace": lambda case: _classifier(case, _bayesian(case)),
    "detector, laplace": lambda case: _detector(case, _bayesian(case)),
    "command fit em": lambda case: _cli_fit(case, "em"),
    "command fit laplace": lambda case: _cli_fit(
        case, "laplace", ("--draws", "50", "--chains", "2", "--target-ess", "0")
    ),
    "command select": _cli_select,
    "command in a process": lambda case: _cli_fit(case, "em", run=_process),
}

COST = {
    "bootstrap": 2, "select": 3, "laplace": 3, "laplace, hierarchical": 4, "laplace, separation": 4, "nuts": 8,
    "classifier, laplace": 4, "detector, laplace": 4, "command fit em": 15, "command fit laplace": 15, "command select": 15,
    "command in a process": np.inf,
}  # fmt: skip
"""About how many EM fits a task costs; 1 unless given."""


# --- judging ------------------------------------------------------------------------------------------------------------

OURS = (
    bayesgmm.exceptions.DataError,
    bayesgmm.exceptions.SamplingError,
    bayesgmm.exceptions.ImproperPosteriorError,
)
FOREIGN_WORDS = (
    "leading minor", "array must not contain", "did not converge", "zero-size array", "broadcast", "out of bounds", "math domain",
    "cannot convert float", "Singular matrix", "<class '", "object has no attribute", "unexpected ", "not subscriptable", "NoneType",
    "must be real number", "truth value", "shapes (", "ufunc", "unhashable",
)  # fmt: skip
"""What libraries say when they break, and no user can act on."""

OUR_WARNINGS = (
    ConvergenceWarning,
    InformationWarning,
    bayesgmm.exceptions.CostWarning,
    bayesgmm.exceptions.CriterionWarning,
    bayesgmm.exceptions.DataWarning,
    bayesgmm.exceptions.PriorWarning,
)


def _judge_message(message: str) -> None:
    _need(len(message) > 20, f"an error that says nothing: {message!r}")
    for words in FOREIGN_WORDS:
        _need(words not in message, f"an error in a library's words: {message!r}")


def _judge_error(error: Exception, case: Case) -> None:
    """An error must be raised on purpose, by us or by scikit-learn's validation, and say what to do."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__}: {error} ({where.filename.rpartition('site-packages/')[2]}:{where.lineno})"
    kinds = (ValueError, TypeError, *OURS)
    exact = type(error) in kinds or type(error).__module__.startswith(("bayesgmm.", "sklearn."))
    _need(exact, f"a foreign exception, {place}")
    ours = "/bayesgmm/" in where.filename
    _need(ours or "/sklearn/utils/" in where.filename, f"raised by others, {place}")
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    if ours:
        _need(_raises(last), f"a break, not a refusal, {place}")
    _judge_message(str(error))
    good = case.table in SOUND and case.container in ("float64", "Fortran order", "DataFrame", "strided")
    good &= (
        case.weighting in ("none", "ones", "whole") and case.n_components <= 2 and not case.task.startswith("command")
    )
    _need(not good or "separation" in case.task, f"sound rows were refused, {place}")


def _raises(traceback_: Any) -> bool:
    """Whether the frame ended in a ``raise`` of its own."""
    return any(
        step.offset == traceback_.tb_lasti and step.opname in ("RAISE_VARARGS", "RERAISE")
        for step in dis.get_instructions(traceback_.tb_frame.f_code)
    )


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Fault(f"it was not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(case: Case) -> tuple[str, str | None]:
    """How a case ends ("fitted", "fitted with a warning" or "refused"), and what is wrong with that; None where all is right."""
    ended, fault = "fitted", None
    with warnings.catch_warnings(record=True) as caught, _deadline(SECONDS):
        warnings.simplefilter("always")
        try:
            ended = TASKS[case.task](case) or "fitted"
        except Fault as found:
            fault = str(found)
        except Exception as error:
            ended = "refused"
            try:
                _judge_error(error, case)
            except Fault as found:
                fault = str(found)
    foreign = [warning for warning in caught if not issubclass(warning.category, OUR_WARNINGS)]
    if foreign and fault is None:
        where = f"{foreign[0].filename}:{foreign[0].lineno}"
        fault = f"a foreign warning, {foreign[0].category.__name__}: {foreign[0].message} ({where})"
    if ended == "fitted" and caught:
        ended = "fitted with a warning"
    return ended, fault


def fault_of(case: Case) -> str | None:
    """What is wrong with how a case ends; None where all is right."""
    return outcome(case)[1]


def as_code(case: Case) -> str:
    """Code that runs a case again."""
    return f"from tests.degenerate import Case, fault_of; print(fault_of({case!r}))"


@cache
def _pairs() -> list[tuple[str, str]]:
    """Every task with every table, in a random order."""
    pairs = list(itertools.product(TASKS, TABLES))
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]


def case_of(number: int, seed: int = 0) -> Case:
    """The case of a number: first every table under every task, then as often as the task's cost allows.

    Structures, components, containers and weights are drawn at random: 10,000 cases have every table with every structure, every
    container and every weighting many times.
    """
    rng = np.random.default_rng([seed, number])
    if number < len(_pairs()):
        task, table = _pairs()[number]
    else:
        share = np.array([1 / COST.get(task, 1) for task in TASKS])
        task, table = str(rng.choice(list(TASKS), p=share / share.sum())), str(rng.choice(list(TABLES)))
    return Case(
        task,
        table,
        "float64" if rng.random() < 0.3 else str(rng.choice(list(CONTAINERS))),
        "none" if rng.random() < 0.6 else str(rng.choice(list(WEIGHTINGS))),
        str(rng.choice(STRUCTURES)),
        int(rng.integers(1, 4)),
        int(rng.integers(2**31)),
    )
