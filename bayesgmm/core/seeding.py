"""Where EM begins: partitions of the rows, and the mix of them that several starts use.

Every method is weight-aware (frequency weights; a row of weight 0 is never chosen and never counted) and learns from a random
sample of the rows where there are many: at most ``KMEANS_ROWS`` (20,000) for k-means, k-means++ and quantiles, ``TREE_ROWS`` (500)
for the hierarchical ones. All rows are assigned at the end. Nearly all methods give labels (N,), so that a start costs N numbers
and not N × K.

``kmeans``, ``k-means++``, ``random`` and ``random_from_data`` mean what they mean in scikit-learn. Beside them, for the further starts:

- ``hierarchical``: agglomeration that merges, at each step, the two groups that cost least under Σ_k (n_k + 1) log |(W_k + S) / (n_k + 1)|,
  W_k the scatter of group k: the classification likelihood of Gaussians with free covariances (Banfield & Raftery 1993; Fraley 1998), on
  principal components divided by the root of their standard deviations (the SVD scaling of Scrucca & Raftery 2015), with
  S = K^(−2/D) s² I, s² their mean variance, making it finite for single rows;
- ``ward``: the same with Σ_k tr W_k;
- ``quantiles``: groups of equal weight in the order of the only feature;
- ``kmeans-rescaled``: k-means on features of unit variance times random factors, which differ from start to start;
- ``patchwork``: many small cells, their labels drawn at random: components that begin nearly alike and let the likelihood part them.

References
----------
Arthur, D. & Vassilvitskii, S. (2007). k-means++: the advantages of careful seeding. SODA.
Banfield, J. D. & Raftery, A. E. (1993). Model-based Gaussian and non-Gaussian clustering. Biometrics 49, 803–821.
Fraley, C. (1998). Algorithms for model-based Gaussian hierarchical clustering. SIAM J. Sci. Comput. 20, 270–281.
Scrucca, L. & Raftery, A. E. (2015). Improved initialisation of model-based clustering using Gaussian hierarchical partitions.
Advances in Data Analysis and Classification 9, 447–460.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, cycle, islice

import numpy as np
from numpy.typing import NDArray

from bayesgmm.core.clustering import agglomerate, lloyd, most_probable, nearest_centre, plus_plus
from bayesgmm.core.parameters import FloatArray

LabelArray = NDArray[np.int32]

SEEDING_METHODS = ("kmeans", "k-means++", "random", "random_from_data")
"""scikit-learn's methods."""

MIXED_METHODS = ("hierarchical", "ward", "quantiles", "kmeans-rescaled", "patchwork")
"""Further methods, for the mix of starts."""

KMEANS_ROWS = 20_000
TREE_ROWS = 500
TREE_FEATURES = 10
"""The hierarchical methods look at this many leading principal components: their cost grows with the cube."""

LLOYD_ITERATIONS = 100
RESCALING = 0.5
"""Standard deviation of the logarithm of a feature's random factor in ``kmeans-rescaled``."""

PATCHWORK_CELLS = 100
PATCHWORK_CELLS_PER_COMPONENT = 5


def initial_responsibilities(
    method: str, X: FloatArray, n_components: int, sample_weight: FloatArray | None, rng: np.random.Generator
) -> FloatArray:
    """Responsibilities of a start, exactly in scikit-learn's meaning of the method.

    For ``k-means++`` and ``random_from_data`` scikit-learn gives K chosen rows to the K components, one each, and no other row to
    any: the responsibilities of all other rows are 0. For every other method each row's sum to 1.

    Parameters
    ----------
    method : str
        One of ``SEEDING_METHODS`` or ``MIXED_METHODS``.
    X : ndarray of shape (N, D)
        Finite.
    n_components : int
        K.
    sample_weight : ndarray of shape (N,) or None
        Frequency weights; None is 1 for every row.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (N, K)

    Raises
    ------
    ValueError
        If the method is unknown, ``quantiles`` is asked of more than one feature, or no row has a positive weight.
    """
    if method == "random":
        responsibilities = rng.random((len(X), n_components))
        # A row of zeros has probability 2⁻⁵³ᴷ; the tiny number keeps it from becoming NaN.
        responsibilities += np.finfo(float).tiny
        responsibilities /= responsibilities.sum(axis=1, keepdims=True)
        return responsibilities
    responsibilities = np.zeros((len(X), n_components))
    if method in _CHOSEN_ROWS:
        X, weight = _checked(X, sample_weight)
        responsibilities[_CHOSEN_ROWS[method](X, n_components, weight, rng), np.arange(n_components)] = 1.0
        return responsibilities
    labels = initial_labels(method, X, n_components, sample_weight, rng)
    responsibilities[np.arange(len(X)), labels] = 1.0
    return responsibilities


def initial_labels(
    method: str, X: FloatArray, n_components: int, sample_weight: FloatArray | None, rng: np.random.Generator
) -> LabelArray:
    """Group of every row at a start.

    For ``k-means++`` and ``random_from_data`` the rows go to the nearest of the K chosen rows: what scikit-learn's first E-step makes
    of its start, whose covariances are ``reg_covar`` alone, and well defined without one. Every group has a row where at least K
    rows have a positive weight, also when there are fewer distinct rows than K: then equal rows are split at random.

    Parameters
    ----------
    method : str
        Any method but ``random``, which is not a partition.
    X : ndarray of shape (N, D)
        Finite.
    n_components : int
        K.
    sample_weight : ndarray of shape (N,) or None
        Frequency weights; None is 1 for every row.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (N,), int32
        Labels 0 … K − 1.

    Raises
    ------
    ValueError
        As for :func:`initial_responsibilities`, and for ``random``.
    """
    if method not in _CHOSEN_ROWS and method not in _PARTITIONS:
        known = "is not a partition" if method == "random" else "is not a method of seeding"
        allowed = ", ".join(map(repr, (*_CHOSEN_ROWS, *_PARTITIONS)))
        raise ValueError(f"{method!r} {known}; the partitions are {allowed}")
    X, weight = _checked(X, sample_weight)
    if method in _CHOSEN_ROWS:
        chosen = _CHOSEN_ROWS[method](X, n_components, weight, rng)
        rows = _rows(X, chosen)
        centre, scale = _common_scale(rows)
        labels = nearest_centre(X, centre, scale, (rows - centre) * scale)
    else:
        labels = _PARTITIONS[method](X, n_components, weight, rng)
    return _without_empty(labels, n_components, weight, rng)


def initial_assignment(
    method: str, X: FloatArray, n_components: int, sample_weight: FloatArray | None, rng: np.random.Generator
) -> FloatArray | LabelArray:
    """What EM starts from: labels (N,) where the method is a partition, responsibilities (N, K) for ``random``.

    Parameters and errors are those of :func:`initial_labels` and :func:`initial_responsibilities`.
    """
    if method == "random":
        return initial_responsibilities(method, X, n_components, sample_weight, rng)
    return initial_labels(method, X, n_components, sample_weight, rng)


def mixed_starts(first_method: str, n_init: int, n_features: int) -> list[str]:
    """Methods of several starts: the asked one first, then a mix that finds optima which no single method finds.

    Parameters
    ----------
    first_method : str
        Method of the first start.
    n_init : int
        Number of starts.
    n_features : int
        D; with one feature ``quantiles`` is among the starts.

    Returns
    -------
    list of str
    """
    once, again = (_ONCE_1D, _AGAIN_1D) if n_features == 1 else (_ONCE, _AGAIN)
    others = [method for method in once if method != first_method]
    return list(islice(chain([first_method], others, cycle(again)), n_init))


_ONCE = ["kmeans", "hierarchical"]
_AGAIN = ["patchwork", "kmeans-rescaled", "k-means++", "patchwork", "kmeans-rescaled"]
_ONCE_1D = ["kmeans", "quantiles", "hierarchical", "ward"]
_AGAIN_1D = ["patchwork", "k-means++"]


def _checked(X: FloatArray, sample_weight: FloatArray | None) -> tuple[FloatArray, FloatArray | None]:
    X = np.ascontiguousarray(X, dtype=np.float32 if X.dtype == np.float32 else np.float64)
    if sample_weight is not None and not np.any(sample_weight > 0):
        raise ValueError("sample_weight must be positive for at least one row")
    return X, sample_weight


def _choose(n_rows: int, size: int, weight: FloatArray | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of ``size`` rows, without repetition as far as there are rows, with probability proportional to weight."""
    if weight is None:
        return rng.choice(n_rows, size=size, replace=size > n_rows, shuffle=size < n_rows)
    available = int(np.count_nonzero(weight > 0))
    # Two divisions: the sum of weights near the largest number would overflow.
    probability = weight / weight.max()
    return rng.choice(n_rows, size=size, replace=size > available, p=probability / probability.sum())


def _sample(
    X: FloatArray, size: int, weight: FloatArray | None, rng: np.random.Generator
) -> tuple[NDArray[np.int64], FloatArray]:
    """Indices of rows to learn from, and their weights of mean 1: all that count if they are few, else a sample by weight."""
    counted = np.arange(len(X)) if weight is None else np.flatnonzero(weight > 0)
    if len(counted) > size:
        # Drawn in proportion to weight, so all are alike from here on; repetition is rare where rows are many.
        if weight is None:
            return _choose(len(X), size, None, rng), np.ones(size)
        reached = np.cumsum(weight[counted] / weight.max())
        drawn = np.searchsorted(reached, rng.random(size) * reached[-1], side="right")
        return counted[np.minimum(drawn, len(counted) - 1)], np.ones(size)
    if weight is None:
        return counted, np.ones(len(X))
    kept = weight[counted] / weight.max()
    return counted, kept / kept.mean()


def _rows(X: FloatArray, index: NDArray[np.int64]) -> FloatArray:
    """Some rows in float64."""
    return X[index].astype(np.float64, copy=False)


def _common_scale(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Centre (D,) and one factor for all features (D,), which leave distances' order alone and their squares finite."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    centre = low / 2 + high / 2
    spread = float(np.max(high / 2 - low / 2))
    return centre, np.full(rows.shape[1], 1 / spread if spread > 1e-300 else 1.0)


def _unit_scale(rows: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted mean (D,) and factors (D,) that make every feature's variance 1; a constant feature's is 0."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    middle, half = low / 2 + high / 2, high / 2 - low / 2
    varies = half > 1e-300
    half = np.where(varies, half, 1.0)
    # Deviations in units of half the range: their squares neither overflow nor vanish.
    scaled = (rows - middle) / half
    mean = np.average(scaled, axis=0, weights=weight)
    deviation = np.sqrt(np.average((scaled - mean) ** 2, axis=0, weights=weight))
    varies &= deviation > 0
    return middle + mean * half, np.where(varies, 1 / (half * np.where(varies, deviation, 1.0)), 0.0)


def _plus_plus_rows(
    X: FloatArray, n_components: int, weight: FloatArray | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Indices of K rows chosen by greedy k-means++ among at most ``KMEANS_ROWS``."""
    index, kept = _sample(X, KMEANS_ROWS, weight, rng)
    rows = _rows(X, index)
    centre, scale = _common_scale(rows)
    return index[plus_plus((rows - centre) * scale, kept, _plus_plus_uniforms(n_components, rng))]


def _plus_plus_uniforms(n_components: int, rng: np.random.Generator) -> FloatArray:
    # As many candidates a step as scikit-learn.
    return rng.random((n_components, 2 + int(math.log(n_components))))


def _kmeans(X: FloatArray, n_components: int, weight: FloatArray | None, rng: np.random.Generator) -> LabelArray:
    index, kept = _sample(X, KMEANS_ROWS, weight, rng)
    rows = _rows(X, index)
    return _scaled_kmeans(X, rows, kept, n_components, rng, *_common_scale(rows))


def _kmeans_rescaled(
    X: FloatArray, n_components: int, weight: FloatArray | None, rng: np.random.Generator
) -> LabelArray:
    index, kept = _sample(X, KMEANS_ROWS, weight, rng)
    rows = _rows(X, index)
    centre, scale = _unit_scale(rows, kept)
    scale = scale * np.exp(RESCALING * rng.standard_normal(X.shape[1]))
    return _scaled_kmeans(X, rows, kept, n_components, rng, centre, scale)


def _scaled_kmeans(
    X: FloatArray,
    rows: FloatArray,
    weight: FloatArray,
    n_components: int,
    rng: np.random.Generator,
    centre: FloatArray,
    scale: FloatArray,
) -> LabelArray:
    """Groups of all rows of X by k-means on ``rows``, in the coordinates (x − centre) * scale."""
    Z = (rows - centre) * scale
    centres = Z[plus_plus(Z, weight, _plus_plus_uniforms(n_components, rng))]
    lloyd(Z, weight, centres, LLOYD_ITERATIONS)
    return nearest_centre(X, centre, scale, centres)


def _patchwork(X: FloatArray, K: int, weight: FloatArray | None, rng: np.random.Generator) -> LabelArray:
    index, kept = _sample(X, KMEANS_ROWS, weight, rng)
    rows = _rows(X, index)
    centre, scale = _unit_scale(rows, kept)
    n_cells = min(max(PATCHWORK_CELLS, PATCHWORK_CELLS_PER_COMPONENT * K), len(rows))
    cells = (rows[_choose(len(rows), n_cells, kept, rng)] - centre) * scale
    names = rng.permutation(np.arange(n_cells, dtype=np.int32) % K)
    return names[nearest_centre(X, centre, scale, cells)]


def _quantiles(X: FloatArray, K: int, weight: FloatArray | None, rng: np.random.Generator) -> LabelArray:
    if X.shape[1] != 1:
        raise ValueError(f"'quantiles' orders the rows by a single feature; X has {X.shape[1]}")
    index, kept = _sample(X, KMEANS_ROWS, weight, rng)
    rows = _rows(X, index)
    order = np.argsort(rows[:, 0], kind="stable")
    reached = np.cumsum(kept[order])
    cuts = rows[order, 0][np.searchsorted(reached, reached[-1] * np.arange(1, K) / K)]
    return np.searchsorted(cuts, X[:, 0], side="left").astype(np.int32)


def _hierarchical(X: FloatArray, K: int, weight: FloatArray | None, rng: np.random.Generator) -> LabelArray:
    return _tree(X, K, weight, rng)


def _ward(X: FloatArray, K: int, weight: FloatArray | None, rng: np.random.Generator) -> LabelArray:
    return _tree(X, K, weight, rng, determinant=False)


def _tree(
    X: FloatArray, K: int, weight: FloatArray | None, rng: np.random.Generator, *, determinant: bool = True
) -> LabelArray:
    """Groups by agglomeration of distinct rows; all rows then go to the most probable of the groups' Gaussians."""
    index, kept = _sample(X, TREE_ROWS, weight, rng)
    distinct, inverse = np.unique(_rows(X, index), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    kept = np.bincount(inverse, weights=kept)
    kept /= kept.mean()
    centre, scale = _unit_scale(distinct, kept)
    Z = (distinct - centre) * scale
    covariance = (Z * kept[:, None]).T @ Z / kept.sum()
    variances, axes = np.linalg.eigh(covariance)
    used = [j for j in range(len(variances) - 1, -1, -1) if variances[j] > 1e-10][:TREE_FEATURES]
    if not used:
        return np.zeros(len(X), dtype=np.int32)
    # Unit variances would hide groups that lie apart along a principal axis; the square root of the deviation is between.
    axes = axes[:, used] / variances[used] ** 0.25
    Z = Z @ axes
    floor = K ** (-2.0 / len(used)) * float(np.mean(np.sqrt(variances[used])))
    group = agglomerate(Z, kept, K, determinant, floor)
    if len(index) == len(X):
        return group[inverse].astype(np.int32)
    labels = most_probable(X, centre, scale, axes, *_group_gaussians(Z, kept, group, floor))
    labels[index] = group[inverse]
    return labels


def _group_gaussians(
    Z: FloatArray, weight: FloatArray, group: NDArray[np.int64], floor: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Means (G, R), precision factors (G, R, R) and −2 log of the normalising constants (G,) of groups of rows."""
    D = Z.shape[1]
    n_groups = int(group.max()) + 1
    centres, factors, offsets = np.empty((n_groups, D)), np.empty((n_groups, D, D)), np.empty(n_groups)
    for g in range(n_groups):
        member = group == g
        n = weight[member].sum()
        centres[g] = np.average(Z[member], axis=0, weights=weight[member])
        delta = Z[member] - centres[g]
        scatter = (delta * weight[member, None]).T @ delta
        lower = np.linalg.cholesky((scatter + (D + 2) * floor * np.eye(D)) / (n + D + 2))
        factors[g] = np.linalg.inv(lower).T
        offsets[g] = 2 * np.sum(np.log(np.diagonal(lower))) - 2 * np.log(n)
    return centres, factors, offsets


def _without_empty(
    labels: LabelArray, n_components: int, weight: FloatArray | None, rng: np.random.Generator
) -> LabelArray:
    """Labels in which every group has a row that counts, as far as there are such rows: the largest groups are split."""
    counted = labels if weight is None else labels[weight > 0]
    counts = np.bincount(counted, minlength=n_components)
    for empty in np.flatnonzero(counts == 0):
        largest = int(np.argmax(counts))
        if counts[largest] < 2:
            break
        member = np.flatnonzero(labels == largest if weight is None else (labels == largest) & (weight > 0))
        moved = rng.permutation(member)[: len(member) // 2]
        labels[moved] = empty
        counts[largest], counts[empty] = len(member) - len(moved), len(moved)
    return labels


_CHOSEN_ROWS: dict[str, Callable[..., NDArray[np.int64]]] = {
    "k-means++": _plus_plus_rows,
    "random_from_data": lambda X, K, weight, rng: _choose(len(X), K, weight, rng),
}
_PARTITIONS: dict[str, Callable[..., LabelArray]] = {
    "kmeans": _kmeans,
    "hierarchical": _hierarchical,
    "ward": _ward,
    "quantiles": _quantiles,
    "kmeans-rescaled": _kmeans_rescaled,
    "patchwork": _patchwork,
}
