"""Label switching by how the rows are classified: equivalence classes representatives (ECR) and Stephens' Kullback–Leibler algorithm.

Both put every draw in the order that agrees best with one classification of the rows, and that classification is made from the
draws in turn. With p_nj the responsibility of component j for row n under a draw and v_n the row's weight, they differ in what
the component is worth in place k,

| | common classification | worth of component j in place k |
|---|---|---|
| ECR | z_n, the component that row n belongs to | Σ_n v_n p_nj 1[z_n = k] |
| Stephens' KL | q_nk, the average of the relabelled p_nk | Σ_n v_n p_nj log q_nk |

so that both are one assignment problem a draw. ECR (Papastamoulis & Iliopoulos 2010) counts the rows in which allocations drawn with
the parameters agree with z; the labels are summed out here, and the sum above is the expected count given the parameters, without the
noise of drawing. The algorithm of Stephens (2000, section 4) minimises Σ_n v_n Σ_j p_nj log(p_nj / q_nk); the part without q is
the same in every order.

Responsibilities are made anew, a block of draws and rows at a time, in every step: nothing of size draws × rows × components is kept.

References
----------
Papastamoulis, P. & Iliopoulos, G. (2010). An artificial allocations based solution to the label switching problem in Bayesian analysis
of mixtures of distributions. Journal of Computational and Graphical Statistics 19, 313–331.
Papastamoulis, P. (2016). label.switching: an R package for dealing with the label switching problem in MCMC outputs. Journal
of Statistical Software 69, code snippet 1.
Rodríguez, C. E. & Walker, S. G. (2014). Label switching in Bayesian mixture models: deterministic relabeling strategies. Journal of
Computational and Graphical Statistics 23, 25–45.
Stephens, M. (2000). Dealing with label switching in mixture models. Journal of the Royal Statistical Society B 62, 795–809.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.inference.relabel import least_cost_orders, relabel_within

METHODS = ("mode", "ecr", "stephens")
"""Names of the ways to relabel: :func:`bayesgmm.inference.relabel.relabel`, and the two of this module."""

BLOCK_ELEMENTS = 1_000_000
"""Size of the largest temporary array (draws of a block × rows of a block × K); 8 MB."""

BLOCK_ROWS = 1024

MAX_ITERATIONS = 100

MOST_ROWS = 2000
"""Rows by which draws are put in order: a sample of so many where there are more."""

COMPARED_DRAWS, COMPARED_ROWS = 200, 200
"""Draws and rows by which the methods are compared with one another."""

FlatDraws = tuple[FloatArray, FloatArray, FloatArray]
Block = tuple[slice, slice, FloatArray]


def ecr(
    X: FloatArray,
    draws: FlatDraws,
    *,
    pivot: np.ndarray | None = None,
    start: np.ndarray | None = None,
    sample_weight: FloatArray | None = None,
    blocks: Sequence[slice] | None = None,
) -> np.ndarray:
    """Permutations that make the draws' classifications of the rows equivalent to one of them.

    With a pivot every draw is put in its order and that is all (ECR); without, the pivot is the most probable component of each row on
    average over the draws as they are ordered so far, until no order changes (the second iterative version of ECR in
    Papastamoulis 2016, after Rodríguez & Walker 2014).

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : tuple (weights (S, K), means (S, K, D), precision_factors (S, K, D, D))
    pivot : ndarray of shape (N,), int, optional
        A component for each row.
    start : ndarray of shape (S, K), int, optional
        Permutations to begin with, where there is no pivot; by default the draws' own orders, which are good to begin with only if
        most draws agree.
    sample_weight : ndarray of shape (N,), optional
    blocks : sequence of slice, optional
        Components that may change places; by default all.

    Returns
    -------
    ndarray of shape (S, K), int64
        ``means[s, permutations[s]]`` is in the common order.
    """
    K = draws[0].shape[1]
    places = np.arange(K)
    if pivot is not None:
        return _Classified(X, draws, sample_weight, blocks).orders((np.asarray(pivot)[:, None] == places) * 1.0)

    def chosen(average: FloatArray) -> FloatArray:
        return (np.argmax(average, axis=1)[:, None] == places) * 1.0

    return _iterated(_Classified(X, draws, sample_weight, blocks), chosen, start)


def stephens(
    X: FloatArray,
    draws: FlatDraws,
    *,
    start: np.ndarray | None = None,
    sample_weight: FloatArray | None = None,
    blocks: Sequence[slice] | None = None,
) -> np.ndarray:
    """Permutations that minimise the Kullback–Leibler divergence of the draws' classification probabilities from their average.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : tuple (weights (S, K), means (S, K, D), precision_factors (S, K, D, D))
    start : ndarray of shape (S, K), int, optional
        Permutations to begin with: the algorithm ends at a local minimum. By default the draws' own orders.
    sample_weight : ndarray of shape (N,), optional
    blocks : sequence of slice, optional
        Components that may change places; by default all.

    Returns
    -------
    ndarray of shape (S, K), int64
        ``means[s, permutations[s]]`` is in the common order.

    References
    ----------
    Stephens (2000), algorithm 2.
    """
    tiny = np.finfo(float).tiny
    return _iterated(
        _Classified(X, draws, sample_weight, blocks), lambda average: np.log(np.maximum(average, tiny)), start
    )


def relabel_by(
    method: str,
    X: FloatArray,
    draws: FlatDraws,
    covariances: FloatArray,
    reference: tuple[FloatArray, FloatArray, FloatArray],
    *,
    sample_weight: FloatArray | None = None,
    blocks: Sequence[slice] | None = None,
) -> np.ndarray:
    """Permutations by the method of a name; those by rows begin from the orders that are closest to a reference.

    Parameters
    ----------
    method : {"mode", "ecr", "stephens"}
    X : ndarray of shape (N, D)
        Of more than ``MOST_ROWS`` rows a sample is used, always the same.
    draws : tuple (weights (S, K), means (S, K, D), precision_factors (S, K, D, D))
    covariances : ndarray of shape (S, K, D, D)
        The same as the precision factors say.
    reference : tuple (weights (K,), means (K, D), covariances (K, D, D))
    sample_weight : ndarray of shape (N,), optional
    blocks : sequence of slice, optional

    Returns
    -------
    ndarray of shape (S, K), int64
    """
    blocks = blocks or (slice(0, draws[0].shape[1]),)
    found = relabel_within(blocks, draws[0], draws[1], covariances, reference)
    if method == "mode" or draws[0].shape[1] == 1:
        return found
    rows, v = sampled_rows(X, sample_weight, MOST_ROWS)
    return {"ecr": ecr, "stephens": stephens}[method](rows, draws, start=found, sample_weight=v, blocks=blocks)


def agreement(
    X: FloatArray,
    draws: FlatDraws,
    covariances: FloatArray,
    reference: tuple[FloatArray, FloatArray, FloatArray],
    *,
    sample_weight: FloatArray | None = None,
    blocks: Sequence[slice] | None = None,
) -> dict[str, float]:
    """Share of draws that two methods give the same order, for each two of the three, from a few draws and rows.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    draws : tuple (weights (S, K), means (S, K, D), precision_factors (S, K, D, D))
    covariances : ndarray of shape (S, K, D, D)
    reference : tuple (weights (K,), means (K, D), covariances (K, D, D))
    sample_weight : ndarray of shape (N,), optional
    blocks : sequence of slice, optional

    Returns
    -------
    dict of str to float
        By "mode, ecr", "mode, stephens" and "ecr, stephens"; ``COMPARED_DRAWS`` evenly spaced draws and ``COMPARED_ROWS`` rows are used.
    """
    S = len(draws[0])
    some = np.unique(np.linspace(0, S - 1, min(S, COMPARED_DRAWS)).round().astype(int))
    few = (draws[0][some], draws[1][some], draws[2][some])
    rows, v = sampled_rows(X, sample_weight, COMPARED_ROWS)
    found = {
        method: relabel_by(method, rows, few, covariances[some], reference, sample_weight=v, blocks=blocks)
        for method in METHODS
    }
    return {
        f"{one}, {other}": float(np.mean(np.all(found[one] == found[other], axis=1)))
        for i, one in enumerate(METHODS)
        for other in METHODS[i + 1 :]
    }


def sampled_rows(X: FloatArray, sample_weight: FloatArray | None, most: int) -> tuple[FloatArray, FloatArray | None]:
    """At most so many rows with their weights, in their order; the same ones every time."""
    if len(X) <= most:
        return X, sample_weight
    chosen = np.sort(np.random.default_rng(0).choice(len(X), size=most, replace=False))
    return np.ascontiguousarray(X[chosen]), None if sample_weight is None else sample_weight[chosen]


class _Classified:
    """Responsibilities of rows under draws, a block at a time; few of them are kept."""

    def __init__(
        self, X: FloatArray, draws: FlatDraws, sample_weight: FloatArray | None, blocks: Sequence[slice] | None
    ) -> None:
        self.X, self.draws, self.v = X, draws, sample_weight
        self.S, self.K = draws[0].shape
        self.interchangeable = blocks or (slice(0, self.K),)
        self._kept = list(self._made()) if self.S * len(X) * self.K <= BLOCK_ELEMENTS else None

    def __iter__(self) -> Iterator[Block]:
        return iter(self._made() if self._kept is None else self._kept)

    def _made(self) -> Iterator[Block]:
        N = len(self.X)
        some = min(N, BLOCK_ROWS)
        each = max(1, BLOCK_ELEMENTS // (some * self.K))
        for begin in range(0, N, some):
            rows = slice(begin, min(begin + some, N))
            for first in range(0, self.S, each):
                part = slice(first, min(first + each, self.S))
                yield rows, part, classification(self.X[rows], *(values[part] for values in self.draws))

    def orders(self, worth: FloatArray) -> np.ndarray:
        """Permutations (S, K) for what row n is worth in place k, (N, K)."""
        cost = np.zeros((self.S, self.K, self.K))
        weighed = -worth if self.v is None else -worth * self.v[:, None]
        for rows, part, p in self:
            cost[part] += weighed[rows].T @ p
        found = [block.start + least_cost_orders(cost[:, block, block]) for block in self.interchangeable]
        return np.concatenate(found, axis=1)

    def average(self, permutations: np.ndarray) -> FloatArray:
        """Responsibilities (N, K) averaged over the draws in given orders."""
        total = np.zeros((len(self.X), self.K))
        for rows, part, p in self:
            total[rows] += np.take_along_axis(p, permutations[part][:, None, :], axis=2).sum(axis=0)
        return total / self.S


def _iterated(
    classified: _Classified, worth: Callable[[FloatArray], FloatArray], start: np.ndarray | None
) -> np.ndarray:
    """Average and assign in turn until no draw changes its order."""
    shape = (classified.S, classified.K)
    permutations = np.broadcast_to(np.arange(classified.K), shape) if start is None else np.asarray(start)
    for _ in range(MAX_ITERATIONS):
        updated = classified.orders(worth(classified.average(permutations)))
        if np.array_equal(updated, permutations):
            break
        permutations = updated
    return np.array(permutations, dtype=np.int64)


def classification(X: FloatArray, weights: FloatArray, means: FloatArray, precision_factors: FloatArray) -> FloatArray:
    """Responsibilities of rows under several mixtures at once.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)

    Returns
    -------
    ndarray of shape (S, N, K)
    """
    (S, K), D = weights.shape, X.shape[1]
    # Every component by itself is a mixture of one: a single call of the kernel for all of them.
    logs = kernel.pointwise_log_likelihood(
        np.ascontiguousarray(X), np.ones((S * K, 1)), means.reshape(-1, 1, D), precision_factors.reshape(-1, 1, D, D)
    ).reshape(S, K, len(X))
    with np.errstate(divide="ignore"):
        logs += np.log(weights)[:, :, None]
    top = logs.max(axis=1, keepdims=True)
    # A row so far away that all densities are 0 has no say: zeros.
    logs -= np.where(np.isfinite(top), top, 0.0)
    np.exp(logs, out=logs)
    logs /= np.maximum(logs.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return np.swapaxes(logs, 1, 2)
