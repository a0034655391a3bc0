from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import mahalanobis

from bayesgmm import BayesianGaussianMixture, GaussianMixture
from bayesgmm.assignment import log_threshold
from bayesgmm.explanation import explain_rows, residuals
from tests import oracles
from tests.mixtures import STRUCTURES, random_mixture


@pytest.fixture(scope="module")
def data():
    return random_mixture(np.random.default_rng(1), 3, 2, spread=6.0).sample(np.random.default_rng(2), 200)


@pytest.fixture(scope="module")
def post(data):
    frame = pd.DataFrame(data, columns=["a", "b"])
    return BayesianGaussianMixture(3, method="laplace", draws=250, random_state=0, progressbar=False).fit(frame)


def test_two_steps_of_a_known_mixture():
    mixture = GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[1.0]]])
    X = np.array([[0.0], [2.05], [4.0], [20.0]])
    found = mixture.assign(X, min_density=1e-6, min_responsibility=0.9)
    assert found["component"].tolist() == [0, -1, 1, -1]
    assert found["reason"].tolist() == ["ok", "ambiguous", "ok", "far"]
    r = oracles.responsibilities(X, np.array([0.5, 0.5]), np.array([[0.0], [4.0]]), np.ones((2, 1, 1)))
    np.testing.assert_allclose(found["probability"], r.max(axis=1), rtol=1e-10)
    # Neither limit: scikit-learn's answer.
    np.testing.assert_array_equal(mixture.assign(X)["component"], mixture.predict(X))
    assert "sd" not in found
    np.testing.assert_array_equal(mixture.assign(X, min_log_density=np.log(1e-6))["reason"] == "far", [0, 0, 0, 1])


def test_probability_and_its_spread_over_the_draws(data, post):
    found = post.assign(min_responsibility=0.8)
    draws = zip(*post._draws.flat())
    each = np.stack(
        [
            GaussianMixture.from_parameters(w, m, np.linalg.inv(P @ P.swapaxes(1, 2))).predict_proba(data)
            for w, m, P in draws
        ]
    )
    mean = each.mean(axis=0)
    best = mean.argmax(axis=1)
    rows = np.arange(len(data))
    np.testing.assert_allclose(found["probability"], mean[rows, best], atol=1e-9)
    # √ of a difference of means near 1.
    np.testing.assert_allclose(found["sd"], each[:, rows, best].std(axis=0), atol=1e-6)
    np.testing.assert_array_equal(found["component"], np.where(mean[rows, best] < 0.8, -1, best))
    turned = pd.DataFrame(data, columns=["a", "b"])[["b", "a"]]
    pd.testing.assert_frame_equal(post.assign(turned), post.assign())


def test_limits_are_checked(post):
    with pytest.raises(ValueError, match="min_density or min_log_density, not both"):
        post.assign(min_density=1.0, min_log_density=0.0)
    with pytest.raises(ValueError, match="min_density must be positive"):
        post.assign(min_density=-1.0)
    with pytest.raises(ValueError, match="min_log_density must be finite"):
        post.assign(min_log_density=np.nan)
    with pytest.raises(ValueError, match=r"min_responsibility must lie in \(0, 1\]"):
        post.assign(min_responsibility=0.0)
    with pytest.raises(ValueError, match="'b' is missing"):
        post.assign(pd.DataFrame({"a": [1.0]}))
    assert log_threshold(None, None) == -np.inf


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_distance_and_conditional_residuals(covariance_type):
    rng = np.random.default_rng(5)
    truth = random_mixture(rng, 3, 4, covariance_type)
    mixture = GaussianMixture.from_parameters(truth.weights, truth.means, truth.packed, covariance_type=covariance_type)
    X = 3 * rng.standard_normal((20, 4))
    found = explain_rows(mixture, X, ["a", "b", "c", "d"])
    assert "lower" not in found
    for n, row in enumerate(X):
        distances = [mahalanobis(row, m, np.linalg.inv(S)) for m, S in zip(truth.means, truth.covariances)]
        k = int(np.argmin(distances))
        assert found["nearest_component"][n] == k
        assert found["mahalanobis"][n] == pytest.approx(distances[k], rel=1e-9)
        for j, name in enumerate("abcd"):
            # The regression of feature j on the others.
            S, d = truth.covariances[k], row - truth.means[k]
            others = [i for i in range(4) if i != j]
            beta = np.linalg.solve(S[np.ix_(others, others)], S[others, j])
            z = (d[j] - beta @ d[others]) / np.sqrt(S[j, j] - beta @ S[others, j])
            assert found[f"z_{name}"][n] == pytest.approx(z, rel=1e-7, abs=1e-9)
        largest = max("abcd", key=lambda name: abs(found[f"z_{name}"][n]))
        assert found["features"][n].startswith(f"{largest} (")
        assert found["features"][n].count("(") == 3


def test_interval_of_the_distance_is_that_of_the_draws(data, post):
    from bayesgmm.explanation import DISTANCE_DRAWS

    found = explain_rows(post, data, ["a", "b"], ci_prob=0.8)
    weights, means, factors = post._draws.thinned(DISTANCE_DRAWS).flat()
    n, k = 7, int(found["nearest_component"][7])
    distances = [np.linalg.norm((data[n] - m[k]) @ P[k]) for m, P in zip(means, factors)]
    np.testing.assert_allclose(found.loc[n, ["lower", "upper"]].astype(float), np.quantile(distances, [0.1, 0.9]))
    with pytest.raises(ValueError, match="ci_prob"):
        explain_rows(post, data, ["a", "b"], ci_prob=1.0)


def test_residuals_of_rows_of_a_component_are_standard_normal():
    truth = random_mixture(np.random.default_rng(0), 1, 3)
    X = truth.sample(np.random.default_rng(1), 20_000)
    z = residuals(X, truth.parameters, np.zeros(len(X), dtype=int))
    # Errors of a mean and a standard deviation of 20,000 rows: 0.007 and 0.005.
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.025)
