"""Cross-validation: the log predictive density of held-out rows, and components scored against labels that are partly known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bayesgmm.core import kernel
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import FloatArray
from bayesgmm.exceptions import CriterionWarning, warn_user
from bayesgmm.pointwise import standard_error, weighted

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDDataLOOKFold

IntArray = NDArray[np.int64]


def fold_labels(n_rows: int, n_splits: int, rng: np.random.Generator, strata: ArrayLike | None = None) -> IntArray:
    """Fold of each row, in random order; sizes differ by at most one.

    Parameters
    ----------
    n_rows : int
        N.
    n_splits : int
        2 … N.
    rng : numpy.random.Generator
    strata : array-like of shape (N,), optional
        Groups that are spread over the folds as evenly as can be.

    Returns
    -------
    ndarray of shape (N,)
        0 … n_splits − 1.
    """
    if not 2 <= n_splits <= n_rows:
        raise ValueError(f"n_splits must lie between 2 and the number of rows, {n_rows}; got {n_splits}")
    order = rng.permutation(n_rows)
    if strata is not None:
        order = order[np.argsort(np.asarray(strata)[order], kind="stable")]
    labels = np.empty(n_rows, dtype=np.int64)
    labels[order] = np.arange(n_rows) % n_splits
    return labels


def kfold(
    estimator: Any,
    X: ArrayLike,
    n_splits: int = 10,
    sample_weight: ArrayLike | None = None,
    random_state: Any = None,
    *,
    draws: int = 1000,
) -> ELPDDataLOOKFold:
    """K-fold cross-validated log predictive density (log scale, higher is better).

    Every fold is fitted from the mode of the full data: EM climbs from it, a posterior is sampled from it with the prior as it was
    resolved on the full data. So K folds cost little more than one fit, and nothing is compiled anew.

    Parameters
    ----------
    estimator : GaussianMixture or BayesianGaussianMixture
        Unfitted, or fitted to X; it is not changed.
    X : array-like of shape (N, D)
    n_splits : int, default 10
        Number of folds, 2 … N.
    sample_weight : array-like of shape (N,), optional
        Frequency weights. All copies of a row are in the same fold, and it counts by its weight.
    random_state : int, RandomState, Generator or None, default None
        Of the folds (and the draws). The same int gives the same folds to every model, so that ``az.compare`` pairs them.
    draws : int, default 1000
        Draws of a fold's posterior over all chains: a density averaged over 1000 draws is within some hundredths of a nat.

    Returns
    -------
    ELPDDataLOOKFold
        ``elpd``, ``se``, ``p`` (Σ of in-sample less held-out log density), ``elpd_i``, ``p_kfold_i``, ``n_folds``; ``az.compare`` takes it
        beside other K-fold results, and beside LOO with a warning. ``n_samples`` is 1 for a maximum.

    Raises
    ------
    TypeError
        If the estimator is of another kind.
    ValueError
        If ``n_splits`` lies outside 2 … N, the data are bad, the estimator was fitted to other data, or a fold cannot be fitted.

    Warns
    -----
    CriterionWarning
        If folds had problems (no convergence, near-singular covariances); they are counted, and the first is quoted.

    Notes
    -----
    For a maximum the density is that of the plug-in estimate; for a posterior that averaged over draws. The two answer different
    questions, and the latter is usually the higher for small N.

    References
    ----------
    Vehtari, Gelman & Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC,
    Statistics and Computing 27, 1413–1432, section 2.3.

    Examples
    --------
    >>> from bayesgmm import GaussianMixture, kfold
    >>> from bayesgmm.datasets import load_faithful
    >>> X = load_faithful()
    >>> [round(kfold(GaussianMixture(K, random_state=0), X, 5, random_state=0).elpd, -1) for K in (1, 2)]
    [-1290.0, -1140.0]
    """
    from arviz_stats.utils import ELPDDataLOOKFold

    from bayesgmm.elpd import elpd_fields, pointwise_array
    from bayesgmm.estimators.validation import check_weights, generator

    fitted = _fitted(estimator, X, sample_weight)
    bayesian = hasattr(fitted, "_draws")
    table = fitted._table(X)
    v = check_weights(sample_weight, table)
    rng = generator(random_state)
    folds = fold_labels(len(table), n_splits, rng)
    seeds = rng.spawn(n_splits)
    elpd_i = np.empty(len(table))
    problems: list[str] = []
    n_samples = int(fitted.chains) * max(25, draws // int(fitted.chains)) if bayesian else 1
    for fold in range(n_splits):
        held = folds == fold
        weights = None if v is None else v[~held]
        try:
            if bayesian:
                density, trouble = _bayesian_fold(fitted, table[~held], weights, table[held], seeds[fold], draws)
            else:
                density, trouble = _em_fold(fitted, table[~held], weights, table[held], seeds[fold])
        except ValueError as error:
            raise ValueError(
                f"fold {fold} of {n_splits} ({int((~held).sum())} rows) cannot be fitted: {error}"
            ) from error
        elpd_i[held] = density
        problems += [f"fold {fold}: {text}" for text in trouble]
    if problems:
        warn_user(
            f"{len(problems)} problem{'s' * (len(problems) > 1)} in {n_splits} folds; the first: {problems[0]}",
            CriterionWarning,
        )
    lost = np.flatnonzero(~np.isfinite(elpd_i))
    if len(lost):
        raise ValueError(
            f"row {lost[0]} has no density under the fit without its fold: it lies beyond the reach of the model"
        )
    p_i = np.asarray(fitted.score_samples(X)) - elpd_i
    return ELPDDataLOOKFold(
        **elpd_fields(elpd_i, p_i, n_samples, None, v),
        warning=bool(problems),
        good_k=None,
        n_folds=n_splits,
        p_kfold_i=pointwise_array(weighted(p_i, v), name="p_kfold_i"),
    )


def _fitted(estimator: Any, X: ArrayLike, sample_weight: ArrayLike | None) -> Any:
    """The estimator if it is fitted to these data, or a fitted clone."""
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    from bayesgmm.estimators.bayesian_gaussian_mixture import BayesianGaussianMixture
    from bayesgmm.estimators.gaussian_mixture import GaussianMixture

    if not isinstance(estimator, (GaussianMixture, BayesianGaussianMixture)):
        raise TypeError(
            f"estimator must be a GaussianMixture or BayesianGaussianMixture; got {type(estimator).__name__}"
        )
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return clone(estimator).fit(X, sample_weight=sample_weight)
    if isinstance(estimator, BayesianGaussianMixture):
        v = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        own = estimator._sample_weight
        same = (own is None and v is None) or (own is not None and v is not None and np.array_equal(own, v))
        if not same or not np.array_equal(estimator._table(X), estimator._X):
            raise ValueError(
                "the posterior was fitted to other data: give an unfitted estimator, or the data of the fit"
            )
    return estimator


def _em_fold(
    fitted: Any, X: FloatArray, v: FloatArray | None, held: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, list[str]]:
    """Log density of held-out rows under EM's fit to the others, climbed from the full data's optimum."""
    from bayesgmm.core import em

    kind = structure(fitted.covariance_type)
    found = em.fit(
        X,
        fitted.n_components,
        fitted.covariance_type,
        prior=fitted.prior_,
        sample_weight=v,
        reg_covar=fitted.reg_covar,
        tol=fitted.tol,
        max_iter=fitted.max_iter,
        rng=rng,
        starts=[(fitted._parameters, np.asarray(fitted.covariances_))],
    )
    trouble = [] if found.best.converged else [f"EM ({kind.name}) did not converge in {fitted.max_iter} iterations"]
    if found.modes[0].spurious:
        trouble.append("the optimum is near-singular on few rows; give a prior or use fewer components")
    return kernel.log_density(held, found.best.parameters), trouble


def _bayesian_fold(
    fitted: Any, X: FloatArray, v: FloatArray | None, held: FloatArray, rng: np.random.Generator, draws: int
) -> tuple[FloatArray, list[str]]:
    """Log posterior-predictive density of held-out rows given the others, sampled from the full data's modes."""
    from bayesgmm.estimators.validation import feature_names
    from bayesgmm.inference.refit import FittedModel, refit, serious_problems

    model = FittedModel(
        structure(fitted.covariance_type),
        fitted.prior_,
        tuple(fitted.modes_),
        tuple(feature_names(fitted)),
        fitted.method_,
    )
    tune = 400 if isinstance(fitted.tune, str) else int(fitted.tune)
    chains = int(fitted.chains)
    result = refit(model, X, v, rng, max(25, draws // chains), chains, tune, fitted.cores)
    density = kernel.posterior_predictive(held, *result.draws.flat(), with_responsibilities=False)[0]
    return density, serious_problems(result.diagnostics, result.draws.n_chains * result.draws.n_draws)


@dataclass(frozen=True, eq=False)
class LabelledScores:
    """How well the components, read as classes, predict labels that were held out.

    Parameters
    ----------
    accuracy : float
        Share of the held-out labels that are predicted.
    accuracy_se : float
        Its binomial standard error.
    log_loss : float
        Mean of −log p(label), natural logarithm; smaller is better.
    log_loss_se : float
    adjusted_rand : float
        Adjusted Rand index of predicted against true labels, over all held-out rows: 1 for agreement, 0 on average by chance.
    fold_accuracy, fold_log_loss, fold_adjusted_rand : ndarray of shape (n_splits,)
    classes : ndarray of shape (C,)
        The labels, sorted.
    class_of_component : ndarray of shape (K,)
        Most probable class of each component, by all known labels; several components may share one.
    class_probabilities : ndarray of shape (K, C)
        p(class given component), by all known labels.
    rows : ndarray of shape (n,)
        Rows with a known label.
    predictions : ndarray of shape (n,)
        Their held-out predictions.
    n_splits : int
    """

    accuracy: float
    accuracy_se: float
    log_loss: float
    log_loss_se: float
    adjusted_rand: float
    fold_accuracy: FloatArray
    fold_log_loss: FloatArray
    fold_adjusted_rand: FloatArray
    classes: np.ndarray
    class_of_component: np.ndarray
    class_probabilities: FloatArray
    rows: IntArray
    predictions: np.ndarray
    n_splits: int

    def __str__(self) -> str:
        return (
            f"{len(self.rows)} known labels, {self.n_splits} folds: accuracy {self.accuracy:.3f} ± {self.accuracy_se:.3f}, log loss "
            f"{self.log_loss:.3f} ± {self.log_loss_se:.3f}, adjusted Rand index {self.adjusted_rand:.3f}"
        )


def labelled_scores(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    n_splits: int = 5,
    random_state: Any = None,
    sample_weight: ArrayLike | None = None,
) -> LabelledScores:
    """Cross-validated accuracy, log loss and adjusted Rand index of the components read as classes.

    The mixture is fitted to all rows without any label, once. In each fold the training labels say what the components mean, by
    p(c given k) = (Σ_n r_nk [y_n = c] + 1/C) / (Σ_n r_nk + 1) over the training rows, one row's worth of prior spread over the C
    classes; the held-out labels are predicted by p(c given x) = Σ_k r_k(x) p(c given k), and the most probable class.

    Parameters
    ----------
    estimator : GaussianMixture or BayesianGaussianMixture
        Unfitted, or fitted to X.
    X : array-like of shape (N, D)
    y : array-like of shape (N,)
        Labels, numbers or text; −1, None or NaN is unknown.
    n_splits : int, default 5
        Folds of the known labels, each with as nearly the same share of every class as can be.
    random_state : int, RandomState, Generator or None, default None
        Of the folds.
    sample_weight : array-like of shape (N,), optional
        Frequency weights of the fit, of the labels' counts and of the scores.

    Returns
    -------
    LabelledScores

    Raises
    ------
    TypeError
        If the estimator is of another kind.
    ValueError
        If y has another length than X, no known label or a single class, or fewer known labels than folds.

    References
    ----------
    Hubert & Arabie (1985), Comparing partitions, Journal of Classification 2, 193–218.
    """
    from sklearn.metrics import adjusted_rand_score

    from bayesgmm.estimators.validation import check_weights, generator

    fitted = _with_fit_checks(estimator, X, y, sample_weight)
    labels, known = known_labels(y)
    table = fitted._table(X)
    v = check_weights(sample_weight, table)
    rows = np.flatnonzero(known if v is None else known & (v > 0))
    classes, codes = np.unique(labels[rows], return_inverse=True)
    if n_splits > len(rows):
        raise ValueError(f"n_splits must be at most the number of known labels, {len(rows)}; got {n_splits}")
    v = np.ones(len(rows)) if v is None else v[rows]
    r = np.asarray(fitted.predict_proba(X))[rows]
    folds = fold_labels(len(rows), n_splits, generator(random_state), codes)
    probability = np.empty((len(rows), len(classes)))
    for fold in range(n_splits):
        held = folds == fold
        probability[held] = r[held] @ component_classes(r[~held], codes[~held], v[~held], len(classes))
    predicted = np.argmax(probability, axis=1)
    right = (predicted == codes).astype(float)
    loss = -np.log(probability[np.arange(len(rows)), codes])
    by_fold = [folds == fold for fold in range(n_splits)]
    final = component_classes(r, codes, v, len(classes))
    accuracy = float(np.average(right, weights=v))
    total = float(v.sum())
    return LabelledScores(
        accuracy=accuracy,
        accuracy_se=float(np.sqrt(accuracy * (1 - accuracy) / total)),
        log_loss=float(np.average(loss, weights=v)),
        log_loss_se=standard_error(loss, v) / total,
        adjusted_rand=float(adjusted_rand_score(codes, predicted)),
        fold_accuracy=np.array([np.average(right[at], weights=v[at]) for at in by_fold]),
        fold_log_loss=np.array([np.average(loss[at], weights=v[at]) for at in by_fold]),
        fold_adjusted_rand=np.array([adjusted_rand_score(codes[at], predicted[at]) for at in by_fold]),
        classes=classes,
        class_of_component=classes[np.argmax(final, axis=1)],
        class_probabilities=final,
        rows=rows,
        predictions=classes[predicted],
        n_splits=n_splits,
    )


def _with_fit_checks(estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None) -> Any:
    """Fit after the labels were looked at: a bad y should not cost a fit."""
    labels, known = known_labels(y)
    n_rows = len(X)  # type: ignore[arg-type]
    if len(labels) != n_rows:
        raise ValueError(f"y has {len(labels)} labels for {n_rows} rows of X")
    if not known.any():
        raise ValueError("y has no known label (−1, None and NaN are unknown): label some rows")
    if len(np.unique(labels[known])) < 2:
        raise ValueError(f"y has a single class, {labels[known][0]!r}, among its known labels: at least two are needed")
    return _fitted(estimator, X, sample_weight)


def known_labels(y: ArrayLike) -> tuple[np.ndarray, NDArray[np.bool_]]:
    """Labels (N,), and which of them are known: not −1, None or NaN.

    Raises
    ------
    ValueError
        If y is not one-dimensional, or mixes numbers and text.
    """
    values = np.asarray(y, dtype=object)
    if values.ndim != 1:
        raise ValueError(f"y must be one-dimensional, one label for each row; got shape {values.shape}")
    if isinstance(y, np.ndarray) and y.dtype.kind in "iufb":
        return values, (y == y) & (y != -1)
    known = np.array([not _is_unknown(value) for value in values], dtype=bool)
    labels = values.copy()
    kinds = {isinstance(value, str) for value in values[known]}
    if len(kinds) > 1:
        raise ValueError("y mixes numbers and text among its labels: use one of them")
    return labels, known


def _is_unknown(value: Any) -> bool:
    if value is None or str(value) in ("<NA>", "NaT"):
        return True
    return not isinstance(value, str) and bool(value != value or value == -1)


def component_classes(responsibilities: FloatArray, codes: IntArray, v: FloatArray, n_classes: int) -> FloatArray:
    """Probability of each class given a component, from labelled rows.

    Parameters
    ----------
    responsibilities : ndarray of shape (n, K)
    codes : ndarray of shape (n,)
        Class 0 … C − 1 of each row.
    v : ndarray of shape (n,)
        Weights of the rows.
    n_classes : int
        C.

    Returns
    -------
    ndarray of shape (K, C)
        Rows sum to 1; 1/C for a component without labelled rows.
    """
    counts = (responsibilities * v[:, None]).T @ np.eye(n_classes)[codes]
    return (counts + 1.0 / n_classes) / (counts.sum(axis=1, keepdims=True) + 1.0)
