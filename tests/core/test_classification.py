"""Bayes' rule over classes that are mixtures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from bayesgmm.core import classification
from bayesgmm.core.parameters import MixtureParameters
from tests import oracles
from tests.mixtures import random_mixture

BLOCKS = (slice(0, 2), slice(2, 3), slice(3, 6))


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    mixtures = [random_mixture(rng, 6, 2) for _ in range(7)]
    return tuple(
        np.stack([getattr(m.parameters, name) for m in mixtures]) for name in ("weights", "means", "precision_factors")
    )


def probabilities_by_hand(X, draws):
    """(S, N, C): scipy's densities, and Bayes' rule."""
    out = []
    for w, m, P in zip(*draws, strict=True):
        V = np.linalg.inv(P @ P.swapaxes(1, 2))
        joint = np.stack([oracles.mixture_log_density(X, w[b], m[b], V[b]) for b in BLOCKS], axis=1)
        out.append(joint - logsumexp(joint, axis=1, keepdims=True))
    return np.array(out)


def test_probabilities_at_given_parameters(draws):
    X = 3 * np.random.default_rng(1).standard_normal((40, 2))
    found = classification.class_log_probabilities(X, MixtureParameters(*(part[0] for part in draws)), BLOCKS)
    # Densities through an inverse of matrices of condition 1e3 at most.
    np.testing.assert_allclose(found, probabilities_by_hand(X, draws)[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("n_rows", [1, 40, 700])
def test_mean_and_spread_over_draws(draws, n_rows):
    X = 3 * np.random.default_rng(1).standard_normal((n_rows, 2))
    mean, sd = classification.averaged_class_probabilities(X, draws, BLOCKS)
    logs = probabilities_by_hand(X, draws)
    np.testing.assert_allclose(mean, np.exp(logs).mean(axis=0), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(sd, np.exp(logs).std(axis=0), rtol=1e-7, atol=1e-12)
    found = classification.average_class_log_probabilities(X, draws, BLOCKS)
    np.testing.assert_allclose(found, logsumexp(logs, axis=0) - np.log(7), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("elements", [2_000_000, 210, 1])
def test_log_probabilities_of_every_draw_in_blocks(draws, monkeypatch, elements):
    monkeypatch.setattr(classification, "BLOCK_ELEMENTS", elements)
    # Far out: the smallest probabilities are exp(−1e5).
    X = 300 * np.random.default_rng(1).standard_normal((40, 2))
    logs = probabilities_by_hand(X, draws)
    assert logs.min() < -1e4
    seen = np.zeros(40)
    for rows, found in classification.probabilities_of_draws(X, draws, BLOCKS):
        np.testing.assert_allclose(found, logs[:, rows], rtol=1e-8, atol=1e-7)
        seen[rows] += 1
    np.testing.assert_array_equal(seen, 1)
    found = classification.average_class_log_probabilities(X, draws, BLOCKS)
    np.testing.assert_allclose(found, logsumexp(logs, axis=0) - np.log(7), rtol=1e-8, atol=1e-7)


def test_spread_of_probabilities_that_hardly_differ():
    rng = np.random.default_rng(3)
    w = np.array([0.3, 0.7]) + 1e-9 * rng.standard_normal((50, 1)) * [1, -1]
    draws = (w, np.zeros((50, 2, 1)), np.ones((50, 2, 1, 1)))
    sd = classification.averaged_class_probabilities(np.zeros((3, 1)), draws, (slice(0, 1), slice(1, 2)))[1]
    # Probabilities are the weights, each rounded at 1e-16.
    np.testing.assert_allclose(sd, w[:, 0].std(), rtol=1e-6)


def test_densities_of_classes_averaged_over_draws(draws):
    X = 3 * np.random.default_rng(2).standard_normal((30, 2))
    found = classification.average_class_log_densities(X, draws, BLOCKS)
    for c, b in enumerate(BLOCKS):
        logs = [
            oracles.mixture_log_density(X, w[b], m[b], np.linalg.inv(P[b] @ P[b].swapaxes(1, 2)))
            for w, m, P in zip(*draws, strict=True)
        ]
        np.testing.assert_allclose(found[:, c], logsumexp(logs, axis=0) - np.log(len(logs)), rtol=1e-8)


def test_rows_beyond_the_reach_of_densities_belong_to_the_nearest_class(draws):
    far = np.array([[1e160, -1e160], [0.5, 0.5], [-1e170, 1e160]])
    one = MixtureParameters(*(part[0] for part in draws))
    p = np.exp(classification.class_log_probabilities(far, one, BLOCKS))
    np.testing.assert_array_equal(np.sort(p[[0, 2]], axis=1), [[0, 0, 1], [0, 0, 1]])
    each = [
        np.exp(classification.class_log_probabilities(far, MixtureParameters(*(part[s] for part in draws)), BLOCKS))
        for s in range(7)
    ]
    mean, sd = classification.averaged_class_probabilities(far, draws, BLOCKS)
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-12)
    np.testing.assert_allclose(sd, np.std(each, axis=0), atol=1e-12)


@pytest.mark.parametrize("distance", [1.0, 1e6, 1e19])
def test_a_row_midway_is_of_both_classes_alike_however_far(distance):
    """Log densities of 1e38 carry no log 2; their differences do."""
    blocks = (slice(0, 1), slice(1, 2))
    parameters = MixtureParameters(np.array([0.5, 0.5]), np.array([[0.0, 1.0], [0.0, -1.0]]), np.stack([np.eye(2)] * 2))
    X = np.array([[distance, 0.0]])
    found = classification.class_log_probabilities(X, parameters, blocks)
    np.testing.assert_allclose(found, np.log(0.5), rtol=1e-12)
    draws = tuple(np.stack([part] * 3) for part in (parameters.weights, parameters.means, parameters.precision_factors))
    mean, sd = classification.averaged_class_probabilities(X, draws, blocks)
    np.testing.assert_allclose(mean, 0.5, rtol=1e-12)
    np.testing.assert_allclose(sd, 0.0, atol=1e-12)
    np.testing.assert_allclose(
        classification.average_class_log_probabilities(X, draws, blocks), np.log(0.5), rtol=1e-12
    )
