"""The table of EM beside the posterior, against posteriors that are known exactly or made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from bayesgmm import BayesianGaussianMixture, GaussianMixture, compare
from bayesgmm.core.covariance import structure
from bayesgmm.datasets import load_faithful
from bayesgmm.inference.posterior import PosteriorDraws

COLUMNS = [
    "em",
    "em_se",
    "em_lower",
    "em_upper",
    "posterior_median",
    "posterior_sd",
    "lower",
    "upper",
    "shift",
    "sd_ratio",
    "parts",
]


def posterior_of(
    weights: np.ndarray,
    means: np.ndarray,
    covariances: np.ndarray,
    X: np.ndarray,
    covariance_type: str = "full",
    v: np.ndarray | None = None,
) -> BayesianGaussianMixture:
    """A posterior with given draws (S, K), (S, K, D), (S, K, D, D), as if it had been sampled."""
    factors = np.linalg.cholesky(np.linalg.inv(covariances))
    post = BayesianGaussianMixture(means.shape[1], covariance_type=covariance_type)
    post._draws = PosteriorDraws(weights[None], means[None], factors[None])
    post._X, post._sample_weight, post.n_features_in_ = X, v, X.shape[1]
    post.weights_, post.means_ = weights.mean(axis=0), means.mean(axis=0)
    post.covariances_ = structure(covariance_type).pack(covariances).mean(axis=0)
    return post


def two_clusters(n_rows: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    labels = (rng.random(n_rows) < 0.35).astype(int)
    return np.ascontiguousarray(np.array([[0.0, 0.0], [6.0, -3.0]])[labels] + rng.standard_normal((n_rows, 2)))


def posterior_around(em: GaussianMixture, X: np.ndarray, order: list[int], seed: int = 1) -> BayesianGaussianMixture:
    """Independent draws closely about EM (a hundredth of the components' spread), components in another order."""
    rng = np.random.default_rng(seed)
    S, (K, D) = 2000, em.means_.shape
    kind = structure(em.covariance_type)
    weights = rng.dirichlet(1e4 * em.weights_[order], S)
    means = em.means_[order] + 0.01 * rng.standard_normal((S, K, D))
    matrices = kind.expand(em.covariances_, K, D)[order]
    scale = 1 + 0.01 * rng.standard_normal((S, K if "component" in kind.free_dims else 1, 1, 1))
    return posterior_of(weights, means, matrices * scale, X, em.covariance_type)


def test_one_component_with_its_exact_posterior():
    """K = 1 under the prior |Σ|^(−(D + 1)/2): Σ ~ inverse-Wishart(N − 1, W), μ given Σ ~ Normal(x̄, Σ / N)."""
    X = np.ascontiguousarray(load_faithful().to_numpy(float))[:, :2]
    (N, D), S = X.shape, 4000
    em = GaussianMixture(1).fit(X)
    rng = np.random.default_rng(2)
    W = (X - X.mean(axis=0)).T @ (X - X.mean(axis=0))
    matrices = stats.invwishart(N - 1, W).rvs(size=S, random_state=rng)
    roots = np.linalg.cholesky(matrices / N)
    means = X.mean(axis=0) + np.einsum("sij,sj->si", roots, rng.standard_normal((S, D)))
    table = compare(em, posterior_of(np.ones((S, 1)), means[:, None], matrices[:, None], X), ci_prob=0.8)
    assert list(table.columns) == COLUMNS
    assert list(table.index) == [
        "weights[0]",
        "means[0, x0]",
        "means[0, x1]",
        "standard_deviations[0, x0]",
        "standard_deviations[0, x1]",
        "correlations[0, x0:x1]",
    ]
    # What the posterior's columns say, from the draws themselves.
    sd = np.sqrt(matrices[:, 1, 1])
    row = table.loc["standard_deviations[0, x1]"]
    np.testing.assert_allclose(
        [row.posterior_median, row.posterior_sd, row.lower, row.upper],
        [np.median(sd), sd.std(ddof=1), np.quantile(sd, 0.1), np.quantile(sd, 0.9)],
    )
    assert row["shift"] == pytest.approx((np.median(sd) - X[:, 1].std()) / sd.std(ddof=1), rel=1e-5)
    # What EM's columns say, in closed form; 1e-5 is reg_covar = 1e-6 against a variance of 1.3 and more, and rounding.
    rho = np.corrcoef(X, rowvar=False)[0, 1]
    expected = [0.0, *X.std(axis=0) / np.sqrt(N), *X.std(axis=0) / np.sqrt(2 * N), (1 - rho**2) / np.sqrt(N)]
    np.testing.assert_allclose(table["em_se"], expected, rtol=1e-5)
    # The textbook's intervals of a normal sample, by scipy.
    for name, ends in (
        ("means[0, x1]", stats.t.interval(0.8, N - 1, X[:, 1].mean(), stats.sem(X[:, 1]))),
        ("standard_deviations[0, x1]", np.sqrt(N * X[:, 1].var() / stats.chi2.ppf([0.9, 0.1], N - 1))),
        ("correlations[0, x0:x1]", stats.pearsonr(*X.T).confidence_interval(0.8)),
    ):
        assert tuple(table.loc[name, ["em_lower", "em_upper"]]) == pytest.approx(tuple(ends), rel=1e-5)
    # Both are right for 272 rows: medians within 0.1 sd (prior of order 1/N), spreads within 1/√(2 · 4000) = 1.1 %, four of them.
    free = table.drop("weights[0]")
    assert free["shift"].abs().max() < 0.15
    np.testing.assert_allclose(free["sd_ratio"], 1.0, rtol=0.05)
    assert (table["parts"] == "").all()
    assert (table.loc["weights[0]", "shift"], table.loc["weights[0]", "em_lower"]) == (0.0, 1.0)
    assert np.isnan(table.loc["weights[0]", "sd_ratio"])
    assert table.attrs["ci_prob"] == 0.8


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_components_stand_in_the_posteriors_order(covariance_type):
    X = two_clusters()
    em = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(X)
    errors = em.standard_errors(X)
    for order in ([0, 1], [1, 0]):
        post = posterior_around(em, X, order)
        table = compare(em, post)
        np.testing.assert_allclose(table.loc[["weights[0]", "weights[1]"], "em"], em.weights_[order])
        means = [f"means[{k}, x{j}]" for k in (0, 1) for j in (0, 1)]
        np.testing.assert_allclose(table.loc[means, "em"], em.means_[order].ravel())
        np.testing.assert_allclose(table.loc[means, "em_se"], errors.means[order].ravel())
        deviations = table[table.index.str.startswith("standard_deviations")]
        expected = errors.standard_deviations if covariance_type == "tied" else errors.standard_deviations[order]
        np.testing.assert_allclose(deviations["em_se"], expected.ravel())
        # Draws lie about EM by a hundredth of the spread: no other matching has em and median close.
        np.testing.assert_allclose(table["posterior_median"], table["em"], atol=0.01)
        correlations = table[table.index.str.startswith("correlations")]
        assert len(correlations) == {"full": 2, "tied": 1}.get(covariance_type, 0)


def test_it_says_where_the_two_part():
    X = two_clusters()
    em = GaussianMixture(2, random_state=0).fit(X)
    rng = np.random.default_rng(3)
    se, S = em.standard_errors(X), 4000
    means = em.means_ + se.means * rng.standard_normal((S, 2, 2))
    means[:, 0, 0] += 0.8 * se.means[0, 0]
    means[:, 0, 1] = em.means_[0, 1] + 2.5 * se.means[0, 1] * rng.standard_normal(S)
    means[:, 1, 0] = em.means_[1, 0] + se.means[1, 0] * (3 + 0.4 * rng.standard_normal(S))
    weights = np.broadcast_to(em.weights_, (S, 2))
    table = compare(em, posterior_of(weights, means, np.broadcast_to(em.covariances_, (S, 2, 2, 2)), X))
    assert table.loc[["means[0, x0]", "means[0, x1]", "means[1, x0]", "means[1, x1]"], "parts"].tolist() == [
        "location",
        "spread",
        "both",
        "",
    ]
    # Of 4,000 draws a mean has an error of 1/√4000 sd and a spread one of 1.1 %; four of each.
    assert table.loc["means[0, x0]", "shift"] == pytest.approx(0.8, abs=0.08)
    assert table.loc["means[0, x1]", "sd_ratio"] == pytest.approx(2.5, rel=0.05)


def test_outside_the_interval_is_a_difference_of_location():
    """A skewed posterior: the shift is below half a standard deviation, and yet EM lies outside the interval."""
    X = two_clusters()
    em = GaussianMixture(1).fit(X)
    S = 4000
    means = np.broadcast_to(em.means_, (S, 1, 2)).copy()
    means[:, 0, 0] += 0.02 + 0.1 * np.random.default_rng(4).pareto(1.5, S)
    table = compare(em, posterior_of(np.ones((S, 1)), means, np.broadcast_to(em.covariances_, (S, 1, 2, 2)), X))
    row = table.loc["means[0, x0]"]
    assert abs(row["shift"]) < 0.5
    assert row.em < row.lower
    assert row.parts in ("location", "both")


def test_data_are_the_posteriors_own():
    X = two_clusters()
    v = np.random.default_rng(5).integers(1, 4, len(X)).astype(float)
    em = GaussianMixture(2, random_state=0, tol=1e-9).fit(X, sample_weight=v)
    post = posterior_around(em, X, [0, 1])
    post._sample_weight = v
    expected = compare(em, post, X, sample_weight=v)
    np.testing.assert_allclose(expected["em_se"].iloc[:2], em.standard_errors(X, sample_weight=v).weights)
    pd.testing.assert_frame_equal(compare(em, post), expected)
    # A posterior that was read from its DataTree alone.
    xarray = pytest.importorskip("xarray")
    del post._X, post._sample_weight
    post.idata_ = xarray.DataTree.from_dict(
        {
            "observed_data": xarray.Dataset({"x": (("obs_id", "feature"), X)}),
            "constant_data": xarray.Dataset({"sample_weight": ("obs_id", v)}),
        }
    )
    pd.testing.assert_frame_equal(compare(em, post), expected)
    del post.idata_
    with pytest.raises(ValueError, match="the posterior does not hold its data: give X"):
        compare(em, post)


def test_column_names_and_other_standard_errors():
    frame = load_faithful()
    em = GaussianMixture(2, random_state=0).fit(frame)
    post = posterior_around(em, np.ascontiguousarray(frame.to_numpy(float)), [0, 1])
    table = compare(em, post, method="sandwich")
    assert "means[1, waiting]" in table.index
    assert "correlations[0, eruptions:waiting]" in table.index
    np.testing.assert_allclose(table["em_se"].iloc[:2], em.standard_errors(frame, "sandwich").weights)
    assert table.attrs["method"] == "sandwich"


def test_pairs_that_cannot_be_compared():
    X = two_clusters()
    em = GaussianMixture(2, random_state=0).fit(X)
    post = posterior_around(em, X, [0, 1])
    with pytest.raises(TypeError, match="takes a GaussianMixture and then a BayesianGaussianMixture; got Bayesian"):
        compare(post, em)
    with pytest.raises(NotFittedError):
        compare(GaussianMixture(2), post)
    with pytest.raises(NotFittedError):
        compare(em, BayesianGaussianMixture(2))
    with pytest.raises(ValueError, match="different mixtures: 1 components and 2 features in EM, 2 components"):
        compare(GaussianMixture(1).fit(X), post)
    with pytest.raises(ValueError, match="2 components and 1 features in EM, 2 components and 2 features"):
        compare(GaussianMixture(2).fit(X[:, :1]), post)
    with pytest.raises(ValueError, match="covariance_type differs: 'diag' in EM, 'full' in the posterior"):
        compare(GaussianMixture(2, covariance_type="diag").fit(X), post)
    with pytest.raises(ValueError, match="ci_prob must lie between 0 and 1; got 90"):
        compare(em, post, ci_prob=90)
    with pytest.raises(ValueError, match="sample_weight goes with X"):
        compare(em, post, sample_weight=np.ones(len(X)))
    named = GaussianMixture(2).fit(pd.DataFrame(X, columns=["a", "b"]))
    post.feature_names_in_ = np.array(["b", "a"], dtype=object)
    with pytest.raises(ValueError, match="the features differ: a, b in EM, b, a in the posterior"):
        compare(named, post)


def test_a_posterior_without_identified_components_warns():
    X = two_clusters()
    em = GaussianMixture(2, random_state=0).fit(X)
    post = posterior_around(em, X, [0, 1])
    post.diagnostics_ = SimpleNamespace(labels_identified=False)
    with pytest.warns(ConvergenceWarning, match="cannot be told apart from draw to draw"):
        compare(em, post)


def test_old_faithful_with_a_sampled_posterior():
    """Groups this far apart: 272 rows outweigh the prior, and the two ways agree on every parameter."""
    frame = load_faithful()
    em = GaussianMixture(2, random_state=1).fit(frame)
    post = BayesianGaussianMixture(2, method="laplace", draws=500, progressbar=False, random_state=0).fit(frame)
    table = compare(em, post)
    assert list(table.index) == list(post.summary().index)
    # 2,000 resampled draws: a median within 0.05 sd, a spread within some 3 %. The prior moves the spreads by up to 0.4 sd (its
    # Λ₀ pools both groups, and the narrow one gives way), the means and weights by less than 0.1 sd.
    assert table["shift"].abs().max() < 0.6
    assert table[~table.index.str.startswith("standard")]["shift"].abs().max() < 0.25
    np.testing.assert_allclose(table["sd_ratio"], 1.0, rtol=0.12)
