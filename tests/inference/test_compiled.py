from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytensor
import pytest
from scipy import stats

from bayesgmm import ConjugatePrior, build_model
from bayesgmm.core import em
from bayesgmm.core.covariance import structure
from bayesgmm.inference.compiled import CompiledPosterior
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture

SIZES = ((1, 1), (1, 3), (3, 1), (2, 2), (3, 4), (3, 6))


def some_posterior(covariance_type: str, K: int, D: int, weighted: bool = False, n_rows: int = 40, seed: int = 0):
    rng = np.random.default_rng(seed + 10 * K + D)
    mixture = random_mixture(rng, K, D, covariance_type)
    X = mixture.sample(rng, n_rows)
    v = rng.uniform(0.2, 3.0, n_rows) if weighted else None
    A = rng.standard_normal((D, D + 2))
    prior = ConjugatePrior(rng.uniform(0.7, 2.0, K), rng.standard_normal(D), 0.4, D + 2.5, A @ A.T + np.eye(D))
    posterior = CompiledPosterior.from_data(X, K, covariance_type, prior, v)
    theta = posterior.unconstrain(mixture.weights, mixture.means, mixture.parameters.precision_factors)
    return posterior, theta + 0.1 * rng.standard_normal(posterior.ndim), X, v, prior


def natural(posterior: CompiledPosterior, theta: np.ndarray):
    """Weights, means and packed covariances of a point."""
    parts = posterior.constrain(theta)
    factors = parts["precision_factors"]
    matrices = np.linalg.inv(factors @ factors.swapaxes(-1, -2))
    return parts["weights"], parts["means"], structure(posterior.covariance_type).pack(matrices)


def natural_vector(posterior: CompiledPosterior, theta: np.ndarray) -> np.ndarray:
    """(π_1 … π_K−1, μ, Σ), Σ by the entries that are free."""
    weights, means, packed = natural(posterior, theta)
    if posterior.covariance_type in ("full", "tied"):
        packed = packed[..., *np.tril_indices(means.shape[1])]
    return np.concatenate([weights[:-1], means.ravel(), packed.ravel()])


def central_differences(function, theta: np.ndarray, step: float = 1e-5) -> np.ndarray:
    steps = step * np.eye(len(theta))
    return np.stack([(function(theta + h) - function(theta - h)) / (2 * step) for h in steps], axis=-1)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_density_is_scipys_in_natural_coordinates_times_the_volume_element(covariance_type, K, D):
    posterior, theta, X, v, prior = some_posterior(covariance_type, K, D, weighted=K == 3)
    weights, means, packed = natural(posterior, theta)
    matrices = oracles.expand_covariances(packed, covariance_type, K, D)
    rows = oracles.mixture_log_density(X, weights, means, matrices)
    expected = oracles.log_prior(weights, means, packed, prior, covariance_type) + np.sum(
        rows if v is None else v * rows
    )

    jacobian = central_differences(lambda t: natural_vector(posterior, t), theta)
    volume = np.linalg.slogdet(jacobian)[1]
    # Jacobian by central differences: 1e-9 relative in its entries.
    np.testing.assert_allclose(posterior.log_jacobian(theta), volume, rtol=1e-7, atol=1e-7)
    # scipy's and ours round at 1e-13 of the terms; the covariances went through an inverse.
    np.testing.assert_allclose(posterior.logp_and_grad(theta)[0] - posterior.log_jacobian(theta), expected, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_gradient_is_that_of_the_density(covariance_type, K, D):
    posterior, theta, *_ = some_posterior(covariance_type, K, D, weighted=D == 1)
    _, gradient = posterior.logp_and_grad(theta)

    # Rounding of values of some hundreds over the step, 1e-8, and truncation.
    numeric = central_differences(lambda t: posterior.logp_and_grad(t)[0], theta)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-5 * np.abs(numeric).max())


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D", "weighted"), [(1, 1, False), (3, 2, True), (2, 3, False)])
def test_density_gradient_and_parameters_are_the_pymc_models_own(covariance_type, K, D, weighted):
    posterior, theta, X, v, prior = some_posterior(covariance_type, K, D, weighted)
    model = build_model(X, K, covariance_type, prior, v)
    values = {variable.name: variable for variable in model.continuous_value_vars}
    # In the model a variable has no axis of length 1 for what the structure shares.
    shapes = {name: value.shape for name, value in model.initial_point().items()}
    point = {name: theta[part].reshape(shapes[name]) for name, part in posterior.slices.items() if name in values}
    log_density = model.logp()
    natural_parameters = model.replace_rvs_by_values([model["weights"], model["means"], model["covariances"]])
    slopes = pytensor.grad(log_density, list(values.values()))
    function = pytensor.function(
        list(values.values()), [log_density, *natural_parameters, *slopes], mode="FAST_COMPILE"
    )
    logp, weights, means, packed, *slopes = function(*(point[name] for name in values))

    value, gradient = posterior.logp_and_grad(theta)
    # Terms added in another order, and 3e-9 for each χ² variable: PyTensor's log-gamma function; scipy's agrees with ours.
    np.testing.assert_allclose(value, logp, rtol=1e-12, atol=1e-8 * K * D)
    for name, slope in zip(values, slopes, strict=True):
        part = gradient[posterior.slices[name]]
        np.testing.assert_allclose(part, slope.ravel(), rtol=1e-9, atol=1e-9 * np.abs(gradient).max())
    for ours, theirs in zip(natural(posterior, theta), (weights, means, packed), strict=True):
        # An inverse on each side, of matrices of condition 1e3 at most.
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert set(posterior.names) <= set(values)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_density_less_the_volume_element_is_stationary_at_ems_mode(covariance_type):
    rng = np.random.default_rng(4)
    X = random_mixture(rng, 2, 2, covariance_type, spread=4.0).sample(rng, 200)
    prior = ConjugatePrior(weight_concentration=2.0, scale=np.eye(2)).resolve(X, 2, covariance_type)
    run = em.fit(X, 2, covariance_type, prior=prior, tol=1e-14, max_iter=10_000, rng=rng).best
    posterior = CompiledPosterior.from_data(X, 2, covariance_type, prior)
    theta = posterior.unconstrain(run.parameters.weights, run.parameters.means, run.parameters.precision_factors)

    _, gradient = posterior.logp_and_grad(theta)
    volume = central_differences(lambda t: np.asarray(posterior.log_jacobian(t)), theta)
    # EM stops where the objective is flat to 1e-14 a row, a gradient of about sqrt(2 · 200 · 1e-14) times the curvature's root.
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(gradient, volume, atol=2e-4)
    assert scale > 0.1  # in these coordinates the mode is elsewhere


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_unconstrain_undoes_constrain(covariance_type, K, D):
    posterior, theta, *_ = some_posterior(covariance_type, K, D)

    # A triangular solve and logarithms: rounding.
    np.testing.assert_allclose(posterior.unconstrain(**posterior.constrain(theta)), theta, rtol=1e-10, atol=1e-10)
    batch = theta + np.linspace(0, 0.1, 3)[:, None]
    np.testing.assert_allclose(posterior.unconstrain(**posterior.constrain(batch)), batch, rtol=1e-10, atol=1e-10)


def test_batches_are_rows():
    posterior, theta, *_ = some_posterior("full", 3, 2)
    batch = theta + 0.3 * np.random.default_rng(0).standard_normal((4, 5, posterior.ndim))[0]
    together = posterior.constrain(batch)

    for s, point in enumerate(batch):
        for name, value in posterior.constrain(point).items():
            np.testing.assert_array_equal(together[name][s], value)
    one_by_one = [posterior.log_jacobian(point) for point in batch]
    np.testing.assert_allclose(posterior.log_jacobian(batch), one_by_one, rtol=1e-14)
    assert together["precision_factors"].shape == (5, 3, 2, 2)


def test_weights_count_rows():
    posterior, theta, X, _, prior = some_posterior("full", 2, 2)
    counts = np.random.default_rng(0).integers(0, 4, len(X))
    weighted = CompiledPosterior.from_data(X, 2, "full", prior, counts)
    repeated = CompiledPosterior.from_data(np.repeat(X, counts, axis=0), 2, "full", prior)

    for a, b in zip(weighted.logp_and_grad(theta), repeated.logp_and_grad(theta), strict=True):
        # Equal sums in another order.
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-10)


def test_any_layout_in_memory_is_the_same_point():
    posterior, theta, *_ = some_posterior("full", 3, 4, weighted=True)
    frozen = theta.copy()
    frozen.flags.writeable = False
    reference = posterior.logp_and_grad(theta)
    for same in (frozen, np.repeat(theta, 2)[::2], list(theta)):
        value, gradient = posterior.logp_and_grad(same)
        assert value == reference[0]
        np.testing.assert_array_equal(gradient, reference[1])


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_whitened_density_is_the_density_at_the_point_behind(covariance_type):
    posterior, theta, *_ = some_posterior(covariance_type, 3, 2, weighted=True)
    rng = np.random.default_rng(5)
    factor = np.tril(rng.standard_normal((posterior.ndim, posterior.ndim)))
    y = 0.1 * rng.standard_normal(posterior.ndim)
    value, gradient = posterior.whitened(theta, factor)(y)
    expected, slope = posterior.logp_and_grad(theta + factor @ y)

    # Products of at most 20 terms in another order.
    np.testing.assert_allclose(value, expected, rtol=1e-11)
    np.testing.assert_allclose(gradient, factor.T @ slope, rtol=1e-9, atol=1e-9 * np.abs(slope).max())


def test_unusable_points_are_refused():
    posterior, theta, *_ = some_posterior("full", 2, 2)
    parts = posterior.constrain(theta)

    with pytest.raises(ValueError, match=rf"shape \({posterior.ndim},\)"):
        posterior.logp_and_grad(theta[:-1])
    with pytest.raises(ValueError, match="must be positive"):
        posterior.unconstrain([0.0, 1.0], parts["means"], parts["precision_factors"])


def test_far_away_the_density_is_low_or_nothing_but_never_an_error():
    posterior, theta, *_ = some_posterior("full", 2, 2)
    here = posterior.logp_and_grad(theta)[0]

    for scale in (1e2, 1e4, 1e200, np.inf):
        value, _ = posterior.logp_and_grad(theta * scale)
        assert not value >= here


def test_threads_do_not_disturb_each_other():
    problems = [some_posterior("full", K, D, n_rows=3000) for K, D in ((2, 2), (3, 4))]
    expected = [posterior.logp_and_grad(theta) for posterior, theta, *_ in problems]
    wrong = []

    def work(which: int) -> None:
        posterior, theta, *_ = problems[which]
        for _ in range(200):
            value, gradient = posterior.logp_and_grad(theta)
            if value != expected[which][0] or not np.array_equal(gradient, expected[which][1]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def test_evaluation_releases_the_interpreter():
    posterior, theta, *_ = some_posterior("full", 3, 2, n_rows=400_000)
    posterior.logp_and_grad(theta)
    inside = threading.Event()
    done = threading.Event()

    def work() -> None:
        inside.set()
        for _ in range(10):
            posterior.logp_and_grad(theta)
        done.set()

    interval = sys.getswitchinterval()
    # Ten seconds before the interpreter would take its lock away from a thread that holds on to it.
    sys.setswitchinterval(10.0)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
        # Reached while the other thread still computes, which takes the lock having been let go.
        overlapped = not done.is_set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert overlapped


@pytest.mark.slow
def test_a_second_process_reads_the_compiled_function_from_disk_for_every_size_and_structure():
    posterior, theta, *_ = some_posterior("full", 2, 2)
    value, _ = posterior.logp_and_grad(theta)
    code = """
from numba.core import event
recorder = event.RecordingListener()
event.register("numba:compile", recorder)
from tests.inference.test_compiled import SIZES, STRUCTURES, some_posterior
posterior, theta, *_ = some_posterior("full", 2, 2)
print(repr(posterior.logp_and_grad(theta)[0]))
recorder.buffer.clear()
for covariance_type in STRUCTURES:
    for K, D in SIZES:
        posterior, theta, *_ = some_posterior(covariance_type, K, D, weighted=True)
        posterior.logp_and_grad(theta)
compiled = {e.data["dispatcher"].py_func.__name__ for _, e in recorder.buffer}
print(sorted(compiled & {"_log_posterior", "fused_pass_of", "_ratios"}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    printed, counts = run.stdout.split("\n")[:2]

    assert float(printed) == value
    assert counts == "[]"


def test_conditional_of_the_weights_is_dirichlet():
    # With every row in one component the posterior of the weights is known: Dirichlet(α + counts).
    K = 3
    prior = ConjugatePrior([1.5, 2.0, 0.8], [0.0], 1.0, 4.0, [[1.0]])
    X = np.repeat([[-1e3], [0.0], [1e3]], [5, 2, 9], axis=0) + 0.1 * np.arange(16)[:, None]
    posterior = CompiledPosterior.from_data(X, K, "full", prior)
    means = np.array([[-1e3], [0.0], [1e3]])
    factors = np.full((K, 1, 1), 1.0)
    dirichlet = stats.dirichlet(np.array([1.5, 2.0, 0.8]) + [5, 2, 9])

    def less_dirichlet(weights) -> float:
        theta = posterior.unconstrain(weights, means, factors)
        volume = np.log(K) + np.sum(np.log(weights))
        return posterior.logp_and_grad(theta)[0] - volume - dirichlet.logpdf(weights)

    # Rounding of log densities of the order of 1e2.
    np.testing.assert_allclose(less_dirichlet([0.2, 0.3, 0.5]), less_dirichlet([0.7, 0.1, 0.2]), rtol=1e-12)
