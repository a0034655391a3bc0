from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from bayesgmm import BayesianGaussianMixture, ConjugatePrior
from bayesgmm.core import covariance, em
from bayesgmm.core.covariance import structure
from bayesgmm.inference import judging
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.laplace import (
    LaplaceApproximation,
    _inverse_root,
    hessian,
    importance_draws,
    laplace,
    polish,
    rough_scales,
)
from bayesgmm.inference.modes import Visits
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture


class Normal:
    """Log density c + log N(θ; m, S) with its gradient."""

    def __init__(self, mean, covariance, constant: float = 0.0) -> None:
        self.mean, self.covariance, self.constant = np.asarray(mean, float), np.asarray(covariance, float), constant
        self.precision = np.linalg.inv(self.covariance)
        self.ndim = len(self.mean)

    def logp_and_grad(self, theta):
        r = theta - self.mean
        log_norm = -0.5 * np.linalg.slogdet(2 * np.pi * self.covariance)[1]
        return float(self.constant + log_norm - 0.5 * r @ self.precision @ r), -self.precision @ r


class Students:
    """Independent Student-t coordinates: tails that a normal proposal cannot reach."""

    ndim = 2

    def __init__(self, df: float) -> None:
        self.df = df

    def logp_and_grad(self, theta):
        return float(-0.5 * (self.df + 1) * np.log1p(theta**2 / self.df).sum()), -(self.df + 1) * theta / (
            self.df + theta**2
        )


class TwoNormals:
    """A mixture of two normals far apart with unequal mass."""

    ndim = 2

    def __init__(self) -> None:
        self.parts = (Normal([0.0, 0.0], [[1.0, 0.3], [0.3, 0.5]]), Normal([30.0, -10.0], [[4.0, 0.0], [0.0, 9.0]]))
        self.shares = np.array([0.3, 0.7])

    def logp_and_grad(self, theta):
        values, gradients = zip(*(part.logp_and_grad(theta) for part in self.parts), strict=True)
        logs = np.array(values) + np.log(self.shares)
        total = logsumexp(logs)
        return float(total), np.exp(logs - total) @ np.array(gradients)


COVARIANCE = np.array([[4.0, 1.2, 0.0], [1.2, 1.0, 0.05], [0.0, 0.05, 0.01]])
TARGET = Normal([3.0, -2.0, 100.0], COVARIANCE, constant=7.5)
SCALE = np.sqrt(np.diag(COVARIANCE))


def test_normal_posterior_is_found_exactly():
    found = laplace(TARGET, TARGET.mean + 3 * SCALE, 2 * SCALE)
    # Central differences of a linear gradient with steps of 1e-4 sd: rounding of about 1e-16 · 100 / 1e-5.
    np.testing.assert_allclose(found.center, TARGET.mean, atol=1e-6 * SCALE.max())
    np.testing.assert_allclose(found.factor @ found.factor.T, COVARIANCE, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(found.factor, np.tril(found.factor))
    assert found.log_evidence == pytest.approx(7.5, abs=1e-6)
    assert found.gradient_norm < 1e-4
    assert found.flat_directions == 0
    points = TARGET.mean + SCALE * np.random.default_rng(0).standard_normal((5, 3))
    expected = stats.multivariate_normal(TARGET.mean, COVARIANCE).logpdf(points)
    np.testing.assert_allclose(found.log_normal_density(points), expected, atol=1e-5)


def test_hessian_is_in_units_of_the_scale():
    expected = TARGET.precision * SCALE * SCALE[:, None]
    np.testing.assert_allclose(hessian(TARGET, TARGET.mean + SCALE, SCALE), expected, rtol=1e-6, atol=1e-6)


def test_polish_never_ends_below_its_start():
    rng = np.random.default_rng(1)
    for df in (0.5, 3.0):
        target = Students(df)
        for start in 5 * rng.standard_normal((5, 2)):
            end = polish(target, start, np.ones(2))
            assert target.logp_and_grad(end)[0] >= target.logp_and_grad(start)[0]


def test_flat_direction_gets_a_bounded_variance():
    class Ridge(Normal):
        def logp_and_grad(self, theta):
            value, gradient = Normal.logp_and_grad(self, np.array([theta[0], 0.0]))
            return value, gradient * [1.0, 0.0]

    found = laplace(Ridge([1.0, 0.0], np.eye(2)), np.zeros(2), np.ones(2))
    assert found.flat_directions == 1
    variances = np.diag(found.factor @ found.factor.T)
    assert variances[0] == pytest.approx(1.0, rel=1e-6)
    assert np.isfinite(variances[1])
    assert variances[1] > 1


def test_curvatures_too_unequal_for_a_cholesky_factor_of_their_inverse():
    """An inverse that rounding leaves without a Cholesky factor has a root all the same."""
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(30):
        rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        information = (rotation * 10.0 ** np.linspace(0, 17, 6)) @ rotation.T
        information = 0.5 * (information + information.T)
        factor, _ = _inverse_root(information, np.ones(6))
        np.testing.assert_array_equal(factor, np.tril(factor))
        assert (np.diagonal(factor) > 0).all()
        values, vectors = np.linalg.eigh(information)
        inverse = (vectors / np.clip(np.abs(values), 1e-2, np.where(values < 1e-2, 1.0, np.inf))) @ vectors.T
        # Rounding, in units of the largest entry.
        np.testing.assert_allclose(factor @ factor.T, inverse, atol=1e-12 * np.abs(inverse).max())
        try:
            np.linalg.cholesky(inverse)
        except np.linalg.LinAlgError:
            failed += 1
    assert failed > 0


def test_normal_posterior_needs_no_correction():
    approximation = laplace(TARGET, TARGET.mean, SCALE)
    draws = importance_draws(TARGET, [approximation], 4000, np.random.default_rng(2))
    assert draws.effective_size == pytest.approx(8000, rel=1e-3)
    # 4,000 of 8,000 independent draws: standard error of a mean sd / √4000, taken at four of them.
    assert np.all(np.abs(draws.theta.mean(axis=0) - TARGET.mean) < 4 * SCALE / np.sqrt(4000))
    np.testing.assert_allclose(draws.theta.std(axis=0), SCALE, rtol=4 / np.sqrt(2 * 4000))


def test_proposal_that_is_off_is_corrected():
    """A normal with twice the sd and its centre half an sd away: the weights bring the moments back."""
    off = LaplaceApproximation(
        TARGET.mean + 0.5 * SCALE, 0.0, 2 * np.linalg.cholesky(COVARIANCE), gradient_norm=0.0, flat_directions=0
    )
    draws = importance_draws(TARGET, [off], 4000, np.random.default_rng(3))
    assert draws.pareto_k < 0.7
    assert draws.effective_size < 0.5 * 8000
    error = 4 * np.sqrt(1 / draws.effective_size + 1 / 4000)
    assert np.all(np.abs(draws.theta.mean(axis=0) - TARGET.mean) < error * SCALE)
    np.testing.assert_allclose(draws.theta.std(axis=0), SCALE, rtol=error)
    assert draws.n_proposed == 8000
    assert draws.n_unique < 4000


def test_heavy_tails_are_flagged_by_the_tail_index():
    target = Students(1.0)
    approximation = laplace(target, np.full(2, 0.1), np.ones(2))
    draws = importance_draws(target, [approximation], 2000, np.random.default_rng(4))
    assert draws.pareto_k > 0.7


def test_modes_get_draws_by_their_evidence():
    target = TwoNormals()
    modes = [laplace(target, part.mean + 0.1, np.sqrt(np.diag(part.covariance))) for part in target.parts]
    np.testing.assert_allclose([m.log_evidence for m in modes], np.log(target.shares), atol=1e-4)
    draws = importance_draws(target, modes, 4000, np.random.default_rng(5))
    share = np.mean(draws.theta[:, 0] > 15)
    # Systematic resampling of 8,000 draws: binomial error of the proposal at most.
    assert share == pytest.approx(0.7, abs=4 * np.sqrt(0.3 * 0.7 / 8000))


def test_resampled_draws_are_in_random_order():
    """Draws come sorted by mode before they are dealt to chains: every chain must see both."""
    target = TwoNormals()
    modes = [laplace(target, part.mean, np.sqrt(np.diag(part.covariance))) for part in target.parts]
    theta = importance_draws(target, modes, 400, np.random.default_rng(6)).theta
    for chain in theta.reshape(4, 100, 2):
        assert 0.4 < np.mean(chain[:, 0] > 15) < 0.95


def some_posterior(
    covariance_type: str, K: int = 2, D: int = 2, n_rows: int = 300, alpha: float = 1.0, spread: float = 4.0
):
    rng = np.random.default_rng(4)
    X = random_mixture(rng, K, D, covariance_type, spread=spread).sample(rng, n_rows)
    prior = ConjugatePrior(weight_concentration=alpha).resolve(X, K, covariance_type)
    run = em.fit(X, K, covariance_type, prior=prior.at_least_uniform(), tol=1e-12, max_iter=5000, rng=rng).best
    return X, prior, run, CompiledPosterior.from_data(X, K, covariance_type, prior)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_repeated_closed_steps_climb_to_the_mode_of_the_free_coordinates(covariance_type, alpha):
    X, prior, run, posterior = some_posterior(covariance_type, alpha=alpha)
    problem = em.Problem(X, structure(covariance_type), prior, None)
    parameters = run.parameters
    values = []
    for _ in range(300):
        statistics = problem.e_step(parameters)
        parameters = covariance.maximise_unconstrained(statistics, parameters.means, structure(covariance_type), prior)
        theta = posterior.unconstrain(parameters.weights, parameters.means, parameters.precision_factors)
        values.append(posterior.logp_and_grad(theta)[0])
    # An EM of its own in these coordinates: every step climbs, to rounding of a sum of about 1,000.
    assert np.all(np.diff(values) > -1e-9)
    scales = rough_scales(posterior, theta, statistics.counts)
    # Gradient in units of posterior sd after 300 linear steps.
    assert np.abs(posterior.logp_and_grad(theta)[1] * scales).max() < 1e-5
    found = laplace(posterior, theta, scales)
    np.testing.assert_allclose((found.center - theta) / scales, 0, atol=1e-4)
    assert found.flat_directions == 0
    assert found.gradient_norm < 1e-3


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_rough_scales_are_within_a_factor_of_three(covariance_type):
    # Far enough apart for the labels to be as good as known, which is what the scales suppose.
    _, _, run, posterior = some_posterior(covariance_type, spread=6.0)
    theta = posterior.unconstrain(run.parameters.weights, run.parameters.means, run.parameters.precision_factors)
    scales = rough_scales(posterior, theta, run.counts)
    found = laplace(posterior, theta, scales)
    ratio = np.sqrt(np.diag(found.factor @ found.factor.T)) / scales
    assert np.all((ratio > 1 / 3) & (ratio < 3))


@pytest.mark.parametrize("D", [1, 2])
def test_evidence_of_one_component_is_near_the_closed_form(D):
    rng = np.random.default_rng(8)
    X = rng.standard_normal((400, D)) @ (np.eye(D) + 0.3) + 5
    prior = ConjugatePrior(scale=2 * np.eye(D)).resolve(X, 1)
    posterior = CompiledPosterior.from_data(X, 1, prior=prior)
    run = em.fit(X, 1, prior=prior, rng=rng).best
    theta = posterior.unconstrain(run.parameters.weights, run.parameters.means, run.parameters.precision_factors)
    found = laplace(posterior, theta, rough_scales(posterior, theta, run.counts))
    exact = oracles.one_component_log_evidence(X, prior)
    # Laplace's relative error is of order P / N, here about 5 / 400.
    assert found.log_evidence == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("draws", [4, 30])
def test_a_few_draws_are_drawn_all_the_same(draws):
    X = np.random.default_rng(0).standard_normal((40, 2))
    fit = BayesianGaussianMixture(
        1, method="laplace", draws=draws, chains=2, target_ess=0, n_init=1, random_state=0, progressbar=False
    ).fit(X)
    assert fit.idata_.posterior["means"].shape == (2, draws, 1, 2)
    assert np.isfinite(fit.diagnostics_.pareto_k)


def test_each_modes_own_order_of_the_components_is_no_change_of_places():
    orders = np.tile(np.arange(3), (2, 50, 1))
    nearest = np.zeros((2, 50), dtype=int)
    nearest[:, 30:], orders[:, 30:] = 1, [2, 0, 1]
    seen = Visits(nearest, orders, 2)
    # The second mode's approximation has its components in another order than the first's.
    np.testing.assert_array_equal(judging._unsettled(orders, 0.3, seen), np.zeros(3))
    orders[0, 40] = [0, 2, 1]
    np.testing.assert_allclose(judging._unsettled(orders, 0.3, Visits(nearest, orders, 2)), [0.01, 0.01, 0.0])
    # Of a single mode, against its own order.
    np.testing.assert_allclose(judging._unsettled(orders, 0.3, None), [0.39, 0.4, 0.4])
