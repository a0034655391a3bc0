from __future__ import annotations

import arviz as az
import numpy as np
import pytest
from scipy import stats

from bayesgmm import ConjugatePrior
from bayesgmm.core.covariance import structure
from bayesgmm.inference import posterior
from bayesgmm.inference.posterior import PosteriorDraws
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture

C, S, K, D, N = 2, 30, 3, 2, 25
NAMES = ("height", "width")


def some_draws(covariance_type: str = "full", K: int = K, D: int = D) -> tuple[PosteriorDraws, np.ndarray]:
    """Draws and their packed covariances."""
    rng = np.random.default_rng(3)
    mixtures = [random_mixture(rng, K, D, covariance_type) for _ in range(C * S)]
    packed = np.stack([m.packed for m in mixtures])
    draws = PosteriorDraws(
        np.stack([m.weights for m in mixtures]).reshape(C, S, K),
        np.stack([m.means for m in mixtures]).reshape(C, S, K, D),
        np.stack([m.parameters.precision_factors for m in mixtures]).reshape(C, S, K, D, D),
    )
    return draws, packed.reshape(C, S, *packed.shape[1:])


def some_tree(covariance_type: str = "full", weighted: bool = False):
    rng = np.random.default_rng(4)
    X = rng.standard_normal((N, D)) * 3
    v = rng.uniform(0.5, 2, N) if weighted else None
    prior = ConjugatePrior(1.5, [0.5, -0.5], 0.2, 5.0, [[2.0, 0.3], [0.3, 1.0]]).resolve(X, K, covariance_type, v)
    draws, packed = some_draws(covariance_type)
    lp = rng.standard_normal((C, S))
    tree = posterior.data_tree(
        draws, structure(covariance_type), X, v, NAMES, prior, {"lp": lp}, {"sampler": "by hand"}
    )
    return tree, draws, packed, X, v, prior


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_groups_dims_and_coords(covariance_type):
    tree, draws, packed, X, _, _ = some_tree(covariance_type)
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "log_prior",
        "log_likelihood",
        "observed_data",
        "constant_data",
    }
    group = tree["posterior"]
    dims = {name: group[name].dims[2:] for name in group.data_vars}
    assert all(group[name].dims[:2] == ("chain", "draw") for name in group.data_vars)
    assert dims["weights"] == ("component_id",)
    assert dims["means"] == ("component_id", "feature")
    assert (
        dims["covariances"]
        == {
            "full": ("component_id", "feature", "feature_bis"),
            "tied": ("feature", "feature_bis"),
            "diag": ("component_id", "feature"),
            "spherical": ("component_id",),
        }[covariance_type]
    )
    assert list(group["feature"].values) == list(NAMES)
    assert list(group["component_id"].values) == [0, 1, 2]
    if covariance_type in ("full", "tied"):
        assert list(group["feature_pair"].values) == ["height:width"]
    else:
        assert "correlations" not in group
    np.testing.assert_array_equal(group["weights"].values, draws.weights)
    np.testing.assert_array_equal(group["means"].values, draws.means)
    # Through the inverse and back: the condition number times the rounding.
    np.testing.assert_allclose(group["covariances"].values, packed, rtol=1e-9)
    np.testing.assert_array_equal(tree["observed_data"]["x"].values, X)
    assert tree["observed_data"]["x"].dims == ("obs_id", "feature")
    assert tree.attrs["sampler"] == "by hand"


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_standard_deviations_and_correlations_are_those_of_the_matrices(covariance_type):
    tree, _, packed, *_ = some_tree(covariance_type)
    group = tree["posterior"]
    matrices = oracles.expand_draws(packed, covariance_type, K, D)
    sd = np.sqrt(matrices[..., [0, 1], [0, 1]])
    found = group["standard_deviations"].values
    expected = {"full": sd, "tied": sd[:, :, 0], "diag": sd, "spherical": sd[..., 0]}[covariance_type]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    if covariance_type in ("full", "tied"):
        r = (matrices[..., 1, 0] / sd[..., 0] / sd[..., 1])[..., None]
        np.testing.assert_allclose(
            group["correlations"].values, r if covariance_type == "full" else r[:, :, 0], rtol=1e-9
        )


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_log_likelihood_is_scipys(covariance_type):
    tree, draws, packed, X, *_ = some_tree(covariance_type)
    found = tree["log_likelihood"]["x"]
    assert found.dims == ("chain", "draw", "obs_id")
    for c, s in ((0, 0), (1, 7), (1, 29)):
        matrices = oracles.expand_covariances(packed[c, s], covariance_type, K, D)
        expected = oracles.mixture_log_density(X, draws.weights[c, s], draws.means[c, s], matrices)
        np.testing.assert_allclose(found.values[c, s], expected, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_log_prior_is_scipys(covariance_type):
    tree, draws, packed, _, _, prior = some_tree(covariance_type)
    found = tree["log_prior"]["prior"].values
    for c, s in ((0, 3), (1, 29)):
        expected = oracles.log_prior(draws.weights[c, s], draws.means[c, s], packed[c, s], prior, covariance_type)
        assert found[c, s] == pytest.approx(expected, rel=1e-9)
        ours = prior.log_density(draws.weights[c, s], draws.means[c, s], packed[c, s], covariance_type)
        assert found[c, s] == pytest.approx(float(ours), rel=1e-9)


def test_constant_data_hold_the_prior_and_the_weights():
    tree, _, _, _, v, prior = some_tree(weighted=True)
    group = tree["constant_data"]
    np.testing.assert_array_equal(group["weight_concentration"].values, prior.weight_concentration)
    np.testing.assert_array_equal(group["mean_prior"].values, prior.mean_prior)
    assert float(group["mean_precision"]) == prior.mean_precision
    assert float(group["degrees_of_freedom"]) == prior.degrees_of_freedom
    np.testing.assert_array_equal(group["scale"].values, prior.scale)
    np.testing.assert_array_equal(group["sample_weight"].values, v)


def test_large_log_likelihood_is_left_out(monkeypatch):
    monkeypatch.setattr(posterior, "LOG_LIKELIHOOD_LIMIT", C * S * N)
    assert "log_likelihood" in some_tree()[0].children
    monkeypatch.setattr(posterior, "LOG_LIKELIHOOD_LIMIT", C * S * N - 1)
    tree, draws, packed, X, *_ = some_tree()
    assert "log_likelihood" not in tree.children
    posterior.add_log_likelihood(tree, draws, X)
    expected = oracles.mixture_log_density(X, draws.weights[1, 2], draws.means[1, 2], packed[1, 2])
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[1, 2], expected, rtol=1e-9)


def test_permuting_reorders_every_part_alike():
    draws, packed = some_draws()
    rng = np.random.default_rng(8)
    order = np.stack([rng.permutation(K) for _ in range(C * S)])
    moved = draws.permuted(order)
    for c, s in ((0, 0), (0, 1), (1, 4)):
        p = order[c * S + s]
        np.testing.assert_array_equal(moved.weights[c, s], draws.weights[c, s][p])
        np.testing.assert_array_equal(moved.means[c, s], draws.means[c, s][p])
        np.testing.assert_allclose(moved.covariances[c, s], packed[c, s][p], rtol=1e-9)


def test_flat_joins_chains_in_order():
    draws, _ = some_draws()
    weights, means, factors = draws.flat()
    np.testing.assert_array_equal(weights[S + 4], draws.weights[1, 4])
    np.testing.assert_array_equal(means[S + 4], draws.means[1, 4])
    np.testing.assert_array_equal(factors[S + 4], draws.precision_factors[1, 4])
    np.testing.assert_array_equal(draws.flat(every=7)[0], weights[::7])


def test_names_of_pairs():
    assert posterior.feature_pairs(["a", "b", "c"]) == ["a:b", "a:c", "b:c"]
    assert posterior.feature_pairs(["a"]) == []


@pytest.mark.parametrize("D", [1, 2, 3])
def test_simulated_rows_have_the_mixtures_moments(D):
    rng = np.random.default_rng(9)
    mixture = random_mixture(rng, 2, D)
    n = 20_000
    rows, labels = posterior.simulate(rng, n, mixture.weights, mixture.means, mixture.parameters.precision_factors)
    # Binomial error of a share, at four of them.
    assert np.mean(labels == 0) == pytest.approx(mixture.weights[0], abs=4 * 0.5 / np.sqrt(n))
    for k in range(2):
        member = rows[labels == k]
        sd = np.sqrt(np.diag(mixture.covariances[k]))
        assert np.all(np.abs(member.mean(axis=0) - mixture.means[k]) < 4 * sd / np.sqrt(len(member)))
        # A covariance's standard error is at most √2 sd sd / √n; four of them, and one for the many entries.
        error = np.abs(np.cov(member.T).reshape(D, D) - mixture.covariances[k])
        assert np.all(error < 5 * np.sqrt(2 / len(member)) * np.outer(sd, sd))


def test_posterior_predictive_tables_follow_their_draws():
    tree, draws, packed, X, *_ = some_tree()
    posterior.add_posterior_predictive(tree, draws, 400, np.random.default_rng(10))
    group = tree["posterior_predictive"]["x"]
    assert group.dims == ("chain", "draw", "obs_id", "feature")
    assert group.shape == (C, S, 400, D)
    # The whitened means of the tables, one for each draw, are standard normal: 120 numbers, tested for their distribution.
    z = []
    for c, s in np.ndindex(C, S):
        w, m, V = draws.weights[c, s], draws.means[c, s], packed[c, s]
        center = w @ m
        total = sum(w[k] * (V[k] + np.outer(m[k] - center, m[k] - center)) for k in range(K))
        deviation = group.values[c, s].mean(axis=0) - center
        z.append(np.linalg.solve(np.linalg.cholesky(total / 400), deviation))
    assert stats.kstest(np.ravel(z), "norm").pvalue > 1e-3


def test_one_feature_and_one_component():
    draws, _ = some_draws(K=1, D=1)
    X = np.random.default_rng(1).standard_normal((N, 1))
    prior = ConjugatePrior().resolve(X, 1)
    tree = posterior.data_tree(draws, structure("full"), X, None, ["y"], prior, {"lp": np.zeros((C, S))}, {})
    assert tree["posterior"]["means"].shape == (C, S, 1, 1)
    assert "correlations" not in tree["posterior"]
    assert len(az.summary(tree, var_names=["means", "standard_deviations"])) == 2
