"""A batch's step against Cappé and Moulines' formula in raw moments, which need no centring."""

from __future__ import annotations

import numpy as np
import pytest

from bayesgmm.core import em, stepwise
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters, SufficientStatistics
from bayesgmm.core.priors import ConjugatePrior
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture


def a_mixture(name: str, seed: int = 0, D: int = 2):
    truth = random_mixture(np.random.default_rng(seed), 2, D, name)
    kind = structure(name)
    return MixtureParameters(truth.weights, truth.means, kind.factors(truth.packed, 2, D)), truth.packed, truth


def raw(X, v, parameters):
    """Σ r, Σ r x and Σ r x xᵀ per unit of weight, by scipy's densities."""
    r = oracles.responsibilities(X, parameters.weights, parameters.means, parameters.covariances) * v[:, None] / v.sum()
    return r.sum(axis=0), r.T @ X, np.einsum("nk,ni,nj->kij", r, X, X)


def maximum(sums, name):
    s0, s1, s2 = sums
    K, D = s1.shape
    means = s1 / s0[:, None]
    scatter = s2 - s0[:, None, None] * means[:, :, None] * means[:, None, :]
    packed = {
        "full": scatter / s0[:, None, None],
        "tied": scatter.sum(axis=0),
        "diag": np.diagonal(scatter, axis1=1, axis2=2) / s0[:, None],
        "spherical": np.trace(scatter, axis1=1, axis2=2) / s0 / D,
    }[name]
    return s0, means, packed


def batches(seed: int, sizes=(300, 200, 260), weighted: bool = False):
    rng = np.random.default_rng(seed)
    truth = random_mixture(rng, 2, 2, spread=3.0)
    return [(truth.sample(rng, n), rng.uniform(0.5, 2, n) if weighted else np.ones(n)) for n in sizes]


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_a_moving_average_of_raw_moments(name, weighted):
    kind, decay, offset = structure(name), 0.7, 2.0
    parts = batches(1, weighted=weighted)
    X, v = parts[0]
    problem = em.Problem(X, kind, None, v)
    run = em.climb(problem, *em.start_from_labels(problem, np.arange(len(X)) % 2, 2), np.random.default_rng(0))
    state = stepwise.begin(run, problem.e_step(run.parameters))
    assert (state.n_steps, state.restarted) == (1, False)
    assert state.weight == pytest.approx(v.sum())
    average = raw(X, v, run.parameters)
    # The state's own: what its parameters are the M-step of, after one more pass.
    weight = v.sum()
    for t, (rows, w) in enumerate(parts[1:], start=2):
        batch_problem = em.Problem(rows, kind, None, w)
        here = state.parameters
        usual = weight / (t - 1)
        gamma = (t - 1 + offset) ** -decay * min(1.0, w.sum() / usual)
        new = raw(rows, w, here)
        average = tuple((1 - gamma) * a + gamma * b for a, b in zip(average, new, strict=True))
        state = stepwise.step(state, batch_problem, batch_problem.e_step(here), decay, offset, np.random.default_rng(0))
        weight += w.sum()
        weights, means, packed = maximum(average, name)
        assert state.n_steps == t
        assert state.weight == pytest.approx(weight)
        assert not state.restarted
        # Raw moments lose a digit or two to cancellation.
        np.testing.assert_allclose(state.parameters.weights, weights, rtol=1e-10)
        np.testing.assert_allclose(state.parameters.means, means, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(state.covariances, packed, rtol=1e-7, atol=1e-9)
        # Sums are centred at the new means, per unit of weight.
        np.testing.assert_allclose(state.average.counts, average[0], rtol=1e-10)
        np.testing.assert_allclose(state.average.first, 0.0, atol=1e-9)
        assert state.average.total_weight == pytest.approx(1.0)


def test_the_log_likelihood_is_averaged_over_batches():
    kind = structure("full")
    parts = batches(2, sizes=(300, 300))
    problem = em.Problem(parts[0][0], kind)
    run = em.climb(problem, *em.start_from_labels(problem, np.arange(300) % 2, 2), np.random.default_rng(0))
    first = problem.e_step(run.parameters)
    state = stepwise.begin(run, first)
    assert state.average.log_likelihood == pytest.approx(first.log_likelihood / 300)
    second = em.Problem(parts[1][0], kind)
    batch = second.e_step(run.parameters)
    after = stepwise.step(state, second, batch, 0.6, 0.0, np.random.default_rng(0))
    # γ₂ = (2 − 1 + 0)^−0.6 = 1: the second batch alone.
    assert after.average.log_likelihood == pytest.approx(batch.log_likelihood / 300)
    half = stepwise.step(state, second, batch, 1.0, 1.0, np.random.default_rng(0))
    assert half.average.log_likelihood == pytest.approx((first.log_likelihood + batch.log_likelihood) / 600)


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_resumed_is_the_m_step_of_its_own_sums(name):
    parameters, packed, _ = a_mixture(name)
    state = stepwise.resume(structure(name), parameters, packed, 500.0, 7)
    assert (state.weight, state.n_steps) == (500.0, 7)
    problem = em.Problem(np.zeros((3, 2)), structure(name))
    there, again = problem.m_step(state.average, parameters.means)
    np.testing.assert_allclose(there.weights, parameters.weights, rtol=1e-13)
    np.testing.assert_allclose(there.means, parameters.means, rtol=1e-13)
    np.testing.assert_allclose(again, packed, rtol=1e-12, atol=1e-14)


def test_a_small_batch_weighs_less():
    kind = structure("diag")
    parameters, packed, truth = a_mixture("diag")
    state = stepwise.resume(kind, parameters, packed, 1000.0, 1)
    rows = truth.sample(np.random.default_rng(3), 100) + 3.0
    problem = em.Problem(rows, kind)
    moved = stepwise.step(state, problem, problem.e_step(parameters), 0.5, 3.0, np.random.default_rng(0))
    # γ = 4^−½ = ½, of which a batch of a tenth of the usual weight has a tenth.
    own = raw(rows, np.ones(100), parameters)
    np.testing.assert_allclose(moved.parameters.weights, 0.95 * parameters.weights + 0.05 * own[0], rtol=1e-10)


def test_the_prior_counts_once_against_all_rows_so_far():
    kind = structure("full")
    parameters, packed, truth = a_mixture("full")
    X = truth.sample(np.random.default_rng(4), 400)
    prior = ConjugatePrior(2.0, [0.0, 0.0], 5.0, 10.0, 3 * np.eye(2)).resolve(X, 2)
    problem = em.Problem(X, kind, prior)
    state = stepwise.resume(kind, parameters, packed, 600.0, 1)
    batch = problem.e_step(parameters)
    moved = stepwise.step(state, problem, batch, 1.0, 1.0, np.random.default_rng(0))
    gamma = 0.5 * 400 / 600
    s0, s1, s2 = (
        1000 * ((1 - gamma) * a + gamma * b)
        for a, b in zip(
            (
                parameters.weights,
                parameters.weights[:, None] * parameters.means,
                parameters.weights[:, None, None]
                * (parameters.covariances + parameters.means[:, :, None] * parameters.means[:, None, :]),
            ),
            raw(X, np.ones(400), parameters),
            strict=True,
        )
    )
    np.testing.assert_allclose(moved.parameters.weights, (s0 + 1) / (s0.sum() + 2), rtol=1e-10)
    np.testing.assert_allclose(moved.parameters.means, s1 / (s0 + 5.0)[:, None], rtol=1e-9)
    average = s1 / s0[:, None]
    scatter = s2 - s0[:, None, None] * average[:, :, None] * average[:, None, :]
    shrink = (5.0 * s0 / (5.0 + s0))[:, None, None] * average[:, :, None] * average[:, None, :]
    expected = (3 * np.eye(2) + scatter + shrink) / (s0 + 10.0 + 2 + 2)[:, None, None]
    np.testing.assert_allclose(moved.covariances, expected, rtol=1e-7)


def test_a_component_without_rows_is_started_anew_and_it_is_said():
    kind = structure("full")
    rng = np.random.default_rng(5)
    X = rng.standard_normal((200, 2))
    parameters = MixtureParameters(np.array([0.5, 0.5]), np.array([[0.0, 0.0], [1e4, 1e4]]), np.stack([np.eye(2)] * 2))
    state = stepwise.resume(kind, parameters, np.stack([np.eye(2)] * 2), 200.0, 1)
    problem = em.Problem(X, kind)
    # γ = 1: nothing is left of what was.
    moved = stepwise.step(state, problem, problem.e_step(parameters), 0.7, 0.0, rng)
    assert moved.restarted
    assert (moved.n_steps, moved.weight) == (2, 400.0)
    assert np.abs(moved.parameters.means).max() < 10


# What a stream begins with, and the second moments that it carries from batch to batch


def parameters_and_mixture(name: str, D: int = 2):
    truth = random_mixture(np.random.default_rng(0), 2, D, name)
    return MixtureParameters(truth.weights, truth.means, structure(name).factors(truth.packed, 2, D)), truth


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_resumed_has_the_sums_of_a_row_and_no_log_likelihood(name):
    parameters, truth = parameters_and_mixture(name)
    average = stepwise.resume(structure(name), parameters, truth.packed, 500.0).average
    assert (average.log_likelihood, average.total_weight) == (0.0, 1.0)
    np.testing.assert_array_equal(average.counts, parameters.weights)
    # Not the parameters' own array: sums are added to.
    assert average.counts is not parameters.weights
    np.testing.assert_array_equal(average.first, np.zeros((2, 2)))
    own = parameters.weights[:, None, None] * parameters.covariances
    second = {"full": own, "tied": own.sum(axis=0)[None]}.get(name, np.diagonal(own, axis1=1, axis2=2))
    # A product and a sum of two.
    np.testing.assert_allclose(average.second, second, rtol=1e-14, atol=1e-16)


def test_a_stream_is_resumed_after_one_batch_unless_it_is_told():
    parameters, truth = parameters_and_mixture("full")
    assert stepwise.resume(structure("full"), parameters, truth.packed, 500.0).n_steps == 1


@pytest.mark.parametrize("moments", ["full", "pooled", "diagonal"])
def test_sums_about_moved_centres_are_those_of_the_rows(moments):
    """Σ r (x − c − b)(x − c − b)ᵀ by its definition, in each of the forms of second moments."""
    rng = np.random.default_rng(0)
    X, r, centres, by = (
        rng.normal(size=(40, 3)),
        rng.uniform(size=(40, 2)),
        rng.normal(size=(2, 3)),
        rng.normal(size=(2, 3)),
    )

    def about(points) -> SufficientStatistics:
        away = X[:, None] - points
        first, second = np.einsum("nk,nkd->kd", r, away), np.einsum("nk,nkd,nke->kde", r, away, away)
        if moments == "pooled":
            second = second.sum(axis=0, keepdims=True)
        elif moments == "diagonal":
            second = np.diagonal(second, axis1=1, axis2=2)
        return SufficientStatistics(-7.0, float(r.sum()), r.sum(axis=0), first, second)

    found, expected = stepwise._recentred(about(centres), by), about(centres + by)
    assert (found.log_likelihood, found.total_weight) == (-7.0, expected.total_weight)
    np.testing.assert_array_equal(found.counts, expected.counts)
    # Sums of 40 numbers of order 1.
    np.testing.assert_allclose(found.first, expected.first, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.second, expected.second, rtol=1e-12, atol=1e-13)


def test_sums_for_another_weight_are_in_proportion():
    sums = SufficientStatistics(
        -8.0, 4.0, np.array([1.0, 3.0]), np.array([[2.0], [-4.0]]), np.array([[[6.0]], [[10.0]]])
    )
    found = stepwise._scaled(sums, 2.0)
    assert (found.log_likelihood, found.total_weight) == (-4.0, 2.0)
    np.testing.assert_array_equal(found.counts, [0.5, 1.5])
    np.testing.assert_array_equal(found.first, [[1.0], [-2.0]])
    np.testing.assert_array_equal(found.second, [[[3.0]], [[5.0]]])


@pytest.mark.parametrize(("share", "gamma"), [(0.5, 0.25), (1.0, 0.5), (2.0, 0.5)])
def test_a_batch_larger_than_the_others_weighs_no_more_than_they_do(share, gamma):
    """After two batches and with t₀ = 2, α = ½: γ₃ = (2 + 2)^(−½) = ½ for a batch of the usual 300 rows or more."""
    kind = structure("diag")
    parameters, truth = parameters_and_mixture("diag")
    state = stepwise.resume(kind, parameters, truth.packed, 600.0, 2)
    X = truth.sample(np.random.default_rng(1), int(300 * share)) + 1.0
    problem = em.Problem(X, kind)
    batch = problem.e_step(parameters)
    after = stepwise.step(state, problem, batch, 0.5, 2.0, np.random.default_rng(0))
    expected = (1 - gamma) * parameters.weights + gamma * batch.counts / len(X)
    # A few roundings.
    np.testing.assert_allclose(after.parameters.weights, expected, rtol=1e-12)
    assert (after.n_steps, after.weight) == (3, 600.0 + len(X))
    assert after.average.log_likelihood == pytest.approx(gamma * batch.log_likelihood / len(X), rel=1e-12)
