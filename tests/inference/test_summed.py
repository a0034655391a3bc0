from __future__ import annotations

import numpy as np
import pytest

from bayesgmm import ConjugatePrior, HierarchicalPrior
from bayesgmm.core import em
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.laplace import hessian, importance_draws, laplace, rough_scales
from bayesgmm.inference.summed import SummedPosterior, TableRows
from tests.mixtures import STRUCTURES, random_mixture

PRIORS = {"conjugate": ConjugatePrior(), "hierarchical": HierarchicalPrior()}


class Pieces:
    """Rows in blocks of unequal length, one of them empty."""

    def __init__(self, X, v=None, cuts=(0, 7, 7, 130, 131)):
        self.X, self.v, self.cuts = X, v, (*cuts, len(X))
        self.n_features = X.shape[1]
        self.passes = 0

    def total(self, task):
        self.passes += 1
        out = None
        for block, (start, stop) in enumerate(zip(self.cuts[:-1], self.cuts[1:], strict=True)):
            part = task(self.X[start:stop], None if self.v is None else self.v[start:stop], block)
            out = part if out is None else out + part
        return out


def case(covariance_type, prior, weighted=False, K=3, D=3, n_rows=400):
    rng = np.random.default_rng(7)
    X = random_mixture(rng, K, D, covariance_type, spread=3.0).sample(rng, n_rows) + 100.0
    v = rng.integers(0, 4, n_rows).astype(float) if weighted else None
    resolved = PRIORS[prior].resolve(X, K, covariance_type, v)
    run = em.fit(X, K, covariance_type, prior=resolved.for_em.at_least_uniform(), sample_weight=v, rng=rng).best
    rows = Pieces(X, v)
    whole = CompiledPosterior.from_data(X, K, covariance_type, resolved, v)
    summed = SummedPosterior.from_prior(rows, covariance_type, resolved)
    p = run.parameters
    theta = whole.unconstrain(p.weights, p.means, p.precision_factors) + 0.05 * rng.standard_normal(whole.ndim)
    return rows, whole, summed, theta, run


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_value_and_gradient_are_those_of_rows_in_memory(covariance_type, prior, weighted):
    rows, whole, summed, theta, run = case(covariance_type, prior, weighted)
    factors = run.parameters.precision_factors
    for ours, theirs, at in (
        (summed, whole, theta),
        (summed.without_scale(factors), whole.without_scale(factors), theta[: whole.without_scale(factors).ndim]),
    ):
        rows.passes = 0
        value, gradient = ours.logp_and_grad(at)
        expected, slope = theirs.logp_and_grad(at)
        assert rows.passes == 1
        assert value == pytest.approx(expected, rel=1e-10)
        # Sums are taken in another order: each gradient to 1e-10 of the largest that the rows add up to.
        np.testing.assert_allclose(gradient, slope, rtol=1e-10, atol=1e-10 * np.abs(slope).max())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_curvature_is_that_of_differences(covariance_type, prior, weighted):
    rows, whole, summed, theta, run = case(covariance_type, prior, weighted)
    factors = run.parameters.precision_factors
    whole, summed = whole.without_scale(factors), summed.without_scale(factors)
    theta = theta[: whole.ndim]
    scale = rough_scales(whole, theta, run.counts)
    rows.passes = 0
    value, gradient, information = summed.curvature(theta, scale)
    assert rows.passes == 1
    expected, slope = whole.logp_and_grad(theta)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-10 * np.abs(slope).max())
    # Central differences of steps of 1e-4 sd: rounding of 1e-16 · 1e3 / 1e-4 and a truncation of the same size.
    np.testing.assert_allclose(information, hessian(whole, theta, scale), atol=1e-6 * len(theta))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
def test_densities_of_many_points_come_from_one_pass(prior, weighted):
    rows, whole, summed, theta, _ = case("full", prior, weighted)
    points = theta + 0.01 * np.random.default_rng(1).standard_normal((5, len(theta)))
    rows.passes = 0
    found = summed.log_densities(points)
    assert rows.passes == 1
    np.testing.assert_allclose(found, [whole.logp_and_grad(point)[0] for point in points], rtol=1e-11)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_approximation_is_that_of_rows_in_memory_in_few_passes(covariance_type):
    rows, whole, summed, _, run = case(covariance_type, "conjugate", n_rows=3000)
    p = run.parameters
    start = whole.unconstrain(p.weights, p.means, p.precision_factors)
    scale = rough_scales(whole, start, run.counts)
    expected = laplace(whole, start, scale)
    rows.passes = 0
    found = laplace(summed, start, scale)
    # From where EM ended one curvature and a few Newton steps; differences would take 2 P passes.
    assert rows.passes <= 6 < whole.ndim
    assert found.flat_directions == expected.flat_directions == 0
    assert found.gradient_norm < 3e-3
    off = np.linalg.solve(expected.factor, found.center - expected.center)
    # The decrement at which Newton's method ends, and the curvature of up to 0.1 sd away, in 3,000 rows.
    assert np.linalg.norm(off) < 4e-3
    ratio = np.linalg.solve(expected.factor, found.factor)
    np.testing.assert_allclose(ratio, np.eye(len(ratio)), atol=0.03)
    assert found.log_evidence == pytest.approx(expected.log_evidence, abs=0.02)


def test_climb_from_far_away_ends_at_the_same_mode():
    _, whole, summed, _, run = case("full", "conjugate", n_rows=1000)
    p = run.parameters
    scale = rough_scales(whole, whole.unconstrain(p.weights, p.means, p.precision_factors), run.counts)
    start = whole.unconstrain(p.weights, p.means + 0.3, p.precision_factors)
    expected, found = laplace(whole, start, scale), laplace(summed, start, scale)
    assert np.linalg.norm(np.linalg.solve(expected.factor, found.center - expected.center)) < 4e-3


def test_draws_of_many_rows_need_one_pass_and_carry_their_densities():
    rows, whole, summed, _, run = case("full", "conjugate", n_rows=6000, K=2, D=2)
    p = run.parameters
    start = whole.unconstrain(p.weights, p.means, p.precision_factors)
    approximation = laplace(summed, start, rough_scales(whole, start, run.counts))
    rows.passes = 0
    draws = importance_draws(summed, [approximation], 500, np.random.default_rng(0))
    assert rows.passes == 1
    assert draws.n_proposed == 500
    assert 450 <= draws.effective_size <= 500
    expected = [whole.logp_and_grad(point)[0] for point in draws.theta]
    np.testing.assert_allclose(draws.log_density, expected, rtol=1e-11)


def test_proposals_that_are_poor_are_doubled():
    rows, whole, summed, _, run = case("full", "conjugate", n_rows=60, K=2, D=2)
    p = run.parameters
    start = whole.unconstrain(p.weights, p.means, p.precision_factors)
    approximation = laplace(summed, start, rough_scales(whole, start, run.counts))
    draws = importance_draws(summed, [approximation], 300, np.random.default_rng(0))
    assert draws.n_proposed == 600
    assert draws.effective_size < 540


def test_passes_are_counted():
    _, whole, summed, theta, _ = case("diag", "conjugate")
    assert summed.n_passes == 0
    summed.logp_and_grad(theta)
    summed.log_densities(np.array([theta, theta]))
    assert summed.n_passes == 2


def test_a_table_in_memory_is_one_block():
    rows, _, _, theta, _ = case("full", "conjugate", weighted=True)
    prior = ConjugatePrior().resolve(rows.X, 3, "full", rows.v)
    pieces = SummedPosterior.from_prior(rows, "full", prior)
    table = SummedPosterior.from_prior(TableRows(rows.X, rows.v), "full", prior)
    assert table.logp_and_grad(theta)[0] == pytest.approx(pieces.logp_and_grad(theta)[0], rel=1e-12)
