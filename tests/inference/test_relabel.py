from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import integrate, stats

from bayesgmm.inference.relabel import permuted_share, relabel
from tests.mixtures import STRUCTURES, Mixture, random_mixture
from tests.oracles import expand_covariances


def jittered_draws(mixture: Mixture, covariance_type: str, n_draws: int, size: float, seed: int):
    """Draws around a mixture in its own order: (weights, means, packed covariances)."""
    rng = np.random.default_rng(seed)
    K, D = mixture.means.shape
    weights = mixture.weights * np.exp(size * rng.standard_normal((n_draws, K)))
    spread = np.sqrt(np.diagonal(mixture.covariances, axis1=1, axis2=2))
    means = mixture.means + size * spread * rng.standard_normal((n_draws, K, D))
    packed = np.broadcast_to(mixture.packed, (n_draws, *mixture.packed.shape))
    if covariance_type in ("full", "tied"):
        # Σ ↦ E Σ Eᵀ stays positive definite.
        E = np.eye(D) + 0.3 * size * rng.standard_normal((*packed.shape[:-2], D, D))
        packed = E @ packed @ E.swapaxes(-1, -2)
    else:
        packed = packed * np.exp(size * rng.standard_normal(packed.shape))
    return weights / weights.sum(axis=1, keepdims=True), means, packed


def shuffled(draws, covariance_type: str, seed: int):
    """Draws with their components in random order, and the permutations that undo it."""
    weights, means, packed = draws
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random(weights.shape), axis=1)
    rows = np.arange(len(weights))[:, None]
    packed = packed if covariance_type == "tied" else packed[rows, order]
    return (weights[rows, order], means[rows, order], packed), np.argsort(order, axis=1)


def separated(K: int, D: int, covariance_type: str, seed: int = 3) -> Mixture:
    mixture = random_mixture(np.random.default_rng(seed), K, D, covariance_type)
    # 12 apart along every axis, standard deviations below 3: no draw of the tests comes near to another component.
    means = 12.0 * np.arange(K)[:, None] + mixture.means / 10
    return Mixture(mixture.weights, means, mixture.packed, mixture.covariances)


def divergence(one: tuple, other: tuple) -> float:
    """KL(one ‖ other) + KL(other ‖ one) between completed-data distributions, written out component by component."""
    total = 0.0
    for p, q in ((one, other), (other, one)):
        for w, m, S, w_q, m_q, S_q in zip(*p, *q, strict=True):
            inverse = np.linalg.inv(S_q)
            gauss = 0.5 * (
                np.trace(inverse @ S)
                + (m - m_q) @ inverse @ (m - m_q)
                - len(m)
                + np.log(np.linalg.det(S_q) / np.linalg.det(S))
            )
            total += w * (np.log(w / w_q) + gauss)
    return total


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 4), (6, 3)])
def test_undoes_known_permutations_of_separated_mixtures(covariance_type, K, D):
    mixture = separated(K, D, covariance_type)
    draws, expected = shuffled(jittered_draws(mixture, covariance_type, 200, 0.15, 1), covariance_type, 2)
    found = relabel(*draws, (mixture.weights, mixture.means, mixture.packed), covariance_type=covariance_type)
    np.testing.assert_array_equal(found, expected)
    assert permuted_share(found) == np.mean(np.any(expected != np.arange(K), axis=1))
    pivotal = relabel(*draws, covariance_type=covariance_type)
    # Without a reference the common order is any one of the K!, the same for all draws.
    back = np.take_along_axis(np.argsort(expected, axis=1), pivotal, axis=1)
    np.testing.assert_array_equal(back, np.broadcast_to(back[0], back.shape))


def test_near_components_are_told_apart_by_weight_scale_and_shape():
    # Six components in three places: pairs share their mean and differ in weight and scale, in orientation, in weight alone.
    means = np.array([[0.0, 0.0], [0.0, 0.0], [6.0, 0.0], [6.0, 0.0], [0.0, 8.0], [0.0, 8.0]])
    tilted = np.array([[1.0, 0.8], [0.8, 1.0]])
    covariances = np.stack([np.eye(2), 3.0 * np.eye(2), tilted, tilted * [[1, -1], [-1, 1]], np.eye(2), np.eye(2)])
    weights = np.array([0.25, 0.15, 0.15, 0.15, 0.25, 0.05])
    mixture = Mixture(weights, means, covariances, covariances)
    draws, expected = shuffled(jittered_draws(mixture, "full", 500, 0.1, 5), "full", 6)
    np.testing.assert_array_equal(relabel(*draws, (weights, means, covariances)), expected)
    pivotal = relabel(*draws)
    back = np.take_along_axis(np.argsort(expected, axis=1), pivotal, axis=1)
    np.testing.assert_array_equal(back, np.broadcast_to(back[0], back.shape))


@pytest.mark.parametrize("covariance_type", STRUCTURES)
@pytest.mark.parametrize(("K", "D"), [(2, 2), (4, 1), (5, 3)])
def test_is_the_minimum_over_all_permutations(covariance_type, K, D):
    # Overlapping components and wild draws: the nearest components are often no permutation, so that the solver is needed.
    mixture = random_mixture(np.random.default_rng(7), K, D, covariance_type, spread=0.5)
    draws = jittered_draws(mixture, covariance_type, 10, 0.8, 8)
    matrices = np.stack([expand_covariances(packed, covariance_type, K, D) for packed in draws[2]])
    reference = (mixture.weights, mixture.means, mixture.covariances)
    found = relabel(*draws, reference, covariance_type=covariance_type)
    for s in range(10):
        costs = {
            order: divergence((draws[0][s, list(order)], draws[1][s, list(order)], matrices[s, list(order)]), reference)
            for order in permutations(range(K))
        }
        assert tuple(found[s]) == min(costs, key=costs.__getitem__)


def test_divergence_of_the_brute_force_is_the_integral_it_stands_for():
    # The oracle's closed form against quadrature, in one dimension: Σ_k ∫ (p_k − q_k) log(p_k / q_k) dx.
    one = ([0.3, 0.7], [[0.0], [2.0]], [[[1.0]], [[0.5]]])
    other = ([0.6, 0.4], [[0.5], [1.0]], [[[2.0]], [[0.8]]])

    def integrand(x: float, k: int) -> float:
        (a, p), (b, q) = ((w[k], stats.Normal(mu=m[k][0], sigma=np.sqrt(S[k][0][0]))) for w, m, S in (one, other))
        return (a * p.pdf(x) - b * q.pdf(x)) * (np.log(a / b) + p.logpdf(x) - q.logpdf(x))

    total = sum(integrate.quad(integrand, -15, 15, args=(k,), limit=200)[0] for k in range(2))
    # quad's own error estimate is below 1e-9 here.
    assert divergence(tuple(map(np.array, one)), tuple(map(np.array, other))) == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize("reference", ["given", None])
def test_does_not_depend_on_the_order_that_draws_come_in(reference):
    mixture = random_mixture(np.random.default_rng(11), 4, 2, spread=1.0)
    draws = jittered_draws(mixture, "full", 300, 0.4, 12)
    again, undo = shuffled(draws, "full", 13)
    given = None if reference is None else (mixture.weights, mixture.means, mixture.covariances)
    first, second = relabel(*draws, given), relabel(*again, given)
    rows = np.arange(300)[:, None]
    relabelled, relabelled_again = draws[1][rows, first], again[1][rows, second]
    if given is None:
        # A pivot's order is that of the draw it began from, so the two runs may differ by one permutation common to all draws.
        common = [int(np.argmin(np.abs(relabelled_again[0] - mean).sum(axis=1))) for mean in relabelled[0]]
        relabelled_again = relabelled_again[:, common]
    np.testing.assert_array_equal(relabelled, relabelled_again)


def test_affine_changes_of_the_features_change_nothing():
    rng = np.random.default_rng(17)
    mixture = random_mixture(rng, 3, 3, spread=0.7)
    weights, means, covariances = jittered_draws(mixture, "full", 200, 0.5, 18)
    A, shift = rng.standard_normal((3, 3)) * [[1e-3], [1.0], [1e4]], np.array([1e6, 0.0, -5.0])
    turned = (weights, means @ A.T + shift, A @ covariances @ A.T)
    there = (mixture.weights, mixture.means @ A.T + shift, A @ mixture.covariances @ A.T)
    np.testing.assert_array_equal(
        relabel(*turned, there),
        relabel(weights, means, covariances, (mixture.weights, mixture.means, mixture.covariances)),
    )


def test_one_wild_draw_does_not_carry_the_pivot_away():
    mixture = separated(3, 2, "full")
    weights, means, covariances = jittered_draws(mixture, "full", 100, 0.1, 19)
    weights[0], means[0, 2], covariances[0, 2] = [0.6, 0.399, 0.001], 1e4, 1e8 * np.eye(2)
    draws, expected = shuffled((weights, means, covariances), "full", 20)
    back = np.take_along_axis(np.argsort(expected, axis=1), relabel(*draws), axis=1)[1:]
    np.testing.assert_array_equal(back, np.broadcast_to(back[0], back.shape))


def test_weights_of_zero_are_allowed():
    mixture = separated(3, 2, "full")
    weights, means, covariances = jittered_draws(mixture, "full", 20, 0.1, 21)
    weights[3] = [0.0, 0.5, 0.5]
    draws, expected = shuffled((weights, means, covariances), "full", 22)
    found = relabel(*draws, (mixture.weights, mixture.means, mixture.covariances))
    np.testing.assert_array_equal(found, expected)


def test_reference_may_be_an_object_in_either_manner():
    mixture = separated(3, 2, "diag")
    draws, expected = shuffled(jittered_draws(mixture, "diag", 50, 0.1, 23), "diag", 24)
    ours = SimpleNamespace(weights=mixture.weights, means=mixture.means, covariances=mixture.covariances)
    theirs = SimpleNamespace(weights_=mixture.weights, means_=mixture.means, covariances_=mixture.packed)
    for reference in (ours, theirs, mixture.parameters):
        np.testing.assert_array_equal(relabel(*draws, reference), expected)


def test_structure_is_read_from_the_shape_or_asked_for():
    mixture = separated(3, 3, "diag")
    draws = jittered_draws(mixture, "diag", 20, 0.1, 25)
    with pytest.raises(ValueError, match=r"may be tied or diag: say which by covariance_type"):
        relabel(*draws, (mixture.weights, mixture.means, mixture.covariances))
    reference = (mixture.weights, mixture.means, mixture.packed)
    found = relabel(*draws, reference, covariance_type="diag")
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(3), (20, 3)))


GOOD = (np.full((5, 2), 0.5), np.zeros((5, 2, 3)) + [[0.0], [9.0]], np.broadcast_to(np.eye(3), (5, 2, 3, 3)))
REFERENCE = (GOOD[0][0], GOOD[1][0], GOOD[2][0])


def with_value(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("draws", "reference", "message"),
    [
        (
            (with_value(GOOD[0], (1, 0), np.nan), *GOOD[1:]),
            REFERENCE,
            r"weights must be finite; .* index \(1, 0\) is nan",
        ),
        (
            (GOOD[0], with_value(GOOD[1], (4, 1, 2), np.inf), GOOD[2]),
            REFERENCE,
            r"means must be finite; .* \(4, 1, 2\) is inf",
        ),
        (
            (with_value(GOOD[0], (0, 0), -0.1), *GOOD[1:]),
            REFERENCE,
            "weights must not be negative; the smallest is -0.1",
        ),
        ((GOOD[0][0], *GOOD[1:]), REFERENCE, r"weights must have shape \(draws, components\); got \(2,\)"),
        ((GOOD[0], GOOD[1][:, :1], GOOD[2]), REFERENCE, r"means must have shape \(5, 2, features\)"),
        (
            (GOOD[0], GOOD[1], GOOD[2][:, :, :2]),
            REFERENCE,
            r"covariances must have one of the shapes .*\(5, 3, 3\) \(tied\)",
        ),
        (
            (*GOOD[:2], with_value(GOOD[2], (3, 1, 0, 0), -1)),
            REFERENCE,
            "draw 3, component 1 has the smallest eigenvalue -1",
        ),
        (GOOD, REFERENCE[:2], "reference must be .*; got 2 parts"),
        (GOOD, (REFERENCE[0][:1], REFERENCE[1][:1], REFERENCE[2][:1]), r"the draws need \(2,\) and \(2, 3\)"),
        (GOOD, SimpleNamespace(weights=REFERENCE[0]), "reference has no 'means'"),
        (GOOD, (*REFERENCE[:2], np.zeros((2, 3, 3))), "reference covariances must be positive definite"),
    ],
)
def test_bad_input_is_named(draws, reference, message):
    with pytest.raises(ValueError, match=message):
        relabel(*draws, reference)


def test_wrong_shape_for_the_structure_asked_for():
    with pytest.raises(ValueError, match=r"covariances \(diag\) must have shape \(5, 2, 3\); got \(5, 2, 3, 3\)"):
        relabel(*GOOD, REFERENCE, covariance_type="diag")


def test_permuted_share_counts_draws_out_of_order():
    assert permuted_share(np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [0, 1, 2]])) == 0.5
    with pytest.raises(ValueError, match=r"must have shape \(draws, components\); got \(0,\)"):
        permuted_share(np.array([]))
