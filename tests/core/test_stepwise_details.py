"""What a stream begins with, and the second moments that it carries from batch to batch."""

from __future__ import annotations

import numpy as np
import pytest

from bayesgmm.core import em, stepwise
from bayesgmm.core.covariance import structure
from bayesgmm.core.parameters import MixtureParameters, SufficientStatistics
from tests.mixtures import STRUCTURES, random_mixture


def a_mixture(name: str, D: int = 2):
    truth = random_mixture(np.random.default_rng(0), 2, D, name)
    return MixtureParameters(truth.weights, truth.means, structure(name).factors(truth.packed, 2, D)), truth


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_resumed_has_the_sums_of_a_row_and_no_log_likelihood(name):
    parameters, truth = a_mixture(name)
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
    parameters, truth = a_mixture("full")
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
    parameters, truth = a_mixture("diag")
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
