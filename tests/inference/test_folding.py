from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln, logsumexp

from bayesgmm import ConjugatePrior
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.folding import ComponentBlocks, FoldedNormals, log_normals
from tests.mixtures import STRUCTURES

X = np.random.default_rng(0).standard_normal((12, 2))
PRIOR = ConjugatePrior(weight_concentration=1.5, mean_prior=[0.0, 0.2], scale=[[1.0, 0.3], [0.3, 2.0]])


def posterior_and_blocks(covariance_type: str, K: int) -> tuple[CompiledPosterior, ComponentBlocks]:
    compiled = CompiledPosterior.from_data(X, K, covariance_type, PRIOR)
    return compiled, ComponentBlocks.of(compiled.slices, K, covariance_type)


def some_normals(blocks: ComponentBlocks, P: int, J: int, spread: float, rng: np.random.Generator) -> FoldedNormals:
    """Correlated normals of unequal shares whose components' blocks stand ``spread`` apart."""
    K, B = blocks.own.shape
    place = np.repeat(np.arange(K) - (K - 1) / 2, B)[: K * B - 1]
    centers = 0.3 * rng.standard_normal((J, P))
    centers[:, P - len(place) :] += spread * place
    A = rng.standard_normal((J, P, P)) / np.sqrt(P)
    return FoldedNormals(blocks, rng.dirichlet(np.full(J, 3.0)), centers, np.linalg.cholesky(A @ A.mT + np.eye(P)))


@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_permuting_blocks_permutes_the_parameters(covariance_type, K):
    rng = np.random.default_rng(1)
    compiled, blocks = posterior_and_blocks(covariance_type, K)
    assert sorted(blocks.order) == list(range(compiled.ndim))
    theta = rng.standard_normal((3, compiled.ndim))
    order = rng.permutation(K)
    before, after = compiled.constrain(theta), compiled.constrain(blocks.permuted(theta, order))
    for name, values in before.items():
        # The last log weight is minus the sum of the others: rounding.
        np.testing.assert_allclose(after[name], values[:, order], rtol=1e-12, err_msg=name)
    # And the posterior of a symmetric prior does not see it.
    for point, moved in zip(theta, blocks.permuted(theta, order), strict=True):
        assert compiled.logp_and_grad(point)[0] == pytest.approx(compiled.logp_and_grad(moved)[0], rel=1e-12)


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_folded_density_against_the_sum_over_all_orders(covariance_type, spread):
    """K = 4, two normals: 24 orders of each, through scipy, components overlapping or not."""
    K, rng = 4, np.random.default_rng(2)
    compiled, blocks = posterior_and_blocks(covariance_type, K)
    folded = some_normals(blocks, compiled.ndim, 2, spread, rng)
    theta = folded.draw(rng, 20)
    # Half of the points away from the order that the normals were made in.
    theta[10:] = blocks.permuted(theta[10:], np.array([2, 0, 3, 1]))
    terms = []
    for order in permutations(range(K)):
        moved = blocks.permuted(theta, np.array(order))[:, blocks.order]
        for share, center, L in zip(folded.shares, folded.centers, folded.factors, strict=True):
            terms.append(np.log(share) + stats.multivariate_normal(center, L @ L.T).logpdf(moved))
    expected = logsumexp(terms, axis=0) - np.log(math.factorial(K))
    found = folded.log_density(theta, rng)
    assert found.shape == (1, 20)
    # Orders that add less than e^-14 = 8e-7 may be left out.
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-6)


def test_one_component_is_not_folded():
    rng = np.random.default_rng(3)
    compiled, blocks = posterior_and_blocks("full", 1)
    folded = some_normals(blocks, compiled.ndim, 2, 0.0, rng)
    theta = folded.draw(rng, 5)
    ordered = theta[:, blocks.order]
    expected = [
        np.log(share) + stats.multivariate_normal(center, L @ L.T).logpdf(ordered)
        for share, center, L in zip(folded.shares, folded.centers, folded.factors, strict=True)
    ]
    # The same formula through another factorisation: rounding.
    np.testing.assert_allclose(folded.log_density(theta, rng)[0], logsumexp(expected, axis=0), atol=1e-9)
    np.testing.assert_array_equal(
        log_normals(ordered, folded.shares, folded.centers, folded.factors), folded.log_unfolded(theta)
    )


def test_separated_components_cost_one_order_whatever_their_number():
    """12! = 479 million orders, of which one matters."""
    rng = np.random.default_rng(4)
    compiled, blocks = posterior_and_blocks("full", 12)
    folded = some_normals(blocks, compiled.ndim, 1, 30.0, rng)
    theta = folded.draw(rng, 200)
    found = folded.log_density(theta, rng, max_orders=10)
    # One row: no sum had to be thinned to ten orders or fewer.
    assert found.shape == (1, 200)
    np.testing.assert_allclose(found[0], folded.log_unfolded(theta) - gammaln(13), atol=1e-6)


def test_thinned_orders_estimate_the_density_without_bias():
    rng = np.random.default_rng(5)
    compiled, blocks = posterior_and_blocks("diag", 4)
    folded = some_normals(blocks, compiled.ndim, 1, 0.5, rng)
    theta = folded.draw(rng, 6)
    exact = folded.log_density(theta, rng)[0]
    assert folded.log_density(theta, rng, max_orders=5, repeats=3).shape == (3, 6)
    estimates = folded.log_density(np.tile(theta, (500, 1)), rng, max_orders=5, repeats=4).reshape(2000, 6)
    ratio = np.exp(estimates - exact)
    assert np.all(ratio.std(axis=0) > 0.001)
    # Four standard errors of 2,000 independent estimates, for each of six points.
    assert np.all(np.abs(ratio.mean(axis=0) - 1) < 4 * ratio.std(axis=0) / np.sqrt(2000))


def test_draws_have_the_density():
    """Moments of the draws against those of the normals, in the coordinates of θ."""
    rng = np.random.default_rng(6)
    compiled, blocks = posterior_and_blocks("tied", 3)
    folded = some_normals(blocks, compiled.ndim, 2, 1.0, rng)
    draws = folded.draw(rng, 20_000)[:, blocks.order]
    mean = folded.shares @ folded.centers
    second = sum(
        share * (L @ L.T + np.outer(center - mean, center - mean))
        for share, center, L in zip(folded.shares, folded.centers, folded.factors, strict=True)
    )
    error = np.sqrt(np.diag(second) / 20_000)
    # Four and a half standard errors: eleven means, and as many variances of nearly normal variables.
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 4.5 * error)
    np.testing.assert_allclose(draws.var(axis=0), np.diag(second), rtol=4.5 * np.sqrt(2 / 20_000))
