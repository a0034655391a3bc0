"""K-fold against plain loops, labelled scores against hand computations."""

from __future__ import annotations

import arviz as az
import numpy as np
import pandas as pd
import pytest
from sklearn.mixture import GaussianMixture as SklearnMixture

from bayesgmm import BayesianGaussianMixture, GaussianMixture, kfold, labelled_scores
from bayesgmm.core.covariance import structure
from bayesgmm.core.priors import ConjugatePrior
from bayesgmm.crossvalidation import component_classes, fold_labels, known_labels
from bayesgmm.datasets import load_faithful
from bayesgmm.exceptions import CriterionWarning
from tests import oracles

X = load_faithful().to_numpy(dtype=float)
SEPARATED = np.concatenate([np.random.default_rng(0).normal(m, 1, (20, 2)) for m in (0, 12)])


def small_posterior(**changes) -> BayesianGaussianMixture:
    settings = {"method": "laplace", "draws": 250, "progressbar": False, "random_state": 0}
    return BayesianGaussianMixture(1, **(settings | changes))


# --- folds ----------------------------------------------------------------------------------------------------------


def test_folds_are_even_random_and_reproducible():
    folds = fold_labels(103, 10, np.random.default_rng(1))
    assert sorted(np.bincount(folds)) == [10] * 7 + [11] * 3
    assert np.array_equal(folds, fold_labels(103, 10, np.random.default_rng(1)))
    assert not np.array_equal(folds, fold_labels(103, 10, np.random.default_rng(2)))
    strata = np.repeat([0, 1], [90, 13])
    folds = fold_labels(103, 10, np.random.default_rng(1), strata)
    assert set(np.bincount(folds[strata == 1], minlength=10)) == {1, 2}


# --- kfold ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_kfold_of_em_is_a_plain_loop_over_scikit_learn(covariance_type):
    em = GaussianMixture(2, covariance_type=covariance_type, tol=1e-10, random_state=0).fit(X)
    found = kfold(em, X, n_splits=5, random_state=7)
    folds = fold_labels(len(X), 5, np.random.default_rng(7))
    expected = np.empty(len(X))
    for fold in range(5):
        held = folds == fold
        other = SklearnMixture(
            2,
            covariance_type=covariance_type,
            tol=1e-10,
            max_iter=5000,
            weights_init=em.weights_,
            means_init=em.means_,
            precisions_init=em.precisions_,
        ).fit(X[~held])
        expected[held] = other.score_samples(X[held])
    # Two climbs to the same optimum that end at a change of 1e-10 a row: parameters within 1e-4 of a standard deviation.
    assert np.allclose(found.elpd_i, expected, rtol=0, atol=1e-3)
    assert found.elpd == pytest.approx(expected.sum(), abs=1e-2)
    assert found.se == pytest.approx(np.sqrt(len(X) * np.var(expected, ddof=1)), abs=1e-2)
    in_sample = em.score_samples(X).sum()
    assert found.p == pytest.approx(in_sample - expected.sum(), abs=1e-2)
    assert found.n_folds == 5
    assert "elpd_kfold" in str(found)


def test_kfold_fits_an_unfitted_estimator_and_leaves_it_alone():
    fresh = GaussianMixture(2, random_state=0)
    found = kfold(fresh, X, n_splits=3, random_state=1)
    assert not hasattr(fresh, "means_")
    assert found.elpd == kfold(GaussianMixture(2, random_state=0).fit(X), X, n_splits=3, random_state=1).elpd
    table = az.compare({"two": found, "one": kfold(GaussianMixture(1), X, n_splits=3, random_state=1)})
    assert list(table.index) == ["two", "one"]


def test_kfold_of_a_posterior_is_exact_at_one_component():
    rows = SEPARATED[:20]
    post = small_posterior().fit(rows)
    found = kfold(post, rows, n_splits=4, random_state=3, draws=4000)
    folds = fold_labels(20, 4, np.random.default_rng(3))
    prior = oracle_values(post.prior_)
    expected = []
    for row in range(20):
        rest = rows[folds != folds[row]]
        with_row = oracles.one_component_log_evidence(np.concatenate([rest, rows[row : row + 1]]), prior)
        expected.append(with_row - oracles.one_component_log_evidence(rest, prior))
    # p(x | rest) as a ratio of evidences, the prior as resolved on all rows; 4000 importance-resampled draws against 15 rows:
    # densities vary by a factor of e^0.5 to e from draw to draw, 2 to 5 % in the mean.
    assert np.allclose(found.elpd_i, expected, rtol=0, atol=0.12)
    assert found.elpd == pytest.approx(np.sum(expected), abs=0.3)
    assert found.n_samples == 4000


def oracle_values(prior: ConjugatePrior) -> oracles.PriorValues:
    return oracles.PriorValues(
        prior.resolved_concentration,
        prior.resolved_mean,
        float(prior.mean_precision),
        prior.resolved_degrees_of_freedom,
        prior.resolved_scale,
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.CriterionWarning")
def test_kfold_samples_by_nuts_from_the_full_data_modes():
    post = BayesianGaussianMixture(
        2, draws=100, tune=150, chains=2, target_ess=0, max_draws=100, progressbar=False, random_state=0
    )
    found = kfold(post, SEPARATED, n_splits=2, random_state=0, draws=200)
    fitted = kfold(GaussianMixture(2, prior="default", random_state=0), SEPARATED, n_splits=2, random_state=0)
    # Averaging over the posterior guards against the plug-in's overconfidence with ten rows a component.
    assert found.elpd > fitted.elpd
    assert np.isfinite(found.elpd_i).all()


def test_kfold_weights_are_repeated_rows():
    rows, v = SEPARATED, np.tile([1.0, 3.0], 20)
    em = GaussianMixture(2, tol=1e-12, random_state=0).fit(rows, sample_weight=v)
    found = kfold(em, rows, n_splits=4, sample_weight=v, random_state=2)
    folds = fold_labels(40, 4, np.random.default_rng(2))
    expected = 0.0
    for fold in range(4):
        held = folds == fold
        rest = np.repeat(rows[~held], v[~held].astype(int), axis=0)
        other = GaussianMixture(2, tol=1e-12, random_state=0).fit(rest)
        expected += float(v[held] @ other.score_samples(rows[held]))
    # Separated clusters: one optimum, reached to 1e-12 a row from either start.
    assert found.elpd == pytest.approx(expected, abs=1e-3)


def test_kfold_names_what_is_wrong():
    with pytest.raises(ValueError, match="between 2 and the number of rows, 272; got 1"):
        kfold(GaussianMixture(1), X, n_splits=1)
    with pytest.raises(ValueError, match="got 300"):
        kfold(GaussianMixture(1), X, n_splits=300)
    with pytest.raises(TypeError, match="got GaussianMixture|got SklearnMixture"):
        kfold(SklearnMixture(1), X)
    with pytest.raises(ValueError, match="contains NaN"):
        kfold(GaussianMixture(1), np.where(X > 90, np.nan, X))
    post = small_posterior().fit(SEPARATED)
    with pytest.raises(ValueError, match="fitted to other data"):
        kfold(post, SEPARATED + 1)
    slow = GaussianMixture(2, random_state=0).fit(X).set_params(max_iter=1, tol=0.0)
    with pytest.warns(CriterionWarning, match="3 problems in 3 folds"):
        assert kfold(slow, X, n_splits=3, random_state=0).warning


# --- labels ---------------------------------------------------------------------------------------------------------


def test_component_classes_by_hand():
    r = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    # Component 0: 1 × 2 of class 0, 0.5 of class 1; component 1: 0.5 of class 1, 1 of class 0. One row spread over two classes.
    expected = np.array([[2.5 / 3.5, 1.0 / 3.5], [1.5 / 2.5, 1.0 / 2.5]])
    found = component_classes(r, np.array([0, 1, 0]), np.array([2.0, 1.0, 1.0]), 2)
    assert np.allclose(found, expected, rtol=1e-12)


def test_scores_by_hand():
    # Two clusters 12 sd apart: responsibilities are 0 or 1, so that every score is a matter of counting.
    y = np.array([0] * 20 + [1] * 20)
    y[[3, 25]] = 1, 0
    em = GaussianMixture(2, random_state=0).fit(SEPARATED)
    found = labelled_scores(em, SEPARATED, y, n_splits=40, random_state=0)
    first = np.arange(40) < 20
    right = np.ones(40, dtype=bool)
    right[[3, 25]] = False
    loss = []
    for row in range(40):
        rest = first == first[row]
        rest[row] = False
        loss.append(-np.log(((y[rest] == y[row]).sum() + 0.5) / (rest.sum() + 1)))
    assert found.accuracy == pytest.approx(38 / 40)
    assert found.log_loss == pytest.approx(np.mean(loss), rel=1e-9)
    assert found.log_loss_se == pytest.approx(np.std(loss, ddof=1) / np.sqrt(40), rel=1e-9)
    # Of the pairs: 2 × C(19, 2) + 2 × 0 agree within both; the index by Hubert & Arabie (1985).
    within, rows_, total = 2 * 171, 2 * 190, 780
    chance = rows_ * rows_ / total
    assert found.adjusted_rand == pytest.approx((within - chance) / (rows_ - chance))
    assert found.fold_accuracy.sum() == 38
    assert "accuracy 0.950" in str(found)


def test_several_components_share_a_class_and_labels_stay_hidden():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(m, 1, (30, 1)) for m in (0, 20, 40)])
    y = np.repeat(["out", "in", "out"], 30).astype(object)
    hidden = rng.random(90) < 0.5
    y[hidden] = None
    em = GaussianMixture(3, random_state=0).fit(rows)
    found = labelled_scores(em, rows, y, random_state=0)
    order = np.argsort(em.means_[:, 0])
    assert list(found.class_of_component[order]) == ["out", "in", "out"]
    assert found.accuracy == 1.0
    assert list(found.rows) == list(np.flatnonzero(~hidden))
    assert list(found.predictions) == list(y[~hidden])
    again = labelled_scores(em, rows, y, random_state=0)
    assert again.log_loss == found.log_loss


@pytest.mark.parametrize("unknown", [-1, None, np.nan, pd.NA])
def test_every_mark_of_an_unknown_label(unknown):
    y = [5, unknown, 7, 5]
    labels, known = known_labels(y)
    assert list(known) == [True, False, True, True]
    assert list(labels[known]) == [5, 7, 5]
    assert list(known_labels(pd.Series(y))[1]) == list(known)


def test_scores_of_a_posterior_and_of_labels_by_chance():
    y = np.random.default_rng(1).integers(2, size=40)
    post = small_posterior().set_params(n_components=2).fit(SEPARATED)
    found = labelled_scores(post, SEPARATED, y, random_state=0)
    # Labels without any relation: the index is 0 on average, with a spread of some 0.05 at 40 rows.
    assert abs(found.adjusted_rand) < 0.2
    assert found.log_loss > 0.6


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], "2 labels for 40 rows"),
        ([-1] * 40, "no known label"),
        ([None] * 39 + [3], "single class, 3"),
        ([0, 1] + [None] * 38, "at most the number of known labels, 2"),
        ([[0, 1]] * 40, "one-dimensional"),
        ([0, "a"] * 20, "mixes numbers and text"),
    ],
)
def test_bad_labels_are_refused_before_any_fit(y, message):
    with pytest.raises(ValueError, match=message):
        labelled_scores(GaussianMixture(2, random_state=0), SEPARATED, y)


def test_parameter_counts_per_structure():
    # K = 3, D = 4: 2 weights, 12 means, and the covariances' own.
    counts = {name: structure(name).n_parameters(3, 4) for name in ("full", "tied", "diag", "spherical")}
    assert counts == {"full": 14 + 30, "tied": 14 + 10, "diag": 14 + 12, "spherical": 14 + 3}
