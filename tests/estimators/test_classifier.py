from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, GaussianMixture, HierarchicalPrior, MixtureClassifier
from bayesgmm.criteria import bic
from bayesgmm.exceptions import DataWarning, SamplingInterrupted
from bayesgmm.inference import sampling
from tests import oracles
from tests.mixtures import STRUCTURES

HEART = next((d / "shared/data/SAheart.csv" for d in Path(__file__).parents if (d / "shared/data").is_dir()), None)
IRIS = load_iris()


def bayesian(**settings):
    defaults = {"draws": 250, "tune": 200, "target_ess": 0, "progressbar": False, "random_state": 0}
    return BayesianGaussianMixture(**(defaults | settings))


# Skipped by scikit-learn itself where SCIPY_ARRAY_API is not set; no expected failures.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.DataWarning")
@parametrize_with_checks([MixtureClassifier(), MixtureClassifier(GaussianMixture(covariance_type="tied", n_init=1))])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def two_classes(seed=0, n=120, shift=3.0):
    """Two features, unequal classes: "no" in two clumps, "yes" in one that overlaps both."""
    rng = np.random.default_rng(seed)
    y = rng.choice(["no", "yes"], n, p=[0.65, 0.35])
    centres = np.where((y == "no")[:, None], np.where(rng.random((n, 1)) < 0.5, 0.0, shift) * [1, 1], [shift / 2, 0.0])
    return centres + rng.standard_normal((n, 2)) * [1.0, 0.7], y


def unlabel(y, share, seed=1):
    hidden = np.random.default_rng(seed).random(len(y)) < share
    return np.where(hidden, None, y)


# EM


@pytest.mark.parametrize("priors", [None, (0.2, 0.5, 0.3)])
def test_one_full_component_a_class_is_quadratic_discriminant_analysis(priors):
    X, y = IRIS.data, IRIS.target_names[IRIS.target]
    ours = MixtureClassifier(GaussianMixture(reg_covar=0), priors=priors).fit(X, y)
    # Theirs divides by n_c − 1, ours by n_c: their covariances, and hence ours, by hand.
    parameters = [(np.mean(X[y == c], axis=0), np.cov(X[y == c].T, bias=True)) for c in ours.classes_]
    rho = np.full(3, 1 / 3) if priors is None else np.array(priors)
    logs = np.stack([stats.multivariate_normal(m, S).logpdf(X) for m, S in parameters], axis=1)
    np.testing.assert_allclose(ours.class_log_density(X), logs, rtol=1e-7)
    joint = np.exp(logs) * rho
    np.testing.assert_allclose(ours.predict_proba(X), joint / joint.sum(axis=1, keepdims=True), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours.score_samples(X), np.log(joint.sum(axis=1)), rtol=1e-7)
    np.testing.assert_allclose(ours.class_priors_, rho)
    theirs = QuadraticDiscriminantAnalysis(priors=priors).fit(X, y)
    # n_c = 50: their log densities are within 2 % of ours.
    assert np.mean(theirs.predict(X) == ours.predict(X)) > 0.99
    assert abs(theirs.predict_proba(X) - ours.predict_proba(X)).max() < 0.1


def test_one_tied_component_a_class_is_linear_discriminant_analysis():
    X, y = IRIS.data, IRIS.target
    ours = MixtureClassifier(GaussianMixture(covariance_type="tied", reg_covar=0)).fit(X, y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-6, atol=1e-10)
    assert all(m.covariances_ is ours.mixtures_[0].covariances_ for m in ours.mixtures_.values())


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_bayes_rule_by_hand(covariance_type):
    X, y = two_classes()
    found = MixtureClassifier(
        GaussianMixture(covariance_type=covariance_type), n_components={"yes": 1, "no": 2}, random_state=0
    ).fit(X, y)
    logs = np.empty((len(X), 2))
    for c, label in enumerate(found.classes_):
        own = found.mixtures_[label]
        matrices = oracles.expand_covariances(own.covariances_, covariance_type, len(own.weights_), 2)
        assert own.weights_.sum() == pytest.approx(1)
        logs[:, c] = oracles.mixture_log_density(X, own.weights_, own.means_, matrices)
        np.testing.assert_allclose(own.score_samples(X), logs[:, c], rtol=1e-9)
    np.testing.assert_allclose(found.class_log_density(X), logs, rtol=1e-9)
    joint = np.exp(logs) * found.class_priors_
    probability = joint / joint.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.predict_proba(X), probability, rtol=1e-8)
    np.testing.assert_allclose(np.exp(found.predict_log_proba(X)), probability, rtol=1e-8)
    np.testing.assert_array_equal(found.predict(X), found.classes_[probability.argmax(axis=1)])
    assert found.score(X, y) == np.mean(found.predict(X) == y)
    assert found.n_components_ == {"no": 2, "yes": 1}
    assert found.component_class_.tolist() == ["no", "no", "yes"]
    np.testing.assert_allclose(found.class_priors_, [np.mean(y == "no"), np.mean(y == "yes")])


def test_weights_count_rows():
    X, y = two_classes()
    v = np.random.default_rng(2).integers(0, 4, len(X))
    weighted = MixtureClassifier(n_components=2, random_state=0).fit(X, y, sample_weight=v)
    repeated = MixtureClassifier(n_components=2, random_state=0).fit(np.repeat(X, v, axis=0), np.repeat(y, v))
    np.testing.assert_allclose(weighted.class_priors_, repeated.class_priors_, rtol=1e-10)
    # Both stop where a step changes the objective by less than 1e-8 a row.
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=2e-3)
    right = weighted.predict(X) == y
    assert weighted.score(X, y, sample_weight=v) == pytest.approx(np.average(right, weights=v))


def test_given_priors_in_either_form():
    X, y = two_classes()
    by_label = MixtureClassifier(priors={"yes": 0.9, "no": 0.1}, random_state=0).fit(X, y)
    in_order = MixtureClassifier(priors=[0.1, 0.9], random_state=0).fit(X, y)
    np.testing.assert_array_equal(by_label.class_priors_, [0.1, 0.9])
    np.testing.assert_array_equal(by_label.predict_proba(X), in_order.predict_proba(X))


def test_a_criterion_chooses_components_for_each_class():
    rng = np.random.default_rng(3)
    X = np.concatenate([rng.normal(0, 1, 60), rng.normal(8, 1, 60), rng.normal(4, 1, 100)])[:, None]
    y = np.repeat([1, 2], [120, 100])
    found = MixtureClassifier(n_components="bic", max_components=3, random_state=0).fit(X, y)
    assert found.n_components_ == {1: 2, 2: 1}
    for label in (1, 2):
        own = X[y == label]
        # With more components than there are the best of several optima depends on the starts.
        for K in range(1, found.n_components_[label] + 1):
            value = found.component_criteria_[label][K]
            fit = GaussianMixture(K, random_state=0).fit(own)
            assert value == pytest.approx(bic(fit.score(own) * len(own), 3 * K - 1, len(own)), abs=0.01)
    for criterion in ("aic", "icl"):
        assert (
            MixtureClassifier(n_components=criterion, max_components=2, random_state=0).fit(X, y).n_components_[1] == 2
        )


def test_few_distinct_rows_bound_what_a_criterion_may_choose():
    X = np.array([[0.0], [1.0], [5.0], [6.0], [7.5], [6.5]])
    found = MixtureClassifier(n_components="aic", random_state=0).fit(X, [0, 0, 1, 1, 1, 1])
    assert max(found.component_criteria_[0]) <= 2


def test_components_of_the_estimator_are_the_default():
    X, y = two_classes()
    found = MixtureClassifier(GaussianMixture(2, random_state=0)).fit(X, y)
    assert found.n_components_ == {"no": 2, "yes": 2}
    assert clone(found).estimator.n_components == 2


def test_unlabelled_rows_make_the_fit_better():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 600)
    X = rng.standard_normal((600, 3)) + 2.2 * y[:, None] * [1, 1, 0]
    partial = np.where(np.arange(600) < 10, y.astype(float), np.nan)
    alone = MixtureClassifier(GaussianMixture(prior="default"), random_state=0).fit(X[:10], y[:10])
    together = MixtureClassifier(GaussianMixture(prior="default"), random_state=0).fit(X, partial)
    assert together.score(X[10:], y[10:]) > alone.score(X[10:], y[10:])
    assert together.score(X[10:], y[10:]) > 0.9  # Bayes' rule with the truth: Φ(2.2 √2 / 2) = 0.94
    assert together.score(X, partial) == np.mean(together.predict(X[:10]) == y[:10])  # known labels alone count
    np.testing.assert_allclose(together.class_priors_, [np.mean(y == 0), np.mean(y == 1)], atol=0.08)


@pytest.mark.parametrize(
    ("labels", "unknown"),
    [
        (["a", None, "b", "a", "b", "a"], [1]),
        (["a", np.nan, "b", "a", "b", "a"], [1]),
        (np.array([0, 1, -1, 0, 1, 0]), [2]),
        (np.array([0.0, np.nan, 1.0, 0.0, 1.0, -1.0]), [1, 5]),
        (pd.array([3, None, 5, 3, 5, 3], dtype="Int64"), [1]),
        (pd.Series(["x", None, "y", "x", "y", "x"], dtype="category"), [1]),
        (np.array([True, False, True, False, True, False]), []),
        (np.array([-1, 1, -1, 1, -1, 1]), []),
        (np.array([-1, 1, np.nan, 1, -1, 1]), [2]),
    ],
)
def test_unknown_labels(labels, unknown):
    X = np.arange(12.0).reshape(6, 2) ** 1.5
    found = MixtureClassifier(GaussianMixture(prior="default", covariance_type="diag"), random_state=0).fit(X, labels)
    assert found._layout.n_unlabelled == len(unknown)
    assert found._layout.positions[6 - len(unknown) :].tolist() == unknown
    assert len(found.classes_) == 2
    assert found.predict(X).dtype == found.classes_.dtype


# Rejection


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["no", "yes"], "unknown"), ([0, 1], -1), ([0.0, 1.0], -1.0), ([True, False], None), (["n", "y"], "unknown")],
)
def test_rows_that_no_class_explains_are_unknown(labels, expected):
    X, y = two_classes()
    own = np.array(labels)[(y == "yes").astype(int)]
    found = MixtureClassifier(reject=0.01, random_state=0).fit(X, own)
    new = np.array([[500.0, 500.0], [0.0, 0.0]])
    first, second = found.predict(new).tolist()
    assert first == expected or (first is None and expected is None)
    assert second in labels
    assert found.predict_proba(new).sum() == pytest.approx(2)
    assert found.score(new, [labels[0], second]) == 0.5


def test_rejection_has_the_rate_that_was_asked_for():
    X, y = two_classes(n=400)
    found = MixtureClassifier(reject=0.05, n_components=2, random_state=0).fit(X, y)
    rows, labels = clone(found).set_params(random_state=1).fit(X, y).sample(40_000)
    # Two samples, of 20,000 and 40,000 rows: five standard errors.
    assert np.mean(found.predict(rows) == "unknown") == pytest.approx(0.05, abs=5 * np.sqrt(0.05 * 0.95 * 1.5 / 20_000))
    np.testing.assert_allclose(np.mean(labels == "yes"), found.class_priors_[1], atol=5 * 0.5 / 200)
    kept = found.predict(rows) != "unknown"
    right = (found.predict(rows) == labels)[kept]
    assert right.mean() == pytest.approx(found.predict_proba(rows)[kept].max(axis=1).mean(), abs=5 * 0.5 / 200)


def test_rejection_by_a_given_density_and_label():
    X, y = two_classes()
    level = -4.0
    found = MixtureClassifier(reject_log_density=level, reject_label="neither", random_state=0).fit(X, y)
    low = found.score_samples(X) < level
    # Of simulated rows, and of some of the fitted ones.
    assert found.false_alarm_ == pytest.approx(low.mean(), abs=0.15)
    assert 0 < low.sum() < len(X)
    np.testing.assert_array_equal(found.predict(X) == "neither", low)
    np.testing.assert_array_equal(found.predict(X)[~low], MixtureClassifier(random_state=0).fit(X, y).predict(X)[~low])


def test_a_level_that_rejects_most_rows_is_warned_of():
    X, y = two_classes()
    with pytest.warns(DataWarning, match="100 % of the model's own rows lie below 1000") as seen:
        MixtureClassifier(reject_log_density=1000.0, random_state=0).fit(X, y)
    assert seen[0].filename == __file__


def test_samples_have_the_moments_of_their_class():
    X, y = two_classes(n=400)
    found = MixtureClassifier(n_components=2, random_state=0).fit(X, y)
    rows, labels = found.sample(20_000)
    for label in ("no", "yes"):
        own = found.mixtures_[label]
        mean = own.weights_ @ own.means_
        error = rows[labels == label].std(axis=0) / np.sqrt(np.sum(labels == label))
        assert np.all(np.abs(rows[labels == label].mean(axis=0) - mean) < 5 * error)
    np.testing.assert_array_equal(found.sample(5)[0], found.sample(5)[0])


# Posterior


@pytest.fixture(scope="module")
def data():
    X, y = two_classes(5, 90)
    return pd.DataFrame(X, columns=["p", "q"]), y


SCALE = ConjugatePrior(scale=np.array([[4.0, 0.0], [0.0, 2.0]]), mean_prior=[1.0, 0.5], degrees_of_freedom=4.0)


@pytest.fixture(scope="module")
def labelled(data):
    X, y = data
    return MixtureClassifier(bayesian(prior=SCALE, draws=750), n_components={"no": 2, "yes": 1}).fit(X, y)


@pytest.fixture(scope="module")
def partly(data):
    X, y = data
    return MixtureClassifier(bayesian(prior=SCALE, draws=750), n_components={"no": 2, "yes": 1}).fit(
        X, unlabel(y, 0.05)
    )


def draws_by_hand(classifier, X):
    """(S, N, C) class probabilities from what the DataTree holds, by scipy's densities."""
    group = classifier.idata_["posterior"].to_dataset().stack(sample=("chain", "draw"))
    w, m, V = (np.moveaxis(group[name].values, -1, 0) for name in ("weights", "means", "covariances"))
    owner = group["component_class"].values
    joint = np.exp(oracles.mixture_log_densities_of_draws(X, w, m, V)[1])
    classes = np.stack([joint[:, owner == str(c)].sum(axis=1) for c in classifier.classes_], axis=2)
    return classes / classes.sum(axis=2, keepdims=True), classes


def test_probabilities_are_averages_over_draws_with_their_sd(labelled, data):
    X = data[0][:20]
    p, joint = draws_by_hand(labelled, X.to_numpy())
    mean, sd = labelled.predict_proba(X, return_std=True)
    np.testing.assert_allclose(mean, p.mean(axis=0), rtol=1e-8)
    np.testing.assert_allclose(sd, p.std(axis=0), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(labelled.predict_proba(X), p.mean(axis=0), rtol=1e-8)
    np.testing.assert_allclose(labelled.predict_log_proba(X), np.log(p.mean(axis=0)), rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(labelled.predict(X), labelled.classes_[p.mean(axis=0).argmax(axis=1)])
    np.testing.assert_allclose(labelled.score_samples(X), np.log(joint.sum(axis=2).mean(axis=0)), rtol=1e-8)
    prior = labelled.idata_["posterior"]["class_priors"].values.reshape(-1, 2)
    np.testing.assert_allclose(labelled.class_priors_, prior.mean(axis=0))
    expected = np.log((joint / prior[:, None]).mean(axis=0))
    np.testing.assert_allclose(labelled.class_log_density(X), expected, rtol=1e-7, atol=1e-9)
    for c, label in enumerate(labelled.classes_):
        np.testing.assert_allclose(labelled.mixtures_[label].score_samples(X), expected[:, c], rtol=1e-7, atol=1e-9)


def test_separate_fits_under_the_same_prior_agree(labelled, data):
    X, y = data
    assert labelled.diagnostics_.ok
    logs, scale, error = [], [], []
    for label, K in (("no", 2), ("yes", 1)):
        # The other parts of the prior are given; the Dirichlet's α is 1 for all.
        own = bayesian(n_components=K, prior=SCALE, draws=750, random_state=3).fit(X[y == label])
        ours = labelled.mixtures_[label]
        logs.append((own.score_samples(X[y == label]), ours.score_samples(X[y == label])))
        if K == 1:
            # 3,000 draws each, ESS of 1,000 at least: four standard errors of the difference.
            deviation = own._draws.means.std(axis=(0, 1))
            np.testing.assert_allclose(own.means_, ours.means_, atol=float(4 * deviation.max() * np.sqrt(2 / 1000)))
        scale.append(np.sum(y == label) + K)
    for alone, together in logs:
        # Predictive densities of the class's rows: their Monte Carlo error is a few per cent in the tails.
        np.testing.assert_allclose(alone, together, atol=0.12)
        error.append(np.mean(np.abs(alone - together)))
    assert max(error) < 0.02
    # Class priors are Dirichlet(n_c + K_c).
    expected = stats.beta(*scale)
    prior = labelled.idata_["posterior"]["class_priors"].values[..., 0]
    assert prior.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / np.sqrt(1000))
    assert prior.std() == pytest.approx(expected.std(), rel=0.1)


def test_a_few_labels_removed_change_little(labelled, partly, data):
    X = data[0]
    assert partly.diagnostics_.ok
    a, sd = labelled.predict_proba(X, return_std=True)
    b = partly.predict_proba(X)
    # Five of ninety labels tell less than the posterior is uncertain by.
    assert np.all(np.abs(a - b) < sd.max())
    assert np.mean(np.abs(a - b)) < 0.03
    codes = partly.idata_["observed_data"]["class_code"].values
    y = unlabel(data[1], 0.05)
    assert [{0: "no", 1: "yes", -1: None}[int(c)] for c in codes] == y.tolist()
    np.testing.assert_array_equal(partly.idata_["observed_data"]["x"].values, X.to_numpy())


def test_what_a_posterior_fit_holds(partly, data):
    X, _ = data
    assert partly.idata_["posterior"]["component_class"].values.tolist() == ["no", "no", "yes"]
    assert partly.idata_["posterior"]["means"].dims == ("chain", "draw", "component_id", "feature")
    assert partly.prior_.is_resolved
    assert partly.map_.n_components == 3
    assert partly.mixtures_["no"].means_.shape == (2, 2)
    assert partly.mixtures_["no"].predict_proba(X).shape == (90, 2)
    table = partly.mixtures_["yes"].summary()
    own = partly.idata_["posterior"]["means"].values[:, :, 2, 1]
    assert table.loc["means[0, q]", "mean"] == pytest.approx(own.mean())
    assert table.loc["means[0, q]", "ess_bulk"] == partly.diagnostics_.parameters.loc["means[2, q]", "ess_bulk"]
    assert len(partly.mixtures_["no"].assign(X)) == 90
    rows, labels = partly.sample(3000)
    share = np.mean(labels == "yes")
    assert share == pytest.approx(partly.class_priors_[1], abs=5 * 0.5 / np.sqrt(3000) + 0.01)
    assert rows.shape == (3000, 2)
    assert partly.mixtures_["yes"].sample(4)[0].shape == (4, 2)


def test_the_posterior_rejects_too(data):
    X, y = data
    found = MixtureClassifier(bayesian(method="laplace"), reject=0.02).fit(X, y)
    far = pd.DataFrame([[100.0, -100.0], [0.0, 0.0]], columns=["p", "q"])
    assert found.predict(far).tolist() == ["unknown", "no"]
    rows, _ = found.sample(5000)
    rate = np.mean(found.predict(pd.DataFrame(rows, columns=["p", "q"])) == "unknown")
    assert rate == pytest.approx(0.02, abs=5 * np.sqrt(0.02 / 5000))


def test_given_class_priors_are_held_in_the_posterior(data):
    X, y = data
    found = MixtureClassifier(bayesian(method="laplace"), n_components=1, priors=[0.2, 0.8]).fit(X, unlabel(y, 0.4))
    np.testing.assert_allclose(found.class_priors_, [0.2, 0.8])
    np.testing.assert_allclose(found.idata_["posterior"]["weights"].values[..., 1], 0.8)
    np.testing.assert_allclose(found.idata_["constant_data"]["class_priors"], [0.2, 0.8])


@pytest.mark.parametrize("covariance_type", ["tied", "spherical"])
def test_other_structures_and_the_hierarchical_prior(data, covariance_type):
    X, y = data
    settings = {"covariance_type": covariance_type, "prior": HierarchicalPrior(), "draws": 750}
    found = MixtureClassifier(bayesian(**settings), n_components={"no": 2, "yes": 1}).fit(X, unlabel(y, 0.2))
    assert found.score(X, y) > 0.7
    assert found.diagnostics_.r_hat < 1.1
    assert "precision_rate" in found.idata_["posterior"]


def test_a_fit_that_did_not_converge_says_so(data):
    X, y = data
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = MixtureClassifier(bayesian(draws=8, tune=10, target_ess=400, max_draws=8, n_components=2)).fit(X, y)
    assert not found.diagnostics_.ok
    assert found.diagnostics_.problems
    assert [str(w.message) for w in seen if w.category is ConvergenceWarning] == list(found.diagnostics_.problems)
    assert all(w.filename == __file__ for w in seen)


def test_an_interrupted_fit_is_handed_over(data, monkeypatch):
    X, y = data
    real = sampling.sample_posterior
    monkeypatch.setattr(sampling, "sample_posterior", lambda *a: replace(real(*a), interrupted="stopped by the user"))
    with pytest.raises(SamplingInterrupted, match="stopped by the user") as caught:
        MixtureClassifier(bayesian(method="laplace")).fit(X, y)
    assert caught.value.estimator.predict(X).shape == (90,)


def test_em_did_not_converge(data):
    X, y = data
    with pytest.warns(ConvergenceWarning, match="max_iter") as seen:
        found = MixtureClassifier(GaussianMixture(2, max_iter=2, tol=0), random_state=0).fit(X, y)
    assert not found.converged_
    assert all(w.filename == __file__ for w in seen)


# Real data


@pytest.mark.skipif(HEART is None, reason="SAheart.csv is not shipped: it lies beside the repository")
def test_heart_disease_by_age():
    table = pd.read_csv(HEART)
    X, y = table[["age"]], table["chd"]
    em = MixtureClassifier(n_components=2, random_state=0).fit(X, y)
    for label in (0, 1):
        alone = GaussianMixture(2, random_state=0).fit(X[y == label])
        # Both stop where a step changes the objective by less than 1e-8 a row.
        np.testing.assert_allclose(em.mixtures_[label].score_samples(X), alone.score_samples(X), atol=2e-3)
    np.testing.assert_allclose(em.class_priors_, [302 / 462, 160 / 462])
    # Ages in whole years that end at 64 have components of very unlike spreads: a scale that is random fits them better than a common one.
    settings = bayesian(draws=750, prior=HierarchicalPrior())
    post = MixtureClassifier(settings, n_components=2).fit(X, y)
    ages = pd.DataFrame({"age": [17.0, 40.0, 60.0]})
    probability, sd = post.predict_proba(ages, return_std=True)
    np.testing.assert_allclose(em.predict_proba(ages), probability, atol=0.05)
    assert np.all((sd[:, 1] > 0) & (sd[:, 1] < 0.06))
    # The share with the disease among people of about that age, some fifty each: four standard errors.
    near = np.abs(table["age"].to_numpy() - ages.to_numpy()) <= 3
    shares = np.array([y[at].mean() for at in near])
    error = np.sqrt(shares * (1 - shares) / near.sum(axis=1))
    assert np.all(np.abs(probability[:, 1] - shares) < 4 * error)
    half = y.astype(float).where(table.index % 2 == 0)
    partly = MixtureClassifier(settings, n_components=2).fit(X, half)
    # Half of the labels: the posterior is about 1.5 times as wide.
    assert np.all(np.abs(partly.predict_proba(ages) - probability) < 4 * 1.5 * sd)


def test_breast_cancer_beside_quadratic_discriminant_analysis():
    names = ["mean radius", "mean texture", "mean smoothness", "mean concavity"]
    cancer = load_breast_cancer(as_frame=True)
    X, y = cancer.data[names], cancer.target
    quadratic = make_pipeline(StandardScaler(), QuadraticDiscriminantAnalysis())
    theirs = cross_val_score(quadratic, X, y, cv=5).mean()
    one = cross_val_score(MixtureClassifier(random_state=0), X, y, cv=5).mean()
    # The same rule but for n_c against n_c − 1.
    assert one == pytest.approx(theirs, abs=0.005)
    two = cross_val_score(MixtureClassifier(GaussianMixture(2, prior="default"), random_state=0), X, y, cv=5).mean()
    assert two > theirs - 0.01
    assert two > 0.92


# Bad input


@pytest.mark.parametrize(
    ("parameters", "y", "message"),
    [
        ({}, None, "requires y to be passed, but the target y is None"),
        ({}, ["a"] * 6, r"y has a single class, 'a'"),
        ({}, [None] * 6, "y has no known label"),
        ({}, ["a", "b"], "y has 2 labels for 6 rows"),
        ({}, ["a", "b", 1, 2, 1, 2], "mixes numbers and text"),
        ({}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "Unknown label type"),
        ({}, [0, 1, np.inf, 1, 0, 1.0], "infinity"),
        ({"n_components": 3}, list("aabbbb"), r"class 'a' has 2 distinct labelled rows for 3 components"),
        ({"n_components": {"a": 1}}, list("aaabbb"), r"n_components lacks 'b'; the classes are 'a', 'b'"),
        (
            {"n_components": {"a": 1, "b": 1, "c": 2}},
            list("aaabbb"),
            r"n_components has 'c', not among the labels of y",
        ),
        ({"n_components": {"a": 1, "b": 0}}, list("aaabbb"), r"n_components of class 'b' must be an integer"),
        ({"n_components": "loo"}, list("aaabbb"), "n_components"),
        ({"estimator": GaussianMixture(reg_covar=0)}, list("abbbbb"), r"class 'a' has a single distinct labelled row"),
        ({"priors": [0.5, 0.6]}, list("aaabbb"), "priors must sum to 1; they sum to 1.1"),
        ({"priors": [1.0, 0.0]}, list("aaabbb"), "priors must be positive"),
        ({"priors": [1.0]}, list("aaabbb"), "one value for each of the 2 classes"),
        ({"priors": {"a": 0.5, "c": 0.5}}, list("aaabbb"), r"priors has 'c', not among the labels of y"),
        ({"reject": 0.0}, list("aaabbb"), "reject"),
        ({"reject": 0.1, "reject_log_density": -3}, list("aaabbb"), "not both"),
        ({"reject_log_density": np.nan}, list("aaabbb"), "must be finite; got nan"),
        ({"reject": 0.1, "reject_label": "a"}, list("aaabbb"), r"reject_label 'a' is one of the classes"),
        ({"reject": 0.1}, [-1, 1, 1, -1, 1, 1], r"reject_label -1 is one of the classes"),
        ({"estimator": GaussianMixture(means_init=np.zeros((1, 1)))}, list("aaabbb"), "means_init of the estimator"),
        ({"estimator": GaussianMixture(tol=-1)}, list("aaabbb"), "tol"),
        ({"estimator": StandardScaler()}, list("aaabbb"), "estimator"),
        (
            {"estimator": GaussianMixture(prior=ConjugatePrior(weight_concentration=0.5))},
            list("aaabbb"),
            "weight_concentration ≥ 1",
        ),
    ],
)
def test_bad_input_is_one_clear_error(parameters, y, message):
    X = np.array([[0.0], [1.0], [2.5], [4.0], [6.0], [7.0]])
    with pytest.raises(ValueError, match=message):
        MixtureClassifier(**parameters).fit(X, y)


def test_a_class_with_one_row_is_warned_of():
    X = np.array([[0.0], [1.0], [2.5], [4.0]])
    with (
        pytest.warns(DataWarning, match="class 'a' has a single distinct labelled row"),
        pytest.warns(ConvergenceWarning),
    ):
        MixtureClassifier(random_state=0).fit(X, list("abbb"))


def test_a_column_of_labels_is_warned_of():
    X, y = two_classes()
    with pytest.warns(DataConversionWarning):
        MixtureClassifier().fit(X, y[:, None])


def test_a_class_without_covariance_is_named():
    X = np.array([[0.0, 0], [1, 1], [2, 2], [4, 0], [5, 2], [7, 1.5]])
    with pytest.raises(ValueError, match="class a: no start led to positive definite covariances"):
        MixtureClassifier(GaussianMixture(reg_covar=0)).fit(X, list("aaabbb"))


def test_columns_are_matched_by_name(data):
    X, y = data
    found = MixtureClassifier().fit(X, y)
    with pytest.raises(ValueError, match="feature names"):
        found.predict(X[["q", "p"]])
    np.testing.assert_array_equal(found.class_log_density(X[["q", "p"]]), found.class_log_density(X))
    with pytest.raises(ValueError, match="column 'q' is missing"):
        found.class_log_density(X[["p"]])
    with pytest.raises(ValueError, match="now missing:\n- q"):
        found.predict(X[["p"]])
    with pytest.raises(ValueError, match="return_std needs"):
        found.predict_proba(X, return_std=True)
    with pytest.raises(ValueError, match="nothing to score by"):
        found.score(X, [None] * len(X))
    with pytest.raises(ValueError, match="n_samples"):
        found.sample(0)


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "predict_log_proba", "score_samples", "class_log_density"]
)
def test_an_unfitted_classifier(method):
    with pytest.raises(NotFittedError):
        getattr(MixtureClassifier(), method)([[0.0]])
