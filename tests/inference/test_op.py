from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pymc.distributions.transforms import simplex
from pytensor.gradient import NullTypeGradError
from pytensor.link.numba.dispatch.basic import numba_funcify_and_cache_key
from scipy import stats

from bayesgmm.inference import op as op_module
from bayesgmm.inference.op import MixtureLogLikelihood, mixture_log_likelihood
from bayesgmm.inference.prior_ops import LogWeights, MeansLogDensity, PrecisionFactors
from tests.mixtures import random_mixture
from tests.oracles import mixture_log_density

# PyTensor's plain evaluation: the operations' own `perform`, no compilation.
PYTHON = "FAST_COMPILE"


def central_differences(function, point: np.ndarray, step: float = 1e-5) -> np.ndarray:
    out = np.empty(point.size)
    for i in range(point.size):
        up, down = point.copy(), point.copy()
        up.flat[i] += step
        down.flat[i] -= step
        out[i] = (function(up) - function(down)) / (2 * step)
    return out.reshape(point.shape)


def symbolic_inputs():
    return pt.dmatrix("X"), pt.dvector("v"), pt.dvector("log_weights"), pt.dmatrix("means"), pt.dtensor3("P")


@pytest.fixture(scope="module")
def value_and_gradient():
    X, v, log_weights, means, factors = symbolic_inputs()
    value = mixture_log_likelihood(X, v, log_weights, means, factors)[0]
    free = [log_weights, means, factors]
    return pytensor.function([X, v, *free], [value, *pt.grad(value, free)], mode=PYTHON)


def problem(K: int, D: int, weighted: bool, shift: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    mixture = random_mixture(rng, K, D)
    X = mixture.sample(rng, 40) + shift
    X[0] += 40 * np.sqrt(mixture.covariances[0, 0, 0])  # a row 40 standard deviations away
    v = rng.uniform(0.2, 3.0, len(X)) if weighted else np.empty(0)
    return X, v, np.log(mixture.weights), mixture.means + shift, mixture.parameters.precision_factors


@pytest.mark.parametrize(
    ("K", "D", "weighted", "shift"), [(1, 1, False, 0), (3, 2, True, 0), (2, 5, False, 1e4), (4, 1, True, -1e5)]
)
def test_value_and_gradient_are_those_of_scipys_densities(value_and_gradient, K, D, weighted, shift):
    X, v, log_weights, means, factors = problem(K, D, weighted, shift)
    lower = np.tril_indices(D)

    def by_scipy(log_w, mu, P):
        densities = mixture_log_density(X, np.exp(log_w), mu, np.linalg.inv(P @ P.swapaxes(1, 2)))
        return float(densities @ v) if weighted else float(densities.sum())

    value, g_weights, g_means, g_factors = value_and_gradient(X, v, log_weights, means, factors)

    # Both sides round at 1e-16 of quantities that the shift makes 1e5 times larger.
    np.testing.assert_allclose(value, by_scipy(log_weights, means, factors), rtol=1e-9)
    # Central differences of a sum of 40 log densities: rounding 1e-13 / 1e-5 and truncation of the order of 1e-7.
    numeric = central_differences(lambda a: by_scipy(a, means, factors), log_weights)
    np.testing.assert_allclose(g_weights, numeric, rtol=1e-5, atol=1e-5)
    numeric = central_differences(lambda a: by_scipy(log_weights, a, factors), means)
    np.testing.assert_allclose(g_means, numeric, rtol=1e-4, atol=1e-4)
    numeric = central_differences(lambda a: by_scipy(log_weights, means, np.tril(a)), factors)
    np.testing.assert_allclose(g_factors[:, *lower], numeric[:, *lower], rtol=1e-4, atol=1e-3)
    assert not np.any(g_factors * (1 - np.tri(D)))


@pytest.mark.slow
def test_numba_gives_the_same_numbers_whatever_the_layout_of_the_arrays(value_and_gradient):
    inputs = symbolic_inputs()
    value = mixture_log_likelihood(*inputs)[0]
    compiled = pytensor.function(list(inputs), [value, *pt.grad(value, list(inputs[2:]))], mode="NUMBA")
    X, v, log_weights, means, factors = problem(3, 2, True, 0)
    strided = (np.asfortranarray(X), np.repeat(v, 2)[::2], log_weights, np.asfortranarray(means), factors)

    for ours, theirs in zip(compiled(*strided), value_and_gradient(X, v, log_weights, means, factors), strict=True):
        # The same operations; the compiler may order the sums differently.
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_value_and_gradient_share_one_pass():
    inputs = symbolic_inputs()
    value = 2.0 * mixture_log_likelihood(*inputs)[0] + pt.sqr(mixture_log_likelihood(*inputs)[0])
    compiled = pytensor.function(list(inputs), [value, *pt.grad(value, list(inputs[2:]))], mode="NUMBA")

    passes = [node for node in compiled.maker.fgraph.apply_nodes if isinstance(node.op, MixtureLogLikelihood)]
    assert len(passes) == 1


def test_second_derivatives_raise():
    inputs = symbolic_inputs()
    (g_means,) = pt.grad(mixture_log_likelihood(*inputs)[0], [inputs[3]])

    with pytest.raises(NotImplementedError, match="first derivatives only"):
        pt.grad(g_means.sum(), inputs[3])


@pytest.mark.parametrize("position", [0, 1])
def test_derivatives_by_the_data_raise(position):
    inputs = symbolic_inputs()

    with pytest.raises(NullTypeGradError):
        pt.grad(mixture_log_likelihood(*inputs)[0], inputs[position])


def test_inputs_of_the_wrong_kind_are_refused():
    X, v, log_weights, means, factors = symbolic_inputs()

    with pytest.raises(TypeError, match="means must have 2 dimensions, got 1"):
        mixture_log_likelihood(X, v, log_weights, v, factors)
    with pytest.raises(TypeError, match="expected 5 inputs"):
        mixture_log_likelihood(X, log_weights, means, factors)
    with pytest.raises(TypeError, match="X must be real"):
        mixture_log_likelihood(pt.zmatrix(), v, log_weights, means, factors)


def test_cache_key_follows_the_kernels_source(monkeypatch):
    outputs = mixture_log_likelihood(*symbolic_inputs())
    node = outputs[0].owner
    _, key = numba_funcify_and_cache_key(node.op, node=node)
    _, same = numba_funcify_and_cache_key(node.op, node=node)
    monkeypatch.setattr(op_module, "_CACHE_VERSION", op_module.cache_version("another kernel"))
    _, other = numba_funcify_and_cache_key(node.op, node=node)

    assert key == same
    assert key != other


@pytest.mark.parametrize("K", [1, 2, 5])
def test_log_weights_are_those_of_pymcs_simplex_transform(K):
    rng = np.random.default_rng(K)
    point, direction = 2 * rng.standard_normal(K - 1), rng.standard_normal(K)
    free = pt.dvector()
    ours, theirs = LogWeights()(free), pt.log(simplex.backward(free))
    outputs = [ours, theirs, *(pt.grad(pt.dot(direction, x), free) for x in (ours, theirs))]
    outputs += [np.log(K) + ours.sum(), simplex.log_jac_det(free)]
    a, b, g_a, g_b, jacobian, expected = pytensor.function([free], outputs, mode=PYTHON)(point)

    np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)  # rounding alone
    np.testing.assert_allclose(g_a, g_b, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-13, atol=1e-14)


def test_log_weights_stay_exact_where_a_weight_underflows():
    free = pt.dvector()
    value = LogWeights()(free)
    log_weights, gradient = pytensor.function([free], [value, pt.grad(value[0], free)], mode=PYTHON)([-500.0, 400.0])

    np.testing.assert_allclose(log_weights, [-900.0, 0.0, -300.0], rtol=1e-15)
    np.testing.assert_allclose(gradient, [1.0, -1.0], rtol=1e-15)


@pytest.mark.parametrize(
    ("R", "C", "off_diagonal"), [(3, 4, True), (1, 4, True), (3, 4, False), (3, 1, False)], ids=str
)
def test_precision_factors_and_their_gradient(R, C, off_diagonal):
    K, D = 3, 4
    rng = np.random.default_rng(R + C)
    V = np.linalg.cholesky(np.cov(rng.standard_normal((D, 20))))
    V = V if off_diagonal else np.diag(np.diag(V))
    squares = rng.chisquare(4, (R, C))
    below = rng.standard_normal((R, D * (D - 1) // 2 if off_diagonal else 0))
    direction = rng.standard_normal((K, D, D))

    def by_definition(squares, below):
        A = np.zeros((K, D, D))
        A[:, np.arange(D), np.arange(D)] = np.sqrt(squares)
        if off_diagonal:
            A[:, *np.tril_indices(D, -1)] = below
        return V @ A

    a, b = pt.dmatrix(), pt.dmatrix()
    factors = PrecisionFactors()(V, a, b, K)
    function = pytensor.function([a, b], [factors, *pt.grad(pt.sum(direction * factors), [a, b])], mode=PYTHON)
    value, g_squares, g_below = function(squares, below)

    np.testing.assert_allclose(value, by_definition(squares, below), rtol=1e-13, atol=1e-14)
    # Linear in `below` and smooth in `squares`: central differences are good to 1e-9 of the values.
    numeric = central_differences(lambda x: np.sum(direction * by_definition(x, below)), squares)
    np.testing.assert_allclose(g_squares, numeric, rtol=1e-7, atol=1e-8)
    numeric = central_differences(lambda x: np.sum(direction * by_definition(squares, x)), below)
    np.testing.assert_allclose(g_below, numeric, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("D", [1, 3])
def test_log_density_of_the_means_and_its_gradient(D):
    K, precision = 2, 0.3
    rng = np.random.default_rng(D)
    mixture = random_mixture(rng, K, D)
    centre, factors = rng.standard_normal(D), mixture.parameters.precision_factors

    def by_scipy(means, P):
        covariances = np.linalg.inv(precision * P @ P.swapaxes(1, 2))
        return sum(stats.multivariate_normal(centre, S).logpdf(m) for m, S in zip(means, covariances, strict=True))

    a, b = pt.dmatrix(), pt.dtensor3()
    total = MeansLogDensity()(a, centre, precision, b)[0].sum()
    value, g_means, g_factors = pytensor.function([a, b], [total, *pt.grad(total, [a, b])], mode=PYTHON)(
        mixture.means, factors
    )

    np.testing.assert_allclose(value, by_scipy(mixture.means, factors), rtol=1e-11)
    # Rounding of central differences at values of some tens: 1e-14 / 1e-5, and truncation.
    numeric = central_differences(lambda x: by_scipy(x, factors), mixture.means)
    np.testing.assert_allclose(g_means, numeric, rtol=1e-6, atol=1e-6)
    numeric = np.tril(central_differences(lambda x: by_scipy(mixture.means, np.tril(x)), factors))
    np.testing.assert_allclose(g_factors, numeric, rtol=1e-5, atol=1e-5)


def test_operations_of_the_prior_refuse_what_they_cannot_do():
    free, matrix, factors = pt.dvector(), pt.dmatrix(), pt.dtensor3()
    (gradient,) = pt.grad(LogWeights()(free)[0], [free])

    with pytest.raises(NotImplementedError, match="finite differences"):
        pt.grad(gradient.sum(), free)
    with pytest.raises(TypeError, match="expects inputs of"):
        LogWeights()(matrix)
    with pytest.raises(NullTypeGradError):
        pt.grad(MeansLogDensity()(matrix, free, 1.0, factors)[0].sum(), free)
