"""Hard clustering in Numba: k-means++, Lloyd's k-means, agglomeration under Gaussian criteria, nearest-group assignment.

The algorithms under :mod:`bayesgmm.core.seeding`. Arrays are C-contiguous float64; weights are positive. All release the GIL and are
cached on disk.

References
----------
Müllner, D. (2011). Modern hierarchical, agglomerative clustering algorithms. arXiv:1109.2378.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

from bayesgmm.core.parameters import FloatArray

_options = {"cache": True, "nogil": True, "error_model": "numpy"}

# Called by compiled code alone: what Python would need to call them takes time to compile. Called in one place: no function of its own.
_inner_options = {**_options, "no_cpython_wrapper": True}
_inline_options = {**_options, "inline": "always"}


@nb.njit(**_inline_options)
def _square_distance(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(len(a)):
        total += (a[j] - b[j]) * (a[j] - b[j])
    return total


@nb.njit(**_inline_options)
def _reached_row(weight, nearest, share):  # type: ignore[no-untyped-def]
    """First row at which the running sum of weight · nearest exceeds that share of the total; of weight where all are 0."""
    total = 0.0
    for m in range(len(weight)):
        total += weight[m] * nearest[m]
    duplicates_only = total <= 0.0
    if duplicates_only:
        for m in range(len(weight)):
            total += weight[m]
    target, running, row = share * total, 0.0, 0
    for m in range(len(weight)):
        mass = weight[m] if duplicates_only else weight[m] * nearest[m]
        running += mass
        if mass > 0.0:
            row = m
        if running > target:
            break
    return row


@nb.njit(**_options)
def plus_plus(Z: FloatArray, weight: FloatArray, uniforms: FloatArray) -> NDArray[np.int64]:
    """Rows chosen by greedy k-means++ (Arthur & Vassilvitskii 2007).

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    weight : ndarray of shape (n,)
    uniforms : ndarray of shape (K, T)
        Uniform numbers on [0, 1): T candidates for each of the K rows; the best one is taken, the first row from one.

    Returns
    -------
    ndarray of shape (K,)
        Row indices; they repeat only where there are fewer distinct rows than K.
    """
    n = len(Z)
    n_chosen, n_trials = uniforms.shape
    chosen = np.empty(n_chosen, dtype=np.int64)
    nearest, trial, best = np.ones(n), np.empty(n), np.empty(n)
    for k in range(n_chosen):
        best_potential = np.inf
        for t in range(n_trials if k > 0 else 1):
            row = _reached_row(weight, nearest, uniforms[k, t])
            potential = 0.0
            for m in range(n):
                distance = _square_distance(Z[m], Z[row])
                if k > 0 and nearest[m] < distance:
                    distance = nearest[m]
                trial[m] = distance
                potential += weight[m] * distance
            if potential < best_potential:
                best_potential = potential
                chosen[k] = row
                trial, best = best, trial
        nearest, best = best, nearest
    return chosen


@nb.njit(**_options)
def lloyd(Z: FloatArray, weight: FloatArray, centres: FloatArray, max_iter: int) -> None:
    """Lloyd's k-means, in place; a centre that loses its rows goes to the row farthest from its own centre.

    Parameters
    ----------
    Z : ndarray of shape (n, D)
    weight : ndarray of shape (n,)
    centres : ndarray of shape (K, D)
        Start; overwritten by the result.
    max_iter : int
        Ends sooner when no row changes its group.
    """
    n, D = Z.shape
    K = len(centres)
    labels, distances = np.full(n, -1), np.empty(n)
    mass, sums = np.empty(K), np.empty((K, D))
    for _ in range(max_iter):
        changed = False
        for k in range(K):
            mass[k] = 0.0
            for j in range(D):
                sums[k, j] = 0.0
        for i in range(n):
            label, smallest = 0, np.inf
            for k in range(K):
                distance = _square_distance(Z[i], centres[k])
                if distance < smallest:
                    label, smallest = k, distance
            changed |= label != labels[i]
            labels[i], distances[i] = label, smallest
            mass[label] += weight[i]
            for j in range(D):
                sums[label, j] += weight[i] * Z[i, j]
        if not changed:
            return
        for k in range(K):
            if mass[k] > 0.0:
                for j in range(D):
                    centres[k, j] = sums[k, j] / mass[k]
            else:
                farthest = 0
                for i in range(n):
                    if distances[i] > distances[farthest]:
                        farthest = i
                distances[farthest] = 0.0
                for j in range(D):
                    centres[k, j] = Z[farthest, j]


@nb.njit(**_options)
def nearest_centre(X: FloatArray, origin: FloatArray, scale: FloatArray, centres: FloatArray) -> NDArray[np.int32]:
    """Nearest centre (N,) of each row in the coordinates z = (x − origin) * scale, the first of equally near ones.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    origin, scale : ndarray of shape (D,)
    centres : ndarray of shape (K, D)
        In the scaled coordinates.
    """
    N, D = X.shape
    labels = np.empty(N, dtype=np.int32)
    z = np.empty(D)
    for i in range(N):
        for j in range(D):
            z[j] = (X[i, j] - origin[j]) * scale[j]
        label, smallest = 0, np.inf
        for k in range(len(centres)):
            distance = _square_distance(z, centres[k])
            if distance < smallest:
                label, smallest = k, distance
        labels[i] = label
    return labels


@nb.njit(**_options)
def most_probable(
    X: FloatArray,
    origin: FloatArray,
    scale: FloatArray,
    axes: FloatArray,
    centres: FloatArray,
    factors: FloatArray,
    offsets: FloatArray,
) -> NDArray[np.int32]:
    """Group (N,) of each row with the smallest offset_g + ‖F_gᵀ (z − c_g)‖², z = axesᵀ ((x − origin) * scale).

    Parameters
    ----------
    X : ndarray of shape (N, D)
    origin, scale : ndarray of shape (D,)
    axes : ndarray of shape (D, R)
    centres : ndarray of shape (G, R)
    factors : ndarray of shape (G, R, R)
        Upper triangular.
    offsets : ndarray of shape (G,)
    """
    N, D = X.shape
    G, R = centres.shape
    labels = np.empty(N, dtype=np.int32)
    z = np.empty(R)
    for i in range(N):
        for r in range(R):
            z[r] = 0.0
        for j in range(D):
            u = (X[i, j] - origin[j]) * scale[j]
            for r in range(R):
                z[r] += u * axes[j, r]
        label, smallest = 0, np.inf
        for g in range(G):
            cost = offsets[g]
            for r in range(R):
                y = 0.0
                for q in range(r + 1):
                    y += (z[q] - centres[g, q]) * factors[g, q, r]
                cost += y * y
            if cost < smallest:
                label, smallest = g, cost
        labels[i] = label
    return labels


@nb.njit(**_inner_options)
def _group_cost(mass, scatter, determinant, floor, factor):  # type: ignore[no-untyped-def]
    """Cost of one group: (n + 1) log |(W + floor · I) / (n + 1)|, or tr W; ``factor`` (R, R) is scratch."""
    R = len(scatter)
    if not determinant:
        trace = 0.0
        for a in range(R):
            trace += scatter[a, a]
        return trace
    # L D Lᵀ with the rows of L times D kept above the diagonal; one logarithm of the product of the pivots.
    product = 1.0
    for a in range(R):
        pivot = scatter[a, a] + floor
        for b in range(a):
            s = scatter[a, b]
            for c in range(b):
                s -= factor[a, c] * factor[c, b]
            factor[b, a] = s
            factor[a, b] = s * factor[b, b]
            pivot -= s * factor[a, b]
        pivot = max(pivot, 1e-12 * floor)
        factor[a, a] = 1.0 / pivot
        product *= pivot / (mass + 1.0)
    return (mass + 1.0) * math.log(product)


@nb.njit(**_inner_options)
def _merged_cost(i, j, mass, centres, scatters, determinant, floor, merged, factor):  # type: ignore[no-untyped-def]
    """Cost of groups i and j as one; ``merged`` (R, R) receives its scatter (lower triangle)."""
    R = centres.shape[1]
    shrink = mass[i] * mass[j] / (mass[i] + mass[j])
    for a in range(R):
        step = shrink * (centres[i, a] - centres[j, a])
        for b in range(a + 1):
            merged[a, b] = scatters[i, a, b] + scatters[j, a, b] + step * (centres[i, b] - centres[j, b])
    return _group_cost(mass[i] + mass[j], merged, determinant, floor, factor)


@nb.njit(**_inline_options)
def _pair_of_rows_cost(i, j, mass, centres, determinant, floor):  # type: ignore[no-untyped-def]
    """Cost of two single rows as one group: the scatter has rank one, |floor · I + d dᵀ| = floor^R (1 + ‖d‖² / floor)."""
    R = centres.shape[1]
    trace = mass[i] * mass[j] / (mass[i] + mass[j]) * _square_distance(centres[i], centres[j])
    if not determinant:
        return trace
    total = mass[i] + mass[j] + 1.0
    return total * (R * math.log(floor / total) + math.log1p(trace / floor))


@nb.njit(**_inline_options)
def _cheapest_partner(i, n_live, cost):  # type: ignore[no-untyped-def]
    partner, smallest = (1 if i == 0 else 0), np.inf
    for j in range(n_live):
        if j != i and cost[i, j] < smallest:
            partner, smallest = j, cost[i, j]
    return partner, smallest


@nb.njit(**_inline_options)
def _lowest(values, n_live):  # type: ignore[no-untyped-def]
    lowest = 0
    for i in range(1, n_live):
        if values[i] < values[lowest]:
            lowest = i
    return lowest


@nb.njit(**_options)
def agglomerate(Z: FloatArray, weight: FloatArray, n_groups: int, determinant: bool, floor: float) -> NDArray[np.int64]:
    """Merge rows into groups, at each step the two whose union adds least to the criterion.

    Memory O(n²), time O(n² R³) for the determinant. Each group keeps its cheapest partner. When that partner changes for the
    worse, its cost stays as a lower bound, and a new partner is looked up only once the bound is the lowest of all (Müllner 2011).

    Parameters
    ----------
    Z : ndarray of shape (n, R)
        Distinct rows.
    weight : ndarray of shape (n,)
    n_groups : int
        Merging ends at this number of groups.
    determinant : bool
        True for Σ (n_g + 1) log |(W_g + floor · I) / (n_g + 1)| (after Banfield & Raftery 1993), False for Σ tr W_g (Ward 1963).
    floor : float
        Variance of the one pseudo-observation that each group has.

    Returns
    -------
    ndarray of shape (n,)
        Group of each row, 0 … min(n, n_groups) − 1.
    """
    n, R = Z.shape
    mass, centres, scatters = weight.copy(), Z.copy(), np.zeros((n, R, R))
    merged, factor = np.zeros((R, R)), np.zeros((R, R))
    own, cost = np.empty(n), np.empty((n, n))
    for i in range(n):
        own[i] = _group_cost(mass[i], scatters[i], determinant, floor, factor)
        for j in range(i):
            joint = _pair_of_rows_cost(i, j, mass, centres, determinant, floor)
            cost[i, j] = cost[j, i] = joint - own[i] - own[j]
    partner, cheapest, group = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n, dtype=np.int64)
    for i in range(n):
        partner[i], cheapest[i] = _cheapest_partner(i, n, cost)
        group[i] = i
    for n_live in range(n, n_groups, -1):
        i = _lowest(cheapest, n_live)
        while partner[i] < 0:
            partner[i], cheapest[i] = _cheapest_partner(i, n_live, cost)
            i = _lowest(cheapest, n_live)
        j, last = partner[i], n_live - 1
        if i == last:
            i, j = j, i
        own[i] = _merged_cost(i, j, mass, centres, scatters, determinant, floor, merged, factor)
        # The last group moves to the place that becomes free, so that the living ones stay side by side.
        for a in range(R):
            centres[i, a] = (mass[i] * centres[i, a] + mass[j] * centres[j, a]) / (mass[i] + mass[j])
            centres[j, a] = centres[last, a]
            for b in range(a + 1):
                scatters[i, a, b] = merged[a, b]
                scatters[j, a, b] = scatters[last, a, b]
        mass[i] += mass[j]
        mass[j], own[j], partner[j], cheapest[j] = mass[last], own[last], partner[last], cheapest[last]
        for k in range(last):
            cost[j, k] = cost[k, j] = cost[last, k]
        for k in range(n):
            if group[k] == j:
                group[k] = i
            elif group[k] == last:
                group[k] = j
        for k in range(last):
            if k == i:
                continue
            joint = _merged_cost(i, k, mass, centres, scatters, determinant, floor, merged, factor)
            cost[i, k] = cost[k, i] = joint - own[i] - own[k]
            lost = partner[k] == i or partner[k] == j
            if partner[k] == last:
                partner[k] = j
            if cost[k, i] <= cheapest[k]:
                partner[k], cheapest[k] = i, cost[k, i]
            elif lost:
                partner[k] = -1
        partner[i], cheapest[i] = _cheapest_partner(i, last, cost)
    return group
