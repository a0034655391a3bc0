"""LOO of a posterior against exact answers: enumeration of all allocations, Student-t predictives, brute-force refits."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import arviz as az
import numpy as np
import pytest
from scipy.stats import multivariate_t, norm

from bayesgmm import BayesianGaussianMixture, ConjugatePrior
from bayesgmm.core.parameters import MixtureParameters
from bayesgmm.exceptions import CriterionWarning, SamplingInterrupted
from bayesgmm.inference import loo as loo_module
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.loo import loo_posterior
from bayesgmm.inference.moment_matching import MomentMatching, _affine_step
from bayesgmm.inference.posterior import PosteriorDraws
from tests import oracles

QUIET = pytest.mark.filterwarnings("ignore::bayesgmm.exceptions.CriterionWarning")
UNCONVERGED = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
SETTINGS = {"progressbar": False, "random_state": 0, "target_ess": 0}


@pytest.fixture(scope="module")
def one_normal() -> BayesianGaussianMixture:
    """One component and one row far out, the others well within: everything is known in closed form."""
    rng = np.random.default_rng(2)
    X = np.concatenate([np.clip(rng.standard_normal((24, 2)), -1.8, 1.8), [[4.8, -4.4]]])
    return BayesianGaussianMixture(1, draws=1000, **SETTINGS).fit(X)


@pytest.fixture(scope="module")
def two_normals() -> BayesianGaussianMixture:
    """Nine rows under two components: 512 allocations."""
    X = np.array([-2.2, -1.4, -1.0, -0.7, 2.0, 2.3, 2.9, 3.3, 9.0])[:, None]
    return BayesianGaussianMixture(2, draws=1000, max_draws=1000, **(SETTINGS | {"random_state": 1})).fit(X)


def student_predictive(X: np.ndarray, row: int, prior: ConjugatePrior) -> float:
    """Log density of a row given the others under a normal–inverse-Wishart prior (Murphy 2012, equation 4.222)."""
    rest, D = np.delete(X, row, axis=0), X.shape[1]
    N, mean = len(rest), rest.mean(axis=0)
    kappa0, nu0 = float(prior.mean_precision), prior.resolved_degrees_of_freedom
    kappa, nu = kappa0 + N, nu0 + N
    gap = mean - prior.resolved_mean
    scatter = prior.resolved_scale + (rest - mean).T @ (rest - mean) + kappa0 * N / kappa * np.outer(gap, gap)
    location = (kappa0 * prior.resolved_mean + N * mean) / kappa
    df = nu - D + 1
    return float(multivariate_t.logpdf(X[row], location, scatter * (kappa + 1) / (kappa * df), df=df))


def test_outlier_of_one_normal_by_every_route(one_normal):
    X, prior = one_normal._X, one_normal.prior_
    exact = np.array([student_predictive(X, i, prior) for i in range(len(X))])
    matched = loo_posterior(one_normal, random_state=0)
    refitted = loo_posterior(one_normal, moment_matching=False, random_state=0)
    with pytest.warns(CriterionWarning, match=r"\(row 24\)"):
        plain = loo_posterior(one_normal, moment_matching=False, refits=0)
    (found,) = matched.treated
    assert (found.row, found.how) == (24, "moment matching")
    assert found.pareto_k > matched.loo.good_k > found.pareto_k_after
    (found,) = refitted.treated
    assert (found.row, found.how, found.pareto_k_after) == (24, "refit", 0.0)
    assert "sampled again" in found.why
    (found,) = plain.treated
    assert (found.how, found.elpd_after) == ("none", found.elpd_before)
    # The row lies some 6 sd out, where the log-likelihood varies by 4 nats over the draws: 0.15 to 0.2 from seed to seed.
    assert matched.loo.elpd_i[24] == pytest.approx(exact[24], abs=0.4)
    assert refitted.loo.elpd_i[24] == pytest.approx(exact[24], abs=0.5)
    # The reason for the trouble: plain weights are wrong by more than either, 1.05 to 1.2 from seed to seed.
    assert abs(plain.loo.elpd_i[24] - exact[24]) > 0.7
    # The other rows have log-likelihoods that vary by 0.2 to 0.8 over 2000 draws, the more the farther out they lie.
    error = np.abs(matched.loo.elpd_i.values - exact)[:24]
    assert error[exact[:24] > -3.5].max() < 0.05
    assert error.max() < 0.2
    assert np.isfinite(matched.waic.elpd)
    assert "row 24" in str(matched)


@UNCONVERGED
def test_mixture_against_exact_enumeration(two_normals):
    X, prior = two_normals._X, two_normals.prior_
    values = oracles.PriorValues(
        prior.resolved_concentration,
        prior.resolved_mean,
        float(prior.mean_precision),
        prior.resolved_degrees_of_freedom,
        prior.resolved_scale,
    )
    whole = oracles.Enumeration(X, values, 2).log_evidence
    exact = np.array([whole - oracles.Enumeration(np.delete(X, i, axis=0), values, 2).log_evidence for i in range(9)])
    found = loo_posterior(two_normals, random_state=0, refit_draws=400)
    (item,) = found.treated
    assert (item.row, item.how) == (8, "refit")
    assert "moment matching left" in item.why
    # Eight rows: the log-likelihood varies by some 0.5 over draws with an effective size of some 240.
    assert np.allclose(found.loo.elpd_i[:8], exact[:8], rtol=0, atol=0.05)
    # Without the row at 9, which may be a component of its own, chains go to and fro between two arrangements and mix slowly:
    # 0.1 to 0.2 from seed to seed.
    assert found.loo.elpd_i[8] == pytest.approx(exact[8], abs=0.4)


def test_bridge_is_exact_where_both_sides_are_known():
    """θ ~ Normal(0, 1) without the row, and ℓ = Normal(x; θ, 1): r = Normal(x; 0, 2), and θ given x is Normal(x/2, 1/2)."""
    rng = np.random.default_rng(4)
    x = 4.0
    without, given = rng.standard_normal(2000), x / 2 + rng.standard_normal(3000) / np.sqrt(2)
    exact = norm.logpdf(x, 0, np.sqrt(2))
    found = loo_module.bridge(norm.logpdf(x, without, 1), norm.logpdf(x, given, 1))
    # Relative error about √((1 − overlap) / (overlap S)), some 4 % here; the plain mean's is about 10 %.
    assert found == pytest.approx(exact, abs=0.1)
    # Constant likelihood: no error at all.
    assert loo_module.bridge(np.full(50, -3.0), np.full(70, -3.0)) == pytest.approx(-3.0, abs=1e-9)


@QUIET
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_plain_loo_is_that_of_arviz(two_normals):
    expected = az.loo(two_normals.idata_, pointwise=True)
    found = loo_posterior(two_normals, moment_matching=False, refits=0)
    # The same draws, weights and relative efficiency.
    assert np.allclose(found.loo.elpd_i, expected.elpd_i, rtol=0, atol=1e-10)
    assert found.loo.elpd == pytest.approx(expected.elpd, abs=1e-10)
    assert found.loo.se == pytest.approx(expected.se, abs=1e-10)


@pytest.fixture(scope="module")
def exact_draws() -> tuple[MomentMatching, np.ndarray, ConjugatePrior]:
    """Independent draws of a normal–inverse-gamma posterior, 40 rows and an outlier, no sampler between."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.standard_normal(40), [4.5]])[:, None]
    prior = ConjugatePrior().resolve(X, 1)
    N, mean, kappa0 = len(X), X.mean(), float(prior.mean_precision)
    kappa, nu = kappa0 + N, prior.resolved_degrees_of_freedom + N
    gap = mean - prior.resolved_mean[0]
    scale = prior.resolved_scale[0, 0] + ((X - mean) ** 2).sum() + kappa0 * N / kappa * gap**2
    variances = scale / rng.chisquare(nu, size=2000)
    location = (kappa0 * prior.resolved_mean[0] + N * mean) / kappa
    means = location + np.sqrt(variances / kappa) * rng.standard_normal(2000)
    compiled = CompiledPosterior.from_data(X, 1, "full", prior)
    theta = [compiled.unconstrain([1.0], [[m]], [[[1 / np.sqrt(s)]]]) for m, s in zip(means, variances)]
    return MomentMatching(compiled, np.array(theta)), X, prior


def test_moment_matching_of_an_outlier(exact_draws):
    matching, X, prior = exact_draws
    plain = -matching._log_likelihood(X[-1:], matching._theta)
    assert matching._weights(plain)[1] > 0.9
    found = matching.match(X[-1:])
    assert found.rounds >= 1
    assert found.pareto_k < matching.threshold
    # 2000 draws, the row 4.5 sd out: relative error of the weighted mean density some 3 %.
    assert found.elpd == pytest.approx(student_predictive(X, 40, prior), abs=0.12)
    # A row in the middle needs no move.
    middle = int(np.argmin(np.abs(X[:, 0])))
    found = matching.match(X[middle : middle + 1])
    assert found.rounds == 0
    assert found.elpd == pytest.approx(student_predictive(X, middle, prior), abs=0.02)


def test_any_map_gives_the_same_density(exact_draws):
    matching, X, prior = exact_draws
    row, theta = X[-1:], matching._theta
    centre, spread = theta.mean(axis=0), np.cov(theta.T)
    root = np.linalg.cholesky(spread)
    # Stretched by 1.5 and 1.3 and turned in the coordinates in which the posterior is round, then moved to where the row's
    # absence puts it: a proposal wide enough to be weighted back.
    linear = root @ np.array([[1.5, 0.2], [-0.3, 1.3]]) @ np.linalg.inv(root)
    log_weights, _ = matching._weights(-matching._log_likelihood(row, theta))
    offset = np.exp(log_weights) @ theta - linear @ centre
    elpd, _ = matching._split(row, 1.0, linear, offset)
    # As in the test above; a wrong volume (log 2.01 = 0.70) would tilt the weights of the two halves.
    assert elpd == pytest.approx(student_predictive(X, 40, prior), abs=0.12)
    # Draws that are not moved have the plain ratios.
    assert np.allclose(matching._log_ratios(row, 1.0, theta), -matching._log_likelihood(row, theta), rtol=1e-12)


@pytest.mark.parametrize("how", ["shift", "scale", "covariance"])
def test_a_step_matches_the_weighted_moments(how):
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((500, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 0.3], [0.0, 0.0, 0.1]])
    w = rng.dirichlet(np.ones(500))
    centre, matrix, target = _affine_step(theta, w, how)
    moved = (theta - centre) @ matrix.T + target
    assert np.allclose(moved.mean(axis=0), w @ theta, rtol=1e-9)
    weighted = np.cov(theta.T, aweights=w, ddof=0)
    if how == "scale":
        assert np.allclose(moved.var(axis=0), np.diag(weighted), rtol=1e-9)
    if how == "covariance":
        assert np.allclose(np.cov(moved.T, ddof=0), weighted, rtol=1e-7)


# --- many rows ------------------------------------------------------------------------------------------------------


def simulated_posterior(n_rows: int, sample_weight: np.ndarray | None = None) -> SimpleNamespace:
    """Rows of two normals and 400 draws around their parameters: the fields that LOO reads, without a sampler."""
    rng = np.random.default_rng(0)
    X, half = rng.standard_normal((n_rows, 2)), n_rows // 2
    X[half:] += 4
    S = 400
    weights = rng.dirichlet([half, half], size=S)
    means = np.array([[0.0, 0.0], [4.0, 4.0]]) + rng.standard_normal((S, 2, 2)) / np.sqrt(half)
    factors = np.eye(2) + np.tril(rng.standard_normal((S, 2, 2, 2))) * 0.7 / np.sqrt(half)
    draws = PosteriorDraws(*(a.reshape(4, S // 4, *a.shape[1:]) for a in (weights, means, factors)))
    mode = MixtureParameters(weights.mean(axis=0), means.mean(axis=0), factors.mean(axis=0))
    return SimpleNamespace(_draws=draws, _X=X, _sample_weight=sample_weight, map_=mode, method="nuts")


@pytest.mark.parametrize("approximation", [pytest.param("waic", marks=pytest.mark.slow), "plpd"])
def test_subsample_is_within_its_error_of_all_rows(approximation):
    post = simulated_posterior(1500)
    full = loo_posterior(post, r_eff=1.0)
    errors, claimed = [], []
    for seed in range(8):
        part = loo_posterior(
            post, r_eff=1.0, subsample_above=1000, subsample_size=150, approximation=approximation, random_state=seed
        )
        errors.append(part.loo.elpd - full.loo.elpd)
        claimed.append(part.loo.subsampling_se)
        assert part.loo.elpd_i.values.sum() == pytest.approx(part.loo.elpd, rel=1e-12)
    # Root mean square of 8 errors in units of the claimed error: χ² with 8 degrees of freedom puts it within 0.35 … 1.75.
    assert 0.35 < np.sqrt(np.mean((np.array(errors) / np.array(claimed)) ** 2)) < 1.75
    assert part.loo.se == pytest.approx(full.loo.se, rel=0.05)
    # A subsample of 150 rows: p is a mean of 150 values with a spread about as large as itself.
    assert part.loo.p == pytest.approx(full.loo.p, rel=0.4)
    assert (part.waic is None) == (approximation == "plpd")
    assert np.isfinite(part.pareto_k).sum() == 150
    assert "150 of 1500 rows" in part.notes[0]
    assert "elpd_loo" in str(part)


def test_compare_pairs_subsamples_of_the_same_seed():
    post = simulated_posterior(1000)
    options = {"r_eff": 1.0, "subsample_above": 500, "subsample_size": 150, "random_state": 3}
    one = loo_posterior(post, **options).loo
    shifted = simulated_posterior(1000)
    shifted._draws = PosteriorDraws(post._draws.weights, post._draws.means + 0.1, post._draws.precision_factors)
    other = loo_posterior(shifted, **options).loo
    table = az.compare({"one": one, "other": other}, round_to="none")
    full = loo_posterior(post, r_eff=1.0).loo.elpd - loo_posterior(shifted, r_eff=1.0).loo.elpd
    assert list(table.index) == ["one", "other"]
    # WAIC stands for the rows outside the subsample, within 0.01 a row; pairing takes the rest away.
    assert table.loc["other", "elpd_diff"] == pytest.approx(-full, abs=0.5)


def test_blocks_change_nothing(monkeypatch):
    post = simulated_posterior(500)
    whole = loo_posterior(post, r_eff=1.0)
    monkeypatch.setattr(loo_module, "BLOCK_ELEMENTS", 400 * 33)
    pieces = loo_posterior(post, r_eff=1.0, n_threads=1)
    assert np.allclose(pieces.loo.elpd_i, whole.loo.elpd_i, rtol=1e-12)
    assert np.allclose(pieces.waic.elpd_i, whole.waic.elpd_i, rtol=1e-12)


def test_weights_count_rows_and_leave_out_one_copy():
    n = 200
    v = np.tile([1.0, 2.0], n // 2)
    post = simulated_posterior(n, v)
    plain = loo_posterior(simulated_posterior(n), r_eff=1.0)
    found = loo_posterior(post, r_eff=1.0)
    # The draws are given, so leaving one copy out costs the same ratios whatever the weight.
    assert np.allclose(found.loo.elpd_i, v * plain.loo.elpd_i, rtol=1e-12)
    repeated = simulated_posterior(n)
    repeated._X = np.repeat(repeated._X, v.astype(int), axis=0)
    assert found.loo.se == pytest.approx(loo_posterior(repeated, r_eff=1.0).loo.se, rel=1e-10)
    # A row of weight 0 was never fitted: its leave-one-out density is the posterior predictive one.
    post._sample_weight = np.where(np.arange(n) == 3, 0.0, 1.0)
    full = loo_posterior(post, r_eff=1.0)
    assert full.loo.elpd_i[3] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approximation": "lpd"}, "approximation must be"),
        ({"thin": 0}, "thin must be at least 1"),
        ({"refits": -1}, "refits must be"),
        ({"X": np.zeros((5, 2))}, "differs from the data of the fit"),
        ({"X": np.zeros((5, 3))}, "2 columns"),
        ({"sample_weight": np.ones(50)}, "goes with X"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        loo_posterior(simulated_posterior(50), r_eff=1.0, **options)


def test_unfitted_and_rows_out_of_reach():
    with pytest.raises(ValueError, match="fitted"):
        loo_posterior(BayesianGaussianMixture(2))
    post = simulated_posterior(50)
    post._X[13] = 1e200
    with pytest.raises(ValueError, match="row 13"):
        loo_posterior(post, r_eff=1.0)
    post = simulated_posterior(50)
    post._X = None
    with pytest.raises(ValueError, match="give X"):
        loo_posterior(post, r_eff=1.0)


def test_nothing_of_size_draws_times_rows(monkeypatch):
    post = simulated_posterior(20_000)
    monkeypatch.setattr(loo_module, "BLOCK_ELEMENTS", 400_000)
    options = {"r_eff": 1.0, "subsample_above": 1000, "subsample_size": 50, "random_state": 0}
    loo_posterior(post, **options)
    tracemalloc.start()
    loo_posterior(post, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 400 draws × 20,000 rows would be 64 MB; a block is 3.2 MB, and the results are some 1 MB.
    assert peak < 16e6


def test_resampled_draws_count_once():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((100, 1, 1))
    # 100 draws, each four times: as good as 100.
    draws = np.repeat(means, 4, axis=0).reshape(4, 100, 1, 1)
    post = SimpleNamespace(
        method="laplace", _draws=PosteriorDraws(np.ones((4, 100, 1)), draws, np.ones((4, 100, 1, 1, 1)))
    )
    assert loo_module.relative_efficiency_of(post, 1) == pytest.approx(0.25)


def test_a_refit_that_is_interrupted_or_fails(one_normal, monkeypatch):
    def interrupted(*args, **kwargs):
        return SimpleNamespace(interrupted="stopped by the user")

    def failing(*args, **kwargs):
        raise ValueError("no start led to positive definite covariances")

    monkeypatch.setattr("bayesgmm.inference.sampling.sample_posterior", interrupted)
    with pytest.raises(SamplingInterrupted, match="refit to 24 rows"):
        loo_posterior(one_normal, moment_matching=False)
    monkeypatch.setattr("bayesgmm.inference.sampling.sample_posterior", failing)
    with pytest.warns(CriterionWarning, match="row 24"):
        found = loo_posterior(one_normal, moment_matching=False)
    assert found.treated[0].how == "none"
    assert "the refit failed: no start" in found.treated[0].why


@UNCONVERGED
def test_a_prior_that_tells_components_apart_is_not_moment_matched():
    X = np.concatenate([np.random.default_rng(0).standard_normal((20, 1)), [[6.0]]])
    prior = ConjugatePrior(weight_concentration=[1.0, 2.0])
    post = BayesianGaussianMixture(2, prior=prior, method="laplace", draws=250, **SETTINGS).fit(X)
    treatment = loo_module.Treatment(post, X, None, 1.0, True, 5, 0, 100, np.random.default_rng(0))
    (item,) = treatment.apply([(20, 1.0, -9.0)])
    assert item.how == "none"
    assert "not the same for all components" in item.why
