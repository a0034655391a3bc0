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
from dataclasses import dataclass
from pathlib import Path

import numba as nb
import numpy as np
from numpy.typing import NDArray

from bayesgmm.core import lanes, threads
from bayesgmm.core.lanes import BLOCK, GROUP, LANES, LN2, PITCH, STRIP
from bayesgmm.core.parameters import FloatArray, MixtureParameters, SingleArray, SufficientStatistics
from bayesgmm.core.threads import over_chunks, over_ranges

NEGLIGIBLE = 1e-24
"""With COMPACT_FROM features or more, rows with less than this share of a component's count in the block are left out."""

COMPACT_FROM = 12

FREE, BY_FEATURE, SHARED = 0, 1, 2
"""Forms of whitening: each component by its own factor, by the diagonal of it, or all by one."""

BY_FEATURE_FROM, SHARED_FROM = 4, 5
"""Features from which the last two are worth it."""

SHARED_REACH = 1e5
"""Standard deviations between means up to which rows are whitened once for all components: exponents are then within 1e-9 of exact."""

CHUNK_ROWS = 8192
MAX_CHUNKS = 64

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

# Called by compiled code alone: what Python would need to call them takes time to compile. Called in one place: part of the caller.
_inner_options = {**_options, "no_cpython_wrapper": True}
_inner_exact_options = {**_exact_options, "no_cpython_wrapper": True}
_inline_options = {**_options, "inline": "always"}


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


@nb.njit(**_options)
def _form(means, precision_factors):
    """How rows are whitened under S parameter sets, (S, K, D) and (S, K, D, D): FREE, BY_FEATURE or SHARED, a property of them all.

    SHARED is the difference of whitened rows and whitened means, so that means very far from each other keep to FREE.
    """
    S, K, D = means.shape
    by_feature = D >= BY_FEATURE_FROM
    s = 0
    while by_feature and s < S:
        for k in range(K):
            for j in range(D):
                for f in range(j):
                    by_feature &= precision_factors[s, k, j, f] == 0.0
            if not by_feature:
                break
        s += 1
    if by_feature:
        return BY_FEATURE
    if K == 1 or D < SHARED_FROM:
        return FREE
    for s in range(S):
        P = precision_factors[s, 0]
        for k in range(1, K):
            for j in range(D):
                for f in range(j + 1):
                    if precision_factors[s, k, j, f] != P[j, f]:
                        return FREE
            for f in range(D):
                y = 0.0
                for j in range(f, D):
                    y += P[j, f] * (means[s, k, j] - means[s, 0, j])
                if not abs(y) < SHARED_REACH:
                    return FREE
    return SHARED


@nb.njit(**_inner_options)
def _unfilled(form, K, width):
    """Zeros for means and factors in whole fours of features; their shape says the form.

    FREE: (K, width, width). BY_FEATURE: (K, 1, width), the diagonals. SHARED: (1, width + K, width), the factor and below it the
    whitened means, as distances from the first.
    """
    if form == BY_FEATURE:
        factors = np.zeros((K, 1, width))
    elif form == SHARED:
        factors = np.zeros((1, width + K, width))
    else:
        factors = np.zeros((K, width, width))
    return np.zeros((K, width)), factors


@nb.njit(**_inline_options)
def _padded(means, precision_factors, centres, factors):
    """Fill means, and factors for logarithms to base 2, in the form that their arrays are made for."""
    K, D = means.shape
    width = centres.shape[1]
    for k in range(K):
        for j in range(D):
            centres[k, j] = means[k, j]
    if factors.shape[1] == 1:
        for k in range(K):
            for j in range(D):
                factors[k, 0, j] = HALF_BITS * precision_factors[k, j, j]
        return
    for k in range(factors.shape[0]):
        for j in range(D):
            for f in range(j + 1):
                factors[k, j, f] = HALF_BITS * precision_factors[k, j, f]
    if factors.shape[1] > width:
        for k in range(K):
            for f in range(D):
                y = 0.0
                for j in range(f, D):
                    y += factors[0, j, f] * (means[k, j] - means[0, j])
                factors[0, width + k, f] = y


@nb.njit(**_inner_options)
def _load_block(X, start, b, x):
    """Copy rows start … start + b of X into x, feature-major with row stride PITCH."""
    D = X.shape[1]
    i = 0
    while D > 1 and i + 4 <= b:
        at = (start + i) * D
        if D == 2:
            lanes.part_2(X, at, x, i)
        elif D == 3:
            lanes.part_3(X, at, x, i)
        else:
            for j in range(0, D, 4):
                # The last four features lap over those before.
                f = min(j, D - 4)
                lanes.transpose(X, at + f, D, x, f * PITCH + i)
        i += 4
    rows = X[start : start + b]
    for j in range(D):
        column = x[j * PITCH :]
        for n in range(i, b):
            column[n] = rows[n, j]


@nb.njit(**_inner_exact_options)
def _fetch(X, start, stop, part, parts):
    """Ask for one of so many parts of rows start … stop, so that they are there when they are needed."""
    D = X.shape[1]
    lines = max(0, stop - start) * D // lanes.LINE
    for line in range(part * lines // parts, (part + 1) * lines // parts):
        lanes.prefetch(X, start * D + line * lanes.LINE)


@nb.njit(**_inner_exact_options)
def _exponents_of_all(X, ahead, stop, x, b, constants, centres, factors, z, e):
    """``_exponents_of`` for every component where the form is not FREE: some rows at a time under all of them."""
    K, width = centres.shape
    y = z[width * STRIP :]
    if factors.shape[1] > 1:
        i = 0
        while i < b:
            lanes.whiten_strip(x, min(i, BLOCK - STRIP), centres[0], factors[0], width, z, y)
            i += STRIP
    for i in range(0, b, GROUP):
        for k in range(K):
            _fetch(X, ahead, stop, i // GROUP * K + k, BLOCK // GROUP * K)
            if factors.shape[1] == 1:
                lanes.exponents_by_feature(x, i, constants[k], centres[k], factors[k], width, e[k])
            else:
                lanes.exponents_of_whitened(y, i, constants[k], factors[0, width + k], width, e[k])


@nb.njit(**_inner_exact_options)
def _exponents_of(X, ahead, stop, x, b, k, constant, centres, factors, D, z, u):
    """Fill u with log2 π_k N(x; μ_k, Σ_k), less that of the highest peak."""
    width = centres.shape[1]
    mean, factor = centres[k], factors[k]
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
        i, K, strips = 0, centres.shape[0], (BLOCK + STRIP - 1) // STRIP
        while i < b:
            _fetch(X, ahead, stop, k * strips + i // STRIP, K * strips)
            # The last strip laps over the one before.
            lanes.exponents_of_strip(x, min(i, BLOCK - STRIP), constant, mean, factor, width, z, u)
            i += STRIP


@nb.njit(**_inner_exact_options)
def _exponentials_of(u, b, top, total):
    lanes.exponentials(u, b, top, total)


@nb.njit(**_inner_options)
def _ratios(X, ahead, stop, x, b, constants, centres, factors, D, e, top, total, z, wait):
    """Densities of the components at the rows of a block.

    Row i of component k has density e[k, i] · 2^(top[i] + shift), and ``total`` is the sum of e. b is a whole number of vectors.
    Rows of X from ``ahead`` up to ``stop``, at most a block, are fetched meanwhile.
    ``wait`` counts the blocks for which maxima are taken beforehand; its next value is returned.
    """
    K = constants.shape[0]
    stop = min(stop, ahead + BLOCK)
    free = factors.shape[1] == centres.shape[1]
    if not free:
        _exponents_of_all(X, ahead, stop, x, b, constants, centres, factors, z, e)
    if D <= 8 and wait == 0:
        for i in range(b):
            top[i] = 0.0
            total[i] = 0.0
        for k in range(K):
            if free:
                _fetch(X, ahead, stop, 2 * k, 2 * K)
                _exponents_of(X, ahead, stop, x, b, k, constants[k], centres, factors, D, z, e[k])
                _fetch(X, ahead, stop, 2 * k + 1, 2 * K)
            _exponentials_of(e[k], b, top, total)
        far = 0
        for i in range(b):
            far += not total[i] >= PEAK_REACH
        if far == 0:
            return 0
        wait = PATIENCE + 1
        if not free:
            _exponents_of_all(X, stop, stop, x, b, constants, centres, factors, z, e)
    for k in range(K if free else 0):
        _exponents_of(X, ahead, stop, x, b, k, constants[k], centres, factors, D, z, e[k])
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
        if free and D <= 8:
            _fetch(X, ahead, stop, k, K)
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


@nb.njit(**_inner_options)
def _weigh(r, scale, b):
    """Turn densities into responsibilities; their sum is returned."""
    n = 0.0
    for i in range(b):
        r[i] *= scale[i]
        n += r[i]
    return n


@nb.njit(**_inline_options)
def _moments_large(x, b, mean, r, scale, D, first, second, q, gathered, kept):
    """As ``_moments_small`` for D > 4; r is scaled."""
    n = _weigh(r, scale, b)
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
def _scratch(centres, factors):
    """A block's features (width rows of PITCH), densities (K, PITCH), their exponents and sums, and room for whitening.

    The last is a strip of features, and a whole block's where whitened rows serve all components.
    """
    K, width = centres.shape
    rows = np.zeros((width + K + 2, PITCH))
    x = rows[:width].reshape(width * PITCH)
    whitened = np.zeros(width * (STRIP + (PITCH if factors.shape[1] > width else 0)))
    return x, rows[width : width + K], rows[width + K], rows[width + K + 1], whitened


@nb.njit(**_inline_options)
def _weigh_all(e, scale, b, counts):
    """Turn densities into responsibilities, whose sums are added to the counts."""
    for k in range(e.shape[0]):
        counts[k] += _weigh(e[k], scale, b)


@nb.njit(**_inner_exact_options)
def _moments_by_feature(X, ahead, stop, x, b, centres, r, first, second):
    """Add S1 and the diagonals of S2, four features at a time under all components."""
    K, width = centres.shape
    for j in range(0, width, 4):
        for k in range(K):
            _fetch(X, ahead, stop, j // 4 * K + k, width // 4 * K)
            lanes.moments_by_feature(x, b, centres[k], r[k], first[k], second[k], j)


@nb.njit(**_inner_exact_options)
def _deviations(X, ahead, stop, x, b, centres, r, first, deviation):
    """Add S1, and fill Σ_k r_k (x − μ_k), four features at a time under all components."""
    K, width = centres.shape
    for j in range(0, width, 4):
        for k in range(K):
            _fetch(X, ahead, stop, j // 4 * K + k, width // 4 * K)
            lanes.deviations(x, b, centres[k], r[k], first[k], deviation, j, k > 0)


@nb.njit(**_inner_options)
def _moments_pooled(
    X, ahead, stop, x, b, centres, e, scale, weight, counts, first, second, pairs, q, deviation, inverse
):
    """Add S1 of every component and S2 of all together, less what ``pairs`` says; e · scale are the responsibilities v r.

    With c = Σ_k r_k μ_k, a row's part Σ_k r_k (x − μ_k)(x − μ_k)ᵀ is (x − c)(x − c)ᵀ + Σ_{k>m} r_k r_m (μ_k − μ_m)(μ_k − μ_m)ᵀ: one
    product of its deviation x − c = Σ_k r_k (x − μ_k), and K² sums; no term is negative. ``deviation`` is v (x − c).
    """
    K, width = centres.shape
    _weigh_all(e, scale, b, counts)
    _deviations(X, ahead, stop, x, b, centres, e, first, deviation)
    for i in range(b):
        inverse[i] = 1.0 if i < weight.shape[0] or weight.shape[0] == 0 else 0.0
    for i in range(weight.shape[0]):
        inverse[i] = 1.0 / weight[i] if weight[i] > 0.0 else 0.0
    for k in range(1, K):
        for m in range(k):
            total = 0.0
            for i in range(b):
                total += e[k, i] * e[m, i] * inverse[i]
            pairs[k, m] += total
    zero = np.zeros(width)
    _moments_tiled(deviation, b, zero, inverse, zero.copy(), second[0], q)


@nb.njit(**_inline_options)
def _log_likelihood_of(total, top, shift, weight, b):
    """Σ v log p of the b rows of a block; the divisor of their densities, v over the sum, takes the place of ``total``."""
    partial = 0.0
    if weight.shape[0] > 0:
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
    return partial


@nb.njit(**_inline_options)
def _pass_rows(X, v, start, stop, constants, shift, centres, factors, counts, first, second, pairs):
    """Add the sums of rows start … stop; first is (K, width), the log-likelihood is returned.

    The shape of ``second`` says what is wanted: (K, width, width), its upper triangle the result; (K, 1, width), the diagonals; or
    (1, width, width) with ``pairs`` (K, K), what ``_moments_pooled`` makes of all components; it is not compiled where that is None.
    """
    D = X.shape[1]
    K, width = centres.shape
    x, e, top, total, z = _scratch(centres, factors)
    by_feature = second.shape[1] == 1
    q = np.zeros(4 * PITCH)
    gathered = np.zeros(width * PITCH if second.shape[0] < K or (D >= COMPACT_FROM and not by_feature) else 0)
    kept, inverse = np.empty(BLOCK + 1, np.int32), np.empty(BLOCK)
    loglik, wait = 0.0, np.int64(0)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        whole = _whole(b)
        weight = v[block : block + b] if v.shape[0] > 0 else v
        _load_block(X, block, b, x)
        # Half of the next block is fetched in each of the two stages.
        middle, end = min(stop, block + BLOCK + BLOCK // 2), min(stop, block + 2 * BLOCK)
        wait = _ratios(X, block + BLOCK, middle, x, whole, constants, centres, factors, D, e, top, total, z, wait)
        loglik += _log_likelihood_of(total, top, shift, weight, b)
        for i in range(b, whole):
            total[i] = 0.0
        if pairs is not None:
            _moments_pooled(
                X, middle, end, x, whole, centres, e, total, weight, counts, first, second, pairs, q, gathered, inverse
            )
            continue
        if by_feature:
            _weigh_all(e, total, whole, counts)
            _moments_by_feature(X, middle, end, x, whole, centres, e, first, second)
            continue
        for k in range(K):
            _fetch(X, middle, end, k, K)
            if D <= 4:
                counts[k] += _moments_small(x, whole, centres[k], e[k], total, D, first[k], second[k])
            else:
                counts[k] += _moments_large(
                    x, whole, centres[k], e[k], total, D, first[k], second[k], q, gathered, kept
                )
    return loglik


@nb.njit(**_options)
def _pass_chunks(
    X,
    v,
    rows,
    constants,
    shift,
    centres,
    factors,
    log_likelihood,
    counts,
    first,
    second,
    pairs,
    taken,
    signal,
    number,
    helping,
):
    """The sums of chunks of so many rows, of those that no other thread does; see ``threads.together``."""
    chunks = log_likelihood.shape[0]
    threads.begin(signal, number, helping)
    c = threads.take(taken)
    while c < chunks:
        start, stop = c * rows, min(X.shape[0], (c + 1) * rows)
        own = None if pairs is None else pairs[c]
        log_likelihood[c] = _pass_rows(
            X, v, start, stop, constants, shift, centres, factors, counts[c], first[c], second[c], own
        )
        threads.complete(taken)
        c = threads.take(taken)
    return threads.end(taken, chunks, signal, number, helping)


@nb.njit(**_options)
def _density_rows(X, start, stop, constants, shift, centres, factors, log_density, responsibilities):
    """Fill log p(x_n) and, where its array is not empty, r_nk for rows start … stop, chunks of ``CHUNK_ROWS``."""
    D = X.shape[1]
    K = centres.shape[0]
    x, e, top, total, z = _scratch(centres, factors)
    wait = np.int64(0)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        # Every chunk begins anew, whoever does it.
        wait = wait if (block - start) % CHUNK_ROWS else np.int64(0)
        wait = _ratios(X, block + BLOCK, stop, x, _whole(b), constants, centres, factors, D, e, top, total, z, wait)
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
def _peaks(log_weights, P):
    """Of S parameter sets: distances below their highest peaks (S, K), and these (S,)."""
    S, K = log_weights.shape
    constants, shifts = np.empty((S, K)), np.empty(S)
    for s in range(S):
        own = _log_normalisers(log_weights[s], P[s])
        shifts[s] = _highest(own)
        for k in range(K):
            constants[s, k] = own[k]
    return constants, shifts


@nb.njit(**_options)
def _likelihood_rows(X, v, start, stop, constants, shifts, form, means, P, sums):
    """Add Σ v log p of rows start … stop under each of S parameter sets to sums (S,), one load of each block."""
    S, K, D = means.shape
    centres, factors = _unfilled(form, K, _width(D))
    x, e, top, total, z = _scratch(centres, factors)
    wait = np.zeros(S, np.int64)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        weight = v[block : block + b] if v.shape[0] > 0 else v
        _load_block(X, block, b, x)
        for s in range(S):
            _padded(means[s], P[s], centres, factors)
            ahead = block + BLOCK if s == S - 1 else stop
            wait[s] = _ratios(
                X, ahead, stop, x, _whole(b), constants[s], centres, factors, D, e, top, total, z, wait[s]
            )
            sums[s] += _log_likelihood_of(total, top, shifts[s], weight, b)


@nb.njit(**_options)
def _pointwise_rows(X, start, stop, first, last, constants, shifts, form, means, P, out):
    """Fill log p of rows start … stop under the parameter sets first … last of out (S, N), one load of each block."""
    K, D = means.shape[1:]
    centres, factors = _unfilled(form, K, _width(D))
    x, e, top, total, z = _scratch(centres, factors)
    wait = np.zeros(last - first, np.int64)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        for s in range(first, last):
            _padded(means[s], P[s], centres, factors)
            own, ahead = wait[s - first], block + BLOCK if s == last - 1 else stop
            wait[s - first] = _ratios(
                X, ahead, stop, x, _whole(b), constants[s], centres, factors, D, e, top, total, z, own
            )
            for i in range(b):
                out[s, block + i] = LN2 * (top[i] + shifts[s]) + log_positive(total[i])


@nb.njit(**_options)
def _predictive_rows(
    X,
    start,
    stop,
    constants,
    shifts,
    form,
    means,
    P,
    edges,
    thresholds,
    marked,
    log_density,
    below,
    first,
    second,
    mass,
):
    """Averages over S parameter sets for rows start … stop, one load of each block; an empty array is left out.

    ``log_density`` and ``below`` have a column for each batch of parameter sets ``edges[b]`` … ``edges[b + 1]``.
    """
    S, K, D = means.shape
    centres, factors = _unfilled(form, K, _width(D))
    x, e, top, total, z = _scratch(centres, factors)
    high, summed, r_sum, r_squares = np.empty(BLOCK), np.empty(BLOCK), np.empty((K, BLOCK)), np.empty((K, BLOCK))
    lower, m_sum = np.empty(BLOCK), np.empty(BLOCK)
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
                shift, ahead = shifts[s], block + BLOCK if s == S - 1 else stop
                _padded(means[s], P[s], centres, factors)
                wait = _ratios(X, ahead, stop, x, whole, constants[s], centres, factors, D, e, top, total, z, wait)
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
def _class_rows(X, start, stop, constants, form, means, P, stops, mean, squares):
    """Mean and sum of squared deviations over S parameter sets of the class probabilities of rows start … stop.

    Class c has the components up to ``stops[c]``, from where the one before ends. Updated draw by draw (Welford 1962): a difference of
    sums would lose small spreads.
    """
    S, K, D = means.shape
    C = stops.shape[0]
    centres, factors = _unfilled(form, K, _width(D))
    x, e, top, total, z = _scratch(centres, factors)
    p, center, spread = np.empty(BLOCK), np.empty((C, BLOCK)), np.empty((C, BLOCK))
    wait = np.int64(0)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        for c in range(C):
            for i in range(b):
                center[c, i] = 0.0
                spread[c, i] = 0.0
        for s in range(S):
            _padded(means[s], P[s], centres, factors)
            ahead = block + BLOCK if s == S - 1 else stop
            wait = _ratios(X, ahead, stop, x, _whole(b), constants[s], centres, factors, D, e, top, total, z, wait)
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
def _pools(K, D):
    """Whether one product of each row's deviation and K² sums cost less than K products."""
    return D >= SHARED_FROM and 1 < K < D * D


@nb.njit(**_options)
def _chunk_rows(N, D, K):
    """Rows of a chunk: a function of the problem alone, so that sums come out the same on any number of threads."""
    chunks = max(1, min(MAX_CHUNKS, 8_000_000 // (K * D * D)))
    return max(CHUNK_ROWS, BLOCK * ((N + chunks * BLOCK - 1) // (chunks * BLOCK)))


@nb.njit(**_options)
def _pooled(second, D):
    """The sum of the components' second moments, (1, D, D), from their upper triangles."""
    out = np.zeros((1, D, D))
    for k in range(second.shape[0]):
        for j in range(D):
            for f in range(j + 1):
                out[0, j, f] += second[k, f, j]
    for j in range(D):
        for f in range(j):
            out[0, f, j] = out[0, j, f]
    return out


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
def _add_between(second, means, pairs):
    """Add Σ_{k>m} pairs_km (μ_k − μ_m)(μ_k − μ_m)ᵀ."""
    K, D = means.shape
    z = np.empty(D)
    for k in range(1, K):
        for m in range(k):
            if pairs[k, m] > 0.0:
                for j in range(D):
                    z[j] = means[k, j] - means[m, j]
                for j in range(D):
                    share = pairs[k, m] * z[j]
                    for f in range(D):
                        second[j, f] += share * z[f]


@nb.njit(**_options)
def fused_pass_of(X, v, log_weights, means, precision_factors, by_feature):
    """``fused_pass``; with ``by_feature`` second moments off the diagonal may be 0, for factors of which nothing else varies."""
    N, D = X.shape
    K = means.shape[0]
    width = _width(D)
    constants, shift, centres, factors = _prepare(log_weights, means, precision_factors)
    by_feature = by_feature and D >= BY_FEATURE_FROM
    height = 1 if by_feature else width
    counts, first, second = np.zeros(K), np.zeros((K, D)), np.zeros((K, width, width))
    loglik = 0.0
    rows = _chunk_rows(N, D, K)
    for start in range(0, N, rows):
        c, f, s = np.zeros(K), np.zeros((K, width)), np.zeros((K, height, width))
        loglik += _pass_rows(X, v, start, min(N, start + rows), constants, shift, centres, factors, c, f, s, None)
        # Loops, not array expressions: those compile for seconds, for error messages that cannot occur.
        for k in range(K):
            counts[k] += c[k]
            for j in range(D):
                first[k, j] += f[k, j]
                if by_feature:
                    second[k, j, j] += s[k, 0, j]
                else:
                    for i in range(j + 1):
                        second[k, i, j] += s[k, i, j]
    return loglik, counts, first, _fill_symmetric(second, D)


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
    return fused_pass_of(X, v, log_weights, means, precision_factors, np.bool_(False))


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
INLINED_SOURCES = "f1b70b01c807bbf8"
"""Start of the hash of ``lanes.py`` and ``threads.py``. Numba compiles a cached function anew where its own file has changed, as this
one has then."""

KERNEL_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
"""Hash of this file: part of every cache key that depends on what the kernel does."""


@nb.njit(**_options)
def _log(weights):
    """Logarithms, −inf of 0, without a look at NumPy's error state, which takes longer than they do."""
    out = np.empty(weights.shape[0])
    for k in range(weights.shape[0]):
        out[k] = math.log(weights[k]) if weights[k] > 0.0 else -np.inf
    return out


@nb.njit(**_inline_options)
def _prepare(log_weights, means, precision_factors):
    K, D = means.shape
    constants = _log_normalisers(log_weights, precision_factors)
    shift = _highest(constants)
    form = _form(means.reshape((1, K, D)), precision_factors.reshape((1, K, D, D)))
    centres, factors = _unfilled(form, K, _width(D))
    _padded(means, precision_factors, centres, factors)
    return constants, shift, centres, factors


@nb.njit(**_options)
def _prepare_weights(weights, means, precision_factors):
    return _prepare(_log(weights), means, precision_factors)


def _prepared(parameters: MixtureParameters) -> tuple[FloatArray, float, FloatArray, FloatArray]:
    """What the loops take: peaks below the highest, that one, padded means and scaled factors."""
    return _prepare_weights(parameters.weights, parameters.means, parameters.precision_factors)


def _sets(
    weights: FloatArray, means: FloatArray, precision_factors: FloatArray
) -> tuple[FloatArray, FloatArray, int, FloatArray, FloatArray]:
    """What the loops over S parameter sets take: peaks below the highest, those, the form, means and factors."""
    constants, shifts = _peaks(_log(weights.ravel()).reshape(weights.shape), precision_factors)
    return constants, shifts, _form(means, precision_factors), means, precision_factors


def pass_cost(n_rows: int, K: int, D: int) -> float:
    """Rough number of floating-point operations of one pass."""
    return float(n_rows) * K * (40 + 3 * D * D)


def accumulate(
    X: FloatArray | SingleArray,
    parameters: MixtureParameters,
    sample_weight: FloatArray | None = None,
    n_threads: int | None = None,
    moments: str = "full",
) -> SufficientStatistics:
    """Log-likelihood and sufficient statistics of all rows at given parameters: the E-step.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        Observations, C-contiguous float64 or float32, finite; float32 is read as it is, and all sums are float64.
    parameters : MixtureParameters
    sample_weight : ndarray of shape (N,), optional
        Weights of the observations; 1 when None.
    n_threads : int, optional
        All available cores when None. The result does not depend on it.
    moments : {"full", "pooled", "diagonal"}, default "full"
        What is wanted of the second moments: S2_k of each component, their sum over the components, or their diagonals. The last two
        take a time that does not grow with K D² (pooled: D² + K²).

    Returns
    -------
    SufficientStatistics
        Its ``second`` is (K, D, D), (1, D, D) or (K, D).
    """
    N, D = X.shape
    K = parameters.n_components
    width = int(_width(D))
    v = NO_WEIGHTS if sample_weight is None else sample_weight
    constants, shift, centres, factors = _prepared(parameters)
    rows = int(_chunk_rows(N, D, K))
    chunks = max(1, -(-N // rows))
    pooled = moments == "pooled" and _pools(K, D)
    by_feature = moments == "diagonal" and D >= BY_FEATURE_FROM
    shape = (1, width, width) if pooled else (K, 1, width) if by_feature else (K, width, width)
    loglik, counts = np.zeros(chunks), np.zeros((chunks, K))
    first, second = np.zeros((chunks, K, width)), np.zeros((chunks, *shape))
    pairs = np.zeros((chunks, K, K)) if pooled else None

    def work(taken: NDArray[np.int64], signal: NDArray[np.int64], number: int, helping: bool) -> bool:
        tables = (loglik, counts, first, second, pairs)
        return bool(
            _pass_chunks(X, v, rows, constants, shift, centres, factors, *tables, taken, signal, number, helping)
        )

    threads.together(chunks, pass_cost(N, K, D), n_threads, work)
    for sums in (loglik, counts, first, second, pairs) if chunks > 1 else ():
        if sums is not None:
            _add_chunks(sums.reshape(chunks, -1))
    total = float(N) if sample_weight is None else float(np.sum(sample_weight))
    if moments == "full":
        products = _fill_symmetric(second[0], D)
    elif moments == "pooled":
        products = _pooled(second[0], D)
        if pairs is not None:
            _add_between(products[0], parameters.means, pairs[0])
    else:
        products = (second[0, :, 0, :D] if by_feature else np.diagonal(second[0], axis1=1, axis2=2)[:, :D]).copy()
    return SufficientStatistics(float(loglik[0]), total, counts[0], first[0, :, :D].copy(), products)


@nb.njit(**_options)
def _add_chunks(sums):
    """Add the sums (chunks, n) of all chunks, in their order, to those of the first."""
    for c in range(1, sums.shape[0]):
        for i in range(sums.shape[1]):
            sums[0, i] += sums[c, i]


def log_likelihoods(
    X: FloatArray | SingleArray,
    weights: FloatArray,
    means: FloatArray,
    precision_factors: FloatArray,
    sample_weight: FloatArray | None = None,
    n_threads: int | None = None,
) -> FloatArray:
    """Log-likelihood of all rows under each of S parameter sets, in one pass over the rows.

    Parameters
    ----------
    X : ndarray of shape (N, D)
        C-contiguous float64 or float32, finite.
    weights : ndarray of shape (S, K)
    means : ndarray of shape (S, K, D)
    precision_factors : ndarray of shape (S, K, D, D)
    sample_weight : ndarray of shape (N,), optional
        1 when None.
    n_threads : int, optional
        All available cores when None. The result does not depend on it.

    Returns
    -------
    ndarray of shape (S,)
        Σ_n v_n log p(x_n given θ_s).
    """
    N, D = X.shape
    S, K = weights.shape
    v = NO_WEIGHTS if sample_weight is None else sample_weight
    sets = _sets(weights, means, precision_factors)
    rows = int(_chunk_rows(N, D, K))
    sums = np.zeros((max(1, -(-N // rows)), S))

    def task(chunk: int, start: int, stop: int) -> None:
        _likelihood_rows(X, v, start, stop, *sets, sums[chunk])

    over_chunks(N, rows, S * pass_cost(N, K, D), n_threads, task)
    _add_chunks(sums)
    return sums[0]


def _density(
    X: FloatArray,
    parameters: MixtureParameters,
    log_density: FloatArray,
    responsibilities: FloatArray,
    n_threads: int | None,
) -> None:
    N, D = X.shape
    constants, shift, centres, factors = _prepared(parameters)

    def task(first: int, last: int) -> None:
        start, stop = first * CHUNK_ROWS, min(N, last * CHUNK_ROWS)
        _density_rows(X, start, stop, constants, shift, centres, factors, log_density, responsibilities)

    over_ranges(-(-N // CHUNK_ROWS), pass_cost(N, parameters.n_components, D), n_threads, task)


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
        r[beyond] += missing[beyond, None] * _nearest_beyond_range(X[beyond].astype(np.float64), parameters)


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
    sets = (*_sets(weights, means, precision_factors), edges, limits, flags)
    out = (found.log_density, found.below, found.responsibilities, found.squares, found.marked_mass)

    def task(chunk: int, start: int, stop: int) -> None:
        _predictive_rows(X, start, stop, *sets, *out)

    over_chunks(N, BLOCK, S * pass_cost(N, K, D), n_threads, task)
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
    rows = X[beyond].astype(np.float64)
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
    constants, _, *sets = _sets(weights, means, precision_factors)
    ends = np.ascontiguousarray(stops, dtype=np.int64)

    def task(chunk: int, start: int, stop: int) -> None:
        _class_rows(X, start, stop, constants, *sets, ends, mean, squares)

    over_chunks(N, BLOCK, S * pass_cost(N, K, D), n_threads, task)
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
    sets = _sets(weights, means, precision_factors)
    draws = max(1, S // 64)
    pieces = -(-S // draws)

    def task(chunk: int, start: int, stop: int) -> None:
        part, piece = divmod(start, pieces)
        begin, first = part * CHUNK_ROWS, piece * draws
        _pointwise_rows(X, begin, min(N, begin + CHUNK_ROWS), first, min(S, first + draws), *sets, out)

    over_chunks(pieces * -(-N // CHUNK_ROWS), 1, S * pass_cost(N, K, D), n_threads, task)
    return out
