"""Label switching: put the components of every posterior draw in the order of a reference mixture.

A mixture's likelihood does not change when its components are renumbered, so draws may come with their components in any
order, and averages over them mean nothing until the order is made common (Stephens 2000). Each draw is put in the order that
is closest to a reference (the pivotal reordering of Marin, Mengersen & Robert 2005, section 4.3), as an assignment problem:
never a search over the K! orders, and never an array of draws × observations × components.

The distance is the symmetrised Kullback–Leibler divergence between the completed-data distributions p(z, x) of the draw,
renumbered, and of the reference. It splits into a cost for each pair of a draw's component j and a reference component k,

    C_jk = (π_j − π*_k) log(π_j / π*_k) + π_j KL(N_j ‖ N*_k) + π*_k KL(N*_k ‖ N_j).

Near the reference, N · C is the quadratic form of the complete-data Fisher information: weights, means and covariances are
weighed against each other as the data would if the labels were known, so that no scale has to be chosen, and affine changes
of the features change nothing. Components that hold few rows weigh little. Stephens (2000) minimises such a divergence between
the rows' classification probabilities, which needs every row for every draw.

References
----------
Marin, J.-M., Mengersen, K. & Robert, C. P. (2005). Bayesian modelling and inference on mixtures of distributions.
Handbook of Statistics 25, 459–507.
Moakher, M. & Batchelor, P. G. (2006). Symmetric positive-definite matrices: from geometry to applications and
visualization. In Visualization and Processing of Tensor Fields, 285–298.
Stephens, M. (2000). Dealing with label switching in mixture models. Journal of the Royal Statistical Society B 62, 795–809.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment

from bayesgmm.core.covariance import STRUCTURES, structure
from bayesgmm.core.parameters import FloatArray

BLOCK_ELEMENTS = 1_000_000
"""Size of the largest temporary array (draws of a block × K² × D); 8 MB."""

EMPTY_WEIGHT = 1e-8
"""Weights count as no smaller: a component without rows would otherwise be placed by the logarithm of its weight alone."""

PIVOT_CANDIDATES = 8
PIVOT_DRAWS = 250
MAX_PIVOT_ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class _Draws:
    """Checked draws in the form the costs need.

    Parameters
    ----------
    weights : ndarray of shape (S, K)
        No smaller than ``EMPTY_WEIGHT``.
    means : ndarray of shape (S, K, D)
    covariances, precisions : ndarray of shape (S, K, D, D)
    log_determinants : ndarray of shape (S, K)
        Of the covariances.
    """

    weights: FloatArray
    means: FloatArray
    covariances: FloatArray
    precisions: FloatArray
    log_determinants: FloatArray

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: Any) -> _Draws:
        return _Draws(
            self.weights[index],
            self.means[index],
            self.covariances[index],
            self.precisions[index],
            self.log_determinants[index],
        )


def relabel(
    weights: FloatArray,
    means: FloatArray,
    covariances: FloatArray,
    reference: Any = None,
    *,
    covariance_type: str | None = None,
) -> np.ndarray:
    """Permutations that put every draw's components in the order of a reference.

    The cost of a pair of components is the symmetrised Kullback–Leibler divergence of the completed-data distributions (see
    the module). A draw for which the nearest components already form a permutation needs no solver; the others are solved
    exactly by ``scipy.optimize.linear_sum_assignment``.

    Parameters
    ----------
    weights : ndarray of shape (S, K)
        Mixing proportions of S draws.
    means : ndarray of shape (S, K, D)
    covariances : ndarray
        Matrices (S, K, D, D), or packed as in scikit-learn: tied (S, D, D), diag (S, K, D), spherical (S, K).
    reference : tuple (weights (K,), means (K, D), covariances) or object, optional
        The mixture whose order is taken: a tuple, or an object that has ``weights``, ``means`` and ``covariances`` (with or
        without scikit-learn's trailing underscore); its covariances as matrices (K, D, D) or packed. The default is a pivot
        found from the draws: the most central of a few draws, then again and again the divergence's centre of the relabelled
        draws until no permutation changes. The pivot's own order is that of the draw it began from.
    covariance_type : {"full", "tied", "diag", "spherical"}, optional
        Needed only where the shape does not tell: arrays (S, K, K), which may be tied or diag with K = D.

    Returns
    -------
    ndarray of shape (S, K), int64
        ``means[s, permutations[s]]`` is in the reference's order.

    Raises
    ------
    ValueError
        If a shape does not fit the others, a value is NaN or infinite, a weight is negative, a covariance is not positive definite,
        or the structure of the covariances is ambiguous.

    Examples
    --------
    >>> weights = np.array([[0.3, 0.7], [0.7, 0.3]])
    >>> means = np.array([[[0.0], [5.0]], [[5.1], [0.1]]])
    >>> permutations = relabel(weights, means, np.ones((2, 2, 1, 1)), (weights[0], means[0], np.ones((2, 1, 1))))
    >>> permutations.tolist()
    [[0, 1], [1, 0]]
    >>> np.take_along_axis(means, permutations[:, :, None], axis=1)[:, :, 0].tolist()
    [[0.0, 5.0], [0.1, 5.1]]
    """
    draws = _checked(weights, means, covariances, covariance_type, "")
    if reference is None:
        return _pivotal(draws)
    parts = [np.asarray(part)[None] for part in _reference_parts(reference)]
    if parts[0].shape[1:] != draws.weights.shape[1:] or parts[1].shape[1:] != draws.means.shape[1:]:
        raise ValueError(
            f"reference has weights of shape {parts[0].shape[1:]} and means of shape {parts[1].shape[1:]}; the draws need "
            f"{draws.weights.shape[1:]} and {draws.means.shape[1:]}"
        )
    matrices = draws.covariances.shape[1:]
    kind = "full" if parts[2].shape[1:] == matrices else covariance_type
    target = _checked(parts[0], parts[1], parts[2], kind, "reference ")
    return _assign(draws, target)[0]


def relabel_within(
    blocks: Sequence[slice],
    weights: FloatArray,
    means: FloatArray,
    covariances: FloatArray,
    reference: tuple[FloatArray, FloatArray, FloatArray],
) -> np.ndarray:
    """As :func:`relabel`, but with permutations within blocks of components alone: components of a class remain its own.

    Parameters
    ----------
    blocks : sequence of slice
        Contiguous, of all components.
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    covariances : ndarray of shape (S, K, D, D)
    reference : tuple (weights (K,), means (K, D), covariances (K, D, D))

    Returns
    -------
    ndarray of shape (S, K), int64
    """
    return nearest_reference(blocks, weights, means, covariances, [reference])[1]


def nearest_reference(
    blocks: Sequence[slice],
    weights: FloatArray,
    means: FloatArray,
    covariances: FloatArray,
    references: Sequence[tuple[FloatArray, FloatArray, FloatArray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Which of several mixtures each draw is closest to, and the order of its components that is closest to that one.

    Parameters
    ----------
    blocks : sequence of slice
        Components that may change places, contiguous, all in all.
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    covariances : ndarray of shape (S, K, D, D)
    references : sequence of tuple (weights (K,), means (K, D), covariances (K, D, D))

    Returns
    -------
    nearest : ndarray of shape (S,), int64
    permutations : ndarray of shape (S, K), int64
        Within the blocks.
    """
    draws = _checked(weights, means, covariances, "full", "")
    lowest = np.full(len(draws), np.inf)
    nearest, permutations = np.zeros(len(draws), dtype=np.int64), np.empty(draws.weights.shape, dtype=np.int64)
    for m, reference in enumerate(references):
        weight, mean, covariance = (np.asarray(part)[None] for part in reference)
        target = _checked(weight, mean, covariance, "full", "reference ")
        found = [_assign(draws[:, block], target[:, block]) for block in blocks]
        cost = np.sum([costs for _, costs in found], axis=0)
        closer = cost < lowest
        orders = np.concatenate([block.start + order for block, (order, _) in zip(blocks, found, strict=True)], axis=1)
        nearest[closer], permutations[closer], lowest[closer] = m, orders[closer], cost[closer]
    return nearest, permutations


def permuted_share(permutations: np.ndarray) -> float:
    """Share of draws whose components had to be reordered, between 0 and 1.

    Parameters
    ----------
    permutations : ndarray of shape (S, K)
        As returned by :func:`relabel`. Against a pivot rather than a given reference the share says how often draws differ in
        order from the draw that the pivot began from.
    """
    permutations = np.asarray(permutations)
    if permutations.ndim != 2 or len(permutations) == 0:
        raise ValueError(f"permutations must have shape (draws, components); got {permutations.shape}")
    return float(np.mean(np.any(permutations != np.arange(permutations.shape[1]), axis=1)))


def switching_share(permutations: np.ndarray) -> float:
    """Share of draws whose components stand in another order than in their chain's draw before, between 0 and 1.

    Parameters
    ----------
    permutations : ndarray of shape (chains, draws, K)
        As returned by :func:`relabel`, chain by chain. One draw a chain has no draw before it: 0.
    """
    if permutations.shape[1] < 2:
        return 0.0
    return float(np.mean(np.any(permutations[:, 1:] != permutations[:, :-1], axis=2)))


def component_costs(draws: _Draws, target: _Draws) -> FloatArray:
    """Cost of every pair of components, C[s, k, j]: reference component k, component j of draw s.

    Parameters
    ----------
    draws : _Draws
        S draws.
    target : _Draws
        One mixture, the reference.

    Returns
    -------
    ndarray of shape (S, K, K)
    """
    (S, K), D = draws.weights.shape, draws.means.shape[2]
    weight, to_weight = draws.weights[:, None, :], target.weights[0][None, :, None]
    delta = draws.means[:, None, :, :] - target.means[0][None, :, None, :]
    sigma, precision = draws.covariances.reshape(S, K, D * D), draws.precisions.reshape(S, K, D * D)
    # tr(Λ*_k Σ_j) and tr(Λ_j Σ*_k): traces of products of symmetric matrices are dot products of their entries.
    trace_forward = np.swapaxes(sigma @ target.precisions[0].reshape(K, D * D).T, 1, 2)
    trace_backward = np.swapaxes(precision @ target.covariances[0].reshape(K, D * D).T, 1, 2)
    distance_forward = np.sum((delta @ target.precisions[0][None]) * delta, axis=-1)
    turned = np.swapaxes(delta, 1, 2)
    distance_backward = np.swapaxes(np.sum((turned @ draws.precisions) * turned, axis=-1), 1, 2)
    log_ratio = target.log_determinants[0][None, :, None] - draws.log_determinants[:, None, :]
    forward = 0.5 * (trace_forward + distance_forward - D + log_ratio)
    backward = 0.5 * (trace_backward + distance_backward - D - log_ratio)
    return (weight - to_weight) * np.log(weight / to_weight) + weight * forward + to_weight * backward


def _assign(draws: _Draws, target: _Draws) -> tuple[np.ndarray, FloatArray]:
    """Best permutations (S, K) of the draws against one mixture, and their costs (S,)."""
    S, K = draws.weights.shape
    permutations = np.empty((S, K), dtype=np.int64)
    costs = np.empty(S)
    for block in _blocks(draws):
        cost = component_costs(draws[block], target)
        permutations[block] = best = least_cost_orders(cost)
        costs[block] = np.take_along_axis(cost, best[:, :, None], axis=2).sum(axis=(1, 2))
    return permutations, costs


def least_cost_orders(cost: FloatArray) -> np.ndarray:
    """For each draw the order with the smallest sum of costs.

    Parameters
    ----------
    cost : ndarray of shape (S, K, K)
        Of component j in place k at [s, k, j].

    Returns
    -------
    ndarray of shape (S, K), int64
        The component in each place.
    """
    best = np.argmin(cost, axis=2)
    clashes = np.any(np.sort(best, axis=1) != np.arange(cost.shape[1]), axis=1)
    for s in np.flatnonzero(clashes):
        best[s] = linear_sum_assignment(cost[s])[1]
    return best


def _blocks(draws: _Draws) -> Iterator[slice]:
    S, K, D = draws.means.shape
    rows = max(1, BLOCK_ELEMENTS // (K * K * D))
    return (slice(begin, min(begin + rows, S)) for begin in range(0, S, rows))


def _pivotal(draws: _Draws) -> np.ndarray:
    """Permutations against a pivot that the draws determine themselves."""
    S = len(draws)
    some = draws[np.unique(np.linspace(0, S - 1, min(S, PIVOT_DRAWS)).astype(int))]
    candidates = np.unique(np.linspace(0, S - 1, min(S, PIVOT_CANDIDATES)).astype(int))
    # Medians: a candidate is central if it is close to most draws, whatever a few wild ones cost.
    spread = [np.median(_assign(some, draws[s : s + 1])[1]) for s in candidates]
    begin = int(candidates[int(np.argmin(spread))])
    permutations, _ = _assign(draws, draws[begin : begin + 1])
    for _ in range(MAX_PIVOT_ITERATIONS):
        updated, _ = _assign(draws, _centre(draws, permutations))
        if np.array_equal(updated, permutations):
            break
        permutations = updated
    return permutations


def _centre(draws: _Draws, permutations: np.ndarray) -> _Draws:
    """Centre of relabelled draws, one mixture.

    Covariances: for given weights and means the symmetrised divergence is smallest at the geometric mean of the arithmetic and
    the harmonic mean (Moakher & Batchelor 2006), which neither very wide nor very narrow draws carry away.
    """
    rows = np.arange(len(draws))[:, None]
    weights = draws.weights[rows, permutations]
    share = weights / weights.sum(axis=0)
    means = np.einsum("sk,skd->kd", share, draws.means[rows, permutations])
    arithmetic = np.einsum("sk,skde->kde", share, draws.covariances[rows, permutations])
    precision = np.mean(draws.precisions[rows, permutations], axis=0)
    covariances = np.stack([_geometric_mean(a, np.linalg.inv(p)) for a, p in zip(arithmetic, precision)])
    return _prepared(weights.mean(axis=0)[None], means[None], covariances[None], "reference ")


def _geometric_mean(a: FloatArray, b: FloatArray) -> FloatArray:
    """Geometric mean A # B of two positive definite matrices (D, D)."""
    values, vectors = eigh((b + b.T) / 2, (a + a.T) / 2)
    back = np.linalg.inv(vectors)
    return (back.T * np.sqrt(values)) @ back


def _reference_parts(reference: Any) -> tuple[Any, Any, Any]:
    """Weights, means and covariances of a reference given as a tuple or an object."""
    if isinstance(reference, tuple):
        if len(reference) != 3:
            raise ValueError(f"reference must be (weights, means, covariances); got {len(reference)} parts")
        return reference
    found = []
    for name in ("weights", "means", "covariances"):
        value = getattr(reference, name, None)
        value = getattr(reference, name + "_", None) if value is None else value
        if value is None:
            raise ValueError(
                f"reference has no {name!r}: give a tuple (weights, means, covariances) or a fitted mixture"
            )
        found.append(value)
    return found[0], found[1], found[2]


def _checked(weights: Any, means: Any, covariances: Any, covariance_type: str | None, whose: str) -> _Draws:
    """Draws with their shapes and values checked, covariances as matrices."""
    arrays = {"weights": weights, "means": means, "covariances": covariances}
    for name, value in arrays.items():
        arrays[name] = value = np.asarray(value, dtype=np.float64)
        if not np.all(np.isfinite(value)):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
            raise ValueError(f"{whose}{name} must be finite; the value at index {where} is {value[where]}")
    weights, means, covariances = arrays["weights"], arrays["means"], arrays["covariances"]
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(f"{whose}weights must have shape (draws, components); got {weights.shape}")
    if means.ndim != 3 or means.shape[:2] != weights.shape or means.shape[2] == 0:
        raise ValueError(
            f"{whose}means must have shape ({weights.shape[0]}, {weights.shape[1]}, features) to go with the weights; got {means.shape}"
        )
    if np.any(weights < 0):
        raise ValueError(f"{whose}weights must not be negative; the smallest is {weights.min():g}")
    K, D = means.shape[1:]
    kind = _structure_name(covariances.shape, K, D, len(weights), covariance_type, whose)
    return _prepared(weights, means, structure(kind).expand(covariances, K, D), whose)


def _structure_name(shape: tuple[int, ...], K: int, D: int, S: int, covariance_type: str | None, whose: str) -> str:
    """Name of the structure whose packed shape this is."""
    if covariance_type is not None:
        expected = (S, *structure(covariance_type).shape(K, D))
        if shape != expected:
            raise ValueError(f"{whose}covariances ({covariance_type}) must have shape {expected}; got {shape}")
        return covariance_type
    fitting = [name for name, kind in STRUCTURES.items() if shape == (S, *kind.shape(K, D))]
    if not fitting:
        allowed = ", ".join(f"{(S, *kind.shape(K, D))} ({name})" for name, kind in STRUCTURES.items())
        raise ValueError(f"{whose}covariances must have one of the shapes {allowed}; got {shape}")
    if len(fitting) > 1 and D > 1:
        raise ValueError(
            f"{whose}covariances of shape {shape} may be {' or '.join(fitting)}: say which by covariance_type"
        )
    return fitting[0]


def _prepared(weights: FloatArray, means: FloatArray, covariances: FloatArray, whose: str) -> _Draws:
    """Draws with precisions and log determinants.

    Raises
    ------
    ValueError
        If a covariance is not positive definite; the message says which.
    """
    # Checked one by one only after a failure: numpy's batched factorisation does not say which matrix was to blame.
    try:
        lower = np.linalg.cholesky(covariances)
    except np.linalg.LinAlgError:
        smallest = np.linalg.eigvalsh(covariances)[..., 0]
        s, k = (int(i) for i in np.unravel_index(np.argmin(smallest), smallest.shape))
        raise ValueError(
            f"{whose}covariances must be positive definite; that of draw {s}, component {k} has the smallest eigenvalue {smallest[s, k]:g}"
        ) from None
    log_determinants = 2 * np.sum(np.log(np.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)
    precisions = np.linalg.inv(covariances)
    return _Draws(np.maximum(weights, EMPTY_WEIGHT), means, covariances, precisions, log_determinants)
