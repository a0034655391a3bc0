"""The one pass over the data: log-likelihood and sufficient statistics of a Gaussian mixture.

One pass computes, at given parameters (DESIGN notation; v_n are the observation weights),

    loglik = Σ_n v_n log p(x_n)          N_k = Σ_n v_n r_nk
    S1_k = Σ_n v_n r_nk (x_n − μ_k)      S2_k = Σ_n v_n r_nk (x_n − μ_k)(x_n − μ_k)ᵀ

which is the whole E-step and, by Fisher's identity, the whole gradient of the marginal log-likelihood.

How it is made fast. Rows are taken in blocks of ``BLOCK``; a block is turned feature-major once, and every inner loop runs over its
rows, ``LANES`` at a time, in vector instructions (``lanes.py``). Logarithms are to base 2, the factors being scaled for it, so that
an exponential needs no reduction of its argument. With few features the exponentials are taken relative to the highest peak of all
components, without a look for each row's largest term; a block in which a row lies further than 2^−100 below that peak is done again
with it. Sums centred at μ_k do not cancel for data far from the origin. Where features are many, rows with less than 1e-24 of a
component's count in their block are left out of its moments: they lie below the last bit of the sum.

Everything here releases the GIL and is cached on disk. Work is cut into chunks whose number depends on the problem alone
and whose sums are added in a fixed order: the same numbers, bit for bit, on any number of threads.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numba as nb
import numpy as np
from numpy.typing import NDArray

from bayesgmm.core import lanes
from bayesgmm.core.lanes import BLOCK, LANES, LN2, PITCH, STRIP
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics

NEGLIGIBLE = 1e-24
"""With COMPACT_FROM features or more, rows with less than this share of a component's count in the block are left out."""

COMPACT_FROM = 12
CHUNK_ROWS = 8192
MAX_CHUNKS = 64
PARALLEL_FLOPS = 2e6

PEAK_REACH = 2.0**-100
"""Densities as far as this below the highest peak need no maximum of their own; the product of eight is still a normal number."""

PATIENCE = 8
"""Blocks that go by after one with a row beyond PEAK_REACH, before maxima are left out again."""

LOG2E = 1.4426950408889634
HALF_BITS = math.sqrt(0.5 * LOG2E)
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
LOG_2PI = math.log(2.0 * math.pi)

_options = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
}

# Without reassociation: it would undo the rounding to an integer, and the order that the vector code was written in.
_exact_options = {**_options, "fastmath": {"contract", "nsz"}}

# Called by compiled code alone: what Python would need to call them takes time to compile.
_inner_options = {**_options, "no_cpython_wrapper": True}
_inline_options = {**_options, "inline": "always"}
_inner_exact_options = {**_exact_options, "no_cpython_wrapper": True}


@nb.njit(**_exact_options)
def log_positive(x):
    """log(x) for normal x > 0, within 2 ulp, by operations that vectorise; −inf for x = 0."""
    bits = np.float64(x).view(np.int64)
    # Split x = m 2^e with m in [sqrt(1/2), sqrt(2)).
    shifted = bits - np.int64(0x3FE6A09E667F3BCD)
    exponent = np.float64(np.int32(shifted >> 52))
    m = np.int64((shifted & np.int64(0x000FFFFFFFFFFFFF)) + np.int64(0x3FE6A09E667F3BCD)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 2.0 / 21.0
    p = p * z + 2.0 / 19.0
    p = p * z + 2.0 / 17.0
    p = p * z + 2.0 / 15.0
    p = p * z + 2.0 / 13.0
    p = p * z + 2.0 / 11.0
    p = p * z + 2.0 / 9.0
    p = p * z + 2.0 / 7.0
    p = p * z + 2.0 / 5.0
    p = p * z + 2.0 / 3.0
    value = exponent * LN2_HIGH + (exponent * LN2_LOW + (s * z * p + 2.0 * s))
    return value if x > 0.0 else -np.inf


@nb.njit(**_inline_options)
def _log_normalisers(log_weights, precision_factors):
    """Logarithms to base 2 of the peaks π_k |P_k| (2π)^(−D/2)."""
    K, D = precision_factors.shape[0], precision_factors.shape[1]
    out = np.empty(K)
    for k in range(K):
        total = log_weights[k] - 0.5 * D * LOG_2PI
        for j in range(D):
            total += math.log(precision_factors[k, j, j])
        out[k] = total * LOG2E
    return out


@nb.njit(**_inline_options)
def _highest(constants):
    """The highest peak, from which exponents are counted; constants become distances below it."""
    shift = -np.inf
    for k in range(constants.shape[0]):
        shift = max(shift, constants[k])
    if shift == -np.inf:
        shift = 0.0
    for k in range(constants.shape[0]):
        constants[k] -= shift
    return shift


@nb.njit(**_inline_options)
def _padded(means, precision_factors, centres, factors):
    """Means, and factors for logarithms to base 2, with zeros up to whole fours of features."""
    K, D = means.shape
    for k in range(K):
        for j in range(D):
            centres[k, j] = means[k, j]
            for f in range(j + 1):
                factors[k, j, f] = HALF_BITS * precision_factors[k, j, f]


@nb.njit(**_inner_options)
def _load_block(X, start, b, x):
    """Copy rows start … start + b of X into x, feature-major with row stride PITCH."""
    D = X.shape[1]
    i, whole = 0, 4 * (D // 4)
    while whole > 0 and i + 4 <= b:
        for j in range(0, whole, 4):
            lanes.transpose(X, (start + i) * D + j, D, x, j * PITCH + i)
        i += 4
    rows = X[start : start + b]
    for j in range(D):
        column = x[j * PITCH :]
        for n in range(i if j < whole else 0, b):
            column[n] = rows[n, j]


@nb.njit(**_inner_exact_options)
def _exponents_of(x, b, constant, mean, factor, D, z, u):
    """Fill u with log2 π_k N(x; μ_k, Σ_k), less that of the highest peak."""
    if D == 1:
        lanes.exponents_1(x, b, constant, mean, factor, u)
    elif D == 2:
        lanes.exponents_2(x, b, constant, mean, factor, u)
    elif D == 3:
        lanes.exponents_3(x, b, constant, mean, factor, u)
    elif D == 4:
        lanes.exponents_4(x, b, constant, mean, factor, u)
    elif D <= 6:
        lanes.exponents_6(x, b, constant, mean, factor, u)
    elif D <= 8:
        lanes.exponents_8(x, b, constant, mean, factor, u)
    else:
        i = 0
        while i < b:
            # The last strip laps over the one before.
            lanes.exponents_of_strip(x, min(i, BLOCK - STRIP), constant, mean, factor, factor.shape[0], z, u)
            i += STRIP


@nb.njit(**_inner_exact_options)
def _exponentials_of(u, b, top, total):
    lanes.exponentials(u, b, top, total)


@nb.njit(**_inner_options)
def _ratios(x, b, constants, centres, factors, D, e, top, total, z, wait):
    """Densities of the components at the rows of a block.

    Row i of component k has density e[k, i] · 2^(top[i] + shift), and ``total`` is the sum of e. b is a whole number of vectors.
    ``wait`` counts the blocks for which maxima are taken beforehand; its next value is returned.
    """
    K = constants.shape[0]
    if D <= 8 and wait == 0:
        for i in range(b):
            top[i] = 0.0
            total[i] = 0.0
        for k in range(K):
            _exponents_of(x, b, constants[k], centres[k], factors[k], D, z, e[k])
            _exponentials_of(e[k], b, top, total)
        far = 0
        for i in range(b):
            far += not total[i] >= PEAK_REACH
        if far == 0:
            return 0
        wait = PATIENCE + 1
    for k in range(K):
        _exponents_of(x, b, constants[k], centres[k], factors[k], D, z, e[k])
    for i in range(b):
        top[i] = e[0, i]
    for k in range(1, K):
        for i in range(b):
            top[i] = max(top[i], e[k, i])
    for i in range(b):
        # A row beyond the reach of float64 (every density 0) keeps log density −inf and no responsibilities.
        total[i] = 0.0
        top[i] = top[i] if top[i] > -np.inf else -1e308
    for k in range(K):
        _exponentials_of(e[k], b, top, total)
    return wait - 1 if wait > 0 else 0


@nb.njit(**_inline_options)
def _whole(b):
    """The number b rounded up to whole vectors."""
    return LANES * ((b + LANES - 1) // LANES)


@nb.njit(**_inline_options)
def _sum_of_logs(total, b):
    """Σ log total over the b rows, each between 2^−100 and K: a logarithm for each product of eight."""
    eighth = BLOCK // 8
    for i in range(b, BLOCK):
        total[i] = 1.0
    out = 0.0
    for i in range(eighth):
        low = (total[i] * total[eighth + i]) * (total[2 * eighth + i] * total[3 * eighth + i])
        high = (total[4 * eighth + i] * total[5 * eighth + i]) * (total[6 * eighth + i] * total[7 * eighth + i])
        out += log_positive(low * high)
    return out


@nb.njit(**_inner_exact_options)
def _moments_small(x, b, mean, e, scale, D, first, second):
    """Add S1 and S2 of one component for D ≤ 4, its responsibilities being e · scale; their sum is returned."""
    if D == 1:
        return lanes.moments_1(x, b, mean, e, scale, first, second)
    if D == 2:
        return lanes.moments_2(x, b, mean, e, scale, first, second)
    if D == 3:
        return lanes.moments_3(x, b, mean, e, scale, first, second)
    return lanes.moments_4(x, b, mean, e, scale, first, second)


@nb.njit(**_inner_exact_options)
def _moments_tiled(x, b, mean, r, first, second, q):
    """Add S1 and S2 of one component for D > 4, by fours of features."""
    width = mean.shape[0]
    for j in range(0, width, 4):
        lanes.diagonal_block(x, b, mean, r, first, second, j, width, q)
        f = 0
        while f < j:
            if j - f == 4 or j - f == 2:
                lanes.rectangle_2(x, b, mean, q, second, j, f, width)
                f += 2
            else:
                lanes.rectangle_3(x, b, mean, q, second, j, f, width)
                f += 3


@nb.njit(**_inline_options)
def _moments_large(x, b, mean, r, scale, D, first, second, q, gathered, kept):
    """As ``_moments_small`` for D > 4; r is scaled."""
    n = 0.0
    for i in range(b):
        r[i] *= scale[i]
        n += r[i]
    if n == 0.0:
        return n
    m = b
    if D >= COMPACT_FROM:
        m, least = 0, NEGLIGIBLE * n
        for i in range(b):
            kept[m] = i
            m += r[i] > least
    # Gathering a row costs about as much as the products of ten features.
    if m > b // 2:
        _moments_tiled(x, b, mean, r, first, second, q)
        return n
    for j in range(D):
        column, out = x[j * PITCH :], gathered[j * PITCH :]
        for i in range(m):
            out[i] = column[kept[i]]
    for i in range(m):
        r[i] = r[kept[i]]
    whole = _whole(m)
    for i in range(m, whole):
        r[i] = 0.0
    _moments_tiled(gathered, whole, mean, r, first, second, q)
    return n


@nb.njit(**_options)
def _width(D):
    """Features in memory: whole fours."""
    return 4 * ((D + 3) // 4)


@nb.njit(**_inner_options)
def _scratch(width, K):
    """A block's features (width rows of PITCH), densities (K, PITCH), their exponents and sums, and a strip of features."""
    rows = np.zeros((width + K + 2, PITCH))
    x = rows[:width].reshape(width * PITCH)
    return x, rows[width : width + K], rows[width + K], rows[width + K + 1], np.zeros(width * STRIP)


@nb.njit(**_options)
def _pass_rows(X, v, start, stop, constants, shift, centres, factors, counts, first, second):
    """Add the sums of rows start … stop; first is (K, width), second (K, width, width), its upper triangle the result."""
    D = X.shape[1]
    K, width = centres.shape
    x, e, top, total, z = _scratch(width, K)
    q, gathered = np.zeros(4 * PITCH), np.zeros(width * PITCH if D >= COMPACT_FROM else 0)
    kept = np.empty(BLOCK + 1, np.int32)
    loglik, wait = 0.0, np.int64(0)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        whole = _whole(b)
        _load_block(X, block, b, x)
        wait = _ratios(x, whole, constants, centres, factors, D, e, top, total, z, wait)
        partial = 0.0
        if v.shape[0] > 0:
            weight = v[block : block + b]
            for i in range(b):
                # A row of weight 0 counts for nothing even where its density is 0.
                partial += weight[i] * (LN2 * (top[i] + shift) + log_positive(total[i])) if weight[i] > 0.0 else 0.0
                total[i] = weight[i] / total[i] if total[i] > 0.0 else 0.0
        else:
            partial = _sum_of_logs(total, b)
            bits = 0.0
            for i in range(b):
                bits += top[i]
                total[i] = 1.0 / total[i] if total[i] > 0.0 else 0.0
            partial += LN2 * (bits + b * shift)
        for i in range(b, whole):
            total[i] = 0.0
        loglik += partial
        for k in range(K):
            if D <= 4:
                counts[k] += _moments_small(x, whole, centres[k], e[k], total, D, first[k], second[k])
            else:
                counts[k] += _moments_large(
                    x, whole, centres[k], e[k], total, D, first[k], second[k], q, gathered, kept
                )
    return loglik


@nb.njit(**_options)
def _density_rows(X, start, stop, constants, shift, centres, factors, log_density, responsibilities):
    """Fill log p(x_n) and, where its array is not empty, r_nk for rows start … stop."""
    D = X.shape[1]
    K, width = centres.shape
    x, e, top, total, z = _scratch(width, K)
    wait = np.int64(0)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        wait = _ratios(x, _whole(b), constants, centres, factors, D, e, top, total, z, wait)
        for i in range(b):
            log_density[block + i] = LN2 * (top[i] + shift) + log_positive(total[i])
        if responsibilities.shape[0] > 0:
            for i in range(b):
                scale = 1.0 / total[i] if total[i] > 0.0 else 0.0
                for k in range(K):
                    responsibilities[block + i, k] = e[k, i] * scale


@nb.njit(**_inner_exact_options)
def _add_density_of(total, top, shift, b, summed, high):
    lanes.add_density(total, top, shift, b, summed, high)


@nb.njit(**_options)
def _predictive_rows(
    X, start, stop, log_weights, means, P, edges, thresholds, marked, log_density, below, first, second, mass
):
    """Averages over S parameter sets for rows start … stop, one load of each block; an empty array is left out.

    ``log_density`` and ``below`` have a column for each batch of parameter sets ``edges[b]`` … ``edges[b + 1]``.
    """
    S, K, D = means.shape
    width = _width(D)
    x, e, top, total, z = _scratch(width, K)
    high, summed, r_sum, r_squares = np.empty(BLOCK), np.empty(BLOCK), np.empty((K, BLOCK)), np.empty((K, BLOCK))
    lower, m_sum = np.empty(BLOCK), np.empty(BLOCK)
    centres, factors = np.zeros((K, width)), np.zeros((K, width, width))
    wait = np.int64(0)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        whole = _whole(b)
        _load_block(X, block, b, x)
        for i in range(b):
            m_sum[i] = 0.0
        for k in range(K):
            for i in range(b):
                r_sum[k, i] = 0.0
                r_squares[k, i] = 0.0
        for batch in range(edges.shape[0] - 1):
            for i in range(BLOCK):
                high[i] = -1e308
                summed[i] = 0.0
                lower[i] = 0.0
            for s in range(edges[batch], edges[batch + 1]):
                constants = _log_normalisers(log_weights[s], P[s])
                shift = _highest(constants)
                _padded(means[s], P[s], centres, factors)
                wait = _ratios(x, whole, constants, centres, factors, D, e, top, total, z, wait)
                _add_density_of(total, top, shift, whole, summed, high)
                if below.shape[0] > 0:
                    for i in range(b):
                        here = LN2 * (top[i] + shift) + log_positive(total[i])
                        lower[i] += 1.0 if here < thresholds[s] else 0.0
                if first.shape[0] > 0:
                    for i in range(b):
                        total[i] = 1.0 / total[i] if total[i] > 0.0 else 0.0
                    for k in range(K):
                        for i in range(b):
                            r_sum[k, i] += e[k, i] * total[i]
                if second.shape[0] > 0:
                    for k in range(K):
                        for i in range(b):
                            r = e[k, i] * total[i]
                            r_squares[k, i] += r * r
                if mass.shape[0] > 0:
                    for k in range(K):
                        if marked[s, k]:
                            for i in range(b):
                                m_sum[i] += e[k, i] * total[i]
            size = edges[batch + 1] - edges[batch]
            for i in range(b):
                log_density[block + i, batch] = LN2 * high[i] + log_positive(summed[i] / size)
            if below.shape[0] > 0:
                for i in range(b):
                    below[block + i, batch] = lower[i] / size
        if first.shape[0] > 0:
            for i in range(b):
                for k in range(K):
                    first[block + i, k] = r_sum[k, i] / S
        if second.shape[0] > 0:
            for i in range(b):
                for k in range(K):
                    second[block + i, k] = r_squares[k, i] / S
        if mass.shape[0] > 0:
            for i in range(b):
                mass[block + i] = m_sum[i] / S


@nb.njit(**_options)
def _class_rows(X, start, stop, log_weights, means, P, stops, mean, squares):
    """Mean and sum of squared deviations over S parameter sets of the class probabilities of rows start … stop.

    Class c has the components up to ``stops[c]``, from where the one before ends. Updated draw by draw (Welford 1962): a difference of
    sums would lose small spreads.
    """
    S, K, D = means.shape
    C, width = stops.shape[0], _width(D)
    x, e, top, total, z = _scratch(width, K)
    p, center, spread = np.empty(BLOCK), np.empty((C, BLOCK)), np.empty((C, BLOCK))
    centres, factors = np.zeros((K, width)), np.zeros((K, width, width))
    wait = np.int64(0)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        for c in range(C):
            for i in range(b):
                center[c, i] = 0.0
                spread[c, i] = 0.0
        for s in range(S):
            constants = _log_normalisers(log_weights[s], P[s])
            _highest(constants)
            _padded(means[s], P[s], centres, factors)
            wait = _ratios(x, _whole(b), constants, centres, factors, D, e, top, total, z, wait)
            for i in range(b):
                total[i] = 1.0 / total[i] if total[i] > 0.0 else 0.0
            k, share = 0, 1.0 / (s + 1.0)
            for c in range(C):
                for i in range(b):
                    p[i] = 0.0
                while k < stops[c]:
                    for i in range(b):
                        p[i] += e[k, i]
                    k += 1
                for i in range(b):
                    here = p[i] * total[i]
                    change = here - center[c, i]
                    moved = center[c, i] + change * share
                    spread[c, i] += change * (here - moved)
                    center[c, i] = moved
        for i in range(b):
            for c in range(C):
                mean[block + i, c] = center[c, i]
                squares[block + i, c] = spread[c, i]


@nb.njit(**_options)
def _chunk_rows(N, D, K):
    """Rows of a chunk: a function of the problem alone, so that sums come out the same on any number of threads."""
    chunks = max(1, min(MAX_CHUNKS, 8_000_000 // (K * D * D)))
    return max(CHUNK_ROWS, BLOCK * ((N + chunks * BLOCK - 1) // (chunks * BLOCK)))


@nb.njit(**_options)
def _fill_symmetric(second, D):
    K = second.shape[0]
    out = np.empty((K, D, D))
    for k in range(K):
        for j in range(D):
            for f in range(j + 1):
                out[k, j, f] = second[k, f, j]
                out[k, f, j] = second[k, f, j]
    return out


@nb.njit(**_options)
def fused_pass(X, v, log_weights, means, precision_factors):
    """One pass on one thread.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Observations, C-contiguous float64.
    v : ndarray of shape (N,) or (0,)
        Observation weights; empty for all ones.
    log_weights : ndarray of shape (K,)
    means : ndarray of shape (K, D)
    precision_factors : ndarray of shape (K, D, D)

    Returns
    -------
    log_likelihood : float
    counts : ndarray of shape (K,)
    first : ndarray of shape (K, D)
    second : ndarray of shape (K, D, D)
    """
    N, D = X.shape
    K = means.shape[0]
    width = _width(D)
    constants, shift, centres, factors = _prepare(log_weights, means, precision_factors)
    counts, first, second = np.zeros(K), np.zeros((K, D)), np.zeros((K, width, width))
    loglik = 0.0
    rows = _chunk_rows(N, D, K)
    for start in range(0, N, rows):
        c, f, s = np.zeros(K), np.zeros((K, width)), np.zeros((K, width, width))
        loglik += _pass_rows(X, v, start, min(N, start + rows), constants, shift, centres, factors, c, f, s)
        # Loops, not array expressions: those compile for seconds, for error messages that cannot occur.
        for k in range(K):
            counts[k] += c[k]
            for j in range(D):
                first[k, j] += f[k, j]
                for i in range(j + 1):
                    second[k, i, j] += s[k, i, j]
    return loglik, counts, first, _fill_symmetric(second, D)


@nb.njit(**_options)
def gradients(counts, first, second, precision_factors):
    """Gradient of the marginal log-likelihood from the sums of a pass (Fisher's identity; Louis 1982, eq. 3.1).

    Parameters
    ----------
    counts : ndarray of shape (K,)
    first : ndarray of shape (K, D)
    second : ndarray of shape (K, D, D)
    precision_factors : ndarray of shape (K, D, D)

    Returns
    -------
    log_weights : ndarray of shape (K,)
        ∂/∂log π_k = N_k, the weights taken as free numbers.
    means : ndarray of shape (K, D)
        P_k P_kᵀ S1_k.
    precision_factors : ndarray of shape (K, D, D)
        −S2_k P_k + N_k diag(1 / P_k,ii), lower triangle.
    """
    K, D = first.shape
    g_means = np.zeros((K, D))
    g_factors = np.zeros((K, D, D))
    y = np.empty(D)
    for k in range(K):
        P = precision_factors[k]
        for j in range(D):
            total = 0.0
            for i in range(j, D):
                total += P[i, j] * first[k, i]
            y[j] = total
        for i in range(D):
            total = 0.0
            for j in range(i + 1):
                total += P[i, j] * y[j]
            g_means[k, i] = total
            for f in range(D):
                s = second[k, i, f]
                for j in range(min(i, f) + 1):
                    g_factors[k, i, j] -= s * P[f, j]
            g_factors[k, i, i] += counts[k] / P[i, i]
    return counts.copy(), g_means, g_factors


NO_WEIGHTS = np.empty(0)
NO_RESPONSIBILITIES = np.empty((0, 0))
LANES_SOURCE = "252d5a614842f23a"
"""Start of the hash of ``lanes.py``. Numba compiles a cached function anew where its own file has changed, and this one has then."""

KERNEL_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
"""Hash of this file: part of every cache key that depends on what the kernel does."""


def available_threads() -> int:
    """Cores that this process may use (``BAYESGMM_NUM_THREADS`` overrides)."""
    setting = os.environ.get("BAYESGMM_NUM_THREADS", "")
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=4)
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    # Keyed by the process: a pool does not survive a fork.
    return ThreadPoolExecutor(n_threads, thread_name_prefix="bayesgmm")


def _over_chunks(
    n_rows: int, rows: int, work: float, n_threads: int | None, task: Callable[[int, int, int], None]
) -> None:
    """Run ``task(chunk, start, stop)`` for every chunk, on threads where the work is worth it."""
    starts = range(0, n_rows, rows)
    threads = 1
    if work >= PARALLEL_FLOPS and len(starts) > 1:
        threads = min(available_threads() if n_threads is None else n_threads, len(starts))
    if threads <= 1:
        for chunk, start in enumerate(starts):
            task(chunk, start, min(n_rows, start + rows))
        return

    def run(worker: int) -> None:
        for chunk in range(worker, len(starts), threads):
            task(chunk, starts[chunk], min(n_rows, starts[chunk] + rows))

    for done in [_pool(os.getpid(), threads).submit(run, worker) for worker in range(threads)]:
        done.result()


@nb.njit(**_options)
def _log(weights):
    """Logarithms, −inf of 0, without a look at NumPy's error state, which takes longer than they do."""
    out = np.empty(weights.shape[0])
    for k in range(weights.shape[0]):
        out[k] = math.log(weights[k]) if weights[k] > 0.0 else -np.inf
    return out


@nb.njit(**_options)
def _prepare(log_weights, means, precision_factors):
    K, D = means.shape
    width = _width(D)
    constants = _log_normalisers(log_weights, precision_factors)
    shift = _highest(constants)
    centres, factors = np.zeros((K, width)), np.zeros((K, width, width))
    _padded(means, precision_factors, centres, factors)
    return constants, shift, centres, factors


def _prepared(parameters: MixtureParameters) -> tuple[FloatArray, float, FloatArray, FloatArray]:
    """What the loops take: peaks below the highest, that one, padded means and scaled factors."""
    return _prepare(_log(parameters.weights), parameters.means, parameters.precision_factors)


def pass_cost(n_rows: int, K: int, D: int) -> float:
    """Rough number of floating-point operations of one pass."""
    return float(n_rows) * K * (40 + 3 * D * D)


def accumulate(
    X: FloatArray, parameters: MixtureParameters, sample_weight: FloatArray | None = None, n_threads: int | None = None
) -> SufficientStatistics:
    """Log-likelihood and sufficient statistics of all rows at given parameters: the E-step.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Observations, C-contiguous float64, finite.
    parameters : MixtureParameters
    sample_weight : ndarray of shape (N,), optional
        Weights of the observations; 1 when None.
    n_threads : int, optional
        All available cores when None. The result does not depend on it.

    Returns
    -------
    SufficientStatistics
    """
    N, D = X.shape
    K = parameters.n_components
    width = int(_width(D))
    v = NO_WEIGHTS if sample_weight is None else sample_weight
    constants, shift, centres, factors = _prepared(parameters)
    rows = int(_chunk_rows(N, D, K))
    chunks = max(1, -(-N // rows))
    loglik, counts = np.zeros(chunks), np.zeros((chunks, K))
    first, second = np.zeros((chunks, K, width)), np.zeros((chunks, K, width, width))

    def task(chunk: int, start: int, stop: int) -> None:
        loglik[chunk] = _pass_rows(
            X, v, start, stop, constants, shift, centres, factors, counts[chunk], first[chunk], second[chunk]
        )

    _over_chunks(N, rows, pass_cost(N, K, D), n_threads, task)
    for chunk in range(1, chunks):
        loglik[0] += loglik[chunk]
        counts[0] += counts[chunk]
        first[0] += first[chunk]
        second[0] += second[chunk]
    total = float(N) if sample_weight is None else float(np.sum(sample_weight))
    return SufficientStatistics(
        float(loglik[0]), total, counts[0], first[0, :, :D].copy(), _fill_symmetric(second[0], D)
    )


def _density(
    X: FloatArray,
    parameters: MixtureParameters,
    log_density: FloatArray,
    responsibilities: FloatArray,
    n_threads: int | None,
) -> None:
    N, D = X.shape
    constants, shift, centres, factors = _prepared(parameters)

    def task(chunk: int, start: int, stop: int) -> None:
        _density_rows(X, start, stop, constants, shift, centres, factors, log_density, responsibilities)

    _over_chunks(N, CHUNK_ROWS, pass_cost(N, parameters.n_components, D), n_threads, task)


def log_density(X: FloatArray, parameters: MixtureParameters, n_threads: int | None = None) -> FloatArray:
    """Log density log p(x_n) of each row.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    parameters : MixtureParameters
    n_threads : int, optional
        All available cores when None.

    Returns
    -------
    ndarray of shape (N,)
        −inf only where the density is below what float64 squares can reach (some 1e154 standard deviations away).
    """
    out = np.empty(X.shape[0])
    _density(X, parameters, out, NO_RESPONSIBILITIES, n_threads)
    return out


def responsibilities(
    X: FloatArray, parameters: MixtureParameters, n_threads: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Responsibilities r_nk = p(z_n = k given x_n) and log densities.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    parameters : MixtureParameters
    n_threads : int, optional
        All available cores when None.

    Returns
    -------
    responsibilities : ndarray of shape (N, K)
        Rows sum to 1.
    log_density : ndarray of shape (N,)
    """
    out, r = np.empty(X.shape[0]), np.empty((X.shape[0], parameters.n_components))
    _density(X, parameters, out, r, n_threads)
    _complete_beyond_range(X, r, parameters)
    return r, out


def _complete_beyond_range(X: FloatArray, r: FloatArray, parameters: MixtureParameters) -> None:
    """Give rows so far away that the density is 0 the responsibilities that it leaves out."""
    missing = 1 - r.sum(axis=1)
    beyond = np.flatnonzero(missing > 1e-6)
    if len(beyond):
        r[beyond] += missing[beyond, None] * _nearest_beyond_range(X[beyond], parameters)


def _nearest_beyond_range(X: FloatArray, parameters: MixtureParameters) -> FloatArray:
    """One-hot nearest component of rows so far away that squared distances overflow (scaled arithmetic)."""
    scale = np.max(np.abs(X), axis=1, keepdims=True)
    distance = np.stack(
        [
            np.sum(((X / scale - m / scale) @ P) ** 2, axis=1)
            for m, P in zip(parameters.means, parameters.precision_factors, strict=True)
        ],
        axis=1,
    )
    distance[:, parameters.weights <= 0] = np.inf
    return np.eye(parameters.n_components)[np.argmin(distance, axis=1)]


def posterior_predictive(
    X: FloatArray,
    weights: FloatArray,
    means: FloatArray,
    precision_factors: FloatArray,
    n_threads: int | None = None,
    with_responsibilities: bool = True,
) -> tuple[FloatArray, FloatArray]:
    """Density and responsibilities averaged over draws, one load of each block of rows for all draws.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    n_threads : int, optional
        All available cores when None.
    with_responsibilities : bool, default True
        False leaves the second result empty.

    Returns
    -------
    log_mean_density : ndarray of shape (N,)
        log (1/S) Σ_s p(x_n given θ_s).
    mean_responsibilities : ndarray of shape (N, K)
        (1/S) Σ_s r_nk(θ_s).
    """
    found = predictive_averages(
        X, weights, means, precision_factors, with_responsibilities=with_responsibilities, n_threads=n_threads
    )
    return found.log_density[:, 0], found.responsibilities


@dataclass(frozen=True, eq=False)
class PredictiveAverages:
    """What draws say of rows on average; arrays that were not asked for are empty.

    Parameters
    ----------
    log_density : ndarray of shape (N, B)
        Log of the mean density over each batch of draws.
    below : ndarray of shape (N, B)
        Share of the draws of each batch under which the row's log density is below the draw's threshold.
    responsibilities : ndarray of shape (N, K)
        Mean of r_nk.
    squares : ndarray of shape (N, K)
        Mean of r_nk².
    marked_mass : ndarray of shape (N,)
        Mean of the responsibility of the marked components.
    """

    log_density: FloatArray
    below: FloatArray
    responsibilities: FloatArray
    squares: FloatArray
    marked_mass: FloatArray


def predictive_averages(
    X: FloatArray,
    weights: FloatArray,
    means: FloatArray,
    precision_factors: FloatArray,
    *,
    edges: NDArray[np.int64] | None = None,
    thresholds: FloatArray | None = None,
    marked: NDArray[np.bool_] | None = None,
    with_responsibilities: bool = True,
    with_squares: bool = False,
    n_threads: int | None = None,
) -> PredictiveAverages:
    """Averages over draws for every row, one load of each block of rows for all draws.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    edges : ndarray of shape (B + 1,), optional
        Batch b is draws edges[b] … edges[b + 1] − 1; the first edge is 0 and the last S. Default: all draws in one.
    thresholds : ndarray of shape (S,), optional
        Log densities that a row's is compared with, one a draw: fills ``below``.
    marked : ndarray of bool of shape (S, K), optional
        Components whose joint responsibility is wanted: fills ``marked_mass``.
    with_responsibilities, with_squares : bool
    n_threads : int, optional
        All available cores when None.

    Returns
    -------
    PredictiveAverages
    """
    N, D = X.shape
    S, K = weights.shape
    edges = np.array([0, S]) if edges is None else np.ascontiguousarray(edges, dtype=np.int64)
    n_batches = len(edges) - 1
    found = PredictiveAverages(
        np.empty((N, n_batches)),
        np.empty((0, 0)) if thresholds is None else np.empty((N, n_batches)),
        np.empty((N, K)) if with_responsibilities or with_squares or marked is not None else NO_RESPONSIBILITIES,
        np.empty((N, K)) if with_squares else NO_RESPONSIBILITIES,
        np.empty(0) if marked is None else np.empty(N),
    )
    limits = np.empty(0) if thresholds is None else np.ascontiguousarray(thresholds, dtype=np.float64)
    flags = np.empty((0, 0), dtype=np.bool_) if marked is None else np.ascontiguousarray(marked)
    sets = (_log(weights.ravel()).reshape(S, K), means, precision_factors, edges, limits, flags)
    out = (found.log_density, found.below, found.responsibilities, found.squares, found.marked_mass)

    def task(chunk: int, start: int, stop: int) -> None:
        _predictive_rows(X, start, stop, *sets, *out)

    _over_chunks(N, BLOCK, S * pass_cost(N, K, D), n_threads, task)
    if len(found.responsibilities):
        _complete_averages(X, found, weights, means, precision_factors, marked)
    return found


def _complete_averages(
    X: FloatArray,
    found: PredictiveAverages,
    weights: FloatArray,
    means: FloatArray,
    precision_factors: FloatArray,
    marked: NDArray[np.bool_] | None,
) -> None:
    """Give rows so far away that densities are 0 what these leave out: the nearest component has all of them."""
    missing = 1 - found.responsibilities.sum(axis=1)
    beyond = np.flatnonzero(missing > 1e-6)
    if len(beyond) == 0:
        return
    rows = X[beyond]
    nearest = np.zeros((len(rows), weights.shape[1]))
    of_marked = np.zeros(len(rows))
    for s, draw in enumerate(map(MixtureParameters, weights, means, precision_factors)):
        here = _nearest_beyond_range(rows, draw) / len(weights)
        nearest += here
        if marked is not None:
            of_marked += here @ marked[s]
    found.responsibilities[beyond] += missing[beyond, None] * nearest
    if len(found.squares):
        found.squares[beyond] += missing[beyond, None] * nearest
    if marked is not None:
        found.marked_mass[beyond] += missing[beyond] * of_marked


def class_probabilities(
    X: FloatArray,
    weights: FloatArray,
    means: FloatArray,
    precision_factors: FloatArray,
    stops: NDArray[np.int64],
    n_threads: int | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation over draws of class probabilities, one load of each block of rows for all draws.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    stops : ndarray of shape (C,)
        One past the last component of each class; the classes' components follow one another.
    n_threads : int, optional
        All available cores when None.

    Returns
    -------
    mean : ndarray of shape (N, C)
        (1/S) Σ_s p(c given x_n, θ_s). Rows sum to less than 1 where every density is 0 under some draws.
    sd : ndarray of shape (N, C)
        Of divisor S.
    """
    N, D = X.shape
    S, K = weights.shape
    mean, squares = np.empty((N, len(stops))), np.empty((N, len(stops)))
    sets = (_log(weights.ravel()).reshape(S, K), means, precision_factors, np.ascontiguousarray(stops, dtype=np.int64))

    def task(chunk: int, start: int, stop: int) -> None:
        _class_rows(X, start, stop, *sets, mean, squares)

    _over_chunks(N, BLOCK, S * pass_cost(N, K, D), n_threads, task)
    return mean, np.sqrt(squares / S)


def pointwise_log_likelihood(
    X: FloatArray, weights: FloatArray, means: FloatArray, precision_factors: FloatArray, n_threads: int | None = None
) -> FloatArray:
    """Log density of every row under every draw.

    Parameters
    ----------
    X : ndarray of shape (N, D)
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    n_threads : int, optional
        All available cores when None.

    Returns
    -------
    ndarray of shape (S, N)
        Mind its size: take X in pieces where S × N is large.
    """
    N, D = X.shape
    S, K = weights.shape
    out = np.empty((S, N))
    log_weights = _log(weights.ravel()).reshape(S, K)

    def task(chunk: int, start: int, stop: int) -> None:
        for s in range(start, stop):
            constants, shift, centres, factors = _prepare(log_weights[s], means[s], precision_factors[s])
            _density_rows(X, 0, N, constants, shift, centres, factors, out[s], NO_RESPONSIBILITIES)

    _over_chunks(S, max(1, S // 64), S * pass_cost(N, K, D), n_threads, task)
    return out
