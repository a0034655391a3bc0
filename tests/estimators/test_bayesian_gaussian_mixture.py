from __future__ import annotations

import re
import time
import warnings

import arviz as az
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from bayesgmm import (
    BayesianGaussianMixture,
    ConjugatePrior,
    GaussianMixture,
    HierarchicalPrior,
    SeparationPrior,
    compare,
)
from bayesgmm.core.covariance import structure
from bayesgmm.datasets import load_faithful
from bayesgmm.exceptions import SamplingInterrupted
from bayesgmm.inference import nuts, posterior
from bayesgmm.inference.power_scaling import sensitivities
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture

mpl.use("Agg")
FAITHFUL = load_faithful()
UNCONVERGED = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
"""For tests with runs too short to converge by the strict limits."""
QUIET = {"progressbar": False, "random_state": 0}
SHORT = QUIET | {"draws": 200, "tune": 150, "chains": 2, "target_ess": 0}


def laplace(n_components: int = 1, **changes) -> BayesianGaussianMixture:
    return BayesianGaussianMixture(n_components, **(QUIET | {"method": "laplace", "draws": 100} | changes))


@pytest.fixture(scope="module")
def faithful() -> BayesianGaussianMixture:
    return BayesianGaussianMixture(2, **(QUIET | {"draws": 400, "tune": 200})).fit(FAITHFUL)


@pytest.fixture(scope="module")
def flat(faithful) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and covariance matrices of the draws, chains joined, from the DataTree."""
    group = faithful.idata_["posterior"]
    return tuple(group[name].values.reshape(-1, *group[name].shape[2:]) for name in ("weights", "means", "covariances"))


@pytest.fixture
def separated() -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.concatenate([rng.standard_normal((30, 2)), rng.standard_normal((50, 2)) + 12])


# --- closed forms ---------------------------------------------------------------------------------------------------


def normal_inverse_wishart(X, prior):
    """Posterior m, κ, ν, Λ of one normal (Gelman et al. 2013, Bayesian Data Analysis, equation 3.23)."""
    N, D = X.shape
    m0, k0, nu0, L0 = prior.mean_prior, prior.mean_precision, prior.degrees_of_freedom, prior.scale
    center = X.mean(axis=0)
    S = (X - center).T @ (X - center)
    k, nu = k0 + N, nu0 + N
    shift = center - m0
    return (k0 * m0 + N * center) / k, k, nu, L0 + S + k0 * N / k * np.outer(shift, shift)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("method", ["nuts", "laplace"])
def test_one_component_has_the_closed_form_posterior(method, D):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((60, D)) @ np.array([[2.0, 1.0], [0.0, 0.5]])[:D, :D] + 3
    settings = {"draws": 700, "tune": 300, "chains": 4} if method == "nuts" else {"draws": 4000, "chains": 2}
    fit = BayesianGaussianMixture(1, method=method, **settings, **QUIET).fit(X)
    assert fit.diagnostics_.ok
    m, k, nu, L = normal_inverse_wishart(X, fit.prior_)
    d = nu - D - 1
    i = np.arange(D)
    mean_sd = np.sqrt(np.diag(L) / (k * d))
    # Variances of an inverse-Wishart (Press 1982, section 5.2.2), written for all pairs.
    square = np.outer(np.diag(L), np.diag(L))
    covariance_sd = np.sqrt(((nu - D + 1) * L**2 + d * square) / ((nu - D) * d**2 * (nu - D - 3)))
    draws = fit.idata_["posterior"]
    truth = [(draws["means"][..., 0, j].values, m[j], mean_sd[j]) for j in i]
    truth += [(draws["covariances"][..., 0, a, b].values, (L / d)[a, b], covariance_sd[a, b]) for a in i for b in i]
    for values, mean, sd in truth:
        # Four Monte Carlo errors. Resampled draws cost at most a factor of √2 over independent ones at k̂ well below 0.5.
        wide = 1.0 if method == "nuts" else np.sqrt(2)
        assert abs(values.mean() - mean) < 4 * wide * float(az.mcse(values, method="mean"))
        assert abs(values.std() - sd) < 4 * wide * float(az.mcse(values, method="sd"))
    assert (draws["weights"] == 1).all()
    if method == "laplace":
        assert fit.diagnostics_.pareto_k < 0.7
    # The posterior predictive is a Student-t with ν − D + 1 degrees of freedom.
    new = np.array([[1.0] * D, [3.0] * D, [5.0] * D])
    exact = stats.multivariate_t(m, L * (k + 1) / (k * (nu - D + 1)), nu - D + 1).logpdf(new)
    # Densities at 3 sd and less, averaged over 2,800 draws and more: relative errors of 1 to 2 %.
    np.testing.assert_allclose(fit.score_samples(new), exact, atol=0.08)


# --- simulated truth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("covariance_type", "D"), [("full", 2), ("tied", 2), ("diag", 3), ("spherical", 2), ("full", 1)]
)
def test_separated_mixtures_are_recovered(covariance_type, D):
    rng = np.random.default_rng(11)
    truth = random_mixture(rng, 2, D, covariance_type)
    means = np.stack([np.zeros(D), np.full(D, 15.0)])
    truth = type(truth)(np.array([0.35, 0.65]), means, truth.packed, truth.covariances)
    X = truth.sample(rng, 400)
    fit = BayesianGaussianMixture(2, covariance_type=covariance_type, **(QUIET | {"tune": 200})).fit(X)
    assert fit.diagnostics_.ok
    order = np.argsort(fit.means_[:, 0])
    draws = fit.idata_["posterior"]

    def close(found, true, name):
        # Five posterior sds for at most ten numbers: once in some hundred thousand data sets.
        sd = draws[name].values.std(axis=(0, 1))
        found, sd = (found, sd) if covariance_type == "tied" and name == "covariances" else (found[order], sd[order])
        assert found.shape == np.shape(true)
        assert np.all(np.abs(found - true) < 5 * sd)

    close(fit.weights_, truth.weights, "weights")
    close(fit.means_, truth.means, "means")
    close(fit.covariances_, truth.packed, "covariances")
    np.testing.assert_array_equal(fit.predict(X), order[(X[:, 0] > 7).astype(int)])


# --- reproducibility ------------------------------------------------------------------------------------------------


@UNCONVERGED
def test_same_seed_same_draws_bit_for_bit(separated):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (the point of the test)
    one = BayesianGaussianMixture(2, **SHORT, cores=1).fit(separated)
    two = BayesianGaussianMixture(2, **SHORT, cores=2).fit(separated)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    for name in one.idata_["posterior"].data_vars:
        np.testing.assert_array_equal(one.idata_["posterior"][name], two.idata_["posterior"][name])
    other = BayesianGaussianMixture(2, **(SHORT | {"random_state": 1})).fit(separated)
    assert not np.any(one.idata_["posterior"]["means"].values == other.idata_["posterior"]["means"].values)
    a, b = (laplace(2).fit(separated).idata_["posterior"]["means"] for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
def test_other_random_states_are_taken(make, separated):
    a, b = (laplace(2, random_state=make(4)).fit(separated).means_ for _ in range(2))
    np.testing.assert_array_equal(a, b)


# --- results against sums by hand -----------------------------------------------------------------------------------


def test_predictions_average_over_draws(faithful, flat):
    new = pd.DataFrame([[2.0, 55.0], [3.0, 65.0], [4.4, 80.0], [6.0, 40.0]], columns=FAITHFUL.columns)
    density = np.zeros(4)
    share = np.zeros((4, 2))
    together = np.zeros((4, 4))
    for w, m, V in zip(*flat, strict=True):
        density += np.exp(oracles.mixture_log_density(new.to_numpy(), w, m, V))
        r = oracles.responsibilities(new.to_numpy(), w, m, V)
        share += r
        together += r @ r.T
    S = len(flat[0])
    np.fill_diagonal(together, S)
    np.testing.assert_allclose(faithful.score_samples(new), np.log(density / S), rtol=1e-9)
    np.testing.assert_allclose(faithful.predict_proba(new), share / S, rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(faithful.predict(new), share.argmax(axis=1))
    np.testing.assert_allclose(faithful.coclustering(new), together / S, rtol=1e-8, atol=1e-12)
    assert faithful.score(new) == pytest.approx(np.mean(np.log(density / S)))
    assert faithful.score(new, sample_weight=[1, 0, 0, 3]) == pytest.approx(
        np.average(np.log(density / S), weights=[1, 0, 0, 3])
    )


def test_rows_do_not_depend_on_their_neighbours_or_on_blocks(faithful):
    rng = np.random.default_rng(6)
    rows = pd.DataFrame(rng.uniform([1, 40], [6, 100], (3001, 2)), columns=FAITHFUL.columns)
    log_density, share = faithful.score_samples(rows), faithful.predict_proba(rows)
    pieces = [rows[:1], rows[1:700], rows[700:]]
    # Another blocking, another order of sums: rounding.
    np.testing.assert_allclose(np.concatenate([faithful.score_samples(p) for p in pieces]), log_density, rtol=1e-11)
    np.testing.assert_allclose(np.concatenate([faithful.predict_proba(p) for p in pieces]), share, atol=1e-12)
    np.testing.assert_allclose(share.sum(axis=1), 1, rtol=1e-12)


def test_samples_have_the_predictive_moments(faithful, flat):
    n = 20_000
    rows, labels = faithful.sample(n)
    again, _ = faithful.sample(n)
    np.testing.assert_array_equal(rows, again)
    assert rows.shape == (n, 2)
    w, m, V = flat
    assert np.mean(labels == 0) == pytest.approx(w[:, 0].mean(), abs=4 * 0.5 / np.sqrt(n))
    mean = np.einsum("sk,skd->d", w, m) / len(w)
    second = np.einsum("sk,skde->de", w, V) / len(w) + np.einsum("sk,skd,ske->de", w, m, m) / len(w)
    covariance = second - np.outer(mean, mean)
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(rows.mean(axis=0) - mean) < 4 * sd / np.sqrt(n))
    assert np.all(np.abs(np.cov(rows.T) - covariance) < 5 * np.sqrt(2 / n) * np.outer(sd, sd))
    for k in range(2):
        center = np.average(m[:, k], axis=0, weights=w[:, k])
        assert np.all(np.abs(rows[labels == k].mean(axis=0) - center) < 5 * sd / np.sqrt(np.sum(labels == k)))
    with pytest.raises(ValueError, match="n_samples"):
        faithful.sample(0)


def test_coclustering_refuses_what_does_not_fit_in_memory(faithful):
    with pytest.raises(ValueError, match="5000"):
        faithful.coclustering(pd.concat([FAITHFUL] * 19))


def test_point_estimates_are_posterior_means(faithful, flat):
    for found, draws in zip((faithful.weights_, faithful.means_, faithful.covariances_), flat, strict=True):
        np.testing.assert_allclose(found, draws.mean(axis=0), rtol=1e-10)


@pytest.mark.parametrize("ci_prob", [0.9, 0.5])
def test_summary_against_quantiles(faithful, ci_prob):
    table = faithful.summary(ci_prob)
    ends = ["5%", "95%"] if ci_prob == 0.9 else ["25%", "75%"]
    shown = ["map", "mean", "median", "sd", *ends, "ess_bulk", "ess_tail", "r_hat", "prior_sensitivity"]
    assert list(table.columns) == shown
    pd.testing.assert_series_equal(table["prior_sensitivity"], faithful.prior_sensitivity()["prior"], check_names=False)
    group = faithful.idata_["posterior"]
    V = faithful.map_.covariances
    rows = {
        "weights[0]": (group["weights"][..., 0], faithful.map_.weights[0]),
        "means[1, waiting]": (group["means"][..., 1, 1], faithful.map_.means[1, 1]),
        "standard_deviations[0, eruptions]": (group["standard_deviations"][..., 0, 0], np.sqrt(V[0, 0, 0])),
        "correlations[1, eruptions:waiting]": (
            group["correlations"][..., 1, 0],
            V[1, 0, 1] / np.sqrt(V[1, 0, 0] * V[1, 1, 1]),
        ),
    }
    assert len(table) == 2 + 4 + 4 + 2
    for name, (variable, mode) in rows.items():
        values = variable.values
        row = table.loc[name]
        assert row["map"] == pytest.approx(mode)
        assert row["mean"] == pytest.approx(values.mean())
        assert row["median"] == pytest.approx(np.median(values))
        assert row["sd"] == pytest.approx(values.std(ddof=1))
        np.testing.assert_allclose(row[ends], np.quantile(values, [(1 - ci_prob) / 2, (1 + ci_prob) / 2]))
        assert row["ess_bulk"] == pytest.approx(float(az.ess(values, method="bulk")))
        assert row["r_hat"] == pytest.approx(float(az.rhat(values)))
    for bad in (0, 1, 1.5):
        with pytest.raises(ValueError, match="ci_prob"):
            faithful.summary(bad)


def test_comparison_with_em_end_to_end(faithful):
    em = GaussianMixture(2, random_state=0).fit(FAITHFUL)
    table = compare(em, faithful)
    assert list(table.index) == list(faithful.summary().index)
    # The groups lie far apart and hold 97 and 175 rows: estimates within half a posterior sd, as DESIGN's mode shift of 0.28.
    assert (table["shift"].abs() < 0.6).all()


# --- the DataTree and ArviZ -----------------------------------------------------------------------------------------


def test_groups_names_and_log_densities(faithful, flat):
    tree = faithful.idata_
    assert list(tree["posterior"]["feature"].values) == ["eruptions", "waiting"]
    assert tree["posterior"]["means"].dims == ("chain", "draw", "component_id", "feature")
    assert list(tree["posterior"]["feature_pair"].values) == ["eruptions:waiting"]
    assert {"lp", "energy", "diverging", "tree_depth", "n_steps", "step_size", "acceptance_rate"} == set(
        tree["sample_stats"].data_vars
    )
    log_likelihood = tree["log_likelihood"]["x"].values.reshape(-1, len(FAITHFUL))
    log_prior = tree["log_prior"]["prior"].values.ravel()
    X = FAITHFUL.to_numpy(dtype=float)
    np.testing.assert_array_equal(tree["observed_data"]["x"], X)
    for s in (0, 555, 1599):
        w, m, V = (part[s] for part in flat)
        np.testing.assert_allclose(log_likelihood[s], oracles.mixture_log_density(X, w, m, V), rtol=1e-9)
        assert log_prior[s] == pytest.approx(oracles.log_prior(w, m, V, faithful.prior_, "full"), rel=1e-9)


def test_arviz_statistics_run(faithful):
    table = az.summary(faithful.idata_, var_names=["weights", "means"], round_to="none")
    assert len(table) == 6
    assert table.loc["means[1, waiting]", "mean"] == pytest.approx(faithful.means_[1, 1])
    elpd = az.loo(faithful.idata_)
    # The in-sample log density less about as many parameters as the model has.
    assert 1 < elpd.p < 12 + 4
    in_sample = faithful.score_samples(FAITHFUL).sum()
    assert in_sample - 20 < elpd.elpd < in_sample
    sensitivity = az.psense_summary(faithful.idata_, var_names=["weights", "means"])
    assert len(sensitivity) == 6


@pytest.mark.parametrize(
    "plot",
    [
        lambda tree: az.plot_trace_dist(tree, var_names=["weights"]),
        lambda tree: az.plot_forest(tree, var_names=["weights", "means"]),
        lambda tree: az.plot_pair(tree, var_names=["weights", "means"]),
        lambda tree: az.plot_rank(tree, var_names=["weights"]),
        lambda tree: az.plot_energy(tree),
    ],
    ids=["trace_dist", "forest", "pair", "rank", "energy"],
)
def test_arviz_plots_run(faithful, plot):
    assert plot(faithful.idata_) is not None
    plt.close("all")


def test_posterior_predictive_on_request_and_its_plot(separated):
    fit = laplace(2).fit(separated)
    assert "posterior_predictive" not in fit.idata_.children
    assert fit.sample_posterior_predictive() is fit
    tables = fit.idata_["posterior_predictive"]["x"]
    assert tables.shape == (4, 100, 80, 2)
    # 32,000 simulated rows: their mean is that of the draws' mixtures.
    expected = (
        (fit.idata_["posterior"]["weights"] * fit.idata_["posterior"]["means"])
        .sum("component_id")
        .mean(("chain", "draw"))
    )
    np.testing.assert_allclose(tables.mean(("chain", "draw", "obs_id")), expected, atol=4 * 6 / np.sqrt(32_000))
    assert az.plot_ppc_dist(fit.idata_) is not None
    plt.close("all")


def test_large_log_likelihood_comes_on_demand(separated, monkeypatch):
    whole = laplace(2).fit(separated)
    monkeypatch.setattr(posterior, "LOG_LIKELIHOOD_LIMIT", 10)
    fit = laplace(2).fit(separated)
    assert "log_likelihood" not in fit.idata_.children
    assert fit.compute_log_likelihood() is fit
    np.testing.assert_array_equal(fit.idata_["log_likelihood"]["x"], whole.idata_["log_likelihood"]["x"])
    fit.compute_log_likelihood()


def test_pymc_model_is_that_of_the_fit(faithful):
    model = faithful.pymc_model_
    assert list(model.coords["feature"]) == ["eruptions", "waiting"]
    assert [v.name for v in model.free_RVs] == ["weights", "bartlett_diagonal", "bartlett_offdiagonal", "means"]
    assert model.named_vars_to_dims["means"] == ("component", "feature")
    np.testing.assert_array_equal(model["X"].get_value(), FAITHFUL.to_numpy(dtype=float))


# --- labels, verdicts, stopping -------------------------------------------------------------------------------------


@UNCONVERGED
def test_chains_in_different_orders_end_in_one(faithful):
    """One chain starts from a random partition; its order of the components is as random."""
    shares = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X = np.concatenate([rng.standard_normal((20, 1)), rng.standard_normal((20, 1)) + 20])
        fit = BayesianGaussianMixture(2, **(SHORT | {"random_state": seed, "draws": 50, "tune": 60})).fit(X)
        shares.append(fit.diagnostics_.permuted_share)
        assert fit.diagnostics_.permuted_share in (0.0, 0.5, 1.0)
        by_chain = fit.idata_["posterior"]["means"].mean("draw").values[..., 0]
        # Twenty rows: means within 5 / √20 of 0 and 20 in every chain, in the same order.
        np.testing.assert_allclose(by_chain[0], by_chain[1], atol=1.2)
        np.testing.assert_allclose(np.sort(by_chain[0]), [0, 20], atol=1.2)
    assert 0.5 in shares


@pytest.mark.parametrize("method", ["nuts", "laplace"])
def test_more_components_than_the_data_have_are_not_claimed_to_be_told_apart(method):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((60, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = BayesianGaussianMixture(4, method=method, **(SHORT | {"chains": 4})).fit(X)
    assert not fit.diagnostics_.ok
    assert not fit.diagnostics_.labels_identified
    messages = [str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning)]
    for problem in fit.diagnostics_.problems:
        assert problem in messages
        assert re.search(r"\d", problem)
    assert any("are the mode's" in m for m in messages)
    np.testing.assert_array_equal(fit.means_, fit.map_.means)
    np.testing.assert_array_equal(fit.weights_, fit.map_.weights)


def test_sampling_goes_on_to_the_asked_effective_size(separated):
    fit = BayesianGaussianMixture(2, **(SHORT | {"draws": 100, "target_ess": 450})).fit(separated)
    n_draws = fit.idata_["posterior"].sizes["draw"]
    assert n_draws > 100
    assert n_draws % 100 == 0
    assert min(fit.diagnostics_.ess_bulk, fit.diagnostics_.ess_tail) >= 450
    assert any("450" in note and "reached" in note and str(n_draws) in note for note in fit.diagnostics_.notes)
    assert len(np.unique(fit.idata_["posterior"]["means"].values[0, :, 0, 0])) > 0.9 * n_draws


def test_sampling_stops_at_its_budget_and_says_so(separated):
    with pytest.warns(ConvergenceWarning) as caught:
        fit = BayesianGaussianMixture(2, **(SHORT | {"draws": 40, "target_ess": 5000, "max_draws": 90})).fit(separated)
    assert fit.idata_["posterior"].sizes["draw"] == 80
    assert any("max_draws = 90" in n and "5000" in n and "80 draws" in n for n in fit.diagnostics_.notes)
    assert not fit.diagnostics_.ok
    messages = [str(w.message) for w in caught]
    assert set(fit.diagnostics_.problems) <= set(messages)


def press_ctrl_c(monkeypatch, when):
    wait = time.sleep
    end = time.monotonic() + 20

    def impatient(seconds):
        wait(seconds)
        if when() or time.monotonic() > end:
            raise KeyboardInterrupt

    monkeypatch.setattr(nuts.time, "sleep", impatient)


@UNCONVERGED
def test_ctrl_c_keeps_the_draws_that_are_there(separated, monkeypatch):
    begun = time.monotonic()
    seen: list[int] = []
    read = nuts.is_finished

    def watched(sampler):
        seen.append(1)
        return read(sampler)

    monkeypatch.setattr(nuts, "is_finished", watched)
    press_ctrl_c(monkeypatch, lambda: len(seen) > 60)
    settings = SHORT | {"draws": 1_000_000, "max_draws": 1_000_000, "tune": 60}
    with pytest.raises(SamplingInterrupted) as stopped:
        BayesianGaussianMixture(2, **settings).fit(separated)
    monkeypatch.undo()
    assert time.monotonic() - begun < 60
    fit = stopped.value.estimator
    assert fit is not None
    n = fit.idata_["posterior"].sizes["draw"]
    assert 4 <= n < 1_000_000
    assert not fit.diagnostics_.ok
    assert str(n) in str(stopped.value)
    assert fit.predict(separated).shape == (80,)
    assert np.isfinite(fit.score_samples(separated)).all()


def test_ctrl_c_before_there_are_draws(separated, monkeypatch):
    press_ctrl_c(monkeypatch, lambda: True)
    with pytest.raises(SamplingInterrupted, match="warm-up") as stopped:
        BayesianGaussianMixture(2, **(SHORT | {"tune": 100_000})).fit(separated)
    assert stopped.value.estimator is None


@UNCONVERGED
@pytest.mark.parametrize("moment", ["warm-up", "draws"])
def test_ctrl_c_while_sampling_goes_on_keeps_the_earlier_draws(separated, monkeypatch, moment):
    """The effective size asked for takes a second round; stopping that must not lose the first."""
    rounds: list[int] = []
    start = nuts.start_chain

    def counted(*arguments):
        # As long a second round as it takes to be stopped; in its warm-up, or after one chain alone has begun to draw.
        rounds.append(1)
        arguments = list(arguments)
        if len(rounds) > 2:
            arguments[4 if moment == "draws" and len(rounds) == 3 else 5] = 1_000_000
        if len(rounds) > 3 and moment == "draws":
            arguments[5] = 1_000_000
        return start(*arguments)

    waits: list[int] = []
    monkeypatch.setattr(nuts, "start_chain", counted)

    def second_round_is_on():
        waits.extend([1] if len(rounds) > 3 else [])
        return len(waits) > 40

    press_ctrl_c(monkeypatch, second_round_is_on)
    settings = SHORT | {"draws": 60, "target_ess": 5000, "tune": 60, "cores": 2}
    with pytest.raises(SamplingInterrupted) as stopped:
        BayesianGaussianMixture(2, **settings).fit(separated)
    monkeypatch.undo()
    fit = stopped.value.estimator
    assert fit is not None
    assert fit.idata_["posterior"].sizes["draw"] >= 60
    assert np.isfinite(fit.score_samples(separated)).all()


# --- priors and weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("weight_concentration_prior", "weight_concentration="),
        ("weight_concentration_prior_type", "weight_concentration="),
        ("mean_precision_prior", "mean_precision="),
        ("mean_prior", "mean_prior="),
        ("degrees_of_freedom_prior", "degrees_of_freedom="),
        ("covariance_prior", "scale="),
    ],
)
def test_scikit_learns_names_of_the_prior_name_ours(theirs, ours):
    with pytest.raises(TypeError, match=re.escape(f"ConjugatePrior({ours}")) as error:
        BayesianGaussianMixture(2, **{theirs: 1.0})
    assert theirs in str(error.value)


def test_prior_given_in_part_is_completed_and_kept(separated):
    fit = laplace(2, prior=ConjugatePrior(mean_precision=0.3, degrees_of_freedom=7.0)).fit(separated)
    assert fit.prior_.mean_precision == 0.3
    assert fit.prior_.degrees_of_freedom == 7.0
    np.testing.assert_allclose(fit.prior_.mean_prior, separated.mean(axis=0))
    np.testing.assert_array_equal(fit.prior_.weight_concentration, [1, 1])
    assert fit.prior_.scale.shape == (2, 2)
    # (D + 2) times the within-component covariance, which is near the identity here.
    np.testing.assert_allclose(fit.prior_.scale, 4 * np.eye(2), atol=2.0)
    assert "0.3" in repr(fit.prior_)
    assert "7.0" in repr(fit.prior_)
    constant = fit.idata_["constant_data"]
    np.testing.assert_array_equal(constant["scale"], fit.prior_.scale)
    assert fit.prior.scale is None


def test_stronger_prior_moves_the_posterior(separated):
    loose = laplace(1).fit(separated)
    strong = laplace(1, prior=ConjugatePrior(mean_precision=8000.0, mean_prior=[0.0, 0.0])).fit(separated)
    np.testing.assert_allclose(loose.means_[0], separated.mean(axis=0), atol=2)
    # 80 rows against 8,000: about 1 % of the data's mean of 7.5.
    np.testing.assert_allclose(strong.means_[0], separated.mean(axis=0) * 80 / 8080, atol=0.3)


@UNCONVERGED
def test_sparse_weights_prior_samples(separated):
    fit = BayesianGaussianMixture(2, prior=ConjugatePrior(weight_concentration=0.3), **SHORT).fit(separated)
    # Known labels but for chance: Dirichlet (0.3 + 30, 0.3 + 50).
    exact = stats.beta(30.3, 50.3)
    small = fit.idata_["posterior"]["weights"].min("component_id").values
    assert abs(small.mean() - exact.mean()) < 4 * float(az.mcse(small)) + 1e-3
    assert small.std() == pytest.approx(exact.std(), rel=0.25)


def test_weights_are_repeated_rows(separated):
    v = np.random.default_rng(4).integers(1, 4, len(separated))
    repeated = np.repeat(separated, v, axis=0)
    prior = ConjugatePrior(scale=np.eye(2), mean_prior=[5.0, 5.0])
    weighted = laplace(2, prior=prior).fit(separated, sample_weight=v)
    plain = laplace(2, prior=prior).fit(repeated)
    # The same mode, up to EM's tolerance.
    for a, b in ((weighted.map_.means, plain.map_.means), (weighted.map_.weights, plain.map_.weights)):
        order = np.argsort(weighted.map_.means[:, 0]), np.argsort(plain.map_.means[:, 0])
        np.testing.assert_allclose(a[order[0]], b[order[1]], rtol=1e-5)
    from bayesgmm.inference.compiled import CompiledPosterior

    one = CompiledPosterior.from_data(separated, 2, prior=weighted.prior_, sample_weight=v)
    other = CompiledPosterior.from_data(repeated, 2, prior=plain.prior_)
    theta = one.unconstrain(weighted.map_.weights, weighted.map_.means, weighted.map_.precision_factors)
    assert one.logp_and_grad(theta)[0] == pytest.approx(other.logp_and_grad(theta)[0], rel=1e-12)
    np.testing.assert_array_equal(weighted.idata_["constant_data"]["sample_weight"], v)
    default = laplace(2).fit(separated, sample_weight=v).prior_
    expected = laplace(2).fit(repeated).prior_
    np.testing.assert_allclose(default.scale, expected.scale, rtol=1e-4)
    np.testing.assert_allclose(default.mean_prior, expected.mean_prior, rtol=1e-12)


# --- scikit-learn's manners -----------------------------------------------------------------------------------------


def test_clone_get_and_set_params(faithful):
    twin = clone(faithful)
    assert twin.get_params() == faithful.get_params()
    assert not hasattr(twin, "idata_")
    twin.set_params(n_components=3, method="laplace")
    assert twin.n_components == 3
    with pytest.raises(ValueError, match="mean_prior"):
        twin.set_params(mean_prior=1)


def test_column_names_are_kept_and_checked(faithful):
    assert list(faithful.feature_names_in_) == ["eruptions", "waiting"]
    assert faithful.n_features_in_ == 2
    with pytest.raises(ValueError, match="feature names"):
        faithful.predict(FAITHFUL[["waiting", "eruptions"]])


def test_fit_predict_is_fit_and_predict(separated):
    labels = laplace(2).fit_predict(separated)
    np.testing.assert_array_equal(labels, laplace(2).fit(separated).predict(separated))


def test_modes_are_reported_best_first(faithful):
    objectives = [mode.objective for mode in faithful.modes_]
    assert objectives == sorted(objectives, reverse=True)
    assert sum(mode.n_starts for mode in faithful.modes_) <= faithful.n_init
    np.testing.assert_array_equal(faithful.modes_[0].run.parameters.means, faithful.map_.means)


# --- bad input ------------------------------------------------------------------------------------------------------


def bad_tables():
    rng = np.random.default_rng(0)
    good = rng.standard_normal((20, 2))
    nan, inf = good.copy(), good.copy()
    nan[3, 1], inf[4, 0] = np.nan, np.inf
    one = good[:, :1]
    return {
        "NaN": (nan, "row 3, column 'x1'"),
        "infinity": (inf, "row 4, column 'x0'"),
        "constant": (np.c_[good, np.full(20, 2.5)], "column 'x2' is constant"),
        "duplicate": (np.c_[good, good[:, 1]], "'x1', 'x2'"),
        "collinear": (np.c_[good, 2 * good[:, 0] - 3 * good[:, 1] + 1], "'x0', 'x1', 'x2'"),
        "few distinct rows": (np.repeat(good[:1], 20, axis=0), "1 distinct rows? for 2 components"),
        "D > N": (rng.standard_normal((4, 6)), "fewer rows than columns"),
        "one row": (good[:1], "minimum of 2"),
        "no rows": (good[:0], "0 sample"),
        "one dimension": (good[:, 0], "2D"),
        "too large": (good * 1e160, "Rescale"),
        "constant of size 1": (np.ones_like(one), "distinct|constant"),
    }


@pytest.mark.parametrize("name", bad_tables())
def test_bad_tables_are_one_clear_error(name):
    X, message = bad_tables()[name]
    fit = laplace(2)
    with pytest.raises(ValueError, match=message):
        fit.fit(X)
    with pytest.raises(NotFittedError):
        fit.predict(np.zeros((2, 2)))


def test_sparse_and_text_are_refused():
    with pytest.raises(TypeError, match="sparse"):
        laplace(1).fit(sparse.eye(4, format="csr"))
    with pytest.raises(ValueError, match="'kind'"):
        laplace(1).fit(pd.DataFrame({"size": [1.0, 2.0, 3.0], "kind": ["a", "b", "c"]}))


@UNCONVERGED
@pytest.mark.parametrize("kind", ["constant", "few distinct rows", "D > N", "duplicate"])
def test_given_scale_makes_degenerate_data_proper(kind):
    X, _ = bad_tables()[kind]
    fit = laplace(1, prior=ConjugatePrior(scale=np.eye(X.shape[1]))).fit(X)
    assert np.isfinite(fit.score_samples(X)).all()
    # One component: the mode of the mean is shrunk by κ₀ alone.
    np.testing.assert_allclose(fit.map_.means[0], X.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e100, 1e149])
def test_extreme_scales_work_or_are_refused(scale, separated):
    if scale > 1e148:  # 16 · 1e149 and more
        with pytest.raises(ValueError, match="Rescale"):
            laplace(2).fit(separated * scale)
        return
    fit = laplace(2).fit(separated * scale)
    plain = laplace(2).fit(separated)
    a, b = np.sort(fit.map_.means[:, 0]) / scale, np.sort(plain.map_.means[:, 0])
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    # A density of unit (1 / scale)².
    np.testing.assert_allclose(
        fit.score_samples(separated * scale) + 2 * np.log(scale), plain.score_samples(separated), atol=0.3
    )


def test_integers_and_booleans_are_numbers(separated):
    whole = np.round(separated * 5).astype(np.int32)
    np.testing.assert_array_equal(laplace(2).fit(whole).means_, laplace(2).fit(whole.astype(float)).means_)
    flags = np.random.default_rng(0).random((40, 2)) > [0.3, 0.6]
    np.testing.assert_array_equal(laplace(1).fit(flags).means_, laplace(1).fit(flags.astype(float)).means_)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"covariance_type": "round"}, ["full", "tied", "diag", "spherical"]),
        ({"method": "advi"}, ["nuts", "laplace"]),
        ({"init_params": "best"}, ["kmeans", "k-means++", "random", "random_from_data"]),
        ({"prior": "flat"}, ["default", "ConjugatePrior"]),
        ({"n_components": 0}, ["1"]),
        ({"tune": "long"}, ["auto"]),
        ({"chains": 0}, ["1"]),
        ({"draws": 2}, ["4"]),
    ],
)
def test_unknown_options_list_the_allowed(arguments, allowed, separated):
    with pytest.raises(ValueError, match=next(iter(arguments))) as error:
        BayesianGaussianMixture(**(QUIET | arguments)).fit(separated)
    for word in allowed:
        assert word in str(error.value)


def test_bad_weights_and_priors_that_do_not_fit(separated):
    with pytest.raises(ValueError, match="negative"):
        laplace(1).fit(separated, sample_weight=np.r_[-1.0, np.ones(79)])
    with pytest.raises(ValueError, match="zero"):
        laplace(1).fit(separated, sample_weight=np.zeros(80))
    with pytest.raises(ValueError, match="3 features|shape \\(3, 3\\)"):
        laplace(1, prior=ConjugatePrior(scale=np.eye(3))).fit(separated)
    with pytest.raises(ValueError, match="3 values for 2 components"):
        laplace(2, prior=ConjugatePrior(weight_concentration=[1, 1, 1])).fit(separated)


def test_wrong_features_at_predict_time_and_use_before_fit(faithful, separated):
    plain = laplace(2).fit(separated)
    for method in (
        faithful.predict,
        faithful.predict_proba,
        faithful.score_samples,
        faithful.score,
        faithful.coclustering,
    ):
        with pytest.raises(ValueError, match="feature names"):
            method(FAITHFUL.assign(third=1.0))
        with pytest.raises(ValueError, match="row 1, column"):
            method(pd.DataFrame([[1.0, 2.0], [np.nan, 1.0]], columns=FAITHFUL.columns))
    for columns in (1, 3):
        with pytest.raises(ValueError, match=f"{columns} features"):
            plain.predict(np.zeros((4, columns)))
    empty = BayesianGaussianMixture(2)
    for use in (
        lambda: empty.predict([[1.0, 2.0]]),
        lambda: empty.sample(3),
        lambda: empty.summary(),
        lambda: empty.save("nowhere"),
        lambda: empty.pymc_model_,
        lambda: empty.compute_log_likelihood(),
        lambda: empty.sample_posterior_predictive(),
        lambda: empty.coclustering([[1.0, 2.0]]),
    ):
        with pytest.raises(NotFittedError):
            use()


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_shapes_are_scikit_learns(covariance_type, separated):
    fit = laplace(2, covariance_type=covariance_type).fit(separated)
    expected = {"full": (2, 2, 2), "tied": (2, 2), "diag": (2, 2), "spherical": (2,)}[covariance_type]
    assert fit.covariances_.shape == expected
    assert fit.weights_.shape == (2,)
    assert fit.means_.shape == (2, 2)
    assert structure(covariance_type).expand(fit.covariances_, 2, 2).shape == (2, 2, 2)


@UNCONVERGED
def test_weights_that_add_up_to_nothing_leave_the_prior():
    X = np.array([[0.0, 0.0], [1.0, 3.0], [5.0, 1.0]])
    post = laplace(1, covariance_type="diag", prior=HierarchicalPrior()).fit(X, sample_weight=np.full(3, 1e-20))
    assert np.isfinite(post.idata_["posterior"]["means"].values).all()
    np.testing.assert_array_equal(post.weights_, 1.0)


@pytest.mark.parametrize("prior", ["default", HierarchicalPrior(), SeparationPrior()])
def test_columns_too_narrow_for_their_squares_are_refused(prior, separated):
    with pytest.raises(ValueError, match=r"column 'x1' is narrower than 1e-150.*Rescale"):
        laplace(2, prior=prior).fit(separated * [1.0, 1e-310])


def test_a_random_scale_needs_room_for_squares_of_precisions(separated):
    with pytest.raises(ValueError, match=r"column 1 of X is narrower than 1e-100.*Rescale"):
        laplace(2, prior=HierarchicalPrior()).fit(separated * [1.0, 1e-120])


@UNCONVERGED
def test_a_summary_of_few_distinct_draws():
    """Where the tail of the importance weights has one value it is not smoothed, and nothing breaks."""
    rng = np.random.default_rng(0)
    density = np.repeat(rng.standard_normal(3), [380, 10, 10]).reshape(2, 200)
    found = sensitivities({"a": rng.standard_normal((2, 200))}, density)
    assert np.isfinite(found).all()
