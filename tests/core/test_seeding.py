from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris

from bayesgmm import datasets
from bayesgmm.core import clustering, seeding
from bayesgmm.core.seeding import MIXED_METHODS, SEEDING_METHODS, initial_labels, initial_responsibilities, mixed_starts

PARTITIONS = tuple(m for m in (*SEEDING_METHODS, *MIXED_METHODS) if m not in ("random", "quantiles"))
DETERMINISTIC = ("hierarchical", "ward")
CLUSTERING = ("kmeans", "k-means++", "hierarchical", "ward", "kmeans-rescaled")
"""Methods that find well separated clusters from any seed (greedy k-means++ chooses one row of each)."""


def blobs(n_rows: int, n_features: int, n_groups: int, seed: int = 0, distance: float = 30.0):
    """Groups ``distance`` standard deviations apart along every axis: (X, labels)."""
    rng = np.random.default_rng(seed)
    z = rng.integers(n_groups, size=n_rows)
    return distance * z[:, None] + rng.standard_normal((n_rows, n_features)), z


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("method", PARTITIONS)
@pytest.mark.parametrize(("N", "D", "K"), [(1, 1, 1), (40, 1, 3), (7, 2, 7), (60, 3, 1), (60, 12, 5)])
def test_labels_are_a_partition_into_k_groups(method, N, D, K):
    X = np.random.default_rng(1).standard_normal((N, D))
    labels = initial_labels(method, X, K, None, np.random.default_rng(2))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(labels), np.arange(K))
    np.testing.assert_array_equal(labels, initial_labels(method, X, K, None, np.random.default_rng(2)))


@pytest.mark.parametrize("method", CLUSTERING)
@pytest.mark.parametrize("weighted", [False, True])
# 25,000 rows: more than k-means and the trees look at.
@pytest.mark.parametrize(("N", "D"), [(300, 1), (300, 4), (25_000, 2)])
def test_separated_groups_are_found(method, weighted, N, D):
    X, z = blobs(N, D, 4)
    weight = np.random.default_rng(3).uniform(0.5, 3.0, N) if weighted else None
    assert same_partition(initial_labels(method, X, 4, weight, np.random.default_rng(4)), z)


@pytest.mark.parametrize("method", CLUSTERING)
def test_rows_of_weight_zero_have_no_influence(method):
    X, z = blobs(200, 2, 3)
    # A fourth group, farther off than the others from each other, would be a group of its own if it counted.
    X = np.vstack([X, np.full((50, 2), -500.0) + np.random.default_rng(5).standard_normal((50, 2))])
    weight = np.repeat([1.0, 0.0], [200, 50])
    for seed in range(5):
        labels = initial_labels(method, X, 3, weight, np.random.default_rng(seed))
        assert same_partition(labels[:200], z)


@pytest.mark.parametrize("method", ["k-means++", "random_from_data"])
def test_chosen_rows_as_in_scikit_learn(method):
    # scikit-learn's BaseMixture._initialize_parameters: resp[chosen row k, k] = 1, zero elsewhere; rows without repetition.
    X = np.random.default_rng(6).standard_normal((30, 2))
    weight = np.where(np.arange(30) < 12, 0.0, 1.0 + np.arange(30))
    for seed in range(20):
        resp = initial_responsibilities(method, X, 5, weight, np.random.default_rng(seed))
        np.testing.assert_array_equal(resp.sum(axis=0), np.ones(5))
        chosen = resp.argmax(axis=0)
        assert len(set(chosen.tolist())) == 5
        assert chosen.min() >= 12
        # The labels of the same seed: nearest chosen row, by brute force.
        distance = np.linalg.norm(X[:, None] - X[chosen], axis=2)
        labels = initial_labels(method, X, 5, weight, np.random.default_rng(seed))
        np.testing.assert_array_equal(labels, distance.argmin(axis=1))


def test_rows_are_chosen_in_proportion_to_weight():
    X = np.arange(4.0)[:, None]
    weight = np.array([1.0, 2.0, 0.0, 5.0])
    rng = np.random.default_rng(7)
    for method in ("k-means++", "random_from_data"):
        first = [initial_responsibilities(method, X, 1, weight, rng).argmax() for _ in range(2000)]
        # Binomial standard deviation at most 0.011 for 2,000 draws; 4.5 of them.
        np.testing.assert_allclose(np.bincount(first, minlength=4) / 2000, weight / 8, atol=0.05)


def test_random_responsibilities_are_normalised_uniforms():
    X = np.zeros((500, 2))
    resp = initial_responsibilities("random", X, 3, None, np.random.default_rng(8))
    uniforms = np.random.default_rng(8).random((500, 3))
    # Rounding of one division.
    np.testing.assert_allclose(resp, uniforms / uniforms.sum(axis=1, keepdims=True), rtol=1e-14)


def test_random_responsibilities_of_zeros_are_probabilities():
    class Zeros:
        def random(self, shape):
            uniforms = np.zeros(shape)
            uniforms[0, 1] = 0.5
            return uniforms

    resp = initial_responsibilities("random", np.zeros((2, 2)), 2, None, Zeros())
    np.testing.assert_allclose(resp, [[0, 1], [0.5, 0.5]], atol=1e-300)
    assert resp.min() >= 0


@pytest.mark.parametrize("method", ["kmeans", "hierarchical"])
def test_partitions_as_responsibilities_are_one_hot(method):
    X, _ = blobs(50, 2, 3)
    resp = initial_responsibilities(method, X, 3, None, np.random.default_rng(9))
    labels = initial_labels(method, X, 3, None, np.random.default_rng(9))
    np.testing.assert_array_equal(resp, np.eye(3)[labels])


def inertia(X: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    total = 0.0
    for k in np.unique(labels):
        rows, v = X[labels == k], weight[labels == k]
        total += float(np.sum(v * np.sum((rows - np.average(rows, axis=0, weights=v)) ** 2, axis=1)))
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_reaches_the_inertia_of_scikit_learn(weighted):
    X = load_iris().data.astype(float)
    weight = np.random.default_rng(10).integers(0, 4, len(X)).astype(float) if weighted else np.ones(len(X))
    peer = KMeans(4, n_init=20, tol=0, random_state=0).fit(X, sample_weight=weight)
    found = [
        inertia(X, initial_labels("kmeans", X, 4, weight if weighted else None, np.random.default_rng(s)), weight)
        for s in range(20)
    ]
    # Both the best of 20: the same optimum, up to rounding of sums of squares.
    assert min(found) == pytest.approx(peer.inertia_, rel=1e-9)


def test_lloyd_ends_where_centres_are_means_of_their_nearest_rows():
    rng = np.random.default_rng(11)
    Z, weight = rng.standard_normal((400, 3)), rng.uniform(0.1, 5.0, 400)
    centres = Z[:6].copy()
    # A centre that no row is nearest to must find rows again.
    centres[5] = 1e3
    clustering.lloyd(Z, weight, centres, 1000)
    labels = np.linalg.norm(Z[:, None] - centres, axis=2).argmin(axis=1)
    means = [np.average(Z[labels == k], axis=0, weights=weight[labels == k]) for k in range(6)]
    # Means of at most 400 numbers of size 1.
    np.testing.assert_allclose(centres, means, atol=1e-12)


@pytest.mark.parametrize("K", [2, 5, 9])
def test_ward_agrees_with_scipy(K):
    Z = np.random.default_rng(12).standard_normal((120, 3))
    ours = clustering.agglomerate(Z, np.ones(120), K, False, 1.0)
    theirs = fcluster(linkage(Z, "ward"), K, criterion="maxclust")
    assert same_partition(ours, theirs)


def naive_agglomeration(Z: np.ndarray, weight: np.ndarray, K: int, floor: float) -> np.ndarray:
    """Greedy merging with every cost from the definition: Σ (n + 1) log |(W + floor I) / (n + 1)|."""

    def cost(rows: list[int]) -> float:
        v, mean = weight[rows], np.average(Z[rows], axis=0, weights=weight[rows])
        W = (v[:, None] * (Z[rows] - mean)).T @ (Z[rows] - mean)
        return (v.sum() + 1) * np.linalg.slogdet((W + floor * np.eye(Z.shape[1])) / (v.sum() + 1))[1]

    groups = [[i] for i in range(len(Z))]
    while len(groups) > K:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
        gains = [cost(groups[i] + groups[j]) - cost(groups[i]) - cost(groups[j]) for i, j in pairs]
        i, j = pairs[int(np.argmin(gains))]
        groups[j] += groups.pop(i)
    labels = np.empty(len(Z), dtype=int)
    for k, rows in enumerate(groups):
        labels[rows] = k
    return labels


@pytest.mark.parametrize(("R", "K", "seed"), [(1, 3, 0), (2, 2, 1), (3, 4, 2), (4, 3, 3)])
def test_determinant_tree_merges_as_the_criterion_says(R, K, seed):
    rng = np.random.default_rng(seed)
    Z, weight = rng.standard_normal((22, R)), rng.integers(1, 4, 22).astype(float)
    found = clustering.agglomerate(Z, weight, K, True, 0.3)
    assert same_partition(found, naive_agglomeration(Z, weight, K, 0.3))
    np.testing.assert_array_equal(np.unique(found), np.arange(K))


@pytest.mark.parametrize("method", [*DETERMINISTIC, "quantiles"])
def test_integer_weights_are_repetitions(method):
    rng = np.random.default_rng(13)
    X = rng.standard_normal((60, 1 if method == "quantiles" else 3))
    repeats = rng.integers(1, 4, 60)
    weighted = initial_labels(method, X, 4, repeats.astype(float), rng)
    repeated = initial_labels(method, np.repeat(X, repeats, axis=0), 4, None, rng)
    assert same_partition(np.repeat(weighted, repeats), repeated)


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_trees_do_not_depend_on_the_features_units(method):
    X, _ = blobs(100, 3, 3, distance=2.0)
    first = initial_labels(method, X, 4, None, np.random.default_rng(14))
    second = initial_labels(method, X * [1e-6, 1.0, 1e9] + [0.0, 1e4, 0.0], 4, None, np.random.default_rng(14))
    assert same_partition(first, second)


def test_quantiles_have_equal_weight_and_keep_ties_together():
    rng = np.random.default_rng(15)
    X = rng.standard_normal((1000, 1))
    labels = initial_labels("quantiles", X, 4, None, rng)
    np.testing.assert_array_equal(np.bincount(labels), [250] * 4)
    np.testing.assert_array_equal(labels, np.searchsorted(np.sort(X[:, 0])[[249, 499, 749]], X[:, 0]))
    ties = initial_labels("quantiles", np.repeat([[1.0], [2.0], [3.0]], [5, 90, 5], axis=0), 2, None, rng)
    np.testing.assert_array_equal(ties, np.repeat([0, 1], [95, 5]))
    with pytest.raises(ValueError, match="a single feature; X has 2"):
        initial_labels("quantiles", np.zeros((5, 2)), 2, None, rng)


@pytest.mark.parametrize("method", [*PARTITIONS, "quantiles"])
@pytest.mark.parametrize("values", [[0.0], [0.0, 1.0, 5.0]])
def test_fewer_distinct_rows_than_components(method, values):
    D = 1 if method == "quantiles" else 2
    X = np.repeat(np.array(values)[:, None], D, axis=1)[np.arange(30) % len(values)]
    for weight in (None, 1.0 + np.arange(30) % 2):
        labels = initial_labels(method, X, 6, weight, np.random.default_rng(16))
        np.testing.assert_array_equal(np.unique(labels), np.arange(6))


@pytest.mark.parametrize("method", [*PARTITIONS, "quantiles"])
def test_fewer_rows_than_components(method):
    X = np.array([[0.0], [1.0], [2.0]])
    labels = initial_labels(method, X, 5, np.array([1.0, 0.0, 2.0]), np.random.default_rng(17))
    assert len(labels) == 3
    assert set(labels.tolist()) <= set(range(5))
    assert labels[0] != labels[2]


@pytest.mark.parametrize("method", CLUSTERING)
@pytest.mark.parametrize(("scale", "shift"), [(1e-150, 0.0), (1e150, 0.0), (1.0, 1e9), (1e-3, -1e4)])
def test_extreme_scales_and_places(method, scale, shift):
    X, z = blobs(150, 2, 3)
    assert same_partition(initial_labels(method, X * scale + shift, 3, None, np.random.default_rng(18)), z)


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_constant_and_collinear_features_are_ignored(method):
    X, _ = blobs(80, 2, 3, distance=2.0)
    wider = np.column_stack([X, np.full(80, 7.0), X[:, 0]])
    labels = initial_labels(method, wider, 3, None, np.random.default_rng(19))
    np.testing.assert_array_equal(np.unique(labels), np.arange(3))


def test_mixed_starts_begin_with_the_asked_method():
    for n_features in (1, 2):
        for first in SEEDING_METHODS:
            methods = mixed_starts(first, 10, n_features)
            assert methods[0] == first
            assert len(methods) == 10
            assert ("quantiles" in methods) == (n_features == 1)
            # The same tree twice would be the same start.
            assert all(methods.count(method) <= 1 for method in (*DETERMINISTIC, "quantiles"))
            assert mixed_starts(first, 1, n_features) == [first]
            assert len(mixed_starts(first, 37, n_features)) == 37


def full_em(X: np.ndarray, labels: np.ndarray, K: int, n_iter: int = 600) -> tuple[float, float]:
    """Plain EM with full covariances: log-likelihood, and the smallest relative eigenvalue of a covariance."""
    N, D = X.shape
    resp = np.eye(K)[labels]
    for _ in range(n_iter):
        counts = resp.sum(axis=0)
        means = resp.T @ X / counts[:, None]
        covariances = np.einsum("nk,nkd,nke->kde", resp, X[:, None] - means, X[:, None] - means) / counts[:, None, None]
        covariances += 1e-6 * np.eye(D)
        density = np.empty((N, K))
        for k in range(K):
            delta = X - means[k]
            distance = np.sum(delta * np.linalg.solve(covariances[k], delta.T).T, axis=1)
            density[:, k] = -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariances[k])[1]) + np.log(counts[k] / N)
        top = density.max(axis=1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(density - top).sum(axis=1))
        resp = np.exp(density - total[:, None])
    spread = X.std(axis=0)
    return float(total.sum()), min(np.linalg.eigvalsh(S / np.outer(spread, spread))[0] for S in covariances)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reference"), [("faithful", -1111.24796917933), ("galaxies", -765.688626843492)])
def test_ten_mixed_starts_reach_what_ten_kmeans_starts_miss(name, reference):
    # References: R mclust 6.0.0, model VVV / V with four components, EM continued to a tolerance of 1e-12.
    X = getattr(datasets, f"load_{name}")().to_numpy(dtype=float)
    if name == "galaxies":
        # In thousands of km/s the added 1e-6 is as small beside the variances as for the other set.
        X, reference = X / 1000, reference + len(X) * np.log(1000)

    def best(methods: list[str]) -> float:
        rng = np.random.default_rng(20)
        fits = [full_em(X, initial_labels(method, X, 4, None, rng), 4) for method in methods]
        return max(value for value, smallest in fits if smallest > 1e-3)

    # 0.02: what 600 iterations leave of a slow climb.
    assert best(mixed_starts("kmeans", 10, X.shape[1])) > reference - 0.02
    assert best(["kmeans"] * 10) < reference - 0.5


def test_bad_requests_are_named():
    X, rng = np.zeros((4, 1)), np.random.default_rng(21)
    with pytest.raises(ValueError, match="'random' is not a partition; the partitions are 'k-means"):
        initial_labels("random", X, 2, None, rng)
    with pytest.raises(ValueError, match="'k-mean' is not a method of seeding"):
        seeding.initial_assignment("k-mean", X, 2, None, rng)
    with pytest.raises(ValueError, match="sample_weight must be positive for at least one row"):
        initial_labels("kmeans", X, 2, np.zeros(4), rng)


def test_a_feature_far_from_zero_has_its_own_scale():
    """Rows a billion spreads from zero: what rounding leaves of them has a variance that does not suffer further."""
    rng = np.random.default_rng(2)
    rows = 1e9 + rng.standard_normal((50, 1))
    mean, factors = seeding._unit_scale(rows, np.ones(50))
    centred = rows - 1e9
    np.testing.assert_allclose(mean, 1e9 + centred.mean(axis=0), rtol=1e-15)
    # Against twenty digits: the squares of deviations of a spread about a value of theirs.
    np.testing.assert_allclose(factors, 1 / centred.std(axis=0), rtol=1e-12)


def test_scales_of_the_starts():
    rows = np.array([[0.0, -5.0, 7.0], [2.0, 15.0, 7.0], [1.0, 0.0, 7.0]])
    centre, factors = seeding._common_scale(rows)
    np.testing.assert_array_equal(centre, [1.0, 5.0, 7.0])
    # Half of the widest range, 10, is 1.
    np.testing.assert_array_equal(factors, [0.1, 0.1, 0.1])
    np.testing.assert_array_equal(seeding._common_scale(np.ones((2, 2)))[1], [1.0, 1.0])
    weight = np.array([1.0, 2.0, 3.0])
    mean, factors = seeding._unit_scale(rows, weight)
    np.testing.assert_allclose(mean, np.average(rows, axis=0, weights=weight), rtol=1e-14)
    spread = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weight))
    np.testing.assert_allclose(factors[:2], 1 / spread[:2], rtol=1e-14)
    assert factors[2] == 0.0
    for scale in (1e-200, 1e200):
        np.testing.assert_allclose(seeding._unit_scale(rows * scale, weight)[1][:2], factors[:2] / scale, rtol=1e-12)
        np.testing.assert_allclose(seeding._common_scale(rows * scale)[1], 0.1 / scale, rtol=1e-12)


def test_gaussians_of_groups_by_definition():
    rng = np.random.default_rng(22)
    Z, weight, group = rng.standard_normal((40, 2)) + 3, rng.uniform(0.5, 2, 40), np.arange(40) % 3
    means, factors, offsets = seeding._group_gaussians(Z, weight, group, 0.1)
    for g in range(3):
        rows, v = Z[group == g], weight[group == g]
        delta = rows - np.average(rows, axis=0, weights=v)
        covariance = (np.einsum("n,ni,nj->ij", v, delta, delta) + 4 * 0.1 * np.eye(2)) / (v.sum() + 4)
        np.testing.assert_allclose(means[g], np.average(rows, axis=0, weights=v), rtol=1e-12)
        np.testing.assert_allclose(factors[g] @ factors[g].T, np.linalg.inv(covariance), rtol=1e-10)
        assert offsets[g] == pytest.approx(np.linalg.slogdet(covariance)[1] - 2 * np.log(v.sum()), rel=1e-12)


def test_an_empty_group_gets_half_of_the_largest():
    rng = np.random.default_rng(23)
    labels = seeding._without_empty(np.repeat([0, 1], [9, 4]), 4, None, rng)
    # 9 are split into 5 and 4; of 5, 4 and 4 the largest into 3 and 2.
    np.testing.assert_array_equal(np.bincount(labels), [3, 4, 4, 2])
    # The only row of group 2 has no weight: it is as good as empty, and the row of no weight in the largest group is not moved.
    weight = np.array([1.0, 1, 1, 0, 1, 0])
    labels = seeding._without_empty(np.array([0, 0, 0, 0, 1, 2]), 3, weight, rng)
    np.testing.assert_array_equal(np.bincount(labels, weights=weight), [2, 1, 1])
    assert labels[3] == 0
    # Groups of one row cannot be split.
    np.testing.assert_array_equal(seeding._without_empty(np.array([0, 1]), 4, None, rng), [0, 1])
    np.testing.assert_array_equal(np.sort(seeding._without_empty(np.array([0, 0]), 2, None, rng)), [0, 1])


def test_quantiles_of_weights():
    X, weight = np.array([[3.0], [0.0], [1.0], [2.0]]), np.array([5.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(seeding._quantiles(X, 2, weight, np.random.default_rng(0)), [0, 0, 0, 0])
    weight = np.array([3.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(seeding._quantiles(X, 2, weight, np.random.default_rng(0)), [1, 0, 0, 0])


def test_rows_near_the_largest_number_are_centred_before_they_are_compared():
    X = 1.7e308 * (1 - np.array([[0.0], [1e-3], [0.5], [0.5001]]))
    chosen = seeding._plus_plus_rows(X, 2, None, np.random.default_rng(0))
    assert set((chosen // 2).tolist()) == {0, 1}


class Given:
    """In place of a generator: hands out the numbers that it was given."""

    def __init__(self, uniforms):
        self.uniforms = np.asarray(uniforms, dtype=float)

    def random(self, size):
        assert size == len(self.uniforms)
        return self.uniforms


def test_rows_to_learn_from_are_drawn_by_weight():
    X, rng = np.arange(60.0)[:, None], np.random.default_rng(24)
    weight = np.where(np.arange(60) % 3 == 0, 0.0, 1.0 + np.arange(60) % 2) * 1e300
    counts = np.zeros(60)
    for _ in range(500):
        index, kept = seeding._sample(X, 30, weight, rng)
        np.testing.assert_array_equal(kept, np.ones(30))
        counts += np.bincount(index, minlength=60)
    # Poisson standard deviation of a count is at most 24 about 500; 4.5 of them.
    np.testing.assert_allclose(counts, 15_000 * (weight / 1e300) / np.sum(weight / 1e300), atol=4.5 * 24)
    # The ends of [0, 1): the first row that counts, and the last.
    index, _ = seeding._sample(X, 3, weight, Given([0.0, 0.5, np.nextafter(1, 0)]))
    assert (index[0], index[2]) == (1, 59)
    # By hand: weights 2, 1, 1 of which half is reached at the end of the first.
    index, _ = seeding._sample(X[:3], 2, np.array([2.0, 1.0, 1.0]), Given([0.49, 0.51]))
    np.testing.assert_array_equal(index, [0, 1])


def test_few_rows_are_all_learnt_from():
    X, rng = np.arange(6.0)[:, None], np.random.default_rng(25)
    index, kept = seeding._sample(X, 6, None, rng)
    np.testing.assert_array_equal(index, np.arange(6))
    np.testing.assert_array_equal(kept, np.ones(6))
    index, kept = seeding._sample(X, 4, np.array([1.0, 0, 3, 0, 4, 0]), rng)
    np.testing.assert_array_equal(index, [0, 2, 4])
    np.testing.assert_allclose(kept, np.array([1, 3, 4]) * 3 / 8, rtol=1e-15)
    index, kept = seeding._sample(X, 5, None, rng)
    assert len(set(index.tolist())) == 5
    np.testing.assert_array_equal(kept, np.ones(5))


def test_rows_are_repeated_only_where_there_are_too_few():
    rng = np.random.default_rng(26)
    weight = np.array([0.0, 1e308, 1e308, 1e308, 0.0])
    for _ in range(20):
        assert sorted(seeding._choose(5, 5, None, rng).tolist()) == [0, 1, 2, 3, 4]
        assert sorted(seeding._choose(5, 3, weight, rng).tolist()) == [1, 2, 3]
        assert set(seeding._choose(5, 4, weight, rng).tolist()) <= {1, 2, 3}
        assert len(seeding._choose(5, 7, None, rng)) == 7


def test_candidates_of_kmeans_plus_plus_are_as_many_as_scikit_learns():
    for K, candidates in ((1, 2), (2, 2), (3, 3), (8, 4), (21, 5)):
        assert seeding._plus_plus_uniforms(K, np.random.default_rng(0)).shape == (K, candidates)
