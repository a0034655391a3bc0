from __future__ import annotations

import warnings
from dataclasses import replace

import arviz as az
import numpy as np
import pymc as pm
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from bayesgmm import BayesianGaussianMixture, ConjugatePrior, HierarchicalPrior, build_model
from bayesgmm.core import em
from bayesgmm.core.covariance import structure
from bayesgmm.core.hierarchical import Prior
from bayesgmm.datasets import load_faithful, load_galaxies
from bayesgmm.inference import sampling
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.nuts import Chains
from bayesgmm.inference.sampling import (
    Settings,
    Task,
    _replace_stranded,
    allot_chains,
    approximate_modes,
    chain_evidences,
    near_modes,
    sample_posterior,
)

SETTINGS = Settings("nuts", draws=150, tune=120, chains=4, target_ess=0, max_draws=150, cores=2, progressbar=False)


def make_task(
    X: np.ndarray, n_components: int, covariance_type: str = "full", prior: Prior | None = None, tol: float = 1e-9
) -> Task:
    resolved = (prior or ConjugatePrior()).resolve(X, n_components, covariance_type)
    found = em.fit(X, n_components, covariance_type, prior=resolved.for_em, tol=tol, rng=np.random.default_rng(0))
    names = tuple(f"x{j}" for j in range(X.shape[1]))
    return Task(X, None, structure(covariance_type), resolved, tuple(m.run for m in found.modes), names)


def compiled_of(task: Task) -> CompiledPosterior:
    return CompiledPosterior.from_data(task.X, len(task.modes[0].counts), task.kind.name, task.prior)


@pytest.fixture(scope="module")
def bimodal() -> Task:
    """Three groups in a row and two components: either neighbour may join the middle one, which makes two modes."""
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.standard_normal((n, 1)) * 0.5 + m for n, m in ((30, -6.0), (29, 0.0), (30, 6.2))])
    return make_task(np.ascontiguousarray(X), 2)


def in_order(draws) -> dict[str, np.ndarray]:
    """Quantities (chains, draws) of two components in the order of their means."""
    means, weights, covariances = (draws[v].values for v in ("means", "weights", "covariances"))
    order = np.argsort(means[..., 0], axis=-1)
    means = np.take_along_axis(means, order[..., None], axis=2)
    weights = np.take_along_axis(weights, order, axis=2)
    covariances = np.take_along_axis(covariances, order[..., None, None], axis=2)
    own = {"weight": weights[..., 0]}
    own |= {f"mean {k}{j}": means[..., k, j] for k in range(2) for j in range(2)}
    own |= {f"log sd {k}{j}": 0.5 * np.log(covariances[..., k, j, j]) for k in range(2) for j in range(2)}
    own |= {f"covariance {k}": covariances[..., k, 0, 1] for k in range(2)}
    return own


@pytest.fixture(scope="module")
def drawn() -> dict[str, dict[str, np.ndarray]]:
    """Old Faithful's posterior by both methods under one prior."""
    common = {"prior": ConjugatePrior(), "progressbar": False, "random_state": 1}
    X = load_faithful().to_numpy(dtype=float)
    nuts = BayesianGaussianMixture(2, **common).fit(X)
    laplace = BayesianGaussianMixture(2, method="laplace", **common).fit(X)
    assert laplace.diagnostics_.pareto_k < 0.7
    assert nuts.diagnostics_.ok
    return {"nuts": in_order(nuts.idata_["posterior"]), "laplace": in_order(laplace.idata_["posterior"])}


@pytest.fixture(scope="module")
def by_pymc() -> dict[str, np.ndarray]:
    """The same posterior by PyMC's own sampler, whose compilation takes half a minute."""
    X = load_faithful().to_numpy(dtype=float)
    options = {"progressbar": False, "compute_convergence_checks": False, "nuts_sampler": "pymc"}
    with build_model(X, 2, prior=ConjugatePrior().resolve(X, 2)):
        draws = pm.sample(500, tune=500, chains=2, cores=1, random_seed=2, **options)
    return in_order(draws.posterior)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("laplace", "nuts"),
        *(pytest.param(one, "pymc", marks=pytest.mark.slow) for one in ("nuts", "laplace")),
    ],
)
def test_samplers_agree_on_old_faithful(drawn, one, other, request):
    theirs = request.getfixturevalue("by_pymc") if other == "pymc" else drawn[other]
    for name, a in drawn[one].items():
        b = theirs[name]
        for statistic, method in ((np.mean, "mean"), (np.std, "sd")):
            # Four Monte Carlo errors of the difference; resampled draws cost at most √2 over independent ones.
            wide = np.sqrt(2) if one == "laplace" else 1.0
            error = np.hypot(wide * float(az.mcse(a, method=method)), float(az.mcse(b, method=method)))
            assert abs(statistic(a) - statistic(b)) < 4 * error, (name, method)


def normal_chains(offsets: list[float], scales: list[float], n_draws: int = 4000) -> Chains:
    """Chains of independent normal draws in three dimensions with the log density c − r²/2 of each."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((len(offsets), n_draws, 3))
    theta = z * np.array(scales)[:, None, None] + 100 * np.arange(len(offsets))[:, None, None]
    lp = np.array(offsets)[:, None] - 0.5 * np.sum(z**2, axis=-1)
    return Chains(theta, {"lp": lp})


def test_evidence_of_a_chain_is_the_log_integral_of_its_normal():
    found = chain_evidences(normal_chains([0.0, -3.0, 2.0], [1.0, 2.0, 0.1]))
    exact = np.array([0.0, -3.0 + 3 * np.log(2.0), 2.0 + 3 * np.log(0.1)])
    # Standard errors: √(P / 2n) of the mean density and of the log determinant.
    np.testing.assert_allclose(found - found[0], exact - exact[0], atol=0.2)


def test_stranded_chains_make_way_and_near_ones_stay():
    chains = normal_chains([0.0, -4.0, -300.0, -80.0], [1.0, 1.0, 1.0, 1.0])
    owners, asked = [0, 1, 2, 3], []

    def run(starts, whose):
        asked.append((starts, whose))
        return Chains(np.full((len(starts), 4000, 3), 7.0), {"lp": np.full((len(starts), 4000), -1.0)})

    result, notes = _replace_stranded(chains, owners, run)
    ((starts, whose),) = asked
    assert whose == [0, 0]
    assert owners == [0, 1, 0, 0]
    # They start at draws of the best chain, not all at one.
    assert all((chains.theta[0] == start).all(axis=1).any() for start in starts)
    assert not np.array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(result.theta[:2], chains.theta[:2])
    assert (result.theta[2:] == 7.0).all()
    assert (result.stats["lp"][2:] == -1.0).all()
    np.testing.assert_array_equal(result.stats["lp"][:2], chains.stats["lp"][:2])
    (note,) = notes
    assert "chains 2, 3" in note
    assert "300" in note
    _, none = _replace_stranded(normal_chains([0.0, -4.0], [1.0, 1.0]), [0, 0], run)
    assert none == []
    assert len(asked) == 1


def test_every_near_mode_gets_an_approximation_at_its_own_place(bimodal):
    compiled = compiled_of(bimodal)
    found = approximate_modes(compiled, bimodal)
    assert found.kept == (0, 1)
    for approximation, run in zip(found.approximations, bimodal.modes, strict=False):
        means = compiled.constrain(approximation.center)["means"]
        # The two kinds of mode differ by less than a posterior sd; the modes lie many sds apart.
        np.testing.assert_allclose(np.sort(means.ravel()), np.sort(run.parameters.means.ravel()), atol=0.3)
        assert approximation.gradient_norm < 1e-2


def test_chains_go_round_the_modes_and_one_starts_at_random(bimodal):
    compiled = compiled_of(bimodal)
    approximations = approximate_modes(compiled, bimodal).approximations
    owners, starts = allot_chains(compiled, bimodal, approximations, 6, np.random.default_rng(3))
    assert starts.shape == (6, compiled.ndim)
    n = len(approximations)
    order = sorted(range(n), key=lambda m: -approximations[m].log_evidence)
    assert owners[:5] == [order[c % n] for c in range(5)]
    assert all(np.isfinite(compiled.logp_and_grad(start)[0]) for start in starts)
    one, start = allot_chains(compiled, bimodal, approximations, 1, np.random.default_rng(3))
    assert one == [order[0]]
    assert start.shape == (1, compiled.ndim)


@pytest.fixture(scope="module")
def galaxies() -> Task:
    """Five components under a random scale: EM, under a fixed one and stopped on a flat top, ends at points that are not modes."""
    X = np.ascontiguousarray(np.asarray(load_galaxies(), dtype=float).reshape(-1, 1))
    return make_task(X, 5, prior=HierarchicalPrior(), tol=1e-6)


def test_modes_are_those_of_the_model_where_em_had_another_prior(galaxies):
    compiled = compiled_of(galaxies)
    found = approximate_modes(compiled, galaxies)
    assert found.merged
    mass = [a.log_evidence for a in found.approximations]
    assert mass == sorted(mass, reverse=True)
    assert mass[0] - mass[-1] <= 10
    # Each of EM's modes by itself: those that were merged climb to the density of one that was kept or dropped, to its last digits.
    alone = [approximate_modes(compiled, replace(galaxies, modes=(run,))).approximations[0] for run in galaxies.modes]
    heights = {m: a.log_density for m, a in enumerate(alone)}
    distinct = [heights[m] for m in heights if m not in found.merged]
    for m in found.merged:
        assert min(abs(heights[m] - height) for height in distinct) < 1e-3
    for m in found.kept:
        assert heights[m] == found.approximations[found.kept.index(m)].log_density
    # A mode that was left out and not merged holds less than e^−10 of the best one's mass, by the same approximation.
    for m in set(heights) - set(found.kept) - set(found.merged):
        assert alone[m].log_evidence < mass[0] - 10
    owners, _ = allot_chains(compiled, galaxies, found.approximations, 4, np.random.default_rng(0))
    assert owners[:3] == [c % len(mass) for c in range(3)]


def test_an_estimators_modes_stand_in_the_order_of_their_mass(monkeypatch):
    X, seen = load_faithful().to_numpy(dtype=float), []

    def watched(compiled, task):
        # Where a climb through a flat posterior ends goes by its coordinates: what the fit itself found is what counts.
        seen.append((task, approximate_modes(compiled, task)))
        return seen[-1][1]

    monkeypatch.setattr(sampling, "approximate_modes", watched)
    fitted = BayesianGaussianMixture(
        4, prior=HierarchicalPrior(), method="laplace", draws=100, target_ess=0, random_state=0, progressbar=False
    )
    with warnings.catch_warnings():
        # Four components of two groups: labels wander.
        warnings.simplefilter("ignore", UserWarning)
        fitted.fit(X)
    assert fitted.map_ is fitted.modes_[0].run.parameters
    ((task, found),) = seen
    mass = [approximation.log_evidence for approximation in found.approximations]
    assert len(mass) > 1
    assert mass == sorted(mass, reverse=True)
    for m, mode in zip(found.kept, fitted.modes_, strict=False):
        assert task.modes[m] is mode.run
    objectives = [mode.objective for mode in fitted.modes_]
    assert objectives != sorted(objectives, reverse=True)


def test_a_weight_of_zero_is_no_reason_to_leave_a_mode_out():
    task = make_task(np.random.default_rng(0).standard_normal((30, 1)), 2, prior=HierarchicalPrior(2.0))
    run = task.modes[0]
    empty = replace(run, parameters=replace(run.parameters, weights=np.array([1.0, 0.0])))
    # Likelihood as before: what is tested is the prior's density alone, which is 0 at a weight of 0.
    assert near_modes((run, empty), task.kind, task.prior, None, 30) == [0, 1]


def test_starts_are_overdispersed(bimodal):
    """Student-t with 4 degrees of freedom: twice the variance of the approximation."""
    compiled = compiled_of(bimodal)
    single = replace(bimodal, modes=bimodal.modes[:1])
    approximations = approximate_modes(compiled, single).approximations
    _, starts = allot_chains(compiled, single, approximations, 1501, np.random.default_rng(5))
    y = np.linalg.solve(approximations[0].factor, (starts[:-1] - approximations[0].center).T)
    # Mean |t₄| = 1 with an sd of √(2 − 1) = 1, over 1,500 draws; √(2/π) = 0.80 would be a normal.
    assert np.abs(y).mean() == pytest.approx(1.0, abs=4 / np.sqrt(1500))


def test_two_modes_are_visited_by_their_chains_and_left_as_they_are_where_asked(bimodal):
    result = sample_posterior(bimodal, replace(SETTINGS, mode_weights=None), np.random.default_rng(7))
    diagnostics = result.diagnostics
    assert len(set(diagnostics.chain_modes)) > 1
    assert not diagnostics.ok
    assert "chains ended near different modes of EM" in " ".join(diagnostics.problems)
    named = set(diagnostics.chain_modes) | set(diagnostics.unvisited_modes)
    assert {0, 1} <= named


def test_importance_draws_weight_two_modes_by_their_evidence(bimodal):
    """Against the shares of the modes by numerical integration in each basin: self-normalised weights of t proposals."""
    settings = replace(SETTINGS, method="laplace", draws=1000)
    result = sample_posterior(bimodal, settings, np.random.default_rng(8))
    compiled = compiled_of(bimodal)
    rng = np.random.default_rng(9)
    values = []
    approximations = approximate_modes(compiled, bimodal).approximations
    P = compiled.ndim
    for a in approximations:
        n = 3000
        z, stretch = rng.standard_normal((n, P)), np.sqrt(5 / rng.chisquare(5, n))
        theta = a.center + stretch[:, None] * (z @ a.factor.T)
        values.append(theta)
    theta = np.concatenate(values)
    log_q = []
    for a in approximations:
        log_q.append(multivariate_t(a.center, a.factor @ a.factor.T, df=5).logpdf(theta))
    log_q = logsumexp(log_q, axis=0) - np.log(len(approximations))
    log_w = np.array([compiled.logp_and_grad(t)[0] for t in theta]) - log_q
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    means = compiled.constrain(theta)["means"][..., 0]
    joined_left = means.max(axis=1) > 5
    expected = w[joined_left].sum()
    share = np.mean(result.draws.means[..., 0].max(axis=-1) > 5)
    assert 0.01 < expected < 0.99
    # Binomial errors of 4,000 draws and of some 3,000 effective proposals, at four of them.
    error = np.sqrt(expected * (1 - expected) * (1 / 4000 + np.sum(w**2)))
    assert share == pytest.approx(expected, abs=4 * error)


def test_relabelled_draws_follow_the_best_mode():
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.standard_normal((30, 2)), rng.standard_normal((40, 2)) + 9])
    task = make_task(X, 2)
    result = sample_posterior(task, SETTINGS, np.random.default_rng(4))
    reference = task.modes[0].parameters.means
    # Means scatter by 1 / √30; the components lie 13 apart.
    np.testing.assert_allclose(result.draws.means, np.broadcast_to(reference, result.draws.means.shape), atol=1.5)
    assert result.idata["posterior"].sizes["draw"] == 150
    assert result.interrupted is None


@pytest.mark.parametrize(("K", "D", "covariance_type"), [(1, 1, "full"), (1, 3, "spherical"), (3, 1, "diag")])
def test_small_sizes(K, D, covariance_type):
    rng = np.random.default_rng(6)
    X = np.concatenate([rng.standard_normal((25, D)) + 12 * k for k in range(K)])
    result = sample_posterior(make_task(X, K, covariance_type=covariance_type), SETTINGS, np.random.default_rng(4))
    assert result.draws.means.shape == (4, 150, K, D)
    np.testing.assert_allclose(np.sort(result.draws.means.mean(axis=(0, 1)), axis=0)[:, 0], 12.0 * np.arange(K), atol=1)


def test_overlapping_components_are_not_claimed_to_be_told_apart():
    X = np.random.default_rng(3).standard_normal((60, 1))
    result = sample_posterior(make_task(X, 3), SETTINGS, np.random.default_rng(2))
    assert not result.diagnostics.labels_identified
    assert result.diagnostics.permuted_share > 0
