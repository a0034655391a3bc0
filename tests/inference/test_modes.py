"""Weights of modes against exact enumeration, and one posterior from chains at several modes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, HierarchicalPrior, SeparationPrior, load
from bayesgmm.core import em
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import factors_from_covariances
from bayesgmm.datasets import load_galaxies
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.diagnostics import convergence_table, convergence_within
from bayesgmm.inference.modes import (
    ModeCells,
    ModeWeight,
    Visits,
    combined_places,
    differing_components,
    mode_masses,
    shares_with_errors,
)
from bayesgmm.inference.posterior import PosteriorDraws
from bayesgmm.inference.sampling import Settings, Task, approximate_modes, sample_posterior
from bayesgmm.stacking import stacking_weights
from tests.oracles import Enumeration, PriorValues

# Three groups and two components: the one in the middle joins its left or its right neighbour.
ROWS = np.array([-6.3, -5.9, -6.1, -5.7, -0.2, 0.3, 0.0, 5.8, 6.2, 6.5, 5.9])[:, None]
PRIOR = ConjugatePrior(
    weight_concentration=1.0, scale=[[1.0]], degrees_of_freedom=3.0, mean_prior=[0.0], mean_precision=0.05
)
N_EXACT = 100_000


def quiet_fit(X, K=2, **options) -> BayesianGaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BayesianGaussianMixture(K, random_state=0, progressbar=False, **options).fit(X)


@pytest.fixture(scope="module")
def exact():
    """Eleven rows in one dimension, all 2^11 allocations, and independent exact draws of the posterior."""
    enumeration = Enumeration(ROWS, PriorValues(1.0, np.zeros(1), 0.05, 3.0, np.eye(1)), 2)
    weights, means, sigma, allocations = enumeration.draw(np.random.default_rng(1), N_EXACT)
    return enumeration, PosteriorDraws(weights[None], means[None], factors_from_covariances(sigma)[None]), allocations


@pytest.fixture(scope="module")
def small(exact) -> tuple[Task, ModeCells]:
    prior = PRIOR.resolve(ROWS, 2, "full")
    found = em.fit(ROWS, 2, "full", prior=prior, tol=1e-9, rng=np.random.default_rng(0))
    task = Task(ROWS, None, structure("full"), prior, tuple(m.run for m in found.modes), ("x",))
    compiled = CompiledPosterior.from_data(ROWS, 2, "full", prior)
    cells = ModeCells(compiled, approximate_modes(compiled, task).approximations)
    assert len(cells) == 2
    return task, cells


@pytest.fixture(scope="module")
def exact_shares(exact, small) -> np.ndarray:
    nearest, _ = small[1].of(*exact[1].flat())
    return np.bincount(nearest, minlength=2) / N_EXACT


@pytest.fixture(scope="module")
def post() -> BayesianGaussianMixture:
    return quiet_fit(ROWS, prior=PRIOR)


def test_cells_are_the_two_ways_to_allocate_the_middle(exact, small, exact_shares):
    """The exact mass of the modes by summing over allocations, where these are what tells the modes apart."""
    enumeration, draws, allocations = exact
    with_left = enumeration.allocations[:, 5] == enumeration.allocations[:, 1]
    mass = enumeration.allocation_probabilities[with_left].sum()
    joined = np.sort(small[1].references[1][1].ravel())
    assert joined == pytest.approx([-3.4, 6.0], abs=0.2)  # mode 1 joins the middle with the left
    nearest, _ = small[1].of(*draws.flat())
    # Of 100,000 independent draws 1 in 90 is nearest to one mode and has the middle allocated to the other: it lies between.
    assert np.mean((nearest == 1) != (allocations[:, 5] == allocations[:, 1])) < 0.015
    assert exact_shares[1] == pytest.approx(mass, abs=0.015)


def test_masses_by_bridge_sampling_are_exact(exact, small, exact_shares):
    """From exact independent draws in the place of chains: log p(X) times the share of each mode's cell."""
    enumeration, draws, _ = exact
    _, cells = small
    some = PosteriorDraws(*(part[0, :4000].reshape(4, 1000, *part.shape[2:]) for part in vars_of(draws)))
    nearest, orders = cells.of(*some.flat())
    seen = Visits(nearest.reshape(4, 1000), orders.reshape(4, 1000, 2), 2)
    lp = np.array([cells.posterior.logp_and_grad(theta)[0] for theta in some.unconstrained_by(cells.posterior)])
    weights, doubts = mode_masses(cells, seen, some, lp.reshape(4, 1000), np.random.default_rng(2))
    assert doubts == []
    for w, share in zip(weights, exact_shares, strict=True):
        assert w.method == "bridge"
        # Four standard errors, plus that of the share of 100,000 draws.
        assert w.log_mass == pytest.approx(
            enumeration.log_evidence + np.log(share), abs=4 * np.hypot(w.log_mass_error, 0.004)
        )
        assert w.weight == pytest.approx(share, abs=4 * np.hypot(w.error, 0.0016))
        assert w.error < 0.01


def test_masses_of_modes_without_chains_by_importance_sampling(exact, small, exact_shares):
    enumeration, draws, _ = exact
    _, cells = small
    some = PosteriorDraws(*(part[:, :400] for part in vars_of(draws)))
    nearest, orders = cells.of(*some.flat())
    # As if no draw had been at mode 1.
    seen = Visits(np.zeros((1, 400), dtype=int), orders.reshape(1, 400, 2), 2)
    lp = np.array([[cells.posterior.logp_and_grad(theta)[0] for theta in some.unconstrained_by(cells.posterior)]])
    weights, _ = mode_masses(cells, seen, some, lp, np.random.default_rng(3))
    assert weights[1].method == "importance"
    assert weights[1].chains == ()
    expected = enumeration.log_evidence + np.log(exact_shares[1])
    assert weights[1].log_mass == pytest.approx(expected, abs=4 * weights[1].log_mass_error)
    # Laplace's approximation alone is off by what eleven rows are not normal.
    assert abs(weights[1].laplace - expected) > 0.1


def vars_of(draws: PosteriorDraws) -> tuple[np.ndarray, ...]:
    return draws.weights, draws.means, draws.precision_factors


def test_chains_that_seldom_change_modes_make_one_posterior(exact, exact_shares, post):
    """The whole way through the estimator: weights, and moments that depend on them, are those of the enumeration."""
    enumeration, draws, _ = exact
    assert post.diagnostics_.modes_combined
    table = post.mode_weights_
    assert (table["method"] == "bridge").all()
    assert table["weight"].sum() == pytest.approx(1)
    for m in (0, 1):
        assert table.loc[m, "weight"] == pytest.approx(exact_shares[m], abs=4 * np.hypot(table.loc[m, "error"], 0.0016))
    # Draws stand in the shares of the weights, to the rounding of their number.
    mode = post.idata_["sample_stats"]["mode"].values
    assert mode.shape == post.idata_["posterior"]["weights"].shape[:2]
    assert np.mean(mode == 0) == pytest.approx(table.loc[0, "weight"], abs=1 / mode.size)
    # Whether 0 is nearer to the left or the right component: E of the label-invariant mean of the smaller mean.
    ours, theirs = post._draws.means[..., 0].min(axis=-1), draws.means[..., 0].min(axis=-1)
    by_chains = post.idata_["sampled_chains"]["means"].values[..., 0].min(axis=-1)
    # Standard deviation 1.3; some 500 effective draws within the modes, and 0.004 of weight, which moves the mean by 2.5 × that.
    assert ours.mean() == pytest.approx(theirs.mean(), abs=4 * np.hypot(1.3 / np.sqrt(500), 0.01))
    assert by_chains.shape == post._draws.weights.shape[:2]
    assert post.log_evidence().log_evidence == pytest.approx(enumeration.log_evidence, abs=0.05)


def test_components_that_differ_from_mode_to_mode_are_not_summed_up(post):
    assert not post.diagnostics_.labels_identified
    assert post.diagnostics_.identified_components == ()
    assert "differ from mode to mode" in post.diagnostics_.verdict
    np.testing.assert_array_equal(post.means_, post.map_.means)


def test_chains_of_each_mode_can_be_had(post):
    chains = post.idata_["sampled_chains"]
    assert chains["means"].dims == post.idata_["posterior"]["means"].dims
    for c, m in enumerate(chains["mode"].values):
        assert post.diagnostics_.chain_modes[c] == m


def test_combined_posterior_survives_the_disk(post, tmp_path):
    with pytest.warns(ConvergenceWarning, match="differ from mode to mode"):
        again = load(post.save(tmp_path))
    assert again.mode_weights_.equals(post.mode_weights_)
    assert again.diagnostics_.relabelling_agreement == post.diagnostics_.relabelling_agreement
    np.testing.assert_array_equal(again._draws.means, post._draws.means)
    assert "sampled_chains" in again.idata_.children


def three_groups() -> np.ndarray:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((n, 1)) * 0.5 + m for n, m in ((30, -6.0), (29, 0.0), (30, 6.2))]
    return np.ascontiguousarray(np.concatenate(parts))


def test_stacking_weighs_modes_by_their_left_out_densities():
    X = three_groups()
    stacked = quiet_fit(X, mode_weights="stacking", draws=400, target_ess=0)
    table = stacked.mode_weights_
    assert (table["method"] == "stacking").all()
    densities = []
    for m in table.index:
        own = stacked.idata_["sampled_chains"]
        chosen = own.isel(chain=np.flatnonzero(own["mode"].values == m))
        w, mu, sigma = (chosen[name].values for name in ("weights", "means", "covariances"))
        deviations = np.sqrt(sigma[..., 0, 0])
        z = (X[:, 0, None, None, None] - mu[..., 0]) / deviations
        each = np.sum(w * np.exp(-0.5 * z**2) / deviations / np.sqrt(2 * np.pi), axis=-1).reshape(len(X), -1)
        # Importance sampling without smoothing: harmonic means.
        densities.append(-np.log(np.mean(1 / each, axis=1)))
    expected = stacking_weights(np.stack(densities, axis=1))
    # Smoothing changes single densities by some hundredths; the weights are known to ± 0.15.
    np.testing.assert_allclose(table["weight"], expected, atol=0.05)
    assert (table["error"] > 0.05).all()
    # The posterior's own shares are others: 0.83 and 0.17; and what is averaged over these draws is not the posterior's.
    assert abs(table.loc[0, "weight"] - 0.83) > 0.1
    assert "weighed by stacking" in stacked.log_evidence().notes[0]


@pytest.mark.parametrize(
    ("n_rows", "options"),
    [
        (30, {"prior": HierarchicalPrior()}),
        (30, {"prior": SeparationPrior(), "covariance_type": "spherical"}),
        pytest.param(6700, {"draws": 200, "target_ess": 0}, marks=pytest.mark.slow),
    ],
    ids=["random scale", "separation", "many rows"],
)
def test_rows_that_are_their_own_mirror_image_have_modes_of_equal_mass(n_rows, options):
    """With −X = X the two ways to join the middle group are mirror images: exactly one half each, under any prior scaled by the data."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((n_rows, 1)) * 0.5 - 6
    half = np.concatenate([left, np.abs(rng.standard_normal((n_rows // 2, 1))) * 0.5])
    fit = quiet_fit(np.concatenate([half, -half]), **options)
    assert fit.diagnostics_.modes_combined
    table = fit.mode_weights_
    assert table.loc[0, "weight"] == pytest.approx(0.5, abs=4 * table.loc[0, "error"])
    assert table.loc[0, "error"] < 0.02


def test_chains_are_left_as_they_are_where_asked():
    plain = quiet_fit(three_groups(), mode_weights=None, draws=200, target_ess=0)
    assert not plain.diagnostics_.modes_combined
    assert not plain.diagnostics_.ok
    assert "sampled_chains" not in plain.idata_.children
    assert (plain.mode_weights_["method"] == "draws").all()


def test_modes_that_no_chain_saw_are_reported_apart():
    """One chain, two modes: the other holds a sixth of the posterior, which the chain cannot know and Laplace can."""
    alone = quiet_fit(three_groups(), chains=1, draws=400, target_ess=0)
    assert not alone.diagnostics_.ok
    assert "no chain stayed at modes that may hold part of the posterior" in " ".join(alone.diagnostics_.problems)
    table = alone.mode_weights_
    assert table["chains"].map(len).tolist() == [1, 0]
    # 0.173 by bridge sampling from chains there.
    assert table.loc[1, "weight"] == pytest.approx(0.173, abs=0.02)


def test_a_single_mode_is_untouched():
    X = np.random.default_rng(0).standard_normal((60, 2)) + np.repeat([[0.0, 0.0], [9.0, 9.0]], 30, axis=0)
    one = quiet_fit(X, draws=200, target_ess=0)
    assert one.mode_weights_["method"].tolist() == ["single"]
    assert one.mode_weights_.loc[0, "chains"] == (0, 1, 2, 3)
    assert not one.diagnostics_.modes_combined
    assert "mode" not in one.idata_["sample_stats"]
    assert one.diagnostics_.relabelling_agreement == dict.fromkeys(
        ("mode, ecr", "mode, stephens", "ecr, stephens"), 1.0
    )
    assert one.diagnostics_.identified_components == (0, 1)
    for method in ("ecr", "stephens"):
        other = quiet_fit(X, draws=200, target_ess=0, relabelling=method)
        np.testing.assert_array_equal(other._draws.means, one._draws.means)


def test_an_optimum_that_em_missed_is_found_from_the_chains():
    """Galaxies, K = 4: EM from 20 k-means starts ends 2.7 nats below the optimum that the best draws of chains lead to."""
    X = np.ascontiguousarray(load_galaxies().to_numpy(dtype=float))
    prior = ConjugatePrior().resolve(X, 4, "full")
    problem = em.Problem(X, structure("full"), prior)
    labels = [KMeans(4, n_init=1, init="random", random_state=i).fit_predict(X) for i in range(20)]
    starts = [em.start_from_labels(problem, each, 4) for each in labels]
    found = em.fit(X, 4, "full", prior=prior, tol=1e-9, starts=starts, rng=np.random.default_rng(0))
    task = Task(X, None, structure("full"), prior, tuple(m.run for m in found.modes), ("velocity",))
    settings = Settings("nuts", draws=400, tune=200, chains=4, target_ess=0, max_draws=400, cores=2, progressbar=False)
    result = sample_posterior(task, settings, np.random.default_rng(0))
    assert [mode.n_starts for mode in result.met] == [0]
    assert result.modes[0] is result.met[0].run
    assert result.mode_order == (len(found.modes), *range(len(found.modes)))
    assert (result.modes[0].objective - found.best.objective) * len(X) > 2
    # Climbing on from there gains nothing: it is an optimum of the same objective.
    again = em.climb(problem, result.modes[0].parameters, result.modes[0].covariances, np.random.default_rng(0))
    assert again.objective == pytest.approx(result.modes[0].objective, abs=1e-6)
    assert sum(w.weight for w in result.diagnostics.mode_weights) == pytest.approx(1)


def test_galaxies_with_four_components_say_what_is_identified():
    four = quiet_fit(load_galaxies(), 4, draws=400, target_ess=0)
    assert len(four.mode_weights_) > 1
    assert four.mode_weights_["weight"].sum() == pytest.approx(1, abs=1e-9)
    # The group near 9,700 km/s is the same in all modes.
    sure = four.map_.means[list(four.diagnostics_.identified_components), 0]
    assert len(sure) < 4
    assert np.min(np.abs(sure - 9700)) < 200
    assert "identified; " in four.diagnostics_.verdict


def test_more_components_than_groups_are_said_to_be_empty_or_to_wander():
    rng = np.random.default_rng(3)
    X = np.concatenate([rng.standard_normal((100, 2)), rng.standard_normal((150, 2)) + [6, 3]])
    prior = ConjugatePrior(weight_concentration=0.05)
    three = quiet_fit(X, 3, prior=prior, draws=300, target_ess=0)
    empty = int(np.argmin(three._draws.weights.mean(axis=(0, 1))))
    assert set(three.diagnostics_.identified_components) == {0, 1, 2} - {empty}
    assert f"component {empty} holds less than one row in 9" in three.diagnostics_.verdict


def test_overlapping_components_are_named():
    """Two groups that lie one within the other, and a third far away, which is never in doubt."""
    rng = np.random.default_rng(5)
    parts = [rng.standard_normal((60, 2)), rng.standard_normal((60, 2)) + [1.0, 0], rng.standard_normal((40, 2)) + 12]
    three = quiet_fit(np.concatenate(parts), 3, draws=400, target_ess=0)
    far = int(np.argmax(three.map_.means[:, 0]))
    sure = three.diagnostics_.identified_components
    assert len(sure) < 3
    assert "identified" in three.diagnostics_.verdict
    for k in set(range(3)) - {*sure, far}:
        assert f"{k}" in three.diagnostics_.verdict.partition("identified")[2]


def test_shares_and_their_errors():
    shares, errors = shares_with_errors(np.log([3.0, 1.0]), np.array([0.02, 0.01]))
    np.testing.assert_allclose(shares, [0.75, 0.25])
    # The delta method, w (1 − w) √(s₁² + s₂²): of 4,000 normal draws known to 1 %, with terms of second order below that.
    np.testing.assert_allclose(errors, 0.1875 * np.hypot(0.02, 0.01), rtol=0.05)
    _, unknown = shares_with_errors(np.array([0.0, -400.0]), np.array([0.0, 600.0]))
    assert unknown[1] > 0.3


def test_draws_are_taken_in_proportion_and_in_time_order():
    nearest = np.repeat([[0], [0], [1]], 100, axis=1)
    nearest[0, :3] = 1
    seen = Visits(nearest, np.zeros((3, 100, 1), dtype=int), 2)
    assert seen.owners == (0, 0, 1)
    assert seen.stayed
    assert seen.apart
    assert (seen.chains(0), seen.chains(1)) == ((0, 1), (2,))
    weights = [ModeWeight(m, w, 0.01, 0.0, 0.0, 0.0, "bridge", seen.chains(m)) for m, w in ((0, 0.9), (1, 0.1))]
    at = combined_places(seen, weights, np.random.default_rng(0))
    assert at.shape == (3, 100)
    mode = nearest.reshape(-1)[at]
    assert np.sum(mode == 0) == 270
    for m in (0, 1):
        own = at.reshape(-1)[mode.reshape(-1) == m]
        assert (np.diff(own) >= 0).all()
    # Evenly spaced: no draw of mode 1 more than once, none of mode 0 more than twice.
    assert np.unique(at, return_counts=True)[1].max() == 2
    # The three draws of chain 0 at mode 1 are not among them: no chain of mode 1 began there.
    assert not np.isin(at, [0, 1, 2]).any()


def test_chains_that_go_to_and_fro_are_not_apart():
    rng = np.random.default_rng(0)
    seen = Visits(rng.integers(0, 2, (4, 200)), np.zeros((4, 200, 1), dtype=int), 2)
    assert not seen.apart
    assert not seen.stayed
    assert seen.n_visits(0) == sum(np.sum(np.diff(np.append(1, own)) == -1) for own in seen.nearest)


def test_effective_sizes_of_modes_join_as_variances_of_a_weighted_mean():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 300)) + np.repeat([0.0, 0.0, 50.0, 50.0], 300).reshape(4, 300)
    at = np.arange(1200).reshape(4, 300)
    one, other = (convergence_table({"x": x[half]}).loc["x"] for half in (slice(0, 2), slice(2, 4)))
    joined = convergence_within({"x": x}, [(0.8, at[:2]), (0.2, at[2:])]).loc["x"]
    assert joined["r_hat"] == max(one["r_hat"], other["r_hat"])
    assert joined["ess_bulk"] == pytest.approx(1 / (0.64 / one["ess_bulk"] + 0.04 / other["ess_bulk"]))
    # A chain alone at its mode is judged by its halves.
    assert np.isfinite(convergence_within({"x": x}, [(1.0, at[:1])]).loc["x", "r_hat"])


def test_components_differ_where_modes_do():
    rng = np.random.default_rng(0)
    means = np.array([[0.0], [5.0]]) + 0.1 * rng.standard_normal((2, 200, 2, 1))
    means[1, :, 1] += 2
    draws = PosteriorDraws(np.full((2, 200, 2), 0.5), means, np.ones((2, 200, 2, 1, 1)))
    nearest = np.repeat([[0], [1]], 200, axis=1)
    assert differing_components(draws, nearest) == [1]
    assert differing_components(replace(draws, means=means[:1].repeat(2, axis=0)), nearest) == []
