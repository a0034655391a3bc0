"""Partitions of rows under draws of their allocations: loss, the partition of smallest expected loss, co-clustering with clusters.

Variation of information and Binder's loss are one formula. With n_a the sizes of one partition's clusters, m_b those of another, n_ab
the sizes of their intersections and W the total,

    L = [Σ_a f(n_a) + Σ_b f(m_b) − 2 Σ_ab f(n_ab)] / norm,

where f(n) = n log₂ n and norm = W give the variation of information in bits, and f(n) = n² and norm = W² Binder's loss with equal costs:
the share of the ordered pairs of rows that one partition joins and the other parts. Both are metrics. Rows may have weights: sizes
are then sums of weights.

The search is greedy, as in SALSO: rows are allocated one after another in random order, then visited again and again, each going to the
cluster (or to one of its own) that makes the expected loss smallest, until none moves; then clusters are merged, or dissolved and
their rows allocated anew, where that helps. Tables of intersections are updated and never made anew. The cells of four clusters lie side
by side, so that what a row costs in all four is one sum of vectors over the draws.

References
----------
Binder, D. A. (1978). Bayesian cluster analysis. Biometrika 65, 31–38.
Dahl, D. B., Johnson, D. J. & Müller, P. (2022). Search algorithms and loss functions for Bayesian clustering. Journal of
Computational and Graphical Statistics 31, 1189–1201.
Meilă, M. (2007). Comparing clusterings: an information based distance. Journal of Multivariate Analysis 98, 873–895.
Wade, S. & Ghahramani, Z. (2018). Bayesian cluster analysis: point estimation and credible balls. Bayesian Analysis 13, 559–626.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from bayesgmm.core import kernel
from bayesgmm.core.parameters import FloatArray
from bayesgmm.core.threads import over_chunks

Allocations = NDArray[np.unsignedinteger[Any]]
"""Label of every row in every draw, (N, S): the draws of a row lie side by side."""

LabelArray = NDArray[np.int64]

LOSSES = {"vi": 0, "binder": 1}
"""Names of the losses, and their numbers in the compiled code."""

VI = LOSSES["vi"]
LANES = 4
"""Clusters whose cells lie side by side."""

TOLERANCE = 1e-10
"""A gain relative to the row's cost below which a row stays: rounding must not send it to and fro."""

MAX_SWEEPS = 1000
MERGED = 16
"""Smallest clusters that are tried as one side of a merger."""

DISSOLVED = 10
"""Clusters that are dissolved, in turn, as a last attempt (SALSO's zealous updates)."""

SWEEPING = 100.0
"""Operations of a search for each row and draw: sweeps are none of the kernel's kind, but take about as long."""

_options = {"cache": True, "nogil": True, "error_model": "numpy"}


class Problem(NamedTuple):
    """What stays the same in a search.

    ``z`` (N, S), ``weight`` (N,), ``gain`` f(n + 1) − f(n) for n = 0 … N where all weights are 1, else empty; ``n_labels`` K; ``loss``.
    """

    z: Allocations
    weight: FloatArray
    gain: FloatArray
    n_labels: int
    loss: int


class State(NamedTuple):
    """A partition and its intersections with the draws'.

    ``cells`` (Q, S K, 4): sizes of the intersections of cluster 4 q + lane with label b of draw s, at s K + b. ``terms``, of that shape,
    f(n + 1) − f(n) of each where all weights are 1, else f(n). ``sizes`` and ``members`` (4 Q,): weight and rows of each cluster;
    ``labels`` (N,): cluster of each row, −1 for none.
    """

    cells: FloatArray
    terms: FloatArray
    sizes: FloatArray
    members: LabelArray
    labels: LabelArray


@nb.njit(**_options)
def _term(n, loss):  # type: ignore[no-untyped-def]
    """f(n); 0 for the rounding errors that an emptied cell is left with."""
    if n <= 1e-9:
        return 0.0
    return n * (kernel.log_positive(n) / math.log(2.0)) if loss == VI else n * n


@nb.njit(**_options)
def _stored(n, problem):  # type: ignore[no-untyped-def]
    return problem.gain[int(n)] if len(problem.gain) else _term(n, problem.loss)


@nb.njit(**_options)
def _empty_state(problem, capacity):  # type: ignore[no-untyped-def]
    N, S = problem.z.shape
    blocks = -(-capacity // LANES)
    cells = np.zeros((blocks, S * problem.n_labels, LANES))
    terms = np.full(cells.shape, _stored(0.0, problem))
    return State(cells, terms, np.zeros(blocks * LANES), np.zeros(blocks * LANES, np.int64), np.full(N, -1))


@nb.njit(**_options)
def _with_room(problem, state, max_clusters):  # type: ignore[no-untyped-def]
    """The state with an empty cluster in it, if one more is allowed."""
    live = 0
    for a in range(len(state.members)):
        live += state.members[a] > 0
    if live < len(state.members) or live >= max_clusters:
        return state, live
    blocks = len(state.cells)
    wider = _empty_state(problem, (blocks + 1) * LANES)
    wider.cells[:blocks] = state.cells
    wider.terms[:blocks] = state.terms
    wider.sizes[: blocks * LANES] = state.sizes
    wider.members[: blocks * LANES] = state.members
    wider.labels[:] = state.labels
    return wider, live


@nb.njit(**_options)
def _shift(problem, state, i, a, sign):  # type: ignore[no-untyped-def]
    """Put row i into cluster a (sign 1) or take it out (−1)."""
    z, K = problem.z, problem.n_labels
    cells, terms, lane = state.cells[a // LANES], state.terms[a // LANES], a % LANES
    change = sign * problem.weight[i]
    for s in range(z.shape[1]):
        cell = s * K + z[i, s]
        cells[cell, lane] += change
        terms[cell, lane] = _stored(cells[cell, lane], problem)
    state.sizes[a] += change
    state.members[a] += sign
    state.labels[i] = a if sign > 0 else -1


@nb.njit(**_options)
def _summed_gains(terms, z, K):  # type: ignore[no-untyped-def]
    """Sum over the draws of the gains of a row's cells in four clusters; two draws at a time, so that no addition waits for the last."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
    S = len(z)
    for s in range(0, S - 1, 2):
        first, second = s * K + z[s], (s + 1) * K + z[s + 1]
        a0 += terms[first, 0]
        a1 += terms[first, 1]
        a2 += terms[first, 2]
        a3 += terms[first, 3]
        b0 += terms[second, 0]
        b1 += terms[second, 1]
        b2 += terms[second, 2]
        b3 += terms[second, 3]
    if S % 2:
        last = (S - 1) * K + z[S - 1]
        a0 += terms[last, 0]
        a1 += terms[last, 1]
        a2 += terms[last, 2]
        a3 += terms[last, 3]
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@nb.njit(**_options)
def _summed_weighted_gains(cells, terms, z, K, v, loss):  # type: ignore[no-untyped-def]
    a0 = a1 = a2 = a3 = 0.0
    for s in range(len(z)):
        cell = s * K + z[s]
        a0 += _term(cells[cell, 0] + v, loss) - terms[cell, 0]
        a1 += _term(cells[cell, 1] + v, loss) - terms[cell, 1]
        a2 += _term(cells[cell, 2] + v, loss) - terms[cell, 2]
        a3 += _term(cells[cell, 3] + v, loss) - terms[cell, 3]
    return a0, a1, a2, a3


@nb.njit(**_options)
def _costs(problem, state, i, costs):  # type: ignore[no-untyped-def]
    """What row i adds to norm × expected loss in each cluster that it is not in; −f(v) in an empty one."""
    z, v, K, loss = problem.z[i], problem.weight[i], problem.n_labels, problem.loss
    for q in range(len(state.cells)):
        if len(problem.gain):
            sums = _summed_gains(state.terms[q], z, K)
        else:
            sums = _summed_weighted_gains(state.cells[q], state.terms[q], z, K, v, loss)
        for lane in range(LANES):
            a = q * LANES + lane
            n = state.sizes[a]
            costs[a] = _term(n + v, loss) - _term(n, loss) - 2.0 * sums[lane] / len(z)


@nb.njit(**_options)
def _own_cost(problem, state, i):  # type: ignore[no-untyped-def]
    """What row i adds to norm × expected loss where it is."""
    z, v, K, loss = problem.z[i], problem.weight[i], problem.n_labels, problem.loss
    a = state.labels[i]
    cells, lane = state.cells[a // LANES], a % LANES
    total = 0.0
    if len(problem.gain):
        for s in range(len(z)):
            total += problem.gain[int(cells[s * K + z[s], lane]) - 1]
    else:
        terms = state.terms[a // LANES]
        for s in range(len(z)):
            cell = s * K + z[s]
            total += terms[cell, lane] - _term(cells[cell, lane] - v, loss)
    return _term(state.sizes[a], loss) - _term(state.sizes[a] - v, loss) - 2.0 * total / len(z)


@nb.njit(**_options)
def _objective(problem, state):  # type: ignore[no-untyped-def]
    """Norm × expected loss, less what no choice changes: Σ_a f(n_a) − 2 mean_s Σ_ab f(n_sab)."""
    within = 0.0
    for q in range(len(state.cells)):
        for cell in range(state.cells.shape[1]):
            for lane in range(LANES):
                within += _term(state.cells[q, cell, lane], problem.loss)
    total = 0.0
    for a in range(len(state.sizes)):
        total += _term(state.sizes[a], problem.loss)
    return total - 2.0 * within / problem.z.shape[1]


@nb.njit(**_options)
def _shuffled(items, rng):  # type: ignore[no-untyped-def]
    for i in range(len(items) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        items[i], items[j] = items[j], items[i]
    return items


@nb.njit(**_options)
def _cheapest(state, costs, live, max_clusters, own):  # type: ignore[no-untyped-def]
    """Cluster of smallest cost, its own left out; an empty one if one more is allowed and the row is not alone already."""
    best, lowest = -1, np.inf
    alone = own >= 0 and state.members[own] == 1
    for a in range(len(state.members)):
        allowed = state.members[a] > 0 or (live < max_clusters and not alone)
        if a != own and allowed and costs[a] < lowest:
            best, lowest = a, costs[a]
    return best, lowest


@nb.njit(**_options)
def _allocate(problem, state, rows, max_clusters):  # type: ignore[no-untyped-def]
    """Allocate rows that are in no cluster, one after another."""
    for i in rows:
        state, live = _with_room(problem, state, max_clusters)
        costs = np.empty(len(state.members))
        _costs(problem, state, i, costs)
        best, _ = _cheapest(state, costs, live, max_clusters, -1)
        _shift(problem, state, i, best, 1)
    return state


@nb.njit(**_options)
def _sweep(problem, state, rows, max_clusters):  # type: ignore[no-untyped-def]
    """Visit each row once; returns how many moved."""
    moved = 0
    for i in rows:
        state, live = _with_room(problem, state, max_clusters)
        costs = np.empty(len(state.members))
        _costs(problem, state, i, costs)
        own = _own_cost(problem, state, i)
        best, lowest = _cheapest(state, costs, live, max_clusters, state.labels[i])
        if best >= 0 and lowest < own - TOLERANCE * (1.0 + abs(own)):
            _shift(problem, state, i, state.labels[i], -1)
            _shift(problem, state, i, best, 1)
            moved += 1
    return state, moved


@nb.njit(**_options)
def _merger(problem, state, a, b):  # type: ignore[no-untyped-def]
    """Change of the objective if clusters a and b become one."""
    loss = problem.loss
    one, two, first, second = state.cells[a // LANES], state.cells[b // LANES], a % LANES, b % LANES
    total = 0.0
    for cell in range(len(one)):
        n, m = one[cell, first], two[cell, second]
        if n > 0.0 and m > 0.0:
            total += _term(n + m, loss) - _term(n, loss) - _term(m, loss)
    n, m = state.sizes[a], state.sizes[b]
    return _term(n + m, loss) - _term(n, loss) - _term(m, loss) - 2.0 * total / problem.z.shape[1]


@nb.njit(**_options)
def _clear(problem, state, a):  # type: ignore[no-untyped-def]
    state.cells[a // LANES, :, a % LANES] = 0.0
    state.terms[a // LANES, :, a % LANES] = _stored(0.0, problem)
    state.sizes[a] = 0.0
    state.members[a] = 0


@nb.njit(**_options)
def _merge(problem, state, a, b):  # type: ignore[no-untyped-def]
    """Put cluster a into cluster b."""
    one, two, first, second = state.cells[a // LANES], state.cells[b // LANES], a % LANES, b % LANES
    terms = state.terms[b // LANES]
    for cell in range(len(one)):
        two[cell, second] += one[cell, first]
        terms[cell, second] = _stored(two[cell, second], problem)
    state.sizes[b] += state.sizes[a]
    state.members[b] += state.members[a]
    for i in range(len(state.labels)):
        if state.labels[i] == a:
            state.labels[i] = b
    _clear(problem, state, a)


@nb.njit(**_options)
def _best_merger(problem, state, n_sources):  # type: ignore[no-untyped-def]
    """The pair whose merger changes the objective least (most negative), one of the smallest clusters in it."""
    live = np.flatnonzero(state.members > 0)
    sources = live[np.argsort(state.sizes[live], kind="mergesort")][:n_sources]
    best, first, second = np.inf, -1, -1
    for position in range(len(sources)):
        a = sources[position]
        for b in live:
            if b == a or np.any(sources[:position] == b):
                continue
            change = _merger(problem, state, a, b)
            if change < best:
                best, first, second = change, int(a), int(b)
    return best, first, second


@nb.njit(**_options)
def _dissolved(problem, state, rng, max_clusters, objective):  # type: ignore[no-untyped-def]
    """Dissolve clusters in random order and allocate their rows anew; the first success is kept, else the state as it was."""
    live = _shuffled(np.flatnonzero(state.members > 0), rng)
    if len(live) < 2:
        return state, False
    for a in live[:DISSOLVED]:
        trial = State(
            state.cells.copy(), state.terms.copy(), state.sizes.copy(), state.members.copy(), state.labels.copy()
        )
        rows = np.flatnonzero(state.labels == a)
        _clear(problem, trial, a)
        trial.labels[rows] = -1
        trial = _allocate(problem, trial, _shuffled(rows, rng), max_clusters)
        if _objective(problem, trial) < objective - TOLERANCE * (1.0 + abs(objective)):
            return trial, True
    return state, False


@nb.njit(**_options)
def _state_of(problem, labels):  # type: ignore[no-untyped-def]
    """State of a partition with labels 0 …; rows with −1 are in no cluster."""
    state = _empty_state(problem, max(1, labels.max() + 1))
    for i in range(len(labels)):
        if labels[i] >= 0:
            _shift(problem, state, i, labels[i], 1)
    return state


@nb.njit(**_options)
def _search(problem, start, max_clusters, rng):  # type: ignore[no-untyped-def]
    """One run from one start to an optimum that no move, merger or dissolution improves: labels and objective."""
    state = _state_of(problem, start)
    state = _allocate(problem, state, _shuffled(np.flatnonzero(start < 0), rng), max_clusters)
    while np.sum(state.members > 0) > max_clusters:
        _, a, b = _best_merger(problem, state, 1)
        _merge(problem, state, a, b)
    rows = np.arange(len(start))
    for _ in range(MAX_SWEEPS):
        state, moved = _sweep(problem, state, _shuffled(rows, rng), max_clusters)
        if moved:
            continue
        objective = _objective(problem, state)
        change, a, b = _best_merger(problem, state, MERGED)
        if change < -TOLERANCE * (1.0 + abs(objective)):
            _merge(problem, state, a, b)
            continue
        state, improved = _dissolved(problem, state, rng, max_clusters, objective)
        if not improved:
            break
    return state.labels, _objective(problem, state)


@nb.njit(**_options)
def _distances(problem, state):  # type: ignore[no-untyped-def]
    """Norm × loss of the partition under each draw, and the number of clusters that have weight in the draw."""
    S, K, loss = problem.z.shape[1], problem.n_labels, problem.loss
    out, occupied = np.zeros(S), np.zeros(S, np.int64)
    own = 0.0
    for a in range(len(state.sizes)):
        own += _term(state.sizes[a], loss)
    for s in range(S):
        within, theirs = 0.0, 0.0
        for cell in range(s * K, (s + 1) * K):
            size = 0.0
            for q in range(len(state.cells)):
                for lane in range(LANES):
                    size += state.cells[q, cell, lane]
                    within += _term(state.cells[q, cell, lane], loss)
            theirs += _term(size, loss)
            occupied[s] += size > 1e-9
        out[s] = max(0.0, own + theirs - 2.0 * within)
    return out, occupied


def canonical(labels: NDArray[Any], weight: FloatArray | None = None) -> LabelArray:
    """Labels 0 … C − 1 by decreasing size (weight); of equal sizes, by the first row.

    Parameters
    ----------
    labels : int ndarray of shape (N,)
    weight : ndarray of shape (N,), optional

    Returns
    -------
    ndarray of shape (N,), int64
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((first, -np.bincount(inverse, weights=weight)))] = np.arange(len(first))
    return rank[inverse]


def check_loss(loss: str) -> None:
    """Refuse a name that is not one of ``LOSSES``.

    Raises
    ------
    ValueError
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}; got {loss!r}")


def _problem(z: Allocations, weight: FloatArray | None, loss: str) -> Problem:
    check_loss(loss)
    N = len(z)
    v = np.ones(N) if weight is None else np.asarray(weight, dtype=float)
    # A common factor changes neither loss; sizes near those of counts keep the tolerances meaningful.
    v = v / v[v > 0].mean()
    sizes = np.arange(N + 2.0)
    f = sizes * np.log2(np.maximum(sizes, 1.0)) if loss == "vi" else sizes**2
    gain = np.diff(f) if np.all(v == 1.0) else np.empty(0)
    return Problem(np.ascontiguousarray(z), v, gain, int(z.max()) + 1, LOSSES[loss])


def _norm(problem: Problem) -> float:
    total = float(problem.weight.sum())
    return total if problem.loss == VI else total**2


def losses(
    z: Allocations, labels: NDArray[Any], loss: str, weight: FloatArray | None = None
) -> tuple[FloatArray, LabelArray]:
    """Loss of a partition under each draw: the distance between the two.

    Parameters
    ----------
    z : ndarray of shape (N, S), unsigned int
    labels : int ndarray of shape (N,)
    loss : {"vi", "binder"}
    weight : ndarray of shape (N,), optional
        Weights of the rows; 1 when None. A common factor changes nothing.

    Returns
    -------
    distances : ndarray of shape (S,)
        Variation of information in bits (0 to log₂ N), or Binder's loss (0 to 1 − 1/N).
    n_clusters : ndarray of shape (S,)
        Number of clusters with weight in each draw.

    Raises
    ------
    ValueError
        If the loss is unknown.
    """
    problem = _problem(z, weight, loss)
    distances, n_clusters = _distances(problem, _state_of(problem, canonical(labels)))
    return distances / _norm(problem), n_clusters


def minimise(
    z: Allocations,
    loss: str,
    rng: np.random.Generator,
    weight: FloatArray | None = None,
    starts: Sequence[NDArray[Any]] = (),
    n_restarts: int = 16,
    max_clusters: int | None = None,
    n_threads: int | None = None,
) -> LabelArray:
    """Partition of smallest expected loss over the draws that the searches find.

    Parameters
    ----------
    z : ndarray of shape (N, S), unsigned int
    loss : {"vi", "binder"}
    rng : numpy.random.Generator
    weight : ndarray of shape (N,), optional
        Rows of weight 0 have no part in the loss; each goes where a row of mean weight would.
    starts : sequence of int ndarrays of shape (N,), optional
        Partitions to search from. The result is no worse than any with at most ``max_clusters`` clusters.
    n_restarts : int, default 16
        Further searches: one from all rows in one cluster; of the others half begin with allocating the rows one after another in
        random order, half from a random partition with a random number of clusters.
    max_clusters : int, optional
        Clusters at most; default: the most in any draw or start. A start with more has its smallest clusters merged.
    n_threads : int, optional
        All available cores when None. The result does not depend on it.

    Returns
    -------
    ndarray of shape (N,), int64
        Labels 0 … C − 1 by decreasing size.

    Raises
    ------
    ValueError
        If the loss is unknown, or there is nothing to start from.
    """
    if n_restarts < 1 and not starts:
        raise ValueError("n_restarts must be at least 1 where no start is given")
    whole = _problem(z, weight, loss)
    counted = whole.weight > 0
    problem = whole if counted.all() else _problem(z[counted], whole.weight[counted], loss)
    N, S = problem.z.shape
    begin = [canonical(np.asarray(start)[counted]) for start in starts]
    in_draws = int(_distances(problem, _state_of(problem, np.zeros(N, dtype=np.int64)))[1].max())
    if max_clusters is None:
        max_clusters = max([in_draws, *(int(labels.max()) + 1 for labels in begin)])
    most = max(2, min(max_clusters, N, 2 * in_draws))
    begin += [_random_start(restart, N, most, rng) for restart in range(n_restarts)]
    found: list[Any] = [None] * len(begin)
    streams = rng.spawn(len(begin))

    def task(run: int, _start: int, _stop: int) -> None:
        found[run] = _search(problem, begin[run], max_clusters, streams[run])

    over_chunks(len(begin), 1, SWEEPING * len(begin) * N * S, n_threads, task)
    labels = min(found, key=lambda result: result[1])[0]
    if problem is whole:
        return canonical(labels, problem.weight)
    return canonical(_with_the_weightless(whole, counted, canonical(labels)), whole.weight)


def _random_start(restart: int, n_rows: int, most: int, rng: np.random.Generator) -> LabelArray:
    """Labels to begin with: one cluster, and in turn none yet (−1) or a random partition."""
    if restart == 0:
        return np.zeros(n_rows, dtype=np.int64)
    if restart % 2:
        return np.full(n_rows, -1)
    return canonical(rng.integers(0, rng.integers(2, most + 1), n_rows))


def _with_the_weightless(problem: Problem, counted: NDArray[np.bool_], labels: LabelArray) -> LabelArray:
    """Labels of all rows: those of weight 0 go where they would cost least if they had weight 1."""
    out = np.full(len(counted), -1)
    out[counted] = labels
    state = _state_of(problem, out)
    guests = Problem(problem.z, np.ones(len(out)), np.empty(0), problem.n_labels, problem.loss)
    costs = np.empty(len(state.members))
    for i in np.flatnonzero(~counted):
        _costs(guests, state, i, costs)
        out[i] = np.argmin(np.where(state.members > 0, costs, np.inf))
    return out


@nb.njit(**_options)
def _mean_coclustering(problem, state, out):  # type: ignore[no-untyped-def]
    N, S = problem.z.shape
    for i in range(N):
        v = problem.weight[i]
        for q in range(len(state.cells)):
            sums = _summed_gains(state.cells[q], problem.z[i], problem.n_labels)
            for lane in range(LANES):
                a = q * LANES + lane
                if a >= out.shape[1]:
                    break
                own = v if a == state.labels[i] else 0.0
                if state.members[a] == 1 and own > 0.0:
                    out[i, a] = 1.0
                else:
                    out[i, a] = min(1.0, max(0.0, (sums[lane] / S - own) / (state.sizes[a] - own)))


def mean_coclustering(z: Allocations, labels: NDArray[Any], weight: FloatArray | None = None) -> FloatArray:
    """Probability that a row shares its component with a member of a cluster, the member drawn by weight; the row itself left out.

    Parameters
    ----------
    z : ndarray of shape (N, S), unsigned int
    labels : int ndarray of shape (N,)
        0 … C − 1, each with a row of positive weight.
    weight : ndarray of shape (N,), optional

    Returns
    -------
    ndarray of shape (N, C)
        1 where the row is the only member.
    """
    problem = _problem(z, weight, "binder")
    out = np.empty((len(z), int(np.max(labels)) + 1))
    _mean_coclustering(problem, _state_of(problem, np.asarray(labels, dtype=np.int64)), out)
    return out
