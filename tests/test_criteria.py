"""Criteria on arrays against R's loo, ArviZ, mclust, scikit-learn and formulas written out."""

from __future__ import annotations

import pickle
import subprocess
import sys

import arviz as az
import arviz_base
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.mixture import GaussianMixture as SklearnMixture

from bayesgmm import GaussianMixture, criteria, loo, pointwise, waic
from bayesgmm.core.covariance import structure
from bayesgmm.exceptions import CriterionWarning
from tests import reference

QUIET = pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.CriterionWarning")


def simulated(n_rows: int = 30, chains: int = 4, draws: int = 250, seed: int = 0) -> np.ndarray:
    """Log-likelihood (chains, draws, rows) of a normal mean: well behaved, with a known posterior."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n_rows)
    means = x.mean() + rng.standard_normal((chains, draws, 1)) / np.sqrt(n_rows)
    return norm.logpdf(x, means, 1.0)


def tree_of(values: np.ndarray, **posterior: np.ndarray):
    groups = {"log_likelihood": {"x": values}}
    if posterior:
        groups["posterior"] = posterior
    return arviz_base.from_dict(groups)


# --- against other programs -----------------------------------------------------------------------------------------


def test_waic_is_that_of_r():
    expected = reference.r_loo()
    with pytest.warns(CriterionWarning, match="in 6 of 13 rows"):
        found = waic(reference.log_likelihood())
    # 1e-8: R prints 15 digits; what is left is the rounding of sums of 1000 terms.
    assert np.allclose(found.elpd_i, expected["elpd_waic"][:13], rtol=0, atol=1e-8)
    assert np.allclose(found.p_waic_i, expected["p_waic"][:13], rtol=0, atol=1e-8)
    assert found.elpd == pytest.approx(expected["elpd_waic"][13], abs=1e-8)
    assert found.p == pytest.approx(expected["p_waic"][13], abs=1e-8)
    assert found.se == pytest.approx(expected["elpd_waic"][14], abs=1e-8)
    assert found.kind == "waic"
    assert found.warning


@QUIET
def test_loo_is_that_of_r_where_weights_are_reliable():
    expected = reference.r_loo()
    found = loo(reference.log_likelihood(), r_eff=1.0)
    reliable = expected["pareto_k"][:13] < 0.7
    error = np.abs(found.elpd_i.values - expected["elpd_loo"][:13])
    # R's tail is one draw longer (ceil against floor) and its last smoothed value another quantile: 0.004 at most where k̂ < 0.7.
    assert reliable.sum() == 8
    assert error[reliable].max() < 0.005
    # ArviZ's k̂ differs from R's by 0.05 in this matrix for the same reason.
    assert np.allclose(found.pareto_k, expected["pareto_k"][:13], rtol=0, atol=0.06)


@QUIET
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
@pytest.mark.parametrize("r_eff", [1.0, 0.5])
def test_loo_is_that_of_arviz(r_eff):
    values = reference.log_likelihood()[None]
    tree = tree_of(values, a=np.zeros((1, 1000)))
    expected = az.loo(tree, pointwise=True, reff=r_eff)
    for found in (loo(values, r_eff=r_eff), loo(tree, r_eff=r_eff)):
        # 1e-10: the same operations, summed in another order.
        for name in ("elpd", "se", "p", "good_k"):
            assert found[name] == pytest.approx(expected[name], abs=1e-10)
        assert np.allclose(found.elpd_i, expected.elpd_i, rtol=0, atol=1e-10)
        assert np.allclose(found.pareto_k, expected.pareto_k, rtol=0, atol=1e-10)
        assert found.warning == expected.warning


def test_relative_efficiency_of_a_tree_is_that_of_arviz():
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((4, 251, 3))
    # A moving average: effective sample size about 2/3 of the draws, so that 1 would show.
    tree = tree_of(simulated(), a=noise[:, 1:] + noise[:, :-1] / 2, b=rng.standard_normal((4, 250)))
    expected = az.loo(tree, pointwise=True)
    assert criteria.posterior_efficiency(tree) < 0.9
    found = loo(tree)
    assert np.allclose(found.elpd_i, expected.elpd_i, rtol=0, atol=1e-10)
    assert found.elpd_i.dims == expected.elpd_i.dims


def test_relative_efficiency_of_an_array_is_the_mean_over_rows():
    values = simulated(n_rows=10)
    dataset = arviz_base.from_dict({"posterior": {"like": np.exp(values)}})["posterior"]
    expected = az.ess(dataset, method="mean", relative=True)["like"].values.mean()
    # exp(ll − max) instead of exp(ll): the same up to rounding.
    assert pointwise.relative_efficiency(values) == pytest.approx(float(expected), rel=1e-9)
    assert pointwise.relative_efficiency(values[:1]) == 1.0


@pytest.mark.parametrize("criterion", [waic, loo])
def test_compare_takes_the_results(criterion):
    first = simulated()
    table = az.compare({"worse": criterion(first - 0.1), "better": criterion(first)})
    assert list(table.index) == ["better", "worse"]
    # 30 rows, each worse by 0.1; az.compare rounds to its own digits.
    assert table.loc["worse", "elpd_diff"] == pytest.approx(-3.0, abs=0.05)


def test_results_print_and_pickle():
    found = waic(simulated())
    assert "elpd_waic" in str(found)
    again = pickle.loads(pickle.dumps(found))
    assert again.elpd == found.elpd
    assert "elpd_loo" in str(loo(simulated()))


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_aic_and_bic_are_scikit_learns(covariance_type):
    X = reference.data_set("faithful")
    other = SklearnMixture(2, covariance_type=covariance_type, random_state=0).fit(X)
    N, p = len(X), structure(covariance_type).n_parameters(2, 2)
    log_likelihood = float(other.score_samples(X).sum())
    # 1e-9 of some 2,300: rounding of a sum of 272 terms.
    assert criteria.aic(log_likelihood, p) == pytest.approx(other.aic(X), rel=1e-12)
    assert criteria.bic(log_likelihood, p, N) == pytest.approx(other.bic(X), rel=1e-12)


def test_icl_is_mclusts():
    X = reference.data_set("faithful")
    (mclust,) = [
        fit
        for fit in reference.em_fits()
        if (fit.program, fit.data, fit.covariance_type, fit.n_components) == ("mclust", "faithful", "full", 2)
    ]
    em = GaussianMixture(2, random_state=0, reg_covar=0.0, tol=1e-12, max_iter=5000).fit(X)
    found = criteria.icl(float(em.score_samples(X).sum()), mclust.df, len(X), em.predict_proba(X))
    # Both climbs end within 1e-6 of the same optimum; the labels' term moves more than the likelihood does.
    assert found == pytest.approx(mclust.icl, abs=1e-3)
    assert found == pytest.approx(em.icl(X), rel=1e-12)


# --- formulas -------------------------------------------------------------------------------------------------------


def test_aicc():
    # −2(−10) + 2·3 + 2·3·4/(20 − 4) = 27.5
    assert criteria.aicc(-10.0, 3, 20) == pytest.approx(27.5)
    # One observation to spare, and none: 26 + 2 · 3 · 4 / 1.
    assert criteria.aicc(-10.0, 3, 5) == pytest.approx(50.0)
    assert criteria.aicc(-10.0, 3, 4) == np.inf
    assert criteria.aicc(-10.0, 3, 3) == np.inf


def test_icl_definitions():
    r = np.array([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]])
    v = np.array([1.0, 2.0, 3.0])
    base = criteria.bic(-10.0, 3, 6)
    hard = base - 2 * (np.log(0.9) + 2 * np.log(0.5))
    entropy = base - 2 * (0.9 * np.log(0.9) + 0.1 * np.log(0.1) + 2 * np.log(0.5))
    assert criteria.icl(-10.0, 3, 6, r, v) == pytest.approx(hard)
    assert criteria.icl(-10.0, 3, 6, r, v, "entropy") == pytest.approx(entropy)
    with pytest.raises(ValueError, match='"hard" or "entropy"'):
        criteria.icl(-10.0, 3, 6, r, v, "soft")
    with pytest.raises(ValueError, match="row sums 1"):
        criteria.icl(-10.0, 3, 6, r * 2)
    with pytest.raises(ValueError, match="n_observations"):
        criteria.bic(-10.0, 3, 0)


def test_good_k():
    assert pointwise.good_k(100) == pytest.approx(0.5)
    assert pointwise.good_k(10_000) == 0.7


def test_loo_of_a_normal_mean_is_the_closed_form():
    rng = np.random.default_rng(5)
    x = rng.standard_normal(20)
    # Posterior under a flat prior, σ = 1: without row i the predictive is Normal(mean of the others, 1 + 1/19).
    means = x.mean() + rng.standard_normal((1, 20_000, 1)) / np.sqrt(20)
    found = loo(norm.logpdf(x, means, 1.0))
    exact = [norm.logpdf(x[i], np.delete(x, i).mean(), np.sqrt(1 + 1 / 19)) for i in range(20)]
    # Monte Carlo error of log mean weights: sd of log-likelihood about 0.3, over √20,000.
    assert np.allclose(found.elpd_i, exact, rtol=0, atol=0.015)


def test_frequency_weights_are_repeated_rows():
    values = simulated(n_rows=12)
    v = np.array([1.0, 2.0, 3.0] * 4)
    plain = pointwise.PointwiseCriteria(1.0).add(values)
    repeated = pointwise.PointwiseCriteria(1.0).add(np.repeat(values, v.astype(int), axis=2))
    for one, other in ((plain.waic(sample_weight=v), repeated.waic()), (plain.loo(sample_weight=v), repeated.loo())):
        assert one.elpd == pytest.approx(other.elpd, rel=1e-12)
        assert one.se == pytest.approx(other.se, rel=1e-12)
        assert one.p == pytest.approx(other.p, rel=1e-12)


# --- streaming ------------------------------------------------------------------------------------------------------


def test_blocks_give_what_the_whole_gives(monkeypatch):
    values = simulated(n_rows=301)
    whole_waic, whole_loo = waic(values), loo(values, r_eff=0.8)
    # Odd sizes: 64 rows a piece of the caller's, 7 of the accumulator's, 5 of the cache's.
    monkeypatch.setattr(pointwise, "BLOCK_ELEMENTS", 7000)
    monkeypatch.setattr(pointwise, "CACHED_ROWS", 5)

    def blocks():
        return iter([values[..., start : start + 64] for start in range(0, 301, 64)])

    # 1e-12: the last bit depends on how NumPy pairs its sums.
    assert np.allclose(waic(blocks()).elpd_i, whole_waic.elpd_i, rtol=1e-12)
    streamed = loo(blocks(), r_eff=0.8)
    assert np.allclose(streamed.elpd_i, whole_loo.elpd_i, rtol=1e-12)
    assert np.allclose(streamed.pareto_k, whole_loo.pareto_k, rtol=1e-9)


def test_an_accumulator_says_what_it_was_not_asked_for():
    found = pointwise.PointwiseCriteria(with_loo=False)
    with pytest.raises(ValueError, match="no rows"):
        found.waic()
    found.add(simulated())
    with pytest.raises(ValueError, match="not asked for"):
        found.loo()
    with pytest.raises(ValueError, match="999 draws; those before had 1000"):
        found.add(np.zeros((999, 3)))


# --- bad and degenerate input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [waic, loo])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_a_row_that_is_not_finite_is_named(criterion, value):
    values = simulated()
    values[2, 7, 17] = value
    with pytest.raises(ValueError, match="row 17 has"):
        criterion(values)
    with pytest.raises(ValueError, match="row 17 has"):
        criterion(iter([values[..., :10], values[..., 10:]]))


def test_bad_shapes_and_groups():
    with pytest.raises(ValueError, match="shape"):
        waic(np.zeros(5))
    with pytest.raises(ValueError, match="no group log_likelihood"):
        waic(arviz_base.from_dict({"posterior": {"a": np.zeros((1, 10))}}))
    two = arviz_base.from_dict({"log_likelihood": {"x": simulated(), "y": simulated()}})
    with pytest.raises(ValueError, match="variables x, y"):
        waic(two)
    assert waic(two, var_name="y").elpd == waic(simulated()).elpd
    with pytest.raises(ValueError, match="at least 25 draws"):
        loo(np.random.default_rng(0).standard_normal((20, 3)))
    with pytest.raises(ValueError, match="r_eff"):
        loo(simulated(), r_eff=-1.0)


def test_constant_and_tied_rows():
    values = simulated().reshape(-1, 30)[:, :3].copy()
    values[:, 0] = -2.0
    found = loo(values)
    assert found.elpd_i[0] == pytest.approx(-2.0)
    assert found.pareto_k[0] == -np.inf
    # Two values alone: a Pareto distribution cannot be fitted, and the weights must not pass for good ones.
    values[:, 1] = np.where(np.arange(len(values)) % 2, -1.0, -3.0)
    with pytest.warns(CriterionWarning, match="row 1"):
        found = loo(values)
    assert found.pareto_k[1] == np.inf
    # Harmonic mean of the likelihood, unsmoothed.
    assert found.elpd_i[1] == pytest.approx(-np.log((np.e + np.e**3) / 2))


def test_warnings_name_the_rows():
    values = simulated()
    values[..., 4] *= np.random.default_rng(0).exponential(3.0, size=values.shape[:2]) ** 2
    with pytest.warns(CriterionWarning, match=r"in 1 of 30 rows \(row 4\)"):
        waic(values)
    with pytest.warns(CriterionWarning, match=r"in 1 of 30 rows \(row 4\)"):
        assert loo(values).warning


def test_importing_criteria_imports_numerics_alone():
    code = (
        "import sys, bayesgmm; bayesgmm.criteria.aic(-1.0, 2); "
        "print(*{m.partition('.')[0] for m in sys.modules} & {'arviz_stats', 'pymc', 'pandas', 'sklearn', 'xarray'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_efficiency_of_the_posterior_is_that_of_arviz():
    """With one chain it is 1, as in ``az.loo``; with none that can be judged, too."""
    rng = np.random.default_rng(0)
    slow = np.cumsum(rng.standard_normal((4, 300)), axis=1)
    tree = arviz_base.from_dict({"posterior": {"a": slow, "b": rng.standard_normal((4, 300, 2))}})
    sizes = az.ess(tree, method="mean")
    expected = np.mean([float(sizes["a"]), *sizes["b"].values]) / 1200
    assert criteria.posterior_efficiency(tree) == pytest.approx(expected, rel=1e-12)
    two = arviz_base.from_dict({"posterior": {"a": slow[:2]}})
    assert criteria.posterior_efficiency(two) == pytest.approx(float(az.ess(two, method="mean")["a"]) / 600, rel=1e-12)
    assert criteria.posterior_efficiency(arviz_base.from_dict({"posterior": {"a": slow[:1]}})) == 1.0
    assert criteria.posterior_efficiency(tree_of(simulated())) is None
