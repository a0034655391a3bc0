"""The one pass over the data: log-likelihood and sufficient statistics of a Gaussian mixture.

One pass computes, at given parameters (DESIGN notation; v_n are the observation weights),

    loglik = Σ_n v_n log p(x_n)          N_k = Σ_n v_n r_nk
    S1_k = Σ_n v_n r_nk (x_n − μ_k)      S2_k = Σ_n v_n r_nk (x_n − μ_k)(x_n − μ_k)ᵀ

which is the whole E-step and, by Fisher's identity, the whole gradient of the marginal log-likelihood.

How it is made fast. Rows are taken in blocks of ``BLOCK``; a block is turned feature-major once, and every inner loop
runs over its rows with unit stride, so that LLVM vectorises it. Whitening (y = Pᵀ(x − μ)) and the second moments
are matrix products in tiles of 4 × 4 and 4 × 3, so that sums stay in registers, over the lower triangles alone. The
exponential and the logarithm are range-reduced polynomials, since libm's do not vectorise. Sums centred at μ_k do not
cancel for data far from the origin. Where features are many, rows with less than 1e-24 of a component's count in their block are
left out of its moments: they lie below the last bit of the sum.

Everything here releases the GIL and is cached on disk. Work is cut into chunks whose number depends on the problem alone
and whose sums are added in a fixed order: the same numbers, bit for bit, on any number of threads.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numba as nb
import numpy as np

from bayesgmm.core.parameters import FloatArray, MixtureParameters, SufficientStatistics

BLOCK = 256
"""Rows of a block: fewer, and the start of each loop shows; more, and a block of ten features leaves the first-level cache."""

NEGLIGIBLE = 1e-24
"""With COMPACT_FROM features or more, rows with less than this share of a component's count in the block are left out."""

COMPACT_FROM = 12
CHUNK_ROWS = 8192
MAX_CHUNKS = 64
PARALLEL_FLOPS = 2e6

LOG2E = 1.4426950408889634
ROUNDER = 1.5 * 2.0**52 + 1023.0
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
LOG_2PI = math.log(2.0 * math.pi)

_options = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
}

# Without reassociation: it would undo the two-part range reductions.
_exact_options = {**_options, "fastmath": {"contract", "nsz"}}


@nb.njit(**_exact_options)
def exp_nonpositive(x):
    """exp(x) for x ≤ 0, within 1.1 ulp, by operations that vectorise; 0 below −708.8 (and for −inf)."""
    bounded = max(x, -709.1)
    # Adding 1.5 · 2^52 rounds to an integer in the low bits; the 1023 makes these the exponent of 2^n, and 0 the power at the bound.
    shifted = bounded * LOG2E + ROUNDER
    n = shifted - ROUNDER
    r = (bounded - n * LN2_HIGH) - n * LN2_LOW
    # (exp(r) − 1 − r) / r² interpolated at Chebyshev nodes of |r| ≤ ½ log 2: within 0.1 ulp of exp(r). In pairs, not in
    # one chain: what waits on the step before fills the processor's queue.
    r2 = r * r
    r4 = r2 * r2
    p01 = 0.16666666666666669 * r + 0.5000000000000001
    p23 = 0.008333333333329942 * r + 0.04166666666662399
    p45 = 0.00019841269863424233 * r + 0.0013888888917283214
    p67 = 2.7557268033663613e-06 * r + 2.4801521188359105e-05
    p89 = 2.510055005369219e-08 * r + 2.762013956529841e-07
    p = (p01 + p23 * r2) + r4 * ((p45 + p67 * r2) + p89 * r4)
    p = r2 * p + r + 1.0
    return p * np.int64(np.float64(shifted).view(np.int64) << 52).view(np.float64)


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


@nb.njit(**_options)
def _log_normalisers(log_weights, precision_factors):
    K, D = precision_factors.shape[0], precision_factors.shape[1]
    out = np.empty(K)
    for k in range(K):
        total = log_weights[k] - 0.5 * D * LOG_2PI
        for j in range(D):
            total += math.log(precision_factors[k, j, j])
        out[k] = total
    return out


@nb.njit(**_options)
def _load_block(X, start, b, x):
    """Copy rows start … start + b of X into x, feature-major with row stride BLOCK."""
    D = X.shape[1]
    rows = X[start : start + b]
    for j in range(D):
        column = x[j * BLOCK :]
        for i in range(b):
            column[i] = rows[i, j]


@nb.njit(**_options)
def _centre(x, mean, b, z):
    for j in range(mean.shape[0]):
        m = mean[j]
        column, out = x[j * BLOCK :], z[j * BLOCK :]
        for i in range(b):
            out[i] = column[i] - m


@nb.njit(**_options)
def _quadratic_tail(z, P, j, b, lp):
    """Subtract ½ Σ y² of the last 1 to 4 features j … D − 1: they need no feature beyond their own."""
    width = P.shape[0] - j
    z = z[j * BLOCK :]
    if width == 1:
        a00 = P[j, j]
        for i in range(b):
            y0 = a00 * z[i]
            lp[i] -= 0.5 * (y0 * y0)
    elif width == 2:
        a00, a10, a11 = P[j, j], P[j + 1, j], P[j + 1, j + 1]
        for i in range(b):
            z0, z1 = z[i], z[BLOCK + i]
            y0 = a00 * z0 + a10 * z1
            y1 = a11 * z1
            lp[i] -= 0.5 * (y0 * y0 + y1 * y1)
    elif width == 3:
        a00, a10, a20 = P[j, j], P[j + 1, j], P[j + 2, j]
        a11, a21, a22 = P[j + 1, j + 1], P[j + 2, j + 1], P[j + 2, j + 2]
        for i in range(b):
            z0, z1, z2 = z[i], z[BLOCK + i], z[2 * BLOCK + i]
            y0 = a00 * z0 + a10 * z1 + a20 * z2
            y1 = a11 * z1 + a21 * z2
            y2 = a22 * z2
            lp[i] -= 0.5 * (y0 * y0 + y1 * y1 + y2 * y2)
    else:
        a00, a10, a20, a30 = P[j, j], P[j + 1, j], P[j + 2, j], P[j + 3, j]
        a11, a21, a31 = P[j + 1, j + 1], P[j + 2, j + 1], P[j + 3, j + 1]
        a22, a32, a33 = P[j + 2, j + 2], P[j + 3, j + 2], P[j + 3, j + 3]
        for i in range(b):
            z0, z1, z2, z3 = z[i], z[BLOCK + i], z[2 * BLOCK + i], z[3 * BLOCK + i]
            y0 = a00 * z0 + a10 * z1 + a20 * z2 + a30 * z3
            y1 = a11 * z1 + a21 * z2 + a31 * z3
            y2 = a22 * z2 + a32 * z3
            y3 = a33 * z3
            lp[i] -= 0.5 * ((y0 * y0 + y1 * y1) + (y2 * y2 + y3 * y3))


@nb.njit(**_options)
def _quadratic_tile(z, P, j, b, lp, y):
    """Subtract ½ Σ y² of the four features j … j + 3, where more features follow."""
    D = P.shape[0]
    t = z[j * BLOCK :]
    a00, a10, a20, a30 = P[j, j], P[j + 1, j], P[j + 2, j], P[j + 3, j]
    a11, a21, a31 = P[j + 1, j + 1], P[j + 2, j + 1], P[j + 3, j + 1]
    a22, a32, a33 = P[j + 2, j + 2], P[j + 3, j + 2], P[j + 3, j + 3]
    for i in range(b):
        z0, z1, z2, z3 = t[i], t[BLOCK + i], t[2 * BLOCK + i], t[3 * BLOCK + i]
        y[i] = a00 * z0 + a10 * z1 + a20 * z2 + a30 * z3
        y[BLOCK + i] = a11 * z1 + a21 * z2 + a31 * z3
        y[2 * BLOCK + i] = a22 * z2 + a32 * z3
        y[3 * BLOCK + i] = a33 * z3
    # Two halves of the block together, so that a coefficient is loaded once for both; an odd last row is harmless.
    half = (b + 1) // 2
    x = y[half:]
    f = j + 4
    while f + 4 <= D:
        t, u = z[f * BLOCK :], z[f * BLOCK + half :]
        b00, b01, b02, b03 = P[f, j], P[f, j + 1], P[f, j + 2], P[f, j + 3]
        b10, b11, b12, b13 = P[f + 1, j], P[f + 1, j + 1], P[f + 1, j + 2], P[f + 1, j + 3]
        b20, b21, b22, b23 = P[f + 2, j], P[f + 2, j + 1], P[f + 2, j + 2], P[f + 2, j + 3]
        b30, b31, b32, b33 = P[f + 3, j], P[f + 3, j + 1], P[f + 3, j + 2], P[f + 3, j + 3]
        for i in range(half):
            z0, z1, z2, z3 = t[i], t[BLOCK + i], t[2 * BLOCK + i], t[3 * BLOCK + i]
            w0, w1, w2, w3 = u[i], u[BLOCK + i], u[2 * BLOCK + i], u[3 * BLOCK + i]
            y[i] += (b00 * z0 + b10 * z1) + (b20 * z2 + b30 * z3)
            x[i] += (b00 * w0 + b10 * w1) + (b20 * w2 + b30 * w3)
            y[BLOCK + i] += (b01 * z0 + b11 * z1) + (b21 * z2 + b31 * z3)
            x[BLOCK + i] += (b01 * w0 + b11 * w1) + (b21 * w2 + b31 * w3)
            y[2 * BLOCK + i] += (b02 * z0 + b12 * z1) + (b22 * z2 + b32 * z3)
            x[2 * BLOCK + i] += (b02 * w0 + b12 * w1) + (b22 * w2 + b32 * w3)
            y[3 * BLOCK + i] += (b03 * z0 + b13 * z1) + (b23 * z2 + b33 * z3)
            x[3 * BLOCK + i] += (b03 * w0 + b13 * w1) + (b23 * w2 + b33 * w3)
        f += 4
    while f < D:
        t = z[f * BLOCK :]
        b00, b01, b02, b03 = P[f, j], P[f, j + 1], P[f, j + 2], P[f, j + 3]
        for i in range(b):
            z0 = t[i]
            y[i] += b00 * z0
            y[BLOCK + i] += b01 * z0
            y[2 * BLOCK + i] += b02 * z0
            y[3 * BLOCK + i] += b03 * z0
        f += 1
    for i in range(b):
        y0, y1, y2, y3 = y[i], y[BLOCK + i], y[2 * BLOCK + i], y[3 * BLOCK + i]
        lp[i] -= 0.5 * ((y0 * y0 + y1 * y1) + (y2 * y2 + y3 * y3))


@nb.njit(**_options)
def _log_joint_small(x, means, P, k, constant, b, lp):
    """As ``_log_joint`` for D ≤ 4, straight from the features."""
    D = P.shape[1]
    m0, a00 = means[k, 0], P[k, 0, 0]
    if D == 1:
        for i in range(b):
            y0 = a00 * (x[i] - m0)
            lp[k, i] = constant - 0.5 * (y0 * y0)
        return
    m1, a10, a11 = means[k, 1], P[k, 1, 0], P[k, 1, 1]
    if D == 2:
        for i in range(b):
            z1 = x[BLOCK + i] - m1
            y0 = a00 * (x[i] - m0) + a10 * z1
            y1 = a11 * z1
            lp[k, i] = constant - 0.5 * (y0 * y0 + y1 * y1)
        return
    m2, a20, a21, a22 = means[k, 2], P[k, 2, 0], P[k, 2, 1], P[k, 2, 2]
    if D == 3:
        for i in range(b):
            z1, z2 = x[BLOCK + i] - m1, x[2 * BLOCK + i] - m2
            y0 = a00 * (x[i] - m0) + a10 * z1 + a20 * z2
            y1 = a11 * z1 + a21 * z2
            y2 = a22 * z2
            lp[k, i] = constant - 0.5 * (y0 * y0 + y1 * y1 + y2 * y2)
        return
    m3, a30, a31, a32, a33 = means[k, 3], P[k, 3, 0], P[k, 3, 1], P[k, 3, 2], P[k, 3, 3]
    for i in range(b):
        z1, z2, z3 = x[BLOCK + i] - m1, x[2 * BLOCK + i] - m2, x[3 * BLOCK + i] - m3
        y0 = a00 * (x[i] - m0) + a10 * z1 + a20 * z2 + a30 * z3
        y1 = a11 * z1 + a21 * z2 + a31 * z3
        y2 = a22 * z2 + a32 * z3
        y3 = a33 * z3
        lp[k, i] = constant - 0.5 * ((y0 * y0 + y1 * y1) + (y2 * y2 + y3 * y3))


@nb.njit(**_options)
def _log_joint_eight(x, mean, P, constant, b, lp, packed):
    """As ``_log_joint`` for up to 8 features, in one loop; missing features count as zeros. ``packed`` is scratch."""
    D = P.shape[0]
    for j in range(8):
        packed[j] = mean[j] if j < D else 0.0
        for i in range(j, 8):
            packed[8 + 8 * j + i] = P[i, j] if i < D else 0.0
    m0, m1, m2, m3, m4, m5, m6, m7 = (
        packed[0],
        packed[1],
        packed[2],
        packed[3],
        packed[4],
        packed[5],
        packed[6],
        packed[7],
    )
    a00, a10, a20, a30, a40, a50, a60, a70 = (
        packed[8],
        packed[9],
        packed[10],
        packed[11],
        packed[12],
        packed[13],
        packed[14],
        packed[15],
    )
    a11, a21, a31, a41, a51, a61, a71 = (
        packed[17],
        packed[18],
        packed[19],
        packed[20],
        packed[21],
        packed[22],
        packed[23],
    )
    a22, a32, a42, a52, a62, a72 = packed[26], packed[27], packed[28], packed[29], packed[30], packed[31]
    a33, a43, a53, a63, a73 = packed[35], packed[36], packed[37], packed[38], packed[39]
    a44, a54, a64, a74 = packed[44], packed[45], packed[46], packed[47]
    a55, a65, a75 = packed[53], packed[54], packed[55]
    a66, a76 = packed[62], packed[63]
    a77 = packed[71]
    for i in range(b):
        z0 = x[i] - m0
        z1 = x[BLOCK + i] - m1
        z2 = x[2 * BLOCK + i] - m2
        z3 = x[3 * BLOCK + i] - m3
        z4 = x[4 * BLOCK + i] - m4
        z5 = x[5 * BLOCK + i] - m5
        z6 = x[6 * BLOCK + i] - m6
        z7 = x[7 * BLOCK + i] - m7
        y0 = ((a00 * z0 + a10 * z1) + (a20 * z2 + a30 * z3)) + ((a40 * z4 + a50 * z5) + (a60 * z6 + a70 * z7))
        y1 = ((a11 * z1 + a21 * z2) + (a31 * z3 + a41 * z4)) + ((a51 * z5 + a61 * z6) + a71 * z7)
        y2 = ((a22 * z2 + a32 * z3) + (a42 * z4 + a52 * z5)) + (a62 * z6 + a72 * z7)
        y3 = ((a33 * z3 + a43 * z4) + (a53 * z5 + a63 * z6)) + a73 * z7
        y4 = (a44 * z4 + a54 * z5) + (a64 * z6 + a74 * z7)
        y5 = (a55 * z5 + a65 * z6) + a75 * z7
        y6 = a66 * z6 + a76 * z7
        y7 = a77 * z7
        near = (y0 * y0 + y1 * y1) + (y2 * y2 + y3 * y3)
        far = (y4 * y4 + y5 * y5) + (y6 * y6 + y7 * y7)
        lp[i] = constant - 0.5 * (near + far)


@nb.njit(**_options)
def _log_joint(x, means, P, k, constant, b, lp, z, y):
    """Fill row k of lp with log π_k N(x; μ_k, Σ_k) for the b rows of a block."""
    D = P.shape[1]
    if D <= 4:
        _log_joint_small(x, means, P, k, constant, b, lp)
        return
    joint = lp[k]
    if 6 < D <= 8:
        _log_joint_eight(x, means[k], P[k], constant, b, joint, y)
        return
    for i in range(b):
        joint[i] = constant
    _centre(x, means[k], b, z)
    j = 0
    while j + 4 < D:
        _quadratic_tile(z, P[k], j, b, joint, y)
        j += 4
    _quadratic_tail(z, P[k], j, b, joint)


@nb.njit(**_options)
def _exponentials(lp, K, b, top, total):
    """Turn log joint densities (K × BLOCK) into their ratios to the largest, ``top``; ``total`` becomes the sum of these."""
    for i in range(b):
        top[i] = lp[0, i]
    for k in range(1, K):
        for i in range(b):
            top[i] = max(top[i], lp[k, i])
    for i in range(b):
        # A row beyond the reach of float64 (every joint density −inf) keeps log density −inf and no responsibilities.
        total[i] = 0.0
        top[i] = top[i] if top[i] > -np.inf else -1e308
    for k in range(K):
        for i in range(b):
            e = exp_nonpositive(lp[k, i] - top[i])
            lp[k, i] = e
            total[i] += e


@nb.njit(**_options)
def _normalise(lp, K, b, top, total):
    """Turn log joint densities (K × BLOCK) into responsibilities; top becomes the log density of each row."""
    _exponentials(lp, K, b, top, total)
    for i in range(b):
        s = total[i]
        top[i] += log_positive(s)
        total[i] = 1.0 / s if s > 0.0 else 0.0
    for k in range(K):
        for i in range(b):
            lp[k, i] *= total[i]


@nb.njit(**_options)
def _sum_of_logs(total, b):
    """Σ log total over the b rows, each between 1 and K: a logarithm for each product of eight."""
    lanes = BLOCK // 8
    for i in range(b, BLOCK):
        total[i] = 1.0
    out = 0.0
    for i in range(lanes):
        low = (total[i] * total[lanes + i]) * (total[2 * lanes + i] * total[3 * lanes + i])
        high = (total[4 * lanes + i] * total[5 * lanes + i]) * (total[6 * lanes + i] * total[7 * lanes + i])
        out += log_positive(low * high)
    return out


@nb.njit(**_options)
def _moments_small(x, means, k, e, scale, b, S1, S2):
    """Add N, S1, S2 of component k for D ≤ 4, its responsibilities being e · scale; the count is returned."""
    D = means.shape[1]
    n = 0.0
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    c00, c10, c11, c20, c21, c22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    c30, c31, c32, c33 = 0.0, 0.0, 0.0, 0.0
    m0 = means[k, 0]
    if D == 1:
        for i in range(b):
            z0 = x[i] - m0
            r = e[k, i] * scale[i]
            q0 = r * z0
            n += r
            s0 += q0
            c00 += q0 * z0
    elif D == 2:
        m1 = means[k, 1]
        for i in range(b):
            z0, z1 = x[i] - m0, x[BLOCK + i] - m1
            r = e[k, i] * scale[i]
            q0, q1 = r * z0, r * z1
            n += r
            s0 += q0
            s1 += q1
            c00 += q0 * z0
            c10 += q1 * z0
            c11 += q1 * z1
    elif D == 3:
        m1, m2 = means[k, 1], means[k, 2]
        for i in range(b):
            z0, z1, z2 = x[i] - m0, x[BLOCK + i] - m1, x[2 * BLOCK + i] - m2
            r = e[k, i] * scale[i]
            q0, q1, q2 = r * z0, r * z1, r * z2
            n += r
            s0 += q0
            s1 += q1
            s2 += q2
            c00 += q0 * z0
            c10 += q1 * z0
            c11 += q1 * z1
            c20 += q2 * z0
            c21 += q2 * z1
            c22 += q2 * z2
    else:
        m1, m2, m3 = means[k, 1], means[k, 2], means[k, 3]
        for i in range(b):
            z0, z1, z2, z3 = x[i] - m0, x[BLOCK + i] - m1, x[2 * BLOCK + i] - m2, x[3 * BLOCK + i] - m3
            r = e[k, i] * scale[i]
            q0, q1, q2, q3 = r * z0, r * z1, r * z2, r * z3
            n += r
            s0 += q0
            s1 += q1
            s2 += q2
            s3 += q3
            c00 += q0 * z0
            c10 += q1 * z0
            c11 += q1 * z1
            c20 += q2 * z0
            c21 += q2 * z1
            c22 += q2 * z2
            c30 += q3 * z0
            c31 += q3 * z1
            c32 += q3 * z2
            c33 += q3 * z3
    S1[k, 0] += s0
    S2[k, 0, 0] += c00
    if D > 1:
        S1[k, 1] += s1
        S2[k, 1, 0] += c10
        S2[k, 1, 1] += c11
    if D > 2:
        S1[k, 2] += s2
        S2[k, 2, 0] += c20
        S2[k, 2, 1] += c21
        S2[k, 2, 2] += c22
    if D > 3:
        S1[k, 3] += s3
        S2[k, 3, 0] += c30
        S2[k, 3, 1] += c31
        S2[k, 3, 2] += c32
        S2[k, 3, 3] += c33
    return n


@nb.njit(**_options)
def _weigh_tile(r, z, j, b, q, S1):
    """Fill q with r z for the four features j … j + 3 and add their sums to S1."""
    z = z[j * BLOCK :]
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for i in range(b):
        q0, q1, q2, q3 = r[i] * z[i], r[i] * z[BLOCK + i], r[i] * z[2 * BLOCK + i], r[i] * z[3 * BLOCK + i]
        q[i] = q0
        q[BLOCK + i] = q1
        q[2 * BLOCK + i] = q2
        q[3 * BLOCK + i] = q3
        s0 += q0
        s1 += q1
        s2 += q2
        s3 += q3
    # The last tile may reach past the features that there are.
    D = S1.shape[0]
    S1[j] += s0
    if j + 1 < D:
        S1[j + 1] += s1
    if j + 2 < D:
        S1[j + 2] += s2
    if j + 3 < D:
        S1[j + 3] += s3


@nb.njit(**_options)
def _product_tile(q, z, j, f, width, b, S2):
    """Add Σ_i q_j z_f to S2[j : j + 4, f : f + width], width 1 to 3; q holds the four weighted features of tile j.

    Twelve sums, three features and one weighted feature fill the sixteen vector registers; four by four would spill.
    """
    z = z[f * BLOCK :]
    if width == 3:
        c00, c01, c02 = 0.0, 0.0, 0.0
        c10, c11, c12 = 0.0, 0.0, 0.0
        c20, c21, c22 = 0.0, 0.0, 0.0
        c30, c31, c32 = 0.0, 0.0, 0.0
        for i in range(b):
            q0, q1, q2, q3 = q[i], q[BLOCK + i], q[2 * BLOCK + i], q[3 * BLOCK + i]
            z0, z1, z2 = z[i], z[BLOCK + i], z[2 * BLOCK + i]
            c00 += q0 * z0
            c01 += q0 * z1
            c02 += q0 * z2
            c10 += q1 * z0
            c11 += q1 * z1
            c12 += q1 * z2
            c20 += q2 * z0
            c21 += q2 * z1
            c22 += q2 * z2
            c30 += q3 * z0
            c31 += q3 * z1
            c32 += q3 * z2
        S2[j, f] += c00
        S2[j, f + 1] += c01
        S2[j, f + 2] += c02
        S2[j + 1, f] += c10
        S2[j + 1, f + 1] += c11
        S2[j + 1, f + 2] += c12
        S2[j + 2, f] += c20
        S2[j + 2, f + 1] += c21
        S2[j + 2, f + 2] += c22
        S2[j + 3, f] += c30
        S2[j + 3, f + 1] += c31
        S2[j + 3, f + 2] += c32
    elif width == 2:
        c00, c01 = 0.0, 0.0
        c10, c11 = 0.0, 0.0
        c20, c21 = 0.0, 0.0
        c30, c31 = 0.0, 0.0
        for i in range(b):
            q0, q1, q2, q3 = q[i], q[BLOCK + i], q[2 * BLOCK + i], q[3 * BLOCK + i]
            z0, z1 = z[i], z[BLOCK + i]
            c00 += q0 * z0
            c01 += q0 * z1
            c10 += q1 * z0
            c11 += q1 * z1
            c20 += q2 * z0
            c21 += q2 * z1
            c30 += q3 * z0
            c31 += q3 * z1
        S2[j, f] += c00
        S2[j, f + 1] += c01
        S2[j + 1, f] += c10
        S2[j + 1, f + 1] += c11
        S2[j + 2, f] += c20
        S2[j + 2, f + 1] += c21
        S2[j + 3, f] += c30
        S2[j + 3, f + 1] += c31
    else:
        c00 = 0.0
        c10 = 0.0
        c20 = 0.0
        c30 = 0.0
        for i in range(b):
            q0, q1, q2, q3 = q[i], q[BLOCK + i], q[2 * BLOCK + i], q[3 * BLOCK + i]
            z0 = z[i]
            c00 += q0 * z0
            c10 += q1 * z0
            c20 += q2 * z0
            c30 += q3 * z0
        S2[j, f] += c00
        S2[j + 1, f] += c10
        S2[j + 2, f] += c20
        S2[j + 3, f] += c30


@nb.njit(**_options)
def _moments_large(x, mean, r, scale, b, S1, S2, z, q, kept):
    """Add N, S1, S2 of one component for D > 4 (scratch is padded to whole tiles); r is scaled, its count returned."""
    D = mean.shape[0]
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
        m = b
        _centre(x, mean, b, z)
    else:
        for j in range(D):
            mj = mean[j]
            column, out = x[j * BLOCK :], z[j * BLOCK :]
            for i in range(m):
                out[i] = column[kept[i]] - mj
        for i in range(m):
            r[i] = r[kept[i]]
    # Rows of the lower triangle by fours; what a tile has above the diagonal is never read.
    for j in range(0, D, 4):
        _weigh_tile(r, z, j, m, q, S1)
        for f in range(0, j + 4, 3):
            _product_tile(q, z, j, f, min(3, j + 4 - f), m, S2)
    return n


@nb.njit(**_options)
def _pass_rows(X, v, start, stop, constants, means, P, counts, first, second):
    """Add the sums of rows start … stop; second is (K, Dp, Dp) with Dp a multiple of 4, its lower triangle the result."""
    D = X.shape[1]
    K = means.shape[0]
    Dp = second.shape[1]
    x = np.zeros(Dp * BLOCK)
    z = np.zeros(Dp * BLOCK)
    q = np.zeros(4 * BLOCK)
    lp = np.empty((K, BLOCK))
    top = np.empty(BLOCK)
    total = np.empty(BLOCK)
    kept = np.empty(BLOCK + 1, np.int32)
    loglik = 0.0
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        for k in range(K):
            _log_joint(x, means, P, k, constants[k], b, lp, z, q)
        _exponentials(lp, K, b, top, total)
        partial = 0.0
        if v.shape[0] > 0:
            weight = v[block : block + b]
            for i in range(b):
                # A row of weight 0 counts for nothing even where its density is 0.
                partial += weight[i] * (top[i] + log_positive(total[i])) if weight[i] > 0.0 else 0.0
                total[i] = weight[i] / total[i] if total[i] > 0.0 else 0.0
        else:
            partial = _sum_of_logs(total, b)
            for i in range(b):
                partial += top[i]
                total[i] = 1.0 / total[i] if total[i] > 0.0 else 0.0
        loglik += partial
        for k in range(K):
            if D <= 4:
                counts[k] += _moments_small(x, means, k, lp, total, b, first, second)
            else:
                counts[k] += _moments_large(x, means[k], lp[k], total, b, first[k], second[k], z, q, kept)
    return loglik


@nb.njit(**_options)
def _density_rows(X, start, stop, constants, means, P, log_density, responsibilities):
    """Fill log p(x_n) and, where its array is not empty, r_nk for rows start … stop."""
    K, Dp = means.shape[0], 4 * ((means.shape[1] + 3) // 4)
    x, z, y = np.zeros(Dp * BLOCK), np.zeros(Dp * BLOCK), np.empty(4 * BLOCK)
    lp, top, total = np.empty((K, BLOCK)), np.empty(BLOCK), np.empty(BLOCK)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        for k in range(K):
            _log_joint(x, means, P, k, constants[k], b, lp, z, y)
        _normalise(lp, K, b, top, total)
        for i in range(b):
            log_density[block + i] = top[i]
        if responsibilities.shape[0] > 0:
            for i in range(b):
                for k in range(K):
                    responsibilities[block + i, k] = lp[k, i]


@nb.njit(**_options)
def _predictive_rows(X, start, stop, constants, means, P, log_mean_density, mean_responsibilities):
    """Average density and responsibilities over S parameter sets for rows start … stop, one load of each block."""
    S, K, D = means.shape
    Dp = 4 * ((D + 3) // 4)
    x, z, y = np.zeros(Dp * BLOCK), np.zeros(Dp * BLOCK), np.empty(4 * BLOCK)
    lp, top, total = np.empty((K, BLOCK)), np.empty(BLOCK), np.empty(BLOCK)
    high, summed, r_sum = np.empty(BLOCK), np.empty(BLOCK), np.empty(K * BLOCK)
    for block in range(start, stop, BLOCK):
        b = min(BLOCK, stop - block)
        _load_block(X, block, b, x)
        for i in range(b):
            high[i] = -1e308
            summed[i] = 0.0
        for i in range(K * BLOCK):
            r_sum[i] = 0.0
        for s in range(S):
            for k in range(K):
                _log_joint(x, means[s], P[s], k, constants[s, k], b, lp, z, y)
            _normalise(lp, K, b, top, total)
            for i in range(b):
                new = max(high[i], top[i])
                summed[i] = summed[i] * exp_nonpositive(high[i] - new) + exp_nonpositive(top[i] - new)
                high[i] = new
            for k in range(K):
                r, r_total = lp[k], r_sum[k * BLOCK :]
                for i in range(b):
                    r_total[i] += r[i]
        for i in range(b):
            log_mean_density[block + i] = high[i] + log_positive(summed[i] / S)
        if mean_responsibilities.shape[0] > 0:
            for i in range(b):
                for k in range(K):
                    mean_responsibilities[block + i, k] = r_sum[k * BLOCK + i] / S


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
                out[k, j, f] = second[k, j, f]
                out[k, f, j] = second[k, j, f]
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
    Dp = 4 * ((D + 3) // 4)
    constants = _log_normalisers(log_weights, precision_factors)
    counts, first, second = np.zeros(K), np.zeros((K, D)), np.zeros((K, Dp, Dp))
    loglik = 0.0
    rows = _chunk_rows(N, D, K)
    for start in range(0, N, rows):
        c, f, s = np.zeros(K), np.zeros((K, D)), np.zeros((K, Dp, Dp))
        loglik += _pass_rows(X, v, start, min(N, start + rows), constants, means, precision_factors, c, f, s)
        # Loops, not array expressions: those compile for seconds, for error messages that cannot occur.
        for k in range(K):
            counts[k] += c[k]
            for j in range(D):
                first[k, j] += f[k, j]
                for i in range(j + 1):
                    second[k, j, i] += s[k, j, i]
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
    Dp = 4 * ((D + 3) // 4)
    v = NO_WEIGHTS if sample_weight is None else sample_weight
    P, means = parameters.precision_factors, parameters.means
    constants = _log_normalisers(_log(parameters.weights), P)
    rows = int(_chunk_rows(N, D, K))
    chunks = max(1, -(-N // rows))
    loglik, counts = np.zeros(chunks), np.zeros((chunks, K))
    first, second = np.zeros((chunks, K, D)), np.zeros((chunks, K, Dp, Dp))

    def task(chunk: int, start: int, stop: int) -> None:
        loglik[chunk] = _pass_rows(X, v, start, stop, constants, means, P, counts[chunk], first[chunk], second[chunk])

    _over_chunks(N, rows, pass_cost(N, K, D), n_threads, task)
    for chunk in range(1, chunks):
        loglik[0] += loglik[chunk]
        counts[0] += counts[chunk]
        first[0] += first[chunk]
        second[0] += second[chunk]
    total = float(N) if sample_weight is None else float(np.sum(sample_weight))
    return SufficientStatistics(float(loglik[0]), total, counts[0], first[0], _fill_symmetric(second[0], D))


def _density(
    X: FloatArray,
    parameters: MixtureParameters,
    log_density: FloatArray,
    responsibilities: FloatArray,
    n_threads: int | None,
) -> None:
    N, D = X.shape
    P, means = parameters.precision_factors, parameters.means
    constants = _log_normalisers(_log(parameters.weights), P)

    def task(chunk: int, start: int, stop: int) -> None:
        _density_rows(X, start, stop, constants, means, P, log_density, responsibilities)

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
    _complete_beyond_range(X, r, [parameters])
    return r, out


def _complete_beyond_range(X: FloatArray, r: FloatArray, mixtures: Iterable[MixtureParameters]) -> None:
    """Give rows so far away that a density is 0 the responsibilities that it leaves out."""
    missing = 1 - r.sum(axis=1)
    beyond = np.flatnonzero(missing > 1e-6)
    if len(beyond) == 0:
        return
    nearest = np.mean([_nearest_beyond_range(X[beyond], parameters) for parameters in mixtures], axis=0)
    r[beyond] += missing[beyond, None] * nearest


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
    N, D = X.shape
    S, K = weights.shape
    constants = np.stack([_log_normalisers(_log(w), P) for w, P in zip(weights, precision_factors, strict=True)])
    out = np.empty(N)
    r = np.empty((N, K)) if with_responsibilities else NO_RESPONSIBILITIES

    def task(chunk: int, start: int, stop: int) -> None:
        _predictive_rows(X, start, stop, constants, means, precision_factors, out, r)

    _over_chunks(N, BLOCK, S * pass_cost(N, K, D), n_threads, task)
    if with_responsibilities:
        _complete_beyond_range(X, r, map(MixtureParameters, weights, means, precision_factors))
    return out, r


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
    constants = np.stack([_log_normalisers(_log(w), P) for w, P in zip(weights, precision_factors, strict=True)])

    def task(chunk: int, start: int, stop: int) -> None:
        for s in range(start, stop):
            _density_rows(X, 0, N, constants[s], means[s], precision_factors[s], out[s], NO_RESPONSIBILITIES)

    _over_chunks(S, max(1, S // 64), S * pass_cost(N, K, D), n_threads, task)
    return out
