from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks

from bayesgmm import AnomalyDetector, BayesianGaussianMixture, ConjugatePrior, GaussianMixture
from bayesgmm.exceptions import CriterionWarning, DataWarning
from tests.oracles import mixture_log_density


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.DataWarning")
@parametrize_with_checks(
    [
        # The three blobs of the checks; a single normal would rightly find no row of theirs strange.
        AnomalyDetector(GaussianMixture(3, n_init=1, random_state=0), n_simulated=2000),
        AnomalyDetector(contamination=0.1, n_simulated=2000),
    ],
    # Three components for 15 rows: which optimum a start leads to hangs on the order of the rows. One component passes.
    expected_failed_checks=lambda detector: (
        {"check_sample_weight_equivalence_on_dense_data": "another optimum"} if detector.estimator is not None else {}
    ),
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def student(prior, X):
    """Posterior predictive of one normal component: degrees of freedom, location and scale matrix (Murphy 2007, eq. 258)."""
    N, D = X.shape
    kappa, nu = prior.mean_precision + N, prior.degrees_of_freedom + N
    centre = np.asarray(prior.mean_prior)
    mean = (prior.mean_precision * centre + X.sum(axis=0)) / kappa
    spread = (X - centre).T @ (X - centre) - kappa * np.outer(mean - centre, mean - centre)
    scale = np.asarray(prior.scale) + spread
    df = nu - D + 1
    return df, mean, scale * (kappa + 1) / (kappa * df), (kappa, nu, scale)


def exact_tail(prior, X, rows):
    """P(p(x_new) ≤ p(x)) under that distribution: an F probability."""
    df, mean, scale, _ = student(prior, X)
    d = rows - mean
    squares = np.einsum("nd,nd->n", d, np.linalg.solve(scale, d.T).T)
    D = X.shape[1]
    return stats.f.sf(squares / D, D, df), np.atleast_1d(stats.multivariate_t(mean, scale, df).logpdf(rows))


@pytest.fixture(scope="module")
def one_component():
    """Twenty-five rows of a normal, with a row 4 sd away, and the posterior of K = 1 under a known prior."""
    rng = np.random.default_rng(0)
    X = np.vstack([rng.multivariate_normal([1.0, -2.0], [[1.0, 0.6], [0.6, 2.0]], 24), [[5.0, -6.0]]])
    prior = ConjugatePrior(mean_prior=[0.0, 0.0], mean_precision=0.1, degrees_of_freedom=5.0, scale=np.eye(2))
    post = BayesianGaussianMixture(1, prior=prior, draws=1000, random_state=1, progressbar=False).fit(X)
    return X, prior, post, AnomalyDetector(FrozenEstimator(post), n_draws=4000, random_state=2).fit(None)


def test_tail_probability_of_new_rows_is_exact_for_one_component(one_component):
    X, prior, _, detector = one_component
    rows = np.array([[1.0, -2.0], [2.5, -2.0], [4.0, 1.0], [-4.0, 3.0], [9.0, 9.0]])
    exact, log_density = exact_tail(prior, X, rows)
    p, error = detector.predictive_tail_probability(rows, return_error=True)
    # The density rests on 4000 draws; far out, on the few of them that reach there.
    np.testing.assert_allclose(detector.score_samples(rows)[:3], log_density[:3], atol=0.1)
    assert np.all(error[:3] < 0.25 * p[:3])
    assert np.all(np.abs(p - exact)[:3] < 4 * error[:3])
    # Beyond what 4000 draws can say (exact: 1e-6 and 1e-10), only the size is right.
    assert np.all(p[3:] < 1e-5)


def test_fitted_rows_are_left_out_exactly_for_one_component(one_component):
    X, prior, _, detector = one_component
    p, error = detector.predictive_tail_probability(return_error=True)
    left_out = detector.table()["log_density"]
    for n in range(len(X)):
        exact, log_density = exact_tail(prior, np.delete(X, n, axis=0), X[n : n + 1])
        if n == 24:
            # Exact: 3e-9. A thousand draws of a refit say no more than that it is small.
            assert p[n] < 1e-4
            continue
        # Importance sampling's own error is not in `error`.
        assert abs(p[n] - exact[0]) < 4 * error[n] + 0.1 * exact[0]
        assert left_out[n] == pytest.approx(log_density[0], abs=0.2)
    # In place the outlier vouches for itself.
    assert detector.predictive_tail_probability(X)[-1] > 20 * p[-1]
    assert detector._left_out().refitted.tolist() == [24]


@pytest.mark.slow
def test_anomaly_probability_against_draws_of_the_exact_posterior(one_component):
    X, prior, _, detector = one_component
    rng = np.random.default_rng(5)
    _, mean, _, (kappa, nu, scale) = student(prior, X)
    covariances = stats.invwishart(nu, scale).rvs(20_000, random_state=rng)
    means = mean + np.einsum("sij,sj->si", np.linalg.cholesky(covariances / kappa), rng.standard_normal((20_000, 2)))
    rows = np.array([[1.0, -2.0], [3.0, -3.0], [3.2, -0.5], [4.0, 1.0]])
    d = rows[:, None] - means
    squares = np.einsum("nsi,sij,nsj->ns", d, np.linalg.inv(covariances), d)
    log_density = -0.5 * squares - np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(covariances)[1]
    for threshold, below in (
        ("fixed", log_density < detector.offset_),
        ("draw", squares > stats.chi2.isf(detector.false_alarm_, 2)),
    ):
        p, error = detector.anomaly_probability(rows, threshold=threshold, return_error=True)
        exact = below.mean(axis=1)
        # The quantile of a draw is known from 2000 simulated rows: some 5 % of the rate.
        allowed = 4 * np.hypot(error, np.sqrt(exact * (1 - exact) / 20_000)) + (0.03 if threshold == "draw" else 0)
        assert np.all(np.abs(p - exact) <= allowed), threshold
    assert detector.anomaly_probability(rows)[0] == 0
    np.testing.assert_allclose(
        detector.anomaly_probability(rows, threshold="draw", false_alarm=0.5),
        (squares > stats.chi2.isf(0.5, 2)).mean(axis=1),
        atol=0.05,
    )


@pytest.fixture(scope="module")
def clusters():
    """Two clusters, a tiny third one, and a stray row; named columns."""
    rng = np.random.default_rng(3)
    X = np.vstack(
        [
            rng.normal([0, 0], 1, (150, 2)),
            rng.normal([10, 0], 1, (100, 2)),
            rng.normal([0, 12], 0.4, (4, 2)),
            [[5.0, 6.0]],
        ]
    )
    frame = pd.DataFrame(X, columns=["width", "height"])
    with warnings.catch_warnings():
        # 500 draws of a component of four rows: R-hat is about its limit, and these tests are not about it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        post = BayesianGaussianMixture(3, draws=500, random_state=0, progressbar=False).fit(frame)
    return frame, post, AnomalyDetector(FrozenEstimator(post), small_component=0.05, random_state=0).fit(None)


def test_two_kinds_of_anomaly(clusters):
    frame, post, detector = clusters
    table = detector.table(frame)
    assert list(table["kind"][250:254].unique()) == ["small component"]
    new = detector.table(pd.DataFrame({"height": [0.0, 6.0], "width": [0.0, 5.0]}))
    assert new["kind"].tolist() == ["ok", "far"]
    assert new["component"].tolist()[1] == -1
    assert new["reason"].tolist() == ["ok", "far"]
    # Directly, a draw at a time.
    weights, means, factors = post._draws.thinned(1000).flat()
    total = np.zeros(len(frame))
    for w, m, P in zip(weights, means, factors):
        mixture = GaussianMixture.from_parameters(w, m, np.linalg.inv(P @ P.swapaxes(1, 2)))
        total += mixture.predict_proba(frame.to_numpy()) @ (w < 0.05)
    np.testing.assert_allclose(table["small_component_probability"], total / len(weights), atol=1e-9)


def test_columns_are_taken_by_name_and_the_index_is_kept(clusters):
    frame, _, detector = clusters
    turned = frame[["height", "width"]].assign(remark="text").set_index(np.arange(len(frame)) + 1000)
    for method in (detector.table, detector.assign, detector.explain):
        pd.testing.assert_frame_equal(
            method(turned).reset_index(drop=True), method(frame).reset_index(drop=True), check_like=True
        )
    assert detector.table(turned).index[0] == 1000
    with pytest.raises(ValueError, match=r"column 'width' is missing.*'width', 'height'.*'height', 'depth'"):
        detector.table(pd.DataFrame({"height": [1.0], "depth": [2.0]}))


def test_errors_of_the_table_are_those_of_the_methods(clusters):
    frame, _, detector = clusters
    table = detector.table(frame, errors=True)
    p, error = detector.predictive_tail_probability(frame, return_error=True)
    np.testing.assert_allclose(table["tail_probability"], p, rtol=1e-12)
    np.testing.assert_allclose(table["tail_error"], error, rtol=1e-12)
    p, error = detector.anomaly_probability(frame, return_error=True)
    np.testing.assert_array_equal(table["anomaly_probability"], p)
    np.testing.assert_array_equal(table["anomaly_error"], error)
    np.testing.assert_array_equal(table["kind"] == "far", detector.predict(frame) == -1)


def test_conformal_ranks_against_counting(clusters):
    frame, _, detector = clusters
    reference = np.array(detector.table()["log_density"])
    rows = np.array([[0.0, 0.0], [5.0, 6.0], [3.0, 3.0]])
    found = detector.conformal_pvalue(pd.DataFrame(rows, columns=frame.columns))
    scores = detector.score_samples(pd.DataFrame(rows, columns=frame.columns))
    expected = [(1 + sum(reference <= score)) / (len(frame) + 1) for score in scores]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    inside = detector.conformal_pvalue()
    assert inside.min() == 1 / len(frame)
    assert inside.max() == 1.0


def test_discoveries_are_those_of_benjamini_and_hochberg(clusters):
    frame, _, detector = clusters
    p = np.sort(detector.predictive_tail_probability())
    m = len(p)
    steps = np.arange(1, m + 1) / m
    for method, penalty in (("bh", 1.0), ("by", np.sum(1 / np.arange(1, m + 1)))):
        found = detector.discoveries(rate=0.2, method=method)
        # The step-up rule itself.
        reached = np.flatnonzero(p <= 0.2 * steps / penalty)
        assert found["discovery"].sum() == (reached[-1] + 1 if len(reached) else 0)
    assert detector.discoveries(rate=0.2)["discovery"].sum() >= 1
    with pytest.raises(ValueError, match='"bh" or "by"'):
        detector.discoveries(method="bonferroni")
    with pytest.raises(ValueError, match="rate must lie in"):
        detector.discoveries(rate=0.0)


def test_rows_flagged_at_each_threshold(clusters):
    frame, _, detector = clusters
    report = detector.flagged(frame, [0.001, 0.05, 0.3])
    density = detector.score_samples(frame)
    for rate, row in report.iterrows():
        at = AnomalyDetector(detector.estimator, log_f_min=row["log_f_min"], random_state=0).fit(None)
        # The curve is a step function: its steps at 0.001 are some percent wide.
        assert at.false_alarm_ == pytest.approx(rate, rel=0.08)
        flagged = density < row["log_f_min"]
        assert row["flagged"] == flagged.sum()
        assert row["expected"] == pytest.approx(rate * len(frame))
        above = 1 - at.anomaly_probability(frame)[flagged].mean() if flagged.any() else np.nan
        assert row["expected_above"] == pytest.approx(above, nan_ok=True)


def test_thresholds_of_a_known_mixture():
    mixture = GaussianMixture.from_parameters([0.6, 0.4], [[0.0], [14.0]], [[[1.0]], [[4.0]]])
    frozen = FrozenEstimator(mixture)
    detector = AnomalyDetector(frozen, f_min=0.01, random_state=0).fit(None)
    assert detector.offset_ == pytest.approx(np.log(0.01))
    rows = np.array([[0.0], [7.0], [14.0], [-2.9], [30.0]])
    exact = mixture_log_density(rows, np.array([0.6, 0.4]), np.array([[0.0], [14.0]]), np.array([[[1.0]], [[4.0]]]))
    np.testing.assert_allclose(detector.score_samples(rows), exact, rtol=1e-10)
    np.testing.assert_array_equal(detector.predict(rows), np.where(exact < np.log(0.01), -1, 1))
    by_rate = AnomalyDetector(frozen, false_alarm=detector.false_alarm_, random_state=3).fit(None)
    # Two simulations of 20,000 rows: about 3 % of the rate each.
    assert by_rate.offset_ == pytest.approx(detector.offset_, abs=0.15)
    # Separate components, whose tails below the threshold add up.
    left = stats.norm.sf(np.sqrt(-2 * np.log(0.01 / 0.6 * np.sqrt(2 * np.pi))))
    right = stats.norm.sf(np.sqrt(-2 * np.log(0.01 / 0.4 * 2 * np.sqrt(2 * np.pi))))
    assert detector.false_alarm_ == pytest.approx(1.2 * left + 0.8 * right, rel=0.15)
    assert "anomaly_probability" not in detector.table(rows)


def test_contamination_flags_that_share_and_weights_are_copies():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 2))
    detector = AnomalyDetector(GaussianMixture(2, random_state=0), contamination=0.1).fit(X)
    assert (detector.predict(X) == -1).sum() == 20
    v = rng.integers(1, 4, 200)
    weighted = AnomalyDetector(GaussianMixture(1), contamination=0.1).fit(X, sample_weight=v)
    repeated = AnomalyDetector(GaussianMixture(1), contamination=0.1).fit(np.repeat(X, v, axis=0))
    assert weighted.offset_ == pytest.approx(repeated.offset_, rel=1e-9)


def test_a_posterior_can_be_fitted_by_the_detector():
    X = np.random.default_rng(1).normal(size=(60, 1))
    post = BayesianGaussianMixture(1, draws=100, chains=2, target_ess=0, random_state=0, progressbar=False)
    detector = AnomalyDetector(post, contamination=0.05).fit(X)
    assert not hasattr(post, "weights_")
    assert (detector.predict(X) == -1).sum() == 3
    frozen = AnomalyDetector(FrozenEstimator(detector.estimator_), contamination=0.05).fit(None)
    assert frozen.offset_ == detector.offset_


def test_laplace_draws_share_what_they_rest_on():
    X = np.random.default_rng(2).normal(size=(80, 2))
    post = BayesianGaussianMixture(1, method="laplace", draws=500, random_state=0, progressbar=False).fit(X)
    detector = AnomalyDetector(FrozenEstimator(post), random_state=0).fit(None)
    assert detector._per_effective > 1
    _, error = detector.anomaly_probability(np.array([[2.0, 2.0]]), return_error=True)
    assert error[0] > 0


def test_bad_input(clusters):
    frame, post, detector = clusters
    frozen = FrozenEstimator(post)
    with pytest.raises(ValueError, match="contamination and f_min are each a threshold"):
        AnomalyDetector(frozen, contamination=0.1, f_min=1.0).fit(None)
    with pytest.raises(ValueError, match="f_min must be positive.*log_f_min"):
        AnomalyDetector(frozen, f_min=0.0).fit(None)
    with pytest.raises(ValueError, match=r"f_min lies above the density's maximum.*every row"):
        AnomalyDetector(frozen, f_min=1e6).fit(None)
    with pytest.warns(DataWarning, match=r"\d+ % of the model's own rows"):
        AnomalyDetector(frozen, log_f_min=-3.2).fit(None)
    for name, value in (("contamination", 0.6), ("contamination", 0.0), ("false_alarm", 1.0), ("false_alarm", 0.0)):
        with pytest.raises(ValueError, match=f"'{name}' parameter.*must be"):
            AnomalyDetector(frozen, **{name: value}).fit(None)
    with pytest.raises(ValueError, match="X is needed"):
        AnomalyDetector(GaussianMixture(2)).fit(None)
    with pytest.raises(NotFittedError):
        AnomalyDetector(FrozenEstimator(GaussianMixture(2))).fit(None)
    with pytest.raises(TypeError, match="of bayesgmm is needed"):
        from sklearn.mixture import GaussianMixture as Theirs

        AnomalyDetector(FrozenEstimator(Theirs(1).fit(frame))).fit(None)
    with pytest.raises(NotFittedError):
        AnomalyDetector().table(frame)
    with pytest.raises(ValueError, match='"fixed" or "draw"'):
        detector.anomaly_probability(frame, threshold="own")
    with pytest.raises(ValueError, match="false_alarm goes with"):
        detector.anomaly_probability(frame, false_alarm=0.1)
    with pytest.raises(ValueError, match="min_responsibility must lie in"):
        detector.table(frame, min_responsibility=1.5)
    em = AnomalyDetector(GaussianMixture(2, random_state=0)).fit(frame)
    with pytest.raises(AttributeError, match="none: use predict"):
        em.anomaly_probability(frame)
    with pytest.raises(ValueError, match="does not hold the rows"):
        em.predictive_tail_probability()
    with pytest.raises(ValueError, match="share of rows: give X"):
        AnomalyDetector(FrozenEstimator(GaussianMixture(1).fit(frame)), contamination=0.1).fit(None)


def test_rows_that_cannot_be_left_out_are_named(one_component):
    _, _, post, _ = one_component
    detector = AnomalyDetector(FrozenEstimator(post), refits=0, random_state=0).fit(None)
    with pytest.warns(CriterionWarning, match=r"1 rows? cannot be left out reliably.*row 24"):
        detector.table()


def test_rows_far_beyond_every_component_have_numbers(clusters):
    frame, _, detector = clusters
    far = pd.DataFrame([[1e200, 1.0]], columns=frame.columns)
    with pytest.raises(ValueError, match="leave the range"):
        detector.table(far)
    table = detector.table(pd.DataFrame([[1e140, 1.0]], columns=frame.columns))
    assert table["kind"].tolist() == ["far"]
    assert table["anomaly_probability"].tolist() == [1.0]
    # The smallest that the simulated rows can tell.
    assert 0 < table["tail_probability"][0] < 1e-5
    assert not table.isna().any().any()
