"""The posterior with rows of known class: density, gradient, exact answers for few rows, order of the components, the DataTree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bayesgmm import ConjugatePrior, HierarchicalPrior
from bayesgmm.core.classes import ClassLayout, LabelledProblem, fit_classes
from bayesgmm.core.covariance import structure
from bayesgmm.inference import sampling
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.diagnostics import convergence_table
from bayesgmm.inference.relabel import relabel, relabel_within
from tests import oracles
from tests.inference.test_compiled import central_differences, natural
from tests.mixtures import STRUCTURES, random_mixture

GIVEN = np.array([0.3, 0.7])
LAYOUT = ClassLayout(("a", "b"), (2, 1), (12, 9), 14)


def some_posterior(covariance_type, layout=LAYOUT, D=2, weighted=False, prior=None):
    rng = np.random.default_rng(3)
    K = layout.n_components
    mixture = random_mixture(rng, K, D, covariance_type)
    X = mixture.sample(rng, 35)
    v = rng.uniform(0.2, 3.0, 35) if weighted else None
    A = rng.standard_normal((D, D + 2))
    if prior is None:
        prior = ConjugatePrior(rng.uniform(0.7, 2, K), rng.standard_normal(D), 0.4, D + 2.5, A @ A.T + np.eye(D))
    posterior = CompiledPosterior.from_data(X, K, covariance_type, prior, v, layout)
    theta = posterior.unconstrain(mixture.weights, mixture.means, mixture.parameters.precision_factors)
    return posterior, theta + 0.1 * rng.standard_normal(posterior.ndim), X, v, prior


def labelled_log_likelihood(X, v, layout, weights, means, matrices):
    """By scipy's densities, group by group, weights as they are."""
    total = 0.0
    for rows, block in layout.passes:
        density = oracles.mixture_log_density(X[rows], weights[block], means[block], matrices[block])
        total += np.sum(density if v is None else v[rows] * density)
    return total


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("priors", [None, GIVEN])
def test_density_is_scipys(covariance_type, priors):
    layout = replace(LAYOUT, priors=priors)
    posterior, theta, X, v, prior = some_posterior(covariance_type, layout, weighted=priors is None)
    weights, means, packed = natural(replace_classes(posterior), theta)
    matrices = oracles.expand_covariances(packed, covariance_type, 3, 2)
    held = weights if priors is None else weights * (GIVEN / [weights[:2].sum(), weights[2]])[[0, 0, 1]]
    expected = oracles.log_prior(weights, means, packed, prior, covariance_type)
    expected += labelled_log_likelihood(X, v, layout, held, means, matrices)
    # scipy's and ours round at 1e-13 of the terms; the covariances went through an inverse.
    np.testing.assert_allclose(posterior.logp_and_grad(theta)[0] - posterior.log_jacobian(theta), expected, rtol=1e-9)
    np.testing.assert_allclose(posterior.constrain(theta)["weights"], held, rtol=1e-12)


def replace_classes(posterior):
    """The same coordinates without classes: weights as the point has them."""
    return CompiledPosterior(replace(posterior.inputs, classes=None), posterior.covariance_type)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize("priors", [None, GIVEN])
@pytest.mark.parametrize("D", [1, 5])
def test_gradient_is_that_of_the_density(covariance_type, priors, D):
    posterior, theta, *_ = some_posterior(covariance_type, replace(LAYOUT, priors=priors), D, weighted=D == 1)
    _, gradient = posterior.logp_and_grad(theta)
    # Rounding of values of some hundreds over the step, 1e-8, and truncation.
    numeric = central_differences(lambda t: posterior.logp_and_grad(t)[0], theta)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-5 * np.abs(numeric).max())


@pytest.mark.parametrize("integrated", [False, True])
def test_gradient_under_a_hierarchical_prior(integrated):
    rng = np.random.default_rng(0)
    prior = HierarchicalPrior().resolve(rng.standard_normal((35, 2)), 3)
    posterior, _, *_ = some_posterior("full", replace(LAYOUT, priors=GIVEN), prior=prior)
    if integrated:
        posterior = posterior.without_scale(np.stack([np.eye(2)] * 3))
        assert posterior.inputs.classes is not None
    theta = 0.3 * rng.standard_normal(posterior.ndim) + 0.5
    numeric = central_differences(lambda t: posterior.logp_and_grad(t)[0], theta)
    np.testing.assert_allclose(posterior.logp_and_grad(theta)[1], numeric, rtol=1e-5, atol=1e-5 * np.abs(numeric).max())


def test_without_labels_it_is_the_plain_posterior():
    posterior, theta, *_ = some_posterior("full", ClassLayout(("a", "b"), (2, 1), (0, 0), 35))
    plain = replace_classes(posterior)
    value, gradient = posterior.logp_and_grad(theta)
    assert value == plain.logp_and_grad(theta)[0]
    np.testing.assert_array_equal(gradient, plain.logp_and_grad(theta)[1])


FEW = ClassLayout(("a", "b"), (2, 1), (3, 2), 3)
FEW_ROWS = np.array([[-0.4], [0.3], [2.6], [5.1], [6.0], [0.1], [4.4], [3.2]])
FEW_PRIOR = oracles.PriorValues(np.array([1.5, 1.5, 2.0]), np.array([2.5]), 0.2, 4.0, np.array([[2.0]]))


def exact(priors):
    allowed = np.ones((8, 3), bool)
    allowed[:3, 2] = allowed[3:5, :2] = False
    if priors is None:
        return oracles.Enumeration(FEW_ROWS, FEW_PRIOR, 3, allowed=allowed)
    return oracles.Enumeration(FEW_ROWS, FEW_PRIOR, 3, "full", allowed, FEW.blocks, tuple(priors))


def few_prior():
    values = FEW_PRIOR
    return ConjugatePrior(
        values.weight_concentration, values.mean_prior, values.mean_precision, values.degrees_of_freedom, values.scale
    )


@pytest.mark.parametrize("seed", range(3))
def test_density_is_the_sum_over_allocations_that_labels_allow(seed):
    posterior = CompiledPosterior.from_data(FEW_ROWS, 3, "full", few_prior(), None, FEW)
    theta = np.random.default_rng(seed).standard_normal(posterior.ndim)
    expected = exact(None).joint_log_density(*natural(posterior, theta))
    # Two sums of some hundred exponentials.
    assert posterior.logp_and_grad(theta)[0] - posterior.log_jacobian(theta) == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module", params=[None, GIVEN], ids=["estimated", "given"])
def few(request):
    layout, prior = replace(FEW, priors=request.param), few_prior()
    problem = LabelledProblem(FEW_ROWS, structure("full"), prior, tol=1e-9, max_iter=2000, classes=layout)
    rng = np.random.default_rng(5)
    found = fit_classes(problem, rng=rng, n_combinations=12)
    runs = tuple(mode.run for mode in found.modes)
    task = sampling.Task(FEW_ROWS, None, structure("full"), prior, runs, ("x",), layout)
    settings = sampling.Settings("nuts", 2000, 300, 4, 0, 2000, None, False)
    return exact(request.param), sampling.sample_posterior(task, settings, rng), layout


def test_sampled_weights_and_probabilities_are_those_of_the_enumeration(few):
    enumeration, result, layout = few
    weights, means, factors = (part[::4] for part in result.draws.flat())
    joint = weights[:, :, None] * stats.norm(means, 1 / factors[..., 0]).pdf(FEW_ROWS[:, 0])
    # Rows of known class belong to its components; nothing else is averaged than probabilities given each draw.
    in_b = joint[:, 2] / joint.sum(axis=1)
    quantities = {"weight of b": weights[:, 2]} | {f"row {n} in b": in_b[:, n] for n in range(5, 8)}
    expected = [enumeration.weight_means()[2], *enumeration.component_probabilities()[5:, 2]]
    chains = {name: values.reshape(4, -1) for name, values in quantities.items()}
    size = convergence_table(chains)["ess_bulk"]
    for (name, values), value in zip(quantities.items(), expected, strict=True):
        if layout.priors is not None and name == "weight of b":
            np.testing.assert_allclose(values, GIVEN[1], rtol=1e-12)
            continue
        assert abs(values.mean() - value) < 4 * values.std() / np.sqrt(size[name]), name


def test_sampled_predictive_density_is_that_of_the_enumeration(few):
    enumeration, result, _ = few
    at = np.linspace(-2, 8, 6)
    weights, means, factors = (part[::4] for part in result.draws.flat())
    each = np.einsum("sk,skn->ns", weights, stats.norm(means, 1 / factors[..., 0]).pdf(at))
    expected = np.exp(enumeration.predictive_log_density(at))
    # Some 1,500 effective draws of the 2,000: their standard error, four times over.
    assert np.all(np.abs(each.mean(axis=1) - expected) < 4 * each.std(axis=1) / np.sqrt(1000))


def test_the_tree_is_in_the_order_of_the_table():
    rng = np.random.default_rng(1)
    codes = np.array([1, -1, 0, 0, 1, -1, 0, 1, -1, 0])
    X = np.where(codes == 0, 0.0, 4.0)[:, None] + rng.standard_normal((10, 1))
    order = np.argsort(np.where(codes < 0, 2, codes), kind="stable")
    layout = ClassLayout(("a", "b"), (1, 1), (4, 3), 3, None, order)
    rows, v = X[order], rng.integers(1, 3, 10).astype(float)
    prior = ConjugatePrior(scale=np.eye(1)).resolve(X, 2)
    found = fit_classes(LabelledProblem(rows, structure("full"), prior, v[order], classes=layout), rng=rng)
    runs = tuple(mode.run for mode in found.modes)
    task = sampling.Task(rows, v[order], structure("full"), prior, runs, ("x",), layout)
    result = sampling.sample_posterior(task, sampling.Settings("laplace", 25, 10, 2, 0, 25, None, False), rng)
    tree = result.idata
    np.testing.assert_array_equal(tree["observed_data"]["x"], X)
    np.testing.assert_array_equal(tree["observed_data"]["class_code"], codes)
    np.testing.assert_array_equal(tree["constant_data"]["sample_weight"], v)
    assert tree["posterior"]["component_class"].values.tolist() == ["a", "b"]
    weights = tree["posterior"]["weights"].values.reshape(-1, 2)
    np.testing.assert_array_equal(tree["posterior"]["class_priors"].values.reshape(-1, 2), weights)
    means, matrices = (part[:, 0] for part in (result.draws.means, result.draws.covariances))
    at = tree["log_likelihood"]["x"].values[:, 0]
    for n in range(10):
        own = [codes[n]] if codes[n] >= 0 else [0, 1]
        expected = [
            oracles.mixture_log_density(X[[n]], w[own], m[own], V[own])[0]
            for w, m, V in zip(result.draws.weights[:, 0], means, matrices, strict=True)
        ]
        np.testing.assert_allclose(at[:, n], expected, rtol=1e-9)


def test_components_stay_in_their_class():
    rng = np.random.default_rng(2)
    mixture = random_mixture(rng, 5, 2)
    blocks = (slice(0, 2), slice(2, 5))
    # The second class's first component lies where the first class's does: a free assignment crosses.
    order = np.array([1, 0, 4, 2, 3])
    crossed = np.array([3, 4, 0, 1, 2])
    for permutation in (order, crossed):
        parts = (
            mixture.weights[permutation][None],
            mixture.means[permutation][None],
            mixture.covariances[permutation][None],
        )
        reference = (mixture.weights, mixture.means, mixture.covariances)
        within = relabel_within(blocks, *parts, reference)[0]
        assert set(within[:2]) == {0, 1}
        assert set(within[2:]) == {2, 3, 4}
        free = relabel(*parts, reference, covariance_type="full")[0]
        np.testing.assert_array_equal(permutation[free], np.arange(5))
        if permutation is order:
            np.testing.assert_array_equal(within, free)
