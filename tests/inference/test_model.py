from __future__ import annotations

from dataclasses import fields

import arviz as az
import numpy as np
import pandas as pd
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from bayesgmm import ConjugatePrior, build_model
from bayesgmm.datasets import load_faithful
from bayesgmm.inference.compiled import CompiledPosterior
from bayesgmm.inference.model import ModelInputs
from bayesgmm.inference.nuts import run_nuts
from bayesgmm.inference.op import MixtureLogLikelihood
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture

SIZES = ((1, 1), (1, 3), (3, 1), (2, 3))
# PyTensor's plain evaluation: no compilation, and the operations' own `perform`.
PYTHON = {"mode": "FAST_COMPILE"}
COVARIANCE_DIMS = {
    "full": ("component", "feature", "feature_bis"),
    "tied": ("feature", "feature_bis"),
    "diag": ("component", "feature"),
    "spherical": ("component",),
}


def some_prior(K: int, D: int) -> ConjugatePrior:
    rng = np.random.default_rng(100 * K + D)
    A = rng.standard_normal((D, D + 2))
    return ConjugatePrior(
        weight_concentration=rng.uniform(1.2, 3.0, K),
        mean_prior=rng.standard_normal(D),
        mean_precision=0.7,
        degrees_of_freedom=D + 5.5,
        scale=A @ A.T + np.eye(D),
    )


def some_data(K: int, D: int, covariance_type: str = "full", n_rows: int = 30) -> np.ndarray:
    rng = np.random.default_rng(K + D)
    return random_mixture(rng, K, D, covariance_type).sample(rng, n_rows)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), SIZES)
def test_variables_dims_and_coords(covariance_type, K, D):
    model = build_model(
        some_data(K, D), K, covariance_type, some_prior(K, D), feature_names=[f"f{j}" for j in range(D)]
    )

    dims = {name: tuple(d) for name, d in model.named_vars_to_dims.items()}
    assert dims["weights"] == ("component",)
    assert dims["means"] == ("component", "feature")
    assert dims["covariances"] == COVARIANCE_DIMS[covariance_type]
    assert dims["x"] == ("obs_id", "feature")
    assert model.coords["feature"] == model.coords["feature_bis"] == tuple(f"f{j}" for j in range(D))
    assert list(model.coords["component"]) == list(range(K))
    assert int(model.dim_lengths["obs_id"].eval()) == 30
    free = [variable.name for variable in model.free_RVs]
    off_diagonal = ["bartlett_offdiagonal"] if covariance_type in ("full", "tied") else []
    assert free == ["weights", "bartlett_diagonal", *off_diagonal, "means"]
    shapes = model.eval_rv_shapes()
    sizes = {"component": K, "feature": D, "feature_bis": D}
    assert all(shapes[name] == tuple(sizes[d] for d in dims[name]) for name in ("weights", "means"))


def test_value_and_gradient_of_the_model_take_one_pass():
    model = build_model(some_data(2, 2), 2, "full", some_prior(2, 2))
    values = model.continuous_value_vars
    log_posterior = model.logp()
    function = pytensor.function(values, [log_posterior, *pt.grad(log_posterior, values)], mode="NUMBA")

    nodes = function.maker.fgraph.apply_nodes
    assert sum(isinstance(node.op, MixtureLogLikelihood) for node in nodes) == 1


def test_a_data_frame_names_the_features():
    frame = pd.DataFrame(some_data(2, 2), columns=["length", "width"])

    assert build_model(frame, 2, prior=some_prior(2, 2)).coords["feature"] == ("length", "width")


def test_default_prior_is_the_conjugate_priors_default():
    X = some_data(2, 2, n_rows=60)
    resolved = ConjugatePrior().resolve(X, 2, "full")
    a, b = ModelInputs.resolve(X, 2), ModelInputs.from_prior(X, "full", resolved)

    for field in fields(ModelInputs):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    # Inverse of a product of factors: rounding times the condition number, some 1e2 here.
    np.testing.assert_allclose(np.linalg.inv(a.scale_factor @ a.scale_factor.T), resolved.scale, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_prior_draws_have_the_priors_moments(covariance_type):
    K, D, S = 2, 2, 4000
    prior = some_prior(K, D)
    X = some_data(K, D, n_rows=3)
    with build_model(X, K, covariance_type, prior):
        draws = pm.sample_prior_predictive(S, random_seed=1, compile_kwargs=PYTHON)
    weights, means, packed = (draws.prior[name].values[0] for name in ("weights", "means", "covariances"))
    covariances = oracles.expand_draws(packed, covariance_type, K, D)

    def close(sample: np.ndarray, expected: np.ndarray) -> None:
        # Five standard errors of a mean of S independent draws.
        error = sample.std(axis=0) / np.sqrt(S)
        assert np.all(np.abs(sample.mean(axis=0) - expected) < 5 * error + 1e-12)

    alpha = prior.weight_concentration
    close(weights, alpha / alpha.sum())
    close(means, np.tile(prior.mean_prior, (K, 1)))
    nu = prior.degrees_of_freedom
    expected = prior.scale / (nu - D - 1)
    if covariance_type in ("diag", "spherical"):
        rates = np.diag(prior.scale) if covariance_type == "diag" else np.full(D, np.diag(prior.scale).mean())
        expected = np.diag(rates) / (nu - D - 1)
    close(covariances, np.stack([expected] * K))
    # Var(μ) = E[Σ] / κ₀ by the law of total variance.
    centred = means - prior.mean_prior
    close(prior.mean_precision * centred[..., :, None] * centred[..., None, :], np.stack([expected] * K))
    # A row given its mixture has mean Σ_k π_k μ_k; over the prior that is m₀.
    rows = draws.prior_predictive["x"].values[0]
    assert rows.shape == (S, 3, D)
    close(rows - (weights[..., None] * means).sum(axis=1)[:, None], np.zeros((3, D)))
    between = means - (weights[..., None] * means).sum(axis=1, keepdims=True)
    spread = covariances + between[..., :, None] * between[..., None, :]
    residual = rows[:, 0] - (weights[..., None] * means).sum(axis=1)
    close(
        residual[:, :, None] * residual[:, None, :] - (weights[..., None, None] * spread).sum(axis=1), np.zeros((D, D))
    )


@pytest.mark.parametrize(("K", "D"), SIZES[:3])
def test_predictive_draws_of_one_component_or_one_feature(K, D):
    X = some_data(K, D)
    with build_model(X, K, "full", some_prior(K, D), sample_weight=np.full(30, 2.0)):
        draws = pm.sample_prior_predictive(5, random_seed=1, compile_kwargs=PYTHON)
        after = pm.sample_posterior_predictive(draws.prior, random_seed=1, compile_kwargs=PYTHON, progressbar=False)

    assert after.posterior_predictive["x"].shape == (1, 5, 30, D)
    assert np.all(np.isfinite(after.posterior_predictive["x"].values))


def test_posterior_predictive_draws_follow_the_draw_they_belong_to():
    X = some_data(2, 2, n_rows=200)
    prior = some_prior(2, 2)
    mixture = random_mixture(np.random.default_rng(3), 2, 2)
    posterior = CompiledPosterior.from_data(X, 2, "full", prior)
    factors = mixture.parameters.precision_factors
    theta = posterior.unconstrain(mixture.weights, mixture.means, factors)
    cut = {name: theta[part] for name, part in posterior.slices.items()}
    draws = {
        "weights": mixture.weights,
        "bartlett_diagonal": np.exp(cut["bartlett_diagonal_log__"]).reshape(2, 2),
        "bartlett_offdiagonal": cut["bartlett_offdiagonal"].reshape(2, 1),
        "means": mixture.means,
    }
    model = build_model(X, 2, "full", prior)
    repeated = az.from_dict(
        {"posterior": {name: np.tile(value, (1, 50, *[1] * value.ndim)) for name, value in draws.items()}},
        dims={name: list(model.named_vars_to_dims[name]) for name in draws},
        coords={dim: list(values) for dim, values in model.coords.items() if values is not None},
    )
    with model:
        after = pm.sample_posterior_predictive(repeated, random_seed=2, compile_kwargs=PYTHON, progressbar=False)
    rows = after.posterior_predictive["x"].values.reshape(-1, 2)

    mean = mixture.weights @ mixture.means
    between = mixture.means - mean
    spread = mixture.covariances + between[:, :, None] * between[:, None, :]
    covariance = np.einsum("k,kij->ij", mixture.weights, spread)
    scale = np.sqrt(np.diag(covariance))
    # 10,000 rows: a mean is good to 0.01 standard deviations, a covariance to about 0.02 of the variances; five of each.
    np.testing.assert_allclose(rows.mean(axis=0) / scale, mean / scale, atol=0.05)
    np.testing.assert_allclose(np.cov(rows.T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.1)


def test_start_is_spread_over_the_data_and_has_a_finite_density():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + [1000, -1000]])
    model = build_model(X, 2, prior=some_prior(2, 2))
    start = model.initial_point()

    centres = np.sort(start["means"], axis=0)
    # Half the rows are within some standard errors (0.16) of each of the two centres.
    np.testing.assert_allclose(centres, [[0, -1000], [1000, 0]], atol=1)
    assert np.isfinite(model.compile_logp(**PYTHON)(start))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"X": np.array([[1.0, np.nan], [0.0, 1.0]])}, ValueError, "finite table"),
        ({"X": np.ones(3)}, ValueError, "finite table"),
        ({"covariance_type": "banded"}, ValueError, "full"),
        ({"prior": "flat"}, ValueError, '"default" or a ConjugatePrior'),
        ({"prior": 3.0}, TypeError, "got float"),
        ({"sample_weight": np.ones(3)}, ValueError, "30 finite non-negative numbers"),
        ({"sample_weight": -np.ones(30)}, ValueError, "30 finite non-negative numbers"),
        ({"feature_names": ["a"]}, ValueError, "1 names for 2 features"),
    ],
)
def test_unusable_arguments_are_refused(changes, error, message):
    arguments = {"X": some_data(2, 2), "n_components": 2, "prior": some_prior(2, 2)} | changes

    with pytest.raises(error, match=message):
        build_model(**arguments)


@pytest.mark.slow
def test_plain_pymc_sampling_gives_the_same_posterior():
    X = load_faithful().to_numpy(dtype=float)
    prior = ConjugatePrior().resolve(X, 2)
    with build_model(X, 2, prior=prior):
        plain = pm.sample(
            600, tune=500, chains=2, cores=1, random_seed=1, progressbar=False, compute_convergence_checks=False
        ).posterior
    posterior = CompiledPosterior.from_data(X, 2, prior=prior)
    long = X[:, 0] > 3
    covariances = np.stack([np.cov(X[~long].T), np.cov(X[long].T)])
    centre = posterior.unconstrain(
        [np.mean(~long), np.mean(long)],
        [X[~long].mean(axis=0), X[long].mean(axis=0)],
        np.linalg.cholesky(np.linalg.inv(covariances)),
    )
    chains = run_nuts(posterior, np.stack([centre] * 2), [(centre, np.eye(posterior.ndim))] * 2, 1500, 800, seed=1)
    ours = posterior.constrain(chains.theta.reshape(-1, posterior.ndim))
    ours_covariances = np.linalg.inv(ours["precision_factors"] @ ours["precision_factors"].swapaxes(-1, -2))

    def label_free(weights, means, covariances):
        order = np.argsort(means[..., 0], axis=-1)
        first, second = order[..., 0], order[..., 1]
        pick = np.arange(len(means))
        return np.column_stack(
            [
                weights[pick, first],
                means[pick, first],
                means[pick, second],
                np.log(np.linalg.det(covariances[pick, first])),
            ]
        )

    a = label_free(ours["weights"], ours["means"], ours_covariances).reshape(2, 1500, -1)
    b = label_free(
        *(plain[name].values.reshape(1200, *plain[name].shape[2:]) for name in ("weights", "means", "covariances"))
    )
    b = b.reshape(2, 600, -1)
    for j in range(a.shape[-1]):
        error = np.hypot(az.mcse(a[..., j]), az.mcse(b[..., j]))
        # Six quantities at four standard errors: a false alarm once in some thousands of changes of the random stream.
        assert abs(a[..., j].mean() - b[..., j].mean()) < 4 * error


def test_model_can_be_given_new_rows():
    X = some_data(2, 2)
    prior = some_prior(2, 2)
    model = build_model(X, 2, prior=prior)
    point = model.initial_point()
    with model:
        pm.set_data({"X": X[:11]})
    expected = build_model(X[:11], 2, prior=prior).compile_logp(**PYTHON)(point)

    np.testing.assert_allclose(model.compile_logp(**PYTHON)(point), expected, rtol=1e-14)
